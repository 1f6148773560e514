//! One volume on this disk: a directory with the log, the chunk segments and RocksDB's state.
//!
//! ```text
//! DIR/volume      who this store is: format, volume, store, node, lineage
//! DIR/lock        held by the process that has the store open
//! DIR/mark        the lsn up to which everything was synced once (a lower bound)
//! DIR/log/        the log's files            (store/logfile.rs)
//! DIR/segments/   bulk bytes                 (store/segment.rs)
//! DIR/state/      RocksDB: what the log's records fold to (store/key.rs)
//! ```
//!
//! RocksDB has no log of its own here: after a crash it is at its last flush, and the volume's log is replayed from there.
//!
//! Invariant (write-ahead rule): RocksDB flushes no state that is ahead of what log and segments have synced. So a flush is
//! ours to call ([`Store::start_flush`]), memtables are too big to be flushed by themselves, and closing flushes nothing.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hafs_protocol::{Lineage, NodeId, StoreId, VolumeId};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    Direction, FlushOptions, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions,
};
use rustix::fs::FlockOperation;
use uuid::Uuid;

use crate::error::FsError;
use crate::store::key::{LocalTable, Table, row_body};
use crate::store::segment::Segments;
use crate::store::syncfile::{free_bytes, io_error, sync_dir, write_file_durably};

pub(crate) mod codec;
pub(crate) mod digest;
pub(crate) mod key;
pub(crate) mod logfile;
pub(crate) mod mark;
pub(crate) mod replay;
pub(crate) mod segment;
pub(crate) mod syncfile;

/// Format of a store's directory. One more with each change that an older binary cannot read.
pub(crate) const FORMAT: u32 = 2;
const TITLE: &str = "hafs volume store";

/// Which store a directory holds. Checked when it is opened: a copied or moved store is refused, not served twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeIdentity {
    /// The volume.
    pub volume: VolumeId,
    /// This copy of it.
    pub store: StoreId,
    /// The node that this copy lies on.
    pub node: NodeId,
    /// The volume's history.
    pub lineage: Lineage,
}

impl VolumeIdentity {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let text = format!(
            "{TITLE}\nformat={FORMAT}\nvolume={}\nstore={}\nnode={}\nlineage={}\n",
            self.volume, self.store, self.node, self.lineage
        );
        let crc = crc32c::crc32c(text.as_bytes());
        format!("{text}crc32c={crc:08x}\n").into_bytes()
    }

    /// Reads `DIR/volume`. Refuses another program's directory and a newer format; touches nothing.
    pub fn read(dir: &Path) -> Result<Self, FsError> {
        let path = dir.join("volume");
        let text = fs::read_to_string(&path).map_err(io_error("read", &path))?;
        Self::decode(&text).map_err(|why| FsError::Refused(format!("{}: {why}", path.display())))
    }

    /// What the text of `DIR/volume` says, or why it says nothing.
    pub(crate) fn decode(text: &str) -> Result<Self, String> {
        let refused = str::to_owned;
        if text.lines().next() != Some(TITLE) {
            return Err(refused("not a hafs volume store"));
        }
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        };
        match field("format").and_then(|format| format.parse::<u32>().ok()) {
            Some(FORMAT) => {}
            Some(other) if other > FORMAT => {
                return Err(format!(
                    "format {other} is newer than this hafs knows (up to {FORMAT})"
                ));
            }
            Some(other) => {
                return Err(format!(
                    "format {other} is older than this hafs reads ({FORMAT})"
                ));
            }
            None => return Err(refused("unknown format")),
        }
        let covered = text.find("crc32c=").ok_or_else(|| refused("no checksum"))?;
        let crc = field("crc32c").and_then(|crc| u32::from_str_radix(crc, 16).ok());
        if crc != Some(crc32c::crc32c(&text.as_bytes()[..covered])) {
            return Err(refused("damaged: the checksum does not match"));
        }
        let id = |name: &'static str| {
            field(name)
                .and_then(|id| Uuid::parse_str(id).ok())
                .ok_or_else(|| format!("no valid {name}"))
        };
        Ok(Self {
            volume: VolumeId(id("volume")?),
            store: StoreId(id("store")?),
            node: NodeId(id("node")?),
            lineage: Lineage(id("lineage")?),
        })
    }

    /// `Err` with the difference if a store that should be `self` says that it is `found`.
    fn expect(&self, found: &Self, dir: &Path) -> Result<(), FsError> {
        let differ = |what: &str, is: &dyn std::fmt::Display, wanted: &dyn std::fmt::Display| {
            FsError::Refused(format!(
                "{}: belongs to {what} {is}, not {wanted}; was it copied or moved?",
                dir.display()
            ))
        };
        if found.volume != self.volume {
            return Err(differ("volume", &found.volume, &self.volume));
        }
        if found.node != self.node {
            return Err(differ("node", &found.node, &self.node));
        }
        if found.store != self.store {
            return Err(differ("store", &found.store, &self.store));
        }
        if found.lineage != self.lineage {
            return Err(differ("lineage", &found.lineage, &self.lineage));
        }
        Ok(())
    }
}

