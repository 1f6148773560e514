//! Settings of volumes that are changed while they exist, and what the control store is told of their logs.
//!
//! The control server calls [`Node::set_volume`]; openings, ends of mounts, the node's end and a clock call
//! [`Node::note_commit`].
//!
//! Invariant: what the control store is told to be committed was synced before. So a store that ends below it is not the
//! newest copy of itself, and is not opened.

use std::sync::Arc;
use std::time::Duration;

use hafs_fs::{FsError, Volume};
use hafs_meta::{MetaError, VolumeChange, VolumeSpec};
use hafs_protocol::Pos;

use super::{Node, Slot, StoreState, meta_error, no_such_volume};
use crate::control::api::{Change, ChangedVolume, Effect, SetVolume};
use crate::control::{ApiError, ErrorCode};
use crate::output::chain;
use crate::size;

/// How often the control store is told how far logs have come. What a store that was put back from an older copy may lack
/// without being noticed is what was written in between.
const NOTE_PAUSE: Duration = Duration::from_secs(30);

impl Node {
    /// Changes settings of a volume, or tells what that would do.
    pub fn set_volume(&self, name: &str, set: &SetVolume) -> Result<ChangedVolume, ApiError> {
        let _one_at_a_time = self.setting.lock();
        let (record, volume) = {
            let state = self.wait_until_serving()?;
            let slot = state
                .volumes
                .get(name)
                .ok_or_else(|| no_such_volume(name))?;
            (slot.record.clone(), slot.settable()?)
        };
        let change = VolumeChange {
            size_bytes: set.size_bytes,
            profile: set.profile,
            writeback: set.writeback,
        };
        let spec = change
            .of(&record.spec)
            .map_err(|error| meta_error(&error))?;
        refuse_small(name, &volume, spec.size_bytes)?;
        let changes = changes(&record.spec, &spec);
        let grows = spec.size_bytes > record.spec.size_bytes;
        let warnings = if grows {
            self.size_warnings(spec.size_bytes, name)
        } else {
            Vec::new()
        };
        if !set.dry_run && !changes.is_empty() {
            self.apply_change(name, &volume, change, &record.spec)?;
            tracing::info!(volume = name, ?changes, "settings changed");
        }
        Ok(ChangedVolume {
            volume: self.volume(name)?,
            changes,
            applied: !set.dry_run,
            warnings,
        })
    }

    /// A smaller size holds before it is written down, a larger one after: what is written never exceeds what is known.
    fn apply_change(
        &self,
        name: &str,
        volume: &Volume,
        change: VolumeChange,
        before: &VolumeSpec,
    ) -> Result<(), ApiError> {
        let size_bytes = change.size_bytes.unwrap_or(before.size_bytes);
        let shrinks = size_bytes < before.size_bytes;
        if shrinks {
            resize(name, volume, size_bytes)?;
        }
        let id = volume.identity().volume;
        let record = self
            .settle(|| self.catalog.change(id, change))
            .map_err(|error| {
                if shrinks {
                    // To what it was: that fits.
                    let _ = volume.set_size(before.size_bytes);
                }
                meta_error(&error)
            })?;
        if let Some(slot) = self.state.lock().volumes.get_mut(name) {
            slot.record.spec = record.spec;
            slot.record.spec_rev = record.spec_rev;
        }
        resize(name, volume, size_bytes)
    }

    /// Whether the kernel may gather writes to this volume.
    pub(super) fn writeback_of(&self, name: &str) -> bool {
        let state = self.state.lock();
        let slot = state.volumes.get(name);
        slot.is_none_or(|slot| slot.record.spec.writeback)
    }

