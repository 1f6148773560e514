//! The directory underneath is never silently writable: whenever a mount has gone without an umount, who writes to its path
//! gets an error, in containers too.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hafs_tests::binaries::tool;
use hafs_tests::mount::{is_guard, mounts_on, umount_command, wait_for_mounts};
use hafs_tests::namespace::private_mounts;
use hafs_tests::{Daemon, Launch, Mount, Scratch, requirement, run};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use crate::container::{Engine, bind};

/// For hafsd to see the end of a mount and lift its guard, on a machine with much else to do.
const LIFT_LIMIT: Duration = Duration::from_secs(30);

/// Fails unless a write below `dir` is refused with this errno.
#[track_caller]
fn assert_refused(dir: &Path, errno: Errno) {
    let error = fs::write(dir.join("silent"), "lost").expect_err("nothing may be written here");
    assert_eq!(Errno::from_io_error(&error), Some(errno));
}

/// Fails unless a guard, and nothing else, is on `dir`.
#[track_caller]
fn assert_only_a_guard(dir: &Path) {
    let lines = mounts_on(dir);
    assert!(lines.len() == 1 && is_guard(&lines[0]), "{lines:?}");
    assert_refused(dir, Errno::ROFS);
}

/// A look at the disk beneath all mounts in the scratch directory.
struct Beneath {
    at: Mount,
    _scratch: Scratch,
}

impl Beneath {
    fn of(below: &Scratch) -> Self {
        let scratch = Scratch::new();
        let at = Mount::watch(&scratch.dir("beneath"));
        // Not recursive: what is mounted further in is left out. Private: also what comes later.
        mount_bind(below.path(), at.path()).expect("root may do that in a scratch directory");
        mount_change(at.path(), MountPropagationFlags::PRIVATE)
            .expect("root may do that in a scratch directory");
        Self {
            at,
            _scratch: scratch,
        }
    }

    /// Names on the disk in the directory `name` of the scratch directory.
    fn names(&self, name: &str) -> Vec<PathBuf> {
        let entries =
            fs::read_dir(self.at.join(name)).expect("root may do that in a scratch directory");
        entries
            .map(|entry| {
                entry
                    .expect("root may do that in a scratch directory")
                    .path()
            })
            .collect()
    }
}

#[test]
fn a_guard_comes_and_goes_with_the_mount() {
    if !requirement::mounts_work("the guard under a mount") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let (dir, second) = (scratch.dir("mnt"), scratch.dir("second"));
    let first = daemon.mount("v", &dir);
    let again = daemon.mount_with("v", &second, "ro");
    for path in [&dir, &second] {
        let lines = mounts_on(path);
        let kinds: Vec<&str> = lines.iter().map(|line| line.kind.as_str()).collect();
        assert_eq!(kinds, ["tmpfs", "fuse.hafs"]);
        assert!(is_guard(&lines[0]), "{lines:?}");
    }
    // A refused mount leaves what was there as it was.
    daemon
        .mount_command("v", &dir, "")
        .refused(32, &["is mounted on", "already"]);
    daemon
        .mount_command("none", &dir, "")
        .refused(32, &["does not exist"]);
    assert_eq!(mounts_on(&dir).len(), 2);
    first.unmount();
    again.unmount();
    fs::write(dir.join("ours"), "the directory is the host's again").unwrap();
    daemon.check("v");
    daemon.stop();
}

#[test]
fn a_mount_that_died_leaves_a_read_only_directory() {
    if !requirement::mounts_work("the guard after a kill") {
        return;
    }
    let scratch = Scratch::new();
    let beneath = Beneath::of(&scratch);
    let launch = Launch::new(scratch.path());
    let mut daemon = launch.clone().start();
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    // Three times, for guards that pile up.
    for round in 0..3 {
        let mount = daemon.mount("v", &dir);
        fs::write(mount.join("file"), round.to_string()).unwrap();
        assert_eq!(mounts_on(&dir).len(), 2, "round {round}");
        daemon.kill();
        assert_refused(&dir, Errno::NOTCONN);
        daemon = launch.clone().start();
        assert_only_a_guard(&dir);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        std::mem::forget(mount);
    }
    // A refusal takes no guard away that it has not laid.
    daemon
        .mount_command("none", &dir, "")
        .refused(32, &["does not exist"]);
    assert_only_a_guard(&dir);
    // umount(8) needs no helper for a tmpfs.
    run(Command::new("umount").arg(&dir)).ok();
    assert_eq!(mounts_on(&dir), []);
    assert_eq!(beneath.names("mnt"), Vec::<PathBuf>::new());
    daemon.check("v");
    daemon.stop();
}

