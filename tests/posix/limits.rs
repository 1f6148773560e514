//! Limits of POSIX and Linux: names, depth, lengths, times, counts of links.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use hafs_tests::requirement;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, fstat, linkat, makedev, mkdirat,
    mknodat, openat, statat, statvfs, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::Mounted;

#[test]
fn names_of_any_bytes_and_trees_of_any_depth() {
    if !requirement::mounts_work("names and deep trees") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &[u8]| mounted.mount.path().join(OsStr::from_bytes(name));
    let umlauts = "ü".repeat(127);
    let names: [&[u8]; 5] = [
        &[0xff, 0xfe, 1, b'\n'],
        b" ",
        b"...",
        umlauts.as_bytes(),
        &[b'n'; 255],
    ];
    for name in names {
        File::create_new(at(name)).unwrap();
    }
    let error = File::create_new(at("ü".repeat(128).as_bytes())).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    let listed: Vec<_> = fs::read_dir(mounted.mount.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        names
            .iter()
            .all(|name| listed.iter().any(|is| is.as_bytes() == *name))
    );

    // 60 directories of 200 bytes: a path of three times PATH_MAX.
    let name = "d".repeat(200);
    let open = |dir: &OwnedFd| {
        openat(
            dir,
            &name,
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        )
    };
    let root = openat(CWD, mounted.mount.path(), OFlags::RDONLY, Mode::empty()).unwrap();
    let mut dirs = vec![root];
    for _ in 0..60 {
        let dir = dirs.last().expect("never empty");
        mkdirat(dir, &name, Mode::from(0o755)).unwrap();
        let next = open(dir).unwrap();
        dirs.push(next);
    }
    let create = OFlags::WRONLY | OFlags::CREATE;
    openat(&dirs[60], "leaf", create, Mode::from(0o644)).unwrap();
    assert_eq!(
        statat(&dirs[60], "leaf", AtFlags::empty())
            .unwrap()
            .st_nlink,
        1
    );
    unlinkat(&dirs[60], "leaf", AtFlags::empty()).unwrap();
    for dir in dirs[..60].iter().rev() {
        unlinkat(dir, &name, AtFlags::REMOVEDIR).unwrap();
    }
    drop(dirs);
    let sizes = statvfs(mounted.mount.path()).unwrap();
    assert_eq!((sizes.f_namemax, sizes.f_frsize), (255, 4096));
    assert!(sizes.f_files > 1_000_000 && sizes.f_ffree < sizes.f_files);
    mounted.end();
}

#[test]
fn files_of_eight_exbibytes() {
    if !requirement::mounts_work("the longest file") {
        return;
    }
    const END: u64 = i64::MAX as u64;
    let mounted = Mounted::new();
    let path = mounted.mount.join("long");
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.write_all_at(b"first", 0).unwrap();
    file.write_all_at(b"middle", 1 << 62).unwrap();
    file.write_all_at(b"l", END - 1).unwrap();
    assert_eq!(file.metadata().unwrap().size(), END);
    assert_eq!(
        file.write_at(b"x", END).unwrap_err().raw_os_error(),
        Some(libc::EINVAL)
    );
    file.sync_all().unwrap();
    let mut bytes = [0; 10];
    assert_eq!(file.read_at(&mut bytes, (1 << 62) - 2).unwrap(), 10);
    assert_eq!(&bytes, b"\0\0middle\0\0");
    file.read_exact_at(&mut bytes[..3], END - 3).unwrap();
    assert_eq!(&bytes[..3], b"\0\0l");
    assert!(file.metadata().unwrap().blocks() < 100);
    file.set_len(5).unwrap();
    file.set_len(END).unwrap();
    file.read_exact_at(&mut bytes[..3], END - 3).unwrap();
    assert_eq!(&bytes[..3], b"\0\0\0", "what was cut off is gone");
    drop(file);
    fs::remove_file(&path).unwrap();
    mounted.end();
}

