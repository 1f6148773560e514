//! What is measured: directories on the same disk, each behind another filesystem.
//!
//! [`filesystem`](super) starts them all before the first round; they stay until the end, so that each round finds them in
//! the same state. Dropping a subject unmounts it and ends its server.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hafs_tests::mount::mounts_on;
use hafs_tests::{Daemon, Launch, Mount};
use rustix::process::{Pid, Signal};

use super::null;
use super::process::{Process, dying_with_us};
use super::workload::Bench;
use crate::interrupt::Interrupt;

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
    /// How it is set up, for those who read the figures.
    options: String,
}

#[derive(Debug)]
enum Server {
    /// The kernel's own.
    None,
    /// Dropped in this order: the mount first.
    Hafs { _mount: Mount, daemon: Daemon },
    /// Threads of this process, which end with the mount.
    Null { _mount: Mount },
    /// Dropped in this order: the mount first.
    Bindfs { _mount: Mount, process: Process },
}

/// Unit of the times in /proc/PID/stat: `USER_HZ`, the same on every architecture that hafs runs on.
const TICK: Duration = Duration::from_millis(10);

/// A server does nothing any more if it used no more than this for as long as [`Subject::settle`] wants.
const IDLE_CPU_PERCENT: u32 = 2;
const IDLE_LOOK: Duration = Duration::from_millis(100);
/// hafsd tidies up when nothing was changed for 3 s.
const IDLE_HAFS: Duration = Duration::from_secs(5);
const IDLE_OTHERS: Duration = Duration::from_secs(1);
const IDLE_LIMIT: Duration = Duration::from_secs(300);

/// What a subject's server has used so far; the kernel's own work is not in it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) write_bytes: u64,
    pub(crate) cpu: Duration,
}

