//! A thread with a directory of its own: whatever the others do, in it nothing but its own changes show, exactly.

use std::collections::BTreeMap;

use hafs_fs::{Caller, FallocateMode, FsError, Ino, RenameMode, SetAttr, Volume, XattrMode};
use hafs_tests::Numbers;

use crate::Worker;

const FILES_MAX: usize = 10;
const FILE_BYTES_MAX: usize = 400_000;

/// A file as it must be.
#[derive(Debug, Clone)]
struct Content {
    ino: Ino,
    bytes: Vec<u8>,
    xattr: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(crate) struct Owner {
    numbers: Numbers,
    dir: Ino,
    files: BTreeMap<String, Content>,
    /// Unlinked, and not reclaimed yet.
    orphans: Vec<Content>,
}

impl Owner {
    pub(crate) fn new(volume: &Volume, seed: u64, number: u64) -> Self {
        let name = format!("owner-{number}");
        let dir = volume
            .mkdir(Caller::ROOT, Ino::ROOT, name.as_bytes(), 0o755)
            .expect("mkdir");
        Self {
            numbers: Numbers::of(seed, &[1, number]),
            dir: dir.ino,
            files: BTreeMap::new(),
            orphans: Vec::new(),
        }
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.numbers.below(end.max(1) as u64)).expect("below a usize")
    }

    fn name(&mut self) -> String {
        format!("file-{}", self.below(2 * FILES_MAX))
    }

    /// One of the files there are.
    fn some(&mut self) -> Option<String> {
        let at = self.below(self.files.len());
        self.files.keys().nth(at).cloned()
    }

    fn content(&mut self, name: &str) -> &mut Content {
        self.files.get_mut(name).expect("one of the files")
    }

    fn create(&mut self, volume: &Volume) {
        let name = self.name();
        let made = volume.mknod(
            Caller::ROOT,
            self.dir,
            name.as_bytes(),
            libc::S_IFREG | 0o644,
            0,
        );
        if self.files.contains_key(&name) {
            assert!(matches!(made, Err(FsError::Exists)), "{made:?}");
            return;
        }
        let content = Content {
            ino: made.expect("mknod").ino,
            bytes: Vec::new(),
            xattr: None,
        };
        self.files.insert(name, content);
    }

    fn range(&mut self) -> (usize, usize) {
        let len_max = [100, 4096, 8192, 20_000, 150_000, 300_000]
            [usize::try_from(self.numbers.below(6)).expect("6")];
        let len = 1 + self.below(len_max);
        (self.below(FILE_BYTES_MAX - len), len)
    }

    fn write(&mut self, volume: &Volume, name: &str) {
        let (at, len) = self.range();
        let mut numbers = Numbers::of(self.numbers.draw(), &[]);
        let data: Vec<u8> = (0..len).map(|_| numbers.draw().to_le_bytes()[0]).collect();
        let content = self.content(name);
        let written = volume.write(content.ino, at as u64, &data, false, false);
        assert_eq!(written.expect("write") as usize, len);
        let end = content.bytes.len().max(at + len);
        content.bytes.resize(end, 0);
        content.bytes[at..at + len].copy_from_slice(&data);
    }

    fn read(&mut self, volume: &Volume, name: &str) {
        let (at, len) = self.range();
        let content = self.content(name);
        let read = volume
            .read(content.ino, at as u64, u32::try_from(len).expect("small"))
            .expect("read");
        let end = content.bytes.len().min(at + len);
        assert!(
            read == content.bytes[at.min(end)..end],
            "{name}: {at}, {len}"
        );
    }

    fn resize(&mut self, volume: &Volume, name: &str) {
        let len = self.below(FILE_BYTES_MAX);
        let content = self.content(name);
        let size = SetAttr {
            size: Some(len as u64),
            ..SetAttr::default()
        };
        volume
            .setattr(Caller::ROOT, content.ino, &size)
            .expect("truncate");
        content.bytes.resize(len, 0);
    }

    fn empty(&mut self, volume: &Volume, name: &str) {
        let (at, len) = self.range();
        let mode = match self.below(2) {
            0 => FallocateMode::PunchHole,
            _ => FallocateMode::ZeroRange { keep_size: true },
        };
        let content = self.content(name);
        volume
            .fallocate(Caller::ROOT, content.ino, at as u64, len as u64, mode)
            .expect("fallocate");
        let end = content.bytes.len().min(at + len);
        content.bytes[at.min(end)..end].fill(0);
    }

