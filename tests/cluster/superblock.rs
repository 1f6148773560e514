//! Never a second superblock of one volume, also where the first one is not to be seen.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use hafs_tests::daemon::mount_command;
use hafs_tests::mount::{is_guard, mounts_on, umount_command, wait_for_mounts};
use hafs_tests::{Daemon, Scratch, requirement, run};

use crate::mount_point::Namespace;

/// What is said where a mount is that cannot be bound.
const REFUSED: &str = "volume `v` is in use where it cannot be bound from";

/// For hafsd to see the end of a mount, on a machine with much else to do.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Two superblocks would each have their own cache of one file: the open one would see nothing of what the other writes.
#[test]
fn a_volume_that_only_open_files_hold_is_not_mounted_again() {
    if !requirement::mounts_work("a mount after umount -l") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let (dir, second) = (scratch.dir("mnt"), scratch.dir("second"));
    let mount = daemon.mount("v", &dir);
    let mut open = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.join("file"))
        .unwrap();
    open.write_all(b"first").unwrap();
    run(umount_command(&dir).arg("-l")).ok();
    // Beside it and in its place, where only its guard is left.
    let elsewhere = std::thread::scope(|scope| {
        let beside = scope.spawn(|| daemon.mount_command("v", &second, ""));
        let in_place = daemon.mount_command("v", &dir, "");
        [beside.join().unwrap(), in_place]
    });
    for ran in elsewhere {
        let first = format!("its mount on {} was taken away", dir.display());
        let next = "end the processes and containers that use it";
        ran.refused(32, &[REFUSED, &first, "open files", next]);
    }
    assert_eq!(mounts_on(&second), []);
    let left = mounts_on(&dir);
    assert!(left.len() == 1 && is_guard(&left[0]), "{left:?}");
    // It goes on being served, and what is written is there when it can be mounted again.
    open.write_all(b" and last").unwrap();
    open.sync_all().unwrap();
    let mut text = String::new();
    open.rewind().unwrap();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "first and last");
    drop(open);
    let again = daemon.mount("v", &second);
    assert_eq!(fs::read_to_string(again.join("file")).unwrap(), text);
    again.unmount();
    wait_for_mounts(&dir, END_LIMIT, <[_]>::is_empty);
    daemon.check("v");
    daemon.stop();
}

#[test]
fn a_volume_that_is_mounted_in_another_namespace_is_not_mounted_again() {
    if !requirement::mounts_work("a mount beside one in another mount namespace") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let (dir, second) = (scratch.dir("mnt"), scratch.dir("second"));
    let [namespace, stranger] = [(); 2].map(|()| Namespace::private(scratch.path()));
    let inside = |namespace: &Namespace, dir| {
        let mut command = mount_command(daemon.socket(), "v", dir, "");
        run(command.arg("-N").arg(namespace.file()))
    };
    inside(&namespace, &dir).ok();
    namespace.sh("echo inside > \"$1/file\"", &dir).ok();
    // Seen from the host, and from a third namespace.
    let why = format!("mounted on {} in another mount namespace", dir.display());
    let elsewhere = [REFUSED, &why, "unmount it there", "nsenter"];
    daemon.mount_command("v", &dir, "").refused(32, &elsewhere);
    daemon
        .mount_command("v", &second, "")
        .refused(32, &elsewhere);
    inside(&stranger, &second).refused(32, &elsewhere);
    for left in [&dir, &second] {
        assert_eq!(mounts_on(left), []);
    }
    // In its own namespace it is bound: one superblock.
    inside(&namespace, &second).ok();
    let device = namespace.sh("stat -c %d \"$1\"", &dir).ok().stdout;
    assert_eq!(
        namespace.sh("stat -c %d \"$1\"", &second).ok().stdout,
        device
    );
    for mounted in [&dir, &second] {
        run(umount_command(mounted).arg("-N").arg(namespace.file())).ok();
    }
    let mount = daemon.mount("v", &dir);
    assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), "inside\n");
    mount.unmount();
    daemon.check("v");
    daemon.stop();
}

/// As a container keeps a mount that the host has unmounted.
#[test]
fn a_volume_that_another_namespace_has_kept_is_not_mounted_again() {
    if !requirement::mounts_work("a mount that another mount namespace keeps") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    let mount = daemon.mount("v", &dir);
    let device = fs::metadata(&dir).unwrap().dev().to_string();
    let namespace = Namespace::private(scratch.path());
    mount.unmount();
    daemon.mount_command("v", &dir, "").refused(
        32,
        &[REFUSED, "a container's mount namespace keep it in use"],
    );
    assert_eq!(mounts_on(&dir), []);
    let kept = namespace.sh("stat -c %d \"$1\" && echo kept > \"$1/file\"", &dir);
    assert_eq!(kept.ok().stdout.trim(), device);
    // Its end is the mount's.
    drop(namespace);
    let mount = daemon.mount("v", &dir);
    assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), "kept\n");
    mount.unmount();
    daemon.check("v");
    daemon.stop();
}
