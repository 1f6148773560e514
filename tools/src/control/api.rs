//! The JSON objects of the API, version `v1`: what requests carry and what answers hold.
//!
//! The server writes them, the client reads them, `hafsctl -o json` prints them, `docs/api.md` shows them. Fields are
//! only ever added: readers ignore what they do not know.

use std::fmt;

use hafs_meta::Profile;
use hafs_protocol::{Epoch, Lineage, Lsn, NodeId, StoreId, VolumeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Version of the API; the first part of each path and `apiVersion` in each object.
pub const API_VERSION: &str = "v1";

/// An answer: the object itself with `apiVersion` beside its fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned<T> {
    /// Always [`API_VERSION`] from this server.
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// The object.
    #[serde(flatten)]
    pub value: T,
}

impl<T> Versioned<T> {
    /// `value` as this version's answer.
    pub fn new(value: T) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            value,
        }
    }
}

/// What went wrong, for people (`error`, `why`, `next`) and for programs (`code`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    /// What did not happen, in one line.
    pub error: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// For programs.
    pub code: ErrorCode,
}

impl ApiError {
    /// An error without a reason yet.
    pub fn new(code: ErrorCode, error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            why: None,
            next: None,
            code,
        }
    }

    /// Adds the reason.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

/// Kinds of errors: one for each thing that a caller would do differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request was not understood: correct it.
    BadRequest,
    /// The request's body is larger than any that makes sense.
    BodyTooLarge,
    /// No such path or method in this version of the API.
    NoSuchEndpoint,
    /// No volume of that name.
    VolumeNotFound,
    /// The name is taken.
    VolumeExists,
    /// The volume is mounted: unmount it first.
    VolumeMounted,
    /// The volume's store did not open, or failed since: look at its error.
    VolumeFailed,
    /// Something else is being done with the volume: try again.
    VolumeBusy,
    /// hafsd is starting or ending: try again, or start it.
    NotReady,
    /// Not enough space on the node's disk.
    NoSpace,
    /// No answer in time; the outcome is unknown.
    TimedOut,
    /// hafsd itself failed; its log says more.
    Internal,
    /// A code that this program does not know yet.
    #[serde(other)]
    Unknown,
}

/// `GET /v1/ready`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// True: volumes are open (or known to have failed) and mounts are served.
    pub ready: bool,
}

/// `GET /v1/status`: the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node.
    pub node: Node,
    /// Version of hafsd.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// True once all volumes are open or known to have failed.
    pub ready: bool,
    /// When hafsd started.
    pub started: Timestamp,
    /// For how long it has run, by a clock that nobody sets.
    pub uptime_ms: u64,
    /// Where its data is.
    pub data_dir: String,
    /// Where it listens.
    pub socket: String,
    /// The disk under its data.
    pub disk: Disk,
    /// Volumes by state.
    pub volumes: VolumeCounts,
    /// Mounts that it serves.
    pub mounts: u64,
    /// All volumes in one word.
    pub health: Health,
}

/// A machine that runs hafsd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Never used again.
    pub id: NodeId,
    /// What people call it.
    pub name: String,
}

/// The disk under a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// All of it.
    pub size_bytes: u64,
    /// What can still be written.
    pub available_bytes: u64,
}

/// How many volumes are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeCounts {
    /// All.
    pub total: u64,
    /// Ready for use.
    pub open: u64,
    /// Being opened.
    pub opening: u64,
    /// Failed.
    pub failed: u64,
    /// Being deleted.
    pub deleting: u64,
}

/// How well data is kept, worst volume first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The worst of all volumes.
    pub state: HealthState,
    /// One line for each volume that is not `ok`, or one that sums up.
    pub reasons: Vec<String>,
    /// One line for each volume that is `ok` and yet wants to be looked at.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The states of [`Health`], from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// As many in-sync copies as wanted.
    Ok,
    /// Fewer than wanted, at least two.
    Degraded,
    /// One where more are wanted, or a volume that is not available, if only for writing.
    AtRisk,
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "OK",
            Self::Degraded => "DEGRADED",
            Self::AtRisk => "AT RISK",
        })
    }
}

/// `GET /v1/volumes`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeList {
    /// By name.
    pub volumes: Vec<Volume>,
}

/// A volume, as far as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its id, whatever its name.
    pub id: VolumeId,
    /// Where it stands on this node.
    pub state: VolumeState,
    /// Why it is `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Its quota.
    pub size_bytes: u64,
    /// What its files hold. `null` if it is not open, as all that follows up to `log_bytes`.
    pub used_bytes: Option<u64>,
    /// What can still be written: the quota's rest, or the disk's if that is less.
    pub available_bytes: Option<u64>,
    /// Inodes in use.
    pub inodes: Option<u64>,
    /// Disk space of its chunk segments.
    pub segment_bytes: Option<u64>,
    /// Disk space of its log.
    pub log_bytes: Option<u64>,
    /// How much room is left. `null` if it is not open.
    pub space: Option<Space>,
    /// What it is tuned for.
    pub profile: Profile,
    /// Whether the kernel may gather writes; off, a full volume is told by write(2) itself.
    #[serde(default = "on")]
    pub writeback: bool,
    /// When it was created.
    pub created: Timestamp,
    /// Its history.
    pub lineage: Lineage,
    /// The store on this node; `null` if no copy is here.
    pub store: Option<StoreId>,
    /// The reign that writes now.
    pub epoch: Epoch,
    /// Newest record. `null` if the volume is not open, as all that follows up to `digest`.
    pub head_lsn: Option<Lsn>,
    /// Newest record that is on disk for certain.
    pub durable_lsn: Option<Lsn>,
    /// Digest of the state at `head_lsn`, in hex.
    pub digest: Option<String>,
    /// Where it is mounted on this node, binds too.
    pub mounts: Vec<Mount>,
}

