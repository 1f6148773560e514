//! What `mount -t fuse.hafs VOLUME DIR` and `umount DIR` do, in the mount namespace of whoever calls them.
//!
//! `mount-fuse-hafs` calls [`mount()`]. It asks hafsd, lays a guard on the directory, mounts or binds on top of it, and
//! returns only after the mount's root has answered. On any failure nothing is left on the directory that was not there
//! before. [`unmount()`] takes both off again.

pub mod guard;
mod options;
mod unmount;
mod utab;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafs_fs::FsError;
use hafs_fs::mount::{mount_labelled, open_device};
use hafs_fs::mountinfo::{self, MountEntry};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::control::client::no_daemon;
use crate::control::fd_socket;
use crate::control::mounting::{ANSWER_WAIT, Answer, Ask, MARGIN, Serve, Served};
use crate::fdpass::{Conversation, PassError};
use crate::mountpoint::{self, Probe};
use crate::output::{Refusal, chain};

use self::guard::Guard;
pub use self::options::{MountOptions, OptionError};
pub use self::unmount::{UnmountCall, unmount};

/// How often hafsd is asked again when the mount to bind is gone by the time it is looked for.
const ASK_TRIES: u32 = 3;
/// Dead mounts on one directory that are cleared away, one on the other.
const DEAD_MAX: u32 = 8;
/// The kernel's filesystems; SELinux has one while it is on.
const FILESYSTEMS: &str = "/proc/filesystems";
/// How long hafsd may take to begin serving: it gives the space of files back that were deleted while open, before a crash.
const SERVE_WAIT: Duration = Duration::from_secs(60);

/// What mount(8) passes.
#[derive(Debug, Clone)]
pub struct MountCall {
    /// The volume's name.
    pub volume: String,
    /// Where it is to be mounted.
    pub directory: PathBuf,
    /// `-o`.
    pub options: MountOptions,
    /// The control socket, if the options name none.
    pub socket: PathBuf,
    /// Do all but mount (`mount -f`).
    pub fake: bool,
}

/// Why nothing was mounted, by mount(8)'s exit codes.
#[derive(Debug, thiserror::Error)]
pub enum MountFailure {
    /// Called wrongly, or without permission.
    #[error("{0}")]
    Usage(Refusal),
    /// The system lacks something: memory, descriptors, FUSE.
    #[error("{0}")]
    System(Refusal),
    /// It was not mounted.
    #[error("{0}")]
    Mount(Refusal),
}

impl MountFailure {
    /// mount(8)'s exit code.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 1,
            Self::System(_) => 2,
            Self::Mount(_) => 32,
        }
    }

    /// What to print.
    pub const fn refusal(&self) -> &Refusal {
        match self {
            Self::Usage(refusal) | Self::System(refusal) | Self::Mount(refusal) => refusal,
        }
    }
}

/// Mounts, binds or remounts, as the call asks.
pub fn mount(call: &MountCall) -> Result<(), MountFailure> {
    if !rustix::process::geteuid().is_root() {
        return Err(MountFailure::Usage(
            Refusal::new("only root can mount a hafs volume")
                .why("mount(2) needs CAP_SYS_ADMIN, and hafs has no setuid helper")
                .next("run mount as root, or have root mount it through /etc/fstab"),
        ));
    }
    refuse_path_as_volume(call)?;
    refuse_security(&call.options)?;
    let directory = directory(&call.directory)?;
    if call.options.remount {
        return remount(call, &directory);
    }
    let mut missing = None;
    for _ in 0..ASK_TRIES {
        match mount_or_bind(call, &directory, missing)? {
            Outcome::Done => return Ok(()),
            // Mounted elsewhere, or missed twice: it is not about to end, it is out of reach.
            Outcome::NotHere {
                connection,
                first,
                same_namespace,
            } if !same_namespace || missing == Some(connection) => {
                return Err(elsewhere(&call.volume, &first, same_namespace));
            }
            // Perhaps an umount is under way: hafsd waits for its end before it answers again.
            Outcome::NotHere { connection, .. } => missing = Some(connection),
        }
    }
    Err(MountFailure::Mount(
        Refusal::new(format!(
            "volume `{}` is mounted and unmounted all the time",
            call.volume
        ))
        .why("each time it was to be bound, the mount was gone")
        .next("try again"),
    ))
}

