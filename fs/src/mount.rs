//! Serving a mounted volume: the sessions over its `/dev/fuse` descriptor, from the handshake to the unmount.
//!
//! The mount helper calls [`mount_volume`] in its user's mount namespace and hands the descriptor over; the daemon calls
//! [`Mount::serve`] with it and learns from the `ended` callback that the volume is unmounted. What requests mean is
//! [`fuse`](crate::fuse)'s; who may mount, and where, is the caller's.
//!
//! One session a thread, each over its own clone of the descriptor: requests that one session has read and not answered
//! stay with that descriptor, so a keeper that holds them all can give them to a new daemon. A session that fuser's own
//! panic ended is followed by another, over a new clone: closing the old one has the kernel fail the request that nobody
//! will answer.

pub(crate) mod device;
mod probe;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{Filesystem, InitFlags, KernelConfig, Session};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags};

use crate::error::FsError;
use crate::fuse::late::{self, WAITERS, Waiter};
use crate::fuse::negotiate::REQUEST_BYTES_MAX;
pub use crate::fuse::panic_is_fusers;
use crate::fuse::reaper::{self, Reaper};
use crate::fuse::seek::{self, SEEKERS, Seeker};
use crate::fuse::{Fuse, Queues};
use crate::volume::{Profile, Volume};

pub use self::probe::{KernelOffer, kernel_offer};

/// Type of a hafs mount, as `/proc/mounts` shows it and mount(8) is given it.
pub const FILESYSTEM_TYPE: &str = "fuse.hafs";

/// Sessions of one mount: one more than the machine has cores, since an fsync may wait for the disk in one of them. More only
/// add wake-ups; fewer than two would let one slow read from the disk hold up everything else.
const SESSIONS_MIN: usize = 2;
const SESSIONS_MAX: usize = 16;

/// How a volume is served.
#[derive(Clone, Debug)]
pub struct MountSettings {
    /// The volume's name, for logs.
    pub name: String,
    /// The connection's number, as [`mount_volume`] returned it.
    pub connection: u32,
    /// Gather writes in the kernel's page cache. Off: slower, and a full volume is told by write(2) itself.
    pub writeback: bool,
}

impl MountSettings {
    /// The defaults: writeback on.
    pub fn new(name: impl Into<String>, connection: u32) -> Self {
        Self {
            name: name.into(),
            connection,
            writeback: true,
        }
    }
}

/// Why a mount is not served any more.
#[derive(Debug)]
pub enum MountEnd {
    /// The last mount of the volume in any namespace was unmounted, or the connection was aborted.
    Unmounted,
    /// A session failed. The mount may still be there and answers every request with an error: unmount it.
    Failed(io::Error),
}

/// Called once, from a thread of its own, when no session is left and every orphan is reclaimed. From then on the volume
/// may be mounted again or closed.
pub type MountEnded = Box<dyn FnOnce(MountEnd) + Send>;

/// A volume that is being served. Dropping it changes nothing: it is served until it is unmounted or aborted.
#[derive(Debug)]
pub struct Mount {
    connection: u32,
}

impl Mount {
    /// Serves `volume` through `device`, a freshly mounted `/dev/fuse`. Returns when requests are being answered.
    ///
    /// # Errors
    /// [`FsError::Refused`] for a descriptor that is not a fresh mount, [`FsError::Io`] if the kernel or the system fails.
    /// The connection is then gone; the mount must be unmounted by whoever made it.
    pub fn serve(
        volume: Arc<Volume>,
        device: OwnedFd,
        settings: &MountSettings,
        ended: MountEnded,
    ) -> Result<Self, FsError> {
        let connection = Connection::from_fresh(device, session_count())?;
        // The connection is new, so the kernel holds nothing of this volume yet.
        let reclaimed = volume.reclaim_orphans();
        tracing::debug!(
            volume = settings.name,
            reclaimed,
            "orphans of an earlier mount"
        );

        let control = Arc::clone(&connection.control);
        let name: Arc<str> = settings.name.as_str().into();
        let (forgets, reaper) = reaper::reaper(Arc::clone(&volume), Arc::clone(&control));
        let (seeks, seeker) =
            seek::seeker(Arc::clone(&volume), Arc::clone(&name), Arc::clone(&control));
        let (late, waiter) = late::late(Arc::clone(&volume));
        let queues = Queues {
            forgets,
            seeks,
            late,
        };
        let writeback = settings.writeback;
        let fuse = {
            let (volume, name) = (Arc::clone(&volume), Arc::clone(&name));
            move || {
                let (volume, name) = (Arc::clone(&volume), Arc::clone(&name));
                Fuse::new(volume, name, writeback, queues.clone())
            }
        };
        let sessions = connection.attach(&fuse)?;
        // Only the sessions keep their ends of the queues now: reaper, seekers and waiters stop when the last one does.
        let heir = Heir {
            control,
            init: connection.init.into(),
            fuse: Arc::new(fuse),
        };

        let mount = Self {
            connection: settings.connection,
        };
        mount.set_readahead(volume.settings().profile);
        let background = Background {
            reaper,
            seeker,
            waiter,
        };
        run(sessions, &heir, background, volume, name, ended)?;
        tracing::info!(
            volume = settings.name,
            connection = mount.connection,
            writeback = settings.writeback,
            "mount served"
        );
        Ok(mount)
    }

