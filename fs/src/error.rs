//! Everything that can go wrong in a volume, by what the caller does about it.

use std::fmt;
use std::io;

use hafs_protocol::Lsn;

use crate::clock::utc;
use crate::types::{Ino, Time};

/// Why a volume refused or failed. [`errno`](crate::errno) maps each to what the kernel hears.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// No such name. The application handles it.
    #[error("no such file or directory")]
    NotFound,
    /// No such inode: the kernel looks the path up again.
    #[error("inode {0} does not exist")]
    Stale(Ino),
    /// The name is taken.
    #[error("name exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// Not for directories.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// A name over 255 bytes, or a symlink target over 4095.
    #[error("name too long")]
    NameTooLong,
    /// An argument out of range.
    #[error("invalid argument")]
    Invalid,
    /// Not allowed for this kind of inode.
    #[error("operation not permitted")]
    NotPermitted,
    /// The file would pass the largest offset.
    #[error("file too large")]
    TooBig,
    /// The inode has as many names as it can have.
    #[error("too many links")]
    TooManyLinks,
    /// The volume is full (its size), the disk under the store is at its reserve, or a table inside is full: an inode's
    /// attribute names (64 KiB), a directory's names of one hash. Nothing was changed.
    #[error("no space left")]
    NoSpace,
    /// No such extended attribute.
    #[error("no such extended attribute")]
    NoXattr,
    /// The answer does not fit into the caller's buffer.
    #[error("result does not fit the buffer")]
    Range,
    /// An extended attribute over 64 KiB.
    #[error("extended attribute too big")]
    XattrTooBig,
    /// lseek found no more data, or started past the end.
    #[error("no such offset")]
    NoSuchOffset,
    /// Known, but not for this file or flag.
    #[error("operation not supported")]
    Unsupported,
    /// The volume is mounted or opened read only.
    #[error("read-only volume")]
    ReadOnly,
    /// The store failed before; every fsync fails until the volume is opened again. Give up, look at the log.
    #[error("the volume's store failed earlier and takes no more changes")]
    Failed,
    /// Stored bytes do not match their checksum. Report; another copy may be good.
    #[error("inode {ino}: bytes {offset}..{} are damaged: {detail}", offset + len)]
    Damaged {
        /// The file.
        ino: Ino,
        /// First byte that cannot be trusted.
        offset: u64,
        /// How many.
        len: u64,
        /// What did not match.
        detail: &'static str,
    },
    /// The disk cannot read a file's bytes. Report; it may be able to later, and another copy may be good.
    #[error("inode {ino}: bytes {offset}..{} cannot be read", offset + len)]
    Unreadable {
        /// The file.
        ino: Ino,
        /// First byte that was not read.
        offset: u64,
        /// How many.
        len: u64,
        /// What the disk said.
        #[source]
        source: Box<Self>,
    },
    /// The store's own structures are damaged. Report.
    #[error("the volume's store is damaged: {0}")]
    Corrupt(String),
    /// The log ends before a record that had been synced. Report what is lost; take another copy, or accept the loss with
    /// [`Volume::repair`](crate::Volume::repair). Nothing was changed.
    #[error("{0}")]
    LogLost(Box<LogLoss>),
    /// The state (RocksDB) cannot be opened or read. Take another copy or a backup: the log does not reach back far enough to
    /// make it anew. Nothing was changed.
    #[error("the volume's state cannot be read")]
    StateLost(#[from] StateLoss),
    /// Whoever asked for it does not want it any more.
    #[error("stopped")]
    Stopped,
    /// The data directory is not what it should be: another program's, a newer format, another node's, in use.
    /// Nothing was touched.
    #[error("{0}")]
    Refused(String),
    /// The disk or the operating system failed.
    #[error("{op} {path}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// RocksDB failed.
    #[error("state store")]
    State(#[from] rocksdb::Error),
}

/// Why a volume's state cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StateLoss {
    /// RocksDB says so.
    #[error(transparent)]
    RocksDb(#[from] rocksdb::Error),
    /// RocksDB would read its manifest for ever.
    #[error("{file}: the record at byte {at} is of a kind ({kind}) that is not in such files")]
    Manifest {
        /// Its name.
        file: String,
        /// Where the record begins.
        at: usize,
        /// What the record says it is.
        kind: u8,
    },
}

/// What of a volume's log cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLoss {
    /// The first record that is lost: everything from it on is.
    pub from: Lsn,
    /// The newest record that is known to have been synced: lost too, unless it is below `from`.
    pub synced: Lsn,
    /// The newest record of which anything was found; what is lost beyond it nobody knows.
    pub newest: Lsn,
    /// Where the log is damaged: byte and file.
    pub place: String,
    /// What is wrong there.
    pub cause: &'static str,
    /// Time of the newest change that is not lost, if the log says one.
    pub kept_until: Option<Time>,
}

impl LogLoss {
    /// Records that are lost although they had been synced.
    pub fn synced_records(&self) -> u64 {
        (self.synced.0 + 1).saturating_sub(self.from.0)
    }
}

impl fmt::Display for LogLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the log ends at {}: {}; lost is everything from record {} on: {} records that had been synced (up to {})",
            self.place,
            self.cause,
            self.from,
            self.synced_records(),
            self.synced
        )?;
        let more = self
            .newest
            .0
            .saturating_sub(self.synced.0.max(self.from.0 - 1));
        if more > 0 {
            write!(f, " and {more} that had not")?;
        }
        match self.kept_until {
            Some(time) => write!(f, "; changes up to {} are kept", utc(time)),
            None => Ok(()),
        }
    }
}

/// An error with what caused it, on one line: what is logged. A log in JSON would have the error alone.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
