//! Transactions: revisions, guards, fetches, limits.

use std::sync::Arc;

use bytes::Bytes;

use super::{Fixture, apply, del, keys, put, read, refuse, rev_of, text};
use crate::error::{ControlError, LimitExceeded};
use crate::store::{
    Cmp, ControlStore, KEY_BYTES_MAX, Key, Op, TXN_BYTES_MAX, TXN_OPS_MAX, Txn, TxnOutcome,
    VALUE_BYTES_MAX,
};

/// Nothing is there, and the revision is 0.
pub async fn an_empty_store_is_at_revision_0<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let (rev, found) = store.get(&"/a".into()).await.expect("a read is answered");
    assert_eq!((rev, found), (0, None));
}

/// The first applied transaction is revision 1.
pub async fn the_first_put_makes_revision_1<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    assert_eq!(apply(&store, vec![], vec![put("/a", "1")]).await, 1);
    let (rev, found) = store.get(&"/a".into()).await.expect("a read is answered");
    let found = found.expect("it was put");
    assert_eq!((rev, found.create_rev, found.mod_rev), (1, 1, 1));
    assert_eq!(
        (found.key, found.value, found.session),
        ("/a".into(), "1".into(), None)
    );
}

/// A second put changes `mod_rev` alone.
pub async fn a_put_keeps_the_creating_revision<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(&store, vec![], vec![put("/a", "1")]).await;
    assert_eq!(apply(&store, vec![], vec![put("/a", "2")]).await, 2);
    let found = read(&store, "/a").await.expect("it was put");
    assert_eq!(
        (found.create_rev, found.mod_rev, found.value),
        (1, 2, "2".into())
    );
}

/// Whoever guards by revision must see that someone wrote, whatever was written.
pub async fn a_put_of_the_same_value_is_a_change<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(&store, vec![], vec![put("/a", "1")]).await;
    assert_eq!(apply(&store, vec![], vec![put("/a", "1")]).await, 2);
    assert_eq!(read(&store, "/a").await.expect("it was put").mod_rev, 2);
}

/// A deletion is a revision.
pub async fn a_deleted_key_is_gone<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(&store, vec![], vec![put("/a", "1"), put("/b", "1")]).await;
    assert_eq!(apply(&store, vec![], vec![del("/a")]).await, 2);
    assert_eq!(read(&store, "/a").await, None);
    assert_eq!(text(&store, "/b").await, "1");
}

/// No change, no revision.
pub async fn deleting_an_absent_key_changes_nothing<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(&store, vec![], vec![put("/a", "1")]).await;
    assert_eq!(apply(&store, vec![], vec![del("/b"), del("/c")]).await, 1);
    assert_eq!(rev_of(&store).await, 1);
    assert_eq!(
        apply(&store, vec![], vec![del("/b"), put("/c", "1")]).await,
        2
    );
}

/// A key that was deleted starts a new life.
pub async fn a_key_created_anew_has_a_new_creating_revision<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(&store, vec![], vec![put("/a", "1")]).await;
    apply(&store, vec![], vec![del("/a")]).await;
    apply(&store, vec![Cmp::Absent("/a".into())], vec![put("/a", "2")]).await;
    let found = read(&store, "/a").await.expect("it was put");
    assert_eq!((found.create_rev, found.mod_rev), (3, 3));
}

/// One transaction, one revision.
pub async fn all_changes_of_a_txn_have_one_revision<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(&store, vec![], vec![put("/c", "1")]).await;
    let rev = apply(
        &store,
        vec![],
        vec![put("/a", "1"), put("/b", "1"), del("/c")],
    )
    .await;
    for key in ["/a", "/b"] {
        assert_eq!(read(&store, key).await.expect("it was put").mod_rev, rev);
    }
    assert_eq!((rev, rev_of(&store).await), (2, 2));
    assert_eq!(read(&store, "/c").await, None);
}

/// `Absent` holds only while the key is absent.
pub async fn an_absent_guard_refuses_a_key_that_exists<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let absent = || vec![Cmp::Absent("/a".into())];
    apply(&store, absent(), vec![put("/a", "1")]).await;
    refuse(&store, absent(), vec![put("/a", "2")]).await;
    assert_eq!(text(&store, "/a").await, "1");
    apply(&store, vec![], vec![del("/a")]).await;
    apply(&store, absent(), vec![put("/a", "3")]).await;
}

/// `ModRev` is compare-and-swap.
pub async fn a_revision_guard_refuses_a_key_that_was_put_again<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let at = |rev| vec![Cmp::ModRev("/a".into(), rev)];
    let first = apply(&store, vec![], vec![put("/a", "1")]).await;
    apply(&store, vec![], vec![put("/other", "1")]).await;
    let second = apply(&store, at(first), vec![put("/a", "2")]).await;
    refuse(&store, at(first), vec![put("/a", "3")]).await;
    refuse(&store, at(second + 1), vec![put("/a", "3")]).await;
    assert_eq!(text(&store, "/a").await, "2");
}

