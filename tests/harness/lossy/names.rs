//! The names of the lossy disk: directories as processes see them and as the disk holds them, and the changes in between.
//!
//! A change (create, unlink, rename, link, mkdir, …) sets one or two entries at once, and is on the disk once one of the
//! directories that it touches was synced, as a whole: a rename between two directories is one change. Syncing a file
//! says nothing about its name. That is what POSIX promises; journalling filesystems do more, in their order.
//!
//! What a cut may leave: any subset of the unsynced changes that has with each change also the earlier ones of the same
//! entries, and with each rename of a directory everything before it (else two directories could lie in each other).
//!
//! One thing is promised that POSIX does not: a rename to [`CURRENT`] has with it the earlier changes of its directory. RocksDB
//! makes its manifest, syncs the file and renames the file that names it to `CURRENT`, and syncs the directory only then
//! (`VersionSet::ProcessManifestWrites`, `SetCurrentFile`): were the two on the disk the other way round, the database would not
//! open. ext4, XFS and btrfs keep them in order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::Mode;
use crate::numbers::Numbers;

/// Number of a file, directory or symlink. Never used again.
pub(super) type NodeId = u64;
/// The root directory; FUSE wants it to be 1.
pub(super) const ROOT: NodeId = 1;

/// The name by which RocksDB finds its manifest.
const CURRENT: &str = "CURRENT";

type Entries = BTreeMap<OsString, NodeId>;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Names {
    live: BTreeMap<NodeId, Entries>,
    durable: BTreeMap<NodeId, Entries>,
    /// The last name that each node was given, for messages and faults.
    named: HashMap<NodeId, (NodeId, OsString)>,
    unsynced: Vec<Change>,
    /// Number of the next change.
    next: u64,
}

#[derive(Debug)]
struct Change {
    number: u64,
    sets: Vec<Set>,
    needs: Needs,
}

/// Which earlier changes are on the disk if this one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    SameEntries,
    SameDirectories,
    All,
}

/// An entry and what it stands for from now on.
#[derive(Debug, Clone)]
pub(super) struct Set {
    pub(super) dir: NodeId,
    pub(super) name: OsString,
    pub(super) node: Option<NodeId>,
}

impl Names {
    pub(super) fn new() -> Self {
        let root = BTreeMap::from([(ROOT, Entries::new())]);
        Self {
            live: root.clone(),
            durable: root,
            named: HashMap::new(),
            unsynced: Vec::new(),
            next: 0,
        }
    }

    pub(super) fn get(&self, dir: NodeId, name: &OsStr) -> Option<NodeId> {
        self.live.get(&dir)?.get(name).copied()
    }

    pub(super) fn entries(&self, dir: NodeId) -> impl Iterator<Item = (&OsString, NodeId)> {
        let entries = self.live.get(&dir).into_iter().flatten();
        entries.map(|(name, node)| (name, *node))
    }

    /// How many names a node has.
    pub(super) fn links(&self, node: NodeId) -> u64 {
        let names = self.live.values().flat_map(BTreeMap::values);
        names.filter(|named| **named == node).count() as u64
    }

    /// Where a node lies, or lay last, from the root on.
    pub(super) fn path(&self, node: NodeId) -> PathBuf {
        let mut names = Vec::new();
        let mut at = node;
        while let Some((dir, name)) = self.named.get(&at) {
            names.push(name);
            at = *dir;
        }
        names.into_iter().rev().collect()
    }

    /// True if `node` is `dir` or lies somewhere below it.
    pub(super) fn is_below(&self, node: NodeId, dir: NodeId) -> bool {
        let mut at = node;
        loop {
            if at == dir {
                return true;
            }
            match self.named.get(&at) {
                Some((above, _)) => at = *above,
                None => return false,
            }
        }
    }

    /// A new directory that no entry names yet.
    pub(super) fn add_dir(&mut self, node: NodeId) {
        self.live.insert(node, Entries::new());
    }

    /// One change of these entries.
    pub(super) fn change(&mut self, sets: Vec<Set>, moves_dir: bool) {
        for set in &sets {
            if let Some(node) = set.node {
                self.named.insert(node, (set.dir, set.name.clone()));
            }
            apply(&mut self.live, set);
        }
        let is_rename = sets.len() > 1;
        let needs = if moves_dir {
            Needs::All
        } else if is_rename && sets.iter().any(|set| set.name == CURRENT) {
            Needs::SameDirectories
        } else {
            Needs::SameEntries
        };
        let number = self.next;
        self.next += 1;
        self.unsynced.push(Change {
            number,
            sets,
            needs,
        });
    }

    /// Changes that a cut may take.
    pub(super) fn unsynced(&self) -> u64 {
        self.unsynced.len() as u64
    }

    /// What a sync that begins now has to cover.
    pub(super) fn sync_point(&self) -> u64 {
        self.next
    }

