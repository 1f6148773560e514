//! The log on disk: records one after the other in preallocated, already written files, which are recycled.
//!
//! [`crate::volume`] appends under its write lock; recovery reads (`store/replay.rs`). Overwriting written space costs a sync half of what
//! growing a file costs (`docs/rfcs/0001-store.md`), so a file is filled with zeros before it is used and renamed, not
//! deleted, when its records are no longer needed.
//!
//! A *frame* is one record with what only this copy needs: where the chunks that it names lie, and how far the log was
//! durable when it was written. A file starts with a header of one page. `docs/on-disk.md` draws both.
//!
//! Invariant: a frame counts only if its CRC32C, its lsn and its chain fit what comes before it; the first that does not
//! ends the log. Stale frames of a recycled file never fit, as their lsn is old.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hafs_protocol::{Lsn, Pos, StoreId};
use parking_lot::Mutex;

use crate::error::FsError;
use crate::record::{Record, chain};
use crate::space::DiskBytes;
use crate::store::codec::Reader;
use crate::store::key::{CHAIN_BYTES, Chain, LogPlace, SegmentId};
use crate::store::syncfile::{SyncFile, Syncer, full, full_or, io_error};

const FILE_MAGIC: &[u8; 8] = b"HAFSLOG\0";
const FILE_VERSION: u8 = 1;
/// Space that a file's header takes: one page, so that frames start on one.
pub(super) const FILE_HEADER_BYTES: u64 = 4096;
/// Bytes of the header in use: magic, version, store, first lsn, chain before it; then their CRC32C.
pub(super) const FILE_HEADER_USED: usize = 8 + 1 + 16 + 8 + CHAIN_BYTES;

const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"hLF2");
/// Magic, length of the frame, CRC32C of what follows, length of the record, number of chunk places, durable lsn.
const FRAME_HEADER_BYTES: usize = 28;
/// Where the CRC stands in it, and where what it covers starts.
const FRAME_CRC_AT: usize = 8;
const FRAME_CRC_COVERS_FROM: usize = 12;
const PLACE_BYTES: usize = 12;
/// Frames start at multiples of this.
pub(super) const FRAME_ALIGN: usize = 8;
/// A frame is at most this long: an extended attribute of 64 KiB, or 1,024 mutations of some 100 bytes, with room. A log
/// file holds at least one.
pub(crate) const FRAME_BYTES_MAX: usize = 248 * 1024;
/// The smallest log file.
pub(crate) const LOG_FILE_BYTES_MIN: u64 = 256 * 1024;
/// Recycled files that are kept ready.
const SPARES_MAX: usize = 2;

/// Where a chunk that a record names was put on this copy: segment and offset, in the order of the record's chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkPlace {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
}

/// A record as it lies in the log.
#[derive(Debug)]
pub(crate) struct Framed {
    pub(crate) record: Record,
    pub(crate) places: Vec<ChunkPlace>,
    pub(crate) chain: Chain,
    /// Where the frame ends.
    pub(crate) end: LogPlace,
}

/// A frame's bytes for an encoded record whose chain is `chain`. `durable` is the newest record that is known to be on the
/// disk: should a frame before this one be lost, this one says whether that one had been synced.
///
/// The checksum begins with the store's id: what users write lies in records, and bytes that look like a frame of another
/// store, or of none, must not speak for this one.
pub(crate) fn encode_frame(
    store: StoreId,
    record: &[u8],
    chain: &Chain,
    durable: Lsn,
    places: &[ChunkPlace],
) -> Vec<u8> {
    let used = FRAME_HEADER_BYTES + CHAIN_BYTES + record.len() + places.len() * PLACE_BYTES;
    let len = used.next_multiple_of(FRAME_ALIGN);
    assert!(len <= FRAME_BYTES_MAX, "a frame of {len} bytes");
    let mut out = Vec::with_capacity(len);
    out.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
    out.extend_from_slice(&len32(len).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&len32(record.len()).to_le_bytes());
    out.extend_from_slice(&len32(places.len()).to_le_bytes());
    out.extend_from_slice(&durable.0.to_le_bytes());
    out.extend_from_slice(chain);
    out.extend_from_slice(record);
    for place in places {
        out.extend_from_slice(&place.segment.0.to_le_bytes());
        out.extend_from_slice(&place.offset.to_le_bytes());
    }
    out.resize(len, 0);
    let crc = frame_crc(store, &out[FRAME_CRC_COVERS_FROM..]);
    out[FRAME_CRC_AT..FRAME_CRC_COVERS_FROM].copy_from_slice(&crc.to_le_bytes());
    out
}

