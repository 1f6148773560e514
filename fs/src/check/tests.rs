//! Units of the check. [`CASES`] makes every kind of problem, by a row (or a byte) that no operation writes, and says exactly what
//! is to be found then.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use hafs_protocol::Pos;

use super::*;
use crate::store::key::{
    Extent, ExtentSource, SegmentPlace, dentry_key, extent_key, row, segment_index_key, xattr_key,
};
use crate::store::memtable::{AnyTable, Batch};
use crate::store::state::tables;
use crate::types::{Caller, XattrMode};
use crate::volume::Volume;
use crate::volume::tests::{Fixture, file};

/// Nobody has this number.
const NOBODY: Ino = Ino(99);
const INLINE_BYTES: u64 = 5000;
/// The first of the chunks; the second is the rest.
const CHUNK_BYTES: u64 = 128 * 1024;
const CHUNKS_BYTES: u64 = 200_000;

/// A volume that is whole, until a case hurts it.
struct Patient {
    volume: Option<Volume>,
    fixture: Fixture,
    /// `/inline`: one piece, in its row.
    inline: Ino,
    /// `/chunks`: two pieces, in segment 1.
    chunks: Ino,
    /// `/outer` and `/outer/inner`, directories.
    outer: Ino,
    inner: Ino,
    /// A file without a name.
    orphan: Ino,
}

impl Patient {
    fn new() -> Self {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let directory = |parent, name: &[u8]| {
            let made = volume.mkdir(Caller::ROOT, parent, name, 0o755);
            made.unwrap().ino
        };
        let (inline, chunks) = (file(&volume, b"inline"), file(&volume, b"chunks"));
        let outer = directory(Ino::ROOT, b"outer");
        let inner = directory(outer, b"inner");
        let orphan = file(&volume, b"orphan");
        let write = |ino, len| {
            let bytes = vec![7; usize::try_from(len).unwrap()];
            volume.write(ino, 0, &bytes, false, false).unwrap();
        };
        write(inline, INLINE_BYTES);
        write(chunks, CHUNKS_BYTES);
        volume
            .setxattr(Caller::ROOT, inline, b"user.k", b"v", XattrMode::Set)
            .unwrap();
        volume.unlink(Ino::ROOT, b"orphan").unwrap();
        Self {
            volume: Some(volume),
            fixture,
            inline,
            chunks,
            outer,
            inner,
            orphan,
        }
    }

    fn volume(&self) -> &Volume {
        self.volume.as_ref().unwrap()
    }

    fn store(&self) -> &Store {
        self.volume().store()
    }

    /// Writes a row by a record: digest and sums are right for it.
    fn put(&self, table: Table, key: &[u8], body: Vec<u8>) {
        self.volume().change_rows(|txn| txn.put(table, key, body));
    }

    fn remove(&self, table: Table, key: &[u8]) {
        self.volume().change_rows(|txn| txn.del(table, key));
    }

    fn change_inode(&self, ino: Ino, change: impl FnOnce(&mut Inode)) {
        self.volume().change_rows(|txn| {
            let mut inode = txn.inode(ino)?;
            change(&mut inode);
            txn.put_inode(ino, &inode)
        });
    }

    /// Writes a row into the state alone. `None`: takes it away.
    fn write(&self, table: impl Into<AnyTable>, key: &[u8], raw: Option<Vec<u8>>) {
        let mut batch = Batch::default();
        match raw {
            Some(raw) => batch.put(table, key, raw),
            None => batch.delete(table, key),
        }
        self.store().write(batch);
    }

    fn write_local(&self, table: LocalTable, key: &[u8], raw: Option<Vec<u8>>) {
        self.write(table, key, raw);
    }

    /// A replicated row that nobody can decode.
    fn spoil(&self, table: Table, key: &[u8]) {
        assert!(self.store().raw(table, key).unwrap().is_some());
        let spoilt = row(Pos::default(), b"");
        self.write(table, key, Some(spoilt));
    }

    fn change_applied(&self, change: impl FnOnce(&mut Applied)) {
        let raw = self.store().local(LocalTable::Local, APPLIED_KEY);
        let mut applied = Applied::decode(&raw.unwrap().unwrap()).unwrap();
        change(&mut applied);
        self.write_local(LocalTable::Local, APPLIED_KEY, Some(applied.encode()));
    }

