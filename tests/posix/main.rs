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
        let scratch = Scratch::new();
        let daemon = Daemon::start(scratch.path());
        daemon.ctl(&["volume", "create", "v", "--size", size]).ok();
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
