//! The control store: one trait, and the contract that every backend keeps.
//!
//! [`Catalog`](crate::Catalog) calls it; [`local`] is the backend of a single node. The suite in `conformance` (a cargo
//! feature) holds each backend to what is written here. The contract holds no lock, no clock and no time of a server.
//!
//! # Keys and revisions
//! A store maps keys to values. Keys are byte strings, ordered bytewise; by convention they read like paths. A store is at
//! a *revision*: 0 when empty, one more for each applied transaction that changed something, all of whose changes have
//! that revision. A put is a change also if it puts what is there; deleting a key that is not there is none. A refused
//! transaction makes no revision. A key remembers the revision that created it and the one that last put it.
//!
//! # Order
//! Transactions, reads and lists are linearizable: each takes effect at one instant between its call and its answer. Yet a
//! read only tells what was; whoever acts on it guards the act with [`Cmp::ModRev`] or [`Cmp::Absent`].
//!
//! # Limits
//! They are in the contract, chosen so that etcd's defaults (128 operations, 1.5 MiB a request) keep them too. A request
//! beyond one is answered [`ControlError::Limit`] by every backend, before anything is done.

pub mod local;

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::sync::watch;

use crate::error::{ControlError, LimitExceeded, WatchError};

/// Longest key, bytes. Names of at most 255 bytes under a few fixed words fit with room.
pub const KEY_BYTES_MAX: usize = 1024;
/// Largest value, bytes. A record that grows past it belongs under several keys.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// Most guards of a transaction, and most operations and fetches together: etcd's `--max-txn-ops`.
pub const TXN_OPS_MAX: usize = 128;
/// Largest transaction: bytes of all its keys and values. etcd's request limit is 1.5 MiB with its encoding.
pub const TXN_BYTES_MAX: usize = 1 << 20;
/// Most keys of one page of a list, whatever the caller asks for.
pub const PAGE_KEYS_MAX: usize = 1000;
/// A page of a list ends with the key that brings its keys and values past this many bytes.
pub const PAGE_BYTES_MAX: usize = 1 << 20;
/// Shortest time to live of a session: etcd raises shorter ones.
pub const SESSION_TTL_MIN: Duration = Duration::from_secs(2);
/// Longest time to live of a session.
pub const SESSION_TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A key, or the prefix of keys: 1 to [`KEY_BYTES_MAX`] bytes. A prefix may be empty: all keys.
///
/// Any bytes can be wrapped; the store checks the length.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

impl Key {
    /// The key of these bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it begins with `prefix`.
    pub fn starts_with(&self, prefix: &Self) -> bool {
        self.0.starts_with(&prefix.0)
    }

    pub(crate) fn check(&self) -> Result<(), LimitExceeded> {
        match self.0.len() {
            0 => Err(LimitExceeded::KeyEmpty),
            1..=KEY_BYTES_MAX => Ok(()),
            len => Err(LimitExceeded::KeyTooLong { len }),
        }
    }

    pub(crate) fn check_prefix(&self) -> Result<(), LimitExceeded> {
        if self.0.is_empty() {
            Ok(())
        } else {
            self.check()
        }
    }
}

impl From<&'static str> for Key {
    fn from(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_ascii(), f)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Name of a session. Never 0, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A key and its value, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Bytes,
    /// The revision that created the key (anew, if it had been deleted).
    pub create_rev: u64,
    /// The revision that last put it.
    pub mod_rev: u64,
    /// The session whose end deletes it.
    pub session: Option<SessionId>,
}

/// A guard: what must hold for a transaction to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cmp {
    /// The key does not exist.
    Absent(Key),
    /// The key exists, and this revision last put it. 0 never holds.
    ModRev(Key, u64),
}

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Gives the key this value. With a session, the key ends with it; without one, an earlier tie is undone.
    Put(Key, Bytes, Option<SessionId>),
    /// Deletes the key, if it is there.
    Del(Key),
}

impl Op {
    /// The key it changes.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _, _) | Self::Del(key) => key,
        }
    }
}

