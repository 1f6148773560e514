//! Segments alone: what is appended reads back, tails are given back, damage is named.

use super::*;

/// No chunk here is suspect, so it is not looked at.
const HASH: [u8; 32] = [0; 32];

fn segments(dir: &Path) -> Segments {
    Segments::new(dir, StoreId::from_bytes([1; 16]), SEGMENT_BYTES_MIN, 1)
}

#[test]
fn chunks_read_back_in_any_part() {
    let dir = tempfile::tempdir().unwrap();
    let segments = segments(dir.path());
    let bytes: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let place = segments.append(Ino(2), 0, &bytes).unwrap();
    let file = segments.open(place.segment).unwrap();
    for (skip, len) in [
        (0, 10_000),
        (0, 4096),
        (1, 1),
        (4095, 2),
        (8192, 1808),
        (9999, 1),
    ] {
        let mut buffer = vec![0; len];
        Segments::read(&file, &place, &HASH, skip, &mut buffer).unwrap();
        assert_eq!(buffer, bytes[skip..skip + len]);
    }
}

#[test]
fn a_tail_that_the_disk_refuses_is_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let segments = segments(dir.path());
    segments.append(Ino(2), 0, &[1; 5000]).unwrap();
    segments.release_tail().unwrap();
    assert_eq!(segments.tail_bytes(), 0);
    // Longer than any file may be: no disk has room for it.
    let mut active = segments.active.lock();
    let head = &mut active.heads[Way::Cached as usize];
    head.capacity = u64::MAX >> 1;
    head.allocated = head.end + 4096;
    drop(active);
    assert!(segments.reserve(u64::MAX >> 2, Way::Cached).is_err());
    assert_eq!(segments.tail_bytes(), 0);
    segments.active.lock().heads[Way::Cached as usize].capacity = SEGMENT_BYTES_MIN;
    segments.append(Ino(2), 0, &[1; 5000]).unwrap();
}

#[test]
fn many_bytes_go_past_the_page_cache_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreId::from_bytes([1; 16]);
    let segments = Segments::new(dir.path(), store, 8 << 20, 1);
    let bytes: Vec<u8> = (0..600_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    // As a write that begins and ends in the middle of a page is cut.
    let cuts = [0..100, 100..262_244, 262_244..595_000, 595_000..600_000];
    let chunks = cuts.clone().map(|cut| NewChunk {
        file_offset: 3996 + cut.start as u64,
        bytes: &bytes[cut],
    });
    let small = segments.append(Ino(2), 0, &[1; 5000]).unwrap();
    segments.syncer().sync().unwrap();
    let places = segments.append_all(Ino(2), &chunks).unwrap();
    if segments.open(places[0].segment).unwrap().has_direct() {
        assert!(segments.syncer().unsynced_bytes() < SEGMENT_HEADER_BYTES);
    }
    assert!(segments.syncer().is_dirty(), "the disk may have a cache");
    for (place, cut) in places.iter().zip(cuts) {
        assert_eq!(place.file_offset, 3996 + cut.start as u64);
        assert_eq!(segments.read_chunk(place, None).unwrap(), bytes[cut]);
    }
    segments.syncer().sync().unwrap();
    assert!(!segments.syncer().is_dirty());

    // Few bytes go another way, to another segment; both give back what they do not use.
    let next = segments.append(Ino(2), 9, &[2; 5000]).unwrap();
    assert_eq!(next.segment, small.segment);
    assert_ne!(next.segment, places[0].segment);
    assert_eq!(segments.read_chunk(&next, None).unwrap(), [2; 5000]);
    segments.release_tail().unwrap();
    assert_eq!(segments.tail_bytes(), 0);
    for last in [&next, places.last().unwrap()] {
        let end = u64::from(last.offset) + last.stored_bytes();
        let len = fs::metadata(segments.path(last.segment)).unwrap().len();
        assert_eq!(len, end);
    }
    for id in segments.active_ids() {
        segments.seal(id).unwrap();
    }
    let sealed = segments.take_sealed();
    assert_eq!(sealed.len(), 2);
    assert_eq!(segments.active_ids(), []);
    assert_eq!(segments.read_chunk(&next, None).unwrap(), [2; 5000]);
}

