//! Chunk segments: bulk bytes, each written to the disk once, appended to preallocated files.
//!
//! [`crate::volume`] appends chunks before it takes its write lock, so several writers fill a segment side by side; reads
//! verify every page that they touch. What is alive in a segment is the state's business (`segment-index` and `segment`
//! rows), and [`crate::volume`]'s collector's.
//!
//! A segment is a header page and then chunks, each at a multiple of 4096. Segments are never appended to again once
//! they are sealed: by a successor, or by a restart. What lies behind a sealed segment's last chunk is given back. Two are
//! appended to at a time: what comes in small pieces goes through the page cache, what comes in long ones past it.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hafs_protocol::StoreId;
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;

use crate::error::{FsError, with_causes};
use crate::store::key::{CRC_PAGE_BYTES, SegmentId, SegmentPlace, stored_bytes};
use crate::store::logfile::ChunkPlace;
use crate::store::syncfile::{DIRECT_ALIGN, SyncFile, Syncer, full, full_or, io_error};
use crate::types::Ino;

const MAGIC: &[u8; 8] = b"HAFSSEG\0";
const VERSION: u8 = 1;
/// Space that a segment's header takes.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = 4096;
/// Magic, version, store, number; then their CRC32C.
const HEADER_USED: usize = 8 + 1 + 16 + 8;
/// Descriptors of segments that are kept open for reading.
const OPEN_SEGMENTS_MAX: usize = 256;
/// No chunk is longer: a write is at most so long.
const CHUNK_BYTES_MAX: u32 = 1 << 20;
/// The smallest segment: some of the largest chunks.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// From so many bytes on, chunks go past the page cache: that takes less of the processor than to have the kernel write the
/// pages a moment later, and no fsync finds them. With fewer, who writes would wait longer for the disk than for the copy.
const DIRECT_BYTES_MIN: u64 = 256 << 10;

/// A segment that is open.
pub(crate) type Segment = Arc<SyncFile>;

/// The segments of one store.
#[derive(Debug)]
pub(crate) struct Segments {
    dir: PathBuf,
    store: StoreId,
    segment_bytes: u64,
    /// New segments are not longer than this either: what the disk can spare.
    room: AtomicU64,
    /// Preallocated, and not written yet, bytes of the active segments.
    tail: AtomicU64,
    active: Mutex<Active>,
    open: Mutex<HashMap<SegmentId, Segment>>,
    syncer: Syncer,
}

/// Files in the directory of segments.
#[derive(Debug, Default)]
pub(crate) struct FoundSegments {
    /// Segments, ascending.
    pub(crate) ids: Vec<SegmentId>,
    /// Files that are none.
    pub(crate) strangers: Vec<PathBuf>,
}

/// A chunk that is to be appended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewChunk<'a> {
    pub(crate) file_offset: u64,
    pub(crate) bytes: &'a [u8],
}

impl NewChunk<'_> {
    fn stored_bytes(&self) -> u64 {
        stored_bytes(self.bytes.len())
    }
}

/// A chunk that a log record names, as recovery found it.
#[derive(Debug)]
pub(crate) enum RecoveredChunk {
    /// There, with the right bytes.
    Whole(SegmentPlace),
    /// Not there, or with other bytes: never written, or damaged since. The place is a suspect one.
    Different(SegmentPlace),
    /// The disk cannot read it. The place is a suspect one.
    Unreadable(SegmentPlace),
}

/// How chunks get into a segment. One segment is written one way only: a page that both touch at the same time may stay in the
/// page cache as it was before (`invalidate_inode_pages2_range` in the kernel's `mm/truncate.c` leaves dirty ones).
#[derive(Debug, Clone, Copy)]
enum Way {
    Cached,
    Direct,
}

#[derive(Debug)]
struct Active {
    /// One for each [`Way`].
    heads: [Head; 2],
    next_id: u64,
    /// Segments that were sealed since [`Segments::take_sealed`], and where each ends.
    sealed: Vec<(SegmentId, u64)>,
}