/// How much room a volume has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// Enough.
    Ok,
    /// Less than a twentieth of its size is left.
    NearlyFull,
    /// Nothing is left of its size: writes fail with ENOSPC.
    Full,
    /// The disk under it has less left than its reserve once more.
    DiskNearlyFull,
    /// The disk under it is at its reserve: writes fail with ENOSPC.
    DiskFull,
}

impl Space {
    /// What people read beside the volume's state; nothing if all is well.
    pub const fn remark(self) -> Option<&'static str> {
        match self {
            Self::Ok => None,
            Self::NearlyFull => Some("nearly full"),
            Self::Full => Some("full"),
            Self::DiskNearlyFull => Some("disk nearly full"),
            Self::DiskFull => Some("disk full"),
        }
    }
}

/// State of a volume on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Its log is being replayed.
    Opening,
    /// Ready for use.
    Open,
    /// Its store did not open, or failed since.
    Failed,
    /// Being deleted; goes on at the next start if interrupted.
    Deleting,
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "opening",
            Self::Open => "open",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        })
    }
}

/// Body of `POST /v1/volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name: letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// Its quota; 10 GiB if not given.
    #[serde(default = "CreateVolume::size_bytes_default")]
    pub size_bytes: u64,
    /// What it is tuned for.
    #[serde(default)]
    pub profile: Profile,
    /// Whether the kernel may gather writes.
    #[serde(default = "on")]
    pub writeback: bool,
}

const fn on() -> bool {
    true
}

impl CreateVolume {
    /// 10 GiB.
    pub const fn size_bytes_default() -> u64 {
        10 << 30
    }
}

/// Answer to `POST /v1/volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedVolume {
    /// The new volume.
    pub volume: Volume,
    /// What its creator should know, such as a size beyond the disk's.
    pub warnings: Vec<String>,
}

/// Body of `PATCH /v1/volumes/{name}`; what is not given stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetVolume {
    /// Its quota.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// What it is tuned for.
    #[serde(default)]
    pub profile: Option<Profile>,
    /// Whether the kernel may gather writes.
    #[serde(default)]
    pub writeback: Option<bool>,
    /// Only tell what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer to `PATCH /v1/volumes/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedVolume {
    /// The volume after it.
    pub volume: Volume,
    /// What changed, or would; empty if everything was so already.
    pub changes: Vec<Change>,
    /// False after a dry run.
    pub applied: bool,
    /// What whoever changed it should know.
    pub warnings: Vec<String>,
}

/// A setting that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its name, as in [`SetVolume`].
    pub setting: String,
    /// What it was: a number, text or boolean as in [`SetVolume`].
    pub from: serde_json::Value,
    /// What it is.
    pub to: serde_json::Value,
    /// From when on it holds.
    pub takes_effect: Effect,
}

/// From when on a changed setting holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// From now on.
    Now,
    /// Once the volume is unmounted everywhere and mounted again.
    NextMount,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now => "now",
            Self::NextMount => "at the next mount",
        })
    }
}

/// Answer to `DELETE /v1/volumes/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedVolume {
    /// Its name, free again.
    pub name: String,
    /// Its id, never used again.
    pub id: VolumeId,
}

/// A line of the answer to `POST /v1/volumes/{name}/check`: any number of `progress`, then one of the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckLine {
    /// How far it is.
    Progress {
        /// Inodes seen.
        inodes_done: u64,
        /// Inodes to see.
        inodes_total: u64,
        /// Bytes read and verified.
        #[serde(default)]
        bytes_done: u64,
        /// Of about how many.
        #[serde(default)]
        bytes_total: u64,
    },
    /// It ended.
    Report(CheckReport),
    /// It could not be done.
    Error(ApiError),
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// The volume.
    pub volume: String,
    /// True if there are no problems.
    pub clean: bool,
    /// The state that was checked is the one after this record.
    pub lsn: Lsn,
    /// Digest of that state, in hex.
    pub digest: String,
    /// Inodes checked.
    pub inodes: u64,
    /// Names checked.
    pub dentries: u64,
    /// Extents checked.
    pub extents: u64,
    /// Pieces of files (chunks, and small ones beside them) whose checksums and hashes were recomputed.
    pub pieces: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// How long it took.
    pub duration_ms: u64,
    /// How many problems there are.
    pub problem_count: u64,
    /// One line each, for the first thousand.
    pub problems: Vec<String>,
}

