//! What a volume does on its own: the committer syncs for those who wait; the housekeeper flushes state, pushes bulk
//! bytes out, keeps a log file ready and has the collector run.
//!
//! Both sleep until they are asked: an idle volume costs nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hafs_protocol::Lsn;
use parking_lot::MutexGuard;

use super::collect::Effort;
use super::{Chores, Core, Inner};
use crate::error::{FsError, with_causes};
use crate::log::Durable;
use crate::store::key::{LocalTable, SegmentId, segment_key};
use crate::store::memtable::Batch;

/// Unsynced chunk bytes at which the housekeeper starts to push them out, so that no fsync finds much to do.
const PUSH_BYTES: u64 = 4 << 20;
/// Unsynced chunk bytes at which writers wait for the disk.
pub(super) const UNSYNCED_CHUNK_BYTES_MAX: u64 = 16 << 20;
/// State is also flushed when unflushed records name so many bytes of chunks, as replay must read them all.
const UNFLUSHED_CHUNK_BYTES: u64 = 256 << 20;
/// And after so many records, as replay takes some 50 µs for each.
const UNFLUSHED_RECORDS: u64 = 16_384;
/// Who changes something flushes, and so waits, once unflushed records fill so many state buffers: that bounds memory. Their
/// rows take up to three times their bytes in a memtable (short records that remove rows).
const UNFLUSHED_BUFFERS_MAX: u64 = 2;
/// Bytes that die between two looks at whether the collector should run.
const DIED_BYTES_LOOK: u64 = 32 << 20;
/// What a flush leaves to be synced under the write lock, at most, unless writers are faster than the disk.
const SYNC_UNDER_LOCK_BYTES: u64 = 1 << 20;
const SYNC_TRIES: u32 = 3;
/// Nothing was changed for so long: what waited for that is done.
const IDLE_AFTER: Duration = Duration::from_secs(3);
/// While the disk is at its reserve, it is looked at so often.
const PRESSED_LOOK: Duration = Duration::from_secs(1);
/// And state is flushed when records of so many bytes are not, so that a flush needs little space.
const PRESSED_UNFLUSHED_BYTES: u64 = 1 << 20;

impl Durable for Inner {
    /// Segments and log side by side.
    fn sync(&self) -> Result<(), FsError> {
        self.check_failed()?;
        let began = Instant::now();
        let synced = self.sync_files();
        self.metrics.synced(began.elapsed());
        synced.inspect_err(|error| self.fail(error))
    }

    /// The durable mark is only a hint for the next open: a volume lives without it.
    fn answered(&self) {
        if let Err(error) = self.durable_mark.lock().set(self.marks.durable()) {
            tracing::warn!(error = with_causes(&error), "durable mark not written");
        }
    }
}

