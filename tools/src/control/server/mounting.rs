//! hafsd's half of the conversation with mount helpers ([`control::mounting`](crate::control::mounting)).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::net::{SocketFlags, accept_with};

use crate::control::mounting::{Answer, Ask, MARGIN, RESERVATION, Serve, Served};
use crate::control::{ApiError, ErrorCode};
use crate::fdpass::{Conversation, PassError};
use crate::node::{Node, Reservation, Reserved};
use crate::output::chain;

/// Conversations at a time. Each is a thread that mostly waits; a machine that boots mounts all its volumes at once.
const CONVERSATIONS_MAX: usize = 64;
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts in a thread of its own, and gives each conversation one.
pub(super) fn serve(listener: OwnedFd, node: Arc<Node>) -> io::Result<()> {
    thread::Builder::new()
        .name("mounting".to_owned())
        .spawn(move || accept_all(&listener, &node))?;
    Ok(())
}

fn accept_all(listener: &OwnedFd, node: &Arc<Node>) {
    let count = Arc::new(AtomicUsize::new(0));
    loop {
        let socket = match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
            Err(error) => {
                // Descriptors or memory are short; others will give some back.
                tracing::warn!(%error, "cannot accept a mount helper");
                thread::park_timeout(ACCEPT_PAUSE);
                continue;
            }
        };
        if count.fetch_add(1, Ordering::AcqRel) >= CONVERSATIONS_MAX {
            count.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(
                CONVERSATIONS_MAX,
                "too many mounts at once, one is turned away"
            );
            continue;
        }
        let (node, running) = (Arc::clone(node), Arc::clone(&count));
        let spawned = thread::Builder::new()
            .name("mount".to_owned())
            .spawn(move || {
                match converse(socket, &node) {
                    Ok(()) => {}
                    // It has told its user why, or there is no user any more.
                    Err(PassError::Closed) => tracing::debug!("a mount helper went away"),
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "a mount helper is not understood");
                    }
                }
                running.fetch_sub(1, Ordering::AcqRel);
            });
        if let Err(error) = spawned {
            count.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(%error, "a mount helper is turned away");
        }
    }
}

fn converse(socket: OwnedFd, node: &Arc<Node>) -> Result<(), PassError> {
    let conversation = Conversation::new(socket, RESERVATION + MARGIN)?;
    let (ask, _): (Ask, _) = conversation.receive()?;
    let namespace = ask.namespace;
    let _entered = node.enter_directory(&ask);
    tracing::debug!(
        volume = ask.volume,
        directory = ask.directory,
        namespace,
        "mount asked for"
    );
    match node.reserve(ask) {
        Ok(Reserved::Mount(reservation)) => {
            conversation.send(&Answer::Mount, None)?;
            take_device(&conversation, reservation)
        }
        Ok(Reserved::Bind {
            connection,
            mountpoint,
            namespace: first,
        }) => {
            let same_namespace = first == namespace;
            let answer = Answer::Bind {
                connection,
                directory: mountpoint,
                same_namespace,
            };
            conversation.send(&answer, None)?;
            wait_until_bound(&conversation)
        }
        Err(error) => conversation.send(&Answer::Refused(error), None),
    }
}

/// The helper has nothing more to say; it closes the conversation when it has bound the mount, or failed to.
fn wait_until_bound(conversation: &Conversation) -> Result<(), PassError> {
    match conversation.receive::<()>() {
        Ok(_) | Err(PassError::Closed | PassError::TimedOut) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The reservation ends with this call, one way or the other.
fn take_device(conversation: &Conversation, reservation: Reservation) -> Result<(), PassError> {
    let (serve, device): (Serve, _) = match conversation.receive() {
        Ok(received) => received,
        // The helper looked only (`mount -f`), or could not mount: it has told its user.
        Err(PassError::Closed) => return Ok(()),
        Err(error) => return Err(error),
    };
    let served = match device {
        Some(device) => reservation.serve(device, serve.connection),
        None => Err(ApiError::new(
            ErrorCode::BadRequest,
            "no descriptor came with the message",
        )),
    };
    match served {
        Ok(()) => conversation.send(&Served::Serving, None),
        Err(error) => conversation.send(&Served::Refused(error), None),
    }
}
