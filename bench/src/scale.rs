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

use anyhow::{Context, bail};
use hafs_tests::{Daemon, Launch};
use serde::Serialize;

use crate::interrupt::Interrupt;
use crate::machine::{Machine, Moment, Noise};
use crate::report::{API_VERSION, markdown};
use crate::sample::median;
use crate::scratch::{Scratch, say};

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
    version: &'static str,
    machine: Machine,
    noise: Noise,
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
    let need_bytes = DISK_BYTES_MIN + files_bytes.max(node_bytes);
    let machine = Machine::of(&settings.dir)?;
    let scratch = Scratch::create(&settings.dir, need_bytes, false)?;
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
        version: env!("CARGO_PKG_VERSION"),
        noise: begin.noise_since(machine.cores),
        machine,
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
        let log = daemon.log();
        let bad = log
            .lines()
            .filter(|line| !line.contains("\"level\":\"INFO\""));
        for line in bad {
            if !self.notes.iter().any(|note| note == line) {
                self.notes.push(line.to_owned());
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
            let bound = row.at_most.map_or_else(String::new, |most| {
                let missed = if row.value > most { ": MISSED" } else { "" };
                format!("<= {most}{missed}")
            });
            vec![
                row.name.clone(),
                digits(row.value),
                row.unit.to_owned(),
                bound,
            ]
        });
        let mut out = format!(
            "{}. hafs {}.\n\n{}\nThe run: {}.\n",
            self.machine.line(),
            self.version,
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
}

/// Enough for a table: 0.012, 1.23, 123.
fn digits(value: f64) -> String {
    match value {
        ..0.1 => format!("{value:.3}"),
        0.1..100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

/// Writes everything back and drops the kernel's clean pages, names and inodes.
fn drop_caches() -> anyhow::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop caches")
}

/// Numbers below `below`, each once in as many steps if that is a power of two, in no order that anything could foresee.
fn scattered(below: u64) -> impl Iterator<Item = u64> {
    let mut place = 1_u64;
    std::iter::repeat_with(move || {
        // An odd multiplier and an odd step walk through all residues.
        place = place
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        place % below
    })
}

#[cfg(test)]
mod tests {
    use hafs_tests::requirement::mounts_work;

    use super::*;

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
        let text = figures.markdown();
        for row in [
            "readdir of it",
            "until it is mounted",
            "memory of hafsd after find and",
            "idle CPU of hafsd, 3 volumes",
        ] {
            assert!(text.contains(row), "{row}: {text}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(
            !fs::read_to_string("/proc/mounts")
                .unwrap()
                .contains(dir.path().to_str().unwrap())
        );
    }
}
