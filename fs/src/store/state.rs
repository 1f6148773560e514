//! The files of the state, RocksDB's, as the disk has them: what the check reads past RocksDB's caches. A block that is in memory
//! is right, whatever has become of it on the disk.

use std::path::Path;

use rocksdb::statistics::Ticker;
use rocksdb::{
    BlockBasedOptions, ColumnFamilyDescriptor, DB, DEFAULT_COLUMN_FAMILY_NAME, IteratorMode,
    Options,
};

use super::Row;
use super::key::{LocalTable, Table};

/// Table files that are open at a time: each brings its index and its filter into memory, some MiB.
const OPEN_TABLES_MAX: i32 = 32;

/// The files of a state that is in use, as another start would read them: opened a second time, for reading, without a cache.
pub(crate) struct StateFiles<'a> {
    db: DB,
    options: Options,
    _files_stay: FilesStay<'a>,
}

/// RocksDB deletes none of its files for as long as this lives.
struct FilesStay<'a>(&'a DB);

impl<'a> FilesStay<'a> {
    fn of(db: &'a DB) -> Result<Self, rocksdb::Error> {
        db.disable_file_deletions()?;
        Ok(Self(db))
    }
}

impl Drop for FilesStay<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.enable_file_deletions() {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "the state keeps files that it does not need");
        }
    }
}

impl<'a> StateFiles<'a> {
    pub(super) fn open(live: &'a DB, path: &Path) -> Result<Self, rocksdb::Error> {
        let files_stay = FilesStay::of(live)?;
        let mut options = Options::default();
        options.set_max_open_files(OPEN_TABLES_MAX);
        options.set_max_file_opening_threads(1);
        options.set_paranoid_checks(true);
        options.enable_statistics();
        let mut blocks = BlockBasedOptions::default();
        blocks.disable_cache();
        blocks.set_bloom_filter(super::BLOOM_BITS_PER_KEY, false); // else it would not look at the filters
        let families = tables().map(|name| {
            let mut options = Options::default();
            options.set_block_based_table_factory(&blocks);
            ColumnFamilyDescriptor::new(name, options)
        });
        let db = DB::open_cf_descriptors_read_only(&options, path, families, false)?;
        Ok(Self {
            db,
            options,
            _files_stay: files_stay,
        })
    }

    /// All rows of one of the [`tables`] that are on the disk. Who has taken them all has had every block read.
    pub(crate) fn rows(&self, table: &str) -> impl Iterator<Item = Result<Row, rocksdb::Error>> {
        let cf = self.db.cf_handle(table);
        let cf = cf.expect("every table was opened with the database");
        self.db.iterator_cf(cf, IteratorMode::Start)
    }

    /// Blocks so far whose checksums did not match, those included that RocksDB goes on without (a table's filter).
    pub(crate) fn bad_blocks(&self) -> u64 {
        let ticker = Ticker::BlockChecksumMismatchCount;
        self.options.get_ticker_count(ticker)
    }
}

/// All tables, RocksDB's own among them.
pub(crate) fn tables() -> impl Iterator<Item = &'static str> {
    let replicated = Table::ALL.into_iter().map(Table::name);
    let local = LocalTable::ALL.into_iter().map(LocalTable::name);
    replicated.chain(local).chain([DEFAULT_COLUMN_FAMILY_NAME])
}
