//! What a volume counts while it is open: requests, bytes, syncs, the collector's work.
//!
//! [`fuse`](crate::fuse) counts requests, the volume's threads what they do; [`Volume::metrics`](crate::Volume::metrics)
//! hands out a [`VolumeMetrics`], a plain value that hafsd turns into Prometheus's text. Counters begin at 0 when the volume
//! is opened and only grow. Nothing here waits or allocates on the way of a request that succeeds: a request costs two looks
//! at the clock and three additions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fuser::Errno;
use parking_lot::Mutex;

/// Requests that are counted by name, sorted. One that is not here counts as the last.
pub(crate) const OPS: [&str; 27] = [
    "copy_file_range",
    "create",
    "fallocate",
    "fsync",
    "fsyncdir",
    "getattr",
    "getxattr",
    "link",
    "listxattr",
    "lookup",
    "lseek",
    "mkdir",
    "mknod",
    "other",
    "read",
    "readdir",
    "readdirplus",
    "readlink",
    "removexattr",
    "rename",
    "rmdir",
    "setattr",
    "setxattr",
    "statfs",
    "symlink",
    "unlink",
    "write",
];

/// Upper bounds of a histogram's buckets, nanoseconds: half decades from 10 µs, below which a FUSE request does not come, to
/// 10 s, above which an application has given up. One bucket more holds the rest.
pub const BUCKET_NANOS: [u64; 13] = [
    10_000,
    30_000,
    100_000,
    300_000,
    1_000_000,
    3_000_000,
    10_000_000,
    30_000_000,
    100_000_000,
    300_000_000,
    1_000_000_000,
    3_000_000_000,
    10_000_000_000,
];
const BUCKETS: usize = BUCKET_NANOS.len() + 1;

/// How often something took how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How often it took at most [`BUCKET_NANOS`] of the same place, and longer than the place before; the last: longer than
    /// all of them.
    pub counts: [u64; BUCKETS],
    /// How long all of them took together, nanoseconds.
    pub sum_nanos: u64,
}

impl Durations {
    /// How often it happened.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// A kind of request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpMetrics {
    /// Its name, as in FUSE.
    pub op: &'static str,
    /// From its arrival here to its answer.
    pub durations: Durations,
}

/// What a volume counted since it was opened, and what it takes on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMetrics {
    /// Requests, of kinds that came at least once.
    pub ops: Vec<OpMetrics>,
    /// Refusals by kind of request and errno.
    pub errors: Vec<(&'static str, i32, u64)>,
    /// Bytes that reads were answered with. What the kernel has in its cache it does not ask for.
    pub read_bytes: u64,
    /// Bytes that writes brought.
    pub written_bytes: u64,
    /// Syncs of log and segments; many fsyncs share one.
    pub syncs: Durations,
    /// Rounds of the collector.
    pub collector_rounds: u64,
    /// Bytes of live chunks that the collector moved.
    pub collector_moved_bytes: u64,
    /// Bytes that the collector gave back to the disk.
    pub collector_freed_bytes: u64,
    /// How long the opening took, replay of the log included.
    pub recovery: Duration,
    /// Records that were replayed.
    pub recovery_records: u64,
    /// What the state (RocksDB) takes on the disk, bytes.
    pub state_bytes: u64,
    /// What is kept free on the disk, bytes.
    pub reserve_bytes: u64,
}

/// The counters behind [`VolumeMetrics`].
#[derive(Debug)]
pub(crate) struct Metrics {
    ops: [Histogram; OPS.len()],
    /// Errors are rare beside requests, and a lock that nobody holds costs little.
    errors: Mutex<BTreeMap<(&'static str, i32), u64>>,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    syncs: Histogram,
    collector_rounds: AtomicU64,
    collector_moved_bytes: AtomicU64,
    collector_freed_bytes: AtomicU64,
    recovery: Duration,
    recovery_records: u64,
}

#[derive(Debug, Default)]
struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum_nanos: AtomicU64,
}

/// A request that is being answered; dropped, it counts.
#[derive(Debug)]
pub(crate) struct Timed {
    metrics: Arc<Metrics>,
    op: &'static str,
    since: Instant,
}

