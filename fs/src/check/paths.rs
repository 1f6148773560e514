//! Names for the inodes that a check found hurt: people know their files by paths.
//!
//! A file's name is looked for in one walk through all names; a directory's in the directory that it says is its parent.

use std::collections::{HashMap, HashSet};

use super::{Picture, Problem};
use crate::store::key::{Dentry, Table, dentry_key, key_ino, row_body};
use crate::types::{FileKind, Ino};

/// Directories above a file that are looked at: a path has 4096 bytes.
const DEPTH_MAX: usize = 2048;

/// Fills in the paths of problems, as far as they can be found.
pub(super) fn name(picture: &Picture<'_>, problems: &mut [Problem]) {
    let wanted: HashSet<Ino> = problems.iter().filter_map(|problem| problem.ino).collect();
    if wanted.is_empty() {
        return;
    }
    let mut names = Names {
        picture,
        directories: HashMap::from([(Ino::ROOT, Some(String::new()))]),
    };
    let mut paths: HashMap<Ino, String> = HashMap::new();
    for (key, raw) in picture.table(Table::Dentry, Ino(0)).map_while(Result::ok) {
        let dentry = row_body(&raw).and_then(Dentry::decode);
        if let (Ok(parent), Ok(dentry)) = (key_ino(&key), dentry)
            && wanted.contains(&dentry.ino)
            && !paths.contains_key(&dentry.ino)
            && let Some(above) = names.of_directory(parent, 0)
        {
            let name = String::from_utf8_lossy(&dentry.name);
            paths.insert(dentry.ino, format!("{above}/{name}"));
        }
    }
    paths.insert(Ino::ROOT, "/".to_owned());
    for problem in problems {
        problem.path = problem.ino.and_then(|ino| paths.get(&ino).cloned());
    }
}

/// Paths of directories, as they are needed; the root's is empty. `None`: it cannot be found.
struct Names<'a> {
    picture: &'a Picture<'a>,
    directories: HashMap<Ino, Option<String>>,
}

impl Names<'_> {
    fn of_directory(&mut self, ino: Ino, depth: usize) -> Option<String> {
        if let Some(known) = self.directories.get(&ino) {
            return known.clone();
        }
        let path = self.find(ino, depth);
        self.directories.insert(ino, path.clone());
        path
    }

    fn find(&mut self, ino: Ino, depth: usize) -> Option<String> {
        let inode = self.picture.inode(ino).ok()??;
        if inode.kind != FileKind::Directory || inode.parent == ino || depth > DEPTH_MAX {
            return None;
        }
        let name = self
            .picture
            .rows(Table::Dentry, &dentry_key(inode.parent, 0))
            .map_while(Result::ok)
            .take_while(|(key, _)| key_ino(key).is_ok_and(|parent| parent == inode.parent))
            .filter_map(|(_, raw)| Dentry::decode(row_body(&raw).ok()?).ok())
            .find(|dentry| dentry.ino == ino)?;
        let above = self.of_directory(inode.parent, depth + 1)?;
        let name = String::from_utf8_lossy(&name.name);
        Some(format!("{above}/{name}"))
    }
}
