//! What a test needs of the machine, and what it says if that is missing.
//!
//! A test begins with `if !mounts_work("what would be tested") { return }`. On a developer's machine it then says loudly what it skips;
//! in CI (the variable `CI` is set) everything is there, and its absence is a failure. Programs that tools/scripts/install-packages
//! installs are there once it has run, as in `make test` (the variable `HAFS_INSTALLED` is set): nobody lacks them by nature.

use std::fs::OpenOptions;
use std::io::Write as _;

use crate::binaries::tool;

/// True for root with a /dev/fuse that opens. Otherwise says that `test` is skipped; in CI, panics.
pub fn mounts_work(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        return skipped(test, "needs root");
    }
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => true,
        Err(error) => skipped(test, &format!("needs /dev/fuse: {error}")),
    }
}

/// True for root. Otherwise says that `test` is skipped; in CI, panics.
pub fn is_root(test: &str) -> bool {
    rustix::process::geteuid().is_root() || skipped(test, "needs root")
}

/// True if the program `name` is on the machine. Otherwise as [`missing`].
pub fn tool_is_there(test: &str, name: &str) -> bool {
    tool(name).is_some() || missing(test, name)
}

/// Says that `test` is skipped, since `what` is missing that tools/scripts/install-packages installs, and answers false. In CI, and
/// where that has run, panics.
pub fn missing(test: &str, what: &str) -> bool {
    assert!(
        std::env::var_os("HAFS_INSTALLED").is_none(),
        "{test}: {what} is missing, though tools/scripts/install-packages has run"
    );
    skipped(
        test,
        &format!("{what} is missing: tools/scripts/install-packages"),
    )
}

/// Says that `test` is skipped and why, and answers false. In CI, panics. Nextest shows nothing of a test that passes: whoever
/// runs the tests can name a file by `HAFS_SKIPPED`, which gets the same lines.
pub fn skipped(test: &str, why: &str) -> bool {
    assert!(
        std::env::var_os("CI").is_none(),
        "CI must not skip a test: {test}: {why}"
    );
    let line = format!("SKIPPED: {test}: {why}\n");
    eprint!("{line}");
    if let Some(list) = std::env::var_os("HAFS_SKIPPED") {
        let list = OpenOptions::new().create(true).append(true).open(list);
        // One write: tests run side by side.
        list.and_then(|mut list| list.write_all(line.as_bytes()))
            .expect("HAFS_SKIPPED names a file");
    }
    false
}
