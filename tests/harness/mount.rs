//! A mounted volume, as far as the test's mount namespace is concerned.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};

use crate::binaries::program;
use crate::command::{Ran, run};

/// A directory with mounts on it, which are detached when this is dropped.
#[derive(Debug)]
pub struct Mount {
    dir: PathBuf,
}

impl Mount {
    /// Watches over `dir`, whatever is mounted on it now or later.
    pub fn watch(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A name in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// `umount DIR`, and proves that nothing is left on it.
    ///
    /// # Panics
    /// If umount fails or something is still mounted there.
    #[track_caller]
    pub fn unmount(self) {
        self.umount().ok();
        let left = mounts_on(&self.dir);
        assert!(left.is_empty(), "still mounted: {left:?}");
    }

    /// `umount DIR`, as umount(8) does with our helper, whatever comes of it.
    #[track_caller]
    pub fn umount(&self) -> Ran {
        run(&mut umount_command(&self.dir))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        detach_all(&self.dir);
    }
}

/// Takes every mount off `dir`, busy or not, dead or not.
pub fn detach_all(dir: &Path) {
    // As many as a test could have stacked; each success takes one off.
    for _ in 0..16 {
        let path = CString::new(dir.as_os_str().as_bytes()).expect("no NUL in a path");
        if unmount(
            path.as_c_str(),
            UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
        )
        .is_err()
        {
            return;
        }
    }
}

/// The command line of the umount helper. umount(8) would look for it in /sbin.
pub fn umount_command(dir: &Path) -> Command {
    let mut command = Command::new(program("mount-fuse-hafs"));
    command.arg0("umount.fuse.hafs").arg(dir);
    command
}

/// A line of /proc/self/mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    /// What is mounted.
    pub source: String,
    /// Its type.
    pub kind: String,
    /// Options.
    pub options: Vec<String>,
}

/// The mounts on exactly `dir`, lowest first.
///
/// # Panics
/// If /proc/self/mounts cannot be read.
pub fn mounts_on(dir: &Path) -> Vec<MountLine> {
    let text = fs::read_to_string("/proc/self/mounts").expect("/proc is there");
    let dir = dir.to_str().expect("tests use plain paths");
    let lines = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields.get(1) == Some(&dir)).then(|| MountLine {
            source: fields[0].to_owned(),
            kind: fields[2].to_owned(),
            options: fields[3].split(',').map(str::to_owned).collect(),
        })
    });
    lines.collect()
}

/// True for the read-only tmpfs beneath a volume.
pub fn is_guard(line: &MountLine) -> bool {
    line.source == "hafs-guard" && line.kind == "tmpfs" && line.options[0] == "ro"
}

/// Waits until the mounts on `dir` are as wanted: the kernel tells of each change.
///
/// # Panics
/// If they are not within the limit.
#[track_caller]
pub fn wait_for_mounts(dir: &Path, limit: Duration, wanted: impl Fn(&[MountLine]) -> bool) {
    let deadline = Instant::now() + limit;
    let table = File::open("/proc/self/mounts").expect("/proc is there");
    loop {
        let lines = mounts_on(dir);
        if wanted(&lines) {
            return;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "after {limit:?} still {lines:?}");
        let left = Timespec::try_from(left).expect("a bound below centuries");
        let mut fds = [PollFd::new(&table, PollFlags::PRI)];
        poll(&mut fds, Some(&left)).expect("poll");
    }
}
