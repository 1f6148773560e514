//! Mending a volume that does not open any more, for somebody who has one copy of it.
//!
//! The volume is taken out of use, looked at or mended, and opened again: whatever comes of it, the slot ends as a mount would
//! find it. What is mended and what is lost is [`Volume::repair`]'s to say.

use hafs_fs::{FsError, Repair, Volume};
use hafs_meta::VolumeRecord;

use super::volumes::{Reopen, identity, settings};
use super::{Node, StoreState, no_such_volume};
use crate::control::api::{LogLoss, RepairVolume, RepairedVolume};
use crate::control::{ApiError, ErrorCode};
use crate::output::chain;

impl Node {
    /// Says what a repair would do, or does it. The volume must not be in use.
    pub fn repair_volume(&self, name: &str, ask: RepairVolume) -> Result<RepairedVolume, ApiError> {
        let mut reopen = {
            let mut state = self.wait_until_serving()?;
            self.wait_until_mount_ended(&mut state, name);
            let slot = state
                .volumes
                .get_mut(name)
                .ok_or_else(|| no_such_volume(name))?;
            slot.refuse_in_use("repair")?;
            self.begin_reopen(&mut state, name)
        };
        reopen.close();
        let repaired = self.repair_store(&reopen, ask);
        if repaired
            .as_ref()
            .is_ok_and(|repair| repair.done && repair.loss.is_some())
        {
            self.forget_commit(&mut reopen);
        }
        let failure = {
            let state = self.reopen(reopen);
            match state.volumes.get(name).map(|slot| &slot.store) {
                Some(StoreState::Failed(why)) => Some(why.clone()),
                Some(StoreState::Open(_) | StoreState::Opening | StoreState::Deleting) | None => {
                    None
                }
            }
        };
        let repair = repaired.map_err(|error| {
            tracing::error!(volume = name, error = chain(&error), "repair failed");
            ApiError::new(
                ErrorCode::VolumeFailed,
                format!("volume `{name}` cannot be repaired"),
            )
            .why(chain(&error))
            .next("restore the volume from a backup; nothing was given up")
        })?;
        if repair.done {
            tracing::warn!(
                volume = name,
                lost = repair.loss.as_ref().map(ToString::to_string),
                mark = repair.mark,
                segment_headers = repair.headers.len(),
                kept_in = repair.kept_in.as_ref().map(|dir| dir.display().to_string()),
                "volume repaired"
            );
        }
        Ok(answer(name, repair, failure))
    }

    /// What was given up is not asked for any more. Without this the volume stays refused, and a second repair tries again.
    fn forget_commit(&self, reopen: &mut Reopen) {
        let id = reopen.record().id;
        match self.settle(|| self.catalog.forget_commit(id)) {
            Ok(record) => reopen.renew(record),
            Err(error) => tracing::error!(
                volume = %id,
                error = chain(&error),
                "the control store still asks for what the repair gave up"
            ),
        }
    }

    fn repair_store(&self, reopen: &Reopen, ask: RepairVolume) -> Result<Repair, FsError> {
        let record: &VolumeRecord = reopen.record();
        let member = self
            .own_member(record)
            .ok_or_else(|| FsError::Refused("no copy of it is on this node".to_owned()))?;
        let directory = self.data.volume(record.id);
        let identity = identity(record, member);
        let settings = settings(record, &self.cache);
        let plan = Volume::repair(&directory, &identity, &settings, false)?;
        if !ask.apply || plan.is_needless() || (plan.loses() && !ask.accept_loss) {
            return Ok(plan);
        }
        Volume::repair(&directory, &identity, &settings, true)
    }
}

fn answer(name: &str, repair: Repair, failure: Option<String>) -> RepairedVolume {
    RepairedVolume {
        volume: name.to_owned(),
        applied: repair.done,
        needless: repair.is_needless(),
        loses: repair.loses(),
        log: repair.loss.as_ref().map(|loss| LogLoss {
            from_lsn: loss.from,
            synced_lsn: loss.synced,
            newest_lsn: loss.newest,
            synced_records: loss.synced_records(),
            summary: loss.to_string(),
        }),
        mark: repair.mark,
        segment_headers: repair.headers,
        kept_in: repair.kept_in.map(|dir| dir.display().to_string()),
        failure,
    }
}
