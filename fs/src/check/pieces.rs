//! The part of a check that reads what files hold: extents, pieces, segments, and this copy's books of them.

use std::collections::BTreeMap;
use std::ops::Range;

use hafs_protocol::PieceId;

use super::{Findings, Picture, Problem, ProblemKind, TableRows, next, next_owner};
use crate::error::{FsError, with_causes};
use crate::store::key::{
    CRC_PAGE_BYTES, Extent, ExtentSource, Inode, LocalTable, Place, SegmentPlace, Table, key_piece,
    key_second, key_segment_index, row_body,
};
use crate::store::segment::Segments;
use crate::types::Ino;

/// What has a checksum of its own in a chunk.
const PAGE_BYTES: u64 = CRC_PAGE_BYTES as u64;

/// What extents say of a piece.
struct PieceUse {
    start: u64,
    len: u32,
    hash: [u8; 32],
    /// Bytes of the file that are still read from it. The others were overwritten or cut off since.
    live: Vec<Range<u64>>,
}

impl PieceUse {
    fn end(&self) -> u64 {
        self.start.saturating_add(u64::from(self.len))
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.start, self.len, self.hash) == (other.start, other.len, other.hash)
    }
}

/// Takes a file's extents and checks them and the pieces that they name. A piece is written for one place of one file, so
/// once extents have passed that place, no more of them can name it.
pub(super) fn check_extents(
    picture: &Picture<'_>,
    ino: Ino,
    inode: Option<&Inode>,
    rows: &mut TableRows<'_>,
    findings: &mut Findings<'_>,
) -> Result<(), FsError> {
    let mut end = 0;
    let mut sum = 0_u64;
    let mut pieces: BTreeMap<PieceId, PieceUse> = BTreeMap::new();
    while next_owner(rows, Table::Extent, findings)? == Some(ino) {
        let Some((key, raw)) = findings.next_row(rows, Table::Extent) else {
            break;
        };
        findings.report.extents += 1;
        let decoded =
            key_second(&key).and_then(|start| Ok((start, Extent::decode(row_body(&raw)?)?)));
        let Some((start, extent)) = findings.decoded(ino, Table::Extent, decoded) else {
            continue;
        };
        if start < end {
            let what = format!("extents overlap at byte {start}");
            findings.fault(ProblemKind::ExtentOverlap, Some(ino), what);
        }
        end = start.saturating_add(extent.len);
        sum = sum.saturating_add(extent.len);
        let ExtentSource::Piece {
            id,
            skip,
            piece_len,
            hash,
        } = extent.source
        else {
            continue;
        };
        if inode.is_some_and(|inode| end > inode.size) {
            let what = format!("bytes past the end, at {start}");
            findings.fault(ProblemKind::BytesPastEnd, Some(ino), what);
        }
        let Some(piece_start) = start.checked_sub(u64::from(skip)) else {
            let what = format!("an extent at {start} before its piece");
            findings.fault(ProblemKind::ExtentBeforePiece, Some(ino), what);
            continue;
        };
        let whole = PieceUse {
            start: piece_start,
            len: piece_len,
            hash,
            live: Vec::new(),
        };
        let known = pieces.entry(id).or_insert_with(|| PieceUse {
            live: Vec::new(),
            ..whole
        });
        known.live.push(start..end);
        if !known.is_same(&whole) {
            let what = format!("extents disagree about piece {id}");
            findings.fault(ProblemKind::PieceDisagreement, Some(ino), what);
        }
        for (id, piece) in pieces.extract_if(.., |_, piece| piece.end() <= start) {
            check_piece(picture, ino, id, &piece, findings)?;
        }
    }
    if inode.is_some_and(|inode| inode.extent_bytes != sum) && !findings.is_partial {
        let says = inode.map_or(0, |inode| inode.extent_bytes);
        let what = format!("extents hold {sum} bytes, the inode says {says}");
        findings.fault(ProblemKind::ExtentBytes, Some(ino), what);
    }
    for (id, piece) in pieces {
        check_piece(picture, ino, id, &piece, findings)?;
    }
    Ok(())
}

fn check_piece(
    picture: &Picture<'_>,
    ino: Ino,
    id: PieceId,
    piece: &PieceUse,
    findings: &mut Findings<'_>,
) -> Result<(), FsError> {
    let all = piece.start..piece.end();
    let bytes = match picture.place(id) {
        Err(error) => {
            let what = format!("where they lie cannot be read: {}", with_causes(&error));
            findings.is_partial = true;
            findings.hurt(ProblemKind::LostPlace, ino, all, what);
            return findings.step();
        }
        Ok(None) => {
            let what = format!("piece {id} is nowhere");
            findings.hurt(ProblemKind::MissingPiece, ino, all, what);
            return findings.step();
        }
        Ok(Some(Place::Inline(bytes))) => {
            findings.places += 1;
            bytes
        }
        Ok(Some(Place::Segment(place))) => {
            findings.places += 1;
            *findings.live.entry(place.segment).or_default() += place.stored_bytes();
            if (place.ino, place.file_offset) != (ino, piece.start) {
                let what = format!("chunk {id} is another file's");
                findings.hurt(ProblemKind::ForeignChunk, ino, all.clone(), what);
            }
            match picture.store.segments.read_chunk(&place, Some(&piece.hash)) {
                Ok(bytes) => bytes,
                Err(_) => {
                    let lost = lost_bytes(&picture.store.segments, &place, piece);
                    if lost.is_empty() {
                        findings.report.pieces += 1;
                        findings.report.bytes += u64::from(place.len);
                    }
                    for (range, what) in lost {
                        let what = format!("{what} (segment {})", place.segment.0);
                        findings.hurt(ProblemKind::UnreadableBytes, ino, range, what);
                    }
                    return findings.step();
                }
            }
        }
    };
    findings.report.pieces += 1;
    findings.report.bytes += bytes.len() as u64;
    if bytes.len() != piece.len as usize || blake3::hash(&bytes).as_bytes() != &piece.hash {
        let what = format!("piece {id} does not match its hash");
        findings.hurt(ProblemKind::WrongHash, ino, all, what);
    }
    findings.step()
}

