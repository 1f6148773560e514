//! mount(8), umount(8) and /etc/fstab as operators use them. Everything runs in a mount namespace of its own, where
//! /sbin holds our helpers and mount(8)'s table starts empty.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use hafs_tests::binaries::program;
use hafs_tests::namespace::private_mounts;
use hafs_tests::{Daemon, Ran, Scratch, requirement, run};

/// $1 is the helpers' directory; mount(8) looks for helpers in /sbin only.
const PREPARE: &str = "\
sbin=$(readlink -f /sbin); mount -t overlay overlay -o lowerdir=\"$1:$sbin\" \"$sbin\"
mkdir -p /run/mount; mount -t tmpfs none /run/mount";

/// A volume `v`, a directory for it, and a line of fstab.
struct Host {
    scratch: Scratch,
    daemon: Daemon,
}

impl Host {
    fn new() -> Self {
        let scratch = Scratch::new();
        let daemon = Daemon::start(scratch.path());
        daemon.create_volume("v");
        let sbin = scratch.dir("sbin");
        fs::copy(program("mount-fuse-hafs"), sbin.join("mount.fuse.hafs"))
            .expect("root may do that in a scratch directory");
        std::os::unix::fs::symlink("mount.fuse.hafs", sbin.join("umount.fuse.hafs"))
            .expect("root may do that in a scratch directory");
        scratch.dir("mnt");
        let host = Self { scratch, daemon };
        host.fstab(
            "_netdev,nofail,x-systemd.requires=hafsd.service",
            host.daemon.socket(),
        );
        host
    }

    fn fstab(&self, options: &str, socket: &Path) {
        let (dir, socket) = (self.scratch.join("mnt"), socket.display());
        let line = format!(
            "v {} fuse.hafs {options},socket={socket} 0 0\n",
            dir.display()
        );
        fs::write(self.scratch.join("fstab"), line)
            .expect("root may do that in a scratch directory");
    }

    /// Runs a script that sees $dir, $socket and $fstab, in the namespace.
    #[track_caller]
    fn sh(&self, script: &str) -> Ran {
        let sbin = self.scratch.join("sbin");
        let mut shell: Command = private_mounts(PREPARE, &[sbin.as_os_str()], OsStr::new("sh"));
        shell
            .args(["-euc", &format!("{NEVER}{script}")])
            .env("dir", self.scratch.join("mnt"))
            .env("socket", self.daemon.socket())
            .env("fstab", self.scratch.join("fstab"))
            .env("LC_ALL", "C");
        run(&mut shell)
    }

    fn end(self) {
        self.daemon.check("v");
        self.daemon.stop();
    }
}

/// Options of the volume's mount, as findmnt shows them.
const OPTIONS: &str = "findmnt -n -t fuse.hafs -o OPTIONS \"$dir\"";
/// Fails unless nothing is mounted on the directory and mount(8)'s table has forgotten it.
const NOTHING_LEFT: &str =
    "never grep \" $dir \" /proc/self/mounts; never grep -F \"$dir\" /run/mount/utab";
/// `! command` does not end a shell with -e; this does.
const NEVER: &str = "never() { if \"$@\"; then echo \"succeeded: $*\" >&2; exit 99; fi; }\n";

#[test]
fn a_line_in_fstab() {
    if !requirement::mounts_work("fstab") {
        return;
    }
    let host = Host::new();
    host.sh(&format!(
        "mount -a -T \"$fstab\"; mountpoint -q \"$dir\"; echo kept > \"$dir/file\"
         grep -c \" $dir \" /proc/self/mounts | grep -qx 2
         # Once more: it is mounted already, and stays so once.
         mount -a -T \"$fstab\"; grep -c \" $dir \" /proc/self/mounts | grep -qx 2
         # The remark is for scripts that unmount network filesystems first.
         grep _netdev /run/mount/utab; findmnt -n -t fuse.hafs -o OPTIONS \"$dir\"
         umount \"$dir\"; {NOTHING_LEFT}
         mount -T \"$fstab\" \"$dir\"; cat \"$dir/file\"; umount \"$dir/\"; {NOTHING_LEFT}
         mount -T \"$fstab\" v; umount -R \"$dir\"; {NOTHING_LEFT}
         mount -T \"$fstab\" v; umount v; {NOTHING_LEFT}
         mount -T \"$fstab\" v; cd \"$dir/..\"; umount -l mnt; {NOTHING_LEFT}"
    ))
    .ok();
    host.fstab("noauto,_netdev,noatime", host.daemon.socket());
    let shown = host
        .sh(&format!(
            "mount -a -T \"$fstab\"; never mountpoint -q \"$dir\"
             mount -T \"$fstab\" \"$dir\"; {OPTIONS}; umount \"$dir\"; {NOTHING_LEFT}"
        ))
        .ok()
        .stdout;
    assert!(shown.starts_with("rw,noatime,"), "{shown}");
    host.end();
}

#[test]
fn fstab_without_a_daemon_and_with_options_that_are_refused() {
    if !requirement::mounts_work("refusals through mount(8)") {
        return;
    }
    let host = Host::new();
    host.fstab("_netdev,nofail", &host.scratch.join("nobody"));
    host.sh("mount -a -T \"$fstab\"")
        .refused(32, &["no hafsd answers on", "next: ", "-o socket=PATH"]);
    for (option, code) in [("user", 1), ("sync", 1), ("compress=zstd", 1)] {
        host.fstab(option, host.daemon.socket());
        host.sh("mount -T \"$fstab\" \"$dir\"")
            .refused(code, &[&format!("option `{option}`"), "why: ", "next: "]);
    }
    host.sh(NOTHING_LEFT).ok();
    host.end();
}

