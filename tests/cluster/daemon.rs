//! The life of hafsd and of mounts: restart, end, a second mount, what mount(8) shows.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hafs_tests::binaries::program;
use hafs_tests::mount::{is_guard, mounts_on};
use hafs_tests::namespace::private_mounts;
use hafs_tests::{Daemon, Launch, Mount, Scratch, requirement, run};
use rustix::fs::minor;
use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::Value;

/// For what takes a moment, even on a machine that does a lot besides.
const LIMIT: Duration = Duration::from_secs(60);
/// How often hafsd's log is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Waits for a line of hafsd's log.
#[track_caller]
fn wait_for_log(daemon: &Daemon, message: &str) -> Value {
    let start = Instant::now();
    loop {
        let log = daemon.log();
        // The last line may still be being written.
        let mut events = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        if let Some(event) = events.find(|event: &Value| event["message"] == message) {
            return event;
        }
        assert!(
            start.elapsed() < LIMIT,
            "not logged within {LIMIT:?}: {message}"
        );
        thread::park_timeout(LOOK);
    }
}

/// What a dead mount answers.
#[track_caller]
fn assert_dead(path: &Path) {
    let error = fs::metadata(path).expect_err("the mount is dead");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::NOTCONN));
}

#[test]
fn what_a_mount_looks_like() {
    if !requirement::mounts_work("options of a mount") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("pg-main");
    let dir = scratch.dir("mnt");
    let mount = daemon.mount_with("pg-main", &dir, "noatime,noexec");
    let lines = mounts_on(&dir);
    let line = lines.last().expect("mounted");
    assert_eq!(
        (line.source.as_str(), line.kind.as_str()),
        ("pg-main", "fuse.hafs")
    );
    for option in [
        "rw",
        "noatime",
        "noexec",
        "allow_other",
        "default_permissions",
    ] {
        assert!(
            line.options.iter().any(|is| is == option),
            "no {option} in {line:?}"
        );
    }
    for option in ["nosuid", "nodev"] {
        assert!(
            !line.options.iter().any(|is| is == option),
            "a root mount allows suid and dev: {line:?}"
        );
    }
    let list = daemon.ctl(&["volume", "list"]).ok().stdout;
    assert!(list.contains(dir.to_str().unwrap()), "{list}");
    mount.unmount();
    let mount = daemon.mount_with("pg-main", &dir, "ro,nosuid,nodev");
    let lines = mounts_on(&dir);
    for option in ["ro", "nosuid", "nodev"] {
        assert!(
            lines.last().unwrap().options.iter().any(|is| is == option),
            "no {option} in {lines:?}"
        );
    }
    mount.unmount();
    daemon.stop();
}

#[test]
fn mount_and_umount_as_users_call_them() {
    if !requirement::mounts_work("mount -t fuse.hafs") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let (dir, sbin) = (scratch.dir("mnt"), scratch.dir("sbin"));
    fs::copy(program("mount-fuse-hafs"), sbin.join("mount.fuse.hafs")).unwrap();
    std::os::unix::fs::symlink("mount.fuse.hafs", sbin.join("umount.fuse.hafs")).unwrap();
    // mount(8) looks for helpers in /sbin only; ours is there in this namespace alone.
    let prepare =
        "sbin=$(readlink -f /sbin); mount -t overlay overlay -o lowerdir=\"$1:$sbin\" \"$sbin\"";
    let script = "mount -t fuse.hafs v \"$1\" -o socket=\"$2\",noatime\n\
                  findmnt -n -t fuse.hafs -o SOURCE,FSTYPE \"$1\"; echo hello > \"$1/file\"\n\
                  mount -o remount,ro \"$1\"; if touch \"$1/file\"; then exit 9; fi; mount -o remount,rw \"$1\"\n\
                  umount \"$1\"; if findmnt -n \"$1\"; then exit 9; fi; mount -t fuse.hafs v \"$1\" -o socket=\"$2\"; cat \"$1/file\"; umount \"$1\"";
    let mut shell = private_mounts(prepare, &[sbin.as_ref()], "sh".as_ref());
    shell
        .args(["-euc", script, "sh"])
        .arg(&dir)
        .arg(daemon.socket());
    let ran = run(&mut shell).ok();
    let words: Vec<&str> = ran.stdout.split_whitespace().collect();
    assert_eq!(words, ["v", "fuse.hafs", "hello"], "{ran}");
    daemon.check("v");
    daemon.stop();
}

