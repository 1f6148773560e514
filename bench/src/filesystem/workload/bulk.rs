//! A long file: written, synced, read from the disk and from the cache; and what that costs the server.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Instant;

use super::{Bench, Row, Target, Unit, Workload, anywhere, write_file};
use crate::filesystem::subject::{Kind, Subject, drop_caches};
use crate::usage::Usage;

const FILE_BYTES: u64 = 1 << 30;
const PIECE_BYTES: usize = 1 << 20;

pub(super) const BULK: Workload = Workload {
    name: "bulk",
    rows: &[
        Row {
            name: "sequential write + fsync, 1 GiB",
            unit: Unit::MbPerSecond,
            targets: &[Target::OfExt4(0.75)],
        },
        Row {
            name: "sequential read, cold",
            unit: Unit::MbPerSecond,
            targets: &[Target::OfExt4(0.85)],
        },
        Row {
            name: "sequential read, warm",
            unit: Unit::MbPerSecond,
            targets: &[Target::OfExt4(0.9)],
        },
        Row {
            name: "bytes written by the server per byte of bulk",
            unit: Unit::PerByte,
            targets: &[Target::AtMost(1.1)],
        },
        Row {
            name: "bytes given to the disk, journal included, per byte of bulk",
            unit: Unit::PerByte,
            targets: &[],
        },
        Row {
            name: "CPU of the server, sequential write",
            unit: Unit::CpuPerGb,
            targets: &[],
        },
        Row {
            name: "CPU of the server, sequential read, cold",
            unit: Unit::CpuPerGb,
            targets: &[],
        },
    ],
    on: anywhere,
    run,
};

fn run(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let dir = subject.fresh_dir("bulk")?;
    let path = dir.join("file");
    let bytes = bench.scaled(FILE_BYTES >> 20) << 20;
    subject.settle(bench)?;
    drop_caches()?;
    let before = subject.usage()?;
    let device_before = bench.device_bytes()?;
    let written = mb_per_s(bytes, || write_file(bench, &path, bytes))?;
    // What was put off is part of the cost.
    subject.settle(bench)?;
    let device = bench.device_bytes()? - device_before;
    drop_caches()?;
    let between = subject.usage()?;
    let cold = mb_per_s(bytes, || read(bench, &path))?;
    let after = subject.usage()?;
    let warm = mb_per_s(bytes, || read(bench, &path))?;
    // The null filesystem has no disk.
    let on_disk = |figure: f64| {
        if subject.kind() == Kind::Null {
            f64::NAN
        } else {
            figure
        }
    };
    let of = |used: Option<Usage>, figure: fn(Usage) -> f64| used.map_or(f64::NAN, figure);
    let gigabytes = bytes as f64 / 1e9;
    let (writing, reading) = (used(before, between), used(between, after));
    Ok(vec![
        written,
        on_disk(cold),
        warm,
        on_disk(of(writing, |used| used.write_bytes as f64) / bytes as f64),
        on_disk(device as f64 / bytes as f64),
        of(writing, |used| used.cpu.as_secs_f64()) / gigabytes,
        of(reading, |used| used.cpu.as_secs_f64()) / gigabytes,
    ])
}

/// What was used between two readings, where there is a server.
fn used(earlier: Option<Usage>, later: Option<Usage>) -> Option<Usage> {
    Some(later?.since(earlier?))
}

fn read(bench: &Bench<'_>, path: &Path) -> anyhow::Result<()> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    while file.read(&mut piece)? > 0 {
        bench.interrupt.check()?;
    }
    Ok(())
}

fn mb_per_s(bytes: u64, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begin = Instant::now();
    work()?;
    Ok(bytes as f64 / 1e6 / begin.elapsed().as_secs_f64())
}
