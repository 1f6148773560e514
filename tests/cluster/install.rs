//! `make install` and `make uninstall` into a staging directory, the unit for systemd, and what is installed at work.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hafs_tests::binaries::{checkout, program, tool};
use hafs_tests::{Daemon, Launch, Mount, Ran, Scratch, requirement, run};

/// Options of a unit that give the service a mount namespace of its own (systemd.exec(5)). hafsd would then neither see the
/// mounts that it clears away, nor could others see what it unmounts.
const MOUNT_NAMESPACE: [&str; 27] = [
    "BindPaths",
    "BindReadOnlyPaths",
    "DynamicUser",
    "ExecPaths",
    "ExtensionDirectories",
    "ExtensionImages",
    "InaccessiblePaths",
    "MountFlags",
    "MountImages",
    "NoExecPaths",
    "PrivateDevices",
    "PrivateIPC",
    "PrivateMounts",
    "PrivateNetwork",
    "PrivateTmp",
    "PrivateUsers",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RootDirectory",
    "TemporaryFileSystem",
];

/// A staging directory with hafs in it.
struct Staged {
    scratch: Scratch,
}

impl Staged {
    fn new() -> Self {
        let staged = Self {
            scratch: Scratch::new(),
        };
        staged.make("install").ok();
        staged
    }

    fn root(&self) -> PathBuf {
        self.scratch.join("stage")
    }

    #[track_caller]
    fn make(&self, target: &str) -> Ran {
        let mut make = Command::new("make");
        make.current_dir(checkout()).arg(target).arg("PREFIX=/usr");
        make.arg(format!("DESTDIR={}", self.root().display()));
        let programs = program("hafsd");
        let programs = programs.parent().expect("a directory of programs");
        make.arg(format!("BIN_DIR={}", programs.display()));
        // The make that runs the tests has settings of its own.
        for name in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS"] {
            make.env_remove(name);
        }
        run(&mut make)
    }

    /// Each file and link, with its mode: `755 usr/sbin/hafsd`, `link sbin/umount.fuse.hafs -> mount.fuse.hafs`.
    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        collect(&self.root(), &self.root(), &mut files);
        files.sort_by(|a, b| a.split(' ').nth(1).cmp(&b.split(' ').nth(1)));
        files
    }
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("it is there") {
        let path = entry.expect("it is there").path();
        let name = path
            .strip_prefix(root)
            .expect("it is there")
            .display()
            .to_string();
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        if metadata.is_dir() {
            collect(root, &path, files);
        } else if metadata.is_symlink() {
            let to = fs::read_link(&path).expect("it is there");
            files.push(format!("link {name} -> {}", to.display()));
        } else {
            files.push(format!(
                "{:o} {name}",
                metadata.permissions().mode() & 0o7777
            ));
        }
    }
}

#[test]
fn what_is_installed_is_listed_and_goes_again() {
    let staged = Staged::new();
    let list = include_str!("installed_files.txt");
    let expected: Vec<&str> = list.lines().filter(|line| !line.starts_with('#')).collect();
    let subcommands = "644 usr/share/man/man1/hafsctl-";
    let files: BTreeSet<String> = staged
        .files()
        .into_iter()
        .map(|file| match file.strip_prefix(subcommands) {
            Some(_) => format!("{subcommands}*.1"),
            None => file,
        })
        .collect();
    let expected: BTreeSet<String> = expected.into_iter().map(str::to_owned).collect();
    let more: Vec<_> = files.difference(&expected).collect();
    let missing: Vec<_> = expected.difference(&files).collect();
    assert!(
        more.is_empty() && missing.is_empty(),
        "tests/cluster/installed_files.txt lacks {more:#?}, and lists what is not installed: {missing:#?}"
    );

    // Once more over itself, with a configuration that somebody has edited.
    let config = staged.root().join("etc/hafs/hafsd.toml");
    fs::write(&config, "log_format = \"json\"\n").unwrap();
    staged.make("install").ok();
    assert_eq!(
        fs::read_to_string(&config).unwrap(),
        "log_format = \"json\"\n"
    );
    let said = staged.make("uninstall").ok().stdout;
    assert!(said.contains("has been edited and stays"), "{said}");
    assert_eq!(staged.files(), ["644 etc/hafs/hafsd.toml"]);
    fs::remove_file(&config).unwrap();

    // Data next to it, and a file of somebody else's with a name like ours.
    staged.make("install").ok();
    let others = [
        staged.root().join("var/lib/hafs/node"),
        staged.root().join("usr/share/man/man1/hafsctlx.1"),
    ];
    for path in &others {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "not ours to remove").unwrap();
    }
    staged.make("uninstall").ok();
    let left: Vec<String> = staged
        .files()
        .iter()
        .map(|file| file.split(' ').nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(left, ["usr/share/man/man1/hafsctlx.1", "var/lib/hafs/node"]);
}

