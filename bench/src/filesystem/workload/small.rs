//! Many small files: make, look at, list, rename, remove.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::ensure;

use super::{Bench, OF_NULL_AHEAD_OF_BINDFS, Target, Workload, anywhere, rate};
use crate::filesystem::subject::Subject;
use crate::machine::drop_caches;

const FILES: u64 = 10_000;

pub(super) const ONE: Workload = Workload {
    name: "small",
    rows: &[
        rate("create + write 4 KiB, 1 thread", OF_NULL_AHEAD_OF_BINDFS),
        rate("stat, just created, 1 thread", &[]),
        rate("stat, warm, 1 thread", &[Target::OfExt4(0.9)]),
        rate("stat, cold, 1 thread", &[]),
        rate("readdir with attributes, cold, 1 thread", &[]),
        rate("rename, 1 thread", OF_NULL_AHEAD_OF_BINDFS),
        rate("unlink, 1 thread", &[Target::OfNull(0.85)]),
    ],
    on: anywhere,
    run: |bench, subject| run(bench, subject, "small", 1),
};

pub(super) const FOUR: Workload = Workload {
    name: "small-4",
    rows: &[
        rate("create + write 4 KiB, 4 threads", OF_NULL_AHEAD_OF_BINDFS),
        rate("stat, just created, 4 threads", &[]),
        rate("stat, warm, 4 threads", &[Target::OfExt4(0.9)]),
        rate("stat, cold, 4 threads", &[]),
        rate("readdir with attributes, cold, 4 threads", &[]),
        rate("rename, 4 threads", OF_NULL_AHEAD_OF_BINDFS),
        rate("unlink, 4 threads", &[Target::OfNull(0.85)]),
    ],
    on: anywhere,
    run: |bench, subject| run(bench, subject, "small-4", 4),
};

/// Where no thread has to be woken on another core: what requests cost, whatever the machine's wake-ups take.
pub(super) const ONE_CORE: Workload = Workload {
    name: "small-core",
    rows: &[
        rate("create + write 4 KiB, all on one core", &[]),
        rate("rename, all on one core", &[]),
        rate("unlink, all on one core", &[]),
    ],
    on: anywhere,
    run: |bench, subject| {
        let _one_core = subject.on_one_core()?;
        let figures = run(bench, subject, "small-core", 1)?;
        let [create, .., rename, unlink] = figures[..] else {
            unreachable!("a figure for each row of the workload `small`");
        };
        Ok(vec![create, rename, unlink])
    },
};

fn run(bench: &Bench<'_>, subject: &Subject, name: &str, threads: u64) -> anyhow::Result<Vec<f64>> {
    let dir = subject.fresh_dir(name)?;
    let files = (bench.scaled(FILES) / threads).max(1);
    for thread in 0..threads {
        fs::create_dir(dir.join(thread.to_string()))?;
    }
    let each = |work: &(dyn Fn(&Path, u64) -> anyhow::Result<()> + Sync)| {
        rate_of(&dir, threads, files, &|dir| {
            (0..files).try_for_each(|n| {
                bench.interrupt.check()?;
                work(dir, n)
            })
        })
    };
    let body = [0x42; 4096];
    let create = each(&|dir, n| Ok(fs::write(dir.join(format!("file-{n}")), body)?))?;
    let stat = |dir: &Path, n: u64| {
        fs::metadata(dir.join(format!("file-{n}")))?;
        anyhow::Ok(())
    };
    let created = each(&stat)?;
    let warm = each(&stat)?;
    drop_caches()?;
    let cold = each(&stat)?;
    drop_caches()?;
    let list = rate_of(&dir, threads, files, &|dir| {
        let mut listed = 0;
        for entry in fs::read_dir(dir)? {
            bench.interrupt.check()?;
            entry?.metadata()?;
            listed += 1;
        }
        ensure!(listed == files, "{listed} names are listed of {files}");
        Ok(())
    })?;
    let rename = each(&|dir, n| {
        let from = dir.join(format!("file-{n}"));
        Ok(fs::rename(from, dir.join(format!("renamed-{n}")))?)
    })?;
    let unlink = each(&|dir, n| Ok(fs::remove_file(dir.join(format!("renamed-{n}")))?))?;
    Ok(vec![create, created, warm, cold, list, rename, unlink])
}

/// Files a second over all threads; each does its `work` in a directory of its own with so many `files`.
fn rate_of(
    dir: &Path,
    threads: u64,
    files: u64,
    work: &(dyn Fn(&Path) -> anyhow::Result<()> + Sync),
) -> anyhow::Result<f64> {
    let begin = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let dir = dir.join(thread.to_string());
                scope.spawn(move || work(&dir))
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    Ok((threads * files) as f64 / begin.elapsed().as_secs_f64())
}
