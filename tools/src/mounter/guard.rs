//! The guard: an empty, read-only tmpfs between a directory of the host and the volume that is mounted on it.
//!
//! When a mount ends without its umount (hafsd was killed, a lazy umount while it is in use), the guard is what
//! the path leads to: root, in a container too, gets EROFS instead of writing to the host's disk in silence. Only umount takes
//! it away: `umount.fuse.hafs`, or hafsd where umount2(2) was called without it. The next mount uses one that is there, so
//! that guards never pile up.

use std::io;
use std::path::Path;

use hafs_fs::mountinfo::MountEntry;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::mountpoint;

/// What is mounted, as findmnt shows it in SOURCE.
const SOURCE: &str = "hafs-guard";
const TYPE: &str = "tmpfs";
/// A page and two inodes: the root and one that nobody can make. A mode of 0555 says what it is.
const DATA: &std::ffi::CStr = c"size=4k,nr_inodes=2,mode=0555";

/// True for a guard.
pub fn is_guard(entry: &MountEntry) -> bool {
    entry.filesystem_type == TYPE && entry.source == SOURCE
}

/// A guard on a directory, made or found there. One that was made is taken away again unless it is kept.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    directory: &'a Path,
    made: bool,
}

impl<'a> Guard<'a> {
    /// Lays a guard on `directory`, unless `top`, the topmost mount there, is one.
    pub(super) fn lay(directory: &'a Path, top: Option<&MountEntry>) -> io::Result<Self> {
        let made = !top.is_some_and(is_guard);
        if made {
            let flags =
                MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount(SOURCE, directory, TYPE, flags, DATA)?;
        }
        Ok(Self { directory, made })
    }

    /// It stays.
    pub(super) fn keep(mut self) {
        self.made = false;
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.made {
            // The error under way is what the user must hear of. A guard that stays is seen, and does no harm.
            let _ = mountpoint::detach(self.directory);
        }
    }
}

/// Takes the guard off `directory` if nothing lies on it, and tells whether there was one.
///
/// A mount that comes on top of it meanwhile must be kept out by the caller.
pub fn lift(directory: &Path) -> io::Result<bool> {
    let Some(id) = bare(directory)? else {
        return Ok(false);
    };
    match unmount(directory, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        // Somebody looks into it; nobody can have anything to lose there.
        Err(Errno::BUSY) if bare(directory)? == Some(id) => {
            mountpoint::detach(directory)?;
            Ok(true)
        }
        // Hafsd and the umount helper may both be at it: one of them comes too late.
        Err(Errno::INVAL | Errno::NOENT) if bare(directory)? != Some(id) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The guard on `directory` that nothing lies on.
fn bare(directory: &Path) -> io::Result<Option<u64>> {
    let top = mountpoint::top(directory).map_err(io::Error::other)?;
    Ok(top.filter(is_guard).map(|top| top.id))
}
