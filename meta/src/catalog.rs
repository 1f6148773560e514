//! The cluster's records as the daemon uses them: the cluster itself, volumes by name, the next epoch of a volume.
//!
//! hafsd calls it; it reads records from a [`ControlStore`], lets pure functions ([`volume`](crate::volume)) decide, and
//! writes what they decided in one transaction that is guarded by what was read.
//!
//! Every function may be called again with the same arguments after any error, and after a crash at any point: done work is
//! found done. Ids, proposals and times are the caller's; the catalog has no clock and draws nothing.

use std::collections::BTreeMap;

use hafs_protocol::{Lineage, Lsn, Member, NodeId, Pos, VolumeId};
use jiff::Timestamp;
use tracing::info;
use uuid::Uuid;

use crate::error::{ControlError, MetaError, RecordError};
use crate::key::{self, VolumePart};
use crate::node::{ClusterRecord, NodeRecord};
use crate::record::{decode, encode};
use crate::store::{Cmp, ControlStore, Key, Op, Txn, TxnOutcome, Versioned, list_all};
use crate::volume::{VolumeChange, VolumeConfig, VolumeName, VolumeRecord, VolumeSpec};

/// How often a transaction with an unknown outcome is repeated at once; each try waits in the store for as long as the
/// store sees fit. After that the caller decides how long it goes on.
const TXN_TRIES: u32 = 3;
/// How often a decision is made anew because its records changed under it. Two or three writers never need more.
const CHANGE_TRIES: u32 = 16;

/// What [`Catalog::create_volume`] makes.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// Its id, newly drawn.
    pub id: VolumeId,
    /// Its history, newly drawn.
    pub lineage: Lineage,
    /// What is wanted; `deleting_since` is `None`.
    pub spec: VolumeSpec,
    /// Where its only copy will be; the store id is newly drawn.
    pub member: Member,
    /// Newly drawn.
    pub proposal: Uuid,
}

/// The records of a cluster, over a store.
#[derive(Clone, Debug)]
pub struct Catalog<S> {
    store: S,
}

impl<S: ControlStore> Catalog<S> {
    /// The records in `store`.
    pub fn new(store: S) -> Self {
        Self { store }
    }

    /// The store below.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Makes an empty store the store of a cluster of one, or finds that it is one to which the node belongs; then the
    /// stored record is answered and the arguments' other fields are ignored.
    ///
    /// # Errors
    /// [`MetaError::ForeignNode`]: the store is another cluster's. Besides [`MetaError::Store`], `Unsettled`, `Record`.
    pub async fn bootstrap(
        &self,
        node: &NodeRecord,
        cluster: &ClusterRecord,
    ) -> Result<ClusterRecord, MetaError> {
        let (cluster_key, node_key) = (Key::from(key::CLUSTER), key::node(node.id));
        let txn = Txn {
            when: vec![Cmp::Absent(cluster_key.clone())],
            then: vec![
                Op::Put(cluster_key.clone(), encode(cluster), None),
                Op::Put(node_key.clone(), encode(node), None),
            ],
            fetch: vec![cluster_key.clone(), node_key.clone()],
        };
        let kv = match self.settle(&txn).await? {
            TxnOutcome::Applied { kv, .. } => {
                info!(cluster = %cluster.id, node = %node.id, "cluster made");
                kv
            }
            TxnOutcome::Refused { kv, .. } => kv,
        };
        match (found(&kv, &cluster_key), found(&kv, &node_key)) {
            (Some(cluster), Some(_)) => decode(cluster),
            (None | Some(_), _) => Err(MetaError::ForeignNode { node: node.id }),
        }
    }

    /// A node's record, if it belongs to the cluster.
    ///
    /// # Errors
    /// [`MetaError::Store`], `Record`.
    pub async fn node(&self, id: NodeId) -> Result<Option<NodeRecord>, MetaError> {
        let (_, stored) = self
            .store
            .get(&key::node(id))
            .await
            .map_err(MetaError::Store)?;
        stored.as_ref().map(decode).transpose()
    }