    /// The connection's number: minor of `st_dev` for everything in the mount, major 0.
    pub fn connection(&self) -> u32 {
        self.connection
    }

    /// Ends the connection at once, whatever is open: every request, waiting or new, fails with ENOTCONN or ECONNABORTED.
    /// The mount itself stays until it is unmounted. For when unmounting is not possible.
    ///
    /// # Errors
    /// [`FsError::Io`] if the kernel's control files cannot be reached.
    pub fn abort(&self) -> Result<(), FsError> {
        abort_connection(self.connection)
    }

    /// The kernel allows no more than 128 KiB in the handshake; sequential reads want more. Best effort: without it
    /// reads are slower, not wrong.
    fn set_readahead(&self, profile: Profile) {
        let path = format!("/sys/class/bdi/0:{}/read_ahead_kb", self.connection);
        let kib = profile.readahead_kib();
        if let Err(error) = fs::write(&path, kib.to_string()) {
            tracing::debug!(path, %error, "readahead stays at the kernel's default");
        }
    }
}

/// Serves any filesystem as [`Mount::serve`] serves a volume: the same handshake, the same number of sessions, each on a
/// thread of its own. Returns with the threads, which end with the mount. For measuring what FUSE itself costs.
///
/// # Errors
/// As [`Mount::serve`], less the volume's.
#[doc(hidden)]
pub fn serve_filesystem<F: Filesystem>(
    device: OwnedFd,
    filesystem: impl FnMut() -> F,
) -> Result<Vec<JoinHandle<io::Result<()>>>, FsError> {
    let sessions = Connection::from_fresh(device, session_count())?.attach(filesystem)?;
    let mut threads = Vec::with_capacity(sessions.len());
    for (number, session) in sessions.into_iter().enumerate() {
        let (start, thread) = spawn_session(number, move || session.run())?;
        start.send(()).expect("the session thread waits for this");
        threads.push(thread);
    }
    Ok(threads)
}

/// Agrees with the kernel on what a hafs volume agrees on; for [`serve_filesystem`], from its `init`.
#[doc(hidden)]
pub fn negotiate(config: &mut KernelConfig, writeback: bool) -> InitFlags {
    crate::fuse::negotiate::negotiate(config, writeback)
}

/// How long the kernel may keep what a mount has told it of names and attributes; for [`serve_filesystem`].
#[doc(hidden)]
pub const KERNEL_CACHE_TIME: Duration = crate::fuse::TTL;

fn session_count() -> usize {
    thread::available_parallelism()
        .map_or(SESSIONS_MIN, |cores| cores.get() + 1)
        .clamp(SESSIONS_MIN, SESSIONS_MAX)
}

/// A mounted connection: its descriptors, and the kernel's INIT request, which everybody who ever serves it must answer
/// alike.
struct Connection {
    /// As it was handed over: for messages and for making clones. No session reads from it, since who handed it over may
    /// hold it, too, and a session's descriptor must close when the session ends.
    control: Arc<OwnedFd>,
    /// The sessions': clones.
    fds: Vec<OwnedFd>,
    init: Vec<u8>,
}

impl Connection {
    /// Takes over a connection that was just mounted, and clones its descriptor for `count` sessions.
    fn from_fresh(device: OwnedFd, count: usize) -> Result<Self, FsError> {
        device::check(device.as_fd())?;
        let init = device::read_init(device.as_fd())?;
        let fds = (0..count).map(|_| device::clone_of(device.as_fd()));
        Ok(Self {
            fds: fds.collect::<Result<_, _>>()?,
            control: Arc::new(device),
            init,
        })
    }

    /// Makes a session for each descriptor and answers INIT. No session runs yet.
    fn attach<F: Filesystem>(
        &self,
        mut filesystem: impl FnMut() -> F,
    ) -> Result<Vec<Session<F>>, FsError> {
        let mut sessions = Vec::with_capacity(self.fds.len());
        let mut answer: Option<Vec<u8>> = None;
        for fd in &self.fds {
            let (session, reply) = device::attach(filesystem(), fd.as_fd(), &self.init)?;
            let answer = answer.get_or_insert_with(|| reply.clone());
            assert_eq!(
                *answer, reply,
                "sessions of one connection agreed on different things"
            );
            sessions.push(session);
        }
        let answer = answer.expect("a connection has a descriptor");
        device::answer(self.control.as_fd(), &answer)?;
        Ok(sessions)
    }
}

