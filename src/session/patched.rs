//! Leaves functions unprobed whose code a process has changed in memory, and says so.
//! What counts as changed is decided in `probes`; where a process maps a function is known to `target`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::discovery::ObjectPlan;
use crate::files::Opened;
use crate::probes::{Probe, is_patched};
use crate::process::{Mappings, maps_file_at, memory_of, name};
use crate::stderr::say;

/// Takes out of an object's plan the functions that one of the processes has changed in its memory: an inline hook, a patch
/// of a running program. A probe would run the instruction that was there before.
pub fn leave_out(object: &mut ObjectPlan, mappings: &Mappings, pids: &[u32]) {
    let Ok(file) = object.file.open() else {
        return;
    };
    for &pid in pids {
        let copies = mappings.copies(pid, file.identity);
        if copies.is_empty() {
            continue;
        }
        let Ok(memory) = memory_of(pid) else {
            continue;
        };
        let is_changed = |probe: &Probe| {
            copies
                .iter()
                .filter_map(|mapping| {
                    let inside = probe.function_offset.checked_sub(mapping.offset)?;
                    let address = mapping.range.start.checked_add(inside)?;
                    (address < mapping.range.end).then_some(address)
                })
                .any(|address| {
                    differs(file.file(), &memory, probe, address)
                        // unless it has been unmapped, or the process has executed another program
                        && maps_file_at(pid, address, file.identity.1)
                })
        };
        let (changed, kept) = std::mem::take(&mut object.plan.probes)
            .into_iter()
            .partition(is_changed);
        object.plan.probes = kept;
        let changed: Vec<Probe> = changed;
        if !changed.is_empty() {
            let names: Vec<String> = changed.iter().map(Probe::names).collect();
            say!(
                "warning: not probed, for process {pid} ({}) has changed their code in {} (an inline hook?): {}",
                name(pid).unwrap_or_default(),
                object.shown.display(),
                names.join(", ")
            );
        }
    }
}

/// Bytes of a function's beginning that inline hooks replace at the most.
const BEGINNING: usize = 16;

/// Whether a process has changed in its memory the beginning of the function at an offset of a file.
pub fn is_changed(file: &Opened, offset: u64, mappings: &Mappings, pid: u32) -> bool {
    let Ok(memory) = memory_of(pid) else {
        return false;
    };
    let copies = mappings.copies(pid, file.identity);
    let mut addresses = copies.iter().filter_map(|mapping| {
        let address = mapping
            .range
            .start
            .checked_add(offset.checked_sub(mapping.offset)?)?;
        (address < mapping.range.end).then_some(address)
    });
    addresses.any(|address| differ(file.file(), &memory, (offset, address), BEGINNING))
}

/// Whether a function's beginning is another in memory than in the file. What can't be read is not told apart.
fn differs(file: &File, memory: &File, probe: &Probe, address: u64) -> bool {
    let length = usize::try_from(probe.compared_bytes()).unwrap_or(0);
    differ(file, memory, (probe.function_offset, address), length)
}

fn differ(file: &File, memory: &File, (offset, address): (u64, u64), length: usize) -> bool {
    let (mut expected, mut found) = (vec![0; length], vec![0; length]);
    file.read_exact_at(&mut expected, offset).is_ok()
        && memory.read_exact_at(&mut found, address).is_ok()
        && is_patched(&expected, &found)
}
