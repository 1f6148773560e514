//! A volume on this node: one method per POSIX operation, over the log and the store.
//!
//! [`crate::fuse`] calls it for the kernel, hafsd for `check` and `status`, tests directly. Permission checks are the
//! kernel's (`default_permissions`); everything else that POSIX asks for is decided here. Operations are in the parts:
//! names in `namei`, attributes in `attr`, bytes in `data`, extended attributes in `xattr`, access control lists in `acl`.
//!
//! An operation that changes something becomes one record: it is built under the write lock, appended to the log (which
//! puts it into the page cache of the host: killing this process loses nothing), answered, and applied to the state by whoever
//! takes the lock next. Long work (a cut through many extents) is several records, each leaving a volume that a crash may stop
//! at.
//!
//! Lock order: `collecting`, `flushing`, `appending`, `core`, then `chores` and `collector`, and the locks inside log, segments
//! and watermarks, which are leaves.
//! [`Inner::transact`] may take `flushing`, so it is not called under `appending`: [`Inner::transact_at_once`] is.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use hafs_protocol::{Epoch, Lsn, PieceId, Pos};
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::apply::{Change, Folded, Step, Sums, Totals, fold};
use crate::check::{self, CheckProgress, CheckReport, Problem, ProblemKind};
use crate::error::{FsError, with_causes};
use crate::log::{FsyncDone, Watermarks};
use crate::metrics::{Metrics, VolumeMetrics};
use crate::record::{self, RecordKind};
use crate::space::{Ballast, DiskSpace};
use crate::store::key::{EMPTY_FILE_BYTES, Place, Table};
use crate::store::logfile::{ChunkPlace, LogWriter, encode_frame};
use crate::store::mark::Mark;
use crate::store::{SharedCache, Store, VolumeIdentity};
use crate::types::{Ino, StatFs};
use crate::volume::collect::Collector;
use crate::volume::txn::{NewPiece, Txn};

pub(crate) mod acl;
mod attr;
mod background;
mod collect;
mod data;
mod namei;
mod open;
mod read;
mod reclaim;
mod recover;
mod repair;
pub(crate) mod room;
pub(crate) mod txn;
mod xattr;

pub(crate) use reclaim::{ORPHANS_AT_ONCE, report_unreclaimed};
pub use repair::Repair;

/// What a volume is used for: sets how its bytes are cut into chunks, and how far reads run ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Profile {
    /// Nothing known.
    #[default]
    Auto,
    /// Small overwrites in place, each synced.
    Database,
    /// Long files, written and read from front to back.
    Sequential,
    /// Many small files.
    SmallFiles,
}

impl Profile {
    /// Largest chunk, bytes; chunks end at its multiples. A smaller one wastes less when a part is overwritten, a larger
    /// one costs less to keep track of.
    pub const fn chunk_bytes(self) -> u32 {
        match self {
            Self::Database => 16 * 1024,
            Self::Auto | Self::SmallFiles | Self::Sequential => 128 * 1024,
        }
    }

    /// Up to so many bytes of a write travel in its record.
    pub const fn inline_bytes_max(self) -> usize {
        match self {
            Self::Sequential => 4 * 1024,
            Self::Auto | Self::Database | Self::SmallFiles => 8 * 1024,
        }
    }

    /// How far the kernel reads ahead, KiB. Measured best for one stream is 1 MiB; page faults read as much around them, so
    /// a database that maps its files must not pay that for each page.
    pub const fn readahead_kib(self) -> u32 {
        match self {
            Self::Sequential => 4096,
            Self::Auto => 1024,
            Self::Database | Self::SmallFiles => 128,
        }
    }
}

