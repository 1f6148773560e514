//! The mark: the newest revision of which it is known that it was written.
//!
//! RocksDB takes damage in its log for the log's torn end, and drops what lies behind without a word. So the writing thread
//! notes each revision here once it is synced, and a store that ends before its mark is told by it when it is opened. The mark
//! is synced before the revision is acknowledged: it is never newer than the truth, and never older than what was promised.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Its name in the store's directory.
pub(super) const FILE: &str = "mark";
const MAGIC: &[u8; 4] = b"hCM1";
/// Magic, revision, CRC32C of both.
const SLOT_BYTES: usize = 16;
/// Two slots, written in turn and apart from each other, so that a torn write leaves one whole.
const SLOT_OFFSETS: [u64; 2] = [0, 4096];

/// The open mark. The writing thread has it.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    next_slot: usize,
}

/// Why a mark says nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum MarkError {
    #[error("its mark cannot be read: whether it is whole cannot be told")]
    Io(#[from] io::Error),
    #[error("its mark is damaged: whether it is whole cannot be told")]
    Damaged,
}

impl Mark {
    /// Makes the mark of a store that is at `rev`; the caller syncs the directory.
    pub(super) fn create(dir: &Path, rev: u64) -> io::Result<()> {
        let file = File::create(dir.join(FILE))?;
        for offset in SLOT_OFFSETS {
            file.write_all_at(&encode_slot(rev), offset)?;
        }
        file.sync_all()
    }

    /// Opens the mark; returns what it says. Changes nothing.
    pub(super) fn open(dir: &Path) -> Result<(Self, u64), MarkError> {
        let path = dir.join(FILE);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let slots = SLOT_OFFSETS.map(|offset| read_slot(&file, offset));
        let newest = slots[0].max(slots[1]).ok_or(MarkError::Damaged)?;
        if slots.contains(&None) {
            // The other is older by one revision; the next one mends this.
            tracing::warn!(path = %path.display(), "one of the control store's two marks is damaged");
        }
        let next_slot = usize::from(slots[0] >= slots[1]);
        Ok((Self { file, next_slot }, newest))
    }

    /// Moves the mark, durably. `rev` never falls.
    pub(super) fn set(&mut self, rev: u64) -> io::Result<()> {
        let slot = encode_slot(rev);
        self.file
            .write_all_at(&slot, SLOT_OFFSETS[self.next_slot])?;
        self.next_slot ^= 1;
        self.file.sync_data()
    }
}

/// A slot that is torn says nothing.
fn read_slot(file: &File, offset: u64) -> Option<u64> {
    let mut slot = [0; SLOT_BYTES];
    file.read_exact_at(&mut slot, offset).ok()?;
    decode_slot(&slot)
}

pub(crate) fn encode_slot(rev: u64) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..4].copy_from_slice(MAGIC);
    slot[4..12].copy_from_slice(&rev.to_le_bytes());
    let crc = crc32c::crc32c(&slot[..12]);
    slot[12..].copy_from_slice(&crc.to_le_bytes());
    slot
}

pub(crate) fn decode_slot(slot: &[u8; SLOT_BYTES]) -> Option<u64> {
    let crc = crc32c::crc32c(&slot[..12]).to_le_bytes();
    (slot[..4] == *MAGIC && slot[12..] == crc)
        .then(|| u64::from_le_bytes(slot[4..12].try_into().expect("8 bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Mark::open(dir.path()), Err(MarkError::Io(_))));
        Mark::create(dir.path(), 0).unwrap();
        let (mut mark, rev) = Mark::open(dir.path()).unwrap();
        assert_eq!(rev, 0);
        for rev in 1..=5 {
            mark.set(rev).unwrap();
        }
        let (mark, rev) = Mark::open(dir.path()).unwrap();
        assert_eq!(rev, 5);
        let damage = |slot: usize| {
            let offset = SLOT_OFFSETS[slot] + 5;
            mark.file.write_all_at(&[0xff], offset).unwrap();
        };
        damage(mark.next_slot ^ 1);
        assert_eq!(Mark::open(dir.path()).unwrap().1, 4);
        damage(mark.next_slot);
        assert!(matches!(Mark::open(dir.path()), Err(MarkError::Damaged)));
    }
}
