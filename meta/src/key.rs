//! The keys of the control store: the whole schema. Only [`catalog`](crate::catalog) reads and writes them.
//!
//! | key | value | changed by |
//! |---|---|---|
//! | `/cluster` | [`ClusterRecord`](crate::ClusterRecord) | `bootstrap`, once |
//! | `/node/<NodeId>` | [`NodeRecord`](crate::NodeRecord) | `bootstrap` |
//! | `/vol-name/<name>` | [`VolumeId`] as text | creating and deleting the volume |
//! | `/vol/<VolumeId>/cfg` | [`VolumeConfig`](crate::VolumeConfig) | whoever takes the primary's role, the primary |
//! | `/vol/<VolumeId>/spec` | [`VolumeSpec`](crate::VolumeSpec) | the user's commands |

use hafs_protocol::{NodeId, VolumeId};
use uuid::Uuid;

use crate::store::Key;
use crate::volume::VolumeName;

pub(crate) const CLUSTER: &str = "/cluster";
/// Prefix of all specs and configs. Volumes' names lie elsewhere, under `/vol-name/`.
pub(crate) const VOLUMES: &str = "/vol/";

pub(crate) fn node(id: NodeId) -> Key {
    format!("/node/{id}").into()
}

pub(crate) fn volume_name(name: &VolumeName) -> Key {
    format!("/vol-name/{name}").into()
}

pub(crate) fn volume_config(id: VolumeId) -> Key {
    format!("/vol/{id}/cfg").into()
}

pub(crate) fn volume_spec(id: VolumeId) -> Key {
    format!("/vol/{id}/spec").into()
}

/// Which of a volume's records a key under [`VOLUMES`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumePart {
    Config,
    Spec,
}

/// The inverse of [`volume_config`] and [`volume_spec`]; `None` for a key that neither makes.
pub(crate) fn parse_volume(key: &Key) -> Option<(VolumeId, VolumePart)> {
    let text = std::str::from_utf8(key.as_bytes()).ok()?;
    let (id, part) = text.strip_prefix(VOLUMES)?.split_once('/')?;
    let id = VolumeId(Uuid::try_parse(id).ok()?);
    let (part, made) = match part {
        "cfg" => (VolumePart::Config, volume_config(id)),
        "spec" => (VolumePart::Spec, volume_spec(id)),
        _ => return None,
    };
    // An id may be written in several ways; it is written in one.
    (made == *key).then_some((id, part))
}
