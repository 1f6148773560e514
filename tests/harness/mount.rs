//! A mounted volume, as far as the test's mount namespace is concerned.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

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

    /// `umount DIR`, whatever comes of it.
    #[track_caller]
    pub fn umount(&self) -> Ran {
        run(std::process::Command::new("umount").arg(&self.dir))
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
