//! The thread that makes all changes of a local control store: guards, one synced write, sessions.
//!
//! [`LocalStore`](super::LocalStore) starts it and sends it jobs through a bounded queue; it ends with the store.
//!
//! Invariant: `head` is what the database says, and nobody else writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use rocksdb::{WriteBatch, WriteOptions};
use tokio::sync::{mpsc, watch};
use tracing::warn;
use uuid::Uuid;

use super::mark::Mark;
use super::row::{Change, DamagedRow, Head, Row, encode_changes};
use super::view::{View, fatal};
use super::{HEAD_KEY, HISTORY, Job, LocalError, Measures, SESSIONS_MAX, STATE, Shared};
use crate::error::{Cause, ControlError};
use crate::store::{Cmp, Key, Op, Session, SessionId, Txn, TxnOutcome, Versioned};

/// The thread that makes all changes.
pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Job>,
    /// Weak: the queue ends with the store, not with its last session.
    jobs: mpsc::WeakSender<Job>,
    head: Head,
    mark: Mark,
    measures: Measures,
    sessions: BTreeMap<SessionId, OpenSession>,
}

struct OpenSession {
    keys: BTreeSet<Key>,
    /// Dropped with it: tells the holder.
    _alive: watch::Sender<()>,
}

impl Writer {
    pub(super) fn new(
        shared: &Arc<Shared>,
        queue: mpsc::Receiver<Job>,
        jobs: mpsc::WeakSender<Job>,
        (head, mark): (Head, Mark),
        measures: Measures,
    ) -> Self {
        let (shared, sessions) = (Arc::clone(shared), BTreeMap::new());
        Self {
            shared,
            queue,
            jobs,
            head,
            mark,
            measures,
            sessions,
        }
    }

    pub(super) fn run(mut self) {
        while let Some(job) = self.queue.blocking_recv() {
            // Whoever no longer waits for the answer does not need it.
            match job {
                Job::Txn(txn, done) => drop(done.send(self.apply(txn))),
                Job::Session(done) => drop(done.send(self.open_session())),
                Job::Wake => {}
            }
            self.end_sessions();
        }
    }

    fn apply(&mut self, txn: Txn) -> Result<TxnOutcome, ControlError> {
        self.shared.usable()?;
        let shared = Arc::clone(&self.shared);
        let view = View::of(&shared)?;
        assert_eq!(view.head, self.head, "nobody else writes");
        for cmp in &txn.when {
            let holds = match cmp {
                Cmp::Absent(key) => view.row(key)?.is_none(),
                Cmp::ModRev(key, rev) => view.row(key)?.is_some_and(|row| row.mod_rev == *rev),
            };
            if !holds {
                let kv = fetch(&view, txn.fetch, &[])?;
                return Ok(TxnOutcome::Refused {
                    rev: self.head.rev,
                    kv,
                });
            }
        }
        let changes = self.changes(&view, txn.then)?;
        // Before the write, so that a failing read leaves no doubt about it.
        let kv = fetch(&view, txn.fetch, &changes)?;
        if changes.is_empty() {
            return Ok(TxnOutcome::Applied {
                rev: self.head.rev,
                kv,
            });
        }
        if changes.iter().any(|change| change.after.is_some()) {
            self.check_free()?;
        }
        let rev = self.commit(&changes)?;
        Ok(TxnOutcome::Applied { rev, kv })
    }

    /// What the operations do to the rows at the next revision.
    fn changes(&self, view: &View<'_>, ops: Vec<Op>) -> Result<Vec<Change>, ControlError> {
        let rev = self.head.rev + 1;
        let mut changes = Vec::with_capacity(ops.len());
        for op in ops {
            let before = view.row(op.key())?;
            match op {
                Op::Put(key, value, session) => {
                    if let Some(ended) = session.filter(|id| !self.sessions.contains_key(id)) {
                        return Err(ControlError::SessionEnded(ended));
                    }
                    let create_rev = before.as_ref().map_or(rev, |row| row.create_rev);
                    let after = Some(Row {
                        create_rev,
                        mod_rev: rev,
                        session,
                        value,
                    });
                    changes.push(Change { key, before, after });
                }
                Op::Del(key) if before.is_some() => {
                    changes.push(Change {
                        key,
                        before,
                        after: None,
                    });
                }
                Op::Del(_) => {}
            }
        }
        Ok(changes)
    }

    fn check_free(&self) -> Result<(), ControlError> {
        match self.shared.directory.free_bytes() {
            Ok(free) if free >= self.measures.put_free_bytes_min => Ok(()),
            Ok(_) => Err(ControlError::Unavailable(Arc::new(LocalError::Full))),
            Err(error) => Err(ControlError::Unavailable(Arc::new(error))),
        }
    }

