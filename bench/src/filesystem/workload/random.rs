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
            name: "bytes written to the disk per byte of 4 KiB writes",
            unit: Unit::PerByte,
            targets: &[Target::AtMost(3.0)],
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
    figures.push(job.run()?.iops);
    // Read it all once, so that what follows is warm.
    std::io::copy(&mut File::open(&path)?, &mut std::io::sink())?;
    figures.push(
        Job {
            io_bytes: bench.scaled(READS_WARM) * PIECE_BYTES,
            ..job
        }
        .run()?
        .iops,
    );
    for depth in [1, 16] {
        drop_caches()?;
        let direct = Job {
            direct: true,
            depth,
            ..job
        };
        figures.push(direct.run()?.iops);
    }
    Ok(figures)
}

fn write(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let path = filled(bench, subject, "random-write")?;
    let file_bytes = std::fs::metadata(&path)?.len();
    drop_caches()?;
    let before = subject.usage()?;
    let pieces = bench.scaled(WRITES_BUFFERED).min(file_bytes / PIECE_BYTES);
    let begin = std::time::Instant::now();
    Job {
        rw: "randwrite",
        file: &path,
        file_bytes,
        io_bytes: pieces * PIECE_BYTES,
        seconds_max: SECONDS_MAX,
        direct: false,
        depth: 1,
    }
    .run()?;
    File::options().write(true).open(&path)?.sync_all()?;
    let seconds = begin.elapsed().as_secs_f64();
    drop_caches()?;
    let after = subject.usage()?;
    let written = after.write_bytes - before.write_bytes;
    let per_byte = written as f64 / (pieces * PIECE_BYTES) as f64;
    let per_byte = if subject.kind() == Kind::Ext4 {
        f64::NAN
    } else {
        per_byte
    };
    Ok(vec![pieces as f64 / seconds, per_byte])
}

/// A file of 1 GiB on the disk.
fn filled(bench: &Bench<'_>, subject: &Subject, name: &str) -> anyhow::Result<PathBuf> {
    let path = subject.fresh_dir(name)?.join("file");
    write_file(bench, &path, bench.scaled(FILE_BYTES >> 20) << 20)?;
    Ok(path)
}
