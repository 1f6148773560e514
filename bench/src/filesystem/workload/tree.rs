//! A source tree: unpacked, searched, removed; cloned and looked over by git.

use std::process::Command;
use std::time::Instant;

use super::{
    AHEAD_OF_BINDFS, Bench, OF_NULL_AHEAD_OF_BINDFS, Workload, anywhere, seconds,
    where_bytes_are_kept,
};
use crate::filesystem::subject::{Kind, Subject};
use crate::machine::drop_caches;

/// On no line of the tree, so that all of it is read.
const WORD: &str = "no-such-word";
const CLONE: &[&str] = &["-c", "gc.auto=0", "clone", "--quiet", "--no-local"];
const STATUS: &[&str] = &["status", "--porcelain"];

pub(super) const TREE: Workload = Workload {
    name: "tree",
    rows: &[
        seconds("untar a source tree", OF_NULL_AHEAD_OF_BINDFS),
        seconds("grep -r, cold", &[AHEAD_OF_BINDFS]),
        seconds("grep -r, warm", &[AHEAD_OF_BINDFS]),
        seconds("rm -rf", &[]),
    ],
    on: anywhere,
    run: tree,
};

pub(super) const GIT: Workload = Workload {
    name: "git",
    rows: &[
        seconds("git clone", &[]),
        seconds("git status, cold", &[]),
        seconds("git status, warm", &[]),
    ],
    on: where_bytes_are_kept,
    run: git,
};

fn tree(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let dir = subject.fresh_dir("tree")?;
    drop_caches()?;
    let untar = seconds_of(
        bench,
        Command::new("tar")
            .arg("-C")
            .arg(&dir)
            .arg("-xf")
            .arg(&bench.tree.tar),
    )?;
    // The null filesystem gives back zeros, which grep skips.
    let grep = || -> anyhow::Result<f64> {
        if subject.kind() == Kind::Null {
            return Ok(f64::NAN);
        }
        // Without a line to show, grep ends with 1.
        let mut command = Command::new("sh");
        command
            .args(["-c", "grep -r \"$1\" \"$2\"; [ $? = 1 ]", "sh", WORD])
            .arg(&dir);
        seconds_of(bench, &mut command)
    };
    drop_caches()?;
    let cold = grep()?;
    let warm = grep()?;
    let remove = seconds_of(bench, Command::new("rm").arg("-rf").arg(dir.join("tree")))?;
    Ok(vec![untar, cold, warm, remove])
}

fn git(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let dir = subject.fresh_dir("git")?.join("clone");
    drop_caches()?;
    let clone = seconds_of(
        bench,
        Command::new("git")
            .args(CLONE)
            .arg(&bench.tree.git)
            .arg(&dir),
    )?;
    let status = || seconds_of(bench, Command::new("git").arg("-C").arg(&dir).args(STATUS));
    drop_caches()?;
    let cold = status()?;
    let warm = status()?;
    Ok(vec![clone, cold, warm])
}

/// How the programs are run, for those who read the figures.
pub(super) fn options() -> [(&'static str, String); 2] {
    let git = format!("git {}, git {}", CLONE.join(" "), STATUS.join(" "));
    [
        ("grep", format!("grep -r {WORD}, which no file holds")),
        ("git", git),
    ]
}

fn seconds_of(bench: &Bench<'_>, command: &mut Command) -> anyhow::Result<f64> {
    let begin = Instant::now();
    bench.output(command)?;
    Ok(begin.elapsed().as_secs_f64())
}
