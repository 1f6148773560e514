//! Rows that no flush has brought to RocksDB yet.
//!
//! [`Store`](super::Store) keeps them in front of RocksDB, which gets them with a flush and not before: what RocksDB holds was
//! synced in log and segments, whatever it flushes and whenever (write-ahead rule). A change costs a few insertions into
//! trees, rows that are changed again and again before a flush are written once, and what was written a moment ago is
//! read without a look into RocksDB.
//!
//! One memtable is *active*: it takes what is written. [`Memtables::seal`] begins a new one. The sealed ones never change, and
//! stay until a flush has brought them all to the disk. The newest of those stays on as *flushed* until the next flush, or
//! until nothing was changed for some time: RocksDB has its rows too, but to find one there takes ten times as long.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::{self, Peekable};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering as Memory};

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use rocksdb::{DB, DBIteratorWithThreadMode};
use smallvec::SmallVec;

use super::Row;
use super::key::{LocalTable, Table};
use crate::error::FsError;

/// Memory that a row takes besides its key and value: its place in the tree, an allocation.
const ROW_OVERHEAD_BYTES: usize = 96;

/// A table of either kind: a column family of RocksDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnyTable {
    Replicated(Table),
    Local(LocalTable),
}

impl AnyTable {
    pub(crate) const COUNT: usize = Table::ALL.len() + LocalTable::ALL.len();

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let replicated = Table::ALL.into_iter().map(Self::Replicated);
        replicated.chain(LocalTable::ALL.into_iter().map(Self::Local))
    }

    /// Below [`Self::COUNT`], and of no other table.
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Replicated(table) => table as usize,
            Self::Local(table) => Table::ALL.len() + table as usize,
        }
    }

    /// Column family.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Replicated(table) => table.name(),
            Self::Local(table) => table.name(),
        }
    }
}

impl From<Table> for AnyTable {
    fn from(table: Table) -> Self {
        Self::Replicated(table)
    }
}

impl From<LocalTable> for AnyTable {
    fn from(table: LocalTable) -> Self {
        Self::Local(table)
    }
}

/// A row's key. All but those of extended attributes fit without an allocation, so that walking down a tree looks at its
/// nodes and nowhere else.
pub(crate) type Key = SmallVec<[u8; 16]>;
/// A row, or `None` where one was deleted.
type Cell = Option<Bytes>;
/// Rows of one table.
type Tree = BTreeMap<Key, Cell>;

/// Changes of rows that are made together.
#[derive(Debug, Default)]
pub(crate) struct Batch(Vec<(AnyTable, Key, Cell)>);

impl Batch {
    pub(crate) fn put(&mut self, table: impl Into<AnyTable>, key: &[u8], value: Vec<u8>) {
        self.0
            .push((table.into(), Key::from_slice(key), Some(value.into())));
    }

    pub(crate) fn delete(&mut self, table: impl Into<AnyTable>, key: &[u8]) {
        self.0.push((table.into(), Key::from_slice(key), None));
    }
}

/// What was written between two seals.
#[derive(Debug, Default)]
pub(crate) struct Memtable {
    tables: [RwLock<Tree>; AnyTable::COUNT],
    bytes: AtomicUsize,
}

impl Memtable {
    fn tree(&self, table: AnyTable) -> RwLockReadGuard<'_, Tree> {
        self.tables[table.index()].read()
    }

    fn apply(&self, batch: Batch) {
        for (table, key, value) in batch.0 {
            let value_len = |value: &Cell| value.as_ref().map_or(0, Bytes::len);
            let (key_len, added) = (key.len(), value_len(&value));
            let before = self.tables[table.index()].write().insert(key, value);
            let grown = match &before {
                None => key_len + added + ROW_OVERHEAD_BYTES,
                Some(_) => added,
            };
            self.bytes.fetch_add(grown, Memory::Relaxed);
            if let Some(before) = &before {
                self.bytes.fetch_sub(value_len(before), Memory::Relaxed);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes.load(Memory::Relaxed) == 0
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Memory::Relaxed)
    }
}