/// No revision is that of a key that is not there, not even 0 or that of its deletion.
pub async fn a_revision_guard_refuses_an_absent_key<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let at = |rev| vec![Cmp::ModRev("/a".into(), rev)];
    refuse(&store, at(0), vec![put("/a", "1")]).await;
    let first = apply(&store, vec![], vec![put("/a", "1")]).await;
    refuse(&store, at(0), vec![put("/a", "2")]).await;
    let deleted = apply(&store, vec![], vec![del("/a")]).await;
    refuse(&store, at(first), vec![put("/a", "2")]).await;
    refuse(&store, at(deleted), vec![put("/a", "2")]).await;
}

/// One guard that does not hold is enough.
pub async fn every_guard_must_hold<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let a = apply(&store, vec![], vec![put("/a", "1")]).await;
    let b = apply(&store, vec![], vec![put("/b", "1")]).await;
    let holding = [
        Cmp::ModRev("/a".into(), a),
        Cmp::ModRev("/b".into(), b),
        Cmp::Absent("/c".into()),
    ];
    for broken in [
        Cmp::ModRev("/a".into(), b),
        Cmp::Absent("/b".into()),
        Cmp::ModRev("/c".into(), 1),
    ] {
        for place in 0..=holding.len() {
            let mut when = holding.to_vec();
            when.insert(place, broken.clone());
            refuse(&store, when, vec![put("/a", "2"), put("/c", "2")]).await;
        }
    }
    apply(&store, holding.to_vec(), vec![put("/a", "2")]).await;
}

/// Refused means that nothing happened at all.
pub async fn a_refused_txn_makes_no_revision<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(&store, vec![], vec![put("/a", "1")]).await;
    let rev = refuse(
        &store,
        vec![Cmp::Absent("/a".into())],
        vec![put("/b", "2"), del("/a")],
    )
    .await;
    assert_eq!((rev, rev_of(&store).await), (1, 1));
    assert_eq!(
        (text(&store, "/a").await, text(&store, "/b").await),
        ("1".into(), "-".into())
    );
    assert_eq!(apply(&store, vec![], vec![put("/b", "3")]).await, 2);
}

/// Several keys are read together by a transaction that only fetches.
pub async fn a_txn_without_changes_reads_at_one_revision<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(&store, vec![], vec![put("/a", "1"), put("/b", "2")]).await;
    let fetch = vec!["/b".into(), "/none".into(), "/a".into(), "/b".into()];
    let outcome = store
        .txn(Txn {
            fetch,
            ..Txn::default()
        })
        .await
        .expect("an outcome");
    let TxnOutcome::Applied { rev, kv } = outcome else {
        panic!("nothing to refuse")
    };
    assert_eq!(rev, 1);
    assert_eq!(keys(&kv), ["/b".into(), "/a".into(), "/b".into()]);
}

/// An applied transaction answers what is there afterwards.
pub async fn an_applied_txn_fetches_what_it_made<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(
        &store,
        vec![],
        vec![put("/a", "1"), put("/b", "1"), put("/c", "1")],
    )
    .await;
    let txn = Txn {
        when: vec![],
        then: vec![put("/a", "2"), del("/b"), put("/d", "2")],
        fetch: vec!["/a".into(), "/b".into(), "/c".into(), "/d".into()],
    };
    let outcome = store.txn(txn).await.expect("an outcome");
    let TxnOutcome::Applied { rev, kv } = outcome else {
        panic!("nothing to refuse")
    };
    let seen: Vec<_> = kv
        .iter()
        .map(|v| (v.value.clone(), v.create_rev, v.mod_rev))
        .collect();
    assert_eq!(keys(&kv), ["/a".into(), "/c".into(), "/d".into()]);
    assert_eq!(
        seen,
        [("2".into(), 1, 2), ("1".into(), 1, 1), ("2".into(), 2, 2)]
    );
    assert_eq!(rev, 2);
}

/// A refused one answers what stood in its way.
pub async fn a_refused_txn_fetches_what_is<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(&store, vec![], vec![put("/a", "1")]).await;
    let txn = Txn {
        when: vec![Cmp::Absent("/a".into())],
        then: vec![put("/a", "2"), put("/b", "2")],
        fetch: vec!["/a".into(), "/b".into()],
    };
    let TxnOutcome::Refused { rev, kv } = store.txn(txn).await.expect("an outcome") else {
        panic!("the key is there")
    };
    assert_eq!((rev, kv.len()), (1, 1));
    assert_eq!((&kv[0].key, &kv[0].value), (&"/a".into(), &"1".into()));
}

