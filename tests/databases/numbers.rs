//! Numbers that look random, from a seed: what is written is known again without being kept.

/// A generator (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// The numbers of a seed and of what it is used for.
    pub(crate) fn new(seed: u64, parts: &[u64]) -> Self {
        let mut numbers = Self(seed);
        for part in parts {
            numbers.0 = numbers.next() ^ part;
        }
        numbers
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Text of so many letters and digits.
    pub(crate) fn text(&mut self, len: usize) -> String {
        let mut text = String::with_capacity(len + 16);
        while text.len() < len {
            text.push_str(&format!("{:016x}", self.next()));
        }
        text.truncate(len);
        text
    }
}

/// The seed of this run: from `HAFS_DATABASE_SEED`, else a new one. Printed, so that a failure can be repeated.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("HAFS_DATABASE_SEED").ok();
    let fresh = || u64::from_le_bytes(std::array::from_fn(|i| uuid::Uuid::new_v4().as_bytes()[i]));
    let seed = given.map_or_else(fresh, |seed| {
        seed.parse().expect("HAFS_DATABASE_SEED is a number")
    });
    eprintln!("HAFS_DATABASE_SEED={seed}");
    seed
}
