//! A disk of the run's own: an ext4 with a journal on a loop device, so that every filesystem under test lies on the same
//! one and fsync costs what it costs on a real one.
//!
//! Made and dropped by [`filesystem`](super). Dropping unmounts it and frees the device, also when a run fails.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::command::{output, run};
use crate::scratch::{Scratch, say};

/// A mounted loop device.
#[derive(Debug)]
pub(crate) struct Disk {
    device: String,
    dir: PathBuf,
}

impl Disk {
    /// Makes an image of `bytes` in `scratch`, every block of it reserved, with an empty ext4 on it.
    pub(crate) fn create(scratch: &Scratch, bytes: u64) -> anyhow::Result<Self> {
        let image = scratch.path("disk.img");
        let file = File::create(&image).context("cannot make the image")?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
            .context("no room for the image")?;
        // Written once, so that the disk below need not convert blocks while something is measured.
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&image))?;
        let device = output(
            Command::new("losetup")
                .args(["--find", "--show", "--direct-io=on"])
                .arg(&image),
        )?;
        let disk = Self {
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

    /// Gives blocks that were freed back to the image, and waits for everything that is on its way.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        rustix::fs::syncfs(File::open(&self.dir)?).context("syncfs")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for command in [
            Command::new("umount").arg(&self.dir),
            Command::new("losetup").arg("--detach").arg(&self.device),
        ] {
            if let Err(error) = run(command) {
                say(&format!("left behind: {error:#}"));
            }
        }
    }
}