#[test]
fn a_second_mount_is_a_bind_of_the_first() {
    if !requirement::mounts_work("a second mount") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let first = daemon.mount("v", &scratch.dir("first"));
    let second = daemon.mount("v", &scratch.dir("second"));
    let read_only = daemon.mount_with("v", &scratch.dir("ro"), "ro");
    fs::write(first.join("file"), "one volume").unwrap();
    assert_eq!(
        fs::read_to_string(second.join("file")).unwrap(),
        "one volume"
    );
    let refused = fs::write(read_only.join("file"), "x").expect_err("read-only");
    assert_eq!(Errno::from_io_error(&refused), Some(Errno::ROFS));
    first.unmount();
    fs::write(second.join("file"), "still there").unwrap();
    assert_eq!(
        fs::read_to_string(read_only.join("file")).unwrap(),
        "still there"
    );
    read_only.unmount();
    second.unmount();
    daemon.check("v");
    daemon.stop();
}

#[test]
fn after_a_kill_the_next_hafsd_clears_the_dead_mount_away() {
    if !requirement::mounts_work("a dead mount") {
        return;
    }
    let scratch = Scratch::new();
    let launch = Launch::new(scratch.path());
    let daemon = launch.clone().start();
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    let mount = daemon.mount("v", &dir);
    let mut open = File::create(mount.join("file")).unwrap();
    open.write_all(b"before").unwrap();
    open.sync_all().unwrap();
    daemon.kill();
    assert_dead(&dir);
    let error = open
        .write_all(b"after")
        .and_then(|()| open.sync_all())
        .expect_err("nobody serves it");
    assert!(
        matches!(
            Errno::from_io_error(&error),
            Some(Errno::NOTCONN | Errno::IO | Errno::CONNABORTED)
        ),
        "{error}"
    );

    let daemon = launch.start();
    let left = mounts_on(&dir);
    assert!(
        left.len() == 1 && is_guard(&left[0]),
        "the dead mount is cleared away, its guard stays: {left:?}"
    );
    let again = daemon.mount("v", &dir);
    assert_eq!(fs::read_to_string(again.join("file")).unwrap(), "before");
    drop(open);
    again.unmount();
    daemon.check("v");
    daemon.stop();
}

#[test]
fn sigterm_unmounts_also_what_is_busy() {
    if !requirement::mounts_work("SIGTERM with a busy mount") {
        return;
    }
    let scratch = Scratch::new();
    let launch = Launch::new(scratch.path())
        .expect("lazily")
        .expect("busy")
        .expect("in use");
    let daemon = launch.clone().start();
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    let mount = daemon.mount("v", &dir);
    fs::write(mount.join("cached"), vec![7; 3_000_000]).unwrap();
    let mut busy = File::create(mount.join("busy")).unwrap();
    busy.write_all(&[8; 100_000]).unwrap();
    daemon.stop();
    let left = mounts_on(&dir);
    assert!(left.len() == 1 && is_guard(&left[0]), "{left:?}");
    busy.write_all(&[9; 100])
        .and_then(|()| busy.sync_all())
        .expect_err("hafsd is gone");
    drop(busy);

    let daemon = launch.start();
    let mount = daemon.mount("v", &dir);
    assert_eq!(
        fs::read(mount.join("cached")).unwrap(),
        vec![7; 3_000_000],
        "bytes in the kernel's cache were lost"
    );
    mount.unmount();
    daemon.check("v");
    daemon.stop();
}

