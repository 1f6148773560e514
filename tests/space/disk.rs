//! Somebody else who fills a disk to the last byte.

use std::fs::{self, File};
use std::path::PathBuf;

use hafs_tests::Disk;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::{KIB, MIB};

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

    /// Takes what is free, but leaves so many bytes.
    pub(crate) fn take_all_but(&mut self, disk: &Disk, left: u64) {
        self.files += 1;
        let path = self.dir.join(self.files.to_string());
        let file = File::create(path).expect("a file needs no block");
        let bytes = disk.free() - left;
        fallocate(&file, FallocateFlags::empty(), 0, bytes).expect("there is as much");
    }

    /// Gives it all back.
    pub(crate) fn free_all(&mut self) {
        for entry in fs::read_dir(&self.dir).expect("readable") {
            fs::remove_file(entry.expect("readable").path()).expect("removable");
        }
    }
}
