//! `hafs-bench filesystem`: a hafs mount beside a plain directory of the same disk, in one run, alternating.
//!
//! Called by `main`. Everything lies on one ext4 of the run's own: the plain directory, hafsd's data, what bindfs mirrors.
//! Each workload runs on each subject in turn, each round begins with another subject, and what is told are medians and
//! their ratios, so that load from elsewhere and the state of the disk fall on all alike. `docs/performance.md` holds the
//! figures and says what limits each row.

mod command;
mod disk;
mod fio;
mod null;
mod source_tree;
mod subject;
mod table;
mod workload;

use std::path::PathBuf;

use anyhow::{Context, bail};

use self::command::is_here;
use self::disk::Disk;
use self::source_tree::SourceTree;
use self::subject::Subject;
use self::table::{Cell, Table, Versions};
use self::workload::{Bench, Workload};
use crate::interrupt::Interrupt;
use crate::machine::{Machine, Moment};
use crate::scratch::{Scratch, say};

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
    /// Do so many times less of everything: to try the bench, not for figures
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    divide: u64,
}

/// The disk keeps room for logs, dead chunks and databases beside three files of 1 GiB.
const DISK_OVERHEAD_BYTES: u64 = 1 << 30;

/// Measures everything that was asked for.
pub(crate) fn run(settings: &Settings, interrupt: &Interrupt) -> anyhow::Result<Table> {
    let chosen: Vec<&Workload> = workload::ALL
        .iter()
        .filter(|workload| {
            settings.only.is_empty()
                || settings
                    .only
                    .iter()
                    .any(|part| workload.name.contains(part.as_str()))
        })
        .collect();
    if chosen.is_empty() {
        let names: Vec<_> = workload::ALL.iter().map(|workload| workload.name).collect();
        bail!(
            "no workload of that name\n  next: one of {}",
            names.join(", ")
        );
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the bench mounts filesystems\n  why: it does not run as root\n  next: sudo -E make bench"
        );
    }
    let disk_bytes = settings.disk_gib << 30;
    let machine = Machine::of(&settings.dir)?;
    let scratch = Scratch::create(&settings.dir, disk_bytes + DISK_OVERHEAD_BYTES, false)?;
    say(&format!("measuring on {}", machine.line()));
    let disk = Disk::create(&scratch, disk_bytes)?;
    let aside = scratch.fresh_dir("aside")?;
    let tree = SourceTree::create(&aside, settings.divide)?;
    let bench = Bench {
        interrupt,
        divisor: settings.divide,
        tree: &tree,
        aside: &aside,
    };
    let mut notes = Vec::new();
    let subjects = start(settings, &disk, &scratch, &mut notes)?;
    let begin = Moment::now();
    let mut rows = Vec::new();
    for workload in chosen {
        rows.extend(measure(
            &bench,
            &disk,
            workload,
            &subjects,
            settings.rounds,
        )?);
    }
    let noise = begin.noise_since(machine.cores);
    let versions = Versions::of(&subjects);
    drop(subjects);
    drop(disk);
    scratch.remove()?;
    Ok(Table::new(
        machine,
        noise,
        settings.rounds,
        settings.divide,
        versions,
        rows,
        notes,
    ))
}

fn start(
    settings: &Settings,
    disk: &Disk,
    scratch: &Scratch,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<Subject>> {
    let wants = |name: &str| !settings.without.iter().any(|left_out| left_out == name);
    let dir = scratch.path("");
    let mut subjects = vec![Subject::ext4(disk.dir())?];
    subjects.push(Subject::hafs(disk.dir(), &dir, settings.disk_gib)?);
    if wants("null") {
        subjects.push(Subject::null(&dir)?);
    }
    if wants("bindfs") {
        if is_here("bindfs") {
            subjects.push(Subject::bindfs(disk.dir(), &dir)?);
        } else {
            notes.push("bindfs is not installed: left out".to_owned());
        }
    }
    Ok(subjects)
}

/// Figures of one workload: for each row, for each subject, one a round.
fn measure(
    bench: &Bench<'_>,
    disk: &Disk,
    workload: &Workload,
    subjects: &[Subject],
    rounds: u32,
) -> anyhow::Result<Vec<table::Row>> {
    let mut figures: Vec<Vec<Vec<f64>>> =
        vec![vec![Vec::new(); subjects.len()]; workload.rows.len()];
    for round in 0..rounds as usize {
        for turn in 0..subjects.len() {
            let number = (turn + round) % subjects.len();
            let subject = &subjects[number];
            if !(workload.on)(subject.kind()) {
                continue;
            }
            bench.interrupt.check()?;
            disk.settle()?;
            let name = subject.kind().name();
            say(&format!(
                "{} on {name}, round {} of {rounds}",
                workload.name,
                round + 1
            ));
            let round = (workload.run)(bench, subject)
                .with_context(|| format!("{} on {name}", workload.name))?;
            assert_eq!(round.len(), workload.rows.len(), "one figure for each row");
            for (row, figure) in round.into_iter().enumerate() {
                figures[row][number].push(figure);
            }
            subject.fresh_dir(workload.name)?; // what it left is no burden to the next
        }
    }
    let rows = workload.rows.iter().zip(figures);
    Ok(rows
        .map(|(row, figures)| {
            let cells = subjects
                .iter()
                .zip(figures)
                .filter_map(|(subject, figures)| Cell::of(subject.kind(), figures))
                .collect();
            table::Row::new(row, cells)
        })
        .collect())
}

#[cfg(test)]
mod tests {
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
    }
}
