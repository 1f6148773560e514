//! A flipped bit in every field of every kind of file: found by name, or shown to hit nothing that counts.

use std::fs;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::slice;

use hafs_fs::{FsError, Ino, Problem, VolumeIdentity};
use hafs_tests::rocksdb;

use crate::layout::{
    self, Field, LOG_HEADER, MARK_SLOT, MARK_SLOTS, PAGE_BYTES, SEGMENT_HEADER, frames, mark,
};
use crate::store::{Copy, End, Opened, Prepared, TAIL_FILES, Verdict, files_of, identity};

/// Flips a bit in the first and one in the last byte of a field, each in a copy of its own, and lets `judge` see them.
fn flip_field(
    prepared: &Prepared,
    file: &Path,
    (name, at, len): Field,
    judge: impl Fn(&Copy<'_>, &str),
) {
    for (offset, bit) in [(at, 0), (at + len - 1, 6)] {
        let copy = prepared.copy();
        copy.flip(file, offset, bit);
        let what = format!("{name}: bit {bit} of byte {offset} of {}", file.display());
        let judged = catch_unwind(AssertUnwindSafe(|| judge(&copy, &what)));
        assert!(judged.is_ok(), "{what}");
    }
}

fn problem_of(opened: &Opened, ino: Ino) -> &Problem {
    let report = opened.report.as_ref().unwrap();
    let mut problems = report.problems.iter();
    problems
        .find(|problem| problem.ino == Some(ino))
        .unwrap_or_else(|| panic!("not in the report: {report:?}"))
}

/// A frame below the durable mark that names chunks, one that holds its bytes, and the newest.
fn synced_frames(prepared: &Prepared) -> Vec<layout::Frame> {
    let synced = mark(&prepared.path());
    let all = frames(&prepared.path());
    let below: Vec<_> = all
        .into_iter()
        .filter(|frame| (6..=synced).contains(&frame.lsn))
        .collect();
    let chunks = below.iter().find(|frame| frame.chunks > 0).unwrap();
    let inline = below.iter().find(|frame| frame.chunks == 0).unwrap();
    vec![
        chunks.clone(),
        inline.clone(),
        below.last().unwrap().clone(),
    ]
}

#[test]
fn a_synced_frame_of_the_log_is_missed_by_name_whatever_field_is_hit() {
    let prepared = Prepared::new(End::Crashed);
    let synced = mark(&prepared.path());
    for frame in synced_frames(&prepared) {
        for field in frame.fields() {
            flip_field(&prepared, &frame.file, field, |copy, what| {
                let FsError::LogLost(loss) = copy.verdict().refused() else {
                    panic!("{what}");
                };
                assert_eq!((loss.from.0, loss.synced.0), (frame.lsn, synced), "{what}");
                let file = frame.file.file_name().unwrap().to_str().unwrap();
                assert!(
                    loss.place.contains(&format!("byte {} of", frame.offset)),
                    "{loss}"
                );
                assert!(loss.place.ends_with(file), "{loss}");
                assert!(loss.newest.0 >= synced, "{loss}");
            });
        }
    }
}

#[test]
fn behind_what_was_synced_the_log_ends_where_it_is_hit() {
    let prepared = Prepared::new(End::Crashed);
    let synced = mark(&prepared.path());
    // Each unsynced file is two records: its name, its bytes.
    for frame in frames(&prepared.path()) {
        let Some(behind) = frame.lsn.checked_sub(synced + 1) else {
            continue;
        };
        // Bytes in the record, a name, and bytes in chunks.
        if !(1..=3).contains(&behind) {
            continue;
        }
        let whole = usize::try_from(behind / 2).unwrap();
        for field in frame.fields() {
            flip_field(&prepared, &frame.file, field, |copy, what| {
                assert_eq!(copy.verdict().unhurt().tail, whole, "{what}");
            });
        }
    }
}

#[test]
fn frames_say_what_was_synced_where_the_mark_is_old() {
    let prepared = Prepared::new(End::Crashed);
    let synced = mark(&prepared.path());
    let with_an_old_mark = |frame: &layout::Frame| {
        let copy = prepared.copy();
        fs::write(copy.path().join("mark"), &prepared.first_mark).unwrap();
        copy.flip(&frame.file, frame.offset + 100, 3);
        copy.verdict()
    };
    for frame in synced_frames(&prepared) {
        let FsError::LogLost(loss) = with_an_old_mark(&frame).refused() else {
            panic!("of another kind");
        };
        assert_eq!((loss.from.0, loss.synced.0), (frame.lsn, synced));
    }
    let last = frames(&prepared.path()).pop().unwrap();
    assert_eq!(with_an_old_mark(&last).unhurt().tail, TAIL_FILES - 1);
}

#[test]
fn the_header_of_a_log_file_says_nothing_that_its_name_and_its_frames_do_not_and_is_told() {
    for end in [End::Crashed, End::Clean] {
        let prepared = Prepared::new(end);
        let files = layout::files(&prepared.path(), "log", "log");
        assert!(files.len() > 1, "{files:?}");
        for file in files {
            let slack = ("unused", 53, PAGE_BYTES - 53);
            flip_field(&prepared, &file, slack, |copy, _| {
                copy.verdict().unnoticed();
            });
            for field in LOG_HEADER {
                flip_field(&prepared, &file, field, |copy, what| {
                    let damaged = "the header of a log file is damaged";
                    copy.verdict().told(damaged, &file);
                    let again = copy
                        .open_again(101)
                        .unwrap_or_else(|e| panic!("{what}: {e}"));
                    again.close().unwrap();
                });
            }
        }
    }
}

#[test]
fn one_slot_of_the_mark_stands_for_the_other_and_is_told_and_none_is_refused() {
    let prepared = Prepared::new(End::Crashed);
    let file = Path::new("mark");
    let newest = layout::newest_slot(&prepared.path());
    for (name, at, len) in MARK_SLOT {
        for slot in MARK_SLOTS {
            flip_field(&prepared, file, (name, slot + at, len), |copy, _| {
                let damaged = "one of the two durable marks is damaged";
                assert_eq!(copy.verdict().told(damaged, file).tail, TAIL_FILES);
            });
        }
        flip_field(&prepared, file, (name, newest + at, len), |copy, what| {
            copy.flip(file, (PAGE_BYTES - newest) + at, 1);
            let refused = copy.verdict().refused().to_string();
            assert!(refused.contains("mark is damaged"), "{what}: {refused}");
        });
    }
    flip_field(
        &prepared,
        file,
        ("unused", 16, PAGE_BYTES - 16),
        |copy, _| {
            copy.verdict().unnoticed();
        },
    );
}

#[test]
fn a_wrong_segment_header_costs_no_byte_and_is_reported() {
    for end in [End::Crashed, End::Clean] {
        let prepared = Prepared::new(end);
        let segment = &layout::files(&prepared.path(), "segments", "seg")[0];
        for field in SEGMENT_HEADER {
            flip_field(&prepared, segment, field, |copy, what| {
                let opened = copy.verdict().opened();
                assert!(opened.errors.is_empty(), "{what}: {opened:?}");
                let report = opened.report.unwrap();
                let text = format!("{:?}", report.problems);
                assert!(text.contains("segment 1: its header"), "{what}: {text}");
                assert!(text.contains("volume repair"), "{what}: {text}");
                let repair = copy.repair(true).unwrap();
                assert_eq!((repair.headers, repair.loss), (vec![1], None), "{what}");
                copy.verdict_again(101).unhurt();
            });
        }
        let slack = ("unused", 37, PAGE_BYTES - 37);
        flip_field(&prepared, segment, slack, |copy, _| {
            copy.verdict().unnoticed();
        });
    }
}

/// In a closed volume each page has its checksum; in one to be replayed the log knows the chunk's hash only.
#[test]
fn a_flipped_bit_in_a_chunk_costs_its_page_or_its_chunk_and_is_named() {
    const CHUNK: usize = 128 * 1024;
    for (end, unit) in [(End::Clean, 4096), (End::Crashed, CHUNK)] {
        let prepared = Prepared::new(end);
        let content = &prepared.files["chunks"];
        for at in [0, 5000, CHUNK - 1, CHUNK, 299_999] {
            let chunk = at / CHUNK * CHUNK;
            let head = &content.bytes[chunk..chunk + 512];
            let (file, offset) = layout::find_in_segments(&prepared.path(), head);
            let copy = prepared.copy();
            copy.flip(&file, offset + (at - chunk) as u64, 5);
            let opened = copy.verdict().opened();
            let start = at / unit * unit;
            let hit = (start..(start + unit).min(content.bytes.len())).len();
            assert_eq!(opened.errors.len(), hit.div_ceil(8192), "{at}: {opened:?}");
            for (name, error) in &opened.errors {
                let FsError::Damaged {
                    ino, offset, len, ..
                } = error
                else {
                    panic!("{error}");
                };
                assert_eq!((name.as_str(), *ino), ("chunks", content.ino));
                assert_eq!((*offset, *len), (start as u64, hit as u64), "{at}");
            }
            let problem = problem_of(&opened, content.ino);
            assert_eq!(problem.bytes, Some(start as u64..(start + hit) as u64));
            assert_eq!(problem.path.as_deref(), Some("/chunks"));
            assert!(
                problem
                    .to_string()
                    .contains("restore the file from a backup")
            );
            assert_eq!(opened.report.as_ref().unwrap().problem_count, 1);
        }
    }
}

#[test]
fn what_lies_behind_a_chunk_in_its_last_page_is_nobodys() {
    let prepared = Prepared::new(End::Clean);
    let content = &prepared.files["chunks"].bytes;
    let last = 2 * 128 * 1024;
    let (file, offset) = layout::find_in_segments(&prepared.path(), &content[last..last + 512]);
    let end = (content.len() - last) as u64;
    let slack = ("unused", offset + end, PAGE_BYTES - end % PAGE_BYTES);
    flip_field(&prepared, &file, slack, |copy, _| {
        copy.verdict().unnoticed();
    });
}

#[test]
fn damaged_bytes_are_mended_by_writing_them_anew_and_gone_with_their_file() {
    for end in [End::Clean, End::Crashed] {
        let prepared = Prepared::new(end);
        let content = &prepared.files["chunks"];
        let copy = prepared.copy();
        let (file, offset) = layout::find_in_segments(&prepared.path(), &content.bytes[..512]);
        copy.flip(&file, offset + 17, 2);
        let volume = copy.open().unwrap();
        assert!(volume.read(content.ino, 0, 4096).is_err());
        volume.collect().unwrap();
        let anew = &content.bytes[..128 * 1024];
        volume.write(content.ino, 0, anew, false, false).unwrap();
        assert_eq!(
            volume.read(content.ino, 0, 4096).unwrap(),
            content.bytes[..4096]
        );
        assert_eq!(volume.check(&mut |_, _| {}).unwrap().problems, vec![]);
        drop(volume);
        copy.verdict_again(101).unhurt();

        let copy = prepared.copy();
        copy.flip(&file, offset + 17, 2);
        let volume = copy.open().unwrap();
        volume.unlink(Ino::ROOT, b"chunks").unwrap();
        volume.reclaim(content.ino).unwrap();
        volume.collect().unwrap();
        assert_eq!(volume.check(&mut |_, _| {}).unwrap().problems, vec![]);
    }
}

#[test]
fn a_check_names_each_damaged_page_that_the_file_still_has() {
    const PAGE: usize = 4096;
    let prepared = Prepared::new(End::Clean);
    let content = &prepared.files["chunks"];
    let copy = prepared.copy();
    let (file, offset) = layout::find_in_segments(&prepared.path(), &content.bytes[..512]);
    for page in [3, 4, 9] {
        copy.flip(&file, offset + (page * PAGE) as u64 + 100, 2);
    }
    let volume = copy.open().unwrap();
    let named = || {
        let problems = volume.check(&mut |_, _| {}).unwrap().problems;
        let named = problems.into_iter().map(|problem| {
            assert_eq!(problem.path.as_deref(), Some("/chunks"));
            let bytes = problem.bytes.unwrap();
            usize::try_from(bytes.start).unwrap()..usize::try_from(bytes.end).unwrap()
        });
        named.collect::<Vec<_>>()
    };
    let write = |bytes: Range<usize>| {
        let (at, anew) = (bytes.start as u64, &content.bytes[bytes]);
        volume.write(content.ino, at, anew, false, false).unwrap();
    };
    assert_eq!(named(), [3 * PAGE..5 * PAGE, 9 * PAGE..10 * PAGE]);
    // As a check advises: only what it has named, and it names it no more.
    write(3 * PAGE..5 * PAGE);
    assert_eq!(named(), slice::from_ref(&(9 * PAGE..10 * PAGE)));
    write(9 * PAGE + 2000..10 * PAGE);
    assert_eq!(named(), slice::from_ref(&(9 * PAGE..9 * PAGE + 2000)));
    write(9 * PAGE..9 * PAGE + 2000);
    assert_eq!(named(), Vec::<Range<usize>>::new());
    drop(volume);
    copy.verdict_again(101).unhurt();
}

#[test]
fn every_byte_of_the_identity_counts() {
    let dir = crate::store::scratch();
    let prepared = Prepared::new(End::Clean);
    let text = fs::read(prepared.path().join("volume")).unwrap();
    let at = dir.path().join("volume");
    for (offset, bit) in (0..text.len()).flat_map(|offset| (0..8).map(move |bit| (offset, bit))) {
        let mut damaged = text.clone();
        damaged[offset] ^= 1 << bit;
        fs::write(&at, &damaged).unwrap();
        match VolumeIdentity::read(dir.path()) {
            Err(FsError::Refused(why)) => assert!(why.contains("volume: "), "{why}"),
            Err(FsError::Io { .. }) => {} // no text at all
            Err(other) => panic!("{other}"),
            // A hexadecimal digit of the checksum in capitals.
            Ok(read) => assert_eq!(read, identity(), "byte {offset} bit {bit}"),
        }
    }
}

/// Flips bits of the state's files whose name has `kind` in it, each in a store of its own; how many, and where nobody found
/// them. RocksDB's files have no fields of ours.
fn flip_state(
    prepared: &Prepared,
    kind: &str,
    targets: impl Fn(&[u8]) -> Vec<(u64, u8)>,
) -> (usize, Vec<(PathBuf, u64)>) {
    let (mut flips, mut missed) = (0, Vec::new());
    for (path, len) in files_of(&prepared.path().join("state")) {
        if len == 0 || !path.to_str().unwrap().contains(kind) {
            continue;
        }
        let file = Path::new("state").join(&path);
        let whole = fs::read(prepared.path().join(&file)).unwrap();
        for (offset, bit) in targets(&whole) {
            let copy = prepared.copy();
            copy.flip(&file, offset, bit);
            flips += 1;
            match copy.verdict() {
                Verdict::Refused(
                    FsError::StateLost(_)
                    | FsError::State(_)
                    | FsError::Corrupt(_)
                    | FsError::LogLost(_),
                ) => {}
                Verdict::Refused(error) => panic!("{error}"),
                Verdict::Opened(opened) if !opened.is_unhurt() => {
                    let problems = opened.report.iter().flat_map(|report| &report.problems);
                    let blamed =
                        problems.filter(|problem| problem.next.contains("a fault of hafs"));
                    let blamed: Vec<_> = blamed.collect();
                    assert!(blamed.is_empty(), "byte {offset} of {file:?}: {blamed:?}");
                }
                Verdict::Opened(_) => missed.push((file.clone(), offset)),
            }
        }
    }
    assert!(flips > 0, "{kind}");
    eprintln!("{kind}: {flips} flips, not found: {missed:?}");
    (flips, missed)
}

/// So many bits all over a file, and one in every `step`-th of its last bytes, where RocksDB has its books; which of these
/// differs from file to file.
fn all_over(flips: u64, step: usize) -> impl Fn(&[u8]) -> Vec<(u64, u8)> {
    const BOOKS: usize = 60;
    move |whole| {
        let spread = (0..flips).map(|n| whole.len() as u64 * n / flips);
        let books = whole.len().saturating_sub(BOOKS)..whole.len();
        let books = books.skip(whole.len() % step).step_by(step);
        let bit = |at: u64| (at, u8::try_from(at % 8).unwrap());
        spread.chain(books.map(|at| at as u64)).map(bit).collect()
    }
}

/// What RocksDB needs of its files is found when the volume is opened, or by the check.
#[test]
fn every_bit_of_the_state_counts() {
    let prepared = Prepared::new(End::Clean);
    let (_, missed) = flip_state(&prepared, "CURRENT", all_over(4, 1));
    assert_eq!(missed, vec![]);
    let (flips, missed) = flip_state(&prepared, "sst", all_over(8, 5));
    assert!(flips >= 150, "{flips}");
    assert_eq!(missed, vec![]);
}

/// The manifest is read once, at the opening, and written anew then. Where a record's length leads past its end, RocksDB takes
/// that for a record which a power cut tore, and the state before it for the newest: the log makes up for it, or says that
/// it cannot. All other bits are found.
#[test]
fn the_bits_of_the_manifest_count_or_the_log_makes_up_for_them() {
    for end in [End::Clean, End::Crashed] {
        let prepared = Prepared::new(end);
        let lengths = |whole: &[u8]| -> Vec<_> {
            let records = rocksdb::records(whole).into_iter();
            records
                .map(|at| ((at + rocksdb::LENGTH.end - 1) as u64, 6))
                .collect()
        };
        let (_, mut missed) = flip_state(&prepared, "MANIFEST", all_over(16, 3));
        missed.extend(flip_state(&prepared, "MANIFEST", lengths).1);
        for (file, offset) in missed {
            let whole = fs::read(prepared.path().join(&file)).unwrap();
            let offset = usize::try_from(offset).unwrap();
            let is_length = |at: &usize| rocksdb::LENGTH.contains(&offset.wrapping_sub(*at));
            let records = rocksdb::records(&whole);
            let is_length = records.iter().any(is_length);
            assert!(is_length, "byte {offset} of {}", file.display());
        }
    }
}

/// RocksDB writes these for people and tools: a volume is opened with hafs's options, and named by `DIR/volume`.
#[test]
fn what_rocksdb_does_not_read_of_its_files_harms_nobody() {
    let prepared = Prepared::new(End::Clean);
    for kind in ["OPTIONS", "IDENTITY"] {
        let (flips, missed) = flip_state(&prepared, kind, all_over(16, 6));
        assert_eq!(missed.len(), flips, "{kind} is read");
    }
}
