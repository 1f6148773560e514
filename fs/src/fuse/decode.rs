//! Between the kernel's terms and the volume's: pure conversions, no decisions.
//!
//! Called by [`fuse`](crate::fuse) for each request and reply. Flags that nobody knows are refused here, so that a volume
//! only ever sees valid values.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, Generation, INodeNo, RenameFlags, TimeOrNow};

use crate::types::{
    AclKind, Attr, FallocateMode, FileKind, Ino, RenameMode, SeekTo, SetAttr, SetTime, StatFs,
    Time, XattrMode,
};

/// Unit of everything that is counted in blocks: the page size that FUSE caches in.
pub(super) const BLOCK_BYTES: u32 = 4096;
/// Unit of `st_blocks`, fixed by stat(2).
const STAT_BLOCK_BYTES: u64 = 512;
/// Inodes that statfs(2) says there can be, at most: the largest number that 32-bit programs read without `EOVERFLOW`.
const INODES_MAX: u64 = u32::MAX as u64;

/// Namespace of attributes that only administrators see.
const TRUSTED: &[u8] = b"trusted.";

/// Attributes as the kernel wants them.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.allocated_bytes.div_ceil(STAT_BLOCK_BYTES),
        atime: to_system_time(attr.atime),
        mtime: to_system_time(attr.mtime),
        ctime: to_system_time(attr.ctime),
        crtime: to_system_time(attr.crtime),
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Tells an inode apart from one that had its number before and that a power cut took: nobody knows of that one any more, so
/// the number is given out again. Made of the time when the inode was made. The kernel keeps 32 bits in its handles, and
/// makes the root's inode by itself, with 0.
pub(super) fn generation(attr: &Attr) -> Generation {
    if attr.ino == Ino::ROOT {
        return Generation(0);
    }
    let Time { secs, nanos } = attr.crtime;
    let nanos = secs
        .cast_unsigned()
        .wrapping_mul(1_000_000_000)
        .wrapping_add(nanos.into());
    // Times that are near to each other get generations that are not.
    Generation(nanos.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32)
}

/// The entry that says "no such name, and remember that": node id 0. All else in it is ignored.
pub(super) const NEGATIVE_ENTRY: FileAttr = FileAttr {
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

/// Kind of an inode as fuser names it.
pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

fn to_system_time(time: Time) -> SystemTime {
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 {
        UNIX_EPOCH.checked_sub(secs)
    } else {
        UNIX_EPOCH.checked_add(secs)
    };
    // Linux keeps a SystemTime as the same pair (i64, u32), so both steps always fit.
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// A time from the kernel. fuser 0.18.0 makes a time before 1970 by subtracting the nanoseconds that the kernel means to be added
/// (-1.5 s arrives from the kernel as -2 s and 0.5e9 ns, from fuser as -2.5 s), so taking the difference to 1970 apart
/// again gives back exactly what the kernel sent.
fn from_system_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time {
            secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(error) => {
            let before = error.duration();
            Time {
                secs: 0_i64
                    .checked_sub_unsigned(before.as_secs())
                    .unwrap_or(i64::MIN),
                nanos: before.subsec_nanos(),
            }
        }
    }
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(from_system_time(time)),
    }
}

/// What a SETATTR request asks for.
pub(super) struct AttrRequest {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<TimeOrNow>,
    pub(super) mtime: Option<TimeOrNow>,
    pub(super) ctime: Option<SystemTime>,
}

impl AttrRequest {
    pub(super) fn into_set_attr(self) -> SetAttr {
        SetAttr {
            perm: self.mode.map(permissions),
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            atime: self.atime.map(set_time),
            mtime: self.mtime.map(set_time),
            ctime: self.ctime.map(from_system_time),
        }
    }
}

/// Permission bits of a mode, with setuid, setgid and sticky.
fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).expect("twelve bits fit into sixteen")
}

