//! Walks a volume and proves its invariants, on a picture of its state that does not change while it is in use.
//!
//! Every row of every table is read, and every byte that a file holds: link counts, names, extents, sizes, sums, checksums
//! and hashes of all pieces, and at last the digest over all rows against the one that was kept up to date all along.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::iter::Peekable;

use hafs_protocol::{Lsn, PieceId};
use rocksdb::{ColumnFamily, IteratorMode, Snapshot};

use crate::error::FsError;
use crate::store::digest::Digest;
use crate::store::key::{
    APPLIED_KEY, Applied, Dentry, Extent, ExtentSource, Inode, LocalTable, NAME_COLLISIONS_MAX,
    Place, SegmentId, Table, key_ino, key_second, name_cookie, piece_key, row_body,
};
use crate::store::{Row, Store};
use crate::types::{FileKind, Ino};

/// Problems that a report lists; the rest is counted.
const PROBLEMS_MAX: usize = 1000;

/// Something in a volume that should not be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The inode that it concerns, if one.
    pub ino: Option<Ino>,
    /// What is wrong, in words.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ino {
            Some(ino) => write!(f, "inode {ino}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// What a check saw.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// The record up to which the state was checked.
    pub lsn: Lsn,
    /// Sum over all replicated rows, as recomputed.
    pub digest: [u8; 32],
    /// Inodes read.
    pub inodes: u64,
    /// Names read.
    pub dentries: u64,
    /// Extents read.
    pub extents: u64,
    /// Pieces read and verified.
    pub pieces: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// What is wrong: the first thousand.
    pub problems: Vec<Problem>,
    /// How much is wrong in all.
    pub problem_count: u64,
}

type TableRows<'a> = Peekable<Box<dyn Iterator<Item = Result<Row, rocksdb::Error>> + 'a>>;

/// The picture that is checked.
struct Picture<'a> {
    store: &'a Store,
    snapshot: Snapshot<'a>,
}

impl Picture<'_> {
    fn rows(&self, cf: &ColumnFamily) -> TableRows<'_> {
        let rows = self.snapshot.iterator_cf(cf, IteratorMode::Start);
        (Box::new(rows) as Box<dyn Iterator<Item = _>>).peekable()
    }

    fn table(&self, table: Table) -> TableRows<'_> {
        self.rows(self.store.cf(table))
    }

    fn place(&self, id: PieceId) -> Result<Option<Place>, FsError> {
        let cf = self.store.local_cf(LocalTable::Piece);
        match self.snapshot.get_cf(cf, piece_key(id))? {
            Some(raw) => Ok(Some(Place::decode(&raw)?)),
            None => Ok(None),
        }
    }
}

/// What was found so far.
#[derive(Default)]
struct Findings {
    report: CheckReport,
    digest: Option<Digest>,
    used_bytes: u64,
    highest_ino: u64,
    /// Names that point to an inode.
    names: HashMap<Ino, u32>,
    /// Directories, and the one that each is named in.
    named_in: HashMap<Ino, Ino>,
    /// Directories in a directory.
    subdirectories: HashMap<Ino, u32>,
    /// Live bytes of each segment, as the extents say.
    live: BTreeMap<SegmentId, u64>,
    chunks: u64,
}

impl Findings {
    fn problem(&mut self, ino: Option<Ino>, what: String) {
        self.report.problem_count += 1;
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(Problem { ino, what });
        }
    }

    fn add(&mut self, table: Table, (key, raw): &Row) {
        self.digest
            .get_or_insert(Digest::EMPTY)
            .add(table, key, raw);
    }
}

/// What a check says, and what the extents say of each segment's live bytes.
pub(crate) type Checked = (CheckReport, BTreeMap<SegmentId, u64>);

/// Checks the state that `store` has now. `progress` is told how many inodes are done, of how many.
pub(crate) fn check(store: &Store, progress: &mut dyn FnMut(u64, u64)) -> Result<Checked, FsError> {
    let picture = Picture {
        store,
        snapshot: store.snapshot(),
    };
    let raw = picture
        .snapshot
        .get_cf(store.local_cf(LocalTable::Local), APPLIED_KEY)?;
    let Some(raw) = raw else {
        return Err(FsError::Corrupt(
            "the state does not say how far it has come".to_owned(),
        ));
    };
    let applied = Applied::decode(&raw)?;
    let mut findings = Findings::default();
    findings.report.lsn = applied.pos.lsn;
    check_dentries(&picture, &mut findings)?;
    check_inodes(&picture, &applied, &mut findings, progress)?;
    check_places(&picture, &mut findings)?;
    check_totals(&applied, &mut findings);
    Ok((findings.report, findings.live))
}

