//! The null filesystem: names and lengths in memory, bytes nowhere. What is measured on it is what the kernel, FUSE and
//! fuser cost; no filesystem on fuser can be faster.
//!
//! It is served by hafs's own mount code, so that the negotiated flags, the time-outs and the number of sessions are the
//! same, and by a process of its own: turning from a thread of one process to one of another costs more than staying in the
//! same, and no filesystem is served by the application. One lock over everything: with so few sessions, and since nobody
//! writes an answer while he holds it, it is hardly ever waited for.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::ops::Bound;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use hafs_fs::{Profile, mount};
use rustix::mount::MountFlags;

use super::process::dying_with_us;

const TTL: Duration = mount::KERNEL_CACHE_TIME;
/// What hafs sets for a volume without a profile.
const READAHEAD_KIB: u32 = Profile::Auto.readahead_kib();
/// The longest read that the kernel asks for.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Runs [`serve`] in another process of this program, which ends with this one.
pub(crate) fn command(dir: &Path) -> anyhow::Result<Command> {
    let mut command = dying_with_us(env::current_exe().context("cannot find this program")?);
    // A test's program has no command line of ours: there a test stands in for it.
    if cfg!(test) {
        command.args(["--exact", "filesystem::null::tests::served", "--nocapture"]);
        command.env("HAFS_BENCH_NULL", dir);
    } else {
        command.arg("null").arg(dir);
    }
    Ok(command)
}

/// What [`serve`] has said, once it serves.
pub(crate) fn agreed(said: &str) -> Option<&str> {
    let (line, _) = said.rsplit_once('\n')?;
    line.lines().find(|line| line.contains(AGREED))
}

const AGREED: &str = "sessions in a process of its own";

/// Mounts it on `dir`, says on stdout what was agreed with the kernel, and serves until `dir` is unmounted: the body of
/// `hafs-bench null`.
pub(crate) fn serve(dir: &Path) -> anyhow::Result<()> {
    let device = mount::open_device().context("cannot open /dev/fuse")?;
    let connection = mount::mount_volume(
        std::os::fd::AsFd::as_fd(&device),
        "null",
        dir,
        MountFlags::NOATIME,
    )
    .context("cannot mount the null filesystem")?;
    let tree = Arc::new(Mutex::new(Tree::new()));
    let sessions = mount::serve_filesystem(device, || Null(Arc::clone(&tree)))?;
    let path = format!("/sys/class/bdi/0:{connection}/read_ahead_kb");
    std::fs::write(path, READAHEAD_KIB.to_string()).context("cannot set the readahead")?;
    let agreed = tree.lock().expect("no request panics").agreed;
    let flags: Vec<&str> = agreed.iter_names().map(|(name, _)| name).collect();
    let agreed = format!(
        "{} {AGREED}, INIT flags {}, TTL of entries and attributes {} s, readahead {READAHEAD_KIB} KiB\n",
        sessions.len(),
        flags.join("|"),
        TTL.as_secs(),
    );
    let mut stdout = io::stdout();
    stdout.write_all(agreed.as_bytes())?;
    stdout.flush()?;
    for session in sessions {
        session
            .join()
            .map_err(|_| anyhow::anyhow!("a session panicked"))??;
    }
    Ok(())
}

/// An answer that says that there is nothing: inode 0.
const NOTHING: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

struct Tree {
    nodes: HashMap<u64, Node>,
    next: u64,
    agreed: InitFlags,
}

struct Node {
    attr: FileAttr,
    names: Names,
    target: Vec<u8>,
}

/// A directory's entries, by name and by position.
///
/// An entry's position is its inode number, which grows: removal of others does not move it, so that `rm -r` misses none.
/// Invariant: both maps hold the same entries.
#[derive(Default)]
struct Names {
    inodes: HashMap<OsString, u64>,
    positions: BTreeMap<u64, OsString>,
}

impl Names {
    /// The inode that had the name before.
    fn insert(&mut self, name: &OsStr, ino: u64) -> Option<u64> {
        let before = self.inodes.insert(name.to_owned(), ino);
        if let Some(before) = before {
            self.positions.remove(&before);
        }
        self.positions.insert(ino, name.to_owned());
        before
    }

    fn remove(&mut self, name: &OsStr) -> Option<u64> {
        let ino = self.inodes.remove(name)?;
        self.positions.remove(&ino);
        Some(ino)
    }
}

