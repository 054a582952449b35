//! Opens the BPF object, sets its constants and the sizes of its maps as the options ask and the kernel allows, and loads
//! it. Nothing is attached here, and no map is read.

use std::mem::MaybeUninit;

use anyhow::{Context as _, Result};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{OpenObject, PrintLevel};

use super::kernel::{self, Attachment, Features};
use super::skel::{MemleakSkel, MemleakSkelBuilder, OpenMemleakSkel, types};
use super::{Config, attach, kernel_events, processes, sampling};
use crate::model::capture::{Sampling, Unwind};
use crate::stderr;

/// Bytes of the ring of changes of mappings, of 88 bytes each: a busy machine may keep memleak from its ring for some 300 ms,
/// while a program changes 70,000 a second.
const RANGE_RING_BYTES: u32 = 2 << 20;

/// Bytes of the ring of calls, when they are traced.
const CALL_RING_BYTES: u32 = 4 << 20;

/// Bytes of the ring of walks that wait for tables. Each takes some 12 KiB, and a program that starts can make a thousand
/// of them before memleak gets the processor; one that runs has loaded most of its libraries.
const DEFERRED_RING_BYTES: u32 = 1 << 20;
const DEFERRED_RING_BYTES_AT_START: u32 = 16 << 20;

/// Bytes that may be spent on counting pages of processes and files: one for each page frame.
const MAX_FRAME_BYTES: u64 = 64 << 20;

/// Where a tracer's BPF object lives: it must not move while it is loaded. There are places for others, should the
/// kernel refuse the first.
pub struct Storage {
    first: MaybeUninit<OpenObject>,
    second: MaybeUninit<OpenObject>,
    third: MaybeUninit<OpenObject>,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            first: MaybeUninit::uninit(),
            second: MaybeUninit::uninit(),
            third: MaybeUninit::uninit(),
        }
    }
}

/// How a loaded tracer unwinds stacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unwinder {
    /// With tables.
    Tables,
    /// By frame pointers, as was asked for.
    FramePointers,
    /// By frame pointers, for tables can't be had here: why.
    NoTables(String),
}

/// Loads the programs with the unwinder that was asked for, or that the kernel takes.
pub fn load_unwinder<'obj>(
    storage: &'obj mut Storage,
    features: Features,
    config: &Config,
) -> Result<(MemleakSkel<'obj>, Unwinder)> {
    let Storage {
        first,
        second,
        third,
    } = storage;
    if config.unwind == Unwind::FramePointers {
        let skel = load_programs(first, features, config, Uses::NOTHING)?;
        return Ok((skel, Unwinder::FramePointers));
    }
    // what follows interpreters, which knows one machine, is refused apart
    if cfg!(target_arch = "x86_64")
        && config.kernel.is_none()
        && kernel::has_helper("BPF_FUNC_find_vma")?
        && let Ok(skel) = load_programs(first, features, config, Uses::ALL)
    {
        return Ok((skel, Unwinder::Tables));
    }
    match load_programs(second, features, config, Uses::TABLES) {
        Ok(skel) => Ok((skel, Unwinder::Tables)),
        Err(why) => without_tables(third, features, config, why),
    }
}

/// What programs make use of.
#[derive(Clone, Copy)]
struct Uses {
    tables: bool,
    interpreters: bool,
}

impl Uses {
    const NOTHING: Uses = Uses {
        tables: false,
        interpreters: false,
    };
    const TABLES: Uses = Uses {
        tables: true,
        interpreters: false,
    };
    const ALL: Uses = Uses {
        tables: true,
        interpreters: true,
    };
}

/// Loads the programs without tables, if that is not what was asked for.
fn without_tables<'obj>(
    place: &'obj mut MaybeUninit<OpenObject>,
    features: Features,
    config: &Config,
    why: anyhow::Error,
) -> Result<(MemleakSkel<'obj>, Unwinder)> {
    if config.unwind == Unwind::Tables {
        return Err(
            why.context("failed to unwind with tables (--unwind fp and --unwind auto do without)")
        );
    }
    let skel = load_programs(place, features, config, Uses::NOTHING)?;
    Ok((skel, Unwinder::NoTables(format!("{why:#}"))))
}

fn load_programs<'obj>(
    place: &'obj mut MaybeUninit<OpenObject>,
    features: Features,
    config: &Config,
    uses: Uses,
) -> Result<MemleakSkel<'obj>> {
    let mut open = MemleakSkelBuilder::default()
        .open(place)
        .context("failed to open the BPF object")?;
    configure(&mut open, features, config, uses)?;
    open.load().context("failed to load the BPF programs")
}

