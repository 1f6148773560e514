//! The kernel's requests to the lossy disk: decode, hand over, reply.
//!
//! Written bytes reach the disk before write(2) returns (no writeback cache), so the disk knows of everything that a process
//! may take for written; only what is dirty in a shared mapping is not known, and lost by a cut, as it may be. What the
//! kernel has read it may keep: every change comes through it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::disk::{Disk, Kind, Meta, New, Rename, Stat};

/// All changes come through this kernel, which keeps its caches right.
const TTL: Duration = Duration::from_secs(3600);
const GENERATION: Generation = Generation(0);
/// Bytes of one request.
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Serve(pub(super) Arc<Disk>);

fn fuse(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

fn attr(stat: &Stat) -> FileAttr {
    let Meta {
        perm,
        uid,
        gid,
        mtime,
        ctime,
    } = stat.meta;
    FileAttr {
        ino: INodeNo(stat.node),
        size: stat.len,
        blocks: stat.blocks,
        atime: mtime,
        mtime,
        ctime,
        crtime: ctime,
        kind: file_type(stat.kind),
        perm,
        nlink: u32::try_from(stat.links).unwrap_or(u32::MAX),
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
    }
}

fn new_meta(req: &Request, mode: u32) -> Meta {
    let now = super::now();
    Meta {
        perm: u16::try_from(mode & 0o7777).expect("12 bits"),
        uid: req.uid(),
        gid: req.gid(),
        mtime: now,
        ctime: now,
    }
}

fn entry(result: Result<Stat, Errno>, reply: ReplyEntry) {
    match result {
        Ok(stat) => reply.entry(&TTL, &attr(&stat), GENERATION),
        Err(errno) => reply.error(fuse(errno)),
    }
}

fn empty(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(fuse(errno)),
    }
}

impl Serve {
    /// Fills `buffer` as far as the file reaches.
    fn read_into(&self, node: INodeNo, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let file = self.0.read(node.0, offset, buffer.len() as u64)?;
        let mut filled = 0;
        while filled < buffer.len() {
            let read = file.read_at(&mut buffer[filled..], offset + filled as u64);
            match read {
                Ok(0) => break,
                Ok(len) => filled += len,
                Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            }
        }
        self.0.still_powered()?;
        Ok(filled)
    }
}

impl Filesystem for Serve {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Else the kernel asks for an attribute before each write.
        let wanted = InitFlags::FUSE_HANDLE_KILLPRIV | InitFlags::FUSE_PARALLEL_DIROPS;
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.0.lookup(parent.0, name), reply);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.stat(ino.0) {
            Ok(stat) => reply.attr(&TTL, &attr(&stat)),
            Err(errno) => reply.error(fuse(errno)),
        }
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
        let cut = size.map_or(Ok(()), |size| self.0.set_len(ino.0, size));
        let changed = cut.and_then(|()| {
            self.0.set_meta(ino.0, |meta| {
                if let Some(mode) = mode {
                    meta.perm = u16::try_from(mode & 0o7777).expect("12 bits");
                }
                meta.uid = uid.unwrap_or(meta.uid);
                meta.gid = gid.unwrap_or(meta.gid);
                match mtime {
                    Some(TimeOrNow::Now) => meta.mtime = super::now(),
                    Some(TimeOrNow::SpecificTime(time)) => meta.mtime = time,
                    None => {}
                }
            })
        });
        match changed {
            Ok(stat) => reply.attr(&TTL, &attr(&stat)),
            Err(errno) => reply.error(fuse(errno)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.0.read_link(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(errno) => reply.error(fuse(errno)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        if mode & libc::S_IFMT != libc::S_IFREG {
            return reply.error(fuse(Errno::PERM));
        }
        let meta = new_meta(req, mode);
        entry(self.0.make(parent.0, name, &New::File, &meta, false), reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let meta = new_meta(req, mode);
        let made = self.0.make(parent.0, name, &New::Directory, &meta, false);
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
        let meta = new_meta(req, 0o777);
        let new = New::Symlink(target.as_os_str());
        entry(self.0.make(parent.0, link_name, &new, &meta, false), reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let meta = new_meta(req, mode);
        match self.0.make(parent.0, name, &New::File, &meta, true) {
            Ok(stat) => reply.created(
                &TTL,
                &attr(&stat),
                GENERATION,
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(errno) => reply.error(fuse(errno)),
        }
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        entry(self.0.link(ino.0, newparent.0, newname), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.0.remove(parent.0, name, false), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.0.remove(parent.0, name, true), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let how = match flags {
            RenameFlags::RENAME_NOREPLACE => Rename::NoReplace,
            RenameFlags::RENAME_EXCHANGE => Rename::Exchange,
            flags if flags.is_empty() => Rename::Replace,
            _ => return reply.error(fuse(Errno::INVAL)),
        };
        let renamed = self.0.rename((parent.0, name), (newparent.0, newname), how);
        empty(renamed, reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.0.opened(ino.0) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(errno) => reply.error(fuse(errno)),
        }
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.closed(ino.0);
        reply.ok();
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = vec![0; size as usize];
        match self.read_into(ino, offset, &mut buffer) {
            Ok(len) => reply.data(&buffer[..len]),
            Err(errno) => reply.error(fuse(errno)),
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
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.write(ino.0, offset, data) {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("a request is 1 MiB")),
            Err(errno) => reply.error(fuse(errno)),
        }
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        empty(self.0.sync(ino.0), reply);
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        empty(self.0.sync(ino.0), reply);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        empty(self.0.allocate(ino.0, flags, offset, length), reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.0.still_powered() {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(fuse(errno)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let list = match self.0.list(ino.0) {
            Ok(list) => list,
            Err(errno) => return reply.error(fuse(errno)),
        };
        // Offsets count entries: nobody changes a directory of the store while listing it.
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (name, stat)) in list.iter().enumerate().skip(skip) {
            let next = at as u64 + 1;
            if reply.add(INodeNo(stat.node), next, file_type(stat.kind), name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let disk = self
            .0
            .still_powered()
            .and_then(|()| rustix::fs::statvfs(self.0.backing()));
        match disk {
            Ok(disk) => reply.statfs(
                disk.f_blocks,
                disk.f_bfree,
                disk.f_bavail,
                disk.f_files,
                disk.f_ffree,
                u32::try_from(disk.f_bsize).unwrap_or(4096),
                255,
                u32::try_from(disk.f_frsize).unwrap_or(4096),
            ),
            Err(errno) => reply.error(fuse(errno)),
        }
    }
}
