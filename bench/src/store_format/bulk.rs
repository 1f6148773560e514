//! What bulk data costs: segment files of our own against RocksDB's log, tables and blob files.
//!
//! Decides where chunks go. Every way ends with all data durable; what RocksDB then still does is waited for and
//! counted, since somebody pays for it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rocksdb::{DB, DBCompressionType, Options, WaitForCompactOptions, WriteOptions};
use rustix::fs::{FallocateFlags, fallocate};

use super::{FILE_BYTES, Run, files};
use crate::interrupt::Interrupt;
use crate::machine::{Written, cpu_time};
use crate::report::Bulk;
use crate::sample::median;
use crate::scratch::say;

const CHUNK_BYTES: usize = 128 << 10;
const PAGE_BYTES: usize = 4 << 10;

/// Data is taken from a pool of this size at shifting places: it does not compress, and making it is not timed.
const POOL_BYTES: usize = 16 << 20;

/// Smaller values stay in BlobDB's tables.
const MIN_BLOB_BYTES: u64 = 4 << 10;

/// Files written at the same time where keys interleave: each flush then spans all keys, so compaction has to merge.
const INODES: usize = 16;

const WAYS: [Way; 6] = [
    Way::Segments,
    Way::SegmentsHashed,
    Way::RocksInOrder,
    Way::RocksNoLog,
    Way::BlobNoLog,
    Way::RocksLog,
];

#[derive(Clone, Copy, Debug)]
enum Way {
    Segments,
    SegmentsHashed,
    RocksInOrder,
    RocksNoLog,
    BlobNoLog,
    RocksLog,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Segments => "segment files",
            Self::SegmentsHashed => "segment files + CRC32C a page + BLAKE3 a chunk",
            Self::RocksInOrder => "RocksDB without log, flush; one file in order",
            Self::RocksNoLog => "RocksDB without log, flush; 16 files at once",
            Self::BlobNoLog => "BlobDB without log, flush; 16 files at once",
            Self::RocksLog => "RocksDB with its log, one sync; 16 files at once",
        }
    }
}

/// One bulk write.
#[derive(Clone, Copy, Debug)]
struct Cost {
    durable: Duration,
    settled: Duration,
    cpu: Duration,
    written: Written,
}

/// Writes `bytes` in each way, in rounds. A round begins only within `budget`, the first always.
pub(super) fn measure(run: &Run<'_>, bytes: u64, budget: Duration) -> anyhow::Result<Vec<Bulk>> {
    let pool = files::noise(POOL_BYTES + CHUNK_BYTES, 6);
    let mut costs: [Vec<Cost>; WAYS.len()] = Default::default();
    let begin = Instant::now();
    // Not counted: the first to fill the page cache pays for memory that the hypervisor has to hand out.
    one_way(run, Way::Segments, bytes, &pool)?;
    for round in 0..run.rounds {
        if round > 0 && begin.elapsed() >= budget {
            break;
        }
        for turn in 0..WAYS.len() {
            let way = (turn + round) % WAYS.len();
            costs[way].push(one_way(run, WAYS[way], bytes, &pool)?);
        }
        say(&format!("    round {}", round + 1));
    }
    Ok(WAYS
        .iter()
        .zip(&costs)
        .map(|(way, costs)| summary(way.name(), bytes, costs))
        .collect())
}

/// What a reader must know beside the table.
pub(super) fn notes() -> Vec<String> {
    vec![
        "Bulk: data that does not compress. Segments: 64 MiB files, fallocated, chunks at page-aligned offsets, all \
         files synced once at the end. RocksDB: default options without compression, keys of inode and offset, every \
         key written once; BlobDB the same with blob files. Written bytes and CPU are until settled (flushed, \
         compacted); CPU of this process, without the kernel's writeback threads; the device's bytes hold the journal \
         and everybody else's writes. As many rounds as its time allows, at least one, after an uncounted write of \
         segments."
            .to_owned(),
    ]
}

fn one_way(run: &Run<'_>, way: Way, bytes: u64, pool: &[u8]) -> anyhow::Result<Cost> {
    let dir = run.scratch.fresh_dir("bulk")?;
    run.scratch.settle()?;
    let begin_written = Written::now(&dir)?;
    let begin_cpu = cpu_time();
    let begin = Instant::now();
    let durable = match way {
        Way::Segments => segments(run.interrupt, &dir, bytes, pool, |_| {}),
        Way::SegmentsHashed => segments(run.interrupt, &dir, bytes, pool, hash),
        Way::RocksInOrder | Way::RocksNoLog | Way::BlobNoLog | Way::RocksLog => {
            rocks(run.interrupt, way, &dir, bytes, pool)
        }
    }?;
    let settled = begin.elapsed();
    let cpu = cpu_time() - begin_cpu;
    run.scratch.settle()?;
    let written = Written::now(&dir)?.since(begin_written);
    std::fs::remove_dir_all(&dir)?;
    Ok(Cost {
        durable,
        settled,
        cpu,
        written,
    })
}

