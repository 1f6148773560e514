//! Flipped bits in every kind of file of a local control store: it is refused and left as it is, or what was hit is listed in
//! [`is_unread`], with the reason.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::tests::{copy_dir, files, refused};
use super::*;
use crate::conformance::{apply, put};
use crate::store::{Op, list_all};

/// Flips that are spread over each file.
const SPREAD: usize = 10;
/// What precedes each record in RocksDB's logs: CRC32C, length, kind.
const RECORD_HEADER_BYTES: usize = 7;
/// At the end of each table file.
const FOOTER_BYTES: usize = 53;

/// Bytes that say nothing, or that nobody reads.
fn is_unread(name: &str, whole: &[u8], at: usize) -> bool {
    let is = |part: &str| name.starts_with(part);
    // RocksDB's own notes, which this store never asks for; and a file to lock.
    is("db/LOG") || is("db/LOCK") || is("db/IDENTITY") || is("db/OPTIONS")
        // One of the two marks stands for the other, and nothing stands between them.
        || is("mark")
        // White space of another kind behind the number.
        || (is("FORMAT") && at + 1 == whole.len())
}

/// All that a store holds: its keys, and what each revision did.
#[derive(Debug, PartialEq)]
struct Everything {
    rev: u64,
    kv: Vec<Versioned>,
    batches: Vec<WatchBatch>,
}

async fn everything(store: &LocalStore) -> Everything {
    let (rev, kv) = list_all(store, &"".into()).await.unwrap();
    let mut watch = store.watch("".into(), 1);
    let mut batches: Vec<WatchBatch> = Vec::new();
    while rev > batches.last().map_or(0, |batch| batch.rev) {
        batches.push(watch.next().await.unwrap().unwrap());
    }
    Everything { rev, kv, batches }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}

/// A store in `dir` after so many lives: what a life writes is in RocksDB's log until the next begins, and then in a table.
fn written(dir: &Path, lives: u32) -> Everything {
    let mut all = None;
    for life in 0..lives {
        let store = LocalStore::open(dir).unwrap();
        all = Some(run(async {
            for n in 0..4 {
                let key = format!("/k/{life}/{n}");
                let value = vec![b'v'; 100];
                let then = vec![put("/count", "1"), Op::Put(key.into(), value.into(), None)];
                apply(&store, vec![], then).await;
            }
            apply(&store, vec![], vec![Op::Del("/k/0/0".into())]).await;
            everything(&store).await
        }));
    }
    all.unwrap()
}

/// Where a log of RocksDB's (the manifest is one) has its records.
fn records(log: &[u8]) -> Vec<usize> {
    let mut at = 0;
    let mut records = Vec::new();
    while let Some(header) = log.get(at..at + RECORD_HEADER_BYTES)
        && header[6] != 0
    {
        records.push(at);
        at += RECORD_HEADER_BYTES + usize::from(u16::from_le_bytes([header[4], header[5]]));
    }
    records
}

/// Bits to flip in a file: all over it, and where its books are.
fn targets(name: &str, whole: &[u8]) -> Vec<(usize, u8)> {
    let flips = SPREAD.min(whole.len());
    let spread = (0..flips).map(|n| n * whole.len() / flips);
    let bit = |at: usize| (at, u8::try_from(at % 8).unwrap());
    let mut targets: Vec<_> = spread.map(bit).collect();
    if name.ends_with(".log") || name.contains("MANIFEST") {
        for record in records(whole) {
            // A length that leads past the end, and one that ends early.
            targets.extend([(record + 5, 6), (record + 4, 0), (record + 6, 0)]);
        }
    }
    if name.ends_with(".sst") {
        // Others in each file, since their lengths differ.
        let footer = whole.len() - FOOTER_BYTES..whole.len();
        targets.extend(footer.skip(whole.len() % 3).step_by(3).map(bit));
    }
    if name == "mark" {
        targets.extend((0..16).chain(4096..4112).step_by(2).map(bit));
    }
    targets
}

/// A copy of the store in `dir` with one bit of the file `name` flipped.
fn flipped(dir: &Path, name: &str, (at, bit): (usize, u8)) -> (TempDir, PathBuf) {
    let scratch = TempDir::new().unwrap();
    let copy = scratch.path().join("control");
    copy_dir(dir, &copy);
    let file = copy.join(name);
    let mut bytes = fs::read(&file).unwrap();
    bytes[at] ^= 1 << bit;
    fs::write(&file, bytes).unwrap();
    (scratch, copy)
}

#[test]
fn a_flipped_bit_is_found_or_hits_nothing() {
    for lives in [1, 2] {
        let dir = TempDir::new().unwrap();
        let dir = dir.path().join("control");
        let all = written(&dir, lives);
        for (path, whole) in files(&dir).into_iter().filter(|(path, _)| path.is_file()) {
            let name = path.strip_prefix(&dir).unwrap().to_str().unwrap();
            let (mut found, mut missed) = (0, Vec::new());
            for target in targets(name, &whole) {
                let (_scratch, copy) = flipped(&dir, name, target);
                let before = files(&copy);
                let what = format!("bit {} of byte {} of {name}", target.1, target.0);
                match LocalStore::open(&copy) {
                    Ok(store) => {
                        assert_eq!(run(everything(&store)), all, "WRONG: {what}");
                        missed.extend((!is_unread(name, &whole, target.0)).then_some(what));
                    }
                    Err(
                        OpenError::Damaged { .. }
                        | OpenError::Foreign { .. }
                        | OpenError::Newer { .. },
                    ) => {
                        assert_eq!(files(&copy), before, "touched: {what}");
                        found += 1;
                    }
                    Err(error) => panic!("{what}: {error}"),
                }
            }
            eprintln!("{lives} lives, {name}: {found} found");
            assert!(missed.is_empty(), "not found: {missed:#?}");
        }
    }
}

