//! Volumes of a node: opened, created, deleted, checked, closed.
//!
//! Records come first, stores follow: a record in epoch 0 says that its store was never opened and may be made again, a
//! later epoch with no store says that data is lost. A record is forgotten only after its store is gone. So whatever
//! moment a crash comes at, the next start finishes what was begun, and no store is ever removed because its record is
//! missing.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hafs_fs::{
    CheckProgress, FsError, SharedCache, Volume, VolumeIdentity, VolumeSettings, is_almost_full,
};
use hafs_meta::{MetaError, NewVolume, Profile, VolumeName, VolumeRecord, VolumeSpec};
use hafs_protocol::{Epoch, Lineage, Member, StoreId, VolumeId};
use jiff::Timestamp;
use parking_lot::MutexGuard;
use uuid::Uuid;

use super::datadir::sync_directory;
use super::memory::state_buffer_bytes;
use super::mounting::Mounting;
use super::{
    Node, Phase, STORE_FAILED, Slot, State, StoreState, meta_error, no_such_volume, report,
};
use crate::control::api::{CheckReport, CreateVolume, CreatedVolume, DeletedVolume};
use crate::control::{ApiError, ErrorCode};
use crate::output::chain;
use crate::size;

/// Volumes opened at the same time at the start: replay is bound by the disk, and each takes memory.
const OPENING_MAX: usize = 4;
/// How often a change of the control store is asked for again while its outcome is unknown.
const SETTLE_TRIES: usize = 5;
/// How long the end of a mount may take: its volume is synced.
const MOUNT_END_WAIT: Duration = Duration::from_secs(30);
/// How long others may hold on to a closed volume, and how often it is looked at: an `Arc` tells nobody that it is free.
const LET_GO_WAIT: Duration = Duration::from_secs(5);
const LET_GO_PAUSE: Duration = Duration::from_millis(1);

