//! The parts of `/dev/fuse` that fuser does not speak: cloning a descriptor, a handshake that can be replayed, the question
//! whether the kernel holds an inode, and dropping a file's pages.
//!
//! Called by [`mount`](crate::mount), the reaper and the seeker. fuser does its handshake on a socket pair; then the device takes the
//! place of the socket under the same descriptor number. So the INIT request can be kept and given to each session, and
//! one answer goes to the kernel, whoever serves the connection later.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{DupFlags, Errno};
use rustix::ioctl::{self, Opcode};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use crate::error::FsError;
use crate::types::Ino;

const DEVICE: &str = "/dev/fuse";
/// `st_rdev` of [`DEVICE`], as include/linux/miscdevice.h fixes it.
const DEVICE_NUMBER: (u32, u32) = (10, 229);
/// `FUSE_DEV_IOC_CLONE`, `_IOR(229, 0, u32)`.
const IOC_CLONE: Opcode = ioctl::opcode::read::<u32>(229, 0);
/// `FUSE_NOTIFY_INVAL_INODE`.
const NOTIFY_INVAL_INODE: i32 = 2;
/// Bytes of `struct fuse_out_header`: length, error, unique.
const OUT_HEADER_BYTES: usize = 16;
/// The kernel refuses to read into less than 8 KiB; INIT itself has 104 bytes.
const INIT_BUFFER_BYTES: usize = 1 << 16;
/// mount(2) has queued INIT before it returns, so this only passes for a descriptor that is not freshly mounted.
const INIT_WAIT: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// Opens the device: a connection that is not mounted yet.
pub(super) fn open() -> Result<OwnedFd, FsError> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(failed("open"))
}

/// Refuses a descriptor that is no FUSE device, before anything is read from it.
pub(super) fn check(device: BorrowedFd<'_>) -> Result<(), FsError> {
    let stat = rustix::fs::fstat(device).map_err(failed("stat"))?;
    let number = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if is_device && number == DEVICE_NUMBER {
        Ok(())
    } else {
        Err(FsError::Refused(format!("the descriptor is not {DEVICE}")))
    }
}

/// Another descriptor of the same connection, with a queue of its own for requests that were read and not answered.
pub(super) fn clone_of(device: BorrowedFd<'_>) -> Result<OwnedFd, FsError> {
    let clone = open()?;
    let number = device.as_raw_fd().unsigned_abs();
    #[expect(unsafe_code, reason = "rustix cannot know what an ioctl does")]
    // SAFETY: FUSE_DEV_IOC_CLONE reads one u32, a descriptor number, and writes nothing; `device` is open.
    unsafe { ioctl::ioctl(&clone, ioctl::Setter::<IOC_CLONE, u32>::new(number)) }
        .map_err(failed("clone"))?;
    Ok(clone)
}

/// Takes the INIT request of a fresh connection off the device. Whoever has it must see that it gets answered.
pub(super) fn read_init(device: BorrowedFd<'_>) -> Result<Vec<u8>, FsError> {
    let mut ready = [PollFd::new(&device, PollFlags::IN)];
    rustix::event::poll(&mut ready, Some(&INIT_WAIT)).map_err(failed("poll"))?;
    if !ready[0].revents().contains(PollFlags::IN) {
        return Err(FsError::Refused(format!(
            "{DEVICE}: no fresh mount behind the descriptor"
        )));
    }
    let mut init = vec![0; INIT_BUFFER_BYTES];
    let len = rustix::io::read(device, &mut init).map_err(failed("read"))?;
    init.truncate(len);
    Ok(init)
}

/// A fuser session that speaks through `device`, and its answer to `init`. No request is read before the session runs.
pub(super) fn attach<F: Filesystem>(
    filesystem: F,
    device: BorrowedFd<'_>,
    init: &[u8],
) -> Result<(Session<F>, Vec<u8>), FsError> {
    let (theirs, ours) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed("socketpair"))?;
    rustix::io::write(&ours, init).map_err(failed("hand over INIT"))?;
    // The kernel keeps strangers out (`allow_other` with `default_permissions`); fuser must not do it again.
    let session = Session::from_fd(filesystem, theirs, SessionACL::All, Config::default())
        .map_err(|source| FsError::Io {
            op: "handshake",
            path: DEVICE.to_owned(),
            source,
        })?;
    let mut reply = vec![0; INIT_BUFFER_BYTES];
    // from_fd returned, so the answer lies there; without DONTWAIT a lost one would block for ever.
    let (len, _) = rustix::net::recv(&ours, reply.as_mut_slice(), RecvFlags::DONTWAIT)
        .map_err(failed("receive the answer to INIT"))?;
    reply.truncate(len);
    replace(&session, device)?;
    Ok((session, reply))
}

