//! The log's records: resolved mutations and the pieces of data that they bring, and how both are written down.
//!
//! A record is what every copy of a volume agrees on; it says nothing of where a copy keeps a piece. [`crate::apply`]
//! folds records into the state; [`crate::store::logfile`] frames them on disk. Decoding takes bytes from a disk (and one
//! day from a peer): it answers [`FsError::Corrupt`], it never panics.

use hafs_protocol::{Epoch, Lsn, PieceId, Pos};

use crate::error::FsError;
use crate::store::codec::Reader;
use crate::store::key::{CHAIN_BYTES, Chain, Table};
use crate::types::Ino;

/// One place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) pos: Pos,
    pub(crate) kind: RecordKind,
    pub(crate) mutations: Vec<Mutation>,
    pub(crate) pieces: Vec<Piece>,
}

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// Changes of the state.
    Mutations,
    /// The first record of a reign; changes nothing.
    EpochStart,
}

/// One row written (`body`) or removed (`None`), with everything chosen: numbers, times, sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mutation {
    pub(crate) table: Table,
    pub(crate) key: Vec<u8>,
    pub(crate) body: Option<Vec<u8>>,
}

/// A run of file bytes that this record names for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) id: PieceId,
    /// The file it was written for, and where in it. A piece is never shared between files or places.
    pub(crate) ino: Ino,
    pub(crate) file_offset: u64,
    pub(crate) len: u32,
    /// BLAKE3 of the bytes.
    pub(crate) hash: [u8; 32],
    /// The bytes, if they travel in the record; else they are a chunk.
    pub(crate) inline: Option<Vec<u8>>,
}

const RECORD_VERSION: u8 = 1;
const KIND_MUTATIONS: u8 = 1;
const KIND_EPOCH_START: u8 = 2;
const OP_DEL: u8 = 0;
const OP_PUT: u8 = 1;
const PIECE_CHUNK: u8 = 0;
const PIECE_INLINE: u8 = 1;

/// Most rows that one record changes; longer work is several records. Bounds the time that other operations wait and
/// the room that a frame needs.
pub(crate) const RECORD_MUTATIONS_MAX: usize = 1024;

/// A mutation as it is written down: table, key, body.
pub(crate) type MutationParts<'a> = (Table, &'a [u8], Option<&'a [u8]>);

/// A piece as it is written down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PieceParts<'a> {
    pub(crate) id: PieceId,
    pub(crate) ino: Ino,
    pub(crate) file_offset: u64,
    pub(crate) len: u32,
    pub(crate) hash: &'a [u8; 32],
    pub(crate) inline: Option<&'a [u8]>,
}

/// A record's bytes: everything but the inline data, whose hashes it holds; then the inline data.
pub(crate) fn encode<'a>(
    pos: Pos,
    kind: RecordKind,
    mutations: impl ExactSizeIterator<Item = MutationParts<'a>>,
    pieces: impl ExactSizeIterator<Item = PieceParts<'a>> + Clone,
) -> EncodedRecord {
    let inline = pieces.clone().filter_map(|piece| piece.inline);
    let inline_bytes: usize = inline.clone().map(<[u8]>::len).sum();
    let rows_bytes = 64 + mutations.len() * 160 + pieces.len() * 80;
    let mut bytes = Vec::with_capacity(rows_bytes + inline_bytes);
    bytes.push(RECORD_VERSION);
    bytes.push(match kind {
        RecordKind::Mutations => KIND_MUTATIONS,
        RecordKind::EpochStart => KIND_EPOCH_START,
    });
    bytes.extend_from_slice(&pos.epoch.0.to_le_bytes());
    bytes.extend_from_slice(&pos.lsn.0.to_le_bytes());
    bytes.extend_from_slice(&count(mutations.len()));
    bytes.extend_from_slice(&count(pieces.len()));
    for mutation in mutations {
        encode_mutation(&mut bytes, mutation);
    }
    for piece in pieces {
        encode_piece(&mut bytes, &piece);
    }
    let chained_len = bytes.len();
    for inline in inline {
        bytes.extend_from_slice(inline);
    }
    EncodedRecord { bytes, chained_len }
}

