//! The commands of `docs/operations.md`, run one after the other as they stand there, by root of a machine that has hafs
//! installed: helpers in /sbin, an /etc/fstab, a /srv of its own. All that is true in a mount namespace.

use std::fs;
use std::os::unix::fs::symlink;

use hafs_tests::binaries::{checkout, program};
use hafs_tests::namespace::private_mounts;
use hafs_tests::{Daemon, Scratch, requirement, run};

/// $1: helpers for /sbin; $2: an empty fstab; $3: a directory for /srv, on a disk.
const PREPARE: &str = "\
sbin=$(readlink -f /sbin); mount -t overlay overlay -o lowerdir=\"$1:$sbin\" \"$sbin\"
mkdir -p /run/mount; mount -t tmpfs none /run/mount
[ -e /etc/fstab ] || touch /etc/fstab; mount --bind \"$2\" /etc/fstab
mount --bind \"$3\" /srv; mount --make-private /srv";

/// The commands of the page's `console` blocks, each a line with `# ` before it.
fn commands(page: &str) -> Vec<&str> {
    let blocks = page.split("```console\n").skip(1);
    blocks
        .flat_map(|block| block.split("```").next().unwrap_or_default().lines())
        .map(|line| {
            line.strip_prefix("# ")
                .unwrap_or_else(|| panic!("not a command: {line}"))
        })
        .collect()
}

#[test]
fn the_page_says_what_happens() {
    if !requirement::mounts_work("the commands of docs/operations.md") {
        return;
    }
    if !requirement::tool_is_there("the commands of docs/operations.md", "chattr") {
        return;
    }
    let page = fs::read_to_string(checkout().join("docs/operations.md")).unwrap();
    let commands = commands(&page);
    assert!(commands.len() > 20, "{commands:?}");
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    let (sbin, srv) = (scratch.dir("sbin"), scratch.dir("srv"));
    fs::copy(program("mount-fuse-hafs"), sbin.join("mount.fuse.hafs")).unwrap();
    symlink("mount.fuse.hafs", sbin.join("umount.fuse.hafs")).unwrap();
    fs::write(scratch.join("fstab"), "").unwrap();
    let mut script = String::new();
    for command in &commands {
        script.push_str(command);
        script.push('\n');
    }
    let fstab = scratch.join("fstab");
    let values = [sbin.as_os_str(), fstab.as_os_str(), srv.as_os_str()];
    let mut shell = private_mounts(PREPARE, &values, "sh".as_ref());
    let path = std::env::var("PATH").unwrap_or_default();
    let programs = program("hafsctl");
    let programs = programs.parent().unwrap();
    shell
        .args(["-euxc", &script])
        .env("HAFS_SOCKET", daemon.socket())
        .env(
            "PATH",
            format!("{}:{path}:/usr/sbin:/sbin", programs.display()),
        );
    let ran = run(&mut shell);
    // Else nobody could remove the scratch directory.
    run(std::process::Command::new("chattr")
        .arg("-i")
        .arg(srv.join("pg")))
    .ok();
    let ran = ran.ok();
    for words in ["hafs-guard", "pg-main", "health: OK", "pg-main: clean"] {
        assert!(ran.stdout.contains(words), "no {words} in {ran}");
    }
    daemon.ctl(&["volume", "delete", "pg-main", "--yes"]);
    daemon.stop();
}
