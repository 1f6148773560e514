//! Names: what creates, removes and moves them, and reading directories.

use hafs_fs::{Caller, FileKind, RenameMode};

use super::{Fault, Node, NodeId, Outcome, ROOT, Reference, Scan, Step, and};
use crate::op::Name;

const NAME_BYTES_MAX: usize = 255;
const SYMLINK_BYTES_MAX: usize = 4095;

impl Reference {
    /// The directory, if names can be looked up in it.
    fn directory(&self, id: NodeId) -> Result<&Node, Vec<Fault>> {
        let node = self.nodes.get(&id).ok_or_else(|| vec![Fault::Stale])?;
        if node.kind == FileKind::Directory {
            Ok(node)
        } else {
            Err(vec![Fault::NotDirectory])
        }
    }

    /// What `name` stands for.
    fn entry(&self, parent: NodeId, name: Name) -> Result<NodeId, Vec<Fault>> {
        let directory = self.directory(parent);
        let bytes = name.bytes();
        if bytes.len() > NAME_BYTES_MAX {
            return Err(and(directory.err(), Fault::NameTooLong));
        }
        directory?
            .entries
            .get(&bytes)
            .copied()
            .ok_or_else(|| vec![Fault::NotFound])
    }

    /// Fails unless `name` can be made in `parent`.
    fn vacant(&self, parent: NodeId, name: Name) -> Result<(), Vec<Fault>> {
        let directory = self.directory(parent);
        if name.bytes().len() > NAME_BYTES_MAX {
            let gone = directory
                .as_ref()
                .is_ok_and(|directory| directory.nlink == 0);
            let faults = directory
                .err()
                .or_else(|| gone.then(|| vec![Fault::NotFound]));
            return Err(and(faults, Fault::NameTooLong));
        }
        let directory = directory?;
        // A removed directory that is still open holds nothing more.
        if directory.nlink == 0 {
            return Err(vec![Fault::NotFound]);
        }
        if directory.entries.contains_key(&name.bytes()) {
            return Err(vec![Fault::Exists]);
        }
        Ok(())
    }

    fn add_entry(&mut self, parent: NodeId, name: Name, id: NodeId) {
        let directory = self.nodes.get_mut(&parent).expect("checked");
        directory.entries.insert(name.bytes(), id);
        let child = self.nodes.get_mut(&id).expect("just made");
        if child.kind == FileKind::Directory {
            child.parent = parent;
            self.nodes.get_mut(&parent).expect("checked").nlink += 1;
        }
        self.touch(parent, true);
    }

    fn take_entry(&mut self, parent: NodeId, name: Name) -> NodeId {
        let directory = self.nodes.get_mut(&parent).expect("checked");
        let id = directory.entries.remove(&name.bytes()).expect("checked");
        if self.nodes[&id].kind == FileKind::Directory {
            self.nodes.get_mut(&parent).expect("checked").nlink -= 1;
        }
        self.touch(parent, true);
        if let Some(scan) = self.scans.get_mut(&parent) {
            scan.stable.remove(&name.bytes());
            scan.removed.insert(name.bytes());
        }
        id
    }

    /// One name less for `id`.
    fn drop_link(&mut self, id: NodeId) {
        self.touch(id, false);
        let node = self.nodes.get_mut(&id).expect("checked");
        node.nlink = if node.kind == FileKind::Directory {
            0
        } else {
            node.nlink - 1
        };
    }

    fn create(
        &mut self,
        id: NodeId,
        parent: NodeId,
        name: Name,
        umask: u16,
        mut node: Node,
    ) -> Step {
        self.vacant(parent, name)?;
        self.inherit(&mut node, parent, umask);
        self.nodes.insert(id, node);
        self.add_entry(parent, name, id);
        Ok(Outcome::Node(id))
    }

    /// What a new node has of its directory.
    fn inherit(&self, node: &mut Node, parent: NodeId, umask: u16) {
        let directory = &self.nodes[&parent];
        node.inherit_acl(directory, umask);
        if directory.perm & 0o2000 != 0 {
            node.gid = directory.gid;
            if node.kind == FileKind::Directory {
                node.perm |= 0o2000;
            }
        }
    }

