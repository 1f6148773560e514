//! Attributes and permissions beyond single errnos: groups of directories, modes, ownership, statfs, one superblock.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use hafs_tests::mount::mounts_on;
use hafs_tests::{Ran, requirement, run};
use rustix::fs::statvfs;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};

use crate::Mounted;
use crate::errno::{errno, file};

/// Runs a shell script in `dir` as a user of group 1000, and of `groups`.
fn as_user(dir: &Path, groups: &str, script: &str) -> Ran {
    let mut user = Command::new("setpriv");
    user.args(["--reuid", "1000", "--regid", "1000"]);
    if groups.is_empty() {
        user.arg("--clear-groups");
    } else {
        user.args(["--groups", groups]);
    }
    run(user.args(["sh", "-c", script]).current_dir(dir))
}

/// A mount that others may enter.
fn open_to_all() -> Mounted {
    let mounted = Mounted::new();
    for dir in [mounted.scratch.path(), mounted.mount.path()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod by root");
    }
    mounted
}

fn owner(path: &Path) -> (u32, u32, u32) {
    let is = fs::symlink_metadata(path).expect("it is there");
    (is.uid(), is.gid(), is.mode() & 0o7777)
}

#[test]
fn directories_hand_their_group_on() {
    if !requirement::mounts_work("set-group-ID directories") {
        return;
    }
    let mounted = open_to_all();
    let dir = mounted.mount.join("shared");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(1000), Some(2000)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775)).unwrap();
    let script = "umask 022; echo > file; mkdir sub; echo > sub/file; mkfifo fifo; ln -s x link";
    as_user(&dir, "", script).ok();
    for (name, mode) in [
        ("file", 0o644),
        ("fifo", 0o644),
        ("link", 0o777),
        ("sub", 0o2755),
    ] {
        assert_eq!(owner(&dir.join(name)), (1000, 2000, mode), "{name}");
    }
    assert_eq!(owner(&dir.join("sub/file")), (1000, 2000, 0o644));
    // Without the bit it is the creator's group.
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o775)).unwrap();
    as_user(&dir, "", "echo > own").ok();
    assert_eq!(owner(&dir.join("own")).1, 1000);
    mounted.end();
}

#[test]
fn owners_change_what_is_theirs() {
    if !requirement::mounts_work("chown and chmod by users") {
        return;
    }
    let mounted = open_to_all();
    let at = |name: &str| mounted.mount.join(name);
    for name in ["mine", "other"] {
        file(&at(name), b"x");
    }
    chown(at("mine"), Some(1000), Some(1000)).unwrap();
    let script = "chmod 640 mine && chgrp 3000 mine && echo done; \
                  chgrp 4000 mine; chown 1001 mine; chmod 600 other; touch -d 2001-01-01 other";
    let ran = as_user(mounted.mount.path(), "3000", script);
    assert_eq!(ran.stdout, "done\n", "{ran}");
    assert_eq!(ran.stderr.lines().count(), 4, "{ran}");
    assert_eq!(
        ran.stderr.matches("Operation not permitted").count(),
        3,
        "{ran}"
    );
    assert_eq!(ran.stderr.matches("Permission denied").count(), 1, "{ran}");
    assert_eq!(owner(&at("mine")), (1000, 3000, 0o640));
    // Whoever is not in the group of a file cannot make it run as that group.
    chown(at("mine"), Some(1000), Some(5000)).unwrap();
    as_user(mounted.mount.path(), "3000", "chmod 2755 mine").ok();
    assert_eq!(owner(&at("mine")), (1000, 5000, 0o755));
    mounted.end();
}

