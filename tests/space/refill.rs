//! Full, half deleted, full again: no space is lost for good.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hafs_tests::{Disk, Launch, Numbers, Scratch, requirement};

use crate::usage::allocated;
use crate::{MIB, MIB_LEN, Mounted, wait_until};

const ROUNDS: u64 = 10;
const DISK_BYTES: u64 = 448 * MIB;
const IDLE_LIMIT: Duration = Duration::from_secs(180);
/// A disk is full when it refuses the smallest file so many times. hafsd says no at once where no space is to be won; where some
/// is, it waits two seconds, and a round of the collector may take longer than that on a machine that does a lot besides.
const REFUSALS: u32 = 8;

/// Writes files of 32 KiB to 4 MiB into `dir`, past the page cache, until there is no space even for the smallest; returns
/// their bytes in all.
fn fill(dir: &Path, round: u64, numbers: &mut Numbers) -> u64 {
    let bytes = vec![1; 4 * MIB_LEN];
    let mut lengths = 8;
    for n in 0.. {
        let path = dir.join(format!("{round}-{n}"));
        let length = numbers.below(lengths);
        let bytes = &bytes[..32 << 10 << length];
        // The end of a round is what is counted, so it is not to hang on one answer.
        let tries = if length == 0 { REFUSALS } else { 1 };
        let fits = (0..tries).any(|_| fits(&path, bytes));
        if !fits && length == 0 {
            break;
        }
        if !fits {
            // Else what is counted would depend on which length happened to come last.
            lengths = length;
        }
    }
    let entries = fs::read_dir(dir).expect("readable");
    let sizes = entries.map(|entry| entry.and_then(|entry| entry.metadata()));
    sizes.map(|size| size.expect("readable").len()).sum()
}

/// Writes a file, unless there is no space.
fn fits(path: &Path, bytes: &[u8]) -> bool {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let written = options
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .and_then(|mut file| file.write_all(bytes));
    match written {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::StorageFull => false,
        Err(error) => panic!("{error}"),
    }
}

/// Deletes every second file.
fn delete_half(dir: &Path) {
    let entries = fs::read_dir(dir).expect("readable");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("readable").path())
        .collect();
    paths.sort();
    for path in paths.iter().step_by(2) {
        fs::remove_file(path).expect("deleting works");
    }
}

#[test]
fn a_disk_that_is_filled_and_half_deleted_ten_times_takes_as_much_as_at_first() {
    if !requirement::mounts_work("filling a disk again and again") {
        return;
    }
    let scratch = Scratch::new();
    let disk = Disk::new(&scratch, DISK_BYTES);
    let daemon = Launch::new(scratch.path())
        .data_dir(&disk.path().join("data"))
        .start();
    daemon
        .ctl(&["volume", "create", "v", "--size", "4GiB"])
        .ok();
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    let start = Instant::now();
    let mut numbers = Numbers::new(2);
    let mut fitted = Vec::new();
    for round in 1..=ROUNDS {
        fitted.push(fill(mount.path(), round, &mut numbers));
        delete_half(mount.path());
    }
    let mib: Vec<u64> = fitted.iter().map(|bytes| bytes / MIB).collect();
    let disk_used = allocated(&daemon.data_dir().join("volumes")) / MIB;
    eprintln!("the store takes {disk_used} MiB in the end");
    eprintln!("MiB that fitted: {mib:?}, {:.1?}", start.elapsed());
    let (first, last) = (fitted[0], fitted[fitted.len() - 1]);
    assert!(first > DISK_BYTES / 2, "the first round: {first} bytes");
    assert!(
        last * 100 >= first * 99,
        "{first} bytes at first, {last} at last"
    );
    for entry in fs::read_dir(mount.path()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let volumes = daemon.data_dir().join("volumes");
    wait_until("the space of deleted files comes back", IDLE_LIMIT, || {
        allocated(&volumes) < 120 * MIB
    });
    mount.unmount();
    daemon.check("v");
    daemon.stop();
    disk.end();
}

#[test]
fn many_small_files_give_their_space_back() {
    if !requirement::mounts_work("many small files") {
        return;
    }
    let mounted = Mounted::new(&["--size", "1GiB"]);
    let volumes = mounted.daemon.data_dir().join("volumes");
    let start = Instant::now();
    for round in 0..3 {
        for n in 0..64 {
            let dir = mounted.mount.join(&format!("{round}-{n}"));
            fs::create_dir(&dir).unwrap();
            for file in 0..100 {
                fs::write(dir.join(file.to_string()), [1; 6000]).unwrap();
            }
        }
        File::open(mounted.mount.path())
            .unwrap()
            .sync_all()
            .unwrap();
        for n in 0..64 {
            fs::remove_dir_all(mounted.mount.join(&format!("{round}-{n}"))).unwrap();
        }
    }
    let statvfs = || rustix::fs::statvfs(mounted.mount.path()).unwrap();
    wait_until("inodes of deleted files come back", IDLE_LIMIT, || {
        let now = statvfs();
        now.f_files - now.f_ffree == 1
    });
    wait_until("so does their space", IDLE_LIMIT, || {
        allocated(&volumes) < 200 * MIB
    });
    eprintln!(
        "19,200 files in {:.1?}, {} MiB left",
        start.elapsed(),
        allocated(&volumes) / MIB
    );
    mounted.end();
}
