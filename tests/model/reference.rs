//! The model of a volume: a map of inodes in memory, and what POSIX on Linux says each operation does to it.
//!
//! The state machine draws operations from it and applies them to it first; [`machine`](crate::machine) then does the same to a
//! real volume and compares. It is written for clarity, not speed, and knows nothing of logs, chunks or crashes: whatever
//! happens below, a volume that answered must look like this.

pub(crate) mod acl;
pub(crate) mod content;
mod data;
mod namespace;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use hafs_fs::{Caller, FileKind, FsError, Profile, SharedCache, Time, VolumeSettings};
use proptest::prelude::*;
use proptest::sample::select;
use proptest_state_machine::ReferenceStateMachine;

use crate::op::{self, Op};
use content::Content;
pub(crate) use data::time;

/// One for all cases of a process, as hafsd has one for all volumes.
static CACHE: OnceLock<SharedCache> = OnceLock::new();

/// Number of an inode in the model.
pub(crate) type NodeId = u32;

/// The root directory.
pub(crate) const ROOT: NodeId = 0;

/// Why an operation is refused: the variants of [`FsError`] that a healthy volume may answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    NotFound,
    Stale,
    Exists,
    NotDirectory,
    IsDirectory,
    NotEmpty,
    NameTooLong,
    Invalid,
    NotPermitted,
    TooBig,
    NoSpace,
    NoXattr,
    XattrTooBig,
    NoSuchOffset,
    Unsupported,
    /// Anything else: never expected.
    Other,
}

impl From<&FsError> for Fault {
    fn from(error: &FsError) -> Self {
        match error {
            FsError::NotFound => Self::NotFound,
            FsError::Stale(_) => Self::Stale,
            FsError::Exists => Self::Exists,
            FsError::NotDirectory => Self::NotDirectory,
            FsError::IsDirectory => Self::IsDirectory,
            FsError::NotEmpty => Self::NotEmpty,
            FsError::NameTooLong => Self::NameTooLong,
            FsError::Invalid => Self::Invalid,
            FsError::NotPermitted => Self::NotPermitted,
            FsError::TooBig => Self::TooBig,
            FsError::NoSpace => Self::NoSpace,
            FsError::NoXattr => Self::NoXattr,
            FsError::XattrTooBig => Self::XattrTooBig,
            FsError::NoSuchOffset => Self::NoSuchOffset,
            FsError::Unsupported => Self::Unsupported,
            _ => Self::Other,
        }
    }
}

/// What an operation answers, in the model's terms.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// Success without a value.
    Done,
    /// The attributes of this inode.
    Node(NodeId),
    /// A number of bytes, an offset, or a count.
    Number(u64),
    /// These bytes.
    Bytes(Vec<u8>),
    /// Whatever it says, nothing visible changed.
    Unspecified,
    /// Refused, with one of these; nothing changed.
    Refused(Vec<Fault>),
}

/// Result of one step: an answer, or the refusals that are right. Where two apply, POSIX leaves the order open.
type Step = Result<Outcome, Vec<Fault>>;

/// Several refusals that are right at once.
fn and(faults: Option<Vec<Fault>>, fault: Fault) -> Vec<Fault> {
    let mut faults = faults.unwrap_or_default();
    faults.push(fault);
    faults
}

/// A time that the model knows exactly, or as "while that step ran".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// This time.
    At(Time),
    /// The clock's, while step number so and so ran.
    During(usize),
}

/// An inode.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: FileKind,
    pub(crate) perm: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    /// 0: an orphan, kept until it is reclaimed.
    pub(crate) nlink: u32,
    pub(crate) atime: Stamp,
    pub(crate) mtime: Stamp,
    pub(crate) ctime: Stamp,
    pub(crate) crtime: Stamp,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a regular file.
    pub(crate) content: Content,
    /// Of a directory.
    pub(crate) entries: BTreeMap<Vec<u8>, NodeId>,
    /// Of a directory; the root's is itself.
    pub(crate) parent: NodeId,
    /// Of a symlink.
    pub(crate) target: Vec<u8>,
}

impl Node {
    fn new(kind: FileKind, perm: u16, caller: Caller, now: Stamp) -> Self {
        Self {
            kind,
            perm,
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            xattrs: BTreeMap::new(),
            content: Content::default(),
            entries: BTreeMap::new(),
            parent: ROOT,
            target: Vec::new(),
        }
    }

    /// Length as stat(2) shows it.
    pub(crate) fn size(&self) -> u64 {
        match self.kind {
            FileKind::File => self.content.size,
            FileKind::Symlink => self.target.len() as u64,
            _ => 0,
        }
    }

