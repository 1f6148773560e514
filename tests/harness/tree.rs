//! A directory as it is, to prove that a refusal left it alone.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One name below the directory: mode, owner, length, change time, and a hash of the bytes.
pub type Entry = (u32, u32, u64, (i64, i64), u64);

/// Everything below `dir`, by path. Change times tell what even a rewrite with the same bytes would.
///
/// # Panics
/// If something cannot be read.
pub fn tree(dir: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = path.symlink_metadata().expect("it was just listed");
        let mut hash = DefaultHasher::new();
        if metadata.is_file() {
            hash.write(&fs::read(&path).expect("tests read as root"));
        }
        if metadata.is_dir() {
            let list = fs::read_dir(&path).expect("tests read as root");
            todo.extend(list.map(|entry| entry.expect("a directory entry").path()));
        }
        // A directory's length differs between filesystems and says nothing.
        let len = if metadata.is_dir() { 0 } else { metadata.len() };
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        entries.insert(
            path,
            (metadata.mode(), metadata.uid(), len, changed, hash.finish()),
        );
    }
    entries
}
