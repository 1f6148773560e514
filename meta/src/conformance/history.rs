//! Random histories: the same steps on a store and on a model that is plainly right; every answer is compared.
//!
//! The model is a map that is copied at each revision. One caller, so each answer is determined; what concurrent callers may see is
//! for a linearizability checker.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::{Fixture, HISTORY_REVS, batch, open_session, soon};
use crate::error::ControlError;
use crate::store::{
    Cmp, ControlStore, Cursor, Event, Key, Op, Page, Session, SessionId, Txn, TxnOutcome,
    Versioned, Watch, list_all,
};

/// Few keys, some of them prefixes of others, so that steps meet.
const KEYS: [&str; 6] = ["/a", "/a/1", "/a/2", "/ab", "/b", "/c"];
const PREFIXES: [&str; 5] = ["", "/a", "/a/", "/b", "/none"];
/// Sessions that are open at most.
const SESSIONS: usize = 2;
/// Most steps of a history: enough to pass the bound of the store's own history.
const STEPS_MAX: usize = 80;

/// One step of a history; numbers choose among what there is at that moment.
#[derive(Clone, Debug)]
enum Step {
    Txn {
        when: Vec<Guard>,
        then: Vec<Change>,
        fetch: Vec<usize>,
    },
    Get {
        key: usize,
    },
    /// A page; with `resume`, the next one of the list that was begun last.
    List {
        prefix: usize,
        limit: usize,
        resume: bool,
    },
    /// A new watch from so many revisions back, read to the present.
    Watch {
        prefix: usize,
        back: u64,
    },
    Open {
        slot: usize,
    },
    Close {
        slot: usize,
    },
    Kill,
}

#[derive(Clone, Debug)]
enum Guard {
    Absent(usize),
    /// The key's revision as it is.
    Current(usize),
    Rev(usize, u64),
}

#[derive(Clone, Debug)]
struct Change {
    key: usize,
    /// `None`: delete.
    value: Option<u8>,
    session: Option<usize>,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..KEYS.len();
    let guard = prop_oneof![
        1 => key().prop_map(Guard::Absent),
        3 => key().prop_map(Guard::Current),
        1 => (key(), 0_u64..40).prop_map(|(key, rev)| Guard::Rev(key, rev)),
    ];
    let change = (
        key(),
        prop::option::weighted(0.7, any::<u8>()),
        prop::option::weighted(0.3, 0..SESSIONS),
    )
        .prop_map(|(key, value, session)| Change {
            key,
            value,
            session,
        });
    let txn = (
        prop::collection::vec(guard, 0..3),
        prop::collection::vec(change, 0..4),
        prop::collection::vec(key(), 0..4),
    )
        .prop_map(|(when, then, fetch)| Step::Txn { when, then, fetch });
    let list =
        (0..PREFIXES.len(), 1_usize..4, any::<bool>()).prop_map(|(prefix, limit, resume)| {
            Step::List {
                prefix,
                limit,
                resume,
            }
        });
    prop_oneof![
        12 => txn,
        2 => key().prop_map(|key| Step::Get { key }),
        4 => list,
        2 => (0..PREFIXES.len(), 0_u64..50).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        1 => (0..SESSIONS).prop_map(|slot| Step::Open { slot }),
        1 => (0..SESSIONS).prop_map(|slot| Step::Close { slot }),
        1 => Just(Step::Kill),
    ]
}

