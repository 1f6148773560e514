//! Lists: order, prefixes, pages at one revision.

use super::{Fixture, HISTORY_REVS, apply, del, forget_history, keys, put};
use crate::error::{ControlError, LimitExceeded};
use crate::store::{
    ControlStore, Cursor, Key, Op, PAGE_BYTES_MAX, PAGE_KEYS_MAX, TXN_OPS_MAX, VALUE_BYTES_MAX,
    Versioned, list_all,
};

/// Nothing is a whole list.
pub async fn an_empty_store_lists_nothing<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let page = store.list(&"".into(), None, 10).await.expect("a page");
    assert_eq!((page.rev, page.kv, page.next), (0, vec![], None));
}

/// Bytewise order, and a prefix is bytes, not a directory.
pub async fn keys_are_listed_in_order_within_the_prefix<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let all = ["/A", "/a", "/a-", "/a/", "/a/1", "/a/2", "/ab", "/b"];
    for key in ["/b", "/a/2", "/ab", "/a", "/a/1", "/A", "/a/", "/a-"] {
        apply(&store, vec![], vec![put(key, "1")]).await;
    }
    for prefix in ["", "/", "/a", "/a/", "/a/1", "/b", "/c", "b"] {
        let page = store.list(&prefix.into(), None, 100).await.expect("a page");
        let want: Vec<Key> = all
            .iter()
            .filter(|key| key.starts_with(prefix))
            .map(|&key| key.into())
            .collect();
        assert_eq!(keys(&page.kv), want, "{prefix:?}");
        assert_eq!((page.rev, page.next), (8, None));
    }
}

/// A prefix without a next one.
pub async fn a_prefix_of_the_highest_bytes_lists_its_keys<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let key = |bytes: &'static [u8]| Key::new(bytes);
    let all = [
        key(b"\xfe"),
        key(b"\xff"),
        key(b"\xff\0"),
        key(b"\xff\xff"),
        key(b"\xff\xff\x01"),
    ];
    let then = all
        .iter()
        .map(|key| Op::Put(key.clone(), "1".into(), None))
        .collect();
    apply(&store, vec![], then).await;
    let page = store
        .list(&key(b"\xff\xff"), None, 100)
        .await
        .expect("a page");
    assert_eq!(keys(&page.kv), all[3..]);
    let page = store.list(&key(b"\xff"), None, 100).await.expect("a page");
    assert_eq!(keys(&page.kv), all[1..]);
}

/// No key twice, none left out; the last page says that it is the last.
pub async fn pages_are_full_and_lead_to_the_end<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let all: Vec<Key> = (0..10).map(|i| format!("/k/{i}").into()).collect();
    let then = all
        .iter()
        .map(|key| Op::Put(key.clone(), "1".into(), None))
        .collect();
    apply(&store, vec![], then).await;
    apply(&store, vec![], vec![put("/j", "1"), put("/l", "1")]).await;
    for limit in [1, 3, 5, 9, 10, 11] {
        let (mut seen, mut cursor, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = store
                .list(&"/k/".into(), cursor.as_ref(), limit)
                .await
                .expect("a page");
            assert_eq!(page.rev, 2);
            assert!(
                page.kv.len() == limit || page.next.is_none(),
                "a page is full or the last"
            );
            seen.extend(page.kv);
            pages += 1;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(keys(&seen), all, "{limit}");
        assert_eq!(pages, 10_usize.div_ceil(limit), "{limit}");
    }
}

/// What is created, changed and deleted between two pages is not seen.
pub async fn all_pages_show_one_revision<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let then = ["/a", "/c", "/e", "/g", "/i"].map(|key| put(key, "old"));
    let rev = apply(&store, vec![], then.into()).await;
    let (rev_now, want) = list_all(&store, &"/".into()).await.expect("a list");
    assert_eq!(rev_now, rev);

    let mut page = store.list(&"/".into(), None, 1).await.expect("a page");
    let mut seen = page.kv;
    let changes = [
        vec![put("/b", "new"), put("/c", "new"), put("/a", "new")],
        vec![del("/e"), del("/c"), put("/h", "new")],
        vec![put("/e", "anew"), del("/h"), del("/i")],
        vec![put("/z", "new"), del("/g"), put("/g", "new")],
    ];
    for mut then in changes {
        // A transaction changes a key once.
        let last = then.pop().expect("there are changes");
        apply(&store, vec![], then).await;
        apply(&store, vec![], vec![last]).await;
        page = store
            .list(&"/".into(), page.next.as_ref(), 1)
            .await
            .expect("a page");
        assert_eq!(page.rev, rev);
        seen.extend(page.kv);
    }
    assert_eq!((seen, page.next), (want, None));
}

