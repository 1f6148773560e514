//! Record + state = new state. No clock, no randomness: two copies that applied the same records hold equal rows.
//!
//! [`crate::volume`] folds each record before it is appended, which can fail, and writes it once it is, which cannot; recovery
//! applies what the log still holds. One record is one batch of changes: the rows, how far the state has come, and this copy's
//! own books (where pieces lie, what is alive in the segments), which follow from the same rows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use hafs_protocol::{PieceId, Pos};

use crate::error::{FsError, with_causes};
use crate::record::RecordKind;
use crate::store::Store;
use crate::store::key::{
    APPLIED_KEY, Applied, Chain, EPOCHS_KEY, EpochStart, Extent, ExtentSource, LocalTable,
    LogPlace, Place, SegmentId, SegmentPlace, SegmentUse, Table, charged_bytes, encode_epochs,
    extent_key, key_ino, piece_key, row, row_body, segment_index_key,
};
use crate::store::memtable::{Batch, Key};
use crate::store::segment::SEGMENT_HEADER_BYTES;
use crate::types::Ino;

/// What is known of the state without reading rows. Kept in memory, rebuilt at open.
#[derive(Debug)]
pub(crate) struct Totals {
    pub(crate) applied: Applied,
    pub(crate) epochs: Vec<EpochStart>,
    pub(crate) orphans: BTreeSet<Ino>,
    pub(crate) segments: HashMap<SegmentId, SegmentUse>,
    /// Segments whose row in RocksDB is out of date. Written with each flush, so the rows fit the flushed state.
    pub(crate) segments_changed: HashSet<SegmentId>,
    /// Bytes of chunks that died since the collector was last asked to look.
    pub(crate) dead_bytes_unseen: u64,
    /// Bytes of chunks that died since the volume was opened.
    pub(crate) died_bytes: u64,
}

impl Totals {
    /// Bytes in segments that nothing names, and that something does. Looks at each segment.
    pub(crate) fn dead_and_live(&self) -> (u64, u64) {
        let segments = self.segments.values();
        let (stored, live) = segments.fold((0, 0), |(stored, live), segment| {
            let stored_here = segment.end.saturating_sub(SEGMENT_HEADER_BYTES);
            (stored + stored_here, live + segment.live_bytes)
        });
        (stored.saturating_sub(live), live)
    }
}

/// A row's change, with what was there before.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) table: Table,
    pub(crate) key: Key,
    /// The row as stored before.
    pub(crate) old: Option<Vec<u8>>,
    /// The new body.
    pub(crate) new: Option<Vec<u8>>,
}

/// A record with everything that applying it needs.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) pos: Pos,
    pub(crate) chain: Chain,
    /// Where the record's frame ends.
    pub(crate) log_end: LogPlace,
    pub(crate) kind: RecordKind,
    pub(crate) changes: Vec<Change>,
    /// Where the pieces are that the record brings.
    pub(crate) pieces: Vec<(PieceId, Place)>,
}

/// Folds one record into the state.
///
/// # Errors
/// Nothing was changed if this fails.
pub(crate) fn apply(store: &Store, totals: &mut Totals, step: Step) -> Result<(), FsError> {
    let sums = Sums::after(&totals.applied, &step.changes)?;
    fold(store, totals, step, sums)?.write(store, totals);
    Ok(())
}

/// What rows sum up to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    used_bytes: u64,
    inodes: u64,
    next_ino: Ino,
}

impl Sums {
    /// The sums of a state with these changes.
    ///
    /// # Errors
    /// [`FsError::Corrupt`]: rows, new or old, are no rows, or the sums cannot be theirs.
    pub(crate) fn after(applied: &Applied, changes: &[Change]) -> Result<Self, FsError> {
        let mut sums = Self {
            used_bytes: applied.used_bytes,
            inodes: applied.inodes,
            next_ino: applied.next_ino,
        };
        for change in changes {
            sums.take(change)?;
        }
        Ok(sums)
    }

    fn take(&mut self, change: &Change) -> Result<(), FsError> {
        let charged = |body: &[u8]| charged_bytes(change.table, &change.key, body);
        let missing =
            || FsError::Corrupt(format!("the sums miss a row of {}", change.table.name()));
        let is_inode = change.table == Table::Inode;
        if let Some(old) = &change.old {
            let used = self.used_bytes.checked_sub(charged(row_body(old)?)?);
            self.used_bytes = used.ok_or_else(missing)?;
            if is_inode {
                self.inodes = self.inodes.checked_sub(1).ok_or_else(missing)?;
            }
        }
        if let Some(body) = &change.new {
            let bounds =
                || FsError::Corrupt(format!("a row of {} past all bounds", change.table.name()));
            let used = self.used_bytes.checked_add(charged(body)?);
            self.used_bytes = used.ok_or_else(bounds)?;
            if is_inode {
                self.inodes += 1;
                let after = key_ino(&change.key)?.0.checked_add(1).ok_or_else(bounds)?;
                self.next_ino = self.next_ino.max(Ino(after));
            }
        }
        Ok(())
    }

