//! `hafs-bench scale`: a volume of millions of files, a directory of a million entries, a sparse file of a TiB; and a node of
//! a hundred volumes.
//!
//! Called by `main`. The files are made through [`Volume`](hafs_fs::Volume), the way FUSE makes them but without its round
//! trips, in a store of hafsd's (`volume`); then hafsd serves it (`served`). The many volumes are hafsd's from the start
//! (`node`). What grows with the number of files or volumes, and should not, shows here: memory, the time to open, CPU
//! at rest, the rate of the last million beside the first.

mod node;
mod served;
mod volume;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use hafs_tests::{Daemon, Launch};
use serde::Serialize;

use crate::hafsd;
use crate::interrupt::Interrupt;
use crate::machine::{Machine, Moment, Noise};
use crate::report::{API_VERSION, markdown};
use crate::sample::median;
use crate::scratch::{Needs, Scratch, say};

/// What the caller chooses.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Settings {
    /// Where everything is made; removed afterwards
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Files in all
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
    files: u64,
    /// Entries of one directory
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    entries: u64,
    /// Volumes on one node
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    volumes: u64,
    /// Seconds for which the idle node is watched
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    idle_seconds: u64,
}

/// What a file takes on the disk at most: rows, log, and RocksDB's copies of them while it compacts.
const DISK_BYTES_A_FILE: u64 = 1500;
const DISK_BYTES_MIN: u64 = 2 << 30;
/// What one of many volumes takes at most: its files, log files, the segment that is open.
const DISK_BYTES_A_VOLUME: u64 = 160 << 20;

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    /// What the measured hafsd says of itself.
    version: String,
    machine: Machine,
    noise: Noise,
    files: u64,
    entries: u64,
    volumes: u64,
    idle_seconds: u64,
    rows: Vec<Figure>,
    /// What hafsd logged as a warning or an error.
    notes: Vec<String>,
}

/// One of them.
#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// At most so much, where issue and documentation promise it.
    at_most: Option<f64>,
    /// Whether it is no more; nothing where there is no target.
    reached: Option<bool>,
}

/// What a run is made of.
struct Run<'a> {
    interrupt: &'a Interrupt,
    scratch: &'a Scratch,
    rows: Vec<Figure>,
    notes: Vec<String>,
}

/// Measures it all.
pub(crate) fn run(settings: &Settings, interrupt: &Interrupt) -> anyhow::Result<Figures> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the volumes are mounted\n  why: it does not run as root\n  next: sudo -E make scale"
        );
    }
    let files_bytes = DISK_BYTES_A_FILE * (settings.files + settings.entries);
    let node_bytes = DISK_BYTES_A_VOLUME * settings.volumes;
    let needs = Needs {
        bytes: DISK_BYTES_MIN + files_bytes.max(node_bytes),
        less: "smaller --files, --entries and --volumes",
        force: None,
    };
    let machine = Machine::of(&settings.dir)?;
    let scratch = Scratch::create(&settings.dir, needs)?;
    say(&format!("measuring on {}", machine.line()));
    let begin = Moment::now();
    let mut run = Run {
        interrupt,
        scratch: &scratch,
        rows: Vec::new(),
        notes: Vec::new(),
    };
    run.one_big_volume(settings.files, settings.entries)?;
    run.served(settings.files)?;
    // Its space is needed again.
    fs::remove_dir_all(run.dir())?;
    run.many_volumes(settings.volumes, Duration::from_secs(settings.idle_seconds))?;
    let Run { rows, notes, .. } = run;
    let figures = Figures {
        api_version: API_VERSION,
        version: hafsd::version(),
        noise: begin.noise_since(machine.cores),
        machine,
        files: settings.files,
        entries: settings.entries,
        volumes: settings.volumes,
        idle_seconds: settings.idle_seconds,
        rows,
        notes,
    };
    scratch.remove()?;
    Ok(figures)
}

impl Run<'_> {
    /// Where hafsd with the big volume has its things.
    fn dir(&self) -> PathBuf {
        self.scratch.path("big")
    }

    /// hafsd with everything in `dir`. What it logs is no reason to lose figures: see [`Run::note`].
    fn hafsd(dir: &Path) -> Daemon {
        Launch::new(dir).own_group().expect("").start()
    }

    /// Keeps what it has logged so far as warnings and errors.
    fn note(&mut self, daemon: &Daemon) {
        for line in hafsd::complaints(daemon) {
            if !self.notes.contains(&line) {
                self.notes.push(line);
            }
        }
    }

    fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.bounded(name, value, unit, None);
    }

    fn bounded(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        at_most: Option<f64>,
    ) {
        let name = name.into();
        say(&format!("{name}: {value:.2} {unit}"));
        self.rows.push(Figure {
            name,
            value,
            unit,
            at_most,
            reached: at_most.map(|most| value <= most),
        });
    }

    /// The median and the longest of several, with a bound for the longest.
    fn times(&mut self, name: &str, seconds: &[f64], at_most: Option<f64>) {
        self.figure(format!("{name}: median"), median(seconds), "s");
        let longest = seconds.iter().copied().fold(0.0, f64::max);
        self.bounded(format!("{name}: longest"), longest, "s", at_most);
    }
}