fn frame_crc(store: StoreId, covered: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(store.as_bytes()), covered)
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("bounded by FRAME_BYTES_MAX")
}

/// A frame whose bytes are whole; whether it follows what was read before is not yet known.
#[derive(Debug)]
pub(crate) struct WholeFrame<'a> {
    /// Bytes of the frame.
    pub(crate) len: usize,
    /// Everything up to here was durable when the frame was written.
    pub(crate) durable: Lsn,
    chain: Chain,
    record: &'a [u8],
    places: Vec<ChunkPlace>,
}

/// Length that the frame at the start of `bytes` says it has; `None` if no frame starts there.
pub(super) fn frame_len(bytes: &[u8]) -> Option<usize> {
    let mut reader = Reader::new(bytes, "frame");
    if reader.u32().ok()? != FRAME_MAGIC {
        return None;
    }
    let len = reader.u32().ok()? as usize;
    (FRAME_HEADER_BYTES + CHAIN_BYTES..=FRAME_BYTES_MAX)
        .contains(&len)
        .then_some(len)
}

impl<'a> WholeFrame<'a> {
    /// Reads the frame at the start of `bytes`, if it is whole and of this store.
    pub(crate) fn read(store: StoreId, bytes: &'a [u8]) -> Option<Self> {
        let bytes = bytes.get(..frame_len(bytes)?)?;
        let crc = &bytes[FRAME_CRC_AT..FRAME_CRC_COVERS_FROM];
        let covered = &bytes[FRAME_CRC_COVERS_FROM..];
        if frame_crc(store, covered).to_le_bytes() != crc {
            return None;
        }
        let mut reader = Reader::new(covered, "frame");
        let record_len = reader.u32().ok()? as usize;
        let place_count = reader.u32().ok()? as usize;
        let durable = Lsn(reader.u64().ok()?);
        let chain = reader.array().ok()?;
        let record = reader.bytes(record_len).ok()?;
        let mut places = Vec::new();
        for _ in 0..place_count {
            places.push(ChunkPlace {
                segment: SegmentId(reader.u64().ok()?),
                offset: reader.u32().ok()?,
            });
        }
        Some(Self {
            len: bytes.len(),
            durable,
            chain,
            record,
            places,
        })
    }

    /// The number of its record.
    pub(crate) fn lsn(&self) -> Option<Lsn> {
        Some(Record::decode(self.record).ok()?.0.pos.lsn)
    }

    /// The frame, which lies at `at`, if it follows a record with this lsn and chain.
    pub(crate) fn following(
        self,
        at: LogPlace,
        before: Lsn,
        chain_before: &Chain,
    ) -> Option<Framed> {
        let (record, chained_len) = Record::decode(self.record).ok()?;
        let chunks = record.pieces.iter().filter(|piece| piece.inline.is_none());
        let fits = record.pos.lsn == before.next()
            && chain(chain_before, &self.record[..chained_len]) == self.chain
            && chunks.count() == self.places.len();
        let end = LogPlace {
            offset: at.offset + self.len as u64,
            ..at
        };
        fits.then_some(Framed {
            record,
            places: self.places,
            chain: self.chain,
            end,
        })
    }
}

/// Name of the file whose first record is this one.
pub(super) fn file_name(first: Lsn) -> String {
    format!("{:016x}.log", first.0)
}

/// First record of the file with this name; `None` if no file of the log is called so.
pub(super) fn named_first(path: &Path) -> Option<Lsn> {
    let first = Lsn(u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok()?);
    (path.file_name()? == file_name(first).as_str()).then_some(first)
}

