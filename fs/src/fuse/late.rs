//! Changes that wait for room, apart from the sessions' threads.
//!
//! A deleted file gives its space back once the kernel has told that it let go of it, by a FORGET that a session thread must
//! read. If all of these waited for that space, none would read it: who waits would be refused for nothing, and everybody else
//! held up. So a session thread carries a change out without waiting, and hands over here what has to wait.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::Instant;

use parking_lot::Mutex;

use crate::volume::Volume;
use crate::volume::room::{WAIT_MAX, without_waiting};

/// Threads that wait: what one waits for, others mostly wait for too.
pub(crate) const WAITERS: usize = 2;
/// Changes that wait, each with up to a MiB of data: more than the kernel writes back at a time, and a bound to the memory
/// that writers to a full volume can take.
const QUEUE_MAX: usize = 128;

/// Carries a change out, waiting where it has to, and answers it.
type Change = Box<dyn FnOnce(&Volume) + Send>;

/// A change, and since when it waits.
struct Waiting {
    since: Instant,
    change: Change,
}

/// The session threads' end.
#[derive(Clone)]
pub(crate) struct Late(SyncSender<Waiting>);

impl Late {
    /// Has `change` made by another thread; never blocks.
    ///
    /// # Errors
    /// Too many wait already: it is handed back.
    pub(super) fn hand_over(&self, change: Change) -> Result<(), Change> {
        let since = Instant::now();
        let sent = self.0.try_send(Waiting { since, change });
        sent.map_err(|refused| match refused {
            TrySendError::Full(waiting) | TrySendError::Disconnected(waiting) => waiting.change,
        })
    }
}

/// The end that waits; each of [`WAITERS`] threads runs a clone of it.
#[derive(Clone)]
pub(crate) struct Waiter {
    volume: Arc<Volume>,
    queue: Arc<Mutex<Receiver<Waiting>>>,
}

/// Makes both ends.
pub(crate) fn late(volume: Arc<Volume>) -> (Late, Waiter) {
    let (sender, queue) = mpsc::sync_channel(QUEUE_MAX);
    let queue = Arc::new(Mutex::new(queue));
    (Late(sender), Waiter { volume, queue })
}

impl Waiter {
    /// Makes changes until every [`Late`] is gone and all are answered.
    pub(crate) fn run(self) {
        loop {
            let next = self.queue.lock().recv();
            let Ok(Waiting { since, change }) = next else {
                return;
            };
            // Others came first. It has waited as long as it would have alone: now or not at all.
            if since.elapsed() >= WAIT_MAX {
                without_waiting(|| change(&self.volume));
            } else {
                change(&self.volume);
            }
        }
    }
}