/// Body of `POST /v1/volumes/{name}/repair`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairVolume {
    /// Do it; else only say what would be done.
    #[serde(default)]
    pub apply: bool,
    /// Also if something is given up by it.
    #[serde(default)]
    pub accept_loss: bool,
}

/// What a repair did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairedVolume {
    /// The volume.
    pub volume: String,
    /// It was done.
    pub applied: bool,
    /// There is nothing to do.
    pub needless: bool,
    /// Something is given up by it, or perhaps is: it is done only with `accept_loss`.
    pub loses: bool,
    /// What of the log is given up.
    pub log: Option<LogLoss>,
    /// Why the durable mark is written anew, if it is: what was lost behind the log's end nobody can tell then.
    pub mark: Option<String>,
    /// Segments whose headers are written anew.
    pub segment_headers: Vec<u64>,
    /// Directory with what was cut off the log.
    pub kept_in: Option<String>,
    /// Why the volume is not available now, if it is not.
    pub failure: Option<String>,
}

/// Records that cannot be read any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLoss {
    /// The first of them: all from it on are lost.
    pub from_lsn: Lsn,
    /// The newest that is known to have been synced.
    pub synced_lsn: Lsn,
    /// The newest of which anything was found.
    pub newest_lsn: Lsn,
    /// How many of them had been synced.
    pub synced_records: u64,
    /// Where, why, what, since when: in a sentence.
    pub summary: String,
}

/// `GET /v1/replicas[?volume=NAME]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaList {
    /// By volume.
    pub replicas: Vec<VolumeReplicas>,
    /// Of the volumes listed.
    pub health: Health,
}

/// The copies of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeReplicas {
    /// The volume.
    pub volume: String,
    /// What an fsync means now.
    pub contract: String,
    /// Copies that hold all that was acknowledged.
    pub copies_in_sync: u32,
    /// Copies that the volume should have.
    pub copies_wanted: u32,
    /// Each copy.
    pub copies: Vec<VolumeCopy>,
    /// How far the furthest copy in sync is behind; `null` with one copy.
    pub lag_bytes: Option<u64>,
    /// The record up to which the copies were verified. With one copy there is nothing to compare it with: the newest
    /// record that a clean `volume check` saw since hafsd started, `null` if there was none.
    pub verified_lsn: Option<Lsn>,
    /// When a copy was last brought up to date; `null`: never needed.
    pub last_resync: Option<Timestamp>,
    /// Health of this volume.
    pub health: HealthState,
}

/// One copy of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeCopy {
    /// The node that holds it.
    pub node: Node,
    /// The store on that node.
    pub store: StoreId,
    /// Its part.
    pub role: Role,
    /// Where it stands.
    pub state: CopyState,
}

/// Part of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Serves the volume.
    Primary,
}

/// Where a copy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    /// Holds all that was acknowledged.
    InSync,
    /// Being opened: its log is replayed.
    Opening,
    /// Its store is not available.
    Failed,
    /// Being deleted with its volume.
    Deleting,
}

/// `GET /v1/mounts`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountList {
    /// By volume.
    pub mounts: Vec<Mount>,
}

/// A mount that this hafsd serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The volume.
    pub volume: String,
    /// The directory; as the mount helper named it, if the mount is in another namespace than hafsd.
    pub mountpoint: String,
    /// `major:minor` of its superblock, as in /proc/self/mountinfo.
    pub device: String,
    /// Inode of the mount namespace that the volume was first mounted in.
    pub namespace: u64,
    /// Since when.
    pub since: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_back_and_an_unknown_code_is_no_failure() {
        let error =
            ApiError::new(ErrorCode::VolumeMounted, "volume `pg` is mounted").why("on /mnt");
        let text = serde_json::to_string(&Versioned::new(error.clone())).unwrap();
        assert_eq!(
            text,
            r#"{"apiVersion":"v1","error":"volume `pg` is mounted","why":"on /mnt","code":"volume_mounted"}"#
        );
        let back: Versioned<ApiError> = serde_json::from_str(&text).unwrap();
        assert_eq!(back.value, error);
        let newer: ApiError =
            serde_json::from_str(r#"{"error":"x","code":"from_the_future","more":1}"#).unwrap();
        assert_eq!(newer.code, ErrorCode::Unknown);
    }

    #[test]
    fn creating_needs_a_name_only() {
        let create: CreateVolume = serde_json::from_str(r#"{"name":"pg"}"#).unwrap();
        assert_eq!(create.size_bytes, 10 << 30);
        assert_eq!(create.profile, Profile::Auto);
        assert!(serde_json::from_str::<CreateVolume>(r#"{"name":"pg","sise_bytes":1}"#).is_err());
    }

    #[test]
    fn check_lines_are_told_apart_by_their_key() {
        let line = CheckLine::Progress {
            inodes_done: 1,
            inodes_total: 2,
            bytes_done: 3,
            bytes_total: 4,
        };
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"progress":{"inodes_done":1,"inodes_total":2,"bytes_done":3,"bytes_total":4}}"#
        );
    }
}
