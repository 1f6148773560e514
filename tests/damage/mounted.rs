//! A disk that fails or lies, as applications and operators meet it: through a mount of a real hafsd.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use hafs_tests::lossy::{Cut, Fault, Lossy, Mode, Request};
use hafs_tests::{Daemon, Launch, Mount, Scratch, requirement};
use rustix::io::Errno;
use serde_json::Value;

use crate::layout;
use crate::store::pattern;

const LEN: usize = 300_000;
const PAGE: usize = 4096;
const CHUNK: usize = 128 * 1024;

#[track_caller]
fn assert_eio<T>(result: io::Result<T>, what: &str) {
    let errno = result
        .err()
        .map(|error| Errno::from_io_error(&error).expect("an error of the system"));
    assert_eq!(errno, Some(Errno::IO), "{what}");
}

/// Makes a file whose bytes are on the disk when this returns.
fn put(path: &Path, name: &str, len: usize) {
    let mut file = File::create_new(path.join(name)).unwrap();
    file.write_all(&pattern(name, len)).unwrap();
    file.sync_all().unwrap();
}

/// Past the kernel's cache: hafsd is asked.
fn direct(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(libc::O_DIRECT).open(path)
}

/// Reads a file that must be there with all its bytes, from hafsd.
#[track_caller]
fn assert_there(mount: &Mount, name: &str, len: usize) {
    let mut bytes = Vec::new();
    let read = direct(&mount.join(name)).and_then(|mut file| file.read_to_end(&mut bytes));
    read.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(bytes == pattern(name, len), "WRONG BYTES in {name}");
}

/// A sample of `GET /metrics`.
#[track_caller]
fn metric(daemon: &Daemon, sample: &str) -> Option<f64> {
    let metrics = daemon.metrics();
    let mut lines = metrics.lines().filter_map(|line| line.rsplit_once(' '));
    let (_, value) = lines.find(|(name, _)| *name == sample)?;
    Some(value.parse().unwrap())
}

/// Lines of hafsd's log with this message.
fn logged(daemon: &Daemon, message: &str) -> Vec<Value> {
    let log = daemon.log();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| line["message"] == message)
        .collect()
}

const STORE_FAILED: &str = "the store failed; the volume refuses changes until it is opened again";

/// A volume `v`, mounted, in a data directory on a disk that fails when it is told to.
struct Fixture {
    // In this order they are dropped: nothing is left busy for the next.
    mount: Option<Mount>,
    daemon: Option<Daemon>,
    lossy: Option<Lossy>,
    launch: Launch,
    scratch: Scratch,
}

impl Fixture {
    fn new() -> Self {
        Self::expecting(&[])
    }

    /// One whose hafsd logs these messages, too.
    fn expecting(messages: &[&str]) -> Self {
        let scratch = Scratch::new();
        let launch = Launch::new(scratch.path())
            .data_dir(&scratch.dir("data"))
            .expect(STORE_FAILED)
            // It is written after an fsync was answered: the disk may have failed by then.
            .expect("durable mark not written")
            .expect("volume is not available")
            .expect("dead mount");
        let launch = messages
            .iter()
            .fold(launch, |launch, said| launch.expect(said));
        let mut fixture = Self {
            mount: None,
            daemon: None,
            lossy: None,
            launch,
            scratch,
        };
        fixture.power_on();
        fixture.daemon().create_volume("v");
        fixture.mount();
        fixture
    }

    /// A disk, and hafsd on it.
    fn power_on(&mut self) {
        let (disk, data) = (self.scratch.dir("disk"), self.scratch.join("data"));
        self.lossy = Some(Lossy::mount(&disk, &data, 1));
        self.daemon = Some(self.launch.clone().start());
    }

    /// The power goes, with everything that was not synced.
    fn power_off(&mut self) {
        let cut = Cut {
            mode: Mode::Everything,
            seed: 1,
        };
        self.lossy().cut(cut);
        self.daemon.take().unwrap().kill();
        self.mount = None;
        self.lossy = None;
    }

    fn mount(&mut self) {
        let mount = self.daemon().mount("v", &self.scratch.dir("mnt"));
        self.mount = Some(mount);
    }

