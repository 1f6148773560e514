//! What is done to each filesystem, and in which unit it is told.
//!
//! A workload runs once a round on each subject and yields one figure for each of its rows. It works in a fresh directory,
//! leaves it to the next round to remove, and never looks at what it runs on.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::command::output_unless;
use super::source_tree::SourceTree;
use super::subject::{Kind, Subject};
use crate::interrupt::Interrupt;
use crate::machine::Written;
use crate::usage::Usage;

mod bulk;
mod database;
mod random;
mod small;
mod synced;
mod tree;

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// What is done.
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    /// What hafs is to reach, all of it. With GlusterFS in the run, being ahead of its one copy comes on top.
    pub(crate) targets: &'static [Target],
}

/// What a row's figures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// 10^6 bytes a second; more is better.
    MbPerSecond,
    /// Operations a second; more is better.
    PerSecond,
    /// Microseconds of one; less is better.
    Micros,
    /// Seconds of the whole; less is better.
    Seconds,
    /// Bytes written for one of the application's; less is better, and a plain file has the least that there can be.
    PerByte,
    /// CPU seconds of the server per GB (10^9 bytes); less is better.
    CpuPerGb,
}

/// What hafs is to reach. Ratios are of rates, whatever the unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// At least so much of ext4's rate.
    OfExt4(f64),
    /// At least so much of the null filesystem's rate.
    OfNull(f64),
    /// At most so much, as it stands.
    AtMost(f64),
    /// Faster than that one.
    AheadOf(Kind),
}

/// Ahead of bindfs, which stores nothing itself.
const AHEAD_OF_BINDFS: Target = Target::AheadOf(Kind::Bindfs);
/// Where names are made or moved: what FUSE costs, and little more.
const OF_NULL_AHEAD_OF_BINDFS: &[Target] = &[Target::OfNull(0.85), AHEAD_OF_BINDFS];

/// What a workload is given.
#[derive(Debug)]
pub(crate) struct Bench<'a> {
    pub(crate) interrupt: &'a Interrupt,
    /// Divides every amount of work: 1 for figures, more to try the bench itself.
    pub(crate) divisor: u64,
    pub(crate) tree: &'a SourceTree,
    /// The disk that all subjects lie on.
    pub(crate) disk: &'a Path,
    /// A directory outside all subjects, for sockets and what else is no part of the work.
    pub(crate) aside: &'a Path,
}

/// A workload and its rows.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) rows: &'static [Row],
    /// Whether it makes sense there: the null filesystem keeps no bytes.
    pub(crate) on: fn(Kind) -> bool,
    /// Figures in the order of `rows`.
    pub(crate) run: fn(&Bench<'_>, &Subject) -> anyhow::Result<Vec<f64>>,
}

/// All of them, in the order of the table.
pub(crate) const ALL: &[Workload] = &[
    bulk::BULK,
    random::READS_WORKLOAD,
    random::WRITES,
    synced::ONE,
    synced::MANY,
    small::ONE,
    small::FOUR,
    small::ONE_CORE,
    tree::TREE,
    tree::GIT,
    database::SQLITE,
    database::POSTGRES,
    database::REDIS,
];

impl Row {
    pub(crate) const fn new(name: &'static str, unit: Unit, targets: &'static [Target]) -> Self {
        Self {
            name,
            unit,
            targets,
        }
    }
}

const fn rate(name: &'static str, targets: &'static [Target]) -> Row {
    Row::new(name, Unit::PerSecond, targets)
}

const fn micros(name: &'static str, targets: &'static [Target]) -> Row {
    Row::new(name, Unit::Micros, targets)
}

const fn seconds(name: &'static str, targets: &'static [Target]) -> Row {
    Row::new(name, Unit::Seconds, targets)
}

impl Unit {
    /// Whether a bigger figure is a better one.
    pub(crate) const fn more_is_better(self) -> bool {
        matches!(self, Self::MbPerSecond | Self::PerSecond)
    }

    /// As a heading or beside a figure.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::MbPerSecond => "MB/s",
            Self::PerSecond => "/s",
            Self::Micros => "us",
            Self::Seconds => "s",
            Self::PerByte => "x",
            Self::CpuPerGb => "CPU s/GB",
        }
    }

    /// How fast `figure` is beside `other`: 1 is equal, more is faster, whatever the unit.
    pub(crate) fn ratio(self, figure: f64, other: f64) -> f64 {
        if self.more_is_better() {
            figure / other
        } else {
            other / figure
        }
    }
}

impl Bench<'_> {
    /// `amount`, made smaller where only the bench itself is tried; at least 1.
    pub(crate) fn scaled(&self, amount: u64) -> u64 {
        (amount / self.divisor).max(1)
    }

    /// Runs a program to its end, or until a signal comes; its standard output.
    pub(crate) fn output(&self, command: &mut Command) -> anyhow::Result<String> {
        output_unless(self.interrupt, command)
    }

    /// Waits for everything that is on its way to the disk.
    pub(crate) fn settle_disk(&self) -> anyhow::Result<()> {
        rustix::fs::syncfs(File::open(self.disk)?).context("syncfs")
    }

    /// Bytes that the disk has been given so far, its journal included. What is still in the cache is given to it first.
    pub(crate) fn device_bytes(&self) -> anyhow::Result<u64> {
        self.settle_disk()?;
        let written = Written::now(self.disk)?;
        written.device_bytes.context("the disk does not count")
    }
}

/// How the programs of the workloads are run, for those who read the figures: with the amounts of this run.
pub(crate) fn options(bench: &Bench<'_>) -> Vec<(&'static str, String)> {
    let mut all = random::options(bench);
    all.extend(tree::options());
    all.extend(database::options(bench));
    all
}

/// What PostgreSQL says of its version.
pub(crate) fn postgres_version() -> Option<String> {
    database::postgres_version()
}

/// Everywhere.
fn anywhere(_: Kind) -> bool {
    true
}

/// Where bytes come back.
fn where_bytes_are_kept(kind: Kind) -> bool {
    kind != Kind::Null
}

/// A figure of what the server used between two readings; none where that is the kernel.
fn used(earlier: Option<Usage>, later: Option<Usage>, figure: fn(Usage) -> f64) -> f64 {
    let used = later
        .zip(earlier)
        .map(|(later, earlier)| later.since(earlier));
    used.map_or(f64::NAN, figure)
}

/// A file of `bytes` (of whole MiB) at `path`, synced. No zeros: a filesystem that leaves them out would look fast.
fn write_file(bench: &Bench<'_>, path: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut file = File::create(path)?;
    let mut piece: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    for number in 0..bytes >> 20 {
        bench.interrupt.check()?;
        piece[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    Ok(())
}