fn check_dentries(picture: &Picture<'_>, findings: &mut Findings) -> Result<(), FsError> {
    let mut before: Option<(Ino, u64)> = None;
    for row in picture.table(Table::Dentry) {
        let row = row?;
        findings.add(Table::Dentry, &row);
        findings.report.dentries += 1;
        let (parent, cookie) = (key_ino(&row.0)?, key_second(&row.0)?);
        let dentry = Dentry::decode(row_body(&row.1)?)?;
        let name = String::from_utf8_lossy(&dentry.name).into_owned();
        let first = cookie - cookie % NAME_COLLISIONS_MAX;
        if name_cookie(&dentry.name) != first {
            findings.problem(
                Some(parent),
                format!("the name {name:?} stands at a wrong place"),
            );
        }
        if cookie != first && before != Some((parent, cookie - 1)) {
            findings.problem(Some(parent), format!("a gap before the name {name:?}"));
        }
        before = Some((parent, cookie));
        *findings.names.entry(dentry.ino).or_default() += 1;
        if dentry.kind == FileKind::Directory {
            *findings.subdirectories.entry(parent).or_default() += 1;
            if findings.named_in.insert(dentry.ino, parent).is_some() {
                findings.problem(Some(dentry.ino), "a directory with two names".to_owned());
            }
        }
    }
    Ok(())
}

/// Tables whose keys start with an inode number, walked side by side with the inodes.
struct Beside<'a> {
    extents: TableRows<'a>,
    xattrs: TableRows<'a>,
    orphans: TableRows<'a>,
}

fn check_inodes(
    picture: &Picture<'_>,
    applied: &Applied,
    findings: &mut Findings,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), FsError> {
    let mut beside = Beside {
        extents: picture.table(Table::Extent),
        xattrs: picture.table(Table::Xattr),
        orphans: picture.table(Table::Orphan),
    };
    for row in picture.table(Table::Inode) {
        let row = row?;
        findings.add(Table::Inode, &row);
        let ino = key_ino(&row.0)?;
        let inode = Inode::decode(row_body(&row.1)?)?;
        findings.report.inodes += 1;
        findings.used_bytes += inode.allocated_bytes();
        findings.highest_ino = findings.highest_ino.max(ino.0);
        let extents = rows_of(&mut beside.extents, Table::Extent, ino, findings)?;
        check_extents(picture, ino, &inode, &extents, findings)?;
        rows_of(&mut beside.xattrs, Table::Xattr, ino, findings)?;
        let is_orphan = !rows_of(&mut beside.orphans, Table::Orphan, ino, findings)?.is_empty();
        check_links(ino, &inode, is_orphan, findings);
        progress(findings.report.inodes, applied.inodes);
    }
    // What is left belongs to inodes above the highest.
    let after_all = Ino(u64::MAX);
    rows_of(&mut beside.extents, Table::Extent, after_all, findings)?;
    rows_of(&mut beside.xattrs, Table::Xattr, after_all, findings)?;
    rows_of(&mut beside.orphans, Table::Orphan, after_all, findings)?;
    let nameless: Vec<Ino> = findings.names.drain().map(|(ino, _)| ino).collect();
    for ino in nameless {
        findings.problem(Some(ino), "has a name but does not exist".to_owned());
    }
    Ok(())
}

/// Takes the rows of `ino`; those of lower numbers belong to no inode.
fn rows_of(
    rows: &mut TableRows<'_>,
    table: Table,
    ino: Ino,
    findings: &mut Findings,
) -> Result<Vec<Row>, FsError> {
    let mut taken = Vec::new();
    while let Some(next) = rows.peek() {
        let owner = match next {
            Ok((key, _)) => key_ino(key)?,
            Err(error) => return Err(error.clone().into()),
        };
        if owner > ino {
            break;
        }
        let Some(row) = rows.next().transpose()? else {
            break;
        };
        findings.add(table, &row);
        if owner == ino {
            taken.push(row);
        } else {
            let what = format!("an entry in table {} but no inode", table.name());
            findings.problem(Some(owner), what);
        }
    }
    Ok(taken)
}

fn check_links(ino: Ino, inode: &Inode, is_orphan: bool, findings: &mut Findings) {
    let names = findings.names.remove(&ino).unwrap_or(0);
    let subdirectories = findings.subdirectories.remove(&ino).unwrap_or(0);
    let expected = match inode.kind {
        FileKind::Directory if is_orphan => 0,
        FileKind::Directory => 2 + subdirectories,
        _ => names,
    };
    if inode.nlink != expected {
        let what = format!("link count {} where names say {expected}", inode.nlink);
        findings.problem(Some(ino), what);
    }
    if (inode.nlink == 0) != is_orphan {
        findings.problem(
            Some(ino),
            "no names, but not on the orphan list, or both".to_owned(),
        );
    }
    if inode.kind == FileKind::Directory && !is_orphan {
        let home = if ino == Ino::ROOT {
            Some(ino)
        } else {
            findings.named_in.remove(&ino)
        };
        if home != Some(inode.parent) {
            findings.problem(
                Some(ino),
                "its parent is not the directory that names it".to_owned(),
            );
        }
    }
}