/// mount(8) makes an absolute path of a source that is the name of a file in the current directory.
fn refuse_path_as_volume(call: &MountCall) -> Result<(), MountFailure> {
    let Some((_, name)) = call.volume.rsplit_once('/') else {
        return Ok(());
    };
    Err(MountFailure::Mount(
        Refusal::new(format!("`{}` is not the name of a volume", call.volume))
            .why("names hold no `/`; mount makes a path of a name that is also a file in the current directory")
            .next(format!("call mount from another directory, with `{name}`")),
    ))
}

/// A label that is asked for and not set would leave files open to what the label was to keep out.
fn refuse_security(options: &MountOptions) -> Result<(), MountFailure> {
    let Some(option) = options.security.first() else {
        return Ok(());
    };
    let filesystems = fs::read_to_string(FILESYSTEMS).unwrap_or_default();
    if filesystems.lines().any(|line| line.ends_with("selinuxfs")) {
        return Ok(());
    }
    Err(MountFailure::Mount(
        Refusal::new(format!("option `{option}` needs SELinux"))
            .why("it is not in this kernel, or not switched on: nothing would keep the label")
            .next("leave the option out, or boot with SELinux"),
    ))
}

/// Labels belong to the superblock: a bind of a mount, or a remount, has those of the first mount.
fn refuse_other_labels(call: &MountCall, entry: &MountEntry) -> Result<(), MountFailure> {
    let plain = |option: &str| option.replace('"', "");
    let has: Vec<String> = options::split(&entry.super_options).map(plain).collect();
    let missing = |option: &&String| !has.contains(&plain(option));
    let Some(option) = call.options.security.iter().find(missing) else {
        return Ok(());
    };
    Err(MountFailure::Mount(
        Refusal::new(format!(
            "volume `{}` is mounted without `{option}`",
            call.volume
        ))
        .why("all mounts of a volume on a node have the labels of the first")
        .next(format!(
            "unmount it everywhere first ({} is one place), or leave the option out",
            entry.mount_point.display()
        )),
    ))
}

/// The mount point, as mountinfo names it.
fn directory(path: &Path) -> Result<PathBuf, MountFailure> {
    let refused = |problem: &str, why: String| {
        let refusal = Refusal::new(format!("cannot mount on {}: {problem}", path.display()));
        MountFailure::Mount(
            refusal
                .why(why)
                .next("choose a directory as the mount point"),
        )
    };
    let directory = match mountpoint::canonical(path) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let path = path.display();
            let refusal = Refusal::new(format!(
                "cannot mount on {path}: there is no such directory"
            ));
            return Err(MountFailure::Mount(
                refusal
                    .why("mount makes no directories")
                    .next(format!("mkdir -p {path}")),
            ));
        }
        Err(error) => return Err(refused("it cannot be reached", error.to_string())),
    };
    if directory.to_str().is_none() {
        return Err(refused(
            "its name is not UTF-8",
            "hafsd could not show it".to_owned(),
        ));
    }
    // A dead mount has no answer to what it is; that something is mounted there tells that it is a directory.
    match fs::metadata(&directory) {
        Ok(metadata) if !metadata.is_dir() => {
            let why = "a volume is mounted on a directory".to_owned();
            Err(refused("it is not a directory", why))
        }
        Ok(_) | Err(_) => Ok(directory),
    }
}

