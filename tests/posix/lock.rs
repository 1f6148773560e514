//! Locks between processes: what one holds, others wait for, until it lets go or is killed.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hafs_tests::requirement;
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;

use crate::Mounted;

const CHILD: &str = "HAFS_TEST_LOCK";

const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;
const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;
const UNLOCK: FlockOperation = FlockOperation::Unlock;

/// `F_OFD_SETLK` over the whole file.
fn ofd_lock(file: &File, operation: FlockOperation) -> rustix::io::Result<()> {
    let kind = match operation {
        SHARED => libc::F_RDLCK,
        EXCLUSIVE => libc::F_WRLCK,
        _ => libc::F_UNLCK,
    };
    let lock = libc::flock {
        l_type: i16::try_from(kind).expect("a small number"),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    #[expect(unsafe_code, reason = "rustix has no OFD locks")]
    // SAFETY: the descriptor is open, and the kernel only reads the structure.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).expect("an errno")),
    }
}

type Lock = fn(&File, FlockOperation) -> rustix::io::Result<()>;

fn lock_of(kind: &str) -> Lock {
    match kind {
        "flock" => |file, operation| flock(file, operation),
        "fcntl" => |file, operation| fcntl_lock(file, operation),
        _ => ofd_lock,
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("the lock file")
}

/// A process that holds an exclusive lock until it is killed.
fn holder(path: &Path, kind: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().expect("its path"))
        .args([
            "--exact",
            "lock::locks_are_between_processes",
            "--nocapture",
        ])
        .env(CHILD, kind)
        .env("HAFS_TEST_LOCK_FILE", path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("works");
    let output = BufReader::new(child.stdout.as_mut().expect("piped"));
    assert!(
        output
            .lines()
            .any(|line| line.expect("works").contains("locked")),
        "the holder ended"
    );
    child
}

fn hold(kind: &str) {
    let path = std::env::var_os("HAFS_TEST_LOCK_FILE").expect("set by the parent");
    let file = open(path.as_ref());
    lock_of(kind)(&file, EXCLUSIVE).expect("works");
    announce();
    loop {
        std::thread::park(); // until killed
    }
}

#[expect(clippy::print_stdout, reason = "the parent waits for it")]
fn announce() {
    println!("\nlocked");
}

#[test]
fn locks_are_between_processes() {
    if let Ok(kind) = std::env::var(CHILD) {
        hold(&kind);
    }
    if !requirement::mounts_work("locks between processes") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.mount.join("lock");
    fs::write(&path, "x").unwrap();
    for kind in ["flock", "fcntl", "ofd"] {
        let (lock, file) = (lock_of(kind), open(&path));
        let mut other = holder(&path, kind);
        assert_eq!(lock(&file, EXCLUSIVE), Err(Errno::AGAIN), "{kind}");
        assert_eq!(lock(&file, SHARED), Err(Errno::AGAIN), "{kind}");
        other.kill().unwrap();
        other.wait().unwrap();
        lock(&file, EXCLUSIVE).unwrap_or_else(|error| panic!("{kind} after a kill: {error}"));
        lock(&file, UNLOCK).unwrap();
        // Shared ones go together.
        let second = open(&path);
        lock(&file, SHARED).unwrap();
        lock(&second, SHARED).unwrap();
        if kind != "fcntl" {
            assert_eq!(lock(&second, EXCLUSIVE), Err(Errno::AGAIN), "{kind}");
        }
    }
    mounted.end();
}
