//! Names: lookup, make, link, unlink, rename, readdir.

use super::txn::{FoundName, Txn, find_name};
use super::{Inner, Volume, acl};
use crate::clock;
use crate::error::FsError;
use crate::store::key::{
    Dentry, EMPTY_FILE_BYTES, Inode, Table, dentry_key, ino_key, key_second, row_body,
};
use crate::types::{Attr, Caller, DirEntry, FileKind, Ino, RenameMode, Time};

/// Bytes of the longest name.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// Bytes of the longest symlink target (PATH_MAX without its NUL).
const TARGET_BYTES_MAX: usize = 4095;
/// What a new name may take on the disk, in the log and in the state; refused when the disk is at its reserve.
const NAME_SPACE_BYTES: u64 = 4096;
/// Names that one inode can have.
const LINKS_MAX: u32 = 1 << 31;
/// readdir's offsets of `.` and `..`; names start above (`name_cookie`).
const DOT_COOKIE: u64 = 1;
const DOTDOT_COOKIE: u64 = 2;
/// Entries that readdir copies out at a time, under the read lock.
const READDIR_BATCH: usize = 256;

const S_ISGID: u16 = 0o2000;

impl Volume {
    /// Attributes of the inode that `name` in `parent` points to. `.` and `..` are names too.
    ///
    /// # Errors
    /// [`FsError::NotFound`] without such a name, [`FsError::NotDirectory`], [`FsError::NameTooLong`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        let _core = self.inner.core();
        let dir = self.inner.load_inode(parent)?;
        if dir.kind != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        match name {
            b"." => return Ok(dir.attr(parent)),
            b".." => return Ok(self.inner.load_inode(dir.parent)?.attr(dir.parent)),
            _ => check_name_length(name)?,
        }
        let store = &self.inner.store;
        let (found, _) = find_name(name, |cookie| {
            store.body(Table::Dentry, &dentry_key(parent, cookie))
        })?;
        let ino = found.ok_or(FsError::NotFound)?.dentry.ino;
        Ok(self.inner.load_inode(ino)?.attr(ino))
    }

    /// Where a symlink points to.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let _core = self.inner.core();
        let inode = self.inner.load_inode(ino)?;
        if inode.kind == FileKind::Symlink {
            Ok(inode.target)
        } else {
            Err(FsError::Invalid)
        }
    }

    /// Makes a file, pipe, socket or device. `mode`: type bits (`S_IFREG`, ...) and permissions as asked for.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::NameTooLong`], [`FsError::Invalid`] for a name or a type that is none,
    /// [`FsError::NotFound`] in a directory that was removed, [`FsError::NoSpace`] if it has waited for room in vain.
    pub fn mknod(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> Result<Attr, FsError> {
        let kind = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => FileKind::File,
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            libc::S_IFCHR => FileKind::CharDevice,
            libc::S_IFBLK => FileKind::BlockDevice,
            _ => return Err(FsError::Invalid),
        };
        let rdev = match kind {
            FileKind::CharDevice | FileKind::BlockDevice => rdev,
            FileKind::File
            | FileKind::Directory
            | FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket => 0,
        };
        self.make(
            caller,
            parent,
            name,
            kind,
            permissions(mode),
            rdev,
            Vec::new(),
        )
    }

    /// Makes a directory. `mode`: permissions as asked for.
    ///
    /// # Errors
    /// As [`Self::mknod`].
    pub fn mkdir(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<Attr, FsError> {
        let kind = FileKind::Directory;
        self.make(caller, parent, name, kind, permissions(mode), 0, Vec::new())
    }

    /// Makes a symlink to `target`, 1 to 4095 bytes.
    ///
    /// # Errors
    /// As [`Self::mknod`]; [`FsError::NotFound`] for an empty target, [`FsError::NameTooLong`] for a longer one.
    pub fn symlink(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr, FsError> {
        if target.is_empty() {
            return Err(FsError::NotFound);
        }
        if target.len() > TARGET_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        self.make(
            caller,
            parent,
            name,
            FileKind::Symlink,
            0o777,
            0,
            target.to_vec(),
        )
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "an inode's fields; its three callers are above"
    )]
    fn make(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        kind: FileKind,
        perm: u16,
        rdev: u32,
        target: Vec<u8>,
    ) -> Result<Attr, FsError> {
        check_new_name(name)?;
        self.inner.need_space(NAME_SPACE_BYTES)?;
        self.inner.wait_for_names(EMPTY_FILE_BYTES);
        self.inner.transact(|txn, _| {
            let now = clock::now();
            let mut dir = live_directory(txn, parent)?;
            if txn.find(parent, name)?.is_some() {
                return Err(FsError::Exists);
            }
            let ino = txn.take_ino();
            let is_dir = kind == FileKind::Directory;
            let perm = acl::inherit(txn, parent, ino, kind, perm, caller.umask)?;
            let inode = Inode {
                kind,
                perm: if hands_group_on(&dir) && is_dir {
                    perm | S_ISGID
                } else {
                    perm
                },
                nlink: if is_dir { 2 } else { 1 },
                uid: caller.uid,
                gid: new_group(&dir, caller),
                rdev,
                size: target.len() as u64,
                extent_bytes: 0,
                atime: now,
                mtime: now,
                ctime: now,
                crtime: now,
                parent: if is_dir { parent } else { Ino(0) },
                target,
            };
            txn.put_inode(ino, &inode)?;
            txn.add_name(
                parent,
                &Dentry {
                    ino,
                    kind,
                    name: name.to_vec(),
                },
            )?;
            if is_dir {
                dir.nlink += 1;
            }
            touch_directory(txn, parent, dir, now)?;
            Ok(inode.attr(ino))
        })
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// As [`Self::mknod`]; [`FsError::NotPermitted`] for a directory, [`FsError::NotFound`] for an inode without a name,
    /// [`FsError::TooManyLinks`].
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        check_new_name(name)?;
        self.inner.need_space(NAME_SPACE_BYTES)?;
        self.inner.wait_for_names(EMPTY_FILE_BYTES);
        self.inner.transact(|txn, _| {
            let now = clock::now();
            let mut inode = txn.inode(ino)?;
            let dir = live_directory(txn, parent)?;
            if inode.kind == FileKind::Directory {
                return Err(FsError::NotPermitted);
            }
            if txn.find(parent, name)?.is_some() {
                return Err(FsError::Exists);
            }
            if inode.nlink == 0 {
                return Err(FsError::NotFound);
            }
            if inode.nlink >= LINKS_MAX {
                return Err(FsError::TooManyLinks);
            }
            inode.nlink += 1;
            inode.ctime = now;
            txn.put_inode(ino, &inode)?;
            txn.add_name(
                parent,
                &Dentry {
                    ino,
                    kind: inode.kind,
                    name: name.to_vec(),
                },
            )?;
            touch_directory(txn, parent, dir, now)?;
            Ok(inode.attr(ino))
        })
    }

    /// Removes a name that is not a directory's. An inode without a name becomes an orphan.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::IsDirectory`]. [`FsError::NoSpace`] only if the disk has no room for the log.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        check_old_name(name)?;
        self.inner.transact(|txn, _| {
            let now = clock::now();
            let dir = directory(txn, parent)?;
            let found = txn.find(parent, name)?.ok_or(FsError::NotFound)?;
            if found.dentry.kind == FileKind::Directory {
                return Err(FsError::IsDirectory);
            }
            txn.remove_name(parent, found.cookie)?;
            drop_link(txn, found.dentry.ino, now)?;
            touch_directory(txn, parent, dir, now)
        })
    }

    /// Removes an empty directory; it becomes an orphan.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`], [`FsError::NotEmpty`], [`FsError::Invalid`] for `.`.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        match name {
            b"." => return Err(FsError::Invalid),
            b".." => return Err(FsError::NotEmpty),
            _ => check_name_length(name)?,
        }
        self.inner.transact(|txn, _| {
            let now = clock::now();
            let mut dir = directory(txn, parent)?;
            let found = txn.find(parent, name)?.ok_or(FsError::NotFound)?;
            if found.dentry.kind != FileKind::Directory {
                return Err(FsError::NotDirectory);
            }
            self.inner.check_empty(found.dentry.ino)?;
            txn.remove_name(parent, found.cookie)?;
            drop_directory(txn, found.dentry.ino, now)?;
            dir.nlink -= 1;
            touch_directory(txn, parent, dir, now)
        })
    }

    /// Renames, in one step that a crash cannot split.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::Exists`] where the new name must be free, [`FsError::IsDirectory`],
    /// [`FsError::NotDirectory`] and [`FsError::NotEmpty`] for a new name that cannot be replaced, [`FsError::Invalid`] for a
    /// directory below itself.
    pub fn rename(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), FsError> {
        for name in [name, new_name] {
            if matches!(name, b"." | b"..") {
                return Err(FsError::Invalid);
            }
            check_name_length(name)?;
        }
        self.inner.transact(|txn, _| {
            directory(txn, parent)?;
            live_directory(txn, new_parent)?;
            let from = txn.find(parent, name)?.ok_or(FsError::NotFound)?;
            let to = txn.find(new_parent, new_name)?;
            let rename = Rename {
                parent,
                from,
                new_parent,
                new_name,
                now: clock::now(),
            };
            match (mode, to) {
                (RenameMode::NoReplace, Some(_)) => Err(FsError::Exists),
                (RenameMode::Exchange, None) => Err(FsError::NotFound),
                (_, Some(to)) if to.dentry.ino == rename.from.dentry.ino => Ok(()),
                (RenameMode::Exchange, Some(to)) => self.inner.exchange(txn, &rename, &to),
                (mode, to) => {
                    let whiteout = (mode == RenameMode::Whiteout).then_some((caller, name));
                    self.inner.replace(txn, &rename, to, whiteout)
                }
            }
        })
    }

    /// Calls `each` with the entries after `cookie` (0: all, `.` and `..` first) until it returns false, which means that
    /// this entry was not taken. An entry that is there all the time is seen exactly once, whatever else changes.
    pub fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry) -> bool,
    ) -> Result<(), FsError> {
        self.inner
            .read_entries(ino, cookie, &mut |entry| Ok(each(entry)))
    }

    /// The same with each entry's attributes.
    pub fn readdir_plus(
        &self,
        ino: Ino,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry, Attr) -> bool,
    ) -> Result<(), FsError> {
        self.inner.read_entries(ino, cookie, &mut |entry| {
            let inode = {
                let _core = self.inner.core();
                self.inner.load_inode(entry.ino)
            };
            match inode {
                Ok(inode) => {
                    let attr = inode.attr(entry.ino);
                    Ok(each(entry, attr))
                }
                Err(FsError::Stale(_)) => Ok(true), // removed since the batch was read
                Err(error) => Err(error),
            }
        })
    }
}

