//! Writers that remember what they were told is done, and check that it is.
//!
//! Each has a directory of its own on the mount and a thread of its own in a round. A round ends when hafsd is killed: the
//! operation that fails then may or may not have happened, every earlier one must have. [`Writer::verify`] compares and
//! takes over what it finds where both are allowed.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

pub(crate) use hafs_tests::numbers::{Numbers, pattern};
use rustix::io::Errno;

/// What was found that must not be.
pub(crate) type Lost = String;

/// Why a step did not happen.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The daemon is gone: right once it is being killed.
    Gone,
    /// Something else: a failure of the test.
    Wrong(String),
}

impl Stopped {
    /// Sorts the error of a system call. A dead FUSE mount answers ENOTCONN; a request that was under way when it died,
    /// ECONNABORTED, or EIO if hafsd died while it was reading it (`fuse_dev_do_read` in the kernel's `fs/fuse/dev.c`).
    /// fsync reports pages that could not be written any more with EIO.
    pub(crate) fn from(what: &str) -> impl Fn(io::Error) -> Self + '_ {
        move |error| match Errno::from_io_error(&error) {
            Some(Errno::NOTCONN | Errno::CONNABORTED | Errno::IO) => Self::Gone,
            _ => Self::Wrong(format!("{what}: {error}")),
        }
    }
}

/// One of the four.
pub(crate) trait Writer: Send + Debug {
    /// Does one thing and remembers it once it is done.
    fn step(&mut self, dir: &Path) -> Result<(), Stopped>;

    /// Closes what it holds open on a dead mount.
    fn release(&mut self);

    /// Compares what is there with what must be.
    fn verify(&mut self, dir: &Path) -> Result<(), Lost>;
}

/// Overwrites random pieces of one file with O_DIRECT: what write(2) returned for, hafsd has answered.
#[derive(Debug)]
pub(crate) struct Direct {
    numbers: Numbers,
    file: Option<File>,
    bytes: Vec<u8>,
    /// The write that was under way.
    pending: Option<(u64, Vec<u8>)>,
}

const DIRECT_FILE_BYTES: u64 = 4 << 20;

impl Direct {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            numbers: Numbers::new(seed),
            file: None,
            bytes: Vec::new(),
            pending: None,
        }
    }
}

impl Writer for Direct {
    fn step(&mut self, dir: &Path) -> Result<(), Stopped> {
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            let options = options
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(libc::O_DIRECT);
            self.file = Some(
                options
                    .open(dir.join("direct"))
                    .map_err(Stopped::from("open with O_DIRECT"))?,
            );
        }
        let file = self.file.as_ref().expect("just opened");
        let len = [512, 4096, 4096, 5000, 16_384, 65_536, 200_000]
            [usize::try_from(self.numbers.below(7)).expect("7")];
        let offset = self.numbers.below(DIRECT_FILE_BYTES);
        let bytes = pattern(self.numbers.below(u64::MAX), len);
        self.pending = Some((offset, bytes.clone()));
        file.write_all_at(&bytes, offset)
            .map_err(Stopped::from("write with O_DIRECT"))?;
        self.pending = None;
        let end = usize::try_from(offset).expect("4 MiB") + len;
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[end - len..end].copy_from_slice(&bytes);
        Ok(())
    }

    fn release(&mut self) {
        self.file = None;
    }

    fn verify(&mut self, dir: &Path) -> Result<(), Lost> {
        let path = dir.join("direct");
        // Before the first write that returned, there need be no file.
        let found = if self.bytes.is_empty() {
            fs::read(&path).unwrap_or_default()
        } else {
            read(&path)?
        };
        let (start, new) = self.pending.take().unwrap_or_default();
        let start = usize::try_from(start).expect("4 MiB");
        let end = start + new.len();
        let longest = if new.is_empty() {
            self.bytes.len()
        } else {
            self.bytes.len().max(end)
        };
        if found.len() < self.bytes.len() || found.len() > longest {
            return Err(format!(
                "direct: {} bytes instead of {}",
                found.len(),
                self.bytes.len()
            ));
        }
        for (at, &byte) in found.iter().enumerate() {
            let old = self.bytes.get(at).copied().unwrap_or(0);
            let pending = (start..end).contains(&at) && byte == new[at - start];
            if byte != old && !pending {
                return Err(format!(
                    "direct: byte {at} is {byte:#04x}, written was {old:#04x}"
                ));
            }
        }
        self.bytes = found;
        Ok(())
    }
}

