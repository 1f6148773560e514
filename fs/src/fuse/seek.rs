//! lseek(2) to data and to holes, where the newest bytes of a file may still lie in the kernel's cache.
//!
//! The kernel asks without writing dirty pages back, so the volume would call a hole what was just written, and a copy of
//! an open file would lose it. So before a hole is believed in, the kernel is told to drop its pages there: it writes the
//! dirty ones back first and waits for these WRITEs, which session threads answer. That is why the question is put from
//! threads of our own, never from a session's. The caller holds the file's lock meanwhile, so nothing but a store through
//! a mapping changes the file, and such a store has no order with lseek anyway.
//!
//! Invariant: what the volume holds is data in the kernel's eyes, too; only its holes may be filled in the cache. So only
//! the hole that the answer rests on has to be written back.
//!
//! Kernels before 6.16 end a page's writeback before its WRITE is answered; there [`can_ask`] says no, and the kernel takes
//! all of a file as data, which is always right.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};

use fuser::{Errno, INodeNo, ReplyLseek, Version};
use parking_lot::Mutex;

use super::Answers;
use crate::error::FsError;
use crate::metrics::Timed;
use crate::mount::device;
use crate::types::{Ino, SeekTo};
use crate::volume::Volume;

const OP: &str = "lseek";
/// The protocol of Linux 6.16.
const VERSION_MIN: Version = Version(7, 44);
/// Threads that ask: one waits for the write-back of a large file, others go on.
pub(crate) const SEEKERS: usize = 4;
/// Questions that wait: each is a thread of an application that waits for its answer, so this is more than there are.
const QUEUE_MAX: usize = 1 << 16;

/// True if this kernel's answer to a dropped page is to be believed in.
pub(super) fn can_ask(kernel: Version) -> bool {
    (kernel.0, kernel.1) >= (VERSION_MIN.0, VERSION_MIN.1)
}

/// An lseek that waits for its answer.
struct Question {
    ino: Ino,
    offset: u64,
    to: SeekTo,
    reply: ReplyLseek,
    /// Until it is answered.
    timed: Timed,
}

/// The session threads' end.
#[derive(Clone)]
pub(crate) struct Seeks(SyncSender<Question>);

impl Seeks {
    /// Answers `reply` from another thread; never blocks.
    pub(super) fn ask(&self, ino: Ino, offset: u64, to: SeekTo, reply: ReplyLseek, timed: Timed) {
        let question = Question {
            ino,
            offset,
            to,
            reply,
            timed,
        };
        match self.0.try_send(question) {
            Ok(()) => {}
            Err(TrySendError::Full(question)) => question.reply.error(Errno::EAGAIN),
            Err(TrySendError::Disconnected(question)) => question.reply.error(Errno::EIO),
        }
    }
}

/// The end that answers; each of [`SEEKERS`] threads runs a clone of it.
#[derive(Clone)]
pub(crate) struct Seeker {
    volume: Arc<Volume>,
    answers: Answers,
    device: Arc<OwnedFd>,
    queue: Arc<Mutex<Receiver<Question>>>,
}

/// Makes both ends. `device` is any descriptor of the connection.
pub(crate) fn seeker(volume: Arc<Volume>, name: Arc<str>, device: Arc<OwnedFd>) -> (Seeks, Seeker) {
    let (sender, queue) = mpsc::sync_channel(QUEUE_MAX);
    let queue = Arc::new(Mutex::new(queue));
    let seeker = Seeker {
        answers: Answers {
            metrics: volume.counters(),
            volume: name,
        },
        volume,
        device,
        queue,
    };
    (Seeks(sender), seeker)
}

impl Seeker {
    /// Answers until every [`Seeks`] is gone.
    pub(crate) fn run(self) {
        loop {
            let next = self.queue.lock().recv();
            let Ok(question) = next else { return };
            let Question {
                ino,
                offset,
                to,
                reply,
                timed: _until_answered,
            } = question;
            let found = match to {
                SeekTo::Data => self.data(ino, offset),
                SeekTo::Hole => self.hole(ino, offset),
            };
            answer(&self.answers, ino, found, reply);
        }
    }

    fn data(&self, ino: Ino, offset: u64) -> Result<u64, FsError> {
        let next = self.next_data(ino, offset)?;
        if next != Some(offset) {
            self.write_back(ino, offset, next)?;
        }
        self.volume.seek(ino, offset, SeekTo::Data)
    }

    fn hole(&self, ino: Ino, offset: u64) -> Result<u64, FsError> {
        // Holes up to here are written back: what is still one is one.
        let mut known_to = None;
        // What was data stays data, so the search goes on where it was.
        let mut from = offset;
        loop {
            let found = match self.volume.seek(ino, from, SeekTo::Hole) {
                Err(FsError::NoSuchOffset) if from > offset => Ok(from), // the end
                found => found,
            };
            let hole = match found {
                Err(FsError::NoSuchOffset) => from, // the end may lie further in the cache
                Err(error) => return Err(error),
                Ok(hole) => hole,
            };
            if known_to.is_some_and(|to| hole < to) {
                return found;
            }
            let next = self.next_data(ino, hole)?;
            self.write_back(ino, hole, next)?;
            known_to = Some(next.unwrap_or(u64::MAX));
            from = hole;
        }
    }

    /// Where the volume has data next; `None`: nowhere.
    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>, FsError> {
        match self.volume.seek(ino, offset, SeekTo::Data) {
            Ok(data) => Ok(Some(data)),
            Err(FsError::NoSuchOffset) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has the kernel write back what it holds of `from..to`, or of all from `from`.
    fn write_back(&self, ino: Ino, from: u64, to: Option<u64>) -> Result<(), FsError> {
        let len = to.map(|to| to - from);
        device::drop_pages(self.device.as_fd(), ino, from, len)
    }
}

pub(super) fn answer(answers: &Answers, ino: Ino, found: Result<u64, FsError>, reply: ReplyLseek) {
    let found = found.and_then(|found| i64::try_from(found).map_err(|_| FsError::TooBig));
    match found {
        Ok(found) => reply.offset(found),
        Err(error) => reply.error(answers.refuse(OP, INodeNo(ino.0), &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernels_that_wait_for_the_write_are_asked() {
        assert!(can_ask(Version(7, 44)) && can_ask(Version(7, 45)) && can_ask(Version(8, 0)));
        assert!(!can_ask(Version(7, 43)) && !can_ask(Version(7, 31)));
    }
}
