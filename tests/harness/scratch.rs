//! A test's own directory.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

use crate::mount::detach_all;

/// Where they are unless TMPDIR says otherwise: on a disk, while /tmp is memory on many machines.
const PARENT: &str = "/var/tmp";

/// Bytes of its path: that of a unix socket has 107, and tests put theirs below with up to 47.
const BYTES_MAX: usize = 60;

/// A directory that goes when this is dropped. Its path is short, since the path of a unix socket may have 107 bytes.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new one, on the disk under /var/tmp, or in `$TMPDIR`.
    ///
    /// For root it is a shared mount, so that an umount in it also reaches mount namespaces that other tests and container
    /// engines made meanwhile: they hold copies of all mounts, and a volume is in use as long as there is one.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new() -> Self {
        let parent = std::env::var_os("TMPDIR").map_or_else(|| PARENT.into(), PathBuf::from);
        let made = tempfile::Builder::new()
            .prefix("hafs-")
            .rand_bytes(8)
            .tempdir_in(parent);
        let scratch = Self(made.expect("a scratch directory"));
        let len = scratch.path().as_os_str().len();
        assert!(len <= BYTES_MAX, "TMPDIR is too long for sockets in it");
        if rustix::process::geteuid().is_root() {
            mount_bind(scratch.path(), scratch.path()).expect("root may mount");
            mount_change(scratch.path(), MountPropagationFlags::SHARED).expect("root may mount");
        }
        scratch
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A name in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A new directory in it.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).expect("a directory in the scratch directory");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        detach_all(self.path());
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
