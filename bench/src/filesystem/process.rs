//! Servers that a run starts: databases, and those of filesystems. Each is ended by its own number when it is dropped.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hafs_tests::command::wait_within;
use rustix::process::{Pid, Signal, kill_process};

use crate::interrupt::{Interrupt, Interrupted};

const START_LIMIT: Duration = Duration::from_secs(60);
const START_LOOK: Duration = Duration::from_millis(20);
/// After the signal that asks for it; then SIGKILL.
const END_LIMIT: Duration = Duration::from_secs(60);
/// Of what a server said, so much is repeated when it fails.
const LAST_WORDS_BYTES: usize = 2000;

/// A running server.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    end: Signal,
}

/// `program`, which the kernel ends when this process ends in whatever way.
pub(crate) fn dying_with_us(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

impl Process {
    /// Starts it, with its output in `log`, and waits until it `is_ready`. `end` is the signal that it ends in good order on.
    pub(crate) fn start(
        interrupt: &Interrupt,
        command: &mut Command,
        log: &Path,
        end: Signal,
        mut is_ready: impl FnMut(Pid) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Self> {
        let output = File::create(log)?;
        let child = command
            .process_group(0) // Ctrl-C is for us
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let mut process = Self { child, end };
        wait_for(interrupt, START_LIMIT, || {
            if let Some(status) = process.child.try_wait()? {
                bail!("it ended with {status}");
            }
            is_ready(process.pid())
        })
        .map_err(|error| {
            if error.is::<Interrupted>() {
                return error;
            }
            error.context(format!("{command:?} said:\n{}", last_words(log)))
        })?;
        Ok(process)
    }

    /// Its number.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process(self.pid(), self.end); // gone already: the wait tells
        if wait_within(&mut self.child, END_LIMIT).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Asks until it is so.
pub(crate) fn wait_for(
    interrupt: &Interrupt,
    limit: Duration,
    mut is_so: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !is_so()? {
        interrupt.check()?;
        if begin.elapsed() > limit {
            bail!("not ready after {limit:?}");
        }
        std::thread::park_timeout(START_LOOK);
    }
    Ok(())
}

/// Those that `pid` started and that still run.
pub(crate) fn children(pid: Pid) -> anyhow::Result<Vec<Pid>> {
    let number = pid.as_raw_nonzero();
    let path = PathBuf::from(format!("/proc/{number}/task/{number}/children"));
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let numbers = text.split_whitespace();
    Ok(numbers
        .filter_map(|number| Pid::from_raw(number.parse().ok()?))
        .collect())
}

fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let from = text.len().saturating_sub(LAST_WORDS_BYTES);
    String::from_utf8_lossy(&text[from..]).into_owned()
}

#[cfg(test)]
mod tests {
    use rustix::process::test_kill_process;

    use super::*;

    #[test]
    fn one_that_ends_at_once_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = dying_with_us("sh");
        command.args(["-c", "echo no such thing; exit 3"]);
        let error = Process::start(
            &Interrupt::default(),
            &mut command,
            &dir.path().join("log"),
            Signal::TERM,
            |_| Ok(false),
        )
        .unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("no such thing") && error.contains("exit status: 3"),
            "{error}"
        );
    }

    #[test]
    fn it_ends_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = dying_with_us("sleep");
        command.arg("600");
        let log = dir.path().join("log");
        let process = Process::start(
            &Interrupt::default(),
            &mut command,
            &log,
            Signal::TERM,
            |_| Ok(true),
        )
        .unwrap();
        let pid = process.pid();
        assert!(test_kill_process(pid).is_ok());
        drop(process);
        assert!(test_kill_process(pid).is_err());
    }
}
