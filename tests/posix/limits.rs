//! Counts of links, kinds of devices, access times.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};

use hafs_tests::mount::mounts_on;
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
    let at = |name: &str| mounted.mount.join(name);
    fs::write(at("file"), "x").unwrap();
    fs::create_dir(at("dir")).unwrap();
    symlink("file", at("link")).unwrap();
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(1000, 5),
        last_modification: time(2000, 0),
    };
    for name in ["file", "dir", "link"] {
        utimensat(CWD, at(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let Mounted {
        mount,
        daemon,
        scratch,
    } = mounted;
    mount.unmount();
    for options in ["", "relatime", "strictatime", "noatime"] {
        // A mount of its own each time: hafsd is asked for everything that is read.
        let mount = daemon.mount_with("v", &scratch.join("mnt"), options);
        let lines = mounts_on(mount.path());
        let shown = |option: &str| lines.last().unwrap().options.iter().any(|is| is == option);
        assert_eq!(shown("noatime"), options == "noatime", "{lines:?}");
        assert_eq!(
            shown("relatime"),
            ["", "relatime"].contains(&options),
            "{lines:?}"
        );
        assert_eq!(fs::read(mount.join("file")).unwrap(), b"x");
        assert_eq!(fs::read_dir(mount.join("dir")).unwrap().count(), 0);
        let target = fs::read_link(mount.join("link")).unwrap();
        assert_eq!(target.to_str(), Some("file"));
        for name in ["file", "dir", "link"] {
            let is = fs::symlink_metadata(mount.join(name)).unwrap();
            let accessed = (is.atime(), is.atime_nsec());
            assert_eq!(accessed, (1000, 5), "{name} with {options:?}");
        }
        mount.unmount();
    }
    daemon.check("v");
    daemon.stop();
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
        // The largest of Linux.
        (FileType::CharacterDevice, makedev(4095, (1 << 20) - 1)),
        (FileType::BlockDevice, makedev(4095, 0)),
        (FileType::BlockDevice, makedev(0, (1 << 20) - 1)),
        (FileType::CharacterDevice, 0),
        (FileType::Fifo, 0),
        (FileType::Socket, 0),
        (FileType::RegularFile, 0),
    ];
    for (number, (kind, device)) in kinds.into_iter().enumerate() {
        mknodat(
            CWD,
            at(&number.to_string()),
            kind,
            Mode::from(0o640),
            device,
        )
        .unwrap();
    }
    let is_there = |mounted: &Mounted| {
        for (number, (kind, device)) in kinds.into_iter().enumerate() {
            let is = rustix::fs::lstat(mounted.mount.join(&number.to_string())).unwrap();
            let found = (FileType::from_raw_mode(is.st_mode), is.st_rdev);
            assert_eq!(found, (kind, device));
        }
    };
    is_there(&mounted);
    // O_TMPFILE is not carried by the FUSE crate in use.
    let mut options = OpenOptions::new();
    let tmpfile = options
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(mounted.mount.path());
    assert_eq!(tmpfile.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    let mounted = mounted.remounted();
    is_there(&mounted);
    mounted.end();
}