    /// Tells the control store how far the volume's log is durable, if that is news. Without success only the next store
    /// that is put back from an older copy may be taken for the newest.
    pub(super) fn note_commit(&self, name: &str) {
        let (volume, start, config) = {
            let state = self.state.lock();
            let Some(slot) = state.volumes.get(name) else {
                return;
            };
            match (slot.store.volume(), slot.epoch_start) {
                (Some(volume), Some(start)) => {
                    (Arc::clone(volume), start, slot.record.config.clone())
                }
                (None | Some(_), _) => return,
            }
        };
        let told = Pos {
            epoch: config.epoch,
            lsn: volume.status().durable,
        };
        if config.note_commit(start, told) == config {
            return;
        }
        let id = volume.identity().volume;
        match self.settle(|| self.catalog.note_commit(id, start, told)) {
            Ok(record) => {
                if let Some(slot) = self.state.lock().volumes.get_mut(name)
                    && slot.record.config_rev < record.config_rev
                {
                    slot.record.config = record.config;
                    slot.record.config_rev = record.config_rev;
                }
            }
            Err(MetaError::NoSuchVolume(_)) => {}
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    volume = name,
                    error,
                    "cannot note how far the log is durable"
                );
            }
        }
    }

    /// The same for all volumes.
    pub(super) fn note_commits(&self) {
        let names: Vec<String> = self.state.lock().volumes.keys().cloned().collect();
        for name in names {
            self.note_commit(&name);
        }
    }

    /// Notes for as long as the process lives. hafsd runs it beside all else.
    pub async fn keep_noting(self: Arc<Self>) {
        loop {
            tokio::time::sleep(NOTE_PAUSE).await;
            let node = Arc::clone(&self);
            // A panic in it ends the process anyway.
            let _ = tokio::task::spawn_blocking(move || node.note_commits()).await;
        }
    }
}

impl Slot {
    /// The open volume: what settings mean cannot be checked without it.
    fn settable(&self) -> Result<Arc<Volume>, ApiError> {
        let name = &self.record.spec.name;
        let refused = |code, why: &str, next: &str| {
            let error = format!("settings of volume `{name}` cannot be changed");
            Err(ApiError::new(code, error).why(why).next(next))
        };
        match &self.store {
            StoreState::Open(volume) => Ok(Arc::clone(volume)),
            StoreState::Opening => {
                refused(ErrorCode::VolumeBusy, "it is being opened", "try again")
            }
            StoreState::Deleting => refused(
                ErrorCode::VolumeBusy,
                "it is being deleted",
                "choose another volume",
            ),
            StoreState::Failed(why) => refused(
                ErrorCode::VolumeFailed,
                why,
                "repair the cause and mount it; then change its settings",
            ),
        }
    }
}

fn refuse_small(name: &str, volume: &Volume, size_bytes: u64) -> Result<(), ApiError> {
    let used = volume.status().used_bytes;
    if size_bytes >= used {
        return Ok(());
    }
    Err(too_small(name, size_bytes, used))
}

fn too_small(name: &str, size_bytes: u64, used_bytes: u64) -> ApiError {
    let size = size::display(size_bytes);
    let error = format!("volume `{name}` cannot shrink to {size}");
    ApiError::new(ErrorCode::NoSpace, error)
        .why(format!("its files hold {}", size::display(used_bytes)))
        .next("delete files, or choose a larger size")
}

fn resize(name: &str, volume: &Volume, size_bytes: u64) -> Result<(), ApiError> {
    volume.set_size(size_bytes).map_err(|error| match error {
        FsError::NoSpace => too_small(name, size_bytes, volume.status().used_bytes),
        error => ApiError::new(
            ErrorCode::Internal,
            format!("the size of volume `{name}` cannot be changed"),
        )
        .why(chain(&error))
        .next("look at hafsd's log"),
    })
}

fn changes(from: &VolumeSpec, to: &VolumeSpec) -> Vec<Change> {
    let change = |setting: &str, from: serde_json::Value, to: serde_json::Value, takes_effect| {
        (from != to).then(|| Change {
            setting: setting.to_owned(),
            from,
            to,
            takes_effect,
        })
    };
    let all = [
        change(
            "size_bytes",
            from.size_bytes.into(),
            to.size_bytes.into(),
            Effect::Now,
        ),
        change(
            "profile",
            from.profile.as_str().into(),
            to.profile.as_str().into(),
            Effect::NextMount,
        ),
        change(
            "writeback",
            from.writeback.into(),
            to.writeback.into(),
            Effect::NextMount,
        ),
    ];
    all.into_iter().flatten().collect()
}