#[test]
fn a_flipped_bit_is_named_and_the_other_pages_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let segments = segments(dir.path());
    let place = segments.append(Ino(2), 1 << 20, &[7; 3 * 4096]).unwrap();
    let file = segments.open(place.segment).unwrap();
    file.write_at(&[8], u64::from(place.offset) + 5000).unwrap();
    let mut page = [0; 4096];
    Segments::read(&file, &place, &HASH, 0, &mut page).unwrap();
    Segments::read(&file, &place, &HASH, 8192, &mut page).unwrap();
    match Segments::read(&file, &place, &HASH, 4100, &mut page[..1]) {
        Err(FsError::Damaged {
            ino: Ino(2),
            offset,
            len: 4096,
            ..
        }) => {
            assert_eq!(offset, (1 << 20) + 4096);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_full_segment_is_sealed_and_shrinks_to_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let segments = segments(dir.path());
    let first = segments.append(Ino(2), 0, &[1; 700_000]).unwrap();
    let second = segments.append(Ino(2), 700_000, &[2; 700_000]).unwrap();
    assert_ne!(first.segment, second.segment);
    let sealed = fs::metadata(segments.path(first.segment)).unwrap().len();
    assert_eq!(sealed, SEGMENT_HEADER_BYTES + first.stored_bytes());
    assert_eq!(segments.read_chunk(&first, None).unwrap(), vec![1; 700_000]);
}

#[test]
fn an_unused_tail_is_given_back_and_taken_again() {
    let dir = tempfile::tempdir().unwrap();
    let segments = segments(dir.path());
    let first = segments.append(Ino(2), 0, &[1; 10_000]).unwrap();
    let len = || fs::metadata(segments.path(first.segment)).unwrap().len();
    assert_eq!(len(), SEGMENT_BYTES_MIN);
    segments.release_tail().unwrap();
    assert_eq!((len(), segments.tail_bytes()), (4096 + 12_288, 0));
    let second = segments.append(Ino(2), 10_000, &[2; 10_000]).unwrap();
    assert_eq!(second.segment, first.segment);
    assert_eq!(len(), SEGMENT_BYTES_MIN);
    segments.seal(first.segment).unwrap();
    let third = segments.append(Ino(2), 20_000, &[3; 10_000]).unwrap();
    assert_ne!(third.segment, first.segment);
    for (place, byte) in [(first, 1), (second, 2), (third, 3)] {
        assert_eq!(segments.read_chunk(&place, None).unwrap(), [byte; 10_000]);
    }
}

#[test]
fn a_tail_that_is_taken_again_is_no_longer_than_the_disk_can_spare() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreId::from_bytes([1; 16]);
    let segments = Segments::new(dir.path(), store, 8 << 20, 1);
    let first = segments.append(Ino(2), 0, &[1; 10_000]).unwrap();
    segments.release_tail().unwrap();
    let len = || fs::metadata(segments.path(first.segment)).unwrap().len();
    let end = len();
    segments.limit_new(1 << 20);
    segments.append(Ino(2), 10_000, &[2; 10_000]).unwrap();
    assert_eq!(len(), end + (1 << 20));
    // And no shorter than what is appended.
    segments.limit_new(0);
    segments.release_tail().unwrap();
    let third = segments.append(Ino(2), 20_000, &[3; 10_000]).unwrap();
    assert_eq!(third.segment, first.segment);
    assert_eq!(len(), u64::from(third.offset) + third.stored_bytes());
    assert_eq!(segments.tail_bytes(), 0);
}

#[test]
fn a_segment_takes_no_more_than_the_disk_can_spare() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreId::from_bytes([1; 16]);
    let segments = Segments::new(dir.path(), store, 8 << 20, 1);
    segments.limit_new(3 << 20);
    let place = segments.append(Ino(2), 0, &[1; 10]).unwrap();
    let len = fs::metadata(segments.path(place.segment)).unwrap().len();
    assert_eq!(len, 3 << 20);
}

#[test]
fn a_foreign_file_among_the_segments_and_a_foreign_header_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let segments = segments(dir.path());
    segments.append(Ino(2), 0, &[1; 10]).unwrap();
    fs::write(dir.path().join("notes.txt"), "x").unwrap();
    let found = Segments::list(dir.path()).unwrap();
    assert_eq!(found.ids, vec![SegmentId(1)]);
    assert_eq!(found.strangers, vec![dir.path().join("notes.txt")]);
    assert_eq!(segments.header_fault(SegmentId(1)), None);
    let other = StoreId::from_bytes([2; 16]);
    let others = Segments::new(dir.path(), other, SEGMENT_BYTES_MIN, 2);
    assert!(others.header_fault(SegmentId(1)).is_some());
    others.mend_header(SegmentId(1)).unwrap();
    assert_eq!(others.header_fault(SegmentId(1)), None);
    assert!(segments.header_fault(SegmentId(9)).is_some(), "no file");
}

#[test]
fn a_suspect_chunk_is_read_again_once_it_matches_its_hash() {
    let dir = tempfile::tempdir().unwrap();
    let segments = segments(dir.path());
    let bytes = vec![5; 10_000];
    let hash = *blake3::hash(&bytes).as_bytes();
    let place = segments.append(Ino(2), 4096, &bytes).unwrap();
    let file = segments.open(place.segment).unwrap();
    let at = u64::from(place.offset) + 9000;
    file.write_at(&[4], at).unwrap();
    let found = segments.recover_chunk(
        (place.segment, place.offset),
        (place.ino, place.file_offset),
        place.len,
        &hash,
    );
    let RecoveredChunk::Different(suspect) = found else {
        panic!("{found:?}");
    };
    let mut byte = [0];
    let refused = Segments::read(&file, &suspect, &hash, 0, &mut byte).unwrap_err();
    assert!(
        matches!(
            refused,
            FsError::Damaged {
                ino: Ino(2),
                offset: 4096,
                len: 10_000,
                ..
            }
        ),
        "{refused}"
    );
    file.write_at(&[5], at).unwrap();
    Segments::read(&file, &suspect, &hash, 9000, &mut byte).unwrap();
    assert_eq!(byte, [5]);
    assert!(
        segments.read_chunk(&suspect, None).is_err(),
        "without its hash nobody can tell"
    );
}
