//! Many volumes on one node, all mounted: what they cost when nobody uses them, and what they do when all are used.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use hafs_tests::{Daemon, Mount};

use super::Run;
use crate::machine::drop_caches;
use crate::usage::{IDLE_HAFSD, Resident, Usage, wait_idle};

const FILES_A_VOLUME: u64 = 500;
const FILE_BYTES: usize = 4096;
const FILE_THREADS: usize = 4;
const SYNCS_A_VOLUME: u64 = 100;
const SYNC_THREADS: usize = 16;
const IDLE_PERCENT_MAX: f64 = 0.5;
const IDLE_LOOK: Duration = Duration::from_millis(200);

impl Run<'_> {
    /// Makes, mounts and uses them, leaves them alone, kills hafsd and starts it again.
    pub(super) fn many_volumes(&mut self, volumes: u64, quiet: Duration) -> anyhow::Result<()> {
        let dir = self.scratch.fresh_dir("node")?;
        let daemon = Self::hafsd(&dir);
        let names: Vec<String> = (0..volumes).map(|number| format!("v{number}")).collect();
        let mut seconds = Vec::new();
        for name in &names {
            self.interrupt.check()?;
            let begin = Instant::now();
            daemon
                .ctl(&["volume", "create", name, "--size", "1GiB"])
                .ok();
            seconds.push(begin.elapsed().as_secs_f64());
        }
        self.times(
            &format!("create of each of {volumes} volumes"),
            &seconds,
            None,
        );
        let mounts = self.mount_all(&daemon, &dir, &names, "fresh")?;
        self.node_memory(&daemon, "fresh and mounted")?;
        self.use_all(&mounts)?;
        self.node_memory(&daemon, "used")?;
        self.idle(&daemon, volumes, quiet)?;

        self.note(&daemon);
        daemon.kill();
        drop(mounts);
        drop_caches()?;
        let begin = Instant::now();
        let daemon = Self::hafsd(&dir);
        self.figure(
            format!("start of hafsd with {volumes} volumes, killed, cache dropped"),
            begin.elapsed().as_secs_f64(),
            "s",
        );
        let mounts = self.mount_all(&daemon, &dir, &names, "after the kill")?;
        for mount in &mounts {
            let kept = fs::read_dir(mount.path())?.count() as u64;
            anyhow::ensure!(
                kept == FILES_A_VOLUME + 1,
                "{} has {kept} files after the kill",
                mount.path().display()
            );
        }
        self.node_memory(&daemon, "opened again and listed")?;
        let begin = Instant::now();
        self.note(&daemon);
        daemon.stop();
        self.figure(
            format!("stop of hafsd with {volumes} volumes mounted"),
            begin.elapsed().as_secs_f64(),
            "s",
        );
        Ok(())
    }

    fn mount_all(
        &mut self,
        daemon: &Daemon,
        dir: &Path,
        names: &[String],
        when: &str,
    ) -> anyhow::Result<Vec<Mount>> {
        let (mut seconds, mut mounts) = (Vec::new(), Vec::new());
        for name in names {
            self.interrupt.check()?;
            let point = dir.join(name);
            fs::create_dir_all(&point)?;
            let begin = Instant::now();
            mounts.push(daemon.mount(name, &point));
            seconds.push(begin.elapsed().as_secs_f64());
        }
        let volumes = names.len();
        self.times(
            &format!("mount of each of {volumes} volumes, {when}"),
            &seconds,
            None,
        );
        Ok(mounts)
    }

    /// All of them at once, each by one thread.
    fn use_all(&mut self, mounts: &[Mount]) -> anyhow::Result<()> {
        let create = |dir: &Path| {
            for number in 0..FILES_A_VOLUME {
                self.interrupt.check()?;
                fs::write(dir.join(number.to_string()), [0x63; FILE_BYTES])?;
            }
            Ok(())
        };
        let rate = rate(mounts, FILE_THREADS, FILES_A_VOLUME, &create)?;
        let append = |dir: &Path| {
            let mut file = File::create(dir.join("synced"))?;
            for _ in 0..SYNCS_A_VOLUME {
                self.interrupt.check()?;
                file.write_all(&[0x64; FILE_BYTES])?;
                file.sync_data()?;
            }
            Ok(())
        };
        let syncs = self::rate(mounts, SYNC_THREADS, SYNCS_A_VOLUME, &append)?;
        self.figure(
            format!("create + write 4 KiB over all volumes, {FILE_THREADS} threads"),
            rate,
            "/s",
        );
        self.figure(
            format!("4 KiB append + fdatasync over all volumes, {SYNC_THREADS} threads"),
            syncs,
            "/s",
        );
        Ok(())
    }

    /// What hafsd does while nobody wants anything.
    fn idle(&mut self, daemon: &Daemon, volumes: u64, quiet: Duration) -> anyhow::Result<()> {
        let usage = || Usage::of(&[daemon.pid()]);
        wait_idle(self.interrupt, IDLE_HAFSD, usage)?;
        self.node_memory(daemon, "at rest")?;
        let (before, begin) = (usage()?, Instant::now());
        while begin.elapsed() < quiet {
            self.interrupt.check()?;
            thread::park_timeout(IDLE_LOOK.min(quiet));
        }
        let used = usage()?.since(before);
        let percent = used.cpu.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0;
        self.bounded(
            format!("idle CPU of hafsd, {volumes} volumes mounted"),
            percent,
            "% of a core",
            Some(IDLE_PERCENT_MAX),
        );
        self.figure(
            format!(
                "idle writes of hafsd in {} s, {volumes} volumes mounted",
                quiet.as_secs()
            ),
            used.write_bytes as f64,
            "B",
        );
        Ok(())
    }

    fn node_memory(&mut self, daemon: &Daemon, when: &str) -> anyhow::Result<()> {
        let resident = Resident::of(daemon.pid())?;
        self.figure(
            format!("memory of hafsd, all volumes {when}"),
            resident.now_mib,
            "MiB",
        );
        Ok(())
    }
}

/// Operations a second, `count` in each mount; every thread has its share of the mounts.
fn rate(
    mounts: &[Mount],
    threads: usize,
    count: u64,
    work: &(dyn Fn(&Path) -> anyhow::Result<()> + Sync),
) -> anyhow::Result<f64> {
    let paths: Vec<PathBuf> = mounts.iter().map(|mount| mount.path().to_owned()).collect();
    let begin = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(paths.len()))
            .map(|thread| {
                let mine = paths.iter().skip(thread).step_by(threads);
                scope.spawn(move || {
                    mine.into_iter()
                        .try_for_each(|path| work(path).with_context(|| path.display().to_string()))
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    let all = paths.len() as u64 * count;
    Ok(all as f64 / begin.elapsed().as_secs_f64())
}