/// What a caller does after an unknown outcome: with guards that its success breaks, trying again is safe.
pub async fn a_repeated_txn_is_applied_once<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let rev = apply(&store, vec![], vec![put("/a", "1")]).await;
    let txn = Txn {
        when: vec![Cmp::ModRev("/a".into(), rev)],
        then: vec![put("/a", "2")],
        fetch: vec!["/a".into()],
    };
    let first = store.txn(txn.clone()).await.expect("an outcome");
    let TxnOutcome::Applied { rev: applied, kv } = first else {
        panic!("the guard held")
    };
    for _ in 0..3 {
        let again = store.txn(txn.clone()).await.expect("an outcome");
        assert_eq!(
            again,
            TxnOutcome::Refused {
                rev: applied,
                kv: kv.clone()
            }
        );
    }
}

/// Guarded increments from several tasks add up.
pub async fn concurrent_increments_are_not_lost<F: Fixture>(fixture: &F) {
    const TASKS: u64 = 8;
    const INCREMENTS: u64 = 10;
    let store = Arc::new(fixture.create().await);
    apply(&store, vec![], vec![put("/n", "0")]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for _ in 0..INCREMENTS {
                increment(&*store).await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a task ends well");
    }
    let found = read(&store, "/n").await.expect("it was put");
    assert_eq!(found.value, (TASKS * INCREMENTS).to_string());
    assert_eq!(
        found.mod_rev,
        1 + TASKS * INCREMENTS,
        "each was one revision"
    );
}

async fn increment<S: ControlStore>(store: &S) {
    loop {
        let found = read(store, "/n").await.expect("it was put");
        let n: u64 = std::str::from_utf8(&found.value)
            .expect("text")
            .parse()
            .expect("a number");
        let txn = Txn {
            when: vec![Cmp::ModRev("/n".into(), found.mod_rev)],
            then: vec![Op::Put("/n".into(), (n + 1).to_string().into(), None)],
            fetch: vec![],
        };
        if let TxnOutcome::Applied { .. } = store.txn(txn).await.expect("an outcome") {
            return;
        }
    }
}

/// Of those who create the same key at once, one succeeds, and the others see whose it is.
pub async fn one_of_many_creators_wins<F: Fixture>(fixture: &F) {
    let store = Arc::new(fixture.create().await);
    let mut tasks = tokio::task::JoinSet::new();
    for creator in 0..16 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let txn = Txn {
                when: vec![Cmp::Absent("/a".into())],
                then: vec![Op::Put("/a".into(), format!("{creator}").into(), None)],
                fetch: vec!["/a".into()],
            };
            match store.txn(txn).await.expect("an outcome") {
                TxnOutcome::Applied { kv, .. } => (true, kv),
                TxnOutcome::Refused { kv, .. } => (false, kv),
            }
        });
    }
    let answers = tasks.join_all().await;
    assert_eq!(answers.iter().filter(|(won, _)| *won).count(), 1);
    assert!(
        answers.iter().all(|(_, kv)| *kv == answers[0].1),
        "{answers:?}"
    );
    assert_eq!(rev_of(&store).await, 1);
}

/// The txn breaks a limit: it is told so, and nothing was done.
async fn beyond<S: ControlStore>(store: &S, txn: Txn) -> LimitExceeded {
    let rev = rev_of(store).await;
    let answer = store.txn(txn).await;
    assert_eq!(rev_of(store).await, rev);
    match answer {
        Err(ControlError::Limit(limit)) => limit,
        other => panic!("not limited: {other:?}"),
    }
}

fn puts(then: Vec<Op>) -> Txn {
    Txn {
        then,
        ..Txn::default()
    }
}

/// Keys: neither empty nor too long, wherever they occur.
pub async fn keys_have_1_to_1024_bytes<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let longest = Key::new(vec![b'k'; KEY_BYTES_MAX]);
    apply(
        &store,
        vec![],
        vec![Op::Put(longest.clone(), "1".into(), None)],
    )
    .await;
    let (_, found) = store.get(&longest).await.expect("a read is answered");
    assert_eq!(found.expect("it was put").key, longest);

    let too_long = LimitExceeded::KeyTooLong {
        len: KEY_BYTES_MAX + 1,
    };
    for (key, want) in [
        (Key::new(vec![b'k'; KEY_BYTES_MAX + 1]), too_long),
        (Key::from(""), LimitExceeded::KeyEmpty),
    ] {
        for txn in [
            puts(vec![put("/a", "1"), Op::Put(key.clone(), "1".into(), None)]),
            puts(vec![put("/a", "1"), Op::Del(key.clone())]),
            Txn {
                when: vec![Cmp::Absent(key.clone())],
                ..puts(vec![put("/a", "1")])
            },
            Txn {
                when: vec![Cmp::ModRev(key.clone(), 1)],
                ..puts(vec![put("/a", "1")])
            },
            Txn {
                fetch: vec![key.clone()],
                ..puts(vec![put("/a", "1")])
            },
        ] {
            assert_eq!(beyond(&store, txn).await, want);
        }
        assert!(matches!(store.get(&key).await, Err(ControlError::Limit(limit)) if limit == want));
    }
}

