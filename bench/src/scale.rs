//! `hafs-bench scale`: a volume of millions of files, a directory of a million entries, a sparse file of a TiB.
//!
//! Called by `main`. Files are made through [`Volume`], the way FUSE makes them but without its round trips; a sample is then
//! looked at through a mount, served by this process: its memory is then what hafsd's would be. What grows with the number
//! of files, and should not, shows here: memory, the time to open, the rate of the last million beside the first.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hafs_fs::mount::{self, Mount, MountSettings};
use hafs_fs::{Caller, Ino, Profile, SeekTo, Volume, VolumeIdentity, VolumeSettings};
use hafs_protocol::{Epoch, Lineage, NodeId, StoreId, VolumeId};
use rustix::mount::{MountFlags, UnmountFlags};
use serde::Serialize;

use crate::interrupt::Interrupt;
use crate::machine::Machine;
use crate::report::{API_VERSION, markdown};
use crate::scratch::{Scratch, say};

/// What the caller chooses.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Settings {
    /// Where the volume is made; removed afterwards
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Files in all
    #[arg(long, default_value_t = 10_000_000)]
    files: u64,
    /// Entries of one directory
    #[arg(long, default_value_t = 1_000_000)]
    entries: u64,
}

/// What a file takes on the disk at most: rows, log, and RocksDB's copies of them while it compacts.
const DISK_BYTES_A_FILE: u64 = 1500;
const DISK_BYTES_MIN: u64 = 2 << 30;
const FILES_A_DIRECTORY: u64 = 1000;
/// Content of each file: small ones are where filesystems choke.
const FILE_BYTES: usize = 100;
const SPARSE_BYTES: u64 = 1 << 40;
const SPARSE_WRITES: u64 = 20_000;
const LOOKUPS: u64 = 1_000_000;

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    machine: Machine,
    rows: Vec<Figure>,
}

/// One of them.
#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// At most so much, where issue and documentation promise it.
    at_most: Option<f64>,
}

/// What a run is made of.
struct Run<'a> {
    interrupt: &'a Interrupt,
    dir: PathBuf,
    settings: VolumeSettings,
    epoch: u32,
    rows: Vec<Figure>,
}

/// Measures it all.
pub(crate) fn run(settings: &Settings, interrupt: &Interrupt) -> anyhow::Result<Figures> {
    let need_bytes = DISK_BYTES_MIN + DISK_BYTES_A_FILE * (settings.files + settings.entries);
    let scratch = Scratch::create(&settings.dir, need_bytes, false)?;
    let mut run = Run {
        interrupt,
        dir: scratch.path("volume"),
        settings: VolumeSettings::new(SPARSE_BYTES, Profile::Auto),
        epoch: 1,
        rows: Vec::new(),
    };
    Volume::create(&run.dir, &identity(), &run.settings, Epoch(1))?;
    run.files(settings.files)?;
    run.reopen(settings.files)?;
    run.directory(settings.entries)?;
    run.sparse()?;
    if rustix::process::geteuid().is_root() {
        run.mounted(&scratch.fresh_dir("mnt")?)?;
    } else {
        say("not root: nothing is mounted");
    }
    let figures = Figures {
        api_version: API_VERSION,
        machine: Machine::of(&settings.dir)?,
        rows: run.rows,
    };
    scratch.remove()?;
    Ok(figures)
}