#[test]
fn installing_what_was_not_built_is_refused() {
    let scratch = Scratch::new();
    let mut make = Command::new("make");
    make.current_dir(checkout())
        .args(["install", "PREFIX=/usr"]);
    make.arg(format!("DESTDIR={}", scratch.join("stage").display()));
    make.arg(format!("BIN_DIR={}", scratch.path().display()));
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    run(&mut make).refused(2, &["run `make build` first"]);
    assert!(!scratch.join("stage").exists());
}

#[test]
fn what_is_installed_works() {
    if !requirement::mounts_work("installed programs") {
        return;
    }
    let staged = Staged::new();
    let root = staged.root();
    let launch = Launch::new(staged.scratch.path())
        .argument("--config")
        .argument(root.join("etc/hafs/hafsd.toml").to_str().unwrap());
    let daemon: Daemon = launch.start();
    let hafsctl = |arguments: &[&str]| {
        let mut command = Command::new(root.join("usr/bin/hafsctl"));
        command.arg("--socket").arg(daemon.socket()).args(arguments);
        run(&mut command).ok()
    };
    hafsctl(&["volume", "create", "v", "--size", "1GiB"]);
    let mount = Mount::watch(&staged.scratch.dir("mnt"));
    let mut command = Command::new(root.join("sbin/mount.fuse.hafs"));
    command.arg("v").arg(mount.path());
    run(command.args(["-o", &format!("socket={}", daemon.socket().display())])).ok();
    fs::write(mount.join("file"), "x").unwrap();
    run(Command::new(root.join("sbin/umount.fuse.hafs")).arg(mount.path())).ok();
    assert_eq!(hafs_tests::mount::mounts_on(mount.path()), []);
    hafsctl(&["volume", "check", "v"]);
    let version = run(Command::new(root.join("usr/sbin/hafsd")).arg("--version")).ok();
    assert!(version.stdout.starts_with("hafsd "), "{version}");
    daemon.stop();
}

/// A program that the machine may lack.
fn optional(test: &str, name: &str, package: &str) -> Option<PathBuf> {
    let found = tool(name);
    if found.is_none() {
        requirement::missing(test, &format!("{name} (package {package})"));
    }
    found
}

#[test]
fn manual_pages_render_without_a_warning() {
    let Some(groff) = optional("manual pages", "groff", "groff-base") else {
        return;
    };
    let staged = Staged::new();
    let pages: Vec<String> = staged
        .files()
        .iter()
        .filter_map(|file| file.split(' ').nth(1))
        .filter(|file| file.contains("/man/"))
        .map(str::to_owned)
        .collect();
    assert!(pages.len() > 8, "{pages:?}");
    for page in &pages {
        let mut command = Command::new(&groff);
        command
            .args(["-man", "-Tutf8", "-ww", "-z"])
            .arg(staged.root().join(page));
        let rendered = run(&mut command).ok();
        assert_eq!(rendered.stderr, "", "{page}");
    }
    let page =
        |name: &str| fs::read_to_string(staged.root().join("usr/share/man").join(name)).unwrap();
    for words in ["guard", "remount", "x\\-systemd"] {
        assert!(page("man8/mount.fuse.hafs.8").contains(words), "{words}");
    }
    assert!(page("man8/hafsd.8").contains(".TH hafsd 8"));
    assert!(page("man1/hafsctl.1").contains(".SH NOTES\n.nf\n"));
    assert!(
        !page("man1/hafsctl.1").contains("generate"),
        "a hidden command is shown"
    );
}

#[test]
fn completions_are_understood_by_their_shells() {
    let staged = Staged::new();
    let share = staged.root().join("usr/share");
    let file = share.join("bash-completion/completions/hafsctl");
    let script = "source \"$1\"; COMP_WORDS=(hafsctl vol); COMP_CWORD=1; _hafsctl hafsctl vol hafsctl; echo \"${COMPREPLY[@]}\"";
    let replies = run(Command::new("bash")
        .args(["-euc", script, "bash"])
        .arg(&file))
    .ok();
    assert_eq!(replies.stdout.trim(), "volume");
    for (shell, file) in [
        ("zsh", "zsh/site-functions/_hafsctl"),
        ("fish", "fish/vendor_completions.d/hafsctl.fish"),
    ] {
        let file = share.join(file);
        assert!(fs::read_to_string(&file).unwrap().contains("volume"));
        // Not asked for: bash alone is on every machine that builds hafs.
        if let Some(shell) = tool(shell) {
            run(Command::new(shell).arg("-n").arg(&file)).ok();
        }
    }
}

