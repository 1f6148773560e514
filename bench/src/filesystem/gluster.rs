//! GlusterFS as Debian packages it, for as long as a run: one glusterd, a volume of one copy and one of two, all on the run's disk.
//!
//! [`Gluster::start`] gives glusterd namespaces of its own for mounts, network and processes. Its `/var/lib/glusterd`, `/run` and
//! `/var/log` are private, its network is a loopback device that nobody else has, and whatever it starts ends with it.
//! Clients mount in this process's mount namespace: only their network is glusterd's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use hafs_tests::Mount;
use hafs_tests::mount::mounts_on;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::command::{is_here, output_unless};
use super::process::{Process, children, dying_with_us};
use crate::interrupt::Interrupt;
use crate::scratch::say;

/// On the loopback device of the namespace. glusterd refuses 127.0.0.1.
const ADDRESS: &str = "127.0.0.2";
const PROGRAMS: [&str; 3] = ["glusterd", "gluster", "glusterfs"];
/// From SIGKILL to the end of the namespace.
const END_LIMIT: Duration = Duration::from_mins(1);
/// `$1` is the working directory of glusterd.
const PREPARE: &str = r#"
ip link set lo up
mount -t tmpfs -o mode=755 none /run
mount -t tmpfs -o mode=755 none /var/log
mount --bind "$1" /var/lib/glusterd
mkdir -p /run/gluster /var/log/glusterfs
exec glusterd --no-daemon --log-file=-
"#;

/// A running glusterd. Dropped, it is killed with everything in its namespaces.
#[derive(Debug)]
pub(crate) struct Gluster {
    process: Process,
    /// glusterd: the first process of the namespace, by its number outside.
    init: Pid,
}

/// A volume of it and its client. Dropped in this order: the mount first.
#[derive(Debug)]
pub(crate) struct GlusterMount {
    _mount: Mount,
    client: Process,
    name: &'static str,
    gluster: Rc<Gluster>,
}

/// Errs with what to do if it is not installed.
pub(crate) fn check_installed() -> anyhow::Result<()> {
    for program in PROGRAMS {
        if !is_here(program) {
            bail!(
                "GlusterFS cannot be measured\n  why: there is no program {program}\n  \
                 next: tools/scripts/install-packages bench-gluster, or PEER=gluster make bench"
            );
        }
    }
    Ok(())
}

impl Gluster {
    /// Starts it, with what it keeps in `dir`. No mount that is made afterwards is held by it.
    pub(crate) fn start(interrupt: &Interrupt, dir: &Path) -> anyhow::Result<Rc<Self>> {
        let work = dir.join("lib");
        fs::create_dir_all(&work)?;
        let mut command = dying_with_us("unshare");
        command
            .args(["--mount", "--propagation", "private"])
            .args(["--net", "--pid", "--mount-proc", "--fork", "--kill-child"])
            .args(["sh", "-euc", PREPARE, "sh"])
            .arg(&work);
        let log = dir.join("glusterd.log");
        let process = Process::start(interrupt, &mut command, &log, Signal::TERM, |pid| {
            // Its socket is the last thing that it makes.
            let Some(init) = children(pid)?.pop() else {
                return Ok(false);
            };
            let socket = format!("/proc/{}/root/run/glusterd.socket", init.as_raw_nonzero());
            Ok(fs::exists(socket)?
                && in_namespaces(init, &["pool", "list"])
                    .output()?
                    .status
                    .success())
        })?;
        let init = children(process.pid())?.pop();
        Ok(Rc::new(Self {
            init: init.context("glusterd is gone")?,
            process,
        }))
    }

    fn gluster(&self, interrupt: &Interrupt, arguments: &[&str]) -> anyhow::Result<String> {
        output_unless(interrupt, &mut in_namespaces(self.init, arguments))
    }