/// What the volumes of a node share, so that a hundred of them stay within one budget. Clones share.
#[derive(Clone)]
pub struct SharedCache(Cache);

impl SharedCache {
    /// A cache of so many bytes for blocks, indexes and filters of all state.
    pub fn new(bytes: usize) -> Self {
        Self(Cache::new_lru_cache(bytes))
    }
}

impl std::fmt::Debug for SharedCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SharedCache")
            .field(&self.0.get_usage())
            .finish()
    }
}

/// The open store. The log's end is not here: it belongs to the volume's write lock.
pub(crate) struct Store {
    dir: PathBuf,
    identity: VolumeIdentity,
    db: Arc<DB>,
    pub(crate) segments: Segments,
    write_options: WriteOptions,
    /// Holds the lock while the store is open, and tells whether the directory is still the one that was opened.
    lock: File,
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.check_place() {
            // Closing it, RocksDB would look for its manifest by path, and write a new one into the other directory.
            std::mem::forget(Arc::clone(&self.db));
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "the state is not closed; start hafsd again");
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// Directory of the log's files.
pub(crate) fn log_dir(dir: &Path) -> PathBuf {
    dir.join("log")
}

fn segments_dir(dir: &Path) -> PathBuf {
    dir.join("segments")
}

fn state_dir(dir: &Path) -> PathBuf {
    dir.join("state")
}

impl Store {
    /// Makes an empty store in `dir`, which must be empty or not there. `DIR/volume` comes last: without it, it is none.
    pub(crate) fn create_dirs(dir: &Path) -> Result<(), FsError> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        if fs::read_dir(dir)
            .map_err(io_error("read", dir))?
            .next()
            .is_some()
        {
            return Err(FsError::Refused(format!("{}: not empty", dir.display())));
        }
        fs::create_dir(segments_dir(dir)).map_err(io_error("create", &segments_dir(dir)))
    }

    /// Declares the directory a store, durably.
    pub(crate) fn write_identity(dir: &Path, identity: &VolumeIdentity) -> Result<(), FsError> {
        sync_dir(&segments_dir(dir))?;
        sync_dir(dir)?;
        write_file_durably(&dir.join("volume"), &identity.encode())
    }

    /// Opens a store: checks who it is, takes its lock.
    pub(crate) fn open(
        dir: &Path,
        identity: &VolumeIdentity,
        cache: &SharedCache,
        state_buffer_bytes: u64,
        segment_bytes: u64,
    ) -> Result<Self, FsError> {
        identity.expect(&VolumeIdentity::read(dir)?, dir)?;
        let lock = lock(dir)?;
        Self::open_parts(
            dir,
            identity,
            cache,
            state_buffer_bytes,
            segment_bytes,
            lock,
            false,
        )
    }

    /// Opens a store that has no `DIR/volume` yet, in order to fill it.
    pub(crate) fn open_new(
        dir: &Path,
        identity: &VolumeIdentity,
        cache: &SharedCache,
        state_buffer_bytes: u64,
        segment_bytes: u64,
    ) -> Result<Self, FsError> {
        let lock = lock(dir)?;
        Self::open_parts(
            dir,
            identity,
            cache,
            state_buffer_bytes,
            segment_bytes,
            lock,
            true,
        )
    }

