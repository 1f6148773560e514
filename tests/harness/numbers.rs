//! Numbers that look random, from a seed, and bytes that belong to one: what a run wrote can be told from its seed alone.

/// A stream of numbers.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// The stream that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The stream that belongs to one of many uses of `seed`, told apart by `parts`.
    pub fn of(seed: u64, parts: &[u64]) -> Self {
        Self::new(parts.iter().fold(seed, |mixed, part| mix(mixed ^ part)))
    }

    /// The next one, whatever it is.
    pub fn draw(&mut self) -> u64 {
        self.below(u64::MAX)
    }

    /// Letters and digits, so many.
    pub fn text(&mut self, len: usize) -> String {
        let mut text = String::with_capacity(len + 16);
        while text.len() < len {
            text.push_str(&format!("{:016x}", self.draw()));
        }
        text.truncate(len);
        text
    }

    /// The next one, below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of `all`, which is not empty.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).expect("an index")]
    }
}

/// `len` bytes that belong to `seed`.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&numbers.below(u64::MAX).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Spreads neighbouring numbers over all of 64 bits (the last step of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A seed that nobody has used before.
pub fn fresh() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1
}

/// The seed of this run: from the environment variable `name`, else a new one. Printed, so that a failure can be repeated.
///
/// # Panics
/// If the variable is no number.
pub fn seed(name: &str) -> u64 {
    let given = std::env::var(name).ok();
    let seed = given.map_or_else(fresh, |seed| seed.parse().expect("a seed is a number"));
    eprintln!("{name}={seed}");
    seed
}
