//! What goes in and out of [`Volume`](crate::Volume): inode numbers, attributes, callers. No FUSE types, so that the
//! semantics are tested without a kernel.

use std::fmt;

/// Number of an inode. Never used again within a volume; [`Ino::ROOT`] is the root directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory, as FUSE numbers it.
    pub const ROOT: Self = Self(1);
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A point in time as inodes keep it: seconds since 1970 (may be negative) and nanoseconds, `0..1_000_000_000`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970-01-01 UTC.
    pub secs: i64,
    /// Nanoseconds, `0..1_000_000_000`.
    pub nanos: u32,
}

/// A time that a caller asks for: its own, or the moment of the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The moment at which the volume makes the change.
    Now,
    /// This one.
    At(Time),
}

/// Kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// Attributes of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`.
    pub perm: u16,
    /// Number of names. 0: unlinked, still open.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number as mknod(2) takes it, for devices.
    pub rdev: u32,
    /// Length in bytes; a symlink's target length; for a directory, 0.
    pub size: u64,
    /// Bytes that count against the volume's size: written or preallocated ranges, rounded up to 4096 each file.
    pub allocated_bytes: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of content or attributes.
    pub ctime: Time,
    /// Birth.
    pub crtime: Time,
}

/// Who asks. Permission checks are the kernel's (`default_permissions`); the volume needs the ids for new inodes and for
/// clearing setuid, and the umask for new inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions that a new inode does not get, `0..=0o777`; where the directory has a default access control list, that
    /// takes its place.
    pub umask: u16,
}

impl Caller {
    /// The superuser, with an empty umask.
    pub const ROOT: Self = Self {
        uid: 0,
        gid: 0,
        umask: 0,
    };
}

/// A change of attributes; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New permission bits, `mode & 0o7777`.
    pub perm: Option<u16>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New length: cuts, or extends with a hole.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// New change time, as the kernel's writeback cache sends it; else the moment of the change.
    pub ctime: Option<Time>,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Where reading goes on after this entry; stable while the entry exists, below 2^63.
    pub cookie: u64,
    /// Its inode.
    pub ino: Ino,
    /// Kind of its inode.
    pub kind: FileKind,
    /// Its name, 1 to 255 bytes, without '/' and NUL.
    pub name: Vec<u8>,
}

/// What renameat2(2) is asked for besides the plain rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace the target if it is there.
    Replace,
    /// Fail with `Exists` if the target is there.
    NoReplace,
    /// Swap the two.
    Exchange,
    /// Replace, and leave a whiteout (character device 0:0) at the old name.
    Whiteout,
}

/// What fallocate(2) is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallocateMode {
    /// Reserve space; grow the file if `keep_size` is false.
    Allocate {
        /// Leave the length alone.
        keep_size: bool,
    },
    /// Make a hole; the length stays.
    PunchHole,
    /// Reserve space and make it read as zeros.
    ZeroRange {
        /// Leave the length alone.
        keep_size: bool,
    },
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    /// The next byte that was written.
    Data,
    /// The next byte that was not; the end of the file is a hole.
    Hole,
}

/// The two access control lists of POSIX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclKind {
    /// Who may access the inode.
    Access,
    /// A directory's: what new inodes in it get.
    Default,
}

/// How setxattr(2) treats an attribute that is there, or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Set,
    /// Fail with `Exists` if it is there.
    Create,
    /// Fail with `NoXattr` if it is not there.
    Replace,
}

/// Sizes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// The volume's size: its quota.
    pub size_bytes: u64,
    /// What its files hold (in units of 4 KiB a file), and its inodes, names and attributes (in units of 512 bytes).
    pub used_bytes: u64,
    /// What can still be written: the quota's rest, or the disk's if that is less.
    pub available_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Empty files that still fit.
    pub inodes_free: u64,
}
