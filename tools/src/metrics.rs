//! What hafsd tells Prometheus: every metric with its unit and meaning in one table, and the text that a scrape gets.
//!
//! The control server calls [`encode`] for `GET /metrics` with what [`Node::scrape`](crate::node::Node::scrape) found;
//! nothing is kept between scrapes, and a volume's counters are its own ([`hafs_fs::metrics`]). `docs/metrics.md` lists the
//! same for users; a test compares the two. The form is OpenMetrics 1.0, which Prometheus reads since version 2.5.
//!
//! A volume that is not open has few metrics: better none than a 0 that means nothing.

use std::fmt;

use hafs_fs::metrics::{BUCKET_NANOS, Durations, VolumeMetrics};
use hafs_fs::{StatFs, VolumeStatus};
use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::control::api::{Disk, VolumeState};

/// What `GET /metrics` answers with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const NANOS_PER_SECOND: f64 = 1e9;

/// A node at the moment of a scrape.
#[derive(Debug)]
pub struct Scrape {
    /// When hafsd started.
    pub started: Timestamp,
    /// Volumes are open, or known to have failed.
    pub ready: bool,
    /// The disk under its data, if it answers.
    pub disk: Option<Disk>,
    /// All volumes.
    pub volumes: Vec<VolumeScrape>,
}

/// A volume at the moment of a scrape.
#[derive(Debug)]
pub struct VolumeScrape {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: VolumeState,
    /// Its quota.
    pub size_bytes: u64,
    /// Where it is mounted, binds too.
    pub mounts: u64,
    /// What is known of it while its store is open.
    pub open: Option<OpenScrape>,
}

/// What an open store tells.
#[derive(Debug)]
pub struct OpenScrape {
    /// Where it stands.
    pub status: VolumeStatus,
    /// Its sizes, if the disk answers.
    pub sizes: Option<StatFs>,
    /// What it counted, if the disk answers.
    pub counted: Option<VolumeMetrics>,
}

/// A metric as the table has it.
struct Metric {
    /// Without prefix and unit.
    name: &'static str,
    unit: Option<Unit>,
    help: &'static str,
    values: Values,
}

/// Where its values come from.
enum Values {
    /// Facts in labels, with the value 1.
    Info(fn() -> Labels),
    /// Of the node.
    Node(fn(&Scrape) -> Option<f64>),
    /// Of each volume, open or not.
    Volume(fn(&VolumeScrape) -> f64),
    /// Of each open volume.
    Open(fn(&OpenScrape) -> Option<f64>),
    /// Of each open volume, only growing.
    Counter(fn(&VolumeMetrics) -> u64),
    /// Times of each open volume, by further labels.
    Times(fn(&VolumeMetrics) -> Vec<(Labels, Durations)>),
    /// Counts of each open volume, by further labels.
    Counters(fn(&VolumeMetrics) -> Vec<(Labels, u64)>),
    /// Volumes by state.
    States,
}

