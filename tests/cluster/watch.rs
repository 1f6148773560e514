//! `--watch` and progress: what a terminal, a pipe and a script see, and how it ends.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hafs_tests::binaries::program;
use hafs_tests::command::{code, wait_within};
use hafs_tests::{Daemon, Launch, Ran, Scratch, requirement, run};
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

/// A command as it runs on a terminal of 120 columns; what the terminal gets is `stdout`.
fn on_terminal(command: &str) -> Ran {
    let command = format!("stty cols 120 rows 24; {command}");
    run(Command::new("script")
        .env("TERM", "xterm")
        .args(["-qec", &command, "/dev/null"]))
}

#[test]
fn a_long_check_shows_on_a_terminal_how_far_it_is_and_nowhere_else() {
    let test = "the progress of a check";
    if !requirement::mounts_work(test) || !requirement::tool_is_there(test, "script") {
        return;
    }
    let scratch = Scratch::new();
    // A tenth of a second for each inode: long enough to be painted several times.
    let daemon = Launch::new(scratch.path())
        .variable("FAILPOINTS", "check-progress=sleep(100)")
        .start();
    daemon.create_volume("v");
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    for n in 0..20 {
        File::create(mount.join(&n.to_string())).unwrap();
    }
    let check = format!(
        "{} --socket {} volume check v",
        program("hafsctl").display(),
        daemon.socket().display()
    );
    let result = scratch.join("result");
    let shown = on_terminal(&format!("{check} > {}", result.display())).ok();
    for part in ["checking v", " of 21 inodes", "% (", "s left)"] {
        assert!(shown.stdout.contains(part), "no `{part}` in {shown}");
    }
    let counts: BTreeSet<&str> = (shown.stdout.split(" of 21 inodes"))
        .filter_map(|before| before.rsplit(' ').next())
        .collect();
    assert!(counts.len() > 3, "it does not move: {counts:?} in {shown}");
    // Taken away at the end: what stays is a line that is empty, or cleared.
    let last = shown.stdout.rsplit('\r').next().unwrap_or_default();
    assert!(!last.contains("inodes"), "{shown:?}");
    let text = fs::read_to_string(&result).unwrap();
    assert!(
        text.starts_with("v: clean: 21 inodes") && text.lines().count() == 1,
        "{text}"
    );

    let errors = scratch.join("errors");
    let shown = on_terminal(&format!("{check} 2> {}", errors.display())).ok();
    assert!(shown.stdout.starts_with("v: clean: 21 inodes"), "{shown}");
    assert_eq!(fs::read_to_string(&errors).unwrap(), "");
    let piped = daemon.ctl(&["volume", "check", "v"]).ok();
    assert!(piped.stdout.starts_with("v: clean: 21 inodes"), "{piped}");
    assert_eq!(piped.stderr, "", "nobody sees a bar there");
    mount.unmount();
    daemon.stop();
}

#[test]
fn a_terminal_is_painted_over() {
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
    daemon.stop();
}
