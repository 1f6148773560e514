//! What is measured: directories on the same disk, each behind another filesystem.
//!
//! [`filesystem`](super) starts them all before the first round; they stay until the end, so that each round finds them in
//! the same state. Dropping a subject unmounts it and ends its server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use hafs_tests::{Daemon, Launch, Mount};

use super::command::run;
use super::null;

/// Which filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A plain directory of the disk: what the others are compared with.
    Ext4,
    /// A hafs volume, one copy.
    Hafs,
    /// fuser with hafs's own flags and threads, and nothing behind it: what FUSE costs.
    Null,
    /// A directory mirrored by bindfs: FUSE and a filesystem that stores nothing itself.
    Bindfs,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Hafs => "hafs",
            Self::Null => "null",
            Self::Bindfs => "bindfs",
        }
    }
}

/// A filesystem under test.
#[derive(Debug)]
pub(crate) struct Subject {
    kind: Kind,
    root: PathBuf,
    server: Server,
}

#[derive(Debug)]
enum Server {
    /// The kernel's own.
    None,
    /// Dropped in this order: the mount first.
    Hafs { _mount: Mount, daemon: Daemon },
    /// Ends with its mount.
    Fuse { _mount: Mount },
}

/// Unit of the times in /proc/PID/stat: `USER_HZ`, the same on every architecture that hafs runs on.
const USER_HZ: f64 = 100.0;

/// What a subject's server has used so far; the kernel's own work is not in it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) write_bytes: u64,
    pub(crate) cpu: Duration,
}

impl Subject {
    /// A directory of the disk.
    pub(crate) fn ext4(disk: &Path) -> anyhow::Result<Self> {
        let root = disk.join("ext4");
        fs::create_dir(&root)?;
        Ok(Self {
            kind: Kind::Ext4,
            root,
            server: Server::None,
        })
    }

    /// hafsd with its data on the disk, and a volume mounted.
    pub(crate) fn hafs(disk: &Path, scratch: &Path, size_gib: u64) -> anyhow::Result<Self> {
        let dir = scratch.join("hafs");
        fs::create_dir(&dir)?;
        let root = dir.join("mnt");
        fs::create_dir(&root)?;
        let daemon = Launch::new(&dir).data_dir(&disk.join("hafs")).start();
        let size = format!("{size_gib}GiB");
        daemon
            .ctl(&["volume", "create", "bench", "--size", &size])
            .ok();
        let mount = daemon.mount("bench", &root);
        Ok(Self {
            kind: Kind::Hafs,
            root,
            server: Server::Hafs {
                _mount: mount,
                daemon,
            },
        })
    }

    /// The null filesystem, served by this process.
    pub(crate) fn null(scratch: &Path) -> anyhow::Result<Self> {
        let root = scratch.join("null");
        fs::create_dir(&root)?;
        let mount = Mount::watch(&root);
        null::mount_on(&root)?;
        Ok(Self {
            kind: Kind::Null,
            root,
            server: Server::Fuse { _mount: mount },
        })
    }

    /// bindfs over a directory of the disk.
    pub(crate) fn bindfs(disk: &Path, scratch: &Path) -> anyhow::Result<Self> {
        let below = disk.join("bindfs");
        fs::create_dir(&below)?;
        let root = scratch.join("bindfs");
        fs::create_dir(&root)?;
        let mount = Mount::watch(&root);
        // As it is run for speed: several threads, and the kernel may cache names and attributes.
        run(Command::new("bindfs")
            .args(["--multithreaded", "-o", "attr_timeout=60,entry_timeout=60"])
            .arg(&below)
            .arg(&root))?;
        Ok(Self {
            kind: Kind::Bindfs,
            root,
            server: Server::Fuse { _mount: mount },
        })
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// A fresh, empty directory in it.
    pub(crate) fn fresh_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.root.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir(&dir)?;
        Ok(dir)
    }

    /// What hafsd has used so far; zeros for the others.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        match &self.server {
            Server::Hafs { daemon, .. } => usage_of(daemon.pid().as_raw_nonzero().get()),
            Server::None | Server::Fuse { .. } => Ok(Usage::default()),
        }
    }
}

/// Writes everything back and drops the kernel's clean pages, names and inodes: the next read comes from the disk.
pub(crate) fn drop_caches() -> anyhow::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop caches (not root?)")
}

fn usage_of(pid: i32) -> anyhow::Result<Usage> {
    let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let write_bytes = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
        .context("/proc/PID/io has no write_bytes")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold blanks; what follows its closing bracket does not. utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .context("/proc/PID/stat has no name")?
        .1
        .split(' ')
        .collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Usage {
        write_bytes,
        cpu: Duration::from_secs_f64(ticks as f64 / USER_HZ),
    })
}
