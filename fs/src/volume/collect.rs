//! The collector: gives back the space of chunks that nothing names any more.
//!
//! A segment whose live share is low is emptied: its live chunks are appended elsewhere, and once the state that says so
//! is on the disk, the file is deleted. All of this is local: it makes no record, and changes no row of the digest.
//!
//! It has a thread of its own, which sleeps until somebody asks, and works as hard as was asked ([`Effort`]): bounded in rate
//! while there is no hurry, as fast as it can once dead bytes outgrow what lives or the disk is at its reserve. Who wants
//! to write waits for it then, for a bounded time: see `volume/room.rs`.
//!
//! Invariant: a segment is deleted only after a flush of state that names nothing in it. So neither recovery, which starts
//! from flushed state, nor a record that recovery replays, ever misses it.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hafs_protocol::{Lsn, PieceId};
use parking_lot::RwLockWriteGuard;

use super::{Core, Inner, Volume};
use crate::apply::{SegmentDeltas, Totals, place_piece};
use crate::error::{FsError, with_causes};
use crate::store::key::{
    LocalTable, Place, SegmentId, SegmentPlace, SegmentUse, key_piece, piece_key, segment_index_key,
};
use crate::store::memtable::Batch;
use crate::store::segment::SEGMENT_HEADER_BYTES;

/// Segments emptied in one round, and the bytes copied in it: bounds the space that copies take before the originals are
/// deleted, and how long a round takes that somebody waits for.
const SEGMENTS_A_ROUND: usize = 16;
const COPIED_BYTES_A_ROUND: u64 = 128 << 20;
/// Dead bytes that are worth a round at all, and as a share (one in so many) of what segments store.
const DEAD_BYTES_MIN: u64 = 64 << 20;
const DEAD_SHARE: u64 = 4;
/// The same when nothing else happens.
const IDLE_DEAD_BYTES_MIN: u64 = 8 << 20;
/// Writers wait once more than three quarters of what lives is dead, and this: what takes the most is a file that is
/// overwritten all the time, and it takes less than two and a half times its length.
const DEAD_BYTES_EXCESS_MAX: u64 = 64 << 20;
/// How hard the collector works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Effort {
    /// Nothing else happens: also what is worth little is done, at the bounded rate, until something happens.
    Idle,
    /// Enough is dead. At the bounded rate.
    Steady,
    /// Dead bytes outgrow what lives. No bound.
    CatchUp,
    /// The disk is at its reserve: whatever wins space. No bound.
    Pressed,
}

impl Effort {
    /// A segment is emptied when less than this share of what it stores is alive, per mille. Lower is cheaper: at 60 % each byte that
    /// is won costs one and a half copied ones, at 95 % nineteen.
    const fn live_share_max(self) -> u64 {
        match self {
            Self::Steady | Self::CatchUp => 600,
            Self::Idle => 950,
            Self::Pressed => 995,
        }
    }

    const fn is_bounded(self) -> bool {
        match self {
            Self::Idle | Self::Steady => true,
            Self::CatchUp | Self::Pressed => false,
        }
    }

    /// What `totals` call for, if anything. Whether the disk presses is not known here.
    pub(super) fn due(totals: &Totals) -> Option<Self> {
        let (dead, live) = totals.dead_and_live();
        if dead > DEAD_BYTES_MIN.max(live / 2) {
            Some(Self::CatchUp)
        } else if dead > DEAD_BYTES_MIN.max((dead + live) / DEAD_SHARE) {
            Some(Self::Steady)
        } else {
            None
        }
    }
}

/// What the collector's thread is asked for, and what became of it. A leaf among the locks.
#[derive(Debug, Default)]
pub(super) struct Collector {
    asked: Option<Effort>,
    /// [`Effort::Idle`] is asked for until it wins nothing, or something happens.
    is_idle: bool,
    /// Rounds that have begun, and ended. One that begins after a wish takes account of all that died before.
    begun: u64,
    ended: u64,
    /// The last round was put off, since somebody reads many segments.
    put_off: bool,
    /// A [`Effort::Pressed`] round that won nothing had seen this many bytes die. Until more do, another wins nothing.
    fruitless_at: Option<u64>,
    /// Segments with a chunk that cannot be read: emptying them wins nothing, and must not keep others from their turn.
    unreadable: HashSet<SegmentId>,
    stop: bool,
}

/// What became of a round that somebody waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// It has ended.
    Ended,
    /// It was not made, since somebody reads many segments.
    PutOff,
    /// It would win nothing.
    Fruitless,
    /// It goes on.
    TooLong,
    /// The volume is being closed.
    Stopped,
}

