//! One record in the making: reads see the changes made so far, and nothing is written until it is committed.
//!
//! [`crate::volume`]'s operations build one under the volume's write lock. Every row that is changed is read first, since
//! the digest and the books need to know what was there.

use std::collections::{BTreeMap, btree_map};

use hafs_protocol::PieceId;

use crate::apply::Change;
use crate::error::FsError;
use crate::record::{PieceParts, RECORD_MUTATIONS_MAX};
use crate::store::Store;
use crate::store::key::{
    Dentry, Extent, Inode, NAME_COLLISIONS_MAX, Place, Table, dentry_key, extent_key, ino_key,
    name_cookie, row_body,
};
use crate::store::memtable::Key;
use crate::types::Ino;

/// A piece that the record brings, and where this copy put it.
#[derive(Clone, Debug)]
pub(crate) struct NewPiece {
    pub(crate) id: PieceId,
    pub(crate) ino: Ino,
    pub(crate) file_offset: u64,
    pub(crate) len: u32,
    pub(crate) hash: [u8; 32],
    pub(crate) place: Place,
}

impl NewPiece {
    /// As the record names it.
    pub(crate) fn parts(&self) -> PieceParts<'_> {
        PieceParts {
            id: self.id,
            ino: self.ino,
            file_offset: self.file_offset,
            len: self.len,
            hash: &self.hash,
            inline: match &self.place {
                Place::Inline(bytes) => Some(bytes),
                Place::Segment(_) => None,
            },
        }
    }
}

/// What is known of a row.
#[derive(Debug)]
struct Entry {
    /// As stored now.
    old: Option<Vec<u8>>,
    /// `Some` if the transaction wrote (`Some(body)`) or removed (`None`) it.
    new: Option<Option<Vec<u8>>>,
}

