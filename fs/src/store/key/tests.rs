//! Units of the schema: rows to bytes and back.

use super::*;

fn inode() -> Inode {
    Inode {
        kind: FileKind::Symlink,
        perm: 0o777,
        nlink: 2,
        uid: 1000,
        gid: 100,
        rdev: 7,
        size: 5,
        extent_bytes: 4097,
        atime: Time {
            secs: -1,
            nanos: 999_999_999,
        },
        mtime: Time { secs: 1, nanos: 2 },
        ctime: Time { secs: 3, nanos: 4 },
        crtime: Time { secs: 5, nanos: 6 },
        parent: Ino(9),
        target: b"there".to_vec(),
    }
}

fn piece() -> (PieceId, ExtentSource) {
    let id = PieceId {
        epoch: Epoch(3),
        counter: 1 << 40,
    };
    let source = ExtentSource::Piece {
        id,
        skip: 4,
        piece_len: 104,
        hash: [7; 32],
    };
    (id, source)
}

fn chunk() -> Place {
    Place::Segment(SegmentPlace {
        segment: SegmentId(3),
        offset: 8192,
        len: 5000,
        ino: Ino(4),
        file_offset: 12,
        crcs: vec![1, 2],
    })
}

#[test]
fn values_round_trip() {
    assert_eq!(Inode::decode(&inode().encode()).unwrap(), inode());
    let dentry = Dentry {
        ino: Ino(5),
        kind: FileKind::Fifo,
        name: b"a name".to_vec(),
    };
    assert_eq!(Dentry::decode(&dentry.encode()).unwrap(), dentry);
    let (id, source) = piece();
    for source in [source, ExtentSource::Unwritten] {
        let extent = Extent { len: 100, source };
        assert_eq!(Extent::decode(&extent.encode()).unwrap(), extent);
    }
    let place = chunk();
    assert_eq!(Place::decode(&place.encode()).unwrap(), place);
    assert_eq!(key_piece(&piece_key(id)).unwrap(), id);
    assert_eq!(
        Applied::decode(&Applied::EMPTY.encode()).unwrap(),
        Applied::EMPTY
    );
}

#[test]
fn cut_short_or_foreign_bytes_are_refused_not_trusted() {
    let whole = inode().encode();
    for len in 0..whole.len() - inode().target.len() {
        assert!(Inode::decode(&whole[..len]).is_err());
    }
    assert!(Extent::decode(&[0; 9]).is_err());
    assert!(Place::decode(&[VERSION, 1, 0]).is_err());
    assert!(Place::decode(&[9, 0]).is_err());
    assert!(row_body(&[VERSION, 0]).is_err());
}

/// Format 2 as bytes. If this fails, disks in the field cannot be read any more: a new format needs a new version byte.
#[test]
fn the_bytes_of_format_2_never_change() {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let (id, source) = piece();
    let place = chunk();
    let Place::Segment(of_chunk) = chunk() else {
        unreachable!("a chunk lies in a segment");
    };
    let suspect = Place::Segment(SegmentPlace {
        crcs: Vec::new(),
        ..of_chunk
    });
    assert_eq!(Place::decode(&suspect.encode()).unwrap(), suspect);
    let dentry = Dentry {
        ino: Ino(5),
        kind: FileKind::Fifo,
        name: b"a".to_vec(),
    };
    let pos = Pos {
        epoch: Epoch(2),
        lsn: Lsn(9),
    };
    let epochs = encode_epochs(&[EpochStart {
        first: pos,
        chain_before: [1; CHAIN_BYTES],
    }]);
    let usage = SegmentUse {
        end: 4096,
        live_bytes: 1,
    };
    for (bytes, expected) in [
        (
            inode().encode(),
            "03ff0102000000e8030000640000000700000005000000000000000110000000000000ffffffffffffffffffc99a3b01000000000000000200000003000000000000000400000005000000000000000600000009000000000000007468657265",
        ),
        (dentry.encode(), "05000000000000000461"),
        (
            Extent { len: 100, source }.encode(),
            "64000000000000000003000000000000000001000004000000680000000707070707070707070707070707070707070707070707070707070707070707",
        ),
        (
            place.encode(),
            "01010300000000000000002000008813000004000000000000000c000000000000000100000002000000",
        ),
        (
            suspect.encode(),
            "01020300000000000000002000008813000004000000000000000c00000000000000",
        ),
        (
            encode_losses(&[Loss {
                from: Lsn(3),
                to: Lsn(7),
                accepted: Time { secs: 1, nanos: 2 },
            }]),
            "0103000000000000000700000000000000010000000000000002000000",
        ),
        (usage.encode(), "0100100000000000000100000000000000"),
        (
            Applied::EMPTY.encode(),
            "0100000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000100000000000000",
        ),
        (
            epochs,
            "0102000000090000000000000001010101010101010101010101010101",
        ),
        (row(pos, b"body"), "01020000000900000000000000626f6479"),
        (piece_key(id).to_vec(), "000000030000010000000000"),
        (
            extent_key(Ino(1), 2).to_vec(),
            "00000000000000010000000000000002",
        ),
        (
            name_cookie(b"a name").to_be_bytes().to_vec(),
            "22957e91ca0ed900",
        ),
    ] {
        assert_eq!(hex(&bytes), expected);
    }
}

#[test]
fn cookies_leave_room_for_dot_entries_and_the_sign() {
    for name in [&b"a"[..], b"b", b"", &[0xff; 255]] {
        let cookie = name_cookie(name);
        assert!((256..1 << 62).contains(&cookie) && cookie.is_multiple_of(256));
    }
}