/// Returns the time until durable.
fn segments(
    interrupt: &Interrupt,
    dir: &Path,
    bytes: u64,
    pool: &[u8],
    hash: impl Fn(&[u8]),
) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let mut made: Vec<File> = Vec::new();
    for (index, chunk) in chunks(bytes, pool).enumerate() {
        interrupt.check()?;
        let place = index % files::pieces(CHUNK_BYTES);
        if place == 0 {
            let file = File::create_new(dir.join(format!("{:08}", made.len())))?;
            fallocate(&file, FallocateFlags::empty(), 0, FILE_BYTES)?;
            made.push(file);
        }
        hash(chunk);
        let file = made.last().expect("one is made for the first chunk");
        file.write_all_at(chunk, u64::try_from(place * CHUNK_BYTES)?)?;
    }
    for file in &made {
        file.sync_data()?;
    }
    File::open(dir)?.sync_all()?;
    Ok(begin.elapsed())
}

/// Returns the time until durable; on return all is flushed and compacted.
fn rocks(
    interrupt: &Interrupt,
    way: Way,
    dir: &Path,
    bytes: u64,
    pool: &[u8],
) -> anyhow::Result<Duration> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_compression_type(DBCompressionType::None);
    options.set_enable_blob_files(matches!(way, Way::BlobNoLog));
    options.set_min_blob_size(MIN_BLOB_BYTES);
    let with_log = matches!(way, Way::RocksLog);
    let mut write = WriteOptions::default();
    write.disable_wal(!with_log);
    let begin = Instant::now();
    let db = DB::open(&options, dir)?;
    let inodes = if matches!(way, Way::RocksInOrder) {
        1
    } else {
        INODES
    };
    for (index, chunk) in chunks(bytes, pool).enumerate() {
        interrupt.check()?;
        let inode = u64::try_from(index % inodes)?.to_be_bytes();
        let offset = u64::try_from(index / inodes * CHUNK_BYTES)?.to_be_bytes();
        db.put_opt([inode, offset].as_flattened(), chunk, &write)?;
    }
    if with_log {
        db.flush_wal(true)?;
    } else {
        db.flush()?;
    }
    let durable = begin.elapsed();
    db.flush()?;
    db.wait_for_compact(&WaitForCompactOptions::default())?;
    Ok(durable)
}

fn chunks(bytes: u64, pool: &[u8]) -> impl Iterator<Item = &[u8]> {
    let count = usize::try_from(bytes).expect("bulk fits an address space") / CHUNK_BYTES;
    (0..count).map(move |index| {
        // Shifted by a little more each time around, so that no chunk comes twice.
        let start = (index * (CHUNK_BYTES + 64)) % POOL_BYTES;
        &pool[start..start + CHUNK_BYTES]
    })
}

fn hash(chunk: &[u8]) {
    for page in chunk.chunks(PAGE_BYTES) {
        std::hint::black_box(crc32c::crc32c(page));
    }
    std::hint::black_box(blake3::hash(chunk));
}

fn summary(how: &str, bytes: u64, costs: &[Cost]) -> Bulk {
    let bytes = bytes as f64;
    let each = |figure: &dyn Fn(&Cost) -> f64| costs.iter().map(figure).collect::<Vec<_>>();
    let durable = each(&|cost| bytes / 1e6 / cost.durable.as_secs_f64());
    let settled = each(&|cost| bytes / 1e6 / cost.settled.as_secs_f64());
    let process = each(&|cost| cost.written.process_bytes as f64 / bytes);
    let device: Option<Vec<f64>> = costs
        .iter()
        .map(|cost| Some(cost.written.device_bytes? as f64 / bytes))
        .collect();
    Bulk {
        how: how.to_owned(),
        rounds: costs.len(),
        durable_mb_per_s: median(&durable),
        durable_mb_per_s_min: durable.iter().copied().fold(f64::INFINITY, f64::min),
        durable_mb_per_s_max: durable.iter().copied().fold(0.0, f64::max),
        settled_mb_per_s: median(&settled),
        process_bytes_per_byte: median(&process),
        device_bytes_per_byte: device.map(|device| median(&device)),
        cpu_s_per_gb: median(&each(&|cost| cost.cpu.as_secs_f64() / (bytes / 1e9))),
    }
}
