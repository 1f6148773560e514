//! The operations of the model test, and how they are drawn.
//!
//! An operation names inodes by numbers of the [reference](crate::reference), not of the volume, and brings the number of what
//! it creates along: so it means the same thing after shrinking took other operations away. Every operation is allowed in
//! every state; where its inode is gone, both sides have to refuse it in the same way.

use hafs_fs::{AclKind, Caller, FallocateMode, RenameMode, SeekTo, XattrMode};
use proptest::prelude::*;
use proptest::sample::select;

use crate::reference::acl::AclShape;
use crate::reference::{NodeId, ROOT, Reference};

/// The largest offset a file may reach.
pub(crate) const MAX_FILE_BYTES: u64 = i64::MAX as u64;

/// One of a few names, so that operations meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) u8);

impl Name {
    /// How many plain names there are; those after them are odd.
    const PLAIN: u8 = 7;

    /// The name's bytes. Too long from 10 on.
    pub(crate) fn bytes(self) -> Vec<u8> {
        match self.0 {
            7 => vec![0xff, 0xc3, 1, b' '],
            8 => vec![b'x'; 254],
            9 => vec![b'x'; 255],
            10.. => vec![b'x'; 256],
            plain => vec![b'a' + plain],
        }
    }
}

/// One operation on a volume. `id` and `whiteout` are numbers for the inode that may come of it.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Mknod {
        id: NodeId,
        caller: Caller,
        parent: NodeId,
        name: Name,
        mode: u32,
        rdev: u32,
    },
    Mkdir {
        id: NodeId,
        caller: Caller,
        parent: NodeId,
        name: Name,
        mode: u32,
    },
    Symlink {
        id: NodeId,
        caller: Caller,
        parent: NodeId,
        name: Name,
        target_len: usize,
    },
    Link {
        node: NodeId,
        parent: NodeId,
        name: Name,
    },
    Unlink {
        parent: NodeId,
        name: Name,
    },
    Rmdir {
        parent: NodeId,
        name: Name,
    },
    Rename {
        whiteout: NodeId,
        from: (NodeId, Name),
        to: (NodeId, Name),
        mode: RenameMode,
    },
    Lookup {
        parent: NodeId,
        name: Name,
    },
    Readlink {
        node: NodeId,
    },
    Write {
        node: NodeId,
        offset: u64,
        len: usize,
        seed: u64,
        kill_priv: bool,
        cached: bool,
    },
    Read {
        node: NodeId,
        offset: u64,
        len: u32,
    },
    Truncate {
        node: NodeId,
        caller: Caller,
        size: u64,
    },
    Chmod {
        node: NodeId,
        perm: u16,
    },
    Chown {
        node: NodeId,
        caller: Caller,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    SetTimes {
        node: NodeId,
        atime: Option<i64>,
        mtime: Option<i64>,
        ctime: Option<i64>,
        now: bool,
    },
    Fallocate {
        node: NodeId,
        caller: Caller,
        offset: u64,
        len: u64,
        mode: FallocateMode,
    },
    Copy {
        from: NodeId,
        from_offset: u64,
        to: NodeId,
        to_offset: u64,
        len: u64,
    },
    Seek {
        node: NodeId,
        offset: u64,
        to: SeekTo,
    },
    SetXattr {
        node: NodeId,
        name: u8,
        len: usize,
        seed: u64,
        mode: XattrMode,
    },
    GetXattr {
        node: NodeId,
        name: u8,
    },
    RemoveXattr {
        node: NodeId,
        name: u8,
    },
    SetAcl {
        node: NodeId,
        kind: AclKind,
        shape: AclShape,
        /// Owner, group, mask, others: an octal digit each.
        perms: u16,
        keep_sgid: bool,
    },
    ScanStart {
        dir: NodeId,
        entries: usize,
    },
    ScanNext {
        dir: NodeId,
        entries: usize,
        plus: bool,
    },
    Reclaim {
        node: NodeId,
    },
    ReclaimOrphans,
    Sync,
    Collect,
    Check,
    /// Ends as kill -9 would, and opens again.
    Crash,
    /// Closes in order, and opens again.
    Reopen,
}

