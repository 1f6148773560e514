//! Watches: every change, once, in order, from any kept revision on.

use futures_util::StreamExt;

use super::{Fixture, HISTORY_REVS, apply, del, forget_history, put, refuse, soon, told};
use crate::error::{LimitExceeded, WatchError};
use crate::store::{Cmp, ControlStore, KEY_BYTES_MAX, Key, Watch};

async fn ends(watch: &mut Watch) -> WatchError {
    let last = soon(watch.next()).await.expect("it ends with an error");
    assert!(
        soon(watch.next()).await.is_none(),
        "after an error a watch is over"
    );
    last.expect_err("it ends with an error")
}

/// `from_rev` is the first that is delivered.
pub async fn a_watch_delivers_from_its_revision<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    for value in ["1", "2", "3", "4"] {
        apply(&store, vec![], vec![put("/a", value)]).await;
    }
    for from_rev in [0, 1, 2, 3, 4] {
        let mut watch = store.watch("/".into(), from_rev);
        for rev in from_rev.max(1)..=4 {
            assert_eq!(told(&mut watch).await, (rev, vec![format!("+/a={rev}")]));
        }
    }
}

/// A watch wakes up for each change.
pub async fn a_watch_waits_for_what_comes<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let mut watch = store.watch("/".into(), 1);
    for rev in 1..=20 {
        let (_, seen) = tokio::join!(
            apply(&store, vec![], vec![put("/a", "1")]),
            told(&mut watch)
        );
        assert_eq!(seen, (rev, vec!["+/a=1".to_owned()]));
    }
}

/// All events of a revision come together, as the transaction had them.
pub async fn a_batch_is_a_whole_revision_in_order<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(
        &store,
        vec![],
        vec![put("/b", "1"), put("/z", "1"), put("/a", "1")],
    )
    .await;
    apply(
        &store,
        vec![],
        vec![put("/c", "2"), del("/z"), del("/none"), put("/a", "2")],
    )
    .await;
    let mut watch = store.watch("".into(), 1);
    let want = ["+/b=1", "+/z=1", "+/a=1"].map(str::to_owned);
    assert_eq!(told(&mut watch).await, (1, want.into()));
    let want = ["+/c=2", "-/z", "+/a=2"].map(str::to_owned);
    assert_eq!(told(&mut watch).await, (2, want.into()));
}

/// Neither other keys nor their revisions.
pub async fn a_watch_sees_its_prefix_alone<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(&store, vec![], vec![put("/a/1", "1"), put("/b", "1")]).await;
    apply(&store, vec![], vec![put("/b", "2"), put("/a", "2")]).await;
    apply(&store, vec![], vec![del("/b"), put("/ab", "3")]).await;
    apply(
        &store,
        vec![],
        vec![del("/a/1"), put("/a/2", "4"), del("/ab")],
    )
    .await;
    let mut watch = store.watch("/a/".into(), 1);
    assert_eq!(told(&mut watch).await, (1, vec!["+/a/1=1".to_owned()]));
    assert_eq!(
        told(&mut watch).await,
        (4, vec!["-/a/1".to_owned(), "+/a/2=4".to_owned()])
    );
}

/// As one does who has just listed.
pub async fn a_watch_from_a_later_revision_waits_for_it<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let mut watch = store.watch("/".into(), 3);
    let changes = async {
        for value in ["1", "2", "3"] {
            apply(&store, vec![], vec![put("/a", value)]).await;
        }
    };
    let ((), seen) = tokio::join!(changes, told(&mut watch));
    assert_eq!(seen, (3, vec!["+/a=3".to_owned()]));
}

/// Watches do not take from each other.
pub async fn two_watches_see_the_same<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let (mut one, mut two) = (store.watch("/".into(), 1), store.watch("/".into(), 1));
    for rev in 1..=10 {
        apply(&store, vec![], vec![put("/a", "1")]).await;
        assert_eq!(told(&mut one).await.0, rev);
    }
    for rev in 1..=10 {
        assert_eq!(told(&mut two).await.0, rev);
    }
}

/// Nothing happened.
pub async fn a_refused_txn_is_not_seen<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let mut watch = store.watch("/".into(), 1);
    apply(&store, vec![], vec![put("/a", "1")]).await;
    refuse(&store, vec![Cmp::Absent("/a".into())], vec![put("/a", "2")]).await;
    apply(&store, vec![], vec![del("/none")]).await;
    apply(&store, vec![], vec![put("/a", "3")]).await;
    assert_eq!(told(&mut watch).await, (1, vec!["+/a=1".to_owned()]));
    assert_eq!(told(&mut watch).await, (2, vec!["+/a=3".to_owned()]));
}

/// What is kept can be watched, what is not is never skipped silently.
pub async fn a_watch_of_forgotten_revisions_is_told<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    for _ in 0..HISTORY_REVS {
        apply(&store, vec![], vec![put("/a", "1")]).await;
    }
    assert_eq!(told(&mut store.watch("/".into(), 1)).await.0, 1);
    let rev = apply(&store, vec![], vec![put("/a", "1")]).await;
    match ends(&mut store.watch("/none".into(), 1)).await {
        WatchError::Compacted { oldest } => {
            assert_eq!(oldest, rev - HISTORY_REVS + 1);
            assert_eq!(told(&mut store.watch("/".into(), oldest)).await.0, oldest);
        }
        other => panic!("not told: {other:?}"),
    }
}

/// A watch that is not read from holds nothing back, and hears about it.
pub async fn a_watch_that_falls_behind_is_told<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let mut watch = store.watch("/".into(), 1);
    apply(&store, vec![], vec![put("/a", "1")]).await;
    assert_eq!(told(&mut watch).await.0, 1);
    apply(&store, vec![], vec![put("/a", "2")]).await;
    forget_history(&store).await;
    let error = ends(&mut watch).await;
    assert!(
        matches!(error, WatchError::Compacted { oldest } if oldest > 2),
        "{error:?}"
    );
}

/// Limits hold for prefixes.
pub async fn a_prefix_that_is_too_long_is_refused<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let prefix = Key::new(vec![b'k'; KEY_BYTES_MAX + 1]);
    let error = ends(&mut store.watch(prefix, 1)).await;
    assert!(
        matches!(error, WatchError::Limit(LimitExceeded::KeyTooLong { .. })),
        "{error:?}"
    );
}