#[test]
fn findmnt_finds_no_error_in_the_line() {
    if !requirement::mounts_work("findmnt --verify") {
        return;
    }
    let host = Host::new();
    let said = host.sh("findmnt --verify --tab-file \"$fstab\"").ok();
    // It warns that the source is no file and the type none of the kernel's own, as for every FUSE or network filesystem.
    assert!(said.stderr.contains("0 parse errors, 0 errors"), "{said}");
    host.end();
}

#[test]
fn systemd_makes_a_mount_unit_of_the_line() {
    if !requirement::mounts_work("systemd-fstab-generator") {
        return;
    }
    let generator = Path::new("/usr/lib/systemd/system-generators/systemd-fstab-generator");
    if !generator.is_file() {
        requirement::missing("systemd-fstab-generator", "systemd");
        return;
    }
    let host = Host::new();
    let out = host.scratch.dir("units");
    let mut command = Command::new(generator);
    command
        .args([&out, &out, &out])
        .env("SYSTEMD_FSTAB", host.scratch.join("fstab"))
        .env("SYSTEMD_PROC_CMDLINE", "");
    run(&mut command).ok();
    let units: Vec<_> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension() == Some(OsStr::new("mount")))
        .collect();
    let unit = fs::read_to_string(units.first().expect("a mount unit")).unwrap();
    for line in [
        "Requires=hafsd.service",
        "After=hafsd.service",
        "What=v",
        "Type=fuse.hafs",
    ] {
        assert!(unit.lines().any(|is| is == line), "no {line} in\n{unit}");
    }
    // `_netdev`: wanted by remote-fs.target, `nofail`: not required by it.
    let wants = fs::read_dir(out.join("remote-fs.target.wants")).unwrap();
    assert_eq!(wants.count(), 1);
    assert!(!out.join("remote-fs.target.requires").exists());
    host.end();
}

#[test]
fn options_as_mount_8_passes_them() {
    if !requirement::mounts_work("options through mount(8)") {
        return;
    }
    let host = Host::new();
    for (given, shown) in [
        ("defaults", "rw,relatime"),
        ("ro", "ro,relatime"),
        ("noatime", "rw,noatime"),
        ("nodiratime,strictatime", "rw,nodiratime"),
        ("nosuid,nodev,noexec", "rw,nosuid,nodev,noexec,relatime"),
        ("nosuid,nodev,noexec,suid,dev,exec", "rw,relatime"),
        ("comment=a,x-b=c,X-d,auto,nouser", "rw,relatime"),
    ] {
        let options = host
            .sh(&format!(
                "mount -t fuse.hafs -o \"socket=$socket,{given}\" v \"$dir\"; {OPTIONS}; umount \"$dir\"; {NOTHING_LEFT}"
            ))
            .ok()
            .stdout;
        assert!(
            options.starts_with(&format!("{shown},user_id=0,")),
            "{given}: {options}"
        );
    }
    let mode = |option| format!("mount -t fuse.hafs -o \"socket=$socket,{option}\" v \"$dir\"");
    // What the words mean is the kernel's; that they reach it, these tell.
    host.sh(&format!(
        "{}; printf '#!/bin/sh\\necho ran\\n' > \"$dir/program\"; chmod 755 \"$dir/program\"; \"$dir/program\"
         mknod \"$dir/null\" c 1 3; echo x > \"$dir/null\"; umount \"$dir\"
         {}; never \"$dir/program\"; never sh -c 'echo x > \"$dir/null\"'; umount \"$dir\"",
        mode("defaults"),
        mode("noexec,nodev")
    ))
    .ok();
    host.end();
}

#[test]
fn remounts() {
    if !requirement::mounts_work("remount") {
        return;
    }
    let host = Host::new();
    host.sh(&format!(
        "mount -t fuse.hafs -o \"socket=$socket,noexec\" v \"$dir\"; touch \"$dir/file\"
         mount -o remount,ro \"$dir\"; never touch \"$dir/file\"; {OPTIONS} | grep -q '^ro,noexec,'
         mount -o remount,rw \"$dir\"; touch \"$dir/file\"; {OPTIONS} | grep -q '^rw,noexec,'
         # A file that is open for writing: not read-only, as everywhere.
         exec 8> \"$dir/open\"; never mount -o remount,ro \"$dir\"; echo x >&8; exec 8>&-
         # mount(2) without our helper: the whole filesystem; ours brings it back.
         mount -i -o remount,ro \"$dir\"; never touch \"$dir/file\"
         mount -o remount,rw \"$dir\"; touch \"$dir/file\"
         # A second mount is one of its own, and so are its flags.
         mkdir \"$dir-2\"; mount -t fuse.hafs -o \"socket=$socket\" v \"$dir-2\"
         mount -o remount,ro \"$dir-2\"; never touch \"$dir-2/file\"; touch \"$dir/file\"
         umount \"$dir-2\"; umount \"$dir\"; {NOTHING_LEFT}"
    ))
    .ok();
    host.sh("mount -o remount,ro -t fuse.hafs v \"$dir\"")
        .refused(32, &["volume `v` is not mounted on", "next: "]);
    host.end();
}

#[test]
fn labels_need_selinux() {
    if !requirement::mounts_work("context=") {
        return;
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap();
    if filesystems.contains("selinuxfs") {
        // Passing a label on would need a policy that knows it; the unit tests of the mount data stand for that.
        return;
    }
    let host = Host::new();
    // The helper itself: mount(8) drops such options where SELinux is off.
    host.sh(
        "/sbin/mount.fuse.hafs v \"$dir\" -o \"socket=$socket,context=system_u:object_r:x_t:s0\"",
    )
    .refused(
        32,
        &["`context=system_u:object_r:x_t:s0` needs SELinux", "next: "],
    );
    host.sh(NOTHING_LEFT).ok();
    host.end();
}
