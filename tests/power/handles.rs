//! File handles over a power cut: of a file that it took they lead to no other.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use hafs_tests::lossy::{Cut, Lossy, Mode};
use hafs_tests::{Handle, Launch, Scratch, requirement};

#[test]
fn the_handle_of_a_file_that_a_cut_took_leads_to_no_other() {
    if !requirement::mounts_work("file handles over a power cut") {
        return;
    }
    let scratch = Scratch::new();
    let (disk, data) = (scratch.dir("disk"), scratch.dir("data"));
    let launch = Launch::new(scratch.path()).data_dir(&data);
    let lossy = Lossy::mount(&disk, &data, 1);
    let daemon = launch.clone().start();
    daemon.create_volume("v");
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    fs::write(mount.join("kept"), "kept").unwrap();
    File::open(mount.join("kept")).unwrap().sync_all().unwrap();
    let kept = Handle::of(&mount.join("kept"));
    fs::write(mount.join("taken"), "taken").unwrap();
    let taken = Handle::of(&mount.join("taken"));
    let number = fs::metadata(mount.join("taken")).unwrap().ino();
    daemon.kill();
    lossy.cut(Cut {
        mode: Mode::Everything,
        seed: 1,
    });
    drop((mount, lossy));

    let lossy = Lossy::mount(&disk, &data, 2);
    let daemon = launch.start();
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    assert!(!mount.join("taken").exists());
    fs::write(mount.join("new"), "new").unwrap();
    let root = File::open(mount.path()).unwrap();
    kept.open(&root, libc::O_RDONLY).expect("it is there");
    let error = taken.open(&root, libc::O_RDONLY).unwrap_err();
    let new = fs::metadata(mount.join("new")).unwrap().ino();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{number}, {new}");
    Handle::of(&mount.join("new"))
        .open(&root, libc::O_RDONLY)
        .expect("it has a handle of its own");
    drop(root);
    mount.unmount();
    daemon.stop();
    drop(lossy);
}
