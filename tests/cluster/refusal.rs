//! What hafs refuses: exit code and text of each, and that nothing was touched.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use hafs_tests::binaries::program;
use hafs_tests::daemon::mount_command;
use hafs_tests::mount::mounts_on;
use hafs_tests::tree::tree;
use hafs_tests::{Daemon, Launch, Mount, Scratch, requirement, rocksdb, run};

/// Starts hafsd on `dir`, which has to refuse it with `words` and leave it as it is.
fn refuses_data_dir(launch: &Launch, words: &[&str]) {
    let before = tree(launch.data());
    launch
        .start_refused()
        .refused(1, &["hafsd: ", "why: ", "next: "])
        .refused(1, words);
    assert_eq!(
        tree(launch.data()),
        before,
        "a refused data directory was touched"
    );
}

/// A data directory with a volume in it, not in use.
fn used_data_dir(scratch: &Scratch) -> Launch {
    let launch = Launch::new(scratch.path());
    let daemon = launch.clone().start();
    daemon.create_volume("v");
    daemon.stop();
    launch
}

#[test]
fn a_data_dir_of_a_newer_format() {
    let scratch = Scratch::new();
    let launch = used_data_dir(&scratch);
    let marker = launch.data().join("node");
    let text = fs::read_to_string(&marker).unwrap();
    assert!(
        text.contains("format 2\n"),
        "the marker names its format: {text}"
    );
    fs::write(&marker, text.replace("format 2\n", "format 3\n")).unwrap();
    refuses_data_dir(&launch, &["has format 3, this hafsd knows formats up to 2"]);
    fs::write(&marker, text).unwrap();
    launch.start().stop();
}

/// As hafsd made it before there were checksums over the node's own files.
#[test]
fn a_data_dir_of_format_1_is_taken_over() {
    let scratch = Scratch::new();
    let launch = used_data_dir(&scratch);
    let data = launch.data();
    let daemon = launch.clone().start();
    daemon.create_volume("kept");
    daemon.stop();
    let today = fs::read_to_string(data.join("node")).unwrap();
    let (lines, _) = today.split_once("crc32c ").unwrap();
    fs::write(data.join("node"), lines.replace("format 2", "format 1")).unwrap();
    fs::write(data.join("meta/FORMAT"), "hafs control store, format 1\n").unwrap();
    fs::remove_file(data.join("meta/mark")).unwrap();
    let list = r#"{ "format": 1, "boot": "an earlier one", "mounts": [] }"#;
    fs::write(data.join("run/mounts.json"), list).unwrap();
    for _ in 0..2 {
        let daemon = launch.clone().start();
        daemon.check("kept");
        daemon.kill();
        assert_eq!(fs::read_to_string(data.join("node")).unwrap(), today);
    }
}

/// Flips one bit of a file.
fn flip(path: &Path, at: usize, bit: u8) {
    let mut bytes = fs::read(path).expect("the file to damage");
    bytes[at] ^= 1 << bit;
    fs::write(path, bytes).expect("the file to damage");
}

#[test]
fn a_data_dir_with_a_flipped_bit_in_its_node_file() {
    let scratch = Scratch::new();
    let launch = used_data_dir(&scratch);
    let node = launch.data().join("node");
    let id = fs::read_to_string(&node).unwrap().find("node ").unwrap() + 5;
    let digit = fs::read(&node).unwrap()[id];
    // To another digit, so that the id stays one: nobody else's data is to be taken for this node's.
    let bit = (0..3).find(|bit| (digit ^ (1 << bit)).is_ascii_hexdigit());
    flip(&node, id, bit.unwrap());
    refuses_data_dir(&launch, &["is damaged", "does not match its checksum"]);
    flip(&node, id, bit.unwrap());
    launch.start().stop();
}

/// RocksDB takes a length that leads past its log's end for a record that was never acknowledged.
#[test]
fn a_control_store_with_a_flipped_bit_in_the_newest_record_of_its_log() {
    let scratch = Scratch::new();
    let launch = used_data_dir(&scratch);
    let daemon = launch.clone().start();
    daemon.create_volume("acknowledged");
    daemon.kill();
    let meta = launch.data().join("meta");
    let logs = fs::read_dir(meta.join("db")).unwrap();
    let mut logs = logs.map(|entry| entry.unwrap().path());
    let log = logs.find(|path| path.extension().is_some_and(|kind| kind == "log"));
    let log = log.unwrap();
    let records = rocksdb::records(&fs::read(&log).unwrap());
    let length = records.last().unwrap() + rocksdb::LENGTH.end - 1;
    flip(&log, length, 6);
    let before = tree(&meta);
    let refused = launch.start_refused();
    refused
        .refused(
            1,
            &[
                "hafsd: cannot open the control store",
                "next: restore it from a backup",
            ],
        )
        .refused(1, &["is damaged", "it ends at revision"]);
    assert_eq!(tree(&meta), before, "a damaged control store was touched");
    flip(&log, length, 6);
    let daemon = launch.start();
    daemon.check("acknowledged");
    daemon.stop();
}