/// Names of extended attributes.
pub(crate) fn xattr_name(index: u8) -> Vec<u8> {
    match index {
        0 => b"security.capability".to_vec(),
        1 => b"trusted.hafs".to_vec(),
        2 => [b"user.".as_slice(), &[b'n'; 250]].concat(),
        _ => format!("user.{index}").into_bytes(),
    }
}

/// The bytes that a write or an attribute with this seed carries.
pub(crate) fn payload(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(seed, &mut bytes);
    bytes
}

fn fill(seed: u64, bytes: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for piece in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
    }
}

fn callers() -> impl Strategy<Value = Caller> {
    prop_oneof![
        3 => Just(Caller::ROOT),
        2 => Just(Caller { uid: 1000, gid: 1000, umask: 0o022 }),
        1 => Just(Caller { uid: 1001, gid: 50, umask: 0o077 }),
    ]
}

fn names() -> impl Strategy<Value = Name> {
    prop_oneof![
        30 => (0..Name::PLAIN).prop_map(Name),
        2 => (Name::PLAIN..10).prop_map(Name),
        1 => Just(Name(10)),
    ]
}

/// Lengths around the borders that matter: a byte, a page, inline data, the chunk sizes of the profiles, a whole request.
fn lens() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => 1..200_usize,
        6 => 4000..4200_usize,
        2 => Just(4096_usize),
        6 => 8100..8300_usize,
        5 => 16_300..16_500_usize,
        2 => Just(65_536_usize),
        4 => 130_900..131_300_usize,
        1 => 262_000..262_300_usize,
        1 => Just(1 << 20),
        4 => 1..100_000_usize,
    ]
}

/// As writes, and nothing, and much more than any write.
fn fallocate_lens() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => Just(0),
        12 => lens().prop_map(|len| len as u64),
        1 => (20..45_u32).prop_map(|power| 1 << power),
    ]
}

/// Offsets near what a file holds, on borders, and far out.
fn offsets(size: u64) -> BoxedStrategy<u64> {
    prop_oneof![
        4 => Just(0),
        4 => Just(size),
        6 => 0..=size.max(1),
        3 => size.saturating_sub(5000)..size.saturating_add(5000),
        4 => (0..64_u64).prop_map(|page| page * 4096),
        3 => (0..6_u64, 0..9_u64).prop_map(|(chunk, off)| (chunk * 131_072 + off).saturating_sub(4)),
        3 => (0..20_u64, 0..9_u64).prop_map(|(chunk, off)| (chunk * 16_384 + off).saturating_sub(4)),
        2 => 0..1_000_000_u64,
        1 => (20..62_u32, 0..9000_u64).prop_map(|(power, off)| (1 << power) + off),
        1 => (0..9000_u64).prop_map(|below| MAX_FILE_BYTES - below),
        1 => (0..3_u64).prop_map(|above| MAX_FILE_BYTES + above),
    ]
    .prop_map(|offset| offset.min(MAX_FILE_BYTES + 2))
    .boxed()
}

fn times() -> impl Strategy<Value = Option<i64>> {
    prop_oneof![2 => Just(None), 1 => (-5_000_000_000..9_000_000_000_i64).prop_map(Some)]
}

