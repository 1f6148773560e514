//! fsx, the file system exerciser, on a mount: random operations on a file, checked byte by byte, through the cache, through
//! mappings and with O_DIRECT.
//!
//! Each variant has a settings file in `tests/posix/fsx/` and runs several fsx side by side, each with its own file and seed:
//! fixed ones, and one that is new in each run. After each variant hafsd is killed: what the last fsync covered has to be there.
//!
//! - `HAFS_FSX_SEED`: this seed alone, in every variant, to replay a failure. fsx draws everything from it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use hafs_tests::binaries::{checkout, tool};
use hafs_tests::command::{Ran, run_within};
use hafs_tests::{Launch, Scratch, requirement, run};

use crate::Mounted;

/// All that fsx 0.3.2 knows.
const KINDS: [&str; 14] = [
    "close/open",
    "copy_file_range",
    "fdatasync",
    "fsync",
    "invalidate",
    "mapread",
    "mapwrite",
    "posix_fadvise",
    "posix_fallocate",
    "punch_hole",
    "read",
    "sendfile",
    "truncate",
    "write",
];

/// Operations that one fsx draws. Some of them it skips, such as a read of an empty file; those are not counted.
const OPS_PER_RUN: u64 = 18_000;

/// Operations that are carried out, in all.
const OPS_MIN: u64 = 200_000;

/// Operations of each kind, in all.
const OPS_PER_KIND_MIN: u64 = 1_000;

/// Seeds that no run forgets. One more is new each time.
const SEEDS: [u64; 2] = [1, 2];

/// One fsx takes some ten seconds; this is for a busy machine.
const LIMIT: Duration = Duration::from_secs(240);

/// A way to run fsx.
struct Variant {
    /// Its settings: `tests/posix/fsx/NAME.toml`.
    name: &'static str,
    /// Whether the file is opened with O_DIRECT.
    direct: bool,
    /// Operations that each fsx draws.
    ops: u64,
}

impl Variant {
    const fn cached(name: &'static str) -> Self {
        Self {
            name,
            direct: false,
            ops: OPS_PER_RUN,
        }
    }

    const fn direct(name: &'static str) -> Self {
        Self {
            direct: true,
            ..Self::cached(name)
        }
    }
}

const VARIANTS: [Variant; 4] = [
    Variant::cached("buffered"),
    Variant::cached("mapped"),
    Variant::direct("direct"),
    Variant::direct("direct_pages"),
];

/// The one that is run again on a mount without the writeback cache, where a write goes through to hafsd and a store in a mapping
/// does not; counted apart.
const WRITE_THROUGH: Variant = Variant {
    ops: 6_000,
    ..VARIANTS[0]
};
/// Operations without the writeback cache that are carried out, in all and of each kind.
const WRITE_THROUGH_OPS_MIN: (u64, u64) = (15_000, 100);

/// Operations that were carried out, by kind.
type Counts = BTreeMap<String, u64>;

#[test]
fn fsx() {
    if !requirement::mounts_work("fsx") {
        return;
    }
    let Some(program) = tool("fsx") else {
        requirement::missing("fsx", "fsx");
        return;
    };
    let replayed: Option<u64> = std::env::var("HAFS_FSX_SEED")
        .ok()
        .map(|seed| seed.parse().expect("HAFS_FSX_SEED is a number"));
    let seeds = match replayed {
        Some(seed) => vec![seed],
        None => SEEDS.into_iter().chain([fresh()]).collect(),
    };
    let mut mounted = Mounted::new();
    let direct = compile_direct(&mounted.scratch.join("direct.so"));
    let mut all = Counts::new();
    for variant in &VARIANTS {
        let counts = side_by_side(&program, &mounted, variant, &direct, &seeds);
        add(&mut all, &counts);
        mounted = kill_and_compare(mounted);
    }
    eprint!("{}", table(&all));
    let set = ["volume", "set", "v", "writeback=off"];
    mounted.daemon.ctl(&set).ok();
    mounted = mounted.remounted();
    let through = side_by_side(&program, &mounted, &WRITE_THROUGH, &direct, &seeds);
    eprint!("without the writeback cache:\n{}", table(&through));
    kill_and_compare(mounted).end();
    if replayed.is_none() {
        assert_enough(&all, (OPS_MIN, OPS_PER_KIND_MIN));
        assert_enough(&through, WRITE_THROUGH_OPS_MIN);
    }
}

