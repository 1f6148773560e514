//! The control store of a single node: RocksDB in a directory of its own.
//!
//! hafsd opens it and hands it to [`Catalog`](crate::Catalog). It keeps the contract of [`ControlStore`]: a transaction is
//! one synced RocksDB write, and a kill at any instant leaves each either whole or absent. Sessions live in this process; those
//! of an earlier one are ended when the store is opened.
//!
//! One thread owns all changes and takes them from a bounded queue. Guards are thus checked and changes written with
//! nothing in between, without a lock, and a sync (0.1 ms, or seconds on a sick disk) never holds up a worker of the async
//! runtime; `spawn_blocking` would need a lock around the same, and up to hundreds of threads waiting for it. One write each, no
//! batching: config changes are rare, and 7,000 a second are enough. Reads work on RocksDB snapshots in `spawn_blocking`, beside
//! each other and the writer.
//!
//! Invariant: what a read or watch shows is durable (RocksDB publishes a write after its sync).
//!
//! A store is read to its last byte before it is opened for writing: one that is damaged is refused, and left as it was.

pub(crate) mod directory;
pub(crate) mod mark;
pub(crate) mod row;
mod view;
mod writer;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::StreamExt;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBRecoveryMode, IteratorMode, LogLevel, Options,
    WriteOptions,
};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info};

use self::directory::{Content, Directory};
use self::mark::Mark;
use self::row::{Change, DamagedRow, Head, Row, decode_changes};
use self::view::{View, fatal};
use self::writer::Writer;
use super::{
    ControlStore, Cursor, Key, PAGE_KEYS_MAX, Page, SESSION_TTL_MAX, SESSION_TTL_MIN, Session,
    SessionId, Txn, TxnOutcome, Versioned, Watch, WatchBatch,
};
use crate::error::{Cause, ControlError, LimitExceeded, OpenError, WatchError};

/// Revisions that a watch can go back: enough to ride out any restart of a watcher.
const HISTORY_REVS_MAX: u64 = 100_000;
/// And bytes, so that large values do not make it a disk full.
const HISTORY_BYTES_MAX: u64 = 256 << 20;
/// Changes that wait for the writing thread; who comes next waits to get in.
const QUEUE_MAX: usize = 256;
/// Sessions at a time. A process needs one, perhaps one a volume.
const SESSIONS_MAX: usize = 4096;
/// Puts are refused when less is free, before RocksDB meets a full disk and stops: a flush of [`MEMTABLE_BYTES`], and the records
/// until then. Deletions go on. No more than that: a node whose disk is full has to begin an epoch of each volume before
/// anything on it can be deleted, in what the volumes' ballast leaves it.
const PUT_FREE_BYTES_MIN: u64 = 8 << 20;
/// A store is not opened when less is free, for that flushes the log. Less than for a put, so that a store which refuses
/// puts can still be opened and deletions make room.
const OPEN_FREE_BYTES_MIN: u64 = 4 << 20;
/// RocksDB's log is flushed and dropped when it has grown to this: what an open replays.
const WAL_BYTES_MAX: u64 = 16 << 20;
/// Changes collect in memory up to this size a column family.
const MEMTABLE_BYTES: usize = 4 << 20;
/// Revisions that a watch reads in one go, and about how many bytes.
const WATCH_REVS_MAX: u64 = 256;
const WATCH_BYTES_MAX: usize = 1 << 20;

const STATE: &str = "state";
const HISTORY: &str = "history";
/// In the default column family.
const HEAD_KEY: &[u8] = b"head";

/// What of the store's measures the tests make small or large.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measures {
    pub(crate) history_revs_max: u64,
    pub(crate) history_bytes_max: u64,
    pub(crate) put_free_bytes_min: u64,
    pub(crate) open_free_bytes_min: u64,
}