impl Node {
    /// Opens all volumes and finishes deletions that were interrupted; then the node serves. A volume that does not open
    /// stops no other.
    pub fn open_volumes(self: &Arc<Self>) {
        let records: Vec<VolumeRecord> = self
            .state
            .lock()
            .volumes
            .values()
            .map(|slot| slot.record.clone())
            .collect();
        self.report_strangers(&records);
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..OPENING_MAX.min(records.len()) {
                scope.spawn(|| {
                    while let Some(record) = records.get(next.fetch_add(1, Ordering::Relaxed)) {
                        self.open_or_finish(record);
                    }
                });
            }
        });
        let mut state = self.state.lock();
        if state.phase == Phase::Starting {
            state.phase = Phase::Serving;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Ends what the node does: nothing new is begun, mounts are written back and unmounted, volumes closed. False if a
    /// volume did not close well; its log says what it holds.
    pub fn shut_down(self: &Arc<Self>) -> bool {
        self.state.lock().phase = Phase::Ending;
        self.changed.notify_all();
        self.unmount_all();
        let volumes: Vec<(String, Arc<Volume>)> = {
            let state = self.state.lock();
            let open = state
                .volumes
                .iter()
                .filter_map(|(name, slot)| Some((name.clone(), Arc::clone(slot.store.volume()?))));
            open.collect()
        };
        let failures = AtomicUsize::new(0);
        thread::scope(|scope| {
            for (name, volume) in &volumes {
                let failures = &failures;
                scope.spawn(move || {
                    if let Err(error) = volume.close() {
                        failures.fetch_add(1, Ordering::Relaxed);
                        tracing::error!(
                            volume = name,
                            error = chain(&error),
                            "cannot close the volume"
                        );
                    }
                });
            }
        });
        // Closed, they are durable up to their heads.
        self.note_commits();
        failures.load(Ordering::Relaxed) == 0
    }

    fn open_or_finish(&self, record: &VolumeRecord) {
        if record.spec.deleting_since.is_none() {
            let store = self.open_store(record).map_err(|unopened| unopened.why);
            self.store_opened(record, store);
        } else if let Err(error) = self.finish_delete(record) {
            let name = record.spec.name.as_str();
            tracing::error!(
                volume = name,
                why = error.why,
                "cannot finish deleting: {error}"
            );
        }
    }

    /// Takes a failed store out of use, in order to open it again.
    pub(super) fn begin_reopen(&self, state: &mut State, name: &str) -> Reopen {
        let slot = state
            .volumes
            .get_mut(name)
            .expect("looked up under the same lock");
        let failed = std::mem::replace(&mut slot.store, StoreState::Opening);
        Reopen {
            record: slot.record.clone(),
            failed,
        }
    }

    /// Opens it. Everybody else waits, or is refused, until that is done.
    pub(super) fn reopen(&self, mut reopen: Reopen) -> MutexGuard<'_, State> {
        reopen.close();
        let record = &reopen.record;
        let store = self.open_store(record).map_err(|unopened| unopened.why);
        self.store_opened(record, store);
        self.state.lock()
    }

    fn store_opened(&self, record: &VolumeRecord, store: Result<(VolumeRecord, Volume), String>) {
        let name = record.spec.name.as_str();
        let mut state = self.state.lock();
        let slot = state
            .volumes
            .get_mut(name)
            .expect("a volume stays while it is being opened");
        match store {
            Ok((record, volume)) => {
                tracing::info!(volume = name, epoch = record.config.epoch.0, "volume open");
                slot.record = record;
                // Nobody else could append yet.
                slot.epoch_start = Some(volume.status().head);
                slot.store = StoreState::Open(Arc::new(volume));
            }
            Err(error) => {
                tracing::error!(volume = name, error, "volume is not available");
                slot.store = StoreState::Failed(error);
            }
        }
        drop(state);
        self.changed.notify_all();
        self.note_commit(name);
    }

    /// Begins an epoch and opens the store in it. The error says all there is to say.
    fn open_store(&self, record: &VolumeRecord) -> Result<(VolumeRecord, Volume), Unopened> {
        let Some(member) = self.own_member(record) else {
            return Err(Unopened::new("no copy of it is on this node"));
        };
        let directory = self.data.volume(record.id);
        let identity = identity(record, member);
        let volumes = {
            let state = self.state.lock();
            state.volumes.len() + state.creating.len()
        };
        let settings = VolumeSettings {
            state_buffer_bytes: state_buffer_bytes(volumes),
            ..settings(record, &self.cache)
        };
        if record.config.epoch == Epoch(0) {
            self.make_store(&directory, &identity, &settings)
                .map_err(|error| Unopened::from(&error))?;
        } else if !directory.exists() {
            let why = format!("its store {} is missing", directory.display());
            return Err(Unopened::new(why));
        }
        let proposal = Uuid::new_v4();
        let record = self
            .settle(|| self.catalog.begin_epoch(record.id, member, proposal))
            .map_err(|error| Unopened::new(chain(&error)))?;
        let volume = Volume::open(&directory, &identity, &settings, record.config.epoch)
            .map_err(|error| Unopened::from(&error))?;
        Ok((record, volume))
    }

    /// The store of a volume that was never opened. What an interrupted try left is thrown away.
    fn make_store(
        &self,
        directory: &Path,
        identity: &VolumeIdentity,
        settings: &VolumeSettings,
    ) -> Result<(), FsError> {
        let failed = |op, path: &Path| {
            let path = path.display().to_string();
            move |source| FsError::Io { op, path, source }
        };
        remove(directory).map_err(failed("remove", directory))?;
        Volume::create(directory, identity, settings, Epoch(0))?;
        let volumes = self.data.volumes();
        sync_directory(&volumes).map_err(failed("sync", &volumes))
    }

    pub(super) fn own_member(&self, record: &VolumeRecord) -> Option<Member> {
        record
            .config
            .in_sync
            .iter()
            .copied()
            .find(|member| member.node == self.node_id())
    }

    /// Makes a volume and opens it.
    pub fn create_volume(&self, create: &CreateVolume) -> Result<CreatedVolume, ApiError> {
        let name: VolumeName = create.name.parse().map_err(|error| meta_error(&error))?;
        let member = Member {
            node: self.node_id(),
            store: StoreId(Uuid::new_v4()),
        };
        let new = NewVolume {
            id: VolumeId(Uuid::new_v4()),
            lineage: Lineage(Uuid::new_v4()),
            spec: VolumeSpec {
                name: name.clone(),
                size_bytes: create.size_bytes,
                profile: create.profile,
                copies: 1,
                writeback: create.writeback,
                created_at: Timestamp::now(),
                deleting_since: None,
            },
            member,
            proposal: Uuid::new_v4(),
        };
        new.spec.check().map_err(|error| meta_error(&error))?;
        let warnings = self.size_warnings(create.size_bytes, name.as_str());
        let _creating = Creating::begin(self, name.as_str())?;
        let record = self
            .settle(|| self.catalog.create_volume(&new))
            .map_err(|error| meta_error(&error))?;
        match self.open_store(&record) {
            Ok(opened) => {
                self.state
                    .lock()
                    .volumes
                    .insert(name.to_string(), Slot::new(record.clone()));
                self.store_opened(&record, Ok(opened));
            }
            Err(Unopened { why, code }) => {
                tracing::error!(
                    volume = name.as_str(),
                    error = why,
                    "cannot create the volume"
                );
                let error = format!("volume `{name}` cannot be created");
                let error = ApiError::new(code, error).why(why);
                return Err(self.undo_create(&record, error));
            }
        }
        let volume = self.volume(name.as_str())?;
        Ok(CreatedVolume { volume, warnings })
    }

    /// Takes a record back whose store could not be made.
    fn undo_create(&self, record: &VolumeRecord, error: ApiError) -> ApiError {
        let undone = self
            .settle(|| self.catalog.begin_delete(record.id, Timestamp::now()))
            .map_err(|error| meta_error(&error))
            .and_then(|record| self.remove_store_and_record(&record));
        match undone {
            Ok(()) => error.next("nothing is left of it; repair the cause and try again"),
            Err(undo) => {
                tracing::error!(
                    volume = record.spec.name.as_str(),
                    why = undo.why,
                    "cannot undo: {undo}"
                );
                error.next("what was begun is removed when hafsd starts again")
            }
        }
    }

    /// Deletes a volume with all its data.
    pub fn delete_volume(&self, name: &str) -> Result<DeletedVolume, ApiError> {
        let (record, store) = {
            let mut state = self.wait_until_serving()?;
            self.wait_until_mount_ended(&mut state, name);
            let slot = state
                .volumes
                .get_mut(name)
                .ok_or_else(|| no_such_volume(name))?;
            slot.refuse_in_use("delete")?;
            // From here on nobody mounts, checks or deletes it.
            (
                slot.record.clone(),
                std::mem::replace(&mut slot.store, StoreState::Deleting),
            )
        };
        self.make_room(store.volume());
        let id = record.id;
        let begun = self.settle(|| self.catalog.begin_delete(id, Timestamp::now()));
        let record = match begun {
            Ok(record) => record,
            Err(error) => {
                if let Some(slot) = self.state.lock().volumes.get_mut(name) {
                    slot.store = store;
                }
                self.changed.notify_all();
                return Err(meta_error(&error));
            }
        };
        if let StoreState::Open(volume) = store {
            if let Err(error) = volume.close() {
                tracing::warn!(
                    volume = name,
                    error = chain(&error),
                    "the deleted volume did not close well"
                );
            }
            let_go(name, volume);
        }
        self.finish_delete(&record)?;
        Ok(DeletedVolume {
            name: name.to_owned(),
            id,
        })
    }

    /// An umount that has returned may not be told here yet. Waits for that, within a bound, and for nothing else.
    pub(super) fn wait_until_mount_ended(&self, state: &mut MutexGuard<'_, State>, name: &str) {
        let deadline = Instant::now() + MOUNT_END_WAIT;
        let is_ending = |state: &State| match state.volumes.get(name).map(|slot| &slot.mounting) {
            Some(Mounting::Served(serving)) => serving.is_disconnected(),
            Some(Mounting::Free | Mounting::Reserved) | None => false,
        };
        while is_ending(state) && !self.changed.wait_until(state, deadline).timed_out() {}
    }

    fn finish_delete(&self, record: &VolumeRecord) -> Result<(), ApiError> {
        self.remove_store_and_record(record)?;
        self.state.lock().volumes.remove(record.spec.name.as_str());
        self.changed.notify_all();
        tracing::info!(volume = record.spec.name.as_str(), id = %record.id, "volume deleted");
        Ok(())
    }

    /// The store first, durably; then the record.
    fn remove_store_and_record(&self, record: &VolumeRecord) -> Result<(), ApiError> {
        let directory = self.data.volume(record.id);
        remove(&directory)
            .and_then(|()| sync_directory(&self.data.volumes()))
            .map_err(|error| {
                let what = format!("the store {} cannot be removed", directory.display());
                ApiError::new(ErrorCode::Internal, what)
                    .why(error.to_string())
                    .next("deleting goes on when hafsd starts again")
            })?;
        self.settle(|| self.catalog.finish_delete(record.id))
            .map_err(|error| meta_error(&error))
    }

    /// Proves a volume's invariants. `watch` is told how far it is, and ends it where nobody waits for it any more.
    pub fn check_volume(
        &self,
        name: &str,
        watch: &mut dyn FnMut(&CheckProgress) -> ControlFlow<()>,
    ) -> Result<CheckReport, ApiError> {
        let (volume, _checking) = Checking::begin(self, name)?;
        if volume.status().failed {
            return Err(ApiError::new(
                ErrorCode::VolumeFailed,
                format!("cannot check volume `{name}`"),
            )
            .why(STORE_FAILED)
            .next(format!(
                "unmount it, repair the cause and mount it again; if it does not open then: hafsctl volume repair {name}"
            )));
        }
        let started = Instant::now();
        let report = volume.check_with(watch).map_err(|error| {
            if matches!(error, FsError::Stopped) {
                tracing::info!(volume = name, "check stopped: nobody waits for it any more");
                return ApiError::new(
                    ErrorCode::VolumeBusy,
                    format!("the check of volume `{name}` was stopped"),
                );
            }
            tracing::error!(volume = name, error = chain(&error), "check failed");
            ApiError::new(
                ErrorCode::Internal,
                format!("volume `{name}` cannot be checked"),
            )
            .why(chain(&error))
            .next("look at hafsd's log")
        })?;
        let clean = report.problem_count == 0;
        if clean {
            tracing::info!(volume = name, lsn = report.lsn.0, "check found no problem");
            if let Some(slot) = self.state.lock().volumes.get_mut(name) {
                slot.verified = slot.verified.max(Some(report.lsn));
            }
        } else {
            let problems = report.problem_count;
            let first = report.problems.first().map(ToString::to_string);
            tracing::error!(volume = name, problems, first, "check found problems");
        }
        Ok(CheckReport {
            volume: name.to_owned(),
            clean,
            lsn: report.lsn,
            digest: report::hex(&report.digest),
            inodes: report.inodes,
            dentries: report.dentries,
            extents: report.extents,
            pieces: report.pieces,
            bytes: report.bytes,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            problem_count: report.problem_count,
            problems: report.problems.iter().map(ToString::to_string).collect(),
        })
    }

    /// Sizes are promises that cost nothing until they are kept; say so where the disk could not keep them.
    pub(super) fn size_warnings(&self, size_bytes: u64, name: &str) -> Vec<String> {
        let disk = match self.data.disk() {
            Ok(disk) => disk,
            Err(error) => {
                tracing::warn!(%error, "cannot tell the size of the disk");
                return Vec::new();
            }
        };
        let promised: u64 = {
            let state = self.state.lock();
            let others = state.volumes.iter().filter(|(other, _)| *other != name);
            others.map(|(_, slot)| slot.record.spec.size_bytes).sum()
        };
        let thin = "space is taken when it is written; on a full disk writes fail with ENOSPC";
        let mut warnings = Vec::new();
        if size_bytes > disk.available_bytes {
            warnings.push(format!(
                "the volume's size is {}, the disk has {} free: {thin}",
                size::display(size_bytes),
                size::display(disk.available_bytes)
            ));
        } else if promised.saturating_add(size_bytes) > disk.size_bytes {
            warnings.push(format!(
                "all volumes together have a size of {}, the disk has {}: {thin}",
                size::display(promised.saturating_add(size_bytes)),
                size::display(disk.size_bytes)
            ));
        }
        warnings
    }

    /// Before something is written down that lets space be given back: on a full disk that takes what the volumes hold for it,
    /// `other` among them, which is not in its slot.
    pub(super) fn make_room(&self, other: Option<&Arc<Volume>>) {
        if !is_almost_full(&self.data.volumes()) {
            return;
        }
        let mut open: Vec<Arc<Volume>> = other.cloned().into_iter().collect();
        let state = self.state.lock();
        open.extend(
            state
                .volumes
                .values()
                .filter_map(|slot| slot.store.volume().cloned()),
        );
        drop(state);
        for volume in open {
            volume.give_up_ballast();
        }
    }

    /// Asks the control store until the outcome is known, within a bound.
    pub(super) fn settle<T, F>(&self, ask: impl Fn() -> F) -> Result<T, MetaError>
    where
        F: Future<Output = Result<T, MetaError>>,
    {
        let mut tries = 1;
        loop {
            match self.runtime.block_on(ask()) {
                Err(MetaError::Unsettled(error)) if tries < SETTLE_TRIES => {
                    tracing::warn!(
                        error = chain(&error),
                        tries,
                        "the control store's answer is unknown"
                    );
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    /// Stores without a record are not ours to remove: their records may be what was lost.
    fn report_strangers(&self, records: &[VolumeRecord]) {
        let known: BTreeSet<String> = records.iter().map(|record| record.id.to_string()).collect();
        let entries = match fs::read_dir(self.data.volumes()) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(%error, "cannot list the stores of volumes");
                return;
            }
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if !name.to_str().is_some_and(|name| known.contains(name)) {
                let path = entry.path();
                tracing::warn!(path = %path.display(), "no volume has this store; it is left as it is");
            }
        }
    }
}

/// A failed store that is about to be opened again.
#[derive(Debug)]
pub(super) struct Reopen {
    record: VolumeRecord,
    failed: StoreState,
}

impl Reopen {
    pub(super) fn record(&self) -> &VolumeRecord {
        &self.record
    }

    /// Goes on with what the control store says now.
    pub(super) fn renew(&mut self, record: VolumeRecord) {
        self.record = record;
    }

    /// Closes the old store: it is gone before something else takes the directory.
    pub(super) fn close(&mut self) {
        let failed = std::mem::replace(&mut self.failed, StoreState::Opening);
        if let StoreState::Open(volume) = failed {
            let name = self.record.spec.name.as_str();
            // One that failed has said so, and has nothing to flush.
            if let Err(error) = volume.close()
                && !matches!(error, FsError::Failed)
            {
                tracing::warn!(
                    volume = name,
                    error = chain(&error),
                    "the store did not close well; its log is replayed"
                );
            }
            let_go(name, volume);
        }
    }
}

impl StoreState {
    /// The open volume.
    pub(super) fn volume(&self) -> Option<&Arc<Volume>> {
        match self {
            Self::Open(volume) => Some(volume),
            Self::Opening | Self::Failed(_) | Self::Deleting => None,
        }
    }
}

impl Slot {
    /// Refuses what needs the volume for itself.
    pub(super) fn refuse_in_use(&self, what: &str) -> Result<(), ApiError> {
        let name = self.record.spec.name.as_str();
        let refused = |code, why: String, next: &str| {
            Err(
                ApiError::new(code, format!("cannot {what} volume `{name}`"))
                    .why(why)
                    .next(next),
            )
        };
        match &self.mounting {
            Mounting::Free => {}
            Mounting::Reserved => {
                return refused(
                    ErrorCode::VolumeBusy,
                    "it is being mounted".into(),
                    "try again",
                );
            }
            Mounting::Served(serving) => {
                let mounts =
                    report::mountpoints(&serving.mount, serving.since, &report::mounts_here());
                let mountpoints: Vec<String> =
                    mounts.into_iter().map(|mount| mount.mountpoint).collect();
                if mountpoints.is_empty() {
                    return refused(
                        ErrorCode::VolumeMounted,
                        "it was unmounted, but open files or a container's mount namespace keep it in use".into(),
                        "end the processes and containers that use it",
                    );
                }
                let mountpoint = mountpoints.join(" ");
                let next = format!("umount {mountpoint}");
                return refused(
                    ErrorCode::VolumeMounted,
                    format!("it is mounted on {mountpoint}"),
                    &next,
                );
            }
        }
        if self.checking {
            return refused(
                ErrorCode::VolumeBusy,
                "a check of it is under way".into(),
                "try again when the check has ended",
            );
        }
        match &self.store {
            StoreState::Open(_) | StoreState::Failed(_) => Ok(()),
            StoreState::Opening => refused(
                ErrorCode::VolumeBusy,
                "it is being opened".into(),
                "try again",
            ),
            StoreState::Deleting => refused(
                ErrorCode::VolumeBusy,
                "it is being deleted".into(),
                "deleting goes on when hafsd starts again, if it was interrupted",
            ),
        }
    }
}

/// A name that is being made a volume; until dropped, nobody else does the same.
struct Creating<'a> {
    node: &'a Node,
    name: &'a str,
}