/// It names what a successor may clear away, so a damaged one names nothing.
#[test]
fn a_damaged_list_of_mounts_is_told_and_begun_anew() {
    const TOLD: &str = "what a former hafsd served is not known";
    let scratch = Scratch::new();
    let launch = used_data_dir(&scratch);
    let list = launch.data().join("run/mounts.json");
    let boot = fs::read_to_string(&list)
        .unwrap()
        .find("\"boot\": \"")
        .unwrap();
    flip(&list, boot + 9, 1);
    let launch = launch.expect(TOLD);
    launch.clone().start().stop();
    let daemon = launch.start();
    assert_eq!(daemon.log().matches(TOLD).count(), 1, "{}", daemon.log());
    daemon.stop();
}

#[test]
fn a_data_dir_of_another_program() {
    let scratch = Scratch::new();
    let launch = Launch::new(scratch.path());
    fs::create_dir(launch.data()).unwrap();
    fs::write(launch.data().join("ibdata1"), "somebody's database").unwrap();
    refuses_data_dir(&launch, &["is not a hafs data directory"]);
    // Its own marker, but not one that hafs wrote.
    fs::write(launch.data().join("node"), "node_modules\n").unwrap();
    refuses_data_dir(&launch, &["hafsd: "]);
}

#[test]
fn a_data_dir_that_is_a_file() {
    let scratch = Scratch::new();
    let launch = Launch::new(scratch.path());
    fs::write(launch.data(), "precious").unwrap();
    refuses_data_dir(&launch, &[]);
}

#[test]
fn a_data_dir_without_permission() {
    if !requirement::is_root("a data directory of another user") {
        return;
    }
    let scratch = Scratch::new();
    let launch = used_data_dir(&scratch);
    // hafsd as somebody who may not read it. Root may read everything, so that somebody is not root.
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(launch.data(), fs::Permissions::from_mode(0o700)).unwrap();
    let before = tree(launch.data());
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "--"]);
    // The checkout may lie where that user cannot go.
    let hafsd = scratch.join("hafsd");
    fs::copy(program("hafsd"), &hafsd).unwrap();
    command
        .arg(&hafsd)
        .arg("--data-dir")
        .arg(launch.data())
        .arg("--socket")
        .arg(scratch.join("other"));
    run(&mut command).refused(
        1,
        &["hafsd: cannot read", "why: Permission denied", "next: "],
    );
    assert_eq!(tree(launch.data()), before);
}

#[test]
fn a_data_dir_on_a_read_only_disk() {
    if !requirement::is_root("a data directory on a read-only disk") {
        return;
    }
    let scratch = Scratch::new();
    let disk = Disk::new(&scratch, "512m");
    let launch = Launch::new(scratch.path()).data_dir(&disk.path().join("data"));
    let daemon = launch.clone().start();
    daemon.create_volume("v");
    daemon.stop();
    run(Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(disk.path()))
    .ok();
    refuses_data_dir(&launch, &["cannot write"]);
}

#[test]
fn a_full_disk() {
    if !requirement::is_root("a full disk") {
        return;
    }
    let scratch = Scratch::new();
    let disk = Disk::new(&scratch, "512m");
    let launch = Launch::new(scratch.path()).data_dir(&disk.path().join("data"));
    let daemon = launch.clone().start();
    daemon.create_volume("v");
    daemon.stop();
    // What is left is less than hafsd wants to begin with, and enough for a bug to write into.
    let sizes = rustix::fs::statvfs(disk.path()).unwrap();
    let ballast = (sizes.f_bavail * sizes.f_frsize - (20 << 20)).to_string();
    run(Command::new("fallocate")
        .args(["-l", &ballast])
        .arg(disk.path().join("ballast")))
    .ok();
    let fresh = Launch::new(scratch.path()).data_dir(&disk.path().join("fresh"));
    fs::create_dir(fresh.data()).unwrap();
    refuses_data_dir(&fresh, &["the disk under", "is full"]);
    // A node that is there starts all the same: somebody has to be able to delete something.
    launch.start().stop();
    fs::remove_file(disk.path().join("ballast")).unwrap();
    fresh.start().stop();
}