    pub(super) fn mknod(
        &mut self,
        id: NodeId,
        caller: Caller,
        parent: NodeId,
        name: Name,
        mode: u32,
        rdev: u32,
    ) -> Step {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFREG => FileKind::File,
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            libc::S_IFCHR => FileKind::CharDevice,
            libc::S_IFBLK => FileKind::BlockDevice,
            other => unreachable!("no operation makes type {other:o}"),
        };
        let perm = u16::try_from(mode & 0o7777).expect("masked");
        let mut node = Node::new(kind, perm, caller, self.now());
        if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) {
            node.rdev = rdev;
        }
        self.create(id, parent, name, caller.umask, node)
    }

    pub(super) fn mkdir(
        &mut self,
        id: NodeId,
        caller: Caller,
        parent: NodeId,
        name: Name,
        mode: u32,
    ) -> Step {
        let perm = u16::try_from(mode & 0o7777).expect("masked");
        self.create(
            id,
            parent,
            name,
            caller.umask,
            Node::new(FileKind::Directory, perm, caller, self.now()),
        )
    }

    pub(super) fn symlink(
        &mut self,
        id: NodeId,
        caller: Caller,
        parent: NodeId,
        name: Name,
        target_len: usize,
    ) -> Step {
        if target_len > SYMLINK_BYTES_MAX {
            let mut faults = vec![Fault::NameTooLong];
            faults.extend(self.vacant(parent, name).err().into_iter().flatten());
            return Err(faults);
        }
        let mut node = Node::new(FileKind::Symlink, 0o777, caller, self.now());
        node.target = vec![b't'; target_len];
        self.create(id, parent, name, 0, node)
    }

    pub(super) fn link(&mut self, id: NodeId, parent: NodeId, name: Name) -> Step {
        let Some(node) = self.nodes.get(&id) else {
            let mut faults = vec![Fault::Stale];
            faults.extend(self.vacant(parent, name).err().into_iter().flatten());
            return Err(faults);
        };
        let mut faults = Vec::new();
        if node.kind == FileKind::Directory {
            faults.push(Fault::NotPermitted);
        } else if node.nlink == 0 {
            faults.push(Fault::NotFound);
        }
        faults.extend(self.vacant(parent, name).err().into_iter().flatten());
        if !faults.is_empty() {
            return Err(faults);
        }
        self.nodes.get_mut(&id).expect("checked").nlink += 1;
        self.touch(id, false);
        self.add_entry(parent, name, id);
        Ok(Outcome::Node(id))
    }

    pub(super) fn unlink(&mut self, parent: NodeId, name: Name) -> Step {
        let id = self.entry(parent, name)?;
        if self.nodes[&id].kind == FileKind::Directory {
            return Err(vec![Fault::IsDirectory]);
        }
        self.take_entry(parent, name);
        self.drop_link(id);
        Ok(Outcome::Done)
    }

    pub(super) fn rmdir(&mut self, parent: NodeId, name: Name) -> Step {
        let id = self.entry(parent, name)?;
        let node = &self.nodes[&id];
        if node.kind != FileKind::Directory {
            return Err(vec![Fault::NotDirectory]);
        }
        if !node.entries.is_empty() {
            return Err(vec![Fault::NotEmpty]);
        }
        self.take_entry(parent, name);
        self.drop_link(id);
        Ok(Outcome::Done)
    }

    /// True if `id` is `ancestor` or lies below it.
    fn is_below(&self, mut id: NodeId, ancestor: NodeId) -> bool {
        loop {
            if id == ancestor {
                return true;
            }
            if id == ROOT || self.nodes[&id].nlink == 0 {
                return false;
            }
            id = self.nodes[&id].parent;
        }
    }

    pub(super) fn rename(
        &mut self,
        whiteout: NodeId,
        from: (NodeId, Name),
        to: (NodeId, Name),
        mode: RenameMode,
    ) -> Step {
        let source = self.entry(from.0, from.1);
        let target = self.entry(to.0, to.1);
        // Which of two wrong arguments is named is open.
        let source = match (source, &target) {
            (Ok(source), _) => source,
            (Err(mut faults), Err(others)) => {
                faults.extend(others);
                return Err(faults);
            }
            (Err(faults), Ok(_)) => return Err(faults),
        };
        let target = match target {
            Ok(target) => Some(target),
            Err(faults) if faults == [Fault::NotFound] => None,
            Err(faults) => return Err(faults),
        };
        self.rename_allowed(from, to, (source, target), mode)?;
        if target == Some(source) {
            return Ok(Outcome::Done);
        }
        self.take_entry(from.0, from.1);
        if let Some(target) = target {
            self.take_entry(to.0, to.1);
            if mode == RenameMode::Exchange {
                self.add_entry(from.0, from.1, target);
                self.touch(target, false);
            } else {
                self.drop_link(target);
            }
        }
        self.add_entry(to.0, to.1, source);
        self.touch(source, false);
        if mode == RenameMode::Whiteout {
            let mut node = Node::new(FileKind::CharDevice, 0, Caller::ROOT, self.now());
            self.inherit(&mut node, from.0, 0);
            self.nodes.insert(whiteout, node);
            self.add_entry(from.0, from.1, whiteout);
            return Ok(Outcome::Node(whiteout));
        }
        Ok(Outcome::Done)
    }

    fn rename_allowed(
        &self,
        from: (NodeId, Name),
        to: (NodeId, Name),
        (source, target): (NodeId, Option<NodeId>),
        mode: RenameMode,
    ) -> Result<(), Vec<Fault>> {
        let mut faults = Vec::new();
        let is_dir = |id: NodeId| self.nodes[&id].kind == FileKind::Directory;
        if self.nodes[&to.0].nlink == 0 {
            faults.push(Fault::NotFound);
        }
        if is_dir(source) && self.is_below(to.0, source) {
            faults.push(Fault::Invalid);
        }
        match (target, mode) {
            (Some(_), RenameMode::NoReplace) => faults.push(Fault::Exists),
            (None, RenameMode::Exchange) => faults.push(Fault::NotFound),
            (Some(target), RenameMode::Exchange) => {
                if is_dir(target) && self.is_below(from.0, target) {
                    faults.push(Fault::Invalid);
                }
            }
            (Some(target), RenameMode::Replace | RenameMode::Whiteout) if target != source => {
                if is_dir(source) && !is_dir(target) {
                    faults.push(Fault::NotDirectory);
                }
                if !is_dir(source) && is_dir(target) {
                    faults.push(Fault::IsDirectory);
                }
                if !self.nodes[&target].entries.is_empty() {
                    faults.push(Fault::NotEmpty);
                }
            }
            (Some(_), RenameMode::Replace | RenameMode::Whiteout) | (None, _) => {}
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults)
        }
    }

    pub(super) fn lookup(&self, parent: NodeId, name: Name) -> Step {
        self.entry(parent, name).map(Outcome::Node)
    }

    pub(super) fn readlink(&mut self, id: NodeId) -> Step {
        let node = self.node(id)?;
        if node.kind == FileKind::Symlink {
            Ok(Outcome::Bytes(node.target.clone()))
        } else {
            Err(vec![Fault::Invalid])
        }
    }

    pub(super) fn scan_start(&mut self, dir: NodeId) -> Step {
        let stable = self.directory(dir)?.entries.keys().cloned().collect();
        let scan = Scan {
            number: self.step,
            stable,
            removed: std::collections::BTreeSet::new(),
        };
        self.scans.insert(dir, scan);
        Ok(Outcome::Unspecified)
    }

    pub(super) fn scan_next(&mut self, dir: NodeId) -> Step {
        self.directory(dir)?;
        Ok(Outcome::Unspecified)
    }

    pub(super) fn reclaim(&mut self, id: NodeId) -> Outcome {
        if self.nodes.get(&id).is_some_and(|node| node.nlink == 0) {
            self.nodes.remove(&id);
            self.scans.remove(&id);
        }
        Outcome::Done
    }

    pub(super) fn reclaim_orphans(&mut self) -> Outcome {
        let orphans = self.orphans();
        for &id in &orphans {
            self.reclaim(id);
        }
        Outcome::Number(orphans.len() as u64)
    }
}