#[test]
fn times_from_before_1970_to_after_2106_with_nanoseconds() {
    if !requirement::mounts_work("file times") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.mount.join("file");
    fs::write(&path, "x").unwrap();
    let cases: [(i64, i64); 8] = [
        (0, 0),
        (0, 1),
        (-1, 999_999_999),
        (-2, 500_000_000),
        (-5_000_000_000, 1),
        (4_294_967_296, 123_456_789),
        (17_179_869_184, 999_999_999),
        (i64::MAX, 0),
    ];
    let set = |tv_sec, tv_nsec| {
        let times = Timestamps {
            last_access: Timespec { tv_sec, tv_nsec },
            last_modification: Timespec {
                tv_sec: tv_sec / 2,
                tv_nsec,
            },
        };
        utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    };
    let told = || {
        let is = fs::metadata(&path).unwrap();
        [(is.atime(), is.atime_nsec()), (is.mtime(), is.mtime_nsec())]
    };
    for (secs, nanos) in cases {
        set(secs, nanos);
        assert_eq!(told(), [(secs, nanos), (secs / 2, nanos)]);
        // As hafsd has them, not only the kernel.
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert_eq!(told(), [(secs, nanos), (secs / 2, nanos)]);
    }
    mounted.end();
}

/// The kernel leaves access times to hafsd, and hafsd does not see what is read from the cache: they are set, not kept.
#[test]
fn reading_changes_no_access_time() {
    if !requirement::mounts_work("access times") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.mount.join("file");
    fs::write(&path, "x").unwrap();
    let old = Timespec {
        tv_sec: 1000,
        tv_nsec: 5,
    };
    let times = Timestamps {
        last_access: old,
        last_modification: Timespec {
            tv_sec: 2000,
            tv_nsec: 0,
        },
    };
    utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"x");
    let is = fs::metadata(&path).unwrap();
    assert_eq!((is.atime(), is.atime_nsec()), (1000, 5));
    mounted.end();
}

#[test]
fn directories_count_their_subdirectories() {
    if !requirement::mounts_work("link counts") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let links = |name: &str| fs::metadata(at(name)).unwrap().nlink();
    fs::create_dir_all(at("dir/one")).unwrap();
    fs::create_dir(at("dir/two")).unwrap();
    File::create_new(at("dir/file")).unwrap();
    assert_eq!((links("dir"), links("dir/one")), (4, 2));
    fs::rename(at("dir/one"), at("dir/two/one")).unwrap();
    assert_eq!((links("dir"), links("dir/two")), (3, 3));
    fs::rename(at("dir/two/one"), at("one")).unwrap();
    fs::remove_dir(at("dir/two")).unwrap();
    assert_eq!(links("dir"), 2);
    // An inode without a name gets none again.
    let file = File::open(at("dir/file")).unwrap();
    fs::remove_file(at("dir/file")).unwrap();
    assert_eq!(fstat(&file).unwrap().st_nlink, 0);
    let by_fd = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let linked = linkat(CWD, by_fd, CWD, at("again"), AtFlags::SYMLINK_FOLLOW);
    assert_eq!(linked, Err(Errno::NOENT));
    drop(file);
    mounted.end();
}

#[test]
fn every_kind_of_device() {
    if !requirement::mounts_work("mknod") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let kinds = [
        (FileType::CharacterDevice, makedev(1, 3)),
        (FileType::BlockDevice, makedev(259, 70_000)),
        (FileType::CharacterDevice, 0),
        (FileType::Fifo, 0),
        (FileType::Socket, 0),
        (FileType::RegularFile, 0),
    ];
    for (number, (kind, device)) in kinds.into_iter().enumerate() {
        let path = at(&number.to_string());
        mknodat(CWD, &path, kind, Mode::from(0o640), device).unwrap();
        let is = rustix::fs::lstat(&path).unwrap();
        assert_eq!(
            (FileType::from_raw_mode(is.st_mode), is.st_rdev),
            (kind, device)
        );
    }
    // O_TMPFILE is not carried by the FUSE crate in use.
    let mut options = OpenOptions::new();
    let tmpfile = options
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(mounted.mount.path());
    assert_eq!(tmpfile.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    mounted.end();
}
