//! How a mount comes about: the conversation between the mount helper and hafsd on the socket for descriptors.
//!
//! ```text
//! helper                                   hafsd
//!   Ask{volume, directory, namespace} ──>    waits until the volume is open and no other mount of it is under way
//!                                     <──  Answer::Mount             nobody has it mounted: it is reserved for you
//!                                          Answer::Bind{connection, ..}  it is mounted: bind that
//!                                          Answer::Refused{..}
//!   opens /dev/fuse, mount(2)
//!   Serve{connection} + descriptor    ──>    writes the mount down, serves it
//!                                     <──  Served::Serving | Served::Refused{..}
//!   asks the root for its attributes
//!   closes the conversation: until then hafsd leaves the directory alone
//! ```
//!
//! One connection is one conversation. A reservation ends with it, so two mounts of a volume at once never make two
//! superblocks, and a helper that dies leaves nothing behind. The messages are between programs of one release; they
//! are not part of the API.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ApiError;

/// How long hafsd lets the helper wait for its first answer: a volume may still replay its log, another mount of it may
/// be under way.
pub const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// How long a reservation waits for the descriptor: the helper opens /dev/fuse, perhaps loads a module, and mounts.
pub const RESERVATION: Duration = Duration::from_secs(20);
/// How long hafsd waits for a mount to end that a helper does not see: an umount is under way, with pages to write back.
pub const MISSING_WAIT: Duration = Duration::from_secs(10);
/// How much longer each side waits than the other needs by these bounds.
pub const MARGIN: Duration = Duration::from_secs(5);

/// The helper's question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Name of the volume.
    pub volume: String,
    /// Where it is to be mounted, absolute, as the helper's namespace sees it.
    pub directory: String,
    /// Inode number of the helper's mount namespace.
    pub namespace: u64,
    /// Asked again: this connection was to be bound, and no mount of it is to be seen. It may be about to end.
    pub missing: Option<u32>,
}

/// hafsd's answer to [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Mount it and send the descriptor.
    Mount,
    /// It is mounted.
    Bind {
        /// Number of its connection: the minor of `st_dev` of all that is in it.
        connection: u32,
        /// Where it was first mounted, in the namespace of whoever did.
        directory: String,
        /// Whether that was in the asking helper's namespace.
        same_namespace: bool,
    },
    /// No.
    Refused(ApiError),
}

/// Comes with the descriptor of /dev/fuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {
    /// Number of the new connection.
    pub connection: u32,
}

/// hafsd's answer to [`Serve`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Served {
    /// Requests are answered from now on.
    Serving,
    /// No; unmount it again.
    Refused(ApiError),
}