impl Tree {
    fn new() -> Self {
        let mut tree = Self {
            nodes: HashMap::new(),
            next: 1,
            agreed: InitFlags::empty(),
        };
        tree.add(FileType::Directory, 0o755, (0, 0), Vec::new());
        tree
    }

    fn add(&mut self, kind: FileType, perm: u16, owner: (u32, u32), target: Vec<u8>) -> FileAttr {
        let ino = self.next;
        self.next += 1;
        let attr = FileAttr {
            ino: INodeNo(ino),
            size: target.len() as u64,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: owner.0,
            gid: owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        let node = Node {
            attr,
            names: Names::default(),
            target,
        };
        self.nodes.insert(ino, node);
        attr
    }

    fn node(&mut self, ino: INodeNo) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&ino.0).ok_or(Errno::ENOENT)
    }

    fn find(&mut self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let found = self.node(parent)?.names.inodes.get(name).copied();
        let ino = found.ok_or(Errno::ENOENT)?;
        Ok(self.node(INodeNo(ino))?.attr)
    }

    fn make(
        &mut self,
        parent: INodeNo,
        name: &OsStr,
        kind: FileType,
        mode: u32,
        owner: (u32, u32),
        target: Vec<u8>,
    ) -> Result<FileAttr, Errno> {
        if self.node(parent)?.names.inodes.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let perm = u16::try_from(mode & 0o7777).expect("twelve bits");
        let attr = self.add(kind, perm, owner, target);
        self.node(parent)?.names.insert(name, attr.ino.0);
        Ok(attr)
    }

    fn remove(&mut self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let ino = self.node(parent)?.names.remove(name).ok_or(Errno::ENOENT)?;
        self.nodes.remove(&ino);
        Ok(())
    }

    fn rename(&mut self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr)) -> Result<(), Errno> {
        self.node(to.0)?;
        let moved = self.node(from.0)?.names.remove(from.1);
        let ino = moved.ok_or(Errno::ENOENT)?;
        if let Some(replaced) = self.node(to.0)?.names.insert(to.1, ino) {
            self.nodes.remove(&replaced);
        }
        Ok(())
    }

    /// Entries after a position, as many as one reply could hold.
    fn listed(&self, ino: INodeNo, offset: u64) -> impl Iterator<Item = (u64, &OsStr, &FileAttr)> {
        const REPLY_ENTRIES_MAX: usize = 512;
        let after = (Bound::Excluded(offset), Bound::Unbounded);
        let entries = self.nodes.get(&ino.0).into_iter();
        entries
            .flat_map(move |node| node.names.positions.range(after))
            .take(REPLY_ENTRIES_MAX)
            .filter_map(|(ino, name)| Some((*ino, name.as_os_str(), &self.nodes.get(ino)?.attr)))
    }
}

struct Null(Arc<Mutex<Tree>>);

impl Null {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.0.lock().expect("no request panics")
    }
}

fn owner(request: &Request) -> (u32, u32) {
    (request.uid(), request.gid())
}

