//! A small disk of its own: ext4 in a file.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use rustix::fs::statvfs;

use crate::command::run;
use crate::mount::Mount;
use crate::scratch::Scratch;

/// An ext4 filesystem on a loop device, without space kept back for root (tests, and hafsd, are root). It goes when this is
/// dropped.
#[derive(Debug)]
pub struct Disk(Mount);

impl Disk {
    /// Of `bytes`, as `disk` in the scratch directory.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new(scratch: &Scratch, bytes: u64) -> Self {
        let image = scratch.join("disk.img");
        File::create(&image)
            .and_then(|file| file.set_len(bytes))
            .expect("a file for the disk");
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"])
            .arg(&image))
        .ok();
        let dir = scratch.dir("disk");
        let mount = Mount::watch(&dir);
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&dir))
        .ok();
        Self(mount)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Bytes that are free.
    ///
    /// # Panics
    /// If it is not mounted any more.
    pub fn free(&self) -> u64 {
        let disk = statvfs(self.path()).expect("statvfs");
        disk.f_bavail * disk.f_frsize
    }

    /// Takes the disk away; nothing uses it any more.
    ///
    /// # Panics
    /// If something does.
    pub fn end(self) {
        run(Command::new("umount").arg(self.path())).ok();
    }
}
