//! Which mounts this node serves, written down so that a successor can clear dead ones away.
//!
//! A mount is entered before its first request is answered and taken out after its end. After a kill -9 the file
//! therefore names every mount that may be there without a server.

use std::fs;
use std::io;
use std::path::PathBuf;

use hafs_fs::mountinfo::{self, MountEntry};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::datadir::write_durably;
use crate::mountpoint::{self, Probe};
use crate::output::chain;

/// Format of the file. One more whenever an older hafsd would misread it.
const FORMAT: u32 = 1;

/// A mount that is, or was, served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServedMount {
    /// Name of the volume: the mount's source.
    pub(super) volume: String,
    /// Where, as its helper named it.
    pub(super) mountpoint: String,
    /// Number of the connection; the minor of `st_dev`.
    pub(super) connection: u32,
    /// Mount namespace of its helper.
    pub(super) namespace: u64,
}

/// What the file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    format: u32,
    /// Connections are numbered anew at each boot.
    boot: String,
    mounts: Vec<ServedMount>,
}

/// The file.
#[derive(Debug)]
pub(super) struct ServedMounts {
    path: PathBuf,
    mounts: Mutex<Vec<ServedMount>>,
}

impl ServedMounts {
    /// Reads nothing yet.
    pub(super) const fn new(path: PathBuf) -> Self {
        Self {
            path,
            mounts: Mutex::new(Vec::new()),
        }
    }

    /// Enters a mount, durably. Nothing may be served if that fails.
    pub(super) fn enter(&self, mount: &ServedMount) -> io::Result<()> {
        let mut mounts = self.mounts.lock();
        mounts.push(mount.clone());
        let result = self.write(&mounts);
        if result.is_err() {
            mounts.retain(|entered| entered != mount);
        }
        result
    }

    /// Takes a mount out.
    pub(super) fn remove(&self, ended: &ServedMount) {
        let mut mounts = self.mounts.lock();
        // Another may have the number of its connection already.
        mounts.retain(|mount| mount != ended);
        if let Err(error) = self.write(&mounts) {
            // A successor looks whether the mount is there and dead before it touches anything.
            tracing::warn!(path = %self.path.display(), %error, "a mount that ended stays written down");
        }
    }

    /// Takes away the mounts of a former hafsd that are still there and dead, then starts anew.
    pub(super) fn clear_dead(&self) {
        let former = self.read();
        let result = mountinfo::mounts().map(|mounts| {
            // Later mounts lie on earlier ones.
            for entry in mounts
                .iter()
                .rev()
                .filter(|entry| is_former(entry, &former))
            {
                clear(entry);
            }
        });
        if let Err(error) = result {
            tracing::warn!(error = chain(&error), "cannot look for dead mounts");
        }
        if let Err(error) = self.write(&self.mounts.lock()) {
            tracing::warn!(path = %self.path.display(), %error, "cannot write down mounts");
        }
    }

    /// What a former hafsd served since the machine started.
    fn read(&self) -> Vec<ServedMount> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot read former mounts");
                return Vec::new();
            }
        };
        match serde_json::from_slice::<Content>(&bytes) {
            Ok(content) if content.boot == boot_id() => content.mounts,
            Ok(_) => Vec::new(),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot read former mounts");
                Vec::new()
            }
        }
    }

    fn write(&self, mounts: &[ServedMount]) -> io::Result<()> {
        let content = Content {
            format: FORMAT,
            boot: boot_id(),
            mounts: mounts.to_vec(),
        };
        write_durably(&self.path, &serde_json::to_vec_pretty(&content)?)
    }
}

/// Any mount of the same superblock: binds of it are as dead.
fn is_former(entry: &MountEntry, former: &[ServedMount]) -> bool {
    entry.is_hafs()
        && former.iter().any(|mount| {
            (0, mount.connection) == entry.device && entry.source == mount.volume.as_str()
        })
}

fn clear(entry: &MountEntry) {
    let mountpoint = entry.mount_point.display();
    let volume = entry.source.display();
    if !mountpoint::is_reachable(entry) {
        tracing::warn!(%volume, %mountpoint, "a mount of a former hafsd lies under another mount and stays");
        return;
    }
    match mountpoint::probe(&entry.mount_point) {
        Probe::Dead => match mountpoint::detach(&entry.mount_point) {
            Ok(()) => {
                tracing::info!(%volume, %mountpoint, "dead mount of a former hafsd cleared away; its guard keeps the directory read-only")
            }
            Err(error) => {
                tracing::warn!(%volume, %mountpoint, %error, "cannot clear a dead mount away");
            }
        },
        // Numbers are used again: the former mount was taken away, this is one of another hafsd, with a volume of that name.
        Probe::Alive => {
            tracing::debug!(%volume, %mountpoint, "somebody serves it, so it is not a former hafsd's")
        }
        probe @ (Probe::Hangs | Probe::Fails(_)) => {
            tracing::warn!(%volume, %mountpoint, ?probe, "a mount of a former hafsd is not dead and stays");
        }
    }
}

/// Tells one boot of the machine from the next.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(connection: u32) -> ServedMount {
        ServedMount {
            volume: "pg".into(),
            mountpoint: "/nonexistent/pg".into(),
            connection,
            namespace: 7,
        }
    }

    #[test]
    fn a_successor_reads_what_was_entered_and_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mounts.json");
        let served = ServedMounts::new(path.clone());
        assert!(served.read().is_empty());
        served.enter(&mount(3)).unwrap();
        served.enter(&mount(4)).unwrap();
        served.remove(&mount(3));
        let successor = ServedMounts::new(path);
        assert_eq!(successor.read(), [mount(4)]);
        successor.clear_dead();
        assert!(successor.read().is_empty());
    }

    #[test]
    fn the_end_of_a_mount_leaves_the_next_one_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mounts.json");
        let served = ServedMounts::new(path.clone());
        let next = ServedMount {
            volume: "wiki".into(),
            ..mount(3)
        };
        served.enter(&mount(3)).unwrap();
        served.enter(&next).unwrap();
        served.remove(&mount(3));
        assert_eq!(ServedMounts::new(path).read(), [next]);
    }

    #[test]
    fn another_boots_and_broken_files_name_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mounts.json");
        let served = ServedMounts::new(path.clone());
        let content = Content {
            format: 1,
            boot: "earlier".into(),
            mounts: vec![mount(3)],
        };
        fs::write(&path, serde_json::to_vec(&content).unwrap()).unwrap();
        assert!(served.read().is_empty());
        fs::write(&path, b"{\"format\":").unwrap();
        assert!(served.read().is_empty());
    }
}
