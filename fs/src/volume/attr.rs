//! Attributes: getattr and setattr, and what clears setuid, setgid and file capabilities.

use super::data::Cut;
use super::txn::Txn;
use super::{Volume, acl};
use crate::clock;
use crate::error::FsError;
use crate::store::key::{FILE_BYTES_MAX, Inode, Table, xattr_key};
use crate::types::{Attr, Caller, FileKind, Ino, SetAttr, SetTime, Time};

const S_ISUID: u16 = 0o4000;
const S_ISGID: u16 = 0o2000;
const S_IXGRP: u16 = 0o0010;
const CAPABILITY: &[u8] = b"security.capability";

impl Volume {
    /// Attributes of an inode.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        let _core = self.inner.core();
        Ok(self.inner.load_inode(ino)?.attr(ino))
    }

    /// [`Self::setattr`] for a kernel that trusts the times in its own cache. With each unlink(2) it brings those of the file: of an
    /// orphan they are not kept, since that kernel will not ask for them, and nobody else can see it.
    ///
    /// # Errors
    /// As [`Self::setattr`].
    pub fn setattr_cached(&self, caller: Caller, ino: Ino, set: &SetAttr) -> Result<Attr, FsError> {
        if let SetAttr {
            perm: None,
            uid: None,
            gid: None,
            size: None,
            atime: None,
            mtime: Some(SetTime::At(mtime)),
            ctime: Some(ctime),
        } = *set
        {
            let attr = self.getattr(ino)?;
            if attr.nlink == 0 {
                return Ok(Attr {
                    mtime,
                    ctime,
                    ..attr
                });
            }
        }
        self.setattr(caller, ino, set)
    }

    /// Changes attributes; the answer is what they are then. Cutting a long file takes several records.
    ///
    /// # Errors
    /// [`FsError::TooBig`], and [`FsError::IsDirectory`] or [`FsError::Invalid`] for the size of what has none. [`FsError::NoSpace`] if
    /// the disk has no room for the log: a long file may be cut in part then.
    pub fn setattr(&self, caller: Caller, ino: Ino, set: &SetAttr) -> Result<Attr, FsError> {
        if set.size.is_some_and(|size| size > FILE_BYTES_MAX) {
            return Err(FsError::TooBig);
        }
        loop {
            // A long file is cut a record at a time, from its end; the last record does everything else.
            if let Some(attr) = self
                .inner
                .transact(|txn, _| set_some(self, txn, caller, ino, set))?
            {
                return Ok(attr);
            }
        }
    }
}

fn set_some(
    volume: &Volume,
    txn: &mut Txn<'_>,
    caller: Caller,
    ino: Ino,
    set: &SetAttr,
) -> Result<Option<Attr>, FsError> {
    let now = clock::now();
    let mut inode = txn.inode(ino)?;
    if let Some(size) = set.size {
        if !resize(volume, txn, ino, &mut inode, size)? {
            return Ok(None);
        }
        inode.mtime = now;
        if caller.uid != 0 {
            clear_privileges(txn, ino, &mut inode)?;
        }
    }
    if changes_owner(caller, set, inode.kind) {
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        if inode.kind != FileKind::Directory {
            clear_privileges(txn, ino, &mut inode)?;
        }
    }
    if let Some(perm) = set.perm {
        inode.perm = perm & 0o7777;
        acl::follow_mode(txn, ino, &inode)?;
    }
    set_time(&mut inode.atime, set.atime, now);
    set_time(&mut inode.mtime, set.mtime, now);
    // What comes before a write is no change by itself: see `changes_owner`.
    if *set != SetAttr::default() || inode.kind != FileKind::File {
        inode.ctime = set.ctime.unwrap_or(now);
    }
    txn.put_inode(ino, &inode)?;
    Ok(Some(inode.attr(ino)))
}