/// Puts `device` in the place of the session's socket, under the same number: reader, repliers and notifiers follow.
fn replace<F: Filesystem>(session: &Session<F>, device: BorrowedFd<'_>) -> Result<(), FsError> {
    let number = session.as_fd().as_raw_fd();
    #[expect(
        unsafe_code,
        reason = "dup3 needs an owner of the number that it replaces; that is inside fuser's session"
    )]
    // SAFETY: the session owns this open descriptor and outlives `target`, which is never dropped, so nothing is closed
    // twice. No thread uses it yet: `run` was not called.
    let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    rustix::io::dup3(device, &mut target, DupFlags::CLOEXEC).map_err(failed("dup"))
}

/// Answers INIT: from here on the kernel sends requests.
pub(super) fn answer(device: BorrowedFd<'_>, reply: &[u8]) -> Result<(), FsError> {
    rustix::io::write(device, reply).map_err(failed("answer INIT"))?;
    Ok(())
}

/// True if the kernel holds `ino`, false if it knows no such inode. Waits for an eviction that is under way, so never call
/// it from a thread that serves requests.
///
/// Asks by telling the kernel to drop the inode's cached attributes (offset -1: not its pages), which it answers with
/// ENOENT if there is no such inode. fuser's own notifier hides just that answer.
pub(crate) fn kernel_holds(device: BorrowedFd<'_>, ino: Ino) -> Result<bool, FsError> {
    match rustix::io::write(device, &inval_inode(ino, -1, 0)) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(failed("ask about an inode")(errno)),
    }
}

/// Has the kernel drop the pages that it holds of `len` bytes from `from`, or of all after it. Returns when what of them
/// was dirty is written, by requests that session threads must answer: never call it from one of these.
pub(crate) fn drop_pages(
    device: BorrowedFd<'_>,
    ino: Ino,
    from: u64,
    len: Option<u64>,
) -> Result<(), FsError> {
    // Zero means all.
    let len = len.map_or(Ok(0), i64::try_from);
    let (Ok(from), Ok(len)) = (i64::try_from(from), len) else {
        return Err(FsError::TooBig);
    };
    match rustix::io::write(device, &inval_inode(ino, from, len)) {
        // Without an inode there are no pages.
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed("drop pages")(errno)),
    }
}

/// `fuse_out_header` { len, error, unique = 0 } and `fuse_notify_inval_inode_out` { ino, offset, length }.
#[expect(
    clippy::host_endian_bytes,
    reason = "FUSE's structures are the host's own"
)]
fn inval_inode(ino: Ino, offset: i64, bytes: i64) -> [u8; OUT_HEADER_BYTES + 24] {
    let mut message = [0; OUT_HEADER_BYTES + 24];
    let len = u32::try_from(message.len()).expect("40 bytes");
    message[0..4].copy_from_slice(&len.to_ne_bytes());
    message[4..8].copy_from_slice(&NOTIFY_INVAL_INODE.to_ne_bytes());
    message[16..24].copy_from_slice(&ino.0.to_ne_bytes());
    message[24..32].copy_from_slice(&offset.to_ne_bytes());
    message[32..40].copy_from_slice(&bytes.to_ne_bytes());
    message
}

fn failed(op: &'static str) -> impl Fn(Errno) -> FsError {
    move |errno| FsError::Io {
        op,
        path: DEVICE.to_owned(),
        source: io::Error::from(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clone_ioctl_has_the_number_that_the_kernel_knows() {
        // Literal from _IOR(229, 0, uint32_t), the same on x86-64 and arm64.
        assert_eq!(IOC_CLONE, 0x8004_e500);
    }

    #[test]
    fn only_the_device_is_taken() {
        let (socket, _other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        assert!(matches!(check(socket.as_fd()), Err(FsError::Refused(_))));
    }
}