type Labels = Vec<(&'static str, String)>;

/// Every state, so that one that nobody is in is 0 and not missing.
const STATES: [VolumeState; 4] = [
    VolumeState::Opening,
    VolumeState::Open,
    VolumeState::Failed,
    VolumeState::Deleting,
];

/// All of them, each family once.
fn table() -> Vec<Metric> {
    let metric = |name, unit, help, values| Metric {
        name,
        unit,
        help,
        values,
    };
    let bytes = || Some(Unit::Bytes);
    let seconds = || Some(Unit::Seconds);
    vec![
        metric(
            "build",
            None,
            "The version of hafsd",
            Values::Info(|| vec![("version", env!("CARGO_PKG_VERSION").to_owned())]),
        ),
        metric(
            "start_time",
            seconds(),
            "When hafsd started, seconds since 1970",
            Values::Node(|node| Some(node.started.as_duration().as_secs_f64())),
        ),
        metric(
            "ready",
            None,
            "1 once every volume is open or known to have failed",
            Values::Node(|node| Some(flag(node.ready))),
        ),
        metric(
            "disk_size",
            bytes(),
            "The filesystem under the data directory",
            Values::Node(|node| node.disk.map(|disk| float(disk.size_bytes))),
        ),
        metric(
            "disk_available",
            bytes(),
            "What is free on it, the reserve included",
            Values::Node(|node| node.disk.map(|disk| float(disk.available_bytes))),
        ),
        metric("volumes", None, "Volumes by state", Values::States),
        metric(
            "volume_size",
            bytes(),
            "The volume's quota",
            Values::Volume(|volume| float(volume.size_bytes)),
        ),
        metric(
            "volume_mounts",
            None,
            "Where the volume is mounted on this node, binds included",
            Values::Volume(|volume| float(volume.mounts)),
        ),
        metric(
            "volume_failed",
            None,
            "1 if the store failed: every change and fsync is refused until it is opened again",
            Values::Volume(|volume| flag(volume.state == VolumeState::Failed)),
        ),
        metric(
            "volume_used",
            bytes(),
            "What files hold, of the quota",
            Values::Open(|open| Some(float(open.status.used_bytes))),
        ),
        metric(
            "volume_available",
            bytes(),
            "What can still be written: the quota's rest, or the disk's above its reserve if that is less",
            Values::Open(|open| open.sizes.map(|sizes| float(sizes.available_bytes))),
        ),
        metric(
            "volume_reserve",
            bytes(),
            "What is kept free on the disk for unlink and the collector",
            Values::Open(|open| {
                open.counted
                    .as_ref()
                    .map(|counted| float(counted.reserve_bytes))
            }),
        ),
        metric(
            "volume_inodes",
            None,
            "Inodes in use",
            Values::Open(|open| Some(float(open.status.inodes))),
        ),
        metric(
            "volume_orphans",
            None,
            "Unlinked files that are perhaps still open",
            Values::Open(|open| Some(float(open.status.orphans))),
        ),
        metric(
            "volume_log",
            bytes(),
            "What the log takes on the disk",
            Values::Open(|open| Some(float(open.status.log_bytes))),
        ),
        metric(
            "volume_segment",
            bytes(),
            "What the segments take on the disk",
            Values::Open(|open| Some(float(open.status.segment_bytes))),
        ),
        metric(
            "volume_segment_dead",
            bytes(),
            "How much of that nothing names any more",
            Values::Open(|open| {
                let status = &open.status;
                Some(float(
                    status
                        .segment_bytes
                        .saturating_sub(status.segment_live_bytes),
                ))
            }),
        ),
        metric(
            "volume_state",
            bytes(),
            "What the state (RocksDB) takes on the disk",
            Values::Open(|open| {
                open.counted
                    .as_ref()
                    .map(|counted| float(counted.state_bytes))
            }),
        ),
        metric(
            "volume_epoch",
            None,
            "The reign that writes",
            Values::Open(|open| Some(f64::from(open.status.epoch.0))),
        ),
        metric(
            "volume_head_lsn",
            None,
            "Newest record",
            Values::Open(|open| Some(float(open.status.head.0))),
        ),
        metric(
            "volume_durable_lsn",
            None,
            "Newest record that is on the disk for certain",
            Values::Open(|open| Some(float(open.status.durable.0))),
        ),
        metric(
            "volume_recovery_duration",
            seconds(),
            "How long the last opening took, replay of the log included",
            Values::Open(|open| {
                open.counted
                    .as_ref()
                    .map(|counted| counted.recovery.as_secs_f64())
            }),
        ),
        metric(
            "volume_recovery_records",
            None,
            "Records that it replayed",
            Values::Open(|open| {
                open.counted
                    .as_ref()
                    .map(|counted| float(counted.recovery_records))
            }),
        ),
        metric(
            "volume_request_duration",
            seconds(),
            "Requests of the kernel by kind, from arrival to answer",
            Values::Times(|counted| {
                let ops = counted.ops.iter();
                ops.map(|op| (vec![("op", op.op.to_owned())], op.durations))
                    .collect()
            }),
        ),
        metric(
            "volume_request_errors",
            None,
            "Requests that were answered with an error, by kind and errno",
            Values::Counters(|counted| {
                let errors = counted.errors.iter();
                errors
                    .map(|&(op, errno, count)| {
                        (
                            vec![("op", op.to_owned()), ("errno", errno_name(errno))],
                            count,
                        )
                    })
                    .collect()
            }),
        ),
        metric(
            "volume_read",
            bytes(),
            "Bytes that read requests were answered with; the kernel's cache answers others",
            Values::Counter(|counted| counted.read_bytes),
        ),
        metric(
            "volume_written",
            bytes(),
            "Bytes that write requests brought",
            Values::Counter(|counted| counted.written_bytes),
        ),
        metric(
            "volume_sync_duration",
            seconds(),
            "Syncs of log and segments; many fsyncs share one",
            Values::Times(|counted| vec![(Vec::new(), counted.syncs)]),
        ),
        metric(
            "volume_collector_rounds",
            None,
            "Rounds of the collector",
            Values::Counter(|counted| counted.collector_rounds),
        ),
        metric(
            "volume_collector_moved",
            bytes(),
            "Live bytes that the collector moved",
            Values::Counter(|counted| counted.collector_moved_bytes),
        ),
        metric(
            "volume_collector_freed",
            bytes(),
            "Bytes that the collector gave back to the disk",
            Values::Counter(|counted| counted.collector_freed_bytes),
        ),
    ]
}

/// The text for a scrape.
///
/// # Panics
/// Never: a string takes all that is written to it.
pub fn encode(scrape: Scrape) -> String {
    let mut registry = Registry::with_prefix("hafs");
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("a string takes all");
    text
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in table() {
            let kind = metric.values.kind();
            let family =
                encoder.encode_descriptor(metric.name, metric.help, metric.unit.as_ref(), kind)?;
            metric.values.encode(self, family)?;
        }
        Ok(())
    }
}

