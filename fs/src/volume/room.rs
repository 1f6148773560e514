//! Room: what a change that grows something waits for, and how long.
//!
//! On a full disk the collector may win space; on a full volume a file that was just deleted gives its own back once the
//! kernel has let go of it. So a change that finds no room waits a moment before it is refused. The kernel tells what it lets go
//! of through the threads that carry out changes for it: on these nothing may wait ([`at_once`]), or all of them would wait for
//! each other.

use std::cell::Cell;
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
/// No change waits longer than this for either.
pub(crate) const WAIT_MAX: Duration = ROOM_WAIT_MAX;
/// And no longer than this for the collector to catch up: then it goes on, since the disk still has room.
const CATCH_UP_WAIT_MAX: Duration = Duration::from_secs(1);

thread_local! {
    /// Not an argument: every way from a change to a wait would have to hand it on.
    static PATIENCE: Cell<Patience> = const { Cell::new(Patience::Any) };
}

/// Whether the thread may wait for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// As long as it takes.
    Any,
    /// It may not.
    None,
    /// It may not, and did not where it should have.
    Lost,
}

/// Carries out `change`, but does not wait for room. `None`: it has to, so it was refused; carry it out again where it may.
pub(crate) fn at_once<T>(
    change: impl FnOnce() -> Result<T, FsError>,
) -> Option<Result<T, FsError>> {
    let before = PATIENCE.replace(Patience::None);
    let result = change();
    let patience = PATIENCE.replace(before);
    match result {
        Err(FsError::NoSpace) if patience == Patience::Lost => None,
        result => Some(result),
    }
}

/// Carries out `change`, which answers by itself, without waiting for room.
pub(crate) fn without_waiting(change: impl FnOnce()) {
    let before = PATIENCE.replace(Patience::None);
    change();
    PATIENCE.set(before);
}

/// False if this thread may not wait now, which is then remembered.
fn may_wait() -> bool {
    match PATIENCE.get() {
        Patience::Any => true,
        Patience::None | Patience::Lost => {
            PATIENCE.set(Patience::Lost);
            false
        }
    }
}

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
        // A request larger than could ever fit does not make the disk a full one.
        if bytes > LONG_BYTES && bytes > self.winnable_bytes() {
            return Err(FsError::NoSpace);
        }
        self.pressed();
        if !may_wait() {
            return Err(FsError::NoSpace);
        }
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
        let core = self.core();
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
        let waits = is_reclaim_due(&self.core()) && may_wait();
        if waits {
            thread::park_timeout(RECLAIM_POLL);
        }
        waits
    }

    /// Before a new name: waits until a full volume has what was just deleted back, if anything was.
    pub(super) fn wait_for_names(&self, bytes: u64) {
        // Others may delete all the time without this volume getting any emptier.
        let deadline = Instant::now() + RECLAIM_WAIT_MAX;
        let is_full = || {
            let used = self.core().totals.applied.used_bytes;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Caller, FallocateMode, Ino};
    use crate::volume::VolumeSettings;
    use crate::volume::tests::{Fixture, file, settings};

    #[test]
    fn what_would_wait_for_a_deleted_file_is_told_apart_and_changes_nothing() {
        let mut fixture = Fixture::with(VolumeSettings {
            size_bytes: (1 << 20) + (16 << 10),
            ..settings()
        });
        let volume = fixture.open();
        let (big, small) = (file(&volume, b"big"), file(&volume, b"small"));
        volume.write(big, 0, &[1; 1 << 20], false, false).unwrap();
        let write = || at_once(|| volume.write(small, 0, &[2; 32 << 10], false, false));
        let mode = FallocateMode::Allocate { keep_size: false };
        let make = |n: u32| {
            let name = n.to_string();
            at_once(|| volume.mknod(Caller::ROOT, Ino::ROOT, name.as_bytes(), libc::S_IFREG, 0))
        };
        let mut names = 0..;
        let mut fill = || {
            let refused = names.find_map(|n| match make(n) {
                Some(Ok(_)) => None,
                other => Some(other),
            });
            refused.expect("names take space")
        };
        // Nothing was deleted, so there is nothing to wait for.
        assert!(matches!(write(), Some(Err(FsError::NoSpace))));
        let made = fill();
        assert!(matches!(made, Some(Err(FsError::NoSpace))), "{made:?}");
        volume.unlink(Ino::ROOT, b"big").unwrap();
        // Its name is gone at once.
        assert!(fill().is_none());
        let head = volume.status().head;
        assert!(write().is_none());
        assert!(make(u32::MAX).is_none());
        let long = at_once(|| volume.fallocate(Caller::ROOT, small, 0, 1 << 40, mode));
        assert!(matches!(long, Some(Err(FsError::NoSpace))));
        assert_eq!(volume.status().head, head);
        assert!(volume.reclaim(big).is_ok());
        assert!(matches!(write(), Some(Ok(_))));
        assert!(matches!(make(u32::MAX), Some(Ok(_))));
        assert_eq!(PATIENCE.get(), Patience::Any);
    }
}
