//! How far the writers of a test are, for the one who waits for them.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// Writers that are served make a step within this time, even on a machine that does a lot besides. How long many steps take
/// is the machine's affair.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// Steps that all writers together have made.
#[derive(Debug, Default)]
pub struct Progress {
    steps: Mutex<u64>,
    moved: Condvar,
}

impl Progress {
    /// A writer has made one.
    ///
    /// # Panics
    /// Never: nobody panics while counting.
    pub fn step(&self) {
        *self.steps.lock().expect("counting does not panic") += 1;
        self.moved.notify_all();
    }

    /// A writer has ended for good: nobody is to wait for steps that do not come.
    ///
    /// # Panics
    /// Never: nobody panics while counting.
    pub fn give_up(&self) {
        *self.steps.lock().expect("counting does not panic") = u64::MAX / 2;
        self.moved.notify_all();
    }

    /// Waits until so many steps were made.
    ///
    /// # Errors
    /// What to say of writers that make no more.
    ///
    /// # Panics
    /// Never: nobody panics while counting.
    pub fn wait_for(&self, steps: u64) -> Result<(), String> {
        let mut made = self.steps.lock().expect("counting does not panic");
        while *made < steps {
            let seen = *made;
            let waited = self
                .moved
                .wait_timeout_while(made, STALL_LIMIT, |made| *made == seen);
            let (now, timeout) = waited.expect("counting does not panic");
            if timeout.timed_out() {
                return Err(format!(
                    "{now} of {steps} steps, and none within {STALL_LIMIT:?}"
                ));
            }
            made = now;
        }
        Ok(())
    }
}
