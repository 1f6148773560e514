//! A long file: written, synced, read from the disk and from the cache; and what that costs the server.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Instant;

use super::{Bench, Row, Target, Unit, Workload, anywhere, write_file};
use crate::filesystem::subject::{Kind, Subject, drop_caches};

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
            name: "bytes written to the disk per byte of bulk",
            unit: Unit::PerByte,
            targets: &[Target::AtMost(1.1)],
        },
        Row {
            name: "CPU of the server, bulk write and cold read",
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
    drop_caches()?;
    let before = subject.usage()?;
    let written = mb_per_s(bytes, || write_file(bench, &path, bytes))?;
    let after_write = subject.usage()?;
    drop_caches()?;
    let cold = if subject.kind() == Kind::Null {
        f64::NAN // no disk to read from
    } else {
        mb_per_s(bytes, || read(bench, &path))?
    };
    let after = subject.usage()?;
    let warm = mb_per_s(bytes, || read(bench, &path))?;
    let server = subject.kind() != Kind::Ext4;
    let none_for_kernel = |figure: f64| if server { figure } else { f64::NAN };
    let gigabytes = 2.0 * bytes as f64 / 1e9;
    Ok(vec![
        written,
        cold,
        warm,
        none_for_kernel((after_write.write_bytes - before.write_bytes) as f64 / bytes as f64),
        none_for_kernel((after.cpu - before.cpu).as_secs_f64() / gigabytes),
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
