//! The errors that system calls answer with through a mount, call by call.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Seek, Write};
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use hafs_tests::requirement;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, SeekFrom, XattrFlags, copy_file_range,
    fallocate, getxattr, linkat, mkdirat, openat, removexattr, renameat_with, seek, setxattr,
    unlinkat,
};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use crate::Mounted;

/// The errno that `result` failed with.
#[track_caller]
pub(crate) fn errno<T>(result: Result<T, impl Into<io::Error>>) -> Errno {
    match result {
        Ok(_) => panic!("succeeded"),
        Err(error) => Errno::from_io_error(&error.into()).expect("a system error"),
    }
}

/// A file with these bytes.
pub(crate) fn file(path: &Path, bytes: &[u8]) -> File {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .expect("a new file");
    file.write_all(bytes).expect("room");
    file.rewind().expect("seek");
    file
}

#[test]
fn names() {
    if !requirement::mounts_work("errors about names") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    file(&at("file"), b"x");
    fs::create_dir(at("dir")).unwrap();
    file(&at("dir/inner"), b"x");
    fs::create_dir(at("empty")).unwrap();
    symlink("loop", at("loop")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();

    let open = |name: &str, flags| openat(CWD, at(name), flags, Mode::from(0o644));
    assert_eq!(errno(open("missing", OFlags::RDONLY)), Errno::NOENT);
    assert_eq!(
        errno(open("missing/x", OFlags::RDONLY | OFlags::CREATE)),
        Errno::NOENT
    );
    assert_eq!(errno(open("file/x", OFlags::RDONLY)), Errno::NOTDIR);
    assert_eq!(
        errno(open("file", OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)),
        Errno::EXIST
    );
    assert_eq!(errno(open("dir", OFlags::WRONLY)), Errno::ISDIR);
    assert_eq!(
        errno(open("file", OFlags::RDONLY | OFlags::DIRECTORY)),
        Errno::NOTDIR
    );
    assert_eq!(errno(open("loop", OFlags::RDONLY)), Errno::LOOP);
    assert_eq!(errno(open("dangling", OFlags::RDONLY)), Errno::NOENT);
    assert_eq!(
        errno(open("dangling", OFlags::RDONLY | OFlags::NOFOLLOW)),
        Errno::LOOP
    );
    assert_eq!(
        errno(open(&"n".repeat(256), OFlags::RDONLY)),
        Errno::NAMETOOLONG
    );
    assert_eq!(
        errno(open(&"n".repeat(256), OFlags::RDWR | OFlags::CREATE)),
        Errno::NAMETOOLONG
    );
    open(&"n".repeat(255), OFlags::RDWR | OFlags::CREATE).unwrap();

    assert_eq!(
        errno(mkdirat(CWD, at("file"), Mode::from(0o755))),
        Errno::EXIST
    );
    assert_eq!(
        errno(mkdirat(CWD, at("dir"), Mode::from(0o755))),
        Errno::EXIST
    );
    assert_eq!(errno(fs::remove_dir(at("dir"))), Errno::NOTEMPTY);
    assert_eq!(errno(fs::remove_dir(at("file"))), Errno::NOTDIR);
    assert_eq!(
        errno(unlinkat(CWD, at("dir"), AtFlags::empty())),
        Errno::ISDIR
    );
    assert_eq!(errno(fs::remove_file(at("missing"))), Errno::NOENT);
    assert_eq!(errno(fs::remove_dir(mounted.mount.path())), Errno::BUSY);
    assert_eq!(
        errno(linkat(CWD, at("dir"), CWD, at("hard"), AtFlags::empty())),
        Errno::PERM
    );
    assert_eq!(
        errno(linkat(CWD, at("file"), CWD, at("empty"), AtFlags::empty())),
        Errno::EXIST
    );
    assert_eq!(errno(symlink("x", at("file"))), Errno::EXIST);
    assert_eq!(errno(symlink("", at("nothing"))), Errno::NOENT);
    assert_eq!(errno(fs::read_link(at("file"))), Errno::INVAL);
    mounted.end();
}

#[test]
fn renames() {
    if !requirement::mounts_work("errors of rename") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    file(&at("file"), b"file");
    file(&at("other"), b"other");
    fs::create_dir_all(at("dir/sub")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    let rename = |from: &str, to: &str, flags| renameat_with(CWD, at(from), CWD, at(to), flags);
    let plain = RenameFlags::empty();
    assert_eq!(errno(rename("missing", "x", plain)), Errno::NOENT);
    assert_eq!(errno(rename("dir", "dir/sub/x", plain)), Errno::INVAL);
    assert_eq!(errno(rename("empty", "dir", plain)), Errno::NOTEMPTY);
    assert_eq!(errno(rename("file", "empty", plain)), Errno::ISDIR);
    assert_eq!(errno(rename("empty", "file", plain)), Errno::NOTDIR);
    assert_eq!(
        errno(rename("file", "other", RenameFlags::NOREPLACE)),
        Errno::EXIST
    );
    assert_eq!(
        errno(rename("file", "missing", RenameFlags::EXCHANGE)),
        Errno::NOENT
    );
    assert_eq!(
        errno(rename("dir", "dir/sub", RenameFlags::EXCHANGE)),
        Errno::INVAL
    );
    let outside = mounted.scratch.join("outside");
    assert_eq!(errno(fs::rename(at("file"), &outside)), Errno::XDEV);
    assert_eq!(errno(fs::hard_link(at("file"), &outside)), Errno::XDEV);

    rename("file", "other", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(
        (
            fs::read(at("file")).unwrap(),
            fs::read(at("other")).unwrap()
        ),
        (b"other".into(), b"file".into())
    );
    rename("dir/sub", "empty", plain).unwrap();
    assert!(!at("dir/sub").exists() && at("empty").is_dir());
    mounted.end();
}

#[test]
fn bytes() {
    if !requirement::mounts_work("errors about bytes") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let open = file(&at("file"), &[7; 10_000]);
    assert_eq!(errno(seek(&open, SeekFrom::Data(10_000))), Errno::NXIO);
    assert_eq!(errno(seek(&open, SeekFrom::Hole(10_001))), Errno::NXIO);
    assert_eq!(seek(&open, SeekFrom::Hole(5)).unwrap(), 10_000);
    let none = FallocateFlags::empty();
    assert_eq!(errno(fallocate(&open, none, 0, 0)), Errno::INVAL);
    assert_eq!(
        errno(fallocate(&open, none, i64::MAX as u64, 10)),
        Errno::FBIG
    );
    assert_eq!(
        errno(fallocate(&open, FallocateFlags::COLLAPSE_RANGE, 0, 4096)),
        Errno::OPNOTSUPP
    );
    assert_eq!(errno(rustix::fs::ftruncate(&open, 1 << 63)), Errno::INVAL);
    let read_only = File::open(at("file")).unwrap();
    assert_eq!(errno(read_only.write_at(b"x", 0)), Errno::BADF);
    assert_eq!(errno(read_only.set_len(0)), Errno::INVAL);
    let mut offset = 0;
    let mut within = 5_000;
    let overlapping = copy_file_range(&open, Some(&mut offset), &open, Some(&mut within), 8_000);
    assert_eq!(errno(overlapping), Errno::INVAL);
    let dir = File::open(mounted.mount.path()).unwrap();
    assert_eq!(errno(dir.read_at(&mut [0; 10], 0)), Errno::ISDIR);
    dir.sync_all().unwrap();
    drop((open, read_only, dir));
    mounted.end();
}

#[test]
fn extended_attributes() {
    if !requirement::mounts_work("errors of extended attributes") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.mount.join("file");
    file(&path, b"x");
    let mut value = [0; 100];
    assert_eq!(
        errno(getxattr(&path, "user.none", &mut value)),
        Errno::NODATA
    );
    assert_eq!(errno(removexattr(&path, "user.none")), Errno::NODATA);
    assert_eq!(
        errno(setxattr(&path, "user.a", b"v", XattrFlags::REPLACE)),
        Errno::NODATA
    );
    setxattr(&path, "user.a", b"value", XattrFlags::CREATE).unwrap();
    assert_eq!(
        errno(setxattr(&path, "user.a", b"v", XattrFlags::CREATE)),
        Errno::EXIST
    );
    assert_eq!(
        errno(getxattr(&path, "user.a", &mut value[..2])),
        Errno::RANGE
    );
    assert_eq!(getxattr(&path, "user.a", &mut value).unwrap(), 5);
    assert_eq!(
        errno(setxattr(
            &path,
            "user.b",
            &vec![0; 65_537],
            XattrFlags::empty()
        )),
        Errno::TOOBIG
    );
    setxattr(&path, "user.b", &vec![1; 65_536], XattrFlags::empty()).unwrap();
    let long = format!("user.{}", "n".repeat(251));
    assert_eq!(
        errno(setxattr(&path, long.as_str(), b"v", XattrFlags::empty())),
        Errno::RANGE
    );
    mounted.end();
}

#[test]
fn permissions_of_another_user() {
    if !requirement::mounts_work("permissions") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    fs::set_permissions(mounted.scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(mounted.mount.path(), fs::Permissions::from_mode(0o755)).unwrap();
    file(&at("private"), b"secret");
    fs::set_permissions(at("private"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(at("sticky")).unwrap();
    fs::set_permissions(at("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    file(&at("sticky/roots"), b"x");
    let script = "cat private; echo > here; echo > sticky/mine && rm sticky/mine && echo mine; rm -f sticky/roots; chown 0 sticky";
    let mut user = std::process::Command::new("setpriv");
    user.args([
        "--reuid",
        "1000",
        "--regid",
        "1000",
        "--clear-groups",
        "sh",
        "-c",
        script,
    ]);
    let ran = hafs_tests::run(user.current_dir(mounted.mount.path()));
    assert_eq!(ran.stdout, "mine\n", "{ran}");
    assert_eq!(ran.stderr.matches("Permission denied").count(), 2, "{ran}");
    assert_eq!(
        ran.stderr.matches("Operation not permitted").count(),
        2,
        "{ran}"
    );
    assert!(at("sticky/roots").exists());
    mounted.end();
}

#[test]
fn a_read_only_mount() {
    if !requirement::mounts_work("a read-only mount") {
        return;
    }
    let mounted = Mounted::with("1GiB", "ro");
    let at = |name: &str| mounted.mount.join(name);
    let create = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(at("file"));
    assert_eq!(errno(create), Errno::ROFS);
    assert_eq!(errno(fs::create_dir(at("dir"))), Errno::ROFS);
    let mode = fs::Permissions::from_mode(0o700);
    assert_eq!(
        errno(fs::set_permissions(mounted.mount.path(), mode)),
        Errno::ROFS
    );
    mounted.end();
}

/// close(2) with its answer, which is not to be had from `File`.
#[expect(unsafe_code, reason = "no crate in use gives close's answer")]
fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is owned, and nobody has it any more.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn a_full_volume() {
    if !requirement::mounts_work("a full volume") {
        return;
    }
    // 16 MiB of bytes, and room for names.
    let mounted = Mounted::with("16448KiB", "");
    let at = |name: &str| mounted.mount.join(name);
    let mut options = OpenOptions::new();
    let direct = options
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT)
        .open(at("direct"))
        .unwrap();
    let block = vec![7; 1 << 20];
    let written = (0..20)
        .take_while(|&i| direct.write_at(&block, i << 20).is_ok())
        .count();
    assert_eq!(
        written, 16,
        "MiB written directly until the volume was full"
    );
    assert_eq!(errno(direct.write_at(&block, 16 << 20)), Errno::NOSPC);
    assert_eq!(
        errno(fallocate(
            direct.as_fd(),
            FallocateFlags::empty(),
            16 << 20,
            1 << 20
        )),
        Errno::NOSPC
    );

    // Cached bytes find the volume full only later: fsync has to say so, or close.
    let cached = |name: &str| {
        let open = file(&at(name), b"");
        assert_eq!(open.write_at(&block, 0).unwrap(), block.len());
        open
    };
    assert_eq!(errno(cached("synced").sync_all()), Errno::NOSPC);
    assert_eq!(errno(close(cached("closed"))), Errno::NOSPC);
    // Who asks for each write to be on the disk is told at once.
    for flag in [libc::O_SYNC, libc::O_DSYNC] {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true);
        let open = options.custom_flags(flag).open(at("each")).unwrap();
        assert_eq!(errno(open.write_at(&block, 0)), Errno::NOSPC);
    }
    let each = file(&at("each"), b"");
    for flag in [ReadWriteFlags::SYNC, ReadWriteFlags::DSYNC] {
        let written = pwritev2(&each, &[IoSlice::new(&block)], 0, flag);
        assert_eq!(errno(written), Errno::NOSPC);
    }
    drop(each);

    // Space that is given back can be used, and a full volume is no lasting error.
    direct.set_len(0).unwrap();
    let again = file(&at("again"), &block);
    again.sync_all().unwrap();
    let sizes = rustix::fs::statvfs(mounted.mount.path()).unwrap();
    assert_eq!(
        sizes.f_blocks * sizes.f_frsize,
        16448 << 10,
        "df shows the volume's size"
    );
    drop((direct, again));
    mounted.end();
}