impl Volume {
    /// One round of the collector, now; returns the bytes that were given back to the disk. The volume calls it by itself
    /// when enough is dead.
    pub fn collect(&self) -> Result<u64, FsError> {
        let no_readers_of_many = self.inner.collecting.write();
        self.inner
            .collect_round(&no_readers_of_many, Effort::CatchUp)
    }
}

impl Inner {
    /// The collector's thread: rounds as they are asked for, until [`Self::stop_collector`].
    pub(super) fn run_collector(&self) {
        loop {
            let effort = {
                let mut collector = self.collector.lock();
                loop {
                    if collector.stop {
                        return;
                    }
                    let idle = collector.is_idle.then_some(Effort::Idle);
                    if let Some(effort) = collector.asked.take().or(idle) {
                        collector.begun += 1;
                        break effort;
                    }
                    self.collector_asked.wait(&mut collector);
                }
            };
            // What dies from here on may be missed by the round.
            let died = self.core().totals.died_bytes;
            let won = self.collect_unless_read(effort);
            tracing::debug!(?effort, ?won, "a round of the collector has ended");
            if let Err(error) = &won {
                self.collector_failed(error);
            }
            self.round_ended(effort, died, won.ok());
        }
    }

    /// `won`: bytes given back, `None` if that could not be told. Looks whether there is more to do.
    fn round_ended(&self, effort: Effort, died: u64, won: Option<Option<u64>>) {
        let (due, overdue) = {
            let core = self.core();
            (Effort::due(&core.totals), is_overdue(&core.totals))
        };
        self.collector_overdue.store(overdue, Ordering::Release);
        let mut collector = self.collector.lock();
        collector.put_off = won == Some(None);
        let won = won.flatten().unwrap_or(0);
        if effort == Effort::Pressed {
            collector.fruitless_at = (won == 0 && !collector.put_off).then_some(died);
        }
        collector.ended = collector.begun;
        // A round that won nothing would win nothing again; the next death asks for another.
        if won > 0 {
            collector.asked = collector.asked.max(due);
        } else if effort == Effort::Idle {
            collector.is_idle = false;
        }
        drop(collector);
        self.collector_done.notify_all();
    }

    fn collector_failed(&self, error: &FsError) {
        // What fails the volume is told by that.
        let is_expected = matches!(error, FsError::NoSpace | FsError::Failed)
            || self.failed.load(Ordering::Acquire);
        let error = with_causes(error);
        if is_expected {
            tracing::debug!(error, "collector stopped early");
        } else {
            tracing::warn!(error, "collector stopped early");
        }
    }

    pub(super) fn stop_collector(&self) {
        self.collector.lock().stop = true;
        self.collector_asked.notify_all();
        self.collector_done.notify_all();
    }

    /// What won nothing may win something now: the disk has changed.
    pub(super) fn collector_may_try_again(&self) {
        self.collector.lock().fruitless_at = None;
    }

    pub(super) fn ask_collector(&self, effort: Effort) {
        let mut collector = self.collector.lock();
        if collector.asked < Some(effort) {
            collector.asked = Some(effort);
            self.collector_asked.notify_all();
        }
    }

    /// Brings the books of segments that were sealed up to what they hold: a chunk whose record was refused, and others
    /// behind which nothing was named, are dead space as well. Every segment but the active ones has been noted after this.
    pub(super) fn note_sealed(&self, totals: &mut Totals) {
        for (id, end) in self.store.segments.take_sealed() {
            let segment = totals.segments.entry(id).or_default();
            if segment.end < end {
                totals.died_bytes += end - segment.end;
                segment.end = end;
                totals.segments_changed.insert(id);
            }
        }
    }

    /// Asks for a round if `totals` call for one, and says so to writers if they have to wait for it.
    pub(super) fn look_at_the_dead(&self, totals: &Totals) {
        if let Some(effort) = Effort::due(totals) {
            self.ask_collector(effort);
        }
        if is_overdue(totals) {
            self.collector_overdue.store(true, Ordering::Release);
        }
    }

    /// Has the collector finish, at its own pace, what is worth little. Called when nothing else happens.
    pub(super) fn collect_while_idle(&self) {
        let active = self.store.segments.active_ids();
        let core = self.core();
        let winnable: u64 = core
            .totals
            .segments
            .iter()
            .filter(|(id, segment)| {
                !active.contains(id) && is_worth_emptying(segment, Effort::Idle)
            })
            .map(|(_, segment)| dead_bytes(segment))
            .sum();
        drop(core);
        if winnable > IDLE_DEAD_BYTES_MIN {
            self.collector.lock().is_idle = true;
            self.collector_asked.notify_all();
        }
    }

