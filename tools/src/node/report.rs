//! Where everything stands, as objects of the API. Reads only; blocks on the stores of volumes.

use std::path::Path;
use std::sync::Arc;

use hafs_fs::mountinfo::{self, MountEntry};
use hafs_fs::{FsError, StatFs, Volume as Store, VolumeStatus};
use hafs_meta::VolumeRecord;
use hafs_protocol::Lsn;
use jiff::Timestamp;

use super::mounting::Mounting;
use super::served::ServedMount;
use super::{Node, Phase, STORE_FAILED, Slot, StoreState, no_such_volume};
use crate::control::api::{
    self, CopyState, Health, HealthState, Mount, ReplicaList, Role, Space, Status, Volume,
    VolumeCopy, VolumeCounts, VolumeReplicas, VolumeState,
};
use crate::control::{ApiError, ErrorCode};
use crate::metrics::{OpenScrape, Scrape, VolumeScrape};
use crate::mountpoint;
use crate::output::chain;
use crate::size;

/// A slot at one moment, to be looked at without the lock.
struct Look {
    record: VolumeRecord,
    state: VolumeState,
    failure: Option<String>,
    store: Option<Arc<Store>>,
    status: Option<VolumeStatus>,
    served: Option<(ServedMount, Timestamp)>,
    mounts: Vec<Mount>,
    verified: Option<Lsn>,
    sizes: Option<StatFs>,
    space: Option<Space>,
}

/// A volume with less than this share of its size left is nearly full.
const NEARLY_FULL_SHARE: u64 = 20;

impl Node {
    /// True once everything is open, and until the end begins.
    pub fn is_ready(&self) -> bool {
        self.state.lock().phase == Phase::Serving
    }

