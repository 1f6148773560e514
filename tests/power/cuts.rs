//! The power goes under four writers, again and again: what was fsynced must be there, and all else a prefix of what was done.
//!
//! A round: hafsd starts on what the disk holds, the writers' directories are examined, `volume check` must be clean, the
//! writers go on, and at some moment hafsd is killed and the disk loses what was not synced. In some rounds hafsd alone is
//! killed before, so that a log is replayed that lies in the page cache; in some the power goes again while hafsd starts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hafs_tests::lossy::{Cut, Loss, Lossy, Mode};
use hafs_tests::mount::detach_all;
use hafs_tests::numbers::Numbers;
use hafs_tests::{Daemon, Launch, Mount, Progress, Scratch, requirement};
use rustix::process::Signal;

use crate::blocks::Blocks;
use crate::history::{Clock, CutPoint, Lost, Witness, cut_point, nothing_lost};
use crate::mixed::Mixed;
use crate::synced::Synced;
use crate::writer::{End, Pace, Stopped, Writer};

/// In `make test`; `make chaos-power` has 200.
const CUTS: usize = 20;
/// Steps of all writers in a round, at most; the cut comes somewhere before.
const STEPS_MAX: u64 = 300;
/// A sync of the disk takes up to so long: a round's own time, between a fast and a slow disk.
const SYNC_TAKES_MAX_MS: u64 = 6;
/// Requests to the disk after which the power goes while hafsd starts: from its first to past its readiness.
const START_REQUESTS_MAX: u64 = 400;
/// hafsd is up within this time, even on a machine that does a lot besides.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How often it is looked whether the socket is there, or the volume mounted.
const LOOK: Duration = Duration::from_millis(2);

/// Has one writer go on until the mount is gone; `ends` is set before hafsd is killed: a writer that meets a dead mount before
/// has found a fault.
fn write(
    writer: &mut dyn Writer,
    dir: &Path,
    clock: &Clock,
    pace: Pace,
    (progress, ends): (&Progress, &AtomicBool),
) -> Result<(), Lost> {
    loop {
        match writer.step(dir, clock, pace) {
            Ok(()) => progress.step(),
            Err(stopped) => {
                writer.release();
                let wrong = match stopped {
                    Stopped::Gone if ends.load(Ordering::SeqCst) => return Ok(()),
                    Stopped::Gone => "the mount died under it".to_owned(),
                    Stopped::Wrong(what) => what,
                };
                progress.give_up();
                return Err(format!("{}: {wrong}", writer.name()));
            }
        }
    }
}

/// What the rounds came to.
#[derive(Debug, Default)]
struct Figures {
    cuts: usize,
    /// Cuts that took bytes of log or segments which hafsd had written and not synced.
    losing: usize,
    lost_bytes: u64,
    torn_pages: u64,
    lost_names: u64,
    ops: usize,
    lost_ops: usize,
    recovery: Vec<Duration>,
}

impl Figures {
    fn cut(&mut self, loss: &Loss) {
        let lost = loss.bytes_in("/log/") + loss.bytes_in("/segments/");
        self.cuts += 1;
        self.losing += usize::from(lost > 0);
        self.lost_bytes += lost;
        self.torn_pages += loss.files.iter().map(|file| file.torn_pages).sum::<u64>();
        self.lost_names += loss.lost_names;
    }

    fn report(&mut self) {
        self.recovery.sort_unstable();
        let at = |share: usize| {
            let last = self.recovery.len() - 1;
            self.recovery[last * share / 100].as_millis()
        };
        eprintln!(
            "{} cuts, {} of them lost unsynced log or chunk bytes: {} KiB, {} torn pages, {} changes of names; \
             {} of {} operations gone; from start to a mount: median {} ms, longest {} ms",
            self.cuts,
            self.losing,
            self.lost_bytes >> 10,
            self.torn_pages,
            self.lost_names,
            self.lost_ops,
            self.ops,
            at(50),
            at(100)
        );
    }
}

/// A volume on a lossy disk, and those who write to it.
struct Bench {
    launch: Launch,
    /// Its name, which nobody else on the machine uses: a hafsd looks for former mounts by name and number.
    volume: String,
    /// What the disk holds while the power is off.
    disk: PathBuf,
    data: PathBuf,
    mount_dir: PathBuf,
    writers: Vec<Box<dyn Writer>>,
    clock: Clock,
    numbers: Numbers,
    figures: Figures,
    _mounts: Mount,
}

impl Bench {
    fn new(scratch: &Scratch, seed: u64) -> Self {
        let [disk, data, mount_dir] = ["disk", "data", "mnt"].map(|name| scratch.dir(name));
        // What a dead mount of a killed hafsd makes the next one say.
        let launch = Launch::new(scratch.path())
            .data_dir(&data)
            .expect("dead mount");
        let bench = Self {
            launch,
            volume: format!("power-{}", std::process::id()),
            writers: vec![
                Box::new(Blocks::pieces(seed + 1)),
                Box::new(Synced::new(seed + 2)),
                Box::new(Mixed::new(seed + 3)),
                Box::new(Blocks::bulk(seed + 4)),
            ],
            clock: Clock::default(),
            numbers: Numbers::new(seed),
            figures: Figures::default(),
            _mounts: Mount::watch(&mount_dir),
            disk,
            data,
            mount_dir,
        };
        bench.prepare(seed);
        bench
    }

