//! Bytes: writing, holes, preallocation, copies. What a file holds is a set of extents that do not overlap.
//!
//! A write's bytes are cut at multiples of the chunk size. What is small travels inside the record; the rest is appended to
//! a segment before the write lock is taken, so that several writers hash and copy side by side.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::RwLockReadGuard;

use super::attr::{check_file, clear_privileges};
use super::background::UNSYNCED_CHUNK_BYTES_MAX;
use super::room::RECLAIM_WAIT_MAX;
use super::txn::{NewPiece, Txn};
use super::{Core, Inner, Volume, chunk_place};
use crate::clock;
use crate::error::FsError;
use crate::record::RECORD_MUTATIONS_MAX;
use crate::store::Row;
use crate::store::key::{
    Extent, ExtentSource, FILE_BYTES_MAX, LocalTable, Place, Table, extent_key, piece_key,
    row_body, stored_bytes,
};
use crate::store::logfile::ChunkPlace;
use crate::store::segment::NewChunk;
use crate::types::{Caller, FallocateMode, Ino, SeekTo};

/// Longest write: what FUSE sends at most, so that a record names a bounded number of pieces.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// The largest attribute with its name, as it counts against the volume's size.
const ATTRIBUTE_BYTES_MAX: u64 = 66 << 10;
/// Extents that are looked at before others may have the write lock: some milliseconds.
const EXTENTS_SEEN_MAX: usize = 4 * RECORD_MUTATIONS_MAX;
/// Bytes that one copy_file_range copies before it answers.
const COPY_BYTES_MAX: u64 = 64 << 20;

/// What [`Inner::cut`] took away.
pub(super) enum Cut {
    /// Everything in the range.
    All {
        /// Bytes of extents that are gone.
        freed: u64,
    },
    /// As much as a record should hold; the range from its start to `from` is still to be cut.
    Some {
        /// Bytes of extents that are gone.
        freed: u64,
        /// Start of what was cut.
        from: u64,
    },
}

/// What [`Inner::seek_some`] came to.
#[derive(Debug)]
enum Sought {
    /// Here it is.
    Found(u64),
    /// Not before here, and no further was looked: others may have the write lock.
    Further(u64),
}

/// A write whose bytes are stored and wait for their records.
struct PendingWrite {
    ino: Ino,
    offset: u64,
    end: u64,
    pieces: Vec<PendingPiece>,
    /// Records have put everything from here on: the end is written first.
    put_from: u64,
    kill_priv: bool,
    cached: bool,
}

/// Bytes of a write that become one piece.
struct Part<'a> {
    chunk: NewChunk<'a>,
    is_inline: bool,
}

struct PendingPiece {
    /// Where in the file it starts.
    start: u64,
    /// All of it.
    extent: Extent,
    /// Where it is, unless it is inline.
    chunk: Option<ChunkPlace>,
    /// `None` once a record has put all of it.
    piece: Option<NewPiece>,
    /// A record has put a part of it.
    is_named: bool,
}

