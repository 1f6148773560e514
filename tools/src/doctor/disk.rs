//! The filesystem under the data directory: whose it is, what it can, how much is left, how fast it syncs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hafs_fs::mountinfo::{self, MountEntry};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, fdatasync, flock};

use super::Finding;
use crate::node::datadir::{self, Inspected};
use crate::size;

/// As long as a log file is at first use; syncs move through it as a log does.
const FILE_BYTES: u64 = 8 << 20;
const WRITE_BYTES: usize = 4096;
/// Enough for a 99th percentile that is more than the worst one.
const SYNCS_MAX: usize = 300;
/// A slow disk is known by then.
const SYNCS_WAIT: Duration = Duration::from_secs(3);
/// A commit of a database takes at least one sync.
const SYNC_SLOW: Duration = Duration::from_millis(10);
/// No storage that outlives a power cut answers so fast; flash with a capacitor needs some 20 µs.
const SYNC_FAST: Duration = Duration::from_micros(8);
/// Below that hafsd does not start; below the other it soon does not take writes.
const FREE_BYTES_MIN: u64 = datadir::FREE_BYTES_MIN;
const FREE_BYTES_GOOD: u64 = 5 << 30;

pub(super) fn findings(data_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![directory(data_dir)];
    let existing = datadir::nearest(data_dir);
    findings.push(filesystem(existing));
    findings.push(space(existing));
    let probe = match Probe::make(existing) {
        Ok(probe) => probe,
        Err(error) => {
            findings.push(
                Finding::fail("writing", existing.display().to_string())
                    .why(error.to_string())
                    .next("run as root, or choose another --data-dir"),
            );
            return findings;
        }
    };
    findings.push(locking(&probe));
    findings.push(preallocation(&probe));
    findings.push(syncing(&probe));
    findings
}

fn directory(path: &Path) -> Finding {
    const NAME: &str = "data directory";
    let seen = |what: &str| format!("{}, {what}", path.display());
    match datadir::inspect(path) {
        Ok(Inspected::Missing) => Finding::ok(NAME, seen("not there yet: hafsd makes it")),
        Ok(Inspected::Empty) => Finding::ok(NAME, seen("empty: hafsd takes it")),
        Ok(Inspected::Node(node)) => Finding::ok(NAME, seen(&format!("of node {node}"))),
        Err(refusal) => Finding::refused(NAME, refusal),
    }
}

fn filesystem(path: &Path) -> Finding {
    const NAME: &str = "filesystem";
    let entry = mountinfo::mounts()
        .map_err(|error| error.to_string())
        .and_then(|mounts| under(&mounts, path).ok_or_else(|| "no mount holds it".to_owned()));
    let entry = match entry {
        Ok(entry) => entry,
        Err(why) => {
            return Finding::warn(NAME, path.display().to_string())
                .why(why)
                .next("look with findmnt");
        }
    };
    let seen = format!(
        "{} on {}",
        entry.filesystem_type,
        entry.mount_point.display()
    );
    if entry.is_read_only() {
        return Finding::fail(NAME, seen)
            .why("it is mounted read-only")
            .next("remount it, or choose another --data-dir");
    }
    match drawback(&entry.filesystem_type) {
        None => Finding::ok(NAME, seen),
        Some((why, next)) => Finding::warn(NAME, seen).why(why).next(next),
    }
}

/// Why a type of filesystem is not the place for volumes.
fn drawback(kind: &str) -> Option<(&'static str, &'static str)> {
    const OTHER: &str = "put the data directory on ext4 or xfs, on a disk of this machine";
    match kind {
        "ext4" | "xfs" => None,
        "tmpfs" | "ramfs" => Some(("what is in memory is gone after a restart", OTHER)),
        "overlay" => Some((
            "the data goes with the container that it lies in, and syncs cost more",
            "give the container a volume of the host for it",
        )),
        "btrfs" | "zfs" | "bcachefs" => Some((
            "it copies what is overwritten, so each sync writes more; hafs has been measured on ext4 and xfs",
            OTHER,
        )),
        kind if kind.starts_with("nfs") || kind.starts_with("fuse") => Some((
            "locks, syncs and full disks are another machine's or program's promise",
            OTHER,
        )),
        "cifs" | "smb3" | "9p" | "ceph" | "virtiofs" => Some((
            "locks, syncs and full disks are another machine's promise",
            OTHER,
        )),
        _ => Some(("hafs has been measured on ext4 and xfs only", OTHER)),
    }
}

/// The mount that `path` lies on: of those above it the deepest, of several there the last.
fn under(mounts: &[MountEntry], path: &Path) -> Option<MountEntry> {
    let path = fs::canonicalize(path).ok()?;
    mounts
        .iter()
        .filter(|entry| path.starts_with(&entry.mount_point))
        .max_by_key(|entry| entry.mount_point.components().count())
        .cloned()
}

fn space(path: &Path) -> Finding {
    const NAME: &str = "space";
    let disk = match datadir::disk(path) {
        Ok(disk) => disk,
        Err(error) => {
            return Finding::fail(NAME, "cannot be told")
                .why(error.to_string())
                .next("look with df");
        }
    };
    let free = disk.available_bytes;
    let seen = format!(
        "{} free of {}",
        size::display(free),
        size::display(disk.size_bytes)
    );
    let next = "free some space, or choose another --data-dir";
    if free < FREE_BYTES_MIN {
        Finding::fail(NAME, seen)
            .why(format!(
                "hafsd needs {} to start",
                size::display(FREE_BYTES_MIN)
            ))
            .next(next)
    } else if free < FREE_BYTES_GOOD.min(disk.size_bytes / 10) {
        Finding::warn(NAME, seen)
            .why("hafs keeps a part of the disk free: writes are refused before it is full")
            .next(next)
    } else {
        Finding::ok(NAME, seen)
    }
}