/// Settings of a volume on this node.
#[derive(Clone, Debug)]
pub struct VolumeSettings {
    /// The volume's size: a quota over what its files hold, and over names and attributes, bytes.
    pub size_bytes: u64,
    /// What it is used for.
    pub profile: Profile,
    /// Length of one file of the log, bytes; at least 256 KiB.
    pub log_file_bytes: u64,
    /// Full log files are kept up to this many bytes, for copies that come back.
    pub log_keep_bytes: u64,
    /// Length of one chunk segment, bytes; 1 MiB to 1 GiB.
    pub segment_bytes: u64,
    /// State is flushed to disk when records of so many bytes are not; bounds memory and replay.
    pub state_buffer_bytes: u64,
    /// Bytes that the collector copies in a second while there is no hurry. There is none as long as what is dead is less than
    /// half of what lives, and the disk is not at its reserve; then nothing bounds it.
    pub collect_bytes_per_second: u64,
    /// Cache of the state, shared by the volumes of a node.
    pub cache: SharedCache,
    /// What somebody else knows to have been synced: a store that ends before it has lost something, or is an older copy.
    pub committed: Lsn,
}

impl VolumeSettings {
    /// Settings for a volume of this size, everything else as users get it.
    pub fn new(size_bytes: u64, profile: Profile) -> Self {
        Self {
            size_bytes,
            profile,
            log_file_bytes: 8 << 20,
            log_keep_bytes: 32 << 20,
            segment_bytes: 64 << 20,
            state_buffer_bytes: 32 << 20,
            // A tenth of what a plain SSD writes.
            collect_bytes_per_second: 64 << 20,
            cache: SharedCache::new(64 << 20),
            committed: Lsn(0),
        }
    }
}

/// Where a volume stands.
#[derive(Clone, Debug)]
pub struct VolumeStatus {
    /// The reign that writes now.
    pub epoch: Epoch,
    /// Newest record.
    pub head: Lsn,
    /// Newest record known to be on the disk with all before it.
    pub durable: Lsn,
    /// Sum over the replicated state at `head`; equal on copies that stand at the same lsn.
    pub digest: [u8; 32],
    /// What counts against the volume's size, bytes.
    pub used_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Unlinked files that are perhaps still open.
    pub orphans: u64,
    /// What the log takes on the disk, bytes.
    pub log_bytes: u64,
    /// What the segments take on the disk, bytes.
    pub segment_bytes: u64,
    /// How much of that is named by the state, bytes.
    pub segment_live_bytes: u64,
    /// The store failed; every change and every fsync is refused until the volume is opened again.
    pub failed: bool,
}

/// What a volume takes of the disk under it, and what the disk has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceStatus {
    /// Free on the disk, bytes.
    pub disk_free_bytes: u64,
    /// What of that (and of `held_bytes`) is kept for deletions.
    pub disk_reserve_bytes: u64,
    /// What may still be written before the reserve is reached. 0: writes are refused with `ENOSPC`.
    pub disk_available_bytes: u64,
    /// Bytes in segments that nothing names any more, which the collector has not given back yet.
    pub dead_bytes: u64,
    /// Allocated on the disk and not used yet: the ballast, and the rest of the segment that is written to.
    pub held_bytes: u64,
    /// The disk was at its reserve when it was last looked at. Looked at again at least every second while it is.
    pub is_pressed: bool,
}

