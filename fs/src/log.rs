//! How far the volume's log is safe, and who waits for it: fsync ends here.
//!
//! [`crate::volume`] moves the head as it appends. One thread at a time syncs log and segments for all who wait at that
//! moment, side by side, and then answers them: any number of fsyncs share one sync. Who comes while nobody syncs does it
//! himself; those who come meanwhile are the committer's, a thread of the volume.
//!
//! Invariant: an fsync that was answered with success covers every record that was appended before it was asked for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use hafs_protocol::Lsn;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::FsError;

/// Called once with the outcome of an fsync: from the committer's thread, or from the caller's.
pub type FsyncDone = Box<dyn FnOnce(Result<(), FsError>) + Send>;

/// Watermarks of a log: `durable <= head`. Neither ever falls.
#[derive(Debug)]
pub(crate) struct Watermarks {
    head: AtomicU64,
    durable: AtomicU64,
    waiting: Mutex<Waiting>,
    asked: Condvar,
}

#[derive(Default)]
struct Waiting {
    fsyncs: VecDeque<(Lsn, FsyncDone)>,
    /// Somebody syncs, and looks here again afterwards, or has the committer look.
    is_syncing: bool,
    closed: bool,
}

/// What a sync is made of.
pub(crate) trait Durable {
    /// Makes everything that was appended until now durable.
    fn sync(&self) -> Result<(), FsError>;
    /// Those who waited for a sync that went well have been answered: what need not be waited for.
    fn answered(&self);
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("fsyncs", &self.fsyncs.len())
            .finish_non_exhaustive()
    }
}

impl Watermarks {
    pub(crate) fn new(head: Lsn) -> Self {
        Self {
            head: AtomicU64::new(head.0),
            durable: AtomicU64::new(0),
            waiting: Mutex::default(),
            asked: Condvar::new(),
        }
    }

    /// The newest record that was appended and applied.
    pub(crate) fn head(&self) -> Lsn {
        Lsn(self.head.load(Ordering::Acquire))
    }

    pub(crate) fn set_head(&self, head: Lsn) {
        self.head.store(head.0, Ordering::Release);
    }

    /// The newest record that is known to be on the disk, with everything before it and every chunk they name.
    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    pub(crate) fn raise_durable(&self, lsn: Lsn) {
        self.durable.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// Has `done` called once everything appended so far is durable. Where nobody syncs, that is done here, with `files`: so
    /// no thread must be woken, and none be waited for until it runs.
    pub(crate) fn fsync(&self, done: FsyncDone, files: &impl Durable) {
        let lsn = self.head();
        if lsn <= self.durable() {
            return done(Ok(()));
        }
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            drop(waiting);
            return done(Err(FsError::Failed));
        }
        if waiting.is_syncing || !waiting.fsyncs.is_empty() {
            return waiting.fsyncs.push_back((lsn, done));
        }
        waiting.is_syncing = true;
        drop(waiting);
        self.sync_for([(lsn, done)], files);
        let mut waiting = self.waiting.lock();
        waiting.is_syncing = false;
        let committer_is_needed = waiting.closed || !waiting.fsyncs.is_empty();
        drop(waiting);
        if committer_is_needed {
            self.asked.notify_one();
        }
    }

    /// Ends [`Self::run_committer`]; later fsyncs of what is not durable fail.
    pub(crate) fn close(&self) {
        self.waiting.lock().closed = true;
        self.asked.notify_all();
    }

    /// The committer: waits for fsyncs that came while somebody synced, makes everything appended so far durable, answers.
    /// Returns after [`Self::close`], with all who waited answered.
    pub(crate) fn run_committer(&self, files: &impl Durable) {
        let mut waiting = self.waiting.lock();
        loop {
            while waiting.is_syncing || waiting.fsyncs.is_empty() && !waiting.closed {
                self.asked.wait(&mut waiting);
            }
            if waiting.fsyncs.is_empty() {
                return;
            }
            waiting.is_syncing = true;
            let batch = std::mem::take(&mut waiting.fsyncs);
            MutexGuard::unlocked(&mut waiting, || self.sync_for(batch, files));
            waiting.is_syncing = false;
        }
    }

