//! The space of deleted files: given back also where that met a full disk at first, and in time for who waits for it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use hafs_tests::{Launch, Mount, Scratch, requirement, run};
use rustix::fs::statvfs;

use crate::{KIB, MIB, MIB_LEN, wait_until};

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

/// More than the sessions of any mount.
const WRITERS: usize = 40;
const PAGE: [u8; 4096] = [1; 4096];

/// Requests that the kernel has sent or wants to send, and that are not answered.
fn waiting(control: &Path, mount: &Mount) -> usize {
    let device = fs::metadata(mount.path()).expect("mounted").dev();
    let path = control.join(rustix::fs::minor(device).to_string());
    let text = fs::read_to_string(path.join("waiting")).expect("the kernel counts");
    text.trim().parse().expect("a number")
}

fn open_direct(path: &Path) -> File {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true);
    let opened = options.custom_flags(libc::O_DIRECT).open(path);
    opened.expect("a file can be made")
}

/// The kernel tells that nobody has a deleted file open any more through the same threads that answer who waits for its space.
#[test]
fn who_waits_for_a_deleted_files_space_does_not_keep_it_from_being_given_back() {
    if !requirement::mounts_work("writing to a full volume") {
        return;
    }
    let scratch = Scratch::new();
    let control = Mount::watch(&scratch.dir("control"));
    let mut mounting = Command::new("mount");
    run(mounting.args(["-t", "fusectl", "none"]).arg(control.path())).ok();
    let daemon = Launch::new(scratch.path()).start();
    daemon
        .ctl(&["volume", "create", "v", "--size", "32MiB"])
        .ok();
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    // How long a write waits is measured by the deletion, so a busy machine may spoil a round: one must succeed.
    let succeeded = (0..5).any(|round| {
        let files: Vec<File> = (0..WRITERS)
            .map(|n| open_direct(&mount.join(&format!("{round}-{n}"))))
            .collect();
        let big = mount.join("big");
        let mut file = File::create(&big).unwrap();
        file.write_all(&vec![1; MIB_LEN]).unwrap();
        file.sync_all().unwrap();
        let rest = open_direct(&mount.join(&format!("rest-{round}")));
        let full = (0..32 * MIB / (4 * KIB))
            .map(|n| rest.write_all_at(&PAGE, n * 4 * KIB))
            .find_map(Result::err);
        assert_eq!(full.map(|error| error.kind()), Some(ErrorKind::StorageFull));
        let written = thread::scope(|scope| {
            fs::remove_file(&big).unwrap();
            let writers: Vec<_> = files
                .iter()
                .map(|file| scope.spawn(|| file.write_all_at(&PAGE, 0).is_ok()))
                .collect();
            // All wait, or some were told at last that there is no space.
            wait_until("the writers wait", LIMIT, || {
                waiting(control.path(), &mount) >= WRITERS
                    || writers.iter().any(thread::ScopedJoinHandle::is_finished)
            });
            drop(file);
            let joined = writers.into_iter().map(|writer| writer.join().unwrap());
            joined.filter(|&written| written).count()
        });
        eprintln!("round {round}: {written} of {WRITERS} had space");
        drop((files, rest));
        for entry in fs::read_dir(mount.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        wait_until("all is given back", LIMIT, || inodes(&mount) == 1);
        written == WRITERS
    });
    assert!(succeeded);
    mount.unmount();
    daemon.stop();
    run(Command::new("umount").arg(control.path())).ok();
}
