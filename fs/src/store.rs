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
//! Invariant (write-ahead rule): RocksDB holds no state that is ahead of what log and segments have synced. So what is written
//! stays in memtables of our own (store/memtable.rs) until [`Store::flush`] brings it to RocksDB, in one batch.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hafs_protocol::{Lineage, NodeId, StoreId, VolumeId};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB,
    DBCompressionType, Direction, FlushOptions, IteratorMode, Options, ReadOptions, WriteBatch,
    WriteOptions,
};
use rustix::fs::FlockOperation;
use uuid::Uuid;

use crate::error::{FsError, StateLoss, with_causes};
use crate::space::DiskBytes;
use crate::store::absent::AbsentNames;
use crate::store::key::{LocalTable, Table, key_ino, row_body};
use crate::store::memtable::{AnyTable, Batch, Layers, Memtables, MergedRows, Order};
use crate::store::segment::Segments;
use crate::store::state::StateFiles;
use crate::store::syncfile::{io_error, sync_dir, write_file_durably};

pub(crate) mod absent;
pub(crate) mod codec;
pub(crate) mod digest;
pub(crate) mod key;
pub(crate) mod logfile;
pub(crate) mod mark;
pub(crate) mod memtable;
pub(crate) mod replay;
pub(crate) mod segment;
pub(crate) mod state;
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
    memtables: Memtables,
    absent: AbsentNames,
    /// RocksDB holds replicated rows of inodes below this number only.
    flushed_inos: AtomicU64,
    /// Holds the lock while the store is open, and tells whether the directory is still the one that was opened.
    lock: File,
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.check_place() {
            // Closing it, RocksDB would look for its manifest by path, and write a new one into the other directory.
            std::mem::forget(Arc::clone(&self.db));
            let error = with_causes(&error);
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
        segment_bytes: u64,
    ) -> Result<Self, FsError> {
        identity.expect(&VolumeIdentity::read(dir)?, dir)?;
        let lock = lock(dir)?;
        Self::open_parts(dir, identity, cache, segment_bytes, lock, false)
    }

    /// Opens a store that has no `DIR/volume` yet, in order to fill it.
    pub(crate) fn open_new(
        dir: &Path,
        identity: &VolumeIdentity,
        cache: &SharedCache,
        segment_bytes: u64,
    ) -> Result<Self, FsError> {
        let lock = lock(dir)?;
        Self::open_parts(dir, identity, cache, segment_bytes, lock, true)
    }

    fn open_parts(
        dir: &Path,
        identity: &VolumeIdentity,
        cache: &SharedCache,
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
        let db = open_state(&state_dir(dir), cache, is_new)?;
        let mut store = Self {
            dir: dir.to_owned(),
            identity: *identity,
            db: Arc::new(db),
            segments: Segments::new(&segments, identity.store, segment_bytes, next_segment),
            memtables: Memtables::default(),
            absent: AbsentNames::default(),
            flushed_inos: AtomicU64::new(u64::MAX),
            lock,
        };
        let flushed_inos = store.highest_ino()?.map_or(0, |ino| ino.saturating_add(1));
        store.flushed_inos = AtomicU64::new(flushed_inos);
        Ok(store)
    }

    /// The highest inode number that a replicated row starts with.
    fn highest_ino(&self) -> Result<Option<u64>, FsError> {
        let mut highest = None;
        for table in Table::ALL {
            let last = self
                .db
                .iterator_cf(self.cf(table.into()), IteratorMode::End)
                .next();
            if let Some(row) = last {
                highest = highest.max(Some(key_ino(&row?.0)?.0));
            }
        }
        Ok(highest)
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

    fn cf(&self, table: AnyTable) -> &ColumnFamily {
        self.db
            .cf_handle(table.name())
            .expect("every table was opened with the database")
    }

    /// Whether RocksDB may hold a row with this key, or one that sorts behind it. Inode numbers are never used again, so that
    /// it holds nothing of an inode that was made since the last flush.
    fn may_be_flushed(&self, table: AnyTable, key: &[u8]) -> bool {
        match (table, key.first_chunk::<8>()) {
            (AnyTable::Replicated(_), Some(ino)) => {
                u64::from_be_bytes(*ino) < self.flushed_inos.load(Ordering::Acquire)
            }
            _ => true,
        }
    }

    /// What `with` makes of a row, if there is one.
    fn look<T>(
        &self,
        table: AnyTable,
        key: &[u8],
        with: impl Fn(&[u8]) -> T,
    ) -> Result<Option<T>, FsError> {
        if let Some(known) = self.memtables.look(table, key, |row| row.map(&with)) {
            return Ok(known);
        }
        if !self.may_be_flushed(table, key) {
            return Ok(None);
        }
        let is_name = table == AnyTable::Replicated(Table::Dentry);
        if is_name && self.absent.contains(key) {
            return Ok(None);
        }
        let raw = self.db.get_pinned_cf(self.cf(table), key)?;
        if is_name && raw.is_none() {
            self.absent.remember(key);
        }
        Ok(raw.as_deref().map(with))
    }

    /// A replicated row as stored.
    pub(crate) fn raw(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        self.look(table.into(), key, <[u8]>::to_vec)
    }

    /// A replicated row's body.
    pub(crate) fn body(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        self.look(table.into(), key, |raw| Ok(row_body(raw)?.to_vec()))?
            .transpose()
    }

    pub(crate) fn local(&self, table: LocalTable, key: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        self.look(table.into(), key, <[u8]>::to_vec)
    }

    /// Rows of a replicated table with `from <= key < to`, as stored, ascending.
    pub(crate) fn scan(&self, table: Table, from: &[u8], to: &[u8]) -> MergedRows<'_> {
        self.rows(table.into(), from, to, Order::Ascending)
    }

    /// The same, descending.
    pub(crate) fn scan_back(&self, table: Table, from: &[u8], to: &[u8]) -> MergedRows<'_> {
        self.rows(table.into(), from, to, Order::Descending)
    }

    /// Rows of a local table with `from <= key < to`, ascending.
    pub(crate) fn scan_local(&self, table: LocalTable, from: &[u8], to: &[u8]) -> MergedRows<'_> {
        self.rows(table.into(), from, to, Order::Ascending)
    }

    fn rows(&self, table: AnyTable, from: &[u8], to: &[u8], order: Order) -> MergedRows<'_> {
        let mode = match order {
            Order::Ascending => IteratorMode::Start,
            Order::Descending => IteratorMode::End,
        };
        let (layers, db) = self.memtables.layers(|| {
            self.may_be_flushed(table, from).then(|| {
                let mut options = ReadOptions::default();
                options.set_iterate_lower_bound(from);
                options.set_iterate_upper_bound(to);
                self.db.iterator_cf_opt(self.cf(table), options, mode)
            })
        });
        MergedRows::new(layers, table, from, Some(to), order, db)
    }

    /// The state as it is now, which stays so for whoever holds it. No batch is in it by half.
    pub(crate) fn picture(&self) -> Picture<'_> {
        let (layers, snapshot) = self.memtables.seal(|| self.db.snapshot());
        Picture {
            store: self,
            layers,
            snapshot,
        }
    }

    /// Makes all changes of a batch: a kill of the process forgets them, until a flush has brought them to the disk.
    pub(crate) fn write(&self, batch: Batch) {
        self.memtables.apply(batch);
    }

    /// The files of the state, past everything that is in memory.
    ///
    /// # Errors
    /// [`FsError::StateLost`] if they do not open again, [`FsError::Refused`] if others lie in their place.
    pub(crate) fn state_files(&self) -> Result<StateFiles<'_>, FsError> {
        self.check_place()?;
        Ok(StateFiles::open(&self.db, &state_dir(&self.dir))?)
    }

    /// RocksDB's files stay as they are from now on; a flush makes new ones.
    #[cfg(test)]
    pub(crate) fn stop_compactions(&self) {
        for table in AnyTable::all() {
            let never = [("disable_auto_compactions", "true")];
            self.db.set_options_cf(self.cf(table), &never).unwrap();
        }
        let options = rocksdb::WaitForCompactOptions::default();
        self.db.wait_for_compact(&options).unwrap();
    }

    /// What has been written until now, for [`Self::flush`]. The caller holds the write lock, and has synced log and segments
    /// under it.
    pub(crate) fn seal(&self) -> Layers {
        self.memtables.seal(|| ()).0
    }

    /// Brings what was sealed to the disk: all tables, as of one moment. One at a time.
    ///
    /// # Errors
    /// [`FsError::NoSpace`] if the disk has no room for it: nothing is lost, and another flush brings it along.
    pub(crate) fn flush(&self, sealed: &Layers) -> Result<(), FsError> {
        if DiskBytes::under(&self.dir)?.own < self.flush_bytes() {
            return Err(FsError::NoSpace);
        }
        // One batch: RocksDB never holds a part of it.
        let mut batch = WriteBatch::with_capacity_bytes(memtable::row_bytes(sealed));
        for table in AnyTable::all() {
            let cf = self.cf(table);
            let mut last = None;
            memtable::merged(sealed, table, |key, value| {
                match value {
                    Some(value) => batch.put_cf(cf, key, value),
                    None => batch.delete_cf(cf, key),
                }
                last = key.first_chunk::<8>().copied();
            });
            if let (AnyTable::Replicated(_), Some(ino)) = (table, last) {
                let above = u64::from_be_bytes(ino).saturating_add(1);
                self.flushed_inos.fetch_max(above, Ordering::AcqRel);
            }
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.write_opt(batch, &options).map_err(full_or)?;
        let mut options = FlushOptions::default();
        options.set_wait(false);
        let families: Vec<&ColumnFamily> = AnyTable::all().map(|table| self.cf(table)).collect();
        self.db
            .flush_cfs_opt(&families, &options)
            .map_err(full_or)?;
        self.wait_for_flush()?;
        self.absent.clear();
        self.memtables.flushed(sealed);
        Ok(())
    }

    /// Gives back memory that is only held to find what was flushed last without a look into RocksDB.
    pub(crate) fn forget_flushed(&self) {
        self.memtables.forget_flushed();
    }

    fn wait_for_flush(&self) -> Result<(), FsError> {
        // RocksDB's own wait does not end while the disk is full.
        let start = Instant::now();
        while self.sum_over_tables("rocksdb.num-immutable-mem-table")? != 0 {
            // RocksDB counts its errors, and never forgets one. What it says to a write is how it is now.
            let mut options = WriteOptions::default();
            options.disable_wal(true);
            self.db
                .write_opt(WriteBatch::default(), &options)
                .map_err(full_or)?;
            if start.elapsed() > FLUSH_WAIT_MAX {
                let late = io::Error::from(io::ErrorKind::TimedOut);
                return Err(io_error("write the state to", &self.dir)(late));
            }
            thread::park_timeout(FLUSH_POLL);
        }
        Ok(())
    }

    /// What the state takes on the disk, bytes.
    pub(crate) fn disk_bytes(&self) -> Result<u64, FsError> {
        self.sum_over_tables("rocksdb.live-sst-files-size")
    }

    /// Space that a flush needs now, bytes.
    pub(crate) fn flush_bytes(&self) -> u64 {
        self.memtables.bytes() + FLUSH_HEADROOM_BYTES
    }

    fn sum_over_tables(&self, property: &str) -> Result<u64, FsError> {
        let mut sum = 0;
        for table in AnyTable::all() {
            let value = self.db.property_int_value_cf(self.cf(table), property)?;
            sum += value.unwrap_or(0);
        }
        Ok(sum)
    }
}

