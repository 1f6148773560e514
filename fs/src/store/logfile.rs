//! The log on disk: records one after the other in preallocated, already written files, which are recycled.
//!
//! [`crate::volume`] appends under its write lock; recovery reads. Overwriting written space costs a sync half of what
//! growing a file costs (`docs/rfcs/0001-store.md`), so a file is filled with zeros before it is used and renamed, not
//! deleted, when its records are no longer needed.
//!
//! A *frame* is one record with what only this copy needs: where the chunks that it names lie. A file starts with a
//! header of one page. `docs/on-disk.md` draws both.
//!
//! Invariant: a frame counts only if its CRC32C, its lsn and its chain fit what comes before it; the first that does not
//! ends the log. Stale frames of a recycled file never fit, as their lsn is old.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hafs_protocol::{Lsn, Pos, StoreId};
use parking_lot::Mutex;

use crate::error::FsError;
use crate::record::{Record, chain};
use crate::store::codec::Reader;
use crate::store::key::{Applied, CHAIN_BYTES, Chain, LogPlace, SegmentId};
use crate::store::syncfile::{SyncFile, Syncer, io_error};

const FILE_MAGIC: &[u8; 8] = b"HAFSLOG\0";
const FILE_VERSION: u8 = 1;
/// Space that a file's header takes: one page, so that frames start on one.
const FILE_HEADER_BYTES: u64 = 4096;
/// Bytes of the header in use: magic, version, store, first lsn, chain before it; then their CRC32C.
const FILE_HEADER_USED: usize = 8 + 1 + 16 + 8 + CHAIN_BYTES;

const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"hLF1");
/// Magic, length of the frame, CRC32C of what follows, length of the record, number of chunk places.
const FRAME_HEADER_BYTES: usize = 20;
/// Where the CRC stands in it, and where what it covers starts.
const FRAME_CRC_AT: usize = 8;
const FRAME_CRC_COVERS_FROM: usize = 12;
const PLACE_BYTES: usize = 12;
/// Frames start at multiples of this.
const FRAME_ALIGN: usize = 8;
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

/// A frame's bytes for an encoded record whose chain is `chain`.
pub(crate) fn encode_frame(record: &[u8], chain: &Chain, places: &[ChunkPlace]) -> Vec<u8> {
    let used = FRAME_HEADER_BYTES + CHAIN_BYTES + record.len() + places.len() * PLACE_BYTES;
    let len = used.next_multiple_of(FRAME_ALIGN);
    assert!(len <= FRAME_BYTES_MAX, "a frame of {len} bytes");
    let mut out = Vec::with_capacity(len);
    out.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
    out.extend_from_slice(&len32(len).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&len32(record.len()).to_le_bytes());
    out.extend_from_slice(&len32(places.len()).to_le_bytes());
    out.extend_from_slice(chain);
    out.extend_from_slice(record);
    for place in places {
        out.extend_from_slice(&place.segment.0.to_le_bytes());
        out.extend_from_slice(&place.offset.to_le_bytes());
    }
    out.resize(len, 0);
    let crc = crc32c::crc32c(&out[FRAME_CRC_COVERS_FROM..]);
    out[FRAME_CRC_AT..FRAME_CRC_COVERS_FROM].copy_from_slice(&crc.to_le_bytes());
    out
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("bounded by FRAME_BYTES_MAX")
}