/// The last record was never acknowledged, so the mark does not know of it; which parts of it are on the disk is chance.
#[test]
fn any_part_of_the_last_record_is_what_a_power_cut_may_leave() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("control");
    written(&dir, 2);
    let store = LocalStore::open(&dir).unwrap();
    let before = run(async {
        apply(&store, vec![], vec![put("/a", "1")]).await;
        everything(&store).await
    });
    let mark = fs::read(dir.join("mark")).unwrap();
    let value = vec![b'w'; 5000]; // twice in the record: three pages
    let last = Op::Put("/b".into(), value.into(), None);
    run(apply(&store, vec![], vec![last]));
    drop(store);
    let logs = files(&dir).into_keys();
    let mut logs = logs.filter(|path| path.extension().is_some_and(|e| e == "log"));
    let log = logs.next_back().unwrap();
    let whole = fs::read(&log).unwrap();
    let record = *records(&whole).last().unwrap();
    let pages = record.next_multiple_of(4096)..whole.len();
    for lost in [
        record..whole.len(),
        record..pages.start,
        pages.start..pages.start + 4096,
        pages.start + 4096..whole.len(),
    ] {
        let mut bytes = whole.clone();
        bytes[lost.clone()].fill(0);
        fs::write(&log, bytes).unwrap();
        // Had it been acknowledged, this would be damage.
        let scratch = TempDir::new().unwrap();
        let copy = scratch.path().join("control");
        copy_dir(&dir, &copy);
        refused(&copy);
        fs::write(copy.join("mark"), &mark).unwrap();
        let store = LocalStore::open(&copy).unwrap();
        assert_eq!(run(everything(&store)), before, "{lost:?}");
        run(apply(&store, vec![], vec![put("/c", "1")]));
        let after = run(everything(&store));
        drop(store);
        let store = LocalStore::open(&copy).unwrap();
        assert_eq!(run(everything(&store)), after, "{lost:?}");
    }
}

/// RocksDB takes it for a record that a power cut has torn.
#[test]
fn a_length_that_leads_past_the_end_of_the_log_is_not_taken_for_its_end() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("control");
    let all = written(&dir, 1);
    let log = files(&dir)
        .into_keys()
        .find(|path| path.extension().is_some_and(|e| e == "log"));
    let log = log.unwrap();
    let last = *records(&fs::read(&log).unwrap()).last().unwrap();
    let name = log.strip_prefix(&dir).unwrap().to_str().unwrap();
    let (_scratch, copy) = flipped(&dir, name, (last + 5, 6));
    let (error, _) = refused(&copy);
    let OpenError::Damaged { source, .. } = error else {
        panic!("{error:?}");
    };
    let ends = all.rev - 1;
    let want = format!(
        "it ends at revision {ends}, revision {} had been written",
        all.rev
    );
    assert_eq!(source.to_string(), want);
}

/// As stores were made before there were marks.
#[test]
fn a_store_of_format_1_gets_a_mark() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("control");
    let all = written(&dir, 2);
    fs::write(dir.join("FORMAT"), "hafs control store, format 1\n").unwrap();
    fs::remove_file(dir.join("mark")).unwrap();
    // Also if giving it one was cut short.
    for made_so_far in [&[][..], &["mark"], &["FORMAT.new", "mark"]] {
        let scratch = TempDir::new().unwrap();
        let copy = scratch.path().join("control");
        copy_dir(&dir, &copy);
        for name in made_so_far {
            fs::write(copy.join(name), "h").unwrap();
        }
        let store = LocalStore::open(&copy).unwrap();
        assert_eq!(run(everything(&store)), all, "{made_so_far:?}");
        drop(store);
        let format = fs::read_to_string(copy.join("FORMAT")).unwrap();
        assert_eq!(format, "hafs control store, format 2\n");
        assert!(!copy.join("FORMAT.new").exists());
        assert_eq!(Mark::open(&copy).unwrap().1, all.rev);
    }
}

#[test]
fn a_damaged_store_of_format_1_is_refused() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("control");
    written(&dir, 2);
    fs::write(dir.join("FORMAT"), "hafs control store, format 1\n").unwrap();
    fs::remove_file(dir.join("mark")).unwrap();
    let all = files(&dir);
    let (table, whole) = all
        .iter()
        .find(|(path, _)| path.extension().is_some_and(|e| e == "sst"))
        .unwrap();
    let name = table.strip_prefix(&dir).unwrap().to_str().unwrap();
    let (_scratch, copy) = flipped(&dir, name, (whole.len() / 2, 3));
    let (error, _) = refused(&copy);
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
}

#[test]
fn a_store_without_its_mark_is_refused() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("control");
    written(&dir, 1);
    fs::write(dir.join("mark"), [0; 8192]).unwrap();
    let (error, _) = refused(&dir);
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
    fs::remove_file(dir.join("mark")).unwrap();
    let (error, _) = refused(&dir);
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
}
