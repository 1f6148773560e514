//! What hafsd and the mount helper ask of mounts: is it dead, is it the one at its path, take it away.
//!
//! The list itself is [`hafs_fs::mountinfo`]'s, which touches no mount. Here they are touched, so each function says
//! whether it may wait.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use hafs_fs::FsError;
use hafs_fs::mountinfo::{self, MountEntry};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// How long a mount may take to answer before it counts as hanging.
pub const PROBE_WAIT: Duration = Duration::from_secs(10);

/// What a mount said when its root was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Served.
    Alive,
    /// Its server is gone.
    Dead,
    /// Neither an answer nor its end within [`PROBE_WAIT`].
    Hangs,
    /// It answered with another error.
    Fails(Errno),
}

/// Asks the root of the mount at `path`, past all caches. Waits for at most [`PROBE_WAIT`].
///
/// Attributes are cached for long, so that a plain stat(2) of a dead root succeeds: only one that is forced to ask tells.
pub fn probe(path: &Path) -> Probe {
    let (sender, receiver) = mpsc::sync_channel(1);
    let path = path.to_owned();
    // In a thread of its own, left behind if it hangs: nothing can interrupt it.
    let spawned = std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || {
            // Nobody listens any more after the time-out.
            let _ = sender.send(ask(&path));
        });
    if let Err(error) = spawned {
        return Probe::Fails(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN));
    }
    match receiver.recv_timeout(PROBE_WAIT) {
        Ok(Ok(())) => Probe::Alive,
        Ok(Err(Errno::NOTCONN | Errno::CONNABORTED)) => Probe::Dead,
        Ok(Err(errno)) => Probe::Fails(errno),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Probe::Hangs,
    }
}

fn ask(path: &Path) -> Result<(), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    statx(CWD, path, flags, StatxFlags::BASIC_STATS).map(drop)
}

/// True if the path of this mount leads to it now: no other mount lies on it or above it. Does not wait.
pub fn is_reachable(entry: &MountEntry) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    statx(CWD, &entry.mount_point, flags, StatxFlags::MNT_ID)
        .is_ok_and(|statx| statx.stx_mnt_id == entry.id)
}

/// The mount whose root `path` leads to, if any. Does not wait.
///
/// Not the last line of mountinfo with this path: propagation can put a later mount beneath an earlier one.
pub fn top(path: &Path) -> Result<Option<MountEntry>, FsError> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    let Ok(statx) = statx(CWD, path, flags, StatxFlags::MNT_ID) else {
        return Ok(None);
    };
    let mut mounts = mountinfo::mounts()?.into_iter();
    Ok(mounts.find(|entry| entry.id == statx.stx_mnt_id && entry.mount_point == path))
}

/// Takes what is mounted at `path` off it, even if it is in use: whoever uses it keeps it until it lets go. Does not wait.
pub fn detach(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(
        path,
        UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
    )?)
}

/// The number that tells this process's mount namespace from others.
pub fn namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/mnt")?.ino())
}

/// Moves this thread, which must be the only one, into the mount namespace that the file names.
pub fn enter_namespace(path: &Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Mount);
    Ok(rustix::thread::move_into_link_name_space(
        file.as_fd(),
        kind,
    )?)
}

/// `path` as mountinfo names it: absolute, without symbolic links. Also where the path itself is a dead mount.
pub fn canonical(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error)
            if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error())
                || error.raw_os_error() == Some(Errno::CONNABORTED.raw_os_error()) =>
        {
            // A mount point is no symbolic link, so only what is above it needs a look.
            let absolute = std::path::absolute(path)?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
                (_, _) => Err(error),
            }
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_alive_and_reachable() {
        let root = top(Path::new("/")).unwrap().unwrap();
        assert!(is_reachable(&root));
        assert_eq!(probe(&root.mount_point), Probe::Alive);
        assert_ne!(namespace().unwrap(), 0);
    }

    #[test]
    fn what_is_not_there_fails() {
        assert_eq!(
            probe(Path::new("/nonexistent/x")),
            Probe::Fails(Errno::NOENT)
        );
        assert_eq!(top(Path::new("/nonexistent/x")).unwrap(), None);
    }
}