    /// Makes the volume, and in it a directory for each writer.
    fn prepare(&self, seed: u64) {
        let _lossy = Lossy::mount(&self.disk, &self.data, seed);
        let daemon = self.launch.clone().start();
        daemon.create_volume(&self.volume);
        let mount = daemon.mount(&self.volume, &self.mount_dir);
        for number in 0..self.writers.len() {
            fs::create_dir(self.dir_of(number)).expect("an empty volume");
        }
        let root = File::open(&self.mount_dir).expect("a mounted volume");
        root.sync_all().expect("the disk works");
        drop(root);
        mount.unmount();
        daemon.stop();
    }

    fn dir_of(&self, writer: usize) -> PathBuf {
        self.mount_dir.join(writer.to_string())
    }

    /// Power, hafsd, mount; a hafsd that refuses the volume has lost something, and has seen it.
    fn start(&mut self) -> Result<Daemon, Lost> {
        let start = Instant::now();
        let daemon = self.launch.clone().start();
        let mounted = daemon.mount_command(&self.volume, &self.mount_dir, "");
        if mounted.code != 0 {
            return Err(mounted.to_string());
        }
        self.figures.recovery.push(start.elapsed());
        Ok(daemon)
    }

    /// What the writers find, and `volume check`.
    fn verify(&mut self, daemon: &Daemon, end: End) -> Result<CutPoint, Lost> {
        let mut held = Vec::new();
        for number in 0..self.writers.len() {
            let dir = self.dir_of(number);
            let writer = &mut self.writers[number];
            let examined = writer.examine(&dir);
            held.push(examined.map_err(|lost| format!("{}: {lost}", writer.name()))?);
        }
        let witnesses: Vec<Witness<'_>> = self
            .writers
            .iter()
            .zip(held)
            .map(|(writer, held)| Witness {
                name: writer.name(),
                history: writer.history(),
                held,
            })
            .collect();
        let found = cut_point(&witnesses)?;
        if end == End::Process {
            nothing_lost(&witnesses)?;
        }
        for writer in &mut self.writers {
            writer.go_on(end, &self.clock);
        }
        let check = daemon.ctl(&["volume", "check", &self.volume]);
        if check.code != 0 {
            return Err(check.to_string());
        }
        Ok(found)
    }

    /// Has everybody write until `end` happens to hafsd.
    fn write_until(&mut self, end: impl FnOnce()) -> Result<(), Lost> {
        let steps = 1 + self.numbers.below(STEPS_MAX);
        let pace = self.numbers.one_of(&[Pace::Often, Pace::Seldom]);
        let (progress, ends) = (Progress::default(), AtomicBool::new(false));
        let dirs: Vec<PathBuf> = (0..self.writers.len()).map(|at| self.dir_of(at)).collect();
        let (clock, writers) = (&self.clock, &mut self.writers);
        thread::scope(|scope| {
            let running: Vec<_> = writers
                .iter_mut()
                .zip(&dirs)
                .map(|(writer, dir)| {
                    let told = (&progress, &ends);
                    scope.spawn(move || write(writer.as_mut(), dir, clock, pace, told))
                })
                .collect();
            let waited = progress.wait_for(steps);
            ends.store(true, Ordering::SeqCst);
            end();
            for writer in running {
                writer.join().expect("writers do not panic")?;
            }
            waited
        })
    }

    /// What was mounted is gone with the power.
    fn power_off(&self, lossy: Lossy) {
        detach_all(&self.mount_dir);
        drop(lossy);
    }

    fn power_on(&mut self) -> Lossy {
        let seed = self.numbers.below(u64::MAX);
        let lossy = Lossy::mount(&self.disk, &self.data, seed);
        let takes = self.numbers.below(SYNC_TAKES_MAX_MS + 1);
        lossy.set_sync_takes(Duration::from_millis(takes));
        lossy
    }

    fn some_cut(&mut self, mode: Mode) -> Cut {
        let seed = self.numbers.below(u64::MAX);
        Cut { mode, seed }
    }

