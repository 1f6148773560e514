//! 4 KiB at random places of a 1 GiB file.

use std::fs::File;
use std::path::PathBuf;

use super::{
    Bench, Row, Target, Unit, Workload, anywhere, rate, used, where_bytes_are_kept, write_file,
};
use crate::filesystem::fio::Job;
use crate::filesystem::subject::Subject;
use crate::machine::drop_caches;

const FILE_BYTES: u64 = 1 << 30;
const PIECE_BYTES: u64 = 4096;
/// Enough for a stable median, little enough that the cache stays cold for each.
const READS: u64 = 20_000;
const READS_WARM: u64 = 200_000;
const WRITES_BUFFERED: u64 = 65_536;
const SECONDS_MAX: u32 = 30;

pub(super) const READS_WORKLOAD: Workload = Workload {
    name: "random-read",
    rows: &[
        rate("random 4 KiB read, cold, QD1", &[Target::OfExt4(0.45)]),
        rate("random 4 KiB read, warm", &[Target::OfExt4(0.9)]),
        rate("random 4 KiB read, O_DIRECT, QD1", &[]),
        rate("random 4 KiB read, O_DIRECT, QD16", &[]),
    ],
    on: where_bytes_are_kept,
    run: read,
};

pub(super) const WRITES: Workload = Workload {
    name: "random-write",
    rows: &[
        rate("random 4 KiB write, buffered, with the fsync", &[]),
        Row::new(
            "bytes written by the server per byte of 4 KiB writes",
            Unit::PerByte,
            &[Target::AtMost(3.0)],
        ),
        Row::new(
            "bytes given to the disk, journal included, per byte of 4 KiB writes",
            Unit::PerByte,
            &[],
        ),
    ],
    on: anywhere,
    run: write,
};

/// The jobs that read, in the order of the rows.
fn reads(bench: &Bench<'_>) -> [Job; 4] {
    let cold = Job {
        rw: "randread",
        file_bytes: file_bytes(bench),
        io_bytes: bench.scaled(READS) * PIECE_BYTES,
        seconds_max: SECONDS_MAX,
        direct: false,
        depth: 1,
    };
    let warm = Job {
        io_bytes: bench.scaled(READS_WARM) * PIECE_BYTES,
        ..cold
    };
    let direct = Job {
        direct: true,
        ..cold
    };
    let deep = Job {
        depth: 16,
        ..direct
    };
    [cold, warm, direct, deep]
}

fn writes(bench: &Bench<'_>) -> Job {
    let file_bytes = file_bytes(bench);
    let pieces = bench.scaled(WRITES_BUFFERED).min(file_bytes / PIECE_BYTES);
    Job {
        rw: "randwrite",
        file_bytes,
        io_bytes: pieces * PIECE_BYTES,
        seconds_max: SECONDS_MAX,
        direct: false,
        depth: 1,
    }
}

/// How fio is run for each row that it measures, for those who read the figures.
pub(super) fn options(bench: &Bench<'_>) -> Vec<(&'static str, String)> {
    let jobs = reads(bench).into_iter().chain([writes(bench)]);
    let rows = READS_WORKLOAD.rows.iter().chain(WRITES.rows);
    rows.zip(jobs)
        .map(|(row, job)| (row.name, job.line()))
        .collect()
}

fn read(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let path = filled(bench, subject, "random-read")?;
    let [cold, warm, direct, deep] = reads(bench);
    let mut figures = Vec::new();
    drop_caches()?;
    figures.push(cold.run(bench, &path)?.iops);
    // Read it all once, so that what follows is warm.
    std::io::copy(&mut File::open(&path)?, &mut std::io::sink())?;
    figures.push(warm.run(bench, &path)?.iops);
    for job in [direct, deep] {
        drop_caches()?;
        figures.push(job.run(bench, &path)?.iops);
    }
    Ok(figures)
}

fn write(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let path = filled(bench, subject, "random-write")?;
    subject.settle(bench)?;
    drop_caches()?;
    let before = subject.usage()?;
    let device_before = bench.device_bytes()?;
    let figures = writes(bench).run(bench, &path)?;
    // What was put off is part of the cost.
    subject.settle(bench)?;
    let bytes = figures.bytes as f64;
    let device = (bench.device_bytes()? - device_before) as f64;
    let server = used(before, subject.usage()?, |used| used.write_bytes as f64);
    Ok(vec![
        figures.iops,
        subject.on_disk(server / bytes),
        subject.on_disk(device / bytes),
    ])
}

/// A file of 1 GiB on the disk.
fn filled(bench: &Bench<'_>, subject: &Subject, name: &str) -> anyhow::Result<PathBuf> {
    let path = subject.fresh_dir(name)?.join("file");
    write_file(bench, &path, file_bytes(bench))?;
    Ok(path)
}

/// In whole MiB.
fn file_bytes(bench: &Bench<'_>) -> u64 {
    bench.scaled(FILE_BYTES >> 20) << 20
}
