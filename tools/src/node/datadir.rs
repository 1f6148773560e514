//! The data directory of a node: whose it is, who uses it, and what lies where.
//!
//! ```text
//! node               text: `hafs data directory`, `format 2`, `node UUID`, `crc32c` of the lines before; written once, when the
//!                    directory is first used (format 1: without `crc32c`; written anew)
//! lock               held by flock(2) while a hafsd runs; its content is that hafsd's pid
//! meta/              the control store
//! volumes/UUID/      the store of a volume
//! run/mounts.json    mounts being served, so that a successor can clear dead ones away
//! ```
//!
//! [`DataDir::open`] looks before it writes: a directory of a newer format, of another program, in use, without
//! permission or on a full disk is refused and left as it was.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hafs_protocol::{NodeId, VolumeId};
use rustix::fs::{Access, AtFlags, CWD, FlockOperation, accessat, flock, statvfs};
use uuid::Uuid;

use crate::control::api::Disk;
use crate::output::Refusal;
use crate::size;

/// First line of the file `node`.
const MAGIC: &str = "hafs data directory";
/// Format of the layout above. One more whenever an older hafsd would misread it.
const FORMAT: u32 = 2;
/// One bit alone makes none of these of the other.
pub(crate) const FORMAT_WITHOUT_CHECKSUM: u32 = 1;
/// Below that, no new node begins: it could do nothing but fill the disk. An old one starts on a full disk too, since somebody
/// may want to delete something: the stores of its volumes hold ballast for that.
pub(crate) const FREE_BYTES_MIN: u64 = 32 << 20;
/// Longest file `node` that is read; ours has some 80 bytes.
const NODE_FILE_BYTES_MAX: u64 = 4096;
/// What a first start that was interrupted may leave, and a filesystem puts into its root.
const STILL_EMPTY: [&str; 4] = ["lock", "node.new", "run", "lost+found"];
/// Only root (or whoever runs hafsd) sees volumes' data beside their permissions.
const DIRECTORY_MODE: u32 = 0o700;

/// A data directory that is ours, for as long as this value lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    node: NodeId,
    fresh: bool,
    _lock: File,
}

/// What a look at a directory tells.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Inspected {
    /// There is none.
    Missing,
    /// It holds nothing, or what an interrupted first start left.
    Empty,
    /// It is a node's.
    Node(NodeId),
}

impl DataDir {
    /// Takes the directory for this process; an empty or missing one becomes a new node's.
    pub fn open(path: &Path) -> Result<Self, Refusal> {
        // Everything that can be refused is refused before the first write.
        let found = inspect(path)?;
        if !matches!(found, Inspected::Node(_)) {
            refuse_full(path)?;
        }
        refuse_unwritable(path)?;
        if found == Inspected::Missing {
            make_directory(path).map_err(|error| cannot("make", path, &error))?;
        }
        let lock = lock(path)?;
        // Again, under the lock: another hafsd may have made it its own meanwhile.
        let (node, fresh) = match inspect(path)? {
            Inspected::Node(node) => (node, false),
            Inspected::Missing | Inspected::Empty => {
                let node = NodeId(Uuid::new_v4());
                write_node(path, node).map_err(|error| cannot("write to", path, &error))?;
                (node, true)
            }
        };
        let data = Self {
            path: path.to_owned(),
            node,
            fresh,
            _lock: lock,
        };
        data.make_room();
        data.renew_node();
        for directory in [data.volumes(), data.run()] {
            make_directory(&directory).map_err(|error| cannot("write to", path, &error))?;
        }
        sync_directory(path).map_err(|error| cannot("sync", path, &error))?;
        Ok(data)
    }

    /// On a full disk: has the stores of volumes give up what they hold for this moment, as many as it takes.
    fn make_room(&self) {
        // Without volumes there is nothing to give up.
        let stores = fs::read_dir(self.volumes()).into_iter().flatten();
        for store in stores.filter_map(Result::ok) {
            hafs_fs::make_room_to_open(&store.path());
        }
    }

