//! Walks a volume and proves its invariants, on a picture of its state that does not change while it is in use.
//!
//! Every row of every table is read, and every byte that a file holds: link counts, names, extents, sizes, sums, checksums
//! and hashes of all pieces, and the digest over all rows against the one that was kept up to date all along. At last RocksDB's
//! files are read once more, past all caches: every block of theirs has a checksum. What cannot be read is a finding like any
//! other, and the rest is checked all the same.
//!
//! Memory is bounded: names are counted for a *window* of inodes at a time, and pieces are looked at as their extents come.
//! What lies in segments and extents is in `check/pieces.rs`, RocksDB's files in `check/state.rs`, the names of what is hurt in
//! `check/paths.rs`.

use std::collections::{BTreeMap, HashMap};
use std::iter::Peekable;
use std::ops::ControlFlow;

use hafs_protocol::{Lsn, PieceId};

use crate::error::{FsError, with_causes};
use crate::store::digest::Digest;
use crate::store::key::{
    APPLIED_KEY, Applied, Dentry, EMPTY_FILE_BYTES, Inode, LOSSES_KEY, LocalTable, Loss,
    NAME_COLLISIONS_MAX, Place, ROW_UNIT_BYTES, SegmentId, Table, charged_bytes, decode_losses,
    ino_key, key_ino, key_second, name_cookie, piece_key, row_body,
};
use crate::store::memtable::MergedRows;
use crate::store::{Picture, Row, Store};
use crate::types::{FileKind, Ino};

mod paths;
mod pieces;
mod problem;
mod state;

pub use problem::{Problem, ProblemKind};

use problem::next;

/// Problems that a report lists; the rest is counted.
const PROBLEMS_MAX: usize = 1000;
/// Inodes whose names are counted at once: some 64 MiB. Each window reads all names once.
const WINDOW_INODES: usize = 1 << 20;
/// Names, or other rows, after which whoever waits is asked whether they still want it.
const ROWS_A_STEP: u64 = 4096;

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
    /// What was lost of the log once, and given up: no problem of today.
    pub losses: Vec<Loss>,
}

/// How far a check has come. The totals are what the volume's books say, so about right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckProgress {
    /// Inodes done.
    pub inodes_done: u64,
    /// Of how many.
    pub inodes_total: u64,
    /// Bytes of files read and verified.
    pub bytes_done: u64,
    /// Of how many: what files hold or have reserved.
    pub bytes_total: u64,
}

/// Is told how far the check has come; says whether it is still wanted.
pub(crate) type Watch<'a> = dyn FnMut(&CheckProgress) -> ControlFlow<()> + 'a;

/// A report, and the live bytes of each segment as the extents say.
pub(crate) type Checked = (CheckReport, BTreeMap<SegmentId, u64>);

type TableRows<'a> = Peekable<MergedRows<'a>>;

impl Picture<'_> {
    /// Rows of a table whose keys start with an inode number, from this one on.
    fn table(&self, table: Table, from: Ino) -> TableRows<'_> {
        self.rows(table, &ino_key(from)).peekable()
    }

    fn inode(&self, ino: Ino) -> Result<Option<Inode>, FsError> {
        match self.raw(Table::Inode, &ino_key(ino))? {
            Some(raw) => Ok(Some(Inode::decode(row_body(&raw)?)?)),
            None => Ok(None),
        }
    }

    fn place(&self, id: PieceId) -> Result<Option<Place>, FsError> {
        match self.raw(LocalTable::Piece, &piece_key(id))? {
            Some(raw) => Ok(Some(Place::decode(&raw)?)),
            None => Ok(None),
        }
    }
}

/// What was found so far.
struct Findings<'w> {
    report: CheckReport,
    watch: &'w mut Watch<'w>,
    progress: CheckProgress,
    /// A row could not be read: sums over all rows say nothing.
    is_partial: bool,
    digest: Digest,
    used_bytes: u64,
    highest_ino: u64,
    /// Live bytes of each segment, as the extents say.
    live: BTreeMap<SegmentId, u64>,
    /// Places of pieces that extents name.
    places: u64,
}