/// True for chown(2), also to nobody else (-1, -1), which of a file is told by the change time alone, and of anything else by
/// nothing at all. Of a file, nothing is what comes before a write that takes capabilities away; root's leaves setuid and
/// setgid.
fn changes_owner(caller: Caller, set: &SetAttr, kind: FileKind) -> bool {
    let only_ctime = SetAttr {
        ctime: set.ctime,
        ..SetAttr::default()
    };
    let precedes_a_write = set.ctime.is_none() && caller.uid == 0 && kind == FileKind::File;
    let names_nothing = *set == only_ctime && !precedes_a_write;
    set.uid.is_some() || set.gid.is_some() || names_nothing
}

fn set_time(field: &mut Time, set: Option<SetTime>, now: Time) {
    match set {
        Some(SetTime::Now) => *field = now,
        Some(SetTime::At(time)) => *field = time,
        None => {}
    }
}

/// Sets a file's length. False: the file was cut only in part, and `txn` holds that part.
fn resize(
    volume: &Volume,
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut Inode,
    size: u64,
) -> Result<bool, FsError> {
    check_file(inode)?;
    if size > inode.size {
        inode.size = size;
        return Ok(true);
    }
    // Also for the same length: space that was reserved past the end is given back.
    match volume.inner.cut(txn, ino, size, FILE_BYTES_MAX)? {
        Cut::All { freed } => {
            inode.extent_bytes -= freed;
            inode.size = size;
            Ok(true)
        }
        Cut::Some { freed, from } => {
            inode.extent_bytes -= freed;
            inode.size = inode.size.min(from);
            txn.put_inode(ino, inode)?;
            Ok(false)
        }
    }
}

pub(super) fn check_file(inode: &Inode) -> Result<(), FsError> {
    match inode.kind {
        FileKind::File => Ok(()),
        FileKind::Directory => Err(FsError::IsDirectory),
        FileKind::Symlink
        | FileKind::Fifo
        | FileKind::Socket
        | FileKind::CharDevice
        | FileKind::BlockDevice => Err(FsError::Invalid),
    }
}

/// Takes away what would let others act as the owner: after a write, truncation or change of owner.
pub(super) fn clear_privileges(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut Inode,
) -> Result<(), FsError> {
    inode.perm &= !S_ISUID;
    // Without group execution the bit means mandatory locking, as Linux has it.
    if inode.perm & S_IXGRP != 0 {
        inode.perm &= !S_ISGID;
    }
    let key = xattr_key(ino, CAPABILITY);
    if txn.body(Table::Xattr, &key)?.is_some() {
        txn.del(Table::Xattr, &key)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::types::{Caller, Ino, SetAttr, SetTime, Time};
    use crate::volume::tests::{Fixture, file};

    #[test]
    fn times_that_the_kernel_has_in_its_cache_are_kept_of_what_has_a_name() {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let ino = file(&volume, b"file");
        let times = |secs| SetAttr {
            mtime: Some(SetTime::At(Time { secs, nanos: 7 })),
            ctime: Some(Time { secs, nanos: 8 }),
            ..SetAttr::default()
        };
        let set = |set: &SetAttr| volume.setattr_cached(Caller::ROOT, ino, set).unwrap();
        assert_eq!(set(&times(11)).ctime, Time { secs: 11, nanos: 8 });
        assert_eq!(volume.getattr(ino).unwrap().mtime.secs, 11);
        volume.unlink(Ino::ROOT, b"file").unwrap();
        let head = volume.inner.marks.head();
        let answer = set(&times(12));
        assert_eq!((answer.mtime.secs, answer.ctime.secs), (12, 12));
        assert_eq!(volume.inner.marks.head(), head);
        // Whatever else is changed of it is kept.
        let answer = set(&SetAttr {
            perm: Some(0o600),
            ..times(13)
        });
        assert_eq!((answer.perm, answer.mtime.secs), (0o600, 13));
        assert_eq!(volume.getattr(ino).unwrap(), answer);
    }
}