    /// The node.
    pub fn status(&self) -> Result<Status, ApiError> {
        let looks = self.looks();
        let count = |state| looks.iter().filter(|look| look.state == state).count() as u64;
        let disk = self.data.disk().map_err(|error| {
            ApiError::new(ErrorCode::Internal, "cannot tell the state of the disk")
                .why(error.to_string())
                .next("look at the data directory's disk")
        })?;
        Ok(Status {
            node: self.as_api(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            ready: self.is_ready(),
            started: self.started,
            uptime_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            data_dir: self.data.path().display().to_string(),
            socket: self.socket.display().to_string(),
            disk,
            volumes: VolumeCounts {
                total: looks.len() as u64,
                open: count(VolumeState::Open),
                opening: count(VolumeState::Opening),
                failed: count(VolumeState::Failed),
                deleting: count(VolumeState::Deleting),
            },
            mounts: looks.iter().map(|look| look.mounts.len() as u64).sum(),
            health: health(&looks),
        })
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Vec<Volume> {
        self.looks()
            .into_iter()
            .map(|look| self.describe(look))
            .collect()
    }

    /// One volume.
    pub fn volume(&self, name: &str) -> Result<Volume, ApiError> {
        Ok(self.describe(self.look(name)?))
    }

    /// All mounts that are served, by volume.
    pub fn mounts(&self) -> Vec<Mount> {
        self.looks()
            .into_iter()
            .flat_map(|look| look.mounts)
            .collect()
    }

    /// The copies of one volume, or of all.
    pub fn replicas(&self, volume: Option<&str>) -> Result<ReplicaList, ApiError> {
        let looks = match volume {
            Some(name) => vec![self.look(name)?],
            None => self.looks(),
        };
        let health = health(&looks);
        let replicas = looks.into_iter().map(|look| self.copies_of(look)).collect();
        Ok(ReplicaList { replicas, health })
    }

    /// What the metrics are made of.
    pub fn scrape(&self) -> Scrape {
        let volumes = self.looks().into_iter().map(|look| VolumeScrape {
            name: look.record.spec.name.to_string(),
            state: look.state,
            size_bytes: look.record.spec.size_bytes,
            mounts: look.mounts.len() as u64,
            open: look.store.zip(look.status).map(|(store, status)| {
                let unreadable = |error| {
                    tracing::warn!(error = chain(&error), "a volume's metrics are not complete");
                };
                OpenScrape {
                    status,
                    sizes: look.sizes,
                    counted: store.metrics().map_err(unreadable).ok(),
                }
            }),
        });
        Scrape {
            started: self.started,
            ready: self.is_ready(),
            disk: self.data.disk().ok(),
            volumes: volumes.collect(),
        }
    }

    fn as_api(&self) -> api::Node {
        api::Node {
            id: self.node_id(),
            name: self.name.clone(),
        }
    }

    fn looks(&self) -> Vec<Look> {
        let looks: Vec<Look> = self.state.lock().volumes.values().map(look).collect();
        let mounts = mounts_here();
        looks
            .into_iter()
            .map(|look| look.complete(&mounts))
            .collect()
    }

    fn look(&self, name: &str) -> Result<Look, ApiError> {
        let look = self.state.lock().volumes.get(name).map(look);
        let look = look.ok_or_else(|| no_such_volume(name))?;
        Ok(look.complete(&mounts_here()))
    }

    fn describe(&self, look: Look) -> Volume {
        let status = look.status;
        let sizes = look.sizes;
        let member = look
            .record
            .config
            .in_sync
            .iter()
            .find(|member| member.node == self.node_id());
        let spec = &look.record.spec;
        Volume {
            name: spec.name.to_string(),
            id: look.record.id,
            state: look.state,
            failure: look.failure,
            size_bytes: spec.size_bytes,
            used_bytes: sizes.map(|sizes| sizes.used_bytes),
            available_bytes: sizes.map(|sizes| sizes.available_bytes),
            space: look.space,
            inodes: sizes.map(|sizes| sizes.inodes),
            segment_bytes: status.as_ref().map(|status| status.segment_bytes),
            log_bytes: status.as_ref().map(|status| status.log_bytes),
            profile: spec.profile,
            writeback: spec.writeback,
            created: spec.created_at,
            lineage: look.record.config.lineage,
            store: member.map(|member| member.store),
            epoch: look.record.config.epoch,
            head_lsn: status.as_ref().map(|status| status.head),
            durable_lsn: status.as_ref().map(|status| status.durable),
            digest: status.as_ref().map(|status| hex(&status.digest)),
            mounts: look.mounts,
        }
    }

    fn copies_of(&self, look: Look) -> VolumeReplicas {
        let state = match look.state {
            VolumeState::Open => CopyState::InSync,
            VolumeState::Opening => CopyState::Opening,
            VolumeState::Failed => CopyState::Failed,
            VolumeState::Deleting => CopyState::Deleting,
        };
        let in_sync = &look.record.config.in_sync;
        let wanted = u32::from(look.record.spec.copies);
        let copies: Vec<VolumeCopy> = in_sync
            .iter()
            .filter(|member| member.node == self.node_id())
            .map(|member| VolumeCopy {
                node: self.as_api(),
                store: member.store,
                role: Role::Primary,
                state,
            })
            .collect();
        let usable = copies
            .iter()
            .filter(|copy| copy.state == CopyState::InSync)
            .count();
        let usable = u32::try_from(usable).unwrap_or(u32::MAX);
        VolumeReplicas {
            health: look.health(),
            volume: look.record.spec.name.to_string(),
            contract: format!("fsync on {} of {wanted}", in_sync.len()),
            copies_in_sync: usable,
            copies_wanted: wanted,
            copies,
            lag_bytes: None,
            verified_lsn: look.verified,
            last_resync: None,
        }
    }
}

impl Look {
    /// What only the store and the kernel know; asked without the node's lock.
    fn complete(mut self, mounts: &[MountEntry]) -> Self {
        if let Some((mount, since)) = &self.served {
            self.mounts = mountpoints(mount, *since, mounts);
        }
        self.status = self.store.as_ref().map(|store| store.status());
        if self.status.as_ref().is_some_and(|status| status.failed) {
            self.state = VolumeState::Failed;
            self.failure = Some(STORE_FAILED.to_owned());
        }
        if let Some(store) = &self.store {
            match room(store) {
                Ok((sizes, space)) => (self.sizes, self.space) = (Some(sizes), Some(space)),
                Err(error) => self.failure = self.failure.or_else(|| Some(chain(&error))),
            }
        }
        self
    }

    fn health(&self) -> HealthState {
        match self.state {
            // As many copies as wanted: one. But without room it is not available for writing.
            VolumeState::Open if self.is_full() => HealthState::AtRisk,
            VolumeState::Open | VolumeState::Deleting => HealthState::Ok,
            VolumeState::Opening | VolumeState::Failed => HealthState::AtRisk,
        }
    }

    fn is_full(&self) -> bool {
        match self.space {
            Some(Space::Full | Space::DiskFull) => true,
            Some(Space::Ok | Space::NearlyFull | Space::DiskNearlyFull) | None => false,
        }
    }

    /// Why it is not available, or what else there is to say.
    fn why(&self) -> String {
        let why = match self.state {
            VolumeState::Opening => "not available yet, its log is being replayed".to_owned(),
            VolumeState::Failed => match &self.failure {
                Some(failure) => failure.clone(),
                None => "not available".to_owned(),
            },
            VolumeState::Deleting => "being deleted".to_owned(),
            VolumeState::Open => self.room_left(),
        };
        format!("{}: {why}", self.record.spec.name)
    }

    fn room_left(&self) -> String {
        let left = size::display(self.sizes.map_or(0, |sizes| sizes.available_bytes));
        let size = size::display(self.record.spec.size_bytes);
        match self.space {
            Some(Space::Ok) | None => String::new(),
            Some(Space::NearlyFull) => format!("nearly full, {left} left of {size}"),
            Some(Space::Full) => {
                format!("full, nothing left of {size}: writes fail with ENOSPC; delete files, or give it more with `hafsctl volume set`")
            }
            Some(Space::DiskNearlyFull) => format!("the disk under it is nearly full, {left} left above the reserve"),
            Some(Space::DiskFull) => {
                "the disk under it is full up to the reserve: writes fail with ENOSPC; free space on it".to_owned()
            }
        }
    }
}

fn look(slot: &Slot) -> Look {
    let (state, failure) = match &slot.store {
        StoreState::Opening => (VolumeState::Opening, None),
        StoreState::Open(_) => (VolumeState::Open, None),
        StoreState::Failed(why) => (VolumeState::Failed, Some(why.clone())),
        StoreState::Deleting => (VolumeState::Deleting, None),
    };
    let served = match &slot.mounting {
        Mounting::Served(serving) => Some((serving.mount.clone(), serving.since)),
        Mounting::Free | Mounting::Reserved => None,
    };
    Look {
        record: slot.record.clone(),
        state,
        failure,
        store: slot.store.volume().cloned(),
        status: None,
        served,
        mounts: Vec::new(),
        verified: slot.verified,
        sizes: None,
        space: None,
    }
}

/// How much room a store has, in numbers and in a word.
fn room(store: &Store) -> Result<(StatFs, Space), FsError> {
    let sizes = store.statfs()?;
    let quota_left = sizes.size_bytes.saturating_sub(sizes.used_bytes);
    let left = sizes.available_bytes;
    let space = if left < quota_left {
        // Bound by the disk: what is left is above the reserve.
        match left {
            0 => Space::DiskFull,
            left if left < store.metrics()?.reserve_bytes => Space::DiskNearlyFull,
            _ => Space::Ok,
        }
    } else {
        match left {
            0 => Space::Full,
            left if left < sizes.size_bytes / NEARLY_FULL_SHARE => Space::NearlyFull,
            _ => Space::Ok,
        }
    };
    Ok((sizes, space))
}

/// Mounts in hafsd's own namespace; none if they cannot be read.
pub(super) fn mounts_here() -> Vec<MountEntry> {
    mountinfo::mounts().unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "cannot read the list of mounts");
        Vec::new()
    })
}