fn entry(result: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

fn attributes(result: Result<FileAttr, Errno>, reply: ReplyAttr) {
    match result {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(errno) => reply.error(errno),
    }
}

fn empty(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Invariant: the lock is free when a reply is written, since that is a system call. Hence each result has a `let` of its own:
/// a guard in the head of a `match` or among a call's arguments lives until its end.
impl Filesystem for Null {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.tree().agreed = mount::negotiate(config, true);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.tree().find(parent, name);
        match found {
            // As hafs: the kernel remembers that there is no such name.
            Err(Errno::ENOENT) => reply.entry(&TTL, &NOTHING, Generation(0)),
            found => entry(found, reply),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let attr = self.tree().node(ino).map(|node| node.attr);
        attributes(attr, reply);
    }

    /// No attribute of anything, as a filesystem says that has some: if it said that it knows of none at all, the kernel would
    /// not ask for `security.capability` before the first write to each file, as it does of hafs.
    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.tree().node(ino).map(|node| {
            let attr = &mut node.attr;
            if let Some(mode) = mode {
                attr.perm = u16::try_from(mode & 0o7777).expect("twelve bits");
            }
            attr.uid = uid.unwrap_or(attr.uid);
            attr.gid = gid.unwrap_or(attr.gid);
            attr.size = size.unwrap_or(attr.size);
            if let Some(TimeOrNow::SpecificTime(time)) = mtime {
                attr.mtime = time;
            }
            *attr
        });
        attributes(changed, reply);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = FileType::RegularFile;
        let made = self
            .tree()
            .make(parent, name, kind, mode & !umask, owner(req), Vec::new());
        entry(made, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let kind = FileType::Directory;
        let made = self
            .tree()
            .make(parent, name, kind, mode & !umask, owner(req), Vec::new());
        entry(made, reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_encoded_bytes().to_vec();
        let kind = FileType::Symlink;
        let made = self
            .tree()
            .make(parent, link_name, kind, 0o777, owner(req), target);
        entry(made, reply);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self.tree().node(ino).map(|node| node.target.clone());
        match target {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.tree().remove(parent, name);
        empty(removed, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.tree().remove(parent, name);
        empty(removed, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let moved = self.tree().rename((parent, name), (newparent, newname));
        empty(moved, reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS); // asked once, as of hafs
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    /// As hafs: the kernel then makes files with MKNOD, and has nothing to release.
    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file_size = self.tree().node(ino).map(|node| node.attr.size);
        match file_size {
            Ok(file_size) => {
                let left = file_size.saturating_sub(offset);
                let len = usize::try_from(left.min(u64::from(size))).expect("32 bits");
                reply.data(&ZEROS[..len.min(ZEROS.len())]);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.tree().node(ino).map(|node| {
            node.attr.size = node.attr.size.max(offset + data.len() as u64);
        });
        match written {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("at most 1 MiB")),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let tree = self.tree();
        for (cookie, name, attr) in tree.listed(ino, offset) {
            if reply.add(attr.ino, cookie, attr.kind, name) {
                break;
            }
        }
        drop(tree);
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let tree = self.tree();
        for (cookie, name, attr) in tree.listed(ino, offset) {
            if reply.add(attr.ino, cookie, name, &TTL, attr, Generation(0)) {
                break;
            }
        }
        drop(tree);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let blocks = 1 << 40;
        reply.statfs(blocks, blocks, blocks, blocks, blocks, 4096, 255, 4096);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body of the process that [`command`] starts from a test.
    #[test]
    fn served() {
        if let Some(dir) = env::var_os("HAFS_BENCH_NULL") {
            serve(Path::new(&dir)).unwrap();
        }
    }

    #[test]
    fn it_is_served_once_it_has_said_so_to_the_end() {
        assert_eq!(agreed(""), None);
        assert_eq!(agreed("2 sessions in a process of its own, INIT fl"), None);
        let line = "2 sessions in a process of its own, INIT flags A|B";
        assert_eq!(agreed(&format!("{line}\n")), Some(line));
        assert_eq!(agreed(&format!("\nrunning 1 test\n{line}\n")), Some(line));
    }
    #[test]
    fn positions_hold_when_others_are_removed_or_renamed() {
        let mut tree = Tree::new();
        let root = INodeNo(1);
        let make = |tree: &mut Tree, name: &str| {
            let kind = FileType::RegularFile;
            tree.make(root, OsStr::new(name), kind, 0o644, (0, 0), Vec::new())
                .unwrap()
                .ino
                .0
        };
        let names = |tree: &Tree, offset: u64| -> Vec<String> {
            let listed = tree.listed(root, offset);
            listed
                .map(|(_, name, _)| name.to_string_lossy().into_owned())
                .collect()
        };
        let [_, second, _, _] = ["d", "c", "b", "a"].map(|name| make(&mut tree, name));
        assert_eq!(names(&tree, 0), ["d", "c", "b", "a"]);
        tree.remove(root, OsStr::new("d")).unwrap();
        assert_eq!(names(&tree, second), ["b", "a"]);
        let rename = |tree: &mut Tree, from: &str, to: &str| {
            tree.rename((root, OsStr::new(from)), (root, OsStr::new(to)))
        };
        rename(&mut tree, "b", "z").unwrap();
        assert_eq!(names(&tree, second), ["z", "a"]);
        // Over another: that one is gone.
        rename(&mut tree, "a", "c").unwrap();
        assert_eq!(names(&tree, 0), ["z", "c"]);
        assert_eq!(tree.nodes.len(), 3);
        assert!(rename(&mut tree, "a", "c").is_err());
        assert_eq!(names(&tree, u64::MAX), Vec::<String>::new());
    }
}
