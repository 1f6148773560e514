//! The durable mark: the newest lsn of which it is known that everything up to it was synced once.
//!
//! Written after each sync, itself not synced: after a power cut it may be older, never newer, than the truth. So a log
//! that ends before its mark has lost what was promised, and recovery says so instead of cutting silently.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use hafs_protocol::Lsn;

use crate::error::FsError;
use crate::store::syncfile::{SyncFile, io_error, sync_dir};

const MAGIC: &[u8; 4] = b"hDM1";
/// Magic, lsn, CRC32C of both.
const SLOT_BYTES: usize = 16;
/// Two slots, written in turn and apart from each other, so that a torn write leaves one whole.
const SLOT_OFFSETS: [u64; 2] = [0, 4096];

/// The open mark file. One thread writes it.
#[derive(Debug)]
pub(crate) struct Mark {
    file: SyncFile,
    next_slot: usize,
}

impl Mark {
    /// Makes the mark of a new store, durably: from now on one of its slots is always whole.
    pub(crate) fn create(dir: &Path) -> Result<(), FsError> {
        let path = dir.join("mark");
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(io_error("create", &path))?;
        let file = SyncFile::new(file, path);
        let mut mark = Self { file, next_slot: 0 };
        mark.set(Lsn(0))?;
        mark.set(Lsn(0))?;
        mark.file
            .file()
            .sync_all()
            .map_err(io_error("sync", mark.file.path()))
    }

    /// Opens the mark; returns what it says.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] if it is not there or no slot is whole: nobody could tell then whether the log is.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Lsn), FsError> {
        let path = dir.join("mark");
        let lost = |what: &str| {
            FsError::Corrupt(format!(
                "{} {what}: whether synced records are lost cannot be told",
                path.display()
            ))
        };
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(lost("is missing"));
            }
            opened => opened.map_err(io_error("open", &path))?,
        };
        let file = SyncFile::new(file, path.clone());
        let slots = SLOT_OFFSETS.map(|offset| read_slot(&file, offset));
        let Some(newest) = slots[0].max(slots[1]) else {
            return Err(lost("is damaged"));
        };
        if slots.contains(&None) {
            // The other is older by one sync; the next one mends this.
            tracing::warn!(path = %path.display(), "one of the two durable marks is damaged");
        }
        let next_slot = usize::from(slots[0] >= slots[1]);
        Ok((Self { file, next_slot }, newest))
    }

    /// Makes the mark anew, durably, where an operator accepts that records are lost.
    pub(crate) fn lower(dir: &Path, lsn: Lsn) -> Result<(), FsError> {
        let path = dir.join("mark");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let file = SyncFile::new(file, path);
        let mut mark = Self { file, next_slot: 0 };
        mark.set(lsn)?;
        mark.set(lsn)?;
        mark.file
            .file()
            .sync_all()
            .map_err(io_error("sync", mark.file.path()))?;
        sync_dir(dir)
    }

    /// Moves the mark. `lsn` never falls.
    pub(crate) fn set(&mut self, lsn: Lsn) -> Result<(), FsError> {
        self.file
            .write_at(&encode_slot(lsn), SLOT_OFFSETS[self.next_slot])?;
        self.next_slot ^= 1;
        Ok(())
    }
}

/// A slot that was never written, or is torn, says nothing.
fn read_slot(file: &SyncFile, offset: u64) -> Option<Lsn> {
    let mut slot = [0; SLOT_BYTES];
    file.read_at(&mut slot, offset).ok()?;
    decode_slot(&slot)
}

pub(crate) fn encode_slot(lsn: Lsn) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..4].copy_from_slice(MAGIC);
    slot[4..12].copy_from_slice(&lsn.0.to_le_bytes());
    let crc = crc32c::crc32c(&slot[..12]);
    slot[12..].copy_from_slice(&crc.to_le_bytes());
    slot
}

pub(crate) fn decode_slot(slot: &[u8; SLOT_BYTES]) -> Option<Lsn> {
    let crc = crc32c::crc32c(&slot[..12]).to_le_bytes();
    (slot[..4] == *MAGIC && slot[12..] == crc)
        .then(|| Lsn(u64::from_le_bytes(slot[4..12].try_into().expect("8 bytes"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Mark::open(dir.path()), Err(FsError::Corrupt(_))));
        Mark::create(dir.path()).unwrap();
        let (mut mark, at) = Mark::open(dir.path()).unwrap();
        assert_eq!(at, Lsn(0));
        for lsn in 1..=5 {
            mark.set(Lsn(lsn)).unwrap();
        }
        let (mark, at) = Mark::open(dir.path()).unwrap();
        assert_eq!(at, Lsn(5));
        let newest = SLOT_OFFSETS[mark.next_slot ^ 1];
        mark.file.write_at(&[0xff], newest + 5).unwrap();
        assert_eq!(
            Mark::open(dir.path()).unwrap().1,
            Lsn(4),
            "a torn slot gives way to the older"
        );
        mark.file
            .write_at(&[0xff], SLOT_OFFSETS[mark.next_slot] + 5)
            .unwrap();
        let refused = Mark::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("is damaged"), "{refused}");
    }
}
