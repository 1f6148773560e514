//! Every key and value that RocksDB holds, in one place: the schema of a volume's state. `docs/on-disk.md` draws it.
//!
//! Keys are big-endian, so that rows sort as numbers do; values are little-endian and start with a version byte. Tags are
//! never used again. Decoders take bytes from a disk: they answer [`FsError::Corrupt`], they never panic.

use hafs_protocol::{Epoch, Lsn, PieceId, Pos};

use crate::error::FsError;
use crate::store::codec::{Reader, VERSION, push_time};
use crate::store::digest::Digest;
use crate::store::logfile::ChunkPlace;
use crate::types::{Attr, FileKind, Ino, Time};

/// Tables that every copy of a volume holds, equal at the same [`Pos`]. The running digest covers these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// `ino` → [`Inode`].
    Inode,
    /// `parent ino, cookie` → [`Dentry`].
    Dentry,
    /// `ino, name` → value.
    Xattr,
    /// `ino, file offset` → [`Extent`].
    Extent,
    /// `ino` → nothing: unlinked, perhaps still open.
    Orphan,
}

impl Table {
    pub(crate) const ALL: [Self; 5] = [
        Self::Inode,
        Self::Dentry,
        Self::Xattr,
        Self::Extent,
        Self::Orphan,
    ];

    /// Column family.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Inode => "inode",
            Self::Dentry => "dentry",
            Self::Xattr => "xattr",
            Self::Extent => "extent",
            Self::Orphan => "orphan",
        }
    }

    /// Byte in records and in the digest.
    pub(crate) const fn tag(self) -> u8 {
        match self {
            Self::Inode => 1,
            Self::Dentry => 2,
            Self::Xattr => 3,
            Self::Extent => 4,
            Self::Orphan => 5,
        }
    }

    pub(crate) fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.tag() == tag)
    }
}

/// Tables of this copy alone: where pieces lie, how full segments are, how far the state has come. Not in the digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LocalTable {
    /// `piece id` → [`Place`].
    Piece,
    /// `segment, offset` → piece id: what a segment holds, for the collector.
    SegmentIndex,
    /// `segment` → [`SegmentUse`].
    Segment,
    /// Single rows: [`APPLIED_KEY`], [`EPOCHS_KEY`], [`LOSSES_KEY`].
    Local,
}

impl LocalTable {
    pub(crate) const ALL: [Self; 4] = [Self::Piece, Self::SegmentIndex, Self::Segment, Self::Local];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Piece => "piece",
            Self::SegmentIndex => "segment-index",
            Self::Segment => "segment",
            Self::Local => "local",
        }
    }
}

/// Row of [`LocalTable::Local`] that says how far the state has come.
pub(crate) const APPLIED_KEY: &[u8] = b"applied";
/// Row of [`LocalTable::Local`] with the epochs that this log has seen.
pub(crate) const EPOCHS_KEY: &[u8] = b"epochs";
/// Row of [`LocalTable::Local`] with what was lost of the log and given up.
pub(crate) const LOSSES_KEY: &[u8] = b"losses";

/// Version byte, epoch, lsn: the head of each replicated row.
pub(crate) const ROW_HEADER_BYTES: usize = 1 + 4 + 8;
/// Bytes that one checksum of chunk data covers.
pub(crate) const CRC_PAGE_BYTES: usize = 4096;
/// Length of a record chain.
pub(crate) const CHAIN_BYTES: usize = 16;
/// Chain value of a record: what it and everything before it hash to.
pub(crate) type Chain = [u8; CHAIN_BYTES];

/// A replicated row as stored: version, position of the record that wrote it, body.
pub(crate) fn row(pos: Pos, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ROW_HEADER_BYTES + body.len());
    out.push(VERSION);
    out.extend_from_slice(&pos.epoch.0.to_le_bytes());
    out.extend_from_slice(&pos.lsn.0.to_le_bytes());
    out.extend_from_slice(body);
    out
}

/// The body of a stored row.
pub(crate) fn row_body(raw: &[u8]) -> Result<&[u8], FsError> {
    let mut reader = Reader::new(raw, "row");
    reader.version()?;
    reader.bytes(ROW_HEADER_BYTES - 1)?;
    Ok(reader.rest())
}

