//! The outstanding bytes of every stack over a live run, as growth needs them, in bounded memory.
//! Keyed by the tracer's own stack ids, so that only stacks that grow need names.

use std::collections::HashMap;

use super::groups;
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
    /// Takes the figures of the next snapshot, but those of processes that have `ended`: after the end they obey other
    /// rules. For the same reason, one taken after the target's exit does not belong here.
    pub fn push(&mut self, snapshot: &Snapshot, ended: impl Fn(u32) -> bool) {
        self.seen += 1;
        self.times.push(snapshot.monotonic_ns);
        for usage in snapshot.usage.iter().filter(|usage| !ended(usage.tgid)) {
            let bytes = self
                .series
                .entry((usage.tgid, usage.class, usage.stack))
                .or_default();
            bytes.push(usage.bytes);
        }
        self.note_the_absent(snapshot, ended);
        if self.times.len() > MOST_POINTS {
            self.drop_every_other();
        }
        if self.series.len() > MOST_STACKS {
            self.forget_small();
        }
    }

    /// Stacks that were there before and hold nothing now.
    fn note_the_absent(&mut self, snapshot: &Snapshot, ended: impl Fn(u32) -> bool) {
        let present: std::collections::HashSet<Key> = snapshot
            .usage
            .iter()
            .map(|usage| (usage.tgid, usage.class, usage.stack))
            .collect();
        for (key, bytes) in &mut self.series {
            if !present.contains(key) && !ended(key.0) {
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

    /// Whether a stack is followed.
    pub fn knows(&self, key: &Key) -> bool {
        self.series.contains_key(key)
    }

    /// The stacks that hold more than they began with, or are new: only they can make anything grow. Those that grow by
    /// themselves come first, then those that gained most.
    pub fn rising(&self) -> Vec<Key> {
        let gain = |bytes: &[u64]| {
            // what began later began with nothing
            let first = match bytes.len() < self.times.len() {
                true => 0,
                false => bytes.first().copied().unwrap_or(0),
            };
            bytes.last().copied().unwrap_or(0).saturating_sub(first)
        };
        let grows = |bytes: &[u64]| {
            bytes.len() >= 3
                && bytes.last() > bytes.first()
                && growth::judge(&self.points(bytes)).is_growing()
        };
        let mut rising: Vec<(bool, u64, Key)> = self
            .series
            .iter()
            .map(|(&key, bytes)| (gain(bytes), key, bytes))
            .filter(|(gain, ..)| *gain > 0)
            .map(|(gain, key, bytes)| (grows(bytes), gain, key))
            .collect();
        rising.sort_unstable_by(|a, b| (b.0, b.1).cmp(&(a.0, a.1)).then(a.2.cmp(&b.2)));
        rising.into_iter().map(|(.., key)| key).collect()
    }

    /// What stacks did, each by itself and all together; none where neither grows. The stacks are of one process.
    pub fn judge(&self, keys: &[Key]) -> Option<(Vec<(Key, Growth)>, Growth)> {
        let series = |key: &Key| Some((*key, self.points(self.series.get(key)?)));
        let all: Vec<(Key, Vec<Point>)> = keys.iter().filter_map(series).collect();
        let mut sum: Vec<Point> = Vec::new();
        for (_, points) in &all {
            if points.len() > sum.len() {
                let missing = points[..points.len() - sum.len()].iter();
                let earlier = missing.map(|point| Point { bytes: 0, ..*point });
                sum.splice(0..0, earlier);
            }
            let shift = sum.len() - points.len();
            for (sum, point) in sum[shift..].iter_mut().zip(points) {
                sum.bytes = sum.bytes.saturating_add(point.bytes);
            }
        }
        let judged: Vec<(Key, Growth)> = all
            .iter()
            .map(|(key, points)| (*key, growth::judge(points)))
            .collect();
        let growths = judged.iter().map(|(_, growth)| *growth);
        let together = groups::together(growths, growth::judge(&sum))?;
        Some((judged, together))
    }

    /// The points of a series, which ends with the last snapshot that its process lived through.
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
        let rising = history.rising().into_iter();
        rising
            .filter(|key| history.judge(&[*key]).is_some())
            .map(|(_, _, stack)| stack.0)
            .collect()
    }

    fn nobody(_tgid: u32) -> bool {
        false
    }

    #[test]
    fn what_a_process_held_at_its_end_is_no_part_of_its_series() {
        let mut history = History::default();
        for at in 0..4 {
            history.push(&snapshot(at, &[(1, 10 * at + 10)]), nobody);
        }
        history.push(&snapshot(4, &[(1, 5)]), |tgid| tgid == 1);
        history.push(&snapshot(5, &[]), |tgid| tgid == 1);
        assert_eq!(growing(&history), [1]);
    }

    #[test]
    fn stacks_of_one_function_are_judged_by_their_sum() {
        let mut history = History::default();
        for at in 0..20 {
            let usage: Vec<(u64, u64)> = (0..=at).map(|stack| (stack, 100)).collect();
            history.push(&snapshot(at, &usage), nobody);
        }
        assert!(growing(&history).is_empty());
        let (stacks, sum) = history.judge(&history.rising()).unwrap();
        assert_eq!(stacks.len(), 19);
        assert!((sum.rate.unwrap().bytes_per_s - 100.0).abs() < 1.0);
    }

    #[test]
    fn growing_stacks_are_found_from_the_third_snapshot_on() {
        let mut history = History::default();
        for at in 0..3 {
            assert!(growing(&history).is_empty());
            history.push(
                &snapshot(at, &[(1, 100 + at), (2, 50), (3, 10 * at + 10)]),
                nobody,
            );
        }
        assert_eq!(growing(&history), [3, 1]);
        assert_eq!(history.snapshots(), 3);
    }

    #[test]
    fn a_stack_that_vanishes_holds_nothing_until_it_is_back() {
        let mut history = History::default();
        for at in 0..30 {
            let tooth = at % 5;
            history.push(
                &snapshot(at, &[(1, tooth)][..usize::from(tooth > 0)]),
                nobody,
            );
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
            history.push(&snapshot(at, late), nobody);
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
        history.push(&snapshot(0, &all), nobody);
        assert_eq!(history.series.len(), MOST_STACKS / 2);
        assert!(
            history
                .series
                .contains_key(&(1, Class::Heap, StackId(MOST_STACKS as u64)))
        );
    }
}
