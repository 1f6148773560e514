//! Every decoder of bytes from a disk as a function of bytes, for fuzzers. Not part of what users get.
//!
//! `tests/fuzz` calls [`attack`] from libFuzzer; the tests in `fuzz/tests.rs` run the same targets over the corpus
//! in `tests/fuzz/corpus` and over mutations of it, in every `make test`. A target panics if a decoder does, or if what
//! was decoded is not written down again as the same bytes. That also bounds what a decoder may allocate: by the length of
//! its input.
//!
//! Where a checksum stands before a decoder, a target also attacks what lies behind it, with the checksum made right.

mod samples;

use std::ops::Range;

use hafs_protocol::{Lineage, Lsn, NodeId, StoreId, VolumeId};

use crate::error::FsError;
use crate::mountinfo;
use crate::record::{Record, chain};
use crate::store::VolumeIdentity;
use crate::store::digest::Digest;
use crate::store::key::{
    Applied, Chain, Dentry, Extent, Inode, LogPlace, Place, SegmentUse, decode_epochs,
    decode_losses, dentry_key, encode_epochs, encode_losses, extent_key, ino_key, key_ino,
    key_piece, key_second, key_segment_index, piece_key, row_body, segment_index_key,
};
use crate::store::logfile::{WholeFrame, decode_header, encode_frame, encode_header};
use crate::store::mark;
use crate::types::Ino;
use crate::volume::acl::Acl;

/// A decoder under attack.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of the fuzz target, and of its directory in the corpus.
    pub name: &'static str,
    /// Panics if the decoder does, or breaks its promise.
    pub attack: fn(&[u8]),
    /// What the decoder reads in practice, by name: the seeds of the corpus.
    pub samples: fn() -> Vec<(&'static str, Vec<u8>)>,
}

/// All of them.
pub const TARGETS: [Target; 17] = [
    target("record", record, samples::records),
    target("frame", frame, samples::frames),
    target("log_header", log_header, samples::log_headers),
    target("mark", mark_slot, samples::mark_slots),
    target("identity", identity, samples::identities),
    target("row", stored_row, samples::rows),
    target("key", key, samples::keys),
    target("inode", inode, samples::inodes),
    target("dentry", dentry, samples::dentries),
    target("extent", extent, samples::extents),
    target("place", place, samples::places),
    target("segment_use", segment_use, samples::segment_uses),
    target("applied", applied, samples::applied),
    target("epochs", epochs, samples::epochs),
    target("losses", losses, samples::losses),
    target("acl", acl, samples::acls),
    target("mountinfo", mount_table, samples::mount_tables),
];