    fn copy(&mut self, volume: &Volume, from: &str) {
        let (at, len) = self.range();
        let Some(to) = self.some().filter(|to| to != from) else {
            return;
        };
        let source = self.content(from).clone();
        let target = self.content(&to);
        let copied = volume
            .copy_file_range(
                Caller::ROOT,
                source.ino,
                at as u64,
                target.ino,
                at as u64,
                len as u64,
            )
            .expect("copy_file_range");
        let end = source.bytes.len().min(at + len);
        let part = &source.bytes[at.min(end)..end];
        assert_eq!(copied, part.len() as u64);
        if !part.is_empty() {
            let len = target.bytes.len().max(end);
            target.bytes.resize(len, 0);
            target.bytes[at..end].copy_from_slice(part);
        }
    }

    fn rename(&mut self, volume: &Volume, from: &str) {
        let to = self.name();
        volume
            .rename(
                Caller::ROOT,
                self.dir,
                from.as_bytes(),
                self.dir,
                to.as_bytes(),
                RenameMode::Replace,
            )
            .expect("rename");
        if from != to {
            let content = self.files.remove(from).expect("it was there");
            self.orphans.extend(self.files.insert(to, content));
        }
    }

    fn unlink(&mut self, volume: &Volume, name: &str) {
        volume.unlink(self.dir, name.as_bytes()).expect("unlink");
        self.orphans
            .push(self.files.remove(name).expect("it was there"));
    }

    /// An orphan is whole until it is reclaimed, and gone after.
    fn reclaim(&mut self, volume: &Volume) {
        if let Some(content) = self.orphans.pop() {
            compare(volume, "an orphan", &content, 0);
            volume.reclaim(content.ino).expect("reclaim");
            let gone = volume.getattr(content.ino);
            assert!(matches!(gone, Err(FsError::Stale(_))), "{gone:?}");
        }
    }

    fn set_xattr(&mut self, volume: &Volume, name: &str) {
        let value = self.numbers.text(300).into_bytes();
        let content = self.content(name);
        volume
            .setxattr(Caller::ROOT, content.ino, b"user.k", &value, XattrMode::Set)
            .expect("setxattr");
        content.xattr = Some(value);
    }
}

fn compare(volume: &Volume, name: &str, content: &Content, nlink: u32) {
    let attr = volume.getattr(content.ino).expect("getattr");
    assert_eq!((attr.size, attr.nlink), (content.bytes.len() as u64, nlink));
    let read = volume.read(content.ino, 0, 1 << 20).expect("read");
    let differs = read.iter().zip(&content.bytes).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{name}");
    match &content.xattr {
        Some(value) => assert_eq!(
            volume.getxattr(content.ino, b"user.k").as_ref().ok(),
            Some(value)
        ),
        None => assert!(volume.getxattr(content.ino, b"user.k").is_err()),
    }
}

impl Worker for Owner {
    fn step(&mut self, volume: &Volume) {
        let Some(name) = self.some() else {
            return self.create(volume);
        };
        match self.below(20) {
            0 | 1 if self.files.len() < FILES_MAX => self.create(volume),
            2..=7 => self.write(volume, &name),
            8..=11 => self.read(volume, &name),
            12 => self.resize(volume, &name),
            13 => self.empty(volume, &name),
            14 => self.copy(volume, &name),
            15 => self.rename(volume, &name),
            16 => self.unlink(volume, &name),
            17 => self.set_xattr(volume, &name),
            _ => self.reclaim(volume),
        }
    }

    fn verify(&mut self, volume: &Volume) {
        let entries = crate::entries(volume, self.dir, 0, 1000);
        let mut found: Vec<String> = entries
            .into_iter()
            .map(|entry| String::from_utf8(entry.name).expect("our names"))
            .filter(|name| name != "." && name != "..")
            .collect();
        found.sort();
        assert_eq!(found, self.files.keys().cloned().collect::<Vec<_>>());
        for (name, content) in &self.files {
            let attr = volume.lookup(self.dir, name.as_bytes()).expect("lookup");
            assert_eq!(attr.ino, content.ino);
            compare(volume, name, content, 1);
        }
        for content in &self.orphans {
            compare(volume, "an orphan", content, 0);
        }
    }
}
