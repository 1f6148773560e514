//! The lossy disk: nodes, names and contents together, over a backing directory.
//!
//! While it is mounted, each regular file's live bytes lie in `BACKING.live/NUMBER`, and the names in memory. A cut or an
//! unmount makes the backing directory what the disk holds: names are made anew, as hard links of those files.
//! One lock for everything; only reads and the wait of a sync are outside of it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::contents::Contents;
use super::fault::{Fault, FaultId, Request};
use super::names::{Names, NodeId, ROOT, Set};
use super::{Cut, Loss, LostFile};
use crate::numbers::Numbers;

/// Nodes that nothing refers to any more are looked for when there are so many more than after the last look.
const SWEEP_EVERY: usize = 256;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Disk {
    backing: PathBuf,
    live: PathBuf,
    state: Mutex<State>,
    /// Told when the power goes, a sync of a file ends, or the request comes that somebody waits for.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    nodes: HashMap<NodeId, Node>,
    names: Names,
    next: NodeId,
    sweep_at: usize,
    faults: BTreeMap<FaultId, Fault>,
    faults_made: u64,
    sync_takes: Duration,
    numbers: Numbers,
    requests: u64,
    /// Somebody waits for so many.
    awaited: Option<u64>,
    /// The power goes with this request.
    cut_at: Option<(u64, Cut)>,
    loss: Option<Loss>,
    is_cut: bool,
}

#[derive(Debug)]
pub(super) struct Node {
    body: Body,
    pub(super) meta: Meta,
    opens: u64,
    /// A sync of it runs.
    syncs: bool,
}

#[derive(Debug)]
enum Body {
    File(Contents),
    Directory,
    Symlink(OsString),
}

/// What a node is, for the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meta {
    pub(super) perm: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: SystemTime,
    pub(super) ctime: SystemTime,
}

/// Kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
}

/// A node as stat(2) shows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stat {
    pub(super) node: NodeId,
    pub(super) kind: Kind,
    pub(super) len: u64,
    pub(super) blocks: u64,
    pub(super) links: u64,
    pub(super) meta: Meta,
}

/// What is to be made under a new name.
#[derive(Debug)]
pub(super) enum New<'a> {
    File,
    Directory,
    Symlink(&'a OsStr),
}

/// How a rename treats what has the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rename {
    Replace,
    NoReplace,
    Exchange,
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

