//! Mounts of volumes: reserved, served, ended, and all unmounted at the node's end.
//!
//! The socket for descriptors calls [`Node::reserve`] and [`Reservation::serve`]; the `ended` callback of
//! [`hafs_fs::Mount`] takes a mount out again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hafs_fs::mountinfo::{self, MountEntry};
use hafs_fs::{Mount, MountEnd, MountSettings, Volume};
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::UnmountFlags;

use super::directories::Entered;
use super::served::ServedMount;
use super::volumes::profile;
use super::{Node, Phase, STORE_FAILED, Slot, StoreState, ending, no_such_volume};
use crate::control::mounting::{ANSWER_WAIT, Ask, MISSING_WAIT};
use crate::control::{ApiError, ErrorCode};
use crate::mountpoint::{self, Probe};
use crate::output::chain;

/// How long the node's end waits for mounts to be written back and unmounted. Below systemd's 90 s, with time left to
/// close volumes.
const UNMOUNT_WAIT: Duration = Duration::from_secs(45);
/// How long an aborted mount may take to end: its threads only have to notice.
const ABORT_WAIT: Duration = Duration::from_secs(10);
/// How long a test may hold the end of a mount up at most, and how often it is looked whether it still does.
#[cfg(feature = "failpoints")]
const HOLD_WAIT: Duration = Duration::from_secs(120);
#[cfg(feature = "failpoints")]
const HOLD_PAUSE: Duration = Duration::from_millis(2);
/// Directories of one mount and its binds that are remembered, to lift their guards at its end. A guard of one more stays
/// until the next umount or mount there.
const DIRECTORIES_MAX: usize = 1024;

/// Whether a volume is mounted.
#[derive(Debug)]
pub(super) enum Mounting {
    /// No.
    Free,
    /// A helper is about to mount it.
    Reserved,
    /// Yes, until the `ended` callback says otherwise.
    Served(Serving),
}

/// A mount that is being served.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) mount: ServedMount,
    pub(super) since: Timestamp,
    /// Requests are answered. Until then nobody else is told of the mount.
    answering: bool,
    /// Where in this mount namespace helpers mounted or bound it.
    directories: BTreeSet<String>,
    /// A descriptor of the connection, never read: it tells when the connection is gone.
    device: OwnedFd,
}

impl Serving {
    /// Remembers a directory of this mount namespace that the mount, or a bind of it, is on.
    fn note_directory(&mut self, directory: &str) {
        if self.directories.len() < DIRECTORIES_MAX {
            self.directories.insert(directory.to_owned());
        }
    }

