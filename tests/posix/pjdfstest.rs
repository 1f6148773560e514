//! The pjdfstest suite on a mount, against a list of failures that may only shrink.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::time::Duration;

use hafs_tests::binaries::{checkout, tool};
use hafs_tests::command::run_within;
use hafs_tests::namespace::private_mounts;
use hafs_tests::requirement;

use crate::Mounted;

const LIST: &str = "tests/posix/pjdfstest_expected_failures.txt";

/// Enough for the suite's 398 tests on a busy machine, ten times over.
const LIMIT: Duration = Duration::from_secs(300);

/// Everything that Linux has. The pause lies above the step of the kernel's coarse clock.
const SETTINGS: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = REMOUNT
[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
"#;

/// The suite needs a second user. It gets one in its own mount namespace; the machine's list of users stays as it is.
const PREPARE: &str =
    "mount --bind \"$1\" /etc/passwd; mount --bind \"$2\" /etc/group; mount -t tmpfs tmpfs \"$3\"";

#[test]
fn pjdfstest() {
    if !requirement::mounts_work("pjdfstest") {
        return;
    }
    let Some(suite) = tool("pjdfstest") else {
        requirement::skipped(
            "pjdfstest",
            "the program is missing: tools/scripts/install-packages test",
        );
        return;
    };
    let mounted = Mounted::new();
    let mut results = run_suite(&mounted, suite.as_os_str(), "");
    // Tests that remount read-only, in a process of their own: others leave files open, which no filesystem remounts.
    results.extend(run_suite(&mounted, suite.as_os_str(), "erofs"));
    mounted.end();

    let failed: BTreeSet<&str> = names(&results, "FAILED");
    let passed: BTreeSet<&str> = names(&results, "ok");
    eprintln!(
        "pjdfstest: {} passed, {} failed of {}",
        passed.len(),
        failed.len(),
        results.len()
    );
    assert!(results.len() > 390, "only {} tests ran", results.len());
    assert!(
        passed.len() * 10 >= results.len() * 9,
        "fewer than 90 % passed; failed: {failed:#?}"
    );

    let list = fs::read_to_string(checkout().join(LIST)).expect("the list is in the checkout");
    let expected = expected(&list);
    let unexpected: Vec<_> = failed.difference(&expected).collect();
    assert!(
        unexpected.is_empty(),
        "failures that are not in {LIST}: {unexpected:#?}"
    );
    let repaired: Vec<_> = expected.difference(&failed).collect();
    assert!(
        repaired.is_empty(),
        "these fail no more (or are no tests); take them out of {LIST}: {repaired:#?}"
    );
}

/// Names of the list: one a line, behind it `#` and the reason.
fn expected(list: &str) -> BTreeSet<&str> {
    let lines = list
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|name| !name.is_empty()).collect()
}

fn names<'a>(results: &'a BTreeMap<String, String>, result: &str) -> BTreeSet<&'a str> {
    results
        .iter()
        .filter(|(_, is)| *is == result)
        .map(|(name, _)| name.as_str())
        .collect()
}

/// Runs the suite's tests with `pattern` in their names on the mount: each with `ok`, `FAILED` or `skipped`.
fn run_suite(mounted: &Mounted, suite: &OsStr, pattern: &str) -> BTreeMap<String, String> {
    let scratch = &mounted.scratch;
    let file = |name: &str, text: String| {
        let path = scratch.join(name);
        fs::write(&path, text).expect("a file in the scratch directory");
        path
    };
    let users = fs::read_to_string("/etc/passwd").expect("there are users");
    let groups = fs::read_to_string("/etc/group").expect("there are groups");
    let users = file(
        "passwd",
        without_tests(&users) + "tests:x:64999:64999::/:/usr/sbin/nologin\n",
    );
    let groups = file("group", without_tests(&groups) + "tests:x:64999:\n");
    let settings = file(
        "pjdfstest.toml",
        SETTINGS.replace("REMOUNT", if pattern == "erofs" { "true" } else { "false" }),
    );
    let second = scratch.dir("second");
    let mut command = private_mounts(
        PREPARE,
        &[users.as_ref(), groups.as_ref(), second.as_ref()],
        suite,
    );
    command
        .arg("-c")
        .arg(settings)
        .arg("-p")
        .arg(mounted.mount.path())
        .arg("-s")
        .arg(second);
    command.arg("--").arg(pattern);
    let ran = run_within(&mut command, LIMIT);
    let results = ran.stdout.lines().filter_map(|line| {
        let (name, result) = line.trim_end().rsplit_once(' ')?;
        let known = ["ok", "FAILED", "skipped"].contains(&result) && name.contains("::");
        known.then(|| (name.trim().to_owned(), result.to_owned()))
    });
    let results: BTreeMap<_, _> = results.collect();
    assert!(!results.is_empty(), "{ran}");
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
    results
}

fn without_tests(lines: &str) -> String {
    lines
        .lines()
        .filter(|line| !line.starts_with("tests:"))
        .map(|line| line.to_owned() + "\n")
        .collect()
}

#[test]
fn the_list_gives_a_reason_for_each_failure() {
    let list = fs::read_to_string(checkout().join(LIST)).expect("the list is in the checkout");
    for line in list.lines().filter(|line| !line.trim().is_empty()) {
        let reason = line.split_once('#').map(|(_, reason)| reason.trim());
        assert!(
            reason.is_some_and(|reason| reason.len() > 10),
            "no reason: {line}"
        );
    }
}