/// Takes dead mounts of hafs off the directory. Others, and living ones, stay below the new mount. Only once it is clear
/// that a new one takes their place: a dead mount at least keeps writes out of the directory underneath.
fn clear_dead(directory: &Path) -> Result<(), MountFailure> {
    for _ in 0..DEAD_MAX {
        let Some(entry) = top(directory)? else {
            return Ok(());
        };
        if !entry.is_hafs() || mountpoint::probe(directory) != Probe::Dead {
            return Ok(());
        }
        mountpoint::detach(directory).map_err(|error| {
            MountFailure::Mount(
                Refusal::new(format!(
                    "the dead mount on {} cannot be cleared away",
                    directory.display()
                ))
                .why(error.to_string())
                .next(format!("umount -l {}", directory.display())),
            )
        })?;
    }
    Ok(())
}

/// How one conversation with hafsd ended.
enum Outcome {
    Done,
    /// hafsd serves a mount of the volume that is not to be seen from here, or no more.
    NotHere {
        connection: u32,
        first: String,
        same_namespace: bool,
    },
}

fn mount_or_bind(
    call: &MountCall,
    directory: &Path,
    missing: Option<u32>,
) -> Result<Outcome, MountFailure> {
    let conversation = connect(call)?;
    let ask = Ask {
        volume: call.volume.clone(),
        directory: directory.to_str().expect("checked before").to_owned(),
        namespace: mountpoint::namespace()
            .map_err(|error| system("tell this mount namespace", &error))?,
        missing,
    };
    conversation
        .send(&ask, None)
        .map_err(|error| broken(&error))?;
    let (answer, _) = conversation.receive().map_err(|error| broken(&error))?;
    match answer {
        Answer::Refused(error) => Err(MountFailure::Mount(error.into())),
        Answer::Mount | Answer::Bind { .. } if call.fake => Ok(Outcome::Done),
        Answer::Mount => {
            clear_dead(directory)?;
            mount_new(call, directory, &conversation).map(|()| Outcome::Done)
        }
        Answer::Bind {
            connection,
            directory: first,
            same_namespace,
        } => {
            clear_dead(directory)?;
            refuse_twice(call, top(directory)?.as_ref(), connection)?;
            match mounts()?
                .iter()
                .find(|entry| can_be_bound(entry, connection))
            {
                Some(entry) => {
                    refuse_other_labels(call, entry)?;
                    bind(call, &entry.mount_point, directory).map(|()| Outcome::Done)
                }
                None => Ok(Outcome::NotHere {
                    connection,
                    first,
                    same_namespace,
                }),
            }
        }
    }
}

/// As mount(2) itself does: the same filesystem twice on one directory would need two umounts and show nothing new.
fn refuse_twice(
    call: &MountCall,
    top: Option<&MountEntry>,
    connection: u32,
) -> Result<(), MountFailure> {
    match top {
        Some(entry) if entry.is_hafs() && entry.device == (0, connection) => {
            let (volume, directory) = (&call.volume, call.directory.display());
            let refusal = Refusal::new(format!(
                "volume `{volume}` is mounted on {directory} already"
            ));
            Err(MountFailure::Mount(
                refusal
                    .why("a second mount on the same directory would only lie on the first")
                    .next(format!("use it, or umount {directory} first")),
            ))
        }
        Some(_) | None => Ok(()),
    }
}

/// A mount of the whole volume over this connection, with its path leading to it.
fn can_be_bound(entry: &MountEntry, connection: u32) -> bool {
    entry.is_hafs()
        && entry.device == (0, connection)
        && entry.root == Path::new("/")
        && mountpoint::is_reachable(entry)
}

fn connect(call: &MountCall) -> Result<Conversation, MountFailure> {
    let socket = call.options.socket.as_ref().unwrap_or(&call.socket);
    Conversation::connect(&fd_socket(socket), ANSWER_WAIT + MARGIN)
        .map_err(|error| MountFailure::Mount(no_daemon(socket, "-o socket=PATH", &error)))
}

