//! A source tree: unpacked, searched, removed; cloned and looked over by git.

use std::process::Command;
use std::time::Instant;

use super::{AHEAD_OF_BINDFS, Bench, Row, Target, Unit, Workload, where_bytes_are_kept};
use crate::filesystem::subject::{Kind, Subject, drop_caches};

const fn seconds(name: &'static str, targets: &'static [Target]) -> Row {
    Row {
        name,
        unit: Unit::Seconds,
        targets,
    }
}

pub(super) const TREE: Workload = Workload {
    name: "tree",
    rows: &[
        seconds(
            "untar a source tree",
            &[Target::OfNull(0.85), AHEAD_OF_BINDFS],
        ),
        seconds("grep -r, cold", &[AHEAD_OF_BINDFS]),
        seconds("grep -r, warm", &[AHEAD_OF_BINDFS]),
        seconds("rm -rf", &[]),
    ],
    on: super::anywhere,
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
        // The word is on no line, so that all is read; grep then ends with 1.
        let mut command = Command::new("sh");
        command
            .args(["-c", "grep -r no-such-word \"$1\"; [ $? = 1 ]", "sh"])
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
            .args(["-c", "gc.auto=0", "clone", "--quiet", "--no-local"])
            .arg(&bench.tree.git)
            .arg(&dir),
    )?;
    let status = || {
        seconds_of(
            bench,
            Command::new("git")
                .arg("-C")
                .arg(&dir)
                .args(["status", "--porcelain"]),
        )
    };
    drop_caches()?;
    let cold = status()?;
    let warm = status()?;
    Ok(vec![clone, cold, warm])
}

fn seconds_of(bench: &Bench<'_>, command: &mut Command) -> anyhow::Result<f64> {
    let begin = Instant::now();
    bench.output(command)?;
    Ok(begin.elapsed().as_secs_f64())
}
