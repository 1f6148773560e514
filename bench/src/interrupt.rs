//! Ctrl-C and its kin as a value that loops ask, so that an interrupted run unwinds and removes its files.
//!
//! [`Interrupt::watch`] is called once by `main`; every measuring loop calls [`Interrupt::check`] between operations.
//! A signal is therefore noticed after the operation under way: at most a few seconds, when RocksDB flushes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Whether a signal asked this process to end. Clones share the answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt {
    /// Number of the first signal, 0 while there was none.
    signal: Arc<AtomicU8>,
}

/// A signal asked for the end: give up, remove what was made, exit with [`Interrupted::exit_code`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interrupted {
    signal: u8,
}

const HANGUP: u8 = 1;
const INTERRUPT: u8 = 2;
const TERMINATE: u8 = 15;

impl Interrupt {
    /// Takes over SIGINT, SIGTERM and SIGHUP for the rest of the process's life.
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("cannot start the signal watcher")?;
        let signals = {
            let _entered = runtime.enter();
            [
                (HANGUP, signal(SignalKind::hangup())?),
                (INTERRUPT, signal(SignalKind::interrupt())?),
                (TERMINATE, signal(SignalKind::terminate())?),
            ]
        };
        let interrupt = Self::default();
        let told = interrupt.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let number = runtime.block_on(first(signals));
                told.signal.store(number, Ordering::Relaxed);
                crate::scratch::say("interrupted: removing what was made");
                // The handlers stay: a second Ctrl-C must not end the process in the middle of the removal.
            })
            .context("cannot start the signal watcher")?;
        Ok(interrupt)
    }

    /// As if that signal had come.
    #[cfg(test)]
    pub(crate) fn raise(&self, signal: u8) {
        self.signal.store(signal, Ordering::Relaxed);
    }

    /// Errs with [`Interrupted`] once a signal came.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match self.signal.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Interrupted { signal }.into()),
        }
    }
}

impl Interrupted {
    /// What a shell reports for a program that the signal ended.
    pub(crate) fn exit_code(self) -> u8 {
        128 + self.signal
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interrupted by signal {}", self.signal)
    }
}

impl std::error::Error for Interrupted {}

/// The number of whichever signal comes first.
async fn first(mut signals: [(u8, Signal); 3]) -> u8 {
    std::future::poll_fn(move |context| {
        for (number, signal) in &mut signals {
            if signal.poll_recv(context).is_ready() {
                return Poll::Ready(*number);
            }
        }
        Poll::Pending
    })
    .await
}
