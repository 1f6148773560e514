//! Threads that move the same names about: each name is somewhere, once, and links are counted right.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hafs_fs::{Caller, FileKind, FsError, Ino, RenameMode, Volume};
use hafs_tests::Numbers;

use crate::Worker;

/// Names of files that all threads move.
const FILES: u64 = 10;

/// Directories that stay, and directories that are moved too, also into each other.
const STAY: u64 = 4;
const MOVE: u64 = 3;

/// What all of them share, as it was made.
#[derive(Debug)]
struct Shared {
    /// Directories that names can be in; the first [`STAY`] have the same place always.
    dirs: Vec<Ino>,
    files: BTreeSet<Ino>,
    /// A file that all link to.
    linked: Ino,
    movers: u64,
}

#[derive(Debug)]
struct Mover {
    numbers: Numbers,
    number: u64,
    shared: Arc<Shared>,
    /// Its own names of the linked file, by directory and name.
    links: BTreeSet<(u64, String)>,
    moves: u64,
}

fn file_name(number: u64) -> String {
    format!("t{number}")
}

fn dir_name(number: u64) -> String {
    format!("d{number}")
}

/// Threads over directories and names of their own making.
pub(crate) fn movers(volume: &Volume, seed: u64, count: u64) -> Vec<Box<dyn Worker>> {
    let mkdir = |parent, name: &str| {
        let made = volume.mkdir(Caller::ROOT, parent, name.as_bytes(), 0o755);
        made.expect("mkdir").ino
    };
    let mknod = |parent, name: &str| {
        let mode = libc::S_IFREG | 0o644;
        let made = volume.mknod(Caller::ROOT, parent, name.as_bytes(), mode, 0);
        made.expect("mknod").ino
    };
    let home = mkdir(Ino::ROOT, "names");
    let mut dirs: Vec<Ino> = (0..STAY)
        .map(|number| mkdir(home, &format!("stay-{number}")))
        .collect();
    dirs.extend(
        (0..MOVE)
            .map(|number| mkdir(dirs[0], &dir_name(number)))
            .collect::<Vec<_>>(),
    );
    let shared = Arc::new(Shared {
        files: (0..FILES)
            .map(|number| mknod(dirs[0], &file_name(number)))
            .collect(),
        linked: mknod(home, "linked"),
        dirs,
        movers: count,
    });
    let mover = |number| -> Box<dyn Worker> {
        Box::new(Mover {
            numbers: Numbers::of(seed, &[2, number]),
            number,
            shared: Arc::clone(&shared),
            links: BTreeSet::new(),
            moves: 0,
        })
    };
    (0..count).map(mover).collect()
}

impl Mover {
    fn dir(&mut self) -> (u64, Ino) {
        let number = self.numbers.below(STAY + MOVE);
        (
            number,
            self.shared.dirs[usize::try_from(number).expect("few")],
        )
    }

    /// Where a name is, or was just now; some directory if others moved it meanwhile.
    fn find(&mut self, volume: &Volume, name: &str) -> Ino {
        let dirs = self.shared.dirs.iter().copied();
        let mut found = dirs.filter(|dir| volume.lookup(*dir, name.as_bytes()).is_ok());
        found.next().unwrap_or_else(|| self.dir().1)
    }

    fn rename(&mut self, volume: &Volume, from: &str, to: &str, mode: RenameMode) {
        let (old, new) = (self.find(volume, from), self.dir().1);
        match volume.rename(Caller::ROOT, old, from.as_bytes(), new, to.as_bytes(), mode) {
            Ok(()) => self.moves += 1,
            // It is elsewhere, or was moved just now.
            Err(FsError::NotFound) => {}
            // Onto itself.
            Err(FsError::Exists) if from == to && old == new => {}
            // Below itself.
            Err(FsError::Invalid) if from.starts_with('d') => {}
            Err(error) => panic!("rename {from} in {old} to {to} in {new}, {mode:?}: {error}"),
        }
    }

    fn link(&mut self, volume: &Volume) {
        let (number, dir) = self.dir();
        let name = format!("l{}-{}", self.number, self.numbers.below(5));
        let linked = volume.link(self.shared.linked, dir, name.as_bytes());
        let key = (number, name);
        if self.links.contains(&key) {
            assert!(matches!(linked, Err(FsError::Exists)), "{linked:?}");
        } else {
            linked.expect("link");
            self.links.insert(key);
        }
    }

