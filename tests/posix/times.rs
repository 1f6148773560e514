//! Times: nanoseconds and distant years are kept, each change moves the times that it should, and no other.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use hafs_tests::requirement;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, StatxFlags, Timespec, Timestamps, XattrFlags, fallocate,
    setxattr, statx, utimensat,
};
use rustix::time::{ClockId, clock_gettime};

use crate::Mounted;
use crate::errno::file;
use crate::memory::Map;

/// Seconds and nanoseconds of atime, mtime and ctime.
type Times = [(i64, i64); 3];

fn times(path: &Path) -> Times {
    let is = fs::symlink_metadata(path).expect("it is there");
    [
        (is.atime(), is.atime_nsec()),
        (is.mtime(), is.mtime_nsec()),
        (is.ctime(), is.ctime_nsec()),
    ]
}

fn set(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let both = Timestamps {
        last_access: time(atime),
        last_modification: time(mtime),
    };
    utimensat(CWD, path, &both, AtFlags::SYMLINK_NOFOLLOW).expect("a time");
}

/// Waits until the clock that files are stamped with has moved on.
fn next_tick() {
    let now = || {
        let time = clock_gettime(ClockId::RealtimeCoarse);
        (time.tv_sec, time.tv_nsec)
    };
    let before = now();
    while now() == before {
        std::thread::yield_now();
    }
}

#[test]
fn nanoseconds_and_distant_years_are_kept() {
    if !requirement::mounts_work("times") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let stamps = [
            (0, 0),
            (0, 1),
            (-1, 999_999_999),
            (-2_000_000_000, 5),            // 1906
            (-62_000_000_000, 123_456_789), // the year 5
            (1_700_000_000, 123_456_789),
            (1 << 31, 987_654_321), // past 2038
            (1 << 32, 1),           // past 2106
            (15_032_385_536, 1),    // past 2446, where ext4 ends
            (17_179_869_184, 999_999_999),
            (253_402_300_799, 999_999_999), // the end of the year 9999
            (i64::MAX - 2, 0),              // one second more has no fractions
        ];
        for (number, stamp) in stamps.into_iter().enumerate() {
            let (plain, dir) = (format!("file-{number}"), format!("dir-{number}"));
            file(&mounted.mount.join(&plain), b"x");
            fs::create_dir(mounted.mount.join(&dir)).unwrap();
            let link = format!("link-{number}");
            symlink("nowhere", mounted.mount.join(&link)).unwrap();
            for name in [plain, dir, link] {
                let other = (stamp.0 + 1, 999_999_999 - stamp.1);
                set(&mounted.mount.join(&name), stamp, other);
                assert_eq!(times(&mounted.mount.join(&name))[..2], [stamp, other]);
            }
        }
        let mounted = mounted.remounted();
        for (number, stamp) in stamps.into_iter().enumerate() {
            for kind in ["file", "dir", "link"] {
                let is = times(&mounted.mount.join(&format!("{kind}-{number}")));
                let other = (stamp.0 + 1, 999_999_999 - stamp.1);
                assert_eq!(is[..2], [stamp, other], "{kind} {stamp:?}");
            }
        }
        mounted.end();
    }
}

#[test]
fn now_and_omit_are_understood() {
    if !requirement::mounts_work("UTIME_NOW and UTIME_OMIT") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let path = mounted.mount.join("file");
        file(&path, b"x");
        set(&path, (1, 1), (2, 2));
        let before = times(&path);
        next_tick();
        set(
            &path,
            (0, rustix::fs::UTIME_OMIT as _),
            (0, rustix::fs::UTIME_NOW as _),
        );
        let after = times(&path);
        assert_eq!(after[0], (1, 1));
        assert!(after[1] >= before[2] && after[2] > before[2], "{after:?}");
        set(&path, (7, 7), (0, rustix::fs::UTIME_OMIT as _));
        assert_eq!((times(&path)[0], times(&path)[1]), ((7, 7), after[1]));
        mounted.end();
    }
}

/// What is done, which of atime, mtime and ctime it moves, and how.
type Case<'a> = (&'a str, [bool; 3], &'a dyn Fn());

/// Which of atime, mtime and ctime of `path` have moved through `change`.
pub(crate) fn moved(path: &Path, change: &dyn Fn()) -> [bool; 3] {
    let before = times(path);
    next_tick();
    change();
    let after = times(path);
    std::array::from_fn(|at| after[at] != before[at])
}

