//! Recovery's side of the log: which of its files and frames count, where it ends, and whether what lies behind that end
//! had been synced.
//!
//! Called by [`crate::volume`] when a volume is opened or repaired. A frame counts by its own bytes (CRC32C, lsn, chain); a
//! file's name says where it belongs, its header only confirms that. What a power cut leaves unfinished looks just as
//! damage does: the two are told apart by the durable mark, and by what whole frames behind the end say was durable when
//! they were written.
//!
//! Invariant: a log is never cut before a record that is known to have been synced, unless somebody accepts the loss.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hafs_protocol::{Lsn, Pos, StoreId};

use crate::error::{FsError, LogLoss};
use crate::store::key::{Applied, Chain, Inode, LogPlace, Table};
use crate::store::logfile::{
    FILE_HEADER_BYTES, FILE_HEADER_USED, FRAME_ALIGN, FRAME_BYTES_MAX, Framed, FullFile, LogBefore,
    LogWriter, WholeFrame, decode_header, frame_len, is_spare, named_first,
};
use crate::store::syncfile::{SyncFile, Syncer, io_error, sync_dir};
use crate::types::Time;

/// Bytes that are read at once, and what is left out where that fails: a disk's sectors fail one by one.
const READ_BYTES: usize = 1 << 20;
const UNREADABLE_BYTES: usize = 4096;

/// Applies a record; is also told the newest record that is known to have been synced. `false`: a chunk that the record
/// names never reached the disk, and the log ends before it.
pub(crate) type Each<'a> = dyn FnMut(&Framed, Lsn) -> Result<bool, FsError> + 'a;

/// A file that recovery found.
#[derive(Debug)]
struct FoundFile {
    path: PathBuf,
    first: Lsn,
    /// The chain before its first record, as its header says; `None` if the header is damaged.
    chain_before: Option<Chain>,
    /// It has the length that files have now. Others are read, not written to.
    full_length: bool,
}

impl FoundFile {
    /// Called for each file that the log goes on with.
    fn tell_damage(&self) {
        if self.chain_before.is_none() {
            tracing::warn!(path = %self.path.display(), "the header of a log file is damaged; its records count without it");
        }
    }
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

/// How far a log counts.
struct Walk {
    head: Pos,
    chain: Chain,
    full: VecDeque<FullFile>,
    active: Option<(Arc<SyncFile>, LogPlace)>,
    stale: Vec<PathBuf>,
    /// Where it ends, and why there.
    end: Option<End>,
    /// Time of the newest change that counts.
    newest_change: Option<Time>,
    syncer: Arc<Syncer>,
    store: StoreId,
}

struct End {
    path: PathBuf,
    offset: u64,
    cause: Cause,
}

/// Why a log ends where it does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Nothing is there.
    NoRecord,
    /// A frame's bytes do not match their checksum.
    NotWhole,
    /// A whole frame, but of another place in the log.
    NotNext,
    /// A chunk that the record names is not in its segment.
    NoChunk,
    /// The disk answers with an error.
    Unreadable,
}

impl Cause {
    const fn text(self) -> &'static str {
        match self {
            Self::NoRecord => "there is no record",
            Self::NotWhole => "a record does not match its checksum",
            Self::NotNext => "a record does not follow the one before it",
            Self::NoChunk => "a chunk that the record names is not there",
            Self::Unreadable => "the disk cannot read it",
        }
    }
}

/// What frames that lie anywhere behind the applied record tell.
struct Survey {
    /// The newest record that had been synced, as far as anything says.
    synced: Lsn,
    /// The newest record of which a whole frame is there.
    newest: Lsn,
}