impl<'a> Creating<'a> {
    fn begin(node: &'a Node, name: &'a str) -> Result<Self, ApiError> {
        let mut state = node.wait_until_serving()?;
        if state.volumes.contains_key(name) || !state.creating.insert(name.to_owned()) {
            return Err(
                ApiError::new(ErrorCode::VolumeExists, format!("volume `{name}` exists"))
                    .next("choose another name, or look at it with hafsctl volume show"),
            );
        }
        Ok(Self { node, name })
    }
}

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.node.state.lock().creating.remove(self.name);
    }
}

/// A check that is under way; until dropped, the volume is not deleted, and not checked by somebody else.
struct Checking<'a> {
    node: &'a Node,
    name: &'a str,
}

impl<'a> Checking<'a> {
    fn begin(node: &'a Node, name: &'a str) -> Result<(Arc<Volume>, Self), ApiError> {
        let mut state = node.wait_until_serving()?;
        let slot = state
            .volumes
            .get_mut(name)
            .ok_or_else(|| no_such_volume(name))?;
        let refused = |code, why: &str, next: &str| {
            ApiError::new(code, format!("cannot check volume `{name}`"))
                .why(why)
                .next(next)
        };
        let volume = match &slot.store {
            StoreState::Open(volume) => Arc::clone(volume),
            StoreState::Failed(why) => {
                let next = format!("hafsctl volume repair {name} says what can be done");
                return Err(refused(ErrorCode::VolumeFailed, why, &next));
            }
            StoreState::Opening => {
                return Err(refused(
                    ErrorCode::VolumeBusy,
                    "it is being opened",
                    "try again",
                ));
            }
            StoreState::Deleting => {
                let next = "choose another volume";
                return Err(refused(ErrorCode::VolumeBusy, "it is being deleted", next));
            }
        };
        if std::mem::replace(&mut slot.checking, true) {
            let next = "wait for that one";
            return Err(refused(
                ErrorCode::VolumeBusy,
                "a check of it is under way",
                next,
            ));
        }
        Ok((volume, Self { node, name }))
    }
}

