//! The third writer: one strict sequence of all kinds of changes on a small tree, beside a model of it.
//!
//! Create, write, truncate, rename (also over a file, also of directories), link, unlink, mkdir, rmdir, extended attributes and modes:
//! each step depends on those before it, so a state is some prefix of them or none. What is found is compared with the model
//! after each number of steps.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use hafs_tests::numbers::Numbers;
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

use crate::history::{Clock, Held, History, Lost};
use crate::writer::{Aligned, BLOCK, End, Pace, Stopped, Writer, block, number_of, sync};

const NAMES_MAX: usize = 40;
const DIRS_MAX: usize = 4;
/// Blocks of a file.
const BLOCKS_MAX: u64 = 12;
const XATTR: &str = "user.number";
const SYNC_ONCE_IN: u64 = 14;

/// The tree: what each path names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tree {
    names: BTreeMap<String, u64>,
    nodes: BTreeMap<u64, Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File {
        /// Which step wrote each block.
        blocks: Vec<u64>,
        mode: u32,
        /// Which step set the attribute.
        xattr: u64,
    },
    Directory,
}

/// A tree without numbers of nodes: each path with all paths of the same node.
type Seen = BTreeMap<String, (Vec<String>, Node)>;

#[derive(Debug, Clone)]
enum Op {
    Create(String),
    Write(String, u64),
    Truncate(String, u64),
    Rename(String, String),
    Link(String, String),
    Unlink(String),
    Mkdir(String),
    Rmdir(String),
    SetXattr(String),
    Chmod(String, u32),
}

impl Tree {
    fn file(&mut self, path: &str) -> (&mut Vec<u64>, &mut u32, &mut u64) {
        let node = self.nodes.get_mut(&self.names[path]).expect("named");
        match node {
            Node::File {
                blocks,
                mode,
                xattr,
            } => (blocks, mode, xattr),
            Node::Directory => panic!("{path} is a directory"),
        }
    }

    fn add(&mut self, path: &str, number: u64, node: Node) {
        self.nodes.insert(number, node);
        self.names.insert(path.to_owned(), number);
    }

    fn apply(&mut self, op: &Op, number: u64) {
        match op {
            Op::Create(path) => {
                let node = Node::File {
                    blocks: Vec::new(),
                    mode: 0o640,
                    xattr: 0,
                };
                self.add(path, number, node);
            }
            Op::Mkdir(path) => self.add(path, number, Node::Directory),
            Op::Write(path, at) => {
                let at = usize::try_from(*at).expect("few");
                let blocks = self.file(path).0;
                blocks.resize(blocks.len().max(at + 1), 0);
                blocks[at] = number;
            }
            Op::Truncate(path, len) => {
                let len = usize::try_from(*len).expect("few");
                self.file(path).0.resize(len, 0);
            }
            Op::SetXattr(path) => *self.file(path).2 = number,
            Op::Chmod(path, mode) => *self.file(path).1 = *mode,
            Op::Link(path, new) => {
                let node = self.names[path];
                self.names.insert(new.clone(), node);
            }
            Op::Unlink(path) | Op::Rmdir(path) => {
                self.names.remove(path);
            }
            Op::Rename(from, to) => {
                let inside = format!("{from}/");
                let moved: Vec<String> = self
                    .names
                    .keys()
                    .filter(|path| *path == from || path.starts_with(&inside))
                    .cloned()
                    .collect();
                for path in moved {
                    let node = self.names.remove(&path).expect("just listed");
                    self.names
                        .insert(format!("{to}{}", &path[from.len()..]), node);
                }
            }
        }
    }

    fn seen(&self) -> Seen {
        let mut paths: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (path, node) in &self.names {
            paths.entry(*node).or_default().push(path.clone());
        }
        let names = self.names.iter();
        names
            .map(|(path, node)| {
                let what = (paths[node].clone(), self.nodes[node].clone());
                (path.clone(), what)
            })
            .collect()
    }

    fn is_file(&self, path: &str) -> bool {
        matches!(self.nodes[&self.names[path]], Node::File { .. })
    }

    /// Reads what is there.
    fn read(dir: &Path) -> Result<Self, Lost> {
        let mut tree = Self::default();
        let mut todo = vec![String::new()];
        while let Some(at) = todo.pop() {
            let list = fs::read_dir(dir.join(&at)).map_err(|error| format!("{at}: {error}"))?;
            for entry in list {
                let entry = entry.map_err(|error| format!("{at}: {error}"))?;
                let path = format!("{at}{}", entry.file_name().display());
                let metadata = entry
                    .metadata()
                    .map_err(|error| format!("{path}: {error}"))?;
                let node = if metadata.is_dir() {
                    todo.push(format!("{path}/"));
                    Node::Directory
                } else {
                    read_file(&entry.path(), metadata.mode() & 0o7777)
                        .map_err(|lost| format!("{path}: {lost}"))?
                };
                tree.nodes.insert(metadata.ino(), node);
                tree.names.insert(path, metadata.ino());
            }
        }
        Ok(tree)
    }
}