/// However much is asked for, a page is bounded in keys and in bytes.
pub async fn pages_are_bounded<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let small = PAGE_KEYS_MAX + 10;
    let all: Vec<usize> = (0..small).collect();
    for some in all.chunks(TXN_OPS_MAX) {
        let then = some
            .iter()
            .map(|i| Op::Put(format!("/s/{i:05}").into(), "".into(), None));
        apply(&store, vec![], then.collect()).await;
    }
    let page = store
        .list(&"/s/".into(), None, usize::MAX)
        .await
        .expect("a page");
    assert_eq!(page.kv.len(), PAGE_KEYS_MAX);
    let rest = store
        .list(&"/s/".into(), page.next.as_ref(), usize::MAX)
        .await
        .expect("a page");
    assert_eq!((rest.kv.len(), rest.next), (10, None));

    let large = 2 * PAGE_BYTES_MAX / VALUE_BYTES_MAX;
    for i in 0..large {
        let value = vec![0; VALUE_BYTES_MAX].into();
        apply(
            &store,
            vec![],
            vec![Op::Put(format!("/l/{i:05}").into(), value, None)],
        )
        .await;
    }
    let page = store
        .list(&"/l/".into(), None, usize::MAX)
        .await
        .expect("a page");
    let bytes: usize = page.kv.iter().map(|found| found.value.len()).sum();
    assert!(bytes < PAGE_BYTES_MAX + VALUE_BYTES_MAX, "{bytes}");
    let (_, kv) = list_all(&store, &"/l/".into()).await.expect("a list");
    assert_eq!(kv.len(), large);
}

/// It would lead nowhere.
pub async fn a_page_of_no_keys_is_refused<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let page = store.list(&"/".into(), None, 0).await;
    assert!(
        matches!(page, Err(ControlError::Limit(LimitExceeded::PageEmpty))),
        "{page:?}"
    );
}

/// A list that takes too long is told, not served from another revision.
pub async fn a_forgotten_revision_is_not_shown<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    apply(&store, vec![], vec![put("/a", "1"), put("/b", "1")]).await;
    let page = store.list(&"/".into(), None, 1).await.expect("a page");
    for _ in 0..HISTORY_REVS {
        apply(&store, vec![], vec![put("/b", "2")]).await;
    }
    let second = store
        .list(&"/".into(), page.next.as_ref(), 1)
        .await
        .expect("just kept");
    assert_eq!((second.rev, &second.kv[0].value), (1, &"1".into()));

    apply(&store, vec![], vec![put("/b", "3")]).await;
    match store.list(&"/".into(), page.next.as_ref(), 1).await {
        Err(ControlError::Compacted { oldest }) => assert!(oldest > 1, "{oldest}"),
        other => panic!("revision 1 is gone: {other:?}"),
    }
    let beyond = Cursor {
        rev: 1_000_000,
        after: "/a".into(),
    };
    let answer = store.list(&"/".into(), Some(&beyond), 1).await;
    assert!(
        matches!(answer, Err(ControlError::Compacted { .. })),
        "{answer:?}"
    );
}

/// Whoever lists all gets all, at one revision, or is told that the store changes too fast.
pub async fn a_whole_list_survives_a_forgotten_revision<F: Fixture>(fixture: &F) {
    let store = fixture.create().await;
    let keys_max = PAGE_KEYS_MAX + 1;
    let all: Vec<usize> = (0..keys_max).collect();
    for some in all.chunks(TXN_OPS_MAX) {
        let then = some
            .iter()
            .map(|i| Op::Put(format!("/{i:05}").into(), "1".into(), None));
        apply(&store, vec![], then.collect()).await;
    }
    let whole = |(rev, kv): (u64, Vec<Versioned>)| {
        assert_eq!(kv.len(), keys_max);
        assert!(kv.iter().all(|found| found.mod_rev <= rev));
    };
    let prefix = "/".into();
    let (listed, ()) = tokio::join!(list_all(&store, &prefix), forget_history(&store));
    whole(listed.expect("a list"));
    whole(list_all(&store, &prefix).await.expect("a list"));
}
