//! How records are stored: JSON with the kind and version in front.
//!
//! `{"kind":"volume-spec","version":1,"record":{…}}`
//!
//! JSON and not a binary form, because these records are few (two a volume), small, and read by people when something is
//! wrong; their encoding costs nothing beside the synced write. A record of a newer version is refused, never half
//! understood; a field that this version does not know is refused too, since writing the record back would lose it. New
//! fields therefore come with a new version, written only once every node knows it.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{MetaError, RecordError};
use crate::store::Versioned;

/// A value of the control store.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// What it is.
    const KIND: &'static str;
    /// The newest version that is read.
    const VERSION: u32;

    /// The version that is written: the oldest that holds all of it, so that an older hafs reads what it can.
    fn version(&self) -> u32 {
        Self::VERSION
    }
}

#[derive(Serialize)]
struct Writing<'a, R> {
    kind: &'static str,
    version: u32,
    record: &'a R,
}

/// First only kind and version, so that a newer record is told from a broken one.
#[derive(Deserialize)]
struct Head {
    kind: String,
    version: u32,
}

#[derive(Deserialize)]
struct Reading<R> {
    record: R,
}

pub(crate) fn encode<R: Record>(record: &R) -> Bytes {
    let writing = Writing {
        kind: R::KIND,
        version: record.version(),
        record,
    };
    serde_json::to_vec(&writing)
        .expect("records have string keys and no fallible fields")
        .into()
}

pub(crate) fn decode<R: Record>(stored: &Versioned) -> Result<R, MetaError> {
    decode_bytes(&stored.value).map_err(|source| MetaError::Record {
        key: stored.key.clone(),
        source,
    })
}

pub(crate) fn decode_bytes<R: Record>(bytes: &[u8]) -> Result<R, RecordError> {
    let head: Head = serde_json::from_slice(bytes)?;
    if head.kind != R::KIND {
        return Err(RecordError::Kind {
            found: head.kind,
            want: R::KIND,
        });
    }
    if head.version > R::VERSION {
        return Err(RecordError::Newer {
            found: head.version,
            known: R::VERSION,
        });
    }
    let reading: Reading<R> = serde_json::from_slice(bytes)?;
    Ok(reading.record)
}
