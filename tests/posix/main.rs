//! A real mount against POSIX: the pjdfstest suite, fsx, and each call that applications rely on.

mod acl;
mod attributes;
mod bytes;
mod errno;
mod files;
mod fsx;
mod handle;
mod hostile;
mod limits;
mod lock;
mod memory;
mod mounts;
mod names;
mod open;
mod pjdfstest;
mod privilege;
mod races;
mod readdir;
mod seek;
mod stress;
mod times;
mod user;
mod xattr;

use hafs_tests::{Daemon, Mount, Scratch};

/// A mounted volume with everything that it needs.
struct Mounted {
    // In this order they are dropped: nothing is left busy for the next.
    mount: Mount,
    daemon: Daemon,
    scratch: Scratch,
}

impl Mounted {
    /// A volume of 10 GiB on a mount.
    fn new() -> Self {
        Self::with("10GiB", "")
    }

    /// A volume of this size with these mount options.
    fn with(size: &str, options: &str) -> Self {
        Self::create(&["--size", size], options)
    }

    /// One volume after the other: with the kernel's writeback cache, and without (`writeback=off`).
    fn in_both_modes() -> impl Iterator<Item = Self> {
        ["on", "off"].into_iter().map(|writeback| {
            eprintln!("writeback={writeback}");
            Self::create(&["--size", "10GiB", "--writeback", writeback], "")
        })
    }

    fn create(settings: &[&str], options: &str) -> Self {
        let scratch = Scratch::new();
        let daemon = Daemon::start(scratch.path());
        let create = [&["volume", "create", "v"], settings].concat();
        daemon.ctl(&create).ok();
        let mount = daemon.mount_with("v", &scratch.dir("mnt"), options);
        Self {
            mount,
            daemon,
            scratch,
        }
    }

    /// Kills hafsd, starts it again and mounts the volume where it was.
    fn killed(self) -> Self {
        let Self {
            mount,
            daemon,
            scratch,
        } = self;
        daemon.kill();
        let daemon = Daemon::start(scratch.path());
        drop(mount);
        let mount = daemon.mount("v", &scratch.join("mnt"));
        Self {
            mount,
            daemon,
            scratch,
        }
    }

    /// Unmounts, ends hafsd, starts it again and mounts the volume where it was: nothing comes from a cache.
    fn remounted(self) -> Self {
        let Self {
            mount,
            daemon,
            scratch,
        } = self;
        mount.unmount();
        daemon.stop();
        let daemon = Daemon::start(scratch.path());
        let mount = daemon.mount("v", &scratch.join("mnt"));
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