fn check_extents(
    picture: &Picture<'_>,
    ino: Ino,
    inode: &Inode,
    rows: &[Row],
    findings: &mut Findings,
) -> Result<(), FsError> {
    let mut end = 0;
    let mut sum = 0;
    let mut pieces = HashMap::new();
    for (key, raw) in rows {
        findings.report.extents += 1;
        let start = key_second(key)?;
        let extent = Extent::decode(row_body(raw)?)?;
        if start < end {
            findings.problem(Some(ino), format!("extents overlap at byte {start}"));
        }
        end = start.saturating_add(extent.len);
        sum += extent.len;
        let ExtentSource::Piece {
            id,
            skip,
            piece_len,
            hash,
        } = extent.source
        else {
            continue;
        };
        if end > inode.size {
            findings.problem(Some(ino), format!("bytes past the end, at {start}"));
        }
        let Some(piece_start) = start.checked_sub(u64::from(skip)) else {
            findings.problem(Some(ino), format!("an extent at {start} before its piece"));
            continue;
        };
        let whole = PieceUse {
            start: piece_start,
            len: piece_len,
            hash,
        };
        if *pieces.entry(id).or_insert(whole) != whole {
            findings.problem(Some(ino), format!("extents disagree about piece {id}"));
        }
    }
    if sum != inode.extent_bytes {
        let what = format!(
            "extents hold {sum} bytes, the inode says {}",
            inode.extent_bytes
        );
        findings.problem(Some(ino), what);
    }
    for (id, piece) in pieces {
        check_piece(picture, ino, id, &piece, findings)?;
    }
    Ok(())
}

/// What extents say of a piece.
#[derive(Clone, Copy, PartialEq, Eq)]
struct PieceUse {
    start: u64,
    len: u32,
    hash: [u8; 32],
}

fn check_piece(
    picture: &Picture<'_>,
    ino: Ino,
    id: PieceId,
    piece: &PieceUse,
    findings: &mut Findings,
) -> Result<(), FsError> {
    let range = format!(
        "bytes {}..{}",
        piece.start,
        piece.start + u64::from(piece.len)
    );
    let bytes = match picture.place(id)? {
        None => {
            findings.problem(Some(ino), format!("{range}: piece {id} is nowhere"));
            return Ok(());
        }
        Some(Place::Inline(bytes)) => bytes,
        Some(Place::Segment(place)) => {
            findings.chunks += 1;
            *findings.live.entry(place.segment).or_default() += place.stored_bytes();
            if (place.ino, place.file_offset) != (ino, piece.start) {
                findings.problem(Some(ino), format!("{range}: chunk {id} is another file's"));
            }
            match picture.store.segments.read_chunk(&place) {
                Ok(bytes) => bytes,
                Err(error) => {
                    findings.problem(Some(ino), format!("{range}: {}", with_causes(&error)));
                    return Ok(());
                }
            }
        }
    };
    findings.report.pieces += 1;
    findings.report.bytes += bytes.len() as u64;
    if bytes.len() != piece.len as usize || blake3::hash(&bytes).as_bytes() != &piece.hash {
        findings.problem(
            Some(ino),
            format!("{range}: piece {id} does not match its hash"),
        );
    }
    Ok(())
}

/// An error with what caused it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// This copy's own books: a place for each piece that is used, no more; the segments' index says the same.
fn check_places(picture: &Picture<'_>, findings: &mut Findings) -> Result<(), FsError> {
    let mut places = 0;
    let mut chunks = 0;
    for row in picture.rows(picture.store.local_cf(LocalTable::Piece)) {
        match Place::decode(&row?.1)? {
            Place::Inline(_) => {}
            Place::Segment(_) => chunks += 1,
        }
        places += 1;
    }
    let indexed = picture
        .rows(picture.store.local_cf(LocalTable::SegmentIndex))
        .count() as u64;
    if places > findings.report.pieces && findings.report.problem_count == 0 {
        let unused = places - findings.report.pieces;
        findings.problem(
            None,
            format!("{unused} pieces are kept that no extent names"),
        );
    }
    if indexed != chunks {
        findings.problem(
            None,
            format!("the segment index has {indexed} chunks, not {chunks}"),
        );
    }
    Ok(())
}

fn check_totals(applied: &Applied, findings: &mut Findings) {
    let digest = findings.digest.unwrap_or(Digest::EMPTY);
    findings.report.digest = digest.to_bytes();
    if digest != applied.digest {
        findings.problem(
            None,
            "the digest over all rows is not the one kept".to_owned(),
        );
    }
    if findings.report.inodes != applied.inodes {
        let what = format!("{} inodes, {} kept", findings.report.inodes, applied.inodes);
        findings.problem(None, what);
    }
    if findings.used_bytes != applied.used_bytes {
        let what = format!(
            "{} bytes in use, {} kept",
            findings.used_bytes, applied.used_bytes
        );
        findings.problem(None, what);
    }
    if findings.highest_ino >= applied.next_ino.0 {
        findings.problem(
            None,
            "an inode number that was not given out yet is in use".to_owned(),
        );
    }
}
