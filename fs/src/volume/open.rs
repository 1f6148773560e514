//! How a volume begins, opens and ends: the first record, recovery, threads, close.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hafs_protocol::{Epoch, Lsn};
use parking_lot::{Condvar, Mutex, RwLock};

use super::{Chores, Core, Inner, Volume, VolumeSettings};
use crate::apply::{Change, Step, Totals, apply};
use crate::clock;
use crate::error::FsError;
use crate::log::Watermarks;
use crate::metrics::Metrics;
use crate::record::RecordKind;
use crate::space::DiskSpace;
use crate::store::key::{
    APPLIED_KEY, Applied, EPOCHS_KEY, Inode, LocalTable, Place, SegmentId, SegmentUse, Table,
    decode_epochs, key_ino,
};
use crate::store::logfile::{Framed, LOG_FILE_BYTES_MIN, LogReader, LogWriter};
use crate::store::mark::Mark;
use crate::store::segment::{SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES, Segments};
use crate::store::{Store, VolumeIdentity, log_dir};
use crate::types::{FileKind, Ino};

/// Offsets in a segment are 32 bits.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// End of every key range: above all keys.
const KEY_END: [u8; 17] = [0xff; 17];

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
        let store = Store::open_new(
            dir,
            identity,
            &settings.cache,
            settings.state_buffer_bytes,
            settings.segment_bytes,
        )?;
        let log = LogWriter::create(&log_dir(dir), identity.store, settings.log_file_bytes)?;
        let inner = Inner::new(store, settings, epoch, log, empty_totals(), Lsn(0))?;
        {
            let mut core = inner.core.write();
            inner.append(&mut core, RecordKind::EpochStart, Vec::new(), Vec::new())?;
        }
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
    /// [`FsError::Corrupt`] if records that had been synced are missing.
    pub fn open(
        dir: &Path,
        identity: &VolumeIdentity,
        settings: &VolumeSettings,
        epoch: Epoch,
    ) -> Result<Self, FsError> {
        let began = Instant::now();
        check_settings(settings)?;
        let store = Store::open(
            dir,
            identity,
            &settings.cache,
            settings.state_buffer_bytes,
            settings.segment_bytes,
        )?;
        let (mark, durable) = Mark::open(dir)?;
        drop(mark);
        let durable = durable.max(settings.committed);
        let mut totals = load_totals(&store)?;
        let flushed = totals.applied.pos.lsn;
        let applied = totals.applied.clone();
        let log = LogReader::open(&log_dir(dir), identity.store, settings.log_file_bytes)?;
        let log = log.replay(&applied, durable, &mut |framed| {
            replay_record(&store, &mut totals, framed, durable)
        })?;
        let replayed = totals.applied.pos.lsn.0 - flushed.0;
        adopt_segments(&store, &mut totals)?;
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
        let mut inner = Inner::new(store, settings, epoch, log, totals, flushed)?;
        inner.metrics = Arc::new(Metrics::new(began.elapsed(), replayed));
        let inner = Arc::new(inner);
        {
            let mut core = inner.core.write();
            inner.append(&mut core, RecordKind::EpochStart, Vec::new(), Vec::new())?;
        }
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
    #[doc(hidden)]
    pub fn crash(self) {
        self.inner.closed.store(true, Ordering::Release);
        self.inner.failed.store(true, Ordering::Release);
        self.stop_threads();
    }

    fn stop_threads(&self) {
        self.inner.marks.close();
        self.inner.stop_chores();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the volume panicked");
            }
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(
                volume = %self.inner.store.identity().volume,
                error = &error as &dyn std::error::Error,
                "the volume did not close cleanly; its log will be replayed"
            );
        }
    }
}

impl Inner {
    fn new(
        store: Store,
        settings: &VolumeSettings,
        epoch: Epoch,
        log: LogWriter,
        totals: Totals,
        flushed: Lsn,
    ) -> Result<Self, FsError> {
        let (mark, durable) = Mark::open(store.dir())?;
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
            core: RwLock::new(Core {
                log,
                totals,
                unflushed_bytes: 0,
                unflushed_records: 0,
                unflushed_chunk_bytes: 0,
                flushed,
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
        })
    }
}

fn check_settings(settings: &VolumeSettings) -> Result<(), FsError> {
    let segments = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
    if settings.log_file_bytes < LOG_FILE_BYTES_MIN || !segments.contains(&settings.segment_bytes) {
        return Err(FsError::Invalid);
    }
    Ok(())
}

