//! What tests of real daemons and mounts stand on: a scratch directory, hafsd in it, hafsctl, mounts, and an end that
//! leaves nothing behind.
//!
//! `tests/posix` and `tests/cluster` use it, one process a test (nextest). It talks to hafs as users do: the binaries, their
//! exit codes, their text, their JSON; none of hafs's crates is linked. Every wait is for a condition and has a bound. Guards
//! end processes and detach mounts also when a test panics, and a daemon's WARN or ERROR line that the test did not
//! announce fails it.

pub mod binaries;
pub mod command;
pub mod daemon;
pub mod disk;
pub mod handle;
pub mod http;
pub mod lossy;
pub mod mount;
pub mod namespace;
pub mod numbers;
pub mod progress;
pub mod requirement;
pub mod rocksdb;
pub mod scratch;
pub mod tree;

pub use command::{Ran, run};
pub use daemon::{Daemon, Launch};
pub use disk::Disk;
pub use handle::Handle;
pub use mount::Mount;
pub use numbers::Numbers;
pub use progress::Progress;
pub use scratch::Scratch;