impl Default for Measures {
    fn default() -> Self {
        Self {
            history_revs_max: HISTORY_REVS_MAX,
            history_bytes_max: HISTORY_BYTES_MAX,
            put_free_bytes_min: PUT_FREE_BYTES_MIN,
            open_free_bytes_min: OPEN_FREE_BYTES_MIN,
        }
    }
}

/// A [`ControlStore`] in a directory, for a cluster of one node.
///
/// There is no close: what was answered is synced. Dropping it waits for the writing thread; once no call is under way
/// either, the directory can be opened again.
pub struct LocalStore {
    shared: Arc<Shared>,
    /// Taken by `drop`, which ends the thread.
    writer: Option<(mpsc::Sender<Job>, JoinHandle<()>)>,
}

/// What the writing thread, the readers and the watches use together.
struct Shared {
    db: DB,
    progress: watch::Sender<Progress>,
    /// Set at the first error of a write; nothing is answered from then on, for RocksDB may have kept the write or not.
    failed: OnceLock<Cause>,
    /// Sessions that were dropped, for the writing thread to end.
    ended: Mutex<Vec<SessionId>>,
    directory: Directory,
    path: PathBuf,
}

/// What watches wait for.
#[derive(Clone, Copy, Debug)]
struct Progress {
    rev: u64,
    failed: bool,
}

enum Job {
    Txn(Txn, oneshot::Sender<Result<TxnOutcome, ControlError>>),
    Session(oneshot::Sender<Result<Session, ControlError>>),
    /// Look at [`Shared::ended`].
    Wake,
}

#[derive(Clone, Copy, Debug, thiserror::Error)]
enum LocalError {
    #[error("the store was closed")]
    Closed,
    #[error("its writing thread has stopped")]
    Stopped,
    #[error("the disk has less than {PUT_FREE_BYTES_MIN} bytes free")]
    Full,
    #[error("{SESSIONS_MAX} sessions are open")]
    Sessions,
    #[error("FORMAT says that a store is here, its database is missing")]
    NoDatabase,
    #[error("it ends at revision {ends}, revision {written} had been written")]
    Shorter { ends: u64, written: u64 },
}

impl LocalStore {
    /// Opens the store in `dir`; makes the directory (not its parents) and an empty store if nothing is there. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// As [`OpenError`] says.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_with(dir, Measures::default())
    }

    pub(crate) fn open_with(dir: &Path, measures: Measures) -> Result<Self, OpenError> {
        let (directory, content) = Directory::open(dir, measures.open_free_bytes_min)?;
        let (db, head, mark) = match content {
            Content::Store => open_database(&directory, dir)?,
            Content::StoreWithoutMark => renew_database(&directory, dir)?,
            Content::Nothing => make_database(&directory, dir)?,
        };
        let (progress, _) = watch::channel(Progress {
            rev: head.rev,
            failed: false,
        });
        let shared = Arc::new(Shared {
            db,
            progress,
            failed: OnceLock::new(),
            ended: Mutex::new(Vec::new()),
            directory,
            path: dir.to_owned(),
        });
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let mut writer = Writer::new(&shared, queue, jobs.downgrade(), (head, mark), measures);
        writer
            .end_earlier_sessions()
            .map_err(|error| damaged(dir, error))?;
        let thread = std::thread::Builder::new()
            .name("hafs-control".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::Io {
                op: "start a thread for",
                path: dir.to_owned(),
                source,
            })?;
        info!(dir = %dir.display(), rev = head.rev, "control store opened");
        Ok(Self {
            shared,
            writer: Some((jobs, thread)),
        })
    }

    /// Reads in a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        f: impl FnOnce(&View<'_>) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let shared = Arc::clone(&self.shared);
        let reading = tokio::task::spawn_blocking(move || f(&View::of(&shared)?));
        // A panic has been reported by its hook; what is left to say is that there is no answer.
        reading
            .await
            .unwrap_or_else(|e| Err(ControlError::Unavailable(Arc::new(e))))
    }

    async fn submit(&self, job: Job) -> Result<(), ControlError> {
        let (jobs, _) = self.writer.as_ref().expect("only drop takes it");
        let stopped = |_| ControlError::Fatal(Arc::new(LocalError::Stopped));
        jobs.send(job).await.map_err(stopped)
    }
}