    /// A file `node` without a checksum gets one.
    fn renew_node(&self) {
        let file = self.path.join("node");
        let is_today = |bytes: Vec<u8>| bytes == encode_node(self.node).as_bytes();
        if fs::read(&file).is_ok_and(is_today) {
            return;
        }
        match write_node(&self.path, self.node) {
            Ok(()) => tracing::info!(path = %file.display(), "the node's file has a checksum now"),
            // It says what it said, and the next start tries again.
            Err(error) => {
                tracing::warn!(path = %file.display(), %error, "the node's file stays without a checksum")
            }
        }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node that it belongs to.
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// True if it became a node's just now.
    pub const fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The control store.
    pub fn meta(&self) -> PathBuf {
        self.path.join("meta")
    }

    /// The stores of volumes.
    pub fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// The store of a volume.
    pub fn volume(&self, id: VolumeId) -> PathBuf {
        self.volumes().join(id.to_string())
    }

    /// What this run needs to tell the next.
    pub fn run(&self) -> PathBuf {
        self.path.join("run")
    }

    /// The disk under it.
    pub fn disk(&self) -> io::Result<Disk> {
        disk(&self.path)
    }
}

/// Makes `from`, a directory or file beside it, be called `to`, for good.
pub(super) fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_directory(
        to.parent()
            .expect("a path in the data directory has a parent"),
    )
}

/// Replaces the file at `path` by one with `content`; after a crash it is the old or the new one.
pub(super) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    rename_durably(&temporary, path)
}

/// Makes the entries of a directory survive a power cut.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(crate) fn disk(path: &Path) -> io::Result<Disk> {
    let stat = statvfs(path)?;
    Ok(Disk {
        size_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

/// What the directory holds. Reads only.
pub(crate) fn inspect(path: &Path) -> Result<Inspected, Refusal> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Inspected::Missing),
        Err(error) => return Err(cannot("read", path, &error)),
    };
    let mut foreign = None;
    for entry in entries {
        let name = entry
            .map_err(|error| cannot("read", path, &error))?
            .file_name();
        if name == "node" {
            return read_node(path).map(Inspected::Node);
        }
        if !STILL_EMPTY.iter().any(|known| name == *known) {
            foreign = Some(name);
        }
    }
    match foreign {
        None => Ok(Inspected::Empty),
        Some(name) => Err(
            Refusal::new(format!("{} is not a hafs data directory", path.display()))
                .why(format!(
                    "it holds `{}` and no file `node` of hafs: it belongs to something else",
                    name.display()
                ))
                .next("choose an empty or new directory with --data-dir"),
        ),
    }
}

fn read_node(path: &Path) -> Result<NodeId, Refusal> {
    let file = path.join("node");
    let mut bytes = Vec::new();
    File::open(&file)
        .and_then(|file| file.take(NODE_FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|error| cannot("read", &file, &error))?;
    decode_node(&bytes).map_err(|error| {
        let path = path.display();
        match error {
            NotOurs::Foreign => Refusal::new(format!("{path} is not a hafs data directory"))
                .why("its file `node` is not one of hafs")
                .next("choose an empty or new directory with --data-dir"),
            NotOurs::Newer(format) => Refusal::new(format!(
                "the data directory {path} has format {format}, this hafsd knows formats up to {FORMAT}"
            ))
            .why("a newer hafs wrote it; nothing was touched")
            .next("run that newer hafsd"),
            NotOurs::Damaged(detail) => {
                Refusal::new(format!("the data directory {path} is damaged"))
                    .why(format!("its file `node` {detail}"))
                    .next("restore that file from a backup; nothing was touched")
            }
        }
    })
}

/// What a file `node` is, if not ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotOurs {
    /// Another program's.
    Foreign,
    /// Of a format to come.
    Newer(u32),
    /// Ours, and not as it was written.
    Damaged(&'static str),
}

/// The node that a file `node` names.
pub(crate) fn decode_node(bytes: &[u8]) -> Result<NodeId, NotOurs> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    if lines.next() != Some(MAGIC) {
        return Err(NotOurs::Foreign);
    }
    let format = lines
        .next()
        .and_then(|line| line.strip_prefix("format "))
        .and_then(|number| number.parse().ok())
        .filter(|format| *format > 0)
        .ok_or(NotOurs::Damaged("does not say its format"))?;
    if format > FORMAT {
        return Err(NotOurs::Newer(format));
    }
    let node = lines
        .next()
        .and_then(|line| line.strip_prefix("node "))
        .and_then(|id| Uuid::try_parse(id).ok())
        .map(NodeId)
        .ok_or(NotOurs::Damaged("does not say its node"))?;
    let written = match format {
        FORMAT_WITHOUT_CHECKSUM => node_lines(format, node),
        _ => encode_node(node),
    };
    if written.as_bytes() != bytes {
        return Err(NotOurs::Damaged("does not match its checksum"));
    }
    Ok(node)
}