/// Reads the frame at the start of `bytes`, which lie at `at` and must follow a record with this lsn and chain. `None`: no such frame
/// here, the log ends.
fn decode_frame(bytes: &[u8], at: LogPlace, before: Lsn, chain_before: &Chain) -> Option<Framed> {
    let mut reader = Reader::new(bytes, "frame");
    if reader.u32().ok()? != FRAME_MAGIC {
        return None;
    }
    let len = reader.u32().ok()? as usize;
    if !(FRAME_HEADER_BYTES..=FRAME_BYTES_MAX).contains(&len) || bytes.len() < len {
        return None;
    }
    let crc = reader.u32().ok()?;
    if crc32c::crc32c(&bytes[FRAME_CRC_COVERS_FROM..len]) != crc {
        return None;
    }
    let mut reader = Reader::new(&bytes[FRAME_CRC_COVERS_FROM..len], "frame");
    let record_len = reader.u32().ok()? as usize;
    let place_count = reader.u32().ok()? as usize;
    let stored_chain: Chain = reader.array().ok()?;
    let record_bytes = reader.bytes(record_len).ok()?;
    let mut places = Vec::new();
    for _ in 0..place_count {
        places.push(ChunkPlace {
            segment: SegmentId(reader.u64().ok()?),
            offset: reader.u32().ok()?,
        });
    }
    let (record, chained_len) = Record::decode(record_bytes).ok()?;
    let fits = record.pos.lsn == before.next()
        && chain(chain_before, &record_bytes[..chained_len]) == stored_chain
        && record
            .pieces
            .iter()
            .filter(|piece| piece.inline.is_none())
            .count()
            == places.len();
    let end = LogPlace {
        offset: at.offset + len as u64,
        ..at
    };
    fits.then_some(Framed {
        record,
        places,
        chain: stored_chain,
        end,
    })
}

/// Name of the file whose first record is this one.
fn file_name(first: Lsn) -> String {
    format!("{:016x}.log", first.0)
}

