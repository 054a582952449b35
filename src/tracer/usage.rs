//! From what the maps hold to usage per stack: blocks and ranges are summed up while they are read, so that
//! a million live blocks need no second copy in memory.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Result;
use libbpf_rs::MapCore;

use super::batch;
use super::ranges::Ranges;
use super::skel::types;
use crate::snapshot::{Allocation, Class, StackId, Usage};

/// Passes over the totals to wait for programs that were under way when the epoch moved on. One is nearly
/// always enough: a program runs for about a microsecond.
const MAX_PASSES: usize = 100;

/// Which blocks belong to a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Leave out blocks younger than this.
    pub older: Duration,
    /// Only these threads' blocks; empty: all.
    pub tids: Vec<u32>,
    /// List each block.
    pub allocations: bool,
}

type Key = (u32, Class, StackId);

/// Sums under way.
pub struct Tally<'a> {
    now_ns: u64,
    filter: &'a Filter,
    weight: f64,
    usage: HashMap<Key, Sum>,
}

#[derive(Default)]
struct Sum {
    bytes: i64,
    count: i64,
    oldest_ns: Option<u64>,
    allocations: Vec<Allocation>,
}

impl<'a> Tally<'a> {
    /// Begins. Each recorded block stands for `weight` of its kind.
    pub fn new(now_ns: u64, filter: &'a Filter, weight: f64) -> Self {
        Self {
            now_ns,
            filter,
            weight,
            usage: HashMap::new(),
        }
    }

    /// Adds a block, if it belongs to the snapshot.
    pub fn add_block(&mut self, key: &types::block_key, block: &types::block) {
        let group = (key.tgid, Class::Heap, StackId(block.stack));
        let Some(age_ns) = self.age(block.time_ns, block.tid) else {
            return;
        };
        let allocation = Allocation {
            address: key.address,
            size: block.size,
            tid: block.tid,
            age_ns,
        };
        self.add(group, allocation, 1);
    }

    /// Adds the anonymous mappings. They are never sampled.
    pub fn add_ranges(&mut self, ranges: &Ranges) {
        let mut counted = HashSet::new();
        for (tgid, start, piece) in ranges.iter() {
            let Some(age_ns) = self.age(piece.time_ns, piece.tid) else {
                continue;
            };
            let allocation = Allocation {
                address: start,
                size: piece.end - start,
                tid: piece.tid,
                age_ns,
            };
            // a mapping with a hole is still one
            let count = i64::from(counted.insert(piece.mapping));
            let group = (tgid, Class::Mmap, StackId(piece.stack));
            self.add(group, allocation, count);
        }
    }

    /// The sums, for stacks that hold anything.
    pub fn finish(self) -> Vec<Usage> {
        let weight = self.weight;
        let scale = |figure: i64, class| match class {
            Class::Heap => (figure.max(0) as f64 * weight).round() as u64,
            Class::Mmap => figure.max(0).cast_unsigned(),
        };
        self.usage
            .into_iter()
            .filter(|(_, sum)| sum.count > 0)
            .map(|((tgid, class, stack), mut sum)| {
                sum.allocations.sort_by_key(|allocation| allocation.address);
                Usage {
                    tgid,
                    class,
                    stack,
                    bytes: scale(sum.bytes, class),
                    count: scale(sum.count, class),
                    oldest_ns: sum.oldest_ns,
                    turnover: None,
                    allocations: sum.allocations,
                }
            })
            .collect()
    }

    /// The age of what was allocated at a time by a thread; none when it is not part of the snapshot.
    fn age(&self, time_ns: u64, tid: u32) -> Option<u64> {
        let age_ns = self.now_ns.checked_sub(time_ns)?;
        let old = u128::from(age_ns) >= self.filter.older.as_nanos();
        let wanted = self.filter.tids.is_empty() || self.filter.tids.contains(&tid);
        (old && wanted).then_some(age_ns)
    }

    fn add(&mut self, group: Key, allocation: Allocation, count: i64) {
        let sum = self.usage.entry(group).or_default();
        sum.bytes += allocation.size.cast_signed();
        sum.count += count;
        sum.oldest_ns = sum.oldest_ns.max(Some(allocation.age_ns));
        if self.filter.allocations {
            sum.allocations.push(allocation);
        }
    }
}

/// Adds one slot of all totals.
pub fn add_slot(map: &impl MapCore, slot: usize, tally: &mut Tally<'_>) -> Result<()> {
    for (key, (bytes, count)) in read_slot(map, slot)? {
        let sum = tally.usage.entry(key).or_default();
        sum.bytes += bytes;
        sum.count += count;
    }
    Ok(())
}

/// Adds a slot that takes no more changes, once those under way have arrived.
pub fn add_settled_slot(map: &impl MapCore, slot: usize, tally: &mut Tally<'_>) -> Result<()> {
    let mut settled = read_slot(map, slot)?;
    for _ in 0..MAX_PASSES {
        let again = read_slot(map, slot)?;
        if again == settled {
            break;
        }
        settled = again;
    }
    for (key, (bytes, count)) in settled {
        let sum = tally.usage.entry(key).or_default();
        sum.bytes += bytes;
        sum.count += count;
    }
    Ok(())
}

fn read_slot(map: &impl MapCore, slot: usize) -> Result<HashMap<Key, (i64, i64)>> {
    let mut totals = HashMap::new();
    batch::for_each(map, |key: &types::combined_key, value: &types::combined| {
        totals.insert(
            (key.tgid, Class::Heap, StackId(key.stack)),
            (value.bytes[slot], value.count[slot]),
        );
    })?;
    Ok(totals)
}
