//! A disk that others fill to the last byte under a volume: growth is refused with ENOSPC and nothing else goes wrong. What was
//! written is there, deletions work and give space back, hafsd can be killed and started, and all is well again once there
//! is space.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hafs_tests::{Daemon, Disk, Launch, Mount, Scratch, requirement};

use crate::disk::Others;
use crate::usage::allocated_file;
use crate::{KIB, MIB, MIB_LEN, block_bytes, wait_until};

const DISK_BYTES: u64 = 768 * MIB;
const FILE_BYTES: usize = MIB_LEN;
/// For what happens by itself, and takes a second or two; more on a machine that does a lot besides.
const LIMIT: Duration = Duration::from_secs(120);

/// Files whose creation was acknowledged: name, and the number that their bytes are made of.
#[derive(Default)]
struct Kept(BTreeMap<String, u64>);

impl Kept {
    #[track_caller]
    fn verify(&self, dir: &Path) {
        let mut wanted = vec![0; FILE_BYTES];
        for (name, number) in &self.0 {
            block_bytes(*number, 1, &mut wanted);
            let found = fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(found == wanted, "{name} is not what was written");
        }
    }
}

/// Writes a file past the page cache and syncs it. An error other than a full disk fails the test.
fn write_new(dir: &Path, name: &str, number: u64) -> Result<(), ()> {
    let mut bytes = vec![0; FILE_BYTES];
    block_bytes(number, 1, &mut bytes);
    let mut options = OpenOptions::new();
    let written = options
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(dir.join(name))
        .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()));
    written.map_err(|error| {
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{name}: {error}");
    })
}

/// Writes new files until told to stop, whatever the disk says, and counts what it refuses; gives those that were acknowledged.
fn keep_writing(dir: &Path, prefix: u64, stop: &AtomicBool, refused: &AtomicU64) -> Kept {
    let mut kept = Kept::default();
    for n in 0.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let (name, number) = (format!("{prefix}-{}", n % 24), prefix << 20 | n);
        kept.0.remove(&name);
        match write_new(dir, &name, number) {
            Ok(()) => drop(kept.0.insert(name, number)),
            Err(()) => {
                refused.fetch_add(1, Ordering::AcqRel);
                let _ = fs::remove_file(dir.join(&name)); // it may not be there
            }
        }
    }
    kept
}

struct Machine {
    mount: Option<Mount>,
    daemon: Option<Daemon>,
    launch: Launch,
    disk: Disk,
    scratch: Scratch,
}

impl Machine {
    fn new() -> Self {
        let scratch = Scratch::new();
        let disk = Disk::new(&scratch, DISK_BYTES);
        let launch = Launch::new(scratch.path()).data_dir(&disk.path().join("data"));
        let daemon = launch.clone().start();
        daemon
            .ctl(&["volume", "create", "v", "--size", "4GiB"])
            .ok();
        let mount = daemon.mount("v", &scratch.dir("mnt"));
        Self {
            mount: Some(mount),
            daemon: Some(daemon),
            launch,
            disk,
            scratch,
        }
    }

    fn dir(&self) -> &Path {
        self.mount.as_ref().expect("mounted").path()
    }

    /// kill -9 of hafsd, and the next one, with the volume mounted again.
    fn kill_and_start(&mut self) {
        self.daemon.take().expect("running").kill();
        let daemon = self.launch.clone().start();
        self.mount = None;
        self.mount = Some(daemon.mount("v", &self.scratch.dir("mnt")));
        self.daemon = Some(daemon);
    }

    /// The store holds what it needs to flush when others have taken all else.
    fn holds_ballast(&self) -> bool {
        let volumes = fs::read_dir(self.launch.data().join("volumes")).expect("readable");
        volumes
            .map(|volume| volume.expect("readable").path().join("ballast"))
            .all(|ballast| allocated_file(&ballast) > 0)
    }

    /// Others take all of the disk, but for what the store holds. They try again if it gave that up meanwhile, for a flush that
    /// was due: with that taken, too, it could not give space back.
    #[track_caller]
    fn fill_to_the_last_byte(&self, others: &mut Others) {
        wait_until("the disk is full", LIMIT, || {
            others.free_all();
            if !self.holds_ballast() {
                return false;
            }
            others.take_all();
            self.disk.free() < 64 * KIB && self.holds_ballast()
        });
    }

    fn end(mut self) {
        self.mount.take().expect("mounted").unmount();
        let daemon = self.daemon.take().expect("running");
        daemon.check("v");
        daemon.stop();
        self.disk.end();
    }
}

