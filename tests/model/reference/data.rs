//! Bytes, attributes and extended attributes.

use hafs_fs::{Caller, FallocateMode, FileKind, SeekTo, Time, XattrMode};

use super::content::Content;
use super::{Fault, Node, NodeId, Outcome, Reference, Stamp, Step, and};
use crate::op::MAX_FILE_BYTES;

const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;

impl Reference {
    /// The regular file, or why there is none.
    fn file(&mut self, id: NodeId) -> Result<&mut Node, Vec<Fault>> {
        let node = self.node(id)?;
        match node.kind {
            FileKind::File => Ok(node),
            FileKind::Directory => Err(vec![Fault::IsDirectory]),
            _ => Err(vec![Fault::Invalid]),
        }
    }

    /// Gives a file its new content. Whether the volume has room for it is seen in the end.
    fn replace_content(&mut self, id: NodeId, content: Content) -> Result<(), Vec<Fault>> {
        self.file(id)?.content = content;
        Ok(())
    }

    pub(super) fn write(
        &mut self,
        id: NodeId,
        offset: u64,
        bytes: &[u8],
        kill_priv: bool,
        cached: bool,
    ) -> Step {
        let content = self.file(id).map(|node| node.content.clone());
        let end = offset + bytes.len() as u64;
        if end > MAX_FILE_BYTES {
            return Err(and(content.err(), Fault::TooBig));
        }
        let mut content = content?;
        content.write(offset, bytes);
        self.replace_content(id, content)?;
        self.changed.push((id, offset, end));
        if kill_priv {
            self.node(id)?.drop_privileges();
        }
        if !cached {
            self.touch(id, true);
        }
        Ok(Outcome::Number(bytes.len() as u64))
    }

    pub(super) fn read(&mut self, id: NodeId, offset: u64, len: u32) -> Step {
        Ok(Outcome::Bytes(
            self.file(id)?.content.read(offset, len.into()),
        ))
    }

    pub(super) fn truncate(&mut self, id: NodeId, caller: Caller, size: u64) -> Step {
        let node = self.file(id);
        if size > MAX_FILE_BYTES {
            return Err(and(node.err(), Fault::TooBig));
        }
        let node = node?;
        let mut content = node.content.clone();
        let changed = (content.size.min(size), content.size.max(size));
        content.resize(size);
        node.content = content;
        if caller.uid != 0 {
            node.drop_privileges();
        }
        self.changed.push((id, changed.0, changed.1));
        self.touch(id, true);
        Ok(Outcome::Node(id))
    }

    pub(super) fn chmod(&mut self, id: NodeId, perm: u16) -> Step {
        let node = self.node(id)?;
        node.perm = perm;
        node.acl_follows_mode();
        self.touch(id, false);
        Ok(Outcome::Node(id))
    }

