//! The maps become Snapshots: blocks, totals, stacks, what was lost, and calls. Reads only; which blocks belong to a
//! snapshot, and how they are summed up, is decided in `usage`.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapFlags};

use super::sampling::Weight;
use super::skel::{self, types};
use super::usage::{self, Filter};
use super::{Tracer, batch, kernel_events};
use crate::model::call::Call;
use crate::model::capture::Sampling;
use crate::model::losses::{CutStacks, Losses};
use crate::model::snapshot::{Class, Snapshot, Stack, StackId};
use crate::probes::Probe;

/// A block that a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveBlock {
    /// Where it begins.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// What kind of memory it is.
    pub class: Class,
    /// The stack that allocated it.
    pub stack: StackId,
    /// When it was allocated, in ns of CLOCK_MONOTONIC: which block of several at that address it is.
    pub time_ns: u64,
}

impl Tracer<'_> {
    /// What is outstanding. `now_ns` is the time of the snapshot on CLOCK_MONOTONIC: blocks that are
    /// allocated while the maps are being read do not belong to it.
    ///
    /// # Errors
    /// Fails when a map can't be read.
    pub fn snapshot(&mut self, now_ns: u64, filter: &Filter) -> Result<Snapshot> {
        self.events.drain()?;
        let mut usage = usage::Tally::new(
            now_ns,
            filter,
            Weight::of(self.config.sampling),
            &self.finished,
        );
        // totals can't tell which of their blocks an exec has done away with
        if self.config.combined && self.executed.is_empty() {
            read_combined(&mut self.skel.maps, &mut usage)?;
        } else {
            self.read_blocks(&mut usage)?;
        }
        usage.add_ranges(&self.events.ranges());
        Ok(Snapshot {
            monotonic_ns: now_ns,
            usage: usage.finish(),
            estimated: self.config.sampling != Sampling::All,
            losses: self.losses(),
            ..Snapshot::default()
        })
    }

    /// What a process holds, block by block, the youngest as well, in no particular order.
    ///
    /// # Errors
    /// Fails when a map can't be read.
    pub fn live_blocks(&mut self, tgid: u32) -> Result<Vec<LiveBlock>> {
        self.events.drain()?;
        let executed_ns = self.executed.get(&tgid).copied().unwrap_or(0);
        let mut blocks = Vec::new();
        batch::for_each(
            &self.skel.maps.allocs,
            |key: &types::block_key, block: &types::block| {
                if key.tgid == tgid && block.time_ns >= executed_ns {
                    blocks.push(LiveBlock {
                        address: key.address,
                        size: block.size,
                        class: Class::Heap,
                        stack: self.finished.identity(StackId(block.stack)),
                        time_ns: block.time_ns,
                    });
                }
            },
        )?;
        let ranges = self.events.ranges();
        let ranges = ranges.iter().filter(|(owner, ..)| *owner == tgid);
        blocks.extend(ranges.map(|(_, start, piece)| LiveBlock {
            address: start,
            size: piece.end - start,
            class: Class::Mmap,
            stack: self.finished.identity(StackId(piece.stack)),
            time_ns: piece.time_ns,
        }));
        Ok(blocks)
    }

    /// The addresses of a stack; none when it was not stored.
    ///
    /// # Errors
    /// Fails when the map can't be read.
    pub fn stack(&self, id: StackId) -> Result<Option<Stack>> {
        if id == StackId::NOT_STORED {
            return Ok(None);
        }
        Ok(self.read_stack(id)?.map(|stack| {
            let depth = (stack.depth as usize).min(stack.addresses.len());
            stack.addresses[..depth].to_vec()
        }))
    }

    fn read_stack(&self, id: StackId) -> Result<Option<types::stack>> {
        if let Some(stack) = self.finished.stack(id) {
            return Ok(Some(*stack));
        }
        let value = self
            .skel
            .maps
            .stack_traces
            .lookup(&id.0.to_ne_bytes(), MapFlags::ANY)
            .context("failed to read a stack")?;
        Ok(value.and_then(|bytes| plain::from_bytes::<types::stack>(&bytes).ok().copied()))
    }

    /// The allocator that a stack calls; none for the C library's, and where the stack is not known.
    ///
    /// # Errors
    /// Fails when the map can't be read.
    pub fn allocator(&mut self, id: StackId) -> Result<Option<Arc<str>>> {
        // with one allocator there is nothing to look up
        if self.allocators.is_empty() || id == StackId::NOT_STORED {
            return Ok(None);
        }
        let number = match self.allocator_of.get(&id) {
            Some(number) => *number,
            None => {
                let number = self.read_stack(id)?.map_or(0, |stack| stack.allocator);
                self.allocator_of.insert(id, number);
                number
            }
        };
        let index = (number as usize).checked_sub(1);
        Ok(index.and_then(|index| self.allocators.get(index).cloned()))
    }

    /// The slab cache that a stack of the kernel allocates from, where the kernel tells.
    ///
    /// # Errors
    /// Fails when the map can't be read.
    pub fn cache_of(&self, id: StackId) -> Result<Option<String>> {
        let value = self
            .skel
            .maps
            .stack_caches
            .lookup(&id.0.to_ne_bytes(), MapFlags::ANY)
            .context("failed to read a cache's name")?;
        Ok(value.and_then(|bytes| kernel_events::cache_name(&bytes)))
    }

    /// Takes the calls that were made since the last time, oldest first.
    ///
    /// # Errors
    /// Fails when the ring can't be read.
    pub fn take_calls(&mut self) -> Result<Vec<Call>> {
        self.events.drain()?;
        Ok(self.events.take_calls(|row| {
            if self.config.kernel.is_some() {
                return kernel_events::name(row).to_owned();
            }
            self.functions
                .get(row as usize)
                .map_or_else(|| format!("#{row}"), Probe::names)
        }))
    }

    /// Pages of processes and files that are counted, but not recorded.
    pub fn counted_user_pages(&self) -> u64 {
        let data = self.skel.maps.bss_data.as_deref();
        data.map_or(0, |data| data.user_pages_counted)
    }

    /// Processes that the only one traced has started.
    pub fn children_started(&self) -> u64 {
        let data = self.skel.maps.bss_data.as_deref();
        data.map_or(0, |data| data.children_started)
    }

    /// What was lost so far.
    pub fn losses(&self) -> Losses {
        let Some(data) = self.skel.maps.bss_data.as_deref() else {
            return Losses::default();
        };
        let lost = data.lost;
        Losses {
            allocations: lost.blocks,
            allocation_bytes: lost.block_bytes,
            stacks: lost.stacks,
            ranges: lost.ranges,
            mappings: 0,
            late_processes: 0,
            silent: 0,
            files: 0,
            interpreted: data.interpreted_lost.iter().sum::<u64>()
                + self.finished.interpreted_lost(),
            calls: lost.calls,
            threads: lost.threads,
            missed_frees: lost.missed_frees,
            unseen_frees: self.unseen_frees,
            unfollowed: lost.unfollowed,
            in_handlers: lost.in_handlers,
            processes: lost.processes,
            lives: lost.lives,
            events: kernel_events::missed(&self.skel.progs),
            cut: cut_stacks(&data.stacks_cut).plus(self.finished.cut()),
        }
    }

    /// Reads block by block, and removes those of programs that have been replaced by exec.
    fn read_blocks(&self, usage: &mut usage::Tally<'_>) -> Result<()> {
        let allocs = &self.skel.maps.allocs;
        let mut gone = Vec::new();
        batch::for_each(
            allocs,
            |key: &types::block_key, block: &types::block| match self.executed.get(&key.tgid) {
                Some(before_ns) if block.time_ns < *before_ns => gone.push(*key),
                _ => usage.add_block(key, block),
            },
        )?;
        for key in gone {
            match allocs.delete(&bytes_of(&key)) {
                Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => {
                    return Err(error).context("failed to remove a block");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reads the totals as of one moment: changes go to the slot that the epoch names, so once the epoch
/// has moved on, the slot that it left has come to rest.
fn read_combined(maps: &mut skel::MemleakMaps<'_>, usage: &mut usage::Tally<'_>) -> Result<()> {
    let map = &maps.combined_allocs;
    let data = maps
        .bss_data
        .as_deref_mut()
        .context("the programs' data is missing")?;
    let left = (data.epoch & 1) as usize;
    usage::add_slot(map, 1 - left, usage)?;
    data.epoch = data.epoch.wrapping_add(1);
    usage::add_settled_slot(map, left, usage)
}

fn cut_stacks(counts: &[u64]) -> CutStacks {
    let count = |end: types::stack_end| counts.get(end.0 as usize).copied().unwrap_or(0);
    CutStacks {
        depth: count(types::stack_end::STACK_DEPTH),
        unknown_code: count(types::stack_end::STACK_UNKNOWN_CODE),
        unsupported: count(types::stack_end::STACK_UNSUPPORTED),
        unreadable: count(types::stack_end::STACK_UNREADABLE),
        frame_pointer: count(types::stack_end::STACK_FRAME_POINTER),
    }
}

/// A key as libbpf-rs takes it.
pub(super) fn bytes_of(key: &types::block_key) -> [u8; size_of::<types::block_key>()] {
    let mut bytes = [0; size_of::<types::block_key>()];
    bytes[..8].copy_from_slice(&key.address.to_ne_bytes());
    bytes[8..12].copy_from_slice(&key.tgid.to_ne_bytes());
    bytes
}