const fn target(
    name: &'static str,
    attack: fn(&[u8]),
    samples: fn() -> Vec<(&'static str, Vec<u8>)>,
) -> Target {
    Target {
        name,
        attack,
        samples,
    }
}

/// Attacks the target of this name.
///
/// # Panics
/// If there is none, or its decoder is found at fault.
pub fn attack(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").attack)(bytes);
}

/// A store that headers are made for.
const STORE: StoreId = StoreId::from_bytes([2; 16]);
const IDENTITY: VolumeIdentity = VolumeIdentity {
    volume: VolumeId::from_bytes([1; 16]),
    store: STORE,
    node: NodeId::from_bytes([3; 16]),
    lineage: Lineage::from_bytes([4; 16]),
};

/// What was decoded is written down as the bytes that it was read from.
fn canonical<T: std::fmt::Debug>(
    bytes: &[u8],
    decoded: Result<T, FsError>,
    encode: impl FnOnce(&T) -> Vec<u8>,
) {
    if let Ok(value) = decoded {
        let again = encode(&value);
        assert!(again == bytes, "{value:?}\n{bytes:?}\nbecomes\n{again:?}");
    }
}

fn record(bytes: &[u8]) {
    if let Ok((record, chained_len)) = Record::decode(bytes) {
        let encoded = record.encode();
        assert!(encoded.bytes == bytes, "{record:?} is written otherwise");
        let before = [7; 16];
        assert_eq!(
            encoded.chain(&before),
            chain(&before, &bytes[..chained_len])
        );
    }
}

/// What vouches for a frame's record: [`made_right`] makes it so.
const FRAME_MAGIC: &[u8; 4] = b"hLF2";
const FRAME_LEN: Range<usize> = 4..8;
const FRAME_CRC: Range<usize> = 8..12;
const FRAME_RECORD_LEN: Range<usize> = 12..16;
const FRAME_CHAIN: Range<usize> = 28..44;
/// Bytes of a chunk's place, behind the record.
const PLACE_BYTES: usize = 12;
/// Chain before the record of every frame here.
const CHAIN_BEFORE: Chain = [9; 16];

fn frame(bytes: &[u8]) {
    let at = LogPlace {
        file: Lsn(1),
        offset: 4096,
    };
    for bytes in [bytes.to_vec(), made_right(bytes)] {
        let Some(whole) = WholeFrame::read(STORE, &bytes) else {
            continue;
        };
        let (len, durable) = (whole.len, whole.durable);
        let before = whole.lsn().and_then(|lsn| lsn.0.checked_sub(1));
        let before = Lsn(before.unwrap_or_default());
        let Some(framed) = whole.following(at, before, &CHAIN_BEFORE) else {
            continue;
        };
        let record = framed_record(&bytes).expect("it was decoded");
        let again = encode_frame(STORE, record, &framed.chain, durable, &framed.places);
        // Nothing but the padding may differ.
        let used = FRAME_CHAIN.end + record.len() + framed.places.len() * PLACE_BYTES;
        assert!(again[FRAME_CRC.end..used] == bytes[FRAME_CRC.end..used]);
        assert_eq!(framed.end.offset, at.offset + len as u64);
    }
}

/// A frame of these bytes, with the right magic, length, chain and checksum.
fn made_right(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < FRAME_CHAIN.end {
        return bytes;
    }
    let len = u32::try_from(bytes.len()).expect("fuzzers stay below 4 GiB");
    bytes[..4].copy_from_slice(FRAME_MAGIC);
    bytes[FRAME_LEN].copy_from_slice(&len.to_le_bytes());
    let record = framed_record(&bytes).map(|record| (record, Record::decode(record)));
    if let Some((record, Ok((_, chained_len)))) = record {
        let right = chain(&CHAIN_BEFORE, &record[..chained_len]);
        bytes[FRAME_CHAIN].copy_from_slice(&right);
    }
    let of_store = crc32c::crc32c(STORE.as_bytes());
    let crc = crc32c::crc32c_append(of_store, &bytes[FRAME_CRC.end..]);
    bytes[FRAME_CRC].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The record's bytes in a frame.
fn framed_record(frame: &[u8]) -> Option<&[u8]> {
    let len = frame.get(FRAME_RECORD_LEN)?.try_into().expect("4 bytes");
    let len = u32::from_le_bytes(len) as usize;
    frame.get(FRAME_CHAIN.end..)?.get(..len)
}

fn log_header(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), with_crc_at_end(bytes)] {
        if let Some((first, before)) = decode_header(&bytes, STORE) {
            let again = encode_header(STORE, first, &before);
            assert!(bytes.starts_with(&again), "{bytes:?} becomes {again:?}");
        }
    }
}

fn mark_slot(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), with_crc_at_end(bytes)] {
        if let Ok(slot) = bytes.as_slice().try_into()
            && let Some(lsn) = mark::decode_slot(slot)
        {
            assert_eq!(*slot, mark::encode_slot(lsn));
        }
    }
}