#[test]
fn a_dead_mount_goes_with_its_guard_at_umount() {
    if !requirement::mounts_work("umount of a dead mount") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    daemon.kill();
    mount.unmount();
}

#[test]
fn hafsds_end_leaves_the_guards() {
    if !requirement::mounts_work("the guard after SIGTERM") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    daemon.stop();
    assert_only_a_guard(mount.path());
}

#[test]
fn an_umount_without_the_helper_is_seen_by_hafsd() {
    if !requirement::mounts_work("umount2(2)") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let (first, second) = (scratch.dir("first"), scratch.dir("second"));
    let watch = [daemon.mount("v", &first), daemon.mount("v", &second)];
    unmount(&first, UnmountFlags::empty()).unwrap();
    assert_only_a_guard(&first);
    unmount(&second, UnmountFlags::empty()).unwrap();
    for dir in [&first, &second] {
        wait_for_mounts(dir, LIFT_LIMIT, <[_]>::is_empty);
    }
    // Mounted at once after such an umount: whoever comes first, the helper or hafsd, the mount stays.
    for _ in 0..10 {
        let mount = daemon.mount("v", &first);
        fs::write(mount.join("file"), "x").unwrap();
        unmount(&first, UnmountFlags::empty()).unwrap();
        let mount = daemon.mount("v", &first);
        fs::write(mount.join("file"), "y").unwrap();
        assert_eq!(mounts_on(&first).len(), 2);
        mount.unmount();
    }
    drop(watch);
    daemon.check("v");
    daemon.stop();
}

#[test]
fn a_lazy_umount_keeps_the_guard_while_the_mount_is_in_use() {
    if !requirement::mounts_work("umount -l") {
        return;
    }
    let scratch = Scratch::new();
    let beneath = Beneath::of(&scratch);
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    let watch = daemon.mount("v", &dir);
    run(umount_command(&dir).arg("-l")).ok();
    assert_eq!(mounts_on(&dir), [], "nobody used it");
    drop(watch);

    let mount = daemon.mount("v", &dir);
    let mut open = File::create(mount.join("file")).unwrap();
    mount.umount().refused(32, &["target is busy", "next: "]);
    assert_eq!(mounts_on(&dir).len(), 2);
    run(umount_command(&dir).arg("-l")).ok();
    assert_only_a_guard(&dir);
    open.write_all(b"still there").unwrap();
    open.sync_all().unwrap();
    drop(open);
    wait_for_mounts(&dir, LIFT_LIMIT, <[_]>::is_empty);
    assert_eq!(beneath.names("mnt"), Vec::<PathBuf>::new());
    daemon.check("v");
    daemon.stop();
}

#[test]
fn umount_has_the_options_that_umount_8_passes() {
    if !requirement::mounts_work("options of umount") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    run(&mut umount_command(&dir)).refused(32, &["no volume is mounted on", "next: "]);
    run(umount_command(&dir).arg("--turbo")).refused(1, &["--turbo"]);
    let mount = daemon.mount_with("v", &dir, "nosuid,noexec");
    fs::write(mount.join("file"), "x").unwrap();
    let open = File::open(mount.join("file")).unwrap();
    run(umount_command(&dir).arg("-r")).ok();
    let options = &mounts_on(&dir)[1].options;
    for option in ["ro", "nosuid", "noexec"] {
        assert!(options.iter().any(|is| is == option), "{options:?}");
    }
    assert_refused(&dir, Errno::ROFS);
    drop(open);
    let said = run(umount_command(&dir).args(["-v", "-n", "-t", "fuse.hafs"])).ok();
    assert!(said.stderr.contains("unmounted"), "{said}");
    assert_eq!(mounts_on(&dir), []);
    daemon.stop();
}

/// A process in a mount namespace of its own, until dropped.
pub(crate) struct Namespace(Child);

impl Namespace {
    /// Sees what is mounted and unmounted on the host.
    fn following() -> Self {
        Self::start(private_mounts("", &[], "sh".as_ref()))
    }

