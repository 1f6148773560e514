//! The directory that a run works in: on a real disk, with room enough, and gone afterwards.
//!
//! [`Scratch`] removes itself when dropped, so errors and interrupts clean up by unwinding; what keeps files open in it
//! must be dropped first. Only a kill -9 leaves a `hafs-bench.*` directory behind.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::machine;

/// A directory of this run's own, removed with all its content when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
    handle: File,
}

/// What a run needs of the place, and what its command offers where the place has not that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    pub(crate) bytes: u64,
    /// How to need less, in the words of its options.
    pub(crate) less: &'static str,
    /// Whether a filesystem in memory will do; nothing where the command has no `--force`.
    pub(crate) force: Option<bool>,
}

impl Scratch {
    /// Makes a fresh directory under `parent`. Refuses a filesystem in memory unless forced, and one without room.
    pub(crate) fn create(parent: &Path, needs: Needs) -> anyhow::Result<Self> {
        let shown = parent.display();
        let filesystem = machine::Filesystem::of(parent)?;
        if filesystem.in_memory() && needs.force != Some(true) {
            let force = needs.force.map_or("", |_| ", or --force");
            bail!(
                "{shown} is on {}, where a sync costs nothing\n  why: figures from there would decide nothing\n  \
                 next: --dir on a disk{force}",
                filesystem.kind
            );
        }
        let stat = rustix::fs::statvfs(parent).with_context(|| format!("cannot ask {shown}"))?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free_bytes < needs.bytes {
            bail!(
                "{shown} has {} MiB free, {} MiB are needed\n  next: --dir elsewhere, or {}",
                free_bytes >> 20,
                needs.bytes >> 20,
                needs.less
            );
        }
        let dir = tempfile::Builder::new()
            .prefix("hafs-bench.")
            .tempdir_in(parent)
            .with_context(|| format!("cannot make a directory in {shown}"))?;
        let handle = File::open(dir.path())?;
        Ok(Self { dir, handle })
    }

    /// Where `name` lies in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A fresh, empty directory in it; whatever had the name is removed.
    pub(crate) fn fresh_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir(&path)?;
        Ok(path)
    }

    /// Writes out all that the filesystem has pending, so that one measurement does not pay for the one before it.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        rustix::fs::syncfs(&self.handle).context("syncfs")
    }

    /// Makes names durable: the directory's own entries.
    pub(crate) fn sync_names(&self) -> anyhow::Result<()> {
        self.handle.sync_all().context("cannot sync the directory")
    }

    /// Removes everything and says so if that fails, which dropping does not.
    pub(crate) fn remove(self) -> anyhow::Result<()> {
        let path = self.dir.path().to_owned();
        self.dir
            .close()
            .with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// One line of progress. A closed stderr is no reason to stop.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Needs = Needs {
        bytes: 0,
        less: "a smaller --size",
        force: Some(true),
    };

    #[test]
    fn is_gone_after_drop_and_remove() {
        for explicit in [false, true] {
            let scratch = Scratch::create(&std::env::temp_dir(), NOTHING).unwrap();
            std::fs::write(scratch.path("file"), b"x").unwrap();
            scratch.fresh_dir("dir").unwrap();
            scratch.fresh_dir("dir").unwrap();
            let path = scratch.path("");
            if explicit {
                scratch.remove().unwrap();
            } else {
                drop(scratch);
            }
            assert!(!path.exists());
        }
    }

    #[test]
    fn refuses_memory_and_lack_of_room() {
        let shm = Path::new("/dev/shm");
        if machine::Filesystem::of(shm).is_ok_and(|filesystem| filesystem.in_memory()) {
            let refused = |force| {
                let needs = Needs { force, ..NOTHING };
                Scratch::create(shm, needs).unwrap_err().to_string()
            };
            let next = "next: --dir on a disk";
            assert!(refused(Some(false)).ends_with(&format!("{next}, or --force")));
            assert!(refused(None).ends_with(next) && refused(None).contains("tmpfs"));
            assert!(Scratch::create(shm, NOTHING).is_ok());
        }
        let needs = Needs {
            bytes: u64::MAX,
            ..NOTHING
        };
        let refused = Scratch::create(&std::env::temp_dir(), needs).unwrap_err();
        let refused = refused.to_string();
        assert!(
            refused.contains("MiB free") && refused.ends_with("or a smaller --size"),
            "{refused}"
        );
    }
}
