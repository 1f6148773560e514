//! Small writes, each made durable: what databases and queues wait for.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::{AHEAD_OF_BINDFS, Bench, Target, Workload, anywhere, micros, rate};
use crate::filesystem::subject::Subject;
use crate::sample::{percentile, slice, timed};

/// Bytes of the file that is written in place.
const FILE_BYTES: u64 = 64 << 20;
const OPS: u64 = 3000;
const OPS_A_THREAD: u64 = 500;
const THREADS: u64 = 16;
const SECONDS_MAX: Duration = Duration::from_secs(10);

pub(super) const ONE: Workload = Workload {
    name: "fdatasync",
    rows: &[
        micros(
            "4 KiB in place + fdatasync, p50",
            &[Target::OfExt4(0.5), AHEAD_OF_BINDFS],
        ),
        micros("4 KiB in place + fdatasync, p99", &[]),
        micros("8 KiB in place + fdatasync, p50", &[AHEAD_OF_BINDFS]),
        micros("8 KiB in place + fdatasync, p99", &[]),
        micros(
            "4 KiB append + fdatasync, p50",
            &[Target::OfExt4(1.0 / 1.3), AHEAD_OF_BINDFS],
        ),
        micros("4 KiB append + fdatasync, p99", &[]),
        micros("8 KiB append + fdatasync, p50", &[AHEAD_OF_BINDFS]),
        micros("8 KiB append + fdatasync, p99", &[]),
    ],
    on: anywhere,
    run: one,
};

pub(super) const MANY: Workload = Workload {
    name: "fdatasync-16",
    rows: &[
        rate(
            "16 threads on 16 files, 4 KiB in place + fdatasync",
            &[AHEAD_OF_BINDFS],
        ),
        micros("16 threads, 4 KiB in place + fdatasync, p50", &[]),
        micros("16 threads, 4 KiB in place + fdatasync, p99", &[]),
        rate(
            "16 threads on 16 files, 8 KiB in place + fdatasync",
            &[AHEAD_OF_BINDFS],
        ),
        micros("16 threads, 8 KiB in place + fdatasync, p50", &[]),
        micros("16 threads, 8 KiB in place + fdatasync, p99", &[]),
        rate(
            "16 threads on 16 files, 4 KiB append + fdatasync",
            &[Target::OfExt4(0.7), AHEAD_OF_BINDFS],
        ),
        micros("16 threads, 4 KiB append + fdatasync, p50", &[]),
        micros("16 threads, 4 KiB append + fdatasync, p99", &[]),
        rate(
            "16 threads on 16 files, 8 KiB append + fdatasync",
            &[AHEAD_OF_BINDFS],
        ),
        micros("16 threads, 8 KiB append + fdatasync, p50", &[]),
        micros("16 threads, 8 KiB append + fdatasync, p99", &[]),
    ],
    on: anywhere,
    run: many,
};

fn one(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let dir = subject.fresh_dir("fdatasync")?;
    let mut figures = Vec::new();
    for append in [false, true] {
        for bytes in [4096, 8192] {
            let path = dir.join(format!("{append}-{bytes}"));
            prepare(bench, &path, append, FILE_BYTES)?;
            let nanos = write_synced(bench, &path, bytes, append, bench.scaled(OPS))?;
            figures.extend(p50_and_p99(nanos));
        }
    }
    Ok(figures)
}

/// Of each kind: the rate of all threads together, and what one operation takes.
fn many(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let mut figures = Vec::new();
    for append in [false, true] {
        for bytes in [4096, 8192] {
            let dir = subject.fresh_dir("fdatasync-16")?;
            let ops = bench.scaled(OPS_A_THREAD);
            let files: Vec<_> = (0..THREADS).map(|n| dir.join(n.to_string())).collect();
            for path in &files {
                prepare(bench, path, append, FILE_BYTES / THREADS)?;
            }
            let begin = Instant::now();
            let nanos = thread::scope(|scope| {
                let writers: Vec<_> = files
                    .iter()
                    .map(|path| scope.spawn(move || write_synced(bench, path, bytes, append, ops)))
                    .collect();
                writers
                    .into_iter()
                    .map(|writer| writer.join().expect("a writer does not panic"))
                    .collect::<anyhow::Result<Vec<_>>>()
            })?
            .concat();
            figures.push(nanos.len() as f64 / begin.elapsed().as_secs_f64());
            figures.extend(p50_and_p99(nanos));
        }
    }
    Ok(figures)
}

/// In microseconds.
fn p50_and_p99(mut nanos: Vec<u64>) -> [f64; 2] {
    nanos.sort_unstable();
    [50, 99].map(|percent| percentile(&nanos, percent) as f64 / 1000.0)
}

/// An empty file, or one with all its bytes on the disk.
fn prepare(bench: &Bench<'_>, path: &Path, append: bool, bytes: u64) -> anyhow::Result<()> {
    let file = File::create(path)?;
    if !append {
        let piece = vec![0x5a; 1 << 20];
        for mib in 0..bytes >> 20 {
            bench.interrupt.check()?;
            file.write_all_at(&piece, mib << 20)?;
        }
    }
    file.sync_all()?;
    Ok(())
}

/// Nanoseconds of each write with its fdatasync. In place: spread over the file, no page twice in a row.
fn write_synced(
    bench: &Bench<'_>,
    path: &Path,
    bytes: usize,
    append: bool,
    ops: u64,
) -> anyhow::Result<Vec<u64>> {
    let file = File::options().write(true).open(path)?;
    let piece = vec![0xa5; bytes];
    let step = bytes as u64;
    let places = (file.metadata()?.len() / step).max(1);
    slice(bench.interrupt, SECONDS_MAX, usize::try_from(ops)?, |op| {
        // 7919 is prime, so all places come before one comes again.
        let place = if append { op } else { op * 7919 % places };
        timed(|| {
            file.write_all_at(&piece, place * step)?;
            file.sync_data()?;
            Ok(())
        })
    })
}