    /// Refuses changes by which a volume of `size_bytes`, whose state is `applied`, would outgrow its size. What does not grow
    /// is always allowed, so that a volume that is too full can be emptied.
    pub(crate) fn check_quota(&self, applied: &Applied, size_bytes: u64) -> Result<(), FsError> {
        if self.used_bytes > applied.used_bytes && self.used_bytes > size_bytes {
            return Err(FsError::NoSpace);
        }
        Ok(())
    }
}

/// A record that is read to the end: writing what it makes of the state cannot fail.
#[derive(Debug)]
pub(crate) struct Folded {
    step: Step,
    sums: Sums,
    /// Rows of this copy's own books.
    books: Batch,
    epochs: Option<Vec<EpochStart>>,
    uses: SegmentDeltas,
    /// Inodes that become orphans, or are none any more.
    orphans: Vec<(Ino, bool)>,
}

/// Reads what applying a record takes. `sums` are those after it.
///
/// # Errors
/// Rows that it needs cannot be read.
pub(crate) fn fold(
    store: &Store,
    totals: &Totals,
    step: Step,
    sums: Sums,
) -> Result<Folded, FsError> {
    assert_eq!(
        step.pos.lsn,
        totals.applied.pos.lsn.next(),
        "records are applied in order"
    );
    let orphans = step
        .changes
        .iter()
        .filter(|change| change.table == Table::Orphan)
        .map(|change| Ok((key_ino(&change.key)?, change.new.is_some())))
        .collect::<Result<_, FsError>>()?;
    let mut books = Batch::default();
    let mut epochs = None;
    if step.kind == RecordKind::EpochStart {
        let mut table = totals.epochs.clone();
        table.push(EpochStart {
            first: step.pos,
            chain_before: totals.applied.chain,
        });
        books.put(LocalTable::Local, EPOCHS_KEY, encode_epochs(&table));
        epochs = Some(table);
    }
    let mut uses = SegmentDeltas::default();
    for (id, place) in &step.pieces {
        place_piece(&mut books, *id, place);
        if let Place::Segment(place) = place {
            uses.add(place);
        }
    }
    for id in dead_pieces(store, &step.changes)? {
        if let Some(place) = forget_piece(store, &mut books, id) {
            uses.remove(&place);
        }
    }
    Ok(Folded {
        step,
        sums,
        books,
        epochs,
        uses,
        orphans,
    })
}

impl Folded {
    /// Writes it, and brings the totals up to it.
    pub(crate) fn write(self, store: &Store, totals: &mut Totals) {
        let Self {
            step,
            sums,
            books: mut batch,
            epochs,
            uses,
            orphans,
        } = self;
        let applied = &mut totals.applied;
        for change in &step.changes {
            if let Some(old) = &change.old {
                applied.digest.remove(change.table, &change.key, old);
            }
            match &change.new {
                Some(body) => {
                    let raw = row(step.pos, body);
                    applied.digest.add(change.table, &change.key, &raw);
                    batch.put(change.table, &change.key, raw);
                }
                None => batch.delete(change.table, &change.key),
            }
        }
        applied.pos = step.pos;
        applied.chain = step.chain;
        applied.log_end = step.log_end;
        applied.used_bytes = sums.used_bytes;
        applied.inodes = sums.inodes;
        applied.next_ino = sums.next_ino;
        batch.put(LocalTable::Local, APPLIED_KEY, applied.encode());
        store.write(batch);
        if let Some(table) = epochs {
            totals.epochs = table;
        }
        for (ino, is_orphan) in orphans {
            if is_orphan {
                totals.orphans.insert(ino);
            } else {
                totals.orphans.remove(&ino);
            }
        }
        uses.merge_into(totals);
    }
}

/// Writes the rows that say where a piece lies.
pub(crate) fn place_piece(batch: &mut Batch, id: PieceId, place: &Place) {
    let key = piece_key(id);
    batch.put(LocalTable::Piece, &key, place.encode());
    if let Place::Segment(place) = place {
        let at = segment_index_key(place.segment, place.offset);
        batch.put(LocalTable::SegmentIndex, &at, key.to_vec());
    }
}

