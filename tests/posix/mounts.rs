//! Flags of mounts, and a layer of overlayfs on a mounted volume.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use hafs_tests::{Mount, requirement, run};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::Mounted;
use crate::errno::errno;

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

/// Puts into `dir` what the flags of a mount are about: a program, one that is setuid root, one with a capability, a device, and
/// what only root may read.
fn dangerous(dir: &Path) {
    let program = |name: &str, of: &str, mode| {
        fs::copy(of, dir.join(name)).expect("a program of the system");
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).expect("root may");
    };
    program("true", "/bin/true", 0o755);
    program("id", "/usr/bin/id", 0o4755);
    program("cat", "/bin/cat", 0o755);
    // VFS_CAP_REVISION_2, cap_dac_override permitted and effective.
    let value = [1, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let set = setxattr(
        dir.join("cat"),
        "security.capability",
        &value,
        XattrFlags::empty(),
    );
    set.expect("root may");
    fs::write(dir.join("secret"), "secret").expect("root may");
    fs::set_permissions(dir.join("secret"), fs::Permissions::from_mode(0o600)).expect("root may");
    let null = dir.join("null");
    let device = FileType::CharacterDevice;
    mknodat(CWD, null, device, Mode::from(0o666), makedev(1, 3)).expect("root may");
}

/// What the mount keeps from happening in `dir`.
fn kept_from(dir: &Path) -> Vec<&'static str> {
    let mut kept = Vec::new();
    match Command::new(dir.join("true")).status() {
        Ok(status) => assert!(status.success()),
        Err(error) => {
            assert_eq!(errno::<()>(Err(error)), Errno::ACCESS);
            assert!(!maps_executable(&dir.join("true")));
            kept.push("noexec");
        }
    }
    match File::open(dir.join("null")) {
        Ok(null) => drop(null),
        Err(error) => {
            assert_eq!(errno::<()>(Err(error)), Errno::ACCESS);
            kept.push("nodev");
        }
    }
    // What is not executed gains nothing by it.
    if kept.contains(&"noexec") {
        return kept;
    }
    assert!(maps_executable(&dir.join("true")));
    let as_user = |program: &str, argument: &Path| {
        let mut command = Command::new(dir.join(program));
        run(command.arg(argument).uid(1000).gid(1000))
    };
    let effective = as_user("id", Path::new("-u")).ok().stdout;
    let read = as_user("cat", &dir.join("secret")).stdout;
    match (effective.trim(), read.as_str()) {
        ("0", "secret") => {}
        ("1000", "") => kept.push("nosuid"),
        other => panic!("half of it: {other:?}"),
    }
    kept
}

/// Whether mmap(2) takes the file for a program's text.
#[expect(unsafe_code, reason = "mmap(2) is what is tested")]
fn maps_executable(path: &Path) -> bool {
    let file = File::open(path).expect("readable");
    let (prot, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE);
    // SAFETY: a fresh mapping that nobody uses, and that ends here.
    unsafe {
        let map = libc::mmap(std::ptr::null_mut(), 4096, prot, flags, file.as_raw_fd(), 0);
        if map == libc::MAP_FAILED {
            assert_eq!(
                errno::<()>(Err(std::io::Error::last_os_error())),
                Errno::PERM
            );
            return false;
        }
        assert_eq!(libc::munmap(map, 4096), 0);
    }
    true
}

/// Each mount of a volume has its own, also where it is a bind of the first.
#[test]
fn noexec_nosuid_and_nodev_hold_where_they_were_asked_for() {
    if !requirement::mounts_work("noexec, nosuid and nodev") {
        return;
    }
    let mounted = Mounted::new();
    for dir in [mounted.scratch.path(), mounted.mount.path()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dangerous(mounted.mount.path());
    assert_eq!(kept_from(mounted.mount.path()), [""; 0]);
    let Mounted {
        mount,
        daemon,
        scratch,
    } = mounted;
    let second = scratch.dir("second");
    mount.unmount();
    for flag in ["noexec", "nosuid", "nodev"] {
        for (of_first, of_second) in [(flag, ""), ("", flag)] {
            let first = daemon.mount_with("v", &scratch.join("mnt"), of_first);
            let bound = daemon.mount_with("v", &second, of_second);
            let wanted =
                |options: &'static str| Vec::from_iter(Some(options).filter(|is| !is.is_empty()));
            assert_eq!(kept_from(first.path()), wanted(of_first));
            assert_eq!(kept_from(bound.path()), wanted(of_second));
            bound.unmount();
            first.unmount();
        }
    }
    daemon.check("v");
    daemon.stop();
}
