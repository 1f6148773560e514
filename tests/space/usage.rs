//! What a store takes on the disk, sampled while a test runs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(10);
/// What stat(2) counts blocks in.
const STAT_BLOCK_BYTES: u64 = 512;

/// Allocated bytes of everything below `dir`. What goes away meanwhile counts as gone.
pub(crate) fn allocated(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let sizes = entries.filter_map(Result::ok).map(|entry| {
        let path = entry.path();
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => allocated(&path),
            _ => allocated_file(&path),
        }
    });
    sizes.sum()
}

/// Allocated bytes of a file; 0 if there is none.
pub(crate) fn allocated_file(path: &Path) -> u64 {
    path.symlink_metadata()
        .map_or(0, |metadata| metadata.blocks() * STAT_BLOCK_BYTES)
}

/// Looks at a directory again and again until it is dropped.
pub(crate) struct Usage {
    dir: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    most: AtomicU64,
    looks: AtomicU64,
    stop: AtomicBool,
}

impl Usage {
    pub(crate) fn watch(dir: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let thread = {
            let (dir, shared) = (dir.to_owned(), Arc::clone(&shared));
            thread::spawn(move || {
                while !shared.stop.load(Ordering::Acquire) {
                    shared.most.fetch_max(allocated(&dir), Ordering::AcqRel);
                    shared.looks.fetch_add(1, Ordering::AcqRel);
                    thread::park_timeout(INTERVAL);
                }
            })
        };
        Self {
            dir: dir.to_owned(),
            shared,
            thread: Some(thread),
        }
    }

    /// What it takes now.
    pub(crate) fn now(&self) -> u64 {
        allocated(&self.dir)
    }

    /// The most that was seen, and in how many looks.
    pub(crate) fn most(&self) -> (u64, u64) {
        let looks = self.shared.looks.load(Ordering::Acquire);
        (self.shared.most.load(Ordering::Acquire), looks)
    }
}

impl Drop for Usage {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join(); // it does not panic
        }
    }
}