    /// Enters a new volume, in epoch 0 and with its member in sync: nobody has reigned, its store need not exist yet.
    ///
    /// # Errors
    /// [`MetaError::NameTaken`], `InvalidSize`, `InvalidCopies`; `Store`, `Unsettled`, `Record`, `Damaged`.
    pub async fn create_volume(&self, new: &NewVolume) -> Result<VolumeRecord, MetaError> {
        new.spec.check()?;
        let config = VolumeConfig::first(new.lineage, new.member, new.proposal);
        let name_key = key::volume_name(&new.spec.name);
        let (spec_key, config_key) = (key::volume_spec(new.id), key::volume_config(new.id));
        let txn = Txn {
            when: [&name_key, &spec_key, &config_key]
                .map(|key| Cmp::Absent(key.clone()))
                .into(),
            then: vec![
                Op::Put(name_key.clone(), new.id.to_string().into(), None),
                Op::Put(spec_key.clone(), encode(&new.spec), None),
                Op::Put(config_key.clone(), encode(&config), None),
            ],
            fetch: vec![name_key.clone(), spec_key, config_key],
        };
        let (applied, kv) = match self.settle(&txn).await? {
            TxnOutcome::Applied { kv, .. } => (true, kv),
            TxnOutcome::Refused { kv, .. } => (false, kv),
        };
        let volume = found(&kv, &name_key).map(parse_id).transpose()?;
        match volume {
            // The id was drawn for this call: whoever entered it, it was this call or an earlier try of it.
            Some(id) if id == new.id => {}
            Some(volume) => {
                return Err(MetaError::NameTaken {
                    name: new.spec.name.to_string(),
                    volume,
                });
            }
            None => {
                let detail = "the id is in use under another name";
                return Err(MetaError::Damaged {
                    volume: new.id,
                    detail,
                });
            }
        }
        if applied {
            info!(volume = %new.id, name = %new.spec.name, size_bytes = new.spec.size_bytes, "volume created");
        }
        volume_record(new.id, &kv)?.ok_or(MetaError::Damaged {
            volume: new.id,
            detail: "a name without a volume",
        })
    }

    /// All volumes, those that are being deleted too, by name.
    ///
    /// # Errors
    /// [`MetaError::Store`], `Record`, `Damaged`.
    pub async fn volumes(&self) -> Result<Vec<VolumeRecord>, MetaError> {
        let (_, kv) = list_all(&self.store, &key::VOLUMES.into())
            .await
            .map_err(MetaError::Store)?;
        let mut by_id: BTreeMap<VolumeId, Vec<Versioned>> = BTreeMap::new();
        for stored in kv {
            if let Some((id, _)) = key::parse_volume(&stored.key) {
                by_id.entry(id).or_default().push(stored);
            }
        }
        let records = by_id
            .iter()
            .filter_map(|(&id, kv)| volume_record(id, kv).transpose());
        let mut records: Vec<VolumeRecord> = records.collect::<Result<_, _>>()?;
        records.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        Ok(records)
    }

    /// The volume of this name or id.
    ///
    /// # Errors
    /// [`MetaError::NoSuchVolume`]; `Store`, `Record`, `Damaged`.
    pub async fn volume(&self, name_or_id: &str) -> Result<VolumeRecord, MetaError> {
        let none = || MetaError::NoSuchVolume(name_or_id.to_owned());
        let id = match Uuid::try_parse(name_or_id) {
            Ok(id) => VolumeId(id),
            Err(_) => {
                let name: VolumeName = name_or_id.parse().map_err(|_| none())?;
                let key = key::volume_name(&name);
                let (_, stored) = self.store.get(&key).await.map_err(MetaError::Store)?;
                parse_id(&stored.ok_or_else(none)?)?
            }
        };
        self.volume_by_id(id).await?.ok_or_else(none)
    }

    /// The volume of this id, if there is one.
    async fn volume_by_id(&self, id: VolumeId) -> Result<Option<VolumeRecord>, MetaError> {
        let kv = self.read_volume(id).await?;
        volume_record(id, &kv)
    }

