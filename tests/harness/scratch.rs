//! A test's own directory.

use std::fs;
use std::path::{Path, PathBuf};

/// A directory that goes when this is dropped. Its path is short, since the path of a unix socket may have 107 bytes.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new one, on the disk under the temporary directory.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new() -> Self {
        let made = tempfile::Builder::new()
            .prefix("hafs-")
            .rand_bytes(8)
            .tempdir();
        Self(made.expect("a scratch directory"))
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

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
