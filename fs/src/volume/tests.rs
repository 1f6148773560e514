//! Units of the volume as a whole, and the fixture that the units of its parts stand on.

use super::*;
use crate::types::{Caller, FallocateMode, RenameMode, SeekTo, SetAttr, XattrMode};
use hafs_protocol::{Lineage, NodeId, StoreId, VolumeId};

fn identity() -> VolumeIdentity {
    VolumeIdentity {
        volume: VolumeId::from_bytes([1; 16]),
        store: StoreId::from_bytes([2; 16]),
        node: NodeId::from_bytes([3; 16]),
        lineage: Lineage::from_bytes([4; 16]),
    }
}

pub(crate) fn settings() -> VolumeSettings {
    VolumeSettings {
        log_file_bytes: 256 << 10,
        log_keep_bytes: 512 << 10,
        segment_bytes: 1 << 20,
        state_buffer_bytes: 256 << 10,
        ..VolumeSettings::new(64 << 20, Profile::Auto)
    }
}

pub(crate) struct Fixture {
    dir: tempfile::TempDir,
    settings: VolumeSettings,
    epoch: u32,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(settings())
    }

    pub(crate) fn with(settings: VolumeSettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        Volume::create(&path, &identity(), &settings, Epoch(1)).unwrap();
        Self {
            dir,
            settings,
            epoch: 1,
        }
    }

    pub(crate) fn open(&mut self) -> Volume {
        self.try_open().unwrap()
    }

    pub(crate) fn try_open(&mut self) -> Result<Volume, FsError> {
        self.epoch += 1;
        let path = self.dir.path().join("v");
        Volume::open(&path, &identity(), &self.settings, Epoch(self.epoch))
    }
}

impl Volume {
    pub(crate) fn check_in_windows(&self, inodes: usize) -> Result<CheckReport, FsError> {
        let watch = &mut |_: &_| ControlFlow::Continue(());
        self.settle();
        Ok(check::check_in_windows(&self.inner.store, watch, inodes)?.0)
    }

