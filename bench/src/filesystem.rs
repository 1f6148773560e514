//! `hafs-bench filesystem`: a hafs mount beside a plain directory of the same disk, in one run, alternating.
//!
//! Called by `main`. Everything lies on one ext4 of the run's own: the plain directory, hafsd's data, what bindfs mirrors.
//! Each workload runs on each subject in turn, each round begins with another subject, and what is told are medians and
//! their ratios, so that load from elsewhere and the state of the disk fall on all alike. `docs/performance.md` holds the
//! figures and says what limits each row.

mod command;
mod disk;
mod fio;
mod gluster;
mod null;
mod process;
mod source_tree;
mod subject;
mod table;
mod workload;

use std::path::PathBuf;

use anyhow::bail;

use self::command::is_here;
use self::disk::Disk;
use self::gluster::Gluster;
pub(crate) use self::null::serve as serve_null;
use self::source_tree::SourceTree;
use self::subject::Subject;
use self::table::{Cell, Setup, Table, Versions};
use self::workload::{Bench, Workload};
use crate::interrupt::Interrupt;
use crate::machine::{Machine, Moment};
use crate::report::API_VERSION;
use crate::scratch::{Needs, Scratch, say};

/// What the caller chooses.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Settings {
    /// Where the image of the disk is made; removed afterwards
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Size of that disk, GiB
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=1024))]
    disk_gib: u64,
    /// Rounds in which the filesystems alternate; figures are medians over them
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only workloads whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leave these filesystems out
    #[arg(long, value_delimiter = ',', value_parser = ["null", "bindfs"])]
    without: Vec<String>,
    /// Measure this one too, set up for the run and taken down with it
    #[arg(long, value_parser = ["gluster"])]
    peer: Option<String>,
    /// Do so many times less of everything: to try the bench, not for figures
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    divide: u64,
}

/// What lies beside the image: the source tree in its forms, logs, sockets, scripts.
const DISK_OVERHEAD_BYTES: u64 = 1 << 30;

/// Measures everything that was asked for.
pub(crate) fn run(settings: &Settings, interrupt: &Interrupt) -> anyhow::Result<Table> {
    let chosen = chosen(&settings.only)?;
    check_possible(settings)?;
    let disk_bytes = settings.disk_gib << 30;
    let machine = Machine::of(&settings.dir)?;
    let scratch = Scratch::create(&settings.dir, needs(disk_bytes))?;
    say(&format!("measuring on {}", machine.line()));
    let disk = Disk::create(interrupt, &scratch, disk_bytes)?;
    let aside = scratch.fresh_dir("aside")?;
    let tree = SourceTree::create(interrupt, &aside, settings.divide)?;
    let bench = Bench {
        interrupt,
        divisor: settings.divide,
        tree: &tree,
        disk: disk.dir(),
        aside: &aside,
    };
    let mut notes = Vec::new();
    let subjects = start(settings, interrupt, &disk, &scratch, &mut notes)?;
    let begin = Moment::now();
    let (rows, failures) = measure_all(&bench, &chosen, &subjects, settings.rounds)?;
    let noise = begin.noise_since(machine.cores);
    notes.extend(subjects.iter().flat_map(Subject::complaints));
    let table = Table {
        api_version: API_VERSION,
        machine,
        noise,
        rounds: settings.rounds,
        divided_by: settings.divide,
        versions: Versions::of(&subjects),
        setups: Setup::of(&bench, &disk, &subjects),
        rows,
        failures,
        notes,
    };
    drop(subjects);
    drop(disk);
    scratch.remove()?;
    Ok(table)
}

fn chosen(only: &[String]) -> anyhow::Result<Vec<&'static Workload>> {
    let wanted = |workload: &&Workload| {
        only.is_empty()
            || only
                .iter()
                .any(|part| workload.name.contains(part.as_str()))
    };
    let chosen: Vec<_> = workload::ALL.iter().filter(wanted).collect();
    if chosen.is_empty() {
        let names: Vec<_> = workload::ALL.iter().map(|workload| workload.name).collect();
        bail!(
            "no workload of that name\n  next: one of {}",
            names.join(", ")
        );
    }
    Ok(chosen)
}

/// Errs with what to do where nothing can be measured.
fn check_possible(settings: &Settings) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the bench mounts filesystems\n  why: it does not run as root\n  next: sudo -E make bench"
        );
    }
    if settings.peer.is_some() {
        gluster::check_installed()?;
    }
    Ok(())
}

