//! Messages with a descriptor over a SOCK_SEQPACKET unix socket: one JSON object a message, at most one descriptor.
//!
//! Both ends of the mounting conversation use it ([`control::mounting`](crate::control::mounting)): the mount helper
//! sends the /dev/fuse descriptor that it mounted, hafsd takes it. All waits are bounded by the socket's time-outs.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message: two paths of 4096 bytes, each byte as `\u00XX`, fit.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Why a message did not come across.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The other end closed the conversation: it ended, or its process did.
    #[error("the other end closed the connection")]
    Closed,
    /// Nothing came, or could be sent, within the time-out.
    #[error("no message within the time-out")]
    TimedOut,
    /// The message is too long, cut off, or not the JSON expected. Give up.
    #[error("not a message of ours: {0}")]
    Malformed(String),
    /// The system failed. Give up.
    #[error("unix socket")]
    Io(#[from] io::Error),
}

/// One end of a conversation.
#[derive(Debug)]
pub struct Conversation {
    socket: OwnedFd,
}

impl Conversation {
    /// Connects to the socket at `path`. `timeout` bounds each wait for a message.
    pub fn connect(path: &Path, timeout: Duration) -> io::Result<Self> {
        let socket = seqpacket()?;
        net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::new(socket, timeout)
    }

    /// Takes over a connected socket.
    pub fn new(socket: OwnedFd, timeout: Duration) -> io::Result<Self> {
        set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
        set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
        Ok(Self { socket })
    }

    /// Changes how long each wait may take.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(timeout))?;
        Ok(())
    }

    /// Sends `message`, and with it `fd`.
    pub fn send(
        &self,
        message: &impl Serialize,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), PassError> {
        let bytes =
            serde_json::to_vec(message).map_err(|error| PassError::Malformed(error.to_string()))?;
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(PassError::Malformed(format!(
                "{} bytes are too long",
                bytes.len()
            )));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(fds));
            assert!(fits, "the buffer is made for one descriptor");
        }
        let sent = net::sendmsg(
            &self.socket,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .map_err(pass_error)?;
        assert_eq!(sent, bytes.len(), "a packet goes as a whole");
        Ok(())
    }

    /// Waits for the next message, and the descriptor with it if there is one.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<(T, Option<OwnedFd>), PassError> {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let message = net::recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .map_err(pass_error)?;
        let mut fd = None;
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                // All are taken, so that none stays open unseen; more than one does not fit the buffer anyway.
                for received in fds {
                    fd = Some(received);
                }
            }
        }
        if message.bytes == 0 {
            return Err(PassError::Closed);
        }
        if message
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(PassError::Malformed("the message was cut off".to_owned()));
        }
        let value = serde_json::from_slice(&bytes[..message.bytes])
            .map_err(|error| PassError::Malformed(error.to_string()))?;
        Ok((value, fd))
    }
}

impl AsFd for Conversation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A SOCK_SEQPACKET unix socket that no child inherits.
pub fn seqpacket() -> io::Result<OwnedFd> {
    Ok(net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn pass_error(errno: rustix::io::Errno) -> PassError {
    use rustix::io::Errno;
    match errno {
        Errno::AGAIN => PassError::TimedOut,
        Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN => PassError::Closed,
        other => PassError::Io(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use rustix::net::socketpair;

    use super::*;

    fn pair() -> (Conversation, Conversation) {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let timeout = Duration::from_millis(50);
        (
            Conversation::new(a, timeout).unwrap(),
            Conversation::new(b, timeout).unwrap(),
        )
    }

    #[test]
    fn a_descriptor_comes_across_with_its_message() {
        let (a, b) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through the socket").unwrap();
        a.send(&"take this", Some(file.as_fd())).unwrap();
        let (text, fd): (String, _) = b.receive().unwrap();
        assert_eq!(text, "take this");
        let mut received = File::from(fd.expect("a descriptor"));
        received.rewind().unwrap();
        let mut content = String::new();
        received.read_to_string(&mut content).unwrap();
        assert_eq!(content, "through the socket");
        let flags = rustix::io::fcntl_getfd(&received).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn messages_keep_their_bounds_and_a_closed_end_is_told() {
        let (a, b) = pair();
        a.send(&1, None).unwrap();
        a.send(&2, None).unwrap();
        assert_eq!(b.receive::<i32>().unwrap().0, 1);
        assert_eq!(b.receive::<i32>().unwrap().0, 2);
        assert!(matches!(b.receive::<i32>(), Err(PassError::TimedOut)));
        drop(a);
        assert!(matches!(b.receive::<i32>(), Err(PassError::Closed)));
        assert!(matches!(b.send(&3, None), Err(PassError::Closed)));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (a, b) = pair();
        a.send(&"text", None).unwrap();
        assert!(matches!(b.receive::<i32>(), Err(PassError::Malformed(_))));
        let long = "x".repeat(MESSAGE_BYTES_MAX);
        assert!(matches!(a.send(&long, None), Err(PassError::Malformed(_))));
    }
}
