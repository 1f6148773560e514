//! Everything that can go wrong in cluster metadata, by what the caller does about it.
//!
//! [`ControlError`] and [`WatchError`] are part of the contract of [`ControlStore`](crate::ControlStore), [`OpenError`] is
//! about the directory of a local store, [`MetaError`] is what [`Catalog`](crate::Catalog) answers.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hafs_protocol::{Member, NodeId, VolumeId};

use crate::store::{
    KEY_BYTES_MAX, Key, SESSION_TTL_MAX, SESSION_TTL_MIN, SessionId, TXN_BYTES_MAX, TXN_OPS_MAX,
    VALUE_BYTES_MAX,
};
use crate::volume::{SIZE_BYTES_MAX, SIZE_BYTES_MIN};

/// What a backend met, for people; the variant around it is for programs.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Why a control store did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ControlError {
    /// Not now, and surely nothing was changed. Try again later, or tell the user.
    #[error("the control store is not available")]
    Unavailable(#[source] Cause),
    /// A transaction may have been applied, or may be *later*. Both outcomes stay open, and the caller must act as if
    /// either held, until the same transaction, repeated, is answered (with guards that its own success breaks, it is applied at
    /// most once), or a guarded key is seen with a later `mod_rev`. Reading the old value settles nothing.
    #[error("it is not known whether the control store took the change")]
    Unknown(#[source] Cause),
    /// The request is beyond the contract. A mistake of the caller; nothing was changed.
    #[error("request beyond the control store's limits")]
    Limit(#[from] LimitExceeded),
    /// A put named a session that is over. Nothing was changed. Open a new session, and find out what that means.
    #[error("session {0} has ended")]
    SessionEnded(SessionId),
    /// Only a further page of a list: its revision is not kept any more. Start the list anew.
    #[error("the listed revision is gone, the oldest that is kept is {oldest}")]
    Compacted {
        /// The oldest revision that can be shown.
        oldest: u64,
    },
    /// The store is broken: its disk failed or what it holds is damaged. Report; a person must look.
    #[error("the control store has failed")]
    Fatal(#[source] Cause),
}

/// The limit that a request broke. See the constants in [`store`](crate::store).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitExceeded {
    /// Keys have at least one byte.
    #[error("a key is empty")]
    KeyEmpty,
    /// [`KEY_BYTES_MAX`].
    #[error("a key has {len} bytes, at most {KEY_BYTES_MAX} are allowed")]
    KeyTooLong {
        /// Its length, bytes.
        len: usize,
    },
    /// [`VALUE_BYTES_MAX`].
    #[error("the value of {key} has {len} bytes, at most {VALUE_BYTES_MAX} are allowed")]
    ValueTooLong {
        /// Whose value.
        key: Key,
        /// Its length, bytes.
        len: usize,
    },
    /// [`TXN_OPS_MAX`], guards.
    #[error("the transaction has {count} guards, at most {TXN_OPS_MAX} are allowed")]
    TooManyGuards {
        /// How many.
        count: usize,
    },
    /// [`TXN_OPS_MAX`], changes and fetches together.
    #[error("the transaction has {count} operations, at most {TXN_OPS_MAX} are allowed")]
    TooManyOps {
        /// How many.
        count: usize,
    },
    /// [`TXN_BYTES_MAX`].
    #[error("the transaction has {bytes} bytes, at most {TXN_BYTES_MAX} are allowed")]
    TxnTooBig {
        /// How many.
        bytes: usize,
    },
    /// A key occurs twice among the changes of a transaction.
    #[error("the transaction changes {key} twice")]
    DuplicateKey {
        /// Which.
        key: Key,
    },
    /// A page of no keys.
    #[error("a page of a list has at least one key")]
    PageEmpty,
    /// [`SESSION_TTL_MIN`], [`SESSION_TTL_MAX`].
    #[error(
        "a session's time to live is between {SESSION_TTL_MIN:?} and {SESSION_TTL_MAX:?}, not {ttl:?}"
    )]
    SessionTtl {
        /// What was asked for.
        ttl: Duration,
    },
}

