//! Durations of single operations, and what is said about them: percentiles, and how far the rounds lie apart.
//!
//! A [`Series`] is one way of doing one thing, measured in several rounds that alternate with the other ways, so that
//! load from elsewhere falls on all of them; the spread of the rounds' medians is the noise to read differences by.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::interrupt::Interrupt;

/// Operations timed in one slice at most: bounds memory (8 MiB) when operations take below a microsecond.
const SLICE_OPS_MAX: usize = 1 << 20;

/// Nanoseconds of each operation, round by round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    rounds: Vec<Vec<u64>>,
}

/// What a [`Series`] came to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) ops: usize,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    /// Lowest and highest median of a round.
    pub(crate) p50_round_min_ns: u64,
    pub(crate) p50_round_max_ns: u64,
}

/// Calls `op` with 0, 1, .. until `budget` is used, `ops_max` are done, or a signal came. `op` says how long its timed
/// part took; at least one is done.
pub(crate) fn slice(
    interrupt: &Interrupt,
    budget: Duration,
    ops_max: usize,
    mut op: impl FnMut(u64) -> anyhow::Result<Duration>,
) -> anyhow::Result<Vec<u64>> {
    let begin = Instant::now();
    let mut nanos = Vec::new();
    for index in 0.. {
        interrupt.check()?;
        nanos.push(as_nanos(op(index)?));
        if nanos.len() >= ops_max.min(SLICE_OPS_MAX) || begin.elapsed() >= budget {
            break;
        }
    }
    Ok(nanos)
}

/// How long `op` took.
pub(crate) fn timed<T>(op: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    op()?;
    Ok(begin.elapsed())
}

impl Series {
    /// Adds a round.
    pub(crate) fn push(&mut self, round: Vec<u64>) {
        assert!(!round.is_empty(), "a slice times at least one operation");
        self.rounds.push(round);
    }

    /// Percentiles over all rounds. There must be one.
    pub(crate) fn latency(&self) -> Latency {
        let mut all = self.rounds.concat();
        all.sort_unstable();
        let medians = self.rounds.iter().map(|round| {
            let mut round = round.clone();
            round.sort_unstable();
            percentile(&round, 50)
        });
        Latency {
            ops: all.len(),
            p50_ns: percentile(&all, 50),
            p99_ns: percentile(&all, 99),
            p50_round_min_ns: medians.clone().min().expect("one round at least"),
            p50_round_max_ns: medians.max().expect("one round at least"),
        }
    }
}

/// Nearest-rank percentile of sorted values, of which there must be one.
pub(crate) fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

/// Median of figures that are not durations, of which there must be one; the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}

fn as_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_nearest_rank() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 50), 50);
        assert_eq!(percentile(&hundred, 99), 99);
        assert_eq!(percentile(&[7], 99), 7);
        assert_eq!(percentile(&[1, 2, 3], 50), 2);
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[3.0, 1.0]) - 2.0).abs() < f64::EPSILON);
    }

    #[test]
    fn rounds_are_pooled_and_their_medians_kept() {
        let mut series = Series::default();
        series.push(vec![10, 12, 11]);
        series.push(vec![21, 20, 22]);
        let latency = series.latency();
        assert_eq!((latency.ops, latency.p50_ns, latency.p99_ns), (6, 12, 22));
        assert_eq!(
            (latency.p50_round_min_ns, latency.p50_round_max_ns),
            (11, 21)
        );
    }

    #[test]
    fn slice_is_bounded_by_ops_and_time() {
        let idle = Interrupt::default();
        let hour = Duration::from_hours(1);
        assert_eq!(
            slice(&idle, hour, 5, |_| Ok(Duration::ZERO)).unwrap().len(),
            5
        );
        assert_eq!(
            slice(&idle, Duration::ZERO, 5, |_| Ok(Duration::ZERO))
                .unwrap()
                .len(),
            1
        );
    }
}
