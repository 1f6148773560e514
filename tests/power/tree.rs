//! A small tree and the changes that can be made to it: the model of writers that go through one strict sequence.
//!
//! Create, write, truncate, rename (also over a file, also of directories), link, unlink, mkdir, rmdir, extended attributes and modes:
//! each change depends on those before it, so what is found is some prefix of them or none.

use std::collections::BTreeMap;

use hafs_tests::numbers::Numbers;

use crate::history::{Held, Lost};

const NAMES_MAX: usize = 40;
const DIRS_MAX: usize = 4;
/// Blocks of a file.
const BLOCKS_MAX: u64 = 12;

/// The tree: what each path names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) names: BTreeMap<String, u64>,
    pub(crate) nodes: BTreeMap<u64, Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
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
pub(crate) type Seen = BTreeMap<String, (Vec<String>, Node)>;

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Create(String),
    /// From which block on, and how many.
    Write(String, u64, u64),
    /// To so many blocks.
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

    pub(crate) fn apply(&mut self, op: &Op, number: u64) {
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
            Op::Write(path, from, count) => {
                let [from, count] = [from, count].map(|n| usize::try_from(*n).expect("few"));
                let blocks = self.file(path).0;
                blocks.resize(blocks.len().max(from + count), 0);
                blocks[from..from + count].fill(number);
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

    pub(crate) fn seen(&self) -> Seen {
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

    pub(crate) fn is_file(&self, path: &str) -> bool {
        matches!(self.nodes[&self.names[path]], Node::File { .. })
    }

    fn some(&self, numbers: &mut Numbers, wanted: impl Fn(&Self, &str) -> bool) -> Option<String> {
        let names = self.names.keys();
        let names: Vec<&String> = names.filter(|path| wanted(self, path)).collect();
        let at = numbers.below(names.len().max(1) as u64);
        names
            .get(usize::try_from(at).expect("few"))
            .map(|path| (*path).clone())
    }

    pub(crate) fn some_file(&self, numbers: &mut Numbers) -> Option<String> {
        self.some(numbers, Self::is_file)
    }

    fn some_dir(&self, numbers: &mut Numbers) -> Option<String> {
        self.some(numbers, |tree, path| !tree.is_file(path))
    }

    /// A name that is not there.
    fn new_path(&self, numbers: &mut Numbers, number: u64) -> String {
        match self.some_dir(numbers) {
            Some(dir) if numbers.once_in(2) => format!("{dir}/n{number}"),
            _ => format!("n{number}"),
        }
    }

    /// A change that the tree allows.
    pub(crate) fn draw(&self, numbers: &mut Numbers, number: u64) -> Option<Op> {
        let crowded = self.names.len() > NAMES_MAX;
        let dirs = self.nodes.values();
        let dirs = dirs.filter(|node| **node == Node::Directory).count();
        Some(match numbers.below(20) {
            0..=2 if !crowded => Op::Create(self.new_path(numbers, number)),
            3 if dirs < DIRS_MAX => Op::Mkdir(format!("d{number}")),
            4 => {
                let empty = |tree: &Self, path: &str| {
                    let inside = format!("{path}/");
                    !tree.is_file(path) && !tree.names.keys().any(|name| name.starts_with(&inside))
                };
                Op::Rmdir(self.some(numbers, empty)?)
            }
            5 => Op::Rename(self.some_dir(numbers)?, format!("d{number}")),
            6 | 7 => Op::Rename(self.some_file(numbers)?, self.new_path(numbers, number)),
            8 => {
                let (from, to) = (self.some_file(numbers)?, self.some_file(numbers)?);
                // Two names of one file: rename(2) does nothing.
                if self.names[&from] == self.names[&to] {
                    return None;
                }
                Op::Rename(from, to)
            }
            9 if !crowded => Op::Link(self.some_file(numbers)?, self.new_path(numbers, number)),
            10 => Op::Unlink(self.some_file(numbers)?),
            11 => Op::Truncate(self.some_file(numbers)?, numbers.below(BLOCKS_MAX)),
            12 => Op::SetXattr(self.some_file(numbers)?),
            13 => {
                let mode = 0o600 + u32::try_from(numbers.below(64)).expect("64");
                Op::Chmod(self.some_file(numbers)?, mode)
            }
            _ => {
                let count = numbers.one_of(&[1, 1, 2, 3, 8]);
                let from = numbers.below(BLOCKS_MAX + 1 - count);
                Op::Write(self.some_file(numbers)?, from, count)
            }
        })
    }
}

/// How many of the changes after `base` a tree like `found` has.
pub(crate) fn held(base: &Tree, ops: &[(u64, Op)], found: &Seen) -> Result<Held, Lost> {
    let mut tree = base.clone();
    let mut fits: Vec<usize> = Vec::new();
    for count in 0..=ops.len() {
        if tree.seen() == *found {
            fits.push(count);
        }
        if let Some((number, op)) = ops.get(count) {
            tree.apply(op, *number);
        }
    }
    match (fits.first(), fits.last()) {
        (Some(&least), Some(&most)) => Ok(Held { least, most }),
        _ => Err(format!(
            "no prefix of {} changes leaves this tree: {}",
            ops.len(),
            closest(base, ops, found)
        )),
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
