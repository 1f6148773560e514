//! The one table from a volume's errors to what an application hears.
//!
//! Called by [`fuse`](crate::fuse). Invariant: no error becomes `ENOSYS`. The kernel takes that as "this operation does
//! not exist", never asks again on this connection, and lets an fsync succeed from then on.

use fuser::Errno;

use crate::error::FsError;

/// What the kernel is told for `error`.
pub(crate) fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        // The kernel drops what it knows of the inode and looks the path up again.
        FsError::Stale(_) => Errno::ESTALE,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::IsDirectory => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Invalid => Errno::EINVAL,
        FsError::NotPermitted => Errno::EPERM,
        FsError::TooBig => Errno::EFBIG,
        FsError::TooManyLinks => Errno::EMLINK,
        // Like a full disk; the change got no place in the log.
        FsError::NoSpace => Errno::ENOSPC,
        FsError::NoXattr => Errno::ENODATA,
        FsError::Range => Errno::ERANGE,
        // As the kernel itself answers for a value over 64 KiB. ENOSPC would make a copying program believe that the
        // volume is full.
        FsError::XattrTooBig => Errno::E2BIG,
        FsError::NoSuchOffset => Errno::ENXIO,
        // The operation exists, but not for this file or flag. Not ENOSYS: see above.
        FsError::Unsupported => Errno::EOPNOTSUPP,
        FsError::ReadOnly => Errno::EROFS,
        FsError::Stopped => Errno::EINTR,
        // Lost or uncertain durability, damage and the disk's own errors are one thing to an application: the data cannot
        // be trusted. What exactly happened stands in the log. The disk's errno is not passed on: an ENODEV or ENOSPC from
        // below would be taken for the volume's.
        FsError::Failed
        | FsError::Damaged { .. }
        | FsError::Unreadable { .. }
        | FsError::Corrupt(_)
        | FsError::LogLost(_)
        | FsError::StateLost(_)
        | FsError::Refused(_)
        | FsError::Io { .. }
        | FsError::State(_) => Errno::EIO,
    }
}

/// True if a person must look: data is damaged or lost, or the disk failed. Refusals that the caller can act on are not.
pub(crate) fn is_alarming(error: &FsError) -> bool {
    match error {
        FsError::Damaged { .. }
        | FsError::Unreadable { .. }
        | FsError::Corrupt(_)
        | FsError::LogLost(_)
        | FsError::StateLost(_)
        | FsError::Refused(_)
        | FsError::Io { .. }
        | FsError::State(_) => true,
        // `Failed` was logged by the store when it failed; saying it again for each request hides that line.
        FsError::Failed
        | FsError::NotFound
        | FsError::Stale(_)
        | FsError::Exists
        | FsError::NotDirectory
        | FsError::IsDirectory
        | FsError::NotEmpty
        | FsError::NameTooLong
        | FsError::Invalid
        | FsError::NotPermitted
        | FsError::TooBig
        | FsError::TooManyLinks
        | FsError::NoSpace
        | FsError::NoXattr
        | FsError::Range
        | FsError::XattrTooBig
        | FsError::NoSuchOffset
        | FsError::Unsupported
        | FsError::Stopped
        | FsError::ReadOnly => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::types::Ino;

    #[test]
    fn a_disk_error_is_never_passed_on() {
        for raw in [libc::ENOSYS, libc::ENOSPC, libc::ENODEV, libc::EINTR] {
            let error = FsError::Io {
                op: "write",
                path: "segment".to_owned(),
                source: io::Error::from_raw_os_error(raw),
            };
            assert_eq!(errno(&error).code(), libc::EIO);
            assert!(is_alarming(&error));
        }
    }

    #[test]
    fn errors_that_applications_act_on_keep_their_meaning() {
        let table = [
            (FsError::NotFound, libc::ENOENT),
            (FsError::Stale(Ino(7)), libc::ESTALE),
            (FsError::NotEmpty, libc::ENOTEMPTY),
            (FsError::NoSpace, libc::ENOSPC),
            (FsError::NoXattr, libc::ENODATA),
            (FsError::NoSuchOffset, libc::ENXIO),
            (FsError::Unsupported, libc::EOPNOTSUPP),
            (FsError::ReadOnly, libc::EROFS),
        ];
        for (error, code) in table {
            assert_eq!(errno(&error).code(), code, "{error}");
            assert!(!is_alarming(&error), "{error}");
        }
    }
}
