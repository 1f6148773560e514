//! The space of deleted files: given back also where that met a full disk at first.

use std::fs::{self, File};
use std::time::Duration;

use hafs_tests::{Launch, Mount, Scratch, requirement};
use rustix::fs::statvfs;

use crate::wait_until;

/// For what happens by itself, and takes some seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Inodes in use; 1 is the root.
fn inodes(mount: &Mount) -> u64 {
    let now = statvfs(mount.path()).expect("mounted");
    now.f_files - now.f_ffree
}

#[test]
fn what_a_full_disk_kept_from_being_given_back_is_given_back_later() {
    if !requirement::mounts_work("deleting on a full disk") {
        return;
    }
    let scratch = Scratch::new();
    let launch = Launch::new(scratch.path()).variable("FAILPOINTS", "reclaim=2*return");
    let daemon = launch.start();
    daemon.create_volume("v");
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    for name in ["one", "other"] {
        fs::write(mount.join(name), "text").unwrap();
        fs::remove_file(mount.join(name)).unwrap();
    }
    wait_until("both are given back", LIMIT, || inodes(&mount) == 1);
    mount.unmount();
    daemon.stop();
}

#[test]
fn a_volume_whose_deleted_files_cannot_be_given_back_is_mounted_all_the_same() {
    if !requirement::mounts_work("mounting a volume with deleted files") {
        return;
    }
    let scratch = Scratch::new();
    let launch = Launch::new(scratch.path());
    let daemon = launch.clone().start();
    daemon.create_volume("v");
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    let open: Vec<File> = (0..3)
        .map(|n| {
            let path = mount.join(&n.to_string());
            let file = File::create(&path).unwrap();
            fs::remove_file(&path).unwrap();
            file
        })
        .collect();
    daemon.kill();
    drop((open, mount));
    let daemon = launch.variable("FAILPOINTS", "reclaim=1*return").start();
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    wait_until("all are given back", LIMIT, || inodes(&mount) == 1);
    mount.unmount();
    daemon.stop();
}
