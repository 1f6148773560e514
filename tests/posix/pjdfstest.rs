//! The pjdfstest suite on a mount: nothing fails, and what it skips is on a list with reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::process::Command;
use std::time::Duration;

use hafs_tests::binaries::{checkout, program, tool};
use hafs_tests::command::run_within;
use hafs_tests::namespace::private_mounts;
use hafs_tests::{requirement, run};

use crate::Mounted;

const SETTINGS: &str = "tests/posix/pjdfstest.toml";
const SKIPPED: &str = "tests/posix/pjdfstest_skipped.txt";

/// What ext4 passes with the same settings.
const PASSED_MIN: usize = 383;

/// Features that pjdfstest knows and Linux has not.
const NOT_OF_LINUX: [&str; 3] = ["chflags", "chflags_sf_snapshot", "nfsv4_acls"];

/// Enough for the suite's 398 tests on a busy machine, ten times over.
const LIMIT: Duration = Duration::from_secs(300);

/// The suite needs a second user. It gets one in its own mount namespace; the machine's list of users stays as it is. There too
/// is the mount helper in /sbin, where mount(8) looks for it when the suite remounts.
const PREPARE: &str = "mount --bind \"$1\" /etc/passwd; mount --bind \"$2\" /etc/group; mount -t tmpfs tmpfs \"$3\"\n\
     sbin=$(readlink -f /sbin); mount -t overlay overlay -o lowerdir=\"$4:$sbin\" \"$sbin\"";

/// A line of a test's result: what stands behind its name.
const RESULTS: [&str; 5] = [
    "ok",
    "FAILED",
    "skipped",
    "PASSED UNEXPECTEDLY",
    "failed as expected",
];

#[test]
fn pjdfstest() {
    if !requirement::mounts_work("pjdfstest") {
        return;
    }
    let Some(suite) = tool("pjdfstest") else {
        requirement::missing("pjdfstest", "pjdfstest");
        return;
    };
    let settings = read(SETTINGS);
    all_features_are_on(suite.as_os_str(), &settings);
    for mounted in Mounted::in_both_modes() {
        run_all(mounted, suite.as_os_str(), &settings);
    }
}

/// Runs the suite on a mount and judges it.
fn run_all(mounted: Mounted, suite: &OsStr, settings: &str) {
    // Tests that remount read-only run in a process of their own: others leave files open, which no filesystem remounts.
    let (remount, none) = ("allow_remount = true", "allow_remount = false");
    assert!(settings.contains(remount));
    let mut results = run_suite(&mounted, suite, &settings.replace(remount, none), "");
    results.extend(run_suite(&mounted, suite, settings, "erofs"));
    mounted.end();

    let with = |result: &str| -> BTreeSet<&str> {
        let those = results.iter().filter(|(_, is)| *is == result);
        those.map(|(name, _)| name.as_str()).collect()
    };
    let (passed, skipped) = (with("ok"), with("skipped"));
    eprintln!(
        "pjdfstest: {} passed, {} skipped of {}",
        passed.len(),
        skipped.len(),
        results.len()
    );
    let others: Vec<_> = results
        .iter()
        .filter(|(_, is)| !["ok", "skipped"].contains(&is.as_str()))
        .collect();
    assert!(others.is_empty(), "these failed: {others:#?}");
    assert!(
        passed.len() >= PASSED_MIN,
        "only {} passed, ext4 passes {PASSED_MIN}",
        passed.len()
    );
    let list = read(SKIPPED);
    assert_eq!(skipped, listed(&list), "left: skipped; right: {SKIPPED}");
}

/// The settings switch on every feature that the program knows, save those of other systems.
fn all_features_are_on(suite: &OsStr, settings: &str) {
    let list = run(Command::new(suite).arg("--list-features")).ok().stdout;
    let known: Vec<&str> = list
        .lines()
        .filter_map(|line| line.split_once(": ").map(|(name, _)| name))
        .collect();
    assert!(known.len() >= 8, "{list}");
    for name in known {
        let on = settings
            .lines()
            .any(|line| line == format!("{name} = {{}}"));
        let wanted = !NOT_OF_LINUX.contains(&name);
        assert_eq!(on, wanted, "feature {name} in {SETTINGS}");
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(checkout().join(path)).expect("it is in the checkout")
}

/// Names of the list: one a line, behind it `#` and the reason.
fn listed(list: &str) -> BTreeSet<&str> {
    let lines = list
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|name| !name.is_empty()).collect()
}

/// Runs the suite's tests with `pattern` in their names on the mount: each with its result.
fn run_suite(
    mounted: &Mounted,
    suite: &OsStr,
    settings: &str,
    pattern: &str,
) -> BTreeMap<String, String> {
    let scratch = &mounted.scratch;
    let file = |name: &str, text: &str| {
        let path = scratch.join(name);
        fs::write(&path, text).expect("a file in the scratch directory");
        path
    };
    let users = fs::read_to_string("/etc/passwd").expect("there are users");
    let groups = fs::read_to_string("/etc/group").expect("there are groups");
    let users = without_tests(&users) + "tests:x:64999:64999::/:/usr/sbin/nologin\n";
    let groups = without_tests(&groups) + "tests:x:64999:\n";
    let (users, groups) = (file("passwd", &users), file("group", &groups));
    let settings = file("pjdfstest.toml", settings);
    let (second, sbin) = (scratch.dir("second"), scratch.dir("sbin"));
    fs::copy(program("mount-fuse-hafs"), sbin.join("mount.fuse.hafs")).expect("a copy");
    let prepared = [&users, &groups, &second, &sbin].map(|path| path.as_os_str());
    let mut command = private_mounts(PREPARE, &prepared, suite);
    command
        .arg("-c")
        .arg(settings)
        .arg("-p")
        .arg(mounted.mount.path())
        .arg("-s")
        .arg(second);
    command.arg("--").arg(pattern);
    let ran = run_within(&mut command, LIMIT);
    let results: BTreeMap<_, _> = ran.stdout.lines().filter_map(result).collect();
    for line in ran
        .stdout
        .lines()
        .skip_while(|line| !line.ends_with("FAILED"))
    {
        // The reasons, for whoever reads a failure.
        if line.ends_with("FAILED") || line.starts_with('\t') {
            eprintln!("{line}");
        }
    }
    // The program counts too: a line that was not understood would be missing here.
    let total = format!(" {} total", results.len());
    assert!(ran.stdout.trim_end().ends_with(&total), "not{total}: {ran}");
    results
}

/// Name and result of a test, from a line of the program.
fn result(line: &str) -> Option<(String, String)> {
    let line = line.trim_end();
    RESULTS.iter().find_map(|result| {
        let name = line.strip_suffix(result)?.trim();
        (name.contains("::") && !name.contains(' '))
            .then(|| (name.to_owned(), (*result).to_owned()))
    })
}

fn without_tests(lines: &str) -> String {
    lines
        .lines()
        .filter(|line| !line.starts_with("tests:"))
        .map(|line| line.to_owned() + "\n")
        .collect()
}

#[test]
fn the_list_gives_a_reason_for_each_skip() {
    for line in read(SKIPPED).lines().filter(|line| !line.trim().is_empty()) {
        let reason = line.split_once('#').map(|(_, reason)| reason.trim());
        assert!(
            reason.is_some_and(|reason| reason.len() > 10),
            "no reason: {line}"
        );
    }
}