    /// What it counts against the volume's size: its bytes by pages, everything else in units of 512 bytes, of which an inode
    /// takes one (a symlink with its target, 256 bytes more), and so does a name.
    fn used_bytes(&self) -> u64 {
        const UNIT: u64 = 512;
        let inode = (256 + self.target.len() as u64).next_multiple_of(UNIT);
        let names = self.entries.len() as u64 * UNIT;
        let xattrs: u64 = self
            .xattrs
            .iter()
            .map(|(name, value)| ((name.len() + value.len()) as u64).next_multiple_of(UNIT))
            .sum();
        self.content.allocated_bytes() + inode + names + xattrs
    }

    /// What a write, a change of owner or a truncation by another user takes away.
    fn drop_privileges(&mut self) {
        self.perm &= !0o4000;
        if self.perm & 0o010 != 0 {
            self.perm &= !0o2000;
        }
        self.xattrs.remove(op::xattr_name(0).as_slice());
    }
}

/// A directory being read in parts while it changes.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    /// Which scan of the volume's life it is.
    pub(crate) number: usize,
    /// Names that were there from its start until now: each must come, once.
    pub(crate) stable: BTreeSet<Vec<u8>>,
    /// Names that were taken away meanwhile: if they come again it is another entry.
    pub(crate) removed: BTreeSet<Vec<u8>>,
}

/// The state of the model.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    /// How the volume is made.
    pub(crate) settings: VolumeSettings,
    /// Every inode, orphans included.
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// The number that the next operation gives to what it creates.
    pub(crate) next_id: NodeId,
    /// Operations so far; the volume's creation is step 0.
    pub(crate) step: usize,
    /// What the last operation answers.
    pub(crate) outcome: Outcome,
    /// Files whose bytes it changed, and where.
    pub(crate) changed: Vec<(NodeId, u64, u64)>,
    /// Directories being read in parts.
    pub(crate) scans: BTreeMap<NodeId, Scan>,
}

impl Reference {
    /// An empty volume with log files, segments and state so small that they roll, are recycled and flushed all the time.
    pub(crate) fn small(size_bytes: u64, profile: Profile, state_buffer_bytes: u64) -> Self {
        Self::new(VolumeSettings {
            log_file_bytes: 256 << 10,
            log_keep_bytes: 512 << 10,
            segment_bytes: 1 << 20,
            state_buffer_bytes,
            cache: CACHE.get_or_init(|| SharedCache::new(16 << 20)).clone(),
            ..VolumeSettings::new(size_bytes, profile)
        })
    }

    fn new(settings: VolumeSettings) -> Self {
        let root = Node::new(FileKind::Directory, 0o755, Caller::ROOT, Stamp::During(0));
        Self {
            settings,
            nodes: BTreeMap::from([(ROOT, root)]),
            next_id: 1,
            step: 0,
            outcome: Outcome::Done,
            changed: Vec::new(),
            scans: BTreeMap::new(),
        }
    }