impl Drop for Checking<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.node.state.lock().volumes.get_mut(self.name) {
            slot.checking = false;
        }
    }
}

pub(super) fn identity(record: &VolumeRecord, member: Member) -> VolumeIdentity {
    VolumeIdentity {
        volume: record.id,
        store: member.store,
        node: member.node,
        lineage: record.config.lineage,
    }
}

/// Why a store is not open.
struct Unopened {
    why: String,
    /// What the caller hears.
    code: ErrorCode,
}

impl Unopened {
    fn new(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            code: ErrorCode::Internal,
        }
    }
}

impl From<&FsError> for Unopened {
    fn from(error: &FsError) -> Self {
        let is_full = matches!(error, FsError::NoSpace)
            || matches!(error, FsError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull);
        let code = if is_full {
            ErrorCode::NoSpace
        } else {
            ErrorCode::Internal
        };
        Self {
            why: chain(error),
            code,
        }
    }
}

pub(super) fn settings(record: &VolumeRecord, cache: &SharedCache) -> VolumeSettings {
    let spec = &record.spec;
    VolumeSettings {
        cache: cache.clone(),
        committed: record.config.commit_hint.lsn,
        ..VolumeSettings::new(spec.size_bytes, profile(spec.profile))
    }
}

/// A profile as the store knows it.
pub(super) fn profile(profile: Profile) -> hafs_fs::Profile {
    match profile {
        Profile::Auto => hafs_fs::Profile::Auto,
        Profile::Database => hafs_fs::Profile::Database,
        Profile::Sequential => hafs_fs::Profile::Sequential,
        Profile::SmallFiles => hafs_fs::Profile::SmallFiles,
    }
}

/// Drops the last handle on a closed volume, so that nobody has its files open. Others hold one for a moment: a status that
/// is being told, a mount that has just ended.
fn let_go(name: &str, volume: Arc<Volume>) {
    let deadline = Instant::now() + LET_GO_WAIT;
    let mut shared = volume;
    loop {
        match Arc::try_unwrap(shared) {
            Ok(volume) => return drop(volume),
            Err(volume) if Instant::now() > deadline => {
                tracing::warn!(volume = name, "the closed volume is still being looked at");
                return drop(volume);
            }
            Err(volume) => shared = volume,
        }
        thread::park_timeout(LET_GO_PAUSE);
    }
}

/// Removes a directory with all that is in it; one that is not there is removed.
fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