fn read_file(path: &Path, mode: u32) -> Result<Node, Lost> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    if !bytes.len().is_multiple_of(BLOCK) {
        return Err(format!("has {} bytes", bytes.len()));
    }
    let blocks: Result<Vec<u64>, Lost> = bytes
        .chunks(BLOCK)
        .enumerate()
        .map(|(at, bytes)| number_of(bytes, at as u64))
        .collect();
    let mut value = [0; 8];
    let xattr = match getxattr(path, XATTR, &mut value) {
        Ok(8) => u64::from_le_bytes(value),
        Err(Errno::NODATA) => 0,
        other => return Err(format!("attribute: {other:?}")),
    };
    Ok(Node::File {
        blocks: blocks?,
        mode,
        xattr,
    })
}

/// See the top of this file.
#[derive(Debug)]
pub(crate) struct Mixed {
    numbers: Numbers,
    /// As it was when the power last came back.
    base: Tree,
    /// As it is after all steps.
    now: Tree,
    ops: Vec<(u64, Op)>,
    next: u64,
    history: History,
    held: Held,
}

impl Mixed {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            numbers: Numbers::new(seed),
            base: Tree::default(),
            now: Tree::default(),
            ops: Vec::new(),
            next: 1,
            history: History::default(),
            held: Held { least: 0, most: 0 },
        }
    }

    fn some(&mut self, wanted: impl Fn(&Tree, &str) -> bool) -> Option<String> {
        let names = self.now.names.keys();
        let names: Vec<&String> = names.filter(|path| wanted(&self.now, path)).collect();
        let at = self.numbers.below(names.len().max(1) as u64);
        names
            .get(usize::try_from(at).expect("few"))
            .map(|path| (*path).clone())
    }

    fn some_file(&mut self) -> Option<String> {
        self.some(Tree::is_file)
    }

    fn some_dir(&mut self) -> Option<String> {
        self.some(|tree, path| !tree.is_file(path))
    }

    /// A name that is not there.
    fn new_path(&mut self, number: u64) -> String {
        match self.some_dir() {
            Some(dir) if self.numbers.once_in(2) => format!("{dir}/n{number}"),
            _ => format!("n{number}"),
        }
    }

    /// A change that the tree allows.
    fn draw(&mut self, number: u64) -> Option<Op> {
        let crowded = self.now.names.len() > NAMES_MAX;
        let dirs = self.now.nodes.values();
        let dirs = dirs.filter(|node| **node == Node::Directory).count();
        Some(match self.numbers.below(20) {
            0..=2 if !crowded => Op::Create(self.new_path(number)),
            3 if dirs < DIRS_MAX => Op::Mkdir(format!("d{number}")),
            4 => {
                let empty = |tree: &Tree, path: &str| {
                    let inside = format!("{path}/");
                    !tree.is_file(path) && !tree.names.keys().any(|name| name.starts_with(&inside))
                };
                Op::Rmdir(self.some(empty)?)
            }
            5 => Op::Rename(self.some_dir()?, format!("d{number}")),
            6 | 7 => Op::Rename(self.some_file()?, self.new_path(number)),
            8 => {
                let (from, to) = (self.some_file()?, self.some_file()?);
                // Two names of one file: rename(2) does nothing.
                if self.now.names[&from] == self.now.names[&to] {
                    return None;
                }
                Op::Rename(from, to)
            }
            9 if !crowded => Op::Link(self.some_file()?, self.new_path(number)),
            10 => Op::Unlink(self.some_file()?),
            11 => Op::Truncate(self.some_file()?, self.numbers.below(BLOCKS_MAX)),
            12 => Op::SetXattr(self.some_file()?),
            13 => {
                let mode = 0o600 + u32::try_from(self.numbers.below(64)).expect("64");
                Op::Chmod(self.some_file()?, mode)
            }
            _ => Op::Write(self.some_file()?, self.numbers.below(BLOCKS_MAX)),
        })
    }
}

