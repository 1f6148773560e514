//! How far the volume's log is safe, and who waits for it: fsync ends here.
//!
//! [`crate::volume`] moves the head as it appends. One thread a volume (the committer) syncs log and segments for all who
//! wait at that moment, side by side, and then answers them: any number of fsyncs share one sync.
//!
//! Invariant: an fsync that was answered with success covers every record that was appended before it was asked for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use hafs_protocol::Lsn;
use parking_lot::{Condvar, Mutex};

use crate::error::FsError;

/// Called once with the outcome of an fsync: from the committer's thread, or at once from the caller's where there is
/// nothing to wait for.
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
    closed: bool,
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

    /// Has `done` called once everything appended so far is durable.
    pub(crate) fn fsync(&self, done: FsyncDone) {
        let lsn = self.head();
        if lsn <= self.durable() {
            return done(Ok(()));
        }
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            drop(waiting);
            return done(Err(FsError::Failed));
        }
        waiting.fsyncs.push_back((lsn, done));
        drop(waiting);
        self.asked.notify_one();
    }

    /// Ends [`Self::run_committer`]; later fsyncs of what is not durable fail.
    pub(crate) fn close(&self) {
        self.waiting.lock().closed = true;
        self.asked.notify_all();
    }

    /// The committer: waits for fsyncs, has `sync` make everything appended so far durable, answers. Returns after
    /// [`Self::close`], with all who waited answered.
    pub(crate) fn run_committer(&self, mut sync: impl FnMut(Lsn) -> Result<(), FsError>) {
        loop {
            let batch = {
                let mut waiting = self.waiting.lock();
                while waiting.fsyncs.is_empty() && !waiting.closed {
                    self.asked.wait(&mut waiting);
                }
                if waiting.fsyncs.is_empty() {
                    return;
                }
                std::mem::take(&mut waiting.fsyncs)
            };
            let head = self.head();
            let synced = sync(head);
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
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn fsyncs_that_wait_share_one_sync_and_nothing_new_needs_none() {
        let marks = Arc::new(Watermarks::new(Lsn(0)));
        marks.set_head(Lsn(5));
        let (answer, answers) = sync_channel(16);
        for _ in 0..3 {
            let answer = answer.clone();
            marks.fsync(Box::new(move |result| answer.send(result.is_ok()).unwrap()));
        }
        let mut syncs = 0;
        marks.close();
        marks.run_committer(|head| {
            assert_eq!(head, Lsn(5));
            syncs += 1;
            Ok(())
        });
        assert_eq!(syncs, 1);
        assert_eq!(answers.iter().take(3).collect::<Vec<_>>(), vec![true; 3]);
        marks.fsync(Box::new(move |result| answer.send(result.is_ok()).unwrap()));
        assert!(answers.recv().unwrap(), "nothing was appended since");
    }

    #[test]
    fn a_failed_sync_fails_all_who_waited_and_moves_nothing() {
        let marks = Watermarks::new(Lsn(0));
        marks.set_head(Lsn(2));
        let (answer, answers) = sync_channel(1);
        marks.fsync(Box::new(move |result| answer.send(result.is_ok()).unwrap()));
        marks.close();
        marks.run_committer(|_| Err(FsError::NoSpace));
        assert!(!answers.recv().unwrap());
        assert_eq!(marks.durable(), Lsn(0));
    }
}
