//! Recovery: from RocksDB's last flush and what the log holds beyond it to the state as it was.
//!
//! [`Volume::open`](super::Volume::open) and [`Volume::repair`](super::Volume::repair) drive it: the log's reader finds the
//! frames that count, and [`Recovery`] folds their records into the state.
//!
//! A record counts if its frame is whole. Its chunks lie elsewhere, and are looked at one by one: up to the newest record
//! that had been synced, and where the disk answers with an error, a chunk that does not match its hash is damage; its
//! place is kept as a *suspect* one, whose reads fail until the bytes match again. A later record was perhaps never
//! synced: there, such a chunk is the mark of a power cut, and the log ends before it.

use std::collections::{BTreeSet, HashMap, HashSet};

use hafs_protocol::{Lsn, PieceId};

use crate::apply::{Change, Step, Totals, apply};
use crate::error::{FsError, with_causes};
use crate::record::Piece;
use crate::store::Store;
use crate::store::key::{
    APPLIED_KEY, Applied, EPOCHS_KEY, LocalTable, Place, SegmentId, SegmentUse, Table,
    decode_epochs, key_ino,
};
use crate::store::logfile::{ChunkPlace, Framed};
use crate::store::memtable::Key;
use crate::store::segment::{RecoveredChunk, SEGMENT_HEADER_BYTES, Segments};
use crate::volume::Unflushed;

/// End of every key range: above all keys.
const KEY_END: [u8; 17] = [0xff; 17];

/// A store on its way from its last flush to the end of its log.
#[derive(Debug)]
pub(super) struct Recovery {
    store: Store,
    pub(super) totals: Totals,
    /// Segments that read as the disk holds them.
    settled: HashSet<SegmentId>,
    /// What was replayed: no flush has it yet.
    unflushed: Unflushed,
}