/// A volume, open on this node. Share it as an `Arc`; all methods may be called from any thread.
pub struct Volume {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// What the volume's threads share.
#[derive(Debug)]
pub(crate) struct Inner {
    settings: VolumeSettings,
    /// The volume's size now; the settings have the one it was opened with.
    size_bytes: AtomicU64,
    epoch: Epoch,
    store: Store,
    /// Taken by [`Inner::core`] and [`Inner::core_mut`] only.
    unsettled_core: RwLock<Core>,
    marks: Watermarks,
    log_syncer: Arc<crate::store::syncfile::Syncer>,
    durable_mark: Mutex<Mark>,
    space: DiskSpace,
    metrics: Arc<Metrics>,
    next_piece: AtomicU64,
    /// Set once, never cleared: something may have been lost.
    failed: AtomicBool,
    closed: AtomicBool,
    /// The housekeeper has not kept up with flushing: who changes something next does it.
    flush_overdue: AtomicBool,
    /// Held by whoever flushes the state: one at a time.
    flushing: Mutex<()>,
    /// Readers of many segments hold it shared, so that the collector deletes none of them.
    collecting: RwLock<()>,
    /// Writers hold it shared from the append of a chunk until the record that names it: such a chunk looks dead.
    appending: RwLock<()>,
    chores: Mutex<Chores>,
    chores_changed: Condvar,
    /// Something was changed since the housekeeper last looked whether nothing is.
    is_busy: AtomicBool,
    /// The disk was seen at its reserve, and not yet beyond it again.
    is_pressed: AtomicBool,
    /// There was no space for a spare log file when one was last wanted.
    no_spare: AtomicBool,
    ballast: Ballast,
    collector: Mutex<Collector>,
    collector_asked: Condvar,
    collector_done: Condvar,
    /// Dead bytes have outgrown what writers may leave behind: they wait for the collector.
    collector_overdue: AtomicBool,
}

/// What the write lock guards.
#[derive(Debug)]
struct Core {
    log: LogWriter,
    totals: Totals,
    /// The newest record in the log, if the state has not got it yet. `None` for whoever has the lock from [`Inner::core`] or
    /// [`Inner::core_mut`].
    pending: Option<Folded>,
    unflushed: Unflushed,
    /// Everything up to here is in flushed state.
    flushed: Lsn,
    /// When the last name of an inode was last taken away.
    last_orphan: Option<Instant>,
}

/// What the log holds and RocksDB's state on the disk does not: what an open would replay.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unflushed {
    /// Bytes of records.
    pub(crate) bytes: u64,
    /// How many records those are.
    pub(crate) records: u64,
    /// Bytes of chunks that those records name.
    pub(crate) chunk_bytes: u64,
}

impl Unflushed {
    pub(crate) fn add(&mut self, more: &Self) {
        self.bytes += more.bytes;
        self.records += more.records;
        self.chunk_bytes += more.chunk_bytes;
    }
}

/// What the background thread is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a set of flags is what this is"
)]
struct Chores {
    flush: bool,
    spare: bool,
    push: bool,
    stop: bool,
}

impl Volume {
    /// The settings it was opened with.
    pub fn settings(&self) -> &VolumeSettings {
        &self.inner.settings
    }

    /// Which store this is.
    pub fn identity(&self) -> &VolumeIdentity {
        self.inner.store.identity()
    }

    /// Its directory.
    pub fn dir(&self) -> PathBuf {
        self.inner.store.dir().to_owned()
    }

    /// Where it stands.
    pub fn status(&self) -> VolumeStatus {
        let core = self.inner.core();
        let applied = &core.totals.applied;
        VolumeStatus {
            epoch: self.inner.epoch,
            head: applied.pos.lsn,
            durable: self.inner.marks.durable(),
            digest: applied.digest.to_bytes(),
            used_bytes: applied.used_bytes,
            inodes: applied.inodes,
            orphans: core.totals.orphans.len() as u64,
            log_bytes: core.log.disk_bytes(),
            segment_bytes: core
                .totals
                .segments
                .values()
                .map(|segment| segment.end)
                .sum(),
            segment_live_bytes: core
                .totals
                .segments
                .values()
                .map(|segment| segment.live_bytes)
                .sum(),
            failed: self.inner.failed.load(Ordering::Acquire),
        }
    }

    /// What it counted since it was opened.
    ///
    /// # Errors
    /// [`FsError::State`], [`FsError::Io`]: the disk or the state cannot be asked.
    pub fn metrics(&self) -> Result<VolumeMetrics, FsError> {
        let state_bytes = self.inner.store.disk_bytes()?;
        let reserve_bytes = self.inner.space.look(self.inner.held_bytes())?.reserve;
        Ok(self.inner.metrics.snapshot(state_bytes, reserve_bytes))
    }

