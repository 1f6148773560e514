//! The files of the state, RocksDB's, as the disk has them: what the check reads past RocksDB's caches. A block that is in memory
//! is right, whatever has become of it on the disk.

use std::fs;
use std::path::Path;

use rocksdb::statistics::Ticker;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DEFAULT_COLUMN_FAMILY_NAME, IteratorMode,
    Options,
};

use super::Row;
use super::key::{LocalTable, Table};
use crate::error::StateLoss;

/// Table files that are open at a time: each brings its index and its filter into memory, some MiB.
const OPEN_TABLES_MAX: i32 = 32;

/// Of its own, so that nothing in it is older than the check. Without any, RocksDB would not read the parts of filters.
const CACHE_BYTES: usize = 1 << 20;

/// The files of a state that is in use, as another start would read them: opened a second time, for reading.
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
    pub(super) fn open(live: &'a DB, path: &Path) -> Result<Self, StateLoss> {
        let files_stay = FilesStay::of(live)?;
        check_manifest(path)?;
        let mut options = Options::default();
        options.set_max_open_files(OPEN_TABLES_MAX);
        options.set_max_file_opening_threads(1);
        options.set_paranoid_checks(true);
        options.enable_statistics();
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
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

/// The format of RocksDB's logs, of which the manifest is one (`db/log_format.h`): blocks of records, each behind its CRC32C, its
/// length (two bytes, the lower first) and its kind. No record crosses the end of a block.
const MANIFEST_BLOCK_BYTES: usize = 32 * 1024;
const RECORD_HEADER_BYTES: usize = 7;
const LENGTH_AT: usize = 4;
const KIND_AT: usize = 6;
/// Where nothing was written.
const KIND_NONE: u8 = 0;
/// A whole record, or its first, a middle or its last part. Kinds above are of files that are used again, which manifests are not.
const KIND_MAX: u8 = 4;

/// Refuses a manifest with a kind of record that RocksDB never writes to one: it would read such a record again and again, for
/// ever (`Reader::ReadRecord` in `db/log_reader.cc` does not step over it). All other damage is RocksDB's to find.
pub(super) fn check_manifest(state: &Path) -> Result<(), StateLoss> {
    // What is missing or cannot be read is RocksDB's to tell.
    let Ok(current) = fs::read_to_string(state.join("CURRENT")) else {
        return Ok(());
    };
    let file = current.trim_end().to_owned();
    let Ok(manifest) = fs::read(state.join(&file)) else {
        return Ok(());
    };
    match unknown_record(&manifest) {
        None => Ok(()),
        Some((at, kind)) => Err(StateLoss::Manifest { file, at, kind }),
    }
}

/// The first record of a kind that a manifest has not: where it is, and its kind.
fn unknown_record(manifest: &[u8]) -> Option<(usize, u8)> {
    for (number, block) in manifest.chunks(MANIFEST_BLOCK_BYTES).enumerate() {
        let mut at = 0;
        while let Some(header) = block.get(at..at + RECORD_HEADER_BYTES) {
            let kind = header[KIND_AT];
            if kind > KIND_MAX {
                return Some((number * MANIFEST_BLOCK_BYTES + at, kind));
            }
            if kind == KIND_NONE {
                break;
            }
            let length = u16::from_le_bytes([header[LENGTH_AT], header[LENGTH_AT + 1]]);
            at += RECORD_HEADER_BYTES + usize::from(length);
        }
    }
    None
}

/// All tables, RocksDB's own among them.
pub(crate) fn tables() -> impl Iterator<Item = &'static str> {
    let replicated = Table::ALL.into_iter().map(Table::name);
    let local = LocalTable::ALL.into_iter().map(LocalTable::name);
    replicated.chain(local).chain([DEFAULT_COLUMN_FAMILY_NAME])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FsError;
    use crate::store::{SharedCache, open_state};

    #[test]
    fn a_manifest_that_rocksdb_would_read_for_ever_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = |is_new| open_state(dir.path(), &SharedCache::new(1 << 20), is_new);
        let live = open(true).unwrap();
        let name = fs::read_to_string(dir.path().join("CURRENT")).unwrap();
        let path = dir.path().join(name.trim_end());
        let mut manifest = fs::read(&path).unwrap();
        let first = usize::from(u16::from_le_bytes([manifest[4], manifest[5]]));
        let second = RECORD_HEADER_BYTES + first;
        manifest[second + KIND_AT] ^= 4; // 5: a record in a file that is used again
        fs::write(&path, manifest).unwrap();
        let what = format!("the record at byte {second} is of a kind (5)");
        let checked = StateFiles::open(&live, dir.path()).map(|_| ()).unwrap_err();
        assert!(checked.to_string().contains(&what), "{checked}");
        drop(live);
        match open(false).map(|_| ()) {
            Err(FsError::StateLost(error)) => assert!(error.to_string().contains(&what), "{error}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn blocks_of_a_manifest_are_read_to_their_ends() {
        let record = |length: u16, kind| {
            let [low, high] = length.to_le_bytes();
            let mut record = vec![0, 0, 0, 0, low, high, kind];
            record.resize(RECORD_HEADER_BYTES + usize::from(length), 0xff);
            record
        };
        let mut manifest = record(100, 1);
        assert_eq!(unknown_record(&manifest), None);
        // Too short for a header: nothing is there.
        let rest = MANIFEST_BLOCK_BYTES - manifest.len() - RECORD_HEADER_BYTES - 3;
        manifest.extend(record(u16::try_from(rest).unwrap(), 2));
        manifest.extend([0xff; 3]);
        assert_eq!(unknown_record(&manifest), None);
        manifest.extend(record(9, 4));
        let end = manifest.len();
        manifest.extend([0; 4096]); // allocated ahead
        assert_eq!(unknown_record(&manifest), None);
        manifest.truncate(end);
        manifest.extend(record(9, 11));
        assert_eq!(unknown_record(&manifest), Some((end, 11)));
        // A length past the end of the file: a torn record.
        manifest.truncate(end);
        manifest.extend(&record(900, 1)[..20]);
        assert_eq!(unknown_record(&manifest), None);
    }
}