/// renameat2(2)'s flags. `EINVAL` for unknown ones, as its manual says.
pub(super) fn rename_mode(flags: RenameFlags) -> Result<RenameMode, Errno> {
    const NO_REPLACE_WHITEOUT: u32 = libc::RENAME_NOREPLACE | libc::RENAME_WHITEOUT;
    match flags.bits() {
        0 => Ok(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        // With NOREPLACE as well the kernel has looked, under the directory's lock, that the target is not there.
        libc::RENAME_WHITEOUT | NO_REPLACE_WHITEOUT => Ok(RenameMode::Whiteout),
        _ => Err(Errno::EINVAL),
    }
}

/// fallocate(2)'s mode. What moves data (collapse, insert) is not offered.
pub(super) fn fallocate_mode(mode: i32) -> Result<FallocateMode, Errno> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    match mode {
        0 => Ok(FallocateMode::Allocate { keep_size: false }),
        libc::FALLOC_FL_KEEP_SIZE => Ok(FallocateMode::Allocate { keep_size: true }),
        PUNCH => Ok(FallocateMode::PunchHole),
        libc::FALLOC_FL_ZERO_RANGE => Ok(FallocateMode::ZeroRange { keep_size: false }),
        ZERO_KEEP => Ok(FallocateMode::ZeroRange { keep_size: true }),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// lseek(2)'s whence; the kernel handles all but these two itself.
pub(super) fn seek_to(whence: i32) -> Result<SeekTo, Errno> {
    match whence {
        libc::SEEK_DATA => Ok(SeekTo::Data),
        libc::SEEK_HOLE => Ok(SeekTo::Hole),
        _ => Err(Errno::EINVAL),
    }
}

/// setxattr(2)'s flags.
pub(super) fn xattr_mode(flags: i32) -> Result<XattrMode, Errno> {
    match flags {
        0 => Ok(XattrMode::Set),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(Errno::EINVAL),
    }
}

/// statfs(2)'s numbers, in blocks of [`BLOCK_BYTES`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) total: u64,
    pub(super) free: u64,
    pub(super) available: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

pub(super) fn blocks(stat: &StatFs) -> Blocks {
    let block = u64::from(BLOCK_BYTES);
    let inodes_free = stat.inodes_free.min(INODES_MAX.saturating_sub(stat.inodes));
    Blocks {
        total: stat.size_bytes / block,
        free: stat.size_bytes.saturating_sub(stat.used_bytes) / block,
        available: stat.available_bytes / block,
        inodes: stat.inodes + inodes_free,
        inodes_free,
    }
}

/// Attributes live in one of Linux's namespaces and have a name in it: xattr(7). In the system's only access control lists
/// are kept.
pub(super) fn xattr_namespace(name: &[u8]) -> Result<(), Errno> {
    const NAMESPACES: [&[u8]; 3] = [b"user.", TRUSTED, b"security."];
    if AclKind::of_name(name).is_some() {
        return Ok(());
    }
    let namespace = NAMESPACES
        .into_iter()
        .find(|namespace| name.starts_with(namespace));
    match namespace {
        None => Err(Errno::EOPNOTSUPP),
        Some(namespace) if namespace.len() == name.len() => Err(Errno::EINVAL),
        Some(_) => Ok(()),
    }
}

/// What listxattr(2) shows of `names`, each followed by NUL: `trusted.` ones only to whom may read them.
pub(super) fn listed(mut names: Vec<u8>, sees_trusted: impl FnOnce() -> bool) -> Vec<u8> {
    let hidden = |name: &[u8]| name.starts_with(TRUSTED);
    let mut each = names.split_inclusive(|&byte| byte == 0);
    if each.any(hidden) && !sees_trusted() {
        let kept = names.split_inclusive(|&byte| byte == 0);
        names = kept
            .filter(|name| !hidden(name))
            .flatten()
            .copied()
            .collect();
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As fuser 0.18 turns the kernel's pair into a `SystemTime`.
    fn as_fuser_does(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs.unsigned_abs(), nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn times_before_1970_survive_fuser() {
        for (secs, nanos) in [
            (0, 0),
            (1, 999_999_999),
            (-1, 0),
            (-1, 1),
            (-2, 500_000_000),
        ] {
            let time = Time { secs, nanos };
            assert_eq!(from_system_time(as_fuser_does(secs, nanos)), time);
        }
    }

    #[test]
    fn times_go_to_the_kernel_as_seconds_and_nanoseconds_after_them() {
        assert_eq!(
            to_system_time(Time {
                secs: -2,
                nanos: 500_000_000
            }),
            UNIX_EPOCH - Duration::from_millis(1500)
        );
        for secs in [i64::MIN, i64::MAX] {
            let time = to_system_time(Time {
                secs,
                nanos: 999_999_999,
            });
            assert_ne!(time, UNIX_EPOCH, "{secs} must not be cut to 1970");
        }
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert_eq!(
            rename_mode(RenameFlags::from_bits_retain(3)),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            rename_mode(RenameFlags::from_bits_retain(8)),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            rename_mode(RenameFlags::from_bits_retain(5)),
            Ok(RenameMode::Whiteout)
        );
        assert_eq!(xattr_mode(3), Err(Errno::EINVAL));
        assert_eq!(seek_to(libc::SEEK_CUR), Err(Errno::EINVAL));
        for mode in [
            libc::FALLOC_FL_PUNCH_HOLE,
            libc::FALLOC_FL_COLLAPSE_RANGE,
            0x40,
        ] {
            assert_eq!(fallocate_mode(mode), Err(Errno::EOPNOTSUPP));
        }
        assert_eq!(fallocate_mode(3), Ok(FallocateMode::PunchHole));
        assert_eq!(
            fallocate_mode(17),
            Ok(FallocateMode::ZeroRange { keep_size: true })
        );
    }

    #[test]
    fn setattr_leaves_what_is_not_asked_for() {
        let request = AttrRequest {
            mode: Some(libc::S_IFREG | 0o4755),
            uid: None,
            gid: None,
            size: None,
            atime: Some(TimeOrNow::Now),
            mtime: None,
            ctime: Some(UNIX_EPOCH + Duration::new(5, 6)),
        };
        let expected = SetAttr {
            perm: Some(0o4755),
            atime: Some(SetTime::Now),
            ctime: Some(Time { secs: 5, nanos: 6 }),
            ..SetAttr::default()
        };
        assert_eq!(request.into_set_attr(), expected);
    }

    #[test]
    fn statfs_never_shows_less_than_nothing() {
        let full = StatFs {
            size_bytes: 8192,
            used_bytes: 12_288,
            available_bytes: 0,
            inodes: 3,
            inodes_free: 0,
        };
        let shown = blocks(&full);
        assert_eq!((shown.total, shown.free, shown.available), (2, 0, 0));
        assert_eq!((shown.inodes, shown.inodes_free), (3, 0));
        let huge = blocks(&StatFs {
            inodes_free: u64::MAX / 1024,
            ..full
        });
        assert_eq!(
            (huge.inodes, huge.inodes_free),
            (INODES_MAX, INODES_MAX - 3)
        );
    }

    #[test]
    fn inodes_that_were_not_made_at_one_time_have_generations_of_their_own() {
        let made = |ino, secs, nanos| {
            let at = Time { secs, nanos };
            let attr = Attr {
                ino,
                kind: FileKind::File,
                perm: 0,
                nlink: 1,
                uid: 0,
                gid: 0,
                rdev: 0,
                size: 0,
                allocated_bytes: 0,
                atime: at,
                mtime: at,
                ctime: at,
                crtime: at,
            };
            generation(&attr).0
        };
        let times = [
            (0, 0),
            (0, 1),
            (1, 0),
            (4, 294_967_296),
            (-1, 0),
            (i64::MAX, 7),
        ];
        let of = times.map(|(secs, nanos)| made(Ino(7), secs, nanos));
        for (n, generation) in of.iter().enumerate() {
            assert!(!of[..n].contains(generation), "{of:?}");
            assert!(*generation <= u32::MAX.into(), "the kernel keeps 32 bits");
        }
        assert_eq!(made(Ino(7), 1, 2), made(Ino(7), 1, 2));
        assert_eq!(made(Ino::ROOT, 1, 2), 0);
    }

    #[test]
    fn attributes_need_a_namespace_and_a_name() {
        assert!(xattr_namespace(b"user.a").is_ok());
        assert_eq!(xattr_namespace(b"user.").unwrap_err().code(), libc::EINVAL);
        assert!(xattr_namespace(b"system.posix_acl_default").is_ok());
        for unknown in [&b"bogus.a"[..], b"system.a", b"user"] {
            assert_eq!(
                xattr_namespace(unknown).unwrap_err().code(),
                libc::EOPNOTSUPP
            );
        }
    }

    #[test]
    fn trusted_names_are_shown_to_few() {
        let names = b"security.a\0trusted.b\0user.c\0".to_vec();
        assert_eq!(listed(names.clone(), || true), names);
        assert_eq!(listed(names, || false), b"security.a\0user.c\0");
        let harmless = b"user.trusted.\0".to_vec();
        assert_eq!(
            listed(harmless.clone(), || panic!("no need to ask")),
            harmless
        );
    }
}