/// Which bytes of the file cannot be read from a chunk, and why: page by page, what follows one another together. A page that
/// the file does not use any more is nobody's.
fn lost_bytes(
    segments: &Segments,
    place: &SegmentPlace,
    piece: &PieceUse,
) -> Vec<(Range<u64>, String)> {
    let mut lost: Vec<(Range<u64>, String)> = Vec::new();
    let piece_end = piece.start + u64::from(piece.len.min(place.len));
    for live in &piece.live {
        let (mut at, end) = (live.start.max(piece.start), live.end.min(piece_end));
        while at < end {
            let skip = at - piece.start;
            let page_end = piece.start + skip - skip % PAGE_BYTES + PAGE_BYTES;
            let part = at..page_end.min(end);
            at = part.end;
            let Err(error) = segments.read_part(place, &piece.hash, skip, part.end - part.start)
            else {
                continue;
            };
            let why = match error {
                FsError::Damaged { detail, .. } => detail.to_owned(),
                FsError::Unreadable { source, .. } => with_causes(&*source),
                error => with_causes(&error),
            };
            match lost.last_mut() {
                Some((range, what)) if range.end == part.start && *what == why => {
                    range.end = part.end;
                }
                _ => lost.push((part, why)),
            }
        }
    }
    lost
}

impl Findings<'_> {
    /// Bytes of a file that are not what was written.
    fn hurt(&mut self, kind: ProblemKind, ino: Ino, bytes: Range<u64>, what: String) {
        let next = if kind == ProblemKind::ForeignChunk {
            next::FAULT
        } else {
            next::FILE
        };
        self.problem(Problem {
            ino: Some(ino),
            bytes: Some(bytes),
            next,
            ..Problem::of_books(kind, what)
        });
    }
}

/// This copy's own books: a place for each piece that is used, no more; the segments' index says the same.
pub(super) fn check_places(picture: &Picture<'_>, findings: &mut Findings<'_>) {
    let mut places = 0;
    let mut chunks = 0;
    for row in picture.rows(LocalTable::Piece, &[]) {
        match row.and_then(|row| Place::decode(&row.1)) {
            Ok(Place::Inline(_)) => {}
            Ok(Place::Segment(_)) => chunks += 1,
            Err(error) => findings.lost_row(None, LocalTable::Piece.name(), &error),
        }
        places += 1;
    }
    let indexed = check_index(picture, findings);
    if findings.is_partial {
        return;
    }
    if places > findings.places {
        let unused = places - findings.places;
        let what = format!("{unused} pieces are kept that no extent names");
        findings.fault(ProblemKind::UnusedPieces, None, what);
    } else if places < findings.places {
        let shared = findings.places - places;
        let what = format!("{shared} pieces are named from more than one place");
        findings.fault(ProblemKind::SharedPiece, None, what);
    }
    if indexed != chunks {
        let what = format!("the segment index has {indexed} chunks, not {chunks}");
        findings.fault(ProblemKind::IndexCount, None, what);
    }
}

/// Each entry of the segments' index leads to a chunk that lies there; says how many entries there are.
fn check_index(picture: &Picture<'_>, findings: &mut Findings<'_>) -> u64 {
    let mut entries = 0;
    for row in picture.rows(LocalTable::SegmentIndex, &[]) {
        entries += 1;
        let entry = row.and_then(|(key, id)| Ok((key_segment_index(&key)?, key_piece(&id)?)));
        let ((segment, offset), id) = match entry {
            Ok(entry) => entry,
            Err(error) => {
                findings.lost_row(None, LocalTable::SegmentIndex.name(), &error);
                continue;
            }
        };
        let is_there = match picture.place(id) {
            Ok(Some(Place::Segment(place))) => (place.segment, place.offset) == (segment, offset),
            Ok(Some(Place::Inline(_)) | None) => false,
            Err(_) => continue, // told where the pieces are read
        };
        if !is_there {
            let at = format!("byte {offset} of segment {}", segment.0);
            let what = format!("the segment index has piece {id} at {at}, where it is not");
            findings.fault(ProblemKind::IndexEntry, None, what);
        }
    }
    entries
}

/// The files that chunks lie in.
pub(super) fn check_segments(
    picture: &Picture<'_>,
    findings: &mut Findings<'_>,
) -> Result<(), FsError> {
    let segments = &picture.store.segments;
    let present = Segments::list(&picture.store.segments_dir())?;
    let live: Vec<_> = findings.live.keys().copied().collect();
    for id in live {
        let Some(fault) = segments.header_fault(id) else {
            continue;
        };
        let next = if present.ids.contains(&id) {
            next::MEND
        } else {
            next::SEGMENT
        };
        findings.problem(Problem {
            next,
            ..Problem::of_books(ProblemKind::Segment, format!("segment {}: {fault}", id.0))
        });
    }
    for path in present.strangers {
        let what = format!("{} is no segment", path.display());
        findings.problem(Problem {
            next: next::STRANGER,
            ..Problem::of_books(ProblemKind::Stranger, what)
        });
    }
    Ok(())
}