/// The last four bytes made the checksum of those before.
fn with_crc_at_end(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(at) = bytes.len().checked_sub(4) {
        let crc = crc32c::crc32c(&bytes[..at]);
        bytes[at..].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

fn identity(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let covered = text.find("crc32c=").unwrap_or(text.len());
    let crc = crc32c::crc32c(&bytes[..covered]);
    for text in [text, &format!("{}crc32c={crc:08x}\n", &text[..covered])] {
        if let Ok(identity) = VolumeIdentity::decode(text) {
            let again = VolumeIdentity::decode(&String::from_utf8_lossy(&identity.encode()));
            assert_eq!(again.ok(), Some(identity));
        }
    }
}

fn stored_row(bytes: &[u8]) {
    if let Ok(body) = row_body(bytes) {
        assert_eq!(&bytes[bytes.len() - body.len()..], body);
    }
}

fn key(bytes: &[u8]) {
    if let Ok(ino) = key_ino(bytes) {
        assert!(bytes.starts_with(&ino_key(ino)));
        if let Ok(second) = key_second(bytes) {
            assert_eq!(bytes, dentry_key(ino, second));
            assert_eq!(bytes, extent_key(ino, second));
        }
    }
    canonical(bytes, key_piece(bytes), |id| piece_key(*id).to_vec());
    canonical(bytes, key_segment_index(bytes), |(segment, offset)| {
        segment_index_key(*segment, *offset).to_vec()
    });
}

fn inode(bytes: &[u8]) {
    let decoded = Inode::decode(bytes);
    if let Ok(inode) = &decoded {
        let attr = inode.attr(Ino(1));
        assert!(attr.allocated_bytes >= inode.extent_bytes);
    }
    canonical(bytes, decoded, Inode::encode);
}

fn dentry(bytes: &[u8]) {
    canonical(bytes, Dentry::decode(bytes), Dentry::encode);
}

/// Where in the file it starts, 8 bytes; then an extent.
fn extent(bytes: &[u8]) {
    let Some((start, body)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let start = u64::from_be_bytes(*start);
    canonical(body, Extent::decode(body), Extent::encode);
    let Ok((at, extent)) = Extent::decode_at(&extent_key(Ino(5), start), body) else {
        return;
    };
    assert_eq!(at, start);
    let end = start + extent.len;
    assert_eq!(extent.within(start, 0, u64::MAX), Some((start, extent)));
    assert_eq!(extent.within(start, end, u64::MAX), None);
    for cut in [1, extent.len / 2, extent.len - 1] {
        if let Some((from, tail)) = extent.within(start, start + cut, end) {
            assert_eq!((from, tail.len), (start + cut, extent.len - cut));
            canonical(
                &tail.encode(),
                Extent::decode(&tail.encode()),
                Extent::encode,
            );
        }
    }
}

fn place(bytes: &[u8]) {
    let decoded = Place::decode(bytes);
    if let Ok(Place::Segment(place)) = &decoded {
        assert!(place.stored_bytes() >= u64::from(place.len));
    }
    canonical(bytes, decoded, Place::encode);
}

fn segment_use(bytes: &[u8]) {
    canonical(bytes, SegmentUse::decode(bytes), |value| value.encode());
}

fn applied(bytes: &[u8]) {
    let decoded = Applied::decode(bytes);
    if let Ok(applied) = &decoded {
        assert_eq!(
            Digest::from_bytes(applied.digest.to_bytes()),
            applied.digest
        );
    }
    canonical(bytes, decoded, Applied::encode);
}

fn epochs(bytes: &[u8]) {
    canonical(bytes, decode_epochs(bytes), |epochs| encode_epochs(epochs));
}

fn losses(bytes: &[u8]) {
    canonical(bytes, decode_losses(bytes), |losses| encode_losses(losses));
}

fn acl(bytes: &[u8]) {
    match Acl::decode(bytes) {
        Err(_) => {}
        Ok(None) => assert_eq!(bytes, samples::NO_ACL),
        Ok(Some(acl)) => {
            assert_eq!(acl.encode(), bytes);
            let mut changed = acl;
            changed.set_perm(0o640);
            assert_eq!(changed.perm(), 0o640);
            assert_eq!(changed.masquerade(0o4750), 0o4640);
            let again = Acl::decode(&changed.encode());
            assert_eq!(again.expect("still valid"), Some(changed));
        }
    }
}

fn mount_table(bytes: &[u8]) {
    if let Ok(mounts) = mountinfo::parse(bytes) {
        for mount in &mounts {
            let _ = (mount.is_hafs(), mount.is_read_only());
            assert!(mountinfo::top_at(&mounts, &mount.mount_point).is_some());
        }
    }
}

#[cfg(test)]
#[path = "../../tests/fuzz/plain.rs"]
mod plain;
