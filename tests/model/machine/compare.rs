//! Everything that can be seen of a volume, against the model.

use std::collections::{BTreeMap, BTreeSet};

use hafs_fs::{Attr, DirEntry, FileKind, FsError, Ino, Time};

use super::{Machinery, ScanSoFar, chain};
use crate::reference::{Node, NodeId, Reference, Stamp};

/// The volume may take its times from the kernel's coarse clock, which lags by up to one tick of 100 Hz.
const CLOCK_LAG_NANOS: i128 = 10_000_000;

/// Around a change, this many bytes more are read back.
const AROUND_BYTES: u64 = 300_000;

/// One read of a comparison.
const READ_BYTES: u64 = 1 << 20;

impl Machinery {
    /// Attributes and directories of all inodes, the volume's sizes, and the bytes around the last change.
    pub(super) fn compare_visible(&self, reference: &Reference) {
        for (&id, node) in &reference.nodes {
            let attr = self.volume().getattr(self.ino(id));
            let attr =
                attr.unwrap_or_else(|error| panic!("getattr of inode {id}: {}", chain(&error)));
            self.compare_attr(reference, id, &attr);
            assert_eq!(
                self.volume().is_orphan(attr.ino),
                node.nlink == 0,
                "is_orphan of inode {id}"
            );
            if node.kind == FileKind::Directory {
                self.compare_entries(reference, id, node);
            }
        }
        for &(id, start, end) in &reference.changed {
            self.compare_bytes(id, &reference.nodes[&id], start, end);
        }
        let statfs = self.volume().statfs().expect("statfs");
        assert_eq!(
            statfs.size_bytes, reference.settings.size_bytes,
            "statfs: size"
        );
        assert_eq!(
            statfs.used_bytes,
            reference.used_bytes(),
            "statfs: used bytes"
        );
        assert_eq!(
            statfs.inodes,
            reference.nodes.len() as u64,
            "statfs: inodes"
        );
        assert!(
            statfs.available_bytes <= statfs.size_bytes - statfs.used_bytes,
            "statfs: available bytes"
        );
    }

    /// Every byte, every extended attribute, every symlink; and that what is gone is gone.
    pub(super) fn compare_everything(&self, reference: &Reference) {
        self.compare_visible(reference);
        for (&id, node) in &reference.nodes {
            match node.kind {
                FileKind::File => self.compare_bytes(id, node, 0, u64::MAX),
                FileKind::Symlink => {
                    assert_eq!(
                        self.volume().readlink(self.ino(id)).expect("readlink"),
                        node.target
                    );
                }
                _ => {}
            }
            self.compare_xattrs(id, node);
        }
        for (id, &ino) in &self.inos {
            if !reference.nodes.contains_key(id) {
                assert!(
                    matches!(self.volume().getattr(ino), Err(FsError::Stale(_))),
                    "inode {id} is gone"
                );
            }
        }
    }

    /// The volume's own check finds nothing, and agrees with itself about the digest.
    pub(super) fn check(&self) {
        let report = self.volume().check(&mut |_, _| ()).expect("check runs");
        assert!(report.problems.is_empty(), "check: {:#?}", report.problems);
        assert_eq!(
            report.digest,
            self.volume().status().digest,
            "digest of the state, and the running one"
        );
    }

    pub(super) fn compare_attr(&self, reference: &Reference, id: NodeId, attr: &Attr) {
        let node = &reference.nodes[&id];
        let wanted = Attr {
            ino: self.ino(id),
            kind: node.kind,
            perm: node.perm,
            nlink: node.nlink,
            uid: node.uid,
            gid: node.gid,
            rdev: node.rdev,
            size: node.size(),
            allocated_bytes: node.content.allocated_bytes(),
            ..attr.clone()
        };
        assert_eq!(
            attr, &wanted,
            "attributes of inode {id}: volume left, model right"
        );
        self.compare_time(id, "atime", attr.atime, node.atime);
        self.compare_time(id, "mtime", attr.mtime, node.mtime);
        self.compare_time(id, "ctime", attr.ctime, node.ctime);
        self.compare_time(id, "crtime", attr.crtime, node.crtime);
    }

