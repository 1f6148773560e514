//! Whose fault a panic is: ours, while a request is in our hands, or fuser's, before or after.
//!
//! [`fuse`](crate::fuse) marks its part of each request. A panic of ours is a broken invariant, and ends the process. fuser
//! 0.18.0 also panics on requests that an application can have the kernel send: a file time whose seconds are the least
//! that there are. Nothing of ours is under way then, so only that session has to end: [`mount`](crate::mount) starts
//! another.

use std::cell::Cell;
use std::thread;

use tracing::Span;
use tracing::span::EnteredSpan;

/// As fuser calls the one thread of a session.
const FUSER_THREAD: &str = "fuser-0";

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// While this lives, the thread does our work.
pub(super) struct Serving {
    /// Cannot leave the thread that it counts for.
    _span: EnteredSpan,
}

/// Enters `span`.
pub(super) fn serving(span: Span) -> Serving {
    DEPTH.set(DEPTH.get() + 1);
    Serving {
        _span: span.entered(),
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Unwinding passes here only after a panic hook has let a panic of ours go on, which hafsd's does not.
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// True if the thread that panics is one of fuser's sessions, outside of our code. For a panic hook.
pub fn panic_is_fusers() -> bool {
    let thread = thread::current();
    thread.name() == Some(FUSER_THREAD) && DEPTH.get() == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(name: &str, body: impl FnOnce() -> bool + Send + 'static) -> bool {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
        thread.unwrap().join().unwrap()
    }

    #[test]
    fn only_a_session_thread_outside_of_our_code() {
        assert!(on(FUSER_THREAD, panic_is_fusers));
        assert!(!on("hafs-fuse-0", panic_is_fusers));
        assert!(!on(FUSER_THREAD, || {
            let _serving = serving(Span::none());
            panic_is_fusers()
        }));
        assert!(on(FUSER_THREAD, || {
            drop(serving(Span::none()));
            panic_is_fusers()
        }));
    }
}