    /// Bytes that count against the volume's size.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.nodes.values().map(Node::used_bytes).sum()
    }

    /// Numbers of all inodes.
    pub(crate) fn all(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Numbers of the regular files.
    pub(crate) fn files(&self) -> Vec<NodeId> {
        self.select(|node| node.kind == FileKind::File)
    }

    /// Numbers of the directories; never empty.
    pub(crate) fn dirs(&self) -> Vec<NodeId> {
        self.select(|node| node.kind == FileKind::Directory)
    }

    /// Numbers of the symlinks.
    pub(crate) fn symlinks(&self) -> Vec<NodeId> {
        self.select(|node| node.kind == FileKind::Symlink)
    }

    /// Numbers of inodes without a name.
    pub(crate) fn orphans(&self) -> Vec<NodeId> {
        self.select(|node| node.nlink == 0)
    }

    /// Every (directory, name) there is, as far as the name is one that operations use. `None`: there is none.
    pub(crate) fn taken(&self) -> Option<Vec<(NodeId, op::Name)>> {
        let known: Vec<(Vec<u8>, op::Name)> = (0..10)
            .map(|i| (op::Name(i).bytes(), op::Name(i)))
            .collect();
        let taken: Vec<_> = self
            .nodes
            .iter()
            .flat_map(|(&dir, node)| node.entries.keys().map(move |name| (dir, name)))
            .filter_map(|(dir, name)| {
                known
                    .iter()
                    .find(|(bytes, _)| bytes == name)
                    .map(|&(_, name)| (dir, name))
            })
            .collect();
        (!taken.is_empty()).then_some(taken)
    }

    /// Length of a regular file; 0 for others.
    pub(crate) fn size_of(&self, node: NodeId) -> u64 {
        self.nodes.get(&node).map_or(0, |node| node.content.size)
    }

    fn select(&self, want: impl Fn(&Node) -> bool) -> Vec<NodeId> {
        self.nodes
            .iter()
            .filter(|(_, node)| want(node))
            .map(|(&id, _)| id)
            .collect()
    }

    fn now(&self) -> Stamp {
        Stamp::During(self.step)
    }

    fn node(&mut self, id: NodeId) -> Result<&mut Node, Vec<Fault>> {
        self.nodes.get_mut(&id).ok_or_else(|| vec![Fault::Stale])
    }

    fn touch(&mut self, id: NodeId, content: bool) {
        let now = self.now();
        if let Some(node) = self.nodes.get_mut(&id) {
            node.ctime = now;
            if content {
                node.mtime = now;
            }
        }
    }

    /// Does one operation.
    pub(crate) fn advance(&mut self, op: &Op) {
        self.step += 1;
        self.changed.clear();
        self.next_id = self.next_id.max(match *op {
            Op::Mknod { id, .. } | Op::Mkdir { id, .. } | Op::Symlink { id, .. } => id + 1,
            Op::Rename { whiteout, .. } => whiteout + 1,
            _ => 0,
        });
        let before = self.clone();
        self.outcome = self.perform(op).unwrap_or_else(Outcome::Refused);
        let used = self.used_bytes();
        if used > before.used_bytes() && used > self.settings.size_bytes {
            *self = before;
            self.outcome = Outcome::Refused(vec![Fault::NoSpace]);
        }
    }

    fn perform(&mut self, op: &Op) -> Step {
        match *op {
            Op::Mknod {
                id,
                caller,
                parent,
                name,
                mode,
                rdev,
            } => self.mknod(id, caller, parent, name, mode, rdev),
            Op::Mkdir {
                id,
                caller,
                parent,
                name,
                mode,
            } => self.mkdir(id, caller, parent, name, mode),
            Op::Symlink {
                id,
                caller,
                parent,
                name,
                target_len,
            } => self.symlink(id, caller, parent, name, target_len),
            Op::Link { node, parent, name } => self.link(node, parent, name),
            Op::Unlink { parent, name } => self.unlink(parent, name),
            Op::Rmdir { parent, name } => self.rmdir(parent, name),
            Op::Rename {
                whiteout,
                from,
                to,
                mode,
            } => self.rename(whiteout, from, to, mode),
            Op::Lookup { parent, name } => self.lookup(parent, name),
            Op::Readlink { node } => self.readlink(node),
            Op::Write {
                node,
                offset,
                len,
                seed,
                kill_priv,
                cached,
            } => self.write(node, offset, &op::payload(seed, len), kill_priv, cached),
            Op::Read { node, offset, len } => self.read(node, offset, len),
            Op::Truncate { node, caller, size } => self.truncate(node, caller, size),
            Op::Chmod { node, perm } => self.chmod(node, perm),
            Op::Chown {
                node,
                caller,
                uid,
                gid,
            } => self.chown(node, caller, uid, gid),
            Op::SetTimes {
                node,
                atime,
                mtime,
                ctime,
                now,
            } => self.set_times(node, atime, mtime, ctime, now),
            Op::Fallocate {
                node,
                caller,
                offset,
                len,
                mode,
            } => self.fallocate(node, caller, offset, len, mode),
            Op::Copy {
                from,
                from_offset,
                to,
                to_offset,
                len,
            } => self.copy(from, from_offset, to, to_offset, len),
            Op::Seek { node, offset, to } => self.seek(node, offset, to),
            Op::SetXattr {
                node,
                name,
                len,
                seed,
                mode,
            } => self.set_xattr(node, &op::xattr_name(name), op::payload(seed, len), mode),
            Op::GetXattr { node, name } => self.xattr(node, &op::xattr_name(name)),
            Op::RemoveXattr { node, name } => self.remove_xattr(node, &op::xattr_name(name)),
            Op::SetAcl {
                node,
                kind,
                shape,
                perms,
                keep_sgid,
            } => self.set_acl(node, kind, shape, perms, keep_sgid),
            Op::ScanStart { dir, .. } => self.scan_start(dir),
            Op::ScanNext { dir, .. } => self.scan_next(dir),
            Op::Reclaim { node } => Ok(self.reclaim(node)),
            Op::ReclaimOrphans => Ok(self.reclaim_orphans()),
            Op::Collect => Ok(Outcome::Unspecified),
            Op::Sync | Op::Check | Op::Crash | Op::Reopen => Ok(Outcome::Done),
        }
    }
}

impl ReferenceStateMachine for Reference {
    type State = Self;
    type Transition = Op;

    fn init_state() -> BoxedStrategy<Self> {
        let sizes = prop_oneof![1 => Just(3_u64 << 20), 3 => Just(1_u64 << 62)];
        let profiles = select(vec![
            Profile::Auto,
            Profile::Database,
            Profile::Sequential,
            Profile::SmallFiles,
        ]);
        let buffers = select(vec![16_u64 << 10, 128 << 10, 1 << 20]);
        (sizes, profiles, buffers)
            .prop_map(|(size, profile, state_buffer)| Self::small(size, profile, state_buffer))
            .boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Op> {
        op::ops(state)
    }

    fn apply(mut state: Self, op: &Op) -> Self {
        state.advance(op);
        state
    }
}
