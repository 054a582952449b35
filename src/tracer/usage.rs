//! From what the maps hold to usage per stack: blocks and ranges are summed up while they are read, so that
//! a million live blocks need no second copy in memory.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::Result;
use libbpf_rs::MapCore;
use rustc_hash::FxHashMap;

use super::batch;
use super::deferred::FinishedStacks;
use super::ranges::Ranges;
use super::sampling::Weight;
use super::skel::types;
use crate::model::snapshot::{Allocation, Amount, Class, Reach, StackId, Usage};
use crate::reachability::State;

/// Passes over the totals to wait for programs that were under way when the epoch moved on. One is nearly
/// always enough: a program runs for about a microsecond.
const MAX_PASSES: usize = 100;

/// Which blocks belong to a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Leave out blocks younger than this.
    pub older: Duration,
    /// Processes that have ended, with when, in ns of CLOCK_MONOTONIC: nothing of theirs is young, and what came later under
    /// their number is another's.
    pub ended: BTreeMap<u32, u64>,
    /// Only what the ended processes hold.
    pub ended_only: bool,
    /// Only these threads' blocks; empty: all.
    pub tids: Vec<u32>,
    /// List each block.
    pub allocations: bool,
    /// Whether the program can reach each block, as far as that was looked at.
    pub states: Option<States>,
}

/// Of blocks, by process and address, when they were allocated, in ns of CLOCK_MONOTONIC, and whether the program can reach
/// them.
pub type States = FxHashMap<(u32, u64), (u64, State)>;

type Key = (u32, Class, StackId);

/// Sums under way.
pub struct Tally<'a> {
    now_ns: u64,
    filter: &'a Filter,
    weight: Weight,
    finished: &'a FinishedStacks,
    // looked up once a block, a million times a report: SipHash would be a tenth of its cost
    usage: FxHashMap<Key, Sum>,
}

#[derive(Default)]
struct Sum {
    // exact, as integers; totals can be negative in one slot and positive in the other
    bytes: i64,
    count: i64,
    // and estimated, where blocks stand for more than themselves
    estimated_bytes: f64,
    estimated_count: f64,
    oldest_ns: Option<u64>,
    reach: Shares,
    allocations: Vec<Allocation>,
}

/// Bytes and blocks by state: lost, lost indirectly, undecided. Each block counts for as many as it stands for.
type Shares = [[f64; 2]; 3];

impl<'a> Tally<'a> {
    /// Begins. Each recorded block stands for as many as `weight` says, and some stacks' identities for those of
    /// `finished` ones.
    pub fn new(
        now_ns: u64,
        filter: &'a Filter,
        weight: Weight,
        finished: &'a FinishedStacks,
    ) -> Self {
        Self {
            now_ns,
            filter,
            weight,
            finished,
            usage: FxHashMap::default(),
        }
    }

    /// Adds a block, if it belongs to the snapshot.
    pub fn add_block(&mut self, key: &types::block_key, block: &types::block) {
        let group = (
            key.tgid,
            class(block.function & 0xff, key.memory),
            self.finished.identity(StackId(block.stack)),
        );
        let Some(age_ns) = self.age(block.time_ns, key.tgid, block.tid) else {
            return;
        };
        let allocation = Allocation {
            address: key.address,
            size: block.size,
            tid: block.tid,
            age_ns,
        };
        let weight = self.weight.of_size(block.size);
        let state = self.state(key.tgid, key.address, block.time_ns);
        let sum = self.add(group, allocation, 1);
        sum.add_share(state, block.size as f64 * weight, weight);
        sum.estimated_bytes += block.size as f64 * weight;
        sum.estimated_count += weight;
    }

