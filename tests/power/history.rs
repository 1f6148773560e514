//! Who did what when, and whether what is left after a cut is one moment of it.
//!
//! hafs promises that a volume comes back as a prefix of its log. The log is not seen from outside, but its order is
//! known in part: an operation that had returned before another began comes before it, whichever thread did them. So each
//! operation gets the time of its begin and end from one [`Clock`], each writer tells how many of its operations the state
//! holds, and [`cut_point`] proves that one moment explains all of them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was found that must not be.
pub(crate) type Lost = String;

/// Numbers the moments of all writers: a greater one is later.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    /// A moment, later than all before.
    pub(crate) fn now(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// One writer's operations, in order.
#[derive(Debug, Default)]
pub(crate) struct History {
    ops: Vec<Times>,
    /// Begin of the last fsync that returned: all that had returned before, of any writer, is on the disk.
    synced: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Times {
    begin: u64,
    end: Option<u64>,
}

impl History {
    /// An operation begins.
    pub(crate) fn begin(&mut self, clock: &Clock) {
        let begin = clock.now();
        self.ops.push(Times { begin, end: None });
    }

    /// The last one returned.
    pub(crate) fn end(&mut self, clock: &Clock) {
        self.ops.last_mut().expect("one began").end = Some(clock.now());
    }

    /// An fsync that began then returned.
    pub(crate) fn synced(&mut self, begin: u64) {
        self.synced = self.synced.max(Some(begin));
    }

    /// Operations that began.
    pub(crate) fn len(&self) -> usize {
        self.ops.len()
    }

    /// Operations that returned.
    fn returned(&self) -> usize {
        self.returned_before(u64::MAX)
    }

    fn returned_before(&self, moment: u64) -> usize {
        let ops = self.ops.iter();
        ops.take_while(|op| op.end.is_some_and(|end| end < moment))
            .count()
    }

    /// The first `count` have happened by now, what came after them did not.
    pub(crate) fn truncate(&mut self, count: usize, clock: &Clock) {
        self.ops.truncate(count);
        for op in &mut self.ops {
            op.end.get_or_insert_with(|| clock.now());
        }
    }

    /// Starts anew.
    pub(crate) fn clear(&mut self) {
        self.ops.clear();
        self.synced = None;
    }
}

/// How many of a writer's operations the state holds, from the first on. Two numbers where it looks the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) least: usize,
    pub(crate) most: usize,
}

/// A writer as far as [`cut_point`] is concerned.
pub(crate) struct Witness<'a> {
    pub(crate) name: &'a str,
    pub(crate) history: &'a History,
    pub(crate) held: Held,
}

/// What a round came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CutPoint {
    /// Operations that began.
    pub(crate) ops: usize,
    /// Operations that had returned and are gone, as they may be.
    pub(crate) lost: usize,
}

impl fmt::Display for CutPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} operations lost", self.lost, self.ops)
    }
}

/// Whether one moment explains what all writers found: everything that an fsync promised is there, and nothing is there
/// that came after something that is not.
pub(crate) fn cut_point(witnesses: &[Witness<'_>]) -> Result<CutPoint, Lost> {
    let synced = witnesses.iter().filter_map(|of| of.history.synced).max();
    for of in witnesses {
        let promised = synced.map_or(0, |moment| of.history.returned_before(moment));
        if of.held.most < promised {
            return Err(format!(
                "{}: {promised} operations had returned before an fsync began that returned too; the state holds {}",
                of.name, of.held.most
            ));
        }
    }
    for there in witnesses {
        let Some(last) = there.held.least.checked_sub(1) else {
            continue;
        };
        let begin = there.history.ops[last].begin;
        for gone in witnesses {
            let first = gone.history.ops.get(gone.held.most);
            if first.is_some_and(|op| op.end.is_some_and(|end| end < begin)) {
                return Err(format!(
                    "no prefix: operation {} of {} is gone, and operation {} of {}, which began after that one had returned, is there",
                    gone.held.most + 1,
                    gone.name,
                    there.held.least,
                    there.name
                ));
            }
        }
    }
    Ok(CutPoint {
        ops: witnesses.iter().map(|of| of.history.len()).sum(),
        lost: witnesses
            .iter()
            .map(|of| of.history.returned().saturating_sub(of.held.most))
            .sum(),
    })
}

/// Whether everything that returned is there, as after the end of a process without the end of the machine.
pub(crate) fn nothing_lost(witnesses: &[Witness<'_>]) -> Result<(), Lost> {
    for of in witnesses {
        let returned = of.history.returned();
        if of.held.most < returned {
            return Err(format!(
                "{}: {returned} operations had returned, the state holds {}",
                of.name, of.held.most
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history from begins and ends.
    fn history(ops: &[(u64, u64)], synced: Option<u64>) -> History {
        let ops = ops.iter().map(|&(begin, end)| Times {
            begin,
            end: Some(end),
        });
        History {
            ops: ops.collect(),
            synced,
        }
    }

    fn verdict(a: &History, a_held: usize, b: &History, b_held: usize) -> Result<CutPoint, Lost> {
        let witness = |name, history, count| Witness {
            name,
            history,
            held: Held {
                least: count,
                most: count,
            },
        };
        cut_point(&[witness("a", a, a_held), witness("b", b, b_held)])
    }

    #[test]
    fn operations_side_by_side_may_end_up_in_either_order() {
        let a = history(&[(1, 2), (5, 9)], None);
        let b = history(&[(3, 4), (6, 8)], None);
        assert_eq!(verdict(&a, 2, &b, 1).unwrap().lost, 1);
        assert_eq!(verdict(&a, 1, &b, 2).unwrap().lost, 1);
        assert_eq!(verdict(&a, 0, &b, 0).unwrap().lost, 4);
    }

    #[test]
    fn what_came_later_is_not_there_without_what_came_before() {
        let a = history(&[(1, 2), (5, 6)], None);
        let b = history(&[(3, 4), (7, 8)], None);
        assert!(verdict(&a, 2, &b, 0).unwrap_err().contains("no prefix"));
        assert!(verdict(&a, 0, &b, 1).unwrap_err().contains("no prefix"));
        verdict(&a, 2, &b, 1).unwrap();
    }

    #[test]
    fn an_fsync_covers_what_had_returned_before_it_began_whoever_did_it() {
        let a = history(&[(1, 2), (7, 9)], None);
        let b = history(&[(3, 4)], Some(8));
        assert!(verdict(&a, 0, &b, 1).unwrap_err().contains("fsync"));
        verdict(&a, 1, &b, 1).unwrap();
    }
}
