//! Orphans: files without a name, whose space is given back once nobody has them open.

use super::data::Cut;
use super::{Inner, Volume};
use crate::error::{FsError, with_causes};
use crate::types::Ino;

impl Volume {
    /// The kernel holds no reference to this orphan any more: its space is given back. Other inodes are left alone.
    ///
    /// # Errors
    /// It stays on its durable list, perhaps with a part of its bytes: to be tried again. [`FsError::NoSpace`]: there is
    /// no room for the records.
    pub fn reclaim(&self, ino: Ino) -> Result<(), FsError> {
        fail::fail_point!("reclaim", |_| Err(FsError::NoSpace));
        while self.inner.reclaim_some(ino)? {}
        Ok(())
    }

    /// Reclaims all orphans: for a volume that nothing has mounted. Returns how many. What cannot be reclaimed is logged,
    /// keeps no other from it, and stays on the durable list.
    pub fn reclaim_orphans(&self) -> u64 {
        let mut reclaimed = 0;
        for ino in self.orphans() {
            match self.reclaim(ino) {
                Ok(()) => reclaimed += 1,
                Err(error) => {
                    report_unreclaimed(&error, ino);
                    // It is the same for all others.
                    if matches!(error, FsError::NoSpace | FsError::Failed) {
                        break;
                    }
                }
            }
        }
        reclaimed
    }
}

impl Inner {
    /// One record of a reclaim. True if there is more to do.
    fn reclaim_some(&self, ino: Ino) -> Result<bool, FsError> {
        self.transact(|txn, totals| {
            if !totals.orphans.contains(&ino) {
                return Ok(false);
            }
            let mut inode = txn.inode(ino)?;
            if let Cut::Some { freed, from } = self.cut(txn, ino, 0, u64::MAX)? {
                inode.extent_bytes -= freed;
                inode.size = inode.size.min(from);
                txn.put_inode(ino, &inode)?;
                return Ok(true);
            }
            let more = self.del_xattrs(txn, ino)?;
            if more {
                inode.extent_bytes = 0;
                inode.size = 0;
                txn.put_inode(ino, &inode)?;
                return Ok(true);
            }
            txn.del_inode(ino)?;
            Ok(false)
        })
    }
}

/// A person must look where an orphan itself is the reason. A full disk is no news, and a volume that failed has said so.
pub(crate) fn report_unreclaimed(error: &FsError, ino: Ino) {
    let is_alarming = !matches!(error, FsError::NoSpace | FsError::Failed);
    let error = with_causes(error);
    if is_alarming {
        tracing::warn!(error, %ino, "orphan not reclaimed");
    } else {
        tracing::debug!(error, %ino, "orphan not reclaimed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::key::{Table, ino_key};
    use crate::store::memtable::Batch;
    use crate::volume::tests::{Fixture, file};

    #[test]
    fn an_orphan_that_cannot_be_reclaimed_keeps_no_other_from_it() {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let inos = [b"a", b"b", b"c"].map(|name| {
            let ino = file(&volume, name);
            volume.unlink(Ino::ROOT, name).unwrap();
            ino
        });
        let store = &volume.inner.store;
        let mut batch = Batch::default();
        batch.put(Table::Inode, &ino_key(inos[0]), b"damaged".to_vec());
        store.write(batch);
        assert_eq!(volume.reclaim_orphans(), 2);
        assert_eq!(volume.orphans(), [inos[0]]);
    }
}
