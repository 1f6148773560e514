//! The power goes under one volume, without daemon and mount: many cuts a second, at any request to the disk.
//!
//! A [`Volume`] with small files, so that everything rolls, flushes and is collected all the time, makes one sequence of
//! changes ([`tree`](crate::tree)). The power goes with the n-th request to the disk, whoever makes it: in the middle of a change, of a
//! sync, of a flush, of the collector, of recovery. Before, processes may have ended without a cut, so that a log is replayed that
//! only the page cache holds. Then the volume is opened on what is left, and must hold a prefix of the changes with everything that was
//! synced, and `check` must find nothing.

use std::time::Duration;

use hafs_fs::{
    Attr, Caller, FileKind, FsError, Ino, Profile, RenameMode, SetAttr, SharedCache, Volume,
    VolumeIdentity, VolumeSettings, XattrMode,
};
use hafs_protocol::{Epoch, Lineage, NodeId, StoreId, VolumeId};
use hafs_tests::lossy::{Cut, Lossy, Mode};
use hafs_tests::numbers::Numbers;
use hafs_tests::{Scratch, requirement};

use crate::history::Lost;
use crate::tree::{Node, Op, Tree, held};
use crate::writer::{BLOCK, End, blocks, numbers_of};

const XATTR: &[u8] = b"user.number";
/// A process makes so many changes at most.
const OPS_MAX: u64 = 400;
/// So many processes open the volume before the power goes.
const LIVES_MAX: u64 = 3;
/// Requests to the disk until the cut, at most: while the volume opens and is read, or after that.
const REQUESTS_MAX: u64 = 2000;

fn identity() -> VolumeIdentity {
    VolumeIdentity {
        volume: VolumeId::from_bytes([1; 16]),
        store: StoreId::from_bytes([2; 16]),
        node: NodeId::from_bytes([3; 16]),
        lineage: Lineage::from_bytes([4; 16]),
    }
}

fn settings(state_buffer_bytes: u64) -> VolumeSettings {
    VolumeSettings {
        log_file_bytes: 256 << 10,
        log_keep_bytes: 256 << 10,
        segment_bytes: 1 << 20,
        state_buffer_bytes,
        cache: SharedCache::new(4 << 20),
        ..VolumeSettings::new(256 << 20, Profile::Database)
    }
}

