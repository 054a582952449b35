//! The outstanding bytes of every stack over a live run, as growth needs them, in bounded memory.
//! Keyed by the tracer's own stack ids, so that only stacks that grow need names.

use std::collections::HashMap;

use super::growth::{self, Growth};
use super::trend::Point;
use crate::model::snapshot::{Class, Snapshot, StackId};

/// Points that a series has at the most; when there are more, every other one is dropped.
const MOST_POINTS: usize = 256;

/// Stacks that are followed at the most.
const MOST_STACKS: usize = 16_384;

/// A stack of a process, with its class of memory.
pub type Key = (u32, Class, StackId);

/// What the stacks held in earlier snapshots.
#[derive(Debug, Default)]
pub struct History {
    /// When the snapshots were taken that are still remembered, in ns of CLOCK_MONOTONIC.
    times: Vec<u64>,
    /// Per stack, its bytes in the last so many of those snapshots.
    series: HashMap<Key, Vec<u64>>,
    /// Snapshots seen, remembered or not.
    seen: u64,
}

impl History {
    /// Takes the figures of the next snapshot. One taken after the target's exit does not belong here: its figures
    /// obey other rules.
    pub fn push(&mut self, snapshot: &Snapshot) {
        self.seen += 1;
        self.times.push(snapshot.monotonic_ns);
        for usage in &snapshot.usage {
            let bytes = self
                .series
                .entry((usage.tgid, usage.class, usage.stack))
                .or_default();
            bytes.push(usage.bytes);
        }
        self.note_the_absent(snapshot);
        if self.times.len() > MOST_POINTS {
            self.drop_every_other();
        }
        if self.series.len() > MOST_STACKS {
            self.forget_small();
        }
    }

    /// Stacks that were there before and hold nothing now.
    fn note_the_absent(&mut self, snapshot: &Snapshot) {
        let present: std::collections::HashSet<Key> = snapshot
            .usage
            .iter()
            .map(|usage| (usage.tgid, usage.class, usage.stack))
            .collect();
        for (key, bytes) in &mut self.series {
            if !present.contains(key) {
                bytes.push(0);
            }
        }
    }

    /// Series end with the last snapshot: what is dropped is counted from there, and the last always stays.
    fn drop_every_other(&mut self) {
        halve(&mut self.times);
        self.series.values_mut().for_each(halve);
    }

    /// Keeps the stacks that hold most; those that hold nothing go first.
    fn forget_small(&mut self) {
        let mut sizes: Vec<(u64, Key)> = self
            .series
            .iter()
            .map(|(&key, bytes)| (bytes.last().copied().unwrap_or(0), key))
            .collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        for (_, key) in sizes.drain(MOST_STACKS / 2..) {
            self.series.remove(&key);
        }
    }

    /// Forgets the stacks of processes that have ended.
    pub fn forget(&mut self, ended: impl Fn(u32) -> bool) {
        self.series.retain(|(tgid, ..), _| !ended(*tgid));
    }

    /// Snapshots seen so far.
    pub fn snapshots(&self) -> u64 {
        self.seen
    }

    /// The stacks that grow, most severe first. `headroom` is what the target can still take, in bytes.
    pub fn growing(&self, headroom: Option<u64>) -> Vec<(Key, Growth)> {
        let mut growing: Vec<(Key, Growth)> = self
            .series
            .iter()
            // What does not hold more than it began with does not grow: most stacks, and cheap to see.
            .filter(|(_, bytes)| bytes.len() >= 3 && bytes.last() > bytes.first())
            .map(|(&key, bytes)| (key, growth::judge(&self.points(bytes), headroom)))
            .filter(|(_, growth)| growth.is_growing())
            .collect();
        growing.sort_by(|a, b| a.1.by_severity(&b.1).then(a.0.cmp(&b.0)));
        growing
    }

    fn points(&self, bytes: &[u64]) -> Vec<Point> {
        let times = &self.times[self.times.len().saturating_sub(bytes.len())..];
        times
            .iter()
            .zip(bytes)
            .map(|(&at_ns, &bytes)| Point { at_ns, bytes })
            .collect()
    }
}

/// Drops every other element, counted from the last, which stays.
fn halve(values: &mut Vec<u64>) {
    let last = values.len() % 2;
    let mut at = last;
    values.retain(|_| {
        at += 1;
        usize::is_multiple_of(at, 2)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::Usage;

    fn snapshot(at: u64, usage: &[(u64, u64)]) -> Snapshot {
        let one = |&(stack, bytes): &(u64, u64)| Usage {
            tgid: 1,
            class: Class::Heap,
            stack: StackId(stack),
            bytes,
            count: 1,
            oldest_ns: None,
            reach: None,
            allocations: Vec::new(),
        };
        Snapshot {
            monotonic_ns: at * 1_000_000_000,
            usage: usage.iter().map(one).collect(),
            ..Snapshot::default()
        }
    }

    fn growing(history: &History) -> Vec<u64> {
        history
            .growing(None)
            .iter()
            .map(|((_, _, stack), _)| stack.0)
            .collect()
    }

    #[test]
    fn growing_stacks_are_found_from_the_third_snapshot_on() {
        let mut history = History::default();
        for at in 0..3 {
            assert!(growing(&history).is_empty());
            history.push(&snapshot(at, &[(1, 100 + at), (2, 50), (3, 10 * at + 10)]));
        }
        assert_eq!(growing(&history), [3, 1]);
        assert_eq!(history.snapshots(), 3);
    }

    #[test]
    fn a_stack_that_vanishes_holds_nothing_until_it_is_back() {
        let mut history = History::default();
        for at in 0..30 {
            let tooth = at % 5;
            history.push(&snapshot(at, &[(1, tooth)][..usize::from(tooth > 0)]));
        }
        assert!(growing(&history).is_empty());
    }

    #[test]
    fn long_runs_are_remembered_in_bounded_memory() {
        let mut history = History::default();
        for at in 0..5000 {
            let late: &[(u64, u64)] = if at < 4000 {
                &[(1, at)]
            } else {
                &[(1, at), (2, at)]
            };
            history.push(&snapshot(at, late));
        }
        assert!(history.times.len() <= MOST_POINTS);
        for ((_, _, stack), bytes) in &history.series {
            let points = history.points(bytes);
            assert_eq!(points.len(), bytes.len(), "stack {stack:?}");
            assert!(
                points
                    .iter()
                    .all(|point| point.at_ns == point.bytes * 1_000_000_000),
                "stack {stack:?}"
            );
        }
        assert_eq!(growing(&history), [1, 2]);
    }

    #[test]
    fn too_many_stacks_are_forgotten_from_the_smallest() {
        let mut history = History::default();
        let all: Vec<(u64, u64)> = (0..=MOST_STACKS as u64)
            .map(|stack| (stack, stack))
            .collect();
        history.push(&snapshot(0, &all));
        assert_eq!(history.series.len(), MOST_STACKS / 2);
        assert!(
            history
                .series
                .contains_key(&(1, Class::Heap, StackId(MOST_STACKS as u64)))
        );
    }
}