impl Volume {
    /// Writes `data` at `offset`; returns how much was written: all, or the first MiB of more.
    ///
    /// `kill_priv`: clear setuid, setgid and capabilities. `cached`: the bytes come from the kernel's writeback cache,
    /// which tells the times by setattr.
    ///
    /// # Errors
    /// [`FsError::Io`] if the disk refuses them; the volume is failed then if they are `cached`.
    /// [`FsError::NoSpace`] if the volume's size or the disk's reserve is reached. The file is as it was then, unless the
    /// range was made of more than a thousand extents and others filled the volume meanwhile: its end may be written.
    pub fn write(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        kill_priv: bool,
        cached: bool,
    ) -> Result<u32, FsError> {
        let data = &data[..data.len().min(WRITE_BYTES_MAX)];
        let end = offset
            .checked_add(data.len() as u64)
            .ok_or(FsError::TooBig)?;
        if end > FILE_BYTES_MAX {
            return Err(FsError::TooBig);
        }
        if data.is_empty() {
            return Ok(0);
        }
        self.inner.check_open()?;
        let deadline = Instant::now() + RECLAIM_WAIT_MAX;
        loop {
            match self.inner.check_growth(ino, offset, end, kill_priv) {
                Err(FsError::NoSpace)
                    if Instant::now() < deadline && self.inner.wait_for_reclaim() => {}
                checked => break checked?,
            }
        }
        self.inner.limit_dead();
        self.inner.need_space(stored_bytes(data.len()))?;
        self.inner.limit_unsynced_chunks()?;
        self.inner.limit_unflushed()?;
        let _chunks_await_their_record = self.inner.appending.read();
        let mut write = PendingWrite {
            ino,
            offset,
            end,
            pieces: Vec::new(),
            put_from: end,
            kill_priv,
            cached,
        };
        self.inner
            .write_pieces(&mut write, data)
            .inspect_err(|error| {
                self.inner.forget_pieces(&write);
                // The kernel drops what it could not write back, and tells one fsync of it: no later one may succeed.
                if cached && matches!(error, FsError::Io { .. }) {
                    self.inner.fail(error);
                }
            })?;
        Ok(u32::try_from(data.len()).expect("at most 1 MiB"))
    }

    /// Reserves, empties or zeroes a range; long ranges take several records.
    ///
    /// # Errors
    /// [`FsError::TooBig`] past the largest file, [`FsError::Invalid`] for no bytes, [`FsError::NoSpace`]: a part may be done
    /// then.
    pub fn fallocate(
        &self,
        caller: Caller,
        ino: Ino,
        offset: u64,
        len: u64,
        mode: FallocateMode,
    ) -> Result<(), FsError> {
        if len == 0 {
            return Err(FsError::Invalid);
        }
        let end = offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX);
        let end = end.ok_or(FsError::TooBig)?;
        let keep_size = match mode {
            FallocateMode::Allocate { keep_size } => {
                self.inner.reserve_range(ino, offset, end)?;
                keep_size
            }
            FallocateMode::PunchHole => {
                self.inner.empty_range(ino, offset, end, None)?;
                true
            }
            FallocateMode::ZeroRange { keep_size } => {
                self.inner
                    .empty_range(ino, offset, end, Some(ExtentSource::Unwritten))?;
                keep_size
            }
        };
        self.inner.transact(|txn, _| {
            let now = clock::now();
            let mut inode = txn.inode(ino)?;
            if !keep_size {
                inode.size = inode.size.max(end);
            }
            inode.mtime = now;
            inode.ctime = now;
            if caller.uid != 0 {
                clear_privileges(txn, ino, &mut inode)?;
            }
            txn.put_inode(ino, &inode)
        })
    }

    /// The next byte at or after `offset` that was written, or was not. The end of the file counts as a hole.
    ///
    /// # Errors
    /// [`FsError::NoSuchOffset`] past the end, or without more data.
    pub fn seek(&self, ino: Ino, offset: u64, to: SeekTo) -> Result<u64, FsError> {
        let mut at = offset;
        loop {
            match self.inner.seek_some(ino, at, to)? {
                Sought::Found(found) => return Ok(found),
                Sought::Further(next) => at = next,
            }
        }
    }

    /// Copies bytes between files, or within one where the ranges do not overlap; returns how many, which may be fewer.
    ///
    /// # Errors
    /// [`FsError::Invalid`] for ranges that overlap; else as [`Self::read`] and [`Self::write`], if nothing was copied.
    pub fn copy_file_range(
        &self,
        caller: Caller,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
    ) -> Result<u64, FsError> {
        let source = {
            let _core = self.inner.core();
            check_file(&self.inner.load_inode(to)?)?;
            self.inner.load_inode(from)?
        };
        check_file(&source)?;
        // Within one file, the copy must not run on into what it has just written.
        let len = len
            .min(source.size.saturating_sub(from_offset))
            .min(COPY_BYTES_MAX);
        let overlap = from_offset < to_offset.saturating_add(len)
            && to_offset < from_offset.saturating_add(len);
        if from == to && overlap {
            return Err(FsError::Invalid);
        }
        let mut copied = 0;
        while copied < len {
            let step = u32::try_from((len - copied).min(WRITE_BYTES_MAX as u64)).expect("1 MiB");
            let copy = self
                .read(from, from_offset + copied, step)
                .and_then(|bytes| {
                    let at = to_offset.checked_add(copied).ok_or(FsError::TooBig)?;
                    self.write(to, at, &bytes, caller.uid != 0, false)
                });
            match copy {
                Ok(0) => break,
                Ok(written) => copied += u64::from(written),
                Err(_) if copied > 0 => break, // told by the next call
                Err(error) => return Err(error),
            }
        }
        Ok(copied)
    }
}