    /// Makes the changes durable as one revision, and tells watches.
    fn commit(&mut self, changes: &[Change]) -> Result<u64, ControlError> {
        let shared = Arc::clone(&self.shared);
        let (state, history) = (shared.column_family(STATE), shared.column_family(HISTORY));
        let mut head = self.head;
        head.rev += 1;
        let mut batch = WriteBatch::default();
        for Change { key, after, .. } in changes {
            match after {
                Some(row) => batch.put_cf(state, key.as_bytes(), row.encode()),
                None => batch.delete_cf(state, key.as_bytes()),
            }
        }
        let event = encode_changes(changes);
        head.history_bytes += event.len() as u64;
        batch.put_cf(history, head.rev.to_be_bytes(), event);
        self.forget(&mut head, &mut batch)?;
        batch.put(HEAD_KEY, head.encode());

        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        if let Err(error) = shared.db.write_opt(batch, &synced) {
            let cause: Cause = Arc::new(error);
            shared.fail(Arc::clone(&cause));
            return Err(ControlError::Unknown(cause));
        }
        // The store is whole without it: only the next open knows less.
        if let Err(error) = self.mark.set(head.rev) {
            warn!(%error, "the control store's mark is not written");
        }
        self.head = head;
        self.note_sessions(changes);
        shared
            .progress
            .send_modify(|progress| progress.rev = head.rev);
        Ok(head.rev)
    }

    /// Drops the oldest revisions beyond the history's bounds; the newest always stays.
    fn forget(&self, head: &mut Head, batch: &mut WriteBatch) -> Result<(), ControlError> {
        let history = self.shared.column_family(HISTORY);
        while head.oldest < head.rev
            && (head.rev - head.oldest >= self.measures.history_revs_max
                || head.history_bytes > self.measures.history_bytes_max)
        {
            let key = head.oldest.to_be_bytes();
            let event = self.shared.db.get_pinned_cf(history, key).map_err(fatal)?;
            let event = event.ok_or_else(|| fatal(DamagedRow("the history has a gap")))?;
            head.history_bytes = head.history_bytes.saturating_sub(event.len() as u64);
            head.oldest += 1;
            batch.delete_cf(history, key);
        }
        Ok(())
    }

    fn note_sessions(&mut self, changes: &[Change]) {
        let tie = |row: &Option<Row>| row.as_ref().and_then(|row| row.session);
        for change in changes {
            if let Some(session) = tie(&change.before).and_then(|id| self.sessions.get_mut(&id)) {
                session.keys.remove(&change.key);
            }
            if let Some(session) = tie(&change.after).and_then(|id| self.sessions.get_mut(&id)) {
                session.keys.insert(change.key.clone());
            }
        }
    }

    fn open_session(&mut self) -> Result<Session, ControlError> {
        self.shared.usable()?;
        if self.sessions.len() >= SESSIONS_MAX {
            return Err(ControlError::Unavailable(Arc::new(LocalError::Sessions)));
        }
        // Random, so that it is no session of an earlier process; never 0, since a version 4 uuid has bits set in each half.
        let (_, id) = Uuid::new_v4().as_u64_pair();
        let id = SessionId(id);
        let (alive, alive_rx) = watch::channel(());
        let open = OpenSession {
            keys: BTreeSet::new(),
            _alive: alive,
        };
        assert!(
            self.sessions.insert(id, open).is_none(),
            "62 random bits do not repeat"
        );
        let (shared, jobs) = (Arc::downgrade(&self.shared), self.jobs.clone());
        Ok(Session::new(id, alive_rx, move || {
            let (Some(shared), Some(jobs)) = (shared.upgrade(), jobs.upgrade()) else {
                return; // The store is gone, and with it the session; the next open deletes its keys.
            };
            shared
                .ended
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(id);
            // If the queue is full the thread has work, and looks after it.
            let _ = jobs.try_send(Job::Wake);
        }))
    }

    fn end_sessions(&mut self) {
        let ended = {
            let mut ended = self
                .shared
                .ended
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *ended)
        };
        for id in ended {
            let Some(session) = self.sessions.get(&id) else {
                continue;
            };
            let keys = session.keys.clone();
            if let Err(error) = self.delete_keys(keys) {
                // The next open deletes them; until then nothing must be answered that shows them.
                self.shared.fail(Arc::new(error));
            }
            self.sessions.remove(&id);
        }
    }

    pub(super) fn end_earlier_sessions(&mut self) -> Result<(), ControlError> {
        let mut keys = BTreeSet::new();
        let all = Key::from("");
        for item in View::of(&self.shared)?.rows(&all, &all) {
            let (key, row) = item?;
            if row.session.is_some() {
                keys.insert(key);
            }
        }
        self.delete_keys(keys)
    }

    fn delete_keys(&mut self, keys: BTreeSet<Key>) -> Result<(), ControlError> {
        self.shared.usable()?;
        let shared = Arc::clone(&self.shared);
        let changes = self.changes(&View::of(&shared)?, keys.into_iter().map(Op::Del).collect())?;
        if !changes.is_empty() {
            self.commit(&changes)?;
        }
        Ok(())
    }
}

/// The values of `keys` as they are after `changes`.
fn fetch(
    view: &View<'_>,
    keys: Vec<Key>,
    changes: &[Change],
) -> Result<Vec<Versioned>, ControlError> {
    let mut kv = Vec::with_capacity(keys.len());
    for key in keys {
        let row = match changes.iter().find(|change| change.key == key) {
            Some(change) => change.after.clone(),
            None => view.row(&key)?,
        };
        kv.extend(row.map(|row| row.versioned(key)));
    }
    Ok(kv)
}
