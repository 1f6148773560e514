//! A disk that can lose power and fail: a filesystem of our own over a backing directory, for what stands on it.
//!
//! ```text
//! let lossy = Lossy::mount(&scratch.dir("disk"), &scratch.dir("data"), seed);
//! // ... run hafsd or a Volume in `data` ...
//! lossy.set_fault(Fault::new(&[Request::Sync], Errno::IO).on("/log/").times(1));
//! let loss = lossy.cut(Cut { mode: Mode::Pages, seed });    // everything fails with EIO from now on
//! // ... end what used it ...
//! drop(lossy);                                              // `disk` is now what a disk would hold
//! let lossy = Lossy::mount(&disk, &data, seed + 1);         // the power is back
//! ```
//!
//! **What is on the disk**, where POSIX and the filesystems in use leave a choice, is the least that they promise:
//!
//! | what | is on the disk once |
//! |---|---|
//! | bytes and length of a file | `fsync` or `fdatasync` of it returned; what was written while that ran is not covered |
//! | a name: create, unlink, rename, link, mkdir, rmdir | `fsync` of the directory returned (either one, for a rename between two). `fsync` of the file does nothing for its name |
//! | `sync_file_range`, `close`, `sync`, `O_DIRECT` | never: none of them promises anything |
//! | owner, mode, times | at once: nothing that stands on it depends on them |
//!
//! **What a cut leaves** is in [`Mode`]: nothing that is not on the disk, or any part of it that a disk may leave. Pages are
//! kept or lost each by itself, also as they were between two writes. Renames are whole; a truncation happens with all that it
//! removed or not at all; a length may grow without the bytes, which are zeros then. See `lossy/names.rs` for which changes
//! of names need which, and for the one rename that RocksDB relies on.
//!
//! **Faults** are in [`Fault`]: errors for chosen requests on chosen paths, from the n-th on, for so many times. A failed sync
//! loses its pages for good, as on Linux, also without a cut: no later sync writes them. They read back as long as the kernel has them in
//! its cache (`POSIX_FADV_DONTNEED`, or [`Lossy::forget_what_was_read`], ends that), then as they were before.
//!
//! What is not modelled: extended attributes and special files (refused), `copy_file_range` (the kernel copies), a disk that
//! fills up (set a fault with `ENOSPC`, or put the backing directory on a small filesystem).

mod contents;
mod disk;
mod fault;
mod names;
mod serve;
mod server;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::mount::{UnmountFlags, unmount};

pub use self::fault::{Fault, FaultId, Request};
use self::server::Server;
use crate::mount::detach_all;

/// What a cut leaves of that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Everything,
    /// Any part of the pages, the lengths and the changes of names.
    Pages,
    /// The same, and pages of which half, or some sectors of 512 bytes, were written.
    Halves,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Everything, Self::Pages, Self::Halves];
}

/// A power cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// What it leaves.
    pub mode: Mode,
    /// Which of the possible outcomes.
    pub seed: u64,
}

/// What a cut took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loss {
    /// Files that had unsynced pages.
    pub files: Vec<LostFile>,
    /// Changes of names that were not on the disk.
    pub unsynced_names: u64,
    /// Those of them that are gone.
    pub lost_names: u64,
}

/// What a cut took of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostFile {
    /// From the mount's root on.
    pub path: PathBuf,
    /// Pages that were not synced.
    pub unsynced_pages: u64,
    /// Those that are not as they were last.
    pub lost_pages: u64,
    /// Those that are a mix of two states.
    pub torn_pages: u64,
    /// Bytes that are not as they were last.
    pub lost_bytes: u64,
}

impl Loss {
    /// Bytes lost in files whose path contains `part`.
    pub fn bytes_in(&self, part: &str) -> u64 {
        let files = self.files.iter();
        files
            .filter(|file| format!("/{}", file.path.display()).contains(part))
            .map(|file| file.lost_bytes)
            .sum()
    }
}

/// A mounted lossy disk. Dropped, it is unmounted; without a cut before, everything is on the disk then.
#[derive(Debug)]
pub struct Lossy {
    server: Option<Server>,
    dir: PathBuf,
}

