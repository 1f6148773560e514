//! mount(2) on a mounted volume: read-only and back, one superblock, layers of overlayfs on it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Command;

use hafs_tests::{Mount, requirement, run};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};

use crate::Mounted;

#[test]
fn read_only_waits_for_writers_to_close() {
    if !requirement::mounts_work("mount -o remount,ro") {
        return;
    }
    let mounted = Mounted::new();
    let (dir, path) = (mounted.mount.path(), mounted.mount.join("file"));
    let remount = |flags| mount_remount(dir, flags, "");
    let writer = File::create(&path).unwrap();
    assert_eq!(remount(MountFlags::RDONLY), Err(Errno::BUSY));
    fs::write(mounted.mount.join("still"), "x").unwrap();
    // So does a file without a name.
    fs::remove_file(&path).unwrap();
    assert_eq!(remount(MountFlags::RDONLY), Err(Errno::BUSY));
    drop(writer);
    let reader = File::open(mounted.mount.join("still")).unwrap();
    remount(MountFlags::RDONLY).unwrap();
    let refused = OpenOptions::new()
        .append(true)
        .open(mounted.mount.join("still"));
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EROFS));
    remount(MountFlags::empty()).unwrap();
    fs::write(mounted.mount.join("again"), "x").unwrap();
    drop(reader);
    mounted.end();
}

#[test]
fn two_mounts_of_a_volume_are_one_filesystem() {
    if !requirement::mounts_work("two mounts of one volume") {
        return;
    }
    let mounted = Mounted::new();
    let second = mounted.daemon.mount("v", &mounted.scratch.dir("second"));
    let (one, other) = (mounted.mount.join("file"), second.join("file"));
    fs::write(&one, "not yet written back").unwrap();
    assert_eq!(fs::read_to_string(&other).unwrap(), "not yet written back");
    let (is, also) = (fs::metadata(&one).unwrap(), fs::metadata(&other).unwrap());
    assert_eq!((is.dev(), is.ino()), (also.dev(), also.ino()));
    second.unmount();
    fs::write(&one, "still there").unwrap();
    mounted.end();
}

/// The upper layer of a container's filesystem: whiteouts, opaque directories and copies lie on hafs.
#[test]
fn overlayfs_takes_a_volume_as_upper_layer_or_refuses_it() {
    if !requirement::mounts_work("overlayfs on a volume") {
        return;
    }
    let mounted = Mounted::new();
    let lower = mounted.scratch.dir("lower");
    fs::create_dir_all(lower.join("dir/sub")).unwrap();
    for name in ["file", "gone", "dir/inner"] {
        fs::write(lower.join(name), "lower").unwrap();
    }
    for dir in ["upper", "work"] {
        fs::create_dir(mounted.mount.join(dir)).unwrap();
    }
    let merged = Mount::watch(&mounted.scratch.dir("merged"));
    let upper = mounted.mount.join("upper");
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        mounted.mount.join("work").display()
    );
    let options = std::ffi::CString::new(options).unwrap();
    let flags = MountFlags::empty();
    match mount(
        "overlay",
        merged.path(),
        "overlay",
        flags,
        options.as_c_str(),
    ) {
        Ok(()) => {}
        Err(Errno::NODEV) => {
            requirement::skipped("overlayfs on a volume", "this kernel has no overlayfs");
            return;
        }
        Err(errno) => panic!("overlayfs refuses the volume: {errno}"),
    }
    let script = "echo upper > file; rm gone; rm -r dir; mkdir dir; echo new > dir/new; mv file moved; \
                  chmod 600 moved; setfattr -n user.a -v b moved; ln moved hard; [ ! -e gone ]";
    run(Command::new("sh")
        .args(["-euc", script])
        .current_dir(merged.path()))
    .ok();
    assert_eq!(fs::read_to_string(merged.join("hard")).unwrap(), "upper\n");
    assert!(!merged.join("dir/inner").exists());
    let whiteout = fs::symlink_metadata(upper.join("gone")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    run(Command::new("umount").arg(merged.path())).ok(); // not one of ours
    assert_eq!(fs::read_to_string(upper.join("moved")).unwrap(), "upper\n");
    mounted.end();
}
