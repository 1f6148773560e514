//! Orphans: files without a name, whose space is given back once nobody has them open.

use super::data::Cut;
use super::{Inner, Volume};
use crate::error::{FsError, with_causes};
use crate::record::RECORD_MUTATIONS_MAX;
use crate::types::Ino;

/// Orphans that one record reclaims: most are small, and a record costs more than what it removes of one of them. Few enough
/// that nobody waits long for the lock meanwhile.
pub(crate) const ORPHANS_AT_ONCE: usize = 8;

impl Volume {
    /// The kernel holds no reference to this orphan any more: its space is given back. Other inodes are left alone.
    ///
    /// # Errors
    /// It stays on its durable list, perhaps with a part of its bytes: to be tried again. [`FsError::NoSpace`]: there is
    /// no room for the records.
    pub fn reclaim(&self, ino: Ino) -> Result<(), FsError> {
        fail::fail_point!("reclaim", |_| Err(FsError::NoSpace));
        while self.inner.reclaim_some(&[ino])? == 0 {}
        Ok(())
    }

    /// The same for many. Returns for how many nothing is left to do: those that were reclaimed, and those that are no
    /// orphans. `failed` is told of those that were not, and why. One that cannot
    /// be keeps no other from it, unless it is for a reason that is the same for all: then the rest is left alone, too.
    pub fn reclaim_all(&self, inos: &[Ino], mut failed: impl FnMut(&FsError, Ino)) -> u64 {
        let mut reclaimed = 0;
        let mut left = inos;
        while let Some((first, others)) = left.split_first() {
            fail::fail_point!("reclaim", |_| {
                failed(&FsError::NoSpace, *first);
                reclaimed
            });
            // 0: only a part of a long one is done.
            let some = &left[..left.len().min(ORPHANS_AT_ONCE)];
            let error = match self.inner.reclaim_some(some) {
                Ok(done) => {
                    reclaimed += done as u64;
                    left = &left[done..];
                    continue;
                }
                Err(error) if some.len() == 1 => error,
                // Whose fault it is tells the one alone.
                Err(_) => match self.reclaim(*first) {
                    Ok(()) => {
                        reclaimed += 1;
                        left = others;
                        continue;
                    }
                    Err(error) => error,
                },
            };
            failed(&error, *first);
            if matches!(error, FsError::NoSpace | FsError::Failed) {
                break;
            }
            left = others;
        }
        reclaimed
    }

    /// Reclaims all orphans: for a volume that nothing has mounted. Returns how many. What cannot be reclaimed is logged,
    /// and stays on the durable list.
    pub fn reclaim_orphans(&self) -> u64 {
        self.reclaim_all(&self.orphans(), report_unreclaimed)
    }
}

impl Inner {
    /// One record of a reclaim. Returns how many of the first are done; the next one may be in part.
    fn reclaim_some(&self, inos: &[Ino]) -> Result<usize, FsError> {
        self.transact(|txn, totals| {
            for (done, &ino) in inos.iter().enumerate() {
                if !totals.orphans.contains(&ino) {
                    continue;
                }
                if txn.changed() >= RECORD_MUTATIONS_MAX / 2 {
                    return Ok(done);
                }
                let mut inode = txn.inode(ino)?;
                if let Cut::Some { freed, from } = self.cut(txn, ino, 0, u64::MAX)? {
                    inode.extent_bytes -= freed;
                    inode.size = inode.size.min(from);
                    txn.put_inode(ino, &inode)?;
                    return Ok(done);
                }
                let more = self.del_xattrs(txn, ino)?;
                if more {
                    inode.extent_bytes = 0;
                    inode.size = 0;
                    txn.put_inode(ino, &inode)?;
                    return Ok(done);
                }
                txn.del_inode(ino)?;
            }
            Ok(inos.len())
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

    #[test]
    fn many_are_reclaimed_together_long_ones_and_those_that_are_none_among_them() {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let names: Vec<_> = (0..3 * ORPHANS_AT_ONCE)
            .map(|number| format!("file-{number}"))
            .collect();
        let mut inos: Vec<_> = names
            .iter()
            .map(|name| file(&volume, name.as_bytes()))
            .collect();
        let long = inos[ORPHANS_AT_ONCE + 2];
        for piece in 0..(RECORD_MUTATIONS_MAX as u64 + 9) {
            volume.write(long, piece * 8192, b"x", false, true).unwrap();
        }
        let kept = file(&volume, b"kept");
        for (name, ino) in names.iter().zip(&inos) {
            volume.write(*ino, 1 << 40, b"bytes", false, true).unwrap();
            volume.unlink(Ino::ROOT, name.as_bytes()).unwrap();
        }
        let head = volume.inner.marks.head();
        inos.insert(1, kept);
        let failed = |error: &FsError, ino| panic!("{ino}: {error}");
        assert_eq!(volume.reclaim_all(&inos, failed), inos.len() as u64);
        let records = volume.inner.marks.head().0 - head.0;
        assert!(records <= 3 + 4, "{records} records");
        assert_eq!(volume.orphans(), []);
        assert!(volume.getattr(kept).is_ok());
        assert_eq!(volume.check(&mut |_, _| {}).unwrap().problems, []);
        drop(volume);
        let volume = fixture.open();
        assert!(volume.getattr(kept).is_ok());
        assert_eq!(volume.check(&mut |_, _| {}).unwrap().problems, []);
    }
}