impl Values {
    fn kind(&self) -> MetricType {
        match self {
            Self::Info(_) => MetricType::Info,
            Self::Node(_) | Self::Volume(_) | Self::Open(_) | Self::States => MetricType::Gauge,
            Self::Counter(_) | Self::Counters(_) => MetricType::Counter,
            Self::Times(_) => MetricType::Histogram,
        }
    }

    fn encode(&self, node: &Scrape, mut family: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Info(labels) => family.encode_info(&labels()),
            Self::Node(value) => match value(node) {
                Some(value) => family.encode_gauge(&value),
                None => Ok(()),
            },
            Self::States => STATES.into_iter().try_for_each(|state| {
                let count = node.volumes.iter().filter(|is| is.state == state).count();
                let labels = vec![("state", state.to_string())];
                family
                    .encode_family(&labels)?
                    .encode_gauge(&float(count as u64))
            }),
            Self::Volume(value) => node.volumes.iter().try_for_each(|volume| {
                family
                    .encode_family(&volume.labels())?
                    .encode_gauge(&value(volume))
            }),
            Self::Open(value) => node.volumes.iter().try_for_each(|volume| {
                match volume.open.as_ref().and_then(value) {
                    Some(value) => family.encode_family(&volume.labels())?.encode_gauge(&value),
                    None => Ok(()),
                }
            }),
            Self::Counter(value) => node.counted().try_for_each(|(volume, counted)| {
                let mut one = family.encode_family(&volume)?;
                one.encode_counter::<NoLabelSet, u64, f64>(&value(counted), None)
            }),
            Self::Counters(values) => node.counted().try_for_each(|(volume, counted)| {
                values(counted).into_iter().try_for_each(|(labels, value)| {
                    let labels = joined(&volume, labels);
                    let mut one = family.encode_family(&labels)?;
                    one.encode_counter::<NoLabelSet, u64, f64>(&value, None)
                })
            }),
            Self::Times(values) => node.counted().try_for_each(|(volume, counted)| {
                values(counted).into_iter().try_for_each(|(labels, times)| {
                    encode_times(family.encode_family(&joined(&volume, labels))?, &times)
                })
            }),
        }
    }
}

