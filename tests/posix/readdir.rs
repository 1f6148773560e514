//! Reading directories: offsets that stay, while names come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::path::Path;
use std::process::Command;

use hafs_tests::requirement;
use rustix::fs::{RawDir, SeekFrom, seek};

use crate::Mounted;

/// The next entries from where `dir` stands: names, each with the offset behind it. A small buffer: a few at a time.
fn some(dir: &File) -> Vec<(String, u64)> {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.expect("getdents");
        let name = entry.file_name().to_string_lossy().into_owned();
        found.push((name, entry.next_entry_cookie()));
        if entries.is_buffer_empty() {
            break;
        }
    }
    found
}

/// All entries from where `dir` stands.
fn all(dir: &File) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    loop {
        let more = some(dir);
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

fn fill(dir: &Path, names: impl Iterator<Item = u32>) {
    for name in names {
        File::create_new(dir.join(format!("name-{name}"))).expect("a new file");
    }
}

#[test]
fn offsets_lead_back_to_where_they_were_taken() {
    if !requirement::mounts_work("telldir and seekdir") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.mount.join("dir");
    fs::create_dir(&path).unwrap();
    fill(&path, 0..500);
    let dir = File::open(&path).unwrap();
    let entries = all(&dir);
    assert_eq!(entries.len(), 502);
    assert!(
        entries
            .iter()
            .all(|(_, offset)| i64::try_from(*offset).is_ok()),
        "off_t is signed"
    );
    let offsets: BTreeSet<u64> = entries.iter().map(|(_, offset)| *offset).collect();
    assert_eq!(offsets.len(), 502, "an offset of two entries");
    for at in [0, 1, 2, 100, 333, 501] {
        seek(&dir, SeekFrom::Start(entries[at].1)).unwrap();
        assert_eq!(all(&dir), entries[at + 1..]);
    }
    // Others come and go: what stays has the offsets that it had, also through a later descriptor.
    fill(&path, 500..700);
    for name in (0..700).step_by(3) {
        fs::remove_file(path.join(format!("name-{name}"))).unwrap();
    }
    let known: BTreeMap<&str, u64> = entries
        .iter()
        .map(|(name, offset)| (name.as_str(), *offset))
        .collect();
    let later = all(&File::open(&path).unwrap());
    for (name, offset) in &later {
        assert!(
            known.get(name.as_str()).is_none_or(|was| was == offset),
            "{name} moved"
        );
    }
    // The offset of a removed name leads to what comes behind it.
    let removed = entries
        .iter()
        .position(|(name, _)| name == "name-333")
        .unwrap();
    seek(&dir, SeekFrom::Start(entries[removed].1)).unwrap();
    let behind: Vec<_> = later
        .iter()
        .filter(|(_, offset)| *offset > entries[removed].1)
        .collect();
    assert_eq!(all(&dir).iter().collect::<Vec<_>>(), behind);
    seek(&dir, SeekFrom::Start(0)).unwrap();
    assert_eq!(all(&dir), later, "rewinddir");
    drop(dir);
    mounted.end();
}

/// For the second process: the directory, the offset to begin at, and the file for what it sees.
const CHILD: [&str; 3] = [
    "HAFS_TEST_LIST_DIR",
    "HAFS_TEST_LIST_FROM",
    "HAFS_TEST_LIST_INTO",
];

/// Entries from `offset` on, each as a line.
fn listing(path: &Path, offset: u64) -> String {
    let dir = File::open(path).expect("a directory");
    seek(&dir, SeekFrom::Start(offset)).expect("an offset");
    let lines = all(&dir).into_iter();
    lines
        .map(|(name, offset)| format!("{name} {offset}\n"))
        .collect()
}

#[test]
fn offsets_are_the_same_in_every_process_and_after_a_restart() {
    if let [Some(path), Some(offset), Some(into)] = CHILD.map(std::env::var_os) {
        let offset = offset.to_str().unwrap().parse().unwrap();
        fs::write(into, listing(path.as_ref(), offset)).unwrap();
        return;
    }
    if !requirement::mounts_work("telldir in another process") {
        return;
    }
    let mut mounted = Mounted::new();
    let path = mounted.mount.join("dir");
    fs::create_dir(&path).unwrap();
    fill(&path, 0..300);
    let entries = all(&File::open(&path).unwrap());
    assert_eq!(entries.len(), 302);
    let middle = entries[150].1;
    let (whole, rest) = (listing(&path, 0), listing(&path, middle));
    assert_eq!(rest.lines().count(), 151);
    let into = mounted.scratch.join("listing");
    for (offset, expected) in [(0, &whole), (middle, &rest)] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let name = "readdir::offsets_are_the_same_in_every_process_and_after_a_restart";
        child.args(["--exact", name]).env(CHILD[0], &path);
        child.env(CHILD[1], offset.to_string()).env(CHILD[2], &into);
        hafs_tests::run(&mut child).ok();
        assert_eq!(fs::read_to_string(&into).unwrap(), *expected);
        fs::remove_file(&into).unwrap();
    }
    for restart in [Mounted::remounted, Mounted::killed] {
        // A kill may take what hafsd was not asked to keep.
        File::open(&path).unwrap().sync_all().unwrap();
        mounted = restart(mounted);
        assert_eq!(listing(&path, middle), rest);
        assert_eq!(listing(&path, 0), whole);
    }
    mounted.end();
}

#[test]
fn what_stays_is_seen_once_while_others_come_and_go() {
    if !requirement::mounts_work("readdir under change") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.mount.join("dir");
    fs::create_dir(&path).unwrap();
    fill(&path, 0..1000);
    for round in 0..3 {
        let dir = File::open(&path).unwrap();
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        let mut next = 10_000 + round * 10_000;
        loop {
            let entries = some(&dir);
            if entries.is_empty() {
                break;
            }
            for (name, _) in &entries {
                *seen.entry(name.clone()).or_default() += 1;
            }
            // Odd names are removed and made again, new ones appear; even names below 1000 stay.
            for (name, _) in entries.iter().filter(|(name, _)| is_odd(name)) {
                fs::remove_file(path.join(name)).unwrap();
                File::create_new(path.join(name)).unwrap();
            }
            fill(&path, next..next + 5);
            next += 5;
        }
        assert!(
            seen.values().all(|count| *count == 1),
            "seen twice: {seen:?}"
        );
        let stayed = (0..1000)
            .step_by(2)
            .filter(|name| seen.contains_key(&format!("name-{name}")));
        assert_eq!(stayed.count(), 500, "round {round}");
    }
    fs::remove_dir_all(&path).unwrap();
    mounted.end();
}

fn is_odd(name: &str) -> bool {
    let number = name
        .strip_prefix("name-")
        .and_then(|number| number.parse::<u32>().ok());
    number.is_some_and(|number| number % 2 == 1)
}