    /// Sees nothing of it in `dir`, and keeps what is mounted there. Elsewhere it follows the host: it would keep the mounts of
    /// tests that run at the same time.
    pub(crate) fn private(dir: &Path) -> Self {
        let prepare = "mount --rbind \"$1\" \"$1\"; mount --make-rprivate \"$1\"";
        Self::start(private_mounts(prepare, &[dir.as_os_str()], "sh".as_ref()))
    }

    /// `command` ends with a shell in the namespace. Returns when it is there.
    fn start(mut command: Command) -> Self {
        command.args(["-c", "echo; exec sleep 100000"]);
        // It must not outlive a test that panics.
        let child = command.stdout(Stdio::piped()).process_group(0).spawn();
        let mut child = child.expect("root may do that in a scratch directory");
        let mut line = [0];
        std::io::Read::read_exact(
            child
                .stdout
                .as_mut()
                .expect("root may do that in a scratch directory"),
            &mut line,
        )
        .expect("root may do that in a scratch directory");
        Self(child)
    }

    /// What names it to mount(8) and its helpers.
    pub(crate) fn file(&self) -> String {
        format!("/proc/{}/ns/mnt", self.0.id())
    }

    /// Runs a shell script in it, with `$1` the directory.
    pub(crate) fn sh(&self, script: &str, dir: &Path) -> hafs_tests::Ran {
        let mut command = Command::new("nsenter");
        command
            .arg("--mount")
            .args(["--target", &self.0.id().to_string()]);
        command.args(["sh", "-uc", script, "sh"]).arg(dir);
        run(&mut command)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn other_mount_namespaces_write_nothing_beneath() {
    if !requirement::mounts_work("the guard in other mount namespaces") {
        return;
    }
    let scratch = Scratch::new();
    let beneath = Beneath::of(&scratch);
    let launch = Launch::new(scratch.path());
    let daemon = launch.clone().start();
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    let early = Namespace::following();
    let mount = daemon.mount("v", &dir);
    let late = Namespace::following();
    let private = Namespace::private(scratch.path());
    let write = "echo lost > \"$1/silent\"";
    for namespace in [&early, &late, &private] {
        namespace.sh("echo kept > \"$1/file\"", &dir).ok();
    }
    daemon.kill();
    for namespace in [&early, &late, &private] {
        namespace
            .sh(write, &dir)
            .refused(2, &["Transport endpoint is not connected"]);
    }
    let daemon = launch.start();
    assert_only_a_guard(&dir);
    for namespace in [&early, &late] {
        namespace
            .sh(write, &dir)
            .refused(2, &["Read-only file system"]);
    }
    // Nobody but itself can take a dead mount out of a private namespace; beneath it lies a guard as well.
    private
        .sh(write, &dir)
        .refused(2, &["Transport endpoint is not connected"]);
    // -i: without the helper that may be installed, which would take the guard away as well.
    private.sh("umount -i -l \"$1\"", &dir).ok();
    private
        .sh(write, &dir)
        .refused(2, &["Read-only file system"]);

    // Whoever follows the host's mounts sees the new one in the same place.
    let again = daemon.mount("v", &dir);
    for namespace in [&early, &late] {
        let text = namespace.sh("cat \"$1/file\"", &dir).ok().stdout;
        assert_eq!(text, "kept\n");
    }
    again.unmount();
    drop((early, late, private));
    std::mem::forget(mount);
    assert_eq!(beneath.names("mnt"), Vec::<PathBuf>::new());
    daemon.check("v");
    daemon.stop();
}

#[test]
fn the_helper_works_in_the_namespace_that_mount_8_names() {
    if !requirement::mounts_work("mount --namespace") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    let namespace = Namespace::private(scratch.path());
    let file = namespace.file();
    let mut mount = hafs_tests::daemon::mount_command(daemon.socket(), "v", &dir, "");
    run(mount.args(["-N", &file])).ok();
    assert_eq!(mounts_on(&dir), []);
    let seen = namespace
        .sh("grep -c \" $1 \" /proc/mounts", &dir)
        .ok()
        .stdout;
    assert_eq!(seen, "2\n");
    run(umount_command(&dir).args(["-N", &file])).ok();
    namespace
        .sh("grep -c \" $1 \" /proc/mounts", &dir)
        .refused(1, &[]);
    drop(namespace);
    daemon.stop();
}

#[test]
fn a_mount_that_came_from_another_namespace_is_lifted_as_well() {
    if !requirement::mounts_work("mounts that propagate to hafsd's namespace") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let watch = Mount::watch(&scratch.dir("mnt"));
    let dir = watch.path();
    let mount = hafs_tests::daemon::mount_command(daemon.socket(), "v", dir, "");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "unchanged", "--"]);
    run(command.arg(mount.get_program()).args(mount.get_args())).ok();
    assert_eq!(mounts_on(dir).len(), 2);
    unmount(dir, UnmountFlags::empty()).unwrap();
    wait_for_mounts(dir, LIFT_LIMIT, <[_]>::is_empty);
    daemon.stop();
}

