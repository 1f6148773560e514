//! A node: its data directory, its volumes, the mounts that it serves. hafsd has one.
//!
//! The control server calls it. Every method that touches a volume or the control store blocks, so it is called from
//! threads that may ([`tokio::task::spawn_blocking`]), never from the runtime's workers. `volumes` opens, creates, deletes
//! and checks; `repair` mends; `mounting` reserves, serves and ends mounts; `report` says where everything stands.
//!
//! Invariant: a volume's store is opened at most once at a time, and only after the control store began a new epoch for
//! it. Invariant: a volume has at most one superblock on this node: a mount is reserved before it is made.

pub mod datadir;
mod directories;
mod memory;
mod mounting;
mod repair;
mod report;
pub(crate) mod served;
mod settings;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hafs_fs::{SharedCache, Volume};
use hafs_meta::volume::{SIZE_BYTES_MAX, SIZE_BYTES_MIN};
use hafs_meta::{
    Catalog, ClusterId, ClusterRecord, LocalStore, MetaError, NodeRecord, OpenError, VolumeRecord,
};
use hafs_protocol::{Lsn, NodeId};
use jiff::Timestamp;
use parking_lot::{Condvar, Mutex, MutexGuard};
use uuid::Uuid;

use self::datadir::DataDir;
use self::directories::Directories;
use self::mounting::Mounting;
use self::served::ServedMounts;
use crate::control::{ApiError, ErrorCode};
use crate::output::{Refusal, chain};
use crate::size;

pub use self::directories::Entered;
pub use self::mounting::{Reservation, Reserved};

/// How long a request waits for the volumes to be open. Clients wait for longer.
const SERVING_WAIT: Duration = Duration::from_secs(30);
/// What is said of a store that failed while it was open; its errors are in the log.
const STORE_FAILED: &str = "its store failed; hafsd's log says how";

/// A node.
#[derive(Debug)]
pub struct Node {
    data: DataDir,
    name: String,
    socket: PathBuf,
    started: Timestamp,
    since: Instant,
    catalog: Catalog<LocalStore>,
    /// The catalog is asynchronous; blocking threads wait for it here.
    runtime: tokio::runtime::Handle,
    served: ServedMounts,
    directories: Arc<Directories>,
    /// Blocks of volumes' state, one budget for all.
    cache: SharedCache,
    state: Mutex<State>,
    /// Told after each change of `state` that somebody may wait for.
    changed: Condvar,
    /// Held by whoever changes a volume's settings: one at a time.
    setting: Mutex<()>,
}

/// What changes while the node runs. Never locked while a volume, the control store or the disk is waited for.
#[derive(Debug)]
struct State {
    phase: Phase,
    /// By name.
    volumes: BTreeMap<String, Slot>,
    /// Names of volumes whose stores are being made.
    creating: BTreeSet<String>,
}

/// Where the node is between its start and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Volumes are being opened. Leads to `Serving`, or to `Ending`.
    Starting,
    /// Everything is open, or known to have failed.
    Serving,
    /// Nothing new is begun.
    Ending,
}

/// A volume on this node.
#[derive(Debug)]
struct Slot {
    record: VolumeRecord,
    store: StoreState,
    mounting: Mounting,
    /// A check is under way.
    checking: bool,
    /// The newest record that a clean check saw since hafsd started.
    verified: Option<Lsn>,
    /// First record of the reign, while the store is open.
    epoch_start: Option<Lsn>,
}

/// The store of a volume on this node.
#[derive(Debug, Clone)]
enum StoreState {
    /// A thread is opening it, and will say `Open` or `Failed`.
    Opening,
    /// Ready.
    Open(Arc<Volume>),
    /// Why not. The next mount tries again.
    Failed(String),
    /// Being removed; then the slot goes.
    Deleting,
}

impl Node {
    /// Takes the data directory's records; opens no volume yet ([`open_volumes`](Self::open_volumes) does). All of them share
    /// a cache of `cache_bytes`.
    pub fn load(
        data: DataDir,
        socket: PathBuf,
        cache_bytes: usize,
        runtime: tokio::runtime::Handle,
    ) -> Result<Arc<Self>, Refusal> {
        refuse_without_records(&data)?;
        let store = LocalStore::open(&data.meta()).map_err(|error| refuse_open(&error))?;
        let catalog = Catalog::new(store);
        let started = Timestamp::now();
        let (name, records) = runtime
            .block_on(read_records(&catalog, data.node(), started))
            .map_err(|error| refuse_records(&data, &error))?;
        let served = ServedMounts::new(data.run().join("mounts.json"));
        let volumes = records
            .into_iter()
            .map(|record| (record.spec.name.to_string(), Slot::new(record)))
            .collect();
        Ok(Arc::new(Self {
            name,
            socket,
            started,
            since: Instant::now(),
            catalog,
            runtime,
            served,
            directories: Arc::default(),
            cache: SharedCache::new(cache_bytes),
            state: Mutex::new(State {
                phase: Phase::Starting,
                volumes,
                creating: BTreeSet::new(),
            }),
            changed: Condvar::new(),
            setting: Mutex::new(()),
            data,
        }))
    }

    /// What came of a former hafsd on this data directory: mounts that nobody serves any more are taken away.
    pub fn clear_dead_mounts(&self) {
        self.served.clear_dead();
    }

    fn node_id(&self) -> NodeId {
        self.data.node()
    }