impl Recovery {
    /// Reads what RocksDB's last flush says.
    pub(super) fn begin(store: Store) -> Result<Self, FsError> {
        let totals = load_totals(&store)?;
        Ok(Self {
            store,
            totals,
            settled: HashSet::new(),
            unflushed: Unflushed::default(),
        })
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Applies a record that the log holds and the state does not. `false`: a chunk that it names never reached the disk.
    pub(super) fn replay(&mut self, framed: &Framed, synced: Lsn) -> Result<bool, FsError> {
        let Some(pieces) = self.find_pieces(framed, synced)? else {
            return Ok(false);
        };
        for (_, place) in &pieces {
            if let Place::Segment(place) = place
                && place.is_suspect()
            {
                tracing::error!(
                    volume = %self.store.identity().volume,
                    lsn = %framed.record.pos.lsn,
                    ino = place.ino.0,
                    offset = place.file_offset,
                    len = place.len,
                    segment = place.segment.0,
                    "a chunk is damaged: reads of these bytes will fail"
                );
            }
        }
        let record = &framed.record;
        let mut changes = Vec::with_capacity(record.mutations.len());
        for mutation in &record.mutations {
            changes.push(Change {
                table: mutation.table,
                old: self.store.raw(mutation.table, &mutation.key)?,
                key: Key::from_slice(&mutation.key),
                new: mutation.body.clone(),
            });
        }
        let step = Step {
            pos: record.pos,
            chain: framed.chain,
            log_end: framed.end,
            kind: record.kind,
            changes,
            pieces,
        };
        let before = self.totals.applied.log_end;
        let chunks = step.pieces.iter().filter_map(|(_, place)| match place {
            Place::Segment(place) => Some(place.stored_bytes()),
            Place::Inline(_) => None,
        });
        let replayed = Unflushed {
            bytes: if before.file == framed.end.file {
                framed.end.offset.saturating_sub(before.offset)
            } else {
                framed.end.offset
            },
            records: 1,
            chunk_bytes: chunks.sum(),
        };
        apply(&self.store, &mut self.totals, step)?;
        self.unflushed.add(&replayed);
        Ok(true)
    }

    /// Where the pieces of a record are. `None`: one is not there, and the record was perhaps never synced.
    pub(super) fn find_pieces(
        &mut self,
        framed: &Framed,
        synced: Lsn,
    ) -> Result<Option<Vec<(PieceId, Place)>>, FsError> {
        let mut places = framed.places.iter();
        let mut found = Vec::with_capacity(framed.record.pieces.len());
        for piece in &framed.record.pieces {
            let place = match &piece.inline {
                Some(bytes) => Place::Inline(bytes.clone()),
                None => {
                    let at = places.next().expect("the frame has a place for each chunk");
                    match self.find_chunk(piece, at)? {
                        RecoveredChunk::Whole(place) | RecoveredChunk::Unreadable(place) => {
                            Place::Segment(place)
                        }
                        RecoveredChunk::Different(place) if framed.record.pos.lsn <= synced => {
                            Place::Segment(place)
                        }
                        RecoveredChunk::Different(_) => return Ok(None),
                    }
                }
            };
            found.push((piece.id, place));
        }
        Ok(Some(found))
    }

    fn find_chunk(&mut self, piece: &Piece, at: &ChunkPlace) -> Result<RecoveredChunk, FsError> {
        if self.settled.insert(at.segment) {
            self.store.segments.settle(at.segment)?;
        }
        Ok(self.store.segments.recover_chunk(
            (at.segment, at.offset),
            (piece.ino, piece.file_offset),
            piece.len,
            &piece.hash,
        ))
    }

    /// The state is at the end of the log: sees to the segments.
    pub(super) fn finish(mut self) -> Result<(Store, Totals, Unflushed), FsError> {
        adopt_segments(&self.store, &mut self.totals)?;
        Ok((self.store, self.totals, self.unflushed))
    }
}

pub(super) fn empty_totals() -> Totals {
    Totals {
        applied: Applied::EMPTY,
        epochs: Vec::new(),
        orphans: BTreeSet::new(),
        segments: HashMap::new(),
        segments_changed: HashSet::new(),
        dead_bytes_unseen: 0,
        died_bytes: 0,
    }
}

/// What RocksDB's last flush says.
fn load_totals(store: &Store) -> Result<Totals, FsError> {
    let mut totals = empty_totals();
    let Some(applied) = store.local(LocalTable::Local, APPLIED_KEY)? else {
        return Err(FsError::Corrupt(
            "the state does not say how far it has come".to_owned(),
        ));
    };
    totals.applied = Applied::decode(&applied)?;
    if let Some(epochs) = store.local(LocalTable::Local, EPOCHS_KEY)? {
        totals.epochs = decode_epochs(&epochs)?;
    }
    for row in store.scan(Table::Orphan, &[], &KEY_END) {
        totals.orphans.insert(key_ino(&row?.0)?);
    }
    for row in store.scan_local(LocalTable::Segment, &[], &KEY_END) {
        let (key, raw) = row?;
        totals
            .segments
            .insert(SegmentId(key_ino(&key)?.0), SegmentUse::decode(&raw)?);
    }
    Ok(totals)
}

/// Segments that a predecessor left are sealed; those that no record names are deleted. What is damaged stops nothing: the
/// volume opens, what other segments hold is good, and reads of the damaged ones fail.
fn adopt_segments(store: &Store, totals: &mut Totals) -> Result<(), FsError> {
    let present = Segments::list(&store.segments_dir())?.ids;
    for id in &present {
        let Some(segment) = totals.segments.get(id) else {
            store.segments.remove(*id)?;
            continue;
        };
        if segment.live_bytes > 0
            && let Some(fault) = store.segments.header_fault(*id)
        {
            tracing::warn!(segment = id.0, fault, "a segment is damaged");
        }
        // What the flushed state names was synced before; what was replayed may not be.
        let unsynced = totals.segments_changed.contains(id);
        let end = segment.end.max(SEGMENT_HEADER_BYTES);
        if let Err(error) = store.segments.adopt(*id, end, unsynced) {
            let error = with_causes(&error);
            tracing::error!(segment = id.0, error, "a segment cannot be taken over");
        }
    }
    let present: HashSet<SegmentId> = present.into_iter().collect();
    let missing: Vec<SegmentId> = totals
        .segments
        .keys()
        .copied()
        .filter(|id| !present.contains(id))
        .collect();
    for id in missing {
        // Rows may name places in it: a new segment of that number would be taken for it.
        store.segments.number_above(id);
        if totals
            .segments
            .get(&id)
            .is_some_and(|segment| segment.live_bytes > 0)
        {
            tracing::error!(segment = id.0, "a segment with live data is missing");
        } else {
            totals.segments.remove(&id);
            totals.segments_changed.insert(id);
        }
    }
    Ok(())
}