    /// Changes the volume's settings. Whether its content fits a new size is the caller's to check.
    ///
    /// # Errors
    /// [`MetaError::InvalidSize`], `NoSuchVolume`, `Deleting`, `Contended`; `Store`, `Unsettled`, `Record`, `Damaged`.
    pub async fn change(
        &self,
        id: VolumeId,
        change: VolumeChange,
    ) -> Result<VolumeRecord, MetaError> {
        self.change_spec(id, |spec| {
            refuse_deleting(spec)?;
            change.of(spec)
        })
        .await
    }

    /// Marks the volume as being deleted: from then on it gets no epoch, so nobody opens it again, and its data may be
    /// removed. It keeps its name until [`finish_delete`](Self::finish_delete). Whoever restarts in between finds it in
    /// [`volumes`](Self::volumes) with `deleting_since` set, removes what is left of the data, and finishes.
    ///
    /// # Errors
    /// [`MetaError::NoSuchVolume`], `Contended`; `Store`, `Unsettled`, `Record`, `Damaged`.
    pub async fn begin_delete(
        &self,
        id: VolumeId,
        now: Timestamp,
    ) -> Result<VolumeRecord, MetaError> {
        self.change_spec(id, |spec| {
            let deleting_since = spec.deleting_since.or(Some(now));
            Ok(VolumeSpec {
                deleting_since,
                ..spec.clone()
            })
        })
        .await
    }

    /// Forgets a volume whose data is gone. A volume that is not there is forgotten already.
    ///
    /// # Errors
    /// [`MetaError::NotDeleting`], `Contended`; `Store`, `Unsettled`, `Record`, `Damaged`.
    pub async fn finish_delete(&self, id: VolumeId) -> Result<(), MetaError> {
        let mut kv = self.read_volume(id).await?;
        for _ in 0..CHANGE_TRIES {
            let Some(record) = volume_record(id, &kv)? else {
                return Ok(());
            };
            let name = &record.spec.name;
            if record.spec.deleting_since.is_none() {
                return Err(MetaError::NotDeleting {
                    name: name.to_string(),
                });
            }
            // The config needs no guard: no epoch begins once the spec says deleting.
            let spec_key = key::volume_spec(id);
            let txn = Txn {
                when: vec![Cmp::ModRev(spec_key.clone(), record.spec_rev)],
                then: vec![
                    Op::Del(spec_key),
                    Op::Del(key::volume_config(id)),
                    Op::Del(key::volume_name(name)),
                ],
                fetch: volume_keys(id),
            };
            match self.settle(&txn).await? {
                TxnOutcome::Applied { .. } => {
                    info!(volume = %id, %name, "volume deleted");
                    return Ok(());
                }
                TxnOutcome::Refused { kv: seen, .. } => kv = seen,
            }
        }
        Err(MetaError::Contended { volume: id })
    }

    /// Makes `member` the volume's primary in a new epoch, and answers the record that says so. Nobody may append to the
    /// volume before; and nobody else's epoch is as high, now or later.
    ///
    /// `proposal` is drawn anew for each reign. Only after [`MetaError::Unsettled`] the call is repeated with the same one,
    /// and then finds the epoch that it may have begun.
    ///
    /// # Errors
    /// [`MetaError::NotInSync`], `Deleting`, `NoSuchVolume`, `EpochsExhausted`, `Contended`; `Store`, `Unsettled`, `Record`,
    /// `Damaged`.
    pub async fn begin_epoch(
        &self,
        id: VolumeId,
        member: Member,
        proposal: Uuid,
    ) -> Result<VolumeRecord, MetaError> {
        let mut kv = self.read_volume(id).await?;
        for _ in 0..CHANGE_TRIES {
            let Some(record) = volume_record(id, &kv)? else {
                return Err(MetaError::NoSuchVolume(id.to_string()));
            };
            // Safe although it was only read: a transaction put it there, and whoever reigns later has another proposal.
            if record.config.proposal == proposal && record.config.primary == Some(member) {
                info!(volume = %id, epoch = %record.config.epoch, "epoch begun");
                return Ok(record);
            }
            refuse_deleting(&record.spec)?;
            let config = record.config.begin_epoch(id, member, proposal)?;
            let config_key = key::volume_config(id);
            let txn = Txn {
                when: vec![
                    Cmp::ModRev(config_key.clone(), record.config_rev),
                    Cmp::ModRev(key::volume_spec(id), record.spec_rev),
                ],
                then: vec![Op::Put(config_key, encode(&config), None)],
                fetch: volume_keys(id),
            };
            match self.settle(&txn).await? {
                TxnOutcome::Applied { rev, .. } => {
                    info!(volume = %id, epoch = %config.epoch, "epoch begun");
                    return Ok(VolumeRecord {
                        config,
                        config_rev: rev,
                        ..record
                    });
                }
                // Someone came first, or an earlier try of this very transaction did: the proposal tells. A try that is
                // still under way can no longer succeed.
                TxnOutcome::Refused { kv: seen, .. } => kv = seen,
            }
        }
        Err(MetaError::Contended { volume: id })
    }