/// Writes whole files through the cache and fsyncs them, and appends to a journal with an fsync each time.
#[derive(Debug)]
pub(crate) struct Synced {
    numbers: Numbers,
    next: u64,
    /// Files that were fsynced: length and seed.
    files: BTreeMap<u64, (usize, u64)>,
    journal: Vec<u8>,
    /// What the last, unfinished append may have added.
    pending: Vec<u8>,
    /// A removal that may have happened.
    removing: Option<u64>,
}

/// Older files are removed: the space is for the collector to find.
const SYNCED_FILES_MAX: usize = 40;

impl Synced {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            numbers: Numbers::new(seed),
            next: 0,
            files: BTreeMap::new(),
            journal: Vec::new(),
            pending: Vec::new(),
            removing: None,
        }
    }

    fn path(dir: &Path, number: u64) -> PathBuf {
        dir.join(format!("synced-{number}"))
    }

    fn write_file(&mut self, dir: &Path) -> Result<(), Stopped> {
        let (number, seed) = (self.next, self.numbers.below(u64::MAX));
        self.next += 1;
        let len = usize::try_from(1 + self.numbers.below(300_000)).expect("small");
        let mut file =
            File::create_new(Self::path(dir, number)).map_err(Stopped::from("create"))?;
        for piece in pattern(seed, len).chunks(50_000) {
            file.write_all(piece).map_err(Stopped::from("write"))?;
        }
        file.sync_all().map_err(Stopped::from("fsync"))?;
        self.files.insert(number, (len, seed));
        Ok(())
    }

    fn append(&mut self, dir: &Path) -> Result<(), Stopped> {
        let len = usize::try_from(1 + self.numbers.below(3000)).expect("small");
        self.pending = pattern(self.numbers.below(u64::MAX), len);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(dir.join("journal"));
        let mut file = file.map_err(Stopped::from("open the journal"))?;
        file.write_all(&self.pending)
            .map_err(Stopped::from("append"))?;
        file.sync_data().map_err(Stopped::from("fdatasync"))?;
        self.journal.append(&mut self.pending);
        Ok(())
    }

    fn remove_oldest(&mut self, dir: &Path) -> Result<(), Stopped> {
        let Some((number, _)) = self.files.pop_first() else {
            return Ok(());
        };
        self.removing = Some(number);
        fs::remove_file(Self::path(dir, number)).map_err(Stopped::from("unlink"))?;
        self.removing = None;
        Ok(())
    }
}

impl Writer for Synced {
    fn step(&mut self, dir: &Path) -> Result<(), Stopped> {
        if self.files.len() > SYNCED_FILES_MAX {
            self.remove_oldest(dir)?;
        }
        if self.numbers.below(3) == 0 {
            self.write_file(dir)
        } else {
            self.append(dir)
        }
    }

    fn release(&mut self) {}

    fn verify(&mut self, dir: &Path) -> Result<(), Lost> {
        for (&number, &(len, seed)) in &self.files {
            let found = read(&Self::path(dir, number))?;
            if found != pattern(seed, len) {
                return Err(format!(
                    "fsynced file {number} of {len} bytes differs ({} found)",
                    found.len()
                ));
            }
        }
        self.removing = None;
        if self.journal.is_empty() && self.pending.is_empty() {
            return Ok(());
        }
        let found = fs::read(dir.join("journal")).unwrap_or_default();
        let whole = [self.journal.as_slice(), &self.pending].concat();
        if found.len() < self.journal.len() || !whole.starts_with(&found) {
            return Err(format!(
                "journal: {} bytes, fsynced were {}",
                found.len(),
                self.journal.len()
            ));
        }
        self.pending.clear();
        self.journal = found;
        Ok(())
    }
}

/// Creates, renames, links, removes: each call that returned was answered by hafsd.
#[derive(Debug)]
pub(crate) struct Names {
    numbers: Numbers,
    next: u64,
    /// Name: what it is.
    entries: BTreeMap<String, Entry>,
    /// The entries as they are if the call under way happened.
    pending: Option<BTreeMap<String, Entry>>,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    /// An empty file with this mode.
    File(u32),
    Directory,
    /// A symlink to this.
    Symlink(String),
}

const NAMES_MAX: usize = 300;

