//! The kernel's requests: decode, open the span, hand over to the volume, reply. No decisions.
//!
//! Called by fuser, one thread a session; [`mount`](crate::mount) makes the sessions. Every method answers its request
//! exactly once. Of the fsyncs that wait for the disk at a time, one does so in a session thread. No change waits there for
//! room ([`late`]). It may wait for the disk, where unsynced chunks or unflushed records have reached their bound. What an
//! operation means is [`Volume`]'s.
//!
//! Handles are stateless: the node id is the inode's number, `fh` is 0, and create, open, opendir and flush are switched off by
//! answering ENOSYS once, after which the kernel asks no more. A new process can so serve an old mount.

mod caller;
mod decode;
pub(crate) mod late;
pub(crate) mod negotiate;
pub(crate) mod reaper;
pub(crate) mod seek;
mod serving;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use self::caller::{caller, with_umask};
use self::decode::{AttrRequest, BLOCK_BYTES};
use self::late::Late;
use self::reaper::Forgets;
use self::seek::Seeks;
pub use self::serving::panic_is_fusers;
use self::serving::{Serving, serving};
use crate::clock;
use crate::errno::{errno, is_alarming};
use crate::error::{FsError, with_causes};
use crate::metrics::{Metrics, Timed};
use crate::types::{AclKind, Attr, Ino, SeekTo, SetAttr};
use crate::volume::Volume;
use crate::volume::room::{at_once, without_waiting};

/// How long the kernel may believe names and attributes. All changes go through this kernel, which keeps its caches right
/// by itself, so any value is correct and a long one saves requests.
pub(crate) const TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest name, as statfs(2) tells it.
const NAME_BYTES_MAX: u32 = 255;
/// copy_file_range(2) may copy less than asked for; this much at once keeps a session thread free for others.
const COPY_BYTES_MAX: u64 = 16 << 20;

/// What the sessions hand over to other threads of the mount.
#[derive(Clone)]
pub(crate) struct Queues {
    /// Orphans that the kernel may have let go of.
    pub(crate) forgets: Forgets,
    /// lseek.
    pub(crate) seeks: Seeks,
    /// Changes that wait for room.
    pub(crate) late: Late,
}

/// One session's handle on a mounted volume; cheap to make.
pub(crate) struct Fuse {
    volume: Arc<Volume>,
    answers: Answers,
    writeback: bool,
    queues: Queues,
    /// Dirty pages can be asked for; set by `init`.
    seeks_through_cache: bool,
    /// Capabilities that the kernel offered; set by `init`.
    offered: InitFlags,
}

/// A request that is being answered: its span, and its count.
struct Op {
    _span: Serving,
    timed: Timed,
}

/// Answers what an operation came to.
#[derive(Clone)]
struct Answers {
    /// The volume's name, for spans.
    volume: Arc<str>,
    metrics: Arc<Metrics>,
}

impl Answers {
    /// The errno for `error`, which is logged here if a person must look.
    fn refuse(&self, op: &'static str, ino: INodeNo, error: &FsError) -> Errno {
        let errno = errno(error);
        self.metrics.refused(op, errno);
        let volume = &*self.volume;
        if is_alarming(error) {
            let error = with_causes(error);
            tracing::error!(volume, op, ino = ino.0, error, "request failed");
        } else {
            tracing::trace!(volume, op, ino = ino.0, %error, "request refused");
        }
        errno
    }

    fn entry(
        &self,
        op: &'static str,
        ino: INodeNo,
        result: Result<Attr, FsError>,
        reply: ReplyEntry,
    ) {
        match result {
            Ok(attr) => {
                reply.entry(&TTL, &decode::file_attr(&attr), decode::generation(&attr));
            }
            Err(error) => reply.error(self.refuse(op, ino, &error)),
        }
    }

    fn attr(
        &self,
        op: &'static str,
        ino: INodeNo,
        result: Result<Attr, FsError>,
        reply: ReplyAttr,
    ) {
        match result {
            Ok(attr) => reply.attr(&TTL, &decode::file_attr(&attr)),
            Err(error) => reply.error(self.refuse(op, ino, &error)),
        }
    }

