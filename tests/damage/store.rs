//! A small store to damage, and what it must hold: prepared once a test, copied for each damage, and read back to the last
//! byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use hafs_fs::{
    Caller, CheckReport, FsError, Ino, Profile, Repair, SharedCache, Volume, VolumeIdentity,
    VolumeSettings, XattrMode,
};
use hafs_protocol::{Epoch, Lineage, NodeId, StoreId, VolumeId};
use hafs_tests::numbers;

use crate::layout;
use crate::warnings::warnings_of;

/// The epochs that a store was made in, and in which a damaged copy is opened.
const MADE_IN: u32 = 2;
const OPENED_IN: u32 = 100;

/// Files that are written one after the other, unsynced, once everything else is synced.
pub(crate) const TAIL_FILES: usize = 6;

pub(crate) fn identity() -> VolumeIdentity {
    VolumeIdentity {
        volume: VolumeId::from_bytes([1; 16]),
        store: StoreId::from_bytes([2; 16]),
        node: NodeId::from_bytes([3; 16]),
        lineage: Lineage::from_bytes([4; 16]),
    }
}

pub(crate) fn settings() -> VolumeSettings {
    VolumeSettings {
        log_file_bytes: 256 << 10,
        log_keep_bytes: 512 << 10,
        segment_bytes: 1 << 20,
        state_buffer_bytes: 1 << 20,
        cache: SharedCache::new(1 << 20),
        ..VolumeSettings::new(64 << 20, Profile::Auto)
    }
}

/// How the process that made a store ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Closed.
    Clean,
    /// As by `kill -9`: what was synced is in the log only, and behind it lie records that were not.
    Crashed,
}

/// What a file holds.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) ino: Ino,
    pub(crate) bytes: Vec<u8>,
    /// Unsynced, and the so many-th of those: all before it are there if it is.
    pub(crate) tail: Option<usize>,
}

/// A store on disk and what it holds.
#[derive(Debug)]
pub(crate) struct Prepared {
    dir: tempfile::TempDir,
    pub(crate) files: BTreeMap<String, Content>,
    pub(crate) end: End,
    /// The durable mark as it was before anything was synced.
    pub(crate) first_mark: Vec<u8>,
}

/// What became of a damaged store: nothing of what it answered was wrong, else there would be no such value.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It was not opened.
    Refused(FsError),
    /// It was, and everything that can be read was read.
    Opened(Opened),
}

#[derive(Debug)]
pub(crate) struct Opened {
    /// What could not be read, with the error.
    pub(crate) errors: Vec<(String, FsError)>,
    pub(crate) report: Result<CheckReport, FsError>,
    /// Unsynced files that are there.
    pub(crate) tail: usize,
    /// What was logged as WARN or ERROR.
    pub(crate) warnings: Vec<String>,
}

impl Opened {
    /// Everything can be read, and the check finds nothing.
    pub(crate) fn is_unhurt(&self) -> bool {
        self.errors.is_empty() && self.report.as_ref().is_ok_and(|r| r.problem_count == 0)
    }
}

impl Verdict {
    #[track_caller]
    pub(crate) fn refused(self) -> FsError {
        match self {
            Self::Refused(error) => error,
            Self::Opened(opened) => panic!("not refused: {opened:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn opened(self) -> Opened {
        match self {
            Self::Refused(error) => panic!("refused: {error}"),
            Self::Opened(opened) => opened,
        }
    }

    #[track_caller]
    pub(crate) fn unhurt(self) -> Opened {
        let opened = self.opened();
        assert!(opened.is_unhurt(), "{opened:?}");
        opened
    }

    /// Nothing was hit that says something: nobody noticed.
    #[track_caller]
    pub(crate) fn unnoticed(self) -> Opened {
        let opened = self.unhurt();
        assert_eq!(opened.warnings, Vec::<String>::new());
        opened
    }

    /// Something was hit that something else stands for: it is told in one line, with the file's name.
    #[track_caller]
    pub(crate) fn told(self, words: &str, file: &Path) -> Opened {
        let opened = self.unhurt();
        let name = file.file_name().unwrap().to_str().unwrap();
        let is_told = |line: &String| line.contains(words) && line.contains(name);
        assert!(
            opened.warnings.len() == 1 && opened.warnings.iter().all(is_told),
            "{:?}",
            opened.warnings
        );
        opened
    }
}

/// A fast place for many short-lived stores: what is tested is bytes, not a disk.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    let named = builder.prefix("hafs-damage-");
    let made = if memory.is_dir() {
        named.tempdir_in(memory)
    } else {
        named.tempdir()
    };
    made.expect("a scratch directory")
}

/// Bytes that tell where they belong, so that any mix-up shows.
pub(crate) fn pattern(name: &str, len: usize) -> Vec<u8> {
    numbers::pattern(u64::from(crc32c_of(name)), len)
}

fn crc32c_of(name: &str) -> u32 {
    name.bytes().fold(7, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u32::from(byte))
    })
}

