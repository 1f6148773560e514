//! Reading: what a file holds is looked up under the lock, chunks are read once it is released.

use super::attr::check_file;
use super::data::index;
use super::{Inner, Volume};
use crate::error::FsError;
use crate::store::key::{Extent, ExtentSource, LocalTable, Place, SegmentPlace, piece_key};
use crate::store::segment::{Segment, Segments};
use crate::types::Ino;

/// A read: what was found under the lock, and what is to be read once it is released.
struct ReadPlan {
    ino: Ino,
    offset: u64,
    bytes: Vec<u8>,
    chunks: Vec<ChunkRead>,
}

/// Where bytes of a read come from, once the lock is released.
struct ChunkRead {
    /// Where in the answer.
    at: usize,
    len: usize,
    segment: Segment,
    place: SegmentPlace,
    hash: [u8; 32],
    /// Where in the chunk.
    skip: usize,
}

impl Volume {
    /// Reads up to `len` bytes from `offset`; fewer only at the end of the file. As they were at one moment, unless they lie
    /// in thousands of pieces.
    ///
    /// # Errors
    /// [`FsError::Damaged`] if stored bytes do not match their checksum: wrong bytes are never returned.
    pub fn read(&self, ino: Ino, offset: u64, len: u32) -> Result<Vec<u8>, FsError> {
        let mut plan = self.inner.plan_read(ino, offset, len)?;
        for chunk in plan.chunks {
            let part = &mut plan.bytes[chunk.at..chunk.at + chunk.len];
            Segments::read(&chunk.segment, &chunk.place, &chunk.hash, chunk.skip, part)?;
        }
        Ok(plan.bytes)
    }
}

impl Inner {
    /// Copies inline bytes, and says which parts of which chunks make up the rest. Holes stay zero.
    fn plan_read(&self, ino: Ino, offset: u64, len: u32) -> Result<ReadPlan, FsError> {
        let core = self.core();
        let inode = self.load_inode(ino)?;
        check_file(&inode)?;
        let end = offset.saturating_add(u64::from(len)).min(inode.size);
        let mut plan = ReadPlan {
            ino,
            offset,
            bytes: vec![0; index(end.saturating_sub(offset))],
            chunks: Vec::new(),
        };
        if inode.extent_bytes > 0 {
            self.each_extent(core, ino, offset..end, |_, start, extent| {
                self.plan_extent(&mut plan, start, extent)
            })?;
        }
        Ok(plan)
    }

    fn plan_extent(&self, plan: &mut ReadPlan, start: u64, extent: &Extent) -> Result<(), FsError> {
        let ExtentSource::Piece {
            id,
            skip,
            piece_len,
            hash,
        } = extent.source
        else {
            return Ok(());
        };
        let ino = plan.ino;
        let from = start.max(plan.offset);
        let to = (start + extent.len).min(plan.offset + plan.bytes.len() as u64);
        let skip = skip as usize + index(from - start);
        let (at, len) = (index(from - plan.offset), index(to - from));
        let Some(raw) = self.store.local(LocalTable::Piece, &piece_key(id))? else {
            let detail = "this copy has lost the place of the bytes";
            return Err(FsError::Damaged {
                ino,
                offset: from,
                len: to - from,
                detail,
            });
        };
        match Place::decode(&raw)? {
            Place::Inline(piece) => match piece.get(skip..skip + len) {
                Some(part) => plan.bytes[at..at + len].copy_from_slice(part),
                None => return Err(shorter_than_its_extent(ino, from, to)),
            },
            Place::Segment(place) if place.len == piece_len => {
                let segment = self.store.segments.open_for(&place)?;
                plan.chunks.push(ChunkRead {
                    at,
                    len,
                    segment,
                    place,
                    hash,
                    skip,
                });
            }
            Place::Segment(_) => return Err(shorter_than_its_extent(ino, from, to)),
        }
        Ok(())
    }
}

fn shorter_than_its_extent(ino: Ino, from: u64, to: u64) -> FsError {
    let detail = "the stored piece is not as long as its extent says";
    FsError::Damaged {
        ino,
        offset: from,
        len: to - from,
        detail,
    }
}
