//! Gives the space of unlinked files back once the kernel has let go of them.
//!
//! The kernel tells with FORGET that it dropped an inode from its cache. Counting these against lookups is not possible
//! (they get lost with a daemon), so a FORGET of an orphan only starts a question: does the kernel still hold this inode?
//! If it does, a later FORGET asks again. Session threads only ever put a number in a queue, since the answer can wait for
//! an eviction that itself waits for requests that session threads serve.
//!
//! The kernel lets go of an inode once. So what a full disk keeps from being reclaimed is tried again after some time.
//!
//! Invariant: an orphan is reclaimed only after the kernel said, here, that it has no such inode, or after the connection
//! is gone. An orphan has no name, and [`fuse`](crate::fuse) refuses it to handles, so the kernel cannot get it back.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::FsError;
use crate::mount::device;
use crate::types::Ino;
use crate::volume::{ORPHANS_AT_ONCE, Volume, report_unreclaimed};

/// Orphans waiting for their question: 512 KiB of numbers. `rm -rf` of more files than this, faster than they are
/// reclaimed, leaves some for the sweep.
const QUEUE_MAX: usize = 1 << 16;
/// Who removes files removes many: orphans gather so long after the first, and the session that notes one need not wake us for
/// each. Short beside what a change waits for their space.
const GATHER: Duration = Duration::from_millis(10);
/// After so long, what found a full disk is tried again: soon enough for who waits for the space, and seldom enough for a
/// disk that stays full.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The session threads' end: which orphans to ask for.
#[derive(Clone, Debug)]
pub(crate) struct Forgets {
    queue: SyncSender<Ino>,
    sweep_needed: Arc<AtomicBool>,
}

impl Forgets {
    /// Takes note of `ino`; never blocks.
    pub(super) fn note(&self, ino: Ino) {
        let Err(TrySendError::Full(ino)) = self.queue.try_send(ino) else {
            return;
        };
        // The flag first, then a second try: either the queue is still full, so that the reaper has yet to empty it and
        // then sees the flag, or this entry wakes it.
        self.sweep_needed.store(true, Ordering::SeqCst);
        let _ = self.queue.try_send(ino);
    }
}

/// The end that asks the kernel and reclaims; runs on its own thread.
#[derive(Debug)]
pub(crate) struct Reaper {
    volume: Arc<Volume>,
    device: Arc<OwnedFd>,
    queue: Receiver<Ino>,
    sweep_needed: Arc<AtomicBool>,
    /// When all orphans are asked for again, since one was not reclaimed.
    retry_at: Option<Instant>,
}

/// Makes both ends. `device` is any descriptor of the connection.
pub(crate) fn reaper(volume: Arc<Volume>, device: Arc<OwnedFd>) -> (Forgets, Reaper) {
    let (sender, queue) = mpsc::sync_channel(QUEUE_MAX);
    let sweep_needed = Arc::new(AtomicBool::new(false));
    let forgets = Forgets {
        queue: sender,
        sweep_needed: Arc::clone(&sweep_needed),
    };
    // What is there before the kernel has seen anything was left by who reclaimed the orphans of an earlier mount.
    let retry_at = (!volume.orphans().is_empty()).then(|| Instant::now() + RETRY_AFTER);
    let reaper = Reaper {
        volume,
        device,
        queue,
        sweep_needed,
        retry_at,
    };
    (forgets, reaper)
}

impl Reaper {
    /// Reclaims orphans until every [`Forgets`] is gone, that is, until no session is left.
    pub(crate) fn run(mut self) {
        while let Some(ino) = self.next() {
            let mut inos = vec![ino];
            while inos.len() < ORPHANS_AT_ONCE
                && let Ok(ino) = self.queue.try_recv()
            {
                inos.push(ino);
            }
            self.reap(inos);
        }
    }

    /// The next orphan to ask for, after a sweep if one is due; `None`: no session is left.
    fn next(&mut self) -> Option<Ino> {
        loop {
            match self.queue.try_recv() {
                Ok(ino) => return Some(ino),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            let is_due = self.retry_at.is_some_and(|at| at <= Instant::now());
            if self.sweep_needed.swap(false, Ordering::SeqCst) || is_due {
                self.retry_at = None;
                self.sweep();
            }
            let received = match self.retry_at {
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    self.queue.recv_timeout(left)
                }
                None => self.queue.recv().map_err(RecvTimeoutError::from),
            };
            match received {
                Ok(ino) => {
                    thread::park_timeout(GATHER);
                    return Some(ino);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn sweep(&mut self) {
        for inos in self.volume.orphans().chunks(ORPHANS_AT_ONCE) {
            self.reap(inos.to_vec());
            if self.retry_at.is_some() {
                return; // it is the same for the rest
            }
        }
    }

    fn reap(&mut self, mut inos: Vec<Ino>) {
        inos.retain(
            |&ino| match device::kernel_holds(self.device.as_fd(), ino) {
                Ok(true) => {
                    tracing::trace!(%ino, "orphan still held by the kernel");
                    false
                }
                Ok(false) => true,
                // Nothing is lost: the orphan stays on its durable list, and the next fresh mount reclaims it.
                Err(error) => {
                    report_unreclaimed(&error, ino);
                    false
                }
            },
        );
        let retry_at = &mut self.retry_at;
        self.volume.reclaim_all(&inos, |error, ino| {
            if matches!(error, FsError::NoSpace) {
                *retry_at = Some(Instant::now() + RETRY_AFTER);
            }
            report_unreclaimed(error, ino);
        });
    }
}