fn text(error: &FsError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A volume and what was done to it.
struct Trial {
    numbers: Numbers,
    epoch: Epoch,
    base: Tree,
    now: Tree,
    ops: Vec<(u64, Op)>,
    /// Changes that an fsync promised, of `ops`.
    synced: usize,
    next: u64,
}

impl Trial {
    fn new(seed: u64) -> Self {
        Self {
            numbers: Numbers::new(seed),
            epoch: Epoch(1),
            base: Tree::default(),
            now: Tree::default(),
            ops: Vec::new(),
            synced: 0,
            next: 1,
        }
    }

    /// Opens the volume, compares, goes on, until the power goes; the process may end before, more than once.
    fn round(&mut self, lossy: &Lossy, mode: Mode) -> Result<(), Lost> {
        let seed = self.numbers.below(u64::MAX);
        let cut = Cut { mode, seed };
        let requests = self.numbers.below(REQUESTS_MAX);
        let (lives, cut_in) = (1 + self.numbers.below(LIVES_MAX), self.numbers.below(4));
        let mut end = End::Power;
        for life in 1..=lives {
            // The last one takes the cut: once in four rounds from its start on, else once it is open.
            if life == lives && cut_in == 0 {
                lossy.cut_after(requests, cut);
            }
            let Some(volume) = self.open(lossy)? else {
                return Ok(());
            };
            let examined = self.examine(&volume, end);
            if lossy.loss().is_some() {
                // Reading, too, needs power.
                volume.crash();
                return Ok(());
            }
            examined?;
            if life == lives && cut_in > 0 {
                lossy.cut_after(requests, cut);
            }
            let refused = self.go_on(&volume);
            volume.crash();
            match refused {
                Err(_) if lossy.loss().is_some() => return Ok(()),
                Err(error) => return Err(format!("refused with power: {}", text(&error))),
                Ok(()) => end = End::Process,
            }
        }
        if lossy.loss().is_none() {
            lossy.cut(cut);
        }
        Ok(())
    }

    fn open(&mut self, lossy: &Lossy) -> Result<Option<Volume>, Lost> {
        self.epoch = self.epoch.next().expect("few epochs");
        let store = lossy.dir().join("store");
        // Flushes all the time, or seldom.
        let settings = settings(self.numbers.one_of(&[64 << 10, 1 << 20]));
        match Volume::open(&store, &identity(), &settings, self.epoch) {
            Ok(volume) => Ok(Some(volume)),
            Err(_) if lossy.loss().is_some() => Ok(None),
            Err(error) => Err(format!("does not open: {}", text(&error))),
        }
    }

    fn examine(&mut self, volume: &Volume, end: End) -> Result<(), Lost> {
        let found = read(volume).map_err(|error| text(&error))??;
        let held = held(&self.base, &self.ops, &found.seen())?;
        let promised = match end {
            End::Power => self.synced,
            // The end of a process alone loses nothing.
            End::Process => self.ops.len(),
        };
        if held.most < promised {
            return Err(format!(
                "{promised} of {} changes must be there after the end of the {end:?}, the volume holds {}",
                self.ops.len(),
                held.most
            ));
        }
        let report = volume.check(&mut |_, _| {}).map_err(|error| text(&error))?;
        if report.problem_count > 0 {
            return Err(format!("check: {:?}", report.problems));
        }
        if end == End::Power {
            for (number, op) in self.ops.drain(..).take(held.most) {
                self.base.apply(&op, number);
            }
            self.now = self.base.clone();
            self.synced = 0;
        }
        Ok(())
    }

    /// Makes changes until one fails, or it is enough.
    fn go_on(&mut self, volume: &Volume) -> Result<(), FsError> {
        for _ in 0..self.numbers.below(OPS_MAX) {
            self.step(volume)?;
        }
        Ok(())
    }

    fn step(&mut self, volume: &Volume) -> Result<(), FsError> {
        match self.numbers.below(60) {
            0 => {
                volume.sync()?;
                self.synced = self.ops.len();
            }
            1 => drop(volume.collect()?),
            // Without power it reclaims none, and the next change is refused.
            2 => {
                volume.reclaim_orphans();
            }
            _ => {
                let number = self.next;
                if let Some(op) = self.now.draw(&mut self.numbers, number) {
                    self.next += 1;
                    self.ops.push((number, op.clone()));
                    perform(volume, &op, number)?;
                    self.now.apply(&op, number);
                }
            }
        }
        Ok(())
    }
}

/// Directory and name of a path.
fn parent<'a>(volume: &Volume, path: &'a str) -> Result<(Ino, &'a [u8]), FsError> {
    match path.split_once('/') {
        Some((dir, name)) => {
            let dir = volume.lookup(Ino::ROOT, dir.as_bytes())?;
            Ok((dir.ino, name.as_bytes()))
        }
        None => Ok((Ino::ROOT, path.as_bytes())),
    }
}

fn perform(volume: &Volume, op: &Op, number: u64) -> Result<(), FsError> {
    let root = Caller::ROOT;
    let node = |path: &str| {
        let (dir, name) = parent(volume, path)?;
        Ok::<Ino, FsError>(volume.lookup(dir, name)?.ino)
    };
    match op {
        Op::Create(path) => {
            let (dir, name) = parent(volume, path)?;
            let mode = libc::S_IFREG | 0o640;
            volume.mknod(root, dir, name, mode, 0).map(drop)
        }
        Op::Mkdir(path) => {
            let (dir, name) = parent(volume, path)?;
            volume.mkdir(root, dir, name, 0o755).map(drop)
        }
        Op::Write(path, from, count) => {
            let bytes = blocks(number, *from, *count);
            let offset = from * BLOCK as u64;
            let written = volume.write(node(path)?, offset, &bytes, false, false)?;
            assert_eq!(written as usize, bytes.len());
            Ok(())
        }
        Op::Truncate(path, len) => {
            let set = SetAttr {
                size: Some(len * BLOCK as u64),
                ..SetAttr::default()
            };
            volume.setattr(root, node(path)?, &set).map(drop)
        }
        Op::Chmod(path, mode) => {
            let set = SetAttr {
                perm: Some(u16::try_from(*mode).expect("12 bits")),
                ..SetAttr::default()
            };
            volume.setattr(root, node(path)?, &set).map(drop)
        }
        Op::SetXattr(path) => {
            let value = number.to_le_bytes();
            volume.setxattr(root, node(path)?, XATTR, &value, XattrMode::Set)
        }
        Op::Rename(from, to) => {
            let ((dir, name), (new_dir, new_name)) = (parent(volume, from)?, parent(volume, to)?);
            volume.rename(root, dir, name, new_dir, new_name, RenameMode::Replace)
        }
        Op::Link(path, to) => {
            let (dir, name) = parent(volume, to)?;
            volume.link(node(path)?, dir, name).map(drop)
        }
        Op::Unlink(path) => {
            let (dir, name) = parent(volume, path)?;
            volume.unlink(dir, name)
        }
        Op::Rmdir(path) => {
            let (dir, name) = parent(volume, path)?;
            volume.rmdir(dir, name)
        }
    }
}