    fn compare_time(&self, id: NodeId, which: &str, time: Time, wanted: Stamp) {
        match wanted {
            Stamp::At(wanted) => assert_eq!(time, wanted, "{which} of inode {id}"),
            Stamp::During(step) => {
                let (before, after) = self.windows[step];
                let range = nanos(before) - CLOCK_LAG_NANOS..=nanos(after);
                assert!(
                    range.contains(&nanos(time)),
                    "{which} of inode {id} is {time:?}, not from step {step}: {before:?} to {after:?}"
                );
            }
        }
    }

    fn compare_entries(&self, reference: &Reference, id: NodeId, node: &Node) {
        let mut found = BTreeMap::new();
        let mut order = Vec::new();
        let mut last = 0;
        let scanned = self.volume().readdir(self.ino(id), 0, &mut |entry| {
            assert!(
                entry.cookie > last && entry.cookie < 1 << 63,
                "cookies grow: {last}, {}",
                entry.cookie
            );
            last = entry.cookie;
            order.push(entry.name.clone());
            let name = entry.name.clone();
            assert!(
                found.insert(entry.name.clone(), entry).is_none(),
                "{name:?} twice in directory {id}"
            );
            true
        });
        scanned.unwrap_or_else(|error| panic!("readdir of {id}: {}", chain(&error)));
        assert_eq!(
            order[..2],
            [b".".to_vec(), b"..".to_vec()],
            "the first two entries of directory {id}"
        );
        assert_eq!(
            found.remove(b".".as_slice()).map(|dot| dot.ino),
            Some(self.ino(id))
        );
        let parent = found.remove(b"..".as_slice()).map(|dots| dots.ino);
        // A removed directory has no parent that anyone could see.
        assert!(
            node.nlink == 0 || parent == Some(self.ino(node.parent)),
            "'..' of directory {id}"
        );
        let entries = |(name, entry): (Vec<u8>, DirEntry)| (name, (entry.ino, entry.kind));
        let found: BTreeMap<_, (Ino, FileKind)> = found.into_iter().map(entries).collect();
        let child = |(name, child): (&Vec<u8>, &NodeId)| {
            (
                name.clone(),
                (self.ino(*child), reference.nodes[child].kind),
            )
        };
        let wanted: BTreeMap<_, _> = node.entries.iter().map(child).collect();
        assert_eq!(
            found, wanted,
            "entries of directory {id}: volume left, model right"
        );
    }

    /// The bytes of a file around `start..end`: what was written, the zeros beside it, and its end.
    fn compare_bytes(&self, id: NodeId, node: &Node, start: u64, end: u64) {
        let (start, end) = (
            start.saturating_sub(AROUND_BYTES),
            end.saturating_add(AROUND_BYTES),
        );
        let mut ranges = node.content.interesting();
        ranges.remove(0, start);
        ranges.remove(end, u64::MAX);
        for (from, to) in ranges.iter() {
            let mut position = from;
            while position < to {
                let len = READ_BYTES.min(to - position);
                let bytes = self.read(id, position, len);
                same_bytes(
                    &format!("inode {id}"),
                    position,
                    &node.content.read(position, len),
                    &bytes,
                );
                position += len;
            }
        }
        assert_eq!(
            self.read(id, node.content.size, 10),
            [],
            "inode {id}: bytes past the end"
        );
    }

    fn read(&self, id: NodeId, offset: u64, len: u64) -> Vec<u8> {
        let len = u32::try_from(len).expect("one read");
        let bytes = self.volume().read(self.ino(id), offset, len);
        bytes.unwrap_or_else(|error| {
            panic!(
                "read inode {id} at {offset}, {len} bytes: {}",
                chain(&error)
            )
        })
    }