    fn extent(&self, ino: Ino, start: u64) -> Extent {
        let body = self.store().body(Table::Extent, &extent_key(ino, start));
        Extent::decode(&body.unwrap().unwrap()).unwrap()
    }

    fn put_extent(&self, ino: Ino, start: u64, extent: Extent) {
        self.put(Table::Extent, &extent_key(ino, start), extent.encode());
    }

    /// The piece that a file has at `start`.
    fn piece(&self, ino: Ino, start: u64) -> PieceId {
        match self.extent(ino, start).source {
            ExtentSource::Piece { id, .. } => id,
            ExtentSource::Unwritten => panic!("reserved"),
        }
    }

    fn inline_piece(&self) -> PieceId {
        self.piece(self.inline, 0)
    }

    /// Where the first of the chunks lies, and its name.
    fn chunk(&self) -> (PieceId, SegmentPlace) {
        let id = self.piece(self.chunks, 0);
        let raw = self.store().local(LocalTable::Piece, &piece_key(id));
        match Place::decode(&raw.unwrap().unwrap()).unwrap() {
            Place::Segment(place) => (id, place),
            Place::Inline(_) => panic!("inline"),
        }
    }

    fn put_place(&self, id: PieceId, place: &Place) {
        self.write_local(LocalTable::Piece, &piece_key(id), Some(place.encode()));
    }

    fn add_name(&self, parent: Ino, cookie: u64, name: &[u8], ino: Ino, kind: FileKind) {
        let name = name.to_vec();
        let dentry = Dentry { ino, kind, name };
        self.put(Table::Dentry, &dentry_key(parent, cookie), dentry.encode());
    }

    /// Moves the name `inline` so far.
    fn move_name(&self, by: u64) {
        let cookie = name_cookie(b"inline");
        self.remove(Table::Dentry, &dentry_key(Ino::ROOT, cookie));
        let kind = FileKind::File;
        self.add_name(Ino::ROOT, cookie + by, b"inline", self.inline, kind);
    }

