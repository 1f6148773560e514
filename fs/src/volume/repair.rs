//! The way on for somebody with one copy that does not open any more: what can be mended is mended, and what is lost is
//! given up, if the operator says so.
//!
//! hafsd calls it for `hafsctl volume repair`, on a volume that is not open. Without the operator's word it only says what
//! it would do. What is cut off the log is kept in `DIR/lost`, and the loss is written into the store.

use std::fs;
use std::path::{Path, PathBuf};

use hafs_protocol::Lsn;

use super::open::check_settings;
use super::recover::Recovery;
use super::{Inner, Volume, VolumeSettings};
use crate::clock;
use crate::error::{FsError, LogLoss};
use crate::store::key::{LOSSES_KEY, LocalTable, Loss, decode_losses, encode_losses};
use crate::store::mark::Mark;
use crate::store::memtable::Batch;
use crate::store::replay::LogReader;
use crate::store::syncfile::{io_error, sync_dir};
use crate::store::{Store, VolumeIdentity, log_dir};

/// What a repair did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// What of the log is given up. `None`: nothing.
    pub loss: Option<LogLoss>,
    /// Why the durable mark is written anew, if it is: nobody can tell then whether synced records are lost behind the
    /// log's end.
    pub mark: Option<String>,
    /// Segments whose headers are written anew. Their bytes have checksums of their own.
    pub headers: Vec<u64>,
    /// Where what was cut off the log is kept.
    pub kept_in: Option<PathBuf>,
    /// Whether it was done.
    pub done: bool,
}

impl Repair {
    /// Nothing is to be mended.
    pub fn is_needless(&self) -> bool {
        self.loss.is_none() && self.mark.is_none() && self.headers.is_empty()
    }

    /// It gives something up, or perhaps does.
    pub fn loses(&self) -> bool {
        self.loss.is_some() || self.mark.is_some()
    }
}

impl Volume {
    /// Makes a volume open again that was refused with [`FsError::LogLost`], or for its durable mark; also writes damaged
    /// headers of segments anew. The volume must not be open.
    ///
    /// Without `accept_loss` nothing is changed: the answer says what would be. With it, all records from the damage on are
    /// given up, of which [`Repair::loss`] tells; [`Volume::check`] then says what of the files is hurt.
    ///
    /// # Errors
    /// [`FsError::Refused`] if the directory is not this store or in use. [`FsError::StateLost`] if the state cannot be
    /// read: nothing can mend that. A repair that fails half-way is begun again.
    pub fn repair(
        dir: &Path,
        identity: &VolumeIdentity,
        settings: &VolumeSettings,
        accept_loss: bool,
    ) -> Result<Repair, FsError> {
        check_settings(settings)?;
        let store = Store::open(dir, identity, &settings.cache, settings.segment_bytes)?;
        let (durable, mark) = match Mark::open(dir) {
            Ok((_, durable)) => (durable, None),
            Err(FsError::Corrupt(why)) => (Lsn(0), Some(why)),
            Err(error) => return Err(error),
        };
        let durable = durable.max(settings.committed);
        let mut recovery = Recovery::begin(store)?;
        let applied = recovery.totals.applied.clone();
        let reader = LogReader::open(&log_dir(dir), identity.store, settings.log_file_bytes)?;
        let loss = reader.loss(&applied, durable, &mut |framed, synced| {
            Ok(recovery.find_pieces(framed, synced)?.is_some())
        })?;
        let mut repair = Repair {
            headers: damaged_headers(&recovery),
            loss,
            mark,
            ..Repair::default()
        };
        if !accept_loss || repair.is_needless() {
            return Ok(repair);
        }
        for id in &repair.headers {
            recovery
                .store()
                .segments
                .mend_header(crate::store::key::SegmentId(*id))?;
        }
        if let Some(loss) = &repair.loss {
            let kept_in = lost_dir(dir)?.join(format!("{:016x}", loss.from.0));
            record_loss(recovery.store(), loss)?;
            Mark::lower(dir, Lsn(loss.from.0 - 1))?;
            let log =
                reader.replay_and_cut(&applied, durable, &kept_in, &mut |framed, synced| {
                    recovery.replay(framed, synced)
                })?;
            repair.kept_in = Some(kept_in);
            let (store, totals, unflushed) = recovery.finish()?;
            let epoch = totals.applied.pos.epoch;
            let before = (applied.pos.lsn, unflushed);
            let mark = Mark::open(dir)?;
            Inner::new(store, settings, epoch, log, mark, totals, before)?.flush()?;
        } else if repair.mark.is_some() {
            Mark::lower(dir, applied.pos.lsn)?;
        }
        repair.done = true;
        Ok(repair)
    }
}

fn damaged_headers(recovery: &Recovery) -> Vec<u64> {
    let segments = recovery.totals.segments.iter();
    let mut damaged: Vec<u64> = segments
        .filter(|(id, segment)| {
            let segments = &recovery.store().segments;
            segment.live_bytes > 0
                && segments.open(**id).is_ok()
                && segments.header_fault(**id).is_some()
        })
        .map(|(id, _)| id.0)
        .collect();
    damaged.sort_unstable();
    damaged
}

/// `DIR/lost`, durably there.
fn lost_dir(dir: &Path) -> Result<PathBuf, FsError> {
    let lost = dir.join("lost");
    fs::create_dir_all(&lost).map_err(io_error("create", &lost))?;
    sync_dir(dir)?;
    Ok(lost)
}

/// Notes the loss in the state, durably. Nothing was replayed yet, so nothing is flushed that is ahead of the log.
fn record_loss(store: &Store, loss: &LogLoss) -> Result<(), FsError> {
    let mut losses = match store.local(LocalTable::Local, LOSSES_KEY)? {
        Some(raw) => decode_losses(&raw)?,
        None => Vec::new(),
    };
    losses.push(Loss {
        from: loss.from,
        to: loss.newest.max(loss.synced),
        accepted: clock::now(),
    });
    let mut batch = Batch::default();
    batch.put(LocalTable::Local, LOSSES_KEY, encode_losses(&losses));
    store.write(batch);
    store.flush(&store.seal())
}
