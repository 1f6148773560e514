//! How a volume begins, opens and ends: the first record, recovery (`volume/recover.rs`), threads, close.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hafs_protocol::{Epoch, Lsn};
use parking_lot::{Condvar, Mutex, RwLock};

use super::recover::{Recovery, empty_totals};
use super::{Chores, Core, Inner, Unflushed, Volume, VolumeSettings};
use crate::apply::Totals;
use crate::clock;
use crate::error::{FsError, with_causes};
use crate::log::Watermarks;
use crate::metrics::Metrics;
use crate::space::{Ballast, DiskSpace, make_room_to_open};
use crate::store::key::Inode;
use crate::store::logfile::{LOG_FILE_BYTES_MIN, LogWriter};
use crate::store::mark::Mark;
use crate::store::replay::LogReader;
use crate::store::segment::SEGMENT_BYTES_MIN;
use crate::store::{Store, VolumeIdentity, log_dir};
use crate::types::{FileKind, Ino};

/// Offsets in a segment are 32 bits.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

impl Volume {
    /// Makes a new volume with an empty root directory in `dir`, which must be empty or not there.
    ///
    /// # Errors
    /// [`FsError::Refused`] if `dir` holds something; [`FsError::Io`]. What was made stays behind then, without
    /// `DIR/volume`, so that it is no store.
    pub fn create(
        dir: &Path,
        identity: &VolumeIdentity,
        settings: &VolumeSettings,
        epoch: Epoch,
    ) -> Result<(), FsError> {
        check_settings(settings)?;
        Store::create_dirs(dir)?;
        Mark::create(dir)?;
        let store = Store::open_new(dir, identity, &settings.cache, settings.segment_bytes)?;
        let log = LogWriter::create(&log_dir(dir), identity.store, settings.log_file_bytes)?;
        let inner = Inner::new(
            store,
            settings,
            epoch,
            log,
            Mark::open(dir)?,
            empty_totals(),
            (Lsn(0), Unflushed::default()),
        )?;
        inner.begin_epoch()?;
        inner.transact(|txn, _| {
            let root = txn.take_ino();
            assert_eq!(root, Ino::ROOT, "the root is the first inode");
            let now = clock::now();
            txn.put_inode(
                root,
                &Inode {
                    kind: FileKind::Directory,
                    perm: 0o755,
                    nlink: 2,
                    uid: 0,
                    gid: 0,
                    rdev: 0,
                    size: 0,
                    extent_bytes: 0,
                    atime: now,
                    mtime: now,
                    ctime: now,
                    crtime: now,
                    parent: root,
                    target: Vec::new(),
                },
            )
        })?;
        inner.flush()?;
        Store::write_identity(dir, identity)
    }

    /// Opens a volume: replays its log, starts the new reign `epoch`, starts its threads.
    ///
    /// # Errors
    /// [`FsError::Refused`] if the directory is not this store, of a newer format, or in use; nothing was touched.
    /// [`FsError::LogLost`] if records that had been synced are missing, [`FsError::Corrupt`] if that cannot be told, both
    /// for [`Self::repair`]. [`FsError::StateLost`] if the state cannot be read.
    pub fn open(
        dir: &Path,
        identity: &VolumeIdentity,
        settings: &VolumeSettings,
        epoch: Epoch,
    ) -> Result<Self, FsError> {
        let began = Instant::now();
        check_settings(settings)?;
        make_room_to_open(dir);
        let store = Store::open(dir, identity, &settings.cache, settings.segment_bytes)?;
        let (mark, marked) = Mark::open(dir)?;
        let durable = marked.max(settings.committed);
        let mut recovery = Recovery::begin(store)?;
        let flushed = recovery.totals.applied.pos.lsn;
        let applied = recovery.totals.applied.clone();
        let log = LogReader::open(&log_dir(dir), identity.store, settings.log_file_bytes)?;
        let log = log.replay(&applied, durable, &mut |framed, synced| {
            recovery.replay(framed, synced)
        })?;
        let (store, totals, unflushed) = recovery.finish()?;
        let replayed = totals.applied.pos.lsn.0 - flushed.0;
        if epoch <= totals.applied.pos.epoch {
            return Err(FsError::Refused(format!(
                "{}: epoch {epoch} is not above the store's {}",
                dir.display(),
                totals.applied.pos.epoch
            )));
        }
        tracing::info!(
            volume = %identity.volume,
            lsn = %totals.applied.pos.lsn,
            replayed,
            %epoch,
            "opened the volume"
        );
        let before = (flushed, unflushed);
        let mark = (mark, marked);
        let mut inner = Inner::new(store, settings, epoch, log, mark, totals, before)?;
        inner.metrics = Arc::new(Metrics::new(began.elapsed(), replayed));
        let inner = Arc::new(inner);
        inner.begin_epoch()?;
        inner.begin_space()?;
        let threads = Inner::start_threads(&inner)?;
        Ok(Self {
            inner,
            threads: Mutex::new(threads),
        })
    }