    /// The power goes while hafsd starts, replays and mounts.
    fn cut_while_it_starts(&mut self, mode: Mode) {
        let lossy = self.power_on();
        let requests = 1 + self.numbers.below(START_REQUESTS_MAX);
        let cut = self.some_cut(mode);
        let socket = self.launch.socket_path().to_owned();
        // That of the hafsd before.
        let _ = fs::remove_file(&socket);
        let daemon = self.launch.clone().start_only();
        let start = Instant::now();
        let (volume, mount_dir) = (self.volume.clone(), self.mount_dir.clone());
        let ready = AtomicBool::new(false);
        let mounts = &ready;
        thread::scope(|scope| {
            scope.spawn(move || {
                while !socket.exists() && start.elapsed() < START_LIMIT {
                    thread::park_timeout(LOOK);
                }
                // It fails where the power goes before; that is what this is for.
                let mut mount = hafs_tests::daemon::mount_command(&socket, &volume, &mount_dir, "");
                let _ = hafs_tests::run(&mut mount);
                mounts.store(true, Ordering::SeqCst);
            });
            // Not by asking again and again: that takes the core from hafsd.
            while !(lossy.wait_for_requests(requests, LOOK) || ready.load(Ordering::SeqCst)) {
                assert!(start.elapsed() < START_LIMIT, "hafsd does not start");
            }
            daemon.signal(Signal::KILL);
            lossy.cut(cut);
            daemon.kill();
        });
        self.power_off(lossy);
    }

    /// One round, up to and with the cut.
    fn round(&mut self, mode: Mode) -> Result<(), Lost> {
        if self.numbers.once_in(5) {
            self.cut_while_it_starts(mode);
        }
        let lossy = self.power_on();
        let mut daemon = self.start()?;
        let found = self.verify(&daemon, End::Power)?;
        self.figures.ops += found.ops;
        self.figures.lost_ops += found.lost;
        if self.numbers.once_in(4) {
            let mut killed = Some(daemon);
            self.write_until(|| killed.take().expect("once").kill())?;
            detach_all(&self.mount_dir);
            daemon = self.start()?;
            self.verify(&daemon, End::Process)?;
        }
        let cut = self.some_cut(mode);
        let (mut lost, mut killed) = (None, Some(daemon));
        let written = self.write_until(|| {
            let daemon = killed.take().expect("once");
            daemon.signal(Signal::KILL);
            lost = Some(lossy.cut(cut));
            daemon.kill();
        });
        // Not before the writers have ended: they would find an empty directory.
        self.power_off(lossy);
        let loss = lost.expect("the power went");
        self.figures.cut(&loss);
        eprintln!(
            "{mode:?}: {found} before; now {} KiB of the log, {} KiB of segments, {} of {} names",
            loss.bytes_in("/log/") >> 10,
            loss.bytes_in("/segments/") >> 10,
            loss.lost_names,
            loss.unsynced_names
        );
        written
    }

    /// So many cuts; stops at the first loss.
    fn cuts(&mut self, count: usize, modes: &[Mode]) -> Result<(), Lost> {
        for cut in 0..count {
            self.round(modes[cut % modes.len()])
                .map_err(|lost| format!("after cut {cut}: {lost}"))?;
        }
        let lossy = self.power_on();
        let daemon = self.start()?;
        let found = self
            .verify(&daemon, End::Power)
            .map_err(|lost| format!("after cut {count}: {lost}"))?;
        self.figures.ops += found.ops;
        self.figures.lost_ops += found.lost;
        Mount::watch(&self.mount_dir).unmount();
        daemon.stop();
        self.power_off(lossy);
        Ok(())
    }
}

fn variable(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |given| {
        given
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number"))
    })
}

/// How many cuts a test makes: so many times what is asked for.
pub(crate) fn variable_cuts(times: usize) -> usize {
    usize::try_from(variable("HAFS_POWER_CUTS", CUTS as u64)).expect("a count") * times
}

pub(crate) fn seed() -> u64 {
    let seed = variable("HAFS_POWER_SEED", 1);
    eprintln!("to replay what is written and cut: HAFS_POWER_SEED={seed}");
    seed
}

#[test]
fn power_cuts_lose_nothing_that_was_fsynced() {
    if !requirement::mounts_work("power cuts under four writers") {
        return;
    }
    let scratch = Scratch::new();
    let mut bench = Bench::new(&scratch, seed());
    if let Err(lost) = bench.cuts(variable_cuts(1), &Mode::ALL) {
        panic!("{lost}");
    }
    bench.figures.report();
    let figures = &bench.figures;
    assert!(
        figures.losing * 4 >= figures.cuts * 3,
        "only {} of {} cuts lost unsynced data: they prove little",
        figures.losing,
        figures.cuts
    );
    assert!(figures.lost_ops > 0, "no cut came between two fsyncs");
}

#[test]
fn without_syncs_the_same_test_fails() {
    if !requirement::mounts_work("power cuts of a hafsd that syncs nothing") {
        return;
    }
    let scratch = Scratch::new();
    let mut bench = Bench::new(&scratch, seed());
    bench.launch = bench
        .launch
        .variable("FAILPOINTS", "store-sync=return")
        .expect("volume is not available");
    let lost = bench
        .cuts(5, &[Mode::Everything])
        .expect_err("a hafsd that syncs nothing loses data: the test must see it");
    assert!(
        !lost.contains("steps, and none") && !lost.contains("died under"),
        "not a loss: {lost}"
    );
    eprintln!("seen: {lost}");
}
