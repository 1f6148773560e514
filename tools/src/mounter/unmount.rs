//! What `umount DIR` does: the volume's mount off the directory, and the guard beneath it.
//!
//! umount(8) calls the mount helper as `/sbin/umount.fuse.hafs`; [`unmount`] is the rest. hafsd is not asked: an umount must
//! also work when it is gone.

use std::io;
use std::path::{Path, PathBuf};

use hafs_fs::mount::is_connected;
use hafs_fs::mountinfo::MountEntry;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::{MountFailure, guard, set_flags, top, utab};
use crate::mountpoint;
use crate::output::Refusal;

/// What umount(8) passes.
#[derive(Debug, Clone)]
pub struct UnmountCall {
    /// Where the volume is mounted.
    pub directory: PathBuf,
    /// `-l`: off the directory now, the end of the mount when nobody uses it any more.
    pub lazy: bool,
    /// `-f`: whoever still uses it gets errors.
    pub force: bool,
    /// `-r`: if it is in use, at least make it read-only.
    pub read_only: bool,
}

/// Takes the topmost mount of a volume off the directory. The guard goes with it, but for a lazy umount of a mount that is in
/// use: until that has ended, whoever still believes in the path must not write to what lies beneath.
pub fn unmount(call: &UnmountCall) -> Result<(), MountFailure> {
    if !rustix::process::geteuid().is_root() {
        return Err(MountFailure::Usage(
            Refusal::new("only root can unmount a hafs volume")
                .why("umount(2) needs CAP_SYS_ADMIN")
                .next("run umount as root"),
        ));
    }
    let directory = mountpoint::canonical(&call.directory)
        .map_err(|error| failed(&call.directory, &error.to_string()))?;
    let top = match top(&directory)? {
        Some(top) if top.is_hafs() || guard::is_guard(&top) => top,
        Some(_) | None => {
            let directory = directory.display();
            return Err(MountFailure::Mount(
                Refusal::new(format!("no volume is mounted on {directory}"))
                    .why("its path leads to no mount of hafs")
                    .next("findmnt -t fuse.hafs"),
            ));
        }
    };
    if top.is_hafs() && !take_off(call, &directory, &top)? {
        return Ok(());
    }
    // Not connected: the mount has ended, here and in every other namespace.
    if call.lazy && top.is_hafs() && is_connected(top.device.1).unwrap_or(true) {
        return Ok(());
    }
    guard::lift(&directory)
        .map_err(|error| failed(&directory, &format!("its guard stays: {error}")))?;
    utab::remove(&directory);
    Ok(())
}

/// False if it was only made read-only.
fn take_off(call: &UnmountCall, directory: &Path, top: &MountEntry) -> Result<bool, MountFailure> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, call.lazy);
    flags.set(UnmountFlags::FORCE, call.force);
    match rustix::mount::unmount(directory, flags) {
        Ok(()) => Ok(true),
        Err(Errno::BUSY) if call.read_only => {
            set_flags(directory, flags_of(top) | MountFlags::RDONLY)
                .map(|()| false)
                .map_err(|error| failed(directory, &format!("cannot make it read-only: {error}")))
        }
        Err(Errno::BUSY) => Err(busy(directory)),
        Err(error) => Err(failed(directory, &io::Error::from(error).to_string())),
    }
}

/// The flags of a mount, as a remount wants them: those that are not named are cleared.
fn flags_of(entry: &MountEntry) -> MountFlags {
    let known = [
        ("ro", MountFlags::RDONLY),
        ("nosuid", MountFlags::NOSUID),
        ("nodev", MountFlags::NODEV),
        ("noexec", MountFlags::NOEXEC),
        ("noatime", MountFlags::NOATIME),
        ("nodiratime", MountFlags::NODIRATIME),
        ("relatime", MountFlags::RELATIME),
    ];
    let has = |name: &str| entry.options.split(',').any(|option| option == name);
    known
        .iter()
        .filter(|(name, _)| has(name))
        .fold(MountFlags::empty(), |flags, (_, flag)| flags | *flag)
}

fn busy(directory: &Path) -> MountFailure {
    let directory = directory.display();
    MountFailure::Mount(
        Refusal::new(format!("{directory}: target is busy"))
            .why("files are open in it, a process stands in it, or something is mounted in it")
            .next(format!("fuser -vm {directory} names who; then try again")),
    )
}

fn failed(directory: &Path, why: &str) -> MountFailure {
    MountFailure::Mount(
        Refusal::new(format!("cannot unmount {}", directory.display()))
            .why(why.to_owned())
            .next("findmnt shows what is mounted there"),
    )
}
