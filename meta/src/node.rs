//! Records of the cluster and its nodes. [`Catalog::bootstrap`](crate::Catalog::bootstrap) writes them.

use std::fmt;

use hafs_protocol::NodeId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::Record;

/// A cluster, for as long as it exists. Drawn when its first node starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub Uuid);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What a cluster is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterRecord {
    /// Its id.
    pub id: ClusterId,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Record for ClusterRecord {
    const KIND: &'static str = "cluster";
    const VERSION: u32 = 1;
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRecord {
    /// Its id.
    pub id: NodeId,
    /// What people call it; at first its host name.
    pub name: String,
    /// When it joined.
    pub created_at: Timestamp,
}

impl Record for NodeRecord {
    const KIND: &'static str = "node";
    const VERSION: u32 = 1;
}