impl Entry {
    fn body(&self) -> Result<Option<&[u8]>, FsError> {
        match (&self.new, &self.old) {
            (Some(new), _) => Ok(new.as_deref()),
            (None, Some(old)) => row_body(old).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// A name that was found.
#[derive(Debug)]
pub(crate) struct FoundName {
    pub(crate) cookie: u64,
    pub(crate) dentry: Dentry,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Txn<'a> {
    store: &'a Store,
    entries: BTreeMap<(Table, Key), Entry>,
    pub(crate) pieces: Vec<NewPiece>,
    next_ino: Ino,
}

impl<'a> Txn<'a> {
    /// `next_ino` is the lowest inode number never given out.
    pub(crate) fn new(store: &'a Store, next_ino: Ino) -> Self {
        Self {
            store,
            entries: BTreeMap::new(),
            pieces: Vec::new(),
            next_ino,
        }
    }

    /// A number for a new inode.
    pub(crate) fn take_ino(&mut self) -> Ino {
        let ino = self.next_ino;
        self.next_ino = Ino(ino.0 + 1);
        ino
    }

    fn entry(&mut self, table: Table, key: &[u8]) -> Result<&mut Entry, FsError> {
        match self.entries.entry((table, Key::from_slice(key))) {
            btree_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            btree_map::Entry::Vacant(vacant) => {
                let old = self.store.raw(table, key)?;
                Ok(vacant.insert(Entry { old, new: None }))
            }
        }
    }

    /// A row's body, with the changes made so far.
    pub(crate) fn body(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        Ok(self.entry(table, key)?.body()?.map(<[u8]>::to_vec))
    }

    pub(crate) fn put(&mut self, table: Table, key: &[u8], body: Vec<u8>) -> Result<(), FsError> {
        self.entry(table, key)?.new = Some(Some(body));
        Ok(())
    }

    pub(crate) fn del(&mut self, table: Table, key: &[u8]) -> Result<(), FsError> {
        self.entry(table, key)?.new = Some(None);
        Ok(())
    }

    /// An inode that must be there.
    pub(crate) fn inode(&mut self, ino: Ino) -> Result<Inode, FsError> {
        match self.entry(Table::Inode, &ino_key(ino))?.body()? {
            Some(body) => Inode::decode(body),
            None => Err(FsError::Stale(ino)),
        }
    }

    pub(crate) fn put_inode(&mut self, ino: Ino, inode: &Inode) -> Result<(), FsError> {
        self.put(Table::Inode, &ino_key(ino), inode.encode())
    }

    /// Removes an orphan for good.
    pub(crate) fn del_inode(&mut self, ino: Ino) -> Result<(), FsError> {
        self.del(Table::Inode, &ino_key(ino))?;
        self.del(Table::Orphan, &ino_key(ino))
    }

    pub(crate) fn put_extent(
        &mut self,
        ino: Ino,
        offset: u64,
        extent: &Extent,
    ) -> Result<(), FsError> {
        self.put(Table::Extent, &extent_key(ino, offset), extent.encode())
    }

    /// Removes an extent that was read as `raw`.
    pub(crate) fn del_extent(&mut self, ino: Ino, offset: u64, raw: &[u8]) {
        let id = (Table::Extent, Key::from_slice(&extent_key(ino, offset)));
        let entry = self.entries.entry(id).or_insert_with(|| Entry {
            old: Some(raw.to_vec()),
            new: None,
        });
        entry.new = Some(None);
    }

    /// A name in a directory.
    pub(crate) fn find(&mut self, parent: Ino, name: &[u8]) -> Result<Option<FoundName>, FsError> {
        find_name(name, |cookie| {
            self.body(Table::Dentry, &dentry_key(parent, cookie))
        })
        .map(|(found, _)| found)
    }

    /// Puts a name that is not there.
    pub(crate) fn add_name(&mut self, parent: Ino, dentry: &Dentry) -> Result<(), FsError> {
        let (found, free) = find_name(&dentry.name, |cookie| {
            self.body(Table::Dentry, &dentry_key(parent, cookie))
        })?;
        assert!(found.is_none(), "the name was looked up before");
        let free = free.ok_or(FsError::NoSpace)?;
        self.put(Table::Dentry, &dentry_key(parent, free), dentry.encode())
    }

    /// Lets a name that is there point elsewhere.
    pub(crate) fn replace_name(
        &mut self,
        parent: Ino,
        cookie: u64,
        dentry: &Dentry,
    ) -> Result<(), FsError> {
        self.put(Table::Dentry, &dentry_key(parent, cookie), dentry.encode())
    }

    /// Removes a name. Names of equal hash stay without a gap, so that a lookup may stop at the first free place.
    pub(crate) fn remove_name(&mut self, parent: Ino, cookie: u64) -> Result<(), FsError> {
        let mut last = cookie;
        let end = cookie - cookie % NAME_COLLISIONS_MAX + NAME_COLLISIONS_MAX;
        while last + 1 < end
            && self
                .body(Table::Dentry, &dentry_key(parent, last + 1))?
                .is_some()
        {
            last += 1;
        }
        if last != cookie
            && let Some(body) = self.body(Table::Dentry, &dentry_key(parent, last))?
        {
            self.put(Table::Dentry, &dentry_key(parent, cookie), body)?;
        }
        self.del(Table::Dentry, &dentry_key(parent, last))
    }

    /// Rows changed so far.
    pub(crate) fn changed(&self) -> usize {
        self.entries
            .values()
            .filter(|entry| entry.new.is_some())
            .count()
    }

    /// The changes, and the pieces. Rows that were written as they already were are left out.
    pub(crate) fn finish(self) -> Result<(Vec<Change>, Vec<NewPiece>), FsError> {
        let mut changes = Vec::new();
        for ((table, key), entry) in self.entries {
            let Some(new) = entry.new else { continue };
            let same = match (&entry.old, &new) {
                (Some(old), Some(body)) => row_body(old)? == body.as_slice(),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if !same {
                changes.push(Change {
                    table,
                    key,
                    old: entry.old,
                    new,
                });
            }
        }
        assert!(
            changes.len() <= 2 * RECORD_MUTATIONS_MAX,
            "long work is several records"
        );
        Ok((changes, self.pieces))
    }
}

/// Looks for a name among those of its hash; also says the first free cookie.
pub(crate) fn find_name(
    name: &[u8],
    mut body: impl FnMut(u64) -> Result<Option<Vec<u8>>, FsError>,
) -> Result<(Option<FoundName>, Option<u64>), FsError> {
    let first = name_cookie(name);
    for cookie in first..first + NAME_COLLISIONS_MAX {
        let Some(body) = body(cookie)? else {
            return Ok((None, Some(cookie)));
        };
        let dentry = Dentry::decode(&body)?;
        if dentry.name == name {
            return Ok((Some(FoundName { cookie, dentry }), None));
        }
    }
    Ok((None, None))
}