    /// Syncs, flushes the state, ends the threads. A second call does nothing; dropping closes as well.
    ///
    /// # Errors
    /// What the last sync or flush failed with. The threads have ended all the same.
    ///
    /// # Panics
    /// If a thread of the volume has.
    pub fn close(&self) -> Result<(), FsError> {
        if self.inner.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let flushed = if self.inner.failed.load(Ordering::Acquire) {
            Err(FsError::Failed)
        } else {
            self.inner.flush()
        };
        self.stop_threads();
        flushed
    }

    /// Ends as `kill -9` would end the process: nothing is synced or flushed. For tests.
    ///
    /// # Panics
    /// If a thread of the volume has.
    #[doc(hidden)]
    pub fn crash(self) {
        self.inner.closed.store(true, Ordering::Release);
        self.inner.failed.store(true, Ordering::Release);
        self.stop_threads();
    }

    fn stop_threads(&self) {
        self.inner.marks.close();
        self.inner.stop_chores();
        let threads = std::mem::take(&mut *self.threads.lock());
        let ended: Vec<_> = threads.into_iter().map(JoinHandle::join).collect();
        let Some(panic) = ended.into_iter().find_map(Result::err) else {
            return;
        };
        // hafsd has aborted by now. Where panics unwind, as in tests, nobody else would learn of it.
        if thread::panicking() {
            tracing::error!("a thread of the volume panicked");
        } else {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(
                volume = %self.inner.store.identity().volume,
                error = with_causes(&error),
                "the volume did not close cleanly; its log will be replayed"
            );
        }
    }
}

impl Inner {
    pub(super) fn new(
        store: Store,
        settings: &VolumeSettings,
        epoch: Epoch,
        log: LogWriter,
        (mark, durable): (Mark, Lsn),
        totals: Totals,
        (flushed, unflushed): (Lsn, Unflushed),
    ) -> Result<Self, FsError> {
        let ballast = Ballast::new(store.dir(), settings.state_buffer_bytes)?;
        let marks = Watermarks::new(totals.applied.pos.lsn);
        marks.raise_durable(durable.min(totals.applied.pos.lsn));
        Ok(Self {
            settings: settings.clone(),
            size_bytes: AtomicU64::new(settings.size_bytes),
            epoch,
            space: DiskSpace::open(store.dir())?,
            log_syncer: Arc::clone(log.syncer()),
            store,
            metrics: Arc::new(Metrics::new(Duration::ZERO, 0)),
            unsettled_core: RwLock::new(Core {
                log,
                totals,
                pending: None,
                unflushed,
                flushed,
                last_orphan: None,
            }),
            marks,
            durable_mark: Mutex::new(mark),
            next_piece: AtomicU64::new(1),
            failed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            flush_overdue: AtomicBool::new(false),
            flushing: Mutex::new(()),
            collecting: RwLock::new(()),
            appending: RwLock::new(()),
            chores: Mutex::new(Chores::default()),
            chores_changed: Condvar::new(),
            is_busy: AtomicBool::new(false),
            is_pressed: AtomicBool::new(false),
            no_spare: AtomicBool::new(false),
            ballast,
            collector: Mutex::default(),
            collector_asked: Condvar::new(),
            collector_done: Condvar::new(),
            collector_overdue: AtomicBool::new(false),
        })
    }
}

pub(super) fn check_settings(settings: &VolumeSettings) -> Result<(), FsError> {
    let segments = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
    if settings.log_file_bytes < LOG_FILE_BYTES_MIN || !segments.contains(&settings.segment_bytes) {
        return Err(FsError::Invalid);
    }
    Ok(())
}