impl Metrics {
    /// Counters of a volume whose opening took so long.
    pub(crate) fn new(recovery: Duration, recovery_records: u64) -> Self {
        Self {
            ops: std::array::from_fn(|_| Histogram::default()),
            errors: Mutex::default(),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            syncs: Histogram::default(),
            collector_rounds: AtomicU64::new(0),
            collector_moved_bytes: AtomicU64::new(0),
            collector_freed_bytes: AtomicU64::new(0),
            recovery,
            recovery_records,
        }
    }

    /// A request begins.
    pub(crate) fn begin(self: &Arc<Self>, op: &'static str) -> Timed {
        Timed {
            metrics: Arc::clone(self),
            op,
            since: Instant::now(),
        }
    }

    /// A request was answered with an error.
    pub(crate) fn refused(&self, op: &'static str, errno: Errno) {
        *self.errors.lock().entry((op, errno.code())).or_default() += 1;
    }

    pub(crate) fn read(&self, bytes: usize) {
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn written(&self, bytes: u32) {
        self.written_bytes
            .fetch_add(bytes.into(), Ordering::Relaxed);
    }

    pub(crate) fn synced(&self, took: Duration) {
        self.syncs.add(took);
    }

    pub(crate) fn collector_round(&self) {
        self.collector_rounds.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn collector_moved(&self, bytes: u64) {
        self.collector_moved_bytes
            .fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn collector_freed(&self, bytes: u64) {
        self.collector_freed_bytes
            .fetch_add(bytes, Ordering::Relaxed);
    }

    /// All of it at about one moment.
    pub(crate) fn snapshot(&self, state_bytes: u64, reserve_bytes: u64) -> VolumeMetrics {
        let ops = OPS.iter().zip(&self.ops).map(|(op, histogram)| OpMetrics {
            op,
            durations: histogram.durations(),
        });
        let errors = self.errors.lock();
        VolumeMetrics {
            ops: ops.filter(|op| op.durations.count() > 0).collect(),
            errors: errors
                .iter()
                .map(|((op, errno), count)| (*op, *errno, *count))
                .collect(),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            syncs: self.syncs.durations(),
            collector_rounds: self.collector_rounds.load(Ordering::Relaxed),
            collector_moved_bytes: self.collector_moved_bytes.load(Ordering::Relaxed),
            collector_freed_bytes: self.collector_freed_bytes.load(Ordering::Relaxed),
            recovery: self.recovery,
            recovery_records: self.recovery_records,
            state_bytes,
            reserve_bytes,
        }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let known = OPS.binary_search(&self.op);
        let other = || OPS.binary_search(&"other").expect("it is in the table");
        self.metrics.ops[known.unwrap_or_else(|_| other())].add(self.since.elapsed());
    }
}

impl Histogram {
    fn add(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKET_NANOS.partition_point(|bound| *bound < nanos);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    fn durations(&self) -> Durations {
        Durations {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed)),
            sum_nanos: self.sum_nanos.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_that_fuse_names_is_counted_by_its_name() {
        assert!(OPS.is_sorted());
        let fuse = include_str!("fuse.rs");
        let constants = fuse
            .split("const OP: &str = \"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next());
        let direct = fuse
            .split("self.sync(\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next());
        let mut named: Vec<&str> = constants.chain(direct).collect();
        named.push("other");
        named.sort_unstable();
        named.dedup();
        assert_eq!(named, OPS, "a request is counted as `other`, or never");
    }

    #[test]
    fn a_request_lands_in_its_bucket_and_an_error_beside_it() {
        let metrics = Arc::new(Metrics::new(Duration::ZERO, 0));
        drop(metrics.begin("read"));
        metrics.refused("read", Errno::EIO);
        let histogram = Histogram::default();
        histogram.add(Duration::from_micros(10));
        histogram.add(Duration::from_micros(11));
        histogram.add(Duration::from_secs(11));
        let durations = histogram.durations();
        assert_eq!(
            (
                durations.counts[0],
                durations.counts[1],
                durations.counts[13]
            ),
            (1, 1, 1),
            "a bound belongs to its bucket"
        );
        assert_eq!(durations.sum_nanos, 11_000_021_000);

        let snapshot = metrics.snapshot(1, 2);
        assert_eq!(snapshot.ops.len(), 1, "only what came");
        assert_eq!(
            (snapshot.ops[0].op, snapshot.ops[0].durations.count()),
            ("read", 1)
        );
        assert_eq!(snapshot.errors, [("read", libc::EIO, 1)]);
    }
}