    fn write_segment(&self, offset: u64, bytes: &[u8]) {
        let path = self.store().segments_dir().join(SEGMENT_1);
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    /// Lets `hurt` have the directory while nobody uses it.
    fn while_closed(&mut self, hurt: impl FnOnce(&Path)) {
        let volume = self.volume.take().unwrap();
        let dir = volume.dir();
        drop(volume);
        hurt(&dir);
        self.volume = Some(self.fixture.open());
    }
}

const SEGMENT_1: &str = "0000000000000001.seg";

/// What is to be found: the kind, the inode, its bytes, the words.
type Expected = (ProblemKind, Option<Ino>, Option<Range<u64>>, String);

fn of_volume(kind: ProblemKind, what: &str) -> Expected {
    (kind, None, None, what.to_owned())
}

fn of_inode(kind: ProblemKind, ino: Ino, what: &str) -> Expected {
    (kind, Some(ino), None, what.to_owned())
}

fn of_bytes(kind: ProblemKind, ino: Ino, bytes: Range<u64>, what: &str) -> Expected {
    (kind, Some(ino), Some(bytes), what.to_owned())
}

/// Hurts a volume, and says what is to be found.
type Case = fn(&mut Patient) -> Vec<Expected>;

const CASES: &[(&str, Case)] = &[
    ("an inode that cannot be decoded", |patient| {
        patient.spoil(Table::Inode, &ino_key(patient.inline));
        let what = "the state's table `inode`: the volume's store is damaged: inode: too short";
        vec![of_inode(ProblemKind::LostRow, patient.inline, what)]
    }),
    ("a name that cannot be decoded", |patient| {
        let key = dentry_key(Ino::ROOT, name_cookie(b"inline"));
        patient.spoil(Table::Dentry, &key);
        let what = "the state's table `dentry`: the volume's store is damaged: dentry: too short";
        vec![of_inode(ProblemKind::LostRow, Ino::ROOT, what)]
    }),
    ("an extent that cannot be decoded", |patient| {
        patient.spoil(Table::Extent, &extent_key(patient.inline, 0));
        let what = "the state's table `extent`: the volume's store is damaged: extent: too short";
        vec![of_inode(ProblemKind::LostRow, patient.inline, what)]
    }),
    ("a place that cannot be decoded", |patient| {
        let key = piece_key(patient.inline_piece());
        patient.write_local(LocalTable::Piece, &key, Some(vec![1]));
        let why = "the volume's store is damaged: piece: too short";
        let bytes = 0..INLINE_BYTES;
        let what = format!("where they lie cannot be read: {why}");
        let row = format!("the state's table `piece`: {why}");
        vec![
            of_bytes(ProblemKind::LostPlace, patient.inline, bytes, &what),
            of_volume(ProblemKind::LostRow, &row),
        ]
    }),
    ("a wrong digest", |patient| {
        patient.change_applied(|applied| applied.digest = Digest::EMPTY);
        let what = "the digest over all rows is not the one kept";
        vec![of_volume(ProblemKind::Digest, what)]
    }),
    ("a row that no record wrote", |patient| {
        let (key, pos) = (xattr_key(patient.inline, b"user.k"), Pos::default());
        patient.write(Table::Xattr, &key, Some(row(pos, b"w")));
        let what = "the digest over all rows is not the one kept";
        vec![of_volume(ProblemKind::Digest, what)]
    }),
    ("a wrong number of inodes", |patient| {
        patient.change_applied(|applied| applied.inodes += 1);
        vec![of_volume(ProblemKind::InodeCount, "6 inodes, 7 kept")]
    }),
    ("wrong bytes in use", |patient| {
        let mut used_bytes = 0;
        patient.change_applied(|applied| {
            used_bytes = applied.used_bytes;
            applied.used_bytes += 512;
        });
        let what = format!("{used_bytes} bytes in use, {} kept", used_bytes + 512);
        vec![of_volume(ProblemKind::UsedBytes, &what)]
    }),
    ("an inode number to come that is in use", |patient| {
        let highest = patient.orphan;
        patient.change_applied(|applied| applied.next_ino = highest);
        let what = "an inode number that was not given out yet is in use";
        vec![of_volume(ProblemKind::InodeNumber, what)]
    }),
    ("a directory with two names", |patient| {
        // Counted as a subdirectory, so that nothing else is wrong.
        patient.change_inode(Ino::ROOT, |root| root.nlink += 1);
        let (cookie, kind) = (name_cookie(b"again"), FileKind::Directory);
        patient.add_name(Ino::ROOT, cookie, b"again", patient.inner, kind);
        let what = "a directory with two names";
        vec![of_inode(ProblemKind::TwoNames, patient.inner, what)]
    }),
    ("a name at another one's place", |patient| {
        patient.move_name(NAME_COLLISIONS_MAX);
        let what = "the name \"inline\" stands at a wrong place";
        vec![of_inode(ProblemKind::MisplacedName, Ino::ROOT, what)]
    }),
    ("a gap among names of equal hash", |patient| {
        patient.move_name(1);
        let what = "a gap before the name \"inline\"";
        vec![of_inode(ProblemKind::NameGap, Ino::ROOT, what)]
    }),
    ("a name of nothing", |patient| {
        let (cookie, kind) = (name_cookie(b"ghost"), FileKind::File);
        patient.add_name(Ino::ROOT, cookie, b"ghost", NOBODY, kind);
        let what = "has a name but does not exist";
        vec![of_inode(ProblemKind::NameOfNothing, NOBODY, what)]
    }),
    ("a name in a directory that is gone", |patient| {
        let (cookie, kind) = (name_cookie(b"lost"), FileKind::File);
        patient.change_inode(patient.inline, |inode| inode.nlink = 2);
        patient.add_name(NOBODY, cookie, b"lost", patient.inline, kind);
        let what = "names in a directory that does not exist";
        vec![of_inode(ProblemKind::NamesInNothing, NOBODY, what)]
    }),
    ("a name in a directory that was removed", |patient| {
        let (cookie, kind) = (name_cookie(b"lost"), FileKind::File);
        patient.change_inode(patient.inner, |inode| inode.nlink = 0);
        patient.change_inode(patient.outer, |outer| outer.nlink -= 1);
        patient.remove(
            Table::Dentry,
            &dentry_key(patient.outer, name_cookie(b"inner")),
        );
        patient.put(Table::Orphan, &ino_key(patient.inner), Vec::new());
        patient.change_inode(patient.inline, |inode| inode.nlink = 2);
        patient.add_name(patient.inner, cookie, b"lost", patient.inline, kind);
        let what = "names in a directory that was removed";
        vec![of_inode(ProblemKind::NamesInNothing, patient.inner, what)]
    }),
    ("a name in a file", |patient| {
        let (cookie, kind) = (name_cookie(b"lost"), FileKind::File);
        patient.change_inode(patient.inline, |inode| inode.nlink = 2);
        patient.add_name(patient.chunks, cookie, b"lost", patient.inline, kind);
        let what = "names in what is no directory";
        vec![of_inode(ProblemKind::NamesInNothing, patient.chunks, what)]
    }),
    ("a name that takes a file for a pipe", |patient| {
        let (cookie, kind) = (name_cookie(b"inline"), FileKind::Fifo);
        patient.add_name(Ino::ROOT, cookie, b"inline", patient.inline, kind);
        let what = "is a File, and a name says otherwise";
        vec![of_inode(ProblemKind::NameKind, patient.inline, what)]
    }),
    ("names that take a file for different things", |patient| {
        let (cookie, kind) = (name_cookie(b"other"), FileKind::Fifo);
        patient.change_inode(patient.inline, |inode| inode.nlink = 2);
        patient.add_name(Ino::ROOT, cookie, b"other", patient.inline, kind);
        let what = "is a File, and a name says otherwise";
        vec![of_inode(ProblemKind::NameKind, patient.inline, what)]
    }),
    ("an extent of nobody", |patient| {
        let (len, source) = (4096, ExtentSource::Unwritten);
        patient.put_extent(NOBODY, 0, Extent { len, source });
        let what = "an entry in table extent but no inode";
        vec![of_inode(ProblemKind::NobodysRow, NOBODY, what)]
    }),
    ("an attribute of nobody", |patient| {
        let key = xattr_key(NOBODY, b"user.k");
        patient.put(Table::Xattr, &key, b"v".to_vec());
        let what = "an entry in table xattr but no inode";
        vec![of_inode(ProblemKind::NobodysRow, NOBODY, what)]
    }),
    ("an orphan that is not there", |patient| {
        patient.put(Table::Orphan, &ino_key(NOBODY), Vec::new());
        let what = "an entry in table orphan but no inode";
        vec![of_inode(ProblemKind::NobodysRow, NOBODY, what)]
    }),
    ("an attribute of who is gone, between others", |patient| {
        patient.remove(Table::Orphan, &ino_key(patient.orphan));
        patient.remove(Table::Inode, &ino_key(patient.orphan));
        let key = xattr_key(patient.orphan, b"user.k");
        patient.put(Table::Xattr, &key, b"v".to_vec());
        file(patient.volume(), b"later");
        let what = "an entry in table xattr but no inode";
        vec![of_inode(ProblemKind::NobodysRow, patient.orphan, what)]
    }),
    ("a wrong link count of a file", |patient| {
        patient.change_inode(patient.inline, |inode| inode.nlink = 2);
        let what = "link count 2 where names say 1";
        vec![of_inode(ProblemKind::LinkCount, patient.inline, what)]
    }),
    ("a wrong link count of a directory", |patient| {
        patient.change_inode(patient.outer, |inode| inode.nlink = 2);
        let what = "link count 2 where names say 3";
        vec![of_inode(ProblemKind::LinkCount, patient.outer, what)]
    }),
    ("a file without a name that is no orphan", |patient| {
        patient.remove(Table::Orphan, &ino_key(patient.orphan));
        let what = "no names, but not on the orphan list, or both";
        vec![of_inode(ProblemKind::Orphan, patient.orphan, what)]
    }),
    ("an orphan with a name", |patient| {
        patient.put(Table::Orphan, &ino_key(patient.inline), Vec::new());
        let what = "no names, but not on the orphan list, or both";
        vec![of_inode(ProblemKind::Orphan, patient.inline, what)]
    }),
    ("a wrong parent", |patient| {
        patient.change_inode(patient.inner, |inode| inode.parent = Ino::ROOT);
        let what = "its parent is not the directory that names it";
        vec![of_inode(ProblemKind::Parent, patient.inner, what)]
    }),
    ("a root below something", |patient| {
        let outer = patient.outer;
        patient.change_inode(Ino::ROOT, |root| root.parent = outer);
        let what = "its parent is not the directory that names it";
        vec![of_inode(ProblemKind::Parent, Ino::ROOT, what)]
    }),
    ("extents that overlap", |patient| {
        patient.change_inode(patient.chunks, |inode| inode.extent_bytes += 4096);
        let (len, source) = (4096, ExtentSource::Unwritten);
        patient.put_extent(patient.chunks, 8192, Extent { len, source });
        let what = "extents overlap at byte 8192";
        vec![of_inode(ProblemKind::ExtentOverlap, patient.chunks, what)]
    }),
    ("bytes past the end", |patient| {
        patient.change_inode(patient.chunks, |inode| inode.size -= 1);
        let what = format!("bytes past the end, at {CHUNK_BYTES}");
        vec![of_inode(ProblemKind::BytesPastEnd, patient.chunks, &what)]
    }),
    ("an extent before its piece", |patient| {
        let ino = patient.inline;
        let tail = patient.extent(ino, 0).tail(1);
        patient.change_inode(ino, |inode| inode.extent_bytes -= 1);
        patient.put_extent(ino, 0, tail);
        vec![
            of_inode(
                ProblemKind::ExtentBeforePiece,
                ino,
                "an extent at 0 before its piece",
            ),
            of_volume(
                ProblemKind::UnusedPieces,
                "1 pieces are kept that no extent names",
            ),
        ]
    }),
    ("extents that disagree about their piece", |patient| {
        let whole = patient.extent(patient.inline, 0);
        let id = patient.inline_piece();
        let (_, head) = whole.within(0, 0, 1000).unwrap();
        let (_, mut tail) = whole.within(0, 1000, INLINE_BYTES).unwrap();
        if let ExtentSource::Piece { hash, .. } = &mut tail.source {
            hash[0] ^= 1;
        }
        patient.put_extent(patient.inline, 0, head);
        patient.put_extent(patient.inline, 1000, tail);
        let what = format!("extents disagree about piece {id}");
        vec![of_inode(
            ProblemKind::PieceDisagreement,
            patient.inline,
            &what,
        )]
    }),
    ("a wrong sum of extents", |patient| {
        patient.change_inode(patient.inline, |inode| inode.extent_bytes += 1);
        let what = "extents hold 5000 bytes, the inode says 5001";
        vec![of_inode(ProblemKind::ExtentBytes, patient.inline, what)]
    }),
    ("a missing extent", |patient| {
        patient.remove(Table::Extent, &extent_key(patient.inline, 0));
        let what = "extents hold 0 bytes, the inode says 5000";
        vec![of_inode(ProblemKind::ExtentBytes, patient.inline, what)]
    }),
    ("a piece that is nowhere", |patient| {
        let id = patient.inline_piece();
        patient.write_local(LocalTable::Piece, &piece_key(id), None);
        let (bytes, what) = (0..INLINE_BYTES, format!("piece {id} is nowhere"));
        vec![of_bytes(
            ProblemKind::MissingPiece,
            patient.inline,
            bytes,
            &what,
        )]
    }),
    ("a piece of two files", |patient| {
        let (extent, other) = (patient.extent(patient.inline, 0), patient.orphan);
        patient.change_inode(other, |inode| {
            (inode.size, inode.extent_bytes) = (INLINE_BYTES, INLINE_BYTES);
        });
        patient.put_extent(other, 0, extent);
        let what = "1 pieces are named from more than one place";
        vec![of_volume(ProblemKind::SharedPiece, what)]
    }),
    ("a piece that another one of the file covers", |patient| {
        let ino = patient.inline;
        let extent = patient.extent(ino, 0);
        patient.change_inode(ino, |inode| {
            (inode.size, inode.extent_bytes) = (2 * INLINE_BYTES, 2 * INLINE_BYTES);
        });
        patient.put_extent(ino, INLINE_BYTES, extent);
        let what = format!("extents disagree about piece {}", patient.inline_piece());
        vec![of_inode(ProblemKind::PieceDisagreement, ino, &what)]
    }),
    ("a chunk of another file", |patient| {
        let (id, mut place) = patient.chunk();
        place.ino = patient.inline;
        patient.put_place(id, &Place::Segment(place));
        let (bytes, what) = (0..CHUNK_BYTES, format!("chunk {id} is another file's"));
        vec![of_bytes(
            ProblemKind::ForeignChunk,
            patient.chunks,
            bytes,
            &what,
        )]
    }),
    ("a chunk of another place", |patient| {
        let (id, mut place) = patient.chunk();
        place.file_offset += 4096;
        patient.put_place(id, &Place::Segment(place));
        let (bytes, what) = (0..CHUNK_BYTES, format!("chunk {id} is another file's"));
        vec![of_bytes(
            ProblemKind::ForeignChunk,
            patient.chunks,
            bytes,
            &what,
        )]
    }),
    ("a page that does not match its checksum", |patient| {
        let (_, place) = patient.chunk();
        patient.write_segment(u64::from(place.offset) + 4096, &[8]);
        let what = "the checksum of the page does not match (segment 1)";
        vec![of_bytes(
            ProblemKind::UnreadableBytes,
            patient.chunks,
            4096..8192,
            what,
        )]
    }),
    ("an inline piece with other bytes", |patient| {
        let id = patient.inline_piece();
        let bytes = vec![8; usize::try_from(INLINE_BYTES).unwrap()];
        patient.put_place(id, &Place::Inline(bytes));
        let (bytes, what) = (
            0..INLINE_BYTES,
            format!("piece {id} does not match its hash"),
        );
        vec![of_bytes(
            ProblemKind::WrongHash,
            patient.inline,
            bytes,
            &what,
        )]
    }),
    ("a chunk with right checksums of wrong bytes", |patient| {
        let (id, mut place) = patient.chunk();
        let page = [8; 4096];
        patient.write_segment(u64::from(place.offset), &page);
        place.crcs[0] = crc32c::crc32c(&page);
        patient.put_place(id, &Place::Segment(place));
        let (bytes, what) = (
            0..CHUNK_BYTES,
            format!("piece {id} does not match its hash"),
        );
        vec![of_bytes(
            ProblemKind::WrongHash,
            patient.chunks,
            bytes,
            &what,
        )]
    }),
    ("pieces that nobody uses", |patient| {
        for counter in [1 << 40, 1 << 41] {
            let id = PieceId {
                counter,
                ..patient.inline_piece()
            };
            patient.put_place(id, &Place::Inline(vec![1]));
        }
        let what = "2 pieces are kept that no extent names";
        vec![of_volume(ProblemKind::UnusedPieces, what)]
    }),
    ("a chunk that the segments' index misses", |patient| {
        let (_, place) = patient.chunk();
        let key = segment_index_key(place.segment, place.offset);
        patient.write_local(LocalTable::SegmentIndex, &key, None);
        let what = "the segment index has 1 chunks, not 2";
        vec![of_volume(ProblemKind::IndexCount, what)]
    }),
    (
        "an entry of the segments' index for another chunk",
        |patient| {
            let (_, place) = patient.chunk();
            let other = patient.piece(patient.chunks, CHUNK_BYTES);
            let key = segment_index_key(place.segment, place.offset);
            patient.write_local(
                LocalTable::SegmentIndex,
                &key,
                Some(piece_key(other).to_vec()),
            );
            let at = place.offset;
            let what = format!(
                "the segment index has piece {other} at byte {at} of segment 1, where it is not"
            );
            vec![of_volume(ProblemKind::IndexEntry, &what)]
        },
    ),
    ("an entry of the segments' index for nothing", |patient| {
        let (id, place) = patient.chunk();
        let key = segment_index_key(SegmentId(7), place.offset);
        patient.write_local(LocalTable::SegmentIndex, &key, Some(piece_key(id).to_vec()));
        let at = place.offset;
        let what =
            format!("the segment index has piece {id} at byte {at} of segment 7, where it is not");
        vec![
            of_volume(ProblemKind::IndexEntry, &what),
            of_volume(
                ProblemKind::IndexCount,
                "the segment index has 3 chunks, not 2",
            ),
        ]
    }),
    (
        "an entry of the segments' index that cannot be decoded",
        |patient| {
            let (_, place) = patient.chunk();
            let key = segment_index_key(place.segment, place.offset);
            patient.write_local(LocalTable::SegmentIndex, &key, Some(vec![1]));
            let what = "the state's table `segment-index`: the volume's store is damaged: piece key of a wrong length";
            vec![of_volume(ProblemKind::LostRow, what)]
        },
    ),
    ("a wrong header of a segment", |patient| {
        patient.write_segment(0, &[0; 8]);
        let what = "segment 1: its header is damaged or another segment's";
        vec![of_volume(ProblemKind::Segment, what)]
    }),
    ("a missing segment", |patient| {
        patient.while_closed(|dir| fs::remove_file(dir.join("segments").join(SEGMENT_1)).unwrap());
        let gone = "their segment is missing (segment 1)";
        let hurt = |bytes| of_bytes(ProblemKind::UnreadableBytes, patient.chunks, bytes, gone);
        vec![
            hurt(0..CHUNK_BYTES),
            hurt(CHUNK_BYTES..CHUNKS_BYTES),
            of_volume(ProblemKind::Segment, "segment 1: the file is missing"),
        ]
    }),
    ("a file that is no segment", |patient| {
        let path = patient.store().segments_dir().join("notes.txt");
        fs::write(&path, "mine").unwrap();
        let what = format!("{} is no segment", path.display());
        vec![of_volume(ProblemKind::Stranger, &what)]
    }),
    ("wrong books of what lives in a segment", |patient| {
        patient.volume().change_totals(|totals| {
            let segment = totals.segments.get_mut(&SegmentId(1)).unwrap();
            segment.live_bytes += 4096;
        });
        let what = "the books of the segments' live bytes are wrong";
        vec![of_volume(ProblemKind::LiveBytes, what)]
    }),
    (
        "blocks that are right in memory and wrong on the disk",
        |patient| {
            patient.volume().collect().unwrap(); // flushes
            // One would write from memory what is wrong on the disk.
            patient.store().stop_compactions();
            patient.volume().check(&mut |_, _| {}).unwrap();
            for entry in fs::read_dir(patient.volume().dir().join("state")).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|kind| kind == "sst") {
                    let file = fs::OpenOptions::new().read(true).write(true).open(path);
                    let (file, mut byte) = (file.unwrap(), [0]);
                    file.read_exact_at(&mut byte, 0).unwrap();
                    file.write_all_at(&[byte[0] ^ 1], 0).unwrap();
                }
            }
            let replicated = Table::ALL.into_iter().map(Table::name);
            let local = LocalTable::ALL.into_iter().map(LocalTable::name);
            let file = |table| {
                let what = format!("the state's files: table `{table}`: {CHECKSUM_MISMATCH}");
                of_volume(ProblemKind::StateFile, &what)
            };
            replicated.chain(local).map(file).collect()
        },
    ),
];