    /// Asks for a round at [`Effort::Pressed`] that takes account of all that died before, and waits for its end.
    pub(super) fn wait_for_pressed_round(&self, deadline: Instant) -> Round {
        let died = self.core().totals.died_bytes;
        let mut collector = self.collector.lock();
        if collector.stop {
            return Round::Stopped;
        }
        if collector.fruitless_at == Some(died) {
            return Round::Fruitless;
        }
        let round = collector.begun + 1;
        if collector.asked < Some(Effort::Pressed) {
            collector.asked = Some(Effort::Pressed);
            self.collector_asked.notify_all();
        }
        while collector.ended < round && !collector.stop {
            let waited = self.collector_done.wait_until(&mut collector, deadline);
            if waited.timed_out() {
                return Round::TooLong;
            }
        }
        if collector.put_off {
            Round::PutOff
        } else {
            Round::Ended
        }
    }

    /// Waits until the collector has caught up, or has ended a round without that: the disk has room.
    pub(super) fn wait_to_catch_up(&self, deadline: Instant) {
        self.ask_collector(Effort::CatchUp);
        let mut collector = self.collector.lock();
        // Also if the round wins nothing, or cannot be made now.
        let round = collector.ended + 1;
        while self.collector_overdue.load(Ordering::Acquire)
            && collector.ended < round
            && !(collector.stop || collector.put_off)
        {
            let waited = self.collector_done.wait_until(&mut collector, deadline);
            if waited.timed_out() {
                return;
            }
        }
    }

    /// A round, but not now if somebody reads many segments (`None`): that may take hours, and writers would wait.
    fn collect_unless_read(&self, effort: Effort) -> Result<Option<u64>, FsError> {
        match self.collecting.try_write() {
            Some(no_readers_of_many) => self.collect_round(&no_readers_of_many, effort).map(Some),
            None => Ok(None),
        }
    }

    fn collect_round(
        &self,
        _no_readers: &RwLockWriteGuard<'_, ()>,
        effort: Effort,
    ) -> Result<u64, FsError> {
        self.metrics.collector_round();
        if effort >= Effort::CatchUp {
            // Both active ones may be dead for the most part, and writers would wait for round after round that wins nothing.
            self.seal_if_worth_emptying(effort)?;
        }
        if effort == Effort::Pressed {
            // What died as a whole costs nothing to win, and makes room for copies.
            self.flush()?;
            let freed = self.delete_dead_segments()?;
            if freed > 0 {
                return Ok(freed);
            }
        }
        let mut worth = self.segments_to_empty(effort, self.room_for_copies()?);
        if worth.is_empty() && effort == Effort::Pressed {
            self.ballast.give_up();
            worth = self.segments_to_empty(effort, self.room_for_copies()?);
        }
        let mut pace = Pace::new(self, effort);
        let emptied = worth
            .into_iter()
            .try_for_each(|segment| self.empty_segment(segment, &mut pace));
        // Also if that failed: on a full disk there is no room for copies, and deleting is what makes room. The flush also
        // makes the deaths durable that records since the last flush brought.
        self.flush()?;
        let freed = self.delete_dead_segments()?;
        if freed > 0 {
            return Ok(freed);
        }
        emptied.map(|()| freed)
    }

    /// Segments that are appended to are not collected. One that should be is not appended to any more.
    pub(super) fn seal_if_worth_emptying(&self, effort: Effort) -> Result<(), FsError> {
        for active in self.store.segments.active_ids() {
            // No chunk is on its way into it, whose record would make it alive.
            let _no_chunk_without_record = self.appending.write();
            let segment = self.core().totals.segments.get(&active).copied();
            if segment.is_some_and(|segment| is_worth_emptying(&segment, effort)) {
                self.store.segments.seal(active)?;
            }
        }
        Ok(())
    }