impl LogReader {
    /// Lists the log's files. Changes nothing.
    pub(crate) fn open(dir: &Path, store: StoreId, file_bytes: u64) -> Result<Self, FsError> {
        let mut files = Vec::new();
        let mut others = Vec::new();
        for entry in fs::read_dir(dir).map_err(io_error("read", dir))? {
            let path = entry.map_err(io_error("read", dir))?.path();
            let Some(named) = named_first(&path) else {
                if is_spare(&path) {
                    others.push(path);
                } else {
                    tracing::warn!(path = %path.display(), "a file that is no part of the log");
                }
                continue;
            };
            let file = File::open(&path).map_err(io_error("open", &path))?;
            let len = file.metadata().map_err(io_error("stat", &path))?.len();
            let mut header = [0; FILE_HEADER_USED + 4];
            let header = SyncFile::new(file, path.clone())
                .read_at(&mut header, 0)
                .ok() // an unreadable header is a damaged one
                .and_then(|()| decode_header(&header, store));
            match header {
                // After a power cut a rename has reached the disk without the header, or the header without the rename.
                // Nothing in it was synced since, and its name may be the next file's.
                Some((first, _)) if first != named => others.push(path),
                header => files.push(FoundFile {
                    path,
                    first: named,
                    chain_before: header.map(|(_, chain)| chain),
                    full_length: len == file_bytes,
                }),
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

    /// Calls `each` with every record after `applied` that counts, in order, and makes the log ready for appending after
    /// the last.
    ///
    /// # Errors
    /// [`FsError::LogLost`] if the log ends before a record that had been synced (`mark` is what the durable mark says), or
    /// where the disk cannot read it. No file was changed then.
    pub(crate) fn replay(
        self,
        applied: &Applied,
        mark: Lsn,
        each: &mut Each<'_>,
    ) -> Result<LogWriter, FsError> {
        let (walk, loss) = self.walk(applied, mark, each)?;
        match loss {
            Some(loss) => Err(FsError::LogLost(Box::new(loss))),
            None => self.finish(walk),
        }
    }

    /// What [`Self::replay`] would refuse to go without. Changes nothing.
    pub(crate) fn loss(
        &self,
        applied: &Applied,
        mark: Lsn,
        each: &mut Each<'_>,
    ) -> Result<Option<LogLoss>, FsError> {
        Ok(self.walk(applied, mark, each)?.1)
    }

    /// The same as [`Self::replay`] for somebody who accepts the loss: what does not count is copied to `keep_in`, then
    /// taken out of the log, durably, so that nothing of it speaks up at the next opening.
    pub(crate) fn replay_and_cut(
        self,
        applied: &Applied,
        mark: Lsn,
        keep_in: &Path,
        each: &mut Each<'_>,
    ) -> Result<LogWriter, FsError> {
        let (walk, _) = self.walk(applied, mark, each)?;
        fs::create_dir_all(keep_in).map_err(io_error("create", keep_in))?;
        let end = walk.end.as_ref();
        let cut = end.filter(|end| !walk.stale.contains(&end.path));
        let stale = walk.stale.iter().filter(|path| !is_spare(path));
        for path in stale.chain(cut.map(|end| &end.path)) {
            keep_copy(path, keep_in)?;
        }
        sync_dir(keep_in)?;
        if let Some(end) = cut {
            wipe_from(&end.path, end.offset)?;
        }
        let writer = self.finish(walk)?;
        sync_dir(&self.dir)?;
        Ok(writer)
    }

    /// Where reading starts: where the applied record ends. Damage before that place is of no interest any more.
    fn start(&self, applied: &Applied) -> Option<usize> {
        let at = |first| self.files.iter().position(|file| file.first == first);
        at(applied.log_end.file).or_else(|| at(applied.pos.lsn.next()))
    }

    fn walk(
        &self,
        applied: &Applied,
        mark: Lsn,
        each: &mut Each<'_>,
    ) -> Result<(Walk, Option<LogLoss>), FsError> {
        let start = self.start(applied);
        let survey = self.survey(start, applied.pos.lsn, mark)?;
        // What a killed predecessor wrote may not be synced as a whole: the directory, for one.
        let syncer = Arc::new(Syncer::new(self.dir.clone()));
        syncer.created();
        let mut walk = Walk {
            head: applied.pos,
            chain: applied.chain,
            full: VecDeque::new(),
            active: None,
            stale: self.others.clone(),
            end: None,
            newest_change: None,
            syncer,
            store: self.store,
        };
        let (before, rest) = self.files.split_at(start.unwrap_or(0));
        for (file, next) in before.iter().zip(self.files.iter().skip(1)) {
            file.tell_damage();
            walk.full.push_back(FullFile {
                path: file.path.clone(),
                last: Lsn(next.first.0.saturating_sub(1)),
            });
        }
        let mut goes_on = start.is_some();
        for (index, found) in rest.iter().enumerate() {
            goes_on = goes_on && walk.read_file(found, index == 0, applied, survey.synced, each)?;
            if !goes_on {
                walk.stale.push(found.path.clone());
            }
            goes_on &= walk
                .end
                .as_ref()
                .is_none_or(|end| end.cause != Cause::NoChunk);
        }
        let unreadable = walk
            .end
            .as_ref()
            .is_some_and(|end| end.cause == Cause::Unreadable);
        let loss =
            (unreadable || walk.head.lsn < survey.synced).then(|| walk.loss(&self.dir, &survey));
        Ok((walk, loss))
    }

    /// Reads all frames behind the applied record, wherever they lie. From here on these files read as the disk holds them.
    fn survey(&self, start: Option<usize>, applied: Lsn, mark: Lsn) -> Result<Survey, FsError> {
        let mut survey = Survey {
            synced: mark,
            newest: Lsn(0),
        };
        let rest = self.files[start.unwrap_or(0)..]
            .iter()
            .map(|file| &file.path);
        let misnamed = self
            .others
            .iter()
            .filter(|path| named_first(path).is_some());
        for path in rest.chain(misnamed) {
            let file = open(path)?;
            file.settle()?;
            let bytes = FileBytes::read(&file)?;
            for frame in whole_frames(self.store, &bytes.bytes) {
                if let Some(lsn) = frame.lsn().filter(|lsn| *lsn > applied) {
                    survey.newest = survey.newest.max(lsn);
                    survey.synced = survey.synced.max(frame.durable);
                }
            }
        }
        Ok(survey)
    }

    fn finish(&self, walk: Walk) -> Result<LogWriter, FsError> {
        // A file that is not appended to again keeps what lies behind the end: it must not be taken for the log's next part
        // once the log has gone on elsewhere.
        if walk.active.is_none()
            && let Some(end) = &walk.end
            && end.cause != Cause::NoRecord
            && !walk.stale.contains(&end.path)
        {
            wipe_from(&end.path, end.offset)?;
        }
        for path in &walk.stale {
            fs::remove_file(path).map_err(io_error("remove", path))?;
        }
        let before = LogBefore {
            head: walk.head,
            chain: walk.chain,
            full: walk.full,
        };
        let (dir, store, file_bytes) = (&self.dir, self.store, self.file_bytes);
        match walk.active {
            Some((file, end)) => Ok(LogWriter::go_on(
                dir,
                store,
                file,
                end,
                file_bytes,
                before,
                walk.syncer,
            )),
            None => LogWriter::start(dir, store, file_bytes, before, walk.syncer),
        }
    }
}

impl Walk {
    /// Reads the next file, or the one to start with. `false`: it is no part of the log.
    fn read_file(
        &mut self,
        found: &FoundFile,
        is_start: bool,
        applied: &Applied,
        synced: Lsn,
        each: &mut Each<'_>,
    ) -> Result<bool, FsError> {
        let from = if found.first == applied.log_end.file {
            applied.log_end
        } else {
            LogPlace {
                file: found.first,
                offset: FILE_HEADER_BYTES,
            }
        };
        let file = open(&found.path)?;
        let bytes = FileBytes::read(&file)?;
        if !is_start && !self.is_followed_by(found, &bytes, from) {
            return Ok(false);
        }
        if let Some((file, _)) = self.active.take() {
            self.full.push_back(FullFile {
                path: file.path().to_owned(),
                last: self.head.lsn,
            });
        }
        let end = self.read_frames(&bytes, from, synced, each)?;
        self.syncer.wrote(&file, end.offset);
        found.tell_damage();
        if found.full_length && found.chain_before.is_some() {
            self.active = Some((file, end));
        } else if self.head.lsn < found.first {
            self.stale.push(found.path.clone()); // empty, and not to be written to
        } else {
            self.full.push_back(FullFile {
                path: found.path.clone(),
                last: self.head.lsn,
            });
        }
        Ok(true)
    }

    /// A file goes on from here if its name says so, and its header or, where that is damaged, its first record.
    fn is_followed_by(&self, found: &FoundFile, bytes: &FileBytes, from: LogPlace) -> bool {
        found.first == self.head.lsn.next()
            && match found.chain_before {
                Some(chain) => chain == self.chain,
                None => self.frame_at(bytes, from).is_ok(),
            }
    }

    fn frame_at(&self, bytes: &FileBytes, at: LogPlace) -> Result<Framed, Cause> {
        let rest = bytes.from(at.offset);
        if let Some(frame) = WholeFrame::read(self.store, rest) {
            let framed = frame.following(at, self.head.lsn, &self.chain);
            return framed.ok_or(Cause::NotNext);
        }
        let len = frame_len(rest);
        if bytes.is_unreadable(at.offset, len.unwrap_or(UNREADABLE_BYTES)) {
            return Err(Cause::Unreadable);
        }
        Err(if len.is_some() {
            Cause::NotWhole
        } else {
            Cause::NoRecord
        })
    }

    /// Reads frames from a place on; returns where they end.
    fn read_frames(
        &mut self,
        bytes: &FileBytes,
        from: LogPlace,
        synced: Lsn,
        each: &mut Each<'_>,
    ) -> Result<LogPlace, FsError> {
        let mut at = from;
        let cause = loop {
            let framed = match self.frame_at(bytes, at) {
                Ok(framed) => framed,
                Err(cause) => break cause,
            };
            if !each(&framed, synced)? {
                break Cause::NoChunk;
            }
            self.head = framed.record.pos;
            self.chain = framed.chain;
            self.newest_change = newest_change(&framed).or(self.newest_change);
            at = framed.end;
        };
        self.end = Some(End {
            path: bytes.path.clone(),
            offset: at.offset,
            cause,
        });
        Ok(at)
    }

    fn loss(&self, dir: &Path, survey: &Survey) -> LogLoss {
        let (place, cause) = match &self.end {
            Some(end) => {
                let place = format!("byte {} of {}", end.offset, end.path.display());
                (place, end.cause.text())
            }
            None => (
                dir.display().to_string(),
                "the file that goes on is missing",
            ),
        };
        LogLoss {
            from: self.head.lsn.next(),
            synced: survey.synced,
            newest: survey.newest.max(self.head.lsn),
            place,
            cause,
            kept_until: self.newest_change,
        }
    }
}

/// When the record was made, if it says so.
fn newest_change(framed: &Framed) -> Option<Time> {
    let inodes = framed
        .record
        .mutations
        .iter()
        .filter(|m| m.table == Table::Inode);
    let times = inodes.filter_map(|inode| Some(Inode::decode(inode.body.as_ref()?).ok()?.ctime));
    times.max()
}

/// All whole frames in a file, in whatever order.
fn whole_frames(store: StoreId, bytes: &[u8]) -> impl Iterator<Item = WholeFrame<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() {
            match WholeFrame::read(store, &bytes[at..]) {
                Some(frame) => {
                    at += frame.len;
                    return Some(frame);
                }
                None => at += FRAME_ALIGN,
            }
        }
        None
    })
}

