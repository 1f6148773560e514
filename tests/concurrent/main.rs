//! Many threads on one volume, in this process: what each did alone is exact, what they did together keeps its rules.
//!
//! Some own a directory and know every byte in it; some move the same names about; some overwrite the same pages, or the
//! same file of thousands of fragments, while others read it; and one syncs, collects and checks all the time. Then all stop, everything
//! is compared, the volume crashes (nothing is synced, as at kill -9) or is closed, and is compared again after it has been
//! opened. One thread and one operation at a time is `tests/model`'s.

mod names;
mod owner;
mod stamps;

use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use hafs_fs::{DirEntry, Ino, Profile, Volume, VolumeIdentity, VolumeSettings};
use hafs_protocol::{Epoch, Lineage, NodeId, StoreId, VolumeId};
use hafs_tests::Numbers;
use hafs_tests::numbers::seed;

/// The variable that a seed comes from.
const SEED: &str = "HAFS_CONCURRENT_SEED";

/// Times that all stop and the volume is opened anew.
const GENERATIONS: u64 = 6;

/// Steps of each thread in a generation, at least; at most twice as many.
const STEPS_MIN: u64 = 60;

/// One thread's work and what it knows.
trait Worker: Send + Debug {
    /// Does one thing. Panics if the volume answers what it must not.
    fn step(&mut self, volume: &Volume);

    /// Compares all that it knows, while no other thread runs.
    fn verify(&mut self, volume: &Volume);
}

const IDENTITY: VolumeIdentity = VolumeIdentity {
    volume: VolumeId::from_bytes([1; 16]),
    store: StoreId::from_bytes([2; 16]),
    node: NodeId::from_bytes([3; 16]),
    lineage: Lineage::from_bytes([4; 16]),
};

/// So small that everything rolls, flushes and is collected all the time.
fn settings() -> VolumeSettings {
    VolumeSettings {
        log_file_bytes: 256 << 10,
        log_keep_bytes: 512 << 10,
        segment_bytes: 1 << 20,
        state_buffer_bytes: 64 << 10,
        ..VolumeSettings::new(1 << 30, Profile::Auto)
    }
}

/// A directory's entries after a cookie, so many at most.
fn entries(volume: &Volume, dir: Ino, cookie: u64, count: usize) -> Vec<DirEntry> {
    let mut entries = Vec::new();
    let listed = volume.readdir(dir, cookie, &mut |entry| {
        entries.push(entry);
        entries.len() < count
    });
    listed.expect("readdir");
    entries
}

fn assert_clean(volume: &Volume) {
    let report = volume.check(&mut |_, _| {}).expect("a check");
    assert_eq!(report.problems, vec![]);
}

/// Until all others are done: what the volume does in the background, and what operators ask for meanwhile.
fn disturb(volume: &Volume, mut numbers: Numbers, running: &AtomicUsize) {
    while running.load(Ordering::Acquire) > 0 {
        match numbers.below(9) {
            0..=3 => drop(volume.collect().expect("collect")),
            4 => assert_clean(volume),
            5 => {
                let stat = volume.statfs().expect("statfs");
                assert!(stat.used_bytes <= stat.size_bytes);
            }
            6 => {
                let status = volume.status();
                assert!(status.durable <= status.head && !status.failed);
            }
            _ => volume.sync().expect("sync"),
        }
    }
}

/// Counts a thread out, also when it panics: the one that disturbs would wait for it for ever.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn generation(volume: &Volume, workers: &mut [Box<dyn Worker>], numbers: &mut Numbers) {
    let running = AtomicUsize::new(workers.len());
    thread::scope(|scope| {
        for worker in &mut *workers {
            let (running, steps) = (Running(&running), STEPS_MIN + numbers.below(STEPS_MIN));
            scope.spawn(move || {
                let _running = running;
                for _ in 0..steps {
                    worker.step(volume);
                }
            });
        }
        disturb(volume, Numbers::of(numbers.draw(), &[]), &running);
    });
}

fn verify(volume: &Volume, workers: &mut [Box<dyn Worker>]) {
    for worker in workers {
        worker.verify(volume);
    }
    assert_clean(volume);
}

fn run(seed: u64) {
    let dir = tempfile::Builder::new()
        .prefix("hafs-concurrent-")
        .tempdir()
        .expect("a scratch directory");
    let (store, settings) = (dir.path().join("v"), settings());
    Volume::create(&store, &IDENTITY, &settings, Epoch(1)).expect("create");
    let open = |epoch| {
        Volume::open(&store, &IDENTITY, &settings, Epoch(epoch))
            .unwrap_or_else(|error| panic!("open: {error:?}"))
    };
    let mut numbers = Numbers::of(seed, &[]);
    let mut volume = open(2);
    let mut workers: Vec<Box<dyn Worker>> = Vec::new();
    workers.extend(
        (0..2).map(|number| -> Box<dyn Worker> {
            Box::new(owner::Owner::new(&volume, seed, number))
        }),
    );
    workers.extend(names::movers(&volume, seed, 3));
    workers.extend(stamps::writers(&volume, seed, &stamps::PAGES, 3));
    workers.extend(stamps::writers(&volume, seed, &stamps::FRAGMENTS, 3));
    for epoch in 3..3 + GENERATIONS {
        generation(&volume, &mut workers, &mut numbers);
        verify(&volume, &mut workers);
        let digest = volume.status().digest;
        if numbers.below(3) == 0 {
            volume.close().expect("close");
            drop(volume);
        } else {
            volume.crash();
        }
        // Opening begins an epoch, which changes no row.
        volume = open(u32::try_from(epoch).expect("few"));
        assert_eq!(volume.status().digest, digest);
        verify(&volume, &mut workers);
    }
}

#[test]
fn threads_on_one_volume_from_a_fixed_seed() {
    run(1);
}

#[test]
fn threads_on_one_volume_from_a_new_seed() {
    run(seed(SEED));
}