    /// Adds the anonymous mappings. They are never sampled.
    pub fn add_ranges(&mut self, ranges: &Ranges) {
        let mut counted = HashSet::new();
        for (tgid, start, piece) in ranges.iter() {
            let Some(age_ns) = self.age(piece.time_ns, tgid, piece.tid) else {
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
            let group = (
                tgid,
                Class::Mmap,
                self.finished.identity(StackId(piece.stack)),
            );
            let state = self.state(tgid, start, piece.time_ns);
            let sum = self.add(group, allocation, count);
            sum.add_share(state, allocation.size as f64, count as f64);
        }
    }

    /// What is known of a block: the one that was allocated then, not another that had its address before.
    fn state(&self, tgid: u32, address: u64, time_ns: u64) -> Option<State> {
        let (of_ns, state) = self.filter.states.as_ref()?.get(&(tgid, address))?;
        (*of_ns == time_ns).then_some(*state)
    }

    /// The sums, for stacks that hold anything.
    pub fn finish(self) -> Vec<Usage> {
        let weight = self.weight;
        let looked = self.filter.states.is_some();
        let figures = |sum: &Sum, class| match (class, weight) {
            (Class::Mmap, _) | (_, Weight::One) => (
                sum.bytes.max(0).cast_unsigned(),
                sum.count.max(0).cast_unsigned(),
            ),
            _ => (
                sum.estimated_bytes.round() as u64,
                sum.estimated_count.round() as u64,
            ),
        };
        self.usage
            .into_iter()
            .filter(|(_, sum)| sum.count > 0)
            .map(|((tgid, class, stack), mut sum)| {
                sum.allocations.sort_by_key(|allocation| allocation.address);
                let (bytes, count) = figures(&sum, class);
                let reach = looked.then(|| sum.reach().within(Amount { bytes, count }));
                Usage {
                    tgid,
                    class,
                    stack,
                    bytes,
                    count,
                    oldest_ns: sum.oldest_ns,
                    reach,
                    allocations: sum.allocations,
                }
            })
            .collect()
    }

    /// The age of what was allocated at a time by a process's thread; none when it is not part of the snapshot.
    fn age(&self, time_ns: u64, tgid: u32, tid: u32) -> Option<u64> {
        let age_ns = self.now_ns.checked_sub(time_ns)?;
        let filter = self.filter;
        let ended_ns = filter.ended.get(&tgid);
        if ended_ns.is_some_and(|ended_ns| time_ns > *ended_ns) {
            return None;
        }
        let ended = ended_ns.is_some();
        let old = ended || u128::from(age_ns) >= filter.older.as_nanos();
        let wanted = filter.tids.is_empty() || filter.tids.contains(&tid);
        (old && wanted && (ended || !filter.ended_only)).then_some(age_ns)
    }

    fn add(&mut self, group: Key, allocation: Allocation, count: i64) -> &mut Sum {
        let sum = self.usage.entry(group).or_default();
        sum.bytes += allocation.size.cast_signed();
        sum.count += count;
        sum.oldest_ns = sum.oldest_ns.max(Some(allocation.age_ns));
        if self.filter.allocations {
            sum.allocations.push(allocation);
        }
        sum
    }

    /// Adds one slot of a stack's totals.
    fn add_totals(&mut self, group: Key, bytes: i64, count: i64) {
        if self.filter.ended_only && !self.filter.ended.contains_key(&group.0) {
            return;
        }
        let weight = self.weight.of_size(1);
        let sum = self.usage.entry(group).or_default();
        sum.bytes += bytes;
        sum.count += count;
        sum.estimated_bytes += bytes as f64 * weight;
        sum.estimated_count += count as f64 * weight;
    }
}

impl Sum {
    fn add_share(&mut self, state: Option<State>, bytes: f64, count: f64) {
        let share = match state {
            Some(State::Lost) => &mut self.reach[0],
            Some(State::LostIndirectly) => &mut self.reach[1],
            Some(State::Undecided) => &mut self.reach[2],
            Some(State::Held) | None => return,
        };
        share[0] += bytes;
        share[1] += count;
    }

    fn reach(&self) -> Reach {
        let [lost, lost_indirectly, undecided] = self.reach.map(|[bytes, count]| Amount {
            bytes: bytes.round() as u64,
            count: count.round() as u64,
        });
        Reach {
            lost,
            lost_indirectly,
            undecided,
        }
    }
}

/// Adds one slot of all totals.
pub fn add_slot(map: &impl MapCore, slot: usize, tally: &mut Tally<'_>) -> Result<()> {
    for (key, (bytes, count)) in read_slot(map, slot)? {
        tally.add_totals(key, bytes, count);
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
        tally.add_totals(key, bytes, count);
    }
    Ok(())
}

/// `kernel` is what the programs call a block of the kernel; `space` tells whether it is one.
fn class(kernel: u32, space: u32) -> Class {
    use types::memory;
    if memory(space) == memory::MEMORY_HEAP {
        return Class::Heap;
    }
    match memory(kernel) {
        memory::MEMORY_PAGES => Class::Page,
        memory::MEMORY_PERCPU => Class::Percpu,
        memory::MEMORY_USER_PAGES => Class::UserPages,
        _ => Class::Slab,
    }
}

fn read_slot(map: &impl MapCore, slot: usize) -> Result<FxHashMap<Key, (i64, i64)>> {
    let mut totals = FxHashMap::default();
    batch::for_each(map, |key: &types::combined_key, value: &types::combined| {
        totals.insert(
            (key.tgid, class(key.memory, key.memory), StackId(key.stack)),
            (value.bytes[slot], value.count[slot]),
        );
    })?;
    Ok(totals)
}