#[test]
fn access_follows_the_groups_of_the_caller() {
    if !requirement::mounts_work("supplementary groups") {
        return;
    }
    let mounted = open_to_all();
    let path = mounted.mount.join("file");
    file(&path, b"group\n");
    chown(&path, Some(0), Some(3000)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let cat = |groups| {
        as_user(
            mounted.mount.path(),
            groups,
            "cat file; test -w file || echo no",
        )
    };
    assert_eq!(cat("3000").stdout, "group\nno\n");
    let refused = cat("");
    assert!(refused.stderr.contains("Permission denied"), "{refused}");
    // Many groups are more than a request carries: the kernel looks at them itself.
    let many: Vec<String> = (3000..3200).rev().map(|gid: u32| gid.to_string()).collect();
    assert_eq!(cat(&many.join(",")).stdout, "group\nno\n");
    mounted.end();
}

#[test]
fn statfs_tells_size_and_use() {
    if !requirement::mounts_work("statfs") {
        return;
    }
    let mounted = Mounted::with("1GiB", "");
    let is = || statvfs(mounted.mount.path()).unwrap();
    let empty = is();
    assert_eq!(empty.f_blocks * empty.f_frsize, 1 << 30);
    assert_eq!(empty.f_namemax, 255);
    // The kernel gives FUSE filesystems none.
    assert_eq!(empty.f_fsid, 0);
    assert_eq!(empty.f_bfree, empty.f_bavail);
    assert!(empty.f_ffree > 1000 && empty.f_files >= empty.f_ffree);
    let path = mounted.mount.join("file");
    let open = file(&path, &[1; 10 << 20]);
    open.sync_all().unwrap();
    let used = (empty.f_bfree - is().f_bfree) * empty.f_frsize;
    assert!((10 << 20..11 << 20).contains(&used), "{used} bytes used");
    // What the kernel knows of an open file's blocks is refreshed at a close.
    drop(open);
    assert_eq!(fs::metadata(&path).unwrap().blocks() * 512, 10 << 20);
    fs::remove_file(&path).unwrap();
    // The file goes when the kernel has let go of it, soon after.
    let deadline = Instant::now() + Duration::from_secs(30);
    while is().f_bfree < empty.f_bfree {
        assert!(Instant::now() < deadline, "space does not come back");
        thread::yield_now();
    }
    mounted.end();
}

#[test]
fn one_volume_is_one_superblock() {
    if !requirement::mounts_work("a second mount of a volume") {
        return;
    }
    let mounted = Mounted::new();
    let second = mounted.daemon.mount("v", &mounted.scratch.dir("second"));
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_eq!(device(mounted.mount.path()), device(second.path()));
    assert_eq!(mounts_on(second.path()).last().unwrap().kind, "fuse.hafs");
    // So both share one cache: what is written through one is read through the other, synced or not.
    let writer = file(&mounted.mount.join("file"), &[1; 100_000]);
    let reader = File::open(second.join("file")).unwrap();
    writer.write_all_at(b"fresh", 50_000).unwrap();
    let mut bytes = [0; 5];
    reader.read_exact_at(&mut bytes, 50_000).unwrap();
    assert_eq!(&bytes, b"fresh");
    drop((writer, reader));
    second.unmount();
    mounted.end();
}

#[test]
fn a_mount_turns_read_only_when_nobody_writes() {
    if !requirement::mounts_work("remount") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.mount.join("file");
    let writer = file(&path, b"bytes");
    let remount = |flags| mount_remount(mounted.mount.path(), flags, "");
    assert_eq!(errno(remount(MountFlags::RDONLY)), Errno::BUSY);
    drop(writer);
    // So is a file without a name that is open, until it is closed.
    let nameless = file(&mounted.mount.join("nameless"), b"x");
    fs::remove_file(mounted.mount.join("nameless")).unwrap();
    assert_eq!(errno(remount(MountFlags::RDONLY)), Errno::BUSY);
    drop(nameless);
    // The kernel lets go of it once hafsd has answered the close, soon after.
    let deadline = Instant::now() + Duration::from_secs(30);
    while remount(MountFlags::RDONLY) == Err(Errno::BUSY) {
        assert!(Instant::now() < deadline, "the closed file keeps it busy");
        thread::yield_now();
    }
    let write = || OpenOptions::new().write(true).open(&path);
    assert_eq!(errno(write()), Errno::ROFS);
    assert_eq!(errno(fs::remove_file(&path)), Errno::ROFS);
    assert_eq!(fs::read(&path).unwrap(), b"bytes");
    remount(MountFlags::empty()).unwrap();
    write().unwrap().write_all_at(b"again", 0).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"again");
    mounted.end();
}