impl Prepared {
    pub(crate) fn new(end: End) -> Self {
        let dir = scratch();
        let path = dir.path().join("v");
        Volume::create(&path, &identity(), &settings(), Epoch(1)).unwrap();
        let first_mark = fs::read(path.join("mark")).unwrap();
        let volume = Volume::open(&path, &identity(), &settings(), Epoch(MADE_IN)).unwrap();
        let mut prepared = Self {
            first_mark,
            dir,
            files: BTreeMap::new(),
            end,
        };
        prepared.fill(&volume);
        match end {
            End::Clean => volume.close().unwrap(),
            End::Crashed => {
                volume.sync().unwrap();
                for n in 0..TAIL_FILES {
                    let len = if n % 2 == 0 { 3000 } else { 40_000 };
                    prepared.put(&volume, &format!("tail-{n}"), len, Some(n));
                }
                volume.crash();
            }
        }
        prepared
    }

    /// Everything that is synced.
    fn fill(&mut self, volume: &Volume) {
        // More than half a segment of long writes, and of short ones.
        for (name, len) in [
            ("empty", 0),
            ("inline", 5000),
            ("chunks", 300_000),
            ("odd", 131_073),
            ("short", 150_000),
            ("long", 400_000),
            ("overwritten", 200_000),
        ] {
            self.put(volume, name, len, None);
        }
        // More than one log file, all of it still to be replayed after a crash.
        let inline = self.files["inline"].clone();
        for _ in 0..60 {
            volume
                .write(inline.ino, 0, &inline.bytes, false, false)
                .unwrap();
        }
        let part = pattern("part", 70_000);
        let overwritten = self.files.get_mut("overwritten").unwrap();
        for at in [1000, 100_000] {
            volume
                .write(overwritten.ino, at, &part, false, false)
                .unwrap();
            let at = usize::try_from(at).unwrap();
            overwritten.bytes[at..at + part.len()].copy_from_slice(&part);
        }
        for name in self.files.keys() {
            let value = pattern(name, 300);
            let ino = self.files[name].ino;
            volume
                .setxattr(Caller::ROOT, ino, b"user.test", &value, XattrMode::Set)
                .unwrap();
        }
        let dir = volume
            .mkdir(Caller::ROOT, Ino::ROOT, b"dir", 0o755)
            .unwrap()
            .ino;
        volume
            .symlink(Caller::ROOT, dir, b"link", b"../chunks")
            .unwrap();
    }

    fn put(&mut self, volume: &Volume, name: &str, len: usize, tail: Option<usize>) {
        let mode = libc::S_IFREG | 0o644;
        let made = volume.mknod(Caller::ROOT, Ino::ROOT, name.as_bytes(), mode, 0);
        let ino = made.unwrap().ino;
        let bytes = pattern(name, len);
        volume.write(ino, 0, &bytes, false, false).unwrap();
        self.files
            .insert(name.to_owned(), Content { ino, bytes, tail });
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("v")
    }

    /// A copy to damage.
    pub(crate) fn copy(&self) -> Copy<'_> {
        let dir = scratch();
        copy_dir(&self.path(), &dir.path().join("v"));
        Copy {
            dir,
            prepared: self,
        }
    }

    fn read_back(&self, volume: &Volume) -> Opened {
        let mut errors = Vec::new();
        let mut tails = Vec::new();
        for (name, content) in &self.files {
            match read_file(volume, name, content, &mut errors) {
                Some(()) => tails.extend(content.tail),
                None => assert!(content.tail.is_some(), "{name} is gone"),
            }
        }
        read_tree(volume, &mut errors);
        tails.sort_unstable();
        let in_order = tails.iter().enumerate().all(|(n, tail)| n == *tail);
        assert!(in_order, "not a prefix: {tails:?}");
        Opened {
            errors,
            report: volume.check(&mut |_, _| {}),
            tail: tails.len(),
            warnings: Vec::new(),
        }
    }
}