    /// Notes what the primary of `told.epoch` tells: where its reign began, and what is committed. A lower bound, told now and
    /// then: a store that ends below it is not the one that told. What is no news changes nothing.
    ///
    /// # Errors
    /// [`MetaError::NoSuchVolume`], `Contended`; `Store`, `Unsettled`, `Record`, `Damaged`.
    pub async fn note_commit(
        &self,
        id: VolumeId,
        start: Lsn,
        told: Pos,
    ) -> Result<VolumeRecord, MetaError> {
        self.change_config(id, |config| config.note_commit(start, told))
            .await
    }

    /// Forgets what was committed, because people accept the loss of it: the next store that opens counts as whole.
    ///
    /// # Errors
    /// [`MetaError::NoSuchVolume`], `Contended`; `Store`, `Unsettled`, `Record`, `Damaged`.
    pub async fn forget_commit(&self, id: VolumeId) -> Result<VolumeRecord, MetaError> {
        self.change_config(id, |config| VolumeConfig {
            epoch_start: None,
            commit_hint: Pos::default(),
            ..config.clone()
        })
        .await
    }

    /// Puts what `change` makes of the config, unless that is what is there.
    async fn change_config(
        &self,
        id: VolumeId,
        change: impl Fn(&VolumeConfig) -> VolumeConfig + Send,
    ) -> Result<VolumeRecord, MetaError> {
        let mut kv = self.read_volume(id).await?;
        for _ in 0..CHANGE_TRIES {
            let Some(record) = volume_record(id, &kv)? else {
                return Err(MetaError::NoSuchVolume(id.to_string()));
            };
            let config = change(&record.config);
            if config == record.config {
                return Ok(record);
            }
            let config_key = key::volume_config(id);
            let txn = Txn {
                when: vec![Cmp::ModRev(config_key.clone(), record.config_rev)],
                then: vec![Op::Put(config_key, encode(&config), None)],
                fetch: volume_keys(id),
            };
            match self.settle(&txn).await? {
                TxnOutcome::Applied { rev, .. } => {
                    return Ok(VolumeRecord {
                        config,
                        config_rev: rev,
                        ..record
                    });
                }
                TxnOutcome::Refused { kv: seen, .. } => kv = seen,
            }
        }
        Err(MetaError::Contended { volume: id })
    }

    /// The volume's records as they are.
    async fn read_volume(&self, id: VolumeId) -> Result<Vec<Versioned>, MetaError> {
        let read = Txn {
            fetch: volume_keys(id),
            ..Txn::default()
        };
        match self.store.txn(read).await {
            Ok(TxnOutcome::Applied { kv, .. } | TxnOutcome::Refused { kv, .. }) => Ok(kv),
            // There was nothing to apply, so nothing is in doubt.
            Err(ControlError::Unknown(cause)) => {
                Err(MetaError::Store(ControlError::Unavailable(cause)))
            }
            Err(error) => Err(MetaError::Store(error)),
        }
    }

