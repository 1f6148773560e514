//! The long run, `make stress`: every filesystem stressor of stress-ng, and dbench, on a mount. Afterwards hafsd lives, has
//! warned of nothing, and the volume is clean.
//!
//! - `HAFS_STRESS_SECONDS`: how long each stressor runs (3).

use std::process::Command;
use std::time::Duration;

use hafs_tests::binaries::tool;
use hafs_tests::command::run_within;
use hafs_tests::requirement;

use crate::Mounted;

/// Some ninety stressors, and what they take to clean up after themselves.
const LIMIT: Duration = Duration::from_secs(3600);

/// Stressors of that class that test no filesystem under a directory, but mounts and the kernel's own filesystems.
const ELSEWHERE: &str = "bind-mount,binderfs,procfs";

fn seconds() -> u64 {
    let seconds = std::env::var("HAFS_STRESS_SECONDS").ok();
    seconds.map_or(3, |seconds| {
        seconds.parse().expect("HAFS_STRESS_SECONDS is a number")
    })
}

#[test]
#[ignore = "minutes: make stress"]
fn stress_ng() {
    if !requirement::mounts_work("stress-ng") {
        return;
    }
    let Some(program) = tool("stress-ng") else {
        requirement::missing("stress-ng", "stress-ng");
        return;
    };
    let mounted = Mounted::with("20GiB", "");
    let mut stress = Command::new(program);
    stress.args([
        "--class",
        "filesystem",
        "--seq",
        "2",
        "--verify",
        "--metrics-brief",
    ]);
    stress.args(["--exclude", ELSEWHERE, "--timeout", &seconds().to_string()]);
    stress.arg("--temp-path").arg(mounted.mount.path());
    let ran = run_within(&mut stress, LIMIT);
    let said = ran.stdout.clone() + &ran.stderr;
    let complaints: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("fail:") || line.contains("error:"))
        .collect();
    eprintln!("{said}");
    // 4: a stressor is not for this machine; it says so.
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(
        [0, 4].contains(&ran.code),
        "stress-ng ended with {}",
        ran.code
    );
    mounted.end();
}

#[test]
#[ignore = "minutes: make stress"]
fn dbench() {
    if !requirement::mounts_work("dbench") {
        return;
    }
    let Some(program) = tool("dbench") else {
        requirement::missing("dbench", "dbench");
        return;
    };
    let mounted = Mounted::with("20GiB", "");
    for synced in [false, true] {
        let mut dbench = Command::new(&program);
        dbench.args(["--timelimit", &(10 * seconds()).to_string()]);
        dbench.arg("--directory").arg(mounted.mount.path());
        if synced {
            dbench.arg("--fsync");
        }
        let ran = run_within(dbench.arg("8"), LIMIT).ok();
        let result = ran
            .stdout
            .lines()
            .rfind(|line| line.starts_with("Throughput"));
        eprintln!("{}", result.expect("dbench gives its throughput"));
    }
    mounted.end();
}
