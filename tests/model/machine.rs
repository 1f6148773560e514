//! The real volume beside the model: does each operation, compares the answer, then everything that can be seen.
//!
//! After an operation all attributes, all directories' entries and the bytes near the change are compared; after a crash,
//! a reopening, a round of the collector and at the end, every byte and every extended attribute too. A difference panics
//! with the step; proptest shrinks from there.

mod compare;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use hafs_fs::{Attr, Caller, FsError, Ino, SetAttr, SetTime, Time, Volume, VolumeIdentity};
use hafs_protocol::{Epoch, Lineage, NodeId as Machine, StoreId, VolumeId};
use proptest_state_machine::StateMachineTest;

use crate::op::{self, Op};
use crate::reference::acl::acl_value;
use crate::reference::{Fault, NodeId, Outcome, ROOT, Reference, time};

/// A volume in a directory of its own, which goes with it.
#[derive(Debug)]
pub(crate) struct Machinery {
    volume: Option<Volume>,
    identity: VolumeIdentity,
    epoch: Epoch,
    /// The volume's number for each of the model's inodes, dead ones included.
    inos: BTreeMap<NodeId, Ino>,
    /// The clock before and after each step.
    windows: Vec<(Time, Time)>,
    scans: BTreeMap<NodeId, ScanSoFar>,
    /// Last, so that the volume is closed when it goes.
    dir: tempfile::TempDir,
}

/// How far a directory was read.
#[derive(Debug)]
struct ScanSoFar {
    number: usize,
    cookie: u64,
    seen: BTreeSet<Vec<u8>>,
}

/// What the volume answered, in the model's terms.
#[derive(Debug)]
enum Answer {
    Done,
    Attr(Attr),
    Number(u64),
    Bytes(Vec<u8>),
}

