//! Settings that change while a volume exists, room that runs out, and stores that were put back from an older copy.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hafs_tests::{Daemon, Launch, Scratch, requirement, run};
use rustix::fs::statvfs;
use rustix::io::Errno;

const MIB: u64 = 1 << 20;
static ONE_MIB: [u8; 1 << 20] = [7; 1 << 20];

fn size_of(dir: &Path) -> u64 {
    let stat = statvfs(dir).expect("a mount");
    stat.f_blocks * stat.f_frsize
}

/// Writes so many MiB and has them synced.
fn fill(path: &Path, mib: usize) -> Result<(), Errno> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).expect("an errno");
    let mut file = File::create(path).map_err(errno)?;
    for _ in 0..mib {
        file.write_all(&ONE_MIB).map_err(errno)?;
    }
    file.sync_all().map_err(errno)
}

#[test]
fn a_mounted_volume_grows_and_shrinks() {
    if !requirement::mounts_work("volume set on a mounted volume") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon
        .ctl(&["volume", "create", "v", "--size", "16MiB"])
        .ok();
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    fill(&mount.path().join("a"), 8).unwrap();
    assert_eq!(fill(&mount.path().join("b"), 12), Err(Errno::NOSPC));
    fs::remove_file(mount.path().join("b")).unwrap();

    let dry = daemon
        .ctl(&["volume", "set", "v", "size=64MiB", "--dry-run"])
        .ok()
        .stdout;
    assert!(
        dry.contains("64 MiB") && dry.contains("nothing was changed"),
        "{dry}"
    );
    assert_eq!(size_of(mount.path()), 16 * MIB);
    let grown = daemon
        .ctl(&["volume", "set", "v", "size=64MiB", "-o", "json"])
        .ok()
        .json();
    let change = &grown["changes"][0];
    assert_eq!(
        (
            &change["setting"],
            &change["from"],
            &change["to"],
            &change["takes_effect"]
        ),
        (
            &"size_bytes".into(),
            &(16 * MIB).into(),
            &(64 * MIB).into(),
            &"now".into()
        )
    );
    assert_eq!(size_of(mount.path()), 64 * MIB);
    fill(&mount.path().join("b"), 12).unwrap();

    let below = daemon.ctl(&["volume", "set", "v", "size=16MiB"]);
    below.refused(
        1,
        &["cannot shrink to 16 MiB", "why:", "files hold", "next:"],
    );
    assert_eq!(size_of(mount.path()), 64 * MIB);
    daemon.ctl(&["volume", "set", "v", "size=24MiB"]).ok();
    assert_eq!(size_of(mount.path()), 24 * MIB);
    assert_eq!(fill(&mount.path().join("c"), 12), Err(Errno::NOSPC));
    let same = daemon
        .ctl(&["volume", "set", "v", "size=24MiB"])
        .ok()
        .stdout;
    assert!(same.contains("is so already"), "{same}");
    daemon.check("v");
    mount.unmount();
    daemon.stop();

    let daemon = Daemon::start(scratch.path());
    let shown = daemon
        .ctl(&["volume", "show", "v", "-o", "json"])
        .ok()
        .json();
    assert_eq!(shown["size_bytes"], 24 * MIB, "it outlives hafsd");
    daemon.stop();
}

#[test]
fn writeback_and_profile_hold_from_the_next_mount() {
    if !requirement::mounts_work("volume set writeback=off") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon
        .ctl(&["volume", "create", "v", "--size", "8MiB"])
        .ok();
    let dir = scratch.dir("mnt");
    let readahead = || {
        let shown = daemon
            .ctl(&["volume", "show", "v", "-o", "json"])
            .ok()
            .json();
        let device = shown["mounts"][0]["device"]
            .as_str()
            .expect("mounted")
            .to_owned();
        let kib = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb"));
        kib.expect("a mount has a bdi").trim().to_owned()
    };
    let overfill = |path: &Path| {
        let mut file = File::create(path).unwrap();
        (0..16).try_for_each(|_| file.write_all(&ONE_MIB))
    };
    let mount = daemon.mount("v", &dir);
    overfill(&dir.join("a")).expect("the kernel gathers writes and tells of no quota");
    fs::remove_file(dir.join("a")).unwrap();
    let text = daemon
        .ctl(&["volume", "set", "v", "writeback=off", "profile=database"])
        .ok()
        .stdout;
    assert_eq!(text.matches("at the next mount").count(), 2, "{text}");
    assert_eq!(readahead(), "1024");
    mount.unmount();
    let mount = daemon.mount("v", &dir);
    let error = overfill(&dir.join("b")).expect_err("write(2) itself tells");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::NOSPC));
    assert_eq!(readahead(), "128", "a database's");
    mount.unmount();
    daemon.check("v");
    daemon.stop();
}

