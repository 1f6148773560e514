//! The directory of a local control store: whose it is, which format, and that only one process has it.
//!
//! [`LocalStore`](super::LocalStore) opens it before RocksDB does. Everything is checked before anything is written, so a
//! refused directory is left as it was.
//!
//! A directory is a store once `FORMAT` is there: made as `FORMAT.new` before the database, renamed after it is whole. So a
//! store whose making was cut short is told from another program's directory, and a lost database from a new one.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::mark::{self, Mark};
use crate::error::OpenError;

/// The format that this version writes, and the newest that it reads.
const FORMAT_VERSION: u32 = 2;
/// The first format with a mark.
const FORMAT_WITH_MARK: u32 = 2;
/// What stands before the version in `FORMAT`.
const FORMAT_MAGIC: &str = "hafs control store, format ";
/// Bytes of `FORMAT` that are looked at: enough for any version number.
const FORMAT_BYTES_MAX: u64 = 256;
const FORMAT: &str = "FORMAT";
const FORMAT_NEW: &str = "FORMAT.new";
const DATABASE: &str = "db";
/// What a making that was cut short may leave.
const OURS: [&str; 3] = [FORMAT_NEW, DATABASE, mark::FILE];

/// A directory that is ours alone (flock) as long as this lives.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    fd: OwnedFd,
}

/// What [`Directory::open`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A store of today's format.
    Store,
    /// A store of format 1, which has no mark: [`Directory::begin_renewal`], then [`Directory::finish`].
    StoreWithoutMark,
    /// Nothing, or what a cut short making left: [`Directory::begin`], then [`Directory::finish`].
    Nothing,
}

impl Directory {
    /// Opens the directory, makes it (not its parents) if it is not there, and checks everything that can be checked
    /// without RocksDB; `need_bytes` must be free.
    pub(super) fn open(path: &Path, need_bytes: u64) -> Result<(Self, Content), OpenError> {
        let fd = match open_dir(path) {
            Err(Errno::NOENT) => {
                make_dir(path, need_bytes)?;
                open_dir(path)
            }
            opened => opened,
        };
        let fd = fd.map_err(|errno| failed("open directory", path, errno))?;
        let this = Self {
            path: path.to_owned(),
            fd,
        };
        let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::accessat(&this.fd, ".", all, AtFlags::EACCESS)
            .map_err(|errno| failed("write to", path, errno))?;
        match rustix::fs::flock(&this.fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(OpenError::InUse {
                    dir: path.to_owned(),
                });
            }
            Err(errno) => return Err(failed("lock", path, errno)),
        }
        let content = this.identify()?;
        this.check_free(need_bytes)?;
        Ok((this, content))
    }

    /// Where RocksDB keeps its files.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// Bytes free on the file system for this process.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        Ok(free_bytes(&rustix::fs::fstatvfs(&self.fd)?))
    }

    /// Says that a store is being made in the directory, and clears away what an earlier try left.
    pub(super) fn begin(&self) -> Result<(), OpenError> {
        let database = self.database();
        match fs::remove_dir_all(&database) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(OpenError::Io {
                    op: "remove",
                    path: database,
                    source: e,
                });
            }
            Ok(()) | Err(_) => {}
        }
        self.begin_renewal(0)
    }

    /// Gives the directory all of today's format but its name: a mark, for a store at `rev`.
    pub(super) fn begin_renewal(&self, rev: u64) -> Result<(), OpenError> {
        let path = self.path.join(FORMAT_NEW);
        let write = || {
            let mut file = fs::File::create(&path)?;
            file.write_all(format_text(FORMAT_VERSION).as_bytes())?;
            file.sync_all()?;
            // FORMAT.new says whose the rest is.
            rustix::fs::fsync(&self.fd)?;
            Mark::create(&self.path, rev)?;
            rustix::fs::fsync(&self.fd)?;
            Ok(())
        };
        write().map_err(|source| OpenError::Io {
            op: "write",
            path: path.clone(),
            source,
        })
    }

    /// The database is whole and synced: from now on this is a store of today's format.
    pub(super) fn finish(&self) -> Result<(), OpenError> {
        let path = self.path.join(FORMAT);
        rustix::fs::renameat(&self.fd, FORMAT_NEW, &self.fd, FORMAT)
            .and_then(|()| rustix::fs::fsync(&self.fd))
            .map_err(|errno| failed("make", &path, errno))
    }

    fn identify(&self) -> Result<Content, OpenError> {
        let foreign = |detail: String| {
            Err(OpenError::Foreign {
                dir: self.path.clone(),
                detail,
            })
        };
        if let Some(format) = self.read_start(FORMAT)? {
            return match parse_format(&format) {
                None | Some(0) => foreign("its file FORMAT says something else".to_owned()),
                Some(found) if found > FORMAT_VERSION => {
                    let (dir, known) = (self.path.clone(), FORMAT_VERSION);
                    Err(OpenError::Newer { dir, found, known })
                }
                Some(found) if found < FORMAT_WITH_MARK => Ok(Content::StoreWithoutMark),
                Some(_) => Ok(Content::Store),
            };
        }
        let names = self.names()?;
        // Synced before the database was begun, so it may be cut short only while it is alone.
        let cut_short = self.read_start(FORMAT_NEW)?;
        let begun = cut_short.is_some_and(|begun| {
            let mut texts = (1..=FORMAT_VERSION).map(format_text);
            let is_alone = names.len() == 1;
            texts.any(|text| {
                begun == text.as_bytes() || (is_alone && text.as_bytes().starts_with(&begun))
            })
        });
        let stranger = names
            .into_iter()
            .find(|name| !(begun && OURS.iter().any(|ours| name == ours)));
        match stranger {
            None => Ok(Content::Nothing),
            Some(name) => foreign(format!("it holds {}", name.display())),
        }
    }

    fn names(&self) -> Result<Vec<OsString>, OpenError> {
        let read = || -> io::Result<_> {
            fs::read_dir(&self.path)?
                .map(|entry| Ok(entry?.file_name()))
                .collect()
        };
        read().map_err(|source| OpenError::Io {
            op: "read",
            path: self.path.clone(),
            source,
        })
    }

    fn read_start(&self, name: &str) -> Result<Option<Vec<u8>>, OpenError> {
        let path = self.path.join(name);
        let read = || -> io::Result<_> {
            let mut start = Vec::new();
            fs::File::open(&path)?
                .take(FORMAT_BYTES_MAX)
                .read_to_end(&mut start)?;
            Ok(start)
        };
        match read() {
            Ok(start) => Ok(Some(start)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(OpenError::Io {
                op: "read",
                path,
                source,
            }),
        }
    }

    fn check_free(&self, need_bytes: u64) -> Result<(), OpenError> {
        let free_bytes = self.free_bytes().map_err(|source| OpenError::Io {
            op: "stat",
            path: self.path.clone(),
            source,
        })?;
        full_below(&self.path, free_bytes, need_bytes)
    }
}