#[test]
fn others_fill_the_disk_to_the_last_byte_and_free_it_again_under_writers() {
    if !requirement::mounts_work("a disk that others fill") {
        return;
    }
    let mut machine = Machine::new();
    let mut others = Others::on(&machine.disk);
    let mut kept = Kept::default();
    for n in 0..100 {
        let name = format!("first-{n}");
        write_new(machine.dir(), &name, n).expect("there is room");
        kept.0.insert(name, n);
    }
    for round in 1..=3 {
        let stop = AtomicBool::new(false);
        let refused = [AtomicU64::new(0), AtomicU64::new(0)];
        let dir = machine.dir();
        let disk = &machine.disk;
        thread::scope(|scope| {
            let writers: Vec<_> = (1..)
                .zip(&refused)
                .map(|(writer, refused)| {
                    let stop = &stop;
                    scope.spawn(move || keep_writing(dir, round * 10 + writer, stop, refused))
                })
                .collect();
            // Twice: what hafs gives up when it meets the full disk is taken as well. And again, as long as a writer has not
            // met it: what the others delete then may be room for his.
            for _ in 0..2 {
                let met = refused
                    .each_ref()
                    .map(|count| count.load(Ordering::Acquire));
                wait_until("everybody's writes are refused", LIMIT, || {
                    others.take_all();
                    let mut writers = refused.iter().zip(met);
                    write_new(dir, "probe", 7).is_err()
                        && writers.all(|(now, before)| now.load(Ordering::Acquire) > before)
                });
            }
            kept.verify(dir);
            others.free_all();
            wait_until("writes work again", LIMIT, || {
                write_new(dir, "probe", 7).is_ok()
            });
            stop.store(true, Ordering::Release);
            for writer in writers {
                kept.0.extend(writer.join().expect("no panic").0);
            }
        });
        assert!(disk.free() > 0);
        kept.verify(dir);
    }
    machine.kill_and_start();
    kept.verify(machine.dir());
    machine.end();
}

#[test]
fn on_a_full_disk_files_are_deleted_and_hafsd_is_killed_and_started() {
    if !requirement::mounts_work("a full disk") {
        return;
    }
    let mut machine = Machine::new();
    let mut others = Others::on(&machine.disk);
    let mut kept = Kept::default();
    for n in 0..300 {
        let name = format!("file-{n}");
        write_new(machine.dir(), &name, n).expect("there is room");
        kept.0.insert(name, n);
    }
    machine.fill_to_the_last_byte(&mut others);
    kept.verify(machine.dir());
    write_new(machine.dir(), "new", 1).expect_err("the disk is full");
    machine.kill_and_start();
    kept.verify(machine.dir());
    write_new(machine.dir(), "new", 1).expect_err("the disk is still full");
    // Bytes go to a new place also where they overwrite others, few or many.
    let mut options = OpenOptions::new();
    let options = options.write(true).custom_flags(libc::O_DIRECT);
    let overwritten = options.open(machine.dir().join("file-0")).unwrap();
    for len in [4 * KIB, MIB] {
        let bytes = vec![7; usize::try_from(len).unwrap()];
        let refused = overwritten.write_at(&bytes, 0).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StorageFull, "{len}");
    }
    drop(overwritten);
    kept.verify(machine.dir());
    // What does not grow goes on: more of it than a log file holds.
    let file = machine.dir().join("file-1");
    for n in 0..40_000 {
        let mode = 0o600 | (n & 0o77);
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("no growth");
    }
    File::open(&file)
        .and_then(|file| file.sync_all())
        .expect("sync");
    for n in 100..300 {
        let name = format!("file-{n}");
        fs::remove_file(machine.dir().join(&name)).expect("deleting works");
        kept.0.remove(&name);
    }
    wait_until("deleting gives space back", LIMIT, || {
        machine.disk.free() > 100 * MIB
    });
    kept.verify(machine.dir());
    wait_until("the store holds space for the next time", LIMIT, || {
        machine.holds_ballast()
    });
    // And again to the last byte.
    machine.fill_to_the_last_byte(&mut others);
    machine.kill_and_start();
    kept.verify(machine.dir());
    others.free_all();
    wait_until("writes work again", LIMIT, || {
        write_new(machine.dir(), "new", 1).is_ok()
    });
    let file = File::open(machine.dir().join("new")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, MIB - 1).unwrap();
    drop(file);
    kept.verify(machine.dir());
    machine.end();
}

#[test]
fn on_a_full_disk_a_volume_is_mounted_and_another_deleted() {
    if !requirement::mounts_work("volumes of a full disk") {
        return;
    }
    let machine = Machine::new();
    let mut others = Others::on(&machine.disk);
    let daemon = machine.daemon.as_ref().expect("running");
    for name in ["mounted", "deleted"] {
        daemon.create_volume(name);
    }
    let mut kept = Kept::default();
    for n in 0..20 {
        let name = format!("file-{n}");
        write_new(machine.dir(), &name, n).expect("there is room");
        kept.0.insert(name, n);
    }
    machine.fill_to_the_last_byte(&mut others);
    let mount = daemon.mount("mounted", &machine.scratch.dir("another"));
    daemon.ctl(&["volume", "delete", "deleted", "--yes"]).ok();
    mount.unmount();
    kept.verify(machine.dir());
    others.free_all();
    wait_until("the store holds space for the next time", LIMIT, || {
        machine.holds_ballast()
    });
    machine.end();
}