    /// A record of changes that no operation makes. Digest and sums follow, as from any record.
    pub(crate) fn change_rows(&self, change: impl FnOnce(&mut Txn<'_>) -> Result<(), FsError>) {
        self.inner.transact(|txn, _| change(txn)).unwrap();
    }

    pub(crate) fn store(&self) -> &Store {
        self.settle();
        &self.inner.store
    }

    pub(crate) fn change_totals(&self, change: impl FnOnce(&mut Totals)) {
        change(&mut self.inner.core_mut().totals);
    }
}

pub(crate) fn assert_clean(volume: &Volume) {
    let report = volume.check(&mut |_, _| {}).unwrap();
    assert_eq!(report.problems, vec![]);
    assert_eq!(report.digest, volume.status().digest);
}

pub(crate) fn file(volume: &Volume, name: &[u8]) -> Ino {
    volume
        .mknod(Caller::ROOT, Ino::ROOT, name, libc::S_IFREG | 0o644, 0)
        .unwrap()
        .ino
}

#[test]
fn what_was_written_survives_a_crash_without_any_sync() {
    let mut fixture = Fixture::new();
    let volume = fixture.open();
    let ino = file(&volume, b"a");
    let big: Vec<u8> = (0..600_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    volume.write(ino, 0, &big, false, false).unwrap();
    volume.write(ino, 100_000, b"small", false, false).unwrap();
    volume
        .setxattr(Caller::ROOT, ino, b"user.k", b"v", XattrMode::Set)
        .unwrap();
    let digest = volume.status().digest;
    assert_clean(&volume);
    volume.crash();

    let volume = fixture.open();
    assert_eq!(volume.status().digest, digest);
    let mut expected = big;
    expected[100_000..100_005].copy_from_slice(b"small");
    assert_eq!(volume.read(ino, 0, 1 << 20).unwrap(), expected);
    assert_eq!(volume.lookup(Ino::ROOT, b"a").unwrap().ino, ino);
    assert_eq!(volume.getxattr(ino, b"user.k").unwrap(), b"v");
    assert_clean(&volume);
}

#[test]
fn a_volume_grows_and_shrinks_while_it_is_in_use_but_not_below_what_it_holds() {
    let mut fixture = Fixture::new();
    let volume = fixture.open();
    let ino = file(&volume, b"a");
    volume.write(ino, 0, &[1; 1 << 20], false, false).unwrap();
    assert!(matches!(volume.set_size(1 << 19), Err(FsError::NoSpace)));
    assert_eq!(volume.statfs().unwrap().size_bytes, 64 << 20);
    // The root, the file and its name.
    volume.set_size((1 << 20) + 3 * 512).unwrap();
    assert_eq!(volume.statfs().unwrap().available_bytes, 0);
    let refused = volume.write(ino, 1 << 20, &[1; 4096], false, false);
    assert!(matches!(refused, Err(FsError::NoSpace)));
    volume.set_size(2 << 20).unwrap();
    volume
        .write(ino, 1 << 20, &[1; 4096], false, false)
        .unwrap();
    assert_clean(&volume);
}

#[test]
fn a_store_that_ends_before_what_others_know_is_refused_and_left_as_it_is() {
    let mut fixture = Fixture::new();
    let volume = fixture.open();
    let ino = file(&volume, b"a");
    volume.write(ino, 0, &[1; 4096], false, false).unwrap();
    volume.sync().unwrap();
    let head = volume.status().head;
    volume.close().unwrap();
    drop(volume);
    fixture.settings.committed = head.next();
    let refused = fixture.try_open().unwrap_err().to_string();
    assert!(refused.contains(&head.next().to_string()), "{refused}");
    fixture.settings.committed = head;
    let volume = fixture.open();
    assert_eq!(
        volume.status().head,
        head.next(),
        "the reign's first record"
    );
}

#[test]
fn logs_roll_states_flush_and_segments_are_collected_while_files_are_overwritten() {
    let mut fixture = Fixture::new();
    let mut volume = fixture.open();
    let ino = file(&volume, b"a");
    for round in 0..60_u8 {
        volume
            .write(ino, 0, &vec![round; 1 << 20], false, false)
            .unwrap();
        for n in 0..40_u64 {
            volume
                .write(ino, n * 9000, &[round ^ 0xff; 4096], false, false)
                .unwrap();
        }
        if round % 20 == 19 {
            volume.collect().unwrap();
            volume.crash();
            volume = fixture.open();
        }
    }
    assert_clean(&volume);
    volume.collect().unwrap();
    let status = volume.status();
    assert!(status.segment_bytes < 6 << 20, "{status:?}");
    assert!(status.log_bytes < 4 << 20, "{status:?}");
    let bytes = volume.read(ino, 0, 1 << 20).unwrap();
    assert_eq!((bytes[0], bytes[4096]), (59 ^ 0xff, 59));
    assert_clean(&volume);
    volume.close().unwrap();
    drop(volume);
    assert_clean(&fixture.open());
}

#[test]
fn an_unlinked_file_is_readable_until_it_is_reclaimed() {
    let mut fixture = Fixture::new();
    let volume = fixture.open();
    let ino = file(&volume, b"a");
    volume.write(ino, 0, &[7; 300_000], false, false).unwrap();
    volume.unlink(Ino::ROOT, b"a").unwrap();
    assert!(volume.is_orphan(ino));
    assert_eq!(volume.read(ino, 299_999, 10).unwrap(), vec![7]);
    assert_clean(&volume);
    volume.crash();
    let volume = fixture.open();
    assert_eq!(volume.reclaim_orphans(), 1);
    assert!(matches!(volume.getattr(ino), Err(FsError::Stale(_))));
    assert_eq!(volume.statfs().unwrap().used_bytes, 512, "the root");
    assert_clean(&volume);
}

#[test]
fn holes_cuts_and_reserved_space_read_as_zeros() {
    let mut fixture = Fixture::new();
    let volume = fixture.open();
    let ino = file(&volume, b"a");
    volume.write(ino, 1 << 40, b"far", false, false).unwrap();
    assert_eq!(volume.seek(ino, 0, SeekTo::Data).unwrap(), 1 << 40);
    assert_eq!(
        volume.seek(ino, 1 << 40, SeekTo::Hole).unwrap(),
        (1 << 40) + 3
    );
    let cut = SetAttr {
        size: Some((1 << 40) + 1),
        ..SetAttr::default()
    };
    volume.setattr(Caller::ROOT, ino, &cut).unwrap();
    let grow = SetAttr {
        size: Some((1 << 40) + 3),
        ..SetAttr::default()
    };
    volume.setattr(Caller::ROOT, ino, &grow).unwrap();
    assert_eq!(volume.read(ino, 1 << 40, 10).unwrap(), b"f\0\0");
    volume
        .fallocate(
            Caller::ROOT,
            ino,
            0,
            10_000,
            FallocateMode::Allocate { keep_size: true },
        )
        .unwrap();
    assert_eq!(volume.getattr(ino).unwrap().allocated_bytes, 12288);
    assert_eq!(volume.read(ino, 0, 3).unwrap(), vec![0; 3]);
    volume
        .fallocate(Caller::ROOT, ino, 0, 1 << 41, FallocateMode::PunchHole)
        .unwrap();
    assert_eq!(volume.getattr(ino).unwrap().allocated_bytes, 0);
    assert_clean(&volume);
}

#[test]
fn a_full_volume_refuses_growth_and_takes_it_again_after_a_deletion() {
    let mut fixture = Fixture::new();
    let volume = fixture.open();
    let (one, other) = (file(&volume, b"one"), file(&volume, b"other"));
    for mib in 0..60 {
        volume
            .write(one, mib << 20, &[1; 1 << 20], false, false)
            .unwrap();
    }
    volume.write(other, 0, &[1; 1 << 20], false, false).unwrap();
    let full = (0..8).find_map(|mib| {
        volume
            .write(other, (1 + mib) << 20, &[2; 1 << 20], false, false)
            .err()
    });
    assert!(matches!(full, Some(FsError::NoSpace)));
    volume
        .write(other, 0, &[3; 4096], false, false)
        .expect("in place is no growth");
    volume.unlink(Ino::ROOT, b"one").unwrap();
    volume.reclaim(one).unwrap();
    volume
        .write(other, 9 << 20, &[2; 1 << 20], false, false)
        .unwrap();
    volume.sync().expect("a full volume is not a failed one");
    assert_clean(&volume);
}

#[test]
fn names_and_attributes_count_and_give_their_space_back() {
    let mut fixture = Fixture::with(VolumeSettings {
        size_bytes: (1 << 20) + 512,
        ..settings()
    });
    let volume = fixture.open();
    let create = |n: u64| {
        let name = n.to_string();
        volume.mknod(
            Caller::ROOT,
            Ino::ROOT,
            name.as_bytes(),
            libc::S_IFREG | 0o644,
            0,
        )
    };
    let fill = || {
        let mut full = false;
        let made = (0..2000).filter(|n| match create(*n) {
            Ok(_) => true,
            Err(FsError::Exists) => false,
            Err(FsError::NoSpace) => {
                full = true;
                false
            }
            Err(error) => panic!("{error}"),
        });
        let made = made.count();
        assert!(full, "files without bytes are free");
        made
    };
    let room = volume.statfs().unwrap().inodes_free;
    assert_eq!(fill() as u64, room, "as many as statfs says");
    let full = volume.statfs().unwrap();
    assert_eq!((full.inodes_free, full.inodes), (0, room + 1));
    let ino = volume.lookup(Ino::ROOT, b"0").unwrap().ino;
    let refused = |result: Result<(), FsError>| assert!(matches!(result, Err(FsError::NoSpace)));
    refused(volume.link(ino, Ino::ROOT, b"link").map(|_| ()));
    let set = |value: &[u8]| volume.setxattr(Caller::ROOT, ino, b"user.a", value, XattrMode::Set);
    refused(set(&[1; 600]));
    volume
        .rename(
            Caller::ROOT,
            Ino::ROOT,
            b"0",
            Ino::ROOT,
            b"a longer name",
            RenameMode::Replace,
        )
        .expect("no more than before");
    for n in 1..=200 {
        let name = n.to_string();
        volume
            .unlink(Ino::ROOT, name.as_bytes())
            .expect("deleting always works");
    }
    assert_eq!(volume.reclaim_orphans(), 200);
    set(&[1; 60_000]).expect("there is room now");
    assert_clean(&volume);
    let used = volume.statfs().unwrap().used_bytes;
    volume.crash();
    let volume = fixture.open();
    assert_eq!(volume.statfs().unwrap().used_bytes, used);
    volume.removexattr(Caller::ROOT, ino, b"user.a").unwrap();
    assert_eq!(volume.statfs().unwrap().used_bytes, used - 60_416);
    assert_clean(&volume);
}

#[test]
fn directories_do_not_move_below_themselves_and_parents_are_counted() {
    let mut fixture = Fixture::new();
    let volume = fixture.open();
    let dir = |parent, name| volume.mkdir(Caller::ROOT, parent, name, 0o755).unwrap().ino;
    let a = dir(Ino::ROOT, b"a");
    let b = dir(a, b"b");
    let into = |mode| volume.rename(Caller::ROOT, Ino::ROOT, b"a", b, b"c", mode);
    assert!(matches!(into(RenameMode::Replace), Err(FsError::Invalid)));
    assert!(matches!(into(RenameMode::Exchange), Err(FsError::NotFound)));
    volume
        .rename(Caller::ROOT, a, b"b", Ino::ROOT, b"b", RenameMode::Replace)
        .unwrap();
    assert_eq!(volume.getattr(a).unwrap().nlink, 2);
    assert_eq!(volume.getattr(Ino::ROOT).unwrap().nlink, 4);
    assert_eq!(volume.lookup(b, b"..").unwrap().ino, Ino::ROOT);
    assert_clean(&volume);
}

#[test]
fn an_epoch_that_was_used_is_refused() {
    let mut fixture = Fixture::new();
    drop(fixture.open());
    let path = fixture.dir.path().join("v");
    let again = Volume::open(&path, &identity(), &settings(), Epoch(fixture.epoch));
    assert!(matches!(again, Err(FsError::Refused(_))));
}

#[test]
fn what_was_replayed_counts_until_it_is_flushed() {
    let mut fixture = Fixture::new();
    let buffer = fixture.settings.state_buffer_bytes;
    let mut volume = fixture.open();
    let ino = file(&volume, b"a");
    // Each life writes less than a buffer, and is killed.
    for life in 0..6 {
        volume.inner.stop_chores();
        for n in 0..buffer / 2 / 8192 {
            volume
                .write(ino, n * 8192, &[life; 8192], false, false)
                .unwrap();
        }
        let unflushed = volume.inner.core().unflushed.bytes;
        assert!(unflushed <= 3 * buffer, "life {life}: {unflushed}");
        volume.crash();
        volume = fixture.open();
    }
    assert_clean(&volume);
}

#[test]
fn a_full_volume_says_so_also_while_others_delete() {
    let mut fixture = Fixture::with(VolumeSettings {
        size_bytes: 1 << 20,
        ..settings()
    });
    let volume = fixture.open();
    for n in 0..100 {
        file(&volume, format!("t{n}").as_bytes());
    }
    let ino = file(&volume, b"a");
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Nobody reclaims them: they stay orphans, and each makes the wait begin anew.
            for n in 0..100 {
                volume
                    .unlink(Ino::ROOT, format!("t{n}").as_bytes())
                    .unwrap();
                std::thread::park_timeout(std::time::Duration::from_millis(100));
                if ended.load(Ordering::Acquire) {
                    return;
                }
            }
            panic!("write(2) waits for as long as somebody deletes something");
        });
        let written = volume.write(ino, 0, &vec![1; 2 << 20], false, false);
        ended.store(true, Ordering::Release);
        assert!(matches!(written, Err(FsError::NoSpace)));
    });
}