/// What a rename is about.
struct Rename<'a> {
    parent: Ino,
    from: FoundName,
    new_parent: Ino,
    new_name: &'a [u8],
    now: Time,
}

impl Inner {
    /// An inode. The caller holds the lock, without which the state may not be as of the newest record.
    pub(super) fn load_inode(&self, ino: Ino) -> Result<Inode, FsError> {
        match self.store.body(Table::Inode, &ino_key(ino))? {
            Some(body) => Inode::decode(&body),
            None => Err(FsError::Stale(ino)),
        }
    }

    fn check_empty(&self, dir: Ino) -> Result<(), FsError> {
        match self
            .store
            .scan(Table::Dentry, &ino_key(dir), &ino_key(Ino(dir.0 + 1)))
            .next()
        {
            Some(row) => row.and(Err(FsError::NotEmpty)),
            None => Ok(()),
        }
    }

    /// A directory may not move below itself.
    fn check_no_loop(&self, txn: &mut Txn<'_>, dir: Ino, below: Ino) -> Result<(), FsError> {
        let mut at = below;
        loop {
            if at == dir {
                return Err(FsError::Invalid);
            }
            if at == Ino::ROOT {
                return Ok(());
            }
            at = txn.inode(at)?.parent;
        }
    }

    fn replace(
        &self,
        txn: &mut Txn<'_>,
        rename: &Rename<'_>,
        to: Option<FoundName>,
        whiteout: Option<(Caller, &[u8])>,
    ) -> Result<(), FsError> {
        let Rename {
            parent,
            ref from,
            new_parent,
            new_name,
            now,
        } = *rename;
        let moved = from.dentry.clone();
        let moves_dir = moved.kind == FileKind::Directory;
        if moves_dir {
            self.check_no_loop(txn, moved.ino, new_parent)?;
        }
        if let Some(to) = &to {
            match (moves_dir, to.dentry.kind == FileKind::Directory) {
                (true, false) => return Err(FsError::NotDirectory),
                (false, true) => return Err(FsError::IsDirectory),
                (true, true) => self.check_empty(to.dentry.ino)?,
                (false, false) => {}
            }
        }
        let entry = Dentry {
            name: new_name.to_vec(),
            ..moved.clone()
        };
        let replaced_dir = to.as_ref().is_some_and(|_| moves_dir);
        match to {
            Some(to) => {
                txn.replace_name(new_parent, to.cookie, &entry)?;
                if moves_dir {
                    drop_directory(txn, to.dentry.ino, now)?;
                } else {
                    drop_link(txn, to.dentry.ino, now)?;
                }
            }
            None => txn.add_name(new_parent, &entry)?,
        }
        match whiteout {
            Some((caller, name)) => put_whiteout(txn, parent, from.cookie, name, caller, now)?,
            None => txn.remove_name(parent, from.cookie)?,
        }
        let mut inode = txn.inode(moved.ino)?;
        inode.ctime = now;
        if moves_dir {
            inode.parent = new_parent;
        }
        txn.put_inode(moved.ino, &inode)?;
        let mut dir = txn.inode(parent)?;
        if moves_dir {
            dir.nlink -= 1;
        }
        touch_directory(txn, parent, dir, now)?;
        let mut dir = txn.inode(new_parent)?;
        if moves_dir {
            dir.nlink += 1;
        }
        if replaced_dir {
            dir.nlink -= 1;
        }
        touch_directory(txn, new_parent, dir, now)
    }

