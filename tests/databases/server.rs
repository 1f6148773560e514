//! A database server of an ordinary user, which ends as a whole.
//!
//! It is the first process of a PID namespace: SIGKILL for it is SIGKILL for all that it has started, at one moment, as if
//! the machine had lost power for it; and nothing of it is left behind. It has an IPC namespace too, so that its
//! shared memory goes with it.

use std::io::pipe;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use hafs_tests::command::{code, wait_within};
use rustix::process::{Pid, Signal, kill_process};

use crate::lines::{LIMIT, Lines};

/// The ordinary user that servers run as.
pub(crate) const USER: u32 = 1000;

/// A running server. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Server {
    /// `unshare`, which ends once its child has, and with it the whole namespace.
    outer: Child,
    lines: Lines,
}

/// A command that runs as [`USER`].
pub(crate) fn as_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    let user = USER.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
    // After the change of user, which clears it: the program ends with whoever started it.
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.env("HOME", "/nonexistent").current_dir("/");
    command
}

impl Server {
    /// Starts `command` and waits until it says that it is ready.
    ///
    /// # Panics
    /// If it ends before.
    #[track_caller]
    pub(crate) fn start(command: &Command, ready: &str) -> Self {
        let (reader, writer) = pipe().expect("a pipe");
        let mut outer = Command::new("setpriv");
        outer
            .args(["--pdeathsig", "KILL", "--", "unshare", "--pid", "--ipc"])
            .args(["--fork", "--kill-child", "--"])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir("/")
            .stdin(Stdio::null())
            .stderr(writer.try_clone().expect("dup"))
            .stdout(writer);
        let mut server = Self {
            outer: outer.spawn().expect("setpriv starts"),
            lines: Lines::of(reader),
        };
        drop(outer); // it holds the pipe's other end
        if let Err(said) = server.lines.until(|line| line.contains(ready)) {
            panic!("{command:?} ended before it was ready:\n{said}");
        }
        server
    }

    /// True if it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.outer.try_wait().expect("wait").is_some()
    }

    /// SIGKILL for all of it; waits until nothing of it is left.
    pub(crate) fn kill(mut self) {
        self.end_by_force();
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Panics
    /// If it ends with another code than 0.
    pub(crate) fn stop(mut self, signal: Signal) {
        let first = self.first().expect("a server that runs");
        kill_process(first, signal).expect("it is there");
        let status = self.wait();
        assert!(
            status.success(),
            "the server ended with {}:\n{}",
            code(status),
            self.lines.rest()
        );
    }

    fn wait(&mut self) -> ExitStatus {
        let ended = wait_within(&mut self.outer, LIMIT);
        ended.unwrap_or_else(|| panic!("the server still runs after {LIMIT:?}"))
    }

    /// The namespace's first process, if `unshare` has it still.
    fn first(&self) -> Option<Pid> {
        let pid = self.outer.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        Pid::from_raw(children.trim().parse().ok()?)
    }

    fn end_by_force(&mut self) {
        if self.has_ended() {
            return;
        }
        match self.first() {
            // `unshare` waits for it, and the kernel lets it end only after the rest of the namespace.
            Some(first) => {
                let _ = kill_process(first, Signal::KILL); // it may have ended just now
            }
            None => {
                let _ = self.outer.kill(); // nothing was started yet
            }
        }
        self.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end_by_force();
    }
}
