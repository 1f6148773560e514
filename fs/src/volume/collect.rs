//! The collector: gives back the space of chunks that nothing names any more.
//!
//! A segment whose live share is low is emptied: its live chunks are appended elsewhere, and once the state that says so
//! is on the disk, the file is deleted. All of this is local: it makes no record, and changes no row of the digest.
//!
//! Invariant: a segment is deleted only after a flush of state that names nothing in it. So neither recovery, which starts
//! from flushed state, nor a record that recovery replays, ever misses it.

use parking_lot::RwLockWriteGuard;
use rocksdb::WriteBatch;

use super::{Core, Inner, Volume};
use crate::apply::{SegmentDeltas, place_piece};
use crate::error::FsError;
use crate::store::key::{
    LocalTable, Place, SegmentId, SegmentPlace, key_piece, piece_key, segment_index_key,
};
use crate::store::segment::SEGMENT_HEADER_BYTES;
use hafs_protocol::PieceId;

/// A segment is emptied when less than this share of what it stores is alive.
const LIVE_SHARE_MAX_PERCENT: u64 = 60;
/// Segments emptied in one round: bounds the space that copies take before the originals are deleted.
const SEGMENTS_A_ROUND: usize = 16;

impl Volume {
    /// One round of the collector, now; returns the bytes that were given back to the disk. The volume calls it by itself
    /// when enough is dead.
    pub fn collect(&self) -> Result<u64, FsError> {
        self.inner.collect()
    }
}

impl Inner {
    pub(super) fn collect(&self) -> Result<u64, FsError> {
        let no_readers_of_many = self.collecting.write();
        self.collect_alone(&no_readers_of_many)
    }

    /// The same, but not now if somebody reads many segments: that may take hours, and the housekeeper has more to do.
    /// It is asked again after the next flush.
    pub(super) fn collect_unless_read(&self) -> Result<u64, FsError> {
        match self.collecting.try_write() {
            Some(no_readers_of_many) => self.collect_alone(&no_readers_of_many),
            None => Ok(0),
        }
    }

    fn collect_alone(&self, _no_readers: &RwLockWriteGuard<'_, ()>) -> Result<u64, FsError> {
        self.metrics.collector_round();
        let emptied = self
            .segments_to_empty()
            .into_iter()
            .try_for_each(|segment| self.empty_segment(segment));
        // Also if that failed: on a full disk there is no room for copies, and deleting is what makes room. The flush also
        // makes the deaths durable that records since the last flush brought.
        self.flush()?;
        let freed = self.delete_dead_segments()?;
        emptied.map(|()| freed)
    }

    fn segments_to_empty(&self) -> Vec<SegmentId> {
        let active = self.store.segments.active_id();
        let core = self.core.read();
        let mut worth: Vec<(u64, SegmentId)> = core
            .totals
            .segments
            .iter()
            .filter(|(id, _)| Some(**id) != active)
            .filter(|(_, segment)| segment.live_bytes > 0)
            .filter(|(_, segment)| is_worth_emptying(segment.end, segment.live_bytes))
            .map(|(id, segment)| (segment.live_bytes, *id))
            .collect();
        worth.sort_unstable();
        worth.truncate(SEGMENTS_A_ROUND);
        worth.into_iter().map(|(_, id)| id).collect()
    }

    fn empty_segment(&self, segment: SegmentId) -> Result<(), FsError> {
        let from = segment_index_key(segment, 0);
        let to = segment_index_key(SegmentId(segment.0 + 1), 0);
        for row in self.store.scan_local(LocalTable::SegmentIndex, &from, &to) {
            let (_, key) = row?;
            self.check_open()?;
            self.move_chunk(segment, key_piece(&key)?)?;
        }
        Ok(())
    }

    fn move_chunk(&self, segment: SegmentId, id: PieceId) -> Result<(), FsError> {
        let Some(old) = self.chunk_in(segment, id)? else {
            return Ok(()); // died since the scan
        };
        let bytes = match self.store.segments.read_chunk(&old, None) {
            Ok(bytes) => bytes,
            Err(error @ (FsError::Damaged { .. } | FsError::Unreadable { .. })) => {
                // It stays, and its segment with it: another copy may mend it.
                let error: &dyn std::error::Error = &error;
                tracing::error!(
                    error,
                    "the collector left a chunk that cannot be read where it is"
                );
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.limit_unsynced_chunks()?;
        let new = self
            .store
            .segments
            .append(old.ino, old.file_offset, &bytes)?;
        let mut core = self.core.write();
        self.check_open()?;
        if self.chunk_in(segment, id)?.as_ref() != Some(&old) {
            return Ok(()); // died meanwhile; the copy is dead space
        }
        let mut batch = WriteBatch::default();
        let at = segment_index_key(old.segment, old.offset);
        batch.delete_cf(self.store.local_cf(LocalTable::SegmentIndex), at);
        place_piece(&self.store, &mut batch, id, &Place::Segment(new.clone()));
        self.store.write(batch)?;
        let mut uses = SegmentDeltas::default();
        uses.remove(&old);
        uses.add(&new);
        let Core { totals, .. } = &mut *core;
        uses.merge_into(totals);
        self.metrics.collector_moved(new.stored_bytes());
        Ok(())
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
        let active = self.store.segments.active_id();
        let mut freed = 0;
        loop {
            // One at a time: the locks are held for an unlink, not for a hundred.
            let _no_chunk_without_record = self.appending.write();
            let mut core = self.core.write();
            let dead = core.totals.segments.iter().find(|(id, segment)| {
                segment.live_bytes == 0
                    && Some(**id) != active
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

fn is_worth_emptying(end: u64, live: u64) -> bool {
    let stored = end.saturating_sub(SEGMENT_HEADER_BYTES);
    live * 100 < stored * LIVE_SHARE_MAX_PERCENT
}

#[cfg(test)]
mod tests {
    use crate::types::{Caller, Ino, SetAttr};
    use crate::volume::tests::{Fixture, file};

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