/// A guarded transaction: if all of `when` holds, all of `then` is done, else nothing.
///
/// A key occurs at most once in `then`. Without guards it is always applied; without changes it reads `fetch` at one
/// revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must hold.
    pub when: Vec<Cmp>,
    /// What is then done.
    pub then: Vec<Op>,
    /// The keys whose values are answered in either case, as they are after the transaction.
    pub fetch: Vec<Key>,
}

impl Txn {
    /// Checks the contract's limits. Every backend calls it first.
    pub fn check(&self) -> Result<(), LimitExceeded> {
        if self.when.len() > TXN_OPS_MAX {
            return Err(LimitExceeded::TooManyGuards {
                count: self.when.len(),
            });
        }
        let count = self.then.len() + self.fetch.len();
        if count > TXN_OPS_MAX {
            return Err(LimitExceeded::TooManyOps { count });
        }
        let mut bytes = 0;
        for cmp in &self.when {
            let (Cmp::Absent(key) | Cmp::ModRev(key, _)) = cmp;
            key.check()?;
            bytes += key.as_bytes().len();
        }
        let mut changed = BTreeSet::new();
        for op in &self.then {
            op.key().check()?;
            bytes += op.key().as_bytes().len();
            if let Op::Put(key, value, _) = op {
                if value.len() > VALUE_BYTES_MAX {
                    return Err(LimitExceeded::ValueTooLong {
                        key: key.clone(),
                        len: value.len(),
                    });
                }
                bytes += value.len();
            }
            if !changed.insert(op.key()) {
                return Err(LimitExceeded::DuplicateKey {
                    key: op.key().clone(),
                });
            }
        }
        for key in &self.fetch {
            key.check()?;
            bytes += key.as_bytes().len();
        }
        if bytes > TXN_BYTES_MAX {
            return Err(LimitExceeded::TxnTooBig { bytes });
        }
        Ok(())
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// The guards held, the changes are durable.
    Applied {
        /// The revision of the changes; the store's revision if nothing changed.
        rev: u64,
        /// The fetched keys that exist, in the order of `fetch`.
        kv: Vec<Versioned>,
    },
    /// A guard did not hold; nothing was changed.
    Refused {
        /// The store's revision.
        rev: u64,
        /// The fetched keys that exist, in the order of `fetch`.
        kv: Vec<Versioned>,
    },
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The revision that the list shows, the same on all its pages.
    pub rev: u64,
    /// Keys in order, with their values at `rev`.
    pub kv: Vec<Versioned>,
    /// Where the next page starts; `None`: this was the last.
    pub next: Option<Cursor>,
}

/// Where a list goes on. May be kept and used after the store was reopened, and with another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The revision that the list shows.
    pub rev: u64,
    /// The last key that was answered.
    pub after: Key,
}

/// All changes of one revision under a watched prefix, in the order of the transaction's operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// The revision. To resume after this batch: `from_rev = rev + 1`.
    pub rev: u64,
    /// At least one.
    pub events: Vec<Event>,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key was put.
    Put(Versioned),
    /// The key was deleted, or its session ended.
    Del(Key),
}

/// What [`ControlStore::watch`] returns. Dropping it ends the watch.
pub type Watch = BoxStream<'static, Result<WatchBatch, WatchError>>;

