//! How long small data takes to become durable: in log files of our own in four states, and in RocksDB's log.
//!
//! Decides whether hafs keeps its own log, and whether it preallocates and recycles the log's files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rocksdb::{DB, Options, WaitForCompactOptions, WriteOptions};

use super::{Measured, Run, files};
use crate::sample::{Series, slice, timed};

/// 4 KiB first: it is what the decision looks at.
const SIZES_BYTES: [usize; 3] = [4096, 8192, 512];

const WAYS: [Way; 6] = [
    Way::Growing,
    Way::Unwritten,
    Way::Zeroed,
    Way::Recycled,
    Way::RocksDefault,
    Way::RocksRecycling,
];

/// As RocksDB's own documentation has it for recycling.
const RECYCLED_LOGS: usize = 4;

/// Before anything is timed, as many of RocksDB's logs are filled, so that there is one to recycle.
const WARM_LOGS: u64 = 3;

/// Below the default write buffer of 64 MiB, so that no flush begins by itself.
const WARM_BYTES: u64 = 56 << 20;

const WARM_VALUE_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
enum Way {
    Growing,
    Unwritten,
    Zeroed,
    Recycled,
    RocksDefault,
    RocksRecycling,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Growing => "append to a growing file",
            Self::Unwritten => "into a fallocated, unwritten file",
            Self::Zeroed => "over a file of zeros (cached)",
            Self::Recycled => "over a renamed old log (not cached)",
            Self::RocksDefault => "RocksDB put, sync, defaults",
            Self::RocksRecycling => "RocksDB put, sync, recycle_log_file_num=4",
        }
    }
}

/// How often each of the two databases took an old log again, as they log it.
#[derive(Debug)]
pub(super) struct Recycled {
    default: usize,
    recycling: usize,
}

/// Both databases, open through all rounds.
struct Databases {
    default: DB,
    recycling: DB,
    keys: u64,
}

/// Times each way with each size. `budget` is for the timed part of all of them.
pub(super) fn measure(
    run: &Run<'_>,
    budget: Duration,
) -> anyhow::Result<(Vec<Measured>, Recycled)> {
    let cells: Vec<(usize, Way)> = SIZES_BYTES
        .into_iter()
        .flat_map(|size| WAYS.into_iter().map(move |way| (size, way)))
        .collect();
    let budget = budget / u32::try_from(cells.len() * run.rounds)?;
    let mut measured: Vec<Measured> = cells
        .iter()
        .map(|&(size_bytes, way)| Measured {
            how: way.name(),
            size_bytes,
            series: Series::default(),
        })
        .collect();
    let mut databases = Databases::open(run)?;
    drop(files::old(run.scratch, "log.0")?);
    let mut recycled = 0;
    run.alternate(cells.len(), |_, cell| {
        let (size, way) = cells[cell];
        let round = match way {
            Way::Growing => over_file(run, &files::empty(run.scratch, "growing")?, size, budget),
            Way::Unwritten => over_file(
                run,
                &files::unwritten(run.scratch, "unwritten")?,
                size,
                budget,
            ),
            Way::Zeroed => over_file(run, &files::zeroed(run.scratch, "zeroed")?, size, budget),
            Way::Recycled => {
                let from = format!("log.{recycled}");
                recycled += 1;
                let file = files::recycle(run.scratch, &from, &format!("log.{recycled}"))?;
                over_file(run, &file, size, budget)
            }
            Way::RocksDefault => databases.put(run, false, size, budget),
            Way::RocksRecycling => databases.put(run, true, size, budget),
        }?;
        measured[cell].series.push(round);
        Ok(())
    })?;
    drop(databases);
    let recycled = Recycled {
        default: count_recycled(&run.scratch.path("rocks-default"))?,
        recycling: count_recycled(&run.scratch.path("rocks-recycling"))?,
    };
    measured.sort_by_key(|measured| measured.size_bytes);
    Ok((measured, recycled))
}