type SessionThread = JoinHandle<io::Result<()>>;

/// What a session needs to take the place of one that panicked.
#[derive(Clone)]
struct Heir {
    control: Arc<OwnedFd>,
    init: Arc<[u8]>,
    fuse: Arc<dyn Fn() -> Fuse + Send + Sync>,
}

impl Heir {
    fn session(&self) -> Result<Session<Fuse>, FsError> {
        let device = device::clone_of(self.control.as_fd())?;
        let (session, _same_answer) = device::attach((self.fuse)(), device.as_fd(), &self.init)?;
        Ok(session)
    }
}

/// What works beside the sessions.
struct Background {
    reaper: Reaper,
    seeker: Seeker,
    waiter: Waiter,
}

/// Starts a thread for each session, those that answer lseek and those that wait for room, and one that reaps orphans and
/// then waits for the end of all that change the volume. All or none: if a thread cannot be made, no session reads a request.
fn run(
    sessions: Vec<Session<Fuse>>,
    heir: &Heir,
    background: Background,
    volume: Arc<Volume>,
    name: Arc<str>,
    ended: MountEnded,
) -> Result<(), FsError> {
    let mut starts = Vec::with_capacity(sessions.len());
    let mut threads = Vec::with_capacity(sessions.len());
    for (number, session) in sessions.into_iter().enumerate() {
        let heir = heir.clone();
        let (start, thread) = spawn_session(number, move || serve(session, &heir))?;
        starts.push(start);
        threads.push(thread);
    }
    let Background {
        reaper,
        seeker,
        waiter,
    } = background;
    for number in 0..SEEKERS {
        let seeker = seeker.clone();
        spawn(format!("hafs-seek-{number}"), move || seeker.run())?;
    }
    let mut waiters = Vec::with_capacity(WAITERS);
    for number in 0..WAITERS {
        let waiter = waiter.clone();
        waiters.push(spawn(format!("hafs-wait-{number}"), move || waiter.run())?);
    }
    spawn("hafs-mount".to_owned(), move || {
        reaper.run();
        let end = join(threads);
        for waiter in waiters {
            if waiter.join().is_err() {
                tracing::error!(volume = &*name, "a thread that waits for room panicked");
            }
        }
        finish(&volume, &name, &end);
        ended(end);
    })?;
    for start in starts {
        start.send(()).expect("a session thread waits for this");
    }
    Ok(())
}

/// The thread waits until it is sent something; if the sender is dropped instead, it ends.
fn spawn_session(
    number: usize,
    body: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(SyncSender<()>, SessionThread), FsError> {
    let (start, started) = mpsc::sync_channel(1);
    let thread = spawn(format!("hafs-fuse-{number}"), move || {
        match started.recv() {
            Ok(()) => body(),
            Err(mpsc::RecvError) => Ok(()),
        }
    })?;
    Ok((start, thread))
}

/// Runs a session, and another after each that fuser's own panic ended: see [`panic_is_fusers`].
fn serve(mut session: Session<Fuse>, heir: &Heir) -> io::Result<()> {
    loop {
        match session.run() {
            // Of the errors that end a session only this one comes from no system call.
            Err(error)
                if error.kind() == io::ErrorKind::Other && error.raw_os_error().is_none() =>
            {
                report_panic();
                session = heir.session().map_err(io::Error::other)?;
            }
            end => return end,
        }
    }
}

/// Says so the first time and then ever more rarely: whoever causes it can do so all the time.
fn report_panic() {
    static PANICS: AtomicU64 = AtomicU64::new(0);
    let count = PANICS.fetch_add(1, Ordering::Relaxed) + 1;
    if count.is_power_of_two() {
        tracing::warn!(
            count,
            "an application sent a request that cannot be read; it was refused"
        );
    }
}

fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, FsError> {
    thread::Builder::new()
        .name(name.clone())
        .spawn(body)
        .map_err(|source| FsError::Io {
            op: "start thread",
            path: name,
            source,
        })
}

fn join(threads: Vec<SessionThread>) -> MountEnd {
    let mut end = MountEnd::Unmounted;
    for thread in threads {
        let result = thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("session panicked")));
        if let Err(error) = result {
            end = MountEnd::Failed(error);
        }
    }
    end
}

/// Nobody can reach an orphan any more; give their space back before the volume is used for anything else. Those that stay
/// are the next mount's.
fn finish(volume: &Volume, name: &str, end: &MountEnd) {
    let reclaimed = volume.reclaim_orphans();
    tracing::info!(volume = name, ?end, reclaimed, "mount ended");
}