impl Record {
    /// See [`encode`].
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn encode(&self) -> EncodedRecord {
        let mutations = self.mutations.iter();
        let pieces = self.pieces.iter();
        encode(
            self.pos,
            self.kind,
            mutations.map(|row| (row.table, row.key.as_slice(), row.body.as_deref())),
            pieces.map(|piece| PieceParts {
                id: piece.id,
                ino: piece.ino,
                file_offset: piece.file_offset,
                len: piece.len,
                hash: &piece.hash,
                inline: piece.inline.as_deref(),
            }),
        )
    }

    /// Reads a record back, and how many of its bytes the chain covers.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, usize), FsError> {
        let mut reader = Reader::new(bytes, "record");
        reader.version()?;
        let kind = match reader.u8()? {
            KIND_MUTATIONS => RecordKind::Mutations,
            KIND_EPOCH_START => RecordKind::EpochStart,
            _ => return Err(reader.corrupt("unknown kind")),
        };
        let pos = Pos {
            epoch: Epoch(reader.u32()?),
            lsn: Lsn(reader.u64()?),
        };
        let mutation_count = reader.u32()?;
        let piece_count = reader.u32()?;
        let mut mutations = Vec::new();
        for _ in 0..mutation_count {
            mutations.push(decode_mutation(&mut reader)?);
        }
        let mut pieces = Vec::new();
        let mut inline = Vec::new();
        for _ in 0..piece_count {
            let (piece, is_inline) = decode_piece(&mut reader)?;
            inline.push(is_inline);
            pieces.push(piece);
        }
        let chained_len = bytes.len() - reader.remaining();
        for (piece, _) in pieces
            .iter_mut()
            .zip(&inline)
            .filter(|(_, inline)| **inline)
        {
            piece.inline = Some(reader.bytes(piece.len as usize)?.to_vec());
        }
        reader.end()?;
        Ok((
            Self {
                pos,
                kind,
                mutations,
                pieces,
            },
            chained_len,
        ))
    }
}

/// A record's bytes.
#[derive(Debug)]
pub(crate) struct EncodedRecord {
    pub(crate) bytes: Vec<u8>,
    chained_len: usize,
}

impl EncodedRecord {
    /// What this record and everything before it hash to.
    pub(crate) fn chain(&self, before: &Chain) -> Chain {
        chain(before, &self.bytes[..self.chained_len])
    }
}

/// `BLAKE3(before || record)`, cut to 16 bytes: two logs with equal chains hold equal records.
pub(crate) fn chain(before: &Chain, chained: &[u8]) -> Chain {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(chained);
    *hasher
        .finalize()
        .as_bytes()
        .first_chunk::<CHAIN_BYTES>()
        .expect("a hash has 32 bytes")
}

fn count(len: usize) -> [u8; 4] {
    u32::try_from(len)
        .expect("a record is bounded by RECORD_MUTATIONS_MAX")
        .to_le_bytes()
}

fn encode_mutation(out: &mut Vec<u8>, (table, key, body): MutationParts<'_>) {
    let key_len = u16::try_from(key.len()).expect("keys are below 300 bytes");
    out.push(table.tag());
    out.push(if body.is_some() { OP_PUT } else { OP_DEL });
    out.extend_from_slice(&key_len.to_le_bytes());
    out.extend_from_slice(key);
    if let Some(body) = body {
        out.extend_from_slice(&count(body.len()));
        out.extend_from_slice(body);
    }
}

fn decode_mutation(reader: &mut Reader<'_>) -> Result<Mutation, FsError> {
    let tag = reader.u8()?;
    let table = Table::from_tag(tag).ok_or_else(|| reader.corrupt("unknown table"))?;
    let op = reader.u8()?;
    let key_len = reader.u16()?;
    let key = reader.bytes(usize::from(key_len))?.to_vec();
    let body = match op {
        OP_DEL => None,
        OP_PUT => {
            let len = reader.u32()?;
            Some(reader.bytes(len as usize)?.to_vec())
        }
        _ => return Err(reader.corrupt("unknown mutation")),
    };
    Ok(Mutation { table, key, body })
}

fn encode_piece(out: &mut Vec<u8>, piece: &PieceParts<'_>) {
    out.extend_from_slice(&piece.id.epoch.0.to_le_bytes());
    out.extend_from_slice(&piece.id.counter.to_le_bytes());
    out.extend_from_slice(&piece.ino.0.to_le_bytes());
    out.extend_from_slice(&piece.file_offset.to_le_bytes());
    out.extend_from_slice(&piece.len.to_le_bytes());
    out.extend_from_slice(piece.hash);
    out.push(if piece.inline.is_some() {
        PIECE_INLINE
    } else {
        PIECE_CHUNK
    });
}