/// RocksDB's words; sums, file and offset follow.
const CHECKSUM_MISMATCH: &str = "Corruption: block checksum mismatch: ";

fn expected_of(problem: &Problem) -> Expected {
    let mut problem = problem.clone();
    if let Some(at) = problem.what.find(CHECKSUM_MISMATCH) {
        problem.what.truncate(at + CHECKSUM_MISMATCH.len());
    }
    (problem.kind, problem.ino, problem.bytes, problem.what)
}

#[test]
fn every_kind_of_problem_is_found_and_no_other() {
    let mut seen = Vec::new();
    for (name, hurt) in CASES {
        let mut patient = Patient::new();
        let before = patient.volume().check(&mut |_, _| {}).unwrap();
        assert_eq!(before.problems, vec![], "{name}: before");
        let expected = hurt(&mut patient);
        let report = patient.volume().check(&mut |_, _| {}).unwrap();
        let found: Vec<_> = report.problems.iter().map(expected_of).collect();
        assert_eq!(found, expected, "{name}");
        assert_eq!(report.problem_count, expected.len() as u64, "{name}");
        for window in [1, 2] {
            let report = patient.volume().check_in_windows(window).unwrap();
            let mut found: Vec<_> = report.problems.iter().map(expected_of).collect();
            let mut expected = expected.clone();
            // What the volume's memory says is not compared there.
            expected.retain(|(kind, ..)| *kind != ProblemKind::LiveBytes);
            found.sort_by_key(|(kind, ino, ..)| (*kind, *ino));
            expected.sort_by_key(|(kind, ino, ..)| (*kind, *ino));
            assert_eq!(found, expected, "{name}: {window} inodes at once");
        }
        seen.extend(expected.iter().map(|(kind, ..)| *kind));
    }
    // A kind that no case makes is one that perhaps is never found.
    for kind in ProblemKind::ALL {
        assert!(seen.contains(kind), "no case makes {kind:?}");
    }
}