/// A small disk of its own: a tmpfs.
struct Disk(Mount);

impl Disk {
    fn new(scratch: &Scratch, size: &str) -> Self {
        let dir = scratch.dir("disk");
        let mount = Mount::watch(&dir);
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "disk"])
            .arg(&dir))
        .ok();
        Self(mount)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

#[test]
fn a_data_dir_in_use() {
    let scratch = Scratch::new();
    let launch = Launch::new(scratch.path());
    let daemon = launch.clone().start();
    daemon.create_volume("v");
    let second = launch.clone().socket(&scratch.join("second"));
    let pid = daemon.pid().as_raw_nonzero().to_string();
    let names = ["another hafsd", &pid, "uses the data directory"];
    // No comparison here: the first hafsd works in it.
    second.start_refused().refused(1, &names);
    daemon.check("v");
    daemon.stop();
}

#[test]
fn a_socket_in_use() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    let second = Launch::new(scratch.path()).data_dir(&scratch.join("second"));
    second
        .start_refused()
        .refused(1, &["listens on", "why: ", "next: "]);
    daemon.ctl(&["status"]).ok();
    daemon.stop();
}

#[test]
fn settings_that_are_not_understood() {
    let scratch = Scratch::new();
    let config = scratch.join("hafsd.toml");
    fs::write(&config, "# hafsd\nlog_level = \"info\"\n").unwrap();
    let launch = Launch::new(scratch.path())
        .argument("--config")
        .argument(config.to_str().unwrap());
    launch
        .start_refused()
        .refused(1, &["line 2", "log_level", "next: "]);
    let missing = Launch::new(scratch.path())
        .argument("--config")
        .argument("/nowhere/hafsd.toml");
    missing
        .start_refused()
        .refused(1, &["/nowhere/hafsd.toml is not there"]);
    Launch::new(scratch.path())
        .argument("--no-such-flag")
        .start_refused()
        .refused(2, &["--no-such-flag"]);
    assert!(!launch.data().exists(), "nothing was made");
}

#[test]
fn hafsctl() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("pg");
    let refused =
        |arguments: &[&str], code: i32, words: &[&str]| daemon.ctl(arguments).refused(code, words);
    for verb in ["show", "check"] {
        refused(
            &["volume", verb, "none"],
            1,
            &["hafsctl: volume `none` does not exist", "next: "],
        );
    }
    refused(
        &["volume", "delete", "none", "--yes"],
        1,
        &["volume `none` does not exist"],
    );
    refused(
        &["replica", "status", "none"],
        1,
        &["volume `none` does not exist"],
    );
    refused(
        &["volume", "create", "pg"],
        1,
        &["`pg`", "exists", "next: "],
    );
    refused(
        &["volume", "delete", "pg"],
        2,
        &[
            "nothing was deleted: --yes is missing",
            "next: hafsctl volume delete pg --yes",
        ],
    );
    for size in ["", "-1", "ten", "10XB", "99999999999999999999"] {
        refused(
            &["volume", "create", "v", &format!("--size={size}")],
            2,
            &["--size"],
        );
    }
    for size in ["0", "1023KiB", "2EiB"] {
        let words = [
            "a volume cannot have a size of",
            "why: sizes are between 1 MiB and 1 EiB",
            "next: ",
        ];
        refused(&["volume", "create", "v", "--size", size], 1, &words);
    }
    for name in ["", "-x", "a/b", "A", "a b", "ü", &"x".repeat(64), ".."] {
        let ran = daemon.ctl(&["volume", "create", "--", name]);
        assert!(
            ran.code == 1 || ran.code == 2,
            "the name {name:?} was taken: {ran}"
        );
    }
    refused(
        &["volume", "create", "v", "--profile", "fast"],
        2,
        &["--profile", "small-files"],
    );
    refused(&["volume"], 2, &["Usage: hafsctl volume"]);
    refused(&["nonsense"], 2, &["nonsense"]);
    refused(&["volume", "list", "-o", "xml"], 2, &["xml"]);
    let list = daemon.ctl(&["volume", "list", "-o", "json"]).ok().json();
    let names: Vec<_> = list["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| &volume["name"])
        .collect();
    assert_eq!(names, ["pg"], "refused requests made or deleted something");
    daemon.stop();
}