    fn open_parts(
        dir: &Path,
        identity: &VolumeIdentity,
        cache: &SharedCache,
        state_buffer_bytes: u64,
        segment_bytes: u64,
        lock: File,
        is_new: bool,
    ) -> Result<Self, FsError> {
        let segments = segments_dir(dir);
        let found = Segments::list(&segments)?;
        for path in &found.strangers {
            tracing::warn!(path = %path.display(), "a file that is no segment");
        }
        let next_segment = found.ids.last().map_or(1, |last| last.0.saturating_add(1));
        let db = open_state(&state_dir(dir), cache, state_buffer_bytes, is_new)?;
        let mut write_options = WriteOptions::default();
        write_options.disable_wal(true);
        Ok(Self {
            dir: dir.to_owned(),
            identity: *identity,
            db: Arc::new(db),
            segments: Segments::new(&segments, identity.store, segment_bytes, next_segment),
            write_options,
            lock,
        })
    }

    /// Refuses a directory that was replaced or removed since it was opened. Log and segments are written through descriptors,
    /// RocksDB makes files by their paths: a flush would spread one state over two directories, and spoil both.
    pub(crate) fn check_place(&self) -> Result<(), FsError> {
        let path = lock_path(&self.dir);
        let opened = self.lock.metadata().map_err(io_error("stat", &path))?;
        let there = fs::metadata(&path);
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (opened.dev(), opened.ino())) {
            return Ok(());
        }
        Err(FsError::Refused(format!(
            "{}: another directory has taken its place since it was opened",
            self.dir.display()
        )))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn identity(&self) -> &VolumeIdentity {
        &self.identity
    }

    pub(crate) fn segments_dir(&self) -> PathBuf {
        segments_dir(&self.dir)
    }

    pub(crate) fn cf(&self, table: Table) -> &ColumnFamily {
        self.db
            .cf_handle(table.name())
            .expect("every table was opened with the database")
    }

    pub(crate) fn local_cf(&self, table: LocalTable) -> &ColumnFamily {
        self.db
            .cf_handle(table.name())
            .expect("every table was opened with the database")
    }

    /// A replicated row as stored.
    pub(crate) fn raw(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        Ok(self.db.get_cf(self.cf(table), key)?)
    }

    /// A replicated row's body.
    pub(crate) fn body(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        match self.db.get_pinned_cf(self.cf(table), key)? {
            Some(raw) => Ok(Some(row_body(&raw)?.to_vec())),
            None => Ok(None),
        }
    }

    pub(crate) fn local(&self, table: LocalTable, key: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        Ok(self.db.get_cf(self.local_cf(table), key)?)
    }