/// All that a file `node` says.
pub(crate) fn node_lines(format: u32, node: NodeId) -> String {
    format!("{MAGIC}\nformat {format}\nnode {node}\n")
}

pub(crate) fn encode_node(node: NodeId) -> String {
    let text = node_lines(FORMAT, node);
    let crc = crc32c::crc32c(text.as_bytes());
    format!("{text}crc32c {crc:08x}\n")
}

fn write_node(path: &Path, node: NodeId) -> io::Result<()> {
    write_durably(&path.join("node"), encode_node(node).as_bytes())
}

fn lock(path: &Path) -> Result<File, Refusal> {
    let name = path.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(|error| cannot("write to", path, &error))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        // Whoever holds it may be about to write its pid.
        let _ = file.take(32).read_to_string(&mut holder);
        let holder = match holder.trim() {
            "" => "another hafsd".to_owned(),
            pid => format!("another hafsd, pid {pid},"),
        };
        return Err(Refusal::new(format!(
            "{holder} uses the data directory {}",
            path.display()
        ))
        .why("one hafsd at a time serves a data directory")
        .next("stop that one, or choose another --data-dir (and --socket)"));
    }
    let pid = format!("{}\n", std::process::id());
    // Over the old one: the block that it stands in may be the last.
    file.write_all(pid.as_bytes())
        .and_then(|()| file.set_len(pid.len() as u64))
        .map_err(|error| cannot("write to", path, &error))?;
    Ok(file)
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
}

/// The directory, or what is nearest above it.
pub(crate) fn nearest(path: &Path) -> &Path {
    path.ancestors()
        .find(|path| path.exists())
        .unwrap_or_else(|| Path::new("/"))
}

fn refuse_full(path: &Path) -> Result<(), Refusal> {
    let disk = disk(nearest(path)).map_err(|error| cannot("use", path, &error))?;
    if disk.available_bytes >= FREE_BYTES_MIN {
        return Ok(());
    }
    Err(
        Refusal::new(format!("the disk under {} is full", path.display()))
            .why(format!(
                "{} are free, a new node needs {} to begin; nothing was touched",
                size::display(disk.available_bytes),
                size::display(FREE_BYTES_MIN)
            ))
            .next("free some space on it, or choose another --data-dir"),
    )
}