    /// True once the last mount of the superblock is unmounted, or the connection was aborted; the end of the sessions
    /// follows.
    pub(super) fn is_disconnected(&self) -> bool {
        let mut fds = [PollFd::new(&self.device, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
    }
}

/// What a helper may do.
#[derive(Debug)]
pub enum Reserved {
    /// Mount the volume and send the descriptor.
    Mount(Reservation),
    /// Bind the mount that is there.
    Bind {
        /// Number of its connection.
        connection: u32,
        /// Where it was mounted.
        mountpoint: String,
        /// In which mount namespace.
        namespace: u64,
    },
}

/// The right to mount a volume, until dropped.
#[derive(Debug)]
pub struct Reservation {
    node: Arc<Node>,
    ask: Ask,
    volume: Arc<Volume>,
    /// The mount is served: its end gives the volume free, not ours.
    used: bool,
}

impl Node {
    /// For as long as the helper that asks is at work: nothing else is done to its directory.
    pub fn enter_directory(&self, ask: &Ask) -> Entered {
        self.directories.enter(&ask.directory)
    }

    /// Waits until it is clear how `ask` is to be answered: the volume open, no other mount of it coming or going.
    pub fn reserve(self: &Arc<Self>, ask: Ask) -> Result<Reserved, ApiError> {
        let deadline = Instant::now() + ANSWER_WAIT;
        let patience = Instant::now() + MISSING_WAIT;
        let name = ask.volume.as_str();
        self.refuse_own_directory(&ask)?;
        let mut reopened = false;
        let mut state = self.state.lock();
        loop {
            if state.phase == Phase::Ending {
                return Err(ending());
            }
            let slot = state
                .volumes
                .get_mut(name)
                .ok_or_else(|| no_such_volume(name))?;
            match slot.next_step(reopened)? {
                Step::Reserve(volume) => {
                    slot.mounting = Mounting::Reserved;
                    drop(state);
                    let node = Arc::clone(self);
                    let reservation = Reservation {
                        node,
                        ask: ask.clone(),
                        volume,
                        used: false,
                    };
                    if let Err(error) = reservation.volume.check_place() {
                        return Err(not_available(name, &chain(&error))
                            .next("stop hafsd, put the directory in order, start hafsd"));
                    }
                    if !reservation.volume.status().failed {
                        return Ok(Reserved::Mount(reservation));
                    }
                    if reopened {
                        return Err(not_available(name, STORE_FAILED));
                    }
                    // Ours alone: nobody has it mounted, and nobody else can now.
                    state = self.state.lock();
                    let reopen = self.begin_reopen(&mut state, name);
                    drop(state);
                    drop(reservation);
                    reopened = true;
                    state = self.reopen(reopen);
                }
                Step::Reopen => {
                    let reopen = self.begin_reopen(&mut state, name);
                    drop(state);
                    reopened = true;
                    state = self.reopen(reopen);
                }
                Step::Bind(Reserved::Bind { connection, .. })
                    if ask.missing == Some(connection) && Instant::now() < patience =>
                {
                    self.changed.wait_until(&mut state, patience);
                }
                Step::Bind(reserved) => {
                    // Before it is bound: the mount may have ended by the time that its helper is heard of again.
                    if let Mounting::Served(serving) = &mut slot.mounting
                        && is_here(ask.namespace)
                    {
                        serving.note_directory(&ask.directory);
                    }
                    return Ok(reserved);
                }
                Step::Wait(why) => {
                    if self.changed.wait_until(&mut state, deadline).timed_out() {
                        let busy = format!("volume `{name}` is busy: {why}");
                        return Err(ApiError::new(ErrorCode::VolumeBusy, busy)
                            .why(format!("it has been for {} s", ANSWER_WAIT.as_secs()))
                            .next("try again; hafsctl volume show and hafsd's log say more"));
                    }
                }
            }
        }
    }

    /// Whether the kernel has let go of the connection; the end of its sessions follows.
    ///
    /// From then on another mount may have its number, of any FUSE filesystem of the machine.
    fn is_disconnected(&self, mount: &ServedMount) -> bool {
        let state = self.state.lock();
        let serving = state.volumes.get(&mount.volume);
        let serving = serving.and_then(|slot| slot.serving(mount));
        serving.is_none_or(Serving::is_disconnected)
    }

    /// Refuses a directory that this process's own data lies in or behind: hafsd would wait for itself. In other mount
    /// namespaces the same path is another directory.
    fn refuse_own_directory(&self, ask: &Ask) -> Result<(), ApiError> {
        let is_own_namespace = fs::metadata("/proc/self/ns/mnt")
            .is_ok_and(|namespace| namespace.ino() == ask.namespace);
        let data = fs::canonicalize(self.data.path());
        let data = data.as_deref().unwrap_or_else(|_| self.data.path());
        let directory = Path::new(&ask.directory);
        if !is_own_namespace || !(data.starts_with(directory) || directory.starts_with(data)) {
            return Ok(());
        }
        let error = format!("cannot mount on {}", ask.directory);
        Err(ApiError::new(ErrorCode::BadRequest, error)
            .why(format!("hafsd keeps its data in {}", data.display()))
            .next("mount on another directory"))
    }

    /// From now on others may bind the mount.
    fn mount_answers(&self, mount: &ServedMount) {
        let mut state = self.state.lock();
        // Gone if it has ended already.
        if let Some(slot) = state.volumes.get_mut(&mount.volume)
            && let Mounting::Served(serving) = &mut slot.mounting
            && serving.mount == *mount
        {
            serving.answering = true;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Frees a volume whose mount has ended. From then on it may be mounted or closed.
    fn mount_ended(&self, volume: &Volume, mount: &ServedMount, end: &MountEnd) {
        let name = mount.volume.as_str();
        match end {
            MountEnd::Unmounted => {}
            MountEnd::Failed(error) => {
                tracing::error!(volume = name, %error, "mount failed; whoever uses it gets errors");
                self.detach_all(mount);
            }
        }
        hold_the_end();
        // What an unmount leaves behind is expected to be on the disk. A store that failed before has said so.
        if !volume.status().failed
            && let Err(error) = volume.sync()
        {
            tracing::error!(
                volume = name,
                error = chain(&error),
                "cannot sync the volume after its unmount"
            );
        }
        self.note_commit(name);
        self.served.remove(mount);
        let mut directories = BTreeSet::new();
        let mut state = self.state.lock();
        // Our own end, or a failure: whoever goes on to use the path must not write to what lies beneath.
        let lifts = matches!(end, MountEnd::Unmounted) && state.phase != Phase::Ending;
        if let Some(slot) = state.volumes.get_mut(name)
            && let Mounting::Served(serving) = &mut slot.mounting
            && serving.mount == *mount
        {
            directories = std::mem::take(&mut serving.directories);
            slot.mounting = Mounting::Free;
        }
        drop(state);
        self.changed.notify_all();
        for directory in directories.iter().filter(|_| lifts) {
            self.directories.lift(directory);
        }
        tracing::info!(volume = name, mountpoint = mount.mountpoint, "unmounted");
    }

    /// Unmounts everything, lazily where it is in use. Returns when no mount is served any more, or after a bound.
    pub(super) fn unmount_all(self: &Arc<Self>) {
        let mounts = self.served_now();
        for mount in mounts {
            let node = Arc::clone(self);
            // In threads: a mount that hangs must not hold up the others. They are left behind at the deadline.
            let spawned = std::thread::Builder::new()
                .name("unmount".to_owned())
                .spawn(move || node.unmount(&mount));
            if let Err(error) = spawned {
                tracing::warn!(%error, "cannot start a thread to unmount with");
            }
        }
        if self.wait_until_free(UNMOUNT_WAIT) {
            return;
        }
        for mount in self.served_now() {
            tracing::warn!(
                volume = mount.volume,
                mountpoint = mount.mountpoint,
                "not unmounted in time; whoever still uses it gets errors"
            );
            if !self.is_disconnected(&mount) {
                abort(&mount);
            }
        }
        if !self.wait_until_free(ABORT_WAIT) {
            tracing::error!("mounts did not end; volumes are closed under them");
        }
    }

    /// Writes back, then unmounts; lazily where it is in use. What remains in use elsewhere is aborted.
    fn unmount(&self, mount: &ServedMount) {
        let volume = mount.volume.as_str();
        let entries = match self.entries_of(mount) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(volume, error = chain(&error), "cannot look for mounts");
                return;
            }
        };
        // Unmounting writes back only if nobody else uses the mount.
        if let Some(entry) = entries.iter().find(|entry| mountpoint::is_reachable(entry))
            && let Err(error) = write_back(entry)
        {
            tracing::warn!(volume, %error, "cannot write back before the unmount");
        }
        for entry in &entries {
            unmount_entry(volume, entry);
        }
        let taken_off = entries.len();
        tracing::debug!(
            volume,
            connection = mount.connection,
            taken_off,
            "unmounted by hafsd's end"
        );
        if !self.is_disconnected(mount) {
            tracing::warn!(
                volume,
                mountpoint = mount.mountpoint,
                "still in use, by open files or in another mount namespace; whoever uses it gets errors from now on"
            );
            abort(mount);
        }
    }

    /// All mounts of the superblock in this namespace, top first. None once it is gone.
    ///
    /// The kernel gives the number of a connection away as soon as its superblock is gone. So the order counts: whatever
    /// was listed while the connection stood is ours.
    fn entries_of(&self, mount: &ServedMount) -> Result<Vec<MountEntry>, hafs_fs::FsError> {
        let mut entries = mountinfo::mounts()?;
        if self.is_disconnected(mount) {
            return Ok(Vec::new());
        }
        entries.retain(|entry| is_of(entry, mount));
        entries.reverse();
        Ok(entries)
    }

    /// Takes a mount that has failed off its directories.
    fn detach_all(&self, mount: &ServedMount) {
        let entries = match self.entries_of(mount) {
            Ok(ours) if !ours.is_empty() => ours,
            // The connection is aborted, or gone. What is dead and has its number and its name is not in use by anybody.
            _ => {
                let mut dead = mountinfo::mounts().unwrap_or_default();
                dead.retain(|entry| {
                    is_of(entry, mount) && mountpoint::probe(&entry.mount_point) == Probe::Dead
                });
                dead.reverse();
                dead
            }
        };
        for entry in entries {
            if mountpoint::is_reachable(&entry)
                && let Err(error) = mountpoint::detach(&entry.mount_point)
            {
                let mountpoint = entry.mount_point.display();
                tracing::warn!(volume = mount.volume, %mountpoint, %error, "cannot unmount");
            }
        }
    }

    fn served_now(&self) -> Vec<ServedMount> {
        let state = self.state.lock();
        let mounts = state
            .volumes
            .values()
            .filter_map(|slot| match &slot.mounting {
                Mounting::Served(serving) => Some(serving.mount.clone()),
                Mounting::Free | Mounting::Reserved => None,
            });
        mounts.collect()
    }

    fn wait_until_free(&self, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let mut state = self.state.lock();
        while state
            .volumes
            .values()
            .any(|slot| !matches!(slot.mounting, Mounting::Free))
        {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        true
    }
}

/// How a request to mount goes on.
enum Step {
    Bind(Reserved),
    Reserve(Arc<Volume>),
    Reopen,
    Wait(&'static str),
}

impl Slot {
    fn next_step(&self, reopened: bool) -> Result<Step, ApiError> {
        let name = self.record.spec.name.as_str();
        match &self.mounting {
            Mounting::Reserved => return Ok(Step::Wait("another mount of it is under way")),
            Mounting::Served(serving) if !serving.answering => {
                return Ok(Step::Wait("another mount of it is under way"));
            }
            Mounting::Served(serving) if serving.is_disconnected() => {
                return Ok(Step::Wait("its last mount is still ending"));
            }
            Mounting::Served(serving) => {
                return Ok(Step::Bind(Reserved::Bind {
                    connection: serving.mount.connection,
                    mountpoint: serving.mount.mountpoint.clone(),
                    namespace: serving.mount.namespace,
                }));
            }
            Mounting::Free => {}
        }
        let failure = match &self.store {
            StoreState::Opening => return Ok(Step::Wait("its log is still being replayed")),
            StoreState::Deleting => {
                let error = format!("volume `{name}` is being deleted");
                return Err(
                    ApiError::new(ErrorCode::VolumeBusy, error).next("choose another volume")
                );
            }
            StoreState::Open(volume) if !reopened && self.is_outdated(volume) => {
                return Ok(Step::Reopen);
            }
            StoreState::Open(volume) => return Ok(Step::Reserve(Arc::clone(volume))),
            StoreState::Failed(why) => why.as_str(),
        };
        // A failed store stays failed until it is opened again; nobody uses it now, so this is the moment to try.
        if reopened {
            Err(not_available(name, failure))
        } else {
            Ok(Step::Reopen)
        }
    }

    /// True if it was opened with another profile than it should have now. A check that is under way keeps it open.
    fn is_outdated(&self, volume: &Volume) -> bool {
        !self.checking && profile(self.record.spec.profile) != volume.settings().profile
    }

    /// This mount, if it is served.
    fn serving(&self, mount: &ServedMount) -> Option<&Serving> {
        match &self.mounting {
            Mounting::Served(serving) if serving.mount == *mount => Some(serving),
            Mounting::Free | Mounting::Reserved | Mounting::Served(_) => None,
        }
    }
}

impl Reservation {
    /// Serves the mount that the helper made. Returns once requests are answered.
    pub fn serve(mut self, device: OwnedFd, connection: u32) -> Result<(), ApiError> {
        let name = self.ask.volume.clone();
        let failed = |what: &str, why: String| {
            ApiError::new(
                ErrorCode::Internal,
                format!("volume `{name}` cannot be served: {what}"),
            )
            .why(why)
            .next("look at hafsd's log")
        };
        let watch = device
            .try_clone()
            .map_err(|error| failed("no descriptor is left", error.to_string()))?;
        let mount = ServedMount {
            volume: name.clone(),
            mountpoint: self.ask.directory.clone(),
            connection,
            namespace: self.ask.namespace,
        };
        let node = Arc::clone(&self.node);
        node.make_room(None);
        node.served
            .enter(&mount)
            .map_err(|error| failed("the mount cannot be written down", error.to_string()))?;
        // Before it is served: its end may come before `serve` returns.
        let mut serving = Serving {
            mount: mount.clone(),
            since: Timestamp::now(),
            answering: false,
            directories: BTreeSet::new(),
            device: watch,
        };
        if is_mounted_on(connection, &self.ask.directory) {
            serving.note_directory(&self.ask.directory);
        }
        self.become_served(serving);

        let settings = MountSettings {
            writeback: node.writeback_of(&name),
            ..MountSettings::new(name.as_str(), connection)
        };
        let (ended_node, ended_volume) = (Arc::clone(&node), Arc::clone(&self.volume));
        let ended_mount = mount.clone();
        let ended = Box::new(move |end: MountEnd| {
            ended_node.mount_ended(&ended_volume, &ended_mount, &end);
        });
        match Mount::serve(Arc::clone(&self.volume), device, &settings, ended) {
            Ok(_) => {
                node.mount_answers(&mount);
                tracing::info!(
                    volume = name,
                    mountpoint = mount.mountpoint,
                    connection,
                    "mounted"
                );
                Ok(())
            }
            Err(error) => {
                node.served.remove(&mount);
                self.used = false;
                tracing::error!(volume = name, error = chain(&error), "cannot serve a mount");
                Err(failed(
                    "the handshake with the kernel failed",
                    chain(&error),
                ))
            }
        }
    }

    fn become_served(&mut self, serving: Serving) {
        let mut state = self.node.state.lock();
        let slot = state.volumes.get_mut(&self.ask.volume);
        // Invariant: a volume is not deleted while it is reserved, and nobody else takes the reservation.
        let slot = slot.expect("a reserved volume stays");
        assert!(
            matches!(slot.mounting, Mounting::Reserved),
            "the reservation is ours"
        );
        slot.mounting = Mounting::Served(serving);
        self.used = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.used {
            return;
        }
        let mut state = self.node.state.lock();
        if let Some(slot) = state.volumes.get_mut(&self.ask.volume) {
            slot.mounting = Mounting::Free;
        }
        drop(state);
        self.node.changed.notify_all();
    }
}

/// Whether a mount over this connection is on `directory` in the mount namespace of this process.
fn is_mounted_on(connection: u32, directory: &str) -> bool {
    mountinfo::mounts().is_ok_and(|mounts| {
        mounts.iter().any(|entry| {
            entry.device == (0, connection) && entry.mount_point == Path::new(directory)
        })
    })
}

/// Whether that is the mount namespace of this process.
fn is_here(namespace: u64) -> bool {
    mountpoint::namespace().is_ok_and(|ours| ours == namespace)
}

fn not_available(name: &str, why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::VolumeFailed,
        format!("volume `{name}` is not available"),
    )
    .why(why.to_owned())
    .next(format!(
        "repair the cause and mount again; hafsctl volume repair {name} says what can be done"
    ))
}

/// Whether a line of the mount table has the number and the name of `mount`.
fn is_of(entry: &MountEntry, mount: &ServedMount) -> bool {
    entry.is_hafs()
        && entry.device == (0, mount.connection)
        && entry.source == mount.volume.as_str()
}

/// Dirty pages of the kernel's cache come to us as writes.
fn write_back(entry: &MountEntry) -> std::io::Result<()> {
    let root = File::open(&entry.mount_point)?;
    Ok(rustix::fs::syncfs(root.as_fd())?)
}

fn unmount_entry(volume: &str, entry: &MountEntry) {
    let mountpoint = entry.mount_point.display();
    if !mountpoint::is_reachable(entry) {
        tracing::warn!(volume, %mountpoint, "lies under another mount, not unmounted");
        return;
    }
    match rustix::mount::unmount(&entry.mount_point, UnmountFlags::NOFOLLOW) {
        Ok(()) => tracing::debug!(volume, %mountpoint, "taken off its directory"),
        Err(rustix::io::Errno::BUSY) => match mountpoint::detach(&entry.mount_point) {
            Ok(()) => tracing::warn!(volume, %mountpoint, "in use: unmounted lazily"),
            Err(error) => tracing::warn!(volume, %mountpoint, %error, "cannot unmount"),
        },
        Err(error) => tracing::warn!(volume, %mountpoint, %error, "cannot unmount"),
    }
}

/// A test may hold the end of a mount up: for as long as the file is there that it names.
fn hold_the_end() {
    fail::fail_point!("mount-ended", |file| {
        let file = file.expect("return(FILE)");
        let deadline = Instant::now() + HOLD_WAIT;
        while Path::new(&file).exists() && Instant::now() < deadline {
            std::thread::park_timeout(HOLD_PAUSE);
        }
    });
}

fn abort(mount: &ServedMount) {
    match hafs_fs::mount::abort_connection(mount.connection) {
        Ok(()) => {}
        // Ended by itself meanwhile.
        Err(hafs_fs::FsError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(
                volume = mount.volume,
                error = chain(&error),
                "cannot abort the mount"
            );
        }
    }
}