fn decode_piece(reader: &mut Reader<'_>) -> Result<(Piece, bool), FsError> {
    let piece = Piece {
        id: PieceId {
            epoch: Epoch(reader.u32()?),
            counter: reader.u64()?,
        },
        ino: Ino(reader.u64()?),
        file_offset: reader.u64()?,
        len: reader.u32()?,
        hash: reader.array()?,
        inline: None,
    };
    match reader.u8()? {
        PIECE_CHUNK => Ok((piece, false)),
        PIECE_INLINE => Ok((piece, true)),
        _ => Err(reader.corrupt("unknown kind of piece")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let piece = |counter, inline: Option<&[u8]>| Piece {
            id: PieceId {
                epoch: Epoch(1),
                counter,
            },
            ino: Ino(7),
            file_offset: 4096,
            len: 3,
            hash: [5; 32],
            inline: inline.map(<[u8]>::to_vec),
        };
        Record {
            pos: Pos {
                epoch: Epoch(2),
                lsn: Lsn(77),
            },
            kind: RecordKind::Mutations,
            mutations: vec![
                Mutation {
                    table: Table::Inode,
                    key: vec![1, 2],
                    body: Some(vec![3]),
                },
                Mutation {
                    table: Table::Orphan,
                    key: vec![],
                    body: None,
                },
            ],
            pieces: vec![
                piece(1, Some(b"abc")),
                piece(2, None),
                piece(3, Some(b"xyz")),
            ],
        }
    }

    #[test]
    fn records_round_trip() {
        let encoded = record().encode();
        let (decoded, chained_len) = Record::decode(&encoded.bytes).unwrap();
        assert_eq!(decoded, record());
        assert_eq!(chained_len, encoded.chained_len);
    }

    /// As in `store/key.rs`: the bytes of format 2.
    #[test]
    fn the_bytes_of_format_2_never_change() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let encoded = record().encode();
        assert_eq!(
            hex(&encoded.bytes),
            "0101020000004d00000000000000020000000300000001010200010201000000030500000001000000010000000000000007000000000000000010000000000000030000000505050505050505050505050505050505050505050505050505050505050505010100000002000000000000000700000000000000001000000000000003000000050505050505050505050505050505050505050505050505050505050505050500010000000300000000000000070000000000000000100000000000000300000005050505050505050505050505050505050505050505050505050505050505050161626378797a"
        );
        assert_eq!(
            hex(&encoded.chain(&[9; CHAIN_BYTES])),
            "13b0422b1fa51ffd779d45c45ddfdb0c"
        );
        let place = crate::store::logfile::ChunkPlace {
            segment: crate::store::key::SegmentId(6),
            offset: 4096,
        };
        let store = hafs_protocol::StoreId::from_bytes([2; 16]);
        let frame = crate::store::logfile::encode_frame(
            store,
            b"record",
            &[9; CHAIN_BYTES],
            Lsn(0x0b),
            &[place],
        );
        assert_eq!(
            hex(&frame),
            "684c46324000000093203e7106000000010000000b00000000000000090909090909090909090909090909097265636f72640600000000000000001000000000"
        );
    }

    #[test]
    fn no_prefix_of_a_record_is_a_record() {
        let encoded = record().encode();
        for len in 0..encoded.bytes.len() {
            assert!(
                Record::decode(&encoded.bytes[..len]).is_err(),
                "prefix of {len} bytes"
            );
        }
    }

    #[test]
    fn any_flipped_bit_breaks_the_chain_or_lies_in_inline_data() {
        let encoded = record().encode();
        let good = encoded.chain(&[0; CHAIN_BYTES]);
        for at in 0..encoded.chained_len {
            let mut bytes = encoded.bytes.clone();
            bytes[at] ^= 1;
            assert_ne!(
                chain(&[0; CHAIN_BYTES], &bytes[..encoded.chained_len]),
                good
            );
        }
        assert_ne!(
            encoded.chain(&[1; CHAIN_BYTES]),
            good,
            "the past is part of the chain"
        );
    }
}