/// `None`: it is not there. Panics if anything of it is wrong.
fn read_file(
    volume: &Volume,
    name: &str,
    content: &Content,
    errors: &mut Vec<(String, FsError)>,
) -> Option<()> {
    let attr = match volume.lookup(Ino::ROOT, name.as_bytes()) {
        Ok(attr) => attr,
        Err(FsError::NotFound) => return None,
        Err(error) => {
            errors.push((name.to_owned(), error));
            return Some(());
        }
    };
    assert_eq!(attr.ino, content.ino, "{name}");
    // The last record of the log may be the one that made an unsynced file.
    if content.tail.is_some() && attr.size == 0 {
        return None;
    }
    assert_eq!(attr.size, content.bytes.len() as u64, "{name}");
    for (n, expected) in content.bytes.chunks(8192).enumerate() {
        let at = n as u64 * 8192;
        match volume.read(attr.ino, at, 8192) {
            Ok(bytes) => assert!(bytes == expected, "WRONG BYTES in {name} at {at}"),
            Err(error) => errors.push((name.to_owned(), error)),
        }
    }
    if content.tail.is_none() {
        match volume.getxattr(attr.ino, b"user.test") {
            Ok(value) => assert_eq!(value, pattern(name, 300), "{name}"),
            Err(FsError::NoXattr) => panic!("the attribute of {name} is gone"),
            Err(error) => errors.push((name.to_owned(), error)),
        }
    }
    Some(())
}

fn read_tree(volume: &Volume, errors: &mut Vec<(String, FsError)>) {
    let link = volume
        .lookup(Ino::ROOT, b"dir")
        .and_then(|dir| volume.lookup(dir.ino, b"link"))
        .and_then(|link| volume.readlink(link.ino));
    match link {
        Ok(target) => assert_eq!(target, b"../chunks"),
        Err(FsError::NotFound) => panic!("dir/link is gone"),
        Err(error) => errors.push(("dir/link".to_owned(), error)),
    }
}

/// A copy of a store, to be damaged.
#[derive(Debug)]
pub(crate) struct Copy<'a> {
    dir: tempfile::TempDir,
    prepared: &'a Prepared,
}

impl Copy<'_> {
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("v")
    }

    /// Flips one bit.
    pub(crate) fn flip(&self, file: &Path, offset: u64, bit: u8) {
        layout::flip(&self.path().join(file), offset, bit);
    }

    /// Opens it and reads everything back.
    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict_again(OPENED_IN)
    }

    pub(crate) fn open(&self) -> Result<Volume, FsError> {
        self.open_again(OPENED_IN)
    }

    /// The same in a later epoch.
    pub(crate) fn open_again(&self, epoch: u32) -> Result<Volume, FsError> {
        Volume::open(&self.path(), &identity(), &settings(), Epoch(epoch))
    }

    pub(crate) fn verdict_again(&self, epoch: u32) -> Verdict {
        let (verdict, warnings) = warnings_of(|| match self.open_again(epoch) {
            Err(error) => Verdict::Refused(error),
            Ok(volume) => Verdict::Opened(self.prepared.read_back(&volume)),
        });
        match verdict {
            Verdict::Refused(error) => Verdict::Refused(error),
            Verdict::Opened(opened) => Verdict::Opened(Opened { warnings, ..opened }),
        }
    }

    pub(crate) fn repair(&self, accept_loss: bool) -> Result<Repair, FsError> {
        Volume::repair(&self.path(), &identity(), &settings(), accept_loss)
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// All files of a store, relative to it, with their lengths.
pub(crate) fn files_of(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    collect_files(dir, Path::new(""), &mut files);
    files.sort();
    files
}

fn collect_files(root: &Path, below: &Path, files: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            collect_files(root, &path, files);
        } else {
            files.push((path, meta.len()));
        }
    }
}