impl Inner {
    pub(super) fn start_threads(inner: &Arc<Self>) -> Result<Vec<JoinHandle<()>>, FsError> {
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(run)
                .map_err(|source| FsError::Io {
                    op: "start a thread for",
                    path: inner.path().display().to_string(),
                    source,
                })
        };
        let committer = Arc::clone(inner);
        let housekeeper = Arc::clone(inner);
        let collector = Arc::clone(inner);
        Ok(vec![
            spawn(
                "hafs-commit",
                Box::new(move || committer.marks.run_committer(&*committer)),
            )?,
            spawn("hafs-keep", Box::new(move || housekeeper.keep_house()))?,
            spawn("hafs-collect", Box::new(move || collector.run_collector()))?,
        ])
    }

    /// How the disk is when the volume opens: takes the ballast if there is room for it.
    pub(super) fn begin_space(&self) -> Result<(), FsError> {
        let disk = self.space.look(self.held_bytes())?;
        if disk.available > 0 {
            self.ballast.restore();
        } else {
            self.pressed();
        }
        Ok(())
    }

    /// Makes everything up to `head` durable, which was appended before.
    fn sync_to(&self, head: Lsn) -> Result<(), FsError> {
        self.sync()?;
        self.marks.raise_durable(head);
        self.answered();
        Ok(())
    }

    fn check_failed(&self) -> Result<(), FsError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(FsError::Failed);
        }
        Ok(())
    }

    fn sync_files(&self) -> Result<(), FsError> {
        let segments = self.store.segments.syncer();
        if !segments.is_dirty() {
            return self.log_syncer.sync();
        }
        thread::scope(|scope| {
            let beside = thread::Builder::new().spawn_scoped(scope, || segments.sync());
            let log = self.log_syncer.sync();
            let chunks = match beside {
                Ok(chunks) => chunks.join().expect("syncing does not panic"),
                Err(_) => segments.sync(), // no thread to be had: one after the other
            };
            log.and(chunks)
        })
    }

    /// Called after each record: asks the housekeeper for what is due.
    pub(super) fn ask_for_chores(&self, core: &mut Core) {
        let pressed = self.is_pressed.load(Ordering::Acquire);
        let flush_bytes = if pressed {
            PRESSED_UNFLUSHED_BYTES.min(self.settings.state_buffer_bytes)
        } else {
            self.settings.state_buffer_bytes
        };
        let flush = core.unflushed.bytes > flush_bytes
            || core.unflushed.records > UNFLUSHED_RECORDS
            || core.unflushed.chunk_bytes > UNFLUSHED_CHUNK_BYTES;
        if pressed && core.log.is_short() {
            // No file to roll to. A flush gives one back, and deletions need it.
            self.flush_overdue.store(true, Ordering::Release);
        }
        let spare = core.log.spares().len() == 0 && !self.no_spare.load(Ordering::Acquire);
        let push = self.store.segments.syncer().unsynced_bytes() > PUSH_BYTES;
        // A deletion is a few short records: it would not bring a flush, and so no look at what is dead, for long.
        if core.totals.dead_bytes_unseen > DIED_BYTES_LOOK {
            core.totals.dead_bytes_unseen = 0;
            self.look_at_the_dead(&core.totals);
        }
        let wake = !self.is_busy.load(Ordering::Relaxed);
        if !(flush || spare || push || wake) {
            return;
        }
        let mut chores = self.chores.lock();
        let news =
            (flush && !chores.flush) || (spare && !chores.spare) || (push && !chores.push) || wake;
        chores.flush |= flush;
        chores.spare |= spare;
        chores.push |= push;
        self.is_busy.store(true, Ordering::Relaxed);
        drop(chores);
        if news {
            self.chores_changed.notify_one();
        }
    }

    pub(super) fn stop_chores(&self) {
        self.chores.lock().stop = true;
        self.chores_changed.notify_all();
        self.stop_collector();
    }

    /// The disk is at its reserve, or full. Until it is not any more, the housekeeper looks at it by itself.
    pub(super) fn pressed(&self) {
        if !self.is_pressed.swap(true, Ordering::AcqRel) {
            // Now, while there is still the reserve: what is not flushed then is little.
            self.chores.lock().flush = true;
            self.chores_changed.notify_one();
        }
    }

    /// Waits for chores. `None`: it is time to look at the disk, or whether something happened.
    fn next_chores(&self) -> Option<Chores> {
        let mut chores = self.chores.lock();
        while *chores == Chores::default() {
            let limit = if self.is_pressed.load(Ordering::Acquire) {
                PRESSED_LOOK
            } else if self.is_busy.load(Ordering::Relaxed) {
                IDLE_AFTER
            } else {
                self.chores_changed.wait(&mut chores);
                continue;
            };
            if self.chores_changed.wait_for(&mut chores, limit).timed_out() {
                return None;
            }
        }
        let stop = chores.stop; // stays
        Some(std::mem::replace(
            &mut *chores,
            Chores {
                stop,
                ..Chores::default()
            },
        ))
    }

    fn keep_house(&self) {
        let mut last_head = self.marks.head();
        let mut last_look = Instant::now();
        loop {
            let chores = self.next_chores();
            // Also between chores that come all the time.
            if chores.is_none() || last_look.elapsed() >= PRESSED_LOOK {
                self.look_at_disk();
                last_look = Instant::now();
            }
            let Some(chores) = chores else {
                let head = self.marks.head();
                if head == last_head && self.is_busy.swap(false, Ordering::Relaxed) {
                    self.tidy_up();
                }
                last_head = head;
                continue;
            };
            if chores.stop {
                return;
            }
            if chores.push
                && let Err(error) = self.store.segments.syncer().sync()
            {
                self.fail(&error);
            }
            if chores.spare {
                self.prepare_spare();
            }
            if chores.flush {
                match self.flush() {
                    Ok(()) => self.look_at_the_dead(&self.core().totals),
                    Err(FsError::NoSpace) => self.pressed(),
                    Err(_) => {} // the volume has failed
                }
            }
        }
    }

    fn prepare_spare(&self) {
        let spares = Arc::clone(self.core().log.spares());
        let Err(error) = spares.prepare() else { return };
        // Rolling the log makes one itself, or says that there is no space. It is tried again at the next look at the disk.
        self.no_spare.store(true, Ordering::Release);
        self.pressed();
        tracing::info!(error = with_causes(&error), "no spare log file");
    }

    /// Nothing was changed for some time: gives back what is only held so that changes are fast, and has the collector
    /// do what is worth little.
    fn tidy_up(&self) {
        self.store.forget_flushed();
        if let Err(error) = self.seal_if_worth_emptying(Effort::Steady) {
            tracing::warn!(
                error = with_causes(&error),
                "unused space of a segment is not given back"
            );
        }
        self.release_tail();
        self.collect_while_idle();
    }

    /// Gives back what the segment that is written to has allocated ahead.
    fn release_tail(&self) {
        if let Err(error) = self.store.segments.release_tail() {
            tracing::warn!(
                error = with_causes(&error),
                "unused space of a segment is not given back"
            );
        }
    }

    /// While the disk is at its reserve: sees whether it still is.
    fn look_at_disk(&self) {
        if !self.is_pressed.load(Ordering::Acquire) {
            return;
        }
        self.no_spare.store(false, Ordering::Release);
        match self.space.look(self.held_bytes()) {
            Ok(disk) if disk.available > 0 => {
                self.ballast.restore();
                self.is_pressed.store(false, Ordering::Release);
            }
            Ok(disk) => {
                // The reserve is for what we do while we are pressed, and this is the first part of it.
                if disk.own > 2 * self.ballast.bytes() {
                    self.ballast.restore();
                }
                if self.core().unflushed.bytes > 0 {
                    self.chores.lock().flush = true;
                }
                self.collector_may_try_again();
            }
            Err(error) => tracing::warn!(
                error = with_causes(&error),
                "cannot ask the disk for its space"
            ),
        }
    }

    /// What the store has allocated on the disk without using it, bytes.
    pub(super) fn held_bytes(&self) -> u64 {
        self.ballast.held() + self.store.segments.tail_bytes()
    }

    /// Brings RocksDB's state on the disk up to the present and gives back log files that are not needed for replay any
    /// more. An error fails the volume, unless it is [`FsError::NoSpace`].
    ///
    /// Invariant: what is flushed is durable in log and segments first.
    pub(super) fn flush(&self) -> Result<(), FsError> {
        let one_at_a_time = self.flushing.lock();
        self.flush_alone(&one_at_a_time)
    }

    /// Writers wait here if the housekeeper does not keep up. The caller holds no lock.
    pub(super) fn limit_unflushed(&self) -> Result<(), FsError> {
        if !self.flush_overdue.load(Ordering::Acquire) {
            return Ok(());
        }
        let one_at_a_time = self.flushing.lock();
        if !self.flush_overdue.load(Ordering::Acquire) {
            return Ok(()); // somebody else has done it
        }
        match self.flush_alone(&one_at_a_time) {
            // Changes still go on if that was only for a log file: there may be one.
            Err(FsError::NoSpace) if !self.is_unflushed_too_long() => {
                self.flush_overdue.store(false, Ordering::Release);
                Ok(())
            }
            Err(FsError::NoSpace) => {
                self.pressed();
                Err(FsError::NoSpace)
            }
            flushed => flushed,
        }
    }

    fn is_unflushed_too_long(&self) -> bool {
        self.core().unflushed.bytes > self.unflushed_bytes_max()
    }

    /// See [`UNFLUSHED_BUFFERS_MAX`].
    pub(super) fn unflushed_bytes_max(&self) -> u64 {
        UNFLUSHED_BUFFERS_MAX * self.settings.state_buffer_bytes
    }

    fn flush_alone(&self, one_at_a_time: &MutexGuard<'_, ()>) -> Result<(), FsError> {
        let flushed = self.try_flush(one_at_a_time);
        flushed.inspect_err(|error| self.fail(error))
    }

    fn try_flush(&self, _one_at_a_time: &MutexGuard<'_, ()>) -> Result<(), FsError> {
        self.check_failed()?;
        self.store.check_place()?;
        // Most of the syncing is done while others go on; the rest, under the lock, is little. It comes before the room: what
        // was promised does not wait for that, and closing on a full disk syncs, too.
        for _ in 0..SYNC_TRIES {
            self.sync_to(self.marks.head())?;
            if self.store.segments.syncer().unsynced_bytes() < SYNC_UNDER_LOCK_BYTES {
                break;
            }
        }
        self.make_room_to_flush()?;
        let (rows, unflushed, flushed, sealed) = {
            let mut core = self.core_mut();
            self.sync_to(core.log.head().lsn)?;
            self.note_sealed(&mut core.totals);
            let rows = self.write_segment_rows(&mut core);
            let unflushed = std::mem::take(&mut core.unflushed);
            self.flush_overdue.store(false, Ordering::Release);
            (rows, unflushed, core.log.head().lsn, self.store.seal())
        };
        if let Err(error) = self.store.flush(&sealed) {
            // None of it is on the disk, as far as we know: the next flush is for all of it.
            let mut core = self.core_mut();
            core.totals.segments_changed.extend(rows);
            core.unflushed.add(&unflushed);
            return Err(error);
        }
        let mut core = self.core_mut();
        core.flushed = core.flushed.max(flushed);
        let needed = core.flushed;
        core.log.trim(needed, self.log_keep_bytes())
    }

    /// Full log files are kept for copies that come back, while the disk has room for them.
    fn log_keep_bytes(&self) -> u64 {
        if self.is_pressed.load(Ordering::Acquire) {
            0
        } else {
            self.settings.log_keep_bytes
        }
    }

    /// Sees to it that a flush finds space: RocksDB is not to meet a full disk, which it takes for a failure. Gives up what
    /// can be given up for it.
    ///
    /// # Errors
    /// [`FsError::NoSpace`]: not now. Nothing is lost by that, the log has it all.
    fn make_room_to_flush(&self) -> Result<(), FsError> {
        let needed = self.store.flush_bytes();
        let mut disk = self.space.look(self.held_bytes())?;
        if disk.available == 0 {
            self.pressed();
        }
        if disk.own < needed {
            {
                let mut core = self.core_mut();
                let flushed = core.flushed;
                core.log.trim(flushed, 0)?;
            }
            self.release_tail();
            self.ballast.give_up();
            disk = self.space.look(self.held_bytes())?;
        }
        if disk.own < needed {
            // Others took that as well. After the flush the log has files again.
            self.core_mut().log.give_up_spares()?;
            disk = self.space.look(self.held_bytes())?;
        }
        if disk.own < needed {
            return Err(FsError::NoSpace);
        }
        Ok(())
    }

    /// What the collector may copy before it deletes anything, bytes: so much that copies and the flush after them
    /// find space. Half of what there is, since a new segment may take as much again as is written to it.
    pub(super) fn room_for_copies(&self) -> Result<u64, FsError> {
        let flush = self.store.flush_bytes();
        let disk = self.space.look(self.held_bytes())?;
        let room = disk.free.saturating_sub(2 * flush) / 2;
        self.store
            .segments
            .limit_new(room.min(disk.segment_bytes_max));
        Ok(room)
    }

    /// Brings the rows of the segments up to the present; returns which they were.
    fn write_segment_rows(&self, core: &mut Core) -> HashSet<SegmentId> {
        let mut batch = Batch::default();
        for id in &core.totals.segments_changed {
            match core.totals.segments.get(id) {
                Some(segment) => {
                    batch.put(LocalTable::Segment, &segment_key(*id), segment.encode());
                }
                None => batch.delete(LocalTable::Segment, &segment_key(*id)),
            }
        }
        self.store.write(batch);
        std::mem::take(&mut core.totals.segments_changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Ino;
    use crate::volume::VolumeSettings;
    use crate::volume::tests::{Fixture, assert_clean, file, settings};

    #[test]
    fn records_never_outgrow_the_memtables_even_with_nobody_to_flush_them() {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let ino = file(&volume, b"a");
        // As if the housekeeper were busy with something long.
        volume.inner.stop_chores();
        for n in 0..1000 {
            volume
                .write(ino, n * 8192, &[1; 8192], false, false)
                .unwrap();
            let unflushed = volume.inner.core().unflushed.bytes;
            assert!(
                unflushed <= 3 * settings().state_buffer_bytes,
                "{unflushed}"
            );
        }
        assert_clean(&volume);
    }

    #[test]
    fn a_check_that_takes_long_does_not_hold_up_the_housekeeper() {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let ino = file(&volume, b"a");
        let check_runs = volume.inner.collecting.read();
        volume.inner.ask_collector(Effort::Steady);
        for n in 0..40 {
            volume
                .write(ino, n * 8192, &[1; 8192], false, false)
                .unwrap();
        }
        let buffer = settings().state_buffer_bytes;
        wait_until(|| volume.inner.core().unflushed.bytes < buffer);
        drop(check_runs);
    }

    #[test]
    fn a_big_file_gives_its_space_back_when_it_is_deleted() {
        let mut fixture = Fixture::with(VolumeSettings {
            size_bytes: 256 << 20,
            state_buffer_bytes: 32 << 20,
            ..settings()
        });
        let volume = fixture.open();
        let ino = file(&volume, b"a");
        for mib in 0..80 {
            volume
                .write(ino, mib << 20, &vec![1; 1 << 20], false, false)
                .unwrap();
        }
        volume.unlink(Ino::ROOT, b"a").unwrap();
        volume.reclaim(ino).unwrap();
        wait_until(|| volume.status().segment_bytes < 4 << 20);
        assert_clean(&volume);
    }

    #[test]
    fn a_flush_of_what_cannot_be_compressed_asks_for_its_size() {
        let mut fixture = Fixture::with(VolumeSettings {
            state_buffer_bytes: 32 << 20,
            ..settings()
        });
        let volume = fixture.open();
        let ino = file(&volume, b"a");
        let before = volume.inner.store.flush_bytes();
        let mut numbers = blake3::Hasher::new().finalize_xof();
        let mut bytes = [0; 8192];
        for n in 0..256 {
            numbers.fill(&mut bytes);
            volume.write(ino, n * 8192, &bytes, false, false).unwrap();
        }
        let needed = volume.inner.store.flush_bytes() - before;
        assert!(needed > 256 * 8192, "{needed}");
        let state = || volume.inner.store.disk_bytes().unwrap();
        let on_disk = state();
        volume.inner.flush().unwrap();
        let took = state() - on_disk;
        assert!(took > 256 * 8000 && took < needed, "{took} of {needed}");
    }

    /// It would be ahead of what the log has synced.
    #[test]
    fn rocksdb_flushes_nothing_by_itself() {
        let mut fixture = Fixture::with(VolumeSettings {
            state_buffer_bytes: 32 << 20,
            log_file_bytes: 8 << 20,
            ..settings()
        });
        let volume = fixture.open();
        let ino = file(&volume, b"a");
        let on_disk = || volume.inner.store.disk_bytes().unwrap();
        let before = on_disk();
        // Long rows, and short ones that remove.
        for n in 0..3000 {
            volume
                .write(ino, n * 8192, &[1; 8192], false, false)
                .unwrap();
        }
        for _ in 0..10_000 {
            volume.write(ino, 1, b"x", false, false).unwrap();
        }
        assert_eq!(on_disk(), before);
        let rows = volume.inner.store.flush_bytes();
        assert!(rows > 24 << 20, "{rows}");
        assert_clean(&volume);
    }

    #[test]
    fn a_collector_that_finds_another_directory_fails_the_volume() {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let ino = file(&volume, b"a");
        // Who else would find out.
        volume.inner.stop_chores();
        let (dir, away) = (volume.dir(), volume.dir().with_extension("away"));
        std::fs::rename(&dir, &away).unwrap();
        std::fs::create_dir(&dir).unwrap();
        assert!(matches!(volume.collect(), Err(FsError::Refused(_))));
        assert!(volume.status().failed);
        let refused = volume.write(ino, 0, b"x", false, false);
        assert!(matches!(refused, Err(FsError::Failed)), "{refused:?}");
    }

    fn wait_until(mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "it never happens"
            );
            thread::park_timeout(Duration::from_millis(2));
        }
    }
}
