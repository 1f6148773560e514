//! Files that are overwritten again and again: what the store takes stays bounded, and returns to what the files hold.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use hafs_tests::{Numbers, requirement};

use crate::usage::Usage;
use crate::{GIB, KIB, LOOK, MIB, Mounted, block_bytes, verify};

/// A file of 1 GiB never makes the store take more.
const STORE_BYTES_MAX: u64 = 5 * GIB / 2;
/// And once nothing happens any more, it takes less.
const STORE_BYTES_IDLE_MAX: u64 = 6 * GIB / 5;
/// Until then, at the latest: a gibibyte may have to be copied, on a slow disk.
const IDLE_LIMIT: Duration = Duration::from_secs(180);
const ROUNDS: u64 = 20;
/// How much is written in pages over 1 GiB: this variable says it in GiB (4 is the longest that proves something new).
const PAGES_VARIABLE: &str = "HAFS_SPACE_PAGES_GIB";

#[track_caller]
fn bounded_then_small(usage: &Usage, what: &str, start: Instant) {
    let (most, looks) = usage.most();
    let took = start.elapsed();
    assert!(looks > 20, "only {looks} looks at the store");
    assert!(
        most < STORE_BYTES_MAX,
        "{what}: the store took {} MiB",
        most / MIB
    );
    let idle = Instant::now();
    let mut now = usage.now();
    while now >= STORE_BYTES_IDLE_MAX {
        assert!(
            idle.elapsed() < IDLE_LIMIT,
            "{what}: at most {} MiB, and idle still {} MiB",
            most / MIB,
            now / MIB
        );
        thread::park_timeout(LOOK);
        now = usage.now();
    }
    eprintln!(
        "{what}: {took:.1?}, at most {} MiB in {looks} looks, {} MiB after {:.1?} idle",
        most / MIB,
        usage.now() / MIB,
        idle.elapsed()
    );
}

#[test]
fn a_file_of_1_gib_overwritten_20_times_takes_less_than_2_5_gib() {
    if !requirement::mounts_work("overwriting a big file") {
        return;
    }
    let mounted = Mounted::new(&["--size", "4GiB"]);
    let usage = Usage::watch(&mounted.daemon.data_dir().join("volumes"));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mounted.mount.join("big"))
        .unwrap();
    let start = Instant::now();
    let mut block = vec![0; usize::try_from(MIB).unwrap()];
    block_bytes(0, 0, &mut block);
    for round in 1..=ROUNDS {
        for at in 0..GIB / MIB {
            // Making a gibibyte of new bytes would take longer than writing it: only the start of each block differs.
            block[..8].copy_from_slice(&at.to_le_bytes());
            block[8..16].copy_from_slice(&round.to_le_bytes());
            file.write_all_at(&block, at * MIB).unwrap();
        }
        file.sync_all().unwrap();
    }
    bounded_then_small(&usage, "20 GiB over 1 GiB", start);
    let mut found = vec![0; block.len()];
    for at in 0..GIB / MIB {
        file.read_exact_at(&mut found, at * MIB).unwrap();
        block[..8].copy_from_slice(&at.to_le_bytes());
        assert!(found == block, "MiB {at} is not what was written last");
    }
    drop((file, usage));
    mounted.end();
}

#[test]
fn a_database_of_1_gib_overwritten_in_16_kib_pages_takes_less_than_2_5_gib() {
    if !requirement::mounts_work("overwriting pages of a big file") {
        return;
    }
    const PAGE: u64 = 16 * KIB;
    let mounted = Mounted::new(&["--size", "4GiB", "--profile", "database"]);
    let usage = Usage::watch(&mounted.daemon.data_dir().join("volumes"));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mounted.mount.join("db"))
        .unwrap();
    let start = Instant::now();
    let mut page = vec![0; usize::try_from(PAGE).unwrap()];
    let mut versions = vec![0; usize::try_from(GIB / PAGE).unwrap()];
    for block in 0..GIB / PAGE {
        block_bytes(block, 0, &mut page);
        file.write_all_at(&page, block * PAGE).unwrap();
    }
    let mut numbers = Numbers::new(1);
    let gib = std::env::var(PAGES_VARIABLE).map_or(1, |gib| gib.parse().unwrap());
    for written in 0..gib * GIB / PAGE {
        let block = numbers.below(GIB / PAGE);
        let version = &mut versions[usize::try_from(block).unwrap()];
        *version += 1;
        block_bytes(block, *version, &mut page);
        file.write_all_at(&page, block * PAGE).unwrap();
        if written % 1024 == 0 {
            file.sync_data().unwrap();
        }
    }
    file.sync_all().unwrap();
    bounded_then_small(&usage, &format!("{gib} GiB of pages over 1 GiB"), start);
    verify(&file, page.len(), &versions);
    drop((file, usage));
    mounted.end();
}
