//! The one module that prints: tables and JSON on stdout, refusals and remarks on stderr.
//!
//! Every binary of the crate speaks through it, so that all of them look alike and a closed pipe ends them quietly.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::control::{ApiError, ErrorCode};

/// Between two paintings of a progress bar.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);
/// What terminals understand: to the top left; clear to the end of the line; clear all below.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_REST: &str = "\x1b[J";

/// How a process ends. The numbers are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All well.
    Ok = 0,
    /// Something was refused or failed, or a check found problems.
    Error = 1,
    /// The command line was not understood, or `--yes` is missing.
    Usage = 2,
    /// Fewer in-sync copies than wanted, at least two.
    Degraded = 3,
    /// One in-sync copy where more are wanted, or a volume that is not available.
    AtRisk = 4,
    /// No answer in time; the outcome may be unknown.
    Timeout = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A refusal for people: what did not happen, why, and what to do next. One line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Refusal {
    /// What did not happen.
    pub error: String,
    /// Why.
    pub why: Option<String>,
    /// What to do about it.
    pub next: Option<String>,
    /// How the process ends because of it.
    pub exit: Exit,
}

impl Refusal {
    /// A refusal that ends the process with [`Exit::Error`].
    pub fn new(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            why: None,
            next: None,
            exit: Exit::Error,
        }
    }

    /// Adds the reason.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Ends the process differently.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let exit = if error.code == ErrorCode::TimedOut {
            Exit::Timeout
        } else {
            Exit::Error
        };
        Self {
            error: error.error,
            why: error.why,
            next: error.next,
            exit,
        }
    }
}

/// The whole chain of an error on one line: `cannot open x: permission denied`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Prints `PROGRAM: error`, `why:` and `next:` to stderr, each on one line.
pub fn refusal(program: &str, refusal: &Refusal) {
    remark(&refusal_text(program, refusal));
}

/// The same as text.
pub fn refusal_text(program: &str, refusal: &Refusal) -> String {
    let one_line = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let mut text = format!("{program}: {}", one_line(&refusal.error));
    for (label, part) in [("why", &refusal.why), ("next", &refusal.next)] {
        if let Some(part) = part {
            text.push_str(&format!("\n  {label}: {}", one_line(part)));
        }
    }
    text
}

/// A line on stderr: beside the result, never part of it.
pub fn remark(text: &str) {
    // Nobody is left to tell that stderr is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// How far something long is, on stderr; nothing if that is not a terminal. Gone when dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar for `what`, whose end is not known yet.
    ///
    /// # Panics
    /// Never: the template is a constant.
    pub fn new(what: &str) -> Self {
        let bar = ProgressBar::no_length().with_message(what.to_owned());
        let style = ProgressStyle::with_template(
            "{msg} {elapsed} {wide_bar} {prefix} {percent}% ({eta} left)",
        );
        bar.set_style(style.expect("a template that was tried"));
        bar.enable_steady_tick(PROGRESS_PAUSE);
        Self { bar }
    }

    /// `done` of `total`, in the words of `shown`.
    pub fn set(&self, done: u64, total: u64, shown: String) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_prefix(shown);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Paints the terminal over with `text`. False if nobody looks any more.
pub fn paint(text: &str) -> io::Result<bool> {
    let mut screen = String::from(HOME);
    for line in text.lines() {
        screen.push_str(line);
        screen.push_str(CLEAR_LINE);
        screen.push('\n');
    }
    screen.push_str(CLEAR_REST);
    let mut stdout = io::stdout().lock();
    still_read(
        stdout
            .write_all(screen.as_bytes())
            .and_then(|()| stdout.flush()),
    )
}

/// A line on stdout for somebody who may go away at any time. False if he did.
pub fn line_to_reader(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    still_read(writeln!(stdout, "{text}").and_then(|()| stdout.flush()))
}

fn still_read(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// A line on stdout.
pub fn line(text: impl fmt::Display) -> io::Result<()> {
    quiet_on_closed_pipe(writeln!(io::stdout().lock(), "{text}"))
}

/// An API object on stdout, indented.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    line(text)
}

/// A table: columns by their headings, two spaces between them, no borders.
#[derive(Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it has as many cells as there are headings.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.headings.len(), "a row fits its headings");
        self.rows.push(cells);
    }

    /// Prints it on stdout.
    pub fn print(&self) -> io::Result<()> {
        line(self)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(self.headings.clone());
        table.add_rows(self.rows.iter().cloned());
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines: Vec<String> = table
            .to_string()
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Whoever reads may stop early (`| head`): that is no error.
fn quiet_on_closed_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_plain_and_aligned() {
        let mut table = Table::new(&["VOLUME", "SIZE", "STATE"]);
        table.row(vec!["pg-main".into(), "10 GiB".into(), "open".into()]);
        table.row(vec!["ö".into(), "512 MiB".into(), "failed".into()]);
        assert_eq!(
            table.to_string(),
            "VOLUME   SIZE     STATE\n\
             pg-main  10 GiB   open\n\
             ö        512 MiB  failed"
        );
    }

    #[test]
    fn a_refusal_is_a_line_each() {
        let refusal = Refusal::new("volume `x` does not exist")
            .why("no record\nof it")
            .next("hafsctl volume list");
        assert_eq!(
            refusal_text("hafsctl", &refusal),
            "hafsctl: volume `x` does not exist\n  why: no record of it\n  next: hafsctl volume list"
        );
    }

    #[test]
    fn a_time_out_ends_with_its_own_code() {
        let refusal = Refusal::from(ApiError::new(ErrorCode::TimedOut, "no answer"));
        assert_eq!(refusal.exit, Exit::Timeout);
        let refusal = Refusal::from(ApiError::new(ErrorCode::VolumeNotFound, "no such volume"));
        assert_eq!(refusal.exit, Exit::Error);
    }
}