#[test]
fn hafsctl_without_a_daemon() {
    let scratch = Scratch::new();
    let socket = scratch.join("nobody");
    let nobody = |socket: &Path| {
        run(Command::new(program("hafsctl"))
            .arg("--socket")
            .arg(socket)
            .args(["volume", "list"]))
    };
    let words = ["hafsctl: no hafsd answers on", "nobody", "why: ", "next: "];
    nobody(&socket).refused(1, &words);
    // What a hafsd that was killed leaves: a socket that nobody listens on.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    nobody(&socket).refused(1, &words);
    let mut by_variable = Command::new(program("hafsctl"));
    run(by_variable.env("HAFS_SOCKET", &socket).arg("status")).refused(1, &words);
}

#[test]
fn deleting_a_mounted_volume() {
    if !requirement::mounts_work("deleting a mounted volume") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    fs::write(mount.join("file"), "kept").unwrap();
    daemon
        .ctl(&["volume", "delete", "v", "--yes"])
        .refused(1, &["mounted", "next: "]);
    assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), "kept");
    mount.unmount();
    daemon.ctl(&["volume", "delete", "v", "--yes"]).ok();
    daemon
        .mount_command("v", &scratch.join("mnt"), "")
        .refused(32, &["volume `v` does not exist"]);
    daemon.stop();
}

#[test]
fn mount() {
    if !requirement::mounts_work("refusals of mount") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    let _watch = Mount::watch(&dir);
    let refused = |volume: &str, dir: &Path, options: &str, code: i32, words: &[&str]| {
        daemon
            .mount_command(volume, dir, options)
            .refused(code, &["mount.fuse.hafs: "])
            .refused(code, words);
        assert_eq!(mounts_on(dir), [], "a refused mount left something");
    };
    refused(
        "none",
        &dir,
        "",
        32,
        &["volume `none` does not exist", "next: "],
    );
    refused(
        "v",
        &scratch.join("missing"),
        "",
        32,
        &["cannot mount on", "there is no such directory"],
    );
    fs::write(scratch.join("file"), "x").unwrap();
    refused(
        "v",
        &scratch.join("file"),
        "",
        32,
        &["cannot mount on", "it is not a directory"],
    );
    // Over its own data hafsd would wait for itself.
    let run_dir = daemon.data_dir().join("run");
    for own in [daemon.data_dir(), &run_dir, scratch.path(), Path::new("/")] {
        run(&mut mount_command(daemon.socket(), "v", own, "")).refused(
            32,
            &["cannot mount on", "hafsd keeps its data in", "next: "],
        );
    }
    refused("v", &dir, "turbo", 1, &["unknown option `turbo`", "next: "]);
    refused("v", &dir, "ro,size=10G", 1, &["unknown option `size=10G`"]);
    refused("v", &dir, "context=system_u:object_r:x", 32, &["context="]);
    // Two sockets would be one too many to guess from.
    let nobody = scratch.join("nobody");
    run(&mut mount_command(&nobody, "v", &dir, ""))
        .refused(32, &["no hafsd answers on", "nobody", "next: "]);
    assert_eq!(mounts_on(&dir), []);
    run(Command::new(program("mount-fuse-hafs")).arg("v")).refused(1, &["Usage"]);
    daemon.mount("v", &dir).unmount();
    daemon.stop();
}

#[test]
fn mount_by_another_user() {
    if !requirement::mounts_work("mount by another user") {
        return;
    }
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    chown(&dir, Some(1000), Some(1000)).unwrap();
    // The checkout may lie where that user cannot go.
    let helper = scratch.join("mount-fuse-hafs");
    fs::copy(program("mount-fuse-hafs"), &helper).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "--"])
        .arg(&helper)
        .arg("v")
        .arg(&dir);
    command
        .arg("-o")
        .arg(format!("socket={}", daemon.socket().display()));
    run(&mut command).refused(1, &["only root can mount a hafs volume", "why: ", "next: "]);
    // The control socket is root's as well.
    let hafsctl = scratch.join("hafsctl");
    fs::copy(program("hafsctl"), &hafsctl).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "--"])
        .arg(&hafsctl);
    run(command
        .arg("--socket")
        .arg(daemon.socket())
        .args(["volume", "list"]))
    .refused(1, &["hafsctl: "]);
    assert_eq!(mounts_on(&dir), []);
    daemon.stop();
}
