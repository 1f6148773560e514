//! What machine and filesystem a result comes from, and how much else was going on there.
//!
//! Figures without this mean nothing on a shared machine. All of it is read from /proc and /sys; what a container or
//! kernel does not show is left out of the line, never guessed. [`drop_caches`] is the one thing that changes the machine.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::usage;

/// The machine in one line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) cpu: Option<String>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) kernel: String,
    pub(crate) filesystem: Filesystem,
    /// What the block device says of its cache: "write back" means that syncs must flush it.
    pub(crate) device_cache: Option<String>,
}

/// The filesystem that a directory lies on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Filesystem {
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) options: String,
}

/// A moment's counters; two of them tell what happened in between.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    at: Instant,
    cpu_own: Duration,
    cpu_all: Option<CpuTicks>,
    load: Option<String>,
}

/// How busy the machine was between two [`Moment`]s.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Noise {
    pub(crate) seconds: f64,
    /// The 1, 5 and 15 minute averages as the kernel shows them.
    pub(crate) load_start: Option<String>,
    pub(crate) load_end: Option<String>,
    /// CPUs that this process kept busy, on average.
    pub(crate) cpus_own: f64,
    /// CPUs kept busy by all else, the kernel's writeback and journal threads for our own writes included.
    pub(crate) cpus_others: Option<f64>,
    /// Per cent of CPU time that the hypervisor gave to other machines.
    pub(crate) steal_percent: Option<f64>,
}

/// Counters of what was written, for the difference of two readings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// Bytes that this process has sent towards the disk, as [`usage::write_bytes`] counts.
    pub(crate) process_bytes: u64,
    /// Bytes the whole block device wrote, everybody's and the journal included.
    pub(crate) device_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuTicks {
    total: u64,
    busy: u64,
    steal: u64,
}

/// /sys/block counts in these, whatever the device's own sectors are.
const SECTOR_BYTES: u64 = 512;

impl Machine {
    /// The machine that runs this, and the filesystem of `dir`.
    pub(crate) fn of(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            cpu: field(Path::new("/proc/cpuinfo"), "model name"),
            memory_bytes: field(Path::new("/proc/meminfo"), "MemTotal")
                .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
                .map(|kib| kib << 10),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            filesystem: Filesystem::of(dir)?,
            device_cache: device(dir).and_then(|sys| {
                let read = |path: &str| fs::read_to_string(sys.join(path)).ok();
                // A partition has its queue one level up.
                let text = read("queue/write_cache").or_else(|| read("../queue/write_cache"))?;
                Some(text.trim().to_owned())
            }),
        })
    }

    /// For the head of a table.
    pub(crate) fn line(&self) -> String {
        let mut parts = vec![format!("{} cores", self.cores)];
        parts.extend(self.cpu.clone());
        parts.extend(
            self.memory_bytes
                .map(|bytes| format!("{} GiB", bytes >> 30)),
        );
        parts.push(format!("Linux {}", self.kernel));
        let Filesystem {
            kind,
            source,
            options,
        } = &self.filesystem;
        parts.push(format!("{kind} ({options}) on {source}"));
        parts.extend(
            self.device_cache
                .as_ref()
                .map(|cache| format!("device cache: {cache}")),
        );
        parts.join(", ")
    }
}

impl Filesystem {
    /// The filesystem that `dir` lies on, by the longest mount point above it.
    pub(crate) fn of(dir: &Path) -> anyhow::Result<Self> {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("cannot use {}", dir.display()))?;
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
        Self::find(&mounts, &dir).ok_or_else(|| anyhow!("no mount holds {}", dir.display()))
    }

    /// Whether nothing of it ever reaches a disk.
    pub(crate) fn in_memory(&self) -> bool {
        matches!(self.kind.as_str(), "tmpfs" | "ramfs" | "devtmpfs")
    }

    fn find(mountinfo: &str, dir: &Path) -> Option<Self> {
        let lines = mountinfo.lines().filter_map(|line| {
            let (place, source) = line.split_once(" - ")?;
            let mut place = place.split(' ').skip(4);
            let point = PathBuf::from(unescape(place.next()?));
            let options = place.next()?.to_owned();
            let mut source = source.split(' ');
            let kind = source.next()?.to_owned();
            let source = unescape(source.next()?);
            dir.starts_with(&point).then(|| {
                (
                    point.components().count(),
                    Self {
                        kind,
                        source,
                        options,
                    },
                )
            })
        });
        // Of equals the last: it was mounted over the others.
        lines
            .max_by_key(|(depth, _)| *depth)
            .map(|(_, filesystem)| filesystem)
    }
}

impl Moment {
    /// Now.
    pub(crate) fn now() -> Self {
        Self {
            at: Instant::now(),
            cpu_own: cpu_time(),
            cpu_all: fs::read_to_string("/proc/stat")
                .ok()
                .and_then(|text| CpuTicks::parse(&text)),
            load: fs::read_to_string("/proc/loadavg").ok().map(|text| {
                let averages: Vec<_> = text.split(' ').take(3).collect();
                averages.join(" ")
            }),
        }
    }