/// The memtables of a store.
#[derive(Debug, Default)]
pub(crate) struct Memtables(RwLock<Stack>);

#[derive(Debug, Default)]
struct Stack {
    active: Arc<Memtable>,
    /// The newest first.
    sealed: Vec<Arc<Memtable>>,
    /// What the last flush brought to RocksDB: only to find rows faster that were changed a short while ago.
    flushed: Option<Arc<Memtable>>,
}

/// Memtables that were there at one moment, the newest first.
pub(crate) type Layers = Vec<Arc<Memtable>>;

impl Memtables {
    /// Makes all changes of a batch, seen as one by whoever seals.
    pub(crate) fn apply(&self, batch: Batch) {
        self.0.read().active.apply(batch);
    }

    /// What `with` makes of what is known of a row, `None` if that is that it was deleted; nothing if no memtable knows it.
    pub(crate) fn look<T>(
        &self,
        table: AnyTable,
        key: &[u8],
        with: impl FnOnce(Option<&[u8]>) -> T,
    ) -> Option<T> {
        let stack = self.0.read();
        let layers = iter::once(&stack.active).chain(&stack.sealed);
        look_in(layers.chain(&stack.flushed), table, key, with)
    }

    /// All of them now, and what `with` makes of RocksDB at the same moment.
    pub(crate) fn layers<T>(&self, with: impl FnOnce() -> T) -> (Layers, T) {
        let stack = self.0.read();
        let mut layers = Vec::with_capacity(1 + stack.sealed.len());
        layers.push(Arc::clone(&stack.active));
        layers.extend(stack.sealed.iter().cloned());
        (layers, with())
    }

    /// Begins a new active memtable. Returns the sealed ones, and what `with` makes of RocksDB at the same moment.
    pub(crate) fn seal<T>(&self, with: impl FnOnce() -> T) -> (Layers, T) {
        let mut stack = self.0.write();
        if !stack.active.is_empty() {
            let active = std::mem::take(&mut stack.active);
            stack.sealed.insert(0, active);
        }
        (stack.sealed.clone(), with())
    }

    /// These have been flushed: RocksDB has their rows.
    pub(crate) fn flushed(&self, flushed: &Layers) {
        let mut stack = self.0.write();
        stack
            .sealed
            .retain(|sealed| !flushed.iter().any(|flushed| Arc::ptr_eq(sealed, flushed)));
        if let Some(newest) = flushed.first() {
            stack.flushed = Some(Arc::clone(newest));
        }
    }

    /// Gives back the memory of what RocksDB has, too.
    pub(crate) fn forget_flushed(&self) {
        self.0.write().flushed = None;
    }

    /// Memory of those that no flush has brought to RocksDB yet, about.
    pub(crate) fn bytes(&self) -> u64 {
        let stack = self.0.read();
        (stack.active.bytes() + row_bytes(&stack.sealed)) as u64
    }
}

/// Memory that the rows of sealed memtables take, about, and more than a batch with them.
pub(crate) fn row_bytes(layers: &Layers) -> usize {
    layers.iter().map(|layer| layer.bytes()).sum()
}

/// [`Memtables::look`] in these, the newest first.
pub(crate) fn look_in<'a, T>(
    layers: impl IntoIterator<Item = &'a Arc<Memtable>>,
    table: AnyTable,
    key: &[u8],
    with: impl FnOnce(Option<&[u8]>) -> T,
) -> Option<T> {
    for layer in layers {
        if let Some(known) = layer.tree(table).get(key) {
            return Some(with(known.as_deref()));
        }
    }
    None
}

/// The rows of a table in sealed memtables, ascending: the newest of each key, deleted ones too.
pub(crate) fn merged(
    layers: &Layers,
    table: AnyTable,
    mut each: impl FnMut(&[u8], Option<&Bytes>),
) {
    let trees: Vec<_> = layers.iter().map(|layer| layer.tree(table)).collect();
    let mut heads: Vec<_> = trees.iter().map(|tree| tree.iter().peekable()).collect();
    loop {
        let next = heads.iter_mut().filter_map(|head| Some(&**head.peek()?.0));
        let Some(key) = next.min() else { return };
        let mut newest = None;
        for head in &mut heads {
            if let Some((_, value)) = head.next_if(|(found, _)| found.as_slice() == key)
                && newest.is_none()
            {
                newest = Some(value.as_ref());
            }
        }
        each(key, newest.expect("one of them has it"));
    }
}