fn fresh() -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| uuid::Uuid::new_v4().as_bytes()[i]))
}

/// Runs one fsx for each seed at the same time; gives what all have done.
fn side_by_side(
    program: &Path,
    mounted: &Mounted,
    variant: &Variant,
    direct: &Path,
    seeds: &[u64],
) -> Counts {
    let started = Instant::now();
    let preload = variant.direct.then_some(direct);
    let mut counts = Counts::new();
    thread::scope(|scope| {
        let runs: Vec<_> = seeds
            .iter()
            .map(|&seed| {
                let path = mounted.mount.join(&format!("{}-{seed}", variant.name));
                let artifacts = mounted.scratch.path();
                scope.spawn(move || exercise(program, &path, artifacts, variant, preload, seed))
            })
            .collect();
        let ended: Vec<_> = runs.into_iter().map(|run| run.join()).collect();
        for of_run in ended {
            match of_run {
                Ok(of_run) => add(&mut counts, &of_run),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    let sum: u64 = counts.values().sum();
    let seconds = started.elapsed().as_secs();
    let name = variant.name;
    eprintln!("{name}: seeds {seeds:?}, {sum} operations, {seconds} s");
    counts
}

/// Runs fsx on `path` to its end.
fn exercise(
    program: &Path,
    path: &Path,
    artifacts: &Path,
    variant: &Variant,
    preload: Option<&Path>,
    seed: u64,
) -> Counts {
    let mut command = command(program, path, artifacts, variant, seed);
    if let Some(library) = preload {
        command.env("LD_PRELOAD", library).env("FSX_DIRECT", path);
    }
    let ran = run_within(&mut command, LIMIT);
    assert!(succeeded(&ran), "{}", failure(&ran, seed));
    let counts = count(&ran.stderr);
    if preload.is_some() {
        let opened = ran.stderr.matches("opened with O_DIRECT").count() as u64;
        assert_eq!(
            opened,
            1 + counts.get("close/open").copied().unwrap_or(0),
            "opens with O_DIRECT; the first and one a close/open are expected"
        );
    }
    counts
}

/// The command line of one fsx.
fn command(program: &Path, path: &Path, artifacts: &Path, variant: &Variant, seed: u64) -> Command {
    let settings = checkout().join(format!("tests/posix/fsx/{}.toml", variant.name));
    let mut command = Command::new(program);
    command.arg("-v").arg("-f").arg(settings);
    command.arg("-N").arg(variant.ops.to_string());
    command.arg("-S").arg(seed.to_string());
    command.arg("-P").arg(artifacts).arg(path);
    command.env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

fn succeeded(ran: &Ran) -> bool {
    ran.code == 0 && ran.stdout.contains("All operations completed A-OK!")
}

/// What a failed fsx said last, and how to see it again.
fn failure(ran: &Ran, seed: u64) -> String {
    let lines: Vec<&str> = ran.stderr.lines().collect();
    let is_complaint = |line: &&&str| line.contains("ERROR") || !line.contains("INFO");
    let complaints: Vec<&str> = lines
        .iter()
        .filter(is_complaint)
        .take(12)
        .copied()
        .collect();
    let last = &lines[lines.len().saturating_sub(40)..];
    format!(
        "fsx failed ({} ended with {}):\n{}\n...\n{}\n\
         replay: HAFS_FSX_SEED={seed} cargo nextest run --release -p hafs-tests -E 'test(=fsx::fsx)'",
        ran.command,
        ran.code,
        complaints.join("\n"),
        last.join("\n")
    )
}

/// Counts the lines that fsx writes before each operation: `[INFO  fsx]   12 mapread  0x... .. 0x... (... bytes)`.
fn count(log: &str) -> Counts {
    let mut counts = Counts::new();
    for line in log.lines() {
        let Some((_, operation)) = line.split_once("fsx] ") else {
            continue;
        };
        let mut words = operation.split_whitespace();
        let step = words.next().and_then(|step| step.parse::<u64>().ok());
        let (Some(_), Some(word)) = (step, words.next()) else {
            panic!("fsx said what is no operation: {line}");
        };
        let kind = match word.split('(').next() {
            Some("msync") => "invalidate",
            Some(kind) => kind,
            None => word,
        };
        assert!(KINDS.contains(&kind), "an unknown operation: {line}");
        *counts.entry(kind.to_owned()).or_default() += 1;
    }
    counts
}

fn add(sum: &mut Counts, counts: &Counts) {
    for (kind, count) in counts {
        *sum.entry(kind.clone()).or_default() += count;
    }
}

fn table(counts: &Counts) -> String {
    let mut table = String::new();
    for (kind, count) in counts {
        let _ = writeln!(table, "{count:>8} {kind}");
    }
    let _ = writeln!(table, "{:>8} in all", counts.values().sum::<u64>());
    table
}

fn assert_enough(counts: &Counts, (in_all, of_each): (u64, u64)) {
    let sum: u64 = counts.values().sum();
    assert!(sum >= in_all, "{sum} operations; {in_all} are wanted");
    for kind in KINDS {
        let of_kind = counts.get(kind).copied().unwrap_or(0);
        assert!(
            of_kind >= of_each,
            "{of_kind} times {kind}; {of_each} are wanted"
        );
    }
}

/// The library that makes fsx open its file with O_DIRECT.
fn compile_direct(library: &Path) -> PathBuf {
    let source = checkout().join("tests/posix/fsx/direct.c");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]);
    run(cc.arg(library).arg(source)).ok();
    library.to_owned()
}

/// Syncs what is there, kills hafsd, mounts again: the same bytes, and nothing wrong with the volume.
fn kill_and_compare(mounted: Mounted) -> Mounted {
    let files = contents(mounted.mount.path());
    for path in files.keys() {
        let file = File::open(mounted.mount.path().join(path)).expect("it is there");
        file.sync_all().expect("sync");
    }
    let mounted = mounted.killed();
    assert!(!files.is_empty() && contents(mounted.mount.path()) == files);
    mounted.daemon.check("v");
    for path in files.keys() {
        fs::remove_file(mounted.mount.path().join(path)).expect("it is there");
    }
    mounted
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("the mount is there");
    let files = entries.map(|entry| {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).expect("readable");
        (path.file_name().expect("a name").into(), bytes)
    });
    files.collect()
}

/// fsx would be worth nothing if it passed on a filesystem that loses bytes.
#[test]
fn fsx_notices_bytes_that_were_not_kept() {
    if !requirement::mounts_work("fsx on a lossy store") {
        return;
    }
    let Some(program) = tool("fsx") else {
        requirement::missing("fsx", "fsx");
        return;
    };
    let scratch = Scratch::new();
    let launch = Launch::new(scratch.path())
        .variable("FAILPOINTS", "segment-append=2%return")
        .expect(""); // whatever hafsd says of its chunks
    let daemon = launch.start();
    daemon.create_volume("v");
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    let path = mount.join("file");
    let mut command = command(
        &program,
        &path,
        scratch.path(),
        &Variant::direct("direct"),
        1,
    );
    let ran = run_within(&mut command, LIMIT);
    assert!(!succeeded(&ran), "fsx noticed nothing");
    assert!(
        ran.stderr.matches("[INFO  fsx]").count() > 3,
        "it did not begin: {ran}"
    );
    let message = failure(&ran, 1);
    assert!(message.contains("replay: HAFS_FSX_SEED=1"), "{message}");
}

#[test]
fn the_counts_are_those_of_the_log() {
    let log = "[INFO  fsx]     3 write    0x1d3f .. 0x8d0e ( 0x6fd0 bytes)\n\
               [INFO  fsx]     4 msync(MS_INVALIDATE)\n\
               [INFO  fsx]     5 posix_fadvise(WillNeed  )  0x0 .. 0x1 ( 0x2 bytes)\n\
               opened with O_DIRECT\n\
               [INFO  fsx]     6 close/open\n\
               [INFO  fsx]     7 write    0x1d3f .. 0x8d0e ( 0x6fd0 bytes)\n";
    let expected = [
        ("write", 2),
        ("invalidate", 1),
        ("posix_fadvise", 1),
        ("close/open", 1),
    ];
    let expected: Counts = expected.map(|(kind, n)| (kind.to_owned(), n)).into();
    assert_eq!(count(log), expected);
}