    pub(crate) fn counters(&self) -> Arc<Metrics> {
        Arc::clone(&self.inner.metrics)
    }

    /// Sizes, as statfs(2) shows them.
    pub fn statfs(&self) -> Result<StatFs, FsError> {
        let (used_bytes, inodes) = {
            let core = self.inner.core();
            (core.totals.applied.used_bytes, core.totals.applied.inodes)
        };
        let size_bytes = self.inner.size_bytes();
        let on_disk = self.inner.space.look(self.inner.held_bytes())?.available;
        let available_bytes = size_bytes.saturating_sub(used_bytes).min(on_disk);
        Ok(StatFs {
            size_bytes,
            used_bytes,
            available_bytes,
            inodes,
            inodes_free: available_bytes / EMPTY_FILE_BYTES,
        })
    }

    /// What it takes of the disk, and what the disk has left. Asks the disk.
    pub fn space(&self) -> Result<SpaceStatus, FsError> {
        let held_bytes = self.inner.held_bytes();
        let disk = self.inner.space.look(held_bytes)?;
        let (dead_bytes, _) = self.inner.core().totals.dead_and_live();
        Ok(SpaceStatus {
            disk_free_bytes: disk.free,
            disk_reserve_bytes: disk.reserve,
            disk_available_bytes: disk.available,
            dead_bytes,
            held_bytes,
            is_pressed: self.inner.is_pressed.load(Ordering::Acquire),
        })
    }

    /// Changes the volume's size; statfs(2) and the next write see it. The caller keeps it for the next opening.
    ///
    /// # Errors
    /// [`FsError::NoSpace`]: its files hold more. Nothing was changed.
    pub fn set_size(&self, size_bytes: u64) -> Result<(), FsError> {
        // Growth is checked under this lock too.
        let core = self.inner.core_mut();
        if core.totals.applied.used_bytes > size_bytes {
            return Err(FsError::NoSpace);
        }
        self.inner.size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }

    /// Calls `done` once every record appended so far is on the disk. Waits for the disk itself if nobody else does, and calls
    /// `done` from another thread otherwise: at most one caller waits here at a time.
    ///
    /// # Errors
    /// [`FsError::Failed`] if a sync failed, now or ever since the volume was opened.
    pub fn fsync(&self, done: FsyncDone) {
        if self.inner.failed.load(Ordering::Acquire) {
            return done(Err(FsError::Failed));
        }
        self.inner.marks.fsync(done, &*self.inner);
    }

