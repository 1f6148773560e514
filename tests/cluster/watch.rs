//! `--watch` and progress: what a terminal, a pipe and a script see, and how it ends.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hafs_tests::binaries::program;
use hafs_tests::command::{code, wait_within};
use hafs_tests::{Daemon, Scratch, requirement, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
/// How often each command is interrupted: a signal that counts only while something waits for it is missed now and then.
const INTERRUPTS: usize = 20;

fn watching(daemon: &Daemon, arguments: &[&str]) -> (Child, impl BufRead) {
    let mut child = Command::new(program("hafsctl"))
        .arg("--socket")
        .arg(daemon.socket())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("hafsctl starts");
    let lines = BufReader::new(child.stdout.take().expect("piped"));
    (child, lines)
}

fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).expect("a pipe");
    line
}

#[test]
fn a_script_gets_a_document_a_line_until_it_has_enough() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    let (mut child, mut lines) =
        watching(&daemon, &["volume", "list", "--watch=0.1", "-o", "json"]);
    let first: Value = serde_json::from_str(&line(&mut lines)).expect("a document a line");
    assert_eq!(first["volumes"], Value::Array(Vec::new()));
    daemon.create_volume("v");
    let mut seen = false;
    for _ in 0..1000 {
        let document: Value = serde_json::from_str(&line(&mut lines)).expect("a document a line");
        seen = document["volumes"][0]["name"] == "v" && document["volumes"][0]["state"] == "open";
        if seen {
            break;
        }
    }
    assert!(seen, "the new volume is never told");
    // Nobody reads any more.
    drop(lines);
    let status = wait_within(&mut child, LIMIT).expect("it ends");
    assert_eq!(code(status), 0);
    daemon.stop();
}

#[test]
fn an_interrupt_ends_it_well() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    for command in [
        vec!["status"],
        vec!["replica", "status"],
        vec!["volume", "list"],
    ] {
        let mut arguments = command.clone();
        arguments.push("--watch=0.1");
        // At any moment, also between two waits: as soon as it is seen to have begun.
        for _ in 0..INTERRUPTS {
            let (mut child, mut lines) = watching(&daemon, &arguments);
            assert!(!line(&mut lines).is_empty(), "{command:?}");
            kill_process(Pid::from_child(&child), Signal::INT).unwrap();
            let status = wait_within(&mut child, LIMIT).expect("it ends");
            assert_eq!(code(status), 0, "{command:?}");
        }
    }
    let wrong = daemon.ctl(&["status", "--watch=never"]);
    wrong.refused(2, &["never", "seconds"]);
    daemon.stop();
}

#[test]
fn a_terminal_is_painted_over_and_a_check_shows_how_far_it_is() {
    if !requirement::tool_is_there("what a terminal sees", "script") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    // In place of the shell that `script` starts: a ^C is for all of the terminal's foreground, and not every /bin/sh waits for
    // a program that ends well.
    let hafsctl = format!(
        "exec {} --socket {}",
        program("hafsctl").display(),
        daemon.socket().display()
    );
    let mut child = Command::new("timeout") // the bound: then the pipe ends
        .args(["-s", "KILL", &LIMIT.as_secs().to_string()])
        .args([
            "script",
            "-qec",
            &format!("{hafsctl} volume list --watch=0.2"),
            "/dev/null",
        ])
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script starts");
    let mut pipe = child.stdout.take().expect("piped");
    let (mut seen, mut part) = (String::new(), [0; 4096]);
    while seen.matches("\x1b[H").count() < 2 {
        let len = pipe.read(&mut part).expect("a pipe");
        assert!(len > 0, "painted less than twice within {LIMIT:?}: {seen}");
        seen += &String::from_utf8_lossy(&part[..len]);
    }
    assert!(seen.contains("\x1b[J"), "{seen}");
    // ^C, typed.
    let mut keys = child.stdin.take().expect("piped");
    keys.write_all(&[3]).expect("a pipe");
    pipe.read_to_string(&mut seen).expect("a pipe");
    let status = wait_within(&mut child, LIMIT).expect("it ends");
    assert_eq!(code(status), 0, "{seen}");
    let check = format!("{hafsctl} volume check v");
    let ran = run(Command::new("script").args(["-qec", &check, "/dev/null"])).ok();
    assert!(ran.stdout.contains("clean"), "{ran}");
    daemon.stop();
}