/// The header of a file whose first record is the one after `before`.
pub(crate) fn encode_header(store: StoreId, first: Lsn, chain_before: &Chain) -> Vec<u8> {
    let mut out = Vec::with_capacity(FILE_HEADER_USED + 4);
    out.extend_from_slice(FILE_MAGIC);
    out.push(FILE_VERSION);
    out.extend_from_slice(store.as_bytes());
    out.extend_from_slice(&first.0.to_le_bytes());
    out.extend_from_slice(chain_before);
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// First lsn and the chain before it; `None` if this is no header of this store's log.
pub(crate) fn decode_header(bytes: &[u8], store: StoreId) -> Option<(Lsn, Chain)> {
    let used = bytes.get(..FILE_HEADER_USED)?;
    let crc = bytes.get(FILE_HEADER_USED..FILE_HEADER_USED + 4)?;
    if crc32c::crc32c(used).to_le_bytes() != crc {
        return None;
    }
    let mut reader = Reader::new(used, "log file header");
    let magic = reader.bytes(8).ok()?;
    let version = reader.u8().ok()?;
    let owner = StoreId::from_bytes(reader.array().ok()?);
    let first = Lsn(reader.u64().ok()?);
    let chain_before = reader.array().ok()?;
    (magic == FILE_MAGIC && version == FILE_VERSION && owner == store)
        .then_some((first, chain_before))
}

/// A file of the log that is full, kept for replay or for peers that come back.
#[derive(Debug)]
pub(super) struct FullFile {
    pub(super) path: PathBuf,
    pub(super) last: Lsn,
}

/// What a log holds before the file that is to be started.
#[derive(Debug)]
pub(super) struct LogBefore {
    pub(super) head: Pos,
    pub(super) chain: Chain,
    pub(super) full: VecDeque<FullFile>,
}

/// The log's end, where records are appended. The volume's write lock guards it.
#[derive(Debug)]
pub(crate) struct LogWriter {
    store: StoreId,
    file_bytes: u64,
    active: Arc<SyncFile>,
    /// Where the next frame goes.
    end: LogPlace,
    head: Pos,
    chain: Chain,
    full: VecDeque<FullFile>,
    syncer: Arc<Syncer>,
    spares: Arc<Spares>,
}

impl LogWriter {
    /// Starts the log of a new store: one empty file.
    pub(crate) fn create(dir: &Path, store: StoreId, file_bytes: u64) -> Result<Self, FsError> {
        fs::create_dir(dir).map_err(io_error("create", dir))?;
        let before = LogBefore {
            head: Pos::default(),
            chain: [0; CHAIN_BYTES],
            full: VecDeque::new(),
        };
        let syncer = Arc::new(Syncer::new(dir.to_owned()));
        Self::start(dir, store, file_bytes, before, syncer)
    }

    /// A log that goes on in a new file.
    pub(super) fn start(
        dir: &Path,
        store: StoreId,
        file_bytes: u64,
        before: LogBefore,
        syncer: Arc<Syncer>,
    ) -> Result<Self, FsError> {
        let LogBefore { head, chain, full } = before;
        let spares = Arc::new(Spares::new(dir.to_owned(), file_bytes));
        let active = open_next(&spares, &syncer, store, head.lsn.next(), &chain)?;
        Ok(Self {
            store,
            file_bytes,
            active,
            end: LogPlace {
                file: head.lsn.next(),
                offset: FILE_HEADER_BYTES,
            },
            head,
            chain,
            full,
            syncer,
            spares,
        })
    }

    /// A log that goes on at `end` in a file that is there.
    pub(super) fn go_on(
        dir: &Path,
        store: StoreId,
        active: Arc<SyncFile>,
        end: LogPlace,
        file_bytes: u64,
        before: LogBefore,
        syncer: Arc<Syncer>,
    ) -> Self {
        let LogBefore { head, chain, full } = before;
        Self {
            store,
            file_bytes,
            active,
            end,
            head,
            chain,
            full,
            syncer,
            spares: Arc::new(Spares::new(dir.to_owned(), file_bytes)),
        }
    }

    #[cfg(test)]
    pub(super) fn full(&self) -> &VecDeque<FullFile> {
        &self.full
    }

    /// The newest record.
    pub(crate) fn head(&self) -> Pos {
        self.head
    }

    /// Its chain.
    pub(crate) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Where a frame of this length will end, once there is room for it.
    pub(crate) fn end_after(&self, frame_bytes: usize) -> LogPlace {
        LogPlace {
            offset: self.end.offset + frame_bytes as u64,
            ..self.end
        }
    }

    pub(crate) fn syncer(&self) -> &Arc<Syncer> {
        &self.syncer
    }

    pub(crate) fn spares(&self) -> &Arc<Spares> {
        &self.spares
    }

    /// Bytes that the log takes on the disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.file_bytes * (self.full.len() as u64 + 1 + self.spares.len() as u64)
    }

    /// Makes sure that a frame of this length fits, in a new file if need be. An error leaves the log as it was.
    pub(crate) fn make_room(&mut self, frame_bytes: usize) -> Result<(), FsError> {
        if self.end.offset + frame_bytes as u64 > self.file_bytes {
            self.roll()?;
        }
        Ok(())
    }

    /// True if the log will soon need another file and has none ready.
    pub(crate) fn is_short(&self) -> bool {
        let left = self.file_bytes.saturating_sub(self.end.offset);
        self.spares.len() == 0 && left < self.file_bytes / 4
    }

    /// Appends a frame that [`Self::make_room`] was asked for: it is in the page cache when this returns. After an error
    /// the log takes no more.
    pub(crate) fn append(&mut self, frame: &[u8], pos: Pos, chain: Chain) -> Result<(), FsError> {
        assert_eq!(pos.lsn, self.head.lsn.next(), "the log is dense");
        assert!(pos.epoch >= self.head.epoch, "epochs never fall");
        assert!(
            self.end.offset + frame.len() as u64 <= self.file_bytes,
            "room was made"
        );
        self.write(frame)?;
        self.syncer.wrote(&self.active, frame.len() as u64);
        self.end.offset += frame.len() as u64;
        self.head = pos;
        self.chain = chain;
        Ok(())
    }

    fn write(&self, frame: &[u8]) -> Result<(), FsError> {
        fail::fail_point!("log-append", |_| Ok(()));
        // What lies behind is of the file's earlier life.
        self.active.write_pages_at(frame, self.end.offset)
    }

    fn roll(&mut self) -> Result<(), FsError> {
        let next = open_next(
            &self.spares,
            &self.syncer,
            self.store,
            self.head.lsn.next(),
            &self.chain,
        )?;
        let path = self.active.path().to_owned();
        self.full.push_back(FullFile {
            path,
            last: self.head.lsn,
        });
        self.active = next;
        self.end = LogPlace {
            file: self.head.lsn.next(),
            offset: FILE_HEADER_BYTES,
        };
        Ok(())
    }

    /// Gives the files that are ready to be used to the disk, if the present one has room for what comes soon.
    pub(crate) fn give_up_spares(&mut self) -> Result<(), FsError> {
        if self.file_bytes.saturating_sub(self.end.offset) > self.file_bytes / 4 {
            self.spares.keep_none()?;
        }
        Ok(())
    }

    /// Gives back files whose records are all at or below `needed`, the oldest first, as long as the full files
    /// together take more than `keep_bytes`. If that is 0, the disk is full: no more than one stays ready to be used.
    pub(crate) fn trim(&mut self, needed: Lsn, keep_bytes: u64) -> Result<(), FsError> {
        while self.full.len() as u64 * self.file_bytes > keep_bytes
            && self.full.front().is_some_and(|file| file.last <= needed)
        {
            if let Some(file) = self.full.pop_front() {
                self.spares.give_back(&file.path)?;
                self.syncer.created();
            }
        }
        if keep_bytes == 0 {
            self.spares.keep_one()?;
        }
        Ok(())
    }
}

