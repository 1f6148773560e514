//! Every decoder of the control store's bytes as a function of bytes, for fuzzers. Not part of what users get.
//!
//! `tests/fuzz` calls [`attack`] from libFuzzer; the tests below run the same targets over its corpus and over mutations of it. A
//! target panics if a decoder does, or if what was decoded is not written down again as the same bytes (JSON, which can be
//! written in many ways: as the same record).

use bytes::Bytes;
use hafs_protocol::{Epoch, Lineage, Lsn, Member, NodeId, Pos, StoreId, VolumeId};
use jiff::Timestamp;
use uuid::Uuid;

use crate::catalog::decode_id;
use crate::key::{VolumePart, parse_volume, volume_config, volume_spec};
use crate::node::{ClusterId, ClusterRecord, NodeRecord};
use crate::record::{Record, decode_bytes, encode};
use crate::store::local::directory::{format_text, parse_format};
use crate::store::local::mark;
use crate::store::local::row::{Change, DamagedRow, Head, Row, decode_changes, encode_changes};
use crate::store::{Key, SessionId};
use crate::volume::{Profile, VolumeConfig, VolumeSpec};

/// A decoder under attack.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of the fuzz target, and of its directory in the corpus.
    pub name: &'static str,
    /// Panics if the decoder does, or breaks its promise.
    pub attack: fn(&[u8]),
    /// What the decoder reads in practice, by name: the seeds of the corpus.
    pub samples: fn() -> Samples,
}

type Samples = Vec<(&'static str, Vec<u8>)>;

/// All of them.
pub const TARGETS: [Target; 8] = [
    Target {
        name: "meta_head",
        attack: head,
        samples: heads,
    },
    Target {
        name: "meta_row",
        attack: row,
        samples: rows,
    },
    Target {
        name: "meta_changes",
        attack: changes,
        samples: some_changes,
    },
    Target {
        name: "meta_record",
        attack: record,
        samples: records,
    },
    Target {
        name: "meta_id",
        attack: id,
        samples: ids,
    },
    Target {
        name: "meta_key",
        attack: volume_key,
        samples: volume_keys,
    },
    Target {
        name: "meta_mark",
        attack: mark_slot,
        samples: mark_slots,
    },
    Target {
        name: "meta_format",
        attack: format,
        samples: formats,
    },
];

/// Attacks the target of this name.
///
/// # Panics
/// If there is none, or its decoder is found at fault.
pub fn attack(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").attack)(bytes);
}

/// What was decoded is written down as the bytes that it was read from.
fn canonical<T: std::fmt::Debug>(
    bytes: &[u8],
    decoded: Result<T, DamagedRow>,
    encode: impl FnOnce(&T) -> Vec<u8>,
) {
    if let Ok(value) = decoded {
        let again = encode(&value);
        assert!(again == bytes, "{value:?}\n{bytes:?}\nbecomes\n{again:?}");
    }
}

fn head(bytes: &[u8]) {
    canonical(bytes, Head::decode(bytes), Head::encode);
}

fn row(bytes: &[u8]) {
    canonical(bytes, Row::decode(bytes), Row::encode);
}

fn changes(bytes: &[u8]) {
    canonical(bytes, decode_changes(bytes), |changes| {
        encode_changes(changes)
    });
}

fn record(bytes: &[u8]) {
    record_of::<VolumeSpec>(bytes);
    record_of::<VolumeConfig>(bytes);
    record_of::<NodeRecord>(bytes);
    record_of::<ClusterRecord>(bytes);
    if let Ok(config) = decode_bytes::<VolumeConfig>(bytes) {
        let _ = config.contradiction();
    }
    if let Ok(spec) = decode_bytes::<VolumeSpec>(bytes) {
        let _ = spec.check();
    }
}

fn record_of<R: Record + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(record) = decode_bytes::<R>(bytes) {
        let again = decode_bytes::<R>(&encode(&record)).expect("what was read can be written");
        assert_eq!(again, record);
    }
}

fn id(bytes: &[u8]) {
    if let Ok(id) = decode_id(bytes) {
        let again = decode_id(id.to_string().as_bytes());
        assert_eq!(again.expect("what was read can be written"), id);
    }
}