/// Opens `/dev/fuse`, for [`mount_volume`].
///
/// # Errors
/// [`FsError::Io`]: no FUSE in this kernel, or no permission.
pub fn open_device() -> Result<OwnedFd, FsError> {
    device::open()
}

/// Mounts `volume` on `target` in the calling process's mount namespace, through `device`, which must then be served.
/// Returns the connection's number. Nothing in the mount answers before [`Mount::serve`]; to undo it, unmount with
/// `MNT_DETACH`.
///
/// # Errors
/// [`FsError::Io`] with mount(2)'s errno.
pub fn mount_volume(
    device: BorrowedFd<'_>,
    volume: &str,
    target: &Path,
    flags: MountFlags,
) -> Result<u32, FsError> {
    mount_labelled(device, volume, target, flags, &[])
}

/// The same with options for the kernel's security modules, such as `context=..`, handed on as they are.
///
/// # Errors
/// [`FsError::Io`] with mount(2)'s errno.
pub fn mount_labelled(
    device: BorrowedFd<'_>,
    volume: &str,
    target: &Path,
    flags: MountFlags,
    security: &[String],
) -> Result<u32, FsError> {
    let failed = |op| {
        move |errno: rustix::io::Errno| FsError::Io {
            op,
            path: target.display().to_string(),
            source: errno.into(),
        }
    };
    let data = CString::new(mount_data(device, security))
        .map_err(|_| failed("mount")(rustix::io::Errno::INVAL))?;
    rustix::mount::mount(volume, target, FILESYSTEM_TYPE, flags, data.as_c_str())
        .map_err(failed("mount"))?;
    // DONT_SYNC and no fields: the kernel answers from what it has, without a request that nobody serves yet.
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat =
        rustix::fs::statx(CWD, target, flags, StatxFlags::empty()).map_err(failed("stat"))?;
    Ok(stat.stx_dev_minor)
}

/// The kernel checks permissions for everybody by the inodes' modes; requests are made as root.
fn mount_data(device: BorrowedFd<'_>, security: &[String]) -> String {
    let fd = device.as_raw_fd();
    let mut data = format!(
        "fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read={REQUEST_BYTES_MAX}"
    );
    for option in security {
        data.push(',');
        data.push_str(option);
    }
    data
}

/// Whether there is such a connection: the superblock has a mount, in whatever namespace, or somebody uses it without one.
///
/// # Errors
/// [`FsError::Io`] if the kernel's control files cannot be reached.
pub fn is_connected(connection: u32) -> Result<bool, FsError> {
    let look = || -> rustix::io::Result<bool> {
        let control = control_files()?;
        match rustix::fs::statat(&control, connection.to_string(), AtFlags::empty()) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    };
    look().map_err(|errno| FsError::Io {
        op: "look for connection",
        path: connection.to_string(),
        source: errno.into(),
    })
}

/// Aborts a connection by its number; also one of a daemon that is gone.
///
/// `umount2(MNT_FORCE)` would need the mount point, which may be in another mount namespace.
///
/// # Errors
/// [`FsError::Io`]; with `ErrorKind::NotFound` if there is no such connection.
pub fn abort_connection(connection: u32) -> Result<(), FsError> {
    let write_abort = || -> rustix::io::Result<()> {
        let control = control_files()?;
        let path = format!("{connection}/abort");
        let abort = rustix::fs::openat(
            &control,
            path,
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        rustix::io::write(&abort, b"1")?;
        Ok(())
    };
    write_abort().map_err(|errno| FsError::Io {
        op: "abort connection",
        path: connection.to_string(),
        source: errno.into(),
    })
}

/// The root of the control filesystem, mounted for the moment and attached nowhere: `/sys/fs/fuse/connections` may not be
/// mounted.
fn control_files() -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_data_is_what_the_kernel_parses() {
        let file = fs::File::open("/dev/null").unwrap();
        let data = mount_data(file.as_fd(), &[]);
        assert!(data.starts_with(&format!("fd={},rootmode=40000,", file.as_raw_fd())));
        assert!(data.ends_with(",allow_other,default_permissions,max_read=1048576"));
        let labelled = mount_data(file.as_fd(), &["context=\"u:r:t:s0:c1,c2\"".to_owned()]);
        assert_eq!(labelled, format!("{data},context=\"u:r:t:s0:c1,c2\""));
    }

    #[test]
    fn a_descriptor_that_is_no_device_is_refused_and_nothing_is_read() {
        let file = fs::File::open("/dev/zero").unwrap();
        assert!(matches!(
            Connection::from_fresh(file.into(), 2),
            Err(FsError::Refused(_))
        ));
    }
}
