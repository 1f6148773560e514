//! Names that were looked for in vain a short while ago. The kernel looks a name up before it makes it, so that each new name
//! would be looked for in RocksDB twice.
//!
//! Invariant: what is remembered is in RocksDB neither now nor later, until [`AbsentNames::clear`]. Names get there with a flush
//! and by nothing else, and [`Store`](super::Store) clears after each. Whoever looks a name up holds the volume's lock from
//! before he looks until it is remembered here, so that nobody makes it, and no flush brings it along, in between. The
//! memtables are looked at first, so a name that is made later is found there.

use parking_lot::Mutex;

use super::memtable::Key;

/// Enough for the names that a few threads make at the same time.
const SLOTS: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct AbsentNames(Mutex<[Key; SLOTS]>);

impl AbsentNames {
    /// Remembers the key of a dentry that RocksDB does not hold.
    pub(crate) fn remember(&self, key: &[u8]) {
        self.0.lock()[slot(key)] = Key::from_slice(key);
    }

    /// True if it is known that RocksDB does not hold it.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.0.lock()[slot(key)].as_slice() == key
    }

    /// RocksDB may hold anything from now on.
    pub(crate) fn clear(&self) {
        *self.0.lock() = Default::default();
    }
}

/// By the middle of the name's hash: its end says how many of equal hash come before.
fn slot(key: &[u8]) -> usize {
    key.get(12).map_or(0, |byte| usize::from(*byte) % SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::key::dentry_key;
    use crate::types::Ino;

    #[test]
    fn a_name_is_remembered_until_another_takes_its_place_or_all_are_forgotten() {
        let absent = AbsentNames::default();
        let keys: Vec<_> = (0..1000_u64)
            .map(|number| dentry_key(Ino(7), number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .collect();
        assert!(!absent.contains(&keys[0]));
        for (number, key) in keys.iter().enumerate() {
            absent.remember(key);
            assert!(absent.contains(key));
            let known = keys.iter().filter(|key| absent.contains(*key)).count();
            assert!(known <= SLOTS && known <= number + 1, "{known}");
        }
        let known = keys.iter().filter(|key| absent.contains(*key)).count();
        assert_eq!(known, SLOTS, "all places are used");
        absent.clear();
        assert!(!keys.iter().any(|key| absent.contains(key)));
    }
}
