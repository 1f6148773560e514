//! The null filesystem: names and lengths in memory, bytes nowhere. What is measured on it is what the kernel, FUSE and
//! fuser cost; no filesystem on fuser can be faster.
//!
//! It is served by hafs's own mount code, so that the negotiated flags, the time-outs and the number of sessions are the
//! same, and by a process of its own: turning from a thread of one process to one of another costs more than staying in the
//! same, and no filesystem is served by the application. One lock over everything: with so few sessions it is hardly ever
//! waited for.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
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
    names: BTreeMap<OsString, u64>,
    target: Vec<u8>,
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
            names: BTreeMap::new(),
            target,
        };
        self.nodes.insert(ino, node);
        attr
    }

    fn node(&mut self, ino: INodeNo) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&ino.0).ok_or(Errno::ENOENT)
    }

    fn find(&mut self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let ino = *self.node(parent)?.names.get(name).ok_or(Errno::ENOENT)?;
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
        if self.node(parent)?.names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let perm = u16::try_from(mode & 0o7777).expect("twelve bits");
        let attr = self.add(kind, perm, owner, target);
        self.node(parent)?.names.insert(name.to_owned(), attr.ino.0);
        Ok(attr)
    }

    fn remove(&mut self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let ino = self.node(parent)?.names.remove(name).ok_or(Errno::ENOENT)?;
        self.nodes.remove(&ino);
        Ok(())
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

fn empty(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Null {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.tree().agreed = mount::negotiate(config, true);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.tree().find(parent, name) {
            // As hafs: the kernel remembers that there is no such name.
            Err(Errno::ENOENT) => reply.entry(&TTL, &NOTHING, Generation(0)),
            found => entry(found, reply),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree().node(ino) {
            Ok(node) => reply.attr(&TTL, &node.attr),
            Err(errno) => reply.error(errno),
        }
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
        let mut tree = self.tree();
        let node = match tree.node(ino) {
            Ok(node) => node,
            Err(errno) => return reply.error(errno),
        };
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
        reply.attr(&TTL, attr);
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
        match self.tree().node(ino) {
            Ok(node) => reply.data(&node.target),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.tree().remove(parent, name), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.tree().remove(parent, name), reply);
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
        let mut tree = self.tree();
        let moved = tree.find(parent, name).and_then(|attr| {
            tree.node(parent)?.names.remove(name);
            let names = &mut tree.node(newparent)?.names;
            names.insert(newname.to_owned(), attr.ino.0);
            Ok(())
        });
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
        let left = match self.tree().node(ino) {
            Ok(node) => node.attr.size.saturating_sub(offset),
            Err(errno) => return reply.error(errno),
        };
        let len = usize::try_from(left.min(u64::from(size))).expect("32 bits");
        reply.data(&ZEROS[..len.min(ZEROS.len())]);
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
        let mut tree = self.tree();
        match tree.node(ino) {
            Ok(node) => {
                node.attr.size = node.attr.size.max(offset + data.len() as u64);
                reply.written(u32::try_from(data.len()).expect("at most 1 MiB"));
            }
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
        let mut tree = self.tree();
        let entries = listed(&mut tree, ino, offset);
        for (cookie, name, attr) in entries {
            if reply.add(attr.ino, cookie, attr.kind, &name) {
                break;
            }
        }
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
        let mut tree = self.tree();
        let entries = listed(&mut tree, ino, offset);
        for (cookie, name, attr) in entries {
            if reply.add(attr.ino, cookie, &name, &TTL, &attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let blocks = 1 << 40;
        reply.statfs(blocks, blocks, blocks, blocks, blocks, 4096, 255, 4096);
    }
}

/// Entries after `offset`, as many as one reply could hold; `rm -r` lists again from the start, so that positions hold.
fn listed(tree: &mut Tree, ino: INodeNo, offset: u64) -> Vec<(u64, OsString, FileAttr)> {
    const REPLY_ENTRIES_MAX: usize = 512;
    let Ok(node) = tree.node(ino) else {
        return Vec::new();
    };
    // An entry's position is its inode number, which grows: removal of others does not move it.
    let mut found: Vec<(u64, OsString)> = node
        .names
        .iter()
        .filter(|(_, ino)| **ino > offset)
        .map(|(name, ino)| (*ino, name.clone()))
        .collect();
    found.sort_unstable();
    found.truncate(REPLY_ENTRIES_MAX);
    found
        .into_iter()
        .filter_map(|(ino, name)| Some((ino, name, tree.node(INodeNo(ino)).ok()?.attr)))
        .collect()
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
}