    /// What went on from then until now.
    pub(crate) fn noise_since(self, cores: usize) -> Noise {
        let now = Self::now();
        let seconds = (now.at - self.at).as_secs_f64();
        let cpus_own = (now.cpu_own - self.cpu_own).as_secs_f64() / seconds;
        let shares = self.cpu_all.zip(now.cpu_all).map(|(then, now)| {
            let total = (now.total.saturating_sub(then.total)).max(1) as f64;
            let busy = now.busy.saturating_sub(then.busy) as f64 / total;
            let steal = now.steal.saturating_sub(then.steal) as f64 / total;
            (busy * cores as f64, steal * 100.0)
        });
        Noise {
            seconds,
            load_start: self.load,
            load_end: now.load,
            cpus_own,
            cpus_others: shares.map(|(busy, _)| (busy - cpus_own).max(0.0)),
            steal_percent: shares.map(|(_, steal)| steal),
        }
    }
}

impl Noise {
    /// For the head or the foot of a table.
    pub(crate) fn line(&self) -> String {
        let unknown = || "unknown".to_owned();
        let figure = |value: Option<f64>, digits: usize| {
            value.map_or_else(unknown, |value| format!("{value:.digits$}"))
        };
        format!(
            "{:.0} s; load average at start {}, at end {}; CPUs busy: {:.2} by this program, {} by all else (servers and \
             kernel threads included); steal {} %",
            self.seconds,
            self.load_start.clone().unwrap_or_else(unknown),
            self.load_end.clone().unwrap_or_else(unknown),
            self.cpus_own,
            figure(self.cpus_others, 2),
            figure(self.steal_percent, 1),
        )
    }
}

impl CpuTicks {
    /// From the first line of /proc/stat: user nice system idle iowait irq softirq steal.
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = line
            .split_whitespace()
            .take(8)
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        let &[user, nice, system, idle, iowait, irq, softirq, steal] = ticks.as_slice() else {
            return None;
        };
        let busy = user + nice + system + irq + softirq;
        Some(Self {
            total: busy + idle + iowait + steal,
            busy,
            steal,
        })
    }
}

impl Written {
    /// Counters as of now; `dir` picks the device.
    pub(crate) fn now(dir: &Path) -> anyhow::Result<Self> {
        let process_bytes = usage::write_bytes(rustix::process::getpid())?;
        let device_bytes = device(dir)
            .and_then(|sys| fs::read_to_string(sys.join("stat")).ok())
            .and_then(|stat| stat.split_whitespace().nth(6)?.parse::<u64>().ok())
            .map(|sectors| sectors * SECTOR_BYTES);
        Ok(Self {
            process_bytes,
            device_bytes,
        })
    }

    /// What was written between `earlier` and this reading.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            process_bytes: self.process_bytes.saturating_sub(earlier.process_bytes),
            device_bytes: self
                .device_bytes
                .zip(earlier.device_bytes)
                .map(|(now, then)| now.saturating_sub(then)),
        }
    }
}

/// Writes everything back and drops the kernel's clean pages, names and inodes: the next read comes from the disk.
pub(crate) fn drop_caches() -> anyhow::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop caches (not root?)")
}

/// CPU time of this process, all its threads; the kernel's own threads are not in it.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("CPU time does not run backwards");
    let nanos = u32::try_from(time.tv_nsec).expect("below a second");
    Duration::new(seconds, nanos)
}

/// Where sysfs describes the block device below `dir`: the mount's source, else the directory's own device number.
fn device(dir: &Path) -> Option<PathBuf> {
    let source = Filesystem::of(dir).ok()?.source;
    let number = match fs::metadata(&source) {
        Ok(meta) if meta.file_type().is_block_device() => meta.rdev(),
        Ok(_) | Err(_) => fs::metadata(dir).ok()?.dev(),
    };
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

fn field(path: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// Undoes the kernel's octal escapes for blanks in mount points.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
25 24 0:23 / /dev/shm rw,nosuid - tmpfs tmpfs rw
40 27 8:1 / /data\\040one rw,noatime - xfs /dev/sda1 rw
41 40 8:2 / /data\\040one ro - btrfs /dev/sdb rw";

    #[test]
    fn finds_the_mount_on_top() {
        let kind = |dir: &str| Filesystem::find(MOUNTS, Path::new(dir)).unwrap().kind;
        assert_eq!(kind("/var/tmp"), "ext4");
        assert_eq!(kind("/dev/shm/x"), "tmpfs");
        assert_eq!(kind("/dev/shmem"), "ext4");
        assert_eq!(kind("/data one/x"), "btrfs");
        assert!(Filesystem::find("", Path::new("/")).is_none());
        assert!(Filesystem::find("not a mount line", Path::new("/")).is_none());
    }

    #[test]
    fn parses_counters() {
        let ticks = CpuTicks::parse("cpu  10 1 5 80 4 0 2 3 0 0\ncpu0 1 1\n").unwrap();
        assert_eq!(
            ticks,
            CpuTicks {
                total: 105,
                busy: 18,
                steal: 3
            }
        );
        assert_eq!(CpuTicks::parse("cpu 1 2"), None);
    }
}