    /// The same, waiting.
    pub fn sync(&self) -> Result<(), FsError> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        self.fsync(Box::new(move |result| {
            let _ = answer.send(result); // the receiver waits below
        }));
        answered.recv().unwrap_or(Err(FsError::Failed))
    }

    /// Sees that the volume's directory is still the one that was opened. If another has taken its place, the volume is failed
    /// from here on: it is to be opened again.
    ///
    /// # Errors
    /// [`FsError::Refused`], or [`FsError::Io`].
    pub fn check_place(&self) -> Result<(), FsError> {
        let checked = self.inner.store.check_place();
        checked.inspect_err(|error| self.inner.fail(error))
    }

    /// Gives the disk the space that the volume holds for such a moment: hafsd itself has none, for something that gives space
    /// back or lets a user in who may. It is taken again once the disk has room.
    pub fn give_up_ballast(&self) {
        self.inner.ballast.give_up();
        self.inner.pressed();
    }

    /// Applies what was changed last, which the next change would do otherwise: for a thread that has answered, and has nothing
    /// better to do.
    pub(crate) fn settle(&self) {
        drop(self.inner.core());
    }

    /// True if `ino` is unlinked and kept because the kernel may still hold it open.
    pub fn is_orphan(&self, ino: Ino) -> bool {
        self.inner.core().totals.orphans.contains(&ino)
    }

    /// Proves the volume's invariants while it is in use: reads every row, and every byte that its files hold. `progress`
    /// is told how many inodes are done, of about how many.
    ///
    /// # Errors
    /// Only if the check could not be made; what is wrong with the volume is in the report.
    pub fn check(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport, FsError> {
        self.check_with(&mut |at| {
            progress(at.inodes_done, at.inodes_total);
            ControlFlow::Continue(())
        })
    }

    /// The same for somebody who wants to know more of how far it is, or may want to stop: `watch` is asked with each inode
    /// and each piece.
    ///
    /// # Errors
    /// [`FsError::Stopped`] once `watch` breaks; else as [`Self::check`].
    pub fn check_with(
        &self,
        watch: &mut dyn FnMut(&CheckProgress) -> ControlFlow<()>,
    ) -> Result<CheckReport, FsError> {
        let _segments_stay = self.inner.collecting.read();
        self.settle();
        let (mut report, live) = check::check(&self.inner.store, watch)?;
        let core = self.inner.core();
        if core.totals.applied.pos.lsn == report.lsn {
            let kept = core.totals.segments.iter();
            let kept: BTreeMap<_, _> = kept
                .filter(|(_, segment)| segment.live_bytes > 0)
                .map(|(id, segment)| (*id, segment.live_bytes))
                .collect();
            if kept != live && report.problem_count == 0 {
                let what = "the books of the segments' live bytes are wrong".to_owned();
                let problem = Problem::of_books(ProblemKind::LiveBytes, what);
                report.problems.push(problem);
                report.problem_count += 1;
            }
        }
        Ok(report)
    }

    /// All orphans.
    pub fn orphans(&self) -> Vec<Ino> {
        self.inner.core().totals.orphans.iter().copied().collect()
    }
}

impl Inner {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// Refuses changes after a failure or after the end.
    fn check_open(&self) -> Result<(), FsError> {
        if self.failed.load(Ordering::Acquire) || self.closed.load(Ordering::Acquire) {
            return Err(FsError::Failed);
        }
        Ok(())
    }