    /// Waits until everything is open, within a bound. Nothing new is begun before, or once the end has begun.
    fn wait_until_serving(&self) -> Result<MutexGuard<'_, State>, ApiError> {
        let deadline = Instant::now() + SERVING_WAIT;
        let mut state = self.state.lock();
        loop {
            match state.phase {
                Phase::Serving => return Ok(state),
                Phase::Ending => return Err(ending()),
                Phase::Starting => {
                    if self.changed.wait_until(&mut state, deadline).timed_out() {
                        let error = "hafsd is still opening its volumes";
                        return Err(ApiError::new(ErrorCode::NotReady, error)
                            .next("try again when `hafsctl status` says ready"));
                    }
                }
            }
        }
    }
}

fn ending() -> ApiError {
    ApiError::new(ErrorCode::NotReady, "hafsd is ending").next("start it again")
}

impl Slot {
    fn new(record: VolumeRecord) -> Self {
        let deleting = record.spec.deleting_since.is_some();
        Self {
            record,
            store: if deleting {
                StoreState::Deleting
            } else {
                StoreState::Opening
            },
            mounting: Mounting::Free,
            checking: false,
            verified: None,
            epoch_start: None,
        }
    }
}

/// The node's name and its volumes; an empty control store becomes a cluster of one.
async fn read_records(
    catalog: &Catalog<LocalStore>,
    id: NodeId,
    now: Timestamp,
) -> Result<(String, Vec<VolumeRecord>), MetaError> {
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let node = NodeRecord {
        id,
        name: host,
        created_at: now,
    };
    let cluster = ClusterRecord {
        id: ClusterId(Uuid::new_v4()),
        created_at: now,
    };
    catalog.bootstrap(&node, &cluster).await?;
    let name = catalog
        .node(id)
        .await?
        .map_or(node.name, |record| record.name);
    Ok((name, catalog.volumes().await?))
}

/// A directory with stores and no records has lost its records: making new, empty ones would hide that.
fn refuse_without_records(data: &DataDir) -> Result<(), Refusal> {
    let is_empty = |path| fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty(data.meta()) || is_empty(data.volumes()) {
        return Ok(());
    }
    Err(Refusal::new(format!(
        "the control store {} is missing",
        data.meta().display()
    ))
    .why("there are stores of volumes beside it, and nothing says any more which volumes they are")
    .next("restore `meta` from a backup; nothing was touched"))
}

fn refuse_open(error: &OpenError) -> Refusal {
    let next = match error {
        OpenError::InUse { .. } => "stop the other process",
        OpenError::Newer { .. } => "run the newer hafsd that wrote it",
        OpenError::Full { .. } => "free some space on its disk",
        OpenError::Io { .. } => "repair what the system complains about",
        OpenError::Foreign { .. } | OpenError::Damaged { .. } => {
            "restore it from a backup; nothing was touched"
        }
    };
    Refusal::new("cannot open the control store")
        .why(chain(error))
        .next(next)
}

fn refuse_records(data: &DataDir, error: &MetaError) -> Refusal {
    let refusal = Refusal::new(format!(
        "cannot use the control store in {}",
        data.meta().display()
    ))
    .why(chain(error));
    refusal.next(if matches!(error, MetaError::ForeignNode { .. }) {
        "a data directory was put together from two; restore the one that belongs here"
    } else {
        "restore it from a backup, or run the hafsd that wrote it"
    })
}

/// An error of the control store, for users.
fn meta_error(error: &MetaError) -> ApiError {
    if let MetaError::InvalidSize { size_bytes } = error {
        return ApiError::new(
            ErrorCode::BadRequest,
            format!(
                "a volume cannot have a size of {}",
                size::display(*size_bytes)
            ),
        )
        .why(format!(
            "sizes are between {} and {}",
            size::display(SIZE_BYTES_MIN),
            size::display(SIZE_BYTES_MAX)
        ))
        .next("choose another size");
    }
    let (code, next) = match error {
        MetaError::NoSuchVolume(_) => (ErrorCode::VolumeNotFound, "hafsctl volume list"),
        MetaError::NameTaken { .. } => (ErrorCode::VolumeExists, "choose another name"),
        MetaError::InvalidName { .. } | MetaError::InvalidCopies { .. } => {
            (ErrorCode::BadRequest, "correct it and try again")
        }
        MetaError::Deleting { .. } => (
            ErrorCode::VolumeBusy,
            "wait until it is gone from `hafsctl volume list`",
        ),
        MetaError::Contended { .. } | MetaError::Store(_) => (ErrorCode::VolumeBusy, "try again"),
        MetaError::Unsettled(_) => (
            ErrorCode::TimedOut,
            "look with `hafsctl volume list` whether it happened",
        ),
        MetaError::InvalidSize { .. }
        | MetaError::InvalidProfile { .. }
        | MetaError::NotDeleting { .. }
        | MetaError::NotInSync { .. }
        | MetaError::EpochsExhausted { .. }
        | MetaError::ForeignNode { .. }
        | MetaError::Record { .. }
        | MetaError::Damaged { .. } => (ErrorCode::Internal, "look at hafsd's log"),
    };
    ApiError::new(code, chain(error)).next(next)
}

fn no_such_volume(name: &str) -> ApiError {
    ApiError::new(
        ErrorCode::VolumeNotFound,
        format!("volume `{name}` does not exist"),
    )
    .why("this node has no record of it")
    .next("hafsctl volume list shows what there is; hafsctl volume create makes one")
}
