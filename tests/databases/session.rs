//! A database's own command-line client as a process beside the test: SQL in, lines out.
//!
//! psql and sqlite3 do what a driver would, and no dependency is needed. Both end at the first error; what they said then is the
//! error.

use std::io::{Write, pipe};
use std::process::{Child, ChildStdin, Command, Stdio};

use hafs_tests::command::wait_within;
use rustix::process::Pid;

use crate::lines::{LIMIT, Lines};

/// A client that waits for SQL. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Session {
    child: Child,
    input: ChildStdin,
    lines: Lines,
    asked: u64,
}

impl Session {
    /// Starts a client that reads SQL from its standard input and ends at the first error.
    pub(crate) fn start(mut command: Command) -> Self {
        let (reader, writer) = pipe().expect("a pipe");
        command
            .stdin(Stdio::piped())
            .stderr(writer.try_clone().expect("dup"))
            .stdout(writer);
        let mut child = command.spawn().expect("the client starts");
        let input = child.stdin.take().expect("piped");
        Self {
            child,
            input,
            lines: Lines::of(reader),
            asked: 0,
        }
    }

    /// Has `sql` carried out; its rows, fields separated by `|`. `Err` with what was said if the client has ended.
    pub(crate) fn ask(&mut self, sql: &str) -> Result<Vec<String>, String> {
        self.asked += 1;
        let end = format!("done {}", self.asked);
        // If the client has ended, reading says why.
        let _ = writeln!(self.input, "{sql}\nSELECT '{end}';").and_then(|()| self.input.flush());
        self.lines.until(|line| line == end)
    }

    /// The one number that `sql` answers with.
    pub(crate) fn number(&mut self, sql: &str) -> Result<u64, String> {
        let rows = self.ask(sql)?;
        match rows.as_slice() {
            [row] => row.parse().map_err(|_| format!("{sql}: {row}")),
            _ => Err(format!("{sql}: {rows:?}")),
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let ended = wait_within(&mut self.child, LIMIT);
        assert!(ended.is_some(), "SIGKILL ends a process");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}