fn empty_totals() -> Totals {
    Totals {
        applied: Applied::EMPTY,
        epochs: Vec::new(),
        orphans: BTreeSet::new(),
        segments: HashMap::new(),
        segments_changed: HashSet::new(),
        dead_bytes_unseen: 0,
    }
}

/// What RocksDB's last flush says.
fn load_totals(store: &Store) -> Result<Totals, FsError> {
    let mut totals = empty_totals();
    let Some(applied) = store.local(LocalTable::Local, APPLIED_KEY)? else {
        return Err(FsError::Corrupt(
            "the state does not say how far it has come".to_owned(),
        ));
    };
    totals.applied = Applied::decode(&applied)?;
    if let Some(epochs) = store.local(LocalTable::Local, EPOCHS_KEY)? {
        totals.epochs = decode_epochs(&epochs)?;
    }
    for row in store.scan(Table::Orphan, &[], &KEY_END) {
        totals.orphans.insert(key_ino(&row?.0)?);
    }
    for row in store.scan_local(LocalTable::Segment, &[], &KEY_END) {
        let (key, raw) = row?;
        totals
            .segments
            .insert(SegmentId(key_ino(&key)?.0), SegmentUse::decode(&raw)?);
    }
    Ok(totals)
}

/// Applies a record that the log holds and the state does not. `false`: a chunk that it names is not there, so it never
/// was durable, and the log ends before it.
fn replay_record(
    store: &Store,
    totals: &mut Totals,
    framed: &Framed,
    durable: Lsn,
) -> Result<bool, FsError> {
    let record = &framed.record;
    let mut places = framed.places.iter();
    let mut pieces = Vec::with_capacity(record.pieces.len());
    for piece in &record.pieces {
        let place = match &piece.inline {
            Some(bytes) => Place::Inline(bytes.clone()),
            None => {
                let at = places.next().expect("the frame has a place for each chunk");
                let found = store.segments.recover_chunk(
                    (at.segment, at.offset),
                    (piece.ino, piece.file_offset),
                    piece.len,
                    &piece.hash,
                )?;
                match found {
                    Some(place) => Place::Segment(place),
                    None if record.pos.lsn <= durable => {
                        return Err(FsError::Damaged {
                            ino: piece.ino,
                            offset: piece.file_offset,
                            len: u64::from(piece.len),
                            detail: "a synced chunk of the log is not in its segment",
                        });
                    }
                    None => return Ok(false),
                }
            }
        };
        pieces.push((piece.id, place));
    }
    let mut changes = Vec::with_capacity(record.mutations.len());
    for mutation in &record.mutations {
        changes.push(Change {
            table: mutation.table,
            old: store.raw(mutation.table, &mutation.key)?,
            key: mutation.key.clone(),
            new: mutation.body.clone(),
        });
    }
    let step = Step {
        pos: record.pos,
        chain: framed.chain,
        log_end: framed.end,
        kind: record.kind,
        changes,
        pieces,
    };
    apply(store, totals, &step)?;
    Ok(true)
}

/// Segments that a predecessor left are sealed; those that no record names are deleted.
fn adopt_segments(store: &Store, totals: &mut Totals) -> Result<(), FsError> {
    let present = Segments::list(&store.segments_dir(), store.identity().store)?;
    for id in &present {
        match totals.segments.get(id) {
            Some(segment) => {
                // What the flushed state names was synced before; what was replayed may not be.
                let unsynced = totals.segments_changed.contains(id);
                let end = segment.end.max(SEGMENT_HEADER_BYTES);
                store.segments.adopt(*id, end, unsynced)?;
            }
            None => store.segments.remove(*id)?,
        }
    }
    let present: HashSet<SegmentId> = present.into_iter().collect();
    let missing: Vec<SegmentId> = totals
        .segments
        .keys()
        .copied()
        .filter(|id| !present.contains(id))
        .collect();
    for id in missing {
        if totals
            .segments
            .get(&id)
            .is_some_and(|segment| segment.live_bytes > 0)
        {
            // The volume opens: what other segments hold is good, and reads of this one say EIO.
            tracing::error!(segment = id.0, "a segment with live data is missing");
        } else {
            totals.segments.remove(&id);
            totals.segments_changed.insert(id);
        }
    }
    Ok(())
}