/// Takes a spare, writes its header, gives it its name. After an error the spare is still one.
fn open_next(
    spares: &Spares,
    syncer: &Syncer,
    store: StoreId,
    first: Lsn,
    chain_before: &Chain,
) -> Result<Arc<SyncFile>, FsError> {
    let spare = spares.take()?;
    let path = spares.dir.join(file_name(first));
    let header = encode_header(store, first, chain_before);
    let named = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&spare)
        .map_err(full_or("open", &spare))
        .and_then(|file| {
            let file = Arc::new(SyncFile::new(file, path.clone()));
            file.write_pages_at(&header, 0).map_err(full)?;
            fs::rename(&spare, &path).map_err(full_or("rename", &spare))?;
            Ok(file)
        });
    match named {
        Ok(file) => {
            syncer.wrote(&file, header.len() as u64);
            syncer.created();
            Ok(file)
        }
        Err(error) => {
            spares.ready.lock().paths.push(spare);
            Err(error)
        }
    }
}

/// True for the name of a file that is ready to be used.
pub(super) fn is_spare(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("spare-"))
}

/// Log files that are ready to be used: full length, every block written.
#[derive(Debug)]
pub(crate) struct Spares {
    dir: PathBuf,
    file_bytes: u64,
    ready: Mutex<SpareFiles>,
}