    /// The entries of `dir` are on the disk as far as they were changed before `point`.
    pub(super) fn sync_dir(&mut self, dir: NodeId, point: u64) {
        let mut wanted = BTreeSet::new();
        for (at, change) in self.unsynced.iter().enumerate() {
            if change.number < point && change.sets.iter().any(|set| set.dir == dir) {
                wanted.insert(at);
            }
        }
        let wanted = self.with_needed(wanted);
        self.keep(&wanted);
    }

    /// Everything is on the disk.
    pub(super) fn settle(&mut self) {
        let all = (0..self.unsynced.len()).collect();
        self.keep(&all);
    }

    /// The power goes. Returns how many changes were lost.
    pub(super) fn cut(&mut self, mode: Mode, numbers: &mut Numbers) -> u64 {
        let kept = match mode {
            Mode::Everything => BTreeSet::new(),
            Mode::Pages | Mode::Halves => {
                let some = (0..self.unsynced.len()).filter(|_| numbers.once_in(2));
                let some = some.collect();
                self.with_needed(some)
            }
        };
        let lost = self.unsynced.len() - kept.len();
        self.keep(&kept);
        self.unsynced.clear();
        self.live = self.durable.clone();
        lost as u64
    }

    /// Nodes that some directory names, or may name after a cut.
    pub(super) fn referenced(&self) -> BTreeSet<NodeId> {
        let trees = [&self.live, &self.durable];
        let mut nodes: BTreeSet<NodeId> = trees
            .into_iter()
            .flat_map(|tree| tree.values().flat_map(BTreeMap::values))
            .copied()
            .collect();
        let sets = self.unsynced.iter().flat_map(|change| &change.sets);
        nodes.extend(sets.filter_map(|set| set.node));
        nodes.insert(ROOT);
        nodes
    }

    /// Forgets nodes that nothing refers to.
    pub(super) fn forget(&mut self, known: impl Fn(NodeId) -> bool) {
        self.named.retain(|node, _| known(*node));
        self.live.retain(|node, _| known(*node));
        self.durable.retain(|node, _| known(*node));
    }

    /// `wanted` and all that it needs.
    fn with_needed(&self, mut wanted: BTreeSet<usize>) -> BTreeSet<usize> {
        let mut touched: BTreeSet<(NodeId, &OsStr)> = BTreeSet::new();
        let mut dirs: BTreeSet<NodeId> = BTreeSet::new();
        for (at, change) in self.unsynced.iter().enumerate().rev() {
            let keys = || {
                change
                    .sets
                    .iter()
                    .map(|set| (set.dir, set.name.as_os_str()))
            };
            let is_needed = |key: (NodeId, _)| touched.contains(&key) || dirs.contains(&key.0);
            if !wanted.contains(&at) && !keys().any(is_needed) {
                continue;
            }
            match change.needs {
                Needs::All => {
                    wanted.extend(0..=at);
                    return wanted;
                }
                Needs::SameDirectories => dirs.extend(keys().map(|(dir, _)| dir)),
                Needs::SameEntries => {}
            }
            wanted.insert(at);
            touched.extend(keys());
        }
        wanted
    }

    fn keep(&mut self, which: &BTreeSet<usize>) {
        let mut at = 0;
        let durable = &mut self.durable;
        self.unsynced.retain(|change| {
            let keep = which.contains(&at);
            at += 1;
            if keep {
                for set in &change.sets {
                    apply(durable, set);
                }
            }
            !keep
        });
    }
}

