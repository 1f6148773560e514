//! Kills: what was answered is there, with its revisions; what was going on goes on.

use super::{
    Fixture, HISTORY_REVS, apply, del, keys, open_session, put, read, refuse, rev_of, soon, text,
    tied, told,
};
use crate::store::{Cmp, ControlStore, Op, list_all};

/// Keys, values and versions.
pub async fn everything_survives_a_kill<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(
        &store,
        vec![],
        vec![put("/a", "1"), put("/b", "1"), put("/c", "1")],
    )
    .await;
    apply(&store, vec![], vec![put("/b", "2"), del("/c")]).await;
    let before = list_all(&store, &"".into()).await.expect("a list");
    let store = fixture.kill_and_reopen(store).await;
    assert_eq!(list_all(&store, &"".into()).await.expect("a list"), before);
    assert_eq!(
        (before.0, keys(&before.1)),
        (2, vec!["/a".into(), "/b".into()])
    );
}

/// A revision is used once; guards hold across the kill.
pub async fn revisions_go_on_after_a_kill<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let rev = apply(&store, vec![], vec![put("/a", "1")]).await;
    let store = fixture.kill_and_reopen(store).await;
    refuse(&store, vec![Cmp::Absent("/a".into())], vec![put("/a", "2")]).await;
    let next = apply(
        &store,
        vec![Cmp::ModRev("/a".into(), rev)],
        vec![put("/a", "3")],
    )
    .await;
    assert_eq!((rev, next), (1, 2));
    let store = fixture.kill_and_reopen(store).await;
    assert_eq!(
        (rev_of(&store).await, text(&store, "/a").await),
        (2, "3".into())
    );
}

/// A watch picks up where it was, also what happened before the kill.
pub async fn a_watch_resumes_after_a_kill<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let mut watch = store.watch("/".into(), 1);
    apply(&store, vec![], vec![put("/a", "1")]).await;
    let (seen, _) = told(&mut watch).await;
    apply(&store, vec![], vec![put("/a", "2")]).await;
    drop(watch);
    let store = fixture.kill_and_reopen(store).await;
    let mut watch = store.watch("/".into(), seen + 1);
    assert_eq!(told(&mut watch).await, (2, vec!["+/a=2".to_owned()]));
    apply(&store, vec![], vec![del("/a")]).await;
    assert_eq!(told(&mut watch).await, (3, vec!["-/a".to_owned()]));
}

/// A cursor is not tied to a process.
pub async fn a_list_goes_on_after_a_kill<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(
        &store,
        vec![],
        vec![put("/a", "1"), put("/b", "1"), put("/c", "1")],
    )
    .await;
    let page = store.list(&"/".into(), None, 1).await.expect("a page");
    apply(
        &store,
        vec![],
        vec![put("/b", "2"), del("/c"), put("/d", "2")],
    )
    .await;
    let store = fixture.kill_and_reopen(store).await;
    let rest = store
        .list(&"/".into(), page.next.as_ref(), 10)
        .await
        .expect("a page");
    assert_eq!((rest.rev, rest.next), (1, None));
    let seen: Vec<_> = rest
        .kv
        .iter()
        .map(|found| (found.key.clone(), found.value.clone()))
        .collect();
    assert_eq!(seen, [("/b".into(), "1".into()), ("/c".into(), "1".into())]);
}

/// Its holder is gone. In a store that outlives its holders this takes the time to live.
pub async fn a_kill_ends_sessions<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let session = open_session(&store).await;
    apply(
        &store,
        vec![],
        vec![tied("/a", &session), put("/b", "1"), tied("/c", &session)],
    )
    .await;
    let ended = session.ended();
    let store = fixture.kill_and_reopen(store).await;
    drop(session);
    soon(ended).await;
    let (rev, mut words) = told(&mut store.watch("/".into(), 2)).await;
    words.sort();
    assert_eq!((rev, words), (2, vec!["-/a".to_owned(), "-/c".to_owned()]));
    assert_eq!(
        (read(&store, "/a").await, text(&store, "/b").await),
        (None, "1".into())
    );
}

/// Nothing wears out, beyond the bound of the history too.
pub async fn a_store_is_killed_again_and_again<F: Fixture>(fixture: &F) {
    let mut store = fixture.create().await;
    let mut rev = 0;
    for round in 0..5 {
        for _ in 0..HISTORY_REVS / 3 {
            let value = format!("{round}");
            let then = vec![Op::Put("/a".into(), value.into(), None), put("/b", "1")];
            rev = apply(&store, vec![], then).await;
        }
        store = fixture.kill_and_reopen(store).await;
        let (now, kv) = list_all(&store, &"".into()).await.expect("a list");
        assert_eq!(
            (now, kv.len(), &kv[0].value),
            (rev, 2, &format!("{round}").into())
        );
        let oldest = (rev + 1).saturating_sub(HISTORY_REVS).max(1);
        assert_eq!(told(&mut store.watch("".into(), oldest)).await.0, oldest);
    }
}
