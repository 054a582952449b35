//! The set of traced processes that the programs keep, where there can be more than one: what belongs to it, who is in
//! it, and clearing away what ended processes leave in the maps.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use libbpf_rs::{ErrorKind, Link, MapCore, MapFlags};

use super::batch;
use super::skel::{MemleakMaps, MemleakProgs, OpenMemleakMaps, types};
use crate::process::Names;

/// Bytes of the ring that tells what happens to them: some 80,000 events, of which a process makes two or three.
const LIFE_RING_BYTES: u32 = 4 << 20;

/// Processes that can be traced at a time.
const MAX_PROCESSES: u32 = 65_536;

/// Code that was found by asking the kernel, for processes that are not described: 64 KiB each.
const FOUND_MAPPINGS: u32 = 16_384;

/// Which processes are traced besides those that are named one by one.
#[derive(Debug, Default)]
pub struct ProcessFilter {
    /// The children of traced processes.
    pub children: bool,
    /// Traced processes that execute a program which is not wanted for itself.
    pub executed: bool,
    /// Every process that executes a program.
    pub all: bool,
    /// Those that execute a program under such a name.
    pub names: Option<Names>,
    /// Those in cgroups of version 2 at fork and exec, by open folders.
    pub cgroups: Vec<OwnedFd>,
}

/// Puts the filter into the programs' constants and sizes the maps, before load.
///
/// # Errors
/// When libbpf refuses.
pub fn configure(maps: &mut OpenMemleakMaps<'_>, filter: &ProcessFilter) -> Result<()> {
    let rodata = maps
        .rodata_data
        .as_deref_mut()
        .context("the BPF object has no configuration")?;
    rodata.many_processes = true;
    rodata.follow_forks = filter.children;
    rodata.follow_execs = filter.executed;
    rodata.trace_all = filter.all;
    rodata.cgroup_count = u32::try_from(filter.cgroups.len())?;
    if let Some(names) = &filter.names {
        rodata.name_start = names.start;
        rodata.name_loops = names.loops;
        rodata.name_accept = names.accept;
        rodata.name_steps = names.steps;
    }
    maps.traced_processes.set_max_entries(MAX_PROCESSES)?;
    maps.life_events.set_max_entries(LIFE_RING_BYTES)?;
    maps.found_mappings.set_max_entries(FOUND_MAPPINGS)?;
    Ok(())
}

/// Follows processes from fork to exit, those of the filter or, without one, the only one.
///
/// # Errors
/// When the kernel refuses.
pub fn attach(
    programs: &MemleakProgs<'_>,
    maps: &MemleakMaps<'_>,
    filter: Option<&ProcessFilter>,
) -> Result<Vec<Link>> {
    let cgroups = filter.map_or(&[][..], |filter| &filter.cgroups);
    for (slot, cgroup) in (0u32..).zip(cgroups) {
        maps.traced_cgroups
            .update(
                &slot.to_ne_bytes(),
                &cgroup.as_raw_fd().to_ne_bytes(),
                MapFlags::ANY,
            )
            .context("failed to follow a cgroup")?;
    }
    [
        (&programs.process_fork, "sched_process_fork"),
        (&programs.process_exec, "sched_process_exec"),
    ]
    .into_iter()
    .map(|(program, tracepoint)| {
        program
            .attach_raw_tracepoint(tracepoint)
            .with_context(|| format!("failed to attach to the tracepoint `{tracepoint}`"))
    })
    .collect()
}

/// Adds a process to the set.
///
/// # Errors
/// When there are too many.
pub fn add(maps: &MemleakMaps<'_>, pid: u32) -> Result<()> {
    maps.traced_processes
        .update(&pid.to_ne_bytes(), &[0; 4], MapFlags::ANY)
        .with_context(|| format!("failed to trace process {pid}"))
}

/// Whether a process is in the set.
pub fn contains(maps: &MemleakMaps<'_>, pid: u32) -> bool {
    let found = maps
        .traced_processes
        .lookup(&pid.to_ne_bytes(), MapFlags::ANY);
    matches!(found, Ok(Some(_)))
}

/// The processes in the set.
pub fn all(maps: &MemleakMaps<'_>) -> BTreeSet<u32> {
    maps.traced_processes
        .keys()
        .filter_map(|key| key.try_into().ok().map(u32::from_ne_bytes))
        .collect()
}

/// Removes what processes have left in the maps that ended at a time in ns of CLOCK_MONOTONIC: their blocks, their
/// totals, and the stacks that nobody else uses. `used` are stacks that must stay.
///
/// # Errors
/// When a map can't be read or written.
pub fn clear(
    maps: &MemleakMaps<'_>,
    ended: &BTreeMap<u32, u64>,
    mut used: HashSet<u64>,
) -> Result<()> {
    let mut gone = Vec::new();
    batch::for_each(
        &maps.allocs,
        |key: &types::block_key, block: &types::block| match ended.get(&key.tgid) {
            Some(ended_ns) if block.time_ns <= *ended_ns => gone.push(*key),
            _ => {
                used.insert(block.stack);
            }
        },
    )?;
    for key in gone {
        delete(&maps.allocs, &super::read::bytes_of(&key))?;
    }
    clear_totals(maps, ended)?;
    clear_stacks(maps, ended, &used)
}

fn clear_totals(maps: &MemleakMaps<'_>, ended: &BTreeMap<u32, u64>) -> Result<()> {
    let mut totals = Vec::new();
    batch::for_each(
        &maps.combined_allocs,
        |key: &types::combined_key, _: &types::combined| {
            if ended.contains_key(&key.tgid) {
                totals.push(*key);
            }
        },
    )?;
    for key in totals {
        let mut bytes = [0; size_of::<types::combined_key>()];
        bytes[..8].copy_from_slice(&key.stack.to_ne_bytes());
        bytes[8..12].copy_from_slice(&key.tgid.to_ne_bytes());
        bytes[12..].copy_from_slice(&key.memory.to_ne_bytes());
        delete(&maps.combined_allocs, &bytes)?;
    }
    Ok(())
}

fn clear_stacks(
    maps: &MemleakMaps<'_>,
    ended: &BTreeMap<u32, u64>,
    used: &HashSet<u64>,
) -> Result<()> {
    let mut unused = Vec::new();
    batch::for_each(&maps.stack_traces, |id: &u64, stack: &types::stack| {
        if ended.contains_key(&stack.tgid) && !used.contains(id) {
            unused.push(*id);
        }
    })?;
    for id in unused {
        // another process may have come to use it while the map was read
        let now = maps
            .stack_traces
            .lookup(&id.to_ne_bytes(), MapFlags::ANY)
            .context("failed to read a stack")?;
        let still = now
            .and_then(|bytes| plain::from_bytes::<types::stack>(&bytes).ok().copied())
            .is_some_and(|stack| ended.contains_key(&stack.tgid));
        if still {
            delete(&maps.stack_traces, &id.to_ne_bytes())?;
        }
    }
    Ok(())
}

fn delete(map: &impl MapCore, key: &[u8]) -> Result<()> {
    match map.delete(key) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context("failed to clear away what an ended process has left")
        }
        _ => Ok(()),
    }
}