#[test]
fn a_state_that_does_not_say_how_far_it_has_come_is_not_checked() {
    let patient = Patient::new();
    patient.write_local(LocalTable::Local, APPLIED_KEY, None);
    let refused = patient.volume().check(&mut |_, _| {}).unwrap_err();
    assert!(matches!(refused, FsError::Corrupt(_)), "{refused}");
}

#[test]
fn a_check_changes_nothing_in_the_state() {
    let patient = Patient::new();
    patient.volume().collect().unwrap(); // flushes
    patient.store().stop_compactions();
    let files = || {
        let state = fs::read_dir(patient.volume().dir().join("state")).unwrap();
        let named = state.map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name(), entry.metadata().unwrap().len())
        });
        named.collect::<BTreeMap<_, _>>()
    };
    let before = files();
    let files_again = patient.store().state_files().unwrap();
    for table in tables() {
        assert!(files_again.rows(table).all(|row| row.is_ok()), "{table}");
    }
    assert_eq!(files(), before);
}

#[test]
fn every_block_of_the_states_files_is_read_by_a_check() {
    let patient = Patient::new();
    patient.volume().collect().unwrap(); // flushes
    patient.store().stop_compactions();
    patient.volume().check(&mut |_, _| {}).unwrap(); // from here on rows come from memory
    let state = fs::read_dir(patient.volume().dir().join("state")).unwrap();
    let files = state.map(|entry| entry.unwrap().path());
    let tables = files.filter(|path| path.extension().is_some_and(|kind| kind == "sst"));
    let mut hit = 0;
    for path in tables {
        let file = fs::OpenOptions::new().read(true).write(true).open(&path);
        let file = file.unwrap();
        for at in (0..file.metadata().unwrap().len()).step_by(97) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            let report = patient.volume().check(&mut |_, _| {}).unwrap();
            let found = report.problems.iter().map(|problem| problem.kind);
            let found: Vec<_> = found.collect();
            assert!(
                found.contains(&ProblemKind::StateFile),
                "byte {at} of {}: {found:?}",
                path.display()
            );
            file.write_all_at(&byte, at).unwrap();
            hit += 1;
        }
    }
    assert!(hit > 50, "{hit}");
    assert_eq!(patient.volume().check(&mut |_, _| {}).unwrap().problems, []);
}