fn apply(tree: &mut BTreeMap<NodeId, Entries>, set: &Set) {
    let entries = tree.entry(set.dir).or_default();
    match set.node {
        Some(node) => entries.insert(set.name.clone(), node),
        None => entries.remove(&set.name),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(dir: NodeId, name: &str, node: Option<NodeId>) -> Set {
        Set {
            dir,
            name: name.into(),
            node,
        }
    }

    fn list(names: &Names, dir: NodeId) -> Vec<(String, NodeId)> {
        let entries = names.entries(dir);
        entries
            .map(|(name, node)| (name.to_string_lossy().into_owned(), node))
            .collect()
    }

    #[test]
    fn a_name_is_on_the_disk_once_its_directory_was_synced() {
        let mut names = Names::new();
        names.change(vec![set(ROOT, "a", Some(2))], false);
        let point = names.sync_point();
        names.change(vec![set(ROOT, "b", Some(3))], false);
        names.sync_dir(ROOT, point);
        names.change(vec![set(ROOT, "a", None)], false);
        assert_eq!(list(&names, ROOT), [("b".to_owned(), 3)]);
        assert_eq!(names.cut(Mode::Everything, &mut Numbers::new(1)), 2);
        assert_eq!(list(&names, ROOT), [("a".to_owned(), 2)]);
    }

    #[test]
    fn a_rename_happens_whole_whichever_directory_is_synced() {
        for dir in [10, 11] {
            let mut names = Names::new();
            names.add_dir(10);
            names.add_dir(11);
            names.change(vec![set(ROOT, "x", Some(10))], false);
            names.change(vec![set(ROOT, "y", Some(11))], false);
            names.change(vec![set(10, "file", Some(2))], false);
            names.settle();
            names.change(
                vec![set(10, "file", None), set(11, "moved", Some(2))],
                false,
            );
            assert_eq!(names.path(2), PathBuf::from("y/moved"));
            names.sync_dir(dir, names.sync_point());
            names.cut(Mode::Everything, &mut Numbers::new(1));
            assert_eq!(list(&names, 10), []);
            assert_eq!(list(&names, 11), [("moved".to_owned(), 2)]);
        }
    }

    #[test]
    fn syncing_a_directory_takes_along_what_its_changes_stand_on() {
        let mut names = Names::new();
        names.add_dir(10);
        names.change(vec![set(ROOT, "dir", Some(10))], false);
        names.settle();
        // Made in the root, then moved: the move cannot be there without the creation.
        names.change(vec![set(ROOT, "new", Some(2))], false);
        names.change(
            vec![set(ROOT, "new", None), set(10, "file", Some(2))],
            false,
        );
        names.change(vec![set(ROOT, "other", Some(3))], false);
        names.sync_dir(10, names.sync_point());
        names.cut(Mode::Everything, &mut Numbers::new(1));
        assert_eq!(list(&names, 10), [("file".to_owned(), 2)]);
        assert_eq!(list(&names, ROOT), [("dir".to_owned(), 10)]);
    }

    #[test]
    fn a_subset_never_has_a_change_without_what_it_stands_on() {
        let mut seen = BTreeSet::new();
        for seed in 0..300 {
            let mut names = Names::new();
            names.change(vec![set(ROOT, "old", Some(2))], false);
            names.settle();
            names.change(vec![set(ROOT, "new", Some(3))], false);
            names.change(
                vec![set(ROOT, "new", None), set(ROOT, "old", Some(3))],
                false,
            );
            names.change(vec![set(ROOT, "other", Some(4))], false);
            names.cut(Mode::Pages, &mut Numbers::new(seed));
            let left = list(&names, ROOT);
            let old = names.get(ROOT, OsStr::new("old"));
            let new = names.get(ROOT, OsStr::new("new"));
            // Replaced by rename: the old or the new is there, and the new one once.
            assert!(
                matches!((old, new), (Some(2), None | Some(3)) | (Some(3), None)),
                "{left:?}"
            );
            seen.insert(left);
        }
        assert_eq!(
            seen.len(),
            6,
            "three states of the pair, with and without `other`"
        );
    }

    #[test]
    fn the_manifest_that_current_names_is_there() {
        let mut seen = BTreeSet::new();
        for seed in 0..300 {
            let mut names = Names::new();
            names.add_dir(10);
            names.change(vec![set(ROOT, "state", Some(10))], false);
            names.change(vec![set(10, "CURRENT", Some(2))], false);
            names.settle();
            names.change(vec![set(ROOT, "other", Some(3))], false);
            names.change(vec![set(10, "MANIFEST-2", Some(4))], false);
            names.change(vec![set(10, "temporary", Some(5))], false);
            names.change(
                vec![set(10, "temporary", None), set(10, "CURRENT", Some(5))],
                false,
            );
            names.cut(Mode::Pages, &mut Numbers::new(seed));
            let manifest = names.get(10, OsStr::new("MANIFEST-2"));
            let current = names.get(10, OsStr::new("CURRENT"));
            assert!(current == Some(2) || manifest.is_some(), "seed {seed}");
            let other = names.get(ROOT, OsStr::new("other"));
            seen.insert((current, manifest, other));
        }
        assert_eq!(
            seen.len(),
            6,
            "neither, the manifest, both; with and without `other`"
        );
    }

    #[test]
    fn a_moved_directory_needs_everything_before_it() {
        for seed in 0..100 {
            let mut names = Names::new();
            for dir in [10, 11] {
                names.add_dir(dir);
            }
            names.change(vec![set(ROOT, "a", Some(10))], false);
            names.change(vec![set(ROOT, "b", Some(11))], false);
            names.settle();
            names.change(vec![set(ROOT, "b", None), set(10, "b", Some(11))], true);
            names.change(vec![set(10, "b", None), set(ROOT, "b2", Some(11))], true);
            names.change(vec![set(ROOT, "a", None), set(11, "a", Some(10))], true);
            names.cut(Mode::Halves, &mut Numbers::new(seed));
            let both_inside = names.get(10, OsStr::new("b")).is_some()
                && names.get(11, OsStr::new("a")).is_some();
            assert!(!both_inside, "two directories lie in each other");
        }
    }
}
