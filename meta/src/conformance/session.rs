//! Sessions: keys that end with their holder.

use std::time::Duration;

use super::{Fixture, apply, del, open_session, put, read, rev_of, soon, text, tied, told};
use crate::error::{ControlError, LimitExceeded};
use crate::store::{Cmp, ControlStore, SESSION_TTL_MAX, SESSION_TTL_MIN, Txn};

/// The end of a session is one change, seen by reads and watches.
pub async fn closing_a_session_deletes_its_keys_in_one_revision<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let session = open_session(&store).await;
    apply(&store, vec![], vec![tied("/a", &session), put("/b", "1")]).await;
    apply(&store, vec![], vec![tied("/c", &session)]).await;
    assert_eq!(
        read(&store, "/a").await.expect("it was put").session,
        Some(session.id())
    );
    let mut watch = store.watch("/".into(), 3);
    soon(session.close()).await;
    assert_eq!(rev_of(&store).await, 3);
    assert_eq!(read(&store, "/a").await, None);
    assert_eq!(
        (text(&store, "/b").await, text(&store, "/c").await),
        ("1".into(), "-".into())
    );
    let (rev, mut words) = told(&mut watch).await;
    words.sort();
    assert_eq!((rev, words), (3, vec!["-/a".to_owned(), "-/c".to_owned()]));
}

/// Dropping ends it as well, soon.
pub async fn dropping_a_session_deletes_its_keys<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let session = open_session(&store).await;
    apply(&store, vec![], vec![tied("/a", &session)]).await;
    let ended = session.ended();
    let mut watch = store.watch("/".into(), 2);
    drop(session);
    assert_eq!(told(&mut watch).await, (2, vec!["-/a".to_owned()]));
    soon(ended).await;
    apply(&store, vec![Cmp::Absent("/a".into())], vec![put("/a", "1")]).await;
}

/// There is nothing to delete.
pub async fn a_session_without_keys_ends_without_a_revision<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(&store, vec![], vec![put("/a", "1")]).await;
    soon(open_session(&store).await.close()).await;
    assert_eq!(rev_of(&store).await, 1);
}

/// Else a key would outlive its session for ever.
pub async fn a_put_with_an_ended_session_is_refused<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let session = open_session(&store).await;
    let (id, late) = (session.id(), vec![put("/b", "1"), tied("/a", &session)]);
    soon(session.close()).await;
    match store
        .txn(Txn {
            then: late,
            ..Txn::default()
        })
        .await
    {
        Err(ControlError::SessionEnded(ended)) => assert_eq!(ended, id),
        other => panic!("the session is over: {other:?}"),
    }
    assert_eq!(
        (rev_of(&store).await, text(&store, "/b").await),
        (0, "-".into())
    );
}

/// Each put says anew what the key is tied to.
pub async fn a_put_without_a_session_unties_the_key<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let session = open_session(&store).await;
    apply(
        &store,
        vec![],
        vec![tied("/a", &session), tied("/b", &session)],
    )
    .await;
    apply(&store, vec![], vec![put("/a", "mine")]).await;
    assert_eq!(read(&store, "/a").await.expect("it was put").session, None);
    soon(session.close()).await;
    assert_eq!(
        (text(&store, "/a").await, text(&store, "/b").await),
        ("mine".into(), "-".into())
    );
}

/// The last put counts.
pub async fn a_put_with_another_session_ties_the_key_to_it<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let (one, two) = (open_session(&store).await, open_session(&store).await);
    apply(&store, vec![], vec![tied("/a", &one)]).await;
    apply(&store, vec![], vec![tied("/a", &two)]).await;
    soon(one.close()).await;
    assert_eq!(
        read(&store, "/a").await.expect("it was put").session,
        Some(two.id())
    );
    soon(two.close()).await;
    assert_eq!(read(&store, "/a").await, None);
}

/// A key that was deleted and put by someone else is someone else's.
pub async fn a_deleted_key_is_no_longer_tied<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let session = open_session(&store).await;
    apply(&store, vec![], vec![tied("/a", &session)]).await;
    apply(&store, vec![], vec![del("/a")]).await;
    apply(&store, vec![], vec![put("/a", "1")]).await;
    soon(session.close()).await;
    assert_eq!(
        (text(&store, "/a").await, rev_of(&store).await),
        ("1".into(), 3)
    );
}

/// No session is taken for another.
pub async fn sessions_have_names_of_their_own<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let (one, two) = (open_session(&store).await, open_session(&store).await);
    let first = one.id();
    assert_ne!(first, two.id());
    soon(one.close()).await;
    let three = open_session(&store).await;
    assert!(three.id() != first && three.id() != two.id() && three.id().0 != 0);
}

/// Limits hold for sessions.
pub async fn the_time_to_live_is_bounded<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let tick = Duration::from_nanos(1);
    for bad in [SESSION_TTL_MIN - tick, SESSION_TTL_MAX + tick] {
        match store.session(bad).await {
            Err(ControlError::Limit(LimitExceeded::SessionTtl { ttl })) => assert_eq!(ttl, bad),
            other => panic!("out of bounds: {other:?}"),
        }
    }
    for good in [SESSION_TTL_MIN, SESSION_TTL_MAX] {
        assert!(store.session(good).await.is_ok());
    }
}