#[test]
fn a_check_in_small_windows_sees_what_one_in_a_large_one_sees() {
    let mut fixture = Fixture::new();
    let volume = fixture.open();
    let mut parent = Ino::ROOT;
    for n in 0..10_u64 {
        let ino = file(&volume, format!("f{n}").as_bytes());
        volume.write(ino, n * 7, &[1; 9000], false, false).unwrap();
        volume.link(ino, parent, b"other").unwrap();
        let made = volume.mkdir(Caller::ROOT, parent, b"dir", 0o755);
        parent = made.unwrap().ino;
    }
    let all = volume.check(&mut |_, _| {}).unwrap();
    assert_eq!((all.problems.as_slice(), all.inodes), (&[][..], 21));
    for window in [1, 2, 7] {
        let checked = volume.check_in_windows(window).unwrap();
        assert_eq!(checked.problems, vec![]);
        assert_eq!(checked.digest, all.digest);
        assert_eq!(checked.dentries, all.dentries);
        assert_eq!(checked.bytes, all.bytes);
    }
}

#[test]
fn a_check_is_stopped_by_who_does_not_want_it_any_more() {
    let mut fixture = Fixture::new();
    let volume = fixture.open();
    for n in 0..10 {
        let ino = file(&volume, format!("f{n}").as_bytes());
        volume.write(ino, 0, &[1; 9000], false, false).unwrap();
    }
    let mut seen = CheckProgress::default();
    let stopped = volume.check_with(&mut |at| {
        seen = *at;
        if at.bytes_done >= 20_000 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(matches!(stopped, Err(FsError::Stopped)));
    assert_eq!((seen.inodes_total, seen.bytes_total), (11, 10 * 12_288));
    assert!(
        seen.bytes_done < 30_000 && seen.inodes_done < 11,
        "{seen:?}"
    );
}
