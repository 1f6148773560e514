//! Errors that the lossy disk answers with because a test wants them.

use std::path::Path;

use rustix::io::Errno;

/// What a process asks of the disk, as far as faults tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Bytes of a file. What the kernel has cached is read again once a fault is set.
    Read,
    /// `write`, and `fallocate` that takes space.
    Write,
    /// `fsync` and `fdatasync`, of a file or a directory.
    Sync,
    /// `truncate`, and `fallocate` that gives space back.
    Truncate,
    /// A new name: create, mkdir, symlink, link, rename.
    Name,
    /// `unlink` and `rmdir`.
    Remove,
}

/// A fault: which requests fail, and with what. Build it with [`Fault::new`] and the methods behind it.
#[derive(Debug, Clone)]
pub struct Fault {
    requests: Vec<Request>,
    errno: Errno,
    path: String,
    /// Requests that match and still succeed.
    spare: u64,
    /// Requests that fail; then it is over.
    times: u64,
    fired: u64,
}

/// Names a fault that was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId(pub(super) u64);

impl Fault {
    /// Every such request fails with `errno`, until the fault is healed.
    ///
    /// A `Write` that fails writes nothing. A `Sync` that fails is reported once, as Linux does: the pages that it should have
    /// written count as clean, no later sync writes them (unless they change again), and a cut takes them.
    pub fn new(requests: &[Request], errno: Errno) -> Self {
        Self {
            requests: requests.to_vec(),
            errno,
            path: String::new(),
            spare: 0,
            times: u64::MAX,
            fired: 0,
        }
    }

    /// Only for paths, from the mount's root on and with `/` in front, that contain `part`: `/log/`, `.seg`, `/state/`.
    #[must_use]
    pub fn on(mut self, part: &str) -> Self {
        part.clone_into(&mut self.path);
        self
    }

    /// The first `spare` requests that match still succeed.
    #[must_use]
    pub fn after(mut self, spare: u64) -> Self {
        self.spare = spare;
        self
    }

    /// It is over after so many failures.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// How many requests it has failed.
    pub(super) fn fired(&self) -> u64 {
        self.fired
    }

    /// The error that a request gets from this fault.
    pub(super) fn strike(&mut self, request: Request, path: &Path) -> Option<Errno> {
        if self.fired == self.times || !self.requests.contains(&request) {
            return None;
        }
        if !format!("/{}", path.display()).contains(&self.path) {
            return None;
        }
        if self.spare > 0 {
            self.spare -= 1;
            return None;
        }
        self.fired += 1;
        Some(self.errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_what_it_names_when_it_says() {
        let mut fault = Fault::new(&[Request::Write, Request::Sync], Errno::NOSPC)
            .on("/log/")
            .after(1)
            .times(2);
        let log = Path::new("volumes/v/log/1.log");
        assert_eq!(fault.strike(Request::Read, log), None);
        assert_eq!(fault.strike(Request::Write, Path::new("log")), None);
        assert_eq!(fault.strike(Request::Write, log), None, "one is spared");
        assert_eq!(fault.strike(Request::Sync, log), Some(Errno::NOSPC));
        assert_eq!(fault.strike(Request::Write, log), Some(Errno::NOSPC));
        assert_eq!(fault.strike(Request::Write, log), None, "it is over");
        assert_eq!(fault.fired(), 2);
    }
}