    pub(super) fn chown(
        &mut self,
        id: NodeId,
        caller: Caller,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Step {
        let node = self.node(id)?;
        node.uid = uid.unwrap_or(node.uid);
        node.gid = gid.unwrap_or(node.gid);
        if uid.is_none() && gid.is_none() && node.kind == FileKind::File {
            // What comes before the write of a file that has capabilities.
            if caller.uid != 0 {
                node.drop_privileges();
            }
            return Ok(Outcome::Node(id));
        }
        if node.kind != FileKind::Directory {
            node.drop_privileges();
        }
        self.touch(id, false);
        Ok(Outcome::Node(id))
    }

    pub(super) fn set_times(
        &mut self,
        id: NodeId,
        atime: Option<i64>,
        mtime: Option<i64>,
        ctime: Option<i64>,
        now: bool,
    ) -> Step {
        if atime.is_none() && mtime.is_none() && ctime.is_none() {
            return self.chown(id, Caller::ROOT, None, None);
        }
        let step = self.now();
        let stamp = |secs: i64| if now { step } else { Stamp::At(time(secs)) };
        let node = self.node(id)?;
        node.atime = atime.map_or(node.atime, stamp);
        node.mtime = mtime.map_or(node.mtime, stamp);
        node.ctime = ctime.map_or(step, |secs| Stamp::At(time(secs)));
        // The change time alone is what comes of chown(2) to the same owner and group.
        let only_ctime = atime.is_none() && mtime.is_none() && ctime.is_some();
        if only_ctime && node.kind != FileKind::Directory {
            node.drop_privileges();
        }
        Ok(Outcome::Node(id))
    }

    pub(super) fn fallocate(
        &mut self,
        id: NodeId,
        caller: Caller,
        offset: u64,
        len: u64,
        mode: FallocateMode,
    ) -> Step {
        let content = self.file(id).map(|node| node.content.clone());
        if len == 0 {
            return Err(and(content.err(), Fault::Invalid));
        }
        let end = offset + len;
        if end > MAX_FILE_BYTES {
            return Err(and(content.err(), Fault::TooBig));
        }
        let mut content = content?;
        match mode {
            FallocateMode::Allocate { keep_size } => content.reserve(offset, end, false, keep_size),
            FallocateMode::PunchHole => content.punch(offset, end),
            FallocateMode::ZeroRange { keep_size } => content.reserve(offset, end, true, keep_size),
        }
        self.replace_content(id, content)?;
        self.changed.push((id, offset, end));
        if caller.uid != 0 {
            self.node(id)?.drop_privileges();
        }
        self.touch(id, true);
        Ok(Outcome::Done)
    }

    pub(super) fn copy(
        &mut self,
        from: NodeId,
        from_offset: u64,
        to: NodeId,
        to_offset: u64,
        len: u64,
    ) -> Step {
        let source = self.file(from).map(|node| node.content.clone());
        let mut content = match (source.as_ref(), self.file(to)) {
            (Ok(_), Ok(node)) => node.content.clone(),
            (source, target) => {
                let faults = source.err().cloned().into_iter().chain(target.err());
                return Err(faults.flatten().collect());
            }
        };
        let source = source.expect("checked");
        let len = len.min(source.size.saturating_sub(from_offset));
        if len == 0 {
            return Ok(Outcome::Number(0));
        }
        let mut faults = Vec::new();
        if from == to && from_offset < to_offset + len && to_offset < from_offset + len {
            faults.push(Fault::Invalid);
        }
        if to_offset + len > MAX_FILE_BYTES {
            faults.push(Fault::TooBig);
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        content.write(to_offset, &source.read(from_offset, len));
        self.replace_content(to, content)?;
        self.changed.push((to, to_offset, to_offset + len));
        self.touch(to, true);
        Ok(Outcome::Number(len))
    }

    pub(super) fn seek(&mut self, id: NodeId, offset: u64, to: SeekTo) -> Step {
        let content = &self.file(id)?.content;
        if offset >= content.size {
            return Err(vec![Fault::NoSuchOffset]);
        }
        match to {
            SeekTo::Data => content
                .data
                .next_inside(offset)
                .map(Outcome::Number)
                .ok_or_else(|| vec![Fault::NoSuchOffset]),
            SeekTo::Hole => Ok(Outcome::Number(
                content.data.next_outside(offset).min(content.size),
            )),
        }
    }

    pub(super) fn set_xattr(
        &mut self,
        id: NodeId,
        name: &[u8],
        value: Vec<u8>,
        mode: XattrMode,
    ) -> Step {
        let too_big = value.len() > XATTR_VALUE_BYTES_MAX;
        let node = self.node(id);
        let wrong = match (
            mode,
            node.as_ref()
                .is_ok_and(|node| node.xattrs.contains_key(name)),
        ) {
            (XattrMode::Create, true) => Some(vec![Fault::Exists]),
            (XattrMode::Replace, false) => Some(vec![Fault::NoXattr]),
            (XattrMode::Set, _) | (XattrMode::Create, false) | (XattrMode::Replace, true) => None,
        };
        if too_big {
            return Err(and(node.err().or(wrong), Fault::XattrTooBig));
        }
        let node = node?;
        if let Some(faults) = wrong {
            return Err(faults);
        }
        node.xattrs.insert(name.to_vec(), value);
        self.touch(id, false);
        Ok(Outcome::Done)
    }

    pub(super) fn xattr(&mut self, id: NodeId, name: &[u8]) -> Step {
        let value = self.node(id)?.xattrs.get(name).cloned();
        value
            .map(Outcome::Bytes)
            .ok_or_else(|| vec![Fault::NoXattr])
    }

    pub(super) fn remove_xattr(&mut self, id: NodeId, name: &[u8]) -> Step {
        if self.node(id)?.xattrs.remove(name).is_none() {
            return Err(vec![Fault::NoXattr]);
        }
        self.touch(id, false);
        Ok(Outcome::Done)
    }
}

/// A time with nanoseconds that differ from second to second.
pub(crate) fn time(secs: i64) -> Time {
    let nanos = secs.unsigned_abs().wrapping_mul(7919) % 1_000_000_000;
    Time {
        secs,
        nanos: u32::try_from(nanos).expect("below 10^9"),
    }
}