#[test]
fn each_change_moves_its_times_and_no_other() {
    if !requirement::mounts_work("which times change") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let at = |name: &str| mounted.mount.join(name);
        let open = file(&at("file"), &[1; 100_000]);
        open.sync_all().unwrap();
        fs::create_dir(at("dir")).unwrap();
        fs::create_dir(at("dir/sub")).unwrap();
        const NONE: [bool; 3] = [false; 3];
        const CHANGED: [bool; 3] = [false, false, true];
        const MODIFIED: [bool; 3] = [false, true, true];
        let of_file: [Case<'_>; 13] = [
            ("stat", NONE, &|| assert!(at("file").exists())),
            ("open", NONE, &|| drop(File::open(at("file")).unwrap())),
            ("fsync", NONE, &|| open.sync_all().unwrap()),
            ("write", MODIFIED, &|| open.write_all_at(b"x", 5).unwrap()),
            ("an empty write", NONE, &|| {
                open.write_all_at(b"", 5).unwrap()
            }),
            ("longer", MODIFIED, &|| open.set_len(200_000).unwrap()),
            ("shorter", MODIFIED, &|| open.set_len(100).unwrap()),
            ("O_TRUNC", MODIFIED, &|| {
                drop(File::create(at("file")).unwrap())
            }),
            ("fallocate", MODIFIED, &|| {
                fallocate(&open, FallocateFlags::empty(), 0, 10_000).unwrap();
            }),
            ("chmod", CHANGED, &|| {
                fs::set_permissions(at("file"), fs::Permissions::from_mode(0o600)).unwrap();
            }),
            ("chown", CHANGED, &|| {
                std::os::unix::fs::chown(at("file"), Some(5), Some(6)).unwrap();
            }),
            ("setxattr", CHANGED, &|| {
                setxattr(at("file"), "user.a", b"v", XattrFlags::empty()).unwrap();
            }),
            ("link", CHANGED, &|| {
                fs::hard_link(at("file"), at("dir/link")).unwrap()
            }),
        ];
        for (what, expected, change) in of_file {
            assert_eq!(moved(&at("file"), change), expected, "{what}: the file");
        }
        let of_link = moved(&at("dir/link"), &|| fs::remove_file(at("file")).unwrap());
        assert_eq!(of_link, CHANGED, "unlink of another name: the file");
        let renamed = |from: &str, to: &str| fs::rename(at(from), at(to)).unwrap();
        let before = times(&at("dir/link"));
        next_tick();
        renamed("dir/link", "file");
        let after = times(&at("file"));
        assert_eq!(after[..2], before[..2], "rename: the file");
        assert!(after[2] > before[2], "rename changes the ctime, as on ext4");

        let of_dir: [Case<'_>; 10] = [
            ("create", MODIFIED, &|| drop(file(&at("dir/new"), b""))),
            ("a change in a file", NONE, &|| {
                fs::write(at("dir/new"), "x").unwrap()
            }),
            ("mkdir", MODIFIED, &|| {
                fs::create_dir(at("dir/more")).unwrap()
            }),
            ("symlink", MODIFIED, &|| {
                symlink("x", at("dir/symlink")).unwrap()
            }),
            ("link", MODIFIED, &|| {
                fs::hard_link(at("file"), at("dir/link")).unwrap()
            }),
            ("rename within", MODIFIED, &|| {
                renamed("dir/new", "dir/newer")
            }),
            ("rename away", MODIFIED, &|| renamed("dir/newer", "newer")),
            ("rename into", MODIFIED, &|| renamed("newer", "dir/newer")),
            ("unlink", MODIFIED, &|| {
                fs::remove_file(at("dir/newer")).unwrap()
            }),
            ("rmdir", MODIFIED, &|| {
                fs::remove_dir(at("dir/more")).unwrap()
            }),
        ];
        for (what, expected, change) in of_dir {
            assert_eq!(moved(&at("dir"), change), expected, "{what}: the directory");
        }
        drop(open);
        mounted.end();
    }
}

/// With the writeback cache the kernel keeps the times: a store moves them, its write-back does not. Without, hafsd does, and
/// sees a store when it is written back.
#[test]
fn a_store_through_a_mapping_moves_the_times() {
    if !requirement::mounts_work("times of mapped files") {
        return;
    }
    for (writeback, mounted) in [true, false].into_iter().zip(Mounted::in_both_modes()) {
        let path = mounted.mount.join("file");
        let open = file(&path, &[1; 8192]);
        open.sync_all().unwrap();
        let map = Map::shared(&open, 0);
        let before = times(&path);
        next_tick();
        map.set(5, 7);
        let stored = times(&path);
        next_tick();
        open.sync_all().unwrap();
        let synced = times(&path);
        assert_eq!(stored != before, writeback, "{before:?} {stored:?}");
        assert_eq!(synced != stored, !writeback, "{stored:?} {synced:?}");
        for time in [1, 2] {
            assert!(synced[time] > before[time], "{before:?} {synced:?}");
        }
        drop((map, open));
        mounted.end();
    }
}

#[test]
fn there_is_no_birth_time() {
    if !requirement::mounts_work("birth times") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.mount.join("file");
    file(&path, b"x");
    let all = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let is = statx(CWD, &path, AtFlags::empty(), all).unwrap();
    assert_eq!(is.stx_mask & StatxFlags::BTIME.bits(), 0);
    assert_eq!(
        is.stx_mask & StatxFlags::BASIC_STATS.bits(),
        StatxFlags::BASIC_STATS.bits()
    );
    mounted.end();
}
