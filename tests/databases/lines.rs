//! Lines that another program writes, each waited for within a bound.

use std::io::{BufRead, BufReader, PipeReader};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// No answer takes longer, even of a recovery on a machine that does a lot besides, or of a writer whom the others starve.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// Lines that are kept for whoever does not read yet.
const QUEUE_LINES_MAX: usize = 100_000;

/// The lines of a pipe.
#[derive(Debug)]
pub(crate) struct Lines {
    lines: Receiver<String>,
}

impl Lines {
    pub(crate) fn of(pipe: PipeReader) -> Self {
        let (sender, lines) = sync_channel(QUEUE_LINES_MAX);
        // It ends when the last writer closes the pipe.
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { lines }
    }

    /// Lines up to the first that `last` accepts; `Err` with them if the other program ends first.
    ///
    /// # Panics
    /// If nothing comes within [`LIMIT`].
    pub(crate) fn until(&mut self, last: impl Fn(&str) -> bool) -> Result<Vec<String>, String> {
        let deadline = Instant::now() + LIMIT;
        let mut read = Vec::new();
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) if last(&line) => return Ok(read),
                Ok(line) => read.push(line),
                Err(RecvTimeoutError::Disconnected) => return Err(read.join("\n")),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no answer within {LIMIT:?} after:\n{}", read.join("\n"))
                }
            }
        }
    }

    /// All lines up to the end.
    pub(crate) fn rest(&mut self) -> String {
        match self.until(|_| false) {
            Err(rest) => rest,
            Ok(_) => unreachable!("no line is the last"),
        }
    }
}