/// Reads the whole tree.
fn read(volume: &Volume) -> Result<Result<Tree, Lost>, FsError> {
    let mut tree = Tree::default();
    let mut todo = vec![(Ino::ROOT, String::new())];
    while let Some((dir, at)) = todo.pop() {
        let mut entries = Vec::new();
        volume.readdir_plus(dir, 0, &mut |entry, attr| {
            entries.push((entry, attr));
            true
        })?;
        for (entry, attr) in entries {
            if matches!(entry.name.as_slice(), b"." | b"..") {
                continue;
            }
            let path = format!("{at}{}", String::from_utf8_lossy(&entry.name));
            let node = if attr.kind == FileKind::Directory {
                todo.push((attr.ino, format!("{path}/")));
                Node::Directory
            } else {
                match read_file(volume, &attr)? {
                    Ok(node) => node,
                    Err(lost) => return Ok(Err(format!("{path}: {lost}"))),
                }
            };
            tree.nodes.insert(attr.ino.0, node);
            tree.names.insert(path, attr.ino.0);
        }
    }
    Ok(Ok(tree))
}

fn read_file(volume: &Volume, attr: &Attr) -> Result<Result<Node, Lost>, FsError> {
    let len = u32::try_from(attr.size).expect("small files");
    let bytes = volume.read(attr.ino, 0, len)?;
    let xattr = match volume.getxattr(attr.ino, XATTR) {
        Ok(value) => u64::from_le_bytes(value.try_into().expect("8 bytes")),
        Err(FsError::NoXattr) => 0,
        Err(error) => return Err(error),
    };
    Ok(numbers_of(&bytes).map(|blocks| Node::File {
        blocks,
        mode: attr.perm.into(),
        xattr,
    }))
}

/// What the trials of one test came to.
#[derive(Debug, Default)]
struct Figures {
    cuts: usize,
    losing: usize,
    lost_bytes: u64,
}

fn cuts(count: usize, seed: u64) -> Result<Figures, Lost> {
    let scratch = Scratch::new();
    let (disk, data) = (scratch.dir("disk"), scratch.dir("data"));
    let mut trial = Trial::new(seed);
    {
        let lossy = Lossy::mount(&disk, &data, seed);
        let store = lossy.dir().join("store");
        Volume::create(&store, &identity(), &settings(64 << 10), trial.epoch)
            .expect("an empty disk");
    }
    let mut figures = Figures::default();
    for cut in 0..count {
        let mode = Mode::ALL[cut % Mode::ALL.len()];
        let lossy = Lossy::mount(&disk, &data, trial.numbers.below(u64::MAX));
        let takes = trial.numbers.one_of(&[0, 0, 0, 200, 1000]);
        lossy.set_sync_takes(Duration::from_micros(takes));
        let done = trial.round(&lossy, mode);
        done.map_err(|lost| format!("after cut {cut} (seed {seed}): {lost}"))?;
        if let Some(loss) = lossy.loss() {
            let lost = loss.bytes_in("/log/") + loss.bytes_in("/segments/");
            figures.cuts += 1;
            figures.losing += usize::from(lost > 0);
            figures.lost_bytes += lost;
        }
        drop(lossy);
    }
    Ok(figures)
}

#[test]
fn a_volume_alone_keeps_what_was_synced() {
    if !requirement::mounts_work("power cuts of a volume alone") {
        return;
    }
    let seed = crate::cuts::seed();
    let start = std::time::Instant::now();
    match cuts(crate::cuts::variable_cuts(2), seed) {
        Ok(figures) => {
            eprintln!("{figures:?} in {:?}", start.elapsed());
            assert!(figures.losing * 3 >= figures.cuts, "{figures:?}");
        }
        Err(lost) => panic!("{lost}"),
    }
}