/// Key of an inode or an orphan, and the prefix of everything that belongs to it.
pub(crate) fn ino_key(ino: Ino) -> [u8; 8] {
    ino.0.to_be_bytes()
}

/// The inode number that a key of any replicated table starts with.
pub(crate) fn key_ino(key: &[u8]) -> Result<Ino, FsError> {
    match key.first_chunk::<8>() {
        Some(bytes) => Ok(Ino(u64::from_be_bytes(*bytes))),
        None => Err(FsError::Corrupt("key without an inode number".to_owned())),
    }
}

/// Key of a dentry.
pub(crate) fn dentry_key(parent: Ino, cookie: u64) -> [u8; 16] {
    pair_key(parent.0, cookie)
}

/// Key of an extent.
pub(crate) fn extent_key(ino: Ino, offset: u64) -> [u8; 16] {
    pair_key(ino.0, offset)
}

fn pair_key(first: u64, second: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&first.to_be_bytes());
    key[8..].copy_from_slice(&second.to_be_bytes());
    key
}

/// The second number of a dentry's key (cookie) or an extent's (offset).
pub(crate) fn key_second(key: &[u8]) -> Result<u64, FsError> {
    match key.get(8..).and_then(|rest| <[u8; 8]>::try_from(rest).ok()) {
        Some(bytes) => Ok(u64::from_be_bytes(bytes)),
        None => Err(FsError::Corrupt("key of a wrong length".to_owned())),
    }
}

/// Key of an extended attribute.
pub(crate) fn xattr_key(ino: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + name.len());
    key.extend_from_slice(&ino.0.to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// Key of a piece.
pub(crate) fn piece_key(id: PieceId) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&id.epoch.0.to_be_bytes());
    key[4..].copy_from_slice(&id.counter.to_be_bytes());
    key
}

/// A piece's name from its key.
pub(crate) fn key_piece(key: &[u8]) -> Result<PieceId, FsError> {
    let key: &[u8; 12] = key
        .try_into()
        .map_err(|_| FsError::Corrupt("piece key of a wrong length".to_owned()))?;
    let (epoch, counter) = key.split_at(4);
    Ok(PieceId {
        epoch: Epoch(u32::from_be_bytes(epoch.try_into().expect("4 bytes"))),
        counter: u64::from_be_bytes(counter.try_into().expect("8 bytes")),
    })
}

/// Number of a segment of this store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentId(pub(crate) u64);

/// Key of a row about a segment.
pub(crate) fn segment_key(segment: SegmentId) -> [u8; 8] {
    segment.0.to_be_bytes()
}

/// Key of a place in a segment.
pub(crate) fn segment_index_key(segment: SegmentId, offset: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&segment.0.to_be_bytes());
    key[8..].copy_from_slice(&offset.to_be_bytes());
    key
}

/// The place that a key of the segments' index names.
pub(crate) fn key_segment_index(key: &[u8]) -> Result<(SegmentId, u32), FsError> {
    let key: &[u8; 12] = key
        .try_into()
        .map_err(|_| FsError::Corrupt("key of the segments' index of a wrong length".to_owned()))?;
    let (segment, offset) = key.split_at(8);
    Ok((
        SegmentId(u64::from_be_bytes(segment.try_into().expect("8 bytes"))),
        u32::from_be_bytes(offset.try_into().expect("4 bytes")),
    ))
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) kind: FileKind,
    pub(crate) perm: u16,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) size: u64,
    /// Sum of the lengths of its extents.
    pub(crate) extent_bytes: u64,
    pub(crate) atime: Time,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
    pub(crate) crtime: Time,
    /// A directory's parent (the root's is the root); 0 for others.
    pub(crate) parent: Ino,
    /// A symlink's target.
    pub(crate) target: Vec<u8>,
}

/// No file is longer: offsets are signed in every system call.
pub(crate) const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// Unit in which files' bytes count against a volume's size.
const ALLOCATION_UNIT_BYTES: u64 = 4096;
/// Unit in which everything else does. A row takes 100 to 400 bytes of the state, so that a volume full of empty files takes about
/// half its size.
pub(crate) const ROW_UNIT_BYTES: u64 = 512;
/// What an inode takes besides a symlink's target.
const INODE_ROW_BYTES: u64 = 256;
/// What a new empty file counts: its inode and its name.
pub(crate) const EMPTY_FILE_BYTES: u64 = 2 * ROW_UNIT_BYTES;

