//! Files that are appended to and synced: how much of each is written, and how much of that is on the disk.
//!
//! The log and the segments each have one [`Syncer`]. Writers say [`Syncer::wrote`] once their bytes are in the page
//! cache; whoever needs them durable calls [`Syncer::sync`], which may run side by side with writers.
//!
//! Invariant: when `sync` returns `Ok`, everything whose `wrote` returned before `sync` began is on the disk, and so are
//! the directory entries of all files that `created` named before.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::retry_on_intr;

use crate::error::FsError;

/// What is written past the page cache begins at a multiple of so many bytes, in memory and in the file, and is as long: hardly a
/// disk wants more.
pub(crate) const DIRECT_ALIGN: usize = 4096;

const PAGE_BYTES: usize = 4096;
static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Names an operation and a path in an error.
pub(crate) fn io_error(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FsError {
    move |source| FsError::Io {
        op,
        path: path.display().to_string(),
        source,
    }
}

/// The same, but a full disk is [`FsError::NoSpace`]: it loses nothing, and has room again one day.
pub(crate) fn full_or(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FsError {
    let named = io_error(op, path);
    move |error| full(named(error))
}

/// The same for an error that has its name.
pub(crate) fn full(error: FsError) -> FsError {
    match error {
        FsError::Io { source, .. } if is_full(&source) => FsError::NoSpace,
        error => error,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// One file.
#[derive(Debug)]
pub(crate) struct SyncFile {
    file: File,
    /// The same file, past the page cache, where the filesystem allows it.
    direct: Option<File>,
    path: PathBuf,
    /// Bytes ever written, by count, not by offset: writers run side by side.
    written: AtomicU64,
    /// How many of those are on the disk.
    synced: AtomicU64,
}

impl SyncFile {
    pub(crate) fn new(file: File, path: PathBuf) -> Self {
        Self {
            file,
            direct: None,
            path,
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
        }
    }

    /// Opens the file once more, so that long writes can go past the page cache. Where the filesystem cannot do that
    /// (`EINVAL`), they go through it.
    pub(crate) fn with_direct(self) -> Self {
        let mut options = File::options();
        options.write(true).custom_flags(libc::O_DIRECT);
        let direct = options.open(&self.path).ok();
        Self { direct, ..self }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Writes at `offset` into the page cache. The caller tells the syncer.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), FsError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(io_error("write to", &self.path))
    }

    /// Writes at `offset` into the page cache, and zeros behind it to the end of the page if the page begins in `bytes`: whole
    /// pages need not be read before, where the page cache has lost them. The caller tells the syncer.
    pub(crate) fn write_pages_at(&self, bytes: &[u8], offset: u64) -> Result<(), FsError> {
        let end = offset + bytes.len() as u64;
        let in_page = usize::try_from(end % PAGE_BYTES as u64).expect("less than a page");
        let zeros = if in_page == 0 || in_page > bytes.len() {
            0
        } else {
            PAGE_BYTES - in_page
        };
        let slices = [IoSlice::new(bytes), IoSlice::new(&ZEROS[..zeros])];
        let written = retry_on_intr(|| rustix::io::pwritev(&self.file, &slices, offset));
        let written = written.map_err(|errno| io_error("write to", &self.path)(errno.into()))?;
        // Nobody waits for the zeros.
        match bytes.get(written..) {
            Some(rest) => self.write_at(rest, offset + written as u64),
            None => Ok(()),
        }
    }

    /// True if the filesystem takes writes past the page cache.
    pub(crate) fn has_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Writes past the page cache: the disk has the pages when this returns, and keeps them over a power cut after the next
    /// sync. `false`: nothing is written, the file cannot do that. The caller tells the syncer.
    ///
    /// The address of `pages`, their length and `offset` are multiples of [`DIRECT_ALIGN`].
    pub(crate) fn write_direct_at(&self, pages: &[u8], offset: u64) -> Result<bool, FsError> {
        let Some(direct) = &self.direct else {
            return Ok(false);
        };
        match direct.write_all_at(pages, offset) {
            Ok(()) => Ok(true),
            // A disk that wants other multiples.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
            Err(error) => Err(io_error("write to", &self.path)(error)),
        }
    }

    /// Fills `buffer` from `offset`; a file that ends before is an error of kind `UnexpectedEof`.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), FsError> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(io_error("read", &self.path))
    }

    /// Makes what is read from now on be what the disk holds: after a failed sync the host goes on to show bytes that never
    /// reached it.
    ///
    /// # Errors
    /// What the host remembers cannot be brought to the disk.
    pub(crate) fn settle(&self) -> Result<(), FsError> {
        sync_data(&self.file, &self.path)?;
        // Advice, which file systems may refuse; those that have nothing cached do.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
        Ok(())
    }

    fn is_dirty(&self) -> bool {
        self.synced.load(Ordering::Acquire) < self.written.load(Ordering::Acquire)
    }

    fn sync(&self) -> Result<(), FsError> {
        let written = self.written.load(Ordering::Acquire);
        if self.synced.load(Ordering::Acquire) < written {
            sync_data(&self.file, &self.path)?;
            self.synced.fetch_max(written, Ordering::AcqRel);
        }
        Ok(())
    }
}

/// `fdatasync`: content and length, not times.
fn sync_data(file: &File, path: &Path) -> Result<(), FsError> {
    fail::fail_point!("store-sync", |_| Ok(()));
    rustix::fs::fdatasync(file)
        .map_err(io::Error::from)
        .map_err(io_error("sync", path))
}

/// Syncs a directory, so that names made in it outlive a power cut.
pub(crate) fn sync_dir(path: &Path) -> Result<(), FsError> {
    let dir = File::open(path).map_err(io_error("open", path))?;
    dir.sync_all().map_err(io_error("sync", path))
}

/// Creates the file with these bytes, or replaces it, so that after a power cut the old or the new is there, whole.
pub(crate) fn write_file_durably(path: &Path, bytes: &[u8]) -> Result<(), FsError> {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).map_err(io_error("write", &new))?;
    let file = File::open(&new).map_err(io_error("open", &new))?;
    file.sync_all().map_err(io_error("sync", &new))?;
    std::fs::rename(&new, path).map_err(io_error("rename", &new))?;
    sync_dir(path.parent().unwrap_or_else(|| Path::new("/")))
}

/// What a directory of append-only files owes the disk.
#[derive(Debug)]
pub(crate) struct Syncer {
    dir: PathBuf,
    /// Held by the one who syncs. True after a failure: the kernel reports a write that failed to one fdatasync, and
    /// the next one, also one that was under way, is told that all is well.
    has_failed: Mutex<bool>,
    /// Names ever made in `dir`, and how many of those are on the disk. Counted, not flagged: names are made while a
    /// sync runs.
    names_made: AtomicU64,
    names_synced: AtomicU64,
    /// Files that may be dirty. Short: the active one, and those that filled up since the last sync.
    files: Mutex<Vec<Arc<SyncFile>>>,
    /// Bytes written into the page cache since they were last synced, over all files.
    unsynced_bytes: AtomicU64,
}

impl Syncer {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            has_failed: Mutex::new(false),
            names_made: AtomicU64::new(0),
            names_synced: AtomicU64::new(0),
            files: Mutex::new(Vec::new()),
            unsynced_bytes: AtomicU64::new(0),
        }
    }

    /// `file` was made in the directory, or renamed there.
    pub(crate) fn created(&self) {
        self.names_made.fetch_add(1, Ordering::AcqRel);
    }

    /// `len` bytes were written to `file`.
    pub(crate) fn wrote(&self, file: &Arc<SyncFile>, len: u64) {
        self.note(file, len, len);
    }

    /// `len` bytes were written to `file` past the page cache: a sync has nothing to write, but the disk has a cache, too.
    pub(crate) fn wrote_direct(&self, file: &Arc<SyncFile>, len: u64) {
        self.note(file, len, 0);
    }

    fn note(&self, file: &Arc<SyncFile>, written: u64, cached: u64) {
        let mut files = self.files.lock();
        file.written.fetch_add(written, Ordering::AcqRel);
        self.unsynced_bytes.fetch_add(cached, Ordering::AcqRel);
        if !files.iter().any(|known| Arc::ptr_eq(known, file)) {
            files.push(Arc::clone(file));
        }
    }

    /// True if a sync would have something to do.
    pub(crate) fn is_dirty(&self) -> bool {
        self.names_synced.load(Ordering::Acquire) < self.names_made.load(Ordering::Acquire)
            || self.files.lock().iter().any(|file| file.is_dirty())
    }

    /// Bytes that the next sync has to write.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        self.unsynced_bytes.load(Ordering::Acquire)
    }

    /// Makes all of it durable. One at a time: who comes second waits for the disk anyway, and may find nothing left.
    ///
    /// # Errors
    /// After an error nothing may be taken for durable any more: every later call is [`FsError::Failed`].
    pub(crate) fn sync(&self) -> Result<(), FsError> {
        let mut has_failed = self.has_failed.lock();
        if *has_failed {
            return Err(FsError::Failed);
        }
        let synced = self.sync_all();
        *has_failed = synced.is_err();
        synced
    }

    fn sync_all(&self) -> Result<(), FsError> {
        let names = self.names_made.load(Ordering::Acquire);
        let (files, bytes) = {
            let files = self.files.lock();
            (files.clone(), self.unsynced_bytes.load(Ordering::Acquire))
        };
        for file in &files {
            file.sync()?;
        }
        if self.names_synced.load(Ordering::Acquire) < names {
            sync_dir(&self.dir)?;
            self.names_synced.fetch_max(names, Ordering::AcqRel);
        }
        let mut known = self.files.lock();
        known.retain(|file| file.is_dirty());
        // A gauge for back-pressure: writers add to it all the time.
        let _ = self
            .unsynced_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                Some(if known.is_empty() {
                    0
                } else {
                    now.saturating_sub(bytes)
                })
            });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_sync_that_failed_once_never_succeeds_again() {
        let dir = tempfile::tempdir().unwrap();
        let syncer = Syncer::new(dir.path().to_owned());
        // A device cannot be synced, so this stands for a disk that fails.
        let path = PathBuf::from("/dev/null");
        let file = Arc::new(SyncFile::new(File::open(&path).unwrap(), path));
        syncer.wrote(&file, 1);
        assert!(matches!(syncer.sync(), Err(FsError::Io { .. })));
        // The kernel reports an error once; whoever asks next is told that all is well.
        file.synced.store(1, Ordering::Release);
        assert!(matches!(syncer.sync(), Err(FsError::Failed)));
    }

    /// True if the host holds the file's first page in memory. A read that must not wait would say so too, but the kernel
    /// has it start reading ahead, and then it may find the page after all.
    #[expect(unsafe_code, reason = "rustix does not tell which pages are in memory")]
    fn is_cached(file: &File) -> bool {
        const PAGE: usize = 4096;
        let mut resident = 0_u8;
        // SAFETY: the kernel chooses where a page of the file is mapped, nothing reads or writes through it, `resident` has
        // room for the answer on one page, and the mapping is gone before this returns.
        unsafe {
            let page = libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(page, libc::MAP_FAILED);
            assert_eq!(libc::mincore(page, PAGE, &raw mut resident), 0);
            assert_eq!(libc::munmap(page, PAGE), 0);
        }
        resident & 1 == 1
    }

    #[test]
    fn a_settled_file_is_read_from_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path);
        let file = SyncFile::new(file.unwrap(), path);
        file.write_at(&[7; 4096], 0).unwrap();
        assert!(is_cached(file.file()));
        file.settle().unwrap();
        // A filesystem that lies in memory has no other place for it.
        let in_memory = rustix::fs::fstatfs(file.file()).unwrap().f_type == 0x0102_1994;
        assert_eq!(is_cached(file.file()), in_memory);
        let mut page = [0; 4096];
        file.read_at(&mut page, 0).unwrap();
        assert_eq!(page, [7; 4096]);
    }
}