    fn empty(
        &self,
        op: &'static str,
        ino: INodeNo,
        result: Result<(), FsError>,
        reply: ReplyEmpty,
    ) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.refuse(op, ino, &error)),
        }
    }

    /// How many bytes were written or copied.
    fn written(
        &self,
        op: &'static str,
        ino: INodeNo,
        result: Result<u32, FsError>,
        reply: ReplyWrite,
    ) {
        match result {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(self.refuse(op, ino, &error)),
        }
    }
}

impl Fuse {
    pub(crate) fn new(
        volume: Arc<Volume>,
        name: Arc<str>,
        writeback: bool,
        queues: Queues,
    ) -> Self {
        Self {
            answers: Answers {
                volume: name,
                metrics: volume.counters(),
            },
            volume,
            writeback,
            queues,
            seeks_through_cache: false,
            offered: InitFlags::empty(),
        }
    }

    /// For as long as a request is in our hands.
    fn span(&self, op: &'static str, ino: INodeNo) -> Op {
        let Answers { volume, metrics } = &self.answers;
        Op {
            _span: serving(tracing::debug_span!("fuse_op", %volume, op, ino = ino.0)),
            timed: metrics.begin(op),
        }
    }

    /// Carries out a change that may have to wait for room, and answers it: from another thread, if it has to. `bytes` are
    /// those of the request that it takes, such as names and data.
    fn change<T>(
        &self,
        request: Op,
        bytes: [&[u8]; 2],
        change: impl Fn(&Volume, [&[u8]; 2]) -> Result<T, FsError> + Send + 'static,
        answer: impl FnOnce(&Answers, Result<T, FsError>) + Send + 'static,
    ) {
        let Op { _span, timed } = request;
        if let Some(result) = at_once(|| change(&self.volume, bytes)) {
            answer(&self.answers, result);
            drop(timed);
            return self.volume.settle();
        }
        let answers = self.answers.clone();
        let [first, second] = bytes.map(<[u8]>::to_vec);
        let later = move |volume: &Volume| {
            let _until_answered = timed;
            answer(&answers, change(volume, [&first, &second]));
        };
        if let Err(later) = self.queues.late.hand_over(Box::new(later)) {
            // The queue is full: carried out here, where waiting is refused, so that it answers `ENOSPC`.
            without_waiting(|| later(&self.volume));
        }
    }

    /// The two-step protocol of getxattr(2) and listxattr(2): size 0 asks for the length.
    fn sized(
        &self,
        op: &'static str,
        ino: INodeNo,
        size: u32,
        result: Result<Vec<u8>, FsError>,
        reply: ReplyXattr,
    ) {
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(error) => return reply.error(self.answers.refuse(op, ino, &error)),
        };
        match u32::try_from(bytes.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&bytes),
            _ => reply.error(Errno::ERANGE),
        }
    }

    /// Syncs the whole volume, here if nobody else does, and answers. If somebody does, this thread goes on serving.
    fn sync(&self, op: &'static str, ino: INodeNo, reply: ReplyEmpty) {
        let Op { _span, timed } = self.span(op, ino);
        let answers = self.answers.clone();
        self.volume.fsync(Box::new(move |result| {
            let _until_answered = timed;
            answers.empty(op, ino, result, reply);
        }));
    }

    fn forgotten(&self, ino: INodeNo) {
        let _serving = serving(tracing::Span::none());
        let ino = Ino(ino.0);
        if self.volume.is_orphan(ino) {
            self.queues.forgets.note(ino);
        }
    }
}

