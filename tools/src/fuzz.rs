//! Every decoder of a data directory's files as a function of bytes, for fuzzers. Not part of what users get.
//!
//! `tests/fuzz` calls [`attack`] from libFuzzer; the tests below run the same targets over its corpus and over mutations of it. A
//! target panics if a decoder does, or if what was decoded is not written down again as the same bytes.

use hafs_protocol::NodeId;
use serde_json::json;
use uuid::Uuid;

use crate::node::datadir::{FORMAT_WITHOUT_CHECKSUM, decode_node, encode_node, node_lines};
use crate::node::served::{Content, ServedMount};

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
pub const TARGETS: [Target; 2] = [
    Target {
        name: "node_file",
        attack: node_file,
        samples: node_files,
    },
    Target {
        name: "served_mounts",
        attack: served_mounts,
        samples: lists_of_mounts,
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

fn node_file(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), with_a_right_checksum(bytes)] {
        if let Ok(node) = decode_node(&bytes) {
            let written = [encode_node(node), node_lines(FORMAT_WITHOUT_CHECKSUM, node)];
            assert!(written.iter().any(|text| text.as_bytes() == bytes));
        }
    }
}

/// The last line made the checksum of those before.
fn with_a_right_checksum(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let covered = text.split("crc32c ").next().unwrap_or_default();
    let crc = crc32c::crc32c(covered.as_bytes());
    format!("{covered}crc32c {crc:08x}\n").into_bytes()
}

/// JSON can be written in many ways: what was decoded is written down as the same list.
fn served_mounts(bytes: &[u8]) {
    let content = Content::decode(bytes).ok();
    // Behind the checksum: the same list, with the right one.
    let unchecked = serde_json::from_slice(bytes).ok();
    for content in content.into_iter().chain(unchecked) {
        let again = content.encode().expect("what was read can be written");
        assert_eq!(Content::decode(&again).ok(), Some(content));
    }
}

fn node_files() -> Samples {
    let node = NodeId(Uuid::from_bytes([0x5a; 16]));
    vec![
        ("today", encode_node(node).into_bytes()),
        (
            "format_1",
            node_lines(FORMAT_WITHOUT_CHECKSUM, node).into_bytes(),
        ),
    ]
}

fn lists_of_mounts() -> Samples {
    let mount = |connection| ServedMount {
        volume: "pg-main".to_owned(),
        mountpoint: "/srv/\"data\"".to_owned(),
        connection,
        namespace: 4_026_531_841,
    };
    let content = |mounts| Content {
        boot: "3b3f1d4e-55c1-4b61-b0f8-0f4d2a5f7a11".to_owned(),
        mounts,
    };
    let written = |content: Content| content.encode().expect("it can be written");
    let two = content(vec![mount(52), mount(53)]);
    let alone = serde_json::to_vec(&two).expect("it can be written");
    let format_1 = json!({ "format": 1, "boot": two.boot, "mounts": two.mounts });
    vec![
        ("none", written(content(Vec::new()))),
        ("two", written(two)),
        ("content_alone", alone),
        ("format_1", format_1.to_string().into_bytes()),
    ]
}

#[cfg(test)]
#[path = "../../tests/fuzz/plain.rs"]
mod plain;