/// Mounts and hands the descriptor over.
fn mount_new(
    call: &MountCall,
    directory: &Path,
    conversation: &Conversation,
) -> Result<(), MountFailure> {
    let device = open_device().map_err(|error| {
        MountFailure::System(
            Refusal::new("FUSE is not available")
                .why(chain(&error))
                .next("modprobe fuse"),
        )
    })?;
    // Read only is a property of this mount, not of the volume: a second one may be writable. Nobody can write before
    // the flag is set, because nobody is served yet.
    let flags = call.options.flags.difference(MountFlags::RDONLY);
    let guard = lay_guard(call, directory)?;
    let connection = mount_labelled(
        device.as_fd(),
        &call.volume,
        directory,
        flags,
        &call.options.security,
    )
    .map_err(|error| not_mounted(call, &chain(&error)))?;
    let mounted = Mounted {
        directory,
        done: false,
    };
    if call.options.flags.contains(MountFlags::RDONLY) {
        set_flags(directory, call.options.flags)
            .map_err(|error| not_mounted(call, &error.to_string()))?;
    }
    conversation
        .set_timeout(SERVE_WAIT)
        .map_err(|error| system("set a time-out", &error))?;
    conversation
        .send(&Serve { connection }, Some(device.as_fd()))
        .map_err(|error| broken(&error))?;
    let (served, _) = conversation.receive().map_err(|error| broken(&error))?;
    match served {
        Served::Serving => {}
        Served::Refused(error) => return Err(MountFailure::Mount(error.into())),
    }
    // From here on hafsd alone keeps the connection alive.
    drop(device);
    answered(call, directory)?;
    mounted.keep();
    guard.keep();
    utab::enter(&call.volume, directory, &call.options.remarks);
    Ok(())
}

/// Binds the mount that is there; its flags are its own.
fn bind(call: &MountCall, first: &Path, directory: &Path) -> Result<(), MountFailure> {
    let guard = lay_guard(call, directory)?;
    rustix::mount::mount_bind(first, directory).map_err(|error| {
        not_mounted(
            call,
            &format!("cannot bind the mount on {}: {error}", first.display()),
        )
    })?;
    let mounted = Mounted {
        directory,
        done: false,
    };
    set_flags(directory, call.options.flags)
        .map_err(|error| not_mounted(call, &error.to_string()))?;
    answered(call, directory)?;
    mounted.keep();
    guard.keep();
    utab::enter(&call.volume, directory, &call.options.remarks);
    Ok(())
}

/// What keeps writes out of the directory underneath when the mount is gone.
fn lay_guard<'a>(call: &MountCall, directory: &'a Path) -> Result<Guard<'a>, MountFailure> {
    Guard::lay(directory, mountinfo::top_at(&mounts()?, directory)).map_err(|error| {
        not_mounted(
            call,
            &format!("cannot lay a read-only tmpfs first: {error}"),
        )
    })
}

/// Changes the flags of a mount that is there.
fn remount(call: &MountCall, directory: &Path) -> Result<(), MountFailure> {
    let entry = match top(directory)? {
        Some(entry) if entry.is_hafs() && entry.source == call.volume.as_str() => entry,
        _ => {
            return Err(MountFailure::Mount(
                Refusal::new(format!(
                    "volume `{}` is not mounted on {}",
                    call.volume,
                    directory.display()
                ))
                .why("a remount changes a mount that is there")
                .next("leave `remount` out to mount it"),
            ));
        }
    };
    refuse_other_labels(call, &entry)?;
    if call.fake {
        return Ok(());
    }
    let failed = |error: io::Error| not_remounted(call, &error);
    let flags = call.options.flags;
    // Ours makes a mount read-only; mount(2) without us may have made the whole filesystem so.
    let unlocks = !flags.contains(MountFlags::RDONLY)
        && entry.super_options.split(',').any(|option| option == "ro");
    if unlocks {
        rustix::mount::mount_remount(directory, flags, "").map_err(|errno| failed(errno.into()))?;
    }
    set_flags(directory, flags).map_err(failed)
}

