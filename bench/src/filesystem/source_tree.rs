//! A source tree that is the same everywhere: names, depths and sizes as in the Linux sources, content that compresses like
//! text and greps like text.
//!
//! Made once a run as a directory, an uncompressed tar archive and a git repository. Nothing is downloaded.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::command::output_unless;
use crate::interrupt::Interrupt;

/// Files in all, as many as the tree that peers were measured with.
const FILES: u64 = 9_891;
const FILES_A_DIRECTORY: u64 = 14;
/// Of the tree, in the archive too.
const DIRECTORY: &str = "tree";
/// Of git, whatever the user's are.
const SETTINGS: &[&str] = &[
    "-c",
    "user.name=bench",
    "-c",
    "user.email=bench@example.org",
    "-c",
    "gc.auto=0",
];
const WORDS: &[&str] = &[
    "static", "int", "struct", "return", "const", "void", "if", "else", "unsigned", "long",
    "buffer", "inode", "page", "lock", "offset", "length", "error", "flags", "device", "request",
    "queue", "list", "entry", "index", "count",
];

/// The tree in its three forms.
#[derive(Debug)]
pub(crate) struct SourceTree {
    /// An archive of it, below one directory `tree`.
    pub(crate) tar: PathBuf,
    /// A bare git repository with it as its one commit.
    pub(crate) git: PathBuf,
}

impl SourceTree {
    /// Makes it in `aside`; with `divisor` times fewer files.
    pub(crate) fn create(
        interrupt: &Interrupt,
        aside: &Path,
        divisor: u64,
    ) -> anyhow::Result<Self> {
        let dir = aside.join(DIRECTORY);
        write_files(interrupt, &dir, (FILES / divisor).max(20))?;
        let tree = Self {
            tar: aside.join("tree.tar"),
            git: aside.join("tree.git"),
        };
        archive(interrupt, aside, &tree.tar).context("cannot make the archive")?;
        repository(interrupt, &dir, &tree.git).context("cannot make the repository")?;
        fs::remove_dir_all(&dir)?;
        Ok(tree)
    }
}

fn write_files(interrupt: &Interrupt, tree: &Path, files: u64) -> anyhow::Result<()> {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut dir = tree.to_owned();
    for number in 0..files {
        interrupt.check()?;
        if number % FILES_A_DIRECTORY == 0 {
            let group = number / FILES_A_DIRECTORY;
            dir = tree
                .join(format!("drivers-{}", group % 24))
                .join(format!("unit-{group}"));
            if group.is_multiple_of(3) {
                dir = dir.join("include").join("private");
            }
            fs::create_dir_all(&dir)?;
        }
        let suffix = if number % 3 == 0 { "h" } else { "c" };
        let file = dir.join(format!("module_{number}.{suffix}"));
        fs::write(file, numbers.text())?;
    }
    Ok(())
}

fn archive(interrupt: &Interrupt, aside: &Path, tar: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("tar");
    command.arg("-C").arg(aside).arg("-cf").arg(tar);
    output_unless(interrupt, command.arg(DIRECTORY)).map(drop)
}

/// A bare repository with `tree` as its one commit; it leaves a `.git` in there.
fn repository(interrupt: &Interrupt, tree: &Path, bare: &Path) -> anyhow::Result<()> {
    let run = |command: &mut Command| output_unless(interrupt, command).map(drop);
    let git_in = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(SETTINGS).arg("-C").arg(tree);
        run(git.args(arguments))
    };
    git_in(&["init", "--quiet", "--initial-branch=main"])?;
    git_in(&["add", "--all"])?;
    git_in(&["commit", "--quiet", "--message=tree"])?;
    let mut clone = Command::new("git");
    clone.args(["clone", "--quiet", "--bare"]);
    run(clone.arg(tree).arg(bare))
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Half of the files below 4 KiB, one in a hundred above 100 KiB.
    fn length(&mut self) -> usize {
        let bytes = match self.next() % 100 {
            0..50 => 200 + self.next() % 3_900,
            50..85 => 4_096 + self.next() % 12_000,
            85..99 => 16_384 + self.next() % 40_000,
            _ => 100_000 + self.next() % 300_000,
        };
        usize::try_from(bytes).expect("below 400,000")
    }

    fn text(&mut self) -> String {
        let length = self.length();
        let mut text = String::with_capacity(length + 64);
        while text.len() < length {
            for _ in 0..1 + self.next() % 9 {
                let number = self.next();
                let word = WORDS[usize::try_from(number % WORDS.len() as u64).expect("an index")];
                let _ = write!(text, "{word}_{} ", (number >> 32) % 1000); // a String takes everything
            }
            text.push('\n');
        }
        text
    }
}