/// A file that has no name any more, so that nothing of it stays.
struct Probe {
    file: File,
    again: File,
}

impl Probe {
    fn make(dir: &Path) -> io::Result<Self> {
        let path: PathBuf = dir.join(format!(".hafs-doctor-{}", std::process::id()));
        let open = |new: bool| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(new)
                .mode(0o600)
                .open(&path)
        };
        let file = open(true)?;
        let again = open(false);
        fs::remove_file(&path)?;
        Ok(Self {
            file,
            again: again?,
        })
    }
}

fn locking(probe: &Probe) -> Finding {
    const NAME: &str = "locks";
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    let next = "choose a --data-dir on a disk of this machine";
    match (
        flock(&probe.file, exclusive),
        flock(&probe.again, exclusive),
    ) {
        (Ok(()), Err(_)) => Finding::ok(NAME, "flock(2) works"),
        (Ok(()), Ok(())) => Finding::fail(NAME, "flock(2) keeps nobody out")
            .why("two hafsd could serve one directory")
            .next(next),
        (Err(error), _) => Finding::fail(NAME, "flock(2) fails")
            .why(error.to_string())
            .next(next),
    }
}

fn preallocation(probe: &Probe) -> Finding {
    const NAME: &str = "preallocation";
    match fallocate(&probe.file, FallocateFlags::empty(), 0, FILE_BYTES) {
        Ok(()) => Finding::ok(NAME, "fallocate(2) works"),
        Err(error) => Finding::fail(NAME, "fallocate(2) fails")
            .why(format!("log and segments are preallocated: {error}"))
            .next("choose a --data-dir on ext4 or xfs, with space"),
    }
}

fn syncing(probe: &Probe) -> Finding {
    const NAME: &str = "fdatasync";
    let times = match measure(&probe.file) {
        Ok(times) => times,
        Err(error) => {
            return Finding::fail(NAME, "fails")
                .why(error.to_string())
                .next("look at the kernel's log: the disk may be failing");
        }
    };
    judge(&times)
}

/// Writes and syncs as a log does, first through the whole file once so that nothing is left to be converted.
fn measure(file: &File) -> io::Result<Vec<Duration>> {
    let page = [0x5a; WRITE_BYTES];
    for at in (0..FILE_BYTES).step_by(WRITE_BYTES) {
        file.write_all_at(&page, at)?;
    }
    fdatasync(file)?;
    let began = Instant::now();
    let mut times = Vec::with_capacity(SYNCS_MAX);
    for at in (0..FILE_BYTES).step_by(WRITE_BYTES).cycle().take(SYNCS_MAX) {
        file.write_all_at(&page, at)?;
        let sync = Instant::now();
        fdatasync(file)?;
        times.push(sync.elapsed());
        if began.elapsed() > SYNCS_WAIT {
            break;
        }
    }
    times.sort_unstable();
    Ok(times)
}

/// `times` is sorted and not empty.
fn judge(times: &[Duration]) -> Finding {
    const NAME: &str = "fdatasync";
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    let (median, p99) = (at(50), at(99));
    let rate = 1.0 / median.as_secs_f64().max(1e-9);
    let seen = format!(
        "median {}, 99 % within {}, of {}: one writer commits about {} times a second",
        shown(median),
        shown(p99),
        times.len(),
        rounded(rate)
    );
    if median >= SYNC_SLOW {
        Finding::warn(NAME, seen)
            .why("each commit of a database waits for it")
            .next("use flash with power-loss protection, or expect few commits a second")
    } else if median < SYNC_FAST {
        Finding::warn(NAME, seen)
            .why("that is faster than any disk: what is synced lies in memory, and a power cut takes it")
            .next("switch unsafe write caching off, in the virtual machine's settings or the controller")
    } else {
        Finding::ok(NAME, seen)
    }
}

fn shown(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    if micros < 1000.0 {
        format!("{micros:.0} µs")
    } else {
        format!("{:.1} ms", micros / 1000.0)
    }
}

/// Two digits that count.
fn rounded(rate: f64) -> String {
    let unit = 10_f64.powf((rate.max(1.0).log10().floor() - 1.0).max(0.0));
    format!("{:.0}", (rate / unit).round() * unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_slow_disk_and_one_that_lies_are_told_from_a_good_one() {
        let of = |micros| judge(&[Duration::from_micros(micros); 100]);
        assert_eq!(of(150).verdict, Verdict::Ok);
        assert!(of(150).seen.contains("median 150 µs"), "{:?}", of(150));
        assert!(of(150).seen.contains("about 6700 times"), "{:?}", of(150));
        assert_eq!(of(25_000).verdict, Verdict::Warn);
        assert!(of(25_000).seen.contains("about 40 times"));
        assert!(of(2).why.unwrap().contains("power cut"));
    }

    #[test]
    fn probes_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("a/b");
        let findings = findings(&missing);
        assert!(
            findings.iter().all(|is| is.verdict != Verdict::Fail),
            "{findings:?}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
