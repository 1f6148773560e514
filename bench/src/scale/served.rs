//! The big volume as users have it: served by hafsd, looked at and written through a mount, killed.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hafs_tests::{Daemon, Mount};
use rustix::process::{Signal, kill_process};

use super::volume::{FILE_BYTES, NAME, path_of};
use super::{Run, scattered};
use crate::machine::drop_caches;
use crate::usage::{IDLE_HAFSD, Resident, Usage, wait_idle};

/// Files made through the mount.
const SAMPLE: u64 = 100_000;
const SAMPLE_A_DIRECTORY: u64 = 1000;
const READS: u64 = 1_000_000;
/// Files made before hafsd is killed while it makes more.
const FILES_BEFORE_KILL: u64 = 10_000;
const KILL_LIMIT: Duration = Duration::from_secs(300);
const MEMORY_MIB_MAX: f64 = 512.0;
const OPEN_SECONDS_MAX: f64 = 5.0;

impl Run<'_> {
    /// `find` over everything, a million reads, files made through the mount, and a kill while they are.
    pub(super) fn served(&mut self, files: u64) -> anyhow::Result<()> {
        let dir = self.scratch.fresh_dir("mnt")?;
        drop_caches()?;
        let begin = Instant::now();
        let daemon = Self::hafsd(&self.dir());
        let mount = daemon.mount(NAME, &dir);
        let seconds = begin.elapsed().as_secs_f64();
        self.figure(
            "start of hafsd with the big volume, closed before, cache dropped, until it is mounted",
            seconds,
            "s",
        );
        self.find(&daemon, &dir)?;
        self.reads(&daemon, &dir, files)?;
        let sample = SAMPLE.min(files / 5);
        let begin = Instant::now();
        make(self, &dir.join("sample"), sample, &AtomicU64::new(0))?;
        let rate = sample as f64 / begin.elapsed().as_secs_f64();
        self.figure(
            format!("create + write {FILE_BYTES} B through the mount"),
            rate,
            "/s",
        );
        wait_idle(self.interrupt, IDLE_HAFSD, || Usage::of(&[daemon.pid()]))?;
        self.memory(&daemon, "after find, reads and creates, at rest")?;
        self.kill(daemon, mount, &dir, files)
    }

    fn find(&mut self, daemon: &Daemon, dir: &Path) -> anyhow::Result<()> {
        drop_caches()?;
        let begin = Instant::now();
        let found = count_files(self, dir)?;
        let seconds = begin.elapsed().as_secs_f64();
        self.figure(
            format!("find over {found} files and directories, mounted, cold"),
            found as f64 / seconds,
            "/s",
        );
        self.memory(daemon, "after find")
    }

    fn reads(&mut self, daemon: &Daemon, dir: &Path, files: u64) -> anyhow::Result<()> {
        drop_caches()?;
        let reads = READS.min(files);
        let begin = Instant::now();
        for number in scattered(files).take(usize::try_from(reads)?) {
            self.interrupt.check()?;
            let path = dir.join(path_of(number));
            let body = fs::read(&path).with_context(|| path.display().to_string())?;
            if body.len() != FILE_BYTES {
                bail!("{} has {} bytes", path.display(), body.len());
            }
        }
        let rate = reads as f64 / begin.elapsed().as_secs_f64();
        self.figure("read of a file at random, mounted, cold", rate, "/s");
        self.memory(daemon, &format!("after find and {reads} reads"))
    }

    fn memory(&mut self, daemon: &Daemon, when: &str) -> anyhow::Result<()> {
        let resident = Resident::of(daemon.pid())?;
        let most = Some(MEMORY_MIB_MAX);
        self.bounded(
            format!("memory of hafsd {when}"),
            resident.now_mib,
            "MiB",
            most,
        );
        self.bounded(
            format!("peak memory of hafsd {when}"),
            resident.peak_mib,
            "MiB",
            most,
        );
        Ok(())
    }

    /// Kills hafsd while files are made, and has another one open what it left.
    fn kill(&mut self, daemon: Daemon, mount: Mount, dir: &Path, files: u64) -> anyhow::Result<()> {
        let made = AtomicU64::new(0);
        let enough = FILES_BEFORE_KILL.min(files / 5);
        let pid = daemon.pid();
        thread::scope(|scope| -> anyhow::Result<()> {
            let run = &*self;
            let maker = scope.spawn(|| make(run, &dir.join("killed"), u64::MAX, &made));
            let begin = Instant::now();
            while made.load(Ordering::Relaxed) < enough
                && begin.elapsed() < KILL_LIMIT
                && !maker.is_finished()
                && run.interrupt.check().is_ok()
            {
                thread::park_timeout(Duration::from_millis(1));
            }
            kill_process(pid, Signal::KILL)?;
            // Its error is that hafsd is gone.
            let _ = maker.join().expect("the maker does not panic");
            run.interrupt.check()
        })?;
        if made.load(Ordering::Relaxed) < enough {
            bail!("only {} files were made before the kill", made.into_inner());
        }
        self.note(&daemon);
        daemon.kill();
        drop(mount);
        drop_caches()?;
        let begin = Instant::now();
        let daemon = Self::hafsd(&self.dir());
        let mount = daemon.mount(NAME, dir);
        let seconds = begin.elapsed().as_secs_f64();
        self.bounded(
            "start of hafsd with the big volume, killed while creating, cache dropped, until it is mounted",
            seconds,
            "s",
            Some(OPEN_SECONDS_MAX),
        );
        let kept = count_files(self, &dir.join("killed"))?;
        if kept < enough {
            bail!("after the kill {kept} of {enough} files are there");
        }
        mount.unmount();
        self.note(&daemon);
        daemon.stop();
        Ok(())
    }
}

/// Makes files below `dir` until there are so many; counts them in `made` as it goes.
fn make(run: &Run<'_>, dir: &Path, files: u64, made: &AtomicU64) -> anyhow::Result<()> {
    fs::create_dir(dir)?;
    let mut below = dir.to_owned();
    for number in 0..files {
        run.interrupt.check()?;
        if number % SAMPLE_A_DIRECTORY == 0 {
            below = dir.join((number / SAMPLE_A_DIRECTORY).to_string());
            fs::create_dir(&below)?;
        }
        fs::write(below.join(number.to_string()), [0x62; FILE_BYTES])?;
        made.store(number + 1, Ordering::Relaxed);
    }
    Ok(())
}

/// All that is below `dir`, directories too, each looked at.
fn count_files(run: &Run<'_>, dir: &Path) -> anyhow::Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        run.interrupt.check()?;
        let entry = entry?;
        count += 1;
        if entry.metadata()?.is_dir() {
            count += count_files(run, &entry.path())?;
        }
    }
    Ok(count)
}