impl Inner {
    /// Extents that overlap `from..to`, ascending: where each starts, what it is, its row.
    pub(super) fn extents(
        &self,
        ino: Ino,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = Result<(u64, Extent, Box<[u8]>), FsError>> + '_ {
        // The extent that `from` lies in may start before it.
        let before = self
            .store
            .scan_back(Table::Extent, &extent_key(ino, 0), &extent_key(ino, from))
            .next()
            .map(decode_extent)
            .filter(|row| match row {
                Ok((start, extent, _)) => start + extent.len > from,
                Err(_) => true,
            });
        let rest = self
            .store
            .scan(Table::Extent, &extent_key(ino, from), &extent_key(ino, to));
        before.into_iter().chain(rest.map(decode_extent))
    }

    /// One look at a bounded number of extents for [`Volume::seek`].
    fn seek_some(&self, ino: Ino, offset: u64, to: SeekTo) -> Result<Sought, FsError> {
        let _core = self.core();
        let inode = self.load_inode(ino)?;
        check_file(&inode)?;
        if offset >= inode.size {
            return Err(FsError::NoSuchOffset);
        }
        let mut at = offset;
        for (seen, extent) in self.extents(ino, offset, inode.size).enumerate() {
            let (start, extent, _) = extent?;
            let is_data = extent.source != ExtentSource::Unwritten;
            match to {
                SeekTo::Data if is_data => return Ok(Sought::Found(start.max(offset))),
                SeekTo::Hole if !is_data || start > at => return Ok(Sought::Found(at)),
                SeekTo::Data | SeekTo::Hole => at = start + extent.len,
            }
            if seen + 1 >= EXTENTS_SEEN_MAX && at < inode.size {
                return Ok(Sought::Further(at));
            }
        }
        match to {
            SeekTo::Data => Err(FsError::NoSuchOffset),
            SeekTo::Hole => Ok(Sought::Found(at.min(inode.size))),
        }
    }