/// Draws an operation for a volume in this state.
pub(crate) fn ops(state: &Reference) -> BoxedStrategy<Op> {
    let id = state.next_id;
    let crowded = state.nodes.len() > 24;
    let files = or_root(state.files());
    let dirs = state.dirs();
    let all = state.all();
    let file = || select(files.clone());
    let dir = || select(dirs.clone());
    let some = || select(all.clone());
    let orphan = select(or_root(state.orphans()));
    let scanned = select(or_root(state.scans.keys().copied().collect()));
    let symlink = select(or_root(state.symlinks()));
    let mean = prop_oneof![9 => file(), 1 => some(), 1 => Just(id.saturating_sub(3))];
    let taken = prop_oneof![
        6 => select(state.taken().unwrap_or_else(|| vec![(ROOT, Name(0))])),
        1 => (dir(), names()),
    ];
    let create = if crowded { 2 } else { 14 };
    let remove = if crowded { 14 } else { 4 };
    let sizes: Vec<(NodeId, u64)> = files
        .iter()
        .map(|&node| (node, state.size_of(node)))
        .collect();
    let placed = || select(sizes.clone()).prop_flat_map(|(node, size)| (Just(node), offsets(size)));

    prop_oneof![
        create => (callers(), dir(), names(), modes(), 0..3_u32).prop_map(move |(caller, parent, name, mode, rdev)| {
            Op::Mknod { id, caller, parent, name, mode, rdev }
        }),
        create / 2 => (callers(), dir(), names(), select(vec![0o755, 0o700, 0o2775, 0o1777])).prop_map(
            move |(caller, parent, name, mode)| Op::Mkdir { id, caller, parent, name, mode }
        ),
        create / 4 => (callers(), dir(), names(), select(vec![1_usize, 20, 255, 4095, 4096])).prop_map(
            move |(caller, parent, name, target_len)| Op::Symlink { id, caller, parent, name, target_len }
        ),
        4 => (mean, dir(), names()).prop_map(|(node, parent, name)| Op::Link { node, parent, name }),
        remove => taken.clone().prop_map(|(parent, name)| Op::Unlink { parent, name }),
        remove / 2 => taken.clone().prop_map(|(parent, name)| Op::Rmdir { parent, name }),
        8 => (taken.clone(), prop_oneof![taken.clone(), (dir(), names())], rename_modes()).prop_map(
            move |(from, to, mode)| Op::Rename { whiteout: id, from, to, mode }
        ),
        2 => prop_oneof![taken, (dir(), names())].prop_map(|(parent, name)| Op::Lookup { parent, name }),
        1 => symlink.prop_map(|node| Op::Readlink { node }),
        30 => (placed(), lens(), any::<u64>(), any::<bool>(), any::<bool>()).prop_map(
            |((node, offset), len, seed, kill_priv, cached)| {
                // The kernel never asks for both: it clears the bits when it takes the bytes into its cache.
                Op::Write { node, offset, len, seed, kill_priv: kill_priv && !cached, cached }
            }
        ),
        6 => (placed(), 0..200_000_u32).prop_map(|((node, offset), len)| Op::Read { node, offset, len }),
        8 => (placed(), callers()).prop_map(|((node, size), caller)| Op::Truncate { node, caller, size }),
        3 => (some(), 0..0o10000_u16).prop_map(|(node, perm)| Op::Chmod { node, perm }),
        2 => (some(), callers(), ids(), ids()).prop_map(|(node, caller, uid, gid)| Op::Chown { node, caller, uid, gid }),
        3 => (some(), times(), times(), times(), any::<bool>()).prop_map(|(node, atime, mtime, ctime, now)| {
            Op::SetTimes { node, atime, mtime, ctime, now }
        }),
        8 => (placed(), callers(), fallocate_lens(), fallocate_modes()).prop_map(|((node, offset), caller, len, mode)| {
            // What is reserved has to fit the disk under the test.
            let len = if mode == FallocateMode::PunchHole { len } else { len.min(64 << 20) };
            Op::Fallocate { node, caller, offset, len, mode }
        }),
        5 => (placed(), placed(), lens()).prop_map(|((from, from_offset), (to, to_offset), len)| {
            Op::Copy { from, from_offset, to, to_offset: to_offset.min(MAX_FILE_BYTES), len: len as u64 }
        }),
        5 => (placed(), select(vec![SeekTo::Data, SeekTo::Hole])).prop_map(|((node, offset), to)| {
            Op::Seek { node, offset, to }
        }),
        5 => (file_or_dir(&files, &dirs), 0..8_u8, xattr_lens(), any::<u64>(), xattr_modes()).prop_map(
            |(node, name, len, seed, mode)| Op::SetXattr { node, name, len, seed, mode }
        ),
        1 => (file_or_dir(&files, &dirs), 0..8_u8).prop_map(|(node, name)| Op::GetXattr { node, name }),
        2 => (file_or_dir(&files, &dirs), 0..8_u8).prop_map(|(node, name)| Op::RemoveXattr { node, name }),
        5 => (file_or_dir(&files, &dirs), acl_kinds(), acl_shapes(), 0..0o10000_u16, any::<bool>()).prop_map(
            |(node, kind, shape, perms, keep_sgid)| Op::SetAcl { node, kind, shape, perms, keep_sgid }
        ),
        1 => (some(), acl_kinds(), acl_shapes()).prop_map(|(node, kind, shape)| {
            Op::SetAcl { node, kind, shape, perms: 0o7654, keep_sgid: true }
        }),
        2 => (dir(), 0..6_usize).prop_map(|(dir, entries)| Op::ScanStart { dir, entries }),
        4 => (scanned, 1..6_usize, any::<bool>()).prop_map(|(dir, entries, plus)| Op::ScanNext { dir, entries, plus }),
        3 => prop_oneof![4 => orphan, 1 => some()].prop_map(|node| Op::Reclaim { node }),
        1 => Just(Op::ReclaimOrphans),
        3 => Just(Op::Sync),
        4 => Just(Op::Collect),
        1 => Just(Op::Check),
        3 => Just(Op::Crash),
        1 => Just(Op::Reopen),
    ]
    .boxed()
}

