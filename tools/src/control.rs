//! The control interface of a node: HTTP and JSON on a unix socket, and a second socket that takes descriptors.
//!
//! `docs/api.md` is its contract. [`api`] holds the types, shared by both sides; [`client`] is what `hafsctl` uses;
//! [`server`] is hafsd's side; [`mounting`] is the conversation between the mount helper and hafsd, over the socket
//! beside the first one ([`fd_socket`]), because a descriptor cannot travel in HTTP.

pub mod api;
pub mod client;
pub mod mounting;
pub mod server;
pub mod socket;

use std::path::{Path, PathBuf};

pub use api::{ApiError, ErrorCode};

/// The socket that takes descriptors: beside the control socket, with `.fd` behind its name.
pub fn fd_socket(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".fd");
    path.into()
}
