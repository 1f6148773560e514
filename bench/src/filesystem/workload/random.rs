//! 4 KiB at random places of a 1 GiB file.

use std::fs::File;
use std::path::PathBuf;

use super::{Bench, Row, Target, Unit, Workload, anywhere, where_bytes_are_kept, write_file};
use crate::filesystem::fio::Job;
use crate::filesystem::subject::{Kind, Subject, drop_caches};

const FILE_BYTES: u64 = 1 << 30;
const PIECE_BYTES: u64 = 4096;
/// Enough for a stable median, little enough that the cache stays cold for each.
const READS: u64 = 20_000;
const READS_WARM: u64 = 200_000;
const WRITES_BUFFERED: u64 = 65_536;
const SECONDS_MAX: u32 = 30;

pub(super) const READ_ROWS: &[Row] = &[
    Row {
        name: "random 4 KiB read, cold, QD1",
        unit: Unit::PerSecond,
        targets: &[Target::OfExt4(0.45)],
    },
    Row {
        name: "random 4 KiB read, warm",
        unit: Unit::PerSecond,
        targets: &[Target::OfExt4(0.9)],
    },
    Row {
        name: "random 4 KiB read, O_DIRECT, QD1",
        unit: Unit::PerSecond,
        targets: &[],
    },
    Row {
        name: "random 4 KiB read, O_DIRECT, QD16",
        unit: Unit::PerSecond,
        targets: &[],
    },
];

pub(super) const READS_WORKLOAD: Workload = Workload {
    name: "random-read",
    rows: READ_ROWS,
    on: where_bytes_are_kept,
    run: read,
};

pub(super) const WRITES: Workload = Workload {
    name: "random-write",
    rows: &[
        Row {
            name: "random 4 KiB write, buffered, with the fsync",
            unit: Unit::PerSecond,
            targets: &[],
        },
        Row {
            name: "bytes written by the server per byte of 4 KiB writes",
            unit: Unit::PerByte,
            targets: &[Target::AtMost(3.0)],
        },
        Row {
            name: "bytes given to the disk, journal included, per byte of them",
            unit: Unit::PerByte,
            targets: &[],
        },
    ],
    on: anywhere,
    run: write,
};

fn read(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let path = filled(bench, subject, "random-read")?;
    let file_bytes = std::fs::metadata(&path)?.len();
    let job = Job {
        rw: "randread",
        file: &path,
        file_bytes,
        io_bytes: bench.scaled(READS) * PIECE_BYTES,
        seconds_max: SECONDS_MAX,
        direct: false,
        depth: 1,
    };
    let mut figures = Vec::new();
    drop_caches()?;
    figures.push(job.run(bench)?.iops);
    // Read it all once, so that what follows is warm.
    std::io::copy(&mut File::open(&path)?, &mut std::io::sink())?;
    figures.push(
        Job {
            io_bytes: bench.scaled(READS_WARM) * PIECE_BYTES,
            ..job
        }
        .run(bench)?
        .iops,
    );
    for depth in [1, 16] {
        drop_caches()?;
        let direct = Job {
            direct: true,
            depth,
            ..job
        };
        figures.push(direct.run(bench)?.iops);
    }
    Ok(figures)
}

fn write(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let path = filled(bench, subject, "random-write")?;
    let file_bytes = std::fs::metadata(&path)?.len();
    subject.settle(bench)?;
    drop_caches()?;
    let before = subject.usage()?;
    let device_before = bench.device_bytes()?;
    let pieces = bench.scaled(WRITES_BUFFERED).min(file_bytes / PIECE_BYTES);
    let figures = Job {
        rw: "randwrite",
        file: &path,
        file_bytes,
        io_bytes: pieces * PIECE_BYTES,
        seconds_max: SECONDS_MAX,
        direct: false,
        depth: 1,
    }
    .run(bench)?;
    // What was put off is part of the cost.
    subject.settle(bench)?;
    let bytes = figures.bytes as f64;
    let device = (bench.device_bytes()? - device_before) as f64;
    let used = subject.usage()?.zip(before);
    let server = used.map_or(f64::NAN, |(now, then)| now.since(then).write_bytes as f64);
    // The null filesystem has no disk.
    let (server, device) = if subject.kind() == Kind::Null {
        (f64::NAN, f64::NAN)
    } else {
        (server, device)
    };
    Ok(vec![figures.iops, server / bytes, device / bytes])
}

/// A file of 1 GiB on the disk.
fn filled(bench: &Bench<'_>, subject: &Subject, name: &str) -> anyhow::Result<PathBuf> {
    let path = subject.fresh_dir(name)?.join("file");
    write_file(bench, &path, bench.scaled(FILE_BYTES >> 20) << 20)?;
    Ok(path)
}
