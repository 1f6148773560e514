//! A disk of the run's own: an ext4 with a journal on a loop device, so that every filesystem under test lies on the same
//! one and fsync costs what it costs on a real one.
//!
//! Made and dropped by [`filesystem`](super). Dropping unmounts it and frees the device, also when a run fails.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use hafs_tests::mount::mounts_on;

use super::command::{output, output_unless, run};
use crate::interrupt::Interrupt;
use crate::scratch::{Scratch, say};

/// Everything is written when it is made, nothing later while something is measured.
const MKFS_EXTENDED: &str = "lazy_itable_init=0,lazy_journal_init=0";

/// A mounted loop device.
#[derive(Debug)]
pub(crate) struct Disk {
    bytes: u64,
    device: String,
    dir: PathBuf,
}

impl Disk {
    /// Makes an image of `bytes` in `scratch`, every block of it reserved, with an empty ext4 on it.
    pub(crate) fn create(
        interrupt: &Interrupt,
        scratch: &Scratch,
        bytes: u64,
    ) -> anyhow::Result<Self> {
        let image = scratch.path("disk.img");
        let file = File::create(&image).context("cannot make the image")?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
            .context("no room for the image")?;
        // Written once, so that the disk below need not convert blocks while something is measured.
        output_unless(
            interrupt,
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-E", MKFS_EXTENDED])
                .arg(&image),
        )?;
        let device = output(
            Command::new("losetup")
                .args(["--find", "--show", "--direct-io=on"])
                .arg(&image),
        )?;
        let disk = Self {
            bytes,
            device: device.trim().to_owned(),
            dir: scratch.fresh_dir("disk")?,
        };
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "noatime"])
            .arg(&disk.device)
            .arg(&disk.dir))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// How it was made and mounted, for those who read the figures.
    pub(crate) fn options(&self) -> String {
        let mount = mounts_on(&self.dir).pop();
        let features = output(Command::new("dumpe2fs").arg("-h").arg(&self.device)).ok();
        let features = features.as_deref().and_then(|text| {
            let line = text
                .lines()
                .find(|line| line.starts_with("Filesystem features"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        format!(
            "ext4 ({}; {}) made with {MKFS_EXTENDED}, on a loop device with direct I/O over a file of {} GiB",
            mount.map_or_else(|| "not mounted".to_owned(), |mount| mount.options.join(",")),
            features.as_deref().unwrap_or("features unknown"),
            self.bytes >> 30,
        )
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily if somebody still has a file open: it goes with them.
        let unmounted = run(Command::new("umount").arg(&self.dir))
            .or_else(|_| run(Command::new("umount").arg("--lazy").arg(&self.dir)));
        let detached = run(Command::new("losetup").arg("--detach").arg(&self.device));
        for error in [unmounted, detached].into_iter().filter_map(Result::err) {
            say(&format!("left behind: {error:#}"));
        }
    }
}