impl Findings<'_> {
    fn problem(&mut self, problem: Problem) {
        self.report.problem_count += 1;
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(problem);
        }
    }

    /// Something that contradicts itself though every byte of it was read well.
    fn fault(&mut self, kind: ProblemKind, ino: Option<Ino>, what: String) {
        self.problem(Problem {
            ino,
            ..Problem::of_books(kind, what)
        });
    }

    /// A row that cannot be read.
    fn lost_row(&mut self, ino: Option<Ino>, table: &str, error: &FsError) {
        self.is_partial = true;
        let what = format!("the state's table `{table}`: {}", with_causes(error));
        self.problem(Problem {
            ino,
            next: next::STATE,
            ..Problem::of_books(ProblemKind::LostRow, what)
        });
    }

    /// The next row of a replicated table; the end where it cannot be read.
    fn next_row(&mut self, rows: &mut TableRows<'_>, table: Table) -> Option<Row> {
        match rows.next()? {
            Ok(row) => {
                self.digest.add(table, &row.0, &row.1);
                // What cannot be decoded is found where it is used.
                let charged = row_body(&row.1).and_then(|body| charged_bytes(table, &row.0, body));
                self.used_bytes = self.used_bytes.saturating_add(charged.unwrap_or(0));
                Some(row)
            }
            Err(error) => {
                self.lost_row(None, table.name(), &error);
                None
            }
        }
    }

    /// What was decoded from a row; `None` if it does not decode.
    fn decoded<T>(&mut self, ino: Ino, table: Table, decoded: Result<T, FsError>) -> Option<T> {
        decoded
            .inspect_err(|error| self.lost_row(Some(ino), table.name(), error))
            .ok()
    }

    fn step(&mut self) -> Result<(), FsError> {
        self.progress.inodes_done = self.report.inodes;
        self.progress.bytes_done = self.report.bytes;
        match (self.watch)(&self.progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(FsError::Stopped),
        }
    }
}

/// Proves the invariants.
///
/// # Errors
/// [`FsError::Stopped`] if `watch` says so; else only if nothing could be checked at all.
pub(crate) fn check(store: &Store, watch: &mut Watch<'_>) -> Result<Checked, FsError> {
    check_in_windows(store, watch, WINDOW_INODES)
}

pub(crate) fn check_in_windows(
    store: &Store,
    watch: &mut Watch<'_>,
    window_inodes: usize,
) -> Result<Checked, FsError> {
    let picture = store.picture();
    let local = |key| picture.raw(LocalTable::Local, key);
    let Some(applied) = local(APPLIED_KEY)? else {
        return Err(FsError::Corrupt(
            "the state does not say how far it has come".to_owned(),
        ));
    };
    let applied = Applied::decode(&applied)?;
    let mut findings = Findings {
        report: CheckReport {
            lsn: applied.pos.lsn,
            losses: local(LOSSES_KEY)?.map_or(Ok(Vec::new()), |raw| decode_losses(&raw))?,
            ..CheckReport::default()
        },
        watch,
        progress: CheckProgress {
            inodes_total: applied.inodes,
            // What files hold, as far as that is known: each inode but the root has a name.
            bytes_total: applied
                .used_bytes
                .saturating_sub((applied.inodes * EMPTY_FILE_BYTES).saturating_sub(ROW_UNIT_BYTES)),
            ..CheckProgress::default()
        },
        is_partial: false,
        digest: Digest::EMPTY,
        used_bytes: 0,
        highest_ino: 0,
        live: BTreeMap::new(),
        places: 0,
    };
    let mut from = Ino(0);
    loop {
        let to = window_end(&picture, from, window_inodes, &mut findings);
        let links = count_links(&picture, from, to, &mut findings)?;
        check_inodes(&picture, from, to, links, &mut findings)?;
        match to {
            Some(to) => from = to,
            None => break,
        }
    }
    pieces::check_places(&picture, &mut findings);
    pieces::check_segments(&picture, &mut findings)?;
    state::check_files(store, &mut findings)?;
    check_totals(&applied, &mut findings);
    paths::name(&picture, &mut findings.report.problems);
    Ok((findings.report, findings.live))
}

/// The inode that the next window starts with; `None`: there is none.
fn window_end(
    picture: &Picture<'_>,
    from: Ino,
    window_inodes: usize,
    findings: &mut Findings<'_>,
) -> Option<Ino> {
    let next = picture.table(Table::Inode, from).nth(window_inodes)?;
    // Where the table cannot be read, its walk says so.
    let ino = key_ino(&next.ok()?.0);
    findings.decoded(from, Table::Inode, ino)
}

/// What the names say of the inodes in a window.
#[derive(Default)]
struct Links {
    /// Names that point to an inode, and what they take it for, if all for the same.
    names: HashMap<Ino, (u32, Option<FileKind>)>,
    /// Directories, and the one that each is named in.
    named_in: HashMap<Ino, Ino>,
    /// What names lie in, and how many directories among them.
    subdirectories: HashMap<Ino, u32>,
}

