//! Reading a local control store: everything at one instant, or as it was at an earlier revision.
//!
//! Its readers and watches, and the writing thread, look through a [`View`]. It changes nothing.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;

use rocksdb::{Direction, IteratorMode, ReadOptions, Snapshot};

use super::row::{Change, DamagedRow, Head, Row, decode_changes};
use super::{HEAD_KEY, HISTORY, STATE, Shared};
use crate::error::ControlError;
use crate::store::{Cursor, Key, PAGE_BYTES_MAX, Page, Versioned};

/// The store at one instant.
pub(super) struct View<'a> {
    shared: &'a Shared,
    snapshot: Snapshot<'a>,
    pub(super) head: Head,
}

impl<'a> View<'a> {
    pub(super) fn of(shared: &'a Shared) -> Result<Self, ControlError> {
        shared.usable()?;
        let snapshot = shared.db.snapshot();
        let head = match snapshot.get_pinned(HEAD_KEY).map_err(fatal)? {
            Some(bytes) => Head::decode(&bytes).map_err(fatal)?,
            None => return Err(fatal(DamagedRow("there is no head"))),
        };
        Ok(Self {
            shared,
            snapshot,
            head,
        })
    }

    pub(super) fn row(&self, key: &Key) -> Result<Option<Row>, ControlError> {
        let state = self.shared.column_family(STATE);
        let bytes = self
            .snapshot
            .get_pinned_cf(state, key.as_bytes())
            .map_err(fatal)?;
        bytes
            .map(|bytes| Row::decode(&bytes).map_err(fatal))
            .transpose()
    }

    /// The rows of all keys from `start` on that begin with `prefix`.
    pub(super) fn rows(
        &self,
        prefix: &Key,
        start: &Key,
    ) -> impl Iterator<Item = Result<(Key, Row), ControlError>> + use<'_> {
        let mut options = ReadOptions::default();
        options.set_iterate_range(rocksdb::PrefixRange(prefix.as_bytes()));
        let state = self.shared.column_family(STATE);
        let from = IteratorMode::From(start.as_bytes(), Direction::Forward);
        self.snapshot
            .iterator_cf_opt(state, options, from)
            .map(|item| {
                let (key, bytes) = item.map_err(fatal)?;
                Ok((Key::new(key), Row::decode(&bytes).map_err(fatal)?))
            })
    }

    /// What each revision from `rev` on did.
    pub(super) fn changes(
        &self,
        rev: u64,
    ) -> impl Iterator<Item = Result<(u64, usize, Vec<Change>), ControlError>> + use<'_> {
        let history = self.shared.column_family(HISTORY);
        let start = rev.to_be_bytes();
        let from = IteratorMode::From(&start, Direction::Forward);
        self.snapshot.iterator_cf(history, from).map(|item| {
            let (rev, bytes) = item.map_err(fatal)?;
            let rev = <[u8; 8]>::try_from(&*rev);
            let rev = rev.map_err(|_| fatal(DamagedRow("a revision is not 8 bytes")))?;
            let changes = decode_changes(&bytes).map_err(fatal)?;
            Ok((u64::from_be_bytes(rev), bytes.len(), changes))
        })
    }

    /// A page at the cursor's revision: today's rows, with those that changed since put back to what they were then.
    pub(super) fn page(
        &self,
        prefix: &Key,
        cursor: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page, ControlError> {
        let rev = cursor.map_or(self.head.rev, |cursor| cursor.rev);
        // A later revision than there is: the cursor is of a store that is gone.
        if rev > self.head.rev || rev + 1 < self.head.oldest {
            return Err(ControlError::Compacted {
                oldest: self.head.oldest - 1,
            });
        }
        let after = cursor.map(|cursor| &cursor.after);
        let mut past = self.past(prefix, after, rev)?.into_iter().peekable();
        let start = after.map_or(prefix, |after| after.max(prefix));
        let mut live = self
            .rows(prefix, start)
            .skip_while(|item| matches!((item, after), (Ok((key, _)), Some(after)) if key <= after))
            .peekable();
        let (mut kv, mut bytes) = (Vec::<Versioned>::new(), 0);
        while let Some((key, row)) = first_of(&mut past, &mut live)? {
            let Some(row) = row else {
                continue;
            };
            if kv.len() == limit || bytes >= PAGE_BYTES_MAX {
                let after = kv.last().map(|last| last.key.clone());
                let next = after.map(|after| Cursor { rev, after });
                return Ok(Page { rev, kv, next });
            }
            bytes += key.as_bytes().len() + row.value.len();
            kv.push(row.versioned(key));
        }
        let next = None;
        Ok(Page { rev, kv, next })
    }

    /// The keys behind `after` that changed since `rev`, with their rows at `rev`.
    fn past(
        &self,
        prefix: &Key,
        after: Option<&Key>,
        rev: u64,
    ) -> Result<BTreeMap<Key, Option<Row>>, ControlError> {
        let mut past = BTreeMap::new();
        for item in self.changes(rev + 1) {
            for change in item?.2 {
                let is_later = after.is_none_or(|after| change.key > *after);
                if is_later && change.key.starts_with(prefix) {
                    // The first change after `rev` has seen the row of `rev`.
                    past.entry(change.key).or_insert(change.before);
                }
            }
        }
        Ok(past)
    }
}

/// The next key of two ordered lists. Where both have it the past counts; there, `None` is a key that was not there yet.
fn first_of(
    past: &mut Peekable<impl Iterator<Item = (Key, Option<Row>)>>,
    live: &mut Peekable<impl Iterator<Item = Result<(Key, Row), ControlError>>>,
) -> Result<Option<(Key, Option<Row>)>, ControlError> {
    let next_live = match live.peek() {
        Some(Ok((key, _))) => Some(key),
        Some(Err(error)) => return Err(error.clone()),
        None => None,
    };
    let Some((key, row)) = past.next_if(|(key, _)| next_live.is_none_or(|live| key <= live)) else {
        return Ok(live.next().transpose()?.map(|(key, row)| (key, Some(row))));
    };
    live.next_if(|item| matches!(item, Ok((live, _)) if *live == key));
    Ok(Some((key, row)))
}

pub(super) fn fatal(error: impl std::error::Error + Send + Sync + 'static) -> ControlError {
    ControlError::Fatal(Arc::new(error))
}