/// Where a served mount is seen, binds of it too; where its helper put it, if that is not to be seen from here.
pub(super) fn mountpoints(
    mount: &ServedMount,
    since: Timestamp,
    mounts: &[MountEntry],
) -> Vec<Mount> {
    let here = mounts.iter().filter(|entry| {
        entry.is_hafs() && entry.device == (0, mount.connection) && entry.root == Path::new("/")
    });
    let mut mountpoints: Vec<String> = here
        .map(|entry| entry.mount_point.display().to_string())
        .collect();
    // In our own namespace it would be seen: it is about to end, or kept in use without a directory.
    let is_ours = mountpoint::namespace().is_ok_and(|namespace| namespace == mount.namespace);
    if mountpoints.is_empty() && !is_ours {
        mountpoints.push(mount.mountpoint.clone());
    }
    let as_api = |mountpoint| Mount {
        volume: mount.volume.clone(),
        mountpoint,
        device: format!("0:{}", mount.connection),
        namespace: mount.namespace,
        since,
    };
    mountpoints.into_iter().map(as_api).collect()
}

fn health(looks: &[Look]) -> Health {
    let state = looks
        .iter()
        .map(Look::health)
        .max()
        .unwrap_or(HealthState::Ok);
    let mut reasons: Vec<String> = looks
        .iter()
        .filter(|look| look.health() != HealthState::Ok)
        .map(Look::why)
        .collect();
    let wants_a_look = |look: &&Look| {
        look.health() == HealthState::Ok && look.space.is_some_and(|space| space.remark().is_some())
    };
    let warnings = looks.iter().filter(wants_a_look).map(Look::why).collect();
    if state == HealthState::Ok {
        reasons.push(match looks.len() {
            0 => "no volumes".to_owned(),
            1 => "1 volume, one copy as wanted".to_owned(),
            count => format!("{count} volumes, one copy each as wanted"),
        });
    }
    Health {
        state,
        reasons,
        warnings,
    }
}

/// Bytes as hex digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes all");
            text
        })
}