impl Disk {
    /// Takes over the backing directory as what the disk holds.
    pub(super) fn open(backing: &Path, seed: u64) -> io::Result<Self> {
        let live = backing.with_added_extension("live");
        match fs::remove_dir_all(&live) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&live)?,
        }
        let mut state = State {
            nodes: HashMap::new(),
            names: Names::new(),
            next: ROOT,
            sweep_at: SWEEP_EVERY,
            faults: BTreeMap::new(),
            faults_made: 0,
            sync_takes: Duration::ZERO,
            numbers: Numbers::new(seed),
            requests: 0,
            awaited: None,
            cut_at: None,
            loss: None,
            is_cut: false,
        };
        let root = fs::symlink_metadata(backing)?;
        state.add(Body::Directory, &Meta::of(&root)?);
        let disk = Self {
            backing: backing.to_owned(),
            live,
            state: Mutex::new(state),
            changed: Condvar::new(),
        };
        disk.scan()?;
        Ok(disk)
    }

    fn scan(&self) -> io::Result<()> {
        let mut state = self.lock();
        let mut known: HashMap<u64, NodeId> = HashMap::new();
        let mut todo = vec![(self.backing.clone(), ROOT)];
        while let Some((path, dir)) = todo.pop() {
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                let metadata = entry.path().symlink_metadata()?;
                let meta = Meta::of(&metadata)?;
                let node = if metadata.is_dir() {
                    let node = state.add(Body::Directory, &meta);
                    state.names.add_dir(node);
                    todo.push((entry.path(), node));
                    node
                } else if metadata.is_symlink() {
                    let target = fs::read_link(entry.path())?;
                    state.add(Body::Symlink(target.into_os_string()), &meta)
                } else if let Some(node) = known.get(&metadata.ino()) {
                    *node
                } else {
                    let live = self.live.join(state.next.to_string());
                    fs::hard_link(entry.path(), &live)?;
                    let file = OpenOptions::new().read(true).write(true).open(&live)?;
                    let node = state.add(Body::File(Contents::new(file)?), &meta);
                    known.insert(metadata.ino(), node);
                    node
                };
                state.set(dir, &entry.file_name(), Some(node));
            }
        }
        state.names.settle();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no request panics")
    }

    /// The state, as long as there is power.
    fn powered(&self) -> Result<MutexGuard<'_, State>, Errno> {
        let mut state = self.lock();
        if state.is_cut {
            return Err(Errno::IO);
        }
        state.requests += 1;
        if state.awaited.is_some_and(|at| state.requests >= at) {
            state.awaited = None;
            self.changed.notify_all();
        }
        if let Some((at, cut)) = state.cut_at
            && state.requests >= at
        {
            self.cut_now(&mut state, cut).map_err(errno)?;
            return Err(Errno::IO);
        }
        Ok(state)
    }

    // ---- names ----

    pub(super) fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Stat, Errno> {
        let state = self.powered()?;
        let node = state.names.get(dir, name).ok_or(Errno::NOENT)?;
        state.stat(node)
    }

    pub(super) fn stat(&self, node: NodeId) -> Result<Stat, Errno> {
        self.powered()?.stat(node)
    }

    pub(super) fn list(&self, dir: NodeId) -> Result<Vec<(OsString, Stat)>, Errno> {
        let state = self.powered()?;
        let entries = state.names.entries(dir);
        entries
            .map(|(name, node)| Ok((name.clone(), state.stat(node)?)))
            .collect()
    }

    pub(super) fn read_link(&self, node: NodeId) -> Result<OsString, Errno> {
        match &self.powered()?.node(node)?.body {
            Body::Symlink(target) => Ok(target.clone()),
            Body::File(_) | Body::Directory => Err(Errno::INVAL),
        }
    }

    /// Makes something under a new name; a file is opened as well if `open`.
    pub(super) fn make(
        &self,
        dir: NodeId,
        name: &OsStr,
        new: &New<'_>,
        meta: &Meta,
        open: bool,
    ) -> Result<Stat, Errno> {
        let mut state = self.powered()?;
        let path = state.names.path(dir).join(name);
        state.strike(Request::Name, &path)?;
        if state.names.get(dir, name).is_some() {
            return Err(Errno::EXIST);
        }
        let body = match new {
            New::File => Body::File(self.new_file(&state).map_err(errno)?),
            New::Directory => Body::Directory,
            New::Symlink(target) => Body::Symlink((*target).to_owned()),
        };
        let is_dir = matches!(body, Body::Directory);
        let node = state.add(body, meta);
        if is_dir {
            state.names.add_dir(node);
        }
        state.node_mut(node)?.opens = u64::from(open);
        state.set(dir, name, Some(node));
        state.stat(node)
    }

    fn new_file(&self, state: &State) -> io::Result<Contents> {
        let path = self.live.join(state.next.to_string());
        let mut options = OpenOptions::new();
        Contents::new(options.read(true).write(true).create_new(true).open(path)?)
    }

    pub(super) fn link(&self, node: NodeId, dir: NodeId, name: &OsStr) -> Result<Stat, Errno> {
        let mut state = self.powered()?;
        let path = state.names.path(dir).join(name);
        state.strike(Request::Name, &path)?;
        if state.names.get(dir, name).is_some() {
            return Err(Errno::EXIST);
        }
        state.set(dir, name, Some(node));
        state.stat(node)
    }

    /// `unlink`, or `rmdir` if `directory`.
    pub(super) fn remove(&self, dir: NodeId, name: &OsStr, directory: bool) -> Result<(), Errno> {
        let mut state = self.powered()?;
        let path = state.names.path(dir).join(name);
        state.strike(Request::Remove, &path)?;
        let node = state.names.get(dir, name).ok_or(Errno::NOENT)?;
        let is_dir = matches!(state.node(node)?.body, Body::Directory);
        match (directory, is_dir) {
            (true, false) => return Err(Errno::NOTDIR),
            (false, true) => return Err(Errno::ISDIR),
            (true, true) if state.names.entries(node).next().is_some() => {
                return Err(Errno::NOTEMPTY);
            }
            (true, true) | (false, false) => {}
        }
        state.set(dir, name, None);
        self.sweep(&mut state);
        Ok(())
    }

    pub(super) fn rename(
        &self,
        (dir, name): (NodeId, &OsStr),
        (new_dir, new_name): (NodeId, &OsStr),
        how: Rename,
    ) -> Result<(), Errno> {
        let mut state = self.powered()?;
        let path = state.names.path(new_dir).join(new_name);
        state.strike(Request::Name, &path)?;
        let node = state.names.get(dir, name).ok_or(Errno::NOENT)?;
        let target = state.names.get(new_dir, new_name);
        let is_dir = |state: &State, node| {
            let body = &state.node(node)?.body;
            Ok::<bool, Errno>(matches!(body, Body::Directory))
        };
        let moves_dir = is_dir(&state, node)?;
        if moves_dir && state.names.is_below(new_dir, node) {
            return Err(Errno::INVAL);
        }
        let back = match (how, target) {
            (Rename::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (Rename::Exchange, None) => return Err(Errno::NOENT),
            (Rename::Exchange, Some(target)) => Some(target),
            (Rename::Replace, Some(target)) if target == node => return Ok(()),
            (Rename::Replace, Some(target)) => match (moves_dir, is_dir(&state, target)?) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if state.names.entries(target).next().is_some() => {
                    return Err(Errno::NOTEMPTY);
                }
                (true, true) | (false, false) => None,
            },
            (Rename::Replace | Rename::NoReplace, None) => None,
        };
        let set = |dir, name: &OsStr, node| Set {
            dir,
            name: name.to_owned(),
            node,
        };
        let sets = vec![set(dir, name, back), set(new_dir, new_name, Some(node))];
        let moves_dir = moves_dir || back.is_some_and(|back| is_dir(&state, back) == Ok(true));
        state.names.change(sets, moves_dir);
        self.sweep(&mut state);
        Ok(())
    }

    // ---- contents ----

    pub(super) fn opened(&self, node: NodeId) -> Result<(), Errno> {
        self.powered()?.node_mut(node)?.opens += 1;
        Ok(())
    }

    pub(super) fn closed(&self, node: NodeId) {
        if let Some(node) = self.lock().nodes.get_mut(&node) {
            node.opens = node.opens.saturating_sub(1);
        }
    }

    /// The file to read this range from.
    pub(super) fn read(&self, node: NodeId, offset: u64, len: u64) -> Result<Arc<File>, Errno> {
        let mut state = self.powered()?;
        state.strike_node(Request::Read, node)?;
        let file = state.contents(node)?.0.read(offset, len).map_err(errno)?;
        Ok(Arc::clone(file))
    }

    /// `Err` if the power went meanwhile: what was read is of no use.
    pub(super) fn still_powered(&self) -> Result<(), Errno> {
        self.powered().map(drop)
    }

    pub(super) fn write(&self, node: NodeId, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut state = self.powered()?;
        state.strike_node(Request::Write, node)?;
        let (contents, numbers) = state.contents(node)?;
        contents.write(offset, bytes, numbers).map_err(errno)?;
        state.touched(node)
    }

    pub(super) fn allocate(
        &self,
        node: NodeId,
        flags: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> Result<(), Errno> {
        let mut state = self.powered()?;
        let gives_back = flags.contains(FallocateFlags::PUNCH_HOLE);
        let request = if gives_back {
            Request::Truncate
        } else {
            Request::Write
        };
        state.strike_node(request, node)?;
        let (contents, numbers) = state.contents(node)?;
        contents
            .allocate(flags, offset, len, numbers)
            .map_err(errno)?;
        state.touched(node)
    }

    pub(super) fn set_len(&self, node: NodeId, len: u64) -> Result<(), Errno> {
        let mut state = self.powered()?;
        state.strike_node(Request::Truncate, node)?;
        let (contents, numbers) = state.contents(node)?;
        contents.set_len(len, numbers).map_err(errno)?;
        state.touched(node)
    }

    pub(super) fn set_meta(
        &self,
        node: NodeId,
        change: impl FnOnce(&mut Meta),
    ) -> Result<Stat, Errno> {
        let mut state = self.powered()?;
        change(&mut state.node_mut(node)?.meta);
        state.stat(node)
    }

    /// `fsync` of a file or a directory: what was changed before it began is on the disk when it returns.
    pub(super) fn sync(&self, node: NodeId) -> Result<(), Errno> {
        let mut state = self.powered()?;
        // One at a time, as the kernel has it.
        while state.node(node)?.syncs {
            state = self.changed.wait(state).expect("no request panics");
            if state.is_cut {
                return Err(Errno::IO);
            }
        }
        let point = state.names.sync_point();
        let path = state.names.path(node);
        state.node_mut(node)?.syncs = true;
        if let Body::File(contents) = &mut state.node_mut(node)?.body {
            contents.begin_sync();
        }
        let takes = state.sync_takes;
        if !takes.is_zero() {
            let waited = self
                .changed
                .wait_timeout_while(state, takes, |state| !state.is_cut);
            state = waited.expect("no request panics").0;
        }
        if state.is_cut {
            return Err(Errno::IO);
        }
        let struck = state.strike(Request::Sync, &path);
        let synced = state.node_mut(node)?;
        synced.syncs = false;
        match (&mut synced.body, struck) {
            (Body::File(contents), Ok(())) => contents.end_sync(),
            (Body::File(contents), Err(_)) => contents.fail_sync(),
            (Body::Directory, Ok(())) => state.names.sync_dir(node, point),
            (Body::Directory | Body::Symlink(_), _) => {}
        }
        self.changed.notify_all();
        struck
    }

    // ---- for tests ----

    pub(super) fn set_fault(&self, fault: Fault) -> FaultId {
        let mut state = self.lock();
        state.faults_made += 1;
        let id = FaultId(state.faults_made);
        state.faults.insert(id, fault);
        id
    }

    pub(super) fn heal(&self, id: Option<FaultId>) {
        let faults = &mut self.lock().faults;
        match id {
            Some(id) => drop(faults.remove(&id)),
            None => faults.clear(),
        }
    }

    pub(super) fn fired(&self, id: FaultId) -> Option<u64> {
        self.lock().faults.get(&id).map(Fault::fired)
    }

    pub(super) fn set_sync_takes(&self, takes: Duration) {
        self.lock().sync_takes = takes;
    }

    pub(super) fn requests(&self) -> u64 {
        self.lock().requests
    }

    /// False: not within `limit`.
    pub(super) fn wait_for_requests(&self, requests: u64, limit: Duration) -> bool {
        let mut state = self.lock();
        state.awaited = Some(requests);
        let waited = self.changed.wait_timeout_while(state, limit, |state| {
            state.requests < requests && !state.is_cut
        });
        let (mut state, timeout) = waited.expect("no request panics");
        state.awaited = None;
        !timeout.timed_out()
    }

    pub(super) fn running_syncs(&self) -> u64 {
        let state = self.lock();
        state.nodes.values().filter(|node| node.syncs).count() as u64
    }

    pub(super) fn files(&self) -> Vec<NodeId> {
        let state = self.lock();
        let files = state.nodes.iter();
        files
            .filter(|(_, node)| matches!(node.body, Body::File(_)))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Bytes of unsynced pages of the files whose path contains `part`.
    pub(super) fn unsynced_bytes(&self, part: &str) -> u64 {
        let state = self.lock();
        let files = state
            .nodes
            .iter()
            .filter_map(|(id, node)| match &node.body {
                Body::File(contents) => Some((id, contents.unsynced_bytes())),
                Body::Directory | Body::Symlink(_) => None,
            });
        files
            .filter(|(id, _)| format!("/{}", state.names.path(**id).display()).contains(part))
            .map(|(_, bytes)| bytes)
            .sum()
    }

    /// The power goes: from now on every request fails, and the backing directory becomes what the disk holds.
    pub(super) fn cut(&self, cut: Cut) -> io::Result<Loss> {
        let mut state = self.lock();
        assert!(!state.is_cut, "the power went before");
        self.cut_now(&mut state, cut)
    }

    /// The power will go with the request that comes after so many more.
    pub(super) fn cut_after(&self, requests: u64, cut: Cut) {
        let mut state = self.lock();
        state.cut_at = Some((state.requests + requests + 1, cut));
    }

    /// What the cut took, if the power went.
    pub(super) fn loss(&self) -> Option<Loss> {
        self.lock().loss.clone()
    }

    fn cut_now(&self, state: &mut State, cut: Cut) -> io::Result<Loss> {
        state.is_cut = true;
        self.changed.notify_all();
        let mut numbers = Numbers::new(cut.seed);
        let mut loss = Loss {
            unsynced_names: state.names.unsynced(),
            ..Loss::default()
        };
        let mut files: Vec<NodeId> = state.nodes.keys().copied().collect();
        files.sort_unstable(); // the order of numbers must not depend on a hash
        for id in files {
            let path = state.names.path(id);
            let node = state.nodes.get_mut(&id).expect("just listed");
            if let Body::File(contents) = &mut node.body {
                let taken = contents.cut(cut.mode, &mut numbers)?;
                if taken.unsynced_pages > 0 {
                    loss.files.push(LostFile {
                        path,
                        unsynced_pages: taken.unsynced_pages,
                        lost_pages: taken.lost_pages,
                        torn_pages: taken.torn_pages,
                        lost_bytes: taken.lost_bytes,
                    });
                }
            }
        }
        loss.lost_names = state.names.cut(cut.mode, &mut numbers);
        self.lay_out(state)?;
        state.loss = Some(loss.clone());
        Ok(loss)
    }

    /// Everything is on the disk: the backing directory becomes what processes saw. Nothing if the power went before.
    pub(super) fn settle(&self) -> io::Result<()> {
        let mut state = self.lock();
        if state.is_cut {
            return Ok(());
        }
        state.is_cut = true;
        state.names.settle();
        for node in state.nodes.values_mut() {
            if let Body::File(contents) = &mut node.body {
                contents.settle();
            }
        }
        self.lay_out(&state)
    }

    /// Makes the backing directory anew from the nodes and names.
    fn lay_out(&self, state: &State) -> io::Result<()> {
        for entry in fs::read_dir(&self.backing)? {
            let path = entry?.path();
            if path.symlink_metadata()?.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        let mut todo = vec![(self.backing.clone(), ROOT)];
        while let Some((path, dir)) = todo.pop() {
            for (name, id) in state.names.entries(dir) {
                let path = path.join(name);
                let node = &state.nodes[&id];
                match &node.body {
                    Body::Directory => {
                        fs::create_dir(&path)?;
                        todo.push((path.clone(), id));
                    }
                    Body::Symlink(target) => symlink(target, &path)?,
                    Body::File(_) => fs::hard_link(self.live.join(id.to_string()), &path)?,
                }
                if !matches!(node.body, Body::Symlink(_)) {
                    chown(&path, Some(node.meta.uid), Some(node.meta.gid))?;
                    fs::set_permissions(&path, Permissions::from_mode(node.meta.perm.into()))?;
                }
            }
        }
        fs::remove_dir_all(&self.live)
    }

    /// Now and then, drops nodes that nobody can reach any more.
    fn sweep(&self, state: &mut State) {
        if state.nodes.len() < state.sweep_at {
            return;
        }
        let referenced = state.names.referenced();
        let live = &self.live;
        state.nodes.retain(|id, node| {
            let keep = referenced.contains(id) || node.opens > 0 || node.syncs;
            if !keep && matches!(node.body, Body::File(_)) {
                fs::remove_file(live.join(id.to_string())).expect("made with the node");
            }
            keep
        });
        let nodes = &state.nodes;
        state.names.forget(|id| nodes.contains_key(&id));
        state.sweep_at = state.nodes.len() + SWEEP_EVERY;
    }

    /// The backing directory.
    pub(super) fn backing(&self) -> &Path {
        &self.backing
    }
}

impl State {
    fn add(&mut self, body: Body, meta: &Meta) -> NodeId {
        let id = self.next;
        self.next += 1;
        let node = Node {
            body,
            meta: *meta,
            opens: 0,
            syncs: false,
        };
        self.nodes.insert(id, node);
        id
    }

    fn set(&mut self, dir: NodeId, name: &OsStr, node: Option<NodeId>) {
        let name = name.to_owned();
        self.names.change(vec![Set { dir, name, node }], false);
    }

    fn node(&self, id: NodeId) -> Result<&Node, Errno> {
        self.nodes.get(&id).ok_or(Errno::STALE)
    }

    fn node_mut(&mut self, id: NodeId) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&id).ok_or(Errno::STALE)
    }

    fn contents(&mut self, id: NodeId) -> Result<(&mut Contents, &mut Numbers), Errno> {
        match &mut self.nodes.get_mut(&id).ok_or(Errno::STALE)?.body {
            Body::File(contents) => Ok((contents, &mut self.numbers)),
            Body::Directory => Err(Errno::ISDIR),
            Body::Symlink(_) => Err(Errno::INVAL),
        }
    }

    fn touched(&mut self, id: NodeId) -> Result<(), Errno> {
        let meta = &mut self.node_mut(id)?.meta;
        meta.mtime = super::now();
        meta.ctime = meta.mtime;
        Ok(())
    }

    fn stat(&self, id: NodeId) -> Result<Stat, Errno> {
        let node = self.node(id)?;
        let (kind, len, blocks) = match &node.body {
            Body::File(contents) => {
                let metadata = contents.file().metadata().map_err(errno)?;
                (Kind::File, contents.len(), metadata.blocks())
            }
            Body::Directory => (Kind::Directory, 4096, 8),
            Body::Symlink(target) => (Kind::Symlink, target.len() as u64, 0),
        };
        let links = match kind {
            Kind::File | Kind::Symlink => self.names.links(id),
            Kind::Directory => 2,
        };
        Ok(Stat {
            node: id,
            kind,
            len,
            blocks,
            links,
            meta: node.meta,
        })
    }

    fn strike(&mut self, request: Request, path: &Path) -> Result<(), Errno> {
        let mut faults = self.faults.values_mut();
        match faults.find_map(|fault| fault.strike(request, path)) {
            Some(errno) => Err(errno),
            None => Ok(()),
        }
    }

    fn strike_node(&mut self, request: Request, id: NodeId) -> Result<(), Errno> {
        if self.faults.is_empty() {
            return Ok(());
        }
        let path = self.names.path(id);
        self.strike(request, &path)
    }
}

impl Meta {
    fn of(metadata: &fs::Metadata) -> io::Result<Self> {
        Ok(Self {
            perm: u16::try_from(metadata.mode() & 0o7777).expect("12 bits"),
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: metadata.modified()?,
            ctime: metadata.modified()?,
        })
    }
}
