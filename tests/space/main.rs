//! Space on real mounts: what a store takes while files are overwritten, deleted and written again, that it comes back, and
//! what a full disk does to a volume.
//!
//! What a store takes is what `du` says of its directory (allocated blocks), sampled all the time by a thread of its own.

mod collect;
mod disk;
mod full;
mod overwrite;
mod reclaim;
mod refill;
mod usage;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use hafs_tests::{Daemon, Mount, Numbers, Scratch};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MIB_LEN: usize = 1 << 20;
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A mounted volume with everything that it needs.
struct Mounted {
    // In this order they are dropped: nothing is left busy for the next.
    mount: Mount,
    daemon: Daemon,
    #[expect(dead_code, reason = "held so that it goes last")]
    scratch: Scratch,
}

impl Mounted {
    fn new(create: &[&str]) -> Self {
        let scratch = Scratch::new();
        let daemon = Daemon::start(scratch.path());
        daemon
            .ctl(&[&["volume", "create", "v"], create].concat())
            .ok();
        let mount = daemon.mount("v", &scratch.dir("mnt"));
        Self {
            mount,
            daemon,
            scratch,
        }
    }

    /// Unmounts, checks the volume and stops hafsd: each must succeed and leave nothing.
    fn end(self) {
        self.mount.unmount();
        self.daemon.check("v");
        self.daemon.stop();
    }
}

/// Waits until `condition` holds.
#[track_caller]
fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::park_timeout(LOOK);
    }
    eprintln!("after {:.1?}: {what}", start.elapsed());
}

/// The bytes of block `block` in its life number `version`: no two are alike.
fn block_bytes(block: u64, version: u64, bytes: &mut [u8]) {
    let mut numbers = Numbers::of(block, &[version]);
    for word in bytes.chunks_mut(8) {
        word.copy_from_slice(&numbers.draw().to_le_bytes()[..word.len()]);
    }
}

/// Fails if the file's blocks are not those versions.
#[track_caller]
fn verify(file: &File, block_len: usize, versions: &[u64]) {
    let (mut found, mut wanted) = (vec![0; block_len], vec![0; block_len]);
    for (block, version) in (0..).zip(versions) {
        let read: io::Result<()> = file.read_exact_at(&mut found, block * block_len as u64);
        read.unwrap_or_else(|error| panic!("block {block}: {error}"));
        block_bytes(block, *version, &mut wanted);
        assert!(found == wanted, "block {block} is not what was written");
    }
}