/// What a row counts against the volume's size, bytes. Depends on nothing but the row, so that all copies agree.
///
/// Extents count by what they hold: see [`Inode::allocated_bytes`].
pub(crate) fn charged_bytes(table: Table, key: &[u8], body: &[u8]) -> Result<u64, FsError> {
    let rows = |bytes: u64| bytes.next_multiple_of(ROW_UNIT_BYTES);
    Ok(match table {
        Table::Inode => {
            let inode = Inode::decode(body)?;
            inode.allocated_bytes() + rows(INODE_ROW_BYTES + inode.target.len() as u64)
        }
        Table::Dentry => ROW_UNIT_BYTES,
        // The key is the inode's number and the name.
        Table::Xattr => rows((key.len().saturating_sub(8) + body.len()) as u64),
        Table::Extent | Table::Orphan => 0,
    })
}

impl Inode {
    /// What the file's bytes count against the volume's size.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.extent_bytes.div_ceil(ALLOCATION_UNIT_BYTES) * ALLOCATION_UNIT_BYTES
    }

    pub(crate) fn attr(&self, ino: Ino) -> Attr {
        Attr {
            ino,
            kind: self.kind,
            perm: self.perm,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: self.size,
            allocated_bytes: self.allocated_bytes(),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            crtime: self.crtime,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(112 + self.target.len());
        out.push(kind_tag(self.kind));
        out.extend_from_slice(&self.perm.to_le_bytes());
        for field in [self.nlink, self.uid, self.gid, self.rdev] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.extent_bytes.to_le_bytes());
        for time in [self.atime, self.mtime, self.ctime, self.crtime] {
            push_time(&mut out, time);
        }
        out.extend_from_slice(&self.parent.0.to_le_bytes());
        out.extend_from_slice(&self.target);
        out
    }

    pub(crate) fn decode(body: &[u8]) -> Result<Self, FsError> {
        let mut reader = Reader::new(body, "inode");
        let inode = Self {
            kind: kind_from_tag(reader.u8()?)?,
            perm: reader.u16()?,
            nlink: reader.u32()?,
            uid: reader.u32()?,
            gid: reader.u32()?,
            rdev: reader.u32()?,
            size: reader.u64()?,
            extent_bytes: reader.u64()?,
            atime: reader.time()?,
            mtime: reader.time()?,
            ctime: reader.time()?,
            crtime: reader.time()?,
            parent: Ino(reader.u64()?),
            target: reader.bytes(reader.remaining())?.to_vec(),
        };
        if inode.size > FILE_BYTES_MAX || inode.extent_bytes > FILE_BYTES_MAX {
            return Err(reader.corrupt("longer than files can be"));
        }
        Ok(inode)
    }
}

const fn kind_tag(kind: FileKind) -> u8 {
    match kind {
        FileKind::File => 1,
        FileKind::Directory => 2,
        FileKind::Symlink => 3,
        FileKind::Fifo => 4,
        FileKind::Socket => 5,
        FileKind::CharDevice => 6,
        FileKind::BlockDevice => 7,
    }
}

fn kind_from_tag(tag: u8) -> Result<FileKind, FsError> {
    Ok(match tag {
        1 => FileKind::File,
        2 => FileKind::Directory,
        3 => FileKind::Symlink,
        4 => FileKind::Fifo,
        5 => FileKind::Socket,
        6 => FileKind::CharDevice,
        7 => FileKind::BlockDevice,
        _ => return Err(FsError::Corrupt(format!("unknown kind of inode {tag}"))),
    })
}

/// A name in a directory. Its key holds the parent and the cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dentry {
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
    pub(crate) name: Vec<u8>,
}

impl Dentry {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(9 + self.name.len());
        out.extend_from_slice(&self.ino.0.to_le_bytes());
        out.push(kind_tag(self.kind));
        out.extend_from_slice(&self.name);
        out
    }

    pub(crate) fn decode(body: &[u8]) -> Result<Self, FsError> {
        let mut reader = Reader::new(body, "dentry");
        Ok(Self {
            ino: Ino(reader.u64()?),
            kind: kind_from_tag(reader.u8()?)?,
            name: reader.rest().to_vec(),
        })
    }
}

