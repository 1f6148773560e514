//! What a local control store's database holds, byte by byte. [`LocalStore`](super::LocalStore) alone reads and writes it.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `default` | `head` | [`Head`] |
//! | `state` | the key | [`Row`] |
//! | `history` | revision, 8 bytes, big-endian | its [`Change`]s |
//!
//! Values begin with a version byte; numbers in them are little-endian.
//!
//! ```text
//! Head      version u8 | rev u64 | oldest u64 | history_bytes u64
//! Row       version u8 | create_rev u64 | mod_rev u64 | session u64, 0: none | value, to the end
//! changes   version u8 | count u32 | count times: key bytes | before: row bytes | after: row bytes
//! bytes     len u32 | len bytes; a row that is not there has len 0
//! ```

use bytes::{Buf, BufMut, Bytes};

use crate::store::{Event, Key, SessionId, Versioned};

/// Of every value. A new layout gets a new number and a new directory format.
const VERSION: u8 = 1;

/// Bytes in the database that are not what was written there.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("damaged row: {0}")]
pub(crate) struct DamagedRow(pub(super) &'static str);

impl From<bytes::TryGetError> for DamagedRow {
    fn from(_: bytes::TryGetError) -> Self {
        Self("it ends early")
    }
}

/// Where the store stands.
///
/// Invariant: `1 <= oldest <= rev + 1`; the history holds exactly the revisions `oldest..=rev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The store's revision.
    pub(crate) rev: u64,
    /// The oldest revision in the history.
    pub(crate) oldest: u64,
    /// Bytes of values in the history.
    pub(crate) history_bytes: u64,
}

impl Head {
    pub(crate) const EMPTY: Self = Self {
        rev: 0,
        oldest: 1,
        history_bytes: 0,
    };

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.put_u64_le(self.rev);
        out.put_u64_le(self.oldest);
        out.put_u64_le(self.history_bytes);
        out
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, DamagedRow> {
        check_version(&mut bytes)?;
        let head = Self {
            rev: bytes.try_get_u64_le()?,
            oldest: bytes.try_get_u64_le()?,
            history_bytes: bytes.try_get_u64_le()?,
        };
        if !bytes.is_empty() || head.oldest == 0 || head.oldest - 1 > head.rev {
            return Err(DamagedRow("the head contradicts itself"));
        }
        Ok(head)
    }
}

/// A key's value and versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) create_rev: u64,
    pub(crate) mod_rev: u64,
    pub(crate) session: Option<SessionId>,
    pub(crate) value: Bytes,
}

impl Row {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(25 + self.value.len());
        out.put_u8(VERSION);
        out.put_u64_le(self.create_rev);
        out.put_u64_le(self.mod_rev);
        out.put_u64_le(self.session.map_or(0, |session| session.0));
        out.put_slice(&self.value);
        out
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, DamagedRow> {
        check_version(&mut bytes)?;
        Ok(Self {
            create_rev: bytes.try_get_u64_le()?,
            mod_rev: bytes.try_get_u64_le()?,
            session: match bytes.try_get_u64_le()? {
                0 => None,
                id => Some(SessionId(id)),
            },
            value: Bytes::copy_from_slice(bytes),
        })
    }

    pub(crate) fn versioned(self, key: Key) -> Versioned {
        Versioned {
            key,
            value: self.value,
            create_rev: self.create_rev,
            mod_rev: self.mod_rev,
            session: self.session,
        }
    }
}

/// What a revision did to a key. The row before is kept so that a list can go on showing an earlier revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: Key,
    pub(crate) before: Option<Row>,
    pub(crate) after: Option<Row>,
}

impl Change {
    pub(crate) fn event(self) -> Event {
        match self.after {
            Some(row) => Event::Put(row.versioned(self.key)),
            None => Event::Del(self.key),
        }
    }
}

pub(crate) fn encode_changes(changes: &[Change]) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.put_u32_le(short(changes.len()));
    for change in changes {
        put_bytes(&mut out, change.key.as_bytes());
        for row in [&change.before, &change.after] {
            put_bytes(&mut out, &row.as_ref().map(Row::encode).unwrap_or_default());
        }
    }
    out
}

pub(crate) fn decode_changes(mut bytes: &[u8]) -> Result<Vec<Change>, DamagedRow> {
    check_version(&mut bytes)?;
    let count = bytes.try_get_u32_le()?;
    let mut changes = Vec::new();
    for _ in 0..count {
        let key = Key::new(Bytes::copy_from_slice(take_bytes(&mut bytes)?));
        let (before, after) = (take_row(&mut bytes)?, take_row(&mut bytes)?);
        changes.push(Change { key, before, after });
    }
    if bytes.is_empty() {
        Ok(changes)
    } else {
        Err(DamagedRow("it goes on after its end"))
    }
}

fn take_row(bytes: &mut &[u8]) -> Result<Option<Row>, DamagedRow> {
    match take_bytes(bytes)? {
        [] => Ok(None),
        row => Row::decode(row).map(Some),
    }
}

fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], DamagedRow> {
    let len = bytes.try_get_u32_le()? as usize;
    let (taken, rest) = bytes
        .split_at_checked(len)
        .ok_or(DamagedRow("it ends early"))?;
    *bytes = rest;
    Ok(taken)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(short(bytes.len()));
    out.put_slice(bytes);
}

fn short(len: usize) -> u32 {
    u32::try_from(len).expect("the contract's limits are far below 2^32")
}

fn check_version(bytes: &mut &[u8]) -> Result<(), DamagedRow> {
    match bytes.try_get_u8()? {
        VERSION => Ok(()),
        _ => Err(DamagedRow("of an unknown version")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row() -> impl Strategy<Value = Row> {
        let session = proptest::option::of((1..u64::MAX).prop_map(SessionId));
        let value = proptest::collection::vec(any::<u8>(), 0..40);
        (any::<u64>(), any::<u64>(), session, value).prop_map(
            |(create_rev, mod_rev, session, value)| Row {
                create_rev,
                mod_rev,
                session,
                value: value.into(),
            },
        )
    }

    fn change() -> impl Strategy<Value = Change> {
        let key = proptest::collection::vec(any::<u8>(), 1..20).prop_map(Key::new);
        let rows = (proptest::option::of(row()), proptest::option::of(row()));
        (key, rows).prop_map(|(key, (before, after))| Change { key, before, after })
    }

    proptest! {
        #[test]
        fn changes_come_back_and_cut_ones_do_not(
            changes in proptest::collection::vec(change(), 0..5),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = encode_changes(&changes);
            prop_assert_eq!(decode_changes(&bytes).unwrap(), changes);
            prop_assert!(decode_changes(&bytes[..cut.index(bytes.len())]).is_err());
        }

        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Head::decode(&bytes), Row::decode(&bytes), decode_changes(&bytes));
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let row = Row {
            create_rev: 1,
            mod_rev: 2,
            session: Some(SessionId(3)),
            value: "v".into(),
        };
        let row_bytes = b"\x01\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0v";
        assert_eq!(row.encode(), row_bytes);
        let change = Change {
            key: "/k".into(),
            before: None,
            after: Some(row),
        };
        let want = [
            &b"\x01\x01\0\0\0\x02\0\0\0/k\0\0\0\0\x1a\0\0\0"[..],
            row_bytes,
        ]
        .concat();
        assert_eq!(encode_changes(&[change]), want);
        let head = Head {
            rev: 5,
            oldest: 2,
            history_bytes: 256,
        };
        let want = b"\x01\x05\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0";
        assert_eq!(head.encode(), want);
        assert_eq!(Head::decode(want).unwrap(), head);
    }
}