/// A small, strongly consistent key/value store. The module's documentation has the rest of the contract.
///
/// Dropping the future of a call does not take the call back: what [`txn`](Self::txn) would have answered is then
/// unknown, see [`ControlError::Unknown`].
pub trait ControlStore: Send + Sync + 'static {
    /// The store's revision, and the key's value at it.
    fn get(
        &self,
        key: &Key,
    ) -> impl Future<Output = Result<(u64, Option<Versioned>), ControlError>> + Send;

    /// One page of the keys that begin with `prefix`: at most `limit` keys (at most [`PAGE_KEYS_MAX`], and about
    /// [`PAGE_BYTES_MAX`]), and at least one if any is left.
    ///
    /// `cursor` is the `next` of the page before: all pages show the revision of the first one, whatever was changed in
    /// between. A revision is shown as long as a watch could still resume behind it; after that the answer is
    /// [`ControlError::Compacted`], and the caller starts anew ([`list_all`] does).
    fn list(
        &self,
        prefix: &Key,
        cursor: Option<&Cursor>,
        limit: usize,
    ) -> impl Future<Output = Result<Page, ControlError>> + Send;

    /// Does a guarded transaction: atomic, and durable before it is answered.
    fn txn(&self, txn: Txn) -> impl Future<Output = Result<TxnOutcome, ControlError>> + Send;

    /// Every change under `prefix` from revision `from_rev` on (0 is as good as 1), in order, none skipped, none twice, each
    /// only after it is durable. Nothing is delivered below `from_rev`, also if the store is not there yet.
    ///
    /// The stream ends with its first error, and only with an error. A store keeps a bounded number of past revisions; a
    /// watch that falls out of them hears [`WatchError::Compacted`].
    fn watch(&self, prefix: Key, from_rev: u64) -> Watch;

    /// Opens a session, which keeps itself alive while it is held.
    ///
    /// It ends when it is closed or dropped, or when its holder has vanished: then no earlier than `ttl` after the store
    /// last heard of it, and not much later (a local store lives in the process of its holders; it ends the sessions of an
    /// earlier process when it is opened). The end deletes all keys put with it, in one revision.
    fn session(&self, ttl: Duration) -> impl Future<Output = Result<Session, ControlError>> + Send;
}

impl<S: ControlStore> ControlStore for Arc<S> {
    fn get(
        &self,
        key: &Key,
    ) -> impl Future<Output = Result<(u64, Option<Versioned>), ControlError>> + Send {
        S::get(self, key)
    }

    fn list(
        &self,
        prefix: &Key,
        cursor: Option<&Cursor>,
        limit: usize,
    ) -> impl Future<Output = Result<Page, ControlError>> + Send {
        S::list(self, prefix, cursor, limit)
    }

    fn txn(&self, txn: Txn) -> impl Future<Output = Result<TxnOutcome, ControlError>> + Send {
        S::txn(self, txn)
    }

    fn watch(&self, prefix: Key, from_rev: u64) -> Watch {
        S::watch(self, prefix, from_rev)
    }

    fn session(&self, ttl: Duration) -> impl Future<Output = Result<Session, ControlError>> + Send {
        S::session(self, ttl)
    }
}

/// A held session. Dropping it asks the store to end it, without waiting.
pub struct Session {
    id: SessionId,
    alive: watch::Receiver<()>,
    end: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Session {
    /// For backends: the session ends when the sender of `alive` is dropped; `end` asks for that and must not block.
    pub fn new(
        id: SessionId,
        alive: watch::Receiver<()>,
        end: impl FnOnce() + Send + Sync + 'static,
    ) -> Self {
        Self {
            id,
            alive,
            end: Some(Box::new(end)),
        }
    }

    /// Its name, for [`Op::Put`].
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Returns once the session is over, by whatever cause: its keys are gone, or the store is (they go when it comes
    /// back). Whatever the holder did on the strength of the session it stops.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut alive = self.alive.clone();
        async move { while alive.changed().await.is_ok() {} }
    }

    /// Ends it, and returns once it is over.
    pub async fn close(self) {
        let ended = self.ended();
        drop(self);
        ended.await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// How often [`list_all`] starts anew when the store forgets the revision under it: more means that the store changes
/// faster than it can be read.
const LIST_TRIES: u32 = 5;

/// All keys under `prefix` at one revision, and the revision; page by page.
///
/// # Errors
/// As [`ControlStore::list`]; [`ControlError::Compacted`] only after several tries.
pub async fn list_all<S: ControlStore>(
    store: &S,
    prefix: &Key,
) -> Result<(u64, Vec<Versioned>), ControlError> {
    let mut tries = 0;
    let mut all = Vec::new();
    let mut cursor = None;
    loop {
        match store.list(prefix, cursor.as_ref(), PAGE_KEYS_MAX).await {
            Ok(mut page) => {
                all.append(&mut page.kv);
                if page.next.is_none() {
                    return Ok((page.rev, all));
                }
                cursor = page.next;
            }
            Err(ControlError::Compacted { .. }) if tries < LIST_TRIES => {
                tries += 1;
                all.clear();
                cursor = None;
            }
            Err(error) => return Err(error),
        }
    }
}
