//! How much of the disk under a store may still be filled.
//!
//! hafs refuses to write into a reserve, before RocksDB or the log meet ENOSPC in the middle of something. What gives space
//! back (unlink, truncate, the collector) may use the reserve.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::fs::{FallocateFlags, StatVfs};
use rustix::process::geteuid;

use crate::error::{FsError, with_causes};
use crate::store::syncfile::io_error;

/// The reserve is this share of the disk, but at least [`RESERVE_BYTES_MIN`], and at most [`RESERVE_SHARE_MAX`] of it: a
/// small disk would be all reserve.
const RESERVE_SHARE: u64 = 20;
const RESERVE_BYTES_MIN: u64 = 1 << 30;
const RESERVE_SHARE_MAX: u64 = 10;
/// The disk is asked again after so long, or after so many bytes were written.
const STALE_MS: u64 = 100;
const STALE_BYTES: u64 = 8 << 20;
/// Name of the ballast in a store's directory.
const BALLAST: &str = "ballast";
/// A store's ballast is at most this share of the disk (one in so many).
const BALLAST_SHARE_MAX: u64 = 32;
/// A segment takes at most this share of the disk, so that the collector can copy one whole within the reserve: else a full disk
/// could not be collected.
const SEGMENT_SHARE_MAX: u64 = 40;
/// With less free than this, opening a store begins with giving up its ballast: RocksDB writes some files when it opens, and so
/// does the control store before.
const OPEN_BYTES_MIN: u64 = 24 << 20;

/// A disk's size, and what of it is free for whoever is not root, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskBytes {
    pub(crate) total: u64,
    pub(crate) free: u64,
    /// What is free for this process: root may also take what a file system keeps for root.
    pub(crate) own: u64,
}

impl DiskBytes {
    /// Of the disk under `path`.
    pub(crate) fn under(path: &Path) -> Result<Self, FsError> {
        let disk =
            rustix::fs::statvfs(path).map_err(|errno| io_error("statvfs", path)(errno.into()))?;
        Ok(disk.into())
    }
}

impl From<StatVfs> for DiskBytes {
    fn from(disk: StatVfs) -> Self {
        let own = if geteuid().is_root() {
            disk.f_bfree
        } else {
            disk.f_bavail
        };
        Self {
            total: disk.f_blocks.saturating_mul(disk.f_frsize),
            free: disk.f_bavail.saturating_mul(disk.f_frsize),
            own: own.saturating_mul(disk.f_frsize),
        }
    }
}

/// The disk under a directory.
#[derive(Debug)]
pub(crate) struct DiskSpace {
    dir: File,
    path: String,
    start: Instant,
    /// What was free beyond the reserve when it was last asked, less what was written since.
    available: AtomicU64,
    /// Length of the disk.
    total: AtomicU64,
    asked_at_ms: AtomicU64,
    written_since: AtomicU64,
}

/// What a look at the disk tells, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskLook {
    /// Free for whoever is not root.
    pub(crate) free: u64,
    /// Free for this process: what a volume does to stay alive, and to give space back, may take it.
    pub(crate) own: u64,
    /// Of that, and of what the store holds unused, kept for deletions.
    pub(crate) reserve: u64,
    /// What may still be written.
    pub(crate) available: u64,
    /// No segment should be longer: see [`SEGMENT_SHARE_MAX`].
    pub(crate) segment_bytes_max: u64,
}

impl DiskSpace {
    pub(crate) fn open(dir: &Path) -> Result<Self, FsError> {
        let space = Self {
            dir: File::open(dir).map_err(io_error("open", dir))?,
            path: dir.display().to_string(),
            start: Instant::now(),
            available: AtomicU64::new(0),
            total: AtomicU64::new(0),
            asked_at_ms: AtomicU64::new(0),
            written_since: AtomicU64::new(0),
        };
        space.look(0)?;
        Ok(space)
    }

    /// Refuses growth of so many bytes if it would reach into the reserve. `held`: what the store has allocated and not
    /// used yet, which counts as free.
    pub(crate) fn check(&self, bytes: u64, held: u64) -> Result<(), FsError> {
        if bytes > STALE_BYTES {
            return self.check_now(bytes, held);
        }
        let written = self.written_since.fetch_add(bytes, Ordering::Relaxed);
        let written = written.saturating_add(bytes);
        let age_ms = self
            .now_ms()
            .saturating_sub(self.asked_at_ms.load(Ordering::Relaxed));
        let known = self.available.load(Ordering::Relaxed);
        // A refusal is never given on what is only remembered: space comes back by itself.
        if age_ms > STALE_MS || written > STALE_BYTES || known < written {
            return self.check_now(bytes, held);
        }
        Ok(())
    }

    /// The same, asking the disk.
    pub(crate) fn check_now(&self, bytes: u64, held: u64) -> Result<(), FsError> {
        if self.look(held)?.available < bytes {
            Err(FsError::NoSpace)
        } else {
            Ok(())
        }
    }

    /// What may be written as far as is known, without asking the disk.
    pub(crate) fn last_available(&self) -> u64 {
        self.available
            .load(Ordering::Relaxed)
            .saturating_sub(self.written_since.load(Ordering::Relaxed))
    }