fn set_flags(directory: &Path, flags: MountFlags) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(
        directory,
        MountFlags::BIND | flags,
        "",
    )?)
}

/// The root must answer before the caller starts anything on it.
fn answered(call: &MountCall, directory: &Path) -> Result<(), MountFailure> {
    match mountpoint::probe(directory) {
        Probe::Alive => Ok(()),
        Probe::Dead => Err(not_mounted(call, "hafsd ended meanwhile")),
        Probe::Hangs => Err(not_mounted(call, "its root does not answer")),
        Probe::Fails(errno) => Err(not_mounted(call, &format!("its root answers: {errno}"))),
    }
}

/// A mount that is taken away again unless it is kept.
struct Mounted<'a> {
    directory: &'a Path,
    done: bool,
}

impl Mounted<'_> {
    fn keep(mut self) {
        self.done = true;
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if !self.done {
            // What was refused is told by the error under way; a mount that stays would be seen as well.
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let _ = rustix::mount::unmount(self.directory, flags);
        }
    }
}

fn mounts() -> Result<Vec<MountEntry>, MountFailure> {
    mountinfo::mounts().map_err(|error| no_list(&error))
}

fn top(directory: &Path) -> Result<Option<MountEntry>, MountFailure> {
    mountpoint::top(directory).map_err(|error| no_list(&error))
}

fn no_list(error: &FsError) -> MountFailure {
    MountFailure::System(
        Refusal::new("cannot read the list of mounts")
            .why(chain(error))
            .next("mount /proc"),
    )
}

fn not_mounted(call: &MountCall, why: &str) -> MountFailure {
    MountFailure::Mount(
        Refusal::new(format!(
            "volume `{}` was not mounted on {}",
            call.volume,
            call.directory.display()
        ))
        .why(why.to_owned())
        .next("look at hafsd's log and at dmesg"),
    )
}

fn not_remounted(call: &MountCall, error: &io::Error) -> MountFailure {
    let directory = call.directory.display();
    let refusal = Refusal::new(format!("{directory} was not remounted"));
    let busy = error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error());
    MountFailure::Mount(if busy {
        refusal
            .why("files are open for writing in it")
            .next(format!("fuser -vm {directory} names who; then try again"))
    } else {
        refusal.why(error.to_string()).next("look at dmesg")
    })
}

fn system(what: &str, error: &io::Error) -> MountFailure {
    MountFailure::System(Refusal::new(format!("cannot {what}")).why(error.to_string()))
}

fn broken(error: &PassError) -> MountFailure {
    let refusal = match error {
        PassError::Closed => Refusal::new("hafsd closed the connection")
            .why("it ended, or too many mounts are under way")
            .next("look at hafsd's log and try again"),
        PassError::TimedOut => Refusal::new("hafsd did not answer in time")
            .why("it is busy or stuck")
            .next("look at hafsd's log and try again"),
        PassError::Malformed(_) | PassError::Io(_) => Refusal::new("cannot speak with hafsd")
            .why(chain(error))
            .next("check that the mount helper and hafsd are of the same version"),
    };
    MountFailure::Mount(refusal)
}

fn elsewhere(volume: &str, first: &str, same_namespace: bool) -> MountFailure {
    let refusal = Refusal::new(format!(
        "volume `{volume}` is in use where it cannot be bound from"
    ));
    MountFailure::Mount(if same_namespace {
        refusal
            .why(format!(
                "its mount on {first} was taken away, but open files or a container's mount namespace keep it in use"
            ))
            .next("end the processes and containers that use it, then mount it again")
    } else {
        refusal
            .why(format!(
                "it is mounted on {first} in another mount namespace"
            ))
            .next("unmount it there, or mount in that namespace (nsenter -m)")
    })
}
