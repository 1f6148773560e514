//! Other programs, run to their end.

use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use hafs_tests::command::wait_within;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::interrupt::Interrupt;

/// How soon a program under way is ended once a signal came.
const INTERRUPT_LOOK: Duration = Duration::from_millis(200);

/// Runs it; its standard output. For what takes a moment: it is not interrupted.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    judged(command, &output)
}

/// Runs it for what it does.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    output(command).map(drop)
}

/// The same for a program that may take long: when a signal comes, it is killed with all that it has started.
pub(crate) fn output_unless(
    interrupt: &Interrupt,
    command: &mut Command,
) -> anyhow::Result<String> {
    interrupt.check()?;
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let status = loop {
        if let Some(status) = wait_within(&mut child, INTERRUPT_LOOK) {
            break status;
        }
        if let Err(interrupted) = interrupt.check() {
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL); // ended by itself
            child.wait()?;
            return Err(interrupted);
        }
    };
    let said = |reader: thread::JoinHandle<Vec<u8>>| reader.join().expect("reading does not panic");
    let output = Output {
        status,
        stdout: said(stdout),
        stderr: said(stderr),
    };
    judged(command, &output)
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes); // what was read is said, the exit code tells the rest
        bytes
    })
}

fn judged(command: &Command, output: &Output) -> anyhow::Result<String> {
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if !output.status.success() {
        bail!("{command:?}: {}\n{stdout}{stderr}", output.status);
    }
    Ok(stdout.into_owned())
}

/// True if the program can be run.
pub(crate) fn is_here(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// First line of what it says of its version.
pub(crate) fn version(program: &str) -> Option<String> {
    let text = output(Command::new(program).arg("--version")).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::filesystem::process::wait_for;
    use crate::interrupt::Interrupted;

    #[test]
    fn a_program_says_what_it_says_or_why_not() {
        let interrupt = Interrupt::default();
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            output_unless(&interrupt, &mut command)
        };
        assert_eq!(shell("echo a").unwrap(), "a\n");
        let error = shell("echo b; echo c >&2; exit 3").unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("b\nc"),
            "{error}"
        );
    }

    #[test]
    fn a_signal_ends_a_program_and_its_children() {
        let interrupt = Interrupt::default();
        let signalled = interrupt.clone();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("started");
        let started = file.clone();
        let worker = thread::spawn(move || {
            let mut command = Command::new("sh");
            let script = "sleep 600 & echo $! > \"$1.new\"; mv \"$1.new\" \"$1\"; wait";
            command.args(["-c", script, "sh"]);
            output_unless(&interrupt, command.arg(started))
        });
        let patient = Interrupt::default();
        let limit = Duration::from_mins(1);
        wait_for(&patient, limit, || Ok(file.exists())).unwrap();
        signalled.raise(2);
        let error = worker.join().unwrap().unwrap_err();
        assert!(error.is::<Interrupted>(), "{error:#}");
        let child = fs::read_to_string(&file).unwrap();
        let stat = format!("/proc/{}/stat", child.trim());
        let is_gone = || Ok(fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")));
        wait_for(&patient, limit, is_gone).unwrap();
    }
}