/// The unit's settings: `key`, `value`.
fn unit() -> Vec<(String, String)> {
    let text =
        fs::read_to_string(checkout().join("packaging/hafsd.service.in")).expect("it is there");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn the_unit_has_no_mount_namespace_of_its_own() {
    let unit = unit();
    for (key, value) in &unit {
        assert!(
            !MOUNT_NAMESPACE.contains(&key.as_str()),
            "{key}={value} gives hafsd a mount namespace of its own"
        );
    }
    for (key, value) in [
        ("Type", "notify"),
        ("KillMode", "mixed"),
        ("Restart", "on-failure"),
    ] {
        assert!(unit.contains(&(key.to_owned(), value.to_owned())), "{key}");
    }
}

#[test]
fn systemd_understands_the_unit() {
    let Some(analyze) = optional("systemd-analyze verify", "systemd-analyze", "systemd") else {
        return;
    };
    let staged = Staged::new();
    let unit = staged.root().join("usr/lib/systemd/system/hafsd.service");
    let mut command = Command::new(analyze);
    command
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg("--root")
        .arg(staged.root());
    let said = run(command.arg(&unit)).ok();
    assert_eq!(said.stderr.trim(), "", "{said}");
}

#[test]
fn hafsd_works_with_the_capabilities_that_the_unit_leaves() {
    if !requirement::mounts_work("the unit's capabilities") {
        return;
    }
    let Some(setpriv) = optional("the unit's capabilities", "setpriv", "util-linux") else {
        return;
    };
    let unit = unit();
    let (_, names) = unit
        .iter()
        .find(|(key, _)| key == "CapabilityBoundingSet")
        .unwrap();
    let mut set = "-all".to_owned();
    for name in names.split(' ') {
        set.push_str(&format!(
            ",+{}",
            name.strip_prefix("CAP_").unwrap().to_lowercase()
        ));
    }
    let scratch = Scratch::new();
    // The harness runs a program called hafsd: a script that gives the rest away first.
    let wrapper = scratch.join("hafsd");
    let script = format!(
        "#!/bin/sh\nexec {} --no-new-privs --bounding-set={set} -- {} \"$@\"\n",
        setpriv.display(),
        program("hafsd").display()
    );
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let launch = Launch::new(scratch.path()).program(&wrapper);
    let daemon = launch.clone().start();
    let status =
        fs::read_to_string(format!("/proc/{}/status", daemon.pid().as_raw_nonzero())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    let mount = daemon.mount("v", &dir);
    fs::write(mount.join("file"), vec![7; 1 << 20]).unwrap();
    fs::File::open(mount.join("file"))
        .unwrap()
        .sync_all()
        .unwrap();
    // Ends of mounts: by somebody else's umount2(2), by a kill, and by its own end while it is in use.
    rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::empty()).unwrap();
    hafs_tests::mount::wait_for_mounts(&dir, std::time::Duration::from_secs(30), <[_]>::is_empty);
    let mount = daemon.mount("v", &dir);
    daemon.kill();
    let daemon = launch
        .clone()
        .expect("in use")
        .expect("lazily")
        .expect("busy")
        .start();
    assert_eq!(
        hafs_tests::mount::mounts_on(&dir).len(),
        1,
        "the dead mount is cleared away"
    );
    let again = daemon.mount("v", &dir);
    let open = fs::File::open(again.join("file")).unwrap();
    daemon.stop();
    drop((open, again, mount));
}

/// Whether this process may lower its OOM score and be an IO flusher: bit 24 of capability.h.
fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is there");
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .expect("a line for it");
    let bits = u64::from_str_radix(effective.trim(), 16).expect("hexadecimal");
    bits & (1 << 24) != 0
}

#[test]
fn the_process_is_set_up_for_storage() {
    if !requirement::mounts_work("settings of the process") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    let proc = PathBuf::from(format!("/proc/{}", daemon.pid().as_raw_nonzero()));
    let read = |name: &str| fs::read_to_string(proc.join(name)).unwrap();
    // Without CAP_SYS_RESOURCE, as in some containers, hafsd is as killable as others, and runs all the same.
    let may = has_sys_resource();
    let score = if may { "-900" } else { "0" };
    assert_eq!(read("oom_score_adj").trim(), score);
    let limits = read("limits");
    let files: Vec<&str> = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(files[0], files[1], "the soft limit is the hard one");
    // PF_MEMALLOC_NOIO of include/linux/sched.h: what PR_SET_IO_FLUSHER sets, for each thread.
    const NO_IO: u64 = 0x0008_0000;
    let mut threads = 0;
    for task in fs::read_dir(proc.join("task")).unwrap() {
        let Ok(stat) = fs::read_to_string(task.unwrap().path().join("stat")) else {
            continue;
        };
        // After the name in brackets: state, ppid, pgrp, session, tty, tpgid, flags.
        let flags = stat.rsplit_once(") ").unwrap().1.split(' ').nth(6).unwrap();
        assert_eq!(flags.parse::<u64>().unwrap() & NO_IO != 0, may, "{stat}");
        threads += 1;
    }
    assert!(threads > 4, "{threads} threads");
    mount.unmount();
    daemon.stop();
}