/// Reads all names, counts those of the window, and checks them if it is the first.
fn count_links(
    picture: &Picture<'_>,
    from: Ino,
    to: Option<Ino>,
    findings: &mut Findings<'_>,
) -> Result<Links, FsError> {
    let is_first = from == Ino(0);
    let in_window = |ino: Ino| from <= ino && to.is_none_or(|to| ino < to);
    let mut links = Links::default();
    let mut before: Option<(Ino, u64)> = None;
    let mut rows = picture.table(Table::Dentry, Ino(0));
    let mut read = 0;
    loop {
        let row = if is_first {
            findings.next_row(&mut rows, Table::Dentry)
        } else {
            rows.next().and_then(Result::ok) // told by the first window
        };
        let Some((key, raw)) = row else { break };
        read += 1;
        if read % ROWS_A_STEP == 0 {
            findings.step()?;
        }
        let decoded = key_ino(&key)
            .and_then(|parent| Ok((parent, key_second(&key)?, Dentry::decode(row_body(&raw)?)?)));
        let Ok((parent, cookie, dentry)) = decoded else {
            if is_first {
                findings.decoded(key_ino(&key).unwrap_or(Ino(0)), Table::Dentry, decoded);
            }
            continue;
        };
        if is_first {
            check_name(parent, cookie, &dentry, before, findings);
            before = Some((parent, cookie));
        }
        let is_directory = dentry.kind == FileKind::Directory;
        if in_window(parent) {
            *links.subdirectories.entry(parent).or_default() += u32::from(is_directory);
        }
        if in_window(dentry.ino) {
            let first = (0, Some(dentry.kind));
            let (names, kind) = links.names.entry(dentry.ino).or_insert(first);
            *names += 1;
            *kind = kind.filter(|kind| *kind == dentry.kind);
            if is_directory && links.named_in.insert(dentry.ino, parent).is_some() {
                let what = "a directory with two names".to_owned();
                findings.fault(ProblemKind::TwoNames, Some(dentry.ino), what);
            }
        }
    }
    Ok(links)
}

fn check_name(
    parent: Ino,
    cookie: u64,
    dentry: &Dentry,
    before: Option<(Ino, u64)>,
    findings: &mut Findings<'_>,
) {
    findings.report.dentries += 1;
    let name = String::from_utf8_lossy(&dentry.name);
    let first = cookie - cookie % NAME_COLLISIONS_MAX;
    if name_cookie(&dentry.name) != first {
        let what = format!("the name {name:?} stands at a wrong place");
        findings.fault(ProblemKind::MisplacedName, Some(parent), what);
    }
    if cookie != first && before != Some((parent, cookie - 1)) {
        let what = format!("a gap before the name {name:?}");
        findings.fault(ProblemKind::NameGap, Some(parent), what);
    }
}

/// Tables whose keys start with an inode number, walked side by side with the inodes.
struct Beside<'a> {
    extents: TableRows<'a>,
    xattrs: TableRows<'a>,
    orphans: TableRows<'a>,
}

