//! POSIX access control lists in the model: a list is its attribute's value, and its parts are found in it by tag.

use hafs_fs::{AclKind, FileKind};

use super::{Fault, Node, NodeId, Outcome, Reference, Step, and};

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// Which entries a list of the model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AclShape {
    /// None: takes a list away.
    Empty,
    /// Owner, group, others: permission bits say the same.
    Trivial,
    /// A mask besides.
    Masked,
    /// A named user and a mask besides.
    Named,
    /// A named user without the mask that it needs.
    Invalid,
}

/// A list of this shape with the permissions of owner, group, mask and others, an octal digit each.
pub(crate) fn acl_value(shape: AclShape, perms: u16) -> Vec<u8> {
    let entries: &[(u16, u16)] = match shape {
        AclShape::Empty => &[],
        AclShape::Trivial => &[(USER_OBJ, 9), (GROUP_OBJ, 6), (OTHER, 0)],
        AclShape::Masked => &[(USER_OBJ, 9), (GROUP_OBJ, 6), (MASK, 3), (OTHER, 0)],
        AclShape::Named => &[
            (USER_OBJ, 9),
            (USER, 1),
            (GROUP_OBJ, 6),
            (MASK, 3),
            (OTHER, 0),
        ],
        AclShape::Invalid => &[(USER_OBJ, 9), (USER, 1), (GROUP_OBJ, 6), (OTHER, 0)],
    };
    let mut value = 2_u32.to_le_bytes().to_vec();
    for &(tag, shift) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(((perms >> shift) & 7).to_le_bytes());
        value.extend(if tag == USER { 1000 } else { u32::MAX }.to_le_bytes());
    }
    value
}

/// Place of the permissions of the entry with `tag`.
fn place(value: &[u8], tag: u16) -> Option<usize> {
    (4..value.len())
        .step_by(8)
        .find(|&at| value[at..at + 2] == tag.to_le_bytes())
        .map(|at| at + 2)
}

/// The entries that the nine permission bits stand for: where each is, and where its bits are.
fn class_places(value: &[u8]) -> [(usize, u16); 3] {
    let group = place(value, MASK).or_else(|| place(value, GROUP_OBJ));
    [
        (place(value, USER_OBJ), 6),
        (group, 3),
        (place(value, OTHER), 0),
    ]
    .map(|(place, shift)| (place.expect("a valid list"), shift))
}

fn bits(value: &[u8]) -> u16 {
    class_places(value)
        .iter()
        .map(|&(at, shift)| u16::from(value[at]) << shift)
        .sum()
}

impl Reference {
    pub(super) fn set_acl(
        &mut self,
        id: NodeId,
        kind: AclKind,
        shape: AclShape,
        perms: u16,
        keep_sgid: bool,
    ) -> Step {
        let node = self.node(id);
        if shape == AclShape::Invalid {
            return Err(and(node.err(), Fault::Invalid));
        }
        let node = node?;
        match (node.kind, kind) {
            (FileKind::Symlink, _) => return Err(vec![Fault::Unsupported]),
            (FileKind::Directory, _) | (_, AclKind::Access) => {}
            (_, AclKind::Default) if shape == AclShape::Empty => {}
            (_, AclKind::Default) => return Err(vec![Fault::NotPermitted]),
        }
        let value = acl_value(shape, perms);
        if kind == AclKind::Access && shape != AclShape::Empty {
            node.perm = (node.perm & !0o777) | bits(&value);
            if !keep_sgid {
                node.perm &= !0o2000;
            }
        }
        let says_nothing =
            shape == AclShape::Empty || (shape == AclShape::Trivial && kind == AclKind::Access);
        if says_nothing {
            node.xattrs.remove(kind.name());
        } else {
            node.xattrs.insert(kind.name().to_vec(), value);
        }
        self.touch(id, false);
        Ok(Outcome::Done)
    }
}

impl Node {
    /// After chmod(2).
    pub(super) fn acl_follows_mode(&mut self) {
        let perm = self.perm;
        if let Some(value) = self.xattrs.get_mut(AclKind::Access.name()) {
            for (at, shift) in class_places(value) {
                value[at] = u8::try_from((perm >> shift) & 7).expect("three bits");
            }
        }
    }

    /// A new inode in `directory`, made with this umask.
    pub(super) fn inherit_acl(&mut self, directory: &Self, umask: u16) {
        if self.kind == FileKind::Symlink {
            return;
        }
        let Some(default) = directory.xattrs.get(AclKind::Default.name()) else {
            self.perm &= !umask;
            return;
        };
        let mut access = default.clone();
        for (at, shift) in class_places(default) {
            access[at] &= u8::try_from((self.perm >> shift) & 7).expect("three bits");
        }
        self.perm = (self.perm & !0o777) | bits(&access);
        if access.len() > 4 + 3 * 8 {
            self.xattrs.insert(AclKind::Access.name().to_vec(), access);
        }
        if self.kind == FileKind::Directory {
            let name = AclKind::Default.name().to_vec();
            self.xattrs.insert(name, default.clone());
        }
    }
}