    fn exchange(
        &self,
        txn: &mut Txn<'_>,
        rename: &Rename<'_>,
        to: &FoundName,
    ) -> Result<(), FsError> {
        let Rename {
            parent,
            ref from,
            new_parent,
            now,
            ..
        } = *rename;
        let (one, other) = (from.dentry.clone(), to.dentry.clone());
        if one.kind == FileKind::Directory {
            self.check_no_loop(txn, one.ino, new_parent)?;
        }
        if other.kind == FileKind::Directory {
            self.check_no_loop(txn, other.ino, parent)?;
        }
        txn.replace_name(
            parent,
            from.cookie,
            &Dentry {
                name: one.name.clone(),
                ..other.clone()
            },
        )?;
        txn.replace_name(
            new_parent,
            to.cookie,
            &Dentry {
                name: other.name.clone(),
                ..one.clone()
            },
        )?;
        for (ino, kind, home, away) in [
            (one.ino, one.kind, parent, new_parent),
            (other.ino, other.kind, new_parent, parent),
        ] {
            let mut inode = txn.inode(ino)?;
            inode.ctime = now;
            if kind == FileKind::Directory {
                inode.parent = away;
                let mut dir = txn.inode(home)?;
                dir.nlink -= 1;
                txn.put_inode(home, &dir)?;
                let mut dir = txn.inode(away)?;
                dir.nlink += 1;
                txn.put_inode(away, &dir)?;
            }
            // Last: the inode itself may be the other's home.
            let current = txn.inode(ino)?;
            txn.put_inode(
                ino,
                &Inode {
                    nlink: current.nlink,
                    ..inode
                },
            )?;
        }
        for dir in [parent, new_parent] {
            let inode = txn.inode(dir)?;
            touch_directory(txn, dir, inode, now)?;
        }
        Ok(())
    }