    /// Puts what `change` makes of the spec, unless that is what is there.
    async fn change_spec(
        &self,
        id: VolumeId,
        change: impl Fn(&VolumeSpec) -> Result<VolumeSpec, MetaError> + Send,
    ) -> Result<VolumeRecord, MetaError> {
        let mut kv = self.read_volume(id).await?;
        for _ in 0..CHANGE_TRIES {
            let Some(record) = volume_record(id, &kv)? else {
                return Err(MetaError::NoSuchVolume(id.to_string()));
            };
            let spec = change(&record.spec)?;
            if spec == record.spec {
                return Ok(record);
            }
            let spec_key = key::volume_spec(id);
            let txn = Txn {
                when: vec![Cmp::ModRev(spec_key.clone(), record.spec_rev)],
                then: vec![Op::Put(spec_key, encode(&spec), None)],
                fetch: volume_keys(id),
            };
            match self.settle(&txn).await? {
                TxnOutcome::Applied { rev, .. } => {
                    return Ok(VolumeRecord {
                        spec,
                        spec_rev: rev,
                        ..record
                    });
                }
                TxnOutcome::Refused { kv: seen, .. } => kv = seen,
            }
        }
        Err(MetaError::Contended { volume: id })
    }

    /// Repeats a transaction until it is answered. Its own success must break its guards, so that it is applied at most
    /// once, and once refused no earlier try of it can be applied any more; `Refused` may then mean that one was.
    async fn settle(&self, txn: &Txn) -> Result<TxnOutcome, MetaError> {
        let mut doubt = None;
        for _ in 0..TXN_TRIES {
            match self.store.txn(txn.clone()).await {
                Ok(outcome) => return Ok(outcome),
                Err(error @ ControlError::Unknown(_)) => doubt = Some(error),
                // This try was surely not applied, but it says nothing of the one before.
                Err(_) if doubt.is_some() => break,
                Err(error) => return Err(MetaError::Store(error)),
            }
        }
        Err(MetaError::Unsettled(
            doubt.expect("only doubt leads out of the loop"),
        ))
    }
}

fn refuse_deleting(spec: &VolumeSpec) -> Result<(), MetaError> {
    match spec.deleting_since {
        None => Ok(()),
        Some(_) => Err(MetaError::Deleting {
            name: spec.name.to_string(),
        }),
    }
}

fn volume_keys(id: VolumeId) -> Vec<Key> {
    vec![key::volume_spec(id), key::volume_config(id)]
}

fn found<'a>(kv: &'a [Versioned], key: &Key) -> Option<&'a Versioned> {
    kv.iter().find(|stored| stored.key == *key)
}

/// The id under a volume's name.
fn parse_id(stored: &Versioned) -> Result<VolumeId, MetaError> {
    decode_id(&stored.value).map_err(|source| MetaError::Record {
        key: stored.key.clone(),
        source,
    })
}

pub(crate) fn decode_id(bytes: &[u8]) -> Result<VolumeId, RecordError> {
    Ok(VolumeId(Uuid::try_parse_ascii(bytes)?))
}

/// The volume whose records are among `kv`. Neither there: `None`; one without the other, or a config that contradicts
/// itself: damaged.
fn volume_record(id: VolumeId, kv: &[Versioned]) -> Result<Option<VolumeRecord>, MetaError> {
    let part = |part: VolumePart| {
        kv.iter()
            .find(|stored| key::parse_volume(&stored.key) == Some((id, part)))
    };
    let (spec, config) = match (part(VolumePart::Spec), part(VolumePart::Config)) {
        (None, None) => return Ok(None),
        (Some(spec), Some(config)) => (spec, config),
        (Some(_), None) => {
            return Err(MetaError::Damaged {
                volume: id,
                detail: "a spec without a config",
            });
        }
        (None, Some(_)) => {
            return Err(MetaError::Damaged {
                volume: id,
                detail: "a config without a spec",
            });
        }
    };
    let record = VolumeRecord {
        id,
        spec: decode(spec)?,
        spec_rev: spec.mod_rev,
        config: decode(config)?,
        config_rev: config.mod_rev,
    };
    match record.config.contradiction() {
        None => Ok(Some(record)),
        Some(detail) => Err(MetaError::Damaged { volume: id, detail }),
    }
}

#[cfg(test)]
mod tests;
