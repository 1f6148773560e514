//! One suite for every [`ControlStore`]: what the contract says, case by case, and random histories against a small model.
//!
//! A backend's tests say `hafs_meta::conformance_suite!(MyFixture::new())` in a module of their own, which makes one test
//! of each case, and call [`history::random_histories`]. The cases hold a store to the contract only: nothing here knows a
//! backend.
//!
//! Waits are for conditions, with [`PATIENCE`] as their bound.

pub mod history;
pub mod list;
pub mod restart;
pub mod session;
pub mod txn;
pub mod watch;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;

use crate::store::{
    Cmp, ControlStore, Event, Key, Op, SESSION_TTL_MIN, Session, Txn, TxnOutcome, Versioned, Watch,
    WatchBatch,
};

/// How many revisions the stores of a fixture keep, exactly.
pub const HISTORY_REVS: u64 = 32;
/// How long a case waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How the suite gets at a backend. One fixture holds one store at a time.
pub trait Fixture: Send + Sync {
    /// The backend.
    type Store: ControlStore;

    /// A new, empty store that keeps [`HISTORY_REVS`] revisions.
    fn create(&self) -> impl Future<Output = Self::Store> + Send;

    /// Ends the store without warning, as kill -9 would, and opens it again.
    fn kill_and_reopen(&self, store: Self::Store) -> impl Future<Output = Self::Store> + Send;
}

/// Makes a test of each case of the suite; the argument is an expression that makes a new [`Fixture`].
#[macro_export]
macro_rules! conformance_suite {
    ($fixture:expr) => {
        $crate::conformance_suite! { @ $fixture;
            txn::an_empty_store_is_at_revision_0
            txn::the_first_put_makes_revision_1
            txn::a_put_keeps_the_creating_revision
            txn::a_put_of_the_same_value_is_a_change
            txn::a_deleted_key_is_gone
            txn::deleting_an_absent_key_changes_nothing
            txn::a_key_created_anew_has_a_new_creating_revision
            txn::all_changes_of_a_txn_have_one_revision
            txn::an_absent_guard_refuses_a_key_that_exists
            txn::a_revision_guard_refuses_a_key_that_was_put_again
            txn::a_revision_guard_refuses_an_absent_key
            txn::every_guard_must_hold
            txn::a_refused_txn_makes_no_revision
            txn::a_txn_without_changes_reads_at_one_revision
            txn::an_applied_txn_fetches_what_it_made
            txn::a_refused_txn_fetches_what_is
            txn::a_repeated_txn_is_applied_once
            txn::concurrent_increments_are_not_lost
            txn::one_of_many_creators_wins
            txn::keys_have_1_to_1024_bytes
            txn::values_have_at_most_64_kib
            txn::a_txn_has_at_most_128_operations
            txn::a_txn_has_at_most_1_mib
            txn::a_txn_changes_a_key_once
            txn::any_bytes_are_keys_and_values
            list::an_empty_store_lists_nothing
            list::keys_are_listed_in_order_within_the_prefix
            list::a_prefix_of_the_highest_bytes_lists_its_keys
            list::pages_are_full_and_lead_to_the_end
            list::all_pages_show_one_revision
            list::pages_are_bounded
            list::a_page_of_no_keys_is_refused
            list::a_forgotten_revision_is_not_shown
            list::a_whole_list_survives_a_forgotten_revision
            watch::a_watch_delivers_from_its_revision
            watch::a_watch_waits_for_what_comes
            watch::a_batch_is_a_whole_revision_in_order
            watch::a_watch_sees_its_prefix_alone
            watch::a_watch_from_a_later_revision_waits_for_it
            watch::two_watches_see_the_same
            watch::a_refused_txn_is_not_seen
            watch::a_watch_of_forgotten_revisions_is_told
            watch::a_watch_that_falls_behind_is_told
            watch::a_prefix_that_is_too_long_is_refused
            session::closing_a_session_deletes_its_keys_in_one_revision
            session::dropping_a_session_deletes_its_keys
            session::a_session_without_keys_ends_without_a_revision
            session::a_put_with_an_ended_session_is_refused
            session::a_put_without_a_session_unties_the_key
            session::a_put_with_another_session_ties_the_key_to_it
            session::a_deleted_key_is_no_longer_tied
            session::sessions_have_names_of_their_own
            session::the_time_to_live_is_bounded
            restart::everything_survives_a_kill
            restart::revisions_go_on_after_a_kill
            restart::a_watch_resumes_after_a_kill
            restart::a_list_goes_on_after_a_kill
            restart::a_kill_ends_sessions
            restart::a_store_is_killed_again_and_again
        }
    };
    (@ $fixture:expr; $($part:ident::$case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::conformance::$part::$case(&$fixture).await;
            }
        )*
    };
}

