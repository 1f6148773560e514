//! What a file of the model holds: its bytes, which of them were written, which are only reserved.
//!
//! Used by the [reference](super) alone. Sparse, so that a file of 2^62 bytes costs what was written to it; clones share
//! pages, since the state machine keeps a state for each shrinking step. Bytes that were never written are zero.

use std::collections::BTreeMap;
use std::sync::Arc;

const PAGE_LEN: usize = 4096;
const PAGE_BYTES: u64 = PAGE_LEN as u64;

/// Disjoint ranges of bytes that do not touch each other, by start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    /// Adds `start..end`.
    pub(crate) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let touching: Vec<(u64, u64)> = self
            .0
            .range(..=end)
            .rev()
            .map(|(&s, &e)| (s, e))
            .take_while(|&(_, e)| e >= start)
            .collect();
        let mut merged = (start, end);
        for (s, e) in touching {
            self.0.remove(&s);
            merged = (merged.0.min(s), merged.1.max(e));
        }
        self.0.insert(merged.0, merged.1);
    }

    /// Takes `start..end` out.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let overlapping: Vec<(u64, u64)> = self
            .0
            .range(..end)
            .rev()
            .map(|(&s, &e)| (s, e))
            .take_while(|&(_, e)| e > start)
            .collect();
        for (s, e) in overlapping {
            self.0.remove(&s);
            if s < start {
                self.0.insert(s, start);
            }
            if e > end {
                self.0.insert(end, e);
            }
        }
    }

    /// The ranges in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(&s, &e)| (s, e))
    }

    /// Bytes in all ranges.
    pub(crate) fn total(&self) -> u64 {
        self.iter().map(|(s, e)| e - s).sum()
    }

    /// The first byte at or after `offset` that is in a range.
    pub(crate) fn next_inside(&self, offset: u64) -> Option<u64> {
        if let Some((_, &e)) = self.0.range(..=offset).next_back()
            && e > offset
        {
            return Some(offset);
        }
        self.0.range(offset..).next().map(|(&s, _)| s)
    }

    /// The first byte at or after `offset` that is in no range.
    pub(crate) fn next_outside(&self, offset: u64) -> u64 {
        match self.0.range(..=offset).next_back() {
            Some((_, &e)) if e > offset => e,
            _ => offset,
        }
    }
}

/// Length and bytes of a regular file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    /// Length.
    pub(crate) size: u64,
    /// Bytes that were written, zeros included.
    pub(crate) data: RangeSet,
    /// Bytes that count against the volume's size: what was written, and what fallocate(2) reserved.
    pub(crate) reserved: RangeSet,
    pages: BTreeMap<u64, Arc<[u8; PAGE_LEN]>>,
}

impl Content {
    /// What the file counts against the volume's size.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.reserved.total().next_multiple_of(PAGE_BYTES)
    }

    /// Puts `bytes` at `offset`, growing the file if they reach past its end.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        self.put(offset, bytes);
        self.data.insert(offset, end);
        self.reserved.insert(offset, end);
        if !bytes.is_empty() {
            self.size = self.size.max(end);
        }
    }

    /// Up to `len` bytes from `offset`, fewer only at the end of the file.
    pub(crate) fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end {
            return Vec::new();
        }
        let mut bytes = vec![0; at(end - offset)];
        for (&index, page) in self
            .pages
            .range(offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES))
        {
            let page_start = index * PAGE_BYTES;
            let (from, to) = (
                page_start.max(offset),
                end.min(page_start.saturating_add(PAGE_BYTES)),
            );
            if from < to {
                bytes[at(from - offset)..at(to - offset)]
                    .copy_from_slice(&page[at(from - page_start)..at(to - page_start)]);
            }
        }
        bytes
    }

    /// Cuts the file, or extends it with a hole. Unless it grows, what was reserved past its end is given back.
    pub(crate) fn resize(&mut self, size: u64) {
        if size <= self.size {
            self.zero(size, u64::MAX);
            self.data.remove(size, u64::MAX);
            self.reserved.remove(size, u64::MAX);
        }
        self.size = size;
    }

    /// Makes `start..end` a hole.
    pub(crate) fn punch(&mut self, start: u64, end: u64) {
        self.zero(start, end);
        self.data.remove(start, end);
        self.reserved.remove(start, end);
    }

    /// Reserves `start..end`, and forgets what was written there if `zero`.
    pub(crate) fn reserve(&mut self, start: u64, end: u64, zero: bool, keep_size: bool) {
        if zero {
            self.zero(start, end);
            self.data.remove(start, end);
        }
        self.reserved.insert(start, end);
        if !keep_size {
            self.size = self.size.max(end);
        }
    }

    /// The ranges worth reading to compare the whole file: what is or was near data, and both ends.
    pub(crate) fn interesting(&self) -> RangeSet {
        const AROUND_BYTES: u64 = 8192;
        let mut ranges = RangeSet::default();
        let mut add = |start: u64, end: u64| {
            let end = end.saturating_add(AROUND_BYTES).min(self.size);
            ranges.insert(start.saturating_sub(AROUND_BYTES), end);
        };
        add(0, 0);
        add(self.size, self.size);
        for (start, end) in self.data.iter().chain(self.reserved.iter()) {
            add(start, end);
        }
        ranges
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let position = offset + done as u64;
            let within = at(position % PAGE_BYTES);
            let len = (bytes.len() - done).min(at(PAGE_BYTES) - within);
            let page = self
                .pages
                .entry(position / PAGE_BYTES)
                .or_insert_with(|| Arc::new([0; PAGE_LEN]));
            Arc::make_mut(page)[within..within + len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
    }

    fn zero(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let touched: Vec<u64> = self
            .pages
            .range(start / PAGE_BYTES..=(end - 1) / PAGE_BYTES)
            .map(|(&index, _)| index)
            .collect();
        for index in touched {
            let page_start = index * PAGE_BYTES;
            let (from, to) = (
                page_start.max(start),
                end.min(page_start.saturating_add(PAGE_BYTES)),
            );
            if to - from == PAGE_BYTES {
                self.pages.remove(&index);
            } else if let Some(page) = self.pages.get_mut(&index) {
                Arc::make_mut(page)[at(from - page_start)..at(to - page_start)].fill(0);
            }
        }
    }
}

/// An offset as an index.
fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("an offset within a buffer or a page")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge_and_split() {
        let mut set = RangeSet::default();
        set.insert(0, 10);
        set.insert(20, 30);
        set.insert(10, 20);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(0, 30)]);
        set.remove(5, 25);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(0, 5), (25, 30)]);
        assert_eq!(
            (set.next_inside(5), set.next_outside(3), set.total()),
            (Some(25), 5, 10)
        );
    }

    #[test]
    fn cut_bytes_read_as_zeros_when_the_file_grows_again() {
        let mut content = Content::default();
        content.write(4090, b"0123456789");
        content.resize(4095);
        content.resize(5000);
        assert_eq!(content.read(4090, 8), b"01234\0\0\0");
        assert_eq!(content.data.iter().collect::<Vec<_>>(), [(4090, 4095)]);
    }
}
