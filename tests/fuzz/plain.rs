//! Fuzz targets as plain tests: over the corpus, over mutations of it, over every cut of every sample.
//!
//! The crates whose decoders are attacked take this file in as a module beside their `TARGETS`, so that each `make test` attacks them
//! without a fuzzer and without another build.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};

use super::TARGETS;

/// Mutations of each target and seed: some seconds in all.
const INPUTS: u64 = 20_000;

/// No input grows beyond this.
const INPUT_BYTES_MAX: usize = 4096;

/// Numbers at which lengths and counts go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    4095,
    4096,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    u64::MAX / 2,
    u64::MAX / 2 + 1,
    u64::MAX - 1,
    u64::MAX,
];

/// A target: its name, its attack, what its decoder reads in practice.
struct Plain {
    name: &'static str,
    attack: fn(&[u8]),
    samples: Vec<(&'static str, Vec<u8>)>,
}

/// `tests/fuzz` of the checkout.
fn home() -> PathBuf {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    checkout
        .expect("a crate lies in the checkout")
        .join("tests/fuzz")
}

impl Plain {
    fn corpus_dir(&self) -> PathBuf {
        home().join("corpus").join(self.name)
    }

    /// Everything that is checked in.
    fn corpus(&self) -> Vec<Vec<u8>> {
        let dir = self.corpus_dir();
        let entries =
            fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    /// Attacks; a panic is told with the input, so that it can become a file of the corpus.
    fn attack(&self, input: &[u8]) {
        if std::panic::catch_unwind(|| (self.attack)(input)).is_err() {
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!("{} falls to the input {hex}", self.name);
        }
    }

    /// The corpus, and every cut of every sample.
    fn stands_the_corpus(&self) {
        for input in self.corpus() {
            self.attack(&input);
        }
        for (_, sample) in &self.samples {
            for len in 0..sample.len() {
                self.attack(&sample[..len]);
            }
        }
    }

    /// Mutations of the corpus that follow from `seed`.
    fn stands_mutations(&self, seed: u64) {
        let corpus = self.corpus();
        let mut mutations = Mutations {
            corpus: &corpus,
            state: seed,
        };
        for _ in 0..INPUTS {
            self.attack(&mutations.input());
        }
    }

    /// The corpus holds what is written today, so that a changed format shows. With `UPDATE=1` it is made so.
    fn has_its_samples_in_the_corpus(&self) {
        for (name, sample) in &self.samples {
            let path = self.corpus_dir().join(name);
            if std::env::var_os("UPDATE").is_some() {
                fs::create_dir_all(self.corpus_dir()).unwrap();
                fs::write(&path, sample).unwrap();
            }
            let kept =
                fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(
                kept == *sample,
                "{} is not what is written today",
                path.display()
            );
        }
    }

    /// libFuzzer runs it too.
    fn is_a_fuzz_target(&self) {
        let name = self.name;
        let program = home().join(format!("fuzz_targets/{name}.rs"));
        assert!(program.exists(), "{} is missing", program.display());
        let manifest = fs::read_to_string(home().join("Cargo.toml")).unwrap();
        let entry = format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"");
        assert!(manifest.contains(&entry), "{name} is not in Cargo.toml");
    }
}

fn targets() -> impl Iterator<Item = Plain> {
    TARGETS.iter().map(|target| Plain {
        name: target.name,
        attack: target.attack,
        samples: (target.samples)(),
    })
}

#[test]
fn decoders_stand_the_corpus() {
    targets().for_each(|target| target.stands_the_corpus());
}

#[test]
fn decoders_stand_mutations_of_the_corpus() {
    targets().for_each(|target| target.stands_mutations(1));
}

#[test]
fn decoders_stand_new_mutations_of_the_corpus() {
    let seed = new_seed();
    targets().for_each(|target| target.stands_mutations(seed));
}

#[test]
fn the_corpus_holds_what_is_written_today() {
    targets().for_each(|target| target.has_its_samples_in_the_corpus());
}

#[test]
fn every_target_is_one_of_libfuzzer_too() {
    targets().for_each(|target| target.is_a_fuzz_target());
}

/// A seed that no run had before, or the one of `HAFS_FUZZ_SEED`.
fn new_seed() -> u64 {
    let fresh = RandomState::new().build_hasher().finish();
    let seed = std::env::var("HAFS_FUZZ_SEED").map_or(fresh, |seed| seed.parse().unwrap());
    eprintln!("HAFS_FUZZ_SEED={seed}");
    seed
}

/// Inputs made from a corpus: small damages, splices, and noise.
struct Mutations<'a> {
    corpus: &'a [Vec<u8>],
    state: u64,
}

impl Mutations<'_> {
    /// SplitMix64.
    fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[0]
    }

    /// One of `0..end`; 0 if there is none.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() % end.max(1) as u64).expect("below a usize")
    }

    fn pick(&mut self) -> Vec<u8> {
        let at = self.below(self.corpus.len());
        self.corpus[at].clone()
    }

    fn input(&mut self) -> Vec<u8> {
        if self.below(20) == 0 {
            let len = self.below(200);
            return (0..len).map(|_| self.byte()).collect();
        }
        let mut bytes = self.pick();
        for _ in 0..=self.below(3) {
            self.damage(&mut bytes);
        }
        bytes.truncate(INPUT_BYTES_MAX);
        bytes
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        let end = at + self.below(bytes.len() - at);
        match self.below(8) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            1 if !bytes.is_empty() => bytes[at] = self.byte(),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let len = [1, 2, 4, 8][self.below(4)].min(bytes.len() - at);
                let edge = EDGES[self.below(EDGES.len())];
                let field = match self.below(2) {
                    0 => edge.to_le_bytes(),
                    _ => edge.to_be_bytes(),
                };
                bytes[at..at + len].copy_from_slice(&field[..len]);
            }
            5 => {
                let other = self.pick();
                let from = self.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            6 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let extra: Vec<u8> = (0..self.below(9)).map(|_| self.byte()).collect();
                bytes.splice(at..at, extra);
            }
        }
    }
}

/// The mutations find what they are there to find: a length that is trusted.
#[test]
fn a_faulty_decoder_is_found() {
    let corpus = [b"\x02ab".to_vec()];
    let is_faulty = |bytes: &[u8]| {
        bytes
            .first()
            .is_some_and(|len| usize::from(*len) > bytes.len())
    };
    let mut mutations = Mutations {
        corpus: &corpus,
        state: 1,
    };
    let found = (0..INPUTS)
        .filter(|_| is_faulty(&mutations.input()))
        .count();
    assert!(found > 100, "{found} of {INPUTS}");
}