/// Root may also take what a file system keeps for root, and what is written here lets space be given back.
fn free_bytes(stat: &rustix::fs::StatVfs) -> u64 {
    let blocks = if rustix::process::geteuid().is_root() {
        stat.f_bfree
    } else {
        stat.f_bavail
    };
    blocks.saturating_mul(stat.f_frsize)
}

/// The version that `FORMAT` says.
pub(crate) fn parse_format(bytes: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(bytes).ok()?;
    let version = text.strip_prefix(FORMAT_MAGIC)?;
    version.trim_end().parse().ok()
}

pub(crate) fn format_text(version: u32) -> String {
    format!("{FORMAT_MAGIC}{version}\n")
}

fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Makes the directory, for root alone, once its file system is known to have room.
fn make_dir(path: &Path, need_bytes: u64) -> Result<(), OpenError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let fd = open_dir(parent).map_err(|errno| failed("open directory", parent, errno))?;
    let stat = rustix::fs::fstatvfs(&fd).map_err(|errno| failed("stat", parent, errno))?;
    full_below(path, free_bytes(&stat), need_bytes)?;
    rustix::fs::mkdir(path, Mode::RWXU)
        .and_then(|()| rustix::fs::fsync(&fd))
        .map_err(|errno| failed("make directory", path, errno))
}

fn full_below(dir: &Path, free_bytes: u64, need_bytes: u64) -> Result<(), OpenError> {
    if free_bytes < need_bytes {
        return Err(OpenError::Full {
            dir: dir.to_owned(),
            free_bytes,
            need_bytes,
        });
    }
    Ok(())
}

fn failed(op: &'static str, path: &Path, errno: Errno) -> OpenError {
    OpenError::Io {
        op,
        path: path.to_owned(),
        source: errno.into(),
    }
}
