//! What all databases go through: a mount, writers on it, a blow, and everything up again.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hafs_tests::{Daemon, Launch, Mount, Progress, Scratch};

use crate::server::USER;

/// The variable that a seed comes from.
pub(crate) const SEED: &str = "HAFS_DATABASE_SEED";

/// What is killed with SIGKILL in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    /// The database's processes; the mount stays.
    Server,
    /// hafsd: the mount dies under the running server.
    Hafsd,
    /// Both, hafsd first.
    Both,
}

/// Of a test: hafsd's end is the harder one for it, and for the database.
pub(crate) const BLOWS: [Blow; 12] = [
    Blow::Hafsd,
    Blow::Server,
    Blow::Both,
    Blow::Hafsd,
    Blow::Both,
    Blow::Hafsd,
    Blow::Server,
    Blow::Hafsd,
    Blow::Both,
    Blow::Hafsd,
    Blow::Server,
    Blow::Hafsd,
];

/// A volume, mounted for the ordinary user.
#[derive(Debug)]
pub(crate) struct Site {
    daemon: Option<Daemon>,
    launch: Launch,
    /// Takes the mounts off, dead or not.
    mount: Mount,
    scratch: Scratch,
}

impl Site {
    /// Starts hafsd, makes the volume `v` and gives its root directory to the ordinary user.
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new();
        std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o755))
            .expect("the scratch directory is ours");
        let dir = scratch.dir("mnt");
        // What a dead mount of a killed hafsd makes the next one say.
        let launch = Launch::new(scratch.path()).expect("dead mount");
        let daemon = launch.clone().start();
        daemon.create_volume("v");
        drop(daemon);
        let mut site = Self {
            daemon: None,
            launch,
            mount: Mount::watch(&dir),
            scratch,
        };
        site.up();
        chown(&dir, Some(USER), Some(USER)).expect("the root directory is root's");
        chown(site.scratch.dir("run"), Some(USER), Some(USER)).expect("a directory for sockets");
        site
    }

    /// Where the volume is mounted.
    pub(crate) fn dir(&self) -> &Path {
        self.mount.path()
    }

    /// A directory of the ordinary user that is not on the volume, with a short path.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.scratch.join("run")
    }

    /// Starts hafsd and mounts the volume, unless that is so.
    pub(crate) fn up(&mut self) {
        if self.daemon.is_none() {
            let daemon = self.launch.clone().start();
            daemon.mount_command("v", self.mount.path(), "").ok();
            self.daemon = Some(daemon);
        }
    }

    /// Kills hafsd.
    pub(crate) fn kill_hafsd(&mut self) {
        self.daemon.take().expect("hafsd runs").kill();
    }

    /// `hafsctl volume check`, which must find nothing.
    pub(crate) fn check(&self) {
        self.daemon.as_ref().expect("hafsd runs").check("v");
    }

    /// Unmounts and ends hafsd, which must leave nothing behind.
    pub(crate) fn end(self) {
        self.check();
        let Self {
            daemon,
            mount,
            scratch,
            ..
        } = self;
        mount.unmount();
        daemon.expect("hafsd runs").stop();
        drop(scratch);
    }
}

/// One client of a database, which remembers what was acknowledged.
pub(crate) trait Writer: Send {
    /// Has one change made. `Err` with what was said if it was not acknowledged.
    fn step(&mut self) -> Result<(), String>;
}

/// Lets all writers write, calls `blow` after `steps` acknowledged changes, and returns when all writers have failed.
///
/// # Panics
/// If a writer fails before the blow, or goes on after it.
pub(crate) fn write_until<W: Writer>(writers: &mut [W], steps: u64, blow: impl FnOnce()) {
    let progress = Progress::default();
    let struck = AtomicBool::new(false);
    thread::scope(|scope| {
        let running: Vec<_> = writers
            .iter_mut()
            .map(|writer| {
                let (progress, struck) = (&progress, &struck);
                scope.spawn(move || write(writer, progress, struck))
            })
            .collect();
        let reached = progress.wait_for(steps);
        struck.store(true, Ordering::Release);
        // Also if it was not reached: a scope ends only with its threads.
        blow();
        for writer in running {
            let end = writer.join().expect("writers do not panic");
            assert_eq!(end, Ok(()), "before anything was killed");
        }
        assert_eq!(reached, Ok(()), "the database did not serve the writers");
    });
}

fn write(writer: &mut impl Writer, progress: &Progress, struck: &AtomicBool) -> Result<(), String> {
    loop {
        match writer.step() {
            Ok(()) => {
                progress.step();
            }
            Err(_) if struck.load(Ordering::Acquire) => return Ok(()),
            Err(said) => {
                progress.give_up();
                return Err(said);
            }
        }
    }
}
