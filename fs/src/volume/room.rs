//! Room: what a change that grows something waits for, and how long.
//!
//! On a full disk the collector may win space; on a full volume a file that was just deleted gives its own back once the
//! kernel has let go of it. So who finds no room waits a moment before it is refused.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::collect::Round;
use super::{Core, Inner};
use crate::error::FsError;

/// More than any write needs, so that this much is always waited for.
const LONG_BYTES: u64 = 2 << 20;
/// A write waits no longer than this for the collector to win space on a full disk.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(2);
/// Nor longer than this for a file that was deleted: the kernel may still hold it open, for as long as it likes.
pub(super) const RECLAIM_WAIT_MAX: Duration = Duration::from_secs(1);
const RECLAIM_POLL: Duration = Duration::from_millis(2);
/// And no longer than this for the collector to catch up: then it goes on, since the disk still has room.
const CATCH_UP_WAIT_MAX: Duration = Duration::from_secs(1);

impl Inner {
    /// Refuses growth of so many bytes if it would reach into the disk's reserve and the collector cannot make room soon.
    /// The caller holds no lock.
    pub(super) fn need_space(&self, bytes: u64) -> Result<(), FsError> {
        match self.space.check(bytes, self.held_bytes()) {
            Err(FsError::NoSpace) => self.wait_for_room(bytes)?,
            checked => checked?,
        }
        // A new segment is not to take the reserve.
        let room = self.space.last_available();
        self.store
            .segments
            .limit_new(room.min(self.space.segment_bytes_max()));
        Ok(())
    }

    fn wait_for_room(&self, bytes: u64) -> Result<(), FsError> {
        // Who asks for more than there can ever be does not make the disk a full one.
        if bytes > LONG_BYTES && bytes > self.winnable_bytes() {
            return Err(FsError::NoSpace);
        }
        self.pressed();
        let deadline = Instant::now() + ROOM_WAIT_MAX;
        loop {
            let round = self.wait_for_pressed_round(deadline);
            match round {
                Round::Stopped => return Err(FsError::NoSpace),
                Round::Fruitless => {
                    if !self.wait_for_reclaim() || Instant::now() >= deadline {
                        return Err(FsError::NoSpace);
                    }
                }
                Round::Ended | Round::PutOff | Round::TooLong => {
                    match self.space.check_now(bytes, self.held_bytes()) {
                        Err(FsError::NoSpace) if round == Round::Ended => {}
                        checked => return checked,
                    }
                }
            }
        }
    }

    /// No more than this can be written once the collector has done all that it can: what is available, what is dead, what
    /// a file holds that was just deleted, and log files that are kept.
    fn winnable_bytes(&self) -> u64 {
        let core = self.core.read();
        let (dead, live) = core.totals.dead_and_live();
        let deleted = if is_reclaim_due(&core) { live } else { 0 };
        let log = core.log.disk_bytes();
        self.space
            .last_available()
            .saturating_add(dead + deleted + log)
    }

    /// What was just deleted gives its space back once the kernel has let go of it, a moment later. True: wait for that, and
    /// look again.
    pub(super) fn wait_for_reclaim(&self) -> bool {
        let is_due = is_reclaim_due(&self.core.read());
        if is_due {
            thread::park_timeout(RECLAIM_POLL);
        }
        is_due
    }

    /// Before a new name: waits until a full volume has what was just deleted back, if anything was.
    pub(super) fn wait_for_names(&self, bytes: u64) {
        // Others may delete all the time without this volume getting any emptier.
        let deadline = Instant::now() + RECLAIM_WAIT_MAX;
        let is_full = || {
            let used = self.core.read().totals.applied.used_bytes;
            used.saturating_add(bytes) > self.size_bytes()
        };
        while is_full() && Instant::now() < deadline && self.wait_for_reclaim() {}
    }

    /// Writers wait here while the collector is far behind. The caller holds no lock.
    pub(super) fn limit_dead(&self) {
        if self.collector_overdue.load(Ordering::Acquire) {
            self.wait_to_catch_up(Instant::now() + CATCH_UP_WAIT_MAX);
        }
    }
}

fn is_reclaim_due(core: &Core) -> bool {
    let last = core.last_orphan;
    !core.totals.orphans.is_empty() && last.is_some_and(|made| made.elapsed() < RECLAIM_WAIT_MAX)
}
