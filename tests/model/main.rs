//! Random operations on a real volume and on a model in memory, equal after each, and after crash and reopening.
//!
//! 10,000 cases of up to 60 operations, split over tests so that they run side by side. Half of the tests draw from fixed
//! seeds, which no run forgets; the other half draws new ones each time. A failure prints the shrunk operations and the
//! command that replays it; the operations then become a test in [`regressions`].
//!
//! - `HAFS_MODEL_CASES`: how many cases in all (10,000).
//! - `HAFS_MODEL_SEED`: the seed of every test that runs, to replay one.

mod machine;
mod op;
mod reference;
mod regressions;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

use machine::VolumeAgainstModel;
use reference::{Outcome, Reference};

const PARTS: u32 = 16;
const CASES: u32 = 10_000;
const OPS_PER_CASE: std::ops::RangeInclusive<usize> = 1..=60;

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
    )
}

/// Runs one part of the cases.
fn run(part: u32) {
    let cases = variable("HAFS_MODEL_CASES")
        .unwrap_or(CASES)
        .div_ceil(PARTS);
    let fresh = || u64::from_le_bytes(std::array::from_fn(|i| uuid::Uuid::new_v4().as_bytes()[i]));
    let seed = variable("HAFS_MODEL_SEED").unwrap_or_else(|| {
        if part.is_multiple_of(2) {
            part.into()
        } else {
            fresh()
        }
    });
    let replay = format!(
        "HAFS_MODEL_SEED={seed} cargo nextest run --release -p hafs-tests -E 'test(=part_{part:02})'"
    );
    eprintln!("{cases} cases; to replay: {replay}");
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config.clone());
    // Shrinking runs into the failure again and again; only the last one is worth reading.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let strategy = Reference::sequential_strategy(OPS_PER_CASE);
    let result = runner.run(&strategy, |(reference, ops, seen)| {
        VolumeAgainstModel::test_sequential(config.clone(), reference, ops, seen);
        Ok(())
    });
    std::panic::set_hook(hook);
    match result {
        Ok(()) => {}
        Err(TestError::Abort(reason)) => panic!("{reason}"),
        Err(TestError::Fail(reason, (reference, ops, _))) => {
            let ops: String = ops.iter().map(|op| format!("    Op::{op:?},\n")).collect();
            let settings = &reference.settings;
            panic!("{reason}\n{settings:?}\n[\n{ops}]\nreplay: {replay}");
        }
    }
}

macro_rules! parts {
    ($($name:ident: $part:literal),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                run($part);
            }
        )*
        const _: () = assert!([$($part),*].len() == PARTS as usize);
    };
}

parts! {
    part_00: 0, part_01: 1, part_02: 2, part_03: 3, part_04: 4, part_05: 5, part_06: 6, part_07: 7,
    part_08: 8, part_09: 9, part_10: 10, part_11: 11, part_12: 12, part_13: 13, part_14: 14, part_15: 15,
}

/// A generator that drifts towards operations that are all refused would test little and never say so.
#[test]
fn most_operations_are_carried_out() {
    let mut runner = TestRunner::deterministic();
    let strategy = Reference::sequential_strategy(OPS_PER_CASE);
    let (mut done, mut all) = (0, 0);
    for _ in 0..300 {
        let tree = strategy.new_tree(&mut runner).expect("nothing is rejected");
        let (mut reference, ops, _) = tree.current();
        for op in &ops {
            reference.advance(op);
            all += 1;
            done += u32::from(!matches!(reference.outcome, Outcome::Refused(_)));
        }
    }
    assert!(
        done * 10 > all * 6,
        "{done} of {all} operations carried out"
    );
}