    /// No segment should be longer: see [`SEGMENT_SHARE_MAX`].
    pub(crate) fn segment_bytes_max(&self) -> u64 {
        self.total.load(Ordering::Relaxed) / SEGMENT_SHARE_MAX
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Asks the disk. `held` as in [`Self::check`].
    pub(crate) fn look(&self, held: u64) -> Result<DiskLook, FsError> {
        let disk = rustix::fs::fstatvfs(&self.dir).map_err(|errno| FsError::Io {
            op: "statvfs",
            path: self.path.clone(),
            source: errno.into(),
        })?;
        let DiskBytes { total, free, own } = disk.into();
        let reserve = reserve(total);
        let available = free.saturating_add(held).saturating_sub(reserve);
        self.available.store(available, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.written_since.store(0, Ordering::Relaxed);
        self.asked_at_ms.store(self.now_ms(), Ordering::Relaxed);
        Ok(DiskLook {
            free,
            own,
            reserve,
            available,
            segment_bytes_max: total / SEGMENT_SHARE_MAX,
        })
    }
}

fn reserve(total: u64) -> u64 {
    (total / RESERVE_SHARE)
        .max(RESERVE_BYTES_MIN)
        .min(total / RESERVE_SHARE_MAX)
}

/// A file without content that holds space on the disk, to be given up when others have filled it to the last byte: what a
/// volume then needs to go on (a flush of its state, without which nothing that was deleted gives space back; a start).
#[derive(Debug)]
pub(crate) struct Ballast {
    path: PathBuf,
    /// Its length while it is held.
    bytes: u64,
    held: AtomicU64,
}

impl Ballast {
    /// The ballast of the store in `dir`, as it is. It never takes more than a small share of the disk, so that
    /// it is part of the reserve.
    pub(crate) fn new(dir: &Path, wanted: u64) -> Result<Self, FsError> {
        let path = dir.join(BALLAST);
        let total = DiskBytes::under(dir)?.total;
        let held = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        Ok(Self {
            path,
            bytes: wanted.min(total / BALLAST_SHARE_MAX),
            held: AtomicU64::new(held),
        })
    }

    /// What it holds now.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    /// Its full size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives its space to the disk.
    pub(crate) fn give_up(&self) {
        if self.held.swap(0, Ordering::AcqRel) > 0 {
            remove_ballast(&self.path);
        }
    }

    /// Takes it again, if the disk has the space.
    pub(crate) fn restore(&self) {
        if self.held() >= self.bytes {
            return;
        }
        let taken = File::create(&self.path).and_then(|file| {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.bytes)
                .map_err(std::io::Error::from)
        });
        match taken {
            Ok(()) => self.held.store(self.bytes, Ordering::Release),
            // Not now, then. What it held before is gone too.
            Err(_) => {
                self.held.store(0, Ordering::Release);
                remove_ballast(&self.path);
            }
        }
    }
}

fn remove_ballast(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => tracing::info!(path = %path.display(), "the store's ballast was given up"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(
            path = %path.display(),
            error = with_causes(&error),
            "the store's ballast cannot be removed"
        ),
    }
}

/// The disk under `dir` has less than hafsd needs to write down what it does.
pub fn is_almost_full(dir: &Path) -> bool {
    DiskBytes::under(dir).is_ok_and(|disk| disk.own < OPEN_BYTES_MIN)
}

/// Before the store in `dir` is opened, which writes some small files: gives up its ballast if the disk is full.
///
/// hafsd also calls it for all stores of a node before it starts on a full disk. Changes nothing that a store needs.
pub fn make_room_to_open(dir: &Path) {
    if is_almost_full(dir) {
        remove_ballast(&dir.join(BALLAST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_into_the_reserve_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let space = DiskSpace::open(dir.path()).unwrap();
        space
            .check(1, 0)
            .expect("the disk under the tests has room");
        let room = space.look(0).unwrap().available;
        for bytes in [room + (64 << 20), u64::MAX / 2] {
            assert!(matches!(space.check(bytes, 0), Err(FsError::NoSpace)));
        }
        space.check(1, 0).expect("a refusal changes nothing");
    }

    #[test]
    fn no_number_of_bytes_is_too_many_to_ask_for() {
        let dir = tempfile::tempdir().unwrap();
        let space = DiskSpace::open(dir.path()).unwrap();
        for bytes in [u64::MAX, i64::MAX.cast_unsigned()] {
            // What is already written and not asked for yet is added to it.
            space.check(1, 0).expect("the disk has room");
            space.written_since.store(u64::MAX - 1, Ordering::Relaxed);
            assert!(matches!(space.check(bytes, 0), Err(FsError::NoSpace)));
        }
        space.check(1, 0).expect("a refusal changes nothing");
    }

    #[test]
    fn ballast_is_held_until_it_is_given_up_and_can_be_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::new(dir.path(), 1 << 20).unwrap();
        assert_eq!(ballast.held(), 0);
        ballast.restore();
        assert_eq!(ballast.held(), 1 << 20);
        let blocks = || {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(dir.path().join(BALLAST)).map(|metadata| metadata.blocks() * 512)
        };
        assert!(blocks().unwrap() >= 1 << 20);
        assert_eq!(Ballast::new(dir.path(), 1 << 20).unwrap().held(), 1 << 20);
        ballast.give_up();
        assert!(blocks().is_err());
        ballast.restore();
        assert!(blocks().unwrap() >= 1 << 20);
    }

    #[test]
    fn ballast_that_the_disk_cannot_hold_any_more_is_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast {
            path: dir.path().join(BALLAST),
            bytes: i64::MAX.cast_unsigned(),
            held: AtomicU64::new(1 << 20), // of a smaller disk
        };
        ballast.restore();
        assert_eq!(ballast.held(), 0);
        assert!(!ballast.path.exists());
    }

    #[test]
    fn the_reserve_scales_with_the_disk() {
        const GIB: u64 = 1 << 30;
        assert_eq!(reserve(100 * GIB), 5 * GIB);
        assert_eq!(reserve(15 * GIB), GIB);
        assert_eq!(reserve(GIB), GIB / 10, "a small disk is not all reserve");
    }
}
