//! Identifiers as newtypes: two `u64` arguments will be swapped one day, an [`Lsn`] and an [`Epoch`] will not.

use core::fmt;

use uuid::Uuid;

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "serde", serde(transparent))]
        pub struct $name(pub Uuid);

        impl $name {
            /// The id as it is stored: 16 bytes, RFC 9562 order.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The id from its 16 stored bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

uuid_newtype! {
    /// A machine that runs hafsd. Drawn when its data directory is first used; never used again.
    NodeId
}
uuid_newtype! {
    /// One copy of a volume on one disk. Drawn when the copy's store is created, wiped or restored, and kept inside it.
    StoreId
}
uuid_newtype! {
    /// A volume, for as long as it exists, whatever its name.
    VolumeId
}
uuid_newtype! {
    /// A volume's history. Changes only when a promotion was forced (data loss accepted) or a volume was cloned.
    Lineage
}

/// A replica as the control store names it: the node, and the very store on it.
///
/// A node whose disk was replaced is another member, so its old acknowledgements count for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Member {
    /// The machine.
    pub node: NodeId,
    /// The store on it.
    pub store: StoreId,
}

/// Number of a primary's reign over a volume: one more at each change of primary, also when the same node restarts.
/// The first reign is 1; 0 means that nobody has reigned yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct Epoch(pub u32);

impl Epoch {
    /// The reign after this one. `None` after 2^32 changes of primary.
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(next) => Some(Self(next)),
            None => None,
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Log sequence number: the place of a record in a volume's log. Dense, from 1; 0 is "before the first record".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct Lsn(pub u64);

impl Lsn {
    /// The place after this one.
    ///
    /// # Panics
    /// After 2^64 records, which no disk holds.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(
            self.0
                .checked_add(1)
                .expect("a volume's log never reaches 2^64 records"),
        )
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// The version of a key, and the place of a record together with the reign that wrote it. Ordered by epoch, then lsn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pos {
    /// The reign that wrote the record.
    pub epoch: Epoch,
    /// Its place.
    pub lsn: Lsn,
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.epoch, self.lsn)
    }
}

/// Name of a run of file bytes: a chunk in a segment, or a small piece that travels inside its record.
///
/// The primary chooses it; the counter starts anew with each epoch, so that a crash never leads to a name used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceId {
    /// The reign in which the bytes were written.
    pub epoch: Epoch,
    /// Counts the pieces of that reign, from 1.
    pub counter: u64,
}

impl fmt::Display for PieceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_order_by_epoch_first() {
        let old = Pos {
            epoch: Epoch(1),
            lsn: Lsn(9),
        };
        let new = Pos {
            epoch: Epoch(2),
            lsn: Lsn(3),
        };
        assert!(old < new);
    }

    #[test]
    fn the_last_epoch_has_no_next() {
        assert_eq!(Epoch(u32::MAX).next(), None);
        assert_eq!(Epoch(0).next(), Some(Epoch(1)));
    }
}
