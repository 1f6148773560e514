//! A long file: written, synced, read from the disk and from the cache; and what that costs the server.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Instant;

use super::{Bench, Row, Target, Unit, Workload, anywhere, used, write_file};
use crate::filesystem::subject::Subject;
use crate::machine::drop_caches;

const FILE_BYTES: u64 = 1 << 30;
const PIECE_BYTES: usize = 1 << 20;

pub(super) const BULK: Workload = Workload {
    name: "bulk",
    rows: &[
        Row::new(
            "sequential write + fsync, 1 GiB",
            Unit::MbPerSecond,
            &[Target::OfExt4(0.75)],
        ),
        Row::new(
            "sequential read, cold",
            Unit::MbPerSecond,
            &[Target::OfExt4(0.85)],
        ),
        Row::new(
            "sequential read, warm",
            Unit::MbPerSecond,
            &[Target::OfExt4(0.9)],
        ),
        Row::new(
            "bytes written by the server per byte of bulk",
            Unit::PerByte,
            &[Target::AtMost(1.1)],
        ),
        Row::new(
            "bytes given to the disk, journal included, per byte of bulk",
            Unit::PerByte,
            &[],
        ),
        Row::new("CPU of the server, sequential write", Unit::CpuPerGb, &[]),
        Row::new(
            "CPU of the server, sequential read, cold",
            Unit::CpuPerGb,
            &[],
        ),
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
    let bytes = bytes as f64;
    let gigabytes = bytes / 1e9;
    let server = used(before, between, |used| used.write_bytes as f64);
    Ok(vec![
        written,
        subject.on_disk(cold),
        warm,
        subject.on_disk(server / bytes),
        subject.on_disk(device as f64 / bytes),
        used(before, between, |used| used.cpu.as_secs_f64()) / gigabytes,
        used(between, after, |used| used.cpu.as_secs_f64()) / gigabytes,
    ])
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
