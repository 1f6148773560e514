//! What a record's change of state costs in RocksDB, what writing the record costs, and what hashing costs.
//!
//! Decides whether the state may follow the log at once, in the thread that took the write, and which hashes a write
//! can afford.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rocksdb::{
    ColumnFamilyDescriptor, DB, DBCompressionType, FlushOptions, Options, WaitForCompactOptions,
    WriteBatch, WriteOptions,
};

use super::{FILE_BYTES, Measured, Run, files};
use crate::sample::{Series, slice, timed};

const FAMILIES: [&str; 6] = ["inode", "dentry", "extent", "chunk", "orphan", "local"];

/// So large that no slice fills one: flushing is hafs's to call, not RocksDB's.
const WRITE_BUFFER_BYTES: usize = 512 << 20;

/// Inodes that random changes choose from.
const INODES: u64 = 1 << 20;

/// What a record with these keys takes in the log: their bytes, a header and the chain.
const RECORD_BYTES: usize = 704;

/// Hashes are too fast to time one by one.
const HASHES_A_TIME: u32 = 16;

const WAYS: [Way; 9] = [
    Way::Record,
    Way::Batch(Keys::InOrder, Log::Off),
    Way::Batch(Keys::Random, Log::Off),
    Way::Batch(Keys::InOrder, Log::Unsynced),
    Way::Batch(Keys::Random, Log::Unsynced),
    Way::Crc32c(4 << 10),
    Way::Crc32c(128 << 10),
    Way::Blake3(4 << 10),
    Way::Blake3(128 << 10),
];

#[derive(Clone, Copy, Debug)]
enum Way {
    Record,
    Batch(Keys, Log),
    Crc32c(usize),
    Blake3(usize),
}

#[derive(Clone, Copy, Debug)]
enum Keys {
    InOrder,
    Random,
}

#[derive(Clone, Copy, Debug)]
enum Log {
    Off,
    Unsynced,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Record => "own log: CRC32C + pwrite of the record, no sync",
            Self::Batch(Keys::InOrder, Log::Off) => "WriteBatch without log, new inodes in order",
            Self::Batch(Keys::Random, Log::Off) => "WriteBatch without log, 1 M inodes at random",
            Self::Batch(Keys::InOrder, Log::Unsynced) => {
                "WriteBatch with RocksDB's log, no sync, new inodes in order"
            }
            Self::Batch(Keys::Random, Log::Unsynced) => {
                "WriteBatch with RocksDB's log, no sync, 1 M inodes at random"
            }
            Self::Crc32c(_) => "CRC32C",
            Self::Blake3(_) => "BLAKE3",
        }
    }

    fn size_bytes(self) -> usize {
        match self {
            Self::Record | Self::Batch(..) => RECORD_BYTES,
            Self::Crc32c(size) | Self::Blake3(size) => size,
        }
    }
}

/// Results of this part.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) batches: Vec<Measured>,
    pub(super) hashes: Vec<Measured>,
    pub(super) notes: Vec<String>,
}

/// A state database, and where its changes are.
struct State {
    db: DB,
    next: u64,
    random: u64,
    batches: u64,
    /// Milliseconds of each atomic flush, and the batches that it wrote out.
    flushes: Vec<(u64, u64)>,
}

/// Times each way. `budget` is for all of them together.
pub(super) fn measure(run: &Run<'_>, budget: Duration) -> anyhow::Result<Applied> {
    let budget = budget / u32::try_from(WAYS.len() * run.rounds)?;
    let mut measured = WAYS.map(|way| Measured {
        how: way.name(),
        size_bytes: way.size_bytes(),
        series: Series::default(),
    });
    let mut without_log = State::open(&run.scratch.fresh_dir("state-without-log")?)?;
    let mut with_log = State::open(&run.scratch.fresh_dir("state-with-log")?)?;
    let log = files::zeroed(run.scratch, "state.log")?;
    run.alternate(WAYS.len(), |_, index| {
        let round = match WAYS[index] {
            Way::Record => record(run, &log, budget),
            Way::Batch(keys, Log::Off) => without_log.apply(run, keys, Log::Off, budget),
            Way::Batch(keys, Log::Unsynced) => with_log.apply(run, keys, Log::Unsynced, budget),
            Way::Crc32c(size) => hash(run, size, budget, |bytes| {
                black_box(crc32c::crc32c(bytes));
            }),
            Way::Blake3(size) => hash(run, size, budget, |bytes| {
                black_box(blake3::hash(bytes));
            }),
        }?;
        measured[index].series.push(round);
        Ok(())
    })?;
    let notes = vec![
        "WriteBatch: 6 puts of 60-120 bytes (key and value) into 5 of 6 column families, built and written within the \
         clock; write buffers that do not fill. New inodes in order: as creating files; at random: as changing any of \
         1 M."
            .to_owned(),
        without_log.flush_note(),
    ];
    let (hashes, batches) = measured
        .into_iter()
        .zip(WAYS)
        .partition::<Vec<_>, _>(|(_, way)| matches!(way, Way::Crc32c(_) | Way::Blake3(_)));
    let measured = |with_way: Vec<(Measured, Way)>| with_way.into_iter().map(|(m, _)| m).collect();
    Ok(Applied {
        batches: measured(batches),
        hashes: measured(hashes),
        notes,
    })
}