impl Scrape {
    /// Open volumes by their label.
    fn counted(&self) -> impl Iterator<Item = (Labels, &VolumeMetrics)> {
        self.volumes.iter().filter_map(|volume| {
            let counted = volume.open.as_ref()?.counted.as_ref()?;
            Some((volume.labels(), counted))
        })
    }
}

impl VolumeScrape {
    fn labels(&self) -> Labels {
        vec![("volume", self.name.clone())]
    }
}

fn joined(volume: &Labels, more: Labels) -> Labels {
    volume.iter().cloned().chain(more).collect()
}

fn encode_times(mut one: MetricEncoder<'_>, times: &Durations) -> fmt::Result {
    let bounds = BUCKET_NANOS
        .iter()
        .map(|nanos| float(*nanos) / NANOS_PER_SECOND)
        .chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(times.counts).collect();
    let sum = float(times.sum_nanos) / NANOS_PER_SECOND;
    one.encode_histogram::<NoLabelSet>(sum, times.count(), &buckets, None)
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// Prometheus knows only such numbers; above 2^53 they lose a byte or two.
#[expect(
    clippy::cast_precision_loss,
    reason = "a petabyte is told to the byte, more than that nearly"
)]
fn float(value: u64) -> f64 {
    value as f64
}

/// As errno(3) names it; a number if hafs does not answer with it.
fn errno_name(errno: i32) -> String {
    use rustix::io::Errno;
    let name = match Errno::from_raw_os_error(errno) {
        Errno::NOENT => "ENOENT",
        Errno::STALE => "ESTALE",
        Errno::EXIST => "EEXIST",
        Errno::NOTDIR => "ENOTDIR",
        Errno::ISDIR => "EISDIR",
        Errno::NOTEMPTY => "ENOTEMPTY",
        Errno::NAMETOOLONG => "ENAMETOOLONG",
        Errno::INVAL => "EINVAL",
        Errno::PERM => "EPERM",
        Errno::ACCESS => "EACCES",
        Errno::FBIG => "EFBIG",
        Errno::MLINK => "EMLINK",
        Errno::NOSPC => "ENOSPC",
        Errno::NODATA => "ENODATA",
        Errno::RANGE => "ERANGE",
        Errno::TOOBIG => "E2BIG",
        Errno::NXIO => "ENXIO",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::ROFS => "EROFS",
        Errno::IO => "EIO",
        _ => return errno.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_is_not_open_has_no_numbers_that_mean_nothing() {
        let text = encode(Scrape {
            started: Timestamp::UNIX_EPOCH,
            ready: false,
            disk: None,
            volumes: vec![VolumeScrape {
                name: "pg".to_owned(),
                state: VolumeState::Failed,
                size_bytes: 1 << 30,
                mounts: 0,
                open: None,
            }],
        });
        for line in [
            "hafs_volume_failed{volume=\"pg\"} 1.0",
            "hafs_volumes{state=\"failed\"} 1.0",
            "hafs_volumes{state=\"open\"} 0.0",
            "hafs_volume_size_bytes{volume=\"pg\"} 1073741824.0",
            "# TYPE hafs_volume_used_bytes gauge",
            "# EOF",
        ] {
            assert!(text.lines().any(|is| is == line), "no `{line}` in {text}");
        }
        assert!(!text.contains("hafs_volume_used_bytes{"), "{text}");
    }
}