/// In which order rows come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Ascending,
    Descending,
}

/// Rows of a table over memtables and RocksDB. A memtable's next row is looked for once the one before it was returned, so what
/// the caller changes behind the row that it got last is seen or not.
pub(crate) struct MergedRows<'a> {
    layers: Layers,
    table: AnyTable,
    /// Rows from here, up to before `to`.
    from: Key,
    to: Option<Key>,
    order: Order,
    /// Next row of each memtable.
    heads: Vec<Option<(Key, Cell)>>,
    /// `None`: RocksDB holds no row of the range.
    db: Option<Peekable<DBIteratorWithThreadMode<'a, DB>>>,
}

impl<'a> MergedRows<'a> {
    /// Rows with `from <= key`, and `key < to` if there is an end. `db` has the same bounds.
    pub(crate) fn new(
        layers: Layers,
        table: AnyTable,
        from: &[u8],
        to: Option<&[u8]>,
        order: Order,
        db: Option<DBIteratorWithThreadMode<'a, DB>>,
    ) -> Self {
        let mut rows = Self {
            layers,
            table,
            from: Key::from_slice(from),
            to: to.map(Key::from_slice),
            order,
            heads: Vec::new(),
            db: db.map(Iterator::peekable),
        };
        if rows.to.as_ref().is_none_or(|to| rows.from < *to) {
            let heads = 0..rows.layers.len();
            rows.heads = heads.map(|layer| rows.look(layer, None)).collect();
        }
        rows
    }

    /// The row of a memtable that comes after `behind`.
    fn look(&self, layer: usize, behind: Option<&[u8]>) -> Option<(Key, Cell)> {
        let tree = self.layers[layer].tree(self.table);
        let first = Bound::Included(&*self.from);
        let end = match &self.to {
            Some(to) => Bound::Excluded(&**to),
            None => Bound::Unbounded,
        };
        let found = match (self.order, behind) {
            (Order::Ascending, None) => tree.range::<[u8], _>((first, end)).next(),
            (Order::Ascending, Some(behind)) => {
                tree.range::<[u8], _>((Bound::Excluded(behind), end)).next()
            }
            (Order::Descending, None) => tree.range::<[u8], _>((first, end)).next_back(),
            (Order::Descending, Some(behind)) => tree
                .range::<[u8], _>((first, Bound::Excluded(behind)))
                .next_back(),
        };
        found.map(|(key, value)| (key.clone(), value.clone()))
    }

    fn comes_first(&self, one: &[u8], other: &[u8]) -> bool {
        match self.order {
            Order::Ascending => one.cmp(other) == Ordering::Less,
            Order::Descending => one.cmp(other) == Ordering::Greater,
        }
    }

    /// The memtable whose next row comes first; of equal ones the newest.
    fn first_head(&self) -> Option<usize> {
        let mut first: Option<(usize, &[u8])> = None;
        for (layer, head) in self.heads.iter().enumerate() {
            if let Some((key, _)) = head
                && first.is_none_or(|(_, best)| self.comes_first(key, best))
            {
                first = Some((layer, key));
            }
        }
        first.map(|(layer, _)| layer)
    }
}