/// Where dentries of a name start: 54 bits of its BLAKE3, then 8 bits that tell apart names of equal hash. Below 2^62, as
/// readdir's offsets must be positive; above 2, which `.` and `..` take.
pub(crate) fn name_cookie(name: &[u8]) -> u64 {
    let hash = blake3::hash(name);
    let bytes = hash
        .as_bytes()
        .first_chunk::<8>()
        .expect("a hash has 32 bytes");
    ((u64::from_le_bytes(*bytes) >> 10) | 1) << 8
}

/// Names of equal hash that one directory can hold.
pub(crate) const NAME_COLLISIONS_MAX: u64 = 256;

/// A run of a file's bytes. Its key holds the inode and where in the file it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Bytes.
    pub(crate) len: u64,
    /// Where they come from.
    pub(crate) source: ExtentSource,
}

/// Where an extent's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExtentSource {
    /// Reserved; reads as zeros.
    Unwritten,
    /// Part of a piece.
    Piece {
        /// Which.
        id: PieceId,
        /// Where in the piece the extent starts, bytes.
        skip: u32,
        /// The whole piece's length, bytes.
        piece_len: u32,
        /// BLAKE3 of the whole piece.
        hash: [u8; 32],
    },
}

impl Extent {
    /// The extent without its first `cut` bytes.
    pub(crate) fn tail(self, cut: u64) -> Self {
        assert!(cut < self.len, "an extent's tail is not empty");
        let source = match self.source {
            ExtentSource::Unwritten => ExtentSource::Unwritten,
            ExtentSource::Piece {
                id,
                skip,
                piece_len,
                hash,
            } => {
                let cut = u32::try_from(cut).expect("a piece is shorter than 4 GiB");
                ExtentSource::Piece {
                    id,
                    skip: skip + cut,
                    piece_len,
                    hash,
                }
            }
        };
        Self {
            len: self.len - cut,
            source,
        }
    }

    /// The part of the extent, which starts at `start`, that lies in `from..to`, and where that part starts.
    pub(crate) fn within(self, start: u64, from: u64, to: u64) -> Option<(u64, Self)> {
        let part_start = start.max(from);
        let part_end = (start + self.len).min(to);
        if part_start >= part_end {
            return None;
        }
        let tail = if part_start > start {
            self.tail(part_start - start)
        } else {
            self
        };
        Some((
            part_start,
            Self {
                len: part_end - part_start,
                ..tail
            },
        ))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(&self.len.to_le_bytes());
        match self.source {
            ExtentSource::Unwritten => out.push(1),
            ExtentSource::Piece {
                id,
                skip,
                piece_len,
                hash,
            } => {
                out.push(0);
                out.extend_from_slice(&id.epoch.0.to_le_bytes());
                out.extend_from_slice(&id.counter.to_le_bytes());
                out.extend_from_slice(&skip.to_le_bytes());
                out.extend_from_slice(&piece_len.to_le_bytes());
                out.extend_from_slice(&hash);
            }
        }
        out
    }

    /// The extent of this key, and where in the file it starts. Its end is an offset too.
    pub(crate) fn decode_at(key: &[u8], body: &[u8]) -> Result<(u64, Self), FsError> {
        let extent = Self::decode(body)?;
        let start = key_second(key)?;
        match start.checked_add(extent.len) {
            Some(end) if end <= FILE_BYTES_MAX => Ok((start, extent)),
            _ => Err(FsError::Corrupt(
                "an extent ends past all offsets".to_owned(),
            )),
        }
    }

    pub(crate) fn decode(body: &[u8]) -> Result<Self, FsError> {
        let mut reader = Reader::new(body, "extent");
        let len = reader.u64()?;
        let source = match reader.u8()? {
            1 => ExtentSource::Unwritten,
            0 => ExtentSource::Piece {
                id: PieceId {
                    epoch: Epoch(reader.u32()?),
                    counter: reader.u64()?,
                },
                skip: reader.u32()?,
                piece_len: reader.u32()?,
                hash: reader.array()?,
            },
            _ => return Err(reader.corrupt("unknown source")),
        };
        let fits = match source {
            ExtentSource::Unwritten => true,
            ExtentSource::Piece {
                skip, piece_len, ..
            } => u64::from(skip)
                .checked_add(len)
                .is_some_and(|end| end <= u64::from(piece_len)),
        };
        if len == 0 || !fits {
            return Err(reader.corrupt("length out of range"));
        }
        reader.end()?;
        Ok(Self { len, source })
    }
}

