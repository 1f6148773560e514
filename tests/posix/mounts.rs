//! A layer of overlayfs on a mounted volume.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Command;

use hafs_tests::{Mount, requirement, run};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::Mounted;

/// The upper layer of a container's filesystem: whiteouts, opaque directories and copies lie on hafs.
#[test]
fn overlayfs_takes_a_volume_as_upper_layer() {
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
