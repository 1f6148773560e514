//! Counts of links, kinds of devices, access times.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use hafs_tests::requirement;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, fstat, linkat, makedev, mknodat, utimensat,
};
use rustix::io::Errno;

use crate::Mounted;

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
