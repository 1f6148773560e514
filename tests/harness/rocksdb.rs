//! The format of RocksDB's logs (its manifest is one), so far as one must know it to damage them.

use std::ops::Range;

/// What precedes each record: CRC32C, length, kind.
const HEADER_BYTES: usize = 7;
/// Where in a record its length is, the lower byte first.
pub const LENGTH: Range<usize> = 4..6;
const KIND: usize = 6;

/// Where the records of a log begin.
pub fn records(log: &[u8]) -> Vec<usize> {
    let (mut at, mut records) = (0, Vec::new());
    while let Some(header) = log.get(at..at + HEADER_BYTES)
        && header[KIND] != 0
    {
        records.push(at);
        let len = u16::from_le_bytes([header[4], header[5]]);
        at += HEADER_BYTES + usize::from(len);
    }
    records
}