impl Machinery {
    fn new(reference: &Reference) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("hafs-model-")
            .tempdir_in(scratch())
            .expect("a scratch directory");
        let identity = VolumeIdentity {
            volume: VolumeId::from_bytes([1; 16]),
            store: StoreId::from_bytes([2; 16]),
            node: Machine::from_bytes([3; 16]),
            lineage: Lineage::from_bytes([4; 16]),
        };
        let before = now();
        let store = store_dir(dir.path());
        Volume::create(&store, &identity, &reference.settings, Epoch(1)).expect("create");
        let volume = Volume::open(&store, &identity, &reference.settings, Epoch(2)).expect("open");
        Self {
            dir,
            volume: Some(volume),
            identity,
            epoch: Epoch(2),
            inos: BTreeMap::from([(ROOT, Ino::ROOT)]),
            windows: vec![(before, now())],
            scans: BTreeMap::new(),
        }
    }

    fn volume(&self) -> &Volume {
        self.volume
            .as_ref()
            .expect("open except within a reopening")
    }

    /// The volume's number for an inode; for one that never was, a number that no volume gives.
    fn ino(&self, node: NodeId) -> Ino {
        self.inos
            .get(&node)
            .copied()
            .unwrap_or_else(|| Ino((1 << 60) + u64::from(node)))
    }

    fn open_again(&mut self, reference: &Reference) {
        self.epoch = self.epoch.next().expect("few epochs");
        let store = store_dir(self.dir.path());
        let volume = Volume::open(&store, &self.identity, &reference.settings, self.epoch);
        self.volume = Some(volume.unwrap_or_else(|error| panic!("open again: {}", chain(&error))));
    }

    /// Does the operation on the volume.
    fn perform(&mut self, reference: &Reference, op: &Op) -> Result<Answer, FsError> {
        let done = |()| Answer::Done;
        match *op {
            Op::Mknod { .. } | Op::Mkdir { .. } | Op::Symlink { .. } | Op::Link { .. } => {
                self.create(op).map(Answer::Attr)
            }
            Op::Unlink { parent, name } => self
                .volume()
                .unlink(self.ino(parent), &name.bytes())
                .map(done),
            Op::Rmdir { parent, name } => self
                .volume()
                .rmdir(self.ino(parent), &name.bytes())
                .map(done),
            Op::Rename { from, to, mode, .. } => {
                let (old, new) = (
                    (self.ino(from.0), from.1.bytes()),
                    (self.ino(to.0), to.1.bytes()),
                );
                self.volume()
                    .rename(Caller::ROOT, old.0, &old.1, new.0, &new.1, mode)?;
                match reference.outcome {
                    // Only a whiteout answers with an inode, which the volume does not tell.
                    Outcome::Node(_) => self.volume().lookup(old.0, &old.1).map(Answer::Attr),
                    _ => Ok(Answer::Done),
                }
            }
            Op::Lookup { parent, name } => self
                .volume()
                .lookup(self.ino(parent), &name.bytes())
                .map(Answer::Attr),
            Op::Readlink { node } => self.volume().readlink(self.ino(node)).map(Answer::Bytes),
            Op::Truncate { .. } | Op::Chmod { .. } | Op::Chown { .. } | Op::SetTimes { .. } => {
                self.set_attr(op).map(Answer::Attr)
            }
            Op::Write { .. }
            | Op::Read { .. }
            | Op::Fallocate { .. }
            | Op::Copy { .. }
            | Op::Seek { .. } => self.data(op),
            Op::SetXattr { .. }
            | Op::GetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::SetAcl { .. } => self.xattr(op),
            Op::ScanStart { dir, entries } => self.scan(reference, dir, entries, false).map(done),
            Op::ScanNext { dir, entries, plus } => {
                self.scan(reference, dir, entries, plus).map(done)
            }
            Op::Reclaim { node } => self.volume().reclaim(self.ino(node)).map(done),
            Op::ReclaimOrphans => Ok(Answer::Number(self.volume().reclaim_orphans())),
            Op::Sync => self.volume().sync().map(done),
            Op::Collect => self.volume().collect().map(|_| Answer::Done),
            Op::Check => {
                self.check();
                Ok(Answer::Done)
            }
            Op::Crash => {
                self.volume.take().expect("open").crash();
                self.open_again(reference);
                Ok(Answer::Done)
            }
            Op::Reopen => {
                self.volume.take().expect("open").close()?;
                self.open_again(reference);
                Ok(Answer::Done)
            }
        }
    }

    fn create(&self, op: &Op) -> Result<Attr, FsError> {
        let volume = self.volume();
        match *op {
            Op::Mknod {
                caller,
                parent,
                name,
                mode,
                rdev,
                ..
            } => volume.mknod(caller, self.ino(parent), &name.bytes(), mode, rdev),
            Op::Mkdir {
                caller,
                parent,
                name,
                mode,
                ..
            } => volume.mkdir(caller, self.ino(parent), &name.bytes(), mode),
            Op::Symlink {
                caller,
                parent,
                name,
                target_len,
                ..
            } => volume.symlink(
                caller,
                self.ino(parent),
                &name.bytes(),
                &vec![b't'; target_len],
            ),
            Op::Link { node, parent, name } => {
                volume.link(self.ino(node), self.ino(parent), &name.bytes())
            }
            _ => unreachable!("creates nothing: {op:?}"),
        }
    }

    fn set_attr(&self, op: &Op) -> Result<Attr, FsError> {
        let none = SetAttr::default();
        let (node, caller, set) = match *op {
            Op::Truncate { node, caller, size } => (
                node,
                caller,
                SetAttr {
                    size: Some(size),
                    ..none
                },
            ),
            Op::Chmod { node, perm } => (
                node,
                Caller::ROOT,
                SetAttr {
                    perm: Some(perm),
                    ..none
                },
            ),
            Op::Chown {
                node,
                caller,
                uid,
                gid,
            } => (node, caller, SetAttr { uid, gid, ..none }),
            Op::SetTimes {
                node,
                atime,
                mtime,
                ctime,
                now,
            } => {
                let at = |secs| {
                    if now {
                        SetTime::Now
                    } else {
                        SetTime::At(time(secs))
                    }
                };
                let (atime, mtime) = (atime.map(at), mtime.map(at));
                (
                    node,
                    Caller::ROOT,
                    SetAttr {
                        atime,
                        mtime,
                        ctime: ctime.map(time),
                        ..none
                    },
                )
            }
            _ => unreachable!("sets no attribute: {op:?}"),
        };
        self.volume().setattr(caller, self.ino(node), &set)
    }

    fn data(&self, op: &Op) -> Result<Answer, FsError> {
        let volume = self.volume();
        match *op {
            Op::Write {
                node,
                offset,
                len,
                seed,
                kill_priv,
                cached,
            } => volume
                .write(
                    self.ino(node),
                    offset,
                    &op::payload(seed, len),
                    kill_priv,
                    cached,
                )
                .map(|count| Answer::Number(count.into())),
            Op::Read { node, offset, len } => {
                volume.read(self.ino(node), offset, len).map(Answer::Bytes)
            }
            Op::Fallocate {
                node,
                caller,
                offset,
                len,
                mode,
            } => volume
                .fallocate(caller, self.ino(node), offset, len, mode)
                .map(|()| Answer::Done),
            Op::Copy {
                from,
                from_offset,
                to,
                to_offset,
                len,
            } => volume
                .copy_file_range(
                    Caller::ROOT,
                    self.ino(from),
                    from_offset,
                    self.ino(to),
                    to_offset,
                    len,
                )
                .map(Answer::Number),
            Op::Seek { node, offset, to } => {
                volume.seek(self.ino(node), offset, to).map(Answer::Number)
            }
            _ => unreachable!("not about bytes: {op:?}"),
        }
    }

    fn xattr(&self, op: &Op) -> Result<Answer, FsError> {
        let (volume, done) = (self.volume(), |()| Answer::Done);
        match *op {
            Op::SetXattr {
                node,
                name,
                len,
                seed,
                mode,
            } => volume
                .setxattr(
                    Caller::ROOT,
                    self.ino(node),
                    &op::xattr_name(name),
                    &op::payload(seed, len),
                    mode,
                )
                .map(done),
            Op::GetXattr { node, name } => volume
                .getxattr(self.ino(node), &op::xattr_name(name))
                .map(Answer::Bytes),
            Op::RemoveXattr { node, name } => volume
                .removexattr(Caller::ROOT, self.ino(node), &op::xattr_name(name))
                .map(done),
            Op::SetAcl {
                node,
                kind,
                shape,
                perms,
                keep_sgid,
            } => volume
                .set_acl(self.ino(node), kind, &acl_value(shape, perms), keep_sgid)
                .map(done),
            _ => unreachable!("not about extended attributes: {op:?}"),
        }
    }

    /// Compares the answer with the model's, and learns the number of a new inode.
    fn judge(&mut self, reference: &Reference, op: &Op, answer: Result<Answer, FsError>) {
        match (&reference.outcome, answer) {
            (Outcome::Refused(faults), Err(error)) => {
                let fault = Fault::from(&error);
                assert!(
                    faults.contains(&fault),
                    "{op:?}: refused with {}, not {faults:?}",
                    chain(&error)
                );
            }
            (Outcome::Refused(faults), Ok(answer)) => {
                panic!(
                    "{op:?}: answered {}, should be refused: {faults:?}",
                    brief(&answer)
                )
            }
            (_, Err(error)) => panic!("{op:?}: refused with {}", chain(&error)),
            (&Outcome::Node(node), Ok(Answer::Attr(attr))) => {
                if let std::collections::btree_map::Entry::Vacant(unknown) = self.inos.entry(node) {
                    unknown.insert(attr.ino);
                    let uses = self.inos.values().filter(|&&ino| ino == attr.ino).count();
                    assert_eq!(uses, 1, "{op:?}: inode number {} was used before", attr.ino);
                }
                self.compare_attr(reference, node, &attr);
            }
            (Outcome::Number(wanted), Ok(Answer::Number(number))) => {
                assert_eq!(number, *wanted, "{op:?}")
            }
            (Outcome::Bytes(wanted), Ok(Answer::Bytes(bytes))) => {
                compare::same_bytes(&format!("{op:?}"), 0, wanted, &bytes);
            }
            (Outcome::Done, Ok(Answer::Done)) | (Outcome::Unspecified, Ok(_)) => {}
            (wanted, Ok(answer)) => panic!("{op:?}: answered {}, not {wanted:?}", brief(&answer)),
        }
    }
}