/// Why a watch ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WatchError {
    /// Revisions that the watch still had to deliver are not kept any more. List, and watch from the list's revision + 1.
    #[error("watched revisions are gone, the oldest that is kept is {oldest}")]
    Compacted {
        /// The first revision that a watch can start from.
        oldest: u64,
    },
    /// The stream broke. Watch again from the last batch's revision + 1.
    #[error("the control store is not available")]
    Unavailable(#[source] Cause),
    /// The prefix is beyond the contract. A mistake of the caller.
    #[error("request beyond the control store's limits")]
    Limit(#[from] LimitExceeded),
    /// As [`ControlError::Fatal`].
    #[error("the control store has failed")]
    Fatal(#[source] Cause),
}

/// Why a directory could not be opened as a local control store. Nothing that was in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open. Find that one, or use another directory.
    #[error("{} is in use by another process", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// Other files are in it. Use another directory.
    #[error("{} is not a hafs control store: {detail}", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Written by a newer hafs. Use that one.
    #[error(
        "{} has control store format {found}, this version of hafs knows formats up to {known}",
        dir.display()
    )]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// The file system has no room for a control store to work in. Make room.
    #[error(
        "{} has {free_bytes} bytes free, the control store needs {need_bytes}",
        dir.display()
    )]
    Full {
        /// The directory.
        dir: PathBuf,
        /// Bytes free on its file system.
        free_bytes: u64,
        /// Bytes that must be free.
        need_bytes: u64,
    },
    /// The operating system refused: no permission, read only, no such parent directory, …
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The store in it is damaged or incomplete. Report; restore it from a backup.
    #[error("the control store in {} is damaged", dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Cause,
    },
}

/// Why a stored record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not the JSON of such a record.
    #[error("not a valid record")]
    Json(#[from] serde_json::Error),
    /// Not the id of a volume.
    #[error("not a volume id")]
    Id(#[from] uuid::Error),
    /// A record of another kind.
    #[error("holds a record of kind {found:?} instead of {want:?}")]
    Kind {
        /// What it says it is.
        found: String,
        /// What it should be.
        want: &'static str,
    },
    /// Written by a newer hafs.
    #[error("has version {found}, this version of hafs knows versions up to {known}")]
    Newer {
        /// Its version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
}

/// Why [`Catalog`](crate::Catalog) refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The control store did not answer, and nothing was changed by this call. What to do stands at [`ControlError`]. Never
    /// [`ControlError::Unknown`]: that becomes [`MetaError::Unsettled`].
    #[error("control store")]
    Store(#[source] ControlError),
    /// It is not known whether the change was or will be made. Call the same function again with the same arguments (ids
    /// and proposal too): it finds out. Until then act as if it may have been.
    #[error("it is not known whether the change was made")]
    Unsettled(#[source] ControlError),
    /// Others kept changing the same records. Nothing was changed. Try again.
    #[error("{volume} kept being changed by others")]
    Contended {
        /// Which volume.
        volume: VolumeId,
    },
    /// Not a name for a volume. Tell the user.
    #[error("{name:?} is not a volume name: {reason}")]
    InvalidName {
        /// What was given.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// Not a size for a volume. Tell the user.
    #[error("a volume has between {SIZE_BYTES_MIN} and {SIZE_BYTES_MAX} bytes, not {size_bytes}")]
    InvalidSize {
        /// What was given.
        size_bytes: u64,
    },
    /// Copies that this cluster cannot hold. Tell the user.
    #[error("{copies} copies were asked for, a cluster of one node holds 1")]
    InvalidCopies {
        /// What was given.
        copies: u8,
    },
    /// Not a profile. Tell the user.
    #[error("{profile:?} is not a profile: auto, database, sequential or small-files")]
    InvalidProfile {
        /// What was given.
        profile: String,
    },
    /// The name is taken. Tell the user, or take that volume.
    #[error("a volume named {name} exists")]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        volume: VolumeId,
    },
    /// No such volume. Tell the user.
    #[error("no volume {0}")]
    NoSuchVolume(String),
    /// The volume is being deleted: no epoch, no change. Tell the user; only deleting goes on.
    #[error("volume {name} is being deleted")]
    Deleting {
        /// Its name.
        name: String,
    },
    /// `finish_delete` before `begin_delete`. A mistake of the caller.
    #[error("volume {name} was not marked for deletion")]
    NotDeleting {
        /// Its name.
        name: String,
    },
    /// This store is not in the volume's in-sync set, so it may lack acknowledged data and must not reign. Do not serve the
    /// volume from it.
    #[error("store {} on node {} is not in the in-sync set of {volume}", member.store, member.node)]
    NotInSync {
        /// Which volume.
        volume: VolumeId,
        /// Who asked to reign.
        member: Member,
    },
    /// The volume has seen 2^32 - 1 epochs. Clone it.
    #[error("{volume} has no further epoch")]
    EpochsExhausted {
        /// Which volume.
        volume: VolumeId,
    },
    /// The control store is that of a cluster to which this node does not belong: a copied or moved data directory. Refuse
    /// to start.
    #[error("the control store belongs to a cluster that does not know node {node}")]
    ForeignNode {
        /// Who asked.
        node: NodeId,
    },
    /// A record is damaged, or of a newer version. Report.
    #[error("record {key}")]
    Record {
        /// Its key.
        key: Key,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// Records contradict each other. Report.
    #[error("the records of {volume} are damaged: {detail}")]
    Damaged {
        /// Which volume.
        volume: VolumeId,
        /// How.
        detail: &'static str,
    },
}