impl<'a> Beside<'a> {
    fn all(&mut self) -> [(&mut TableRows<'a>, Table); 3] {
        [
            (&mut self.extents, Table::Extent),
            (&mut self.xattrs, Table::Xattr),
            (&mut self.orphans, Table::Orphan),
        ]
    }
}

fn check_inodes(
    picture: &Picture<'_>,
    from: Ino,
    to: Option<Ino>,
    mut links: Links,
    findings: &mut Findings<'_>,
) -> Result<(), FsError> {
    let mut beside = Beside {
        extents: picture.table(Table::Extent, from),
        xattrs: picture.table(Table::Xattr, from),
        orphans: picture.table(Table::Orphan, from),
    };
    let mut rows = picture.table(Table::Inode, from);
    loop {
        if let (Some(to), Some(Ok((key, _)))) = (to, rows.peek())
            && key_ino(key)? >= to
        {
            break;
        }
        let Some((key, raw)) = findings.next_row(&mut rows, Table::Inode) else {
            break;
        };
        let ino = key_ino(&key)?;
        findings.report.inodes += 1;
        findings.highest_ino = findings.highest_ino.max(ino.0);
        for (rows, table) in beside.all() {
            skip_nobodys(rows, table, ino, findings)?;
        }
        let inode = row_body(&raw).and_then(Inode::decode);
        let inode = findings.decoded(ino, Table::Inode, inode);
        pieces::check_extents(picture, ino, inode.as_ref(), &mut beside.extents, findings)?;
        take_rows(&mut beside.xattrs, Table::Xattr, ino, findings)?;
        let is_orphan = take_rows(&mut beside.orphans, Table::Orphan, ino, findings)? > 0;
        if let Some(inode) = inode {
            check_links(ino, &inode, is_orphan, &mut links, findings);
        }
        findings.step()?;
    }
    let end = to.unwrap_or(Ino(u64::MAX));
    for (rows, table) in beside.all() {
        skip_nobodys(rows, table, end, findings)?;
    }
    if !findings.is_partial {
        for ino in links.names.into_keys() {
            let what = "has a name but does not exist".to_owned();
            findings.fault(ProblemKind::NameOfNothing, Some(ino), what);
        }
        for ino in links.subdirectories.into_keys() {
            let what = "names in a directory that does not exist".to_owned();
            findings.fault(ProblemKind::NamesInNothing, Some(ino), what);
        }
    }
    Ok(())
}

/// The inode that the next row belongs to. A row that cannot be read is told at once: what is not there for it proves nothing.
fn next_owner(
    rows: &mut TableRows<'_>,
    table: Table,
    findings: &mut Findings<'_>,
) -> Result<Option<Ino>, FsError> {
    match rows.peek() {
        Some(Ok((key, _))) => Ok(Some(key_ino(key)?)),
        Some(Err(_)) => {
            findings.next_row(rows, table);
            Ok(None)
        }
        None => Ok(None),
    }
}

/// Takes the rows below `ino`, which belong to no inode.
fn skip_nobodys(
    rows: &mut TableRows<'_>,
    table: Table,
    ino: Ino,
    findings: &mut Findings<'_>,
) -> Result<(), FsError> {
    while next_owner(rows, table, findings)?.is_some_and(|owner| owner < ino) {
        let Some((key, _)) = findings.next_row(rows, table) else {
            break;
        };
        if !findings.is_partial {
            let what = format!("an entry in table {} but no inode", table.name());
            findings.fault(ProblemKind::NobodysRow, Some(key_ino(&key)?), what);
        }
    }
    Ok(())
}

/// Takes the rows of `ino`; says how many.
fn take_rows(
    rows: &mut TableRows<'_>,
    table: Table,
    ino: Ino,
    findings: &mut Findings<'_>,
) -> Result<u64, FsError> {
    let mut taken = 0;
    while next_owner(rows, table, findings)? == Some(ino)
        && findings.next_row(rows, table).is_some()
    {
        taken += 1;
    }
    Ok(taken)
}

fn check_links(
    ino: Ino,
    inode: &Inode,
    is_orphan: bool,
    links: &mut Links,
    findings: &mut Findings<'_>,
) {
    let nameless = (0, Some(inode.kind));
    let (names, named_kind) = links.names.remove(&ino).unwrap_or(nameless);
    let names_inside = links.subdirectories.remove(&ino);
    let named_in = links.named_in.remove(&ino);
    if findings.is_partial {
        return; // names are missing
    }
    let expected = match inode.kind {
        FileKind::Directory if is_orphan => 0,
        FileKind::Directory => 2 + names_inside.unwrap_or(0),
        _ => names,
    };
    if inode.nlink != expected {
        let what = format!("link count {} where names say {expected}", inode.nlink);
        findings.fault(ProblemKind::LinkCount, Some(ino), what);
    }
    if (inode.nlink == 0) != is_orphan {
        let what = "no names, but not on the orphan list, or both".to_owned();
        findings.fault(ProblemKind::Orphan, Some(ino), what);
    }
    if named_kind != Some(inode.kind) {
        let what = format!("is a {:?}, and a name says otherwise", inode.kind);
        findings.fault(ProblemKind::NameKind, Some(ino), what);
    }
    if names_inside.is_some() && (inode.kind != FileKind::Directory || is_orphan) {
        let what = if inode.kind == FileKind::Directory {
            "names in a directory that was removed"
        } else {
            "names in what is no directory"
        };
        findings.fault(ProblemKind::NamesInNothing, Some(ino), what.to_owned());
    }
    if inode.kind == FileKind::Directory && !is_orphan {
        let home = if ino == Ino::ROOT {
            Some(ino)
        } else {
            named_in
        };
        if home != Some(inode.parent) {
            let what = "its parent is not the directory that names it".to_owned();
            findings.fault(ProblemKind::Parent, Some(ino), what);
        }
    }
}

fn check_totals(applied: &Applied, findings: &mut Findings<'_>) {
    findings.report.digest = findings.digest.to_bytes();
    if findings.is_partial {
        return;
    }
    if findings.digest != applied.digest {
        let what = "the digest over all rows is not the one kept".to_owned();
        findings.fault(ProblemKind::Digest, None, what);
    }
    if findings.report.inodes != applied.inodes {
        let what = format!("{} inodes, {} kept", findings.report.inodes, applied.inodes);
        findings.fault(ProblemKind::InodeCount, None, what);
    }
    if findings.used_bytes != applied.used_bytes {
        let what = format!(
            "{} bytes in use, {} kept",
            findings.used_bytes, applied.used_bytes
        );
        findings.fault(ProblemKind::UsedBytes, None, what);
    }
    if findings.highest_ino >= applied.next_ino.0 {
        let what = "an inode number that was not given out yet is in use".to_owned();
        findings.fault(ProblemKind::InodeNumber, None, what);
    }
}

#[cfg(test)]
mod tests;
