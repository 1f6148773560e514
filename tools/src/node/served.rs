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
const FORMAT: u32 = 2;

/// A mount that is, or was, served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServedMount {
    /// Name of the volume: the mount's source.
    pub(crate) volume: String,
    /// Where, as its helper named it.
    pub(crate) mountpoint: String,
    /// Number of the connection; the minor of `st_dev`.
    pub(crate) connection: u32,
    /// Mount namespace of its helper.
    pub(crate) namespace: u64,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Content {
    /// Connections are numbered anew at each boot.
    pub(crate) boot: String,
    pub(crate) mounts: Vec<ServedMount>,
}

/// The file: people read it too, so it is JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    /// Of `content` without spaces.
    crc32c: String,
    content: Content,
}

/// Of any format.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// What format 1 holds beside its number: no checksum.
#[derive(Deserialize)]
struct Format1 {
    boot: String,
    mounts: Vec<ServedMount>,
}

/// Why the file does not say what was served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotWritten {
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    #[error("it is damaged")]
    Json(#[from] serde_json::Error),
    #[error("it has format {0}, this hafsd knows formats up to {FORMAT}")]
    Format(u32),
    #[error("it does not match its checksum")]
    Checksum,
}

impl Content {
    fn crc32c(&self) -> Result<String, serde_json::Error> {
        let crc = crc32c::crc32c(&serde_json::to_vec(self)?);
        Ok(format!("{crc:08x}"))
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec_pretty(&Written {
            format: FORMAT,
            crc32c: self.crc32c()?,
            content: self.clone(),
        })
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, NotWritten> {
        let head: Head = serde_json::from_slice(bytes)?;
        match head.format {
            1 => {
                let Format1 { boot, mounts } = serde_json::from_slice(bytes)?;
                return Ok(Self { boot, mounts });
            }
            FORMAT => {}
            other => return Err(NotWritten::Format(other)),
        }
        let written: Written = serde_json::from_slice(bytes)?;
        if written.content.crc32c()? != written.crc32c {
            return Err(NotWritten::Checksum);
        }
        Ok(written.content)
    }
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
        match self.read_content() {
            Ok(Some(content)) if content.boot == boot_id() => content.mounts,
            Ok(_) => Vec::new(),
            Err(error) => {
                tracing::warn!(
                    path = %self.path.display(),
                    error = chain(&error),
                    "what a former hafsd served is not known; its dead mounts stay until they are unmounted"
                );
                Vec::new()
            }
        }
    }

    /// `None`: there is no such file.
    fn read_content(&self) -> Result<Option<Content>, NotWritten> {
        match fs::read(&self.path) {
            Ok(bytes) => Content::decode(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&self, mounts: &[ServedMount]) -> io::Result<()> {
        let content = Content {
            boot: boot_id(),
            mounts: mounts.to_vec(),
        };
        write_durably(&self.path, &content.encode()?)
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
    fn another_boots_mounts_are_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mounts.json");
        let content = Content {
            boot: "earlier".into(),
            mounts: vec![mount(3)],
        };
        fs::write(&path, content.encode().unwrap()).unwrap();
        assert!(ServedMounts::new(path).read().is_empty());
    }

    #[test]
    fn every_bit_of_the_file_counts() {
        let content = Content {
            boot: boot_id(),
            mounts: vec![mount(3), mount(4)],
        };
        let whole = content.encode().unwrap();
        assert_eq!(Content::decode(&whole).unwrap(), content);
        for (at, bit) in (0..whole.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            let found = Content::decode(&damaged);
            assert!(found.is_err(), "bit {bit} of byte {at}: {found:?}");
        }
        for len in 0..whole.len() {
            assert!(
                Content::decode(&whole[..len]).is_err(),
                "the first {len} bytes"
            );
        }
    }

    #[test]
    fn a_list_without_a_checksum_is_read() {
        let mounts = vec![mount(3), mount(4)];
        let boot = boot_id();
        let text = serde_json::json!({ "format": 1, "boot": boot, "mounts": mounts });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mounts.json");
        fs::write(&path, serde_json::to_vec_pretty(&text).unwrap()).unwrap();
        assert_eq!(ServedMounts::new(path).read(), mounts);
    }

    #[test]
    fn other_formats_are_not_misread() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mounts.json");
        for format in [0, 3] {
            let text = format!(r#"{{"format":{format},"boot":"b","mounts":[]}}"#);
            let error = Content::decode(text.as_bytes()).unwrap_err();
            assert!(
                matches!(error, NotWritten::Format(found) if found == format),
                "{error}"
            );
            fs::write(&path, text).unwrap();
            assert!(ServedMounts::new(path.clone()).read().is_empty());
        }
    }
}