impl Figures {
    /// As markdown.
    pub(crate) fn markdown(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            let missed = if row.reached == Some(false) {
                ": MISSED"
            } else {
                ""
            };
            let target = row.at_most.map(|most| format!("<= {most}{missed}"));
            vec![
                row.name.clone(),
                digits(row.value),
                row.unit.to_owned(),
                target.unwrap_or_default(),
            ]
        });
        let mut out = format!(
            "{}. {}: {} files, {} entries of one directory, {} volumes, {} s of rest.\n\n{}\nThe run: {}.\n",
            self.machine.line(),
            self.version,
            self.files,
            self.entries,
            self.volumes,
            self.idle_seconds,
            markdown(
                &["what", "figure", "unit", "target"],
                &rows.collect::<Vec<_>>()
            ),
            self.noise.line(),
        );
        for note in &self.notes {
            out += &format!("- {note}\n");
        }
        out
    }

    /// How many targets were missed, of how many that there are.
    pub(crate) fn missed(&self) -> (usize, usize) {
        let judged = || self.rows.iter().filter_map(|row| row.reached);
        (
            judged().filter(|reached| !reached).count(),
            judged().count(),
        )
    }
}

/// Enough for a table: 0.012, 1.23, 123.
fn digits(value: f64) -> String {
    match value {
        ..0.1 => format!("{value:.3}"),
        0.1..100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

/// Numbers below `below`, each once before one comes again, in no order that anything could foresee.
fn scattered(below: u64) -> impl Iterator<Item = u64> {
    // Such a multiplier (1 more than a multiple of 4) and an odd step walk through all residues of a power of two; what is
    // too big of them is passed over. A constant step coprime to `below` would visit each number once as well, but at even
    // distances, which a cache meets otherwise than places at random.
    let mask = below.next_power_of_two() - 1;
    let mut place = 1_u64;
    let all = std::iter::repeat_with(move || {
        place = place
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1)
            & mask;
        place
    });
    all.filter(move |&place| place < below)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hafs_tests::requirement::mounts_work;

    use super::*;

    #[test]
    fn scattered_numbers_come_once_each_and_in_no_order() {
        for below in [1, 2, 3, 1000, 2500, 4096, 10_007] {
            let count = usize::try_from(below).unwrap();
            let numbers: Vec<u64> = scattered(below).take(2 * count).collect();
            for round in numbers.chunks(count) {
                let different: BTreeSet<u64> = round.iter().copied().collect();
                assert_eq!(different.len(), count, "below {below}");
                assert!(different.last() < Some(&below));
            }
            let steps: BTreeSet<u64> = numbers
                .windows(2)
                .map(|pair| (pair[1] + below - pair[0]) % below)
                .collect();
            // A constant step would be one.
            assert!(below < 1000 || steps.len() > count / 8, "below {below}");
        }
    }

    #[test]
    fn a_small_run_measures_everything_and_leaves_nothing() {
        if !mounts_work("hafs-bench scale") {
            return;
        }
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let settings = Settings {
            dir: dir.path().to_owned(),
            files: 2500,
            entries: 300,
            volumes: 3,
            idle_seconds: 1,
        };
        let figures = run(&settings, &Interrupt::default()).unwrap();
        // An idle server may have used nothing.
        assert!(
            figures
                .rows
                .iter()
                .all(|row| row.value > 0.0 || row.name.starts_with("idle") && row.value >= 0.0),
            "{figures:?}"
        );
        assert_eq!(figures.notes, Vec::<String>::new());
        let names: BTreeSet<&str> = figures.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names.len(), figures.rows.len(), "{figures:?}");
        let (missed, judged) = figures.missed();
        assert!(missed < judged && judged >= 9, "{figures:?}");
        let text = figures.markdown();
        for words in [
            "2500 files, 300 entries of one directory, 3 volumes, 1 s of rest",
            "readdir of a directory of 300 entries",
            "until it is mounted",
            "peak memory of hafsd after find",
            "mount of each of 3 volumes, after the kill: longest",
            "idle CPU of hafsd, 3 volumes",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(
            !fs::read_to_string("/proc/mounts")
                .unwrap()
                .contains(dir.path().to_str().unwrap())
        );
    }
}
