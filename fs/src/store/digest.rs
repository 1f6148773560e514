//! The running digest: one number for the whole replicated state.
//!
//! [`crate::apply`] keeps it up to date row by row; [`crate::check`] recomputes it. Two copies at the same position must have
//! the same.

use crate::store::key::Table;

/// Sum modulo 2^256 of the BLAKE3 of every row: equal on two copies exactly when their rows are (by accident they
/// never collide; it is no defence against somebody who builds a collision). Order does not matter, so it is kept up to
/// date row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest([u64; 4]);

impl Digest {
    pub(crate) const EMPTY: Self = Self([0; 4]);

    pub(crate) fn add(&mut self, table: Table, key: &[u8], raw: &[u8]) {
        let mut carry = false;
        for (word, other) in self.0.iter_mut().zip(Self::of(table, key, raw).0) {
            let (sum, first) = word.overflowing_add(other);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            *word = sum;
            carry = first | second;
        }
    }

    pub(crate) fn remove(&mut self, table: Table, key: &[u8], raw: &[u8]) {
        let mut borrow = false;
        for (word, other) in self.0.iter_mut().zip(Self::of(table, key, raw).0) {
            let (rest, first) = word.overflowing_sub(other);
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            *word = rest;
            borrow = first | second;
        }
    }

    fn of(table: Table, key: &[u8], raw: &[u8]) -> Self {
        let key_len = u16::try_from(key.len()).expect("keys are below 300 bytes");
        // In one piece: most rows are a few blocks, and a hasher that is fed in parts costs as much again.
        let mut bytes = Vec::with_capacity(3 + key.len() + raw.len());
        bytes.push(table.tag());
        bytes.extend_from_slice(&key_len.to_le_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(raw);
        Self::from_bytes(*blake3::hash(&bytes).as_bytes())
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().expect("8 bytes"));
        }
        Self(words)
    }

    pub(crate) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_forgets_what_is_removed_and_ignores_order() {
        let rows: [(&[u8], &[u8]); 3] = [(b"a", b"1"), (b"b", b"2"), (b"ab", b"")];
        let mut forward = Digest::EMPTY;
        let mut backward = Digest::EMPTY;
        for (key, raw) in rows {
            forward.add(Table::Inode, key, raw);
        }
        for (key, raw) in rows.into_iter().rev() {
            backward.add(Table::Inode, key, raw);
        }
        assert_eq!(forward, backward);
        backward.remove(Table::Inode, b"a", b"1");
        assert_ne!(forward, backward);
        backward.add(Table::Xattr, b"a", b"1");
        assert_ne!(
            forward, backward,
            "the same row in another table is another row"
        );
        for (key, raw) in rows {
            forward.remove(Table::Inode, key, raw);
        }
        assert_eq!(forward, Digest::EMPTY);
    }
}
