//! Puts the two sockets of a hafsd into the filesystem, and takes them away again.
//!
//! hafsd calls [`ControlSockets::bind`] before it touches its data. A socket appears under its name only when it is
//! listening and has its mode (bound elsewhere, then renamed), a stale one of a dead hafsd is replaced in the same
//! step, and one that is in use is refused: `NAME.lock` is held by flock(2) as long as the process lives.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::net::{self, SocketAddrUnix};

use super::fd_socket;
use crate::fdpass::seqpacket;
use crate::output::Refusal;

/// Longest path of a unix socket: `sun_path` holds 108 bytes with the NUL.
const SUN_PATH_BYTES_MAX: usize = 107;
/// Connections that wait to be accepted, on each socket.
const BACKLOG: i32 = 128;
/// Sockets are root's (or the user's that runs hafsd).
const SOCKET_MODE: u32 = 0o600;

/// The sockets of a running hafsd.
#[derive(Debug)]
pub struct ControlSockets {
    /// HTTP.
    pub http: UnixListener,
    /// Descriptors; SOCK_SEQPACKET.
    pub fds: OwnedFd,
    path: PathBuf,
    /// Held for as long as the sockets are ours.
    _lock: File,
}

impl ControlSockets {
    /// Listens on `path` and on the socket for descriptors beside it.
    pub fn bind(path: &Path) -> Result<Self, Refusal> {
        let fd_path = fd_socket(path);
        let temporary = temporary(path);
        let longest = fd_path.as_os_str().len().max(temporary.as_os_str().len());
        if longest > SUN_PATH_BYTES_MAX {
            let excess = longest - SUN_PATH_BYTES_MAX;
            return Err(Refusal::new(format!("the socket path {} is too long", path.display()))
                .why(format!(
                    "a unix socket's path takes {SUN_PATH_BYTES_MAX} bytes, with the names that hafsd puts beside it \
                     this one is {excess} too long"
                ))
                .next("choose a shorter --socket"));
        }
        let failed = |what: &str, error: &io::Error| {
            Refusal::new(format!("cannot {what} the socket {}", path.display()))
                .why(error.to_string())
                .next("choose another --socket, or repair its directory")
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .map_err(|error| failed("make a directory for", &error))?;
        }
        let lock = lock(path)?;
        refuse_foreign(path)?;
        refuse_foreign(&fd_path)?;

        let http = place(path, &temporary, |address| {
            let socket = net::socket_with(
                net::AddressFamily::UNIX,
                net::SocketType::STREAM,
                net::SocketFlags::CLOEXEC,
                None,
            )?;
            net::bind(&socket, address)?;
            Ok(socket)
        })
        .map_err(|error| failed("listen on", &error))?;
        let fds = place(&fd_path, &temporary, |address| {
            let socket = seqpacket()?;
            net::bind(&socket, address)?;
            Ok(socket)
        })
        .map_err(|error| failed("listen beside", &error))?;
        Ok(Self {
            http: http.into(),
            fds,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// What removes the sockets, for the time when the listeners have been handed over.
    pub fn into_parts(self) -> (UnixListener, OwnedFd, SocketNames) {
        let names = SocketNames {
            path: self.path,
            _lock: self._lock,
        };
        (self.http, self.fds, names)
    }
}

/// The names of the sockets in the filesystem, and the right to them.
#[derive(Debug)]
pub struct SocketNames {
    path: PathBuf,
    _lock: File,
}

impl SocketNames {
    /// Takes the names away: nobody new can connect.
    pub fn remove(self) {
        for path in [self.path.clone(), fd_socket(&self.path)] {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove the socket");
            }
        }
    }
}

/// Binds under a temporary name, listens, and renames: at its own name the socket is complete from the first moment.
fn place(
    path: &Path,
    temporary: &Path,
    bind: impl FnOnce(&SocketAddrUnix) -> io::Result<OwnedFd>,
) -> io::Result<OwnedFd> {
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = bind(&SocketAddrUnix::new(temporary)?)?;
    fs::set_permissions(temporary, fs::Permissions::from_mode(SOCKET_MODE))?;
    net::listen(&socket, BACKLOG)?;
    fs::rename(temporary, path)?;
    Ok(socket)
}

/// Held by flock(2); its content says who holds it.
fn lock(path: &Path) -> Result<File, Refusal> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(SOCKET_MODE)
        .open(&name)
        .map_err(|error| {
            Refusal::new(format!("cannot use the socket {}", path.display()))
                .why(error.to_string())
                .next("choose another --socket, or repair its directory")
        })?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| in_use(path))?;
    Ok(file)
}

/// Something that is not a stale socket of a dead hafsd stays where it is.
fn refuse_foreign(path: &Path) -> Result<(), Refusal> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(
            Refusal::new(format!("{} is there, and is not a socket", path.display()))
                .why("hafsd replaces only sockets that nobody listens on")
                .next("choose another --socket, or move the file away"),
        );
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(in_use(path)),
        // EPROTOTYPE: it is a socket of the other kind, and somebody may listen; the lock has told that it is no hafsd.
        Err(_) => Ok(()),
    }
}

fn in_use(path: &Path) -> Refusal {
    Refusal::new(format!("another process listens on {}", path.display()))
        .why("one hafsd serves a socket")
        .next("stop it (hafsctl status shows its pid), or choose another --socket")
}

/// In the same directory, as a rename needs.
fn temporary(path: &Path) -> PathBuf {
    path.with_file_name(format!(".hafsd-{}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let sockets = ControlSockets::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        let refusal = ControlSockets::bind(&path).unwrap_err();
        assert!(
            refusal.error.contains("another process listens"),
            "{refusal:?}"
        );

        let (_http, _fds, names) = sockets.into_parts();
        names.remove();
        assert!(!path.exists() && !fd_socket(&path).exists());
        ControlSockets::bind(&path).unwrap();
    }

    #[test]
    fn a_foreign_listener_and_a_file_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _foreign = UnixListener::bind(&path).unwrap();
        assert!(ControlSockets::bind(&path).is_err());
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(
            ControlSockets::bind(&path)
                .unwrap_err()
                .error
                .contains("is not a socket")
        );
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let path = Path::new("/tmp").join("x".repeat(105));
        assert!(
            ControlSockets::bind(&path)
                .unwrap_err()
                .error
                .contains("too long")
        );
    }
}
