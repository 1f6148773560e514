//! What a volume does on its own: the committer syncs for those who wait; the housekeeper flushes state, pushes bulk
//! bytes out, keeps a log file ready and has the collector run.
//!
//! Both sleep until they are asked: an idle volume costs nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hafs_protocol::Lsn;
use parking_lot::MutexGuard;
use rocksdb::WriteBatch;

use super::{Chores, Core, Inner};
use crate::error::FsError;
use crate::store::Store;
use crate::store::key::{LocalTable, segment_key};

/// Unsynced chunk bytes at which the housekeeper starts to push them out, so that no fsync finds much to do.
const PUSH_BYTES: u64 = 4 << 20;
/// Unsynced chunk bytes at which writers wait for the disk.
pub(super) const UNSYNCED_CHUNK_BYTES_MAX: u64 = 16 << 20;
/// State is also flushed when unflushed records name so many bytes of chunks, as replay must read them all.
const UNFLUSHED_CHUNK_BYTES: u64 = 256 << 20;
/// And after so many records, as replay takes some 50 µs for each.
const UNFLUSHED_RECORDS: u64 = 16_384;
/// Who changes something flushes, and so waits, once unflushed records fill so many state buffers. Their rows take up to
/// three times their bytes in a memtable (short records that remove rows), and a memtable that is full
/// (`MEMTABLE_HEADROOM` buffers) would be flushed by RocksDB itself, ahead of the log.
pub(super) const UNFLUSHED_BUFFERS_MAX: u64 = 2;
/// How often a flush that runs is looked at.
const FLUSH_POLL: Duration = Duration::from_millis(2);
/// A flush writes some hundred MiB at most. One that has not ended by then never will, and closing must not wait for it.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(300);
/// Dead bytes that are worth a round of the collector, and as a share (one in so many) of all.
const DEAD_BYTES_MIN: u64 = 64 << 20;
const DEAD_SHARE: u64 = 4;

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
        Ok(vec![
            spawn(
                "hafs-commit",
                Box::new(move || {
                    committer
                        .marks
                        .run_committer(|head| committer.sync_to(head))
                }),
            )?,
            spawn("hafs-keep", Box::new(move || housekeeper.keep_house()))?,
        ])
    }

    /// Makes everything up to `head` durable: segments and log side by side.
    pub(super) fn sync_to(&self, head: Lsn) -> Result<(), FsError> {
        self.check_failed()?;
        let began = Instant::now();
        let synced = self.sync_files();
        self.metrics.synced(began.elapsed());
        if let Err(error) = &synced {
            self.fail(error);
        } else {
            self.marks.raise_durable(head);
            // Only a hint for the next open: a volume lives without it.
            if let Err(error) = self.durable_mark.lock().set(self.marks.durable()) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "durable mark not written"
                );
            }
        }
        synced
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
        let flush = core.unflushed_bytes > self.settings.state_buffer_bytes
            || core.unflushed_records > UNFLUSHED_RECORDS
            || core.unflushed_chunk_bytes > UNFLUSHED_CHUNK_BYTES;
        let spare = core.log.spares().len() == 0;
        let push = self.store.segments.syncer().unsynced_bytes() > PUSH_BYTES;
        // A deletion is a few short records: it would not bring a flush, and so no look at what is dead, for long.
        let look = core.totals.dead_bytes_unseen > DEAD_BYTES_MIN;
        if !(flush || spare || push || look) {
            return;
        }
        if look {
            core.totals.dead_bytes_unseen = 0;
        }
        let mut chores = self.chores.lock();
        let news = (flush && !chores.flush)
            || (spare && !chores.spare)
            || (push && !chores.push)
            || (look && !chores.look);
        chores.flush |= flush;
        chores.spare |= spare;
        chores.push |= push;
        chores.look |= look;
        drop(chores);
        if news {
            self.chores_changed.notify_one();
        }
    }

    pub(super) fn stop_chores(&self) {
        self.chores.lock().stop = true;
        self.chores_changed.notify_all();
    }

    fn keep_house(&self) {
        loop {
            let Chores {
                flush,
                spare,
                push,
                look,
                collect,
                stop,
            } = {
                let mut chores = self.chores.lock();
                while *chores == Chores::default() {
                    self.chores_changed.wait(&mut chores);
                }
                let stop = chores.stop; // stays
                std::mem::replace(
                    &mut *chores,
                    Chores {
                        stop,
                        ..Chores::default()
                    },
                )
            };
            if stop {
                return;
            }
            if push && let Err(error) = self.store.segments.syncer().sync() {
                self.fail(&error);
            }
            if spare {
                let spares = Arc::clone(self.core.read().log.spares());
                if let Err(error) = spares.prepare() {
                    // Rolling the log makes one itself, or says that there is no space.
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "no spare log file"
                    );
                }
            }
            if flush {
                match self.flush() {
                    Ok(()) => self.ask_to_collect(),
                    Err(error) => self.fail(&error),
                }
            }
            if look {
                self.ask_to_collect();
            }
            if collect && let Err(error) = self.collect_unless_read() {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "collector stopped early"
                );
            }
        }
    }

    fn ask_to_collect(&self) {
        let (total, live) = {
            let core = self.core.read();
            let segments = core.totals.segments.values();
            segments.fold((0, 0), |(total, live), segment| {
                (total + segment.end, live + segment.live_bytes)
            })
        };
        let dead = total - live;
        if dead > DEAD_BYTES_MIN.max(total / DEAD_SHARE) {
            self.chores.lock().collect = true;
            self.chores_changed.notify_one();
        }
    }

    /// Brings RocksDB's state on the disk up to the present and gives back log files that are not needed for replay any
    /// more.
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
        self.flush_alone(&one_at_a_time)
            .inspect_err(|error| self.fail(error))
    }

    fn flush_alone(&self, _one_at_a_time: &MutexGuard<'_, ()>) -> Result<(), FsError> {
        // Most of the syncing is done while others go on; the rest, under the lock, is little.
        self.sync_to(self.marks.head())?;
        let flushed = {
            let mut core = self.core.write();
            self.sync_to(core.log.head().lsn)?;
            self.write_segment_rows(&mut core)?;
            self.store.start_flush()?;
            core.unflushed_bytes = 0;
            core.unflushed_records = 0;
            core.unflushed_chunk_bytes = 0;
            self.flush_overdue.store(false, Ordering::Release);
            core.log.head().lsn
        };
        Self::wait_for_flush(&self.store)?;
        let mut core = self.core.write();
        core.flushed = core.flushed.max(flushed);
        let needed = core.flushed;
        core.log.trim(needed, self.settings.log_keep_bytes)
    }

    pub(super) fn wait_for_flush(store: &Store) -> Result<(), FsError> {
        // RocksDB's crate has no call that waits for a flush without starting another, which would be ahead of the log.
        let start = Instant::now();
        while !store.flush_is_done()? {
            if start.elapsed() > FLUSH_WAIT_MAX {
                return Err(FsError::Corrupt(format!(
                    "RocksDB has not written its state in {} s",
                    FLUSH_WAIT_MAX.as_secs()
                )));
            }
            thread::park_timeout(FLUSH_POLL);
        }
        Ok(())
    }

    fn write_segment_rows(&self, core: &mut Core) -> Result<(), FsError> {
        let mut batch = WriteBatch::default();
        let cf = self.store.local_cf(LocalTable::Segment);
        for id in &core.totals.segments_changed {
            match core.totals.segments.get(id) {
                Some(segment) => batch.put_cf(cf, segment_key(*id), segment.encode()),
                None => batch.delete_cf(cf, segment_key(*id)),
            }
        }
        self.store.write(batch)?;
        core.totals.segments_changed.clear();
        Ok(())
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
            let unflushed = volume.inner.core.read().unflushed_bytes;
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
        volume.inner.chores.lock().collect = true;
        volume.inner.chores_changed.notify_one();
        wait_until(|| !volume.inner.chores.lock().collect);
        for n in 0..40 {
            volume
                .write(ino, n * 8192, &[1; 8192], false, false)
                .unwrap();
        }
        let buffer = settings().state_buffer_bytes;
        wait_until(|| volume.inner.core.read().unflushed_bytes < buffer);
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

    fn wait_until(mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "it never happens"
            );
            thread::park_timeout(FLUSH_POLL);
        }
    }
}