impl State {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_atomic_flush(true);
        options.set_compression_type(DBCompressionType::None);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        let families = FAMILIES.map(|family| ColumnFamilyDescriptor::new(family, options.clone()));
        let db = DB::open_cf_descriptors(&options, dir, families)?;
        Ok(Self {
            db,
            next: INODES,
            random: 1,
            batches: 0,
            flushes: Vec::new(),
        })
    }

    fn apply(
        &mut self,
        run: &Run<'_>,
        keys: Keys,
        log: Log,
        budget: Duration,
    ) -> anyhow::Result<Vec<u64>> {
        let mut write = WriteOptions::default();
        write.disable_wal(matches!(log, Log::Off));
        run.scratch.settle()?;
        let round = slice(run.interrupt, budget, usize::MAX, |_| {
            let inode = match keys {
                Keys::InOrder => self.next_inode(),
                Keys::Random => self.random_inode(),
            };
            let begin = Instant::now();
            let batch = self.batch(inode)?;
            self.db.write_opt(batch, &write)?;
            Ok(begin.elapsed())
        })?;
        self.flush(round.len())?;
        Ok(round)
    }

    /// As for a small file that was created or changed: it, its parent, its name, its data's place, how far we are.
    fn batch(&mut self, inode: u64) -> anyhow::Result<WriteBatch> {
        self.batches += 1;
        let family = |name: &str| self.db.cf_handle(name).expect("opened with all families");
        let parent = inode >> 6;
        let key = inode.to_be_bytes();
        let mut value = [0_u8; 112];
        value[..8].copy_from_slice(&self.batches.to_le_bytes());
        let name = [&parent.to_be_bytes()[..], b"file-", &key[..]].concat();
        let place = [key, self.batches.to_be_bytes()];
        let mut batch = WriteBatch::default();
        batch.put_cf(family("inode"), key, value);
        batch.put_cf(family("inode"), parent.to_be_bytes(), value);
        batch.put_cf(family("dentry"), name, &value[..40]);
        batch.put_cf(family("extent"), place.as_flattened(), &value[..56]);
        batch.put_cf(family("chunk"), place.as_flattened(), &value[..48]);
        batch.put_cf(family("local"), b"applied", &value[..80]);
        Ok(batch)
    }

    /// Writes all families out at once, as hafs does in the background, and notes how long it took.
    fn flush(&mut self, batches: usize) -> anyhow::Result<()> {
        let families: Vec<_> = FAMILIES
            .iter()
            .filter_map(|family| self.db.cf_handle(family))
            .collect();
        let families: Vec<_> = families.iter().collect();
        let took = timed(|| Ok(self.db.flush_cfs_opt(&families, &FlushOptions::default())?))?;
        // What it sets off must not run into the next way's turn.
        self.db
            .wait_for_compact(&WaitForCompactOptions::default())?;
        self.flushes
            .push((u64::try_from(took.as_millis())?, u64::try_from(batches)?));
        Ok(())
    }

    fn flush_note(&self) -> String {
        let millis: u64 = self.flushes.iter().map(|(millis, _)| millis).sum();
        let batches: u64 = self.flushes.iter().map(|(_, batches)| batches).sum();
        format!(
            "An atomic flush of all families after each slice: {} flushes, {} batches and {} ms on average.",
            self.flushes.len(),
            batches / self.flushes.len() as u64,
            millis / self.flushes.len() as u64,
        )
    }

    fn next_inode(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// xorshift64: any order will do, as long as it jumps about.
    fn random_inode(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % INODES
    }
}

fn record(run: &Run<'_>, log: &File, budget: Duration) -> anyhow::Result<Vec<u64>> {
    let mut record = files::noise(RECORD_BYTES, 8);
    let length = u64::try_from(RECORD_BYTES)?;
    run.scratch.settle()?;
    slice(run.interrupt, budget, usize::MAX, |index| {
        let offset = (index * length) % (FILE_BYTES - length);
        timed(|| {
            let checksum = crc32c::crc32c(&record[4..]);
            record[..4].copy_from_slice(&checksum.to_le_bytes());
            Ok(log.write_all_at(&record, offset)?)
        })
    })
}

/// Nanoseconds of one hash, taken over several.
fn hash(
    run: &Run<'_>,
    size: usize,
    budget: Duration,
    hash: impl Fn(&[u8]),
) -> anyhow::Result<Vec<u64>> {
    let bytes = files::noise(size, 9);
    slice(run.interrupt, budget, usize::MAX, |_| {
        let took = timed(|| {
            for _ in 0..HASHES_A_TIME {
                hash(black_box(&bytes));
            }
            Ok(())
        })?;
        Ok(took / HASHES_A_TIME)
    })
}