/// The state at one moment.
pub(crate) struct Picture<'a> {
    pub(crate) store: &'a Store,
    layers: Layers,
    snapshot: rocksdb::Snapshot<'a>,
}

impl Picture<'_> {
    /// A row as stored.
    pub(crate) fn raw(
        &self,
        table: impl Into<AnyTable>,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>, FsError> {
        let table = table.into();
        match memtable::look_in(&self.layers, table, key, |row| row.map(<[u8]>::to_vec)) {
            Some(known) => Ok(known),
            None => Ok(self.snapshot.get_cf(self.store.cf(table), key)?),
        }
    }

    /// Rows of a table from this key on, ascending.
    pub(crate) fn rows(&self, table: impl Into<AnyTable>, from: &[u8]) -> MergedRows<'_> {
        let table = table.into();
        let mode = IteratorMode::From(from, Direction::Forward);
        let db = self.snapshot.iterator_cf(self.store.cf(table), mode);
        let layers = self.layers.clone();
        MergedRows::new(layers, table, from, None, Order::Ascending, Some(db))
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
/// How often a flush that runs is looked at.
const FLUSH_POLL: Duration = Duration::from_millis(2);
/// A flush writes some hundred MiB at most. One that has not ended by then never will, and closing must not wait for it.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(300);
/// RocksDB's own memtables hold nothing but what is being flushed. After a full disk it goes on once so much is free.
const WRITE_BUFFER_BYTES: usize = 4 << 20;
/// Memory that an idle table takes: 9 tables a volume, 100 volumes a node.
const ARENA_BLOCK_BYTES: usize = 64 * 1024;
/// Descriptors that one volume's state may hold: as many as ten million files take, whose rows lie where their flush has put them,
/// since inode numbers grow and nothing overlaps. With fewer, nearly each lookup opens a file and reads its index and filter first.
const OPEN_TABLES_MAX: i32 = 2048;
/// RocksDB takes space for its list of files in such steps; its own 4 MiB are much on a full disk.
const MANIFEST_BLOCK_BYTES: usize = 64 * 1024;
const BLOOM_BITS_PER_KEY: f64 = 10.0;
/// Blocks of indexes and filters.
const METADATA_BLOCK_BYTES: usize = 4096;

/// Filters only save reads. RocksDB opens no table with a part of one damaged, so without them, then.
fn open_state(path: &Path, cache: &SharedCache, is_new: bool) -> Result<DB, FsError> {
    state::check_manifest(path)?;
    let error = match open_tables(path, cache, is_new, true) {
        Ok(db) => return Ok(db),
        Err(error) if error.kind() == rocksdb::ErrorKind::Corruption && !is_new => error,
        Err(error) => return Err(StateLoss::from(error).into()),
    };
    let Ok(db) = open_tables(path, cache, is_new, false) else {
        return Err(StateLoss::from(error).into());
    };
    tracing::warn!(
        path = %path.display(),
        error = with_causes(&error),
        "a filter of the state is damaged: looking up rows is slower until the volume is opened without that"
    );
    Ok(db)
}

fn open_tables(
    path: &Path,
    cache: &SharedCache,
    is_new: bool,
    with_filters: bool,
) -> Result<DB, rocksdb::Error> {
    let mut options = Options::default();
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
    let default = || {
        let mut options = Options::default();
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options
    };
    let families = AnyTable::all()
        .map(|table| {
            let options = table_options(cache, with_filters);
            ColumnFamilyDescriptor::new(table.name(), options)
        })
        .chain([ColumnFamilyDescriptor::new(
            rocksdb::DEFAULT_COLUMN_FAMILY_NAME,
            default(),
        )]);
    DB::open_cf_descriptors(&options, path, families)
}

fn table_options(cache: &SharedCache, with_filters: bool) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&cache.0);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_cache_index_and_filter_blocks_with_high_priority(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // In one piece, the filter of a file of some million rows has several MiB, which is more than the cache takes in one block
    // (it is divided into up to 64 parts): each lookup would read and check it all.
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    if with_filters {
        blocks.set_partition_filters(true);
        blocks.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    }
    blocks.set_metadata_block_size(METADATA_BLOCK_BYTES);
    blocks.set_pin_top_level_index_and_filter(true);
    // The first whose footers have a checksum, and whose blocks' checksums say where they belong.
    blocks.set_format_version(6);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_arena_block_size(ARENA_BLOCK_BYTES);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
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
    fn a_damaged_filter_costs_no_row() {
        let dir = tempfile::tempdir().unwrap();
        let cache = SharedCache::new(1 << 20);
        let table = Table::Inode.name();
        let rows: Vec<_> = (0..500_u64).map(u64::to_be_bytes).collect();
        {
            let db = open_state(dir.path(), &cache, true).unwrap();
            let cf = db.cf_handle(table).unwrap();
            for row in &rows {
                db.put_cf(cf, row, row).unwrap();
            }
            db.flush_cf(cf).unwrap();
        }
        let files = fs::read_dir(dir.path()).unwrap();
        let mut files = files.map(|entry| entry.unwrap().path());
        let file = files.find(|path| path.extension().is_some_and(|kind| kind == "sst"));
        let file = file.unwrap();
        let whole = fs::read(&file).unwrap();
        let mut cured = 0;
        for at in (0..whole.len()).step_by(61) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&file, bytes).unwrap();
            let fresh = SharedCache::new(1 << 20);
            if open_tables(dir.path(), &fresh, false, true).is_ok() {
                continue; // it is in a block of rows, which is read when it is asked for
            }
            let Ok(db) = open_state(dir.path(), &SharedCache::new(1 << 20), false) else {
                continue; // in the index, or in RocksDB's books
            };
            cured += 1;
            let cf = db.cf_handle(table).unwrap();
            for row in &rows {
                let found = db.get_cf(cf, row).unwrap();
                assert_eq!(found.as_deref(), Some(&row[..]), "{at}");
            }
        }
        assert!(cured > 0, "no byte of a filter was hit");
    }

    #[test]
    fn a_store_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let _held = lock(dir.path()).unwrap();
        assert!(lock(dir.path()).unwrap_err().to_string().contains("in use"));
    }
}
