//! What the binaries of hafs share: `hafsd`, the node's daemon; `hafsctl`, its command line; `mount-fuse-hafs`, installed
//! as `/sbin/mount.fuse.hafs`.
//!
//! Wiring only: what a volume is, is `hafs-fs`'s; who holds it and in which epoch, `hafs-meta`'s. [`node`] brings the two
//! together in hafsd, [`control`] is the way in, [`mounter`] the other end of it in the mount helper.

pub mod command_line;
pub mod config;
pub mod control;
pub mod doctor;
pub mod fdpass;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod metrics;
pub mod mounter;
pub mod mountpoint;
pub mod node;
pub mod output;
pub mod process;
pub mod size;
pub mod telemetry;
