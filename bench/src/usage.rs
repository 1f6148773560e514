//! What a server has used of disk and CPU, how much memory it has, and when it rests: from /proc, for any process.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::Pid;

use crate::interrupt::Interrupt;

/// Unit of the times in /proc/PID/stat: `USER_HZ`, the same on every architecture that hafs runs on.
const TICK: Duration = Duration::from_millis(10);
/// Who uses no more than this rests.
const IDLE_CPU_PERCENT: u32 = 2;
const IDLE_LOOK: Duration = Duration::from_millis(100);
/// hafsd tidies up when nothing was changed for 3 s: it rests when it has done nothing for so long.
pub(crate) const IDLE_HAFSD: Duration = Duration::from_secs(5);
const IDLE_LIMIT: Duration = Duration::from_secs(300);

/// What processes have used so far; the kernel's own work for them is not in it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// As [`write_bytes`] counts.
    pub(crate) write_bytes: u64,
    pub(crate) cpu: Duration,
}

impl Usage {
    /// Of these processes together.
    pub(crate) fn of(pids: &[Pid]) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for pid in pids {
            all.write_bytes += write_bytes(*pid)?;
            all.cpu += cpu(&text(*pid, "stat")?)?;
        }
        Ok(all)
    }

    /// What was used since an earlier reading.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            write_bytes: self.write_bytes.saturating_sub(earlier.write_bytes),
            cpu: self.cpu.saturating_sub(earlier.cpu),
        }
    }
}

/// Waits until `usage` stands still for as long as `quiet`: what was put off is done.
///
/// # Errors
/// If it does not come to rest.
pub(crate) fn wait_idle(
    interrupt: &Interrupt,
    quiet: Duration,
    usage: impl Fn() -> anyhow::Result<Usage>,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    let (mut last, mut since) = (usage()?, Instant::now());
    loop {
        interrupt.check()?;
        std::thread::park_timeout(IDLE_LOOK);
        // Before the reading: it tells nothing of what comes after it.
        let at = Instant::now();
        let now = usage()?;
        let used = now.since(last);
        let passed = at.saturating_duration_since(since);
        // At least what a tick may hide.
        let allowed = (passed * IDLE_CPU_PERCENT / 100).max(2 * TICK);
        if used.write_bytes > 0 || used.cpu > allowed {
            (last, since) = (now, Instant::now());
        } else if passed >= quiet {
            return Ok(());
        }
        if begin.elapsed() > IDLE_LIMIT {
            bail!("still busy after {IDLE_LIMIT:?}: {last:?}");
        }
    }
}

/// Memory of a process, MiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resident {
    pub(crate) now_mib: f64,
    /// The most that it ever was.
    pub(crate) peak_mib: f64,
}

impl Resident {
    pub(crate) fn of(pid: Pid) -> anyhow::Result<Self> {
        let status = text(pid, "status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(kib / 1024.0)
        };
        let (now, peak) = field("VmRSS:")
            .zip(field("VmHWM:"))
            .context("/proc/PID/status tells no memory")?;
        Ok(Self {
            now_mib: now,
            peak_mib: peak,
        })
    }
}

/// Bytes that a process has sent towards the disk so far: pages that it made dirty, and direct I/O.
///
/// A page that was dropped before it reached the disk counts, too: the kernel sets `cancelled_write_bytes` against whoever
/// truncates, not whoever wrote, and a count that can fall would not tell who rests.
pub(crate) fn write_bytes(pid: Pid) -> anyhow::Result<u64> {
    parse_write_bytes(&text(pid, "io")?).context("/proc/PID/io has no write_bytes")
}

fn parse_write_bytes(io: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix("write_bytes: ")?.parse().ok();
    io.lines().find_map(value)
}

fn text(pid: Pid, file: &str) -> anyhow::Result<String> {
    let path = PathBuf::from(format!("/proc/{}/{file}", pid.as_raw_nonzero()));
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// From the text of /proc/PID/stat, user and system.
fn cpu(stat: &str) -> anyhow::Result<Duration> {
    // The name may hold blanks and brackets; what follows its last one does not. utime and stime are fields 14 and 15.
    let (_, fields) = stat
        .rsplit_once(") ")
        .context("/proc/PID/stat has no name")?;
    let mut fields = fields.split(' ').skip(11);
    let mut ticks = || fields.next().context("/proc/PID/stat is short");
    let ticks = ticks()?.parse::<u32>()? + ticks()?.parse::<u32>()?;
    Ok(TICK * ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Usage {
        Usage::of(&[rustix::process::getpid()]).unwrap()
    }

    fn burn(ticks: u32) {
        let before = own();
        let begin = Instant::now();
        while own().since(before).cpu < ticks * TICK {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "no CPU is counted"
            );
        }
    }

    #[test]
    fn usage_is_that_of_the_process() {
        let before = own();
        burn(5);
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::write(dir.path().join("file"), vec![1; 1 << 20]).unwrap();
        let used = own().since(before);
        assert!(used.write_bytes >= 1 << 20, "{used:?}");
        assert!(used.cpu >= 5 * TICK, "{used:?}");
    }

    #[test]
    fn bytes_are_those_that_were_sent_whatever_was_cancelled() {
        let io = "wchar: 9\nwrite_bytes: 8192\ncancelled_write_bytes: 4096\n";
        assert_eq!(parse_write_bytes(io), Some(8192));
        assert_eq!(parse_write_bytes("wchar: 9\n"), None);
    }

    #[test]
    fn a_name_with_brackets_does_not_hide_the_times() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 1 0 5";
        assert_eq!(cpu(stat).unwrap(), 42 * TICK);
        assert!(cpu("7 (a) S 1").is_err());
    }

    #[test]
    fn rest_comes_after_the_last_byte_and_tick() {
        let interrupt = Interrupt::default();
        let quiet = Duration::from_millis(300);
        let begin = Instant::now();
        let busy = Duration::from_millis(500);
        let bytes = || {
            let millis = begin.elapsed().min(busy).as_millis();
            u64::try_from(millis).expect("half a second")
        };
        let writing = || {
            Ok(Usage {
                write_bytes: bytes(),
                cpu: Duration::ZERO,
            })
        };
        wait_idle(&interrupt, quiet, writing).unwrap();
        assert!(begin.elapsed() >= busy + quiet);
        interrupt.raise(15);
        assert!(wait_idle(&interrupt, quiet, writing).is_err());
    }

    #[test]
    fn memory_is_that_of_the_process() {
        let own = Resident::of(rustix::process::getpid()).unwrap();
        let taken = std::hint::black_box(vec![1_u8; 64 << 20]);
        let more = Resident::of(rustix::process::getpid()).unwrap();
        assert!(more.now_mib > own.now_mib + 50.0, "{own:?} {more:?}");
        assert!(more.peak_mib >= more.now_mib);
        drop(taken);
    }
}
