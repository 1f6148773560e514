//! `hafsctl doctor`: tells a machine that can serve volumes from one that cannot, and leaves no trace.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use hafs_tests::binaries::program;
use hafs_tests::namespace::private_mounts;
use hafs_tests::{Daemon, Ran, Scratch, requirement, run};
use serde_json::Value;

/// The doctor, with the mount helper where mount(8) looks, in a mount namespace where `prepare` was done.
fn doctor(scratch: &Scratch, prepare: &str, arguments: &[&str]) -> Ran {
    let sbin = scratch.dir("sbin");
    fs::copy(program("mount-fuse-hafs"), sbin.join("mount.fuse.hafs")).expect("a copy");
    let overlay =
        "sbin=$(readlink -f /sbin); mount -t overlay overlay -o lowerdir=\"$1:$sbin\" \"$sbin\"";
    let prepare = format!("{overlay}\n{prepare}");
    let mut command = private_mounts(&prepare, &[sbin.as_ref()], program("hafsctl").as_ref());
    run(command.arg("doctor").args(arguments))
}

fn finding<'a>(report: &'a Value, name: &str) -> &'a Value {
    let findings = report["findings"].as_array().expect("findings");
    let found = findings.iter().find(|finding| finding["name"] == name);
    found.unwrap_or_else(|| panic!("nothing about {name} in {report}"))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("plain")
}

#[test]
fn before_hafsd_runs_and_beside_it() {
    if !requirement::mounts_work("hafsctl doctor") {
        return;
    }
    let scratch = Scratch::new();
    let (data, socket) = (scratch.path().join("data"), scratch.path().join("s"));
    let arguments = [
        "--data-dir",
        path(&data),
        "--socket",
        path(&socket),
        "-o",
        "json",
    ];
    let ran = doctor(&scratch, "", &arguments).ok();
    let report = ran.json();
    assert_eq!(
        (&report["apiVersion"], &report["failed"]),
        (&"v1".into(), &0.into()),
        "{report}"
    );
    for name in [
        "rights",
        "/dev/fuse",
        "FUSE",
        "mount helper",
        "locks",
        "preallocation",
    ] {
        assert_eq!(finding(&report, name)["verdict"], "ok", "{report}");
    }
    assert!(
        finding(&report, "FUSE")["seen"]
            .as_str()
            .unwrap()
            .starts_with("protocol 7.")
    );
    let sync = finding(&report, "fdatasync")["seen"].as_str().unwrap();
    assert!(
        sync.contains("median") && sync.contains("times a second"),
        "{sync}"
    );
    let hafsd = finding(&report, "hafsd");
    assert_eq!(hafsd["verdict"], "warn", "it does not run: {report}");
    assert!(!data.exists(), "nothing was made");

    let daemon = Daemon::start(scratch.path());
    let report = doctor(&scratch, "", &arguments).ok().json();
    let hafsd = finding(&report, "hafsd");
    assert_eq!(hafsd["verdict"], "ok", "{report}");
    assert!(
        hafsd["seen"].as_str().unwrap().contains(path(&data)),
        "{report}"
    );
    let directory = finding(&report, "data directory")["seen"].as_str().unwrap();
    assert!(directory.contains("of node"), "{report}");
    daemon.stop();
}

#[test]
fn what_is_missing_is_named_with_what_to_do() {
    if !requirement::mounts_work("hafsctl doctor's failures") {
        return;
    }
    let scratch = Scratch::new();
    let (data, socket) = (scratch.dir("data"), scratch.path().join("s"));
    fs::write(data.join("PG_VERSION"), "17").unwrap();
    let arguments = ["--data-dir", path(&data), "--socket", path(&socket)];
    let hide = "mount --bind /dev/null /dev/fuse; mount --bind /dev/null \"$sbin/mount.fuse.hafs\"";
    let ran = doctor(&scratch, hide, &arguments);
    assert_eq!(ran.code, 1, "{ran}");
    for words in [
        "fail  /dev/fuse",
        "fail  FUSE",
        "fail  mount helper",
        "fail  data directory",
        "`PG_VERSION`",
        "why: ",
        "next: ",
        "failures: ",
    ] {
        assert!(ran.stdout.contains(words), "no `{words}` in {ran}");
    }
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "nothing was made");

    // Where that user can read it.
    let everybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(scratch.path(), everybody).unwrap();
    let hafsctl = scratch.path().join("hafsctl");
    fs::copy(program("hafsctl"), &hafsctl).unwrap();
    let user = run(Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups"])
        .arg(hafsctl)
        .args([
            "doctor",
            "--data-dir",
            "/var/lib/hafs",
            "--socket",
            path(&socket),
        ]));
    assert_eq!(user.code, 1, "{user}");
    assert!(user.stdout.contains("uid 65534, not root"), "{user}");
}
