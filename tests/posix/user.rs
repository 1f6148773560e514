//! Acting as somebody else: a thread of the test takes on other ids. The kernel keeps them for each thread.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use hafs_tests::Disk;
use rustix::fs::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::Mounted;

/// More than a test stores.
const DISK_BYTES: u64 = 256 << 20;

/// Runs `body` as this user with no capabilities, in these supplementary groups.
///
/// # Panics
/// If the test is not root's, or `body` panics.
pub(crate) fn as_user<T: Send>(
    uid: u32,
    gid: u32,
    groups: &[u32],
    body: impl FnOnce() -> T + Send,
) -> T {
    thread::scope(|scope| {
        let changed = scope.spawn(|| {
            let groups: Vec<Gid> = groups.iter().map(|&group| Gid::from_raw(group)).collect();
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            set_thread_groups(&groups).expect("root may");
            set_thread_res_gid(gid, gid, gid).expect("root may");
            set_thread_res_uid(uid, uid, uid).expect("root may");
            body()
        });
        match changed.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Directories that everybody may write to, in which the same must happen: one in the volume and one on ext4.
#[derive(Debug)]
pub(crate) struct Places {
    hafs: PathBuf,
    ext4: PathBuf,
    /// What `ext4` is on, if not on the scratch directory.
    _disk: Option<Disk>,
}

impl Places {
    /// Both, hafs first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Path> {
        [&*self.hafs, &*self.ext4].into_iter()
    }
}

/// Makes them; where the scratch directory is on another filesystem, a disk of ext4 as well.
pub(crate) fn on_hafs_and_ext4(mounted: &Mounted) -> Places {
    let open = |path: &Path, mode| {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, mode).expect("the test's own directory");
    };
    open(mounted.scratch.path(), 0o755);
    open(mounted.mount.path(), 0o755);
    let on = rustix::fs::statfs(mounted.scratch.path()).expect("statfs");
    let disk =
        (on.f_type != libc::EXT4_SUPER_MAGIC).then(|| Disk::new(&mounted.scratch, DISK_BYTES));
    let beside = disk
        .as_ref()
        .map_or_else(|| mounted.scratch.path(), Disk::path);
    let places = Places {
        hafs: mounted.mount.join("here"),
        ext4: beside.join("ext4"),
        _disk: disk,
    };
    for place in places.iter() {
        fs::create_dir(place).expect("a new directory");
        open(place, 0o777);
    }
    places
}
