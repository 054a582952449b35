//! Which stacks a report shows, and in which order.
//! Equal snapshots give equal rankings: every tie is broken.

use std::cmp::Ordering;
use std::collections::HashMap;

use clap::ValueEnum;

use crate::model::snapshot::{Allocation, Snapshot, StackId, Usage};

/// What ranks the stacks of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortKey {
    /// outstanding bytes
    Size,
    /// outstanding allocations
    Count,
}

/// A block, with the process that owns it and the stack that allocated it.
pub type Listed = (u32, StackId, Allocation);

/// How many of what a report shows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Stacks; of each process, if processes are told apart.
    pub stacks: usize,
    /// Processes, those that hold most; none: processes are not told apart.
    pub processes: Option<usize>,
}

impl Limits {
    /// Keeps what is to be shown of items that are ordered smallest first. `of` gives an item's process and bytes.
    pub fn cut<T>(self, items: &mut Vec<T>, of: impl Fn(&T) -> (u32, u64)) {
        let Some(processes) = self.processes else {
            items.drain(..items.len().saturating_sub(self.stacks));
            return;
        };
        let mut held: HashMap<u32, u64> = HashMap::new();
        for (tgid, bytes) in items.iter().map(&of) {
            let sum = held.entry(tgid).or_default();
            *sum = sum.saturating_add(bytes);
        }
        let mut largest: Vec<(u64, u32)> =
            held.into_iter().map(|(tgid, sum)| (sum, tgid)).collect();
        largest.sort_unstable_by(|one, other| other.cmp(one));
        let mut left: HashMap<u32, usize> = largest
            .into_iter()
            .take(processes)
            .map(|(_, tgid)| (tgid, self.stacks))
            .collect();
        let mut kept: Vec<bool> = items
            .iter()
            .rev()
            .map(|item| match left.get_mut(&of(item).0) {
                Some(left @ 1..) => {
                    *left -= 1;
                    true
                }
                _ => false,
            })
            .collect();
        items.retain(|_| kept.pop() == Some(true));
    }
}

/// The part of a snapshot that a report shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranking {
    /// The stacks to show, smallest first.
    pub shown: Vec<Usage>,
    /// Stacks that hold memory, shown or not.
    pub total_stacks: u64,
    /// Bytes of all of them.
    pub total_bytes: u64,
    /// Allocations of all of them.
    pub total_count: u64,
    /// All blocks with their stacks, shown or not, smallest first; empty unless they were asked for.
    pub allocations: Vec<Listed>,
}

/// Ranks what is outstanding and keeps the largest.
pub fn rank(snapshot: &Snapshot, sort: SortKey, limits: Limits) -> Ranking {
    let sum = |figure: fn(&Usage) -> u64| {
        snapshot
            .usage
            .iter()
            .fold(0u64, |sum, usage| sum.saturating_add(figure(usage)))
    };
    let mut shown: Vec<Usage> = snapshot.usage.clone();
    shown.sort_by(|one, other| compare(one, other, sort));
    limits.cut(&mut shown, |usage| (usage.tgid, usage.bytes));
    let blocks = |usage: &'_ Usage| {
        let (tgid, stack) = (usage.tgid, usage.stack);
        let listed = usage.allocations.clone().into_iter();
        listed.map(move |allocation| (tgid, stack, allocation))
    };
    let mut allocations: Vec<_> = snapshot.usage.iter().flat_map(blocks).collect();
    allocations.sort_by_key(|(tgid, _, block)| (block.size, block.address, block.tid, *tgid));
    Ranking {
        shown,
        total_stacks: snapshot.usage.len() as u64,
        total_bytes: sum(|usage| usage.bytes),
        total_count: sum(|usage| usage.count),
        allocations,
    }
}

fn compare(one: &Usage, other: &Usage, sort: SortKey) -> Ordering {
    let figures = |usage: &Usage| match sort {
        SortKey::Size => (usage.bytes, usage.count),
        SortKey::Count => (usage.count, usage.bytes),
    };
    let identity = |usage: &Usage| (usage.tgid, usage.class, usage.stack);
    figures(one)
        .cmp(&figures(other))
        .then_with(|| identity(other).cmp(&identity(one)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::Class;

    fn usage(stack: u64, bytes: u64, count: u64) -> Usage {
        Usage {
            tgid: 1,
            class: Class::Heap,
            stack: StackId(stack),
            bytes,
            count,
            oldest_ns: None,
            reach: None,
            allocations: Vec::new(),
        }
    }

    fn limits(stacks: usize, processes: Option<usize>) -> Limits {
        Limits { stacks, processes }
    }

    #[test]
    fn the_top_of_each_of_the_largest_processes_is_kept() {
        let of = |tgid, stack, bytes| Usage {
            tgid,
            ..usage(stack, bytes, 1)
        };
        let snapshot = Snapshot {
            usage: vec![
                of(1, 1, 10),
                of(1, 2, 20),
                of(1, 3, 30),
                of(2, 4, 55),
                of(3, 5, 1),
                of(3, 6, 100),
            ],
            ..Snapshot::default()
        };
        let shown = |stacks, processes| -> Vec<u64> {
            let ranking = rank(&snapshot, SortKey::Size, limits(stacks, Some(processes)));
            ranking.shown.iter().map(|usage| usage.stack.0).collect()
        };
        assert_eq!(shown(2, 3), [5, 2, 3, 4, 6]);
        assert_eq!(shown(1, 2), [3, 6]);
        assert_eq!(shown(usize::MAX, 1), [5, 6]);
    }

    fn stacks(usage: &[Usage], sort: SortKey, top: usize) -> Vec<u64> {
        let snapshot = Snapshot {
            usage: usage.to_vec(),
            ..Snapshot::default()
        };
        let ranking = rank(&snapshot, sort, limits(top, None));
        ranking.shown.iter().map(|usage| usage.stack.0).collect()
    }

    #[test]
    fn the_largest_come_last() {
        let usage = [usage(1, 30, 1), usage(2, 10, 9), usage(3, 20, 2)];
        assert_eq!(stacks(&usage, SortKey::Size, 10), [2, 3, 1]);
        assert_eq!(stacks(&usage, SortKey::Count, 10), [1, 3, 2]);
    }

    #[test]
    fn only_the_top_are_kept() {
        let usage = [usage(1, 30, 1), usage(2, 10, 9), usage(3, 20, 2)];
        assert_eq!(stacks(&usage, SortKey::Size, 2), [3, 1]);
    }

    #[test]
    fn the_order_does_not_depend_on_that_of_the_maps() {
        let mut all = vec![usage(1, 10, 1), usage(2, 10, 1), usage(3, 10, 1)];
        let order = stacks(&all, SortKey::Size, 2);
        all.reverse();
        assert_eq!(stacks(&all, SortKey::Size, 2), order);
    }

    #[test]
    fn totals_count_what_is_not_shown() {
        let snapshot = Snapshot {
            usage: vec![usage(1, 30, 1), usage(2, 10, 9)],
            ..Snapshot::default()
        };
        let ranking = rank(&snapshot, SortKey::Size, limits(1, None));
        assert_eq!(ranking.total_stacks, 2);
        assert_eq!(ranking.total_bytes, 40);
        assert_eq!(ranking.total_count, 10);
    }
}
