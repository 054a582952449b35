//! Which stacks a report shows, and in which order.
//! Equal snapshots give equal rankings: every tie is broken.

use std::cmp::Ordering;

use crate::cli::SortKey;
use crate::snapshot::{Allocation, Snapshot, StackId, Usage};

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
    pub allocations: Vec<(StackId, Allocation)>,
}

/// Ranks what is outstanding and keeps the `top` largest.
pub fn rank(snapshot: &Snapshot, sort: SortKey, top: usize) -> Ranking {
    let sum = |figure: fn(&Usage) -> u64| {
        snapshot
            .usage
            .iter()
            .fold(0u64, |sum, usage| sum.saturating_add(figure(usage)))
    };
    let mut shown: Vec<Usage> = snapshot.usage.clone();
    shown.sort_by(|one, other| compare(one, other, sort));
    shown.drain(..shown.len().saturating_sub(top));
    let blocks = |usage: &'_ Usage| {
        let stack = usage.stack;
        let listed = usage.allocations.clone().into_iter();
        listed.map(move |allocation| (stack, allocation))
    };
    let mut allocations: Vec<_> = snapshot.usage.iter().flat_map(blocks).collect();
    allocations.sort_by_key(|(_, block)| (block.size, block.address, block.tid));
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
    use crate::snapshot::Class;

    fn usage(stack: u64, bytes: u64, count: u64) -> Usage {
        Usage {
            tgid: 1,
            class: Class::Heap,
            stack: StackId(stack),
            bytes,
            count,
            oldest_ns: None,
            turnover: None,
            allocations: Vec::new(),
        }
    }

    fn stacks(usage: &[Usage], sort: SortKey, top: usize) -> Vec<u64> {
        let snapshot = Snapshot {
            usage: usage.to_vec(),
            ..Snapshot::default()
        };
        let ranking = rank(&snapshot, sort, top);
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
        let ranking = rank(&snapshot, SortKey::Size, 1);
        assert_eq!(ranking.total_stacks, 2);
        assert_eq!(ranking.total_bytes, 40);
        assert_eq!(ranking.total_count, 10);
    }
}