impl Run<'_> {
    fn open(&mut self) -> anyhow::Result<Volume> {
        self.epoch += 1;
        let epoch = Epoch(self.epoch);
        Volume::open(&self.dir, &identity(), &self.settings, epoch)
            .context("cannot open the volume")
    }

    fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.bounded(name, value, unit, None);
    }

    fn bounded(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        at_most: Option<f64>,
    ) {
        let name = name.into();
        say(&format!("{name}: {value:.2} {unit}"));
        self.rows.push(Figure {
            name,
            value,
            unit,
            at_most,
        });
    }

    /// Makes all files, and kills the volume while it does: what is measured of opening comes after that.
    fn files(&mut self, files: u64) -> anyhow::Result<()> {
        let volume = self.open()?;
        let body = [0x61; FILE_BYTES];
        let mut parent = Ino::ROOT;
        let report_every = (files / 10).max(1);
        let mut begin = Instant::now();
        for number in 0..files {
            self.interrupt.check()?;
            if number % FILES_A_DIRECTORY == 0 {
                let name = format!("dir-{}", number / FILES_A_DIRECTORY);
                parent = volume
                    .mkdir(Caller::ROOT, Ino::ROOT, name.as_bytes(), 0o755)?
                    .ino;
            }
            let name = format!("file-{number}");
            let file = volume.mknod(Caller::ROOT, parent, name.as_bytes(), 0o100_644, 0)?;
            volume.write(file.ino, 0, &body, false, false)?;
            if (number + 1) % report_every == 0 {
                let rate = report_every as f64 / begin.elapsed().as_secs_f64();
                self.figure(
                    format!("create + write 100 B, up to {}", number + 1),
                    rate,
                    "/s",
                );
                begin = Instant::now();
            }
        }
        volume.crash();
        self.bounded("memory after that", resident_mib()?, "MiB", Some(512.0));
        Ok(())
    }

    fn reopen(&mut self, files: u64) -> anyhow::Result<()> {
        drop_caches();
        let begin = Instant::now();
        let volume = self.open()?;
        let seconds = begin.elapsed().as_secs_f64();
        self.bounded(
            "open, killed while creating, cache dropped",
            seconds,
            "s",
            Some(5.0),
        );
        let disk = disk_bytes(&self.dir)? as f64 / files as f64;
        self.figure("disk of a file", disk, "B");
        let begin = Instant::now();
        let mut place = 1_u64;
        for _ in 0..LOOKUPS.min(files) {
            self.interrupt.check()?;
            // An odd multiplier walks through all residues: each file once, in no order.
            place = place
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let number = place % files;
            let dir = format!("dir-{}", number / FILES_A_DIRECTORY);
            let dir = volume.lookup(Ino::ROOT, dir.as_bytes())?.ino;
            volume.lookup(dir, format!("file-{number}").as_bytes())?;
        }
        let rate = LOOKUPS.min(files) as f64 / begin.elapsed().as_secs_f64();
        self.figure("lookup of a path at random", rate, "/s");
        self.bounded("memory after that", resident_mib()?, "MiB", Some(512.0));
        Ok(())
    }

    fn directory(&mut self, entries: u64) -> anyhow::Result<()> {
        let volume = self.open()?;
        let dir = volume.mkdir(Caller::ROOT, Ino::ROOT, b"big", 0o755)?.ino;
        let begin = Instant::now();
        for number in 0..entries {
            self.interrupt.check()?;
            let name = format!("entry-{number}");
            volume.mknod(Caller::ROOT, dir, name.as_bytes(), 0o100_644, 0)?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        self.figure("create in a big directory", entries as f64 / seconds, "/s");
        let begin = Instant::now();
        let mut seen = 0_u64;
        volume.readdir(dir, 0, &mut |_| {
            seen += 1;
            true
        })?;
        let seconds = begin.elapsed().as_secs_f64();
        if seen != entries + 2 {
            bail!("the big directory has {seen} entries of {entries} and two");
        }
        self.figure("readdir of it", entries as f64 / seconds, "/s");
        let begin = Instant::now();
        for number in 0..entries {
            self.interrupt.check()?;
            volume.unlink(dir, format!("entry-{number}").as_bytes())?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        self.figure("unlink in it", entries as f64 / seconds, "/s");
        volume.reclaim_orphans()?;
        volume.close()?;
        Ok(())
    }

    fn sparse(&mut self) -> anyhow::Result<()> {
        let volume = self.open()?;
        let file = volume
            .mknod(Caller::ROOT, Ino::ROOT, b"sparse", 0o100_644, 0)?
            .ino;
        let piece = [0x33; 4096];
        let begin = Instant::now();
        let mut place = 1_u64;
        for _ in 0..SPARSE_WRITES {
            self.interrupt.check()?;
            place = place
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            volume.write(
                file,
                place % (SPARSE_BYTES / 4096) * 4096,
                &piece,
                false,
                false,
            )?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        self.figure(
            "4 KiB at random in a sparse TiB",
            SPARSE_WRITES as f64 / seconds,
            "/s",
        );
        let begin = Instant::now();
        let mut at = 0;
        let mut extents = 0_u64;
        while let Ok(data) = volume.seek(file, at, SeekTo::Data) {
            at = volume.seek(file, data, SeekTo::Hole)?;
            extents += 1;
        }
        let seconds = begin.elapsed().as_secs_f64();
        self.figure(
            "SEEK_DATA and SEEK_HOLE over it",
            extents as f64 / seconds,
            "/s",
        );
        let begin = Instant::now();
        volume.unlink(Ino::ROOT, b"sparse")?;
        volume.reclaim(file)?;
        self.figure("its removal", begin.elapsed().as_secs_f64(), "s");
        volume.close()?;
        Ok(())
    }

    /// `find` over everything, through the kernel.
    fn mounted(&mut self, dir: &Path) -> anyhow::Result<()> {
        let volume = Arc::new(self.open()?);
        let device = mount::open_device()?;
        let connection = mount::mount_volume(device.as_fd(), "scale", dir, MountFlags::NOATIME)?;
        let _mounted = Detach(dir.to_owned());
        let (end, ended) = std::sync::mpsc::sync_channel(1);
        let settings = MountSettings::new("scale", connection);
        let done = Box::new(move |_| {
            let _ = end.send(()); // nobody waits after an error
        });
        Mount::serve(Arc::clone(&volume), device, &settings, done)?;
        let begin = Instant::now();
        let found = count_files(dir)?;
        let seconds = begin.elapsed().as_secs_f64();
        self.figure(
            format!("find over {found} files, mounted"),
            found as f64 / seconds,
            "/s",
        );
        self.bounded("memory after that", resident_mib()?, "MiB", Some(512.0));
        rustix::mount::unmount(dir, UnmountFlags::empty()).context("cannot unmount")?;
        ended
            .recv_timeout(Duration::from_secs(60))
            .context("the mount does not end")?;
        volume.close()?;
        Ok(())
    }
}

impl Figures {
    /// As markdown.
    pub(crate) fn markdown(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            let bound = row.at_most.map_or_else(String::new, |most| {
                let missed = if row.value > most { ": MISSED" } else { "" };
                format!("<= {most}{missed}")
            });
            let digits = if row.value < 100.0 { 2 } else { 0 };
            vec![
                row.name.clone(),
                format!("{:.digits$}", row.value),
                row.unit.to_owned(),
                bound,
            ]
        });
        format!(
            "{}.\n\n{}",
            self.machine.line(),
            markdown(
                &["what", "figure", "unit", "target"],
                &rows.collect::<Vec<_>>()
            )
        )
    }
}

