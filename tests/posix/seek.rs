//! `SEEK_DATA` and `SEEK_HOLE` while the newest bytes lie in the kernel's cache only.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hafs_tests::{requirement, run};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

use crate::Mounted;
use crate::memory::Map;
use crate::user::on_hafs_and_ext4;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Of the shared file, and how often each writes.
const WRITERS: u64 = 6;
const ROUNDS: u64 = 300;

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).expect("a file of the test")
}

/// Where the file has data, as a copying program finds it.
fn data(file: &File) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return found,
            start => {
                let start = start.expect("lseek");
                at = seek(file, SeekFrom::Hole(start)).expect("a hole ends each file");
                assert!(at > start, "data without a byte at {start}");
                found.push((start, at));
            }
        }
    }
}

/// False if the kernel takes all of a file on hafs for data: it never asks hafsd (before Linux 6.16).
fn holes_are_told() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_str().expect("ASCII");
    let mut numbers = release.split(['.', '-']).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        panic!("the kernel's release is {release}");
    };
    (major, minor) >= (6_u32, 16_u32)
}

/// Stores `byte` at `offset` of `file` through a shared mapping. The kernel writes it back at the mapping's end: until then it
/// is in its cache alone.
fn store_mapped(file: &File, offset: u64, byte: u8) -> Map {
    let map = Map::shared(file, offset / PAGE * PAGE);
    map.set(usize::try_from(offset % PAGE).expect("below a page"), byte);
    map
}

#[test]
fn dirty_bytes_are_data_and_the_rest_is_holes() {
    if !requirement::mounts_work("SEEK_HOLE and SEEK_DATA") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        for place in on_hafs_and_ext4(&mounted).iter() {
            let exact = holes_are_told() || !place.starts_with(mounted.mount.path());
            let file = open(&place.join("sparse"));
            let has_data = |at: &[(u64, u64)], what: &str| {
                let all = [(0, file.metadata().unwrap().len())];
                let expected = if exact { at } else { &all };
                assert_eq!(data(&file), expected, "{place:?}: {what}");
            };
            assert_eq!(data(&file), []);
            assert_eq!(seek(&file, SeekFrom::Hole(0)), Err(Errno::NXIO));
            file.set_len(64 * MIB).unwrap();
            has_data(&[], "grown");
            let hole = if exact { 5 } else { 64 * MIB };
            assert_eq!(seek(&file, SeekFrom::Hole(5)), Ok(hole));
            file.write_all_at(&[1; 8192], 20 * MIB).unwrap();
            let mut expected = vec![(20 * MIB, 20 * MIB + 8192)];
            has_data(&expected, "written, not yet written back");
            let map = store_mapped(&file, 5 * MIB, 1);
            expected.insert(0, (5 * MIB, 5 * MIB + PAGE));
            has_data(&expected, "stored through a mapping");
            file.write_all_at(&[2; 4096], 80 * MIB).unwrap();
            expected.push((80 * MIB, 80 * MIB + PAGE));
            has_data(&expected, "past the end");
            assert_eq!(seek(&file, SeekFrom::Hole(80 * MIB)), Ok(80 * MIB + PAGE));
            assert_eq!(
                seek(&file, SeekFrom::Data(80 * MIB + PAGE)),
                Err(Errno::NXIO)
            );
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, punch, 20 * MIB, 4096).unwrap();
            expected[1].0 += PAGE;
            has_data(&expected, "punched");
            file.set_len(10 * MIB).unwrap();
            has_data(&expected[..1], "cut");
            file.sync_all().unwrap();
            has_data(&expected[..1], "synced");
            drop(map);
        }
        mounted.end();
    }
}

#[test]
fn a_sparse_copy_of_a_file_that_is_being_written_is_whole() {
    if !requirement::mounts_work("sparse copies") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let at = |name: &str| mounted.mount.join(name);
        let file = open(&at("image"));
        file.set_len(256 * MIB).unwrap();
        for number in 0..200 {
            file.write_all_at(
                &[1 + u8::try_from(number).unwrap(); 5000],
                number * MIB + number * 777,
            )
            .unwrap();
        }
        let maps: Vec<Map> = (0..20)
            .map(|number| store_mapped(&file, number * 10 * MIB + 512 * 1024, 7))
            .collect();
        // A close writes the file back, also that of a descriptor that cp does not inherit.
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let copy = ["--sparse=always", "--reflink=never"];
        run(Command::new("cp")
            .args(copy)
            .arg(at("image"))
            .arg(at("copy")))
        .ok();
        run(Command::new("cmp").arg(at("image")).arg(at("copy"))).ok();
        let blocks = fs::metadata(at("copy")).unwrap().blocks();
        assert!(blocks * 512 < 8 * MIB, "the copy holds {blocks} blocks");
        drop((file, maps));
        mounted.end();
    }
}

/// Each writer asks for what it has just written, while others write, map, sync and cut files beside it: an answer that
/// overlooks a dirty page, or never comes, fails here.
#[test]
fn a_writer_always_finds_its_bytes() {
    if !requirement::mounts_work("lseek under load") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let shared = open(&mounted.mount.join("shared"));
        shared.set_len(WRITERS * ROUNDS * 2 * PAGE).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let syncer = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    shared.sync_data().unwrap();
                    data(&shared);
                }
            });
            let (mounted, shared) = (&mounted, &shared);
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| scope.spawn(move || write_and_look(mounted, shared, writer)))
                .collect();
            let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
            done.store(true, Ordering::Relaxed);
            syncer.join().unwrap();
            ended.into_iter().for_each(|writer| writer.unwrap());
        });
        if holes_are_told() {
            let expected = (0..WRITERS * ROUNDS).map(|page| page * 2 * PAGE);
            let found = data(&shared).into_iter().map(|(start, _)| start);
            assert!(found.eq(expected), "some page that was written is no data");
        } else {
            assert_eq!(data(&shared), [(0, WRITERS * ROUNDS * 2 * PAGE)]);
        }
        drop(shared);
        mounted.end();
    }
}

/// What one of the writers does: every other page of the shared file, and a file of its own.
fn write_and_look(mounted: &Mounted, shared: &File, writer: u64) {
    let own = open(&mounted.mount.join(&format!("own-{writer}")));
    for round in 0..ROUNDS {
        // Every other page, so that each answer rests on a hole.
        let page = (round * WRITERS + writer) * 2 * PAGE;
        let map = (round % 2 == 1).then(|| store_mapped(shared, page, 7));
        if map.is_none() {
            shared.write_all_at(&[7; 100], page).expect("room");
        }
        assert_eq!(seek(shared, SeekFrom::Data(page)), Ok(page));
        drop(map);
        let bytes = [u8::try_from(round % 251).expect("below 251"); 9000];
        own.write_all_at(&bytes, round * 5 * PAGE).expect("room");
        let hole = seek(&own, SeekFrom::Hole(round * 5 * PAGE)).expect("a hole ends each file");
        assert_eq!(hole, round * 5 * PAGE + 9000);
        if round % 50 == 49 {
            own.set_len(0).expect("it is open for writing");
            assert_eq!(seek(&own, SeekFrom::Data(0)), Err(Errno::NXIO));
        }
    }
}