    /// Something may have been lost: no more changes, no more successful fsyncs. Logged once. A full disk is no failure.
    fn fail(&self, error: &FsError) {
        // Whoever met the failure itself tells it, with the cause. Without space nothing is lost, and there will be room again.
        if matches!(error, FsError::Failed | FsError::NoSpace) {
            return;
        }
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(
                volume = %self.store.identity().volume,
                error = with_causes(error),
                "the store failed; the volume refuses changes until it is opened again"
            );
        }
    }

    /// Runs `change` under the write lock and commits what it built as one record. The caller holds no lock.
    fn transact<T>(
        &self,
        change: impl FnOnce(&mut Txn<'_>, &Totals) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        self.limit_unflushed()?;
        self.transact_at_once(change)
    }

    /// The same for a caller that has called [`Self::limit_unflushed`], and may hold `appending`.
    fn transact_at_once<T>(
        &self,
        change: impl FnOnce(&mut Txn<'_>, &Totals) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        self.check_open()?;
        let mut core = self.core_mut();
        let mut txn = Txn::new(&self.store, core.totals.applied.next_ino);
        let value = change(&mut txn, &core.totals)?;
        self.commit(&mut core, txn)?;
        Ok(value)
    }

    fn commit(&self, core: &mut Core, txn: Txn<'_>) -> Result<(), FsError> {
        let (changes, pieces) = txn.finish()?;
        if changes.is_empty() && pieces.is_empty() {
            return Ok(());
        }
        let applied = &core.totals.applied;
        let sums = Sums::after(applied, &changes)?;
        sums.check_quota(applied, self.size_bytes())?;
        self.append(core, RecordKind::Mutations, changes, pieces, sums)
    }

    /// The first record of an opening.
    fn begin_epoch(&self) -> Result<(), FsError> {
        let mut core = self.core_mut();
        let sums = Sums::after(&core.totals.applied, &[])?;
        self.append(
            &mut core,
            RecordKind::EpochStart,
            Vec::new(),
            Vec::new(),
            sums,
        )
    }

    /// The volume as of the newest record, shared.
    fn core(&self) -> RwLockReadGuard<'_, Core> {
        let core = self.unsettled_core.read();
        if core.pending.is_none() {
            return core;
        }
        drop(core);
        RwLockWriteGuard::downgrade(self.core_mut())
    }

    /// The volume as of the newest record, for a change: the write lock.
    fn core_mut(&self) -> RwLockWriteGuard<'_, Core> {
        let mut core = self.unsettled_core.write();
        if let Some(folded) = core.pending.take() {
            folded.write(&self.store, &mut core.totals);
        }
        core
    }

    /// Record → log, and the state gets it from whoever takes the lock next: the caller can be answered before. After an error
    /// the volume is failed: the log may hold what the state does not.
    fn append(
        &self,
        core: &mut Core,
        kind: RecordKind,
        changes: Vec<Change>,
        pieces: Vec<NewPiece>,
        sums: Sums,
    ) -> Result<(), FsError> {
        // A failure may have happened while we waited for the lock.
        self.check_open()?;
        let pos = Pos {
            epoch: self.epoch,
            lsn: core.log.head().lsn.next(),
        };
        let rows = changes.iter();
        let encoded = record::encode(
            pos,
            kind,
            rows.map(|row| (row.table, row.key.as_slice(), row.new.as_deref())),
            pieces.iter().map(NewPiece::parts),
        );
        let chain = encoded.chain(core.log.chain());
        let places: Vec<ChunkPlace> = pieces
            .iter()
            .filter_map(|piece| chunk_place(&piece.place))
            .collect();
        let frame = encode_frame(
            self.store.identity().store,
            &encoded.bytes,
            &chain,
            self.marks.durable(),
            &places,
        );
        let chunk_bytes: u64 = pieces
            .iter()
            .map(|piece| stored_chunk_bytes(&piece.place))
            .sum();
        core.log.make_room(frame.len()).inspect_err(|error| {
            if matches!(error, FsError::NoSpace) {
                self.pressed();
            }
        })?;
        let log_end = core.log.end_after(frame.len());
        let pieces = pieces
            .into_iter()
            .map(|piece| (piece.id, piece.place))
            .collect();
        let makes_orphan = changes
            .iter()
            .any(|change| change.table == Table::Orphan && change.new.is_some());
        let step = Step {
            pos,
            chain,
            log_end,
            kind,
            changes,
            pieces,
        };
        // Whatever must be read for it is read first: a record that cannot be applied must not get into the log, where it
        // would keep the volume from opening again.
        let folded = fold(&self.store, &core.totals, step, sums)?;
        if let Err(error) = core.log.append(&frame, pos, chain) {
            self.fail(&error);
            return Err(error);
        }
        core.pending = Some(folded);
        if makes_orphan {
            core.last_orphan = Some(Instant::now());
        }
        self.marks.set_head(pos.lsn);
        core.unflushed.add(&Unflushed {
            bytes: frame.len() as u64,
            records: 1,
            chunk_bytes,
        });
        if core.unflushed.bytes > self.unflushed_bytes_max() {
            self.flush_overdue.store(true, Ordering::Release);
        }
        self.ask_for_chores(core);
        Ok(())
    }

    /// A name for a new piece: unique, since a restart starts a new epoch.
    fn new_piece_id(&self) -> PieceId {
        let counter = self.next_piece.fetch_add(1, Ordering::Relaxed);
        PieceId {
            epoch: self.epoch,
            counter,
        }
    }

    fn path(&self) -> &Path {
        self.store.dir()
    }
}

fn chunk_place(place: &Place) -> Option<ChunkPlace> {
    match place {
        Place::Segment(place) => Some(place.chunk()),
        Place::Inline(_) => None,
    }
}

fn stored_chunk_bytes(place: &Place) -> u64 {
    match place {
        Place::Segment(place) => place.stored_bytes(),
        Place::Inline(_) => 0,
    }
}

#[cfg(test)]
pub(crate) mod tests;