/// A segment that is appended to.
#[derive(Debug, Default)]
struct Head {
    segment: Option<(SegmentId, Segment)>,
    /// Where the next chunk goes.
    end: u64,
    /// How far it is preallocated.
    allocated: u64,
    /// How long it may become.
    capacity: u64,
}

impl Head {
    fn id(&self) -> Option<SegmentId> {
        self.segment.as_ref().map(|(id, _)| *id)
    }

    fn tail_bytes(&self) -> u64 {
        self.segment
            .as_ref()
            .map_or(0, |_| self.allocated - self.end)
    }
}

impl Segments {
    /// `next_id` is above every number ever used.
    pub(crate) fn new(dir: &Path, store: StoreId, segment_bytes: u64, next_id: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            store,
            segment_bytes,
            room: AtomicU64::new(u64::MAX),
            tail: AtomicU64::new(0),
            active: Mutex::new(Active {
                heads: Default::default(),
                next_id,
                sealed: Vec::new(),
            }),
            open: Mutex::new(HashMap::new()),
            syncer: Syncer::new(dir.to_owned()),
        }
    }

    pub(crate) fn syncer(&self) -> &Syncer {
        &self.syncer
    }

    /// The segments that are appended to now; all others are sealed.
    pub(crate) fn active_ids(&self) -> Vec<SegmentId> {
        let active = self.active.lock();
        active.heads.iter().filter_map(Head::id).collect()
    }

    fn path(&self, id: SegmentId) -> PathBuf {
        self.dir.join(file_name(id))
    }

    /// Numbers of the segments that are there, by their names. Other files are left alone.
    pub(crate) fn list(dir: &Path) -> Result<FoundSegments, FsError> {
        let mut found = FoundSegments::default();
        for entry in fs::read_dir(dir).map_err(io_error("read", dir))? {
            let path = entry.map_err(io_error("read", dir))?.path();
            let id = path
                .file_stem()
                .and_then(|stem| u64::from_str_radix(stem.to_str()?, 16).ok())
                .map(SegmentId)
                .filter(|id| {
                    path.file_name()
                        .is_some_and(|name| name == file_name(*id).as_str())
                });
            match id {
                Some(id) => found.ids.push(id),
                None => found.strangers.push(path),
            }
        }
        found.ids.sort_unstable();
        Ok(found)
    }

    /// What is wrong with a segment's header, if something is. The chunks in it have checksums of their own, so this alone
    /// makes no byte wrong; but a header is only wrong if the file is another's, or damaged.
    pub(crate) fn header_fault(&self, id: SegmentId) -> Option<&'static str> {
        let mut header = [0; HEADER_USED + 4];
        let file = match self.open(id) {
            Ok(file) => file,
            Err(FsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Some("the file is missing");
            }
            Err(_) => return Some("the file cannot be opened"),
        };
        match file.read_at(&mut header, 0) {
            Ok(()) if header[..] == encode_header(self.store, id)[..] => None,
            Ok(()) => Some("its header is damaged or another segment's"),
            Err(_) => Some("its header cannot be read"),
        }
    }

    /// Writes a segment's header anew, durably.
    pub(crate) fn mend_header(&self, id: SegmentId) -> Result<(), FsError> {
        let path = self.path(id);
        let file = OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let file = SyncFile::new(file, path);
        file.write_at(&encode_header(self.store, id), 0)?;
        file.settle()
    }

    /// From now on this segment reads as the disk holds it. One that is not there, or cannot be opened, is left to its
    /// readers.
    pub(crate) fn settle(&self, id: SegmentId) -> Result<(), FsError> {
        match self.open(id) {
            Ok(file) => file.settle(),
            Err(_) => Ok(()),
        }
    }

    /// Has new segments get numbers above this one, which was used.
    pub(crate) fn number_above(&self, used: SegmentId) {
        let mut active = self.active.lock();
        active.next_id = active.next_id.max(used.0 + 1);
    }

    /// Appends one chunk, as [`Self::append_all`] does.
    pub(crate) fn append(
        &self,
        ino: Ino,
        file_offset: u64,
        bytes: &[u8],
    ) -> Result<SegmentPlace, FsError> {
        let chunk = NewChunk { file_offset, bytes };
        let mut places = self.append_all(ino, &[chunk])?;
        Ok(places.pop().expect("as many as chunks"))
    }

    /// Appends chunks of one file, one behind the other, at most [`CHUNK_BYTES_MAX`] together. When this returns, they are in
    /// the page cache, or with the disk if they are many bytes, and in the syncer's books.
    pub(crate) fn append_all(
        &self,
        ino: Ino,
        chunks: &[NewChunk<'_>],
    ) -> Result<Vec<SegmentPlace>, FsError> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let stored = chunks.iter().map(NewChunk::stored_bytes).sum();
        let way = if stored < DIRECT_BYTES_MIN {
            Way::Cached
        } else {
            Way::Direct
        };
        let (segment, file, start) = self.reserve(stored, way)?;
        let mut at = start;
        let places = chunks.iter().map(|chunk| {
            let offset = at;
            at += chunk.stored_bytes();
            SegmentPlace {
                segment,
                offset: u32::try_from(offset).expect("a segment is at most 1 GiB"),
                len: u32::try_from(chunk.bytes.len()).expect("a chunk is at most 1 MiB"),
                ino,
                file_offset: chunk.file_offset,
                crcs: page_crcs(chunk.bytes),
            }
        });
        let places: Vec<SegmentPlace> = places.collect();
        if write_direct(&file, chunks, start)? {
            self.syncer.wrote_direct(&file, stored);
            return Ok(places);
        }
        for (chunk, place) in chunks.iter().zip(&places) {
            write_chunk(&file, chunk.bytes, u64::from(place.offset))?;
        }
        self.syncer.wrote(&file, stored);
        Ok(places)
    }

    fn reserve(&self, len: u64, way: Way) -> Result<(SegmentId, Segment, u64), FsError> {
        let mut active = self.active.lock();
        let Active {
            heads,
            next_id,
            sealed,
        } = &mut *active;
        let head = &mut heads[way as usize];
        if head.segment.is_none() || head.end + len > head.capacity {
            let id = SegmentId(*next_id);
            let (file, capacity) = self.create(id, SEGMENT_HEADER_BYTES + len, way)?;
            *next_id += 1;
            self.remember(id, Arc::clone(&file));
            let full = std::mem::replace(
                head,
                Head {
                    segment: Some((id, file)),
                    end: SEGMENT_HEADER_BYTES,
                    allocated: capacity,
                    capacity,
                },
            );
            if let Some((id, file)) = full.segment {
                sealed.push((id, full.end));
                self.forget_open(id);
                // The next opening gives it back otherwise: no reason to fail a write.
                if let Err(error) = give_back_tail(&file, full.end) {
                    let error = with_causes(&error);
                    tracing::warn!(error, "the end of a full segment was not given back");
                }
            }
        }
        let Head { end, capacity, .. } = *head;
        let (id, file) = head.segment.as_ref().expect("made above");
        let (id, file) = (*id, Arc::clone(file));
        if end + len > head.allocated {
            // Its tail was given back while nothing happened.
            let most = capacity.min(end.saturating_add(self.room()));
            match preallocate_some(&file, end, end + len, most) {
                Ok(allocated) => head.allocated = allocated,
                Err(error) => {
                    // What it still had was given back meanwhile.
                    head.allocated = end;
                    self.count_tails(&active);
                    return Err(error);
                }
            }
        }
        head.end += len;
        self.count_tails(&active);
        Ok((id, file, end))
    }

    fn count_tails(&self, active: &Active) {
        let tails = active.heads.iter().map(Head::tail_bytes).sum();
        self.tail.store(tails, Ordering::Relaxed);
    }

    /// Takes chunks back that no record names and none will: where they are and what they take, in the order in which they
    /// were appended. Those behind which others have appended stay, as dead space.
    pub(crate) fn take_back(&self, chunks: impl DoubleEndedIterator<Item = (ChunkPlace, u64)>) {
        let mut active = self.active.lock();
        for (place, stored_bytes) in chunks.rev() {
            let start = u64::from(place.offset);
            let mut heads = active.heads.iter_mut();
            let last = heads
                .find(|head| head.id() == Some(place.segment) && start + stored_bytes == head.end);
            match last {
                Some(head) => head.end = start,
                None => break,
            }
        }
        self.count_tails(&active);
    }

    /// Segments that were sealed since this was last asked for, and where each ends: what they hold may be more than what
    /// records name.
    pub(crate) fn take_sealed(&self) -> Vec<(SegmentId, u64)> {
        std::mem::take(&mut self.active.lock().sealed)
    }

    /// Says how much space new segments may take beyond what the next chunk needs.
    pub(crate) fn limit_new(&self, room: u64) {
        self.room.store(room, Ordering::Relaxed);
    }

    /// Bytes that are allocated on the disk, and not used yet.
    pub(crate) fn tail_bytes(&self) -> u64 {
        self.tail.load(Ordering::Relaxed)
    }

    /// Gives the active segments' unused tails back to the disk until the next chunk comes: nothing is being written.
    ///
    /// # Errors
    /// The first that a segment met; the others' tails are given back all the same.
    pub(crate) fn release_tail(&self) -> Result<(), FsError> {
        let mut active = self.active.lock();
        let mut released = Ok(());
        for head in &mut active.heads {
            let Some((_, file)) = &head.segment else {
                continue;
            };
            match give_back_tail(file, head.end) {
                Ok(()) => head.allocated = head.end,
                Err(error) => released = released.and(Err(error)),
            }
        }
        self.count_tails(&active);
        released
    }

    /// Has the next chunk go to a new segment, if `id` is still an active one.
    pub(crate) fn seal(&self, id: SegmentId) -> Result<(), FsError> {
        let mut active = self.active.lock();
        let mut heads = active.heads.iter_mut();
        let Some(head) = heads.find(|head| head.id() == Some(id)) else {
            return Ok(());
        };
        let Head { segment, end, .. } = std::mem::take(head);
        active.sealed.push((id, end));
        self.forget_open(id);
        self.count_tails(&active);
        let (_, file) = segment.expect("it has this id");
        give_back_tail(&file, end)
    }

    /// Makes a segment file that holds at least `least` bytes, and as many as it should if the disk can spare them.
    fn create(&self, id: SegmentId, least: u64, way: Way) -> Result<(Segment, u64), FsError> {
        let path = self.path(id);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(full_or("create", &path))?;
        let file = SyncFile::new(file, path.clone());
        let file = Arc::new(match way {
            Way::Cached => file,
            Way::Direct => file.with_direct(),
        });
        let least = least.max(SEGMENT_BYTES_MIN);
        let most = self.segment_bytes.min(self.room());
        let made = preallocate_some(&file, 0, least, most).and_then(|capacity| {
            let header = encode_header(self.store, id);
            file.write_at(&header, 0).map_err(full)?;
            self.syncer.wrote(&file, header.len() as u64);
            Ok((file, capacity))
        });
        if made.is_err() {
            let _ = fs::remove_file(&path); // the error that matters is the first
        }
        self.syncer.created();
        made
    }

    /// What the disk can spare for new space, in whole pages.
    fn room(&self) -> u64 {
        let room = self.room.load(Ordering::Relaxed);
        room - room % CRC_PAGE_BYTES as u64
    }

    fn remember(&self, id: SegmentId, file: Segment) {
        let mut open = self.open.lock();
        if open.len() >= OPEN_SEGMENTS_MAX {
            // Any will do: reopening costs microseconds, and the page cache stays.
            if let Some(id) = open.keys().next().copied() {
                open.remove(&id);
            }
        }
        open.insert(id, file);
    }

    /// Who reads a segment from now on opens it anew: one that is sealed needs no second descriptor.
    fn forget_open(&self, id: SegmentId) {
        self.open.lock().remove(&id);
    }

    /// A segment for reading.
    pub(crate) fn open(&self, id: SegmentId) -> Result<Segment, FsError> {
        if let Some(file) = self.open.lock().get(&id) {
            return Ok(Arc::clone(file));
        }
        let path = self.path(id);
        let file = OpenOptions::new()
            .read(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let file = Arc::new(SyncFile::new(file, path));
        self.remember(id, Arc::clone(&file));
        Ok(file)
    }

    /// The segment that a chunk lies in.
    ///
    /// # Errors
    /// [`FsError::Damaged`] if it is gone, [`FsError::Unreadable`] if the disk says no: both name what of which file is hit.
    pub(crate) fn open_for(&self, place: &SegmentPlace) -> Result<Segment, FsError> {
        self.open(place.segment).map_err(|error| match error {
            FsError::Io { ref source, .. } if source.kind() == io::ErrorKind::NotFound => {
                damaged(place, 0..place.len as usize, "their segment is missing")
            }
            error => unreadable(place, 0..place.len as usize, error),
        })
    }

    /// Reads `buffer.len()` bytes of a chunk from `skip` on and verifies each page that they touch. `hash` is the BLAKE3 of
    /// the whole chunk: what a suspect chunk is compared with.
    ///
    /// # Errors
    /// [`FsError::Damaged`], [`FsError::Unreadable`]: wrong bytes are never returned.
    pub(crate) fn read(
        file: &SyncFile,
        place: &SegmentPlace,
        hash: &[u8; 32],
        skip: usize,
        buffer: &mut [u8],
    ) -> Result<(), FsError> {
        if buffer.is_empty() {
            return Ok(());
        }
        let whole = place.len as usize;
        let end = skip + buffer.len();
        assert!(end <= whole, "within the chunk");
        if place.is_suspect() {
            let mut bytes = vec![0; whole];
            read_bytes(file, place, 0, &mut bytes)?;
            if blake3::hash(&bytes).as_bytes() != hash {
                let detail = "they do not match their hash since the log was replayed";
                return Err(damaged(place, 0..whole, detail));
            }
            buffer.copy_from_slice(&bytes[skip..end]);
            return Ok(());
        }
        let from = skip / CRC_PAGE_BYTES * CRC_PAGE_BYTES;
        let to = (end.div_ceil(CRC_PAGE_BYTES) * CRC_PAGE_BYTES).min(whole);
        if (from, to) == (skip, end) {
            return read_pages(file, place, from, buffer);
        }
        let mut pages = vec![0; to - from];
        read_pages(file, place, from, &mut pages)?;
        buffer.copy_from_slice(&pages[skip - from..end - from]);
        Ok(())
    }

    /// Sees whether `len` bytes of a chunk, from `skip` on, can be read: see [`Self::read`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn read_part(
        &self,
        place: &SegmentPlace,
        hash: &[u8; 32],
        skip: u64,
        len: u64,
    ) -> Result<(), FsError> {
        let in_chunk = |bytes: u64| usize::try_from(bytes).expect("chunks are small");
        let mut bytes = vec![0; in_chunk(len)];
        Self::read(
            &*self.open_for(place)?,
            place,
            hash,
            in_chunk(skip),
            &mut bytes,
        )
    }

    /// A whole chunk whose pages match their checksums.
    ///
    /// # Errors
    /// As [`Self::read`]; a suspect chunk is damaged to who does not know its hash.
    pub(crate) fn read_chunk(
        &self,
        place: &SegmentPlace,
        hash: Option<&[u8; 32]>,
    ) -> Result<Vec<u8>, FsError> {
        let file = self.open_for(place)?;
        let mut bytes = vec![0; place.len as usize];
        // Nothing has this hash.
        Self::read(&file, place, hash.unwrap_or(&[0; 32]), 0, &mut bytes)?;
        Ok(bytes)
    }

    /// A chunk that a log record names, read without knowing its checksums: for recovery, which verifies its BLAKE3.
    pub(crate) fn recover_chunk(
        &self,
        (segment, offset): (SegmentId, u32),
        (ino, file_offset): (Ino, u64),
        len: u32,
        hash: &[u8; 32],
    ) -> RecoveredChunk {
        let mut place = SegmentPlace {
            segment,
            offset,
            len,
            ino,
            file_offset,
            crcs: Vec::new(),
        };
        if len > CHUNK_BYTES_MAX {
            return RecoveredChunk::Different(place);
        }
        let mut bytes = vec![0; len as usize];
        let read = self
            .open(segment)
            .and_then(|file| file.read_at(&mut bytes, u64::from(offset)));
        match read {
            Ok(()) if blake3::hash(&bytes).as_bytes() == hash => {
                place.crcs = page_crcs(&bytes);
                RecoveredChunk::Whole(place)
            }
            Ok(()) => RecoveredChunk::Different(place),
            Err(FsError::Io { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound
                ) =>
            {
                RecoveredChunk::Different(place)
            }
            Err(_) => RecoveredChunk::Unreadable(place),
        }
    }

    /// Takes over a segment that a predecessor left: what lies behind `end` was never named, and if it is `unsynced`, its
    /// bytes may be in the page cache only.
    pub(crate) fn adopt(&self, id: SegmentId, end: u64, unsynced: bool) -> Result<(), FsError> {
        let path = self.path(id);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let file = Arc::new(SyncFile::new(file, path));
        give_back_tail(&file, end)?;
        if unsynced {
            self.syncer.wrote(&file, end);
            self.syncer.created();
        }
        Ok(())
    }

    /// Deletes a segment that nothing names any more, durably or not: the caller has flushed the state that says so.
    pub(crate) fn remove(&self, id: SegmentId) -> Result<(), FsError> {
        self.forget_open(id);
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

fn file_name(id: SegmentId) -> String {
    format!("{:016x}.seg", id.0)
}

fn encode_header(store: StoreId, id: SegmentId) -> [u8; HEADER_USED + 4] {
    let mut out = [0; HEADER_USED + 4];
    out[..8].copy_from_slice(MAGIC);
    out[8] = VERSION;
    out[9..25].copy_from_slice(store.as_bytes());
    out[25..33].copy_from_slice(&id.0.to_le_bytes());
    let crc = crc32c::crc32c(&out[..HEADER_USED]);
    out[HEADER_USED..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn page_crcs(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(CRC_PAGE_BYTES).map(crc32c::crc32c).collect()
}

/// Memory in which what is written past the page cache is put together. It is kept: fresh pages cost as much as the copy.
static BUFFERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
/// Buffers that are kept, of up to 1 MiB and some pages, for all volumes.
const BUFFERS_MAX: usize = 8;

/// Writes chunks one behind the other past the page cache, if the file can: see [`SyncFile::write_direct_at`].
fn write_direct(file: &SyncFile, chunks: &[NewChunk<'_>], offset: u64) -> Result<bool, FsError> {
    if !file.has_direct() {
        return Ok(false);
    }
    fail::fail_point!("segment-append", |_| Ok(true));
    let in_memory = |bytes: u64| usize::try_from(bytes).expect("a write is at most 1 MiB");
    let stored = chunks.iter().map(NewChunk::stored_bytes).sum();
    let mut buffer = BUFFERS.lock().pop().unwrap_or_default();
    buffer.clear();
    buffer.reserve_exact(in_memory(stored) + DIRECT_ALIGN);
    let start = buffer.as_ptr().align_offset(DIRECT_ALIGN);
    let mut end = start;
    buffer.resize(start, 0);
    for chunk in chunks {
        buffer.extend_from_slice(chunk.bytes);
        end += in_memory(chunk.stored_bytes());
        buffer.resize(end, 0);
    }
    let written = file.write_direct_at(&buffer[start..], offset).map_err(full);
    let mut buffers = BUFFERS.lock();
    if buffers.len() < BUFFERS_MAX {
        buffers.push(buffer);
    }
    written
}

fn write_chunk(file: &SyncFile, bytes: &[u8], offset: u64) -> Result<(), FsError> {
    fail::fail_point!("segment-append", |_| Ok(()));
    file.write_at(bytes, offset).map_err(full)
}

/// Preallocates a file, of which what lies before `end` is used, up to `most` bytes if the disk has them, and at least up to
/// `least`; returns how far.
fn preallocate_some(file: &SyncFile, end: u64, least: u64, most: u64) -> Result<u64, FsError> {
    let mut to = most.max(least);
    loop {
        let allocated = rustix::fs::fallocate(file.file(), FallocateFlags::empty(), 0, to);
        match allocated.map_err(io::Error::from) {
            Ok(()) => return Ok(to),
            Err(error) => {
                // A disk that becomes full leaves us what it had until then.
                let given_back = file.file().set_len(end);
                given_back.map_err(io_error("truncate", file.path()))?;
                match full_or("preallocate", file.path())(error) {
                    FsError::NoSpace if to > least => to = least.max(end + (to - end) / 2),
                    error => return Err(error),
                }
            }
        }
    }
}

fn give_back_tail(file: &SyncFile, end: u64) -> Result<(), FsError> {
    let len = file
        .file()
        .metadata()
        .map_err(io_error("stat", file.path()))?
        .len();
    if end < len {
        file.file()
            .set_len(end)
            .map_err(io_error("truncate", file.path()))?;
    }
    Ok(())
}

/// Reads whole pages of a chunk, from `from` (a multiple of a page) on, and verifies them.
fn read_pages(
    file: &SyncFile,
    place: &SegmentPlace,
    from: usize,
    buffer: &mut [u8],
) -> Result<(), FsError> {
    read_bytes(file, place, from, buffer)?;
    let crcs = &place.crcs[from / CRC_PAGE_BYTES..];
    for (page, (bytes, crc)) in buffer.chunks(CRC_PAGE_BYTES).zip(crcs).enumerate() {
        if crc32c::crc32c(bytes) != *crc {
            let at = from + page * CRC_PAGE_BYTES;
            let detail = "the checksum of the page does not match";
            return Err(damaged(place, at..at + bytes.len(), detail));
        }
    }
    Ok(())
}

fn read_bytes(
    file: &SyncFile,
    place: &SegmentPlace,
    from: usize,
    buffer: &mut [u8],
) -> Result<(), FsError> {
    let range = from..from + buffer.len();
    file.read_at(buffer, u64::from(place.offset) + from as u64)
        .map_err(|error| match error {
            FsError::Io { ref source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => {
                damaged(place, range, "their segment is cut short")
            }
            error => unreadable(place, range, error),
        })
}

/// A part of a chunk, as the file has it.
fn damaged(place: &SegmentPlace, range: Range<usize>, detail: &'static str) -> FsError {
    FsError::Damaged {
        ino: place.ino,
        offset: place.file_offset + range.start as u64,
        len: range.len() as u64,
        detail,
    }
}

fn unreadable(place: &SegmentPlace, range: Range<usize>, source: FsError) -> FsError {
    FsError::Unreadable {
        ino: place.ino,
        offset: place.file_offset + range.start as u64,
        len: range.len() as u64,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests;