/// The state machine test: [`Reference`] against [`Machinery`].
#[derive(Debug)]
pub(crate) struct VolumeAgainstModel;

impl StateMachineTest for VolumeAgainstModel {
    type SystemUnderTest = Machinery;
    type Reference = Reference;

    fn init_test(reference: &Reference) -> Machinery {
        Machinery::new(reference)
    }

    fn apply(mut machinery: Machinery, reference: &Reference, op: Op) -> Machinery {
        let before = now();
        let answer = machinery.perform(reference, &op);
        machinery.windows.push((before, now()));
        machinery.judge(reference, &op, answer);
        machinery.compare_visible(reference);
        if matches!(op, Op::Crash | Op::Reopen | Op::Collect) {
            machinery.compare_everything(reference);
        }
        machinery
    }

    fn teardown(machinery: Machinery, reference: Reference) {
        machinery.check();
        machinery.compare_everything(&reference);
        machinery.volume().close().expect("close");
    }
}

/// Runs these operations on a fresh volume and model: how a failure that was found becomes a test.
pub(crate) fn replay(reference: Reference, ops: Vec<Op>) {
    VolumeAgainstModel::test_sequential(
        proptest::test_runner::Config::default(),
        reference,
        ops,
        None,
    );
}

/// The clock that the volume's times come from.
fn now() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Time {
        secs: now.tv_sec,
        nanos: u32::try_from(now.tv_nsec).expect("below 10^9"),
    }
}

/// Where stores are made: memory if there is some, since thousands of small stores are about logic, not about disks.
fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

fn store_dir(dir: &Path) -> PathBuf {
    dir.join("store")
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// An answer without its bytes.
fn brief(answer: &Answer) -> String {
    match answer {
        Answer::Bytes(bytes) => format!("{} bytes", bytes.len()),
        other => format!("{other:?}"),
    }
}