#[test]
fn the_end_of_hafsd_touches_no_mount_of_another() {
    if !requirement::mounts_work("a number of a mount that is used again") {
        return;
    }
    let (scratch, other) = (Scratch::new(), Scratch::new());
    // What the first hafsd has served stays on its list after its unmount, for as long as this file is there.
    let hold = scratch.join("hold");
    let late = format!("mount-ended=return({})", hold.display());
    let config = scratch.join("hafsd.toml");
    fs::write(&config, "log_filter = \"info,hafs_tools=debug\"\n").unwrap();
    let daemon = Launch::new(scratch.path())
        .variable("FAILPOINTS", &late)
        .argument(&format!("--config={}", config.display()))
        .start();
    daemon.create_volume("v");
    let stranger = Daemon::start(other.path());
    stranger.create_volume("v");
    stranger.mount("v", &other.dir("mnt")).unmount();

    let device = |mount: &Mount| fs::metadata(mount.path()).unwrap().dev();
    // The kernel gives the lowest free number, which is the one just freed unless the machine mounts something else.
    let start = Instant::now();
    let (theirs, number) = loop {
        let mount = daemon.mount("v", &scratch.dir("mnt"));
        let number = device(&mount);
        File::create(&hold).unwrap();
        mount.unmount();
        let theirs = stranger.mount("v", &other.join("mnt"));
        if device(&theirs) == number {
            break (theirs, number);
        }
        theirs.unmount();
        fs::remove_file(&hold).unwrap();
        let tried = start.elapsed();
        assert!(tried < LIMIT, "no number is used again within {tried:?}");
    };
    // It ends with that mount on its list, and is through with it before it hears that it has ended.
    daemon.signal(Signal::TERM);
    let unmounted = wait_for_log(&daemon, "unmounted by hafsd's end");
    assert_eq!(
        unmounted["connection"],
        minor(number),
        "not what this is about"
    );
    fs::remove_file(&hold).unwrap();
    daemon.stop();
    // The guard and the volume.
    assert_eq!(mounts_on(theirs.path()).len(), 2, "unmounted by a stranger");
    fs::write(theirs.join("file"), "served").unwrap();
    theirs.unmount();
    stranger.check("v");
    stranger.stop();
}

#[test]
fn status_tells_the_truth() {
    if !requirement::mounts_work("status") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("a");
    daemon.create_volume("b");
    let mount = daemon.mount("a", &scratch.dir("mnt"));
    fs::write(mount.join("file"), vec![1; 1 << 20]).unwrap();
    File::open(mount.join("file")).unwrap().sync_all().unwrap();
    let volume = daemon
        .ctl(&["volume", "show", "a", "-o", "json"])
        .ok()
        .json();
    let with_names = (1 << 20) + 3 * 512; // the root, and the file and its name
    assert_eq!(volume["used_bytes"], with_names);
    assert_eq!(
        volume["mounts"][0]["mountpoint"],
        mount.path().to_str().unwrap()
    );
    let replicas = daemon.ctl(&["replica", "status", "-o", "json"]).ok().json();
    assert_eq!(replicas["health"]["state"], "ok", "{replicas}");
    assert_eq!(replicas["replicas"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        (
            &replicas["replicas"][0]["copies_in_sync"],
            &replicas["replicas"][0]["copies_wanted"]
        ),
        (&1.into(), &1.into())
    );
    let table = daemon.ctl(&["replica", "status"]).ok().stdout;
    for word in [
        "VOLUME",
        "CONTRACT",
        "COPIES",
        "1/1",
        "primary",
        "health: OK",
    ] {
        assert!(table.contains(word), "no {word} in:\n{table}");
    }
    let status = daemon.ctl(&["status", "-o", "json"]).ok().json();
    assert_eq!(
        (&status["ready"], &status["apiVersion"], &status["mounts"]),
        (&true.into(), &"v1".into(), &1.into())
    );
    mount.unmount();
    daemon.stop();
    let _ = Mount::watch(&scratch.join("mnt"));
}
