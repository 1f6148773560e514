//! A disk that answers with errors: EIO for reads, writes and syncs, and no space, each below one part of the store. The
//! lossy filesystem of the harness stands for that disk.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use hafs_fs::{Caller, FsError, Ino, SetAttr, Volume, VolumeSettings};
use hafs_protocol::Epoch;
use hafs_tests::lossy::{Cut, Fault, Lossy, Mode, Request};
use hafs_tests::{Scratch, requirement};
use rustix::io::Errno;

use crate::store::{identity, pattern, settings};

/// How long RocksDB may take to notice that there is room again: it looks every five seconds.
const ROOM_WAIT: Duration = Duration::from_secs(60);

/// A volume on a disk that fails when it is told to.
struct Fixture {
    // Dropped before the directory that it lies in.
    lossy: Option<Lossy>,
    scratch: Scratch,
    epoch: u32,
}

impl Fixture {
    /// `None` where nothing can be mounted.
    fn new() -> Option<Self> {
        if !requirement::mounts_work("errors of the disk") {
            return None;
        }
        let mut fixture = Self {
            lossy: None,
            scratch: Scratch::new(),
            epoch: 1,
        };
        fixture.mount();
        let path = fixture.lossy().dir().join("v");
        Volume::create(&path, &identity(), &disk_settings(), Epoch(1)).unwrap();
        // The store's own name is its maker's to sync.
        File::open(fixture.lossy().dir())
            .unwrap()
            .sync_all()
            .unwrap();
        Some(fixture)
    }

    fn mount(&mut self) {
        let (disk, dir) = (self.scratch.dir("disk"), self.scratch.dir("data"));
        self.lossy = Some(Lossy::mount(&disk, &dir, 1));
    }

    fn lossy(&self) -> &Lossy {
        self.lossy.as_ref().unwrap()
    }

    fn open(&mut self) -> Result<Volume, FsError> {
        self.epoch += 1;
        let path = self.lossy().dir().join("v");
        Volume::open(&path, &identity(), &disk_settings(), Epoch(self.epoch))
    }

    fn fault(&self, requests: &[Request], errno: Errno, part: &str) {
        self.lossy().set_fault(Fault::new(requests, errno).on(part));
    }

    /// The power goes, everything unsynced with it, and comes back.
    fn cut(&mut self) {
        let cut = Cut {
            mode: Mode::Everything,
            seed: 1,
        };
        self.lossy().cut(cut);
        self.lossy = None;
        self.mount();
    }
}

/// Log files that are not recycled, so that the log needs new ones.
fn disk_settings() -> VolumeSettings {
    VolumeSettings {
        log_keep_bytes: 64 << 20,
        ..settings()
    }
}

fn put(volume: &Volume, name: &str, len: usize) -> Result<Ino, FsError> {
    let mode = libc::S_IFREG | 0o644;
    let made = volume.mknod(Caller::ROOT, Ino::ROOT, name.as_bytes(), mode, 0)?;
    volume.write(made.ino, 0, &pattern(name, len), false, false)?;
    Ok(made.ino)
}

/// Reads a file that must be there with all its bytes.
#[track_caller]
fn assert_there(volume: &Volume, name: &str, len: usize) {
    let attr = volume.lookup(Ino::ROOT, name.as_bytes()).unwrap();
    let bytes = volume.read(attr.ino, 0, 1 << 20).unwrap();
    assert!(bytes == pattern(name, len), "{name}");
}

#[track_caller]
fn assert_clean(volume: &Volume) {
    assert_eq!(volume.check(&mut |_, _| {}).unwrap().problems, vec![]);
}

const LEN: usize = 300_000;

