//! The fuzz targets as plain tests.

#[path = "../../../tests/fuzz/plain.rs"]
mod plain;

use super::TARGETS;
use plain::{Plain, new_seed};

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