#[derive(Debug)]
struct SpareFiles {
    paths: Vec<PathBuf>,
    next: u64,
}

impl Spares {
    fn new(dir: PathBuf, file_bytes: u64) -> Self {
        Self {
            dir,
            file_bytes,
            ready: Mutex::new(SpareFiles {
                paths: Vec::new(),
                next: 1,
            }),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ready.lock().paths.len()
    }

    /// Makes one ready if there is none. Slow (writes a whole file): called in the background, so that rolling the log
    /// need not wait.
    ///
    /// # Errors
    /// [`FsError::NoSpace`], without a byte written, if the disk has no room for it and as much again: this is asked for
    /// with each record, and what room is left should go to those records.
    pub(crate) fn prepare(&self) -> Result<(), FsError> {
        if self.len() > 0 {
            return Ok(());
        }
        if DiskBytes::under(&self.dir)?.own < 2 * self.file_bytes {
            return Err(FsError::NoSpace);
        }
        let path = self.make()?;
        self.ready.lock().paths.push(path);
        Ok(())
    }

    fn take(&self) -> Result<PathBuf, FsError> {
        let ready = self.ready.lock().paths.pop();
        match ready {
            Some(path) => Ok(path),
            None => self.make(),
        }
    }

    fn name(&self) -> PathBuf {
        let mut ready = self.ready.lock();
        ready.next += 1;
        self.dir.join(format!("spare-{}", ready.next))
    }

    fn make(&self) -> Result<PathBuf, FsError> {
        // The kernel keeps what is written at once in one piece of its cache (a large folio), and walks over the whole piece
        // with each record that is written into it later: of 1 MiB, that takes as long as the rest of the write.
        const BLOCK: usize = 16 << 10;
        let path = self.name();
        let written = File::create(&path).and_then(|mut file| {
            let zeros = vec![0; BLOCK];
            let mut left = self.file_bytes;
            while left > 0 {
                let len = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
                file.write_all(&zeros[..len])?;
                left -= len as u64;
            }
            file.sync_data()
        });
        if let Err(error) = written {
            let _ = fs::remove_file(&path); // the error that matters is the first
            return Err(full_or("preallocate", &path)(error));
        }
        Ok(path)
    }

    fn keep_none(&self) -> Result<(), FsError> {
        let all = std::mem::take(&mut self.ready.lock().paths);
        for path in all {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    fn keep_one(&self) -> Result<(), FsError> {
        let more = {
            let mut ready = self.ready.lock();
            let one = ready.paths.len().min(1);
            ready.paths.split_off(one)
        };
        for path in more {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    fn give_back(&self, path: &Path) -> Result<(), FsError> {
        let len = fs::metadata(path).map_err(io_error("stat", path))?.len();
        if self.len() >= SPARES_MAX || len != self.file_bytes {
            return fs::remove_file(path).map_err(io_error("remove", path));
        }
        let spare = self.name();
        match fs::rename(path, &spare).map_err(full_or("rename", path)) {
            Ok(()) => {
                self.ready.lock().paths.push(spare);
                Ok(())
            }
            // What has no room for another name has a use for the file's space.
            Err(FsError::NoSpace) => fs::remove_file(path).map_err(io_error("remove", path)),
            Err(error) => Err(error),
        }
    }
}