#[test]
fn a_sync_that_failed_once_fails_for_all_until_the_volume_is_opened_again() {
    for part in ["/log/0", "/segments/0"] {
        let Some(mut fixture) = Fixture::new() else {
            return;
        };
        let volume = fixture.open().unwrap();
        put(&volume, "safe", LEN).unwrap();
        volume.sync().unwrap();
        put(&volume, "risk", LEN).unwrap();
        let fault = Fault::new(&[Request::Sync], Errno::IO).on(part).times(1);
        let fault = fixture.lossy().set_fault(fault);
        thread::scope(|scope| {
            let syncs: Vec<_> = (0..4).map(|_| scope.spawn(|| volume.sync())).collect();
            for sync in syncs {
                assert!(sync.join().unwrap().is_err(), "{part}");
            }
        });
        assert_eq!(fixture.lossy().fired(fault), 1, "{part}");
        // The disk is well again, and says so to each sync; what it lost stays lost.
        for _ in 0..3 {
            assert!(matches!(volume.sync(), Err(FsError::Failed)), "{part}");
        }
        assert!(matches!(put(&volume, "more", 10), Err(FsError::Failed)));
        assert!(volume.status().failed);
        assert_there(&volume, "safe", LEN);
        assert!(volume.close().is_err(), "{part}");
        drop(volume);
        fixture.cut();
        let volume = fixture.open().unwrap();
        assert_there(&volume, "safe", LEN);
        assert_clean(&volume);
        put(&volume, "later", LEN).unwrap();
        volume.sync().unwrap();
        volume.crash();
        fixture.cut();
        let volume = fixture.open().unwrap();
        assert_there(&volume, "safe", LEN);
        assert_there(&volume, "later", LEN);
        assert_clean(&volume);
    }
}

/// After a failed sync the host goes on to show bytes that never reached the disk: recovery must not build on them.
#[test]
fn what_a_failed_sync_lost_is_not_replayed_from_the_hosts_memory() {
    for part in ["/log/0", "/segments/0"] {
        let Some(mut fixture) = Fixture::new() else {
            return;
        };
        let volume = fixture.open().unwrap();
        put(&volume, "safe", LEN).unwrap();
        volume.sync().unwrap();
        put(&volume, "risk", LEN).unwrap();
        let fault = Fault::new(&[Request::Sync], Errno::IO).on(part).times(1);
        fixture.lossy().set_fault(fault);
        assert!(volume.sync().is_err());
        volume.crash();

        let volume = fixture.open().unwrap();
        put(&volume, "later", LEN).unwrap();
        volume.sync().unwrap();
        volume.crash();
        fixture.cut();
        let volume = fixture.open().unwrap();
        assert_there(&volume, "safe", LEN);
        assert_there(&volume, "later", LEN);
        assert_clean(&volume);
    }
}

#[test]
fn bytes_that_the_disk_cannot_read_are_named_and_come_back_with_the_disk() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let volume = fixture.open().unwrap();
    let ino = put(&volume, "a", LEN).unwrap();
    let inline = put(&volume, "inline", 3000).unwrap();
    volume.sync().unwrap();
    fixture.fault(&[Request::Read], Errno::IO, "/segments/");
    let error = volume.read(ino, 150_000, 4096).unwrap_err();
    let FsError::Unreadable {
        ino: named,
        offset,
        len,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(named, ino);
    assert!(
        offset <= 150_000 && 154_096 <= offset + len,
        "{offset}+{len}"
    );
    assert_eq!(
        volume.read(inline, 0, 4096).unwrap(),
        pattern("inline", 3000)
    );
    let report = volume.check(&mut |_, _| {}).unwrap();
    let problem = report.problems.iter().find(|p| p.ino == Some(ino)).unwrap();
    assert_eq!(problem.path.as_deref(), Some("/a"));
    assert!(
        problem.bytes.is_some() && problem.what.contains("Input/output error"),
        "{problem}"
    );
    fixture.lossy().heal_all();
    assert_there(&volume, "a", LEN);
    assert_clean(&volume);
    volume.sync().expect("reading is no change");
}