fn volume_key(bytes: &[u8]) {
    let key = Key::new(Bytes::copy_from_slice(bytes));
    match parse_volume(&key) {
        Some((id, VolumePart::Config)) => assert_eq!(volume_config(id), key),
        Some((id, VolumePart::Spec)) => assert_eq!(volume_spec(id), key),
        None => {}
    }
}

fn mark_slot(bytes: &[u8]) {
    let mut right = bytes.to_vec();
    if let Some(at) = right.len().checked_sub(4) {
        let crc = crc32c::crc32c(&right[..at]);
        right[at..].copy_from_slice(&crc.to_le_bytes());
    }
    for bytes in [bytes, &right] {
        if let Ok(slot) = bytes.try_into()
            && let Some(rev) = mark::decode_slot(slot)
        {
            assert_eq!(*slot, mark::encode_slot(rev));
        }
    }
}

fn format(bytes: &[u8]) {
    if let Some(version) = parse_format(bytes) {
        let again = parse_format(format_text(version).as_bytes());
        assert_eq!(again, Some(version));
    }
}

fn ids() -> Samples {
    vec![("volume", VOLUME.to_string().into_bytes())]
}

fn volume_keys() -> Samples {
    let bytes = |key: Key| key.as_bytes().to_vec();
    vec![
        ("config", bytes(volume_config(VOLUME))),
        ("spec", bytes(volume_spec(VOLUME))),
    ]
}

fn mark_slots() -> Samples {
    vec![
        ("new", mark::encode_slot(0).to_vec()),
        ("later", mark::encode_slot(123_456_789).to_vec()),
    ]
}

fn formats() -> Samples {
    vec![
        ("format_1", format_text(1).into_bytes()),
        ("today", format_text(2).into_bytes()),
    ]
}

const VOLUME: VolumeId = VolumeId(Uuid::from_bytes([0xa7; 16]));

fn heads() -> Samples {
    let later = Head {
        rev: 70,
        oldest: 3,
        history_bytes: 5000,
    };
    vec![("empty", Head::EMPTY.encode()), ("later", later.encode())]
}

fn one_row(session: Option<SessionId>) -> Row {
    Row {
        create_rev: 5,
        mod_rev: 7,
        session,
        value: "a value".into(),
    }
}

fn rows() -> Samples {
    vec![
        ("kept", one_row(None).encode()),
        ("of_a_session", one_row(Some(SessionId(9))).encode()),
    ]
}

fn some_changes() -> Samples {
    let change = |before, after| Change {
        key: Key::from("/volume/a"),
        before,
        after,
    };
    let all = [
        change(None, Some(one_row(None))),
        change(Some(one_row(None)), Some(one_row(Some(SessionId(9))))),
        change(Some(one_row(None)), None),
    ];
    vec![
        ("none", encode_changes(&[])),
        ("three", encode_changes(&all)),
    ]
}

fn records() -> Samples {
    let created_at = Timestamp::from_second(1_700_000_000).expect("a time");
    let id = |byte| Uuid::from_bytes([byte; 16]);
    let node = NodeId(id(3));
    let member = Member {
        node,
        store: StoreId(id(2)),
    };
    let spec = VolumeSpec {
        name: "pg-main".parse().expect("a name"),
        size_bytes: 10 << 30,
        profile: Profile::Database,
        copies: 1,
        writeback: false,
        created_at,
        deleting_since: Some(created_at),
    };
    let config = VolumeConfig {
        epoch: Epoch(3),
        primary: Some(member),
        epoch_start: Some(Lsn(77)),
        commit_hint: Pos {
            epoch: Epoch(2),
            lsn: Lsn(76),
        },
        ..VolumeConfig::first(Lineage(id(4)), member, id(5))
    };
    let name = "host-1".to_owned();
    let cluster = ClusterRecord {
        id: ClusterId(id(6)),
        created_at,
    };
    let node = NodeRecord {
        id: node,
        name,
        created_at,
    };
    vec![
        ("spec", encode(&spec).to_vec()),
        ("config", encode(&config).to_vec()),
        ("node", encode(&node).to_vec()),
        ("cluster", encode(&cluster).to_vec()),
    ]
}

#[cfg(test)]
#[path = "../../tests/fuzz/plain.rs"]
mod plain;