    fn unlink(&mut self, volume: &Volume) {
        let Some((number, name)) = self.links.pop_first() else {
            return;
        };
        let dir = self.shared.dirs[usize::try_from(number).expect("few")];
        volume.unlink(dir, name.as_bytes()).expect("unlink");
    }

    /// A name that is being moved: it is found with one of its files, or not there.
    fn look(&mut self, volume: &Volume) {
        let name = file_name(self.numbers.below(FILES));
        let dir = self.dir().1;
        match volume.lookup(dir, name.as_bytes()) {
            Ok(attr) => assert!(self.shared.files.contains(&attr.ino) && attr.nlink == 1),
            Err(error) => assert!(matches!(error, FsError::NotFound), "{error}"),
        }
    }

    /// Names that nobody moves are in every listing, once.
    fn list(&mut self, volume: &Volume) {
        let (number, dir) = self.dir();
        let mut found = Vec::new();
        let mut cookie = 0;
        loop {
            let entries = crate::entries(volume, dir, cookie, 3);
            let Some(last) = entries.last() else { break };
            cookie = last.cookie;
            found.extend(entries.into_iter().map(|entry| entry.name));
        }
        let own = |name: &&Vec<u8>| name.starts_with(format!("l{}-", self.number).as_bytes());
        let mut found: Vec<&Vec<u8>> = found.iter().filter(own).collect();
        found.sort();
        let wanted: Vec<Vec<u8>> = self
            .links
            .iter()
            .filter(|(dir, _)| *dir == number)
            .map(|(_, name)| name.clone().into_bytes())
            .collect();
        assert_eq!(found, wanted.iter().collect::<Vec<_>>());
    }
}

impl Worker for Mover {
    fn step(&mut self, volume: &Volume) {
        let (one, other) = (self.numbers.below(FILES), self.numbers.below(FILES));
        match self.numbers.below(12) {
            0..=4 => {
                let name = file_name(one);
                self.rename(volume, &name, &name, RenameMode::NoReplace);
            }
            5 | 6 => {
                self.rename(
                    volume,
                    &file_name(one),
                    &file_name(other),
                    RenameMode::Exchange,
                );
            }
            7 => {
                let name = dir_name(one % MOVE);
                self.rename(volume, &name, &name, RenameMode::NoReplace);
            }
            8 => self.link(volume),
            9 => self.unlink(volume),
            10 => self.look(volume),
            _ => self.list(volume),
        }
    }

    fn verify(&mut self, volume: &Volume) {
        let mut found: BTreeMap<String, Vec<(FileKind, Ino)>> = BTreeMap::new();
        let (mut own, mut links) = (BTreeSet::new(), 0);
        for (number, dir) in (0..).zip(&self.shared.dirs) {
            for entry in crate::entries(volume, *dir, 0, 1000) {
                let name = String::from_utf8(entry.name).expect("our names");
                if name.starts_with('l') {
                    assert_eq!(entry.ino, self.shared.linked);
                    links += 1;
                    if name.starts_with(&format!("l{}-", self.number)) {
                        own.insert((number, name));
                    }
                } else if !name.starts_with('.') {
                    found.entry(name).or_default().push((entry.kind, entry.ino));
                }
            }
        }
        let names: BTreeSet<String> = (0..FILES)
            .map(file_name)
            .chain((0..MOVE).map(dir_name))
            .collect();
        assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), names);
        assert!(found.values().all(|places| places.len() == 1), "{found:?}");
        let files: BTreeSet<Ino> = found
            .values()
            .flatten()
            .filter(|(kind, _)| *kind == FileKind::File)
            .map(|(_, ino)| *ino)
            .collect();
        assert_eq!(files, self.shared.files);
        assert_eq!(own, self.links);
        let attr = volume.getattr(self.shared.linked).expect("getattr");
        assert_eq!(attr.nlink, links + 1);
        assert!(
            self.shared.movers > 1 && self.moves > 0,
            "nothing was moved"
        );
    }
}