#[test]
fn a_store_whose_directory_was_replaced_is_not_written_to() {
    let mut fixture = Fixture::new();
    let volume = fixture.open();
    let ino = file(&volume, b"a");
    volume.write(ino, 0, &[1; 300_000], false, false).unwrap();
    volume.check_place().unwrap();
    volume.close().unwrap();
    drop(volume);
    let path = fixture.dir.path().join("v");
    let (copy, newer) = (path.with_file_name("copy"), path.with_file_name("newer"));
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&path, &copy])
        .status();
    assert!(copied.unwrap().success());

    let volume = fixture.open();
    volume.write(ino, 0, &[2; 300_000], false, false).unwrap();
    volume.sync().unwrap();
    std::fs::rename(&path, &newer).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    let list = || {
        let files = std::fs::read_dir(path.join("state")).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = list();
    assert!(matches!(volume.check_place(), Err(FsError::Refused(_))));
    assert!(volume.close().is_err());
    drop(volume);
    assert_eq!(list(), before, "nothing was written beside the older state");

    // Where it lies now: RocksDB holds the old path's lock for as long as this process lives.
    let volume = Volume::open(&newer, &identity(), &settings(), Epoch(100)).unwrap();
    assert_eq!(volume.read(ino, 0, 300_000).unwrap(), vec![2; 300_000]);
    assert_clean(&volume);
}

/// hafsd aborts when a thread panics. Here whoever ends the volume has to meet it, or a suite would pass over it.
#[test]
fn a_panic_of_a_thread_of_the_volume_comes_out_when_the_volume_ends() {
    let ends: [fn(Volume); 3] = [
        |volume| volume.close().unwrap(),
        |volume| volume.crash(),
        |volume| drop(volume),
    ];
    for end in ends {
        let mut fixture = Fixture::new();
        let volume = fixture.open();
        file(&volume, b"a");
        let thread = std::thread::spawn(|| panic!("books do not balance"));
        volume.threads.lock().push(thread);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| end(volume)));
        let panic = ended.unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"books do not balance"));
        // Nobody holds the store any more.
        assert_clean(&fixture.open());
    }
}

/// The three that a volume has are among those.
#[test]
fn all_threads_of_a_volume_are_waited_for() {
    let mut fixture = Fixture::new();
    let volume = fixture.open();
    let threads = volume.threads.lock();
    let mut names: Vec<_> = threads
        .iter()
        .map(|it| it.thread().name().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["hafs-collect", "hafs-commit", "hafs-keep"]);
}
