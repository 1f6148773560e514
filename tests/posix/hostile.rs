//! What a program in a container can try against the daemon that serves everybody.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hafs_tests::daemon::Launch;
use hafs_tests::{Scratch, requirement};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use rustix::io::Errno;

use crate::Mounted;

/// fuser 0.18.0 panics over a time whose seconds are the least that there are.
#[test]
fn a_time_that_the_fuse_crate_cannot_read_ends_one_request_and_nothing_else() {
    if !requirement::mounts_work("a request that cannot be read") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Launch::new(scratch.path())
        .expect("a request that cannot be read")
        .start();
    daemon.create_volume("v");
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    let mounted = Mounted {
        mount,
        daemon,
        scratch,
    };
    let path = mounted.mount.join("file");
    fs::write(&path, "x").unwrap();
    let before = fs::metadata(&path).unwrap();
    let pid = mounted.daemon.pid();
    let set = |tv_sec, tv_nsec| {
        let time = Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, &path, &times, AtFlags::empty())
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // Neither what others wait for meanwhile nor their later requests suffer.
        let other = scope.spawn(|| {
            let file = File::create(mounted.mount.join("other")).unwrap();
            let mut syncs = 0;
            while !done.load(Ordering::Relaxed) || syncs < 10 {
                file.set_len(syncs).unwrap();
                file.sync_all().unwrap();
                syncs += 1;
            }
        });
        for round in 0..200 {
            let nanos = round % 3;
            assert_eq!(
                set(i64::MIN, nanos),
                Err(Errno::CONNABORTED),
                "round {round}"
            );
        }
        done.store(true, Ordering::Relaxed);
        other.join().unwrap();
    });
    let after = fs::metadata(&path).unwrap();
    assert_eq!(
        (before.mtime(), before.size()),
        (after.mtime(), after.size())
    );
    set(i64::MIN + 1, 5).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mtime(), i64::MIN + 1);
    assert_eq!(mounted.daemon.pid(), pid);
    mounted.end();
}
