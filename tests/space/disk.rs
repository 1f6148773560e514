//! A small disk of its own, and somebody else who fills it to the last byte.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use hafs_tests::{Mount, Scratch, run};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use crate::{KIB, MIB};

/// An ext4 filesystem in a file, without space kept back for root (tests, and hafsd, are root).
pub(crate) struct Disk(Mount);

impl Disk {
    pub(crate) fn new(scratch: &Scratch, bytes: u64) -> Self {
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

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn free(&self) -> u64 {
        let disk = statvfs(self.path()).expect("statvfs");
        disk.f_bavail * disk.f_frsize
    }

    /// Takes the disk away; nothing uses it any more.
    pub(crate) fn end(self) {
        run(Command::new("umount").arg(self.path())).ok();
    }
}

/// Another process's files on the same disk.
pub(crate) struct Others {
    dir: PathBuf,
    files: u32,
}

impl Others {
    pub(crate) fn on(disk: &Disk) -> Self {
        let dir = disk.path().join("others");
        fs::create_dir(&dir).expect("a directory");
        Self { dir, files: 0 }
    }

    /// Takes whatever is free, down to single blocks.
    pub(crate) fn take_all(&mut self) {
        self.files += 1;
        let path = self.dir.join(self.files.to_string());
        let file = File::create(path).expect("a file needs no block");
        let mut end = 0;
        for step in [64 * MIB, 4 * MIB, 256 * KIB, 4 * KIB] {
            loop {
                match fallocate(&file, FallocateFlags::empty(), end, step) {
                    Ok(()) => end += step,
                    Err(Errno::NOSPC) => break,
                    Err(errno) => panic!("fallocate: {errno}"),
                }
            }
        }
    }

    /// Gives it all back.
    pub(crate) fn free_all(&mut self) {
        for entry in fs::read_dir(&self.dir).expect("readable") {
            fs::remove_file(entry.expect("readable").path()).expect("removable");
        }
    }
}