    fn lossy(&self) -> &Lossy {
        self.lossy.as_ref().unwrap()
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn on_mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    fn state(&self) -> Value {
        let list = self.daemon().ctl(&["volume", "list", "-o", "json"]);
        list.ok().json()["volumes"][0]["state"].clone()
    }

    /// Every place that says how a volume is says that this one has failed.
    #[track_caller]
    fn assert_told(&self, why: &str) {
        let daemon = self.daemon();
        assert_eq!(self.state(), "failed");
        let list = daemon.ctl(&["volume", "list"]).ok().stdout;
        assert!(list.contains(" failed "), "{list}");
        let show = daemon.ctl(&["volume", "show", "v"]).ok().stdout;
        assert!(show.contains("failed") && show.contains(why), "{show}");
        for noun in [vec!["status"], vec!["replica", "status"]] {
            let told = daemon.ctl(&noun);
            assert_eq!(told.code, 4, "{told}");
            let health = format!("health: AT RISK  v: {why}");
            assert!(told.stdout.contains(&health), "{told}");
        }
        let status = daemon.ctl(&["status", "-o", "json"]).json();
        assert_eq!(status["ready"], true, "others go on: {status}");
        assert_eq!(status["volumes"]["failed"], 1, "{status}");
        let failed = metric(daemon, "hafs_volume_failed{volume=\"v\"}");
        assert_eq!(failed, Some(1.0));
        let volumes = metric(daemon, "hafs_volumes{state=\"failed\"}");
        assert_eq!(volumes, Some(1.0));
    }

    #[track_caller]
    fn assert_well(&self) {
        let daemon = self.daemon();
        assert_eq!(self.state(), "open");
        daemon.ctl(&["status"]).ok();
        daemon.ctl(&["replica", "status"]).ok();
        let failed = metric(daemon, "hafs_volume_failed{volume=\"v\"}");
        assert_eq!(failed, Some(0.0));
        daemon.check("v");
    }

    fn end(mut self) {
        self.mount.take().unwrap().unmount();
        self.daemon.take().unwrap().stop();
    }
}

/// Whatever syncs fails, on descriptors that were open before and on new ones.
#[track_caller]
fn assert_nothing_syncs(mount: &Mount, open: &[File]) {
    for _ in 0..3 {
        for file in open {
            assert_eio(file.sync_all(), "fsync of an old descriptor");
            assert_eio(file.sync_data(), "fdatasync of an old descriptor");
        }
        let new = File::open(mount.join("safe")).unwrap();
        assert_eio(new.sync_all(), "fsync of a new descriptor");
        let root = File::open(mount.path()).unwrap();
        assert_eio(root.sync_all(), "fsync of a directory");
    }
}

/// No change is taken; what is there can be read.
#[track_caller]
fn assert_nothing_changes(mount: &Mount) {
    let safe = mount.join("safe");
    let file = direct(&safe).unwrap();
    assert_eio(file.write_all_at(&[1; PAGE], 0), "write past the cache");
    assert_eio(file.set_len(1), "ftruncate");
    assert_eio(File::create_new(mount.join("new")), "creat");
    assert_eio(fs::create_dir(mount.join("dir")), "mkdir");
    assert_eio(fs::hard_link(&safe, mount.join("link")), "link");
    assert_eio(fs::rename(&safe, mount.join("moved")), "rename");
    assert_eio(fs::remove_file(&safe), "unlink");
    let mode = Permissions::from_mode(0o600);
    assert_eio(fs::set_permissions(&safe, mode), "chmod");
    // The kernel takes it, and has nowhere to put it.
    let risk = File::options().write(true).open(mount.join("risk"));
    let risk = risk.unwrap();
    risk.write_all_at(&[1; PAGE], 0).unwrap();
    assert_eio(risk.sync_all(), "fsync of a buffered write");

    assert_there(mount, "safe", LEN);
    let names = fs::read_dir(mount.path()).unwrap();
    let mut names: Vec<_> = names.map(|name| name.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["risk", "safe"]);
}

#[test]
fn after_a_failed_sync_every_fsync_of_a_mount_fails_until_it_is_mounted_again() {
    if !requirement::mounts_work("a failing disk under a mount") {
        return;
    }
    for part in ["/log/0", "/segments/0"] {
        let mut fixture = Fixture::new();
        let mount = fixture.on_mount();
        put(mount.path(), "safe", LEN);
        let open = |name| {
            File::options()
                .read(true)
                .write(true)
                .open(mount.join(name))
        };
        let old = ["safe", "safe"].map(|name| open(name).unwrap());
        let mut risk = File::create_new(mount.join("risk")).unwrap();
        risk.write_all(&pattern("risk", LEN)).unwrap();

        let fault = Fault::new(&[Request::Sync], Errno::IO).on(part);
        let fault = fixture.lossy().set_fault(fault);
        assert_eio(risk.sync_all(), "the fsync that the disk fails");
        assert_eq!(fixture.lossy().fired(fault), 1, "{part}");
        assert_nothing_syncs(mount, &old);
        assert_nothing_changes(mount);
        fixture.assert_told("its store failed; hafsd's log says how");
        let check = fixture.daemon().ctl(&["volume", "check", "v"]);
        check.refused(1, &["its store failed", "unmount it", "mount it again"]);
        // The disk is well again, and says so to each sync; what it lost stays lost.
        fixture.lossy().heal_all();
        assert_nothing_syncs(mount, &old);
        assert_nothing_changes(mount);
        // A mount beside it is a bind of the same one.
        let beside = fixture.scratch.dir("beside");
        let bind = fixture.daemon().mount("v", &beside);
        assert_nothing_syncs(&bind, &old);
        bind.unmount();
        fixture.assert_told("its store failed; hafsd's log says how");
        let told = logged(fixture.daemon(), STORE_FAILED);
        assert_eq!(told.len(), 1, "said once: {told:?}");
        let error = told[0]["error"].as_str().unwrap();
        assert!(
            error.starts_with("sync ") && error.contains(part),
            "{error}"
        );
        assert!(
            error.ends_with("Input/output error (os error 5)"),
            "{error}"
        );

        // As docs/operations.md says: end what uses it, umount, mount. While the disk still fails it stays as it is.
        drop((old, risk));
        fixture
            .lossy()
            .set_fault(Fault::new(&[Request::Sync], Errno::IO).on(part));
        fixture.mount.take().unwrap().unmount();
        let mnt = fixture.scratch.join("mnt");
        let refused = fixture.daemon().mount_command("v", &mnt, "");
        refused.refused(32, &["volume `v` is not available", "sync ", part]);
        fixture.assert_told("sync ");
        fixture.lossy().heal_all();
        fixture.mount();
        let mount = fixture.on_mount();
        assert_there(mount, "safe", LEN);
        fixture.assert_well();
        put(mount.path(), "later", LEN);
        fixture.power_off();

        fixture.power_on();
        fixture.mount();
        let mount = fixture.on_mount();
        assert_there(mount, "safe", LEN);
        assert_there(mount, "later", LEN);
        fixture.assert_well();
        fixture.end();
    }
}

/// The kernel tells one fsync of pages that it could not write back, and counts them as clean.
#[test]
fn after_a_failed_writeback_no_fsync_of_a_mount_succeeds() {
    if !requirement::mounts_work("a failing disk under a mount") {
        return;
    }
    let mut fixture = Fixture::expecting(&["request failed"]);
    // The short one goes through the page cache of the disk, the long one past it.
    for len in [20_000, 1 << 20] {
        let mount = fixture.on_mount();
        let safe = format!("safe-{len}");
        put(mount.path(), &safe, LEN);
        let mut lost = File::create_new(mount.join(&format!("lost-{len}"))).unwrap();
        let fault = Fault::new(&[Request::Write], Errno::IO).on("/segments/");
        let fault = fixture.lossy().set_fault(fault);
        lost.write_all(&pattern("lost", len)).unwrap();
        assert_eio(lost.sync_all(), "the fsync that the disk fails");
        assert!(fixture.lossy().fired(fault) > 0, "{len}");
        fixture.lossy().heal_all();
        for _ in 0..3 {
            assert_eio(lost.sync_all(), "fsync of the same descriptor");
            let other = File::open(mount.join(&safe)).unwrap();
            assert_eio(other.sync_all(), "fsync of another file");
        }
        fixture.assert_told("its store failed; hafsd's log says how");

        drop(lost);
        fixture.mount.take().unwrap().unmount();
        fixture.mount();
        assert_there(fixture.on_mount(), &safe, LEN);
        fixture.assert_well();
    }
    fixture.end();
}

/// The store of the only volume.
fn store_of(daemon: &Daemon) -> PathBuf {
    let mut stores = fs::read_dir(daemon.data_dir().join("volumes")).unwrap();
    stores.next().unwrap().unwrap().path()
}

/// Reads a file page by page; the first and the last byte of what gives EIO, which is one run. All else must be right.
#[track_caller]
fn unreadable(file: &File, bytes: &[u8]) -> Option<(usize, usize)> {
    let mut hit: Option<(usize, usize)> = None;
    let mut page = vec![0; PAGE];
    for (n, wanted) in bytes.chunks(PAGE).enumerate() {
        let at = n * PAGE;
        match file.read_exact_at(&mut page[..wanted.len()], at as u64) {
            Ok(()) => assert!(page[..wanted.len()] == *wanted, "WRONG BYTES at {at}"),
            Err(error) => {
                assert_eio::<()>(Err(error), "read");
                let start = hit.map_or(at, |(start, end)| {
                    assert_eq!(end, at, "not one run");
                    start
                });
                hit = Some((start, at + wanted.len()));
            }
        }
    }
    hit
}

/// What the operator is told of the damage: by hafsd's log, by the metrics, by `hafsctl volume check`.
#[track_caller]
fn assert_named(daemon: &Daemon, ino: u64, (start, end): (usize, usize)) {
    let requests = logged(daemon, "request failed");
    assert!(!requests.is_empty(), "{}", daemon.log());
    for request in requests {
        assert_eq!(
            (&request["volume"], &request["op"]),
            (&"v".into(), &"read".into())
        );
        assert_eq!(request["ino"], ino, "{request}");
        let error = request["error"].as_str().unwrap();
        let place = format!("inode {ino}: bytes {start}..{end} are damaged");
        assert!(error.contains(&place), "{error}");
    }
    let errors = "hafs_volume_request_errors_total{volume=\"v\",op=\"read\",errno=\"EIO\"}";
    assert!(metric(daemon, errors) >= Some(1.0));
    let check = daemon.ctl(&["volume", "check", "v"]);
    assert_eq!(check.code, 1, "{check}");
    let problems: Vec<&str> = check.stdout.lines().collect();
    assert_eq!(problems.len(), 2, "{check}");
    assert!(problems[0].starts_with("v: 1 problem"), "{check}");
    let named = format!("  inode {ino} (/sub/hit): bytes {start}..{end}: ");
    assert!(problems[1].starts_with(&named), "{check}");
    let next = "; next: restore the file from a backup, or write these bytes anew, or delete it";
    assert!(problems[1].ends_with(next), "{check}");
    // Only what was asked for is refused: the volume goes on.
    daemon.ctl(&["status"]).ok();
}

#[test]
fn a_flipped_bit_is_an_error_for_what_it_hit_and_nothing_else() {
    if !requirement::mounts_work("a flipped bit under a mount") {
        return;
    }
    // Of a volume that is in use, its page; of one whose log is still to be replayed, the whole chunk.
    for (killed, unit) in [(false, PAGE), (true, CHUNK)] {
        let scratch = Scratch::new();
        let launch = Launch::new(scratch.path())
            .expect("request failed")
            .expect("check found problems")
            .expect("a chunk is damaged: reads of these bytes will fail")
            .expect("dead mount");
        let daemon = launch.clone().start();
        daemon.create_volume("v");
        let dir = scratch.dir("mnt");
        let mount = daemon.mount("v", &dir);
        let (len, at) = (5 * CHUNK + 1000, 2 * CHUNK + 5 * PAGE + 17);
        let bytes = pattern("hit", len);
        fs::create_dir(mount.join("sub")).unwrap();
        put(&mount.join("sub"), "hit", len);
        put(mount.path(), "whole", LEN);
        let path = mount.join("sub/hit");
        let ino = fs::metadata(&path).unwrap().ino();
        let store = store_of(&daemon);
        let running = if killed {
            daemon.kill();
            drop(mount);
            None
        } else {
            mount.unmount();
            Some(daemon)
        };
        let chunk = at / CHUNK * CHUNK;
        let (segment, offset) = layout::find_in_segments(&store, &bytes[chunk..chunk + 512]);
        layout::flip(&store.join(segment), offset + (at - chunk) as u64, 3);
        let daemon = running.unwrap_or_else(|| launch.start());
        let mount = daemon.mount("v", &dir);

        let start = at / unit * unit;
        let hit = Some((start, start + unit));
        // Through the cache, which asks for much at once, and past it.
        assert_eq!(unreadable(&File::open(&path).unwrap(), &bytes), hit);
        assert_eq!(unreadable(&direct(&path).unwrap(), &bytes), hit);
        // Again, from what is cached by now.
        assert_eq!(unreadable(&File::open(&path).unwrap(), &bytes), hit);
        assert_eio(fs::read(&path), "a read of the whole file");
        assert_there(&mount, "whole", LEN);
        if killed {
            let told = logged(
                &daemon,
                "a chunk is damaged: reads of these bytes will fail",
            );
            assert_eq!(told.len(), 1, "{told:?}");
            assert_eq!(told[0]["ino"], ino, "{told:?}");
            assert_eq!(told[0]["offset"], start, "{told:?}");
        }
        assert_named(&daemon, ino, (start, start + unit));

        // As it is advised: written anew, these bytes are good again.
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.write_all_at(&bytes[start..start + unit], start as u64)
            .unwrap();
        file.sync_all().unwrap();
        assert_eq!(unreadable(&direct(&path).unwrap(), &bytes), None);
        daemon.check("v");
        drop(file);
        mount.unmount();
        daemon.stop();
    }
}