    fn sync_for(&self, batch: impl IntoIterator<Item = (Lsn, FsyncDone)>, files: &impl Durable) {
        let head = self.head();
        let synced = files.sync();
        if synced.is_ok() {
            self.raise_durable(head);
        }
        for (lsn, done) in batch {
            // Invariant: only what is durable is acknowledged.
            assert!(synced.is_err() || lsn <= self.durable());
            done(if synced.is_ok() {
                Ok(())
            } else {
                Err(FsError::Failed)
            });
        }
        if synced.is_ok() {
            files.answered();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::sync::{Arc, Barrier};
    use std::thread;

    use super::*;

    /// Syncs that are counted, and go as `outcome` says.
    struct Counted {
        syncs: AtomicU64,
        outcome: fn() -> Result<(), FsError>,
        /// Met in each sync by whoever wants to be there meanwhile: when it begins, and before it ends.
        met: Option<[Barrier; 2]>,
    }

    impl Counted {
        fn new(outcome: fn() -> Result<(), FsError>) -> Self {
            Self {
                syncs: AtomicU64::new(0),
                outcome,
                met: None,
            }
        }
    }

    impl Durable for Counted {
        fn sync(&self) -> Result<(), FsError> {
            self.syncs.fetch_add(1, Ordering::Relaxed);
            for barrier in self.met.iter().flatten() {
                barrier.wait();
            }
            (self.outcome)()
        }

        fn answered(&self) {}
    }

    fn answers() -> (impl Fn() -> FsyncDone, Receiver<bool>) {
        let (answer, answers): (SyncSender<bool>, _) = sync_channel(16);
        let done = move || -> FsyncDone {
            let answer = answer.clone();
            Box::new(move |result| answer.send(result.is_ok()).unwrap())
        };
        (done, answers)
    }

    #[test]
    fn who_comes_alone_syncs_and_nothing_new_needs_none() {
        let marks = Watermarks::new(Lsn(0));
        marks.set_head(Lsn(5));
        let files = Counted::new(|| Ok(()));
        let (done, answers) = answers();
        for _ in 0..3 {
            marks.fsync(done(), &files);
            assert!(answers.try_recv().unwrap());
        }
        assert_eq!(files.syncs.load(Ordering::Relaxed), 1);
        marks.close();
        marks.fsync(done(), &files);
        assert!(answers.try_recv().unwrap(), "nothing was appended since");
        marks.set_head(Lsn(6));
        marks.fsync(done(), &files);
        assert!(!answers.try_recv().unwrap(), "nobody syncs any more");
        marks.run_committer(&files);
    }

    #[test]
    fn those_who_come_meanwhile_share_the_next_sync() {
        let marks = Arc::new(Watermarks::new(Lsn(0)));
        marks.set_head(Lsn(5));
        let mut files = Counted::new(|| Ok(()));
        files.met = Some([Barrier::new(2), Barrier::new(2)]);
        let files = Arc::new(files);
        let (done, answers) = answers();
        let spawn = |body: fn(&Watermarks, &Counted, FsyncDone)| {
            let (marks, files, done) = (Arc::clone(&marks), Arc::clone(&files), done());
            thread::spawn(move || body(&marks, &files, done))
        };
        let committer = spawn(|marks, files, _| marks.run_committer(files));
        let first = spawn(|marks, files, done| marks.fsync(done, files));
        let [begun, ending] = files.met.as_ref().unwrap();
        begun.wait();
        marks.set_head(Lsn(9)); // not in the sync that runs
        for _ in 0..3 {
            marks.fsync(done(), &*files);
        }
        assert!(answers.try_recv().is_err(), "nothing is durable yet");
        ending.wait();
        begun.wait();
        assert!(answers.recv().unwrap());
        assert!(answers.try_recv().is_err(), "one was answered");
        assert_eq!(marks.durable(), Lsn(5));
        marks.close();
        ending.wait();
        for _ in 0..3 {
            assert!(answers.recv().unwrap());
        }
        first.join().unwrap();
        committer.join().unwrap();
        assert_eq!(files.syncs.load(Ordering::Relaxed), 2);
        assert_eq!(marks.durable(), Lsn(9));
    }

    #[test]
    fn a_failed_sync_fails_all_who_waited_and_moves_nothing() {
        let marks = Watermarks::new(Lsn(0));
        marks.set_head(Lsn(2));
        let files = Counted::new(|| Err(FsError::NoSpace));
        let (done, answers) = answers();
        marks.fsync(done(), &files);
        assert!(!answers.try_recv().unwrap());
        assert_eq!(marks.durable(), Lsn(0));
        marks.waiting.lock().fsyncs.push_back((Lsn(2), done()));
        marks.close();
        marks.run_committer(&files);
        assert!(!answers.try_recv().unwrap());
        assert_eq!(marks.durable(), Lsn(0));
    }
}
