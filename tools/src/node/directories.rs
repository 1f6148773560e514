//! Directories of this mount namespace that mounts come onto or go from, one at a time each.
//!
//! umount(8) calls our helper, which takes the guard away with the mount. Others (umount2(2), busybox) leave it; hafsd sees
//! the end of the mount and lifts it. There must be no mount helper at work on the directory then: it would use the
//! guard, and lose it, or worse, its mount. So a helper's conversation [`enter`](Directories::enter)s its directory, and
//! [`lift`](Directories::lift) leaves an entered one alone. A bind that a helper in another mount namespace has made is not
//! known here; its guard stays until the next umount.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::mounter::guard;

/// How long a helper waits for a guard to be lifted: an unmount of an empty tmpfs takes microseconds, unless the path
/// leads through a filesystem that hangs.
const LIFT_WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Directories {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many helpers are at work on each.
    entered: BTreeMap<String, usize>,
    lifting: BTreeSet<String>,
}

/// A helper is at work on the directory, until dropped.
#[derive(Debug)]
pub struct Entered {
    directories: Arc<Directories>,
    directory: String,
}

impl Directories {
    /// Waits until no guard is being lifted there.
    pub(super) fn enter(self: &Arc<Self>, directory: &str) -> Entered {
        let deadline = Instant::now() + LIFT_WAIT;
        let mut state = self.state.lock();
        while state.lifting.contains(directory)
            && !self.changed.wait_until(&mut state, deadline).timed_out()
        {}
        *state.entered.entry(directory.to_owned()).or_default() += 1;
        Entered {
            directories: Arc::clone(self),
            directory: directory.to_owned(),
        }
    }

    /// Takes the guard off `directory`, if one lies bare there and no helper is at work.
    pub(super) fn lift(&self, directory: &str) {
        {
            let mut state = self.state.lock();
            if state.entered.contains_key(directory) || !state.lifting.insert(directory.to_owned())
            {
                return;
            }
        }
        match guard::lift(Path::new(directory)) {
            Ok(true) => tracing::debug!(directory, "guard lifted after the end of the mount"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(directory, %error, "the guard stays on the directory; umount takes it away");
            }
        }
        self.state.lock().lifting.remove(directory);
        self.changed.notify_all();
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut state = self.directories.state.lock();
        if let Some(count) = state.entered.get_mut(&self.directory) {
            *count -= 1;
            if *count == 0 {
                state.entered.remove(&self.directory);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_on_one_directory_are_counted() {
        let directories = Arc::new(Directories::default());
        let first = directories.enter("/nonexistent/a");
        let second = directories.enter("/nonexistent/a");
        drop(first);
        assert!(
            directories
                .state
                .lock()
                .entered
                .contains_key("/nonexistent/a")
        );
        directories.lift("/nonexistent/a");
        drop(second);
        assert!(directories.state.lock().entered.is_empty());
        directories.lift("/nonexistent/a");
        assert!(directories.state.lock().lifting.is_empty());
    }
}