/// Also tells a read-only filesystem, which root's permissions do not help with.
fn refuse_unwritable(path: &Path) -> Result<(), Refusal> {
    let existing = nearest(path);
    accessat(
        CWD,
        existing,
        Access::WRITE_OK | Access::EXEC_OK,
        AtFlags::EACCESS,
    )
    .map_err(|error| cannot("write to", existing, &error.into()))
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Refusal {
    let next = match error.kind() {
        ErrorKind::PermissionDenied => {
            "run hafsd as root or as the directory's owner, or choose another --data-dir"
        }
        ErrorKind::StorageFull => "free some space on its disk, or choose another --data-dir",
        _ => "choose another --data-dir, or repair this one",
    };
    Refusal::new(format!(
        "cannot {what} the data directory {}",
        path.display()
    ))
    .why(error.to_string())
    .next(next)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Names and contents of all that is in a directory.
    fn listing(path: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(&path).ok()))
            .collect()
    }

    fn refused_untouched(path: &Path) -> Refusal {
        let before = listing(path);
        let refusal = DataDir::open(path).unwrap_err();
        assert_eq!(listing(path), before, "{refusal:?}");
        refusal
    }

    #[test]
    fn an_empty_directory_becomes_a_nodes_and_stays_its() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/on/the/way");
        let data = DataDir::open(&path).unwrap();
        assert!(data.is_fresh());
        let node = data.node();
        drop(data);
        let data = DataDir::open(&path).unwrap();
        assert_eq!((data.node(), data.is_fresh()), (node, false));
    }

    #[test]
    fn an_interrupted_first_start_is_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("lock"), "77\n").unwrap();
        fs::write(dir.path().join("node.new"), "hafs da").unwrap();
        assert!(DataDir::open(dir.path()).unwrap().is_fresh());
    }

    #[test]
    fn another_programs_directory_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("PG_VERSION"), "17").unwrap();
        let refusal = refused_untouched(dir.path());
        assert!(refusal.why.unwrap().contains("`PG_VERSION`"));

        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("node"), [0xff, 0xfe, 0]).unwrap();
        assert!(
            refused_untouched(dir.path())
                .error
                .contains("is not a hafs data directory")
        );
    }

    #[test]
    fn a_newer_format_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("node"),
            "hafs data directory\nformat 3\nwhatever\n",
        )
        .unwrap();
        let refusal = refused_untouched(dir.path());
        assert!(
            refusal
                .error
                .contains("has format 3, this hafsd knows formats up to 2"),
            "{refusal:?}"
        );
    }

    #[test]
    fn a_node_file_without_a_checksum_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        let id = "11111111-2222-4333-8444-555555555555";
        let text = format!("{MAGIC}\nformat 1\nnode {id}\n");
        let file = dir.path().join("node");
        fs::write(&file, text).unwrap();
        let node = NodeId(Uuid::try_parse(id).unwrap());
        assert_eq!(inspect(dir.path()), Ok(Inspected::Node(node)));
        let opened = DataDir::open(dir.path()).unwrap();
        assert_eq!((opened.node(), opened.is_fresh()), (node, false));
        assert_eq!(fs::read_to_string(&file).unwrap(), encode_node(node));
    }

    #[test]
    fn a_node_file_of_neither_form_is_refused_untouched() {
        for lines in [
            "format 0\nnode 11111111-2222-4333-8444-555555555555\n",
            "format 1\nnode 12\n",
            "format 1\nnode 11111111-2222-4333-8444-555555555555",
            "format 1\nnode 11111111-2222-4333-8444-555555555555\ncrc32c 00000000\n",
            "format 2\nnode 11111111-2222-4333-8444-555555555555\n",
            "",
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("node"), format!("{MAGIC}\n{lines}")).unwrap();
            let refusal = refused_untouched(dir.path());
            assert!(refusal.error.contains("is damaged"), "{lines}: {refusal:?}");
        }
    }

    #[test]
    fn every_bit_of_the_node_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeId(Uuid::from_bytes([0xa5; 16]));
        let whole = encode_node(node).into_bytes();
        assert_eq!(decode_node(&whole), Ok(node));
        for (at, bit) in (0..whole.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            fs::write(dir.path().join("node"), &damaged).unwrap();
            let refusal = refused_untouched(dir.path());
            assert!(
                ["is damaged", "is not a hafs data directory", "has format"]
                    .iter()
                    .any(|words| refusal.error.contains(words)),
                "bit {bit} of byte {at}: {refusal:?}"
            );
        }
        for len in 0..whole.len() {
            assert!(decode_node(&whole[..len]).is_err(), "the first {len} bytes");
        }
        let longer = [&whole[..], b"\n"].concat();
        assert!(decode_node(&longer).is_err(), "something behind it");
    }

    #[test]
    fn a_second_hafsd_is_refused_with_the_firsts_pid() {
        let dir = tempfile::tempdir().unwrap();
        let _first = DataDir::open(dir.path()).unwrap();
        let refusal = refused_untouched(dir.path());
        assert!(
            refusal
                .error
                .contains(&format!("pid {}", std::process::id())),
            "{refusal:?}"
        );
    }

    #[test]
    fn a_file_in_its_place_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(
            DataDir::open(file.path())
                .unwrap_err()
                .error
                .contains("cannot read")
        );
    }
}