    fn read_entries(
        &self,
        ino: Ino,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry) -> Result<bool, FsError>,
    ) -> Result<(), FsError> {
        let dir = {
            let _core = self.core();
            self.load_inode(ino)?
        };
        if dir.kind != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        for (at, entry_ino, name) in [
            (DOT_COOKIE, ino, &b"."[..]),
            (DOTDOT_COOKIE, dir.parent, b".."),
        ] {
            let kind = FileKind::Directory;
            let entry = DirEntry {
                cookie: at,
                ino: entry_ino,
                kind,
                name: name.to_vec(),
            };
            if cookie < at && !each(entry)? {
                return Ok(());
            }
        }
        let mut after = cookie.max(DOTDOT_COOKIE);
        loop {
            let batch = self.entry_batch(ino, after)?;
            let Some(last) = batch.last() else {
                return Ok(());
            };
            after = last.cookie;
            let full = batch.len() == READDIR_BATCH;
            for entry in batch {
                if !each(entry)? {
                    return Ok(());
                }
            }
            if !full {
                return Ok(());
            }
        }
    }

    fn entry_batch(&self, dir: Ino, after: u64) -> Result<Vec<DirEntry>, FsError> {
        let _core = self.core();
        let from = dentry_key(dir, after.saturating_add(1));
        self.store
            .scan(Table::Dentry, &from, &ino_key(Ino(dir.0 + 1)))
            .take(READDIR_BATCH)
            .map(|row| {
                let (key, raw) = row?;
                let dentry = Dentry::decode(row_body(&raw)?)?;
                Ok(DirEntry {
                    cookie: key_second(&key)?,
                    ino: dentry.ino,
                    kind: dentry.kind,
                    name: dentry.name,
                })
            })
            .collect()
    }
}

fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).expect("12 bits fit")
}

fn check_name_length(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        Err(FsError::NameTooLong)
    } else {
        Ok(())
    }
}

/// A name that is to be made: `.` and `..` are always there.
fn check_new_name(name: &[u8]) -> Result<(), FsError> {
    match name {
        b"." | b".." => Err(FsError::Exists),
        b"" => Err(FsError::NotFound),
        _ if name.contains(&b'/') || name.contains(&0) => Err(FsError::Invalid),
        _ => check_name_length(name),
    }
}

fn check_old_name(name: &[u8]) -> Result<(), FsError> {
    match name {
        b"." | b".." => Err(FsError::IsDirectory),
        _ => check_name_length(name),
    }
}

fn directory(txn: &mut Txn<'_>, ino: Ino) -> Result<Inode, FsError> {
    let dir = txn.inode(ino)?;
    if dir.kind == FileKind::Directory {
        Ok(dir)
    } else {
        Err(FsError::NotDirectory)
    }
}

/// A directory that can take a new name: not a removed one that somebody still stands in.
fn live_directory(txn: &mut Txn<'_>, ino: Ino) -> Result<Inode, FsError> {
    let dir = directory(txn, ino)?;
    if dir.nlink == 0 {
        Err(FsError::NotFound)
    } else {
        Ok(dir)
    }
}

fn touch_directory(txn: &mut Txn<'_>, ino: Ino, mut dir: Inode, now: Time) -> Result<(), FsError> {
    dir.mtime = now;
    dir.ctime = now;
    txn.put_inode(ino, &dir)
}

/// One name less; without any, the inode waits on the orphan list until nobody has it open.
fn drop_link(txn: &mut Txn<'_>, ino: Ino, now: Time) -> Result<(), FsError> {
    let mut inode = txn.inode(ino)?;
    inode.nlink -= 1;
    inode.ctime = now;
    if inode.nlink == 0 {
        txn.put(Table::Orphan, &ino_key(ino), Vec::new())?;
    }
    txn.put_inode(ino, &inode)
}

fn drop_directory(txn: &mut Txn<'_>, ino: Ino, now: Time) -> Result<(), FsError> {
    let mut inode = txn.inode(ino)?;
    inode.nlink = 0;
    inode.ctime = now;
    txn.put(Table::Orphan, &ino_key(ino), Vec::new())?;
    txn.put_inode(ino, &inode)
}

const fn hands_group_on(dir: &Inode) -> bool {
    dir.perm & S_ISGID != 0
}

/// The group of what is made in `dir`.
const fn new_group(dir: &Inode, caller: Caller) -> u32 {
    if hands_group_on(dir) {
        dir.gid
    } else {
        caller.gid
    }
}

/// What overlayfs leaves in place of a name that hides one in a lower layer: a character device 0:0.
fn put_whiteout(
    txn: &mut Txn<'_>,
    parent: Ino,
    cookie: u64,
    name: &[u8],
    caller: Caller,
    now: Time,
) -> Result<(), FsError> {
    let ino = txn.take_ino();
    let dir = txn.inode(parent)?;
    let kind = FileKind::CharDevice;
    let inode = Inode {
        kind,
        perm: acl::inherit(txn, parent, ino, kind, 0, caller.umask)?,
        nlink: 1,
        uid: caller.uid,
        gid: new_group(&dir, caller),
        rdev: 0,
        size: 0,
        extent_bytes: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        parent: Ino(0),
        target: Vec::new(),
    };
    txn.put_inode(ino, &inode)?;
    txn.replace_name(
        parent,
        cookie,
        &Dentry {
            ino,
            kind,
            name: name.to_vec(),
        },
    )
}
