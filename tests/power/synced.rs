//! The fourth writer: through the kernel's cache, with fsync: whole files, a journal, and removals of old files.
//!
//! What was fsynced must be there, whole. What was not may be there in any part. Removals are changes in their order, as
//! hafsd is asked at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use hafs_tests::numbers::{Numbers, pattern};

use crate::history::{Clock, Held, History, Lost};
use crate::writer::{End, Pace, Stopped, Writer, sync};

/// Older files are removed.
const FILES_MAX: usize = 30;
const FILE_BYTES_MAX: u64 = 300_000;
const APPEND_BYTES_MAX: u64 = 3000;

/// A file that was fsynced: its bytes are told from its number.
#[derive(Debug, Clone, Copy)]
struct Whole {
    number: u64,
    len: usize,
}

/// See the top of this file.
#[derive(Debug)]
pub(crate) struct Synced {
    numbers: Numbers,
    seed: u64,
    next: u64,
    files: BTreeMap<u64, Whole>,
    /// Removed since the power last came back, in order.
    removed: Vec<Whole>,
    /// Files of which nothing was promised.
    unsure: BTreeSet<u64>,
    /// What was fsynced of the journal, and what was appended behind it.
    journal: Vec<u8>,
    tail: Vec<u8>,
    found_journal: Vec<u8>,
    history: History,
    held: Held,
}

impl Synced {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            numbers: Numbers::new(seed),
            seed,
            next: 1,
            files: BTreeMap::new(),
            removed: Vec::new(),
            unsure: BTreeSet::new(),
            journal: Vec::new(),
            tail: Vec::new(),
            found_journal: Vec::new(),
            history: History::default(),
            held: Held { least: 0, most: 0 },
        }
    }

    fn path(dir: &Path, number: u64) -> PathBuf {
        dir.join(format!("synced-{number}"))
    }

    fn content(&self, whole: Whole) -> Vec<u8> {
        pattern(self.seed ^ (whole.number << 20), whole.len)
    }

    fn write_file(&mut self, dir: &Path, clock: &Clock) -> Result<(), Stopped> {
        let number = self.next;
        self.next += 1;
        let len = usize::try_from(1 + self.numbers.below(FILE_BYTES_MAX)).expect("small");
        let whole = Whole { number, len };
        self.unsure.insert(number);
        let made = File::create_new(Self::path(dir, number));
        let mut file = made.map_err(Stopped::from("create"))?;
        for piece in self.content(whole).chunks(50_000) {
            file.write_all(piece).map_err(Stopped::from("write"))?;
        }
        sync(&file, &mut self.history, clock)?;
        self.unsure.remove(&number);
        self.files.insert(number, whole);
        Ok(())
    }

    /// A file that nobody asks to be kept: the kernel sends it when it likes.
    fn write_unsynced(&mut self, dir: &Path) -> Result<(), Stopped> {
        let number = self.next;
        self.next += 1;
        let len = usize::try_from(1 + self.numbers.below(FILE_BYTES_MAX)).expect("small");
        self.unsure.insert(number);
        let bytes = self.content(Whole { number, len });
        fs::write(Self::path(dir, number), bytes).map_err(Stopped::from("write"))
    }

    fn append(&mut self, dir: &Path, clock: &Clock) -> Result<(), Stopped> {
        let len = usize::try_from(1 + self.numbers.below(APPEND_BYTES_MAX)).expect("small");
        let bytes = pattern(self.numbers.below(u64::MAX), len);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(dir.join("journal"));
        let mut file = file.map_err(Stopped::from("open the journal"))?;
        self.tail.extend_from_slice(&bytes);
        file.write_all(&bytes).map_err(Stopped::from("append"))?;
        sync(&file, &mut self.history, clock)?;
        self.journal.append(&mut self.tail);
        Ok(())
    }

    fn remove_oldest(&mut self, dir: &Path, clock: &Clock) -> Result<(), Stopped> {
        let (number, whole) = self.files.pop_first().expect("more than enough");
        self.removed.push(whole);
        self.history.begin(clock);
        fs::remove_file(Self::path(dir, number)).map_err(Stopped::from("unlink"))?;
        self.history.end(clock);
        Ok(())
    }

    fn examine_file(&self, dir: &Path, whole: Whole) -> Result<bool, Lost> {
        let Whole { number, len } = whole;
        match fs::read(Self::path(dir, number)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(format!("fsynced file {number}: {error}")),
            Ok(found) if found == self.content(whole) => Ok(true),
            Ok(found) => Err(format!(
                "fsynced file {number} of {len} bytes differs ({} found)",
                found.len()
            )),
        }
    }

    fn examine_journal(&mut self, dir: &Path) -> Result<(), Lost> {
        let found = match fs::read(dir.join("journal")) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read.map_err(|error| format!("journal: {error}"))?,
        };
        let all = [self.journal.as_slice(), &self.tail].concat();
        if found.len() < self.journal.len() || !all.starts_with(&found) {
            let same = found.iter().zip(&all).take_while(|(is, was)| is == was);
            return Err(format!(
                "journal: {} bytes, of which {} are as written; fsynced were {}",
                found.len(),
                same.count(),
                self.journal.len()
            ));
        }
        self.found_journal = found;
        Ok(())
    }

    /// Every name must be known.
    fn examine_names(&self, dir: &Path) -> Result<(), Lost> {
        let list = fs::read_dir(dir).map_err(|error| format!("list: {error}"))?;
        for entry in list {
            let entry = entry.map_err(|error| format!("list: {error}"))?;
            let name = entry.file_name().display().to_string();
            let number = name.strip_prefix("synced-").and_then(|n| n.parse().ok());
            let known = name == "journal"
                || number.is_some_and(|number| {
                    self.files.contains_key(&number)
                        || self.unsure.contains(&number)
                        || self.removed.iter().any(|whole| whole.number == number)
                });
            if !known {
                return Err(format!("{name}: nobody made it, or it was gone for good"));
            }
        }
        Ok(())
    }
}