/// Where this copy keeps a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the row itself.
    Inline(Vec<u8>),
    /// In a segment.
    Segment(SegmentPlace),
}

/// A chunk in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentPlace {
    pub(crate) segment: SegmentId,
    /// Where in the segment's file, bytes; a multiple of [`CRC_PAGE_BYTES`].
    pub(crate) offset: u32,
    /// Bytes.
    pub(crate) len: u32,
    /// The file that the chunk was written for, and where in it: what a damaged chunk hits.
    pub(crate) ino: Ino,
    pub(crate) file_offset: u64,
    /// CRC32C of each [`CRC_PAGE_BYTES`]. Empty: the chunk did not match its hash when the log that names it was replayed,
    /// so each read has to compare the whole chunk with the hash that its extents hold.
    pub(crate) crcs: Vec<u32>,
}

impl SegmentPlace {
    /// Bytes that the chunk takes in its segment: whole pages.
    pub(crate) fn stored_bytes(&self) -> u64 {
        stored_bytes(self.len as usize)
    }

    /// As a frame of the log names it.
    pub(crate) fn chunk(&self) -> ChunkPlace {
        ChunkPlace {
            segment: self.segment,
            offset: self.offset,
        }
    }

    /// Was damaged when the log was replayed; perhaps it still is.
    pub(crate) fn is_suspect(&self) -> bool {
        self.crcs.is_empty()
    }
}

/// Bytes that a chunk of `len` bytes takes in a segment: whole pages.
pub(crate) fn stored_bytes(len: usize) -> u64 {
    (len.div_ceil(CRC_PAGE_BYTES) * CRC_PAGE_BYTES) as u64
}

impl Place {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self {
            Self::Inline(bytes) => {
                out.push(0);
                out.extend_from_slice(bytes);
            }
            Self::Segment(place) => {
                out.push(if place.is_suspect() { 2 } else { 1 });
                out.extend_from_slice(&place.segment.0.to_le_bytes());
                out.extend_from_slice(&place.offset.to_le_bytes());
                out.extend_from_slice(&place.len.to_le_bytes());
                out.extend_from_slice(&place.ino.0.to_le_bytes());
                out.extend_from_slice(&place.file_offset.to_le_bytes());
                for crc in &place.crcs {
                    out.extend_from_slice(&crc.to_le_bytes());
                }
            }
        }
        out
    }

    pub(crate) fn decode(raw: &[u8]) -> Result<Self, FsError> {
        let mut reader = Reader::new(raw, "piece");
        reader.version()?;
        match reader.u8()? {
            0 => Ok(Self::Inline(reader.rest().to_vec())),
            tag @ (1 | 2) => {
                let mut place = SegmentPlace {
                    segment: SegmentId(reader.u64()?),
                    offset: reader.u32()?,
                    len: reader.u32()?,
                    ino: Ino(reader.u64()?),
                    file_offset: reader.u64()?,
                    crcs: Vec::new(),
                };
                let pages = match tag {
                    1 => (place.len as usize).div_ceil(CRC_PAGE_BYTES),
                    _ => 0,
                };
                if place.len == 0 || reader.remaining() != pages * 4 {
                    return Err(reader.corrupt("wrong number of checksums"));
                }
                for _ in 0..pages {
                    place.crcs.push(reader.u32()?);
                }
                Ok(Self::Segment(place))
            }
            _ => Err(reader.corrupt("unknown place")),
        }
    }
}

/// How full a segment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentUse {
    /// Where its newest chunk ends, bytes from the start of the file.
    pub(crate) end: u64,
    /// Bytes of chunks that the state still names.
    pub(crate) live_bytes: u64,
}

impl SegmentUse {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.end.to_le_bytes());
        out.extend_from_slice(&self.live_bytes.to_le_bytes());
        out
    }

    pub(crate) fn decode(raw: &[u8]) -> Result<Self, FsError> {
        let mut reader = Reader::new(raw, "segment");
        reader.version()?;
        let value = Self {
            end: reader.u64()?,
            live_bytes: reader.u64()?,
        };
        reader.end()?;
        Ok(value)
    }
}

/// A place in the log's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogPlace {
    /// The file whose first record is this one.
    pub(crate) file: Lsn,
    /// Bytes from its start.
    pub(crate) offset: u64,
}