impl Lossy {
    /// Mounts the disk whose content is the directory `backing` on `dir`. Until it is unmounted or cut, `backing` is not to be
    /// touched; beside it, `backing` + `.live` comes and goes. `seed` decides which states between two writes of a page
    /// are remembered.
    ///
    /// # Panics
    /// If that is not possible; it needs root and /dev/fuse.
    pub fn mount(backing: &Path, dir: &Path, seed: u64) -> Self {
        Self {
            server: Some(Server::start(backing, dir, seed)),
            dir: dir.to_owned(),
        }
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("there until it is dropped")
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The power goes, at this moment: from now on every request fails with EIO, and the backing directory holds what a
    /// disk would. What used the mount should be killed at the same time.
    ///
    /// # Panics
    /// If the power went before, or the backing directory cannot be written.
    pub fn cut(&self, cut: Cut) -> Loss {
        let cut = self.server().call(move |disk| disk.cut(cut));
        cut.expect("the backing directory")
    }

    /// The power will go with the request that comes after so many more, whatever it is and whoever makes it.
    pub fn cut_after(&self, requests: u64, cut: Cut) {
        self.server()
            .call(move |disk| disk.cut_after(requests, cut));
    }

    /// What the cut took; `None` as long as there is power.
    pub fn loss(&self) -> Option<Loss> {
        self.server().call(|disk| disk.loss())
    }

    /// From now on a sync takes so long; a cut may come meanwhile. At first it takes no time. (The kernel holds up who writes
    /// to a file while it syncs it; other files go on.)
    pub fn set_sync_takes(&self, takes: Duration) {
        self.server().call(move |disk| disk.set_sync_takes(takes));
    }

    /// Requests that were served so far: how far something has come that cannot be seen from outside.
    pub fn requests(&self) -> u64 {
        self.server().call(|disk| disk.requests())
    }

    /// Waits until so many requests were served, or the power is gone. False: not within `limit`.
    pub fn wait_for_requests(&self, requests: u64, limit: Duration) -> bool {
        self.server()
            .call(move |disk| disk.wait_for_requests(requests, limit))
    }

    /// Syncs that have begun and not ended.
    pub fn running_syncs(&self) -> u64 {
        self.server().call(|disk| disk.running_syncs())
    }

    /// From now on requests fail as `fault` says. Several faults are asked in the order in which they were set.
    pub fn set_fault(&self, fault: Fault) -> FaultId {
        let id = self.server().call(move |disk| disk.set_fault(fault));
        self.forget_what_was_read();
        id
    }

    /// How many requests the fault has failed.
    ///
    /// # Panics
    /// If it was healed.
    pub fn fired(&self, id: FaultId) -> u64 {
        let fired = self.server().call(move |disk| disk.fired(id));
        fired.expect("a fault that is set")
    }

    /// The fault is over.
    pub fn heal(&self, id: FaultId) {
        self.server().call(move |disk| disk.heal(Some(id)));
    }

    /// All faults are over.
    pub fn heal_all(&self) {
        self.server().call(|disk| disk.heal(None));
    }

    /// Bytes of unsynced pages in files whose path contains `part`.
    pub fn unsynced_bytes(&self, part: &str) -> u64 {
        let part = part.to_owned();
        self.server().call(move |disk| disk.unsynced_bytes(&part))
    }

    /// The kernel reads everything again.
    pub fn forget_what_was_read(&self) {
        self.server().forget_what_was_read();
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        let server = self.server.take().expect("taken once");
        let settled = server.call(|disk| disk.settle());
        // FORCE ends the connection, whoever still uses it in whatever namespace.
        let _ = unmount(&self.dir, UnmountFlags::FORCE | UnmountFlags::DETACH);
        detach_all(&self.dir);
        let ended = server.end();
        if !std::thread::panicking() {
            settled.expect("the backing directory");
            ended.expect("the threads end when nothing is mounted");
        }
    }
}

/// Wall time, for what stat(2) shows.
fn now() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "the clock of this filesystem")]
    SystemTime::now()
}