/// A log file's content; what the disk cannot read is zeros.
struct FileBytes {
    path: PathBuf,
    bytes: Vec<u8>,
    unreadable: Vec<Range<usize>>,
}

impl FileBytes {
    fn read(file: &SyncFile) -> Result<Self, FsError> {
        let stat = io_error("stat", file.path());
        let len = file.file().metadata().map_err(stat)?.len();
        let mut read = Self {
            path: file.path().to_owned(),
            bytes: vec![0; usize::try_from(len).map_err(|_| FsError::TooBig)?],
            unreadable: Vec::new(),
        };
        read.fill(file, 0, READ_BYTES);
        Ok(read)
    }

    /// Reads what lies from `from` on, `step` bytes at once; where that fails, in small steps.
    fn fill(&mut self, file: &SyncFile, from: usize, step: usize) {
        let to = if step == READ_BYTES {
            self.bytes.len()
        } else {
            self.bytes.len().min(from + READ_BYTES)
        };
        let mut at = from;
        while at < to {
            let end = to.min(at + step);
            if file.read_at(&mut self.bytes[at..end], at as u64).is_err() {
                self.bytes[at..end].fill(0);
                if step == READ_BYTES {
                    self.fill(file, at, UNREADABLE_BYTES);
                } else {
                    self.unreadable.push(at..end);
                }
            }
            at = end;
        }
    }