fn perform(dir: &Path, op: &Op, number: u64) -> io::Result<()> {
    let at = |path: &String| dir.join(path);
    let direct = || {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_DIRECT).mode(0o640);
        options
    };
    match op {
        Op::Create(path) => direct().create_new(true).open(at(path)).map(drop),
        Op::Write(path, place) => {
            let bytes = Aligned::new(&block(number, *place));
            let file = direct().open(at(path))?;
            file.write_all_at(bytes.bytes(), place * BLOCK as u64)
        }
        Op::Truncate(path, len) => direct().open(at(path))?.set_len(len * BLOCK as u64),
        Op::Rename(from, to) => fs::rename(at(from), at(to)),
        Op::Link(from, to) => fs::hard_link(at(from), at(to)),
        Op::Unlink(path) => fs::remove_file(at(path)),
        Op::Mkdir(path) => fs::create_dir(at(path)),
        Op::Rmdir(path) => fs::remove_dir(at(path)),
        Op::SetXattr(path) => {
            let value = number.to_le_bytes();
            Ok(setxattr(at(path), XATTR, &value, XattrFlags::empty())?)
        }
        Op::Chmod(path, mode) => fs::set_permissions(at(path), Permissions::from_mode(*mode)),
    }
}

impl Writer for Mixed {
    fn name(&self) -> &'static str {
        "mixed"
    }

    fn step(&mut self, dir: &Path, clock: &Clock, pace: Pace) -> Result<(), Stopped> {
        let number = self.next;
        let Some(op) = self.draw(number) else {
            return Ok(());
        };
        self.next += 1;
        self.ops.push((number, op.clone()));
        self.history.begin(clock);
        perform(dir, &op, number).map_err(Stopped::from("a change of the tree"))?;
        self.history.end(clock);
        self.now.apply(&op, number);
        if self.numbers.once_in(pace.once_in(SYNC_ONCE_IN)) {
            let dir = fs::File::open(dir).map_err(Stopped::from("open a directory"))?;
            sync(&dir, &mut self.history, clock)?;
        }
        Ok(())
    }

    fn release(&mut self) {}

    fn examine(&mut self, dir: &Path) -> Result<Held, Lost> {
        let found = Tree::read(dir)?.seen();
        let mut tree = self.base.clone();
        let mut fits: Vec<usize> = Vec::new();
        for count in 0..=self.ops.len() {
            if tree.seen() == found {
                fits.push(count);
            }
            if let Some((number, op)) = self.ops.get(count) {
                tree.apply(op, *number);
            }
        }
        let (Some(&least), Some(&most)) = (fits.first(), fits.last()) else {
            return Err(format!(
                "no prefix of {} changes leaves this tree: {}",
                self.ops.len(),
                closest(&self.base, &self.ops, &found)
            ));
        };
        self.held = Held { least, most };
        Ok(self.held)
    }

    fn go_on(&mut self, end: End, clock: &Clock) {
        self.ops.truncate(self.held.most);
        self.now = self.base.clone();
        for (number, op) in &self.ops {
            self.now.apply(op, *number);
        }
        match end {
            End::Process => self.history.truncate(self.held.most, clock),
            End::Power => {
                self.base = self.now.clone();
                self.ops.clear();
                self.history.clear();
            }
        }
    }

    fn history(&self) -> &History {
        &self.history
    }
}

/// The state that comes closest to what was found, and the differences.
fn closest(base: &Tree, ops: &[(u64, Op)], found: &Seen) -> String {
    let mut tree = base.clone();
    let mut best: Option<(usize, Vec<String>)> = None;
    for count in 0..=ops.len() {
        let seen = tree.seen();
        let missing = seen
            .iter()
            .filter(|(path, what)| found.get(*path) != Some(what));
        let extra = found
            .iter()
            .filter(|(path, what)| seen.get(*path) != Some(what));
        let differences: Vec<String> = missing
            .map(|(path, what)| format!("missing {path} {what:?}"))
            .chain(extra.map(|(path, what)| format!("found {path} {what:?}")))
            .collect();
        if best
            .as_ref()
            .is_none_or(|(_, least)| differences.len() < least.len())
        {
            best = Some((count, differences));
        }
        if let Some((number, op)) = ops.get(count) {
            tree.apply(op, *number);
        }
    }
    let (count, differences) = best.expect("at least one state");
    let next = ops.get(count);
    format!("closest after {count} (next {next:?}): {differences:#?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_sees_how_far_a_state_goes_and_that_a_mix_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Mixed::new(5);
        let clock = Clock::default();
        for _ in 0..300 {
            writer.step(dir.path(), &clock, Pace::Often).unwrap();
        }
        let all = writer.examine(dir.path()).unwrap();
        assert_eq!(all.most, writer.ops.len());
        // One change that was never made, on top.
        let file = writer.some_file().unwrap();
        let number = writer.next;
        writer.ops.push((number, Op::SetXattr(file.clone())));
        assert_eq!(writer.examine(dir.path()).unwrap().most, all.most);
        // And an old one, undone.
        setxattr(
            dir.path().join(&file),
            XATTR,
            &7_u64.to_le_bytes(),
            XattrFlags::empty(),
        )
        .unwrap();
        let lost = writer.examine(dir.path()).unwrap_err();
        assert!(lost.contains("no prefix"), "{lost}");
    }
}