/// Values: from nothing to the limit.
pub async fn values_have_at_most_64_kib<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let largest = Bytes::from(vec![7; VALUE_BYTES_MAX]);
    apply(
        &store,
        vec![],
        vec![
            Op::Put("/a".into(), largest.clone(), None),
            put("/empty", ""),
        ],
    )
    .await;
    assert_eq!(text(&store, "/a").await, largest);
    assert_eq!(read(&store, "/empty").await.expect("it was put").value, "");
    let too_large = Bytes::from(vec![7; VALUE_BYTES_MAX + 1]);
    let limit = beyond(&store, puts(vec![Op::Put("/a".into(), too_large, None)])).await;
    assert!(
        matches!(limit, LimitExceeded::ValueTooLong { .. }),
        "{limit:?}"
    );
}

/// Operations and fetches together; guards for themselves.
pub async fn a_txn_has_at_most_128_operations<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let key = |i: usize| Key::from(format!("/{i}"));
    let txn = |guards: usize, ops: usize, fetches: usize| Txn {
        when: (0..guards).map(|i| Cmp::Absent(key(i))).collect(),
        then: (0..ops)
            .map(|i| Op::Put(key(i), "1".into(), None))
            .collect(),
        fetch: (0..fetches).map(key).collect(),
    };
    let count = TXN_OPS_MAX + 1;
    let limit = beyond(&store, txn(count, 1, 0)).await;
    assert_eq!(limit, LimitExceeded::TooManyGuards { count });
    for (ops, fetches) in [(count, 0), (0, count), (TXN_OPS_MAX, 1), (1, TXN_OPS_MAX)] {
        let limit = beyond(&store, txn(0, ops, fetches)).await;
        assert_eq!(limit, LimitExceeded::TooManyOps { count });
    }
    let half = TXN_OPS_MAX / 2;
    for (most, kv_len) in [
        (txn(TXN_OPS_MAX, half, half), half),
        (txn(0, TXN_OPS_MAX, 0), 0),
    ] {
        let outcome = store.txn(most).await.expect("an outcome");
        let TxnOutcome::Applied { kv, .. } = outcome else {
            panic!("the guards held")
        };
        assert_eq!(kv.len(), kv_len);
    }
}

/// All keys and values of a transaction together.
pub async fn a_txn_has_at_most_1_mib<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let values = TXN_BYTES_MAX / VALUE_BYTES_MAX - 1;
    let filled = |last: usize| {
        let mut then: Vec<Op> = (0..values)
            .map(|i| {
                Op::Put(
                    format!("/{i:02}").into(),
                    vec![1; VALUE_BYTES_MAX].into(),
                    None,
                )
            })
            .collect();
        then.push(Op::Put("/zz".into(), vec![2; last].into(), None));
        puts(then)
    };
    let room = VALUE_BYTES_MAX - 3 * (values + 1);
    let limit = beyond(&store, filled(room + 1)).await;
    assert_eq!(
        limit,
        LimitExceeded::TxnTooBig {
            bytes: TXN_BYTES_MAX + 1
        }
    );
    let outcome = store.txn(filled(room)).await.expect("an outcome");
    assert!(matches!(outcome, TxnOutcome::Applied { rev: 1, .. }));
    assert_eq!(text(&store, "/zz").await.len(), room);
    assert_eq!(text(&store, "/00").await.len(), VALUE_BYTES_MAX);
}

/// What two changes of one key in one transaction would mean is nobody's guess.
pub async fn a_txn_changes_a_key_once<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    for second in [put("/a", "2"), del("/a")] {
        let limit = beyond(&store, puts(vec![put("/a", "1"), put("/b", "1"), second])).await;
        assert_eq!(limit, LimitExceeded::DuplicateKey { key: "/a".into() });
    }
}

/// Keys and values are bytes, not text.
pub async fn any_bytes_are_keys_and_values<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let all: Vec<u8> = (0..=255).collect();
    let key_bytes: [&[u8]; 5] = [b"\0", b"\0\0", b"\xff\xff", b"a\0b", &all];
    let then = key_bytes.map(|key| {
        let value = [b"value of ", key].concat();
        Op::Put(Key::new(key.to_vec()), value.into(), None)
    });
    apply(&store, vec![], then.into()).await;
    for key in key_bytes {
        let (_, found) = store
            .get(&Key::new(key.to_vec()))
            .await
            .expect("a read is answered");
        assert_eq!(
            found.expect("it was put").value,
            [b"value of ", key].concat()
        );
    }
}