/// The header of a file whose first record is the one after `before`.
fn encode_header(store: StoreId, first: Lsn, chain_before: &Chain) -> Vec<u8> {
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
fn decode_header(bytes: &[u8], store: StoreId) -> Option<(Lsn, Chain)> {
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
struct FullFile {
    path: PathBuf,
    last: Lsn,
}

/// What a log holds before the file that is to be started.
#[derive(Debug)]
struct LogBefore {
    head: Pos,
    chain: Chain,
    full: VecDeque<FullFile>,
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

    fn start(
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
        self.active.write_at(frame, self.end.offset)
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

    /// Gives back files whose records are all at or below `needed`, the oldest first, as long as the full files
    /// together take more than `keep_bytes`.
    pub(crate) fn trim(&mut self, needed: Lsn, keep_bytes: u64) -> Result<(), FsError> {
        while self.full.len() as u64 * self.file_bytes > keep_bytes
            && self.full.front().is_some_and(|file| file.last <= needed)
        {
            if let Some(file) = self.full.pop_front() {
                self.spares.give_back(&file.path)?;
                self.syncer.created();
            }
        }
        Ok(())
    }
}

/// Takes a spare, writes its header, gives it its name.
fn open_next(
    spares: &Spares,
    syncer: &Syncer,
    store: StoreId,
    first: Lsn,
    chain_before: &Chain,
) -> Result<Arc<SyncFile>, FsError> {
    let spare = spares.take()?;
    let path = spares.dir.join(file_name(first));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&spare)
        .map_err(io_error("open", &spare))?;
    let file = Arc::new(SyncFile::new(file, path.clone()));
    let header = encode_header(store, first, chain_before);
    file.write_at(&header, 0)?;
    syncer.wrote(&file, header.len() as u64);
    fs::rename(&spare, &path).map_err(io_error("rename", &spare))?;
    syncer.created();
    Ok(file)
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
    pub(crate) fn prepare(&self) -> Result<(), FsError> {
        if self.len() > 0 {
            return Ok(());
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
        const BLOCK: usize = 1 << 20;
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
            return Err(match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FsError::NoSpace,
                _ => io_error("preallocate", &path)(error),
            });
        }
        Ok(path)
    }

    fn give_back(&self, path: &Path) -> Result<(), FsError> {
        if self.len() >= SPARES_MAX {
            return fs::remove_file(path).map_err(io_error("remove", path));
        }
        let spare = self.name();
        fs::rename(path, &spare).map_err(io_error("rename", path))?;
        self.ready.lock().paths.push(spare);
        Ok(())
    }
}

/// A file that recovery found.
#[derive(Debug)]
struct FoundFile {
    path: PathBuf,
    first: Lsn,
    chain_before: Chain,
    /// It has the length that files have now. Others are read, not written to or recycled.
    full_length: bool,
}

/// Reads a log from a position on.
#[derive(Debug)]
pub(crate) struct LogReader {
    dir: PathBuf,
    store: StoreId,
    file_bytes: u64,
    files: Vec<FoundFile>,
    /// Files that are no part of the log: spares, and what a crash left.
    others: Vec<PathBuf>,
}

impl LogReader {
    /// Lists the log's files. Changes nothing.
    pub(crate) fn open(dir: &Path, store: StoreId, file_bytes: u64) -> Result<Self, FsError> {
        let mut files = Vec::new();
        let mut others = Vec::new();
        for entry in fs::read_dir(dir).map_err(io_error("read", dir))? {
            let path = entry.map_err(io_error("read", dir))?.path();
            let mut header = [0; FILE_HEADER_USED + 4];
            let opened = File::open(&path).map_err(io_error("open", &path))?;
            let len = opened.metadata().map_err(io_error("stat", &path))?.len();
            let file = SyncFile::new(opened, path.clone());
            let header = (len >= FILE_HEADER_BYTES
                && path.extension().is_some_and(|extension| extension == "log"))
            .then(|| {
                file.read_at(&mut header, 0)
                    .map(|()| decode_header(&header, store))
            })
            .transpose()?
            .flatten();
            // A name that does not fit: after a power cut the rename has reached the disk without the header, or the header
            // without the rename. Nothing in it was synced since, and its name may be the next file's.
            let header = header.filter(|(first, _)| path == dir.join(file_name(*first)));
            match header {
                Some((first, chain_before)) => {
                    let full_length = len == file_bytes;
                    files.push(FoundFile {
                        path,
                        first,
                        chain_before,
                        full_length,
                    });
                }
                None => others.push(path),
            }
        }
        files.sort_by_key(|file| file.first);
        Ok(Self {
            dir: dir.to_owned(),
            store,
            file_bytes,
            files,
            others,
        })
    }

    /// Calls `each` with every record after `applied` that counts, in order, until it says that the log ends there
    /// (returns false: a chunk does not verify). Then makes the log ready for appending after the last that counted.
    ///
    /// A log that ends before `durable`, which was synced once, has lost something: that is an error, and no file is
    /// changed.
    pub(crate) fn replay(
        self,
        applied: &Applied,
        durable: Lsn,
        each: &mut dyn FnMut(&Framed) -> Result<bool, FsError>,
    ) -> Result<LogWriter, FsError> {
        let mut head = applied.pos;
        let mut chain = applied.chain;
        let mut full: VecDeque<FullFile> = VecDeque::new();
        let mut active: Option<(Arc<SyncFile>, LogPlace)> = None;
        let mut ended = false;
        // What a killed predecessor wrote may still be in the page cache only.
        let syncer = Arc::new(Syncer::new(self.dir.clone()));
        syncer.created();
        let mut stale = self.others;
        // Reading starts where the applied record ends: damage before that place is of no interest any more.
        let start = self
            .files
            .iter()
            .position(|file| file.first == applied.log_end.file)
            .or_else(|| {
                self.files
                    .iter()
                    .position(|file| file.first == applied.pos.lsn.next())
            });
        if start.is_none() && !self.files.is_empty() {
            return Err(FsError::Corrupt(format!(
                "the log has no file that goes on after the state's {}",
                applied.pos.lsn
            )));
        }
        for (index, found) in self.files.iter().enumerate() {
            let is_before = start.is_some_and(|start| index < start);
            if is_before {
                let next_first = self.files[index + 1].first;
                full.push_back(FullFile {
                    path: found.path.clone(),
                    last: Lsn(next_first.0.saturating_sub(1)),
                });
                continue;
            }
            let continues = start == Some(index)
                || (found.first == head.lsn.next() && found.chain_before == chain);
            if ended || !continues {
                ended = true;
                stale.push(found.path.clone());
                continue;
            }
            if let Some((file, _)) = active.take() {
                full.push_back(FullFile {
                    path: file.path().to_owned(),
                    last: head.lsn,
                });
            }
            let file = open_file(&found.path)?;
            let from = if found.first == applied.log_end.file {
                applied.log_end
            } else {
                LogPlace {
                    file: found.first,
                    offset: FILE_HEADER_BYTES,
                }
            };
            let end = read_frames(&file, from, &mut head, &mut chain, each)?;
            ended = end.ended_early;
            syncer.wrote(&file, end.at.offset);
            if found.full_length {
                active = Some((file, end.at));
            } else if head.lsn < found.first {
                stale.push(found.path.clone()); // empty, and of a length that is no longer used
            } else {
                full.push_back(FullFile {
                    path: found.path.clone(),
                    last: head.lsn,
                });
            }
        }
        if head.lsn < durable {
            return Err(FsError::Corrupt(format!(
                "the log ends at {}, but {durable} had been synced: {} records are lost",
                head.lsn,
                durable.0 - head.lsn.0
            )));
        }
        for path in &stale {
            fs::remove_file(path).map_err(io_error("remove", path))?;
        }
        let Some((file, end)) = active else {
            let before = LogBefore { head, chain, full };
            return LogWriter::start(&self.dir, self.store, self.file_bytes, before, syncer);
        };
        let spares = Arc::new(Spares::new(self.dir.clone(), self.file_bytes));
        Ok(LogWriter {
            store: self.store,
            file_bytes: self.file_bytes,
            active: file,
            end,
            head,
            chain,
            full,
            syncer,
            spares,
        })
    }
}

fn open_file(path: &Path) -> Result<Arc<SyncFile>, FsError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(io_error("open", path))?;
    Ok(Arc::new(SyncFile::new(file, path.to_owned())))
}

