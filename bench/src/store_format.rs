//! `hafs-bench store-format`: the few measurements that decide the on-disk format.
//!
//! Called by `main`. One run measures all ways of doing a thing in alternating rounds, so that load from elsewhere
//! falls on each of them; it promises to stay near its time, to leave nothing behind, and to say how loud the machine
//! was. What follows from the figures is argued in `docs/rfcs/0001-store.md`.

mod apply;
mod bulk;
mod files;
mod pair;
mod sync;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use crate::interrupt::Interrupt;
use crate::machine::{Machine, Moment};
use crate::report::{API_VERSION, Report, Row};
use crate::sample::Series;
use crate::scratch::{Needs, Scratch, say};

/// What the caller chooses.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Settings {
    /// Where to measure; a directory of the run's own is made in it and removed
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Seconds of measuring in all; preparing comes on top, about a fifth of it
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Rounds in which the ways of doing a thing alternate
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Mebibytes of each bulk write
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=4096))]
    bulk_mib: u64,
    /// Measure on a filesystem in memory too
    #[arg(long)]
    force: bool,
}

/// What every part gets.
#[derive(Debug)]
struct Run<'a> {
    scratch: &'a Scratch,
    interrupt: &'a Interrupt,
    rounds: usize,
}

/// A way of doing one thing with data of one size, and how long it took.
#[derive(Debug)]
struct Measured {
    how: &'static str,
    size_bytes: usize,
    series: Series,
}

// How a run's seconds are shared out, per cent.
const SYNC_PERCENT: u32 = 45;
const PAIR_PERCENT: u32 = 15;
const BULK_PERCENT: u32 = 25;
const APPLY_PERCENT: u32 = 15;

/// Files of a size that a log or a segment of hafs has.
const FILE_BYTES: u64 = 64 << 20;

/// Space besides the bulk data: logs, and RocksDB's while it flushes and recycles.
const OTHER_BYTES: u64 = 2 << 30;

/// Space for a bulk write, as a multiple of its bytes: RocksDB's log, its tables, and their compacted copy.
const BULK_SPACE: u64 = 4;

/// Measures everything. Bounded by `settings`; errs early when interrupted, with its files removed.
pub(crate) fn run(settings: &Settings, interrupt: &Interrupt) -> anyhow::Result<Report> {
    let bulk_bytes = settings.bulk_mib << 20;
    let needs = Needs {
        bytes: OTHER_BYTES + BULK_SPACE * bulk_bytes,
        less: "a smaller --bulk-mib",
        force: Some(settings.force),
    };
    let machine = Machine::of(&settings.dir)?;
    let scratch = Scratch::create(&settings.dir, needs)?;
    let rounds = usize::try_from(settings.rounds).context("more rounds than there are numbers")?;
    let run = Run {
        scratch: &scratch,
        interrupt,
        rounds,
    };
    let share = |percent: u32| Duration::from_secs(settings.seconds) * percent / 100;
    say(&format!("measuring on {}", machine.line()));
    let begin = Moment::now();
    say("1/4 write + fdatasync: files and RocksDB's log");
    let (sync, recycled) = sync::measure(&run, share(SYNC_PERCENT))?;
    say("2/4 two files: one after the other, side by side");
    let pair = pair::measure(&run, share(PAIR_PERCENT))?;
    say("3/4 bulk data: segments, RocksDB, BlobDB");
    let bulk = bulk::measure(&run, bulk_bytes, share(BULK_PERCENT))?;
    say("4/4 state changes and hashes");
    let applied = apply::measure(&run, share(APPLY_PERCENT))?;
    let noise = begin.noise_since(machine.cores);
    scratch.remove()?;
    let mut notes = sync::notes(&recycled);
    notes.extend(pair::notes());
    notes.extend(bulk::notes());
    notes.extend(applied.notes);
    Ok(Report {
        api_version: API_VERSION,
        machine,
        noise,
        rounds,
        sync: rows(sync),
        pair: rows(pair),
        bulk_bytes,
        bulk,
        apply: rows(applied.batches),
        hash: rows(applied.hashes),
        notes,
    })
}

impl Run<'_> {
    /// Goes through all ways once a round. Each round begins with another way, so that none always follows the same.
    fn alternate(
        &self,
        ways: usize,
        mut one: impl FnMut(usize, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for round in 0..self.rounds {
            for turn in 0..ways {
                self.interrupt.check()?;
                one(round, (turn + round) % ways)?;
            }
            say(&format!("    round {} of {}", round + 1, self.rounds));
        }
        Ok(())
    }
}

fn rows(measured: Vec<Measured>) -> Vec<Row> {
    let row = |measured: Measured| Row {
        how: measured.how.to_owned(),
        size_bytes: measured.size_bytes,
        latency: measured.series.latency(),
    };
    measured.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole run, small: every way works, the report is whole, nothing is left.
    #[test]
    fn a_short_run_measures_everything_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            dir: dir.path().to_owned(),
            seconds: 1,
            rounds: 2,
            bulk_mib: 4,
            force: true,
        };
        let report = run(&settings, &Interrupt::default()).unwrap();
        assert_eq!((report.sync.len(), report.bulk.len()), (18, 6));
        assert!(report.sync.iter().all(|row| row.latency.p50_ns > 0));
        let segment = &report.bulk[0];
        assert!(segment.durable_mb_per_s > 0.0 && segment.process_bytes_per_byte < 2.0);
        let table = report.table();
        assert!(
            table.contains("4 KiB") && table.contains("load average"),
            "{table}"
        );
        serde_json::to_string(&report).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