    /// Calls `each` with the extents of a range, and with where it has begun to look anew: others may have the write lock each time
    /// that so many were seen, so an extent may have changed since.
    pub(super) fn each_extent<'a>(
        &'a self,
        mut core: RwLockReadGuard<'a, Core>,
        ino: Ino,
        range: Range<u64>,
        mut each: impl FnMut(u64, u64, &Extent) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let mut at = range.start;
        while at < range.end {
            let mut next = range.end;
            for (seen, extent) in self.extents(ino, at, range.end).enumerate() {
                let (start, extent, _) = extent?;
                if seen >= EXTENTS_SEEN_MAX {
                    next = start;
                    break;
                }
                each(at, start, &extent)?;
            }
            at = next;
            if at < range.end {
                RwLockReadGuard::unlock_fair(core);
                core = self.core();
            }
        }
        Ok(())
    }

    /// Cuts `from..to` out of a file's extents, from the end on, at most one record's worth. The caller takes `freed` off
    /// the inode.
    pub(super) fn cut(
        &self,
        txn: &mut Txn<'_>,
        ino: Ino,
        from: u64,
        to: u64,
    ) -> Result<Cut, FsError> {
        let mut freed = 0;
        if txn.inode(ino)?.extent_bytes == 0 {
            return Ok(Cut::All { freed }); // it has no extents
        }
        let rows = self
            .store
            .scan_back(Table::Extent, &extent_key(ino, 0), &extent_key(ino, to));
        for row in rows {
            let (start, extent, raw) = decode_extent(row)?;
            let end = start + extent.len;
            if end <= from {
                break;
            }
            txn.del_extent(ino, start, &raw);
            if end > to {
                txn.put_extent(ino, to, &extent.tail(to - start))?;
            }
            if start < from {
                txn.put_extent(
                    ino,
                    start,
                    &Extent {
                        len: from - start,
                        ..extent
                    },
                )?;
            }
            freed += end.min(to) - start.max(from);
            if txn.changed() >= RECORD_MUTATIONS_MAX && start > from {
                return Ok(Cut::Some { freed, from: start });
            }
        }
        Ok(Cut::All { freed })
    }

    /// Stores the bytes of a write and puts them. The caller holds `appending`.
    fn write_pieces(&self, write: &mut PendingWrite, data: &[u8]) -> Result<(), FsError> {
        self.make_pieces(write, data)?;
        // One record is enough unless the range was made of very many extents. Each puts new bytes where it takes old ones
        // away.
        while write.put_from > write.offset {
            write.put_from = self.put_some(write)?;
        }
        Ok(())
    }

    /// No record will name what a refused write has stored and none has named yet: its space is given back.
    fn forget_pieces(&self, write: &PendingWrite) {
        if self.failed.load(Ordering::Acquire) {
            return; // the log may have a record that does
        }
        let unnamed = write
            .pieces
            .iter()
            .filter(|pending| pending.start + pending.extent.len <= write.put_from);
        let chunks = unnamed
            .filter_map(|pending| Some((pending.chunk?, stored_bytes(index(pending.extent.len)))));
        self.store.segments.take_back(chunks);
        // What could not be taken back fills segments, without any record that would have the collector look at them.
        let mut core = self.core_mut();
        self.note_sealed(&mut core.totals);
        self.look_at_the_dead(&core.totals);
    }

    /// One record of a write; returns where the part that is put starts then. The caller holds `appending`.
    fn put_some(&self, write: &mut PendingWrite) -> Result<u64, FsError> {
        self.transact_at_once(|txn, _| {
            let (ino, from) = (write.ino, write.put_from);
            let now = clock::now();
            let mut inode = txn.inode(ino)?;
            check_file(&inode)?;
            let (freed, reached) = match self.cut(txn, ino, write.offset, from)? {
                Cut::All { freed } => (freed, write.offset),
                Cut::Some { freed, from } => (freed, from),
            };
            inode.extent_bytes = inode.extent_bytes - freed + (from - reached);
            inode.size = inode.size.max(write.end);
            for pending in &mut write.pieces {
                if let Some((start, part)) = pending.extent.within(pending.start, reached, from) {
                    txn.put_extent(ino, start, &part)?;
                    self.name_piece(txn, pending, part.len)?;
                }
            }
            if write.kill_priv {
                clear_privileges(txn, ino, &mut inode)?;
            }
            if !write.cached {
                inode.mtime = now;
                inode.ctime = now;
            }
            txn.put_inode(ino, &inode)?;
            Ok(reached)
        })
    }

    /// Has the record bring a piece of which it puts `len` bytes. One that spans two records comes with the first; if what
    /// that put was overwritten since, the piece is gone and comes again. Its chunk is still there: see `appending`.
    fn name_piece(
        &self,
        txn: &mut Txn<'_>,
        pending: &mut PendingPiece,
        len: u64,
    ) -> Result<(), FsError> {
        if len == pending.extent.len {
            txn.pieces.extend(pending.piece.take());
        } else if let Some(piece) = &pending.piece {
            let key = piece_key(piece.id);
            if !pending.is_named || self.store.local(LocalTable::Piece, &key)?.is_none() {
                txn.pieces.push(piece.clone());
            }
            pending.is_named = true;
        }
        Ok(())
    }

    /// Stores the bytes of a write.
    fn make_pieces(&self, write: &mut PendingWrite, data: &[u8]) -> Result<(), FsError> {
        let ino = write.ino;
        let parts = self.parts(write.offset, data);
        let chunks = parts.iter().filter(|part| !part.is_inline);
        let chunks: Vec<_> = chunks.map(|part| part.chunk).collect();
        let mut stored = self.store.segments.append_all(ino, &chunks)?.into_iter();
        for Part { chunk, is_inline } in parts {
            let NewChunk { file_offset, bytes } = chunk;
            let place = if is_inline {
                Place::Inline(bytes.to_vec())
            } else {
                Place::Segment(stored.next().expect("a place for each chunk"))
            };
            let piece = NewPiece {
                id: self.new_piece_id(),
                ino,
                file_offset,
                len: u32::try_from(bytes.len()).expect("a chunk is at most 128 KiB"),
                hash: *blake3::hash(bytes).as_bytes(),
                place,
            };
            write.pieces.push(PendingPiece {
                start: file_offset,
                extent: whole_piece(&piece),
                chunk: chunk_place(&piece.place),
                piece: Some(piece),
                is_named: false,
            });
        }
        Ok(())
    }

    /// Cuts what is written at `offset` at multiples of the chunk size. What is small travels in the record, up to so many bytes.
    fn parts<'a>(&self, offset: u64, data: &'a [u8]) -> Vec<Part<'a>> {
        let chunk_bytes = u64::from(self.settings.profile.chunk_bytes());
        let mut inline_left = self.settings.profile.inline_bytes_max();
        let mut parts = Vec::new();
        let mut at = 0;
        while at < data.len() {
            let file_offset = offset + at as u64;
            let to_boundary = index(chunk_bytes - file_offset % chunk_bytes);
            let bytes = &data[at..data.len().min(at + to_boundary)];
            let is_inline = bytes.len() <= inline_left;
            if is_inline {
                inline_left -= bytes.len();
            }
            parts.push(Part {
                chunk: NewChunk { file_offset, bytes },
                is_inline,
            });
            at += bytes.len();
        }
        parts
    }

    /// Writers wait here for the disk, so that an fsync never finds more than a bounded number of bytes to push out.
    pub(super) fn limit_unsynced_chunks(&self) -> Result<(), FsError> {
        let syncer = self.store.segments.syncer();
        if syncer.unsynced_bytes() < UNSYNCED_CHUNK_BYTES_MAX {
            return Ok(());
        }
        syncer.sync().inspect_err(|error| self.fail(error))
    }

    /// Refuses a write that would not fit before its bytes are stored: no record would name them, and a program that tries
    /// again and again would fill the disk. The record checks again, under the write lock, and exactly.
    fn check_growth(
        &self,
        ino: Ino,
        offset: u64,
        end: u64,
        kill_priv: bool,
    ) -> Result<(), FsError> {
        let core = self.core();
        // The attribute that the write may take away makes room.
        let freed = if kill_priv { ATTRIBUTE_BYTES_MAX } else { 0 };
        let used = core.totals.applied.used_bytes.saturating_sub(freed);
        let most = used.saturating_add(stored_bytes(index(end - offset)));
        if most <= self.size_bytes() {
            return Ok(()); // whatever of it is new
        }
        let mut inode = self.load_inode(ino)?;
        check_file(&inode)?;
        let before = inode.allocated_bytes();
        inode.extent_bytes += end - offset;
        self.each_extent(core, ino, offset..end, |at, start, extent| {
            let held = (start + extent.len).min(end) - start.max(at);
            // Others may write in between: the record looks at it as it is then.
            inode.extent_bytes = inode.extent_bytes.saturating_sub(held);
            Ok(())
        })?;
        let growth = inode.allocated_bytes().saturating_sub(before);
        if growth > 0 && used + growth > self.size_bytes() {
            return Err(FsError::NoSpace);
        }
        Ok(())
    }

    /// Takes away what a range holds, and puts `filler` there if it should stay reserved: in the same record, so that a
    /// refusal leaves the bytes.
    fn empty_range(
        &self,
        ino: Ino,
        from: u64,
        to: u64,
        filler: Option<ExtentSource>,
    ) -> Result<(), FsError> {
        let mut end = to;
        while end > from {
            end = self.transact(|txn, _| {
                let mut inode = txn.inode(ino)?;
                check_file(&inode)?;
                let (freed, reached) = match self.cut(txn, ino, from, end)? {
                    Cut::All { freed } => (freed, from),
                    Cut::Some { freed, from } => (freed, from),
                };
                inode.extent_bytes -= freed;
                if let Some(source) = filler {
                    let len = end - reached;
                    inode.extent_bytes += len;
                    txn.put_extent(ino, reached, &Extent { len, source })?;
                }
                txn.put_inode(ino, &inode)?;
                Ok(reached)
            })?;
        }
        Ok(())
    }

    /// Fills the holes of a range with reserved space.
    fn reserve_range(&self, ino: Ino, from: u64, to: u64) -> Result<(), FsError> {
        let mut at = from;
        let mut has_waited = false;
        while at < to {
            let mut is_within_size = false;
            let reserved = self.transact(|txn, totals| {
                let mut inode = txn.inode(ino)?;
                check_file(&inode)?;
                let before = inode.allocated_bytes();
                let (holes, reached) = self.holes(ino, at, to)?;
                for (start, len) in holes {
                    let source = ExtentSource::Unwritten;
                    txn.put_extent(ino, start, &Extent { len, source })?;
                    inode.extent_bytes += len;
                }
                let growth = inode.allocated_bytes() - before;
                // The volume's own size first: a disk is not full because somebody asks for more than he may have.
                if totals.applied.used_bytes.saturating_add(growth) > self.size_bytes() {
                    return Err(FsError::NoSpace);
                }
                is_within_size = true;
                self.space.check(growth, self.held_bytes())?;
                txn.put_inode(ino, &inode)?;
                Ok(reached)
            });
            at = match reserved {
                // If it is the disk that has no room, the collector may make some: once.
                Err(FsError::NoSpace) if is_within_size && !has_waited => {
                    has_waited = true;
                    self.need_space(to - at)?;
                    at
                }
                reserved => reserved?,
            };
        }
        Ok(())
    }

    /// Holes in `from..to`, as many as a record should fill and can be found in short time, and how far they reach.
    fn holes(&self, ino: Ino, from: u64, to: u64) -> Result<(Vec<(u64, u64)>, u64), FsError> {
        let mut holes = Vec::new();
        let mut at = from;
        for (seen, extent) in self.extents(ino, from, to).enumerate() {
            if holes.len() >= RECORD_MUTATIONS_MAX || seen >= EXTENTS_SEEN_MAX {
                return Ok((holes, at));
            }
            let (start, extent, _) = extent?;
            if start > at {
                holes.push((at, start - at));
            }
            at = at.max(start + extent.len);
        }
        if to > at {
            holes.push((at, to - at));
        }
        Ok((holes, at.max(to)))
    }
}