    fn compare_xattrs(&self, id: NodeId, node: &Node) {
        let list = self.volume().listxattr(self.ino(id)).expect("listxattr");
        let names: BTreeSet<&[u8]> = list.split_inclusive(|&byte| byte == 0).collect();
        let wanted: BTreeSet<Vec<u8>> = node
            .xattrs
            .keys()
            .map(|name| [name.as_slice(), &[0]].concat())
            .collect();
        assert!(
            names.iter().copied().eq(wanted.iter().map(Vec::as_slice)),
            "attributes of inode {id}"
        );
        for (name, wanted) in &node.xattrs {
            let value = self.volume().getxattr(self.ino(id), name).expect("listed");
            assert_eq!(
                &value,
                wanted,
                "value of {} of inode {id}",
                name.escape_ascii()
            );
        }
    }

    /// Reads some entries of a directory, from where the last part ended; at its end, every entry that was there all the
    /// time must have come.
    pub(super) fn scan(
        &mut self,
        reference: &Reference,
        dir: NodeId,
        entries: usize,
        plus: bool,
    ) -> Result<(), FsError> {
        let Some(expected) = reference.scans.get(&dir) else {
            return self.volume().readdir(self.ino(dir), 0, &mut |_| true);
        };
        let fresh = ScanSoFar {
            number: expected.number,
            cookie: 0,
            seen: BTreeSet::new(),
        };
        let mut scan = match self.scans.remove(&dir) {
            Some(scan) if scan.number == expected.number => scan,
            _ => fresh,
        };
        let mut batch = Vec::new();
        if plus {
            self.volume()
                .readdir_plus(self.ino(dir), scan.cookie, &mut |entry, attr| {
                    let room = batch.len() < entries;
                    if room {
                        batch.push((entry, Some(attr)));
                    }
                    room
                })?;
        } else {
            self.volume()
                .readdir(self.ino(dir), scan.cookie, &mut |entry| {
                    let room = batch.len() < entries;
                    if room {
                        batch.push((entry, None));
                    }
                    room
                })?;
        }
        let ended = batch.len() < entries;
        for (entry, attr) in batch {
            scan.cookie = entry.cookie;
            self.take_scanned(reference, dir, &mut scan, entry, attr);
        }
        if ended {
            let missed: Vec<_> = expected.stable.difference(&scan.seen).collect();
            assert!(
                missed.is_empty(),
                "directory {dir}, read in parts, left out {missed:?}"
            );
        }
        self.scans.insert(dir, scan);
        Ok(())
    }

    fn take_scanned(
        &self,
        reference: &Reference,
        dir: NodeId,
        scan: &mut ScanSoFar,
        entry: DirEntry,
        attr: Option<Attr>,
    ) {
        let dots = entry.name == b"." || entry.name == b"..";
        let child = reference.nodes[&dir].entries.get(&entry.name);
        assert!(
            dots || child.is_some(),
            "directory {dir} shows {:?}, which is not there",
            entry.name
        );
        if let (Some(&child), Some(attr)) = (child, attr) {
            self.compare_attr(reference, child, &attr);
        }
        let fresh = scan.seen.insert(entry.name.clone());
        let renewed = reference.scans[&dir].removed.contains(&entry.name);
        assert!(
            fresh || renewed,
            "directory {dir}, read in parts, shows {:?} twice",
            entry.name
        );
    }
}

/// Compares bytes and says where the first difference is.
pub(super) fn same_bytes(what: &str, offset: u64, wanted: &[u8], found: &[u8]) {
    assert_eq!(
        found.len(),
        wanted.len(),
        "{what}: length of what was read at {offset}"
    );
    if let Some(at) = wanted
        .iter()
        .zip(found)
        .position(|(wanted, found)| wanted != found)
    {
        let bad = wanted
            .iter()
            .zip(found)
            .filter(|(wanted, found)| wanted != found)
            .count();
        let first = offset + at as u64;
        panic!(
            "{what}: byte {first} is {:#04x}, not {:#04x}; {bad} differ in all",
            found[at], wanted[at]
        );
    }
}

fn nanos(time: Time) -> i128 {
    i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos)
}