#[test]
fn what_is_no_setting_is_refused() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    for wrong in [
        "size",
        "size=lots",
        "colour=red",
        "writeback=maybe",
        "profile=fast",
    ] {
        daemon
            .ctl(&["volume", "set", "v", wrong])
            .refused(2, &[wrong.split('=').next().unwrap()]);
    }
    daemon
        .ctl(&["volume", "set", "v"])
        .refused(2, &["SETTING=VALUE"]);
    daemon
        .ctl(&["volume", "set", "v", "size=2GiB", "size=3GiB"])
        .refused(2, &["twice"]);
    daemon
        .ctl(&["volume", "set", "w", "size=1GiB"])
        .refused(1, &["`w` does not exist"]);
    daemon
        .ctl(&["volume", "set", "v", "size=1KiB"])
        .refused(1, &["between", "next:"]);
    daemon.stop();
}

#[test]
fn a_volume_without_room_is_not_ok() {
    if !requirement::mounts_work("the status of a full volume") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon
        // 32 MiB of bytes, the root, two files and their names.
        .ctl(&["volume", "create", "v", "--size", "33556992"])
        .ok();
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    let told = |code: i32, words: &str, state: &str| {
        for command in [vec!["status"], vec!["replica", "status"]] {
            let ran = daemon.ctl(&command);
            assert_eq!(ran.code, code, "{ran}");
            assert!(ran.stdout.contains(words), "{ran}");
        }
        let list = daemon.ctl(&["volume", "list"]).ok().stdout;
        assert!(list.contains(state), "{list}");
    };
    told(0, "health: OK", "  open ");
    fill(&mount.path().join("a"), 31).unwrap();
    told(
        0,
        "warning: v: nearly full, 1 MiB left",
        "open, nearly full",
    );
    fill(&mount.path().join("b"), 1).unwrap();
    told(4, "AT RISK  v: full, nothing left of 32 MiB", "open, full");
    let shown = daemon
        .ctl(&["volume", "show", "v", "-o", "json"])
        .ok()
        .json();
    assert_eq!(shown["space"], "full");
    daemon.ctl(&["volume", "set", "v", "size=1GiB"]).ok();
    told(0, "health: OK", "  open ");
    mount.unmount();
    daemon.stop();
}

#[test]
fn a_store_that_was_put_back_from_an_older_copy_is_refused() {
    if !requirement::mounts_work("an older copy of a store") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    let mount = daemon.mount("v", &dir);
    fill(&dir.join("old"), 1).unwrap();
    mount.unmount();
    daemon.stop();
    let (stores, older) = (
        scratch.path().join("data/volumes"),
        scratch.path().join("older"),
    );
    let copy = |from: &Path, to: &Path| {
        run(Command::new("cp").arg("-a").arg(from).arg(to)).ok();
    };
    copy(&stores, &older);

    let daemon = Daemon::start(scratch.path());
    let mount = daemon.mount("v", &dir);
    fill(&dir.join("new"), 1).unwrap();
    mount.unmount();
    // Told at the end of a mount, not only at a good end of hafsd. umount(8) does not wait for that.
    let began = Instant::now();
    while daemon.log().matches("\"message\":\"unmounted\"").count() < 2 {
        daemon.ctl(&["status"]).ok();
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "the mount does not end"
        );
    }
    daemon.kill();
    fs::remove_dir_all(&stores).unwrap();
    copy(&older, &stores);

    let daemon = Launch::new(scratch.path())
        .expect("volume is not available")
        .start();
    let status = daemon.ctl(&["status"]);
    assert_eq!(status.code, 4, "{status}");
    for words in ["v: ", "had been synced"] {
        assert!(status.stdout.contains(words), "{status}");
    }
    let refused = daemon.mount_command("v", &dir, "");
    assert_ne!(refused.code, 0, "{refused}");
    assert!(refused.stderr.contains("had been synced"), "{refused}");
    daemon.stop();
}
