//! The layouts of `docs/on-disk.md`, so far as one must know them to hit a field.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A field: its name, where it starts, how long it is.
pub(crate) type Field = (&'static str, u64, u64);

pub(crate) const PAGE_BYTES: u64 = 4096;

pub(crate) const LOG_HEADER: [Field; 6] = [
    ("magic", 0, 8),
    ("version", 8, 1),
    ("store uuid", 9, 16),
    ("first lsn", 25, 8),
    ("chain before it", 33, 16),
    ("crc32c", 49, 4),
];

pub(crate) const SEGMENT_HEADER: [Field; 5] = [
    ("magic", 0, 8),
    ("version", 8, 1),
    ("store uuid", 9, 16),
    ("number", 25, 8),
    ("crc32c", 33, 4),
];

pub(crate) const MARK_SLOT: [Field; 3] = [("magic", 0, 4), ("lsn", 4, 8), ("crc32c", 12, 4)];
pub(crate) const MARK_SLOTS: [u64; 2] = [0, PAGE_BYTES];

const FRAME_HEADER: [Field; 7] = [
    ("magic", 0, 4),
    ("length", 4, 4),
    ("crc32c", 8, 4),
    ("record length", 12, 4),
    ("chunk count", 16, 4),
    ("durable", 20, 8),
    ("chain", 28, 16),
];
const FRAME_HEADER_BYTES: u64 = 44;
const RECORD_HEADER: [Field; 6] = [
    ("record version", 0, 1),
    ("record kind", 1, 1),
    ("record epoch", 2, 4),
    ("record lsn", 6, 8),
    ("mutations", 14, 4),
    ("pieces", 18, 4),
];
const RECORD_HEADER_BYTES: u64 = 22;
const PLACE_BYTES: u64 = 12;

/// A frame of the log.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Relative to the store.
    pub(crate) file: PathBuf,
    pub(crate) offset: u64,
    pub(crate) lsn: u64,
    pub(crate) chunks: u64,
    len: u64,
    record_len: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn usize_of(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// Files of a directory of a store with this extension, relative to the store, in order.
pub(crate) fn files(store: &Path, dir: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(store.join(dir)).unwrap();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| Path::new(dir).join(entry.unwrap().file_name()))
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

/// All frames of the log, in order.
pub(crate) fn frames(store: &Path) -> Vec<Frame> {
    let mut frames: Vec<Frame> = Vec::new();
    for file in files(store, "log", "log") {
        let bytes = fs::read(store.join(&file)).unwrap();
        let mut at = usize_of(PAGE_BYTES);
        while bytes.len() >= at + 64 && bytes[at..at + 4] == *b"hLF2" {
            let frame = Frame {
                file: file.clone(),
                offset: at as u64,
                len: u64::from(u32_at(&bytes, at + 4)),
                record_len: u64::from(u32_at(&bytes, at + 12)),
                chunks: u64::from(u32_at(&bytes, at + 16)),
                lsn: u64_at(&bytes, at + usize_of(FRAME_HEADER_BYTES) + 6),
            };
            if frames.last().is_some_and(|last| last.lsn + 1 != frame.lsn) {
                break; // of the file's earlier life
            }
            at += usize_of(frame.len);
            frames.push(frame);
        }
    }
    frames
}

impl Frame {
    /// Every field, with where it starts in the file.
    pub(crate) fn fields(&self) -> Vec<Field> {
        let record = FRAME_HEADER_BYTES;
        let places = record + self.record_len;
        let pad = places + self.chunks * PLACE_BYTES;
        let in_record = RECORD_HEADER
            .iter()
            .map(|(name, at, len)| (*name, record + at, *len));
        let body = record + RECORD_HEADER_BYTES;
        let mut fields: Vec<Field> = FRAME_HEADER.into_iter().chain(in_record).collect();
        fields.push(("mutations and pieces", body, places - body));
        fields.push(("chunk places", places, pad - places));
        fields.push(("pad", pad, self.len - pad));
        fields.retain(|(_, _, len)| *len > 0);
        let absolute = |(name, at, len)| (name, self.offset + at, len);
        fields.into_iter().map(absolute).collect()
    }
}

/// What the durable mark says.
pub(crate) fn mark(store: &Path) -> u64 {
    let bytes = fs::read(store.join("mark")).unwrap();
    let slots = MARK_SLOTS.map(|slot| u64_at(&bytes, usize_of(slot) + 4));
    slots[0].max(slots[1])
}

/// The slot of the mark that counts.
pub(crate) fn newest_slot(store: &Path) -> u64 {
    let bytes = fs::read(store.join("mark")).unwrap();
    let newest = MARK_SLOTS
        .iter()
        .max_by_key(|slot| u64_at(&bytes, usize_of(**slot) + 4));
    *newest.unwrap()
}

/// Where these bytes lie in a segment: file and offset.
pub(crate) fn find_in_segments(store: &Path, wanted: &[u8]) -> (PathBuf, u64) {
    for file in files(store, "segments", "seg") {
        let bytes = fs::read(store.join(&file)).unwrap();
        let mut pages = bytes.chunks(usize_of(PAGE_BYTES)).enumerate().skip(1);
        if let Some((page, _)) = pages.find(|(_, page)| page.starts_with(wanted)) {
            return (file, page as u64 * PAGE_BYTES);
        }
    }
    panic!("not in a segment");
}

/// Flips one bit of a file.
pub(crate) fn flip(file: &Path, offset: u64, bit: u8) {
    let file = fs::OpenOptions::new().read(true).write(true).open(file);
    let file = file.unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], offset).unwrap();
}