#[test]
fn a_log_that_the_disk_cannot_read_is_refused_and_replayed_once_it_can() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let volume = fixture.open().unwrap();
    put(&volume, "a", LEN).unwrap();
    volume.crash();
    fixture.fault(&[Request::Read], Errno::IO, "/log/");
    let refused = fixture.open().unwrap_err().to_string();
    assert!(refused.contains("the disk cannot read it"), "{refused}");
    fixture.lossy().heal_all();
    let volume = fixture.open().unwrap();
    assert_there(&volume, "a", LEN);
    assert_clean(&volume);
}

#[test]
fn chunks_that_cannot_be_read_while_the_log_is_replayed_are_not_given_up() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let volume = fixture.open().unwrap();
    put(&volume, "synced", LEN).unwrap();
    volume.sync().unwrap();
    put(&volume, "unsynced", LEN).unwrap();
    volume.crash();
    fixture.fault(&[Request::Read], Errno::IO, "/segments/");
    let volume = fixture.open().unwrap();
    for name in ["synced", "unsynced"] {
        let ino = volume.lookup(Ino::ROOT, name.as_bytes()).unwrap().ino;
        assert!(matches!(
            volume.read(ino, 0, 4096),
            Err(FsError::Unreadable { .. })
        ));
    }
    let report = volume.check(&mut |_, _| {}).unwrap();
    assert!(report.problem_count >= 6, "{report:?}");
    fixture.lossy().heal_all();
    for name in ["synced", "unsynced"] {
        assert_there(&volume, name, LEN);
    }
    assert_clean(&volume);
}

#[test]
fn a_write_that_the_disk_refuses_ends_changes_where_it_was_the_log() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let volume = fixture.open().unwrap();
    put(&volume, "safe", LEN).unwrap();
    volume.sync().unwrap();
    // Nothing names a chunk that was not written: the disk may try again.
    fixture.fault(&[Request::Write], Errno::IO, "/segments/");
    assert!(matches!(
        put(&volume, "chunk", LEN),
        Err(FsError::Io { .. })
    ));
    fixture.lossy().heal_all();
    put(&volume, "again", LEN).unwrap();
    volume.sync().unwrap();
    assert_clean(&volume);
    // The log's end is uncertain then.
    fixture.fault(&[Request::Write], Errno::IO, "/log/");
    assert!(matches!(
        put(&volume, "record", 10),
        Err(FsError::Io { .. })
    ));
    fixture.lossy().heal_all();
    assert!(matches!(put(&volume, "more", 10), Err(FsError::Failed)));
    assert!(matches!(volume.sync(), Err(FsError::Failed)));
    assert_there(&volume, "safe", LEN);
    volume.crash();
    let volume = fixture.open().unwrap();
    assert_there(&volume, "safe", LEN);
    assert_there(&volume, "again", LEN);
    assert_clean(&volume);
}

