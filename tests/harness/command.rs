//! Runs a program to its end, within a bound.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// No program of a test takes longer, unless it says so.
const LIMIT: Duration = Duration::from_secs(120);

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Ran {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; 128 + signal if a signal ended it, as shells have it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Itself, if the program ended with 0.
    ///
    /// # Panics
    /// If not, with all it said.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.code == 0, "{self}");
        self
    }

    /// Itself, if it ended with `code` and its standard error holds each of `words`.
    ///
    /// # Panics
    /// If not, with all it said.
    #[track_caller]
    pub fn refused(self, code: i32, words: &[&str]) -> Self {
        assert!(
            self.code == code,
            "exit code {} instead of {code}: {self}",
            self.code
        );
        for word in words {
            assert!(self.stderr.contains(word), "no `{word}` in: {self}");
        }
        assert!(!self.stderr.contains("panicked"), "{self}");
        self
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            command,
            code,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "`{command}` ended with {code}\nstdout: {stdout}\nstderr: {stderr}"
        )
    }
}

/// Runs `command` to its end; input is empty, output is kept.
///
/// # Panics
/// If it does not start, or does not end within two minutes.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    run_within(command, LIMIT)
}

/// The same with another bound.
///
/// # Panics
/// If it does not start, or does not end in time.
#[track_caller]
pub fn run_within(command: &mut Command, limit: Duration) -> Ran {
    let line = format!("{command:?}");
    let spawned = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.unwrap_or_else(|error| panic!("cannot start {line}: {error}"));
    let (stdout, stderr) = (
        child.stdout.take().expect("piped"),
        child.stderr.take().expect("piped"),
    );
    let readers = [collect(stdout), collect(stderr)];
    let Some(status) = wait_within(&mut child, limit) else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{line} did not end within {limit:?}");
    };
    let [stdout, stderr] =
        readers.map(|reader| reader.join().expect("reading output does not panic"));
    Ran {
        command: line,
        code: code(status),
        stdout,
        stderr,
    }
}

/// Waits until `child` has ended; `None` after `limit`.
///
/// # Panics
/// If the system refuses to wait.
pub fn wait_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    if let Some(status) = child.try_wait().expect("wait") {
        return Some(status);
    }
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("pidfd");
    let limit = Timespec::try_from(limit).expect("a bound below centuries");
    let ended = loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            ended => break ended.expect("poll"),
        }
    };
    (ended > 0).then(|| child.wait().expect("it has ended"))
}

/// An exit status as shells have it.
pub fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().expect("ended by code or signal"))
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read: io::Result<usize> = from.read_to_end(&mut bytes);
        read.expect("a pipe");
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
