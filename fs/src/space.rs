//! How much of the disk under a store may still be filled.
//!
//! hafs refuses to write into a reserve, before RocksDB or the log meet ENOSPC in the middle of something. What gives space
//! back (unlink, truncate, the collector) may use the reserve.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::fs::StatVfs;

use crate::error::FsError;
use crate::store::syncfile::io_error;

/// The reserve is this share of the disk, but at least [`RESERVE_BYTES_MIN`], and at most [`RESERVE_SHARE_MAX`] of it: a
/// small disk would be all reserve.
const RESERVE_SHARE: u64 = 20;
const RESERVE_BYTES_MIN: u64 = 1 << 30;
const RESERVE_SHARE_MAX: u64 = 10;
/// The disk is asked again after so long, or after so many bytes were written.
const STALE_MS: u64 = 100;
const STALE_BYTES: u64 = 8 << 20;

/// The disk under a directory.
#[derive(Debug)]
pub(crate) struct DiskSpace {
    dir: File,
    path: String,
    start: Instant,
    /// What was free beyond the reserve when it was last asked, less what was written since.
    available: AtomicU64,
    asked_at_ms: AtomicU64,
    written_since: AtomicU64,
}

impl DiskSpace {
    pub(crate) fn open(dir: &Path) -> Result<Self, FsError> {
        let space = Self {
            dir: File::open(dir).map_err(io_error("open", dir))?,
            path: dir.display().to_string(),
            start: Instant::now(),
            available: AtomicU64::new(0),
            asked_at_ms: AtomicU64::new(0),
            written_since: AtomicU64::new(0),
        };
        space.ask()?;
        Ok(space)
    }

    /// Bytes that may be written before the reserve is reached.
    pub(crate) fn available(&self) -> Result<u64, FsError> {
        self.ask()
    }

    /// What is kept free on the disk, bytes.
    pub(crate) fn reserve(&self) -> Result<u64, FsError> {
        let disk = self.statvfs()?;
        Ok(reserve(disk.f_blocks.saturating_mul(disk.f_frsize)))
    }

    /// Refuses a write of so many bytes if it would reach into the reserve.
    pub(crate) fn check(&self, bytes: u64) -> Result<(), FsError> {
        let written = self.written_since.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let age_ms = self
            .now_ms()
            .saturating_sub(self.asked_at_ms.load(Ordering::Relaxed));
        let available = if age_ms > STALE_MS || written > STALE_BYTES {
            self.ask()?
        } else {
            self.available
                .load(Ordering::Relaxed)
                .saturating_sub(written)
        };
        if available < bytes {
            Err(FsError::NoSpace)
        } else {
            Ok(())
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn statvfs(&self) -> Result<StatVfs, FsError> {
        rustix::fs::fstatvfs(&self.dir).map_err(|errno| FsError::Io {
            op: "statvfs",
            path: self.path.clone(),
            source: errno.into(),
        })
    }

    fn ask(&self) -> Result<u64, FsError> {
        let disk = self.statvfs()?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let total = disk.f_blocks.saturating_mul(disk.f_frsize);
        let available = free.saturating_sub(reserve(total));
        self.available.store(available, Ordering::Relaxed);
        self.written_since.store(0, Ordering::Relaxed);
        self.asked_at_ms.store(self.now_ms(), Ordering::Relaxed);
        Ok(available)
    }
}

fn reserve(total: u64) -> u64 {
    (total / RESERVE_SHARE)
        .max(RESERVE_BYTES_MIN)
        .min(total / RESERVE_SHARE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_reserve_every_growth_is_refused_whatever_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let space = DiskSpace::open(dir.path()).unwrap();
        space.check(1).expect("the disk under the tests has room");
        space.available.store(0, Ordering::Relaxed);
        assert!(matches!(space.check(1), Err(FsError::NoSpace)));
    }

    #[test]
    fn the_reserve_scales_with_the_disk() {
        const GIB: u64 = 1 << 30;
        assert_eq!(reserve(100 * GIB), 5 * GIB);
        assert_eq!(reserve(15 * GIB), GIB);
        assert_eq!(reserve(GIB), GIB / 10, "a small disk is not all reserve");
    }
}