/// What a reader must know beside the table.
pub(super) fn notes(recycled: &Recycled) -> Vec<String> {
    vec![
        "Own files: one pwrite + fdatasync an operation, in order from offset 0, 64 MiB files, made durable and quiet \
         before the clock starts. RocksDB: put with sync, 16-byte keys, no compression, flushed between slices, three \
         logs of 56 MiB filled beforehand."
            .to_owned(),
        format!(
            "RocksDB's own info log counts logs taken again: {} with defaults, {} with recycle_log_file_num=4.",
            recycled.default, recycled.recycling
        ),
    ]
}

/// Writes and syncs piece after piece from the start of `file`; ends where a preallocated file ends, so that none is
/// written twice.
fn over_file(
    run: &Run<'_>,
    file: &File,
    size: usize,
    budget: Duration,
) -> anyhow::Result<Vec<u64>> {
    let mut piece = files::noise(size, 1);
    slice(run.interrupt, budget, files::pieces(size), |index| {
        piece[..8].copy_from_slice(&index.to_le_bytes());
        let offset = index * u64::try_from(size)?;
        timed(|| {
            file.write_all_at(&piece, offset)?;
            Ok(file.sync_data()?)
        })
    })
}

impl Databases {
    fn open(run: &Run<'_>) -> anyhow::Result<Self> {
        let open = |name: &str, recycled_logs: usize| -> anyhow::Result<DB> {
            let mut options = Options::default();
            options.create_if_missing(true);
            options.set_compression_type(rocksdb::DBCompressionType::None);
            options.set_recycle_log_file_num(recycled_logs);
            Ok(DB::open(&options, run.scratch.fresh_dir(name)?)?)
        };
        let mut databases = Self {
            default: open("rocks-default", 0)?,
            recycling: open("rocks-recycling", RECYCLED_LOGS)?,
            keys: 0,
        };
        let value = files::noise(WARM_VALUE_BYTES, 2);
        for _ in 0..WARM_LOGS {
            for _ in 0..WARM_BYTES / u64::try_from(WARM_VALUE_BYTES)? {
                run.interrupt.check()?;
                let key = databases.next_key();
                databases.default.put(key, &value)?;
                databases.recycling.put(key, &value)?;
            }
            settle(&databases.default)?;
            settle(&databases.recycling)?;
        }
        Ok(databases)
    }

    fn put(
        &mut self,
        run: &Run<'_>,
        recycling: bool,
        size: usize,
        budget: Duration,
    ) -> anyhow::Result<Vec<u64>> {
        let mut sync = WriteOptions::default();
        sync.set_sync(true);
        run.scratch.settle()?;
        let mut value = files::noise(size, 3);
        let round = slice(run.interrupt, budget, files::pieces(size), |index| {
            value[..8].copy_from_slice(&index.to_le_bytes());
            let key = self.next_key();
            let db = if recycling {
                &self.recycling
            } else {
                &self.default
            };
            timed(|| Ok(db.put_opt(key, &value, &sync)?))
        })?;
        // The log is changed for another with each flush: outside the clock, and before the next way's turn.
        settle(if recycling {
            &self.recycling
        } else {
            &self.default
        })?;
        Ok(round)
    }

    fn next_key(&mut self) -> [u8; 16] {
        self.keys += 1;
        u128::from(self.keys).to_be_bytes()
    }
}

/// Flushes, and waits until RocksDB has nothing left to do.
fn settle(db: &DB) -> anyhow::Result<()> {
    db.flush()?;
    Ok(db.wait_for_compact(&WaitForCompactOptions::default())?)
}

fn count_recycled(dir: &Path) -> anyhow::Result<usize> {
    let log = std::fs::read_to_string(dir.join("LOG"))?;
    Ok(log
        .lines()
        .filter(|line| line.contains("from recycle list"))
        .count())
}