fn configure(
    open: &mut OpenMemleakSkel<'_>,
    features: Features,
    config: &Config,
    Uses {
        tables,
        interpreters,
    }: Uses,
) -> Result<()> {
    let rodata = open
        .maps
        .rodata_data
        .as_deref_mut()
        .context("the BPF object has no configuration")?;
    (rodata.min_size, rodata.max_size) = config.sizes;
    rodata.max_throwing_size = config.max_throwing_size;
    match config.sampling {
        Sampling::All => {}
        Sampling::Rate(rate) => rodata.sample_below = sampling::threshold(rate),
        Sampling::Bytes(mean) => {
            rodata.sample_distance = sampling::distance(mean);
            rodata.log2_table = sampling::log2_table();
        }
    }
    rodata.max_stack_depth = config.max_depth;
    rodata.count_combined = config.combined;
    rodata.track_mappings = config.mappings;
    rodata.trace_calls = config.calls;
    rodata.unwind_with_tables = tables;
    rodata.walk_interpreters = interpreters;
    rodata.can_find_mappings = kernel::has_helper("BPF_FUNC_find_vma")?;
    // totals can't be given to another stack later; of several processes, some may never be described
    let will_be_known = rodata.can_find_mappings || config.processes.is_none();
    rodata.defer_walks = tables && will_be_known && !config.combined;
    let defer_walks = rodata.defer_walks;
    rodata.can_read_registers = kernel::has_helper("BPF_FUNC_task_pt_regs")?;
    rodata.return_trap_is_optional = features.attachment == Attachment::Session;
    rodata.has_task_storage = features.task_storage;
    rodata.trace_kernel = config.kernel.is_some();
    rodata.single_tgid = config.single.map_or(0, |single| single.pid);
    rodata.filter_single = config.single.is_some_and(|single| !single.kept_apart);
    rodata.own_tgid = std::process::id();
    rodata.pid_namespace = kernel::pid_namespace()?;
    if let Some(events) = &config.kernel {
        let code = &events.code;
        kernel_events::set_ranges(&mut rodata.interrupt_entries, &code.interrupts);
        kernel_events::set_ranges(
            std::slice::from_mut(&mut rodata.system_call),
            code.system_call.as_slice(),
        );
        if let Some(table) = &code.unwind_table {
            rodata.orc_table.addresses = table.addresses.start;
            rodata.orc_table.entries = table.entries;
            rodata.orc_table.count = (table.addresses.end - table.addresses.start) / 4;
        }
        if !events.user_pages {
            rodata.frame_chunks = frame_chunks(kernel::page_frames()?);
        }
    }
    let frame_chunks = rodata.frame_chunks;
    rodata.page_bytes = u32::try_from(rustix::param::page_size())?;

    if let Some(filter) = &config.processes {
        processes::configure(&mut open.maps, filter)?;
    }
    let maps = &mut open.maps;
    maps.allocs.set_max_entries(config.max_allocations)?;
    maps.stack_traces.set_max_entries(config.max_stacks)?;
    if !tables {
        // nothing is looked for in them, so they need hold nothing
        maps.unwind_blocks.set_max_entries(1)?;
        maps.unwind_pages.set_max_entries(1)?;
        maps.unwind_files.set_max_entries(1)?;
    }
    if !interpreters {
        maps.code_numbers.set_max_entries(1)?;
        maps.code_pieces.set_max_entries(1)?;
    }
    // and one for all stacks that found no room
    let totals = if config.combined {
        config.max_stacks.saturating_add(1)
    } else {
        1
    };
    maps.combined_allocs.set_max_entries(totals)?;
    if defer_walks {
        maps.deferred_walks
            .set_max_entries(match config.from_start {
                true => DEFERRED_RING_BYTES_AT_START,
                false => DEFERRED_RING_BYTES,
            })?;
    }
    if config.calls {
        maps.call_events.set_max_entries(CALL_RING_BYTES)?;
    }
    if config.mappings && config.kernel.is_none() {
        maps.range_events.set_max_entries(RANGE_RING_BYTES)?;
    }

    maps.threads.set_autocreate(features.task_storage)?;
    maps.interpreter_walks.set_autocreate(interpreters)?;
    maps.threads_by_id.set_autocreate(!features.task_storage)?;
    maps.idle_thread.set_autocreate(!features.task_storage)?;
    maps.user_frames.set_max_entries(frame_chunks.max(1))?;
    if config.kernel.is_some() {
        maps.stack_caches.set_max_entries(config.max_stacks)?;
    } else {
        maps.stack_caches.set_max_entries(1)?;
        maps.known_stacks.set_max_entries(1)?;
        maps.frame_rules.set_max_entries(1)?;
    }
    // in the middle of the kernel's allocators nothing may be allocated
    if !features.growing_maps || config.kernel.is_some() {
        maps.allocs.set_map_flags(0)?;
        maps.traced_processes.set_map_flags(0)?;
        maps.unwind_files.set_map_flags(0)?;
        maps.code_changes.set_map_flags(0)?;
        maps.code_numbers.set_map_flags(0)?;
        maps.code_pieces.set_map_flags(0)?;
        maps.stack_traces.set_map_flags(0)?;
        maps.combined_allocs.set_map_flags(0)?;
    }

    for mut program in open.open_object_mut().progs_mut() {
        let name = program.name().to_string_lossy();
        let wanted = match &config.kernel {
            Some(events) => events.uses(&name, features),
            None if matches!(&*name, "process_fork" | "process_exec") => true,
            None => attach::uses(features.attachment, &name),
        };
        program.set_autoload(wanted);
    }
    Ok(())
}

/// Elements of `user_frames` so that each of these page frames has a byte of its own; none where that would be too many.
fn frame_chunks(frames: u64) -> u32 {
    let bytes = frames.next_power_of_two();
    let chunks = bytes.div_ceil(size_of::<types::frame_chunk>() as u64);
    match bytes <= MAX_FRAME_BYTES {
        true => u32::try_from(chunks).unwrap_or(0),
        false => 0,
    }
}

/// Passes on what libbpf says.
pub fn print_libbpf(_level: PrintLevel, message: String) {
    stderr::pass_on(&message);
}