    /// Those that cost the least, as far as `room` bytes of copies go: one that is emptied in part wins nothing.
    fn segments_to_empty(&self, effort: Effort, room: u64) -> Vec<SegmentId> {
        let active = self.store.segments.active_ids();
        let unreadable = self.collector.lock().unreadable.clone();
        let core = self.core();
        let mut worth: Vec<(u64, SegmentId)> = core
            .totals
            .segments
            .iter()
            .filter(|(id, _)| !active.contains(id) && !unreadable.contains(id))
            .filter(|(_, segment)| segment.live_bytes > 0 && is_worth_emptying(segment, effort))
            .map(|(id, segment)| (segment.live_bytes, *id))
            .collect();
        worth.sort_unstable();
        worth.truncate(SEGMENTS_A_ROUND);
        let mut copied = 0;
        let fits = worth.into_iter().take_while(|(live, _)| {
            // The first always, if there is room: it wins space.
            let fits = copied == 0 || copied + live <= COPIED_BYTES_A_ROUND;
            copied += live;
            fits && copied <= room
        });
        fits.map(|(_, id)| id).collect()
    }

    fn empty_segment(&self, segment: SegmentId, pace: &mut Pace<'_>) -> Result<(), FsError> {
        let from = segment_index_key(segment, 0);
        let to = segment_index_key(SegmentId(segment.0 + 1), 0);
        for row in self.store.scan_local(LocalTable::SegmentIndex, &from, &to) {
            let (_, key) = row?;
            self.check_open()?;
            let copied = self.move_chunk(segment, key_piece(&key)?)?;
            if !pace.goes_on(copied) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Returns how many bytes were copied.
    fn move_chunk(&self, segment: SegmentId, id: PieceId) -> Result<u64, FsError> {
        let Some(old) = self.chunk_in(segment, id)? else {
            return Ok(0); // died since the scan
        };
        let bytes = match self.store.segments.read_chunk(&old, None) {
            Ok(bytes) => bytes,
            Err(error @ (FsError::Damaged { .. } | FsError::Unreadable { .. })) => {
                // It stays, and its segment with it: another copy may mend it.
                self.collector.lock().unreadable.insert(segment);
                let error = with_causes(&error);
                tracing::error!(
                    error,
                    "the collector left a chunk that cannot be read where it is"
                );
                return Ok(0);
            }
            Err(error) => return Err(error),
        };
        self.limit_unsynced_chunks()?;
        let new = self
            .store
            .segments
            .append(old.ino, old.file_offset, &bytes)?;
        let mut core = self.core_mut();
        self.check_open()?;
        if self.chunk_in(segment, id)?.as_ref() != Some(&old) {
            // It died meanwhile.
            let copy = (new.chunk(), new.stored_bytes());
            self.store.segments.take_back([copy].into_iter());
            return Ok(new.stored_bytes());
        }
        let mut batch = Batch::default();
        let at = segment_index_key(old.segment, old.offset);
        batch.delete(LocalTable::SegmentIndex, &at);
        place_piece(&mut batch, id, &Place::Segment(new.clone()));
        self.store.write(batch);
        let mut uses = SegmentDeltas::default();
        uses.remove(&old);
        uses.add(&new);
        let Core { totals, .. } = &mut *core;
        uses.merge_into(totals);
        self.metrics.collector_moved(new.stored_bytes());
        Ok(new.stored_bytes())
    }

    fn chunk_in(&self, segment: SegmentId, id: PieceId) -> Result<Option<SegmentPlace>, FsError> {
        let Some(raw) = self.store.local(LocalTable::Piece, &piece_key(id))? else {
            return Ok(None);
        };
        match Place::decode(&raw)? {
            Place::Segment(place) if place.segment == segment => Ok(Some(place)),
            Place::Segment(_) | Place::Inline(_) => Ok(None),
        }
    }

    /// Deletes segments that are dead in the flushed state.
    fn delete_dead_segments(&self) -> Result<u64, FsError> {
        // A flush that has begun but not ended would make a segment look dead on disk that is not yet.
        let _no_flush = self.flushing.lock();
        let active = self.store.segments.active_ids();
        let mut freed = 0;
        loop {
            // One at a time: the locks are held for an unlink, not for a hundred.
            let _no_chunk_without_record = self.appending.write();
            let mut core = self.core_mut();
            self.note_sealed(&mut core.totals);
            let dead = core.totals.segments.iter().find(|(id, segment)| {
                segment.live_bytes == 0
                    && !active.contains(id)
                    && !core.totals.segments_changed.contains(id)
            });
            let Some((id, segment)) = dead.map(|(id, segment)| (*id, *segment)) else {
                return Ok(freed);
            };
            self.store.segments.remove(id)?;
            core.totals.segments.remove(&id);
            core.totals.segments_changed.insert(id);
            freed += segment.end;
            self.metrics.collector_freed(segment.end);
        }
    }
}

fn dead_bytes(segment: &SegmentUse) -> u64 {
    segment
        .end
        .saturating_sub(SEGMENT_HEADER_BYTES + segment.live_bytes)
}

fn is_worth_emptying(segment: &SegmentUse, effort: Effort) -> bool {
    let stored = segment.end.saturating_sub(SEGMENT_HEADER_BYTES);
    segment.live_bytes * 1000 < stored * effort.live_share_max()
}

fn is_overdue(totals: &Totals) -> bool {
    let (dead, live) = totals.dead_and_live();
    dead > live / 4 * 3 + DEAD_BYTES_EXCESS_MAX
}

/// Keeps a round to its rate, and ends it when it should not go on.
struct Pace<'a> {
    inner: &'a Inner,
    effort: Effort,
    started: Instant,
    copied: u64,
    /// The newest record when the round began.
    head: Lsn,
}

impl<'a> Pace<'a> {
    fn new(inner: &'a Inner, effort: Effort) -> Self {
        Self {
            inner,
            effort,
            started: Instant::now(),
            copied: 0,
            head: inner.marks.head(),
        }
    }