    /// Rows of a replicated table with `from <= key < to`, as stored, ascending.
    pub(crate) fn scan(&self, table: Table, from: &[u8], to: &[u8]) -> Rows<'_> {
        self.rows(self.cf(table), from, to, Direction::Forward)
    }

    /// The same, descending.
    pub(crate) fn scan_back(&self, table: Table, from: &[u8], to: &[u8]) -> Rows<'_> {
        self.rows(self.cf(table), from, to, Direction::Reverse)
    }

    /// Rows of a local table with `from <= key < to`, ascending.
    pub(crate) fn scan_local(&self, table: LocalTable, from: &[u8], to: &[u8]) -> Rows<'_> {
        self.rows(self.local_cf(table), from, to, Direction::Forward)
    }

    fn rows<'a>(
        &'a self,
        cf: &ColumnFamily,
        from: &[u8],
        to: &[u8],
        direction: Direction,
    ) -> Rows<'a> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        let mode = match direction {
            Direction::Forward => IteratorMode::Start,
            Direction::Reverse => IteratorMode::End,
        };
        Rows {
            iterator: self.db.iterator_cf_opt(cf, options, mode),
        }
    }

    /// A picture of the state that does not change.
    pub(crate) fn snapshot(&self) -> rocksdb::Snapshot<'_> {
        self.db.snapshot()
    }

    /// Applies a batch to the memtables: all of it or nothing.
    ///
    /// # Errors
    /// [`FsError::NoSpace`] while RocksDB waits for room on the disk; it takes batches again by itself once there is some.
    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), FsError> {
        self.db
            .write_opt(batch, &self.write_options)
            .map_err(full_or)
    }

    /// Starts writing the state as it is now to disk, all tables as of one moment; returns once later writes are no longer
    /// part of it. The caller holds the write lock, and has synced log and segments under it.
    ///
    /// # Errors
    /// [`FsError::NoSpace`] if the disk has no room for it: nothing was begun then, and nothing is lost.
    pub(crate) fn start_flush(&self) -> Result<(), FsError> {
        if free_bytes(&self.dir)? < self.flush_bytes()? {
            return Err(FsError::NoSpace);
        }
        let mut options = FlushOptions::default();
        options.set_wait(false);
        let families: Vec<&ColumnFamily> = self.families().collect();
        self.db.flush_cfs_opt(&families, &options).map_err(full_or)
    }

    /// What the state takes on the disk, bytes.
    pub(crate) fn disk_bytes(&self) -> Result<u64, FsError> {
        let names = Table::ALL
            .into_iter()
            .map(Table::name)
            .chain(LocalTable::ALL.into_iter().map(LocalTable::name));
        let mut bytes = 0;
        for name in names {
            let cf = self
                .db
                .cf_handle(name)
                .expect("every table was opened with the database");
            let files = self
                .db
                .property_int_value_cf(cf, "rocksdb.live-sst-files-size")?;
            bytes += files.unwrap_or(0);
        }
        Ok(bytes)
    }

    /// True once everything that [`Self::start_flush`] caught is on the disk.
    ///
    /// # Errors
    /// [`FsError::NoSpace`] if the disk became full: RocksDB goes on by itself once there is room, and a later flush
    /// catches what this one did not bring to the disk.
    pub(crate) fn flush_is_done(&self) -> Result<bool, FsError> {
        if self.sum_over_tables("rocksdb.num-immutable-mem-table")? == 0 {
            return Ok(true);
        }
        // RocksDB counts its errors, and never forgets one. What it says to a write is how it is now.
        self.write(WriteBatch::default())?;
        Ok(false)
    }

    /// Space that a flush needs now, bytes: rows in memory take about twice what they take on the disk.
    pub(crate) fn flush_bytes(&self) -> Result<u64, FsError> {
        Ok(self.sum_over_tables("rocksdb.cur-size-all-mem-tables")? / 2 + FLUSH_HEADROOM_BYTES)
    }

    fn sum_over_tables(&self, property: &str) -> Result<u64, FsError> {
        let mut sum = 0;
        for cf in self.families() {
            sum += self.db.property_int_value_cf(cf, property)?.unwrap_or(0);
        }
        Ok(sum)
    }

    fn families(&self) -> impl Iterator<Item = &ColumnFamily> {
        let replicated = Table::ALL.into_iter().map(|table| self.cf(table));
        let local = LocalTable::ALL
            .into_iter()
            .map(|table| self.local_cf(table));
        replicated.chain(local)
    }
}

/// A full disk is told apart from a failing one. RocksDB's crate has no code for it, only the text.
fn full_or(error: rocksdb::Error) -> FsError {
    if error.kind() == rocksdb::ErrorKind::IOError && error.as_ref().contains("No space left") {
        FsError::NoSpace
    } else {
        FsError::State(error)
    }
}

/// Key and value as stored.
pub(crate) type Row = (Box<[u8]>, Box<[u8]>);

/// Rows of a table.
pub(crate) struct Rows<'a> {
    iterator: rocksdb::DBIteratorWithThreadMode<'a, DB>,
}

impl Iterator for Rows<'_> {
    type Item = Result<Row, FsError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.iterator.next().map(|row| row.map_err(FsError::from))
    }
}

fn lock_path(dir: &Path) -> PathBuf {
    dir.join("lock")
}

/// Takes the store's lock, or says who holds it.
fn lock(dir: &Path) -> Result<File, FsError> {
    let path = lock_path(dir);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(FsError::Refused(format!(
            "{}: in use by another process",
            dir.display()
        ))),
        Err(errno) => Err(io_error("lock", &path)(errno.into())),
    }
}

