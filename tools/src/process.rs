//! What hafsd sets for its own process at its start, so that the machine treats it as the storage that it is.
//!
//! Called once by `hafsd`, before any thread: some of it holds for a thread and those that it starts.

use std::fs;
use std::io;

use rustix::fs::Mode;
use rustix::process::{
    Resource, Rlimit, configure_io_flusher_behavior, getrlimit, setrlimit, umask,
};

/// Killed after all but what the system cannot do without (-1000 would be never).
const OOM_SCORE_ADJUST: &str = "-900";
/// Memory of this length or more is mapped by itself (`mallopt(3)`): 16 MiB for the requests of each session, of which most are
/// never touched. By default glibc takes it from an arena once such a length has been freed, and then clears, so holds, all of it.
/// What requests and answers need, 1 MiB, is below: mapping it anew each time would cost more than to copy it.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: libc::c_int = 4 << 20;
/// So much free memory at its end an arena keeps: what is given back is cleared and mapped again by the next request.
#[cfg(target_env = "gnu")]
const KEPT_BYTES_MAX: libc::c_int = 8 << 20;

/// Makes the process a good host for volumes. What the system does not allow is logged at debug and left.
pub fn prepare() {
    // Volumes' files are for root only, whatever the shell that started us says.
    umask(Mode::from_raw_mode(0o077));
    let results = [
        // Memory that we need while we write must not wait for pages that only we can write.
        (
            "PR_SET_IO_FLUSHER",
            configure_io_flusher_behavior(true).map_err(io::Error::from),
        ),
        (
            "oom_score_adj",
            fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJUST),
        ),
        ("RLIMIT_NOFILE", raise_open_files()),
        ("mallopt", set_allocator()),
    ];
    for (what, result) in results {
        if let Err(error) = result {
            tracing::debug!(what, %error, "process setting left as it was");
        }
    }
}

/// Each volume holds its log, its segments and its state's tables open.
fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )?)
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no crate in use has mallopt(3)")]
fn set_allocator() -> io::Result<()> {
    for (option, value) in [
        (libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX),
    ] {
        // SAFETY: takes numbers, and no other thread runs yet.
        if unsafe { libc::mallopt(option, value) } == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    Ok(())
}

#[cfg(not(target_env = "gnu"))]
fn set_allocator() -> io::Result<()> {
    Ok(())
}