/// Changes until the disk says no; everything that was answered with yes.
fn fill(volume: &Volume, len: usize) -> Vec<String> {
    let mut there = Vec::new();
    for n in 0..2000 {
        let name = format!("f{n}");
        match put(volume, &name, len) {
            Ok(_) => there.push(name),
            Err(FsError::NoSpace) => return there,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("never full");
}

/// Nothing is lost, everything is readable, and changes are taken again once there is room.
#[track_caller]
fn assert_recovers(fixture: &mut Fixture, volume: Volume, there: &[String], len: usize) {
    assert!(!volume.status().failed);
    volume.sync().expect("a full disk loses nothing");
    for name in there {
        assert_there(&volume, name, len);
    }
    fixture.lossy().heal_all();
    let start = Instant::now();
    while let Err(error) = put(&volume, "after", LEN) {
        assert!(
            matches!(error, FsError::NoSpace | FsError::Exists),
            "{error}"
        );
        let _ = volume.unlink(Ino::ROOT, b"after"); // its name may have found room, and its bytes not
        assert!(start.elapsed() < ROOM_WAIT, "no room after {ROOM_WAIT:?}");
        thread::park_timeout(Duration::from_millis(20));
    }
    volume.sync().unwrap();
    assert_clean(&volume);
    volume.crash();
    fixture.cut();
    let volume = fixture.open().unwrap();
    for name in there {
        assert_there(&volume, name, len);
    }
    assert_there(&volume, "after", LEN);
    assert_clean(&volume);
}

#[test]
fn a_log_without_room_for_its_next_file_recovers() {
    for requests in [[Request::Write], [Request::Name]] {
        let Some(mut fixture) = Fixture::new() else {
            return;
        };
        let volume = fixture.open().unwrap();
        fixture.fault(&requests, Errno::NOSPC, "/log/spare");
        let there = fill(&volume, 6000);
        assert_recovers(&mut fixture, volume, &there, 6000);
    }
}

#[test]
fn a_truncation_that_a_full_disk_interrupts_has_cut_a_part_and_is_ended_later() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let volume = fixture.open().unwrap();
    let ino = put(&volume, "long", 0).unwrap();
    const PIECES: u64 = 20_000;
    for n in 0..PIECES {
        volume.write(ino, n, b"x", false, false).unwrap();
    }
    // Of the log's next file.
    fixture.fault(&[Request::Name], Errno::NOSPC, "/log/");
    let truncate = || {
        let set = SetAttr {
            size: Some(10),
            ..SetAttr::default()
        };
        volume.setattr(Caller::ROOT, ino, &set)
    };
    assert!(matches!(truncate(), Err(FsError::NoSpace)));
    let left = volume.getattr(ino).unwrap().size;
    assert!(10 < left && left < PIECES, "{left}");
    let bytes = volume.read(ino, 0, 1 << 20).unwrap();
    assert!(bytes.len() as u64 == left && bytes.iter().all(|byte| *byte == b'x'));
    assert_clean(&volume);
    fixture.lossy().heal_all();
    assert_eq!(truncate().unwrap().size, 10);
    assert_eq!(volume.read(ino, 0, 1 << 20).unwrap(), [b'x'; 10]);
    assert_clean(&volume);
}

#[test]
fn segments_without_room_recover() {
    for requests in [[Request::Write], [Request::Name]] {
        let Some(mut fixture) = Fixture::new() else {
            return;
        };
        let volume = fixture.open().unwrap();
        put(&volume, "before", LEN).unwrap();
        fixture.fault(&requests, Errno::NOSPC, ".seg");
        let there = match requests {
            [Request::Name] => fill(&volume, LEN),
            _ => {
                assert!(matches!(put(&volume, "x", LEN), Err(FsError::NoSpace)));
                Vec::new()
            }
        };
        assert_recovers(&mut fixture, volume, &there, LEN);
    }
}

#[test]
fn a_state_without_room_recovers() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let volume = fixture.open().unwrap();
    let names: Vec<String> = (0..20).map(|n| format!("n{n}")).collect();
    for name in &names {
        put(&volume, name, 6000).unwrap();
    }
    fixture.fault(&[Request::Write], Errno::NOSPC, "/state/");
    // From here on there is something to flush, also if the volume was idle for so long that all before was flushed.
    assert!(matches!(
        put(&volume, "x", 10),
        Ok(_) | Err(FsError::NoSpace)
    ));
    // A round of the collector flushes.
    assert!(matches!(volume.collect(), Err(FsError::NoSpace)));
    assert_recovers(&mut fixture, volume, &names, 6000);
}

#[test]
fn a_state_that_the_disk_does_not_take_is_replayed_from_the_log() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let volume = fixture.open().unwrap();
    fixture.fault(&[Request::Write, Request::Sync], Errno::IO, "/state/");
    put(&volume, "a", LEN).unwrap();
    let flushed = volume.collect();
    assert!(matches!(flushed, Err(FsError::State(_))), "{flushed:?}");
    let _ = volume.close();
    drop(volume);
    fixture.lossy().heal_all();
    let volume = fixture.open().unwrap();
    assert_there(&volume, "a", LEN);
    assert_clean(&volume);
}