    /// The servers of a volume: its bricks, and what heals them.
    fn servers_of(&self, volume: &str) -> anyhow::Result<Vec<Pid>> {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(&self.init.as_raw_nonzero().to_string());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name
                .to_str()
                .and_then(|name| Pid::from_raw(name.parse().ok()?))
            else {
                continue;
            };
            let name = pid.as_raw_nonzero().to_string();
            // Who ended meanwhile has neither.
            if namespace(&name) != own {
                continue;
            }
            let line = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
            let serves = line.split(|byte| *byte == 0).any(|word| {
                let word = String::from_utf8_lossy(word);
                word.starts_with(&format!("{volume}.")) || *word == *format!("shd/{volume}")
            });
            if serves {
                found.push(pid);
            }
        }
        Ok(found)
    }
}

impl GlusterMount {
    /// Makes a volume with one copy on each of `bricks`, and mounts it on `root`.
    pub(crate) fn new(
        interrupt: &Interrupt,
        gluster: &Rc<Gluster>,
        name: &'static str,
        bricks: &[PathBuf],
        root: &Path,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let copies = bricks.len().to_string();
        let mut create = vec!["volume", "create", name];
        if bricks.len() > 1 {
            create.extend(["replica", &copies]);
        }
        let places: Vec<String> = bricks
            .iter()
            .map(|brick| format!("{ADDRESS}:{}", brick.display()))
            .collect();
        create.extend(places.iter().map(String::as_str));
        create.push("force"); // two copies on one machine
        for brick in bricks {
            fs::create_dir_all(brick)?;
        }
        gluster.gluster(interrupt, &create)?;
        gluster.gluster(interrupt, &["volume", "start", name])?;
        let mount = Mount::watch(root);
        let mut command = dying_with_us("nsenter");
        command
            .arg("--target")
            .arg(gluster.init.as_raw_nonzero().to_string())
            .args(["--net", "glusterfs", "--no-daemon", "--log-file=-"])
            .args(["--process-name", "fuse"])
            .arg(format!("--volfile-server={ADDRESS}"))
            .arg(format!("--volfile-id={name}"))
            .arg(root);
        let client = Process::start(interrupt, &mut command, log, Signal::TERM, |_| {
            // With a copy that it does not reach yet, the first writes would have to be healed.
            let said = fs::read_to_string(log).unwrap_or_default();
            let connected = (0..bricks.len())
                .all(|brick| said.contains(&format!("{name}-client-{brick}: Connected")));
            Ok(connected && !mounts_on(root).is_empty())
        })?;
        Ok(Self {
            _mount: mount,
            client,
            name,
            gluster: Rc::clone(gluster),
        })
    }

    /// Client and servers.
    pub(crate) fn processes(&self) -> anyhow::Result<Vec<Pid>> {
        let mut all = self.gluster.servers_of(self.name)?;
        all.push(self.client.pid());
        Ok(all)
    }

    /// What kind of volume it is, and each option that is set.
    pub(crate) fn options(&self, interrupt: &Interrupt) -> anyhow::Result<String> {
        let info = self
            .gluster
            .gluster(interrupt, &["volume", "info", self.name])?;
        let wanted = info.lines().filter(|line| {
            let name = line.split_once(": ").map_or("", |(name, _)| name);
            ["Type", "Number of Bricks", "Transport-type"].contains(&name) || name.contains('.')
        });
        let lines: Vec<&str> = wanted.map(str::trim).collect();
        Ok(lines.join(", "))
    }
}

impl Drop for Gluster {
    fn drop(&mut self) {
        // Everything in the namespace ends with its first process; it has ended when that one has.
        let Ok(init) = pidfd_open(self.init, PidfdFlags::empty()) else {
            return; // it is gone
        };
        let _ = kill_process(self.init, Signal::KILL);
        let limit = Timespec::try_from(END_LIMIT).expect("a minute");
        let mut polled = [PollFd::new(&init, PollFlags::IN)];
        if !poll(&mut polled, Some(&limit)).is_ok_and(|ended| ended > 0) {
            say(&format!(
                "left behind: glusterd and what it has started, process {:?}",
                self.process.pid()
            ));
        }
    }
}

fn in_namespaces(init: Pid, arguments: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg("--target")
        .arg(init.as_raw_nonzero().to_string())
        .args(["--mount", "--net", "--pid", "gluster", "--mode=script"])
        .args(arguments);
    command
}
