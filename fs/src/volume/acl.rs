//! POSIX access control lists: what setting one, chmod and inheritance make of them. The rules are those of
//! posix_acl(3type) and of Linux's fs/posix_acl.c, function by function.
//!
//! The parts beside it call it: `xattr` when a list is set, `attr` on chmod, `namei` for a new inode. A list is kept as the
//! extended attribute that it is seen as, in Linux's own encoding; enforcing it is the kernel's.
//!
//! Invariant: an inode with an access list has the permission bits that the list says: owner, mask (or group, without a
//! mask) and others. A list that says no more than the bits is not kept.

use super::Volume;
use super::txn::Txn;
use crate::clock;
use crate::error::FsError;
use crate::store::key::{Inode, Table, xattr_key};
use crate::types::{AclKind, FileKind, Ino};

const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
/// The kernel reads a list into one page.
const BYTES_MAX: usize = 4096;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

const S_ISGID: u16 = 0o2000;
const S_IRWXUGO: u16 = 0o777;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    /// User or group of a named entry; of others whatever the caller sent.
    id: u32,
}

/// A valid list: an entry for the owner, the group and others, and a mask if users or groups are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<Entry>);

impl AclKind {
    /// The extended attribute that it is seen as.
    pub const fn name(self) -> &'static [u8] {
        match self {
            Self::Access => b"system.posix_acl_access",
            Self::Default => b"system.posix_acl_default",
        }
    }

    /// Which one `name` is, if any.
    pub fn of_name(name: &[u8]) -> Option<Self> {
        [Self::Access, Self::Default]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

impl Volume {
    /// Sets a list, given as the value of its attribute; one without entries removes it. An access list sets the permission
    /// bits, too, and takes setgid away unless `keep_sgid`: the caller is of the file's group or may keep the bit anyway.
    ///
    /// # Errors
    /// [`FsError::Invalid`] for a list that is none, [`FsError::Unsupported`] for symlinks and unknown versions,
    /// [`FsError::NotPermitted`] for the default list of something else than a directory.
    pub fn set_acl(
        &self,
        ino: Ino,
        kind: AclKind,
        value: &[u8],
        keep_sgid: bool,
    ) -> Result<(), FsError> {
        let acl = Acl::decode(value)?;
        self.inner.need_space(value.len() as u64)?;
        self.inner.transact(|txn, _| {
            let mut inode = txn.inode(ino)?;
            match (inode.kind, kind) {
                (FileKind::Symlink, _) => return Err(FsError::Unsupported),
                (FileKind::Directory, _) | (_, AclKind::Access) => {}
                (_, AclKind::Default) if acl.is_some() => return Err(FsError::NotPermitted),
                (_, AclKind::Default) => {}
            }
            let mut kept = acl;
            if let (AclKind::Access, Some(acl)) = (kind, &kept) {
                inode.perm = (inode.perm & !S_IRWXUGO) | acl.perm();
                if !keep_sgid {
                    inode.perm &= !S_ISGID;
                }
                if acl.is_trivial() {
                    kept = None;
                }
            }
            put(txn, ino, kind, kept.as_ref())?;
            inode.ctime = clock::now();
            txn.put_inode(ino, &inode)
        })
    }
}

/// chmod(2): the access list follows the bits that `inode` was given.
pub(super) fn follow_mode(txn: &mut Txn<'_>, ino: Ino, inode: &Inode) -> Result<(), FsError> {
    let Some(mut acl) = load(txn, ino, AclKind::Access)? else {
        return Ok(());
    };
    acl.set_perm(inode.perm);
    put(txn, ino, AclKind::Access, Some(&acl))
}

/// A new inode's permissions: what was asked for without the umask, or what the directory's default list leaves of it.
/// Puts the lists that the inode inherits.
pub(super) fn inherit(
    txn: &mut Txn<'_>,
    parent: Ino,
    ino: Ino,
    kind: FileKind,
    perm: u16,
    umask: u16,
) -> Result<u16, FsError> {
    if kind == FileKind::Symlink {
        return Ok(perm);
    }
    let Some(default) = load(txn, parent, AclKind::Default)? else {
        return Ok(perm & !(umask & S_IRWXUGO));
    };
    let mut access = default.clone();
    let perm = access.masquerade(perm);
    if !access.is_trivial() {
        put(txn, ino, AclKind::Access, Some(&access))?;
    }
    if kind == FileKind::Directory {
        put(txn, ino, AclKind::Default, Some(&default))?;
    }
    Ok(perm)
}

fn load(txn: &mut Txn<'_>, ino: Ino, kind: AclKind) -> Result<Option<Acl>, FsError> {
    let Some(value) = txn.body(Table::Xattr, &xattr_key(ino, kind.name()))? else {
        return Ok(None);
    };
    Acl::decode(&value)
        .map_err(|_| FsError::Corrupt(format!("an access control list of inode {ino}")))
}

fn put(txn: &mut Txn<'_>, ino: Ino, kind: AclKind, acl: Option<&Acl>) -> Result<(), FsError> {
    let key = xattr_key(ino, kind.name());
    match acl {
        Some(acl) => txn.put(Table::Xattr, &key, acl.encode()),
        None => txn.del(Table::Xattr, &key),
    }
}

impl Acl {
    /// `None`: a list without entries.
    pub(crate) fn decode(value: &[u8]) -> Result<Option<Self>, FsError> {
        let (version, rest) = value.split_first_chunk().ok_or(FsError::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(FsError::Unsupported);
        }
        if value.len() > BYTES_MAX {
            return Err(FsError::XattrTooBig);
        }
        let (entries, tail) = rest.as_chunks::<ENTRY_BYTES>();
        if !tail.is_empty() {
            return Err(FsError::Invalid);
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let entries = entries.iter().map(|&[t0, t1, p0, p1, id @ ..]| Entry {
            tag: u16::from_le_bytes([t0, t1]),
            perm: u16::from_le_bytes([p0, p1]),
            id: u32::from_le_bytes(id),
        });
        let acl = Self(entries.collect());
        acl.check()?;
        Ok(Some(acl))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(HEADER_BYTES + self.0.len() * ENTRY_BYTES);
        value.extend(VERSION.to_le_bytes());
        for entry in &self.0 {
            value.extend(entry.tag.to_le_bytes());
            value.extend(entry.perm.to_le_bytes());
            value.extend(entry.id.to_le_bytes());
        }
        value
    }

    /// As `posix_acl_valid`: owner, users, group, groups, mask, others, in this order; a mask where one is needed.
    fn check(&self) -> Result<(), FsError> {
        let mut last = 0;
        let mut seen = 0;
        for entry in &self.0 {
            let repeats = matches!(entry.tag, USER | GROUP) && entry.tag == last;
            let known = entry.tag.is_power_of_two() && entry.tag <= OTHER;
            if !known || entry.perm > 7 || !(entry.tag > last || repeats) {
                return Err(FsError::Invalid);
            }
            last = entry.tag;
            seen |= entry.tag;
        }
        let base = USER_OBJ | GROUP_OBJ | OTHER;
        let needs_mask = seen & (USER | GROUP) != 0;
        if seen & base != base || (needs_mask && seen & MASK == 0) {
            return Err(FsError::Invalid);
        }
        Ok(())
    }

    /// True if permission bits say it all.
    fn is_trivial(&self) -> bool {
        self.0.len() == 3
    }

    /// The entry that the group's permission bits stand for.
    fn class_tag(&self) -> u16 {
        if self.0.iter().any(|entry| entry.tag == MASK) {
            MASK
        } else {
            GROUP_OBJ
        }
    }

    /// The entries that permission bits stand for, each with the place of its bits.
    fn mode_entries(&mut self) -> impl Iterator<Item = (&mut Entry, u32)> {
        let class = self.class_tag();
        self.0.iter_mut().filter_map(move |entry| match entry.tag {
            USER_OBJ => Some((entry, 6)),
            OTHER => Some((entry, 0)),
            tag if tag == class => Some((entry, 3)),
            _ => None,
        })
    }

    /// The nine permission bits of an inode with this access list, as `posix_acl_equiv_mode`.
    pub(crate) fn perm(&self) -> u16 {
        let mut perm = 0;
        for (entry, shift) in self.clone().mode_entries() {
            perm |= entry.perm << shift;
        }
        perm
    }

    /// As `__posix_acl_chmod_masq`.
    pub(crate) fn set_perm(&mut self, perm: u16) {
        for (entry, shift) in self.mode_entries() {
            entry.perm = (perm >> shift) & 7;
        }
    }

    /// Takes from both a default list and the permissions asked for what the other does not allow, as
    /// `posix_acl_create_masq`; the answer is what is left of the permissions.
    pub(crate) fn masquerade(&mut self, perm: u16) -> u16 {
        let mut left = perm & !S_IRWXUGO;
        for (entry, shift) in self.mode_entries() {
            entry.perm &= perm >> shift;
            left |= entry.perm << shift;
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Caller, SetAttr, XattrMode};
    use crate::volume::tests::{Fixture, assert_clean, file};

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entries = entries
            .iter()
            .map(|&(tag, perm, id)| Entry { tag, perm, id });
        Acl(entries.collect()).encode()
    }

    const NONE: u32 = u32::MAX;

    /// u::rwx u:1000:rw- g::r-x m::rwx o::---
    fn named() -> Vec<u8> {
        value(&[
            (USER_OBJ, 7, NONE),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, NONE),
            (MASK, 7, NONE),
            (OTHER, 0, NONE),
        ])
    }

    #[test]
    fn only_valid_lists_are_taken() {
        for bad in [
            &[][..],
            &[1, 0, 0],
            &[2, 0, 0, 0, 1],
            &value(&[(USER_OBJ, 7, NONE)]),
            &value(&[(USER_OBJ, 8, NONE), (GROUP_OBJ, 7, NONE), (OTHER, 7, NONE)]),
            &value(&[(GROUP_OBJ, 7, NONE), (USER_OBJ, 7, NONE), (OTHER, 7, NONE)]),
            &value(&[
                (USER_OBJ, 7, NONE),
                (3, 7, NONE),
                (GROUP_OBJ, 7, NONE),
                (OTHER, 7, NONE),
            ]),
            &value(&[
                (USER_OBJ, 7, NONE),
                (USER, 7, 5),
                (GROUP_OBJ, 7, NONE),
                (OTHER, 7, NONE),
            ]),
            &value(&[
                (USER_OBJ, 7, NONE),
                (USER_OBJ, 7, NONE),
                (GROUP_OBJ, 7, NONE),
                (OTHER, 7, NONE),
            ]),
        ] {
            assert!(matches!(Acl::decode(bad), Err(FsError::Invalid)), "{bad:?}");
        }
        assert!(matches!(
            Acl::decode(&[1, 0, 0, 0]),
            Err(FsError::Unsupported)
        ));
        assert_eq!(Acl::decode(&[2, 0, 0, 0]).unwrap(), None);
        let acl = Acl::decode(&named()).unwrap().unwrap();
        assert_eq!(acl.encode(), named());
        assert_eq!(acl.perm(), 0o770);
    }

    #[test]
    fn an_access_list_and_the_mode_follow_each_other() {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let ino = file(&volume, b"a");
        let set = |perm| SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        };
        volume.setattr(Caller::ROOT, ino, &set(0o2755)).unwrap();
        volume
            .set_acl(ino, AclKind::Access, &named(), true)
            .unwrap();
        assert_eq!(volume.getattr(ino).unwrap().perm, 0o2770);
        volume.setattr(Caller::ROOT, ino, &set(0o2641)).unwrap();
        let changed = value(&[
            (USER_OBJ, 6, NONE),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, NONE),
            (MASK, 4, NONE),
            (OTHER, 1, NONE),
        ]);
        let name = AclKind::Access.name();
        assert_eq!(volume.getxattr(ino, name).unwrap(), changed);
        let trivial = value(&[(USER_OBJ, 7, NONE), (GROUP_OBJ, 5, NONE), (OTHER, 4, NONE)]);
        volume
            .set_acl(ino, AclKind::Access, &trivial, false)
            .unwrap();
        assert_eq!(volume.getattr(ino).unwrap().perm, 0o754);
        assert!(matches!(volume.getxattr(ino, name), Err(FsError::NoXattr)));
        volume.removexattr(Caller::ROOT, ino, name).unwrap();
        let plain = volume.setxattr(Caller::ROOT, ino, name, &named(), XattrMode::Set);
        assert!(
            matches!(plain, Err(FsError::Unsupported)),
            "the mode would not follow"
        );
        assert_clean(&volume);
    }

    #[test]
    fn a_default_list_takes_the_place_of_the_umask() {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        let caller = Caller {
            umask: 0o077,
            ..Caller::ROOT
        };
        let dir = volume.mkdir(caller, Ino::ROOT, b"d", 0o777).unwrap();
        assert_eq!(dir.perm, 0o700);
        volume
            .set_acl(dir.ino, AclKind::Default, &named(), true)
            .unwrap();
        assert_eq!(volume.getattr(dir.ino).unwrap().perm, 0o700);

        let mode = libc::S_IFREG | 0o664;
        let made = volume.mknod(caller, dir.ino, b"f", mode, 0).unwrap();
        assert_eq!(made.perm, 0o660);
        let inherited = value(&[
            (USER_OBJ, 6, NONE),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, NONE),
            (MASK, 6, NONE),
            (OTHER, 0, NONE),
        ]);
        let access = AclKind::Access.name();
        assert_eq!(volume.getxattr(made.ino, access).unwrap(), inherited);
        let default = AclKind::Default.name();
        assert!(volume.getxattr(made.ino, default).is_err());

        let sub = volume.mkdir(caller, dir.ino, b"s", 0o755).unwrap();
        assert_eq!(sub.perm, 0o750);
        assert_eq!(volume.getxattr(sub.ino, default).unwrap(), named());
        let link = volume.symlink(caller, dir.ino, b"l", b"f").unwrap();
        assert_eq!(link.perm, 0o777);
        assert!(volume.listxattr(link.ino).unwrap().is_empty());
        let refused = volume.set_acl(link.ino, AclKind::Access, &named(), true);
        assert!(matches!(refused, Err(FsError::Unsupported)));
        assert_clean(&volume);
    }
}
