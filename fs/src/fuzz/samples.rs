//! What the decoders read in practice: the seeds that mutations start from, and a fixture of format 2.

use hafs_protocol::{Epoch, Lsn, PieceId, Pos};

use super::{IDENTITY, STORE};
use crate::record::{Mutation, Piece, Record, RecordKind};
use crate::store::digest::Digest;
use crate::store::key::{
    Applied, Dentry, EpochStart, Extent, ExtentSource, Inode, LogPlace, Loss, Place, SegmentId,
    SegmentPlace, SegmentUse, Table, encode_epochs, encode_losses, extent_key, ino_key, piece_key,
    row, segment_index_key, xattr_key,
};
use crate::store::logfile::{ChunkPlace, encode_frame, encode_header};
use crate::store::mark;
use crate::types::{FileKind, Ino, Time};

type Samples = Vec<(&'static str, Vec<u8>)>;

pub(super) const POS: Pos = Pos {
    epoch: Epoch(2),
    lsn: Lsn(77),
};

const PIECE: PieceId = PieceId {
    epoch: Epoch(2),
    counter: 1 << 40,
};

fn file_inode() -> Inode {
    let time = |secs, nanos| Time { secs, nanos };
    Inode {
        kind: FileKind::File,
        perm: 0o4755,
        nlink: 1,
        uid: 1000,
        gid: 1000,
        rdev: 0,
        size: 1 << 20,
        extent_bytes: 1 << 20,
        atime: time(1_700_000_000, 1),
        mtime: time(1_700_000_001, 999_999_999),
        ctime: time(-1, 5),
        crtime: time(0, 0),
        parent: Ino(0),
        target: Vec::new(),
    }
}

fn piece_extent(skip: u32, len: u64) -> Extent {
    let source = ExtentSource::Piece {
        id: PIECE,
        skip,
        piece_len: 131_072,
        hash: [7; 32],
    };
    Extent { len, source }
}

fn piece(counter: u64, inline: Option<&[u8]>) -> Piece {
    Piece {
        id: PieceId { counter, ..PIECE },
        ino: Ino(5),
        file_offset: counter * 131_072,
        len: inline.map_or(131_072, |bytes| u32::try_from(bytes.len()).expect("short")),
        hash: [5; 32],
        inline: inline.map(<[u8]>::to_vec),
    }
}

/// A write of a chunk and of inline bytes to a file that has an extent at its end.
fn write_record() -> Record {
    let put = |table, key: &[u8], body: Vec<u8>| Mutation {
        table,
        key: key.to_vec(),
        body: Some(body),
    };
    Record {
        pos: POS,
        kind: RecordKind::Mutations,
        mutations: vec![
            put(Table::Inode, &ino_key(Ino(5)), file_inode().encode()),
            Mutation {
                table: Table::Extent,
                key: extent_key(Ino(5), 131_072).to_vec(),
                body: None,
            },
            put(
                Table::Extent,
                &extent_key(Ino(5), 0),
                piece_extent(0, 131_072).encode(),
            ),
            put(Table::Xattr, &xattr_key(Ino(5), b"user.k"), b"v".to_vec()),
            put(Table::Orphan, &ino_key(Ino(6)), Vec::new()),
        ],
        pieces: vec![
            piece(1, None),
            piece(2, Some(b"inline bytes")),
            piece(3, None),
        ],
    }
}

fn epoch_record() -> Record {
    Record {
        pos: POS,
        kind: RecordKind::EpochStart,
        mutations: Vec::new(),
        pieces: Vec::new(),
    }
}

pub(super) fn records() -> Samples {
    vec![
        ("write", write_record().encode().bytes),
        ("epoch", epoch_record().encode().bytes),
    ]
}

pub(super) fn frames() -> Samples {
    let place = |segment| ChunkPlace {
        segment: SegmentId(segment),
        offset: 8192,
    };
    let before = [9; 16];
    let framed = |record: &Record, places: &[ChunkPlace]| {
        let encoded = record.encode();
        encode_frame(
            STORE,
            &encoded.bytes,
            &encoded.chain(&before),
            Lsn(70),
            places,
        )
    };
    vec![
        ("write", framed(&write_record(), &[place(1), place(2)])),
        ("epoch", framed(&epoch_record(), &[])),
    ]
}

pub(super) fn log_headers() -> Samples {
    vec![
        ("first", encode_header(STORE, Lsn(1), &[0; 16])),
        ("later", encode_header(STORE, Lsn(1 << 40), &[8; 16])),
    ]
}

pub(super) fn mark_slots() -> Samples {
    vec![
        ("new", mark::encode_slot(Lsn(0)).to_vec()),
        ("later", mark::encode_slot(Lsn(123_456_789)).to_vec()),
    ]
}

pub(super) fn identities() -> Samples {
    vec![("volume", IDENTITY.encode())]
}

pub(super) fn rows() -> Samples {
    vec![
        ("empty", row(POS, b"")),
        ("inode", row(POS, &file_inode().encode())),
    ]
}

pub(super) fn keys() -> Samples {
    vec![
        ("inode", ino_key(Ino(5)).to_vec()),
        ("extent", extent_key(Ino(5), 1 << 40).to_vec()),
        ("xattr", xattr_key(Ino(5), b"user.name")),
        ("piece", piece_key(PIECE).to_vec()),
        (
            "segment_index",
            segment_index_key(SegmentId(3), 8192).to_vec(),
        ),
    ]
}

pub(super) fn inodes() -> Samples {
    let symlink = Inode {
        kind: FileKind::Symlink,
        target: b"../elsewhere".to_vec(),
        ..file_inode()
    };
    vec![
        ("file", file_inode().encode()),
        ("symlink", symlink.encode()),
    ]
}

pub(super) fn dentries() -> Samples {
    let dentry = |name: &[u8]| Dentry {
        ino: Ino(5),
        kind: FileKind::Directory,
        name: name.to_vec(),
    };
    vec![
        ("short", dentry(b"a").encode()),
        ("long", dentry(&[0xff; 255]).encode()),
    ]
}

pub(super) fn extents() -> Samples {
    let at = |start: u64, extent: Extent| {
        let mut bytes = start.to_be_bytes().to_vec();
        bytes.extend_from_slice(&extent.encode());
        bytes
    };
    let reserved = Extent {
        len: 1 << 30,
        source: ExtentSource::Unwritten,
    };
    vec![
        ("whole", at(131_072, piece_extent(0, 131_072))),
        ("part", at(1 << 40, piece_extent(4096, 4097))),
        ("reserved", at(0, reserved)),
    ]
}

pub(super) fn places() -> Samples {
    let chunk = SegmentPlace {
        segment: SegmentId(3),
        offset: 8192,
        len: 9000,
        ino: Ino(5),
        file_offset: 131_072,
        crcs: vec![1, 2, 3],
    };
    let suspect = SegmentPlace {
        crcs: Vec::new(),
        ..chunk.clone()
    };
    vec![
        ("suspect", Place::Segment(suspect).encode()),
        ("inline", Place::Inline(b"some bytes".to_vec()).encode()),
        ("segment", Place::Segment(chunk).encode()),
    ]
}

pub(super) fn segment_uses() -> Samples {
    let value = SegmentUse {
        end: 1 << 26,
        live_bytes: 4096,
    };
    vec![("half", value.encode())]
}

pub(super) fn applied() -> Samples {
    let later = Applied {
        pos: POS,
        chain: [6; 16],
        log_end: LogPlace {
            file: Lsn(70),
            offset: 8192,
        },
        digest: Digest::from_bytes([0xee; 32]),
        used_bytes: 1 << 30,
        inodes: 3,
        next_ino: Ino(9),
    };
    vec![
        ("empty", Applied::EMPTY.encode()),
        ("later", later.encode()),
    ]
}

pub(super) fn epochs() -> Samples {
    let start = EpochStart {
        first: POS,
        chain_before: [1; 16],
    };
    vec![
        ("none", encode_epochs(&[])),
        ("three", encode_epochs(&[start; 3])),
    ]
}

pub(super) fn losses() -> Samples {
    let loss = Loss {
        from: Lsn(5),
        to: Lsn(9),
        accepted: Time { secs: 7, nanos: 8 },
    };
    vec![
        ("none", encode_losses(&[])),
        ("two", encode_losses(&[loss; 2])),
    ]
}

/// A list without entries: its version.
pub(super) const NO_ACL: [u8; 4] = [2, 0, 0, 0];

pub(super) fn acls() -> Samples {
    // Tag, permissions, id; the tags are the owner's, a user's, the group's, the mask, the others'.
    let list = |entries: &[(u16, u16, u32)]| {
        let mut bytes = NO_ACL.to_vec();
        for (tag, perm, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(perm.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    };
    let none = u32::MAX;
    let (owner, group, others) = ((0x01, 7, none), (0x04, 5, none), (0x20, 0, none));
    vec![
        ("none", list(&[])),
        ("of_the_mode", list(&[owner, group, others])),
        (
            "named",
            list(&[owner, (0x02, 6, 1000), group, (0x10, 7, none), others]),
        ),
    ]
}

pub(super) fn mount_tables() -> Samples {
    let lines = b"36 35 98:0 / / rw,noatime shared:1 - ext3 /dev/root rw,errors=continue\n\
        61 36 0:52 / /mnt/with\\040space rw,nosuid shared:7 - fuse.hafs pg rw,user_id=0\n\
        62 61 0:52 /sub /srv/data ro - fuse.hafs pg rw,user_id=0\n";
    vec![("three", lines.to_vec())]
}
