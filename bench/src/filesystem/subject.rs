//! What is measured: directories on the same disk, each behind another filesystem.
//!
//! [`filesystem`](super) starts them all before the first round; they stay until the end, so that each round finds them in
//! the same state. Dropping a subject unmounts it and ends its server.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use hafs_tests::mount::mounts_on;
use hafs_tests::{Daemon, Launch, Mount};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::gluster::{Gluster, GlusterMount};
use super::null;
use super::process::{Process, dying_with_us};
use super::workload::Bench;
use crate::hafsd;
use crate::interrupt::Interrupt;
use crate::scratch::say;
use crate::usage::{IDLE_HAFSD, Usage, wait_idle};

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
    /// GlusterFS with one copy.
    Gluster1,
    /// GlusterFS with two copies, on the same disk.
    Gluster2,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Hafs => "hafs",
            Self::Null => "null",
            Self::Bindfs => "bindfs",
            Self::Gluster1 => "gluster-1",
            Self::Gluster2 => "gluster-2",
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
    Hafs {
        _mount: Mount,
        daemon: Daemon,
    },
    /// The null filesystem or bindfs. Dropped in this order: the mount first.
    Process {
        _mount: Mount,
        process: Process,
    },
    Gluster(GlusterMount),
}

/// A server other than hafsd rests when it has done nothing for so long.
const IDLE_OTHERS: Duration = Duration::from_secs(1);

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
            .own_group()
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

    /// The null filesystem, served by another process of this program.
    pub(crate) fn null(interrupt: &Interrupt, scratch: &Path) -> anyhow::Result<Self> {
        let root = scratch.join("null");
        fs::create_dir(&root)?;
        let mount = Mount::watch(&root);
        let log = scratch.join("null.log");
        let mut command = null::command(&root)?;
        let said = || fs::read_to_string(&log).context("null.log");
        let process = Process::start(interrupt, &mut command, &log, Signal::TERM, |_| {
            Ok(null::agreed(&said()?).is_some())
        })?;
        let said = said()?;
        let agreed = null::agreed(&said).unwrap_or_default();
        Ok(Self {
            kind: Kind::Null,
            options: format!("{agreed}; {}", mount_line(&root)),
            root,
            server: Server::Process {
                _mount: mount,
                process,
            },
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
        let process = Process::start(interrupt, &mut command, &log, Signal::TERM, |_| {
            Ok(!mounts_on(&root).is_empty())
        })?;
        Ok(Self {
            kind: Kind::Bindfs,
            options: format!("{}; {}", arguments.join(" "), mount_line(&root)),
            root,
            server: Server::Process {
                _mount: mount,
                process,
            },
        })
    }

    /// A GlusterFS volume with so many copies, each a brick on the disk.
    pub(crate) fn gluster(
        interrupt: &Interrupt,
        gluster: &Rc<Gluster>,
        copies: usize,
        disk: &Path,
        scratch: &Path,
    ) -> anyhow::Result<Self> {
        let kind = if copies == 1 {
            Kind::Gluster1
        } else {
            Kind::Gluster2
        };
        let name = kind.name();
        let bricks: Vec<PathBuf> = (0..copies)
            .map(|copy| disk.join(name).join(format!("brick-{copy}")))
            .collect();
        let root = scratch.join(name);
        fs::create_dir(&root)?;
        let log = scratch.join(format!("{name}.log"));
        let mount = GlusterMount::new(interrupt, gluster, name, &bricks, &root, &log)?;
        Ok(Self {
            kind,
            options: format!(
                "{}; bricks, servers and client on this machine; {}",
                mount.options(interrupt)?,
                mount_line(&root)
            ),
            root,
            server: Server::Gluster(mount),
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

    /// What its server has used so far; nothing where that is the kernel.
    pub(crate) fn usage(&self) -> anyhow::Result<Option<Usage>> {
        let servers = self.servers()?;
        if servers.is_empty() {
            return Ok(None);
        }
        Usage::of(&servers).map(Some)
    }

    fn servers(&self) -> anyhow::Result<Vec<Pid>> {
        Ok(match &self.server {
            Server::Hafs { daemon, .. } => vec![daemon.pid()],
            Server::Process { process, .. } => vec![process.pid()],
            Server::Gluster(mount) => mount.processes()?,
            Server::None => Vec::new(),
        })
    }

    /// Has its server run on one core, together with this thread and those that it starts, until that is dropped.
    pub(crate) fn on_one_core(&self) -> anyhow::Result<OneCore> {
        let before = sched_getaffinity(None).context("sched_getaffinity")?;
        let first = (0..CpuSet::MAX_CPU).find(|&core| before.is_set(core));
        let mut one = CpuSet::new();
        one.set(first.context("no core to run on")?);
        let pinned = OneCore {
            servers: self.servers()?,
            before,
        };
        pinned.run_on(&one).context("sched_setaffinity")?;
        Ok(pinned)
    }

    /// Waits until its server does nothing any more: what it had put off is done.
    ///
    /// # Errors
    /// If it does not come to rest.
    pub(crate) fn settle(&self, bench: &Bench<'_>) -> anyhow::Result<()> {
        if self.kind == Kind::Null {
            return Ok(()); // it puts nothing off
        }
        let quiet = match &self.server {
            Server::Hafs { .. } => IDLE_HAFSD,
            Server::Process { .. } | Server::Gluster(_) => IDLE_OTHERS,
            Server::None => return Ok(()),
        };
        rustix::fs::syncfs(fs::File::open(&self.root)?).context("syncfs")?;
        wait_idle(bench.interrupt, quiet, || Usage::of(&self.servers()?))
            .with_context(|| self.kind.name())
    }

    /// A figure that tells of the disk: none of the null filesystem, which has no disk.
    pub(crate) fn on_disk(&self, figure: f64) -> f64 {
        if self.kind == Kind::Null {
            f64::NAN
        } else {
            figure
        }
    }

    /// How it is set up.
    pub(crate) fn options(&self) -> &str {
        &self.options
    }

    /// What hafsd logged as a warning or an error.
    pub(crate) fn complaints(&self) -> Vec<String> {
        match &self.server {
            Server::Hafs { daemon, .. } => hafsd::complaints(daemon),
            Server::None | Server::Process { .. } | Server::Gluster(_) => Vec::new(),
        }
    }
}

/// A server, and this thread, that share one core.
pub(crate) struct OneCore {
    servers: Vec<Pid>,
    before: CpuSet,
}

impl OneCore {
    fn run_on(&self, cores: &CpuSet) -> io::Result<()> {
        for server in &self.servers {
            for task in fs::read_dir(format!("/proc/{server}/task"))? {
                let number = task?.file_name().to_string_lossy().parse();
                let task = Pid::from_raw(number.map_err(io::Error::other)?);
                match sched_setaffinity(task, cores) {
                    Ok(()) | Err(Errno::SRCH) => {} // it may just have ended
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(sched_setaffinity(None, cores)?)
    }
}

impl Drop for OneCore {
    fn drop(&mut self) {
        if let Err(error) = self.run_on(&self.before) {
            say(&format!("all on one core still: {error}"));
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