fn or_root(mut nodes: Vec<NodeId>) -> Vec<NodeId> {
    if nodes.is_empty() {
        nodes.push(ROOT);
    }
    nodes
}

fn file_or_dir(files: &[NodeId], dirs: &[NodeId]) -> impl Strategy<Value = NodeId> + use<> {
    prop_oneof![3 => select(files.to_vec()), 1 => select(dirs.to_vec())]
}

/// Mostly regular files; the types that mknod(2) makes besides.
fn modes() -> impl Strategy<Value = u32> {
    let kinds = prop_oneof![
        12 => Just(libc::S_IFREG),
        1 => select(vec![libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK]),
    ];
    (
        kinds,
        select(vec![0o644, 0o600, 0o4755, 0o2755, 0o6777, 0o2644]),
    )
        .prop_map(|(kind, perm)| kind | perm)
}

fn rename_modes() -> impl Strategy<Value = RenameMode> {
    prop_oneof![
        5 => Just(RenameMode::Replace),
        1 => Just(RenameMode::NoReplace),
        2 => Just(RenameMode::Exchange),
        1 => Just(RenameMode::Whiteout),
    ]
}

fn fallocate_modes() -> impl Strategy<Value = FallocateMode> {
    select(vec![
        FallocateMode::Allocate { keep_size: false },
        FallocateMode::Allocate { keep_size: true },
        FallocateMode::PunchHole,
        FallocateMode::PunchHole,
        FallocateMode::ZeroRange { keep_size: false },
        FallocateMode::ZeroRange { keep_size: true },
    ])
}

fn xattr_modes() -> impl Strategy<Value = XattrMode> {
    prop_oneof![3 => Just(XattrMode::Set), 1 => Just(XattrMode::Create), 1 => Just(XattrMode::Replace)]
}

fn acl_kinds() -> impl Strategy<Value = AclKind> {
    select(vec![AclKind::Access, AclKind::Default])
}

fn acl_shapes() -> impl Strategy<Value = AclShape> {
    prop_oneof![
        1 => select(vec![AclShape::Empty, AclShape::Invalid, AclShape::Trivial]),
        4 => select(vec![AclShape::Masked, AclShape::Named]),
    ]
}

fn xattr_lens() -> impl Strategy<Value = usize> {
    prop_oneof![10 => 0..300_usize, 2 => 4000..9000_usize, 1 => select(vec![65_535_usize, 65_536, 65_537])]
}

fn ids() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![1 => Just(None), 2 => select(vec![Some(0), Some(1000), Some(1001), Some(u32::MAX - 1)])]
}