/// Removes those rows; returns the place if it is in a segment.
///
/// A row that is damaged or gone stops nothing: the record is in the log, and who deletes a file whose bytes are lost does
/// what `volume check` told them to. At worst the space of the piece is not given back.
fn forget_piece(store: &Store, batch: &mut Batch, id: PieceId) -> Option<SegmentPlace> {
    let key = piece_key(id);
    batch.delete(LocalTable::Piece, &key);
    let place = store.local(LocalTable::Piece, &key).and_then(|raw| {
        let raw = raw.ok_or_else(|| FsError::Corrupt(format!("piece {id} has no place")))?;
        Place::decode(&raw)
    });
    match place {
        Ok(Place::Inline(_)) => None,
        Ok(Place::Segment(place)) => {
            let at = segment_index_key(place.segment, place.offset);
            batch.delete(LocalTable::SegmentIndex, &at);
            Some(place)
        }
        Err(error) => {
            let error = with_causes(&error);
            tracing::error!(%id, error, "the place of a piece that is no longer used is lost");
            None
        }
    }
}

/// Pieces that these changes take the last extent from.
///
/// A piece is written for one place of one file and extents of it never move, so whoever still uses it lies within that
/// range of that file: no reference counts are needed.
fn dead_pieces(store: &Store, changes: &[Change]) -> Result<Vec<PieceId>, FsError> {
    let mut touched: BTreeMap<PieceId, Touched> = BTreeMap::new();
    let mut kept = HashSet::new();
    let mut changed_keys = HashSet::new();
    for change in changes
        .iter()
        .filter(|change| change.table == Table::Extent)
    {
        changed_keys.insert(change.key.as_slice());
        if let Some(old) = &change.old {
            let (start, extent) = Extent::decode_at(&change.key, row_body(old)?)?;
            if let ExtentSource::Piece {
                id,
                skip,
                piece_len,
                ..
            } = extent.source
            {
                let start = start.checked_sub(u64::from(skip)).ok_or_else(|| {
                    FsError::Corrupt(format!("an extent of {id} before its piece"))
                })?;
                let whole = skip == 0 && extent.len == u64::from(piece_len);
                let ino = key_ino(&change.key)?;
                touched.insert(
                    id,
                    Touched {
                        ino,
                        start,
                        len: piece_len,
                        whole,
                    },
                );
            }
        }
        if let Some(body) = &change.new
            && let ExtentSource::Piece { id, .. } = Extent::decode_at(&change.key, body)?.1.source
        {
            kept.insert(id);
        }
    }
    let mut dead = Vec::new();
    for (id, piece) in touched {
        if kept.contains(&id) {
            continue;
        }
        let is_used = || {
            is_used_elsewhere(store, id, &piece, &changed_keys).unwrap_or_else(|error| {
                // At worst its space is not given back. Failing here would keep a volume from opening, over one bad block.
                let error = with_causes(&error);
                tracing::error!(%id, error, "whether a piece is still used cannot be read");
                true
            })
        };
        if piece.whole || !is_used() {
            dead.push(id);
        }
    }
    Ok(dead)
}

/// A piece that a changed extent was part of.
struct Touched {
    ino: Ino,
    /// Where in the file the piece starts, bytes.
    start: u64,
    len: u32,
    /// The extent was all of it.
    whole: bool,
}

fn is_used_elsewhere(
    store: &Store,
    id: PieceId,
    piece: &Touched,
    changed_keys: &HashSet<&[u8]>,
) -> Result<bool, FsError> {
    let from = extent_key(piece.ino, piece.start);
    let to = extent_key(piece.ino, piece.start + u64::from(piece.len));
    for row in store.scan(Table::Extent, &from, &to) {
        let (key, raw) = row?;
        if changed_keys.contains(&*key) {
            continue;
        }
        match Extent::decode(row_body(&raw)?)?.source {
            ExtentSource::Piece { id: other, .. } if other == id => return Ok(true),
            ExtentSource::Piece { .. } | ExtentSource::Unwritten => {}
        }
    }
    Ok(false)
}

/// What a record changes in the segments' books.
#[derive(Debug, Default)]
pub(crate) struct SegmentDeltas(HashMap<SegmentId, SegmentDelta>);

#[derive(Debug, Default)]
struct SegmentDelta {
    end: u64,
    added: u64,
    removed: u64,
}

impl SegmentDeltas {
    pub(crate) fn add(&mut self, place: &SegmentPlace) {
        let delta = self.0.entry(place.segment).or_default();
        delta.end = delta
            .end
            .max(u64::from(place.offset) + place.stored_bytes());
        delta.added += place.stored_bytes();
    }

    pub(crate) fn remove(&mut self, place: &SegmentPlace) {
        self.0.entry(place.segment).or_default().removed += place.stored_bytes();
    }

    pub(crate) fn merge_into(self, totals: &mut Totals) {
        for (id, delta) in self.0 {
            let entry = totals.segments.entry(id).or_default();
            entry.end = entry.end.max(delta.end);
            // Wrong books are found by the check; they are no reason to end.
            entry.live_bytes = (entry.live_bytes + delta.added).saturating_sub(delta.removed);
            totals.dead_bytes_unseen += delta.removed;
            totals.died_bytes += delta.removed;
            totals.segments_changed.insert(id);
        }
    }
}