    fn from(&self, offset: u64) -> &[u8] {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.bytes.get(offset..).unwrap_or_default();
        &rest[..rest.len().min(FRAME_BYTES_MAX)]
    }

    fn is_unreadable(&self, offset: u64, len: usize) -> bool {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = offset.saturating_add(len);
        self.unreadable
            .iter()
            .any(|range| range.start < end && offset < range.end)
    }
}

fn open(path: &Path) -> Result<Arc<SyncFile>, FsError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(io_error("open", path))?;
    Ok(Arc::new(SyncFile::new(file, path.to_owned())))
}

/// Copies what can be read of a file, durably.
fn keep_copy(path: &Path, keep_in: &Path) -> Result<(), FsError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let bytes = FileBytes::read(&SyncFile::new(file, path.to_owned()))?.bytes;
    let copy = keep_in.join(path.file_name().unwrap_or_default());
    fs::write(&copy, bytes).map_err(io_error("write", &copy))?;
    let copied = File::open(&copy).map_err(io_error("open", &copy))?;
    copied.sync_all().map_err(io_error("sync", &copy))
}

/// Overwrites the rest of a file with zeros, durably.
fn wipe_from(path: &Path, offset: u64) -> Result<(), FsError> {
    let wipe = || -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        let file = OpenOptions::new().write(true).open(path)?;
        let mut at = offset;
        let len = file.metadata()?.len();
        let zeros = vec![0; READ_BYTES];
        while at < len {
            let step = usize::try_from(len - at).map_or(READ_BYTES, |left| left.min(READ_BYTES));
            file.write_all_at(&zeros[..step], at)?;
            at += step as u64;
        }
        file.sync_data()
    };
    wipe().map_err(io_error("wipe the end of", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Record, RecordKind};
    use crate::store::logfile::{LOG_FILE_BYTES_MIN, encode_frame, file_name};
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
        let frame = encode_frame(STORE, &encoded.bytes, &chain, Lsn(0), &[]);
        log.make_room(frame.len()).unwrap();
        log.append(&frame, pos, chain).unwrap();
    }

    fn replay(dir: &Path) -> LogWriter {
        let reader = LogReader::open(dir, STORE, LOG_FILE_BYTES_MIN).unwrap();
        reader
            .replay(&Applied::EMPTY, Lsn(0), &mut |_, _| Ok(true))
            .unwrap()
    }

    #[test]
    fn a_recycled_file_whose_header_did_not_reach_the_disk_is_no_part_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("log");
        let mut log = LogWriter::create(&dir, STORE, LOG_FILE_BYTES_MIN).unwrap();
        while log.full().is_empty() {
            append(&mut log);
        }
        let old = log.full()[0].path.clone();
        // After a power cut the name of the next file may be there, but not its header: the old one still stands in it.
        let next = log.head().lsn.next();
        let misnamed = dir.join(file_name(next));
        fs::copy(&old, &misnamed).unwrap();
        let head = log.head();
        drop(log);

        let mut log = replay(&dir);
        assert_eq!(log.head(), head);
        assert!(log.full().iter().all(|file| file.path != misnamed));
        // Else, once the log has really come to that name, giving the old file back would take the new one away.
        append(&mut log);
        assert!(log.head() > head);
    }

    /// What this thread has had read from disks.
    fn read_bytes() -> u64 {
        let io = fs::read_to_string("/proc/thread-self/io").unwrap();
        let line = io
            .lines()
            .find_map(|line| line.strip_prefix("read_bytes: "));
        line.unwrap().parse().unwrap()
    }

    #[test]
    fn a_log_that_the_page_cache_has_lost_is_appended_to_without_reading_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("log");
        let mut log = LogWriter::create(&dir, STORE, LOG_FILE_BYTES_MIN).unwrap();
        append(&mut log);
        log.syncer().sync().unwrap();
        for file in fs::read_dir(&dir).unwrap() {
            let path = file.unwrap().path();
            SyncFile::new(File::open(&path).unwrap(), path)
                .settle()
                .unwrap();
        }
        append(&mut log); // the page that it begins in
        let before = read_bytes();
        for _ in 0..1000 {
            append(&mut log);
        }
        assert_eq!(read_bytes(), before);
        let head = log.head();
        drop(log);
        assert_eq!(replay(&dir).head(), head);
    }

    #[test]
    fn bytes_that_look_like_a_frame_of_another_store_say_nothing() {
        for store in [StoreId::from_bytes([7; 16]), STORE] {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path().join("log");
            let mut log = LogWriter::create(&dir, STORE, LOG_FILE_BYTES_MIN).unwrap();
            append(&mut log);
            let record = Record {
                pos: Pos {
                    epoch: Epoch(1),
                    lsn: Lsn(1 << 40),
                },
                kind: RecordKind::EpochStart,
                mutations: Vec::new(),
                pieces: Vec::new(),
            };
            let encoded = record.encode();
            // As a user may write it into a file, and so into a record that lies behind the log's end in a recycled file.
            let frame = encode_frame(store, &encoded.bytes, &[3; 16], Lsn(1 << 40), &[]);
            let file = OpenOptions::new()
                .write(true)
                .open(dir.join(file_name(Lsn(1))))
                .unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &frame, LOG_FILE_BYTES_MIN / 2)
                .unwrap();
            drop(log);
            let reader = LogReader::open(&dir, STORE, LOG_FILE_BYTES_MIN).unwrap();
            let opened = reader.replay(&Applied::EMPTY, Lsn(0), &mut |_, _| Ok(true));
            assert_eq!(opened.is_err(), store == STORE, "{opened:?}");
        }
    }
}