impl Usage {
    /// What was used between two readings, if there were any.
    pub(crate) fn between(earlier: Option<Self>, later: Option<Self>) -> Option<Self> {
        let (earlier, later) = earlier.zip(later)?;
        Some(Self {
            write_bytes: later.write_bytes.saturating_sub(earlier.write_bytes),
            cpu: later.cpu.saturating_sub(earlier.cpu),
        })
    }
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
            options: "a directory of the disk".to_owned(),
        })
    }

    /// hafsd with its data on the disk, and a volume mounted.
    pub(crate) fn hafs(disk: &Path, scratch: &Path, size_gib: u64) -> anyhow::Result<Self> {
        let dir = scratch.join("hafs");
        fs::create_dir(&dir)?;
        let root = dir.join("mnt");
        fs::create_dir(&root)?;
        let daemon = Launch::new(&dir)
            .data_dir(&disk.join("hafs"))
            .expect("") // whatever it logs: `complaints` tells, and no figure is lost
            .start();
        let size = format!("{size_gib}GiB");
        daemon
            .ctl(&["volume", "create", "bench", "--size", &size])
            .ok();
        let mount = daemon.mount("bench", &root);
        Ok(Self {
            kind: Kind::Hafs,
            options: format!(
                "hafsd and a volume of {size} as they are without settings; {}",
                mount_line(&root)
            ),
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
        let agreed = null::mount_on(&root)?;
        Ok(Self {
            kind: Kind::Null,
            options: format!("{agreed}; {}", mount_line(&root)),
            root,
            server: Server::Null { _mount: mount },
        })
    }

    /// bindfs over a directory of the disk.
    pub(crate) fn bindfs(
        interrupt: &Interrupt,
        disk: &Path,
        scratch: &Path,
    ) -> anyhow::Result<Self> {
        let below = disk.join("bindfs");
        fs::create_dir(&below)?;
        let root = scratch.join("bindfs");
        fs::create_dir(&root)?;
        let mount = Mount::watch(&root);
        // As it is run for speed: several threads, and the kernel may cache names and attributes.
        let arguments = ["--multithreaded", "-o", "attr_timeout=60,entry_timeout=60"];
        let mut command = dying_with_us("bindfs");
        command.arg("-f").args(arguments).arg(&below).arg(&root);
        let log = scratch.join("bindfs.log");
        let process = Process::start(interrupt, &mut command, &log, Signal::TERM, || {
            Ok(!mounts_on(&root).is_empty())
        })?;
        Ok(Self {
            kind: Kind::Bindfs,
            options: format!("{}; {}", arguments.join(" "), mount_line(&root)),
            root,
            server: Server::Bindfs {
                _mount: mount,
                process,
            },
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

    /// What its server has used so far; nothing where that is the kernel or this process.
    pub(crate) fn usage(&self) -> anyhow::Result<Option<Usage>> {
        let servers = self.servers();
        if servers.is_empty() {
            return Ok(None);
        }
        let mut all = Usage::default();
        for server in servers {
            let usage = usage_of(server)?;
            all.write_bytes += usage.write_bytes;
            all.cpu += usage.cpu;
        }
        Ok(Some(all))
    }

    fn servers(&self) -> Vec<Pid> {
        match &self.server {
            Server::Hafs { daemon, .. } => vec![daemon.pid()],
            Server::Bindfs { process, .. } => vec![process.pid()],
            Server::None | Server::Null { .. } => Vec::new(),
        }
    }

    /// Waits until its server does nothing any more: what it had put off is done.
    ///
    /// # Errors
    /// If it does not come to rest.
    pub(crate) fn settle(&self, bench: &Bench<'_>) -> anyhow::Result<()> {
        let quiet = match &self.server {
            Server::Hafs { .. } => IDLE_HAFS,
            Server::Bindfs { .. } => IDLE_OTHERS,
            Server::None | Server::Null { .. } => return Ok(()),
        };
        rustix::fs::syncfs(fs::File::open(&self.root)?).context("syncfs")?;
        let begin = Instant::now();
        let mut last = self.usage()?;
        let mut since = Instant::now();
        while since.elapsed() < quiet {
            bench.interrupt.check()?;
            if begin.elapsed() > IDLE_LIMIT {
                bail!(
                    "{} is still busy after {IDLE_LIMIT:?}: {last:?}",
                    self.kind.name()
                );
            }
            std::thread::park_timeout(IDLE_LOOK);
            let now = self.usage()?;
            let used = Usage::between(last, now).context("a server is gone")?;
            // At least what one tick of the clock that counts may hide.
            let allowed = (since.elapsed() * IDLE_CPU_PERCENT / 100).max(2 * TICK);
            if used.write_bytes > 0 || used.cpu > allowed {
                last = now;
                since = Instant::now();
            }
        }
        Ok(())
    }

    /// How it is set up.
    pub(crate) fn options(&self) -> &str {
        &self.options
    }

    /// What hafsd logged as a warning or an error.
    pub(crate) fn complaints(&self) -> Vec<String> {
        match &self.server {
            Server::Hafs { daemon, .. } => daemon
                .log()
                .lines()
                .filter(|line| !line.contains("\"level\":\"INFO\""))
                .map(str::to_owned)
                .collect(),
            Server::None | Server::Null { .. } | Server::Bindfs { .. } => Vec::new(),
        }
    }
}

/// As /proc/mounts has it.
fn mount_line(root: &Path) -> String {
    let lines: Vec<String> = mounts_on(root)
        .into_iter()
        .filter(|line| !hafs_tests::mount::is_guard(line))
        .map(|line| format!("mounted as {} ({})", line.kind, line.options.join(",")))
        .collect();
    lines.join("; ")
}

/// Writes everything back and drops the kernel's clean pages, names and inodes: the next read comes from the disk.
pub(crate) fn drop_caches() -> anyhow::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop caches (not root?)")
}

/// What a process has used so far.
pub(crate) fn usage_of(pid: Pid) -> anyhow::Result<Usage> {
    let pid = pid.as_raw_nonzero();
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
    let ticks: u32 = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    Ok(Usage {
        write_bytes,
        cpu: TICK * ticks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_that_of_the_process() {
        let own = rustix::process::getpid();
        let before = usage_of(own).unwrap();
        let begin = Instant::now();
        let mut number = 1_u64;
        while usage_of(own).unwrap().cpu < before.cpu + 5 * TICK {
            number = std::hint::black_box(number.wrapping_mul(3));
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "no CPU is counted"
            );
        }
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::write(dir.path().join("file"), vec![1; 1 << 20]).unwrap();
        let used = Usage::between(Some(before), Some(usage_of(own).unwrap())).unwrap();
        assert!(used.write_bytes >= 1 << 20, "{used:?}");
        assert!(Usage::between(None, Some(before)).is_none());
    }
}
