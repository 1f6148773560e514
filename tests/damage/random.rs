//! A thousand flipped bits, each in a store of its own: whatever is read is true, or an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use hafs_tests::{Numbers, numbers};

use crate::store::{End, Prepared, Verdict, files_of};

/// Flips in all; `HAFS_DAMAGE_FLIPS` sets another number.
const FLIPS: u64 = 1000;
const PARTS: u64 = 4;

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

/// Where bits were flipped, and what became of it.
#[derive(Debug, Default)]
struct Tally {
    refused: u64,
    eio: u64,
    reported: u64,
    /// In the log alone: something else stands for what was hit.
    told: u64,
    shorter: u64,
    unhurt: u64,
}

/// One part of the flips. `seed` is the first; each flip has the next one.
fn flips(end: End, part: u64, fresh: bool) {
    let seed = variable("HAFS_DAMAGE_SEED");
    let count = match seed {
        Some(_) => 1,
        None => variable("HAFS_DAMAGE_FLIPS").unwrap_or(FLIPS) / PARTS,
    };
    let first = seed.unwrap_or_else(|| {
        if fresh {
            numbers::fresh() >> 1
        } else {
            part << 32
        }
    });
    let prepared = Prepared::new(end);
    let mut tally = Tally::default();
    for seed in first..first + count {
        let (file, offset, bit) = target(&prepared, seed);
        let run = catch_unwind(AssertUnwindSafe(|| {
            let copy = prepared.copy();
            copy.flip(&file, offset, bit);
            copy.verdict()
        }));
        let flip = format!(
            "bit {bit} of byte {offset} of {}; again: HAFS_DAMAGE_SEED={seed} cargo nextest run --release -p hafs-tests -E 'binary(damage) & test(=random::{})'",
            file.display(),
            name(end, fresh)
        );
        let Ok(verdict) = run else {
            panic!("{flip}");
        };
        judge(&prepared, verdict, &flip, &mut tally);
    }
    eprintln!("{count} flips from seed {first}, {end:?}: {tally:?}");
    let found = tally.refused + tally.eio + tally.reported;
    assert!(
        count < 100 || found > count / 10,
        "hardly any flip hit anything: {tally:?}"
    );
}

const fn name(end: End, fresh: bool) -> &'static str {
    match (end, fresh) {
        (End::Clean, false) => "closed_fixed",
        (End::Clean, true) => "closed_fresh",
        (End::Crashed, false) => "crashed_fixed",
        (End::Crashed, true) => "crashed_fresh",
    }
}

/// Every file is hit as often as any other, whatever its length, and half of the flips hit where something is written.
fn target(prepared: &Prepared, seed: u64) -> (PathBuf, u64, u8) {
    let mut numbers = Numbers::of(seed, &[0]);
    let mut files = files_of(&prepared.path());
    files.retain(|(_, len)| *len > 0);
    let index = usize::try_from(numbers.below(files.len() as u64)).unwrap();
    let (file, len) = files.swap_remove(index);
    let bit = u8::try_from(numbers.below(8)).unwrap();
    let mut offset = numbers.below(len);
    if numbers.once_in(2) {
        let bytes = std::fs::read(prepared.path().join(&file)).unwrap();
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(1, |at| at + 1);
        offset %= used as u64;
    }
    (file, offset, bit)
}

fn judge(prepared: &Prepared, verdict: Verdict, flip: &str, tally: &mut Tally) {
    match verdict {
        Verdict::Refused(error) => {
            assert!(!error.to_string().is_empty(), "{flip}");
            tally.refused += 1;
        }
        Verdict::Opened(opened) => {
            let found = opened.report.as_ref().map_or(true, |r| r.problem_count > 0);
            if !opened.errors.is_empty() {
                assert!(
                    found,
                    "{flip}: reads fail, but the check is clean: {opened:?}"
                );
                tally.eio += 1;
            } else if found {
                tally.reported += 1;
            } else if prepared.end == End::Crashed && opened.tail < crate::store::TAIL_FILES {
                tally.shorter += 1;
            } else if !opened.warnings.is_empty() {
                tally.told += 1;
            } else {
                tally.unhurt += 1;
            }
        }
    }
}

#[test]
fn closed_fixed() {
    flips(End::Clean, 0, false);
}

#[test]
fn closed_fresh() {
    flips(End::Clean, 1, true);
}

#[test]
fn crashed_fixed() {
    flips(End::Crashed, 2, false);
}

#[test]
fn crashed_fresh() {
    flips(End::Crashed, 3, true);
}
