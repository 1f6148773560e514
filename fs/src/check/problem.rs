//! What a check can find wrong, and what people should do about it.

use std::fmt;
use std::ops::Range;

use crate::types::Ino;

/// What to do about a problem.
pub(super) mod next {
    pub(in crate::check) const FILE: &str =
        "restore the file from a backup, or write these bytes anew, or delete it";
    pub(in crate::check) const STATE: &str =
        "copy what can be read to a new volume, or restore a backup: the state cannot be mended";
    pub(in crate::check) const MEND: &str = "unmount the volume and run `hafsctl volume repair`";
    pub(in crate::check) const SEGMENT: &str = "put the file back if it was moved; else restore the files that are listed from a backup, or delete them";
    pub(in crate::check) const STRANGER: &str = "move it elsewhere: it is not hafs's";
    pub(in crate::check) const FAULT: &str =
        "copy the files to a new volume, and report this: it is a fault of hafs, not of the disk";
}

/// Makes [`ProblemKind`] and the list of all its values, so that none is left out of that.
macro_rules! problem_kinds {
    ($($(#[$doc:meta])* $kind:ident,)*) => {
        /// What kind of problem it is. `check/tests.rs` makes one of each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ProblemKind {
            $($(#[$doc])* $kind,)*
        }

        impl ProblemKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];
        }
    };
}

problem_kinds! {
    /// A row of the state cannot be read or decoded.
    LostRow,
    /// The digest over all rows is not the one kept.
    Digest,
    /// The number of inodes is not the one kept.
    InodeCount,
    /// The bytes in use are not those kept.
    UsedBytes,
    /// An inode number is in use that was not given out.
    InodeNumber,
    /// A directory has two names.
    TwoNames,
    /// A name is not where a lookup finds it.
    MisplacedName,
    /// A place is free among names of equal hash.
    NameGap,
    /// A name of an inode that is not there.
    NameOfNothing,
    /// Names in something that is no directory, or was removed.
    NamesInNothing,
    /// A name says that the inode is of another kind.
    NameKind,
    /// An entry that belongs to an inode that is not there.
    NobodysRow,
    /// The link count is not what the names say.
    LinkCount,
    /// On the list of orphans with names, or without names and not on it.
    Orphan,
    /// A directory's parent is not the directory that names it.
    Parent,
    /// Two extents of a file for one byte.
    ExtentOverlap,
    /// A file has bytes past its end.
    BytesPastEnd,
    /// An extent lies before the place that its piece was written for.
    ExtentBeforePiece,
    /// Extents of one piece say different things of it.
    PieceDisagreement,
    /// The sum of a file's extents is not the one kept.
    ExtentBytes,
    /// Where a piece lies cannot be read.
    LostPlace,
    /// A piece lies nowhere.
    MissingPiece,
    /// Two places of files use one piece.
    SharedPiece,
    /// A chunk was written for another place.
    ForeignChunk,
    /// Bytes that do not match their checksum, or that the disk cannot read.
    UnreadableBytes,
    /// A piece that does not match its hash.
    WrongHash,
    /// Pieces that no extent names.
    UnusedPieces,
    /// The segments' index has more or fewer entries than chunks.
    IndexCount,
    /// An entry of the segments' index leads to something else.
    IndexEntry,
    /// A segment is missing, or its header is wrong.
    Segment,
    /// A file among the segments that is none.
    Stranger,
    /// The books of what is alive in the segments are wrong.
    LiveBytes,
    /// A file of RocksDB's is not what was written.
    StateFile,
}

/// Something in a volume that should not be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Of which kind it is.
    pub kind: ProblemKind,
    /// The inode that it concerns, if one.
    pub ino: Option<Ino>,
    /// Which of its bytes are hit, if some.
    pub bytes: Option<Range<u64>>,
    /// One of its names, from the volume's root, if it is known.
    pub path: Option<String>,
    /// What is wrong, in words.
    pub what: String,
    /// What to do about it.
    pub next: &'static str,
}

impl Problem {
    /// A problem of the volume as a whole that only a fault in hafs can have made.
    pub(crate) fn of_books(kind: ProblemKind, what: String) -> Self {
        Self {
            kind,
            ino: None,
            bytes: None,
            path: None,
            what,
            next: next::FAULT,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ino) = self.ino {
            write!(f, "inode {ino}")?;
            if let Some(path) = &self.path {
                write!(f, " ({path})")?;
            }
            f.write_str(": ")?;
        }
        if let Some(bytes) = &self.bytes {
            write!(f, "bytes {}..{}: ", bytes.start, bytes.end)?;
        }
        write!(f, "{}; next: {}", self.what, self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_where_and_what_to_do() {
        let problem = Problem {
            kind: ProblemKind::MissingPiece,
            ino: Some(Ino(7)),
            bytes: Some(0..4096),
            path: Some("/a/b".to_owned()),
            what: "gone".to_owned(),
            next: next::FILE,
        };
        assert_eq!(
            problem.to_string(),
            format!("inode 7 (/a/b): bytes 0..4096: gone; next: {}", next::FILE)
        );
    }
}