impl Filesystem for Fuse {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.offered = config.capabilities();
        self.seeks_through_cache = seek::can_ask(config.kernel_abi());
        negotiate::negotiate(config, self.writeback);
        Ok(())
    }

    // ---- names ----

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        const OP: &str = "lookup";
        let _span = self.span(OP, parent);
        let found = match name.as_bytes() {
            b"." => self.volume.getattr(Ino(parent.0)),
            name => self.volume.lookup(Ino(parent.0), name),
        };
        match found {
            // A handle is being resolved. An orphan must not come back to life by it: see the reaper.
            Ok(attr) if attr.nlink == 0 => {
                let error = FsError::Stale(attr.ino);
                reply.error(self.answers.refuse(OP, parent, &error));
            }
            // The kernel remembers that there is no such name; whoever makes one tells it.
            Err(FsError::NotFound) => reply.entry(&TTL, &decode::NEGATIVE_ENTRY, Generation(0)),
            found => self.answers.entry(OP, parent, found, reply),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        self.forgotten(ino);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        const OP: &str = "mknod";
        let request = self.span(OP, parent);
        let (caller, dir) = (with_umask(req, umask), Ino(parent.0));
        self.change(
            request,
            [name.as_bytes(), b""],
            move |volume, [name, _]| volume.mknod(caller, dir, name, mode, rdev),
            move |answers, made| answers.entry(OP, parent, made, reply),
        );
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
        const OP: &str = "mkdir";
        let request = self.span(OP, parent);
        let (caller, dir) = (with_umask(req, umask), Ino(parent.0));
        self.change(
            request,
            [name.as_bytes(), b""],
            move |volume, [name, _]| volume.mkdir(caller, dir, name, mode),
            move |answers, made| answers.entry(OP, parent, made, reply),
        );
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        const OP: &str = "symlink";
        let request = self.span(OP, parent);
        let (caller, dir) = (caller(req), Ino(parent.0));
        self.change(
            request,
            [link_name.as_bytes(), target.as_os_str().as_bytes()],
            move |volume, [name, target]| volume.symlink(caller, dir, name, target),
            move |answers, made| answers.entry(OP, parent, made, reply),
        );
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        const OP: &str = "link";
        let request = self.span(OP, ino);
        let (file, dir) = (Ino(ino.0), Ino(newparent.0));
        self.change(
            request,
            [newname.as_bytes(), b""],
            move |volume, [name, _]| volume.link(file, dir, name),
            move |answers, made| answers.entry(OP, ino, made, reply),
        );
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        const OP: &str = "unlink";
        let _span = self.span(OP, parent);
        let result = self.volume.unlink(Ino(parent.0), name.as_bytes());
        self.answers.empty(OP, parent, result, reply);
        self.volume.settle();
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        const OP: &str = "rmdir";
        let _span = self.span(OP, parent);
        let result = self.volume.rmdir(Ino(parent.0), name.as_bytes());
        self.answers.empty(OP, parent, result, reply);
        self.volume.settle();
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        const OP: &str = "rename";
        let _span = self.span(OP, parent);
        let mode = match decode::rename_mode(flags) {
            Ok(mode) => mode,
            Err(errno) => return reply.error(errno),
        };
        let (from, to) = (Ino(parent.0), Ino(newparent.0));
        let (name, new_name) = (name.as_bytes(), newname.as_bytes());
        let result = self
            .volume
            .rename(caller(req), from, name, to, new_name, mode);
        self.answers.empty(OP, parent, result, reply);
        self.volume.settle();
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        const OP: &str = "readlink";
        let _span = self.span(OP, ino);
        match self.volume.readlink(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(self.answers.refuse(OP, ino, &error)),
        }
    }

    // ---- directories ----

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT) {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
            );
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
        const OP: &str = "readdir";
        let _span = self.span(OP, ino);
        let result = self.volume.readdir(Ino(ino.0), offset, &mut |entry| {
            let kind = decode::file_type(entry.kind);
            let name = OsStr::from_bytes(&entry.name);
            !reply.add(INodeNo(entry.ino.0), entry.cookie, kind, name)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.answers.refuse(OP, ino, &error)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        const OP: &str = "readdirplus";
        let _span = self.span(OP, ino);
        let result = self
            .volume
            .readdir_plus(Ino(ino.0), offset, &mut |entry, attr| {
                let file = INodeNo(entry.ino.0);
                let name = OsStr::from_bytes(&entry.name);
                !reply.add(
                    file,
                    entry.cookie,
                    name,
                    &TTL,
                    &decode::file_attr(&attr),
                    decode::generation(&attr),
                )
            });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.answers.refuse(OP, ino, &error)),
        }
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.sync("fsyncdir", ino, reply);
    }

    // ---- attributes ----

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        const OP: &str = "getattr";
        let _span = self.span(OP, ino);
        self.answers
            .attr(OP, ino, self.volume.getattr(Ino(ino.0)), reply);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        const OP: &str = "setattr";
        let _span = self.span(OP, ino);
        let request = AttrRequest {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            ctime,
        };
        let mut set = request.into_set_attr();
        // Without the writeback cache the kernel keeps no change time, which is all that it says of chown(2) to nobody else.
        // It says as little before root writes to a file with capabilities, which so loses setuid and setgid as well.
        if !self.writeback && set == SetAttr::default() {
            set.ctime = Some(clock::now());
        }
        let result = if self.writeback {
            self.volume.setattr_cached(caller(req), Ino(ino.0), &set)
        } else {
            self.volume.setattr(caller(req), Ino(ino.0), &set)
        };
        self.answers.attr(OP, ino, result, reply);
        self.volume.settle();
    }

    /// With `default_permissions` the kernel checks by itself and never asks.
    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        const OP: &str = "statfs";
        let _span = self.span(OP, ino);
        match self.volume.statfs() {
            Ok(stat) => {
                let blocks = decode::blocks(&stat);
                reply.statfs(
                    blocks.total,
                    blocks.free,
                    blocks.available,
                    blocks.inodes,
                    blocks.inodes_free,
                    BLOCK_BYTES,
                    NAME_BYTES_MAX,
                    BLOCK_BYTES,
                );
            }
            Err(error) => reply.error(self.answers.refuse(OP, ino, &error)),
        }
    }

    // ---- data ----

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        if self.offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT) {
            // The kernel asks for MKNOD from now on and opens the file by itself. A file that CREATE made would have to be
            // released, one request more.
            return reply.error(Errno::ENOSYS);
        }
        const OP: &str = "create";
        let request = self.span(OP, parent);
        let (caller, dir) = (with_umask(req, umask), Ino(parent.0));
        let mode = libc::S_IFREG | (mode & !libc::S_IFMT);
        self.change(
            request,
            [name.as_bytes(), b""],
            move |volume, [name, _]| volume.mknod(caller, dir, name, mode, 0),
            move |answers, made| match made {
                Ok(attr) => reply.created(
                    &TTL,
                    &decode::file_attr(&attr),
                    decode::generation(&attr),
                    FileHandle(0),
                    FopenFlags::FOPEN_KEEP_CACHE,
                ),
                Err(error) => reply.error(answers.refuse(OP, parent, &error)),
            },
        );
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT) {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    /// The kernel writes dirty pages out at close by itself; there is nothing to add.
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
        const OP: &str = "read";
        let _span = self.span(OP, ino);
        match self.volume.read(Ino(ino.0), offset, size) {
            Ok(data) => {
                self.answers.metrics.read(data.len());
                reply.data(&data);
            }
            Err(error) => reply.error(self.answers.refuse(OP, ino, &error)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        const OP: &str = "write";
        let request = self.span(OP, ino);
        let file = Ino(ino.0);
        let kill_priv = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // Without the writeback cache the kernel keeps no times for us, not even of pages changed through mmap.
        let cached = self.writeback && write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        self.change(
            request,
            [data, b""],
            move |volume, [data, _]| volume.write(file, offset, data, kill_priv, cached),
            move |answers, written| {
                if let Ok(written) = written {
                    answers.metrics.written(written);
                }
                answers.written(OP, ino, written, reply);
            },
        );
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.sync("fsync", ino, reply);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const OP: &str = "fallocate";
        let request = self.span(OP, ino);
        let mode = match decode::fallocate_mode(mode) {
            Ok(mode) => mode,
            Err(errno) => return reply.error(errno),
        };
        let (caller, file) = (caller(req), Ino(ino.0));
        self.change(
            request,
            [b"", b""],
            move |volume, _| volume.fallocate(caller, file, offset, length, mode),
            move |answers, done| answers.empty(OP, ino, done, reply),
        );
    }

    /// See [`seek`]. ENOSYS: the kernel takes all of every file as data.
    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        const OP: &str = "lseek";
        let Op { _span, timed } = self.span(OP, ino);
        if !self.seeks_through_cache {
            return reply.error(Errno::ENOSYS);
        }
        let to = match decode::seek_to(whence) {
            Ok(to) => to,
            Err(errno) => return reply.error(errno),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let file = Ino(ino.0);
        // What is data already needs no search. The end of data may be far away.
        if to == SeekTo::Data {
            let found = self.volume.seek(file, offset, to);
            if matches!(found, Ok(data) if data == offset) {
                return seek::answer(&self.answers, file, found, reply);
            }
        }
        self.queues.seeks.ask(file, offset, to, reply, timed);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        const OP: &str = "copy_file_range";
        let request = self.span(OP, ino_out);
        if flags.bits() != 0 {
            return reply.error(Errno::EINVAL);
        }
        let (caller, from, to) = (caller(req), Ino(ino_in.0), Ino(ino_out.0));
        let len = len.min(COPY_BYTES_MAX);
        self.change(
            request,
            [b"", b""],
            move |volume, _| {
                let copied =
                    volume.copy_file_range(caller, from, offset_in, to, offset_out, len)?;
                Ok(u32::try_from(copied).expect("no more is copied than asked for"))
            },
            move |answers, copied| answers.written(OP, ino_out, copied, reply),
        );
    }

    // ---- extended attributes ----

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        const OP: &str = "setxattr";
        let request = self.span(OP, ino);
        let file = Ino(ino.0);
        let mode =
            decode::xattr_namespace(name.as_bytes()).and_then(|()| decode::xattr_mode(flags));
        let mode = match mode {
            Ok(mode) => mode,
            Err(errno) => return reply.error(errno),
        };
        let (sets, keep_sgid) = match AclKind::of_name(name.as_bytes()) {
            None => (None, false),
            Some(kind) => match self.volume.getattr(file) {
                // The kernel holds the inode's lock, so its group stays what it is.
                Ok(attr) => (Some(kind), caller::keeps_setgid(req, attr.gid)),
                Err(error) => return reply.error(self.answers.refuse(OP, ino, &error)),
            },
        };
        let caller = caller(req);
        self.change(
            request,
            [name.as_bytes(), value],
            move |volume, [name, value]| match sets {
                None => volume.setxattr(caller, file, name, value, mode),
                Some(kind) => volume.set_acl(file, kind, value, keep_sgid),
            },
            move |answers, set| answers.empty(OP, ino, set, reply),
        );
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        const OP: &str = "getxattr";
        let _span = self.span(OP, ino);
        if let Err(errno) = decode::xattr_namespace(name.as_bytes()) {
            return reply.error(errno);
        }
        let result = self.volume.getxattr(Ino(ino.0), name.as_bytes());
        self.sized(OP, ino, size, result, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        const OP: &str = "listxattr";
        let _span = self.span(OP, ino);
        let names = self.volume.listxattr(Ino(ino.0));
        let names = names.map(|names| decode::listed(names, || caller::sees_trusted(req)));
        self.sized(OP, ino, size, names, reply);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        const OP: &str = "removexattr";
        let _span = self.span(OP, ino);
        if let Err(errno) = decode::xattr_namespace(name.as_bytes()) {
            return reply.error(errno);
        }
        let result = self
            .volume
            .removexattr(caller(req), Ino(ino.0), name.as_bytes());
        self.answers.empty(OP, ino, result, reply);
        self.volume.settle();
    }

    // ---- not for this filesystem ----

    /// ENOTTY, not ENOSYS: that is what ioctl(2) says of a file that does not know a request, and older kernels pass
    /// ENOSYS on as it is.
    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// ENOSYS: the kernel then takes every file as ready at once, which is what poll(2) says of regular files.
    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    /// Only asked of filesystems on a block device.
    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }
}