impl Writer for Synced {
    fn name(&self) -> &'static str {
        "synced"
    }

    fn step(&mut self, dir: &Path, clock: &Clock, pace: Pace) -> Result<(), Stopped> {
        if self.files.len() > FILES_MAX || (self.files.len() > 3 && self.numbers.once_in(5)) {
            return self.remove_oldest(dir, clock);
        }
        if pace == Pace::Seldom && !self.numbers.once_in(40) {
            return self.write_unsynced(dir);
        }
        if self.numbers.once_in(3) {
            self.write_file(dir, clock)
        } else {
            self.append(dir, clock)
        }
    }

    fn release(&mut self) {}

    fn examine(&mut self, dir: &Path) -> Result<Held, Lost> {
        for whole in self.files.values() {
            if !self.examine_file(dir, *whole)? {
                return Err(format!("fsynced file {} is gone", whole.number));
            }
        }
        let mut removed = self.removed.len();
        for (at, whole) in self.removed.iter().enumerate() {
            let is_there = self.examine_file(dir, *whole)?;
            if is_there && removed == self.removed.len() {
                removed = at;
            }
            if !is_there && at > removed {
                return Err(format!(
                    "no prefix: file {} is removed, and file {}, which was removed before it, is there",
                    whole.number, self.removed[removed].number
                ));
            }
        }
        self.examine_journal(dir)?;
        self.examine_names(dir)?;
        self.held = Held {
            least: removed,
            most: removed,
        };
        Ok(self.held)
    }

    fn go_on(&mut self, end: End, clock: &Clock) {
        for whole in self.removed.split_off(self.held.most) {
            self.files.insert(whole.number, whole);
        }
        match end {
            End::Process => {
                self.history.truncate(self.held.most, clock);
                self.tail = self.found_journal.split_off(self.journal.len());
            }
            End::Power => {
                self.removed.clear();
                self.history.clear();
                self.journal = std::mem::take(&mut self.found_journal);
                self.tail.clear();
            }
        }
    }

    fn history(&self) -> &History {
        &self.history
    }
}