/// How far the state has come, and what it sums up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The newest record in the state.
    pub(crate) pos: Pos,
    /// Its chain.
    pub(crate) chain: Chain,
    /// Where its frame ends in this copy's log: the file, by its first lsn, and the offset in it. Replay starts there.
    pub(crate) log_end: LogPlace,
    /// Sum over all replicated rows.
    pub(crate) digest: Digest,
    /// What all inodes count against the volume's size, bytes.
    pub(crate) used_bytes: u64,
    /// Inodes.
    pub(crate) inodes: u64,
    /// The lowest inode number never given out.
    pub(crate) next_ino: Ino,
}

impl Applied {
    pub(crate) const EMPTY: Self = Self {
        pos: Pos {
            epoch: Epoch(0),
            lsn: Lsn(0),
        },
        chain: [0; CHAIN_BYTES],
        log_end: LogPlace {
            file: Lsn(0),
            offset: 0,
        },
        digest: Digest::EMPTY,
        used_bytes: 0,
        inodes: 0,
        next_ino: Ino::ROOT,
    };

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.push(VERSION);
        out.extend_from_slice(&self.pos.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.pos.lsn.0.to_le_bytes());
        out.extend_from_slice(&self.chain);
        out.extend_from_slice(&self.log_end.file.0.to_le_bytes());
        out.extend_from_slice(&self.log_end.offset.to_le_bytes());
        out.extend_from_slice(&self.digest.to_bytes());
        for field in [self.used_bytes, self.inodes, self.next_ino.0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(raw: &[u8]) -> Result<Self, FsError> {
        let mut reader = Reader::new(raw, "applied position");
        reader.version()?;
        let value = Self {
            pos: Pos {
                epoch: Epoch(reader.u32()?),
                lsn: Lsn(reader.u64()?),
            },
            chain: reader.array()?,
            log_end: LogPlace {
                file: Lsn(reader.u64()?),
                offset: reader.u64()?,
            },
            digest: Digest::from_bytes(reader.array()?),
            used_bytes: reader.u64()?,
            inodes: reader.u64()?,
            next_ino: Ino(reader.u64()?),
        };
        reader.end()?;
        Ok(value)
    }
}

/// One reign in this log: where it began and the chain before its first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochStart {
    pub(crate) first: Pos,
    pub(crate) chain_before: Chain,
}

pub(crate) fn encode_epochs(epochs: &[EpochStart]) -> Vec<u8> {
    let mut out = vec![VERSION];
    for start in epochs {
        out.extend_from_slice(&start.first.epoch.0.to_le_bytes());
        out.extend_from_slice(&start.first.lsn.0.to_le_bytes());
        out.extend_from_slice(&start.chain_before);
    }
    out
}

pub(crate) fn decode_epochs(raw: &[u8]) -> Result<Vec<EpochStart>, FsError> {
    let mut reader = Reader::new(raw, "epoch table");
    reader.version()?;
    let mut epochs = Vec::new();
    while reader.remaining() > 0 {
        epochs.push(EpochStart {
            first: Pos {
                epoch: Epoch(reader.u32()?),
                lsn: Lsn(reader.u64()?),
            },
            chain_before: reader.array()?,
        });
    }
    Ok(epochs)
}

/// Records that an operator gave up, since they could not be read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The first of them. Its number, and those after it, were given to other records since.
    pub from: Lsn,
    /// The last of them, as far as anybody knew.
    pub to: Lsn,
    /// When they were given up.
    pub accepted: Time,
}

pub(crate) fn encode_losses(losses: &[Loss]) -> Vec<u8> {
    let mut out = vec![VERSION];
    for loss in losses {
        out.extend_from_slice(&loss.from.0.to_le_bytes());
        out.extend_from_slice(&loss.to.0.to_le_bytes());
        push_time(&mut out, loss.accepted);
    }
    out
}

pub(crate) fn decode_losses(raw: &[u8]) -> Result<Vec<Loss>, FsError> {
    let mut reader = Reader::new(raw, "losses");
    reader.version()?;
    let mut losses = Vec::new();
    while reader.remaining() > 0 {
        losses.push(Loss {
            from: Lsn(reader.u64()?),
            to: Lsn(reader.u64()?),
            accepted: reader.time()?,
        });
    }
    Ok(losses)
}

#[cfg(test)]
mod tests;