fn needs(disk_bytes: u64) -> Needs {
    Needs {
        bytes: disk_bytes + DISK_OVERHEAD_BYTES,
        less: "a smaller --disk-gib",
        force: None,
    }
}

fn start(
    settings: &Settings,
    interrupt: &Interrupt,
    disk: &Disk,
    scratch: &Scratch,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<Subject>> {
    let wants = |name: &str| !settings.without.iter().any(|left_out| left_out == name);
    let dir = scratch.path("");
    let mut subjects = vec![Subject::ext4(disk.dir())?];
    // Before all others: its namespace holds copies of the mounts that there are, and is dropped first.
    if settings.peer.is_some() {
        let gluster = Gluster::start(interrupt, &scratch.fresh_dir("glusterd")?)?;
        for copies in [1, 2] {
            subjects.push(Subject::gluster(
                interrupt,
                &gluster,
                copies,
                disk.dir(),
                &dir,
            )?);
        }
    }
    subjects.push(Subject::hafs(disk.dir(), &dir, settings.disk_gib)?);
    if wants("null") {
        subjects.push(Subject::null(interrupt, &dir)?);
    }
    if wants("bindfs") {
        if is_here("bindfs") {
            subjects.push(Subject::bindfs(interrupt, disk.dir(), &dir)?);
        } else {
            notes.push("bindfs is not installed: left out".to_owned());
        }
    }
    Ok(subjects)
}

/// Rows of all workloads, and what could not be done.
fn measure_all(
    bench: &Bench<'_>,
    workloads: &[&Workload],
    subjects: &[Subject],
    rounds: u32,
) -> anyhow::Result<(Vec<table::Row>, Vec<String>)> {
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for workload in workloads {
        rows.extend(measure(bench, workload, subjects, rounds, &mut failures)?);
    }
    Ok((rows, failures))
}

/// Figures of one workload: for each row, for each subject, one a round. A subject that it fails on has none, and is left
/// out of the rounds that follow: what the others come to is worth an hour.
fn measure(
    bench: &Bench<'_>,
    workload: &Workload,
    subjects: &[Subject],
    rounds: u32,
    failures: &mut Vec<String>,
) -> anyhow::Result<Vec<table::Row>> {
    let mut figures: Vec<Vec<Vec<f64>>> = vec![Vec::new(); subjects.len()];
    let mut failed = vec![false; subjects.len()];
    for round in 0..rounds as usize {
        for turn in 0..subjects.len() {
            let number = (turn + round) % subjects.len();
            let subject = &subjects[number];
            if failed[number] || !(workload.on)(subject.kind()) {
                continue;
            }
            let (what, on) = (workload.name, subject.kind().name());
            say(&format!("{what} on {on}, round {} of {rounds}", round + 1));
            match one_turn(bench, workload, subject) {
                Ok(round) => figures[number].push(round),
                Err(error) => {
                    bench.interrupt.check()?; // a signal makes work fail, too
                    let failure = format!("{what} on {on}: {error:#}");
                    say(&format!("FAILED: {failure}"));
                    failures.push(failure);
                    failed[number] = true;
                    figures[number].clear();
                }
            }
        }
    }
    let rows = workload.rows.iter().enumerate();
    Ok(rows
        .map(|(number, row)| {
            let cells = subjects
                .iter()
                .zip(&figures)
                .filter_map(|(subject, rounds)| {
                    let figures = rounds.iter().map(|round| round[number]).collect();
                    Cell::of(subject.kind(), figures)
                })
                .collect();
            table::Row::new(row, cells)
        })
        .collect())
}

/// One round of a workload on one subject, from a quiet disk to a quiet disk.
fn one_turn(bench: &Bench<'_>, workload: &Workload, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    bench.interrupt.check()?;
    bench.settle_disk()?;
    let figures = (workload.run)(bench, subject)?;
    assert_eq!(
        figures.len(),
        workload.rows.len(),
        "one figure for each row"
    );
    subject.fresh_dir(workload.name)?; // what it left is no burden to the next
    subject.settle(bench)?; // nor is what its server still does
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;
    use std::{fs, io};

    use anyhow::Context as _;
    use hafs_tests::requirement::mounts_work;

    use super::process::wait_for;
    use super::workload::{Row, Unit};
    use super::*;

    #[test]
    fn workloads_have_names_of_their_own_and_rows() {
        let mut names: Vec<_> = workload::ALL.iter().map(|workload| workload.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), workload::ALL.len());
        assert!(
            workload::ALL
                .iter()
                .all(|workload| !workload.rows.is_empty())
        );
        let rows = || workload::ALL.iter().flat_map(|workload| workload.rows);
        let names: BTreeSet<_> = rows().map(|row| row.name).collect();
        assert_eq!(names.len(), rows().count());
    }

    /// Disk, hafsd and the null filesystem are set up, measured and taken down; the rest needs programs of its own.
    #[test]
    fn a_small_run_measures_and_leaves_nothing() {
        if !mounts_work("hafs-bench filesystem") {
            return;
        }
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let settings = Settings {
            dir: dir.path().to_owned(),
            disk_gib: 1,
            rounds: 2,
            only: vec!["tree".to_owned()],
            without: vec!["bindfs".to_owned()],
            peer: None,
            divide: 500,
        };
        let table = run(&settings, &Interrupt::default()).unwrap();
        assert_eq!(table.failures, Vec::<String>::new());
        let text = table.markdown();
        for words in [
            "untar a source tree",
            "hafs / null",
            ">= 0.85 of null",
            "ahead of bindfs: not measured",
            "- disk: ext4 (rw,noatime; has_journal",
            "- hafs: ",
            "INIT flags ",
            ". hafsd ",
            "- PostgreSQL: initdb --auth=trust",
            "-s1, then -c1 and -c8, each -j2 -T1",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let path = dir.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(path), "{mounts}");
        // Whoever looked at the device, udev for one, may hold it for a moment.
        let no_device = || {
            let devices = fs::read_dir("/sys/block")?;
            let holds = |entry: io::Result<fs::DirEntry>| {
                let file = entry.ok()?.path().join("loop/backing_file");
                fs::read_to_string(file).ok()?.contains(path).then_some(())
            };
            Ok(devices.filter_map(holds).next().is_none())
        };
        wait_for(&Interrupt::default(), Duration::from_mins(1), no_device).unwrap();
    }

    /// A workload that fails on one subject is named, and the others have their figures.
    #[test]
    fn a_failure_costs_one_subject_its_figures_and_nobody_else() {
        const FAILING: Workload = Workload {
            name: "failing",
            rows: &[Row::new("row", Unit::PerSecond, &[])],
            on: |_| true,
            run: |_, subject| {
                let dir = subject.fresh_dir("failing")?;
                // Fails in the second round of the one of which there is such a file.
                fs::write(dir.join("file"), "x")?;
                let rounds = dir.with_extension("rounds");
                let round = fs::read(&rounds).map_or(0, |rounds| rounds.len());
                fs::write(&rounds, vec![b'x'; round + 1])?;
                let fails = dir.with_extension("fails");
                if round == 1 && fs::exists(&fails)? {
                    fs::read(dir.join("nothing")).context("why")?;
                }
                Ok(vec![1.0])
            },
        };
        let dir = tempfile::tempdir().unwrap();
        let subjects = ["a", "b"].map(|name| {
            let dir = dir.path().join(name);
            fs::create_dir(&dir).unwrap();
            Subject::ext4(&dir).unwrap()
        });
        fs::write(dir.path().join("b/ext4/failing.fails"), "x").unwrap();
        let interrupt = Interrupt::default();
        let tree = SourceTree {
            tar: PathBuf::new(),
            git: PathBuf::new(),
        };
        let bench = Bench {
            interrupt: &interrupt,
            divisor: 1,
            tree: &tree,
            disk: dir.path(),
            aside: dir.path(),
        };
        let mut failures = Vec::new();
        let rows = measure(&bench, &FAILING, &subjects, 3, &mut failures).unwrap();
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(
            failures[0].starts_with("failing on ext4: why: No such file"),
            "{failures:?}"
        );
        let json = serde_json::to_value(&rows[0]).unwrap();
        assert_eq!(json["cells"].as_array().unwrap().len(), 1, "{json}");
        interrupt.raise(2);
        let error = measure(&bench, &FAILING, &subjects, 1, &mut failures).unwrap_err();
        assert!(error.is::<crate::interrupt::Interrupted>(), "{error:#}");
    }
}