/// Runs `cases` random histories, each on a new store of a new fixture.
///
/// # Panics
/// With the shortest history found for which the store differs from the model.
pub fn random_histories<F: Fixture>(fixture: impl Fn() -> F, cases: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let history = prop::collection::vec(step(), 1..STEPS_MAX);
    let result = TestRunner::new(config).run(&history, |steps| {
        let fixture = fixture();
        let mut run = runtime.block_on(Run::start(&fixture));
        for step in steps {
            runtime.block_on(run.step(step))?;
        }
        runtime.block_on(run.finish())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

/// What a store must be like.
#[derive(Default)]
struct Model {
    /// The state at each revision, from 0.
    states: Vec<BTreeMap<Key, Versioned>>,
    /// The events of each revision, from 0.
    events: Vec<Vec<Event>>,
}

impl Model {
    fn rev(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    fn now(&self) -> &BTreeMap<Key, Versioned> {
        self.at(self.rev())
    }

    fn at(&self, rev: u64) -> &BTreeMap<Key, Versioned> {
        &self.states[index(rev)]
    }

    /// The oldest revision that a watch can start from.
    fn oldest(&self) -> u64 {
        (self.rev() + 1).saturating_sub(HISTORY_REVS).max(1)
    }

    fn txn(&mut self, txn: &Txn) -> TxnOutcome {
        let holds = txn.when.iter().all(|cmp| match cmp {
            Cmp::Absent(key) => !self.now().contains_key(key),
            Cmp::ModRev(key, rev) => self.now().get(key).is_some_and(|v| v.mod_rev == *rev),
        });
        if holds {
            self.apply(&txn.then);
        }
        let rev = self.rev();
        let kv = txn
            .fetch
            .iter()
            .filter_map(|key| self.now().get(key).cloned())
            .collect();
        if holds {
            TxnOutcome::Applied { rev, kv }
        } else {
            TxnOutcome::Refused { rev, kv }
        }
    }

    fn apply(&mut self, ops: &[Op]) {
        let rev = self.rev() + 1;
        let (mut state, mut events) = (self.now().clone(), Vec::new());
        for op in ops {
            match op {
                Op::Put(key, value, session) => {
                    let create_rev = state.get(key).map_or(rev, |v| v.create_rev);
                    let (key, value, session) = (key.clone(), value.clone(), *session);
                    let put = Versioned {
                        key: key.clone(),
                        value,
                        create_rev,
                        mod_rev: rev,
                        session,
                    };
                    state.insert(key, put.clone());
                    events.push(Event::Put(put));
                }
                Op::Del(key) => {
                    if state.remove(key).is_some() {
                        events.push(Event::Del(key.clone()));
                    }
                }
            }
        }
        if !events.is_empty() {
            self.states.push(state);
            self.events.push(events);
        }
    }

    fn end_session(&mut self, id: SessionId) {
        let tied = self.now().values().filter(|v| v.session == Some(id));
        let ops: Vec<Op> = tied.map(|v| Op::Del(v.key.clone())).collect();
        self.apply(&ops);
    }

    fn page(&self, prefix: &Key, rev: u64, after: Option<&Key>, limit: usize) -> Page {
        let mut left = self.at(rev).values().filter(|found| {
            found.key.starts_with(prefix) && after.is_none_or(|after| found.key > *after)
        });
        let kv: Vec<Versioned> = left.by_ref().take(limit).cloned().collect();
        let more = left.next().is_some();
        let after = kv.last().map(|last| last.key.clone()).filter(|_| more);
        Page {
            rev,
            kv,
            next: after.map(|after| Cursor { rev, after }),
        }
    }

    fn batches(&self, prefix: &Key, from_rev: u64) -> Vec<(u64, Vec<Event>)> {
        let under = |event: &&Event| match event {
            Event::Put(put) => put.key.starts_with(prefix),
            Event::Del(key) => key.starts_with(prefix),
        };
        (from_rev..=self.rev())
            .map(|rev| {
                (
                    rev,
                    self.events[index(rev)]
                        .iter()
                        .filter(under)
                        .cloned()
                        .collect(),
                )
            })
            .filter(|(_, events): &(u64, Vec<Event>)| !events.is_empty())
            .collect()
    }
}

fn index(rev: u64) -> usize {
    usize::try_from(rev).expect("histories are short")
}

fn same<T: PartialEq + fmt::Debug>(found: T, want: T) -> Result<(), TestCaseError> {
    prop_assert_eq!(found, want);
    Ok(())
}

struct Run<'a, F: Fixture> {
    fixture: &'a F,
    /// `None` only while it is being killed.
    store: Option<F::Store>,
    model: Model,
    sessions: [Option<Session>; SESSIONS],
    /// Prefix and cursor of the list that goes on.
    list: Option<(Key, Cursor)>,
    /// A watch of everything, which must have seen the whole history in the end, and how far it was read.
    watch: Watch,
    watched: u64,
}

impl<'a, F: Fixture> Run<'a, F> {
    async fn start(fixture: &'a F) -> Self {
        let store = fixture.create().await;
        let watch = store.watch("".into(), 1);
        let model = Model {
            states: vec![BTreeMap::new()],
            events: vec![Vec::new()],
        };
        let sessions = [const { None }; SESSIONS];
        Self {
            fixture,
            store: Some(store),
            model,
            sessions,
            list: None,
            watch,
            watched: 0,
        }
    }

    fn store(&self) -> &F::Store {
        self.store.as_ref().expect("it is not being killed")
    }

    async fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Txn { when, then, fetch } => {
                let txn = self.txn(when, then, fetch);
                let found = self.store().txn(txn.clone()).await.expect("an outcome");
                same(found, self.model.txn(&txn))
            }
            Step::Get { key } => {
                let key = Key::from(KEYS[key]);
                let found = self.store().get(&key).await.expect("a read is answered");
                same(
                    found,
                    (self.model.rev(), self.model.now().get(&key).cloned()),
                )
            }
            Step::List {
                prefix,
                limit,
                resume,
            } => self.list(prefix, limit, resume).await,
            Step::Watch { prefix, back } => self.watch_back(PREFIXES[prefix].into(), back).await,
            Step::Open { slot } => {
                self.close(slot).await;
                self.sessions[slot] = Some(open_session(self.store()).await);
                Ok(())
            }
            Step::Close { slot } => {
                self.close(slot).await;
                Ok(())
            }
            Step::Kill => {
                // When a killed holder's keys vanish is not the same for all stores; a case of its own looks at that.
                for slot in 0..SESSIONS {
                    self.close(slot).await;
                }
                self.read_watch().await?;
                self.watch = Box::pin(futures_util::stream::empty());
                let store = self.store.take().expect("it is not being killed");
                let store = self.fixture.kill_and_reopen(store).await;
                self.watch = store.watch("".into(), self.watched + 1);
                self.store = Some(store);
                Ok(())
            }
        }?;
        // Before it falls out of the history.
        if self.model.rev() - self.watched >= HISTORY_REVS / 2 {
            self.read_watch().await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<(), TestCaseError> {
        self.model
            .apply(&[Op::Put("/end".into(), Bytes::new(), None)]);
        let end = Op::Put("/end".into(), Bytes::new(), None);
        let outcome = self
            .store()
            .txn(Txn {
                then: vec![end],
                ..Txn::default()
            })
            .await;
        let (rev, kv) = (self.model.rev(), vec![]);
        same(
            outcome.expect("an outcome"),
            TxnOutcome::Applied { rev, kv },
        )?;
        self.read_watch().await?;
        let (rev, kv) = list_all(self.store(), &"".into()).await.expect("a list");
        same(
            (rev, kv),
            (
                self.model.rev(),
                self.model.now().values().cloned().collect(),
            ),
        )
    }

    fn txn(&self, when: Vec<Guard>, then: Vec<Change>, fetch: Vec<usize>) -> Txn {
        let when = when.into_iter().map(|guard| match guard {
            Guard::Absent(key) => Cmp::Absent(KEYS[key].into()),
            Guard::Current(key) => {
                let current = self.model.now().get(&Key::from(KEYS[key]));
                Cmp::ModRev(KEYS[key].into(), current.map_or(0, |found| found.mod_rev))
            }
            Guard::Rev(key, rev) => Cmp::ModRev(KEYS[key].into(), rev),
        });
        let mut seen = BTreeSet::new();
        let then = then
            .into_iter()
            .filter(|change| seen.insert(change.key))
            .map(|change| {
                let key = Key::from(KEYS[change.key]);
                let session = change.session.and_then(|slot| self.sessions[slot].as_ref());
                match change.value {
                    Some(value) => Op::Put(key, vec![value].into(), session.map(Session::id)),
                    None => Op::Del(key),
                }
            });
        let fetch = fetch.into_iter().map(|key| KEYS[key].into());
        Txn {
            when: when.collect(),
            then: then.collect(),
            fetch: fetch.collect(),
        }
    }

    async fn list(
        &mut self,
        prefix: usize,
        limit: usize,
        resume: bool,
    ) -> Result<(), TestCaseError> {
        let (prefix, cursor) = match self.list.take() {
            Some((prefix, cursor)) if resume => (prefix, Some(cursor)),
            Some(_) | None => (PREFIXES[prefix].into(), None),
        };
        let rev = cursor
            .as_ref()
            .map_or_else(|| self.model.rev(), |cursor| cursor.rev);
        match self.store().list(&prefix, cursor.as_ref(), limit).await {
            Err(ControlError::Compacted { .. }) => {
                prop_assert!(
                    rev + 1 < self.model.oldest(),
                    "revision {} is still kept",
                    rev
                );
            }
            Ok(page) => {
                let after = cursor.as_ref().map(|cursor| &cursor.after);
                same(&page, &self.model.page(&prefix, rev, after, limit))?;
                self.list = page.next.map(|next| (prefix, next));
            }
            Err(error) => panic!("a list is answered: {error:?}"),
        }
        Ok(())
    }

    /// Reads a new watch up to the present; of revisions that are gone, nothing.
    async fn watch_back(&self, prefix: Key, back: u64) -> Result<(), TestCaseError> {
        let from_rev = self
            .model
            .rev()
            .saturating_sub(back)
            .max(self.model.oldest());
        let mut watch = self.store().watch(prefix.clone(), from_rev);
        for (rev, events) in self.model.batches(&prefix, from_rev) {
            let found = batch(&mut watch).await;
            same((found.rev, sorted(found.events)), (rev, sorted(events)))?;
        }
        Ok(())
    }

    async fn read_watch(&mut self) -> Result<(), TestCaseError> {
        for (rev, events) in self.model.batches(&"".into(), self.watched + 1) {
            let found = batch(&mut self.watch).await;
            same((found.rev, sorted(found.events)), (rev, sorted(events)))?;
        }
        self.watched = self.model.rev();
        Ok(())
    }

    async fn close(&mut self, slot: usize) {
        if let Some(session) = self.sessions[slot].take() {
            let id = session.id();
            soon(session.close()).await;
            self.model.end_session(id);
        }
    }
}

/// By key: in which order a session's keys are deleted is not said.
fn sorted(mut events: Vec<Event>) -> Vec<Event> {
    events.sort_by(|a, b| key_of(a).cmp(key_of(b)));
    events
}

fn key_of(event: &Event) -> &Key {
    match event {
        Event::Put(put) => &put.key,
        Event::Del(key) => key,
    }
}