impl ControlStore for LocalStore {
    async fn get(&self, key: &Key) -> Result<(u64, Option<Versioned>), ControlError> {
        key.check()?;
        let key = key.clone();
        self.read(move |view| {
            let row = view.row(&key)?;
            Ok((view.head.rev, row.map(|row| row.versioned(key))))
        })
        .await
    }

    async fn list(
        &self,
        prefix: &Key,
        cursor: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page, ControlError> {
        prefix.check_prefix()?;
        if limit == 0 {
            return Err(LimitExceeded::PageEmpty.into());
        }
        let (prefix, cursor) = (prefix.clone(), cursor.cloned());
        self.read(move |view| view.page(&prefix, cursor.as_ref(), limit.min(PAGE_KEYS_MAX)))
            .await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, ControlError> {
        txn.check()?;
        let (done, outcome) = oneshot::channel();
        self.submit(Job::Txn(txn, done)).await?;
        // No answer: the thread has panicked, perhaps after the write.
        outcome
            .await
            .unwrap_or_else(|e| Err(ControlError::Unknown(Arc::new(e))))
    }

    fn watch(&self, prefix: Key, from_rev: u64) -> Watch {
        let watching = Watching {
            shared: Arc::downgrade(&self.shared),
            progress: self.shared.progress.subscribe(),
            prefix,
            next_rev: from_rev.max(1),
            ready: VecDeque::new(),
            ended: false,
        };
        futures_util::stream::unfold(watching, Watching::step).boxed()
    }

    async fn session(&self, ttl: Duration) -> Result<Session, ControlError> {
        if !(SESSION_TTL_MIN..=SESSION_TTL_MAX).contains(&ttl) {
            return Err(LimitExceeded::SessionTtl { ttl }.into());
        }
        let (done, session) = oneshot::channel();
        self.submit(Job::Session(done)).await?;
        session
            .await
            .unwrap_or_else(|e| Err(ControlError::Unavailable(Arc::new(e))))
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        if let Some((jobs, thread)) = self.writer.take() {
            drop(jobs);
            let Err(panic) = thread.join() else { return };
            // hafsd has aborted by now. Where panics unwind, as in tests, nobody else would learn of it.
            if std::thread::panicking() {
                error!(dir = %self.shared.path.display(), "the control store's thread had panicked");
            } else {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStore")
            .field("dir", &self.shared.path)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// # Errors
    /// Fatal, once a write has failed.
    fn usable(&self) -> Result<(), ControlError> {
        self.failed
            .get()
            .map_or(Ok(()), |cause| Err(ControlError::Fatal(Arc::clone(cause))))
    }

    fn fail(&self, cause: Cause) {
        if self.failed.set(Arc::clone(&cause)).is_ok() {
            let dir = self.path.display();
            error!(%dir, %cause, "the control store failed and answers nothing more");
            self.progress.send_modify(|progress| progress.failed = true);
        }
    }

    fn column_family(&self, name: &str) -> &ColumnFamily {
        self.db
            .cf_handle(name)
            .expect("opened with all column families")
    }
}

/// A watch: it keeps no place in any queue, but reads on in the history whenever there is more.
struct Watching {
    /// Weak, so that a forgotten watch does not keep the directory locked.
    shared: Weak<Shared>,
    progress: watch::Receiver<Progress>,
    prefix: Key,
    next_rev: u64,
    ready: VecDeque<WatchBatch>,
    ended: bool,
}

impl Watching {
    async fn step(mut self) -> Option<(Result<WatchBatch, WatchError>, Self)> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Some((Ok(batch), self));
            }
            if let Err(error) = self.read_on().await {
                self.ended = true;
                return Some((Err(error), self));
            }
        }
    }

    /// Waits for `next_rev`, and reads what there is from it on.
    async fn read_on(&mut self) -> Result<(), WatchError> {
        self.prefix.check_prefix()?;
        let closed = || WatchError::Unavailable(Arc::new(LocalError::Closed));
        let next_rev = self.next_rev;
        let reached = self
            .progress
            .wait_for(|p| p.failed || p.rev >= next_rev)
            .await;
        // Dropped at once: it holds a lock.
        drop(reached.map_err(|_| closed())?);
        let shared = self.shared.upgrade().ok_or_else(closed)?;
        let prefix = self.prefix.clone();
        let reading = tokio::task::spawn_blocking(move || read_batches(&shared, &prefix, next_rev));
        let read = reading
            .await
            .map_err(|e| WatchError::Unavailable(Arc::new(e)))?;
        (self.ready, self.next_rev) = read?;
        Ok(())
    }
}

/// The batches of some revisions from `from_rev` on, and the revision after them.
fn read_batches(
    shared: &Shared,
    prefix: &Key,
    from_rev: u64,
) -> Result<(VecDeque<WatchBatch>, u64), WatchError> {
    let broken = |error| match error {
        ControlError::Fatal(cause) => WatchError::Fatal(cause),
        other => WatchError::Unavailable(Arc::new(other)),
    };
    let view = View::of(shared).map_err(broken)?;
    if from_rev < view.head.oldest {
        return Err(WatchError::Compacted {
            oldest: view.head.oldest,
        });
    }
    let (mut batches, mut next_rev, mut bytes) = (VecDeque::new(), from_rev, 0);
    for item in view.changes(from_rev) {
        let (rev, len, changes) = item.map_err(broken)?;
        if rev != next_rev {
            return Err(broken(fatal(DamagedRow("the history has a gap"))));
        }
        next_rev += 1;
        let changes = changes
            .into_iter()
            .filter(|change| change.key.starts_with(prefix));
        let events: Vec<_> = changes.map(Change::event).collect();
        if !events.is_empty() {
            batches.push_back(WatchBatch { rev, events });
        }
        bytes += len;
        if next_rev - from_rev >= WATCH_REVS_MAX || bytes >= WATCH_BYTES_MAX {
            break;
        }
    }
    // The head says that `from_rev` is there. Whoever found nothing would look again at once, for ever.
    if next_rev == from_rev {
        return Err(broken(fatal(DamagedRow("the history ends early"))));
    }
    Ok((batches, next_rev))
}

fn damaged(dir: &Path, source: impl std::error::Error + Send + Sync + 'static) -> OpenError {
    OpenError::Damaged {
        dir: dir.to_owned(),
        source: Arc::new(source),
    }
}

fn make_database(directory: &Directory, dir: &Path) -> Result<(DB, Head, Mark), OpenError> {
    directory.begin()?;
    let failed = |error| OpenError::Io {
        op: "make the database",
        path: directory.database(),
        source: io::Error::other(error),
    };
    let db = DB::open_cf_descriptors(&options(true, MARKED), directory.database(), families())
        .map_err(failed)?;
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    db.put_opt(HEAD_KEY, Head::EMPTY.encode(), &synced)
        .map_err(failed)?;
    directory.finish()?;
    let (mark, _) = Mark::open(dir).map_err(|error| damaged(dir, error))?;
    Ok((db, Head::EMPTY, mark))
}

fn open_database(directory: &Directory, dir: &Path) -> Result<(DB, Head, Mark), OpenError> {
    let (mark, written) = Mark::open(dir).map_err(|error| damaged(dir, error))?;
    let head = read_whole(directory, dir, MARKED)?;
    if head.rev < written {
        let ends = head.rev;
        return Err(damaged(dir, LocalError::Shorter { ends, written }));
    }
    Ok((open_whole(directory, dir, MARKED)?, head, mark))
}

/// A store that has no mark yet: nobody can tell whether its log ends where it ended.
fn renew_database(directory: &Directory, dir: &Path) -> Result<(DB, Head, Mark), OpenError> {
    let head = read_whole(directory, dir, UNMARKED)?;
    directory.begin_renewal(head.rev)?;
    directory.finish()?;
    let (mark, _) = Mark::open(dir).map_err(|error| damaged(dir, error))?;
    info!(dir = %dir.display(), "the control store has a mark now");
    Ok((open_whole(directory, dir, UNMARKED)?, head, mark))
}

/// How RocksDB's log is read where there is a mark: up to the first record that is not whole. A power cut may leave any part
/// of the last one, which nobody was promised; that no acknowledged one is missing, the mark says.
const MARKED: DBRecoveryMode = DBRecoveryMode::PointInTime;
/// And where there is none: only the end of the last record may be missing.
const UNMARKED: DBRecoveryMode = DBRecoveryMode::TolerateCorruptedTailRecords;

/// Nothing is written, not even by RocksDB, before all of the database has proved whole.
fn read_whole(directory: &Directory, dir: &Path, log: DBRecoveryMode) -> Result<Head, OpenError> {
    let path = directory.database();
    if !path.is_dir() {
        return Err(damaged(dir, LocalError::NoDatabase));
    }
    DB::open_cf_descriptors_read_only(&options(false, log), &path, families(), false)
        .map_err(|error| damaged(dir, error))
        .and_then(|db| verify(&db).map_err(|error| damaged(dir, error)))
}

fn open_whole(directory: &Directory, dir: &Path, log: DBRecoveryMode) -> Result<DB, OpenError> {
    DB::open_cf_descriptors(&options(false, log), directory.database(), families())
        .map_err(|error| damaged(dir, error))
}

/// Why a database is not whole.
#[derive(Debug, thiserror::Error)]
enum NotWhole {
    #[error("its database cannot be read")]
    Database(#[from] rocksdb::Error),
    #[error(transparent)]
    Row(#[from] DamagedRow),
}

/// Reads every row there is: RocksDB has a checksum over each block, and the rows have to fit each other.
fn verify(db: &DB) -> Result<Head, NotWhole> {
    let family = |name| db.cf_handle(name).expect("opened with all column families");
    let head = db.get(HEAD_KEY)?.ok_or(DamagedRow("there is no head"))?;
    let head = Head::decode(&head)?;
    // The head may come from RocksDB's log, and an older one, which the next start may need, lie in a table.
    for row in db.iterator(IteratorMode::Start) {
        row?;
    }
    for row in db.iterator_cf(family(STATE), IteratorMode::Start) {
        Row::decode(&row?.1)?;
    }
    let (mut next, mut bytes) = (head.oldest, 0);
    for row in db.iterator_cf(family(HISTORY), IteratorMode::Start) {
        let (rev, changes) = row?;
        if *rev != next.to_be_bytes() {
            return Err(DamagedRow("the history has a gap").into());
        }
        decode_changes(&changes)?;
        next += 1;
        bytes += changes.len() as u64;
    }
    if next - 1 != head.rev || bytes != head.history_bytes {
        return Err(DamagedRow("the history is not what the head says").into());
    }
    Ok(head)
}

fn families() -> impl Iterator<Item = ColumnFamilyDescriptor> {
    ["default", STATE, HISTORY].into_iter().map(|name| {
        let mut options = Options::default();
        options.set_write_buffer_size(MEMTABLE_BYTES);
        ColumnFamilyDescriptor::new(name, options)
    })
}

fn options(make: bool, log: DBRecoveryMode) -> Options {
    let mut options = Options::default();
    options.create_if_missing(make);
    options.create_missing_column_families(make);
    options.set_wal_recovery_mode(log);
    options.set_recycle_log_file_num(0);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_open_files(64);
    options.set_manifest_preallocation_size(64 << 10);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options
}

#[cfg(test)]
mod damage;
#[cfg(test)]
mod tests;