/// Detaches the mount if the run ends early.
struct Detach(PathBuf);

impl Drop for Detach {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH); // unmounted already, mostly
    }
}

fn identity() -> VolumeIdentity {
    VolumeIdentity {
        volume: VolumeId::from_bytes([1; 16]),
        store: StoreId::from_bytes([2; 16]),
        node: NodeId::from_bytes([3; 16]),
        lineage: Lineage::from_bytes([4; 16]),
    }
}

/// All that is below `dir`, directories too, each looked at.
fn count_files(dir: &Path) -> anyhow::Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        count += 1;
        if entry.metadata()?.is_dir() {
            count += count_files(&entry.path())?;
        }
    }
    Ok(count)
}

/// Resident memory of this process now, MiB.
fn resident_mib() -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kib: f64 = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .context("/proc/self/status has no VmRSS")?;
    Ok(kib / 1024.0)
}

/// Blocks that everything below `dir` takes, bytes.
fn disk_bytes(dir: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            bytes += disk_bytes(&entry.path())?;
        }
    }
    Ok(bytes)
}

/// Only root may; then opening is measured with a warm cache, and said so.
fn drop_caches() {
    rustix::fs::sync();
    if fs::write("/proc/sys/vm/drop_caches", "3").is_err() {
        say("not root: the page cache stays warm");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_run_measures_everything_and_leaves_nothing() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let settings = Settings {
            dir: dir.path().to_owned(),
            files: 2500,
            entries: 300,
        };
        let figures = run(&settings, &Interrupt::default()).unwrap();
        assert!(
            figures.rows.iter().all(|row| row.value > 0.0),
            "{figures:?}"
        );
        assert!(figures.markdown().contains("readdir of it"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