struct FramesEnd {
    at: LogPlace,
    /// `each` refused a record: nothing after it counts, in later files either.
    ended_early: bool,
}

/// Reads frames from a place on, which must follow `head`.
fn read_frames(
    file: &SyncFile,
    from: LogPlace,
    head: &mut Pos,
    chain: &mut Chain,
    each: &mut dyn FnMut(&Framed) -> Result<bool, FsError>,
) -> Result<FramesEnd, FsError> {
    let bytes = fs::read(file.path()).map_err(io_error("read", file.path()))?;
    let mut at = from;
    loop {
        let rest = usize::try_from(at.offset)
            .ok()
            .and_then(|offset| bytes.get(offset..));
        let next = rest.and_then(|rest| decode_frame(rest, at, head.lsn, chain));
        let Some(framed) = next else {
            return Ok(FramesEnd {
                at,
                ended_early: false,
            });
        };
        if !each(&framed)? {
            return Ok(FramesEnd {
                at,
                ended_early: true,
            });
        }
        *head = framed.record.pos;
        *chain = framed.chain;
        at = framed.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RecordKind;
    use hafs_protocol::Epoch;

    const STORE: StoreId = StoreId::from_bytes([1; 16]);

    fn append(log: &mut LogWriter) {
        let pos = Pos {
            epoch: Epoch(1),
            lsn: log.head().lsn.next(),
        };
        let record = Record {
            pos,
            kind: RecordKind::Mutations,
            mutations: Vec::new(),
            pieces: Vec::new(),
        };
        let encoded = record.encode();
        let chain = encoded.chain(log.chain());
        let frame = encode_frame(&encoded.bytes, &chain, &[]);
        log.make_room(frame.len()).unwrap();
        log.append(&frame, pos, chain).unwrap();
    }

    fn replay(dir: &Path) -> LogWriter {
        let reader = LogReader::open(dir, STORE, LOG_FILE_BYTES_MIN).unwrap();
        reader
            .replay(&Applied::EMPTY, Lsn(0), &mut |_| Ok(true))
            .unwrap()
    }

    #[test]
    fn a_recycled_file_whose_header_did_not_reach_the_disk_is_no_part_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("log");
        let mut log = LogWriter::create(&dir, STORE, LOG_FILE_BYTES_MIN).unwrap();
        while log.full.is_empty() {
            append(&mut log);
        }
        let old = log.full[0].path.clone();
        // After a power cut the name of the next file may be there, but not its header: the old one still stands in it.
        let next = log.head().lsn.next();
        let misnamed = dir.join(file_name(next));
        fs::copy(&old, &misnamed).unwrap();
        let head = log.head();
        drop(log);

        let mut log = replay(&dir);
        assert_eq!(log.head(), head);
        assert!(log.full.iter().all(|file| file.path != misnamed));
        // Else, once the log has really come to that name, giving the old file back would take the new one away.
        append(&mut log);
        assert!(log.head() > head);
    }
}