/// What a flush needs besides what the memtables hold: its files' indexes, RocksDB's own books, and what others write to the
/// disk meanwhile.
const FLUSH_HEADROOM_BYTES: u64 = 1 << 20;
/// Memtables are flushed by us long before they hold this many times the state buffer.
const MEMTABLE_HEADROOM: u64 = 8;
/// And never less than this, whatever the buffer.
const MEMTABLE_BYTES_MIN: u64 = 512 << 20;
/// Memory that an idle table takes: 9 tables a volume, 100 volumes a node.
const ARENA_BLOCK_BYTES: usize = 64 * 1024;
/// Descriptors that one volume's state may hold.
const OPEN_TABLES_MAX: i32 = 128;
/// RocksDB takes space for its list of files in such steps; its own 4 MiB are much on a full disk.
const MANIFEST_BLOCK_BYTES: usize = 64 * 1024;
const BLOOM_BITS_PER_KEY: f64 = 10.0;

fn open_state(
    path: &Path,
    cache: &SharedCache,
    state_buffer_bytes: u64,
    is_new: bool,
) -> Result<DB, FsError> {
    // The crate has no setter for this one. Without it, closing would flush unsynced state.
    let mut options =
        Options::default().get_options_from_string("avoid_flush_during_shutdown=true")?;
    // Never in a store that was one: a database made anew in the place of a damaged one deletes what was left of that.
    options.create_if_missing(is_new);
    options.create_missing_column_families(is_new);
    options.set_atomic_flush(true);
    options.set_max_open_files(OPEN_TABLES_MAX);
    options.set_manifest_preallocation_size(MANIFEST_BLOCK_BYTES);
    options.set_max_background_jobs(2);
    options.set_max_file_opening_threads(1); // else 16 threads a table are started at each open
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(rocksdb::LogLevel::Warn);
    options.set_paranoid_checks(true);
    let families = Table::ALL
        .into_iter()
        .map(Table::name)
        .chain(LocalTable::ALL.into_iter().map(LocalTable::name))
        .map(|name| ColumnFamilyDescriptor::new(name, table_options(cache, state_buffer_bytes)))
        .chain([ColumnFamilyDescriptor::new(
            rocksdb::DEFAULT_COLUMN_FAMILY_NAME,
            Options::default(),
        )]);
    DB::open_cf_descriptors(&options, path, families).map_err(FsError::StateLost)
}

fn table_options(cache: &SharedCache, state_buffer_bytes: u64) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&cache.0);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    blocks.set_format_version(5);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_arena_block_size(ARENA_BLOCK_BYTES);
    // Memory is taken as rows come, so a bound that is far away costs nothing; and a log that was written with a bigger
    // buffer than this one is still replayed without a flush of RocksDB's own.
    let memtable = (state_buffer_bytes * MEMTABLE_HEADROOM).max(MEMTABLE_BYTES_MIN);
    let memtable = usize::try_from(memtable).unwrap_or(usize::MAX);
    options.set_write_buffer_size(memtable);
    options.set_max_write_buffer_number(4);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> VolumeIdentity {
        VolumeIdentity {
            volume: VolumeId::from_bytes([1; 16]),
            store: StoreId::from_bytes([2; 16]),
            node: NodeId::from_bytes([3; 16]),
            lineage: Lineage::from_bytes([4; 16]),
        }
    }

    #[test]
    fn the_identity_is_read_back_and_any_change_of_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write_file_durably(&dir.path().join("volume"), &identity().encode()).unwrap();
        assert_eq!(VolumeIdentity::read(dir.path()).unwrap(), identity());
        let text = String::from_utf8(identity().encode()).unwrap();
        for (from, to, why) in [
            ("format=2", "format=3", "newer"),
            ("format=2", "format=1", "older"),
            ("volume=01", "volume=02", "checksum"),
            (TITLE, "somebody's notes", "not a hafs volume store"),
        ] {
            fs::write(dir.path().join("volume"), text.replace(from, to)).unwrap();
            let refused = VolumeIdentity::read(dir.path()).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn a_store_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let _held = lock(dir.path()).unwrap();
        assert!(lock(dir.path()).unwrap_err().to_string().contains("in use"));
    }
}