/// What comes within [`PATIENCE`].
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("nothing came in time")
}

pub(crate) fn put(key: &'static str, value: &'static str) -> Op {
    Op::Put(key.into(), value.into(), None)
}

pub(crate) fn tied(key: &'static str, session: &Session) -> Op {
    Op::Put(key.into(), "tied".into(), Some(session.id()))
}

pub(crate) fn del(key: &'static str) -> Op {
    Op::Del(key.into())
}

/// Does a transaction that must be applied; its revision.
pub(crate) async fn apply<S: ControlStore>(store: &S, when: Vec<Cmp>, then: Vec<Op>) -> u64 {
    let txn = Txn {
        when,
        then,
        fetch: Vec::new(),
    };
    match store.txn(txn).await {
        Ok(TxnOutcome::Applied { rev, .. }) => rev,
        other => panic!("not applied: {other:?}"),
    }
}

/// Does a transaction that must be refused; the store's revision.
pub(crate) async fn refuse<S: ControlStore>(store: &S, when: Vec<Cmp>, then: Vec<Op>) -> u64 {
    let txn = Txn {
        when,
        then,
        fetch: Vec::new(),
    };
    match store.txn(txn).await {
        Ok(TxnOutcome::Refused { rev, .. }) => rev,
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) async fn read<S: ControlStore>(store: &S, key: &'static str) -> Option<Versioned> {
    store.get(&key.into()).await.expect("a read is answered").1
}

pub(crate) async fn rev_of<S: ControlStore>(store: &S) -> u64 {
    store
        .get(&"/any".into())
        .await
        .expect("a read is answered")
        .0
}

/// The value as text; "-": no such key.
pub(crate) async fn text<S: ControlStore>(store: &S, key: &'static str) -> Bytes {
    read(store, key)
        .await
        .map_or_else(|| "-".into(), |found| found.value)
}

pub(crate) async fn open_session<S: ControlStore>(store: &S) -> Session {
    store
        .session(SESSION_TTL_MIN)
        .await
        .expect("a session is opened")
}

/// The next batch of a watch.
pub(crate) async fn batch(watch: &mut Watch) -> WatchBatch {
    soon(watch.next())
        .await
        .expect("a watch ends with an error only")
        .expect("a batch")
}

/// The batch's revision and what it did, in words: `+key=value`, `-key`.
pub(crate) async fn told(watch: &mut Watch) -> (u64, Vec<String>) {
    let WatchBatch { rev, events } = batch(watch).await;
    let words = events.into_iter().map(|event| match event {
        Event::Put(put) => {
            assert_eq!(put.mod_rev, rev, "an event is of its batch's revision");
            format!("+{}={}", put.key, put.value.escape_ascii())
        }
        Event::Del(key) => format!("-{key}"),
    });
    (rev, words.collect())
}

/// Makes the store forget all revisions so far, with changes of a key that no case looks at.
pub(crate) async fn forget_history<S: ControlStore>(store: &S) {
    for _ in 0..=HISTORY_REVS {
        apply(store, vec![], vec![put("~filler", "")]).await;
    }
}

pub(crate) fn keys(kv: &[Versioned]) -> Vec<Key> {
    kv.iter().map(|found| found.key.clone()).collect()
}

#[cfg(test)]
mod tests {
    /// A case that no backend runs proves nothing.
    #[test]
    fn every_case_is_in_the_suite() {
        let suite = include_str!("conformance.rs");
        let parts = [
            ("txn", include_str!("conformance/txn.rs")),
            ("list", include_str!("conformance/list.rs")),
            ("watch", include_str!("conformance/watch.rs")),
            ("session", include_str!("conformance/session.rs")),
            ("restart", include_str!("conformance/restart.rs")),
        ];
        let mut count = 0;
        for (part, text) in parts {
            for line in text.lines() {
                let Some(rest) = line.strip_prefix("pub async fn ") else {
                    continue;
                };
                let (case, _) = rest.split_once('<').unwrap();
                assert!(
                    suite.contains(&format!(" {part}::{case}\n")),
                    "{part}::{case}"
                );
                count += 1;
            }
        }
        assert!(count >= 40, "{count}");
    }
}