#[test]
fn containers_write_nothing_beneath() {
    if !requirement::mounts_work("the guard in containers") {
        return;
    }
    let Some(engine) = Engine::start("the guard in containers") else {
        return;
    };
    let scratch = Scratch::new();
    let beneath = Beneath::of(&scratch);
    let launch = Launch::new(scratch.path());
    let daemon = launch.clone().start();
    daemon.create_volume("pg");
    let (srv, dir) = (scratch.dir("srv"), scratch.dir("srv/pg"));
    let following = ",bind-propagation=rslave";
    // Docker wants a shared source for this; a scratch directory is one.
    engine.container("early", &[bind(&srv, "/srv", following)]);
    let mount = daemon.mount("pg", &dir);
    engine.container("late", &[bind(&srv, "/srv", following)]);
    engine.container("private", &[bind(&srv, "/srv", "")]);
    engine.container("plain", &[bind(&dir, "/srv/pg", "")]);
    let all = ["early", "late", "private", "plain"];
    for name in all {
        engine.exec(name, "0", "echo kept > /srv/pg/file").ok();
    }
    daemon.kill();
    for name in all {
        let wrote = engine.exec(name, "0", "echo lost > /srv/pg/silent");
        assert_ne!(wrote.code, 0, "{name}: {wrote}");
    }
    let daemon = launch.start();
    for (name, error) in [
        ("early", "Read-only file system"),
        ("late", "Read-only file system"),
        ("private", "Socket not connected"),
        ("plain", "Socket not connected"),
    ] {
        let wrote = engine.exec(name, "0", "echo lost > /srv/pg/silent");
        assert_ne!(wrote.code, 0, "{name}: {wrote}");
        let said = format!("{}{}", wrote.stdout, wrote.stderr);
        let dead = error == "Socket not connected" && said.contains("endpoint is not connected");
        assert!(dead || said.contains(error), "{name}: {wrote}");
    }
    // A container that restarts before the volume is mounted again binds the guard.
    engine.docker(&["restart", "--time", "0", "plain"]).ok();
    engine
        .exec("plain", "0", "echo lost > /srv/pg/silent")
        .refused(1, &["Read-only file system"]);
    let again = daemon.mount("pg", &dir);
    engine.docker(&["restart", "--time", "0", "plain"]).ok();
    for name in ["early", "late", "plain"] {
        let text = engine.exec(name, "0", "cat /srv/pg/file").ok().stdout;
        assert_eq!(text, "kept\n", "{name}");
    }
    for name in all {
        engine.remove(name);
    }
    drop(engine);
    again.unmount();
    std::mem::forget(mount);
    assert_eq!(beneath.names("srv/pg"), Vec::<PathBuf>::new());
    daemon.check("pg");
    daemon.stop();
}

#[test]
fn an_immutable_directory_refuses_writes_after_umount_too() {
    if !requirement::mounts_work("chattr +i") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let dir = scratch.dir("mnt");
    let Some(chattr) = tool("chattr") else {
        requirement::missing("chattr +i", "chattr");
        return;
    };
    if run(Command::new(&chattr).arg("+i").arg(&dir)).code != 0 {
        requirement::skipped(
            "chattr +i",
            "the temporary directory's filesystem has no such flag",
        );
        return;
    }
    let mount = daemon.mount("v", &dir);
    fs::write(mount.join("file"), "the volume is not immutable").unwrap();
    mount.unmount();
    let result = std::panic::catch_unwind(|| assert_refused(&dir, Errno::PERM));
    // Else nobody could remove the scratch directory.
    run(Command::new(&chattr).arg("-i").arg(&dir)).ok();
    result.unwrap();
    daemon.stop();
}
