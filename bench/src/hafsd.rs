//! The hafsd that is measured: what it says of itself.

use std::process::Command;

use hafs_tests::binaries::program;
use hafs_tests::{Daemon, run};

/// Its version, in its own words: it may be of another build than this program.
pub(crate) fn version() -> String {
    let said = run(Command::new(program("hafsd")).arg("--version"));
    said.ok().stdout.trim().to_owned()
}

/// What it has logged so far as a warning or an error.
pub(crate) fn complaints(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let bad = log
        .lines()
        .filter(|line| !line.contains("\"level\":\"INFO\""));
    bad.map(str::to_owned).collect()
}
