//! What is agreed with the kernel when a connection starts: capabilities, request sizes, background requests.
//!
//! Called once a session by [`fuse`](crate::fuse). Agreed once for the life of a mount, so whatever takes the mount over
//! must answer the same: nothing here may depend on more than the kernel's offer and the volume's settings.

use fuser::{InitFlags, KernelConfig};

/// Bytes of one READ or WRITE. The kernel's own limit (`fs.fuse.max_pages_limit`) is the same; 4 MiB measured no gain.
pub(crate) const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Readahead, writeback and asynchronous direct requests that may be under way: enough to keep the disk busy from one
/// sequential stream, few enough that a foreground request does not wait behind 64 MiB.
const BACKGROUND_MAX: u16 = 64;
/// From here on the kernel holds back new background requests.
const CONGESTION_THRESHOLD: u16 = 48;

/// A capability and why it is asked for.
struct Wanted {
    flag: InitFlags,
    /// Only if the volume is mounted with the writeback cache.
    writeback_only: bool,
}

const fn wanted(flag: InitFlags) -> Wanted {
    Wanted {
        flag,
        writeback_only: false,
    }
}

/// Never in this table:
/// - `ATOMIC_O_TRUNC`: without open requests the truncation would be lost; the kernel sends SETATTR instead.
/// - `FLOCK_LOCKS`, `POSIX_LOCKS`: one writer, so locks within this kernel are right, and they outlive a daemon.
/// - `SETXATTR_EXT`: fuser 0.18 panics on the longer request.
/// - `AUTO_INVAL_DATA`: all writes go through this kernel, its pages are never stale.
/// - `DIRECT_IO_ALLOW_MMAP`: no file is opened with `FOPEN_DIRECT_IO`.
/// - `SPLICE_*`: fuser copies. `PASSTHROUGH`: excludes the writeback cache. `ALLOW_IDMAP`: the ids would arrive unmapped.
const WANTED: &[Wanted] = &[
    // Small writes gather in the page cache: ten times the rate. `writeback=off` is for ENOSPC from write(2).
    Wanted {
        flag: InitFlags::FUSE_WRITEBACK_CACHE,
        writeback_only: true,
    },
    // Requests of up to `REQUEST_BYTES_MAX` instead of one page, or 128 KiB.
    wanted(InitFlags::FUSE_BIG_WRITES),
    wanted(InitFlags::FUSE_MAX_PAGES),
    // Several requests of one reader at once.
    wanted(InitFlags::FUSE_ASYNC_READ),
    wanted(InitFlags::FUSE_ASYNC_DIO),
    // Lookups and readdirs of one directory side by side.
    wanted(InitFlags::FUSE_PARALLEL_DIROPS),
    // `ls -l` in one request a page of names; AUTO: only where attributes are asked for.
    wanted(InitFlags::FUSE_DO_READDIRPLUS),
    wanted(InitFlags::FUSE_READDIRPLUS_AUTO),
    // Without it the kernel asks for `security.capability` before each write: half the write rate.
    wanted(InitFlags::FUSE_HANDLE_KILLPRIV_V2),
    // The kernel enforces access control lists, and forgets what it knows of one when chmod or a new list may change it.
    wanted(InitFlags::FUSE_POSIX_ACL),
    // The umask reaches us, so that default lists can take its place.
    wanted(InitFlags::FUSE_DONT_MASK),
    // Handles outlive the kernel's cache: node ids are inode numbers, and `.` and `..` can be looked up.
    wanted(InitFlags::FUSE_EXPORT_SUPPORT),
    // A symlink's target never changes.
    wanted(InitFlags::FUSE_CACHE_SYMLINKS),
    // Handles are stateless: open and opendir need no request, and caches stay over them.
    wanted(InitFlags::FUSE_NO_OPEN_SUPPORT),
    wanted(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
];

/// Asks for each wanted capability that the kernel offers, and sets the sizes. Readahead stays what the kernel offers, the
/// most that can be agreed here; the mount raises it afterwards. Returns what was asked for.
pub(crate) fn negotiate(config: &mut KernelConfig, writeback: bool) -> InitFlags {
    let offered = config.capabilities();
    let mut agreed = InitFlags::empty();
    for flag in requested(offered, writeback) {
        config
            .add_capabilities(flag)
            .expect("only what is offered is requested");
        agreed |= flag;
    }
    config
        .set_max_write(REQUEST_BYTES_MAX)
        .expect("below fuser's 16 MiB");
    config.set_max_background(BACKGROUND_MAX).expect("not zero");
    config
        .set_congestion_threshold(CONGESTION_THRESHOLD)
        .expect("not zero");
    agreed
}

fn requested(offered: InitFlags, writeback: bool) -> impl Iterator<Item = InitFlags> {
    WANTED
        .iter()
        .filter(move |wanted| writeback || !wanted.writeback_only)
        .map(|wanted| wanted.flag)
        .filter(move |&flag| {
            let has = offered.contains(flag);
            if !has {
                tracing::debug!(capability = ?flag, "not offered by this kernel");
            }
            has
        })
}

/// Names of wanted capabilities that are not among the offered.
pub(crate) fn missing(offered: InitFlags) -> Vec<String> {
    let wanted = WANTED.iter().map(|wanted| wanted.flag);
    wanted
        .filter(|flag| !offered.contains(*flag))
        .flat_map(|flag| {
            flag.iter_names()
                .map(|(name, _)| name.to_owned())
                .collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn union(offered: InitFlags, writeback: bool) -> InitFlags {
        requested(offered, writeback).fold(InitFlags::empty(), |all, flag| all | flag)
    }

    #[test]
    fn only_what_is_offered() {
        let offered = InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_ATOMIC_O_TRUNC;
        assert_eq!(union(offered, true), InitFlags::FUSE_ASYNC_READ);
    }

    #[test]
    fn what_would_lose_data_or_panic_is_never_requested() {
        let all = union(InitFlags::all(), true);
        for never in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_SETXATTR_EXT,
            InitFlags::FUSE_FLOCK_LOCKS,
            InitFlags::FUSE_POSIX_LOCKS,
            InitFlags::FUSE_PASSTHROUGH,
            InitFlags::FUSE_OVER_IO_URING,
        ] {
            assert!(!all.contains(never), "{never:?}");
        }
        assert!(all.contains(InitFlags::FUSE_WRITEBACK_CACHE));
    }

    #[test]
    fn the_writeback_cache_can_be_left_out() {
        let without = union(InitFlags::all(), false);
        assert_eq!(
            union(InitFlags::all(), true) & !without,
            InitFlags::FUSE_WRITEBACK_CACHE
        );
    }
}