impl Names {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            numbers: Numbers::new(seed),
            next: 0,
            entries: BTreeMap::new(),
            pending: None,
        }
    }

    fn some_name(&mut self, want: fn(&Entry) -> bool) -> Option<String> {
        let names: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| want(entry))
            .collect();
        let at = self.numbers.below(names.len().max(1) as u64);
        names
            .get(usize::try_from(at).expect("few"))
            .map(|(name, _)| (*name).clone())
    }

    /// One call; `after` becomes what it leaves.
    fn call(&mut self, dir: &Path, after: &mut BTreeMap<String, Entry>) -> Option<Call> {
        let name = format!("n{}", self.next);
        let path = dir.join(&name);
        self.next += 1;
        let is_file = |entry: &Entry| matches!(entry, Entry::File(_));
        let crowded = self.entries.len() > NAMES_MAX;
        let call: Call = match self.numbers.below(if crowded { 2 } else { 8 }) {
            0 => {
                let old = self.some_name(|entry| *entry != Entry::Directory)?;
                after.remove(&old);
                let old = dir.join(old);
                Box::new(move || fs::remove_file(old))
            }
            1 => {
                let old = self.some_name(|entry| *entry == Entry::Directory)?;
                after.remove(&old);
                let old = dir.join(old);
                Box::new(move || fs::remove_dir(old))
            }
            2 => {
                after.insert(name, Entry::Directory);
                Box::new(move || fs::create_dir(path))
            }
            3 => {
                let target = format!("target-{}", self.next);
                after.insert(name, Entry::Symlink(target.clone()));
                Box::new(move || symlink(target, path))
            }
            4 => {
                let old = self.some_name(|_| true)?;
                let entry = after.remove(&old).expect("drawn from it");
                after.insert(name, entry);
                let old = dir.join(old);
                Box::new(move || fs::rename(old, path))
            }
            5 => {
                let old = self.some_name(is_file)?;
                let mode = 0o600 + u32::try_from(self.numbers.below(64)).expect("64");
                after.insert(old.clone(), Entry::File(mode));
                let old = dir.join(old);
                Box::new(move || fs::set_permissions(old, fs::Permissions::from_mode(mode)))
            }
            _ => {
                after.insert(name, Entry::File(0o640));
                Box::new(move || {
                    OpenOptions::new()
                        .write(true)
                        .create_new(true)
                        .mode(0o640)
                        .open(path)
                        .map(drop)
                })
            }
        };
        Some(call)
    }

    /// What is there.
    fn list(dir: &Path) -> io::Result<BTreeMap<String, Entry>> {
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.path().symlink_metadata()?;
            let is = if metadata.is_dir() {
                Entry::Directory
            } else if metadata.is_symlink() {
                Entry::Symlink(fs::read_link(entry.path())?.to_string_lossy().into_owned())
            } else {
                Entry::File(metadata.permissions().mode() & 0o7777)
            };
            entries.insert(entry.file_name().to_string_lossy().into_owned(), is);
        }
        Ok(entries)
    }
}

type Call = Box<dyn FnOnce() -> io::Result<()>>;

impl Writer for Names {
    fn step(&mut self, dir: &Path) -> Result<(), Stopped> {
        let mut after = self.entries.clone();
        let Some(call) = self.call(dir, &mut after) else {
            return Ok(());
        };
        self.pending = Some(after);
        call().map_err(Stopped::from("a change of names"))?;
        self.entries = self.pending.take().expect("just set");
        Ok(())
    }

    fn release(&mut self) {}

    fn verify(&mut self, dir: &Path) -> Result<(), Lost> {
        let found = Self::list(dir).map_err(|error| format!("names: {error}"))?;
        if found != self.entries && Some(&found) != self.pending.as_ref() {
            let missing: Vec<_> = self
                .entries
                .iter()
                .filter(|(name, is)| found.get(*name) != Some(is))
                .collect();
            let extra: Vec<_> = found
                .iter()
                .filter(|(name, is)| self.entries.get(*name) != Some(is))
                .collect();
            return Err(format!("names: missing {missing:?}, unknown {extra:?}"));
        }
        self.pending = None;
        self.entries = found;
        Ok(())
    }
}

/// Reads a file that must be there.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Lost> {
    fs::read(path).map_err(|error| {
        format!(
            "{}: {error}",
            path.file_name().unwrap_or_default().display()
        )
    })
}
