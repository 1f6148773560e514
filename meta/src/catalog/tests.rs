//! The catalog over a local store, also when the store leaves open what became of a transaction.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hafs_protocol::{Epoch, StoreId};
use tempfile::TempDir;

use super::*;
use crate::node::ClusterId;
use crate::store::local::LocalStore;
use crate::store::{Cursor, Page, Session, Watch};
use crate::volume::Profile;

const GIB: u64 = 1 << 30;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn member(n: u128) -> Member {
    Member {
        node: NodeId(id(1)),
        store: StoreId(id(n)),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn node(n: u128) -> NodeRecord {
    NodeRecord {
        id: NodeId(id(n)),
        name: "n1".to_owned(),
        created_at: at(1),
    }
}

fn size(size_bytes: u64) -> VolumeChange {
    VolumeChange {
        size_bytes: Some(size_bytes),
        ..VolumeChange::default()
    }
}

fn cluster(n: u128) -> ClusterRecord {
    ClusterRecord {
        id: ClusterId(id(n)),
        created_at: at(2),
    }
}

fn new_volume(n: u128, name: &str) -> NewVolume {
    NewVolume {
        id: VolumeId(id(n)),
        lineage: Lineage(id(n + 1000)),
        spec: VolumeSpec {
            name: name.parse().unwrap(),
            size_bytes: GIB,
            profile: Profile::Database,
            copies: 1,
            writeback: true,
            created_at: at(3),
            deleting_since: None,
        },
        member: member(n),
        proposal: id(n + 2000),
    }
}

/// What happens to a transaction that changes something, and what is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nothing special.
    Answered,
    /// Done, and nobody knows.
    Applied,
    /// Lost, and nobody knows.
    Lost,
    /// Nobody knows; done after the next call.
    Late,
    /// Nobody knows; done when the test says so.
    Held,
    /// Refused to be taken; that is known.
    Unavailable,
}

/// A store whose transactions that change something meet these fates, one after the other, and then no more.
#[derive(Debug)]
struct Doubtful {
    store: LocalStore,
    fates: Mutex<VecDeque<Fate>>,
    late: Mutex<Vec<Txn>>,
    held: Mutex<Vec<Txn>>,
    _dir: TempDir,
}

impl Doubtful {
    fn new() -> Arc<Self> {
        let dir = TempDir::new().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        Arc::new(Self {
            store,
            fates: Mutex::default(),
            late: Mutex::default(),
            held: Mutex::default(),
            _dir: dir,
        })
    }

    fn meets(&self, fates: &[Fate]) {
        *self.fates.lock().unwrap() = fates.to_vec().into();
    }

    async fn apply_held(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        assert!(!held.is_empty());
        for txn in held {
            self.store.txn(txn).await.unwrap();
        }
    }

    async fn apply_late(&self) {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        for txn in late {
            self.store.txn(txn).await.unwrap();
        }
    }
}

impl ControlStore for Doubtful {
    async fn get(&self, key: &Key) -> Result<(u64, Option<Versioned>), ControlError> {
        self.store.get(key).await
    }

    async fn list(
        &self,
        prefix: &Key,
        cursor: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page, ControlError> {
        self.store.list(prefix, cursor, limit).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, ControlError> {
        if txn.then.is_empty() {
            return self.store.txn(txn).await;
        }
        let fate = self
            .fates
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(Fate::Answered);
        let cause: crate::Cause = Arc::new(std::io::Error::other("cut"));
        let answer = match fate {
            Fate::Answered => self.store.txn(txn).await,
            Fate::Applied => self
                .store
                .txn(txn)
                .await
                .and(Err(ControlError::Unknown(cause))),
            Fate::Lost => Err(ControlError::Unknown(cause)),
            Fate::Late => {
                self.late.lock().unwrap().push(txn);
                return Err(ControlError::Unknown(cause));
            }
            Fate::Held => {
                self.held.lock().unwrap().push(txn);
                Err(ControlError::Unknown(cause))
            }
            Fate::Unavailable => Err(ControlError::Unavailable(cause)),
        };
        self.apply_late().await;
        answer
    }

    fn watch(&self, prefix: Key, from_rev: u64) -> Watch {
        self.store.watch(prefix, from_rev)
    }

    async fn session(&self, ttl: Duration) -> Result<Session, ControlError> {
        self.store.session(ttl).await
    }
}

fn catalog() -> Catalog<Arc<Doubtful>> {
    Catalog::new(Doubtful::new())
}

/// All fates that a change may meet before it is answered.
fn all_fates() -> Vec<Vec<Fate>> {
    let doubts = [Fate::Applied, Fate::Lost, Fate::Late];
    let mut all = vec![vec![]];
    for one in doubts {
        all.push(vec![one]);
        all.extend(doubts.map(|two| vec![one, two]));
    }
    all
}

#[tokio::test]
async fn an_empty_store_becomes_a_cluster_of_one() {
    for fates in all_fates() {
        let catalog = catalog();
        catalog.store().meets(&fates);
        assert_eq!(
            catalog.bootstrap(&node(1), &cluster(7)).await.unwrap(),
            cluster(7),
            "{fates:?}"
        );
        // A restart draws other values, and finds the first.
        let renamed = NodeRecord {
            name: "renamed".to_owned(),
            ..node(1)
        };
        assert_eq!(
            catalog.bootstrap(&renamed, &cluster(8)).await.unwrap(),
            cluster(7)
        );
        assert_eq!(catalog.node(NodeId(id(1))).await.unwrap(), Some(node(1)));
        assert_eq!(catalog.node(NodeId(id(2))).await.unwrap(), None);
    }
}

#[tokio::test]
async fn another_nodes_store_is_refused() {
    let catalog = catalog();
    catalog.bootstrap(&node(1), &cluster(7)).await.unwrap();
    let error = catalog.bootstrap(&node(2), &cluster(8)).await.unwrap_err();
    assert!(
        matches!(error, MetaError::ForeignNode { node } if node == NodeId(id(2))),
        "{error:?}"
    );
    assert_eq!(catalog.node(NodeId(id(2))).await.unwrap(), None);
}

#[tokio::test]
async fn a_created_volume_is_found_by_name_and_id() {
    for fates in all_fates() {
        let catalog = catalog();
        catalog.store().meets(&fates);
        let new = new_volume(10, "pg-main");
        let made = catalog.create_volume(&new).await.unwrap();
        assert_eq!((made.id, &made.spec), (new.id, &new.spec), "{fates:?}");
        assert_eq!(
            made.config,
            VolumeConfig::first(new.lineage, new.member, new.proposal)
        );
        assert_eq!((made.config.epoch, made.config.primary), (Epoch(0), None));
        assert_eq!(catalog.volume("pg-main").await.unwrap(), made);
        assert_eq!(catalog.volume(&new.id.to_string()).await.unwrap(), made);
        assert_eq!(
            catalog.volume_by_id(new.id).await.unwrap(),
            Some(made.clone())
        );
        assert_eq!(catalog.volumes().await.unwrap(), vec![made.clone()]);
        assert_eq!(
            catalog.create_volume(&new).await.unwrap(),
            made,
            "again is the same"
        );
    }
}

#[tokio::test]
async fn names_are_unique() {
    let catalog = catalog();
    catalog.create_volume(&new_volume(10, "pg")).await.unwrap();
    let error = catalog
        .create_volume(&new_volume(11, "pg"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, MetaError::NameTaken { name, volume } if name == "pg" && *volume == VolumeId(id(10))),
        "{error:?}"
    );
    assert_eq!(error.to_string(), "a volume named pg exists");
    // The id of a volume under another name is a mistake, and does no harm.
    let error = catalog
        .create_volume(&new_volume(10, "other"))
        .await
        .unwrap_err();
    assert!(matches!(error, MetaError::Damaged { .. }), "{error:?}");
    assert_eq!(catalog.volumes().await.unwrap().len(), 1);
}

#[tokio::test]
async fn of_many_who_create_a_name_one_succeeds() {
    let catalog = catalog();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 10..20 {
        let catalog = catalog.clone();
        tasks.spawn(async move { catalog.create_volume(&new_volume(n, "pg")).await.is_ok() });
    }
    let made = tasks
        .join_all()
        .await
        .into_iter()
        .filter(|made| *made)
        .count();
    assert_eq!((made, catalog.volumes().await.unwrap().len()), (1, 1));
}

#[tokio::test]
async fn volumes_are_listed_by_name() {
    let catalog = catalog();
    assert_eq!(catalog.volumes().await.unwrap(), vec![]);
    for (n, name) in [(12, "b"), (10, "c"), (11, "a.b"), (13, "a")] {
        catalog.create_volume(&new_volume(n, name)).await.unwrap();
    }
    let volumes = catalog.volumes().await.unwrap();
    let names: Vec<_> = volumes
        .iter()
        .map(|volume| volume.spec.name.as_str())
        .collect();
    assert_eq!(names, ["a", "a.b", "b", "c"]);
}

#[tokio::test]
async fn a_volume_that_is_not_there_is_told_as_it_was_asked_for() {
    let catalog = catalog();
    for name in [
        "pg",
        "Not A Name",
        "",
        "00000000-0000-0000-0000-00000000000a",
    ] {
        let error = catalog.volume(name).await.unwrap_err();
        assert!(
            matches!(&error, MetaError::NoSuchVolume(asked) if asked == name),
            "{error:?}"
        );
        assert_eq!(error.to_string(), format!("no volume {name}"));
    }
    let none = VolumeId(id(10));
    assert_eq!(catalog.volume_by_id(none).await.unwrap(), None);
    let no_such =
        |error: MetaError| assert!(matches!(error, MetaError::NoSuchVolume(_)), "{error:?}");
    no_such(catalog.change(none, size(GIB)).await.unwrap_err());
    no_such(
        catalog
            .begin_epoch(none, member(10), id(1))
            .await
            .unwrap_err(),
    );
    no_such(catalog.begin_delete(none, at(9)).await.unwrap_err());
}

#[tokio::test]
async fn impossible_specs_are_refused() {
    let catalog = catalog();
    for size_bytes in [0, (1 << 20) - 1, (1 << 60) + 1, u64::MAX] {
        let mut new = new_volume(10, "pg");
        new.spec.size_bytes = size_bytes;
        let error = catalog.create_volume(&new).await.unwrap_err();
        assert!(matches!(error, MetaError::InvalidSize { .. }), "{error:?}");
    }
    let mut new = new_volume(10, "pg");
    new.spec.copies = 2;
    let error = catalog.create_volume(&new).await.unwrap_err();
    assert!(
        matches!(error, MetaError::InvalidCopies { copies: 2 }),
        "{error:?}"
    );
    assert_eq!(catalog.volumes().await.unwrap(), vec![]);
}

#[tokio::test]
async fn each_reign_is_one_epoch() {
    for fates in all_fates() {
        let catalog = catalog();
        let new = new_volume(10, "pg");
        let before = catalog.create_volume(&new).await.unwrap();
        for reign in 1..=3 {
            catalog.store().meets(&fates);
            let proposal = id(3000 + u128::from(reign));
            let begun = catalog
                .begin_epoch(new.id, new.member, proposal)
                .await
                .unwrap();
            assert_eq!(begun.config.epoch, Epoch(reign), "{fates:?}");
            assert_eq!(begun.config.primary, Some(new.member));
            assert_eq!(begun.config.in_sync, [new.member]);
            assert_eq!(begun.config.proposal, proposal);
            assert_eq!(
                (begun.config.lineage, &begun.spec),
                (new.lineage, &before.spec)
            );
            catalog.store().apply_late().await;
            assert_eq!(catalog.volume("pg").await.unwrap(), begun);
        }
    }
}

#[tokio::test]
async fn a_store_that_is_not_in_sync_never_reigns() {
    let catalog = catalog();
    let new = new_volume(10, "pg");
    let made = catalog.create_volume(&new).await.unwrap();
    let wiped = Member {
        store: StoreId(id(99)),
        ..new.member
    };
    let elsewhere = Member {
        node: NodeId(id(99)),
        ..new.member
    };
    for stranger in [wiped, elsewhere] {
        let error = catalog
            .begin_epoch(new.id, stranger, id(1))
            .await
            .unwrap_err();
        assert!(
            matches!(error, MetaError::NotInSync { member, .. } if member == stranger),
            "{error:?}"
        );
    }
    assert_eq!(catalog.volume("pg").await.unwrap(), made);
}

#[tokio::test]
async fn of_two_who_begin_an_epoch_each_gets_its_own() {
    let catalog = catalog();
    let new = new_volume(10, "pg");
    catalog.create_volume(&new).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (catalog, member) = (catalog.clone(), new.member);
        tasks.spawn(async move {
            catalog
                .begin_epoch(VolumeId(id(10)), member, id(500 + n))
                .await
                .unwrap()
                .config
                .epoch
        });
    }
    let mut epochs = tasks.join_all().await;
    epochs.sort();
    assert_eq!(epochs, (1..=8).map(Epoch).collect::<Vec<_>>());
}

/// The caller is told, acts as if either held, and finds out by asking again.
#[tokio::test]
async fn doubt_that_lasts_is_told_and_settled_by_the_same_call() {
    for last in [Fate::Applied, Fate::Lost, Fate::Late] {
        for known in [None, Some(Fate::Unavailable)] {
            let catalog = catalog();
            let new = new_volume(10, "pg");
            catalog.create_volume(&new).await.unwrap();
            // Refusal to take the second try settles nothing about the first.
            let fates = match known {
                None => vec![Fate::Lost, Fate::Lost, last],
                Some(known) => vec![last, known],
            };
            catalog.store().meets(&fates);
            let error = catalog
                .begin_epoch(new.id, new.member, id(1))
                .await
                .unwrap_err();
            assert!(
                matches!(error, MetaError::Unsettled(ControlError::Unknown(_))),
                "{error:?}"
            );
            let begun = catalog
                .begin_epoch(new.id, new.member, id(1))
                .await
                .unwrap();
            catalog.store().apply_late().await;
            assert_eq!(begun.config.epoch, Epoch(1), "{fates:?}");
            assert_eq!(catalog.volume("pg").await.unwrap(), begun);
        }
    }
    let catalog = catalog();
    catalog.store().meets(&[Fate::Unavailable]);
    let error = catalog
        .create_volume(&new_volume(10, "pg"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, MetaError::Store(ControlError::Unavailable(_))),
        "{error:?}"
    );
    assert_eq!(catalog.volumes().await.unwrap(), vec![]);
}

#[tokio::test]
async fn the_size_changes_and_nothing_else() {
    for fates in all_fates() {
        let catalog = catalog();
        let new = new_volume(10, "pg");
        let made = catalog.create_volume(&new).await.unwrap();
        catalog.store().meets(&fates);
        let grown = catalog.change(new.id, size(2 * GIB)).await.unwrap();
        catalog.store().apply_late().await;
        assert_eq!(catalog.volume("pg").await.unwrap(), grown, "{fates:?}");
        assert_eq!(
            grown.spec,
            VolumeSpec {
                size_bytes: 2 * GIB,
                ..made.spec
            }
        );
        assert_eq!(
            (grown.config, grown.config_rev),
            (made.config, made.config_rev)
        );
        let same = catalog.change(new.id, size(2 * GIB)).await.unwrap();
        assert_eq!(same.spec_rev, grown.spec_rev, "no change, no revision");
        let error = catalog.change(new.id, size(1)).await.unwrap_err();
        assert!(
            matches!(error, MetaError::InvalidSize { size_bytes: 1 }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn what_was_committed_is_noted_only_upwards_and_only_for_the_reign() {
    for fates in all_fates() {
        let catalog = catalog();
        let new = new_volume(10, "pg");
        catalog.create_volume(&new).await.unwrap();
        let reign = catalog
            .begin_epoch(new.id, new.member, id(1))
            .await
            .unwrap();
        let told = |epoch, lsn| Pos {
            epoch: Epoch(epoch),
            lsn: Lsn(lsn),
        };
        catalog.store().meets(&fates);
        let noted = catalog
            .note_commit(new.id, Lsn(3), told(1, 9))
            .await
            .unwrap();
        catalog.store().apply_late().await;
        assert_eq!(noted.config.commit_hint, told(1, 9), "{fates:?}");
        assert_eq!(noted.config.epoch_start, Some(Lsn(3)));
        for (start, pos) in [(3, told(1, 8)), (3, told(1, 9)), (99, told(2, 99))] {
            let same = catalog.note_commit(new.id, Lsn(start), pos).await.unwrap();
            assert_eq!(
                same.config_rev, noted.config_rev,
                "{pos}: no news, no revision"
            );
        }
        let next = catalog
            .begin_epoch(new.id, new.member, id(2))
            .await
            .unwrap();
        assert_eq!(next.config.epoch, reign.config.epoch.next().unwrap());
        assert_eq!(next.config.commit_hint, told(1, 9), "a new reign knows it");
        let begun = catalog
            .note_commit(new.id, Lsn(12), told(2, 11))
            .await
            .unwrap();
        assert_eq!(begun.config.commit_hint, told(1, 9), "before the reign");
        let lost = catalog.forget_commit(new.id).await.unwrap();
        assert_eq!(lost.config.commit_hint, Pos::default());
    }
}

#[tokio::test]
async fn a_setting_of_version_2_is_written_as_such_and_no_other_is() {
    let catalog = catalog();
    let new = new_volume(10, "pg");
    let made = catalog.create_volume(&new).await.unwrap();
    let stored = |rev| {
        let catalog = &catalog;
        async move {
            let (_, stored) = catalog
                .store()
                .get(&key::volume_spec(new.id))
                .await
                .unwrap();
            let stored = stored.unwrap();
            assert_eq!(stored.mod_rev, rev);
            String::from_utf8(stored.value.to_vec()).unwrap()
        }
    };
    let text = stored(made.spec_rev).await;
    assert!(
        text.contains(r#""version":1"#) && !text.contains("writeback"),
        "{text}"
    );
    let off = VolumeChange {
        writeback: Some(false),
        ..VolumeChange::default()
    };
    let changed = catalog.change(new.id, off).await.unwrap();
    let text = stored(changed.spec_rev).await;
    assert!(
        text.contains(r#""version":2"#) && text.contains(r#""writeback":false"#),
        "{text}"
    );
    assert_eq!(catalog.volume("pg").await.unwrap(), changed);
}

#[tokio::test]
async fn deleting_takes_two_steps_and_frees_the_name() {
    for fates in all_fates() {
        let catalog = catalog();
        let new = new_volume(10, "pg");
        catalog.create_volume(&new).await.unwrap();
        let error = catalog.finish_delete(new.id).await.unwrap_err();
        assert!(matches!(error, MetaError::NotDeleting { .. }), "{error:?}");

        catalog.store().meets(&fates);
        let deleting = catalog.begin_delete(new.id, at(50)).await.unwrap();
        assert_eq!(deleting.spec.deleting_since, Some(at(50)), "{fates:?}");
        catalog.store().apply_late().await;
        assert_eq!(
            catalog.begin_delete(new.id, at(60)).await.unwrap(),
            deleting,
            "since the first"
        );
        assert_eq!(
            catalog.volumes().await.unwrap(),
            vec![deleting],
            "a restart finds it"
        );
        for error in [
            catalog
                .begin_epoch(new.id, new.member, id(1))
                .await
                .unwrap_err(),
            catalog.change(new.id, size(2 * GIB)).await.unwrap_err(),
        ] {
            assert_eq!(error.to_string(), "volume pg is being deleted");
        }
        let error = catalog
            .create_volume(&new_volume(11, "pg"))
            .await
            .unwrap_err();
        assert!(matches!(error, MetaError::NameTaken { .. }), "{error:?}");

        catalog.store().meets(&fates);
        catalog.finish_delete(new.id).await.unwrap();
        catalog.store().apply_late().await;
        assert_eq!(catalog.volumes().await.unwrap(), vec![]);
        catalog.finish_delete(new.id).await.unwrap();
        let (_, kv) = list_all(catalog.store(), &"".into()).await.unwrap();
        assert_eq!(kv, vec![], "no trace");
        catalog.create_volume(&new_volume(11, "pg")).await.unwrap();
    }
}

/// An epoch that was asked for before the deletion, and comes late, must not revive the volume.
#[tokio::test]
async fn a_late_epoch_does_not_outlive_the_deletion() {
    for finished in [false, true] {
        let catalog = catalog();
        let new = new_volume(10, "pg");
        catalog.create_volume(&new).await.unwrap();
        catalog.store().meets(&[Fate::Held, Fate::Unavailable]);
        let error = catalog
            .begin_epoch(new.id, new.member, id(1))
            .await
            .unwrap_err();
        assert!(matches!(error, MetaError::Unsettled(_)), "{error:?}");
        let deleting = catalog.begin_delete(new.id, at(50)).await.unwrap();
        if finished {
            catalog.finish_delete(new.id).await.unwrap();
        }
        catalog.store().apply_held().await;
        let want = Some(deleting).filter(|_| !finished);
        assert_eq!(catalog.volume_by_id(new.id).await.unwrap(), want);
    }
}

#[tokio::test]
async fn damaged_and_newer_records_are_named() {
    let catalog = catalog();
    let new = new_volume(10, "pg");
    catalog.create_volume(&new).await.unwrap();
    let write = async |key: &Key, value: &str| {
        let then = vec![Op::Put(key.clone(), value.to_owned().into(), None)];
        catalog
            .store()
            .txn(Txn {
                then,
                ..Txn::default()
            })
            .await
            .unwrap();
    };
    let (spec_key, config_key) = (key::volume_spec(new.id), key::volume_config(new.id));
    let good = catalog
        .store()
        .get(&spec_key)
        .await
        .unwrap()
        .1
        .unwrap()
        .value;
    let good = std::str::from_utf8(&good).unwrap();
    for (bad, want) in [
        ("", "not a valid record"),
        ("{", "not a valid record"),
        (
            &good.replace("volume-spec", "node"),
            r#"holds a record of kind "node" instead of "volume-spec""#,
        ),
        (
            &good.replace(r#""version":1"#, r#""version":3"#),
            "has version 3, this version of hafs knows versions up to 2",
        ),
        (
            &good.replace(r#""copies""#, r#""colour":1,"copies""#),
            "not a valid record",
        ),
        (&good.replace("pg", "P G"), "not a valid record"),
    ] {
        write(&spec_key, bad).await;
        for error in [
            catalog.volume("pg").await.unwrap_err(),
            catalog.volumes().await.unwrap_err(),
            catalog
                .begin_epoch(new.id, new.member, id(1))
                .await
                .unwrap_err(),
        ] {
            assert_eq!(error.to_string(), format!("record {spec_key}"));
            assert_eq!(
                std::error::Error::source(&error).unwrap().to_string(),
                want,
                "{bad}"
            );
        }
    }
    write(&spec_key, good).await;
    let mut config = VolumeConfig::first(new.lineage, new.member, new.proposal);
    config.in_sync.clear();
    write(&config_key, std::str::from_utf8(&encode(&config)).unwrap()).await;
    let error = catalog.volume("pg").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the records of {} are damaged: nobody is in sync", new.id)
    );
    let then = vec![Op::Del(config_key)];
    catalog
        .store()
        .txn(Txn {
            then,
            ..Txn::default()
        })
        .await
        .unwrap();
    let error = catalog.volume("pg").await.unwrap_err();
    assert!(
        matches!(
            error,
            MetaError::Damaged {
                detail: "a spec without a config",
                ..
            }
        ),
        "{error:?}"
    );
}

/// What is stored, to the letter: disks outlive releases.
#[tokio::test]
async fn records_are_stored_as_documented() {
    let catalog = catalog();
    catalog.bootstrap(&node(1), &cluster(7)).await.unwrap();
    let new = new_volume(10, "pg");
    catalog.create_volume(&new).await.unwrap();
    catalog
        .begin_epoch(new.id, new.member, id(4000))
        .await
        .unwrap();
    let (_, kv) = list_all(catalog.store(), &"".into()).await.unwrap();
    let stored: Vec<String> = kv
        .iter()
        .map(|found| format!("{} {}", found.key, str::from_utf8(&found.value).unwrap()))
        .collect();
    let uuid = |n: u128| id(n).to_string();
    let (volume, n1) = (uuid(10), uuid(1));
    let member = format!(r#"{{"node":"{n1}","store":"{volume}"}}"#);
    let want = [
        format!(
            r#"/cluster {{"kind":"cluster","version":1,"record":{{"id":"{}","created_at":"1970-01-01T00:00:02Z"}}}}"#,
            uuid(7)
        ),
        format!(
            r#"/node/{n1} {{"kind":"node","version":1,"record":{{"id":"{n1}","name":"n1","created_at":"1970-01-01T00:00:01Z"}}}}"#
        ),
        format!("/vol-name/pg {volume}"),
        format!(
            r#"/vol/{volume}/cfg {{"kind":"volume-config","version":1,"record":{{"lineage":"{}","epoch":1,"primary":{member},"in_sync":[{member}],"learners":[],"proposal":"{}","epoch_start":null,"commit_hint":{{"epoch":0,"lsn":0}}}}}}"#,
            uuid(1010),
            uuid(4000)
        ),
        format!(
            r#"/vol/{volume}/spec {{"kind":"volume-spec","version":1,"record":{{"name":"pg","size_bytes":1073741824,"profile":"database","copies":1,"created_at":"1970-01-01T00:00:03Z","deleting_since":null}}}}"#
        ),
    ];
    assert_eq!(stored, want);
}
