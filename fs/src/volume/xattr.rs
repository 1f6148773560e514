//! Extended attributes. Which names a caller may use is the kernel's business.

use super::txn::Txn;
use super::{Inner, Volume};
use crate::clock;
use crate::error::FsError;
use crate::record::RECORD_MUTATIONS_MAX;
use crate::store::key::{Table, ino_key, xattr_key};
use crate::types::{AclKind, Caller, Ino, XattrMode};

/// Linux's limits: `XATTR_NAME_MAX`, `XATTR_SIZE_MAX`, `XATTR_LIST_MAX`.
const NAME_BYTES_MAX: usize = 255;
const VALUE_BYTES_MAX: usize = 65536;
const LIST_BYTES_MAX: usize = 65536;

impl Volume {
    /// Sets an attribute: a value of up to 64 KiB. Access control lists have [`Self::set_acl`].
    ///
    /// # Errors
    /// [`FsError::Range`] for a name of no or too many bytes, [`FsError::XattrTooBig`], [`FsError::Exists`] and
    /// [`FsError::NoXattr`] as `mode` says, [`FsError::NoSpace`].
    pub fn setxattr(
        &self,
        _caller: Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), FsError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(FsError::Range);
        }
        if AclKind::of_name(name).is_some() {
            return Err(FsError::Unsupported);
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(FsError::XattrTooBig);
        }
        self.inner.need_space(value.len() as u64)?;
        self.inner.transact(|txn, _| {
            let mut inode = txn.inode(ino)?;
            let key = xattr_key(ino, name);
            let present = txn.body(Table::Xattr, &key)?.is_some();
            match mode {
                XattrMode::Create if present => return Err(FsError::Exists),
                XattrMode::Replace if !present => return Err(FsError::NoXattr),
                XattrMode::Create | XattrMode::Replace | XattrMode::Set => {}
            }
            if !present && self.inner.xattr_names(ino)?.len() + name.len() + 1 > LIST_BYTES_MAX {
                return Err(FsError::NoSpace);
            }
            inode.ctime = clock::now();
            txn.put_inode(ino, &inode)?;
            txn.put(Table::Xattr, &key, value.to_vec())
        })
    }

    /// An attribute's value.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let _core = self.inner.core();
        match self.inner.store.body(Table::Xattr, &xattr_key(ino, name))? {
            Some(value) => Ok(value),
            None => self.inner.load_inode(ino).and(Err(FsError::NoXattr)),
        }
    }

    /// All names, each followed by NUL.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let _core = self.inner.core();
        self.inner.load_inode(ino)?;
        self.inner.xattr_names(ino)
    }

    /// Removes an attribute. An access control list may also be missing.
    ///
    /// # Errors
    /// [`FsError::NoXattr`].
    pub fn removexattr(&self, _caller: Caller, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        self.inner.transact(|txn, _| {
            let mut inode = txn.inode(ino)?;
            let key = xattr_key(ino, name);
            if txn.body(Table::Xattr, &key)?.is_none() {
                return match AclKind::of_name(name) {
                    Some(_) => Ok(()),
                    None => Err(FsError::NoXattr),
                };
            }
            inode.ctime = clock::now();
            txn.put_inode(ino, &inode)?;
            txn.del(Table::Xattr, &key)
        })
    }
}

impl Inner {
    fn xattr_names(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let mut names = Vec::new();
        for row in self
            .store
            .scan(Table::Xattr, &ino_key(ino), &ino_key(Ino(ino.0 + 1)))
        {
            let (key, _) = row?;
            names.extend_from_slice(key.get(8..).unwrap_or_default());
            names.push(0);
        }
        Ok(names)
    }

    /// Removes an inode's attributes, as many as a record should hold. True if some are left.
    pub(super) fn del_xattrs(&self, txn: &mut Txn<'_>, ino: Ino) -> Result<bool, FsError> {
        for row in self
            .store
            .scan(Table::Xattr, &ino_key(ino), &ino_key(Ino(ino.0 + 1)))
        {
            let (key, _) = row?;
            if txn.changed() >= RECORD_MUTATIONS_MAX {
                return Ok(true);
            }
            txn.del(Table::Xattr, &key)?;
        }
        Ok(false)
    }
}
