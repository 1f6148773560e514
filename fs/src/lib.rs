//! A hafs volume on one node: FUSE in front, POSIX semantics, a log and a store below.
//!
//! This crate knows nothing of peers. It appends records to the volume's log, and an fsync waits until the commit
//! watermark passes its place in it; alone, the watermark is the local disk's.

mod apply;
mod check;
mod clock;
mod errno;
mod error;
mod fuse;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod log;
pub mod metrics;
pub mod mount;
pub mod mountinfo;
mod record;
mod space;
mod store;
mod types;
pub mod volume;

pub use check::{CheckProgress, CheckReport, Problem, ProblemKind};
pub use error::{FsError, LogLoss, StateLoss};
pub use log::FsyncDone;
pub use mount::{Mount, MountEnd, MountSettings};
pub use space::{is_almost_full, make_room_to_open};
pub use store::key::Loss;
pub use store::{SharedCache, VolumeIdentity};
pub use types::{
    AclKind, Attr, Caller, DirEntry, FallocateMode, FileKind, Ino, RenameMode, SeekTo, SetAttr,
    SetTime, StatFs, Time, XattrMode,
};
pub use volume::{Profile, Repair, SpaceStatus, Volume, VolumeSettings, VolumeStatus};