impl Iterator for MergedRows<'_> {
    type Item = Result<Row, FsError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(layer) = self.first_head() else {
                let row = self.db.as_mut()?.next()?;
                return Some(row.map_err(FsError::from));
            };
            let (key, value) = self.heads[layer].take().expect("it has a next row");
            if let Some(db) = &mut self.db {
                match db.peek() {
                    None => {}
                    Some(Err(_)) => {
                        self.heads[layer] = Some((key, value));
                        return db.next().map(|row| row.map_err(FsError::from));
                    }
                    Some(Ok((in_db, _))) if **in_db == *key => drop(db.next()),
                    Some(Ok((in_db, _))) => {
                        let db_first = match self.order {
                            Order::Ascending => **in_db < *key,
                            Order::Descending => **in_db > *key,
                        };
                        if db_first {
                            let row = db.next();
                            self.heads[layer] = Some((key, value));
                            return row.map(|row| row.map_err(FsError::from));
                        }
                    }
                }
            }
            for other in 0..self.heads.len() {
                let is_behind = other == layer
                    || matches!(&self.heads[other], Some((found, _)) if *found == key);
                if is_behind {
                    self.heads[other] = self.look(other, Some(&key));
                }
            }
            if let Some(value) = value {
                return Some(Ok((Box::from(&*key), Box::from(&*value))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(
        memtables: &Memtables,
        from: &[u8],
        to: &[u8],
        order: Order,
    ) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (layers, ()) = memtables.layers(|| ());
        MergedRows::new(layers, Table::Xattr.into(), from, Some(to), order, None)
            .map(|row| row.map(|(key, value)| (key.into_vec(), value.into_vec())))
            .collect::<Result<_, _>>()
            .unwrap()
    }

    /// A few hundred changes of a dozen keys, sealed now and then: always what one map would say.
    #[test]
    fn all_memtables_together_are_one_map() {
        let memtables = Memtables::default();
        let mut map = BTreeMap::new();
        let mut state = 1_u64;
        for step in 0..600_u32 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let key = [u8::try_from(state >> 60).unwrap()];
            let mut batch = Batch::default();
            if state >> 40 & 3 == 0 {
                batch.delete(Table::Xattr, &key);
                map.remove(&key[..]);
            } else {
                batch.put(Table::Xattr, &key, step.to_le_bytes().to_vec());
                map.insert(key.to_vec(), step.to_le_bytes().to_vec());
            }
            memtables.apply(batch);
            if step % 50 == 49 {
                memtables.seal(|| ());
            }
            let known = memtables.look(Table::Xattr.into(), &key, |row| row.map(<[u8]>::to_vec));
            assert_eq!(known.flatten().as_ref(), map.get(&key[..]));
            let (from, to) = ([3], [12]);
            let expected: Vec<_> = map
                .range::<[u8], _>((Bound::Included(&from[..]), Bound::Excluded(&to[..])))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            assert_eq!(rows(&memtables, &from, &to, Order::Ascending), expected);
            let mut back = rows(&memtables, &from, &to, Order::Descending);
            back.reverse();
            assert_eq!(back, expected);
        }
        let (sealed, ()) = memtables.seal(|| ());
        let mut all = BTreeMap::new();
        merged(&sealed, Table::Xattr.into(), |key, value| {
            let fresh = all.insert(key.to_vec(), value.cloned());
            assert!(fresh.is_none(), "a key comes once");
        });
        all.retain(|_, value| value.is_some());
        assert_eq!(all.len(), map.len());
        assert!(
            all.iter()
                .all(|(key, value)| value.as_deref() == map.get(key).map(Vec::as_slice))
        );
        let look =
            |key: u8| memtables.look(Table::Xattr.into(), &[key], |row| row.map(<[u8]>::to_vec));
        let before: Vec<_> = (0..16).map(look).collect();
        memtables.flushed(&sealed);
        assert_eq!(memtables.bytes(), 0);
        for key in sealed[0].tree(Table::Xattr.into()).keys() {
            assert_eq!(look(key[0]), before[usize::from(key[0])]);
        }
        memtables.forget_flushed();
        assert_eq!(look(5), None);
    }

    #[test]
    fn a_range_that_is_empty_or_backwards_has_no_rows() {
        let memtables = Memtables::default();
        let mut batch = Batch::default();
        batch.put(Table::Xattr, &[5], vec![1]);
        memtables.apply(batch);
        assert!(rows(&memtables, &[5], &[5], Order::Ascending).is_empty());
        assert!(rows(&memtables, &[6], &[5], Order::Descending).is_empty());
    }
}
