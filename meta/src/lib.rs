//! Cluster metadata: which nodes there are, which volumes, who holds which copy, in which epoch.
//!
//! Everything that must have one answer in the cluster is a small record in a [`ControlStore`]: a key/value store with
//! guarded transactions, watches and sessions. A single node keeps it in a [`LocalStore`]. [`Catalog`] is what the daemon
//! calls: volumes by name, the next epoch of a volume. Decisions are pure functions over the records ([`node`],
//! [`volume`]); times and ids come from the caller.
//!
//! Invariant: no safety decision rests on a read, only on a guarded transaction.

pub mod catalog;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod key;
pub mod node;
mod record;
pub mod store;
pub mod volume;

pub use catalog::{Catalog, NewVolume};
pub use error::{
    Cause, ControlError, LimitExceeded, MetaError, OpenError, RecordError, WatchError,
};
pub use node::{ClusterId, ClusterRecord, NodeRecord};
pub use store::{ControlStore, local::LocalStore};
pub use volume::{Profile, VolumeChange, VolumeConfig, VolumeName, VolumeRecord, VolumeSpec};