    /// Call after `bytes` were copied: waits as long as the rate asks for. False: leave it at that.
    fn goes_on(&mut self, bytes: u64) -> bool {
        self.copied += bytes;
        if !self.effort.is_bounded() {
            return true;
        }
        let rate = self.inner.settings.collect_bytes_per_second.max(1);
        let due = Duration::from_nanos(
            u64::try_from(u128::from(self.copied) * 1_000_000_000 / u128::from(rate))
                .unwrap_or(u64::MAX),
        );
        let due = self.started + due;
        let mut collector = self.inner.collector.lock();
        loop {
            if collector.stop || collector.asked > Some(self.effort) {
                return false; // the next round begins where this one ends
            }
            if Instant::now() >= due {
                break;
            }
            let _ = self.inner.collector_asked.wait_until(&mut collector, due);
        }
        let goes_on = self.effort != Effort::Idle || self.inner.marks.head() == self.head;
        if !goes_on {
            collector.is_idle = false;
        }
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use crate::types::{Caller, Ino, SetAttr};
    use crate::volume::tests::{Fixture, file};
    use crate::volume::{Profile, VolumeSettings};

    #[test]
    fn active_segments_that_are_dead_for_the_most_part_keep_no_writer_waiting() {
        // As users get it: two active segments hold more dead bytes than writers may leave behind.
        let mut fixture = Fixture::with(VolumeSettings::new(1 << 30, Profile::Auto));
        let volume = fixture.open();
        let [long, short] = [b"long", b"shrt"].map(|name| file(&volume, name));
        let (mib, piece) = (vec![1; 1 << 20], vec![2; 128 << 10]);
        for _ in 0..60 {
            volume.write(long, 0, &mib, false, false).unwrap();
        }
        for _ in 0..320 {
            volume.write(short, 0, &piece, false, false).unwrap();
        }
        volume.collect().unwrap();
        let rounds = || volume.metrics().unwrap().collector_rounds;
        let before = rounds();
        for _ in 0..20 {
            volume.write(short, 0, b"x", false, false).unwrap();
        }
        let made = rounds() - before;
        assert!(made <= 2, "{made} rounds for twenty writes");
        assert!(volume.status().segment_bytes < 64 << 20);
    }

    #[test]
    fn a_segment_that_cannot_be_read_does_not_keep_the_others_from_being_given_back() {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let (lost, dead) = (file(&volume, b"lost"), file(&volume, b"dead"));
        // One segment with a little that lives, then some that die as a whole.
        volume
            .write(lost, 0, &vec![1; 1 << 19], false, false)
            .unwrap();
        volume
            .write(dead, 0, &vec![2; 1 << 20], false, false)
            .unwrap();
        volume
            .write(dead, 1 << 20, &vec![2; 1 << 20], false, false)
            .unwrap();
        let cut = SetAttr {
            size: Some(1 << 17),
            ..SetAttr::default()
        };
        volume.setattr(Caller::ROOT, lost, &cut).unwrap();
        volume.unlink(Ino::ROOT, b"dead").unwrap();
        volume.reclaim(dead).unwrap();
        volume.close().unwrap();
        let first = volume.dir().join("segments/0000000000000001.seg");
        drop(volume);
        std::fs::remove_file(first).unwrap();

        let volume = fixture.open();
        let before = volume.status().segment_bytes;
        volume.collect().unwrap();
        let after = volume.status().segment_bytes;
        assert!(after < before && after <= 1 << 20, "{before} -> {after}");
    }
}
