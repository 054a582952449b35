//! Comparison with an earlier run: what is new since then, and what grew.
//! Which stacks are the same is `identity`'s to say.

use std::collections::HashMap;

use super::identity::{Precision, identity};
use crate::model::report::Entry;
use crate::model::snapshot::Amount;

/// What an earlier run left outstanding, by stack.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    precision: Precision,
    known: HashMap<String, Held>,
}

/// Outstanding memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    bytes: u64,
    count: u64,
}

impl Baseline {
    /// The baseline that `entries` make: all stacks of the earlier run's last report.
    pub fn new(entries: &[Entry], precision: Precision) -> Baseline {
        let mut known: HashMap<String, Held> = HashMap::new();
        for entry in entries {
            let held = known
                .entry(identity(entry.class, entry.frames.as_deref(), precision))
                .or_default();
            held.bytes = held.bytes.saturating_add(entry.bytes);
            held.count = held.count.saturating_add(entry.count);
        }
        Baseline { precision, known }
    }

    /// How much of each entry is new: what it holds beyond the baseline, `None` where that is nothing.
    ///
    /// Several entries can be one stack to the baseline (other addresses, other processes): together they are
    /// allowed what the baseline holds, the largest first, so that the sum of what is new is right.
    pub fn excess(&self, entries: &[Entry]) -> Vec<Option<Entry>> {
        let mut allowed = self.known.clone();
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|&at| {
            (
                std::cmp::Reverse((entries[at].bytes, entries[at].count)),
                at,
            )
        });
        let mut excess = vec![None; entries.len()];
        for at in order {
            let entry = &entries[at];
            let key = identity(entry.class, entry.frames.as_deref(), self.precision);
            excess[at] = allowed
                .get_mut(&key)
                .map_or_else(|| Some(entry.clone()), |held| held.take(entry));
        }
        excess
    }
}

impl Held {
    /// Lets `entry` have what is left here; returns what it holds beyond that.
    fn take(&mut self, entry: &Entry) -> Option<Entry> {
        let taken = Held {
            bytes: self.bytes.min(entry.bytes),
            count: self.count.min(entry.count),
        };
        self.bytes -= taken.bytes;
        self.count -= taken.count;
        let (bytes, count) = (entry.bytes - taken.bytes, entry.count - taken.count);
        // Fewer but larger blocks: the bytes are new, and something must hold them.
        (bytes > 0).then(|| Entry {
            bytes,
            count: count.max(1),
            reach: entry
                .reach
                .map(|reach| reach.within(Amount { bytes, count })),
            ..entry.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::{Frame, Function};
    use crate::model::snapshot::Class;

    fn entry(name: &str, address: u64, bytes: u64, count: u64) -> Entry {
        let function = Some(Function {
            name: name.into(),
            location: None,
        });
        let frames = Some(vec![Frame {
            address,
            function,
            ..Frame::default()
        }]);
        let class = Class::Heap;
        Entry {
            allocator: None,
            tgid: 1,
            class,
            bytes,
            count,
            oldest_ns: None,
            reach: None,
            frames,
        }
    }

    fn excess(old: &[Entry], new: &[Entry]) -> Vec<Option<(u64, u64)>> {
        let excess = Baseline::new(old, Precision::Function).excess(new);
        excess
            .into_iter()
            .map(|entry| entry.map(|entry| (entry.bytes, entry.count)))
            .collect()
    }

    #[test]
    fn only_what_is_new_or_grew_remains() {
        let old = [
            entry("a", 1, 100, 10),
            entry("b", 2, 50, 5),
            entry("gone", 3, 7, 1),
        ];
        let new = [
            entry("new", 9, 3, 1),
            entry("a", 11, 100, 10),
            entry("b", 12, 70, 7),
        ];
        assert_eq!(excess(&old, &new), [Some((3, 1)), None, Some((20, 2))]);
    }

    #[test]
    fn entries_that_are_one_stack_share_the_baseline() {
        let old = [entry("a", 1, 60, 6), entry("a", 2, 40, 4)];
        assert_eq!(
            excess(&old, &[entry("a", 5, 30, 3), entry("a", 6, 90, 9)]),
            [Some((20, 2)), None]
        );
        assert_eq!(excess(&old, &[entry("a", 5, 100, 1)]), [None]);
        assert_eq!(excess(&old, &[entry("a", 5, 130, 2)]), [Some((30, 1))]);
    }

    #[test]
    fn nothing_is_known_to_an_empty_baseline() {
        assert_eq!(excess(&[], &[entry("a", 1, 1, 1)]), [Some((1, 1))]);
    }
}