pub(super) fn index(len: u64) -> usize {
    usize::try_from(len).expect("lengths within a read or a chunk fit")
}

fn decode_extent(row: Result<Row, FsError>) -> Result<(u64, Extent, Box<[u8]>), FsError> {
    let (key, raw) = row?;
    let (start, extent) = Extent::decode_at(&key, row_body(&raw)?)?;
    Ok((start, extent, raw))
}

fn whole_piece(piece: &NewPiece) -> Extent {
    let source = ExtentSource::Piece {
        id: piece.id,
        skip: 0,
        piece_len: piece.len,
        hash: piece.hash,
    };
    Extent {
        len: u64::from(piece.len),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::VolumeSettings;
    use crate::volume::tests::{Fixture, assert_clean, file, settings};

    /// Length of the extents that the tests' files are made of: no multiple of it is a chunk's boundary.
    const FRAGMENT: u64 = 250;

    fn pending(ino: Ino, offset: u64, data: &[u8]) -> PendingWrite {
        let end = offset + data.len() as u64;
        PendingWrite {
            ino,
            offset,
            end,
            pieces: Vec::new(),
            put_from: end,
            kill_priv: false,
            cached: false,
        }
    }

    #[test]
    fn bytes_survive_when_another_write_covers_the_first_record_of_a_long_write() {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let ino = file(&volume, b"a");
        let len = 2000 * FRAGMENT;
        for n in 0..2000 {
            let at = n * FRAGMENT;
            volume.write(ino, at, &[1; 250], false, false).unwrap();
        }
        let inner = &volume.inner;
        let data = vec![2; index(len)];
        let mut write = pending(ino, 0, &data);
        inner.make_pieces(&mut write, &data).unwrap();
        write.put_from = inner.put_some(&mut write).unwrap();
        let from = write.put_from;
        assert!(from > 0, "one record is not enough");
        let tail = index(len - from);
        volume
            .write(ino, from, &vec![3; tail], false, false)
            .unwrap();
        while write.put_from > 0 {
            write.put_from = inner.put_some(&mut write).unwrap();
        }
        let bytes = volume.read(ino, 0, 1 << 20).unwrap();
        let split = bytes.len() - tail;
        assert!(bytes[..split].iter().all(|byte| *byte == 2));
        assert!(bytes[split..].iter().all(|byte| *byte == 3));
        assert_clean(&volume);
        let digest = volume.status().digest;
        volume.crash();
        let volume = fixture.open();
        assert_eq!(volume.status().digest, digest);
        assert_clean(&volume);
    }

    #[test]
    fn writes_that_a_full_volume_refuses_leave_nothing_on_the_disk() {
        let mut fixture = Fixture::with(VolumeSettings {
            size_bytes: (2 << 20) + 4096,
            ..settings()
        });
        let volume = fixture.open();
        let ino = file(&volume, b"a");
        let mib = vec![1; 1 << 20];
        volume.write(ino, 0, &mib, false, false).unwrap();
        volume.write(ino, 1 << 20, &mib, false, false).unwrap();
        for _ in 0..40 {
            let refused = volume.write(ino, 2 << 20, &mib, false, false);
            assert!(matches!(refused, Err(FsError::NoSpace)));
        }
        let on_disk: u64 = std::fs::read_dir(volume.dir().join("segments"))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(on_disk < 6 << 20, "{on_disk} bytes of segments");
        volume
            .write(ino, 4096, &mib, false, false)
            .expect("in place");
    }

    fn stored_bytes_of(volume: &Volume) -> u64 {
        std::fs::read_dir(volume.dir().join("segments"))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum()
    }

    /// As if another had filled the volume after it was asked whether there is room.
    #[test]
    fn a_write_that_the_volume_has_no_room_for_after_all_is_taken_back() {
        let mut fixture = Fixture::with(VolumeSettings {
            segment_bytes: 8 << 20,
            ..settings()
        });
        let volume = fixture.open();
        let ino = file(&volume, b"a");
        volume.write(ino, 0, &[1; 1 << 17], false, false).unwrap();
        let inner = &volume.inner;
        inner.size_bytes.store(1 << 17, Ordering::Release);
        let data = vec![2; 1 << 20];
        for _ in 0..40 {
            let mut write = pending(ino, 1 << 17, &data);
            let refused = inner.write_pieces(&mut write, &data);
            assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
            inner.forget_pieces(&write);
        }
        let on_disk = stored_bytes_of(&volume);
        assert!(on_disk < 20 << 20, "{on_disk} bytes of segments");
        assert_clean(&volume);
    }

    #[test]
    fn writes_that_their_record_refuses_leave_nothing_on_the_disk() {
        let mut fixture = Fixture::with(VolumeSettings {
            segment_bytes: 8 << 20,
            ..settings()
        });
        let volume = fixture.open();
        let there = file(&volume, b"there");
        volume.write(there, 0, &[1; 1 << 17], false, false).unwrap();
        let gone = file(&volume, b"gone");
        volume.unlink(Ino::ROOT, b"gone").unwrap();
        volume.reclaim(gone).unwrap();
        let mib = vec![2; 1 << 20];
        for _ in 0..40 {
            let refused = volume.write(gone, 0, &mib, false, false);
            assert!(matches!(refused, Err(FsError::Stale(_))), "{refused:?}");
        }
        let on_disk = stored_bytes_of(&volume);
        assert!(on_disk < 20 << 20, "{on_disk} bytes of segments");
        volume.write(there, 1 << 17, &mib, false, false).unwrap();
        let bytes = volume.read(there, 0, 1 << 20).unwrap();
        assert!(bytes[..1 << 17].iter().all(|byte| *byte == 1));
        assert!(bytes[1 << 17..].iter().all(|byte| *byte == 2));
        assert_clean(&volume);
    }

    /// Where others append behind it, a chunk cannot be taken back.
    #[test]
    fn segments_that_no_record_names_are_given_back_by_the_collector() {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let there = file(&volume, b"there");
        volume.write(there, 0, &[1; 1 << 17], false, false).unwrap();
        let mib = vec![2; 1 << 20];
        for _ in 0..40 {
            let mut write = pending(there, 0, &mib);
            volume.inner.make_pieces(&mut write, &mib).unwrap();
        }
        assert!(stored_bytes_of(&volume) > 40 << 20);
        let won = volume.collect().unwrap();
        assert!(won > 38 << 20, "{won}");
        let on_disk = stored_bytes_of(&volume);
        assert!(on_disk < 6 << 20, "{on_disk} bytes of segments");
        assert_eq!(volume.read(there, 0, 1 << 17).unwrap(), [1; 1 << 17]);
        assert_clean(&volume);
    }

    #[test]
    fn asking_for_more_than_there_can_be_is_refused_at_once_and_presses_nobody() {
        // More than the volume's size, and where that is no bound, than the disk has.
        for size_bytes in [64 << 20, FILE_BYTES_MAX] {
            let mut fixture = Fixture::with(VolumeSettings {
                size_bytes,
                ..settings()
            });
            let volume = fixture.open();
            let ino = file(&volume, b"a");
            // What was just deleted may come back, but is not as much.
            file(&volume, b"gone");
            volume.unlink(Ino::ROOT, b"gone").unwrap();
            let mode = FallocateMode::Allocate { keep_size: false };
            let start = Instant::now();
            let refused = volume.fallocate(Caller::ROOT, ino, 0, 1 << 50, mode);
            assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
            assert!(start.elapsed() < RECLAIM_WAIT_MAX);
            assert!(!volume.space().unwrap().is_pressed);
            assert_clean(&volume);
        }
    }

    #[test]
    fn a_search_for_a_hole_lets_others_write_meanwhile() {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let ino = file(&volume, b"a");
        let count = EXTENTS_SEEN_MAX as u64 * 2 + 10;
        for n in 0..count {
            volume.write(ino, n, b"x", false, false).unwrap();
        }
        let inner = &volume.inner;
        let (mut at, mut looks) = (0, 0);
        while let Sought::Further(next) = inner.seek_some(ino, at, SeekTo::Hole).unwrap() {
            assert!(at < next && next <= at + EXTENTS_SEEN_MAX as u64);
            (at, looks) = (next, looks + 1);
        }
        assert_eq!(looks, 2);
        assert_eq!(volume.seek(ino, 0, SeekTo::Hole).unwrap(), count);
        let hole = count / 2;
        let mode = FallocateMode::PunchHole;
        volume.fallocate(Caller::ROOT, ino, hole, 1, mode).unwrap();
        assert_eq!(volume.seek(ino, 0, SeekTo::Hole).unwrap(), hole);
        assert_eq!(volume.seek(ino, hole, SeekTo::Data).unwrap(), hole + 1);
        let bytes = volume.read(ino, 0, 1 << 20).unwrap();
        assert_eq!(bytes.len() as u64, count);
        let holes = bytes.iter().filter(|byte| **byte == 0).count();
        assert_eq!((holes, bytes[index(hole)]), (1, 0));
    }
}
