//! The value that describes a process's mappings to the unwinder.
//! Knows bytes and ranges; neither maps nor files.

use std::mem::offset_of;

use anyhow::{Result, anyhow};
use plain::Plain;

use super::super::skel::types::{unwind_code, unwind_mapping, unwind_mappings, unwind_process};

/// Mappings that fit.
pub const MAX_MAPPINGS: usize = (size_of::<unwind_mappings>()
    - offset_of!(unwind_mappings, mappings))
    / size_of::<unwind_mapping>();

/// Writes a new state of a process's mappings into the half of its value that is not active. What doesn't fit is left
/// out: the highest addresses.
///
/// # Errors
/// When `value` is not one.
pub fn prepare(
    value: &mut [u8],
    generation: u32,
    changes: u32,
    mappings: &[unwind_mapping],
) -> Result<()> {
    let process = decode(value)?;
    let half = &mut process.halves[(process.active & 1 ^ 1) as usize];
    half.generation = generation;
    half.changes = changes;
    half.count = mappings.len().min(MAX_MAPPINGS) as u32;
    for (slot, mapping) in half.mappings.iter_mut().zip(mappings) {
        *slot = *mapping;
    }
    Ok(())
}

/// Makes the half that was prepared the active one.
///
/// # Errors
/// When `value` is not one.
pub fn activate(value: &mut [u8]) -> Result<()> {
    decode(value)?.active ^= 1;
    Ok(())
}

fn decode(value: &mut [u8]) -> Result<&mut unwind_process> {
    plain::from_mut_bytes(value)
        .map_err(|error| anyhow!("failed to lay out the mappings of a process: {error:?}"))
}

/// The bytes of a struct that the BPF programs share.
///
/// # Errors
/// When memory is not aligned as the struct needs.
pub fn encode<T: Plain>(fill: impl FnOnce(&mut T)) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size_of::<T>()];
    let value = plain::from_mut_bytes(&mut bytes)
        .map_err(|error| anyhow!("failed to lay out a map's value: {error:?}"))?;
    fill(value);
    Ok(bytes)
}

/// Joins neighbours that continue each other. Where more remain than the unwinder can search, memory without tables is
/// joined across the gaps between: JIT compilers scatter it in many small pieces.
pub fn merge(mappings: Vec<unwind_mapping>) -> Vec<unwind_mapping> {
    let same_table = |a: &unwind_mapping, b: &unwind_mapping| {
        a.code == b.code && a.bias == b.bias && a.page_bias == b.page_bias
    };
    let both_without = |a: &unwind_mapping, b: &unwind_mapping| {
        let none = unwind_code::UNWIND_NO_TABLE.0 as u16;
        a.code == none && b.code == none
    };
    let merged = join(mappings, |a, b| {
        a.end == b.begin && (same_table(a, b) || both_without(a, b))
    });
    if merged.len() <= MAX_MAPPINGS {
        return merged;
    }
    join(merged, both_without)
}

fn join(
    mappings: Vec<unwind_mapping>,
    joins: impl Fn(&unwind_mapping, &unwind_mapping) -> bool,
) -> Vec<unwind_mapping> {
    let mut joined: Vec<unwind_mapping> = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        match joined.last_mut() {
            Some(last) if joins(last, &mapping) => last.end = mapping.end,
            _ => joined.push(mapping),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(begin: u64, end: u64, bias: u64, code: u16) -> unwind_mapping {
        unwind_mapping {
            interpreter: 0,
            begin,
            end,
            bias,
            page_bias: 0,
            code,
        }
    }

    fn ranges(mappings: &[unwind_mapping]) -> Vec<(u64, u64)> {
        mappings
            .iter()
            .map(|mapping| (mapping.begin, mapping.end))
            .collect()
    }

    #[test]
    fn mappings_of_one_file_that_continue_each_other_are_one() {
        let parts = vec![
            mapping(0x1000, 0x2000, 7, 1),
            mapping(0x2000, 0x3000, 7, 1),
            mapping(0x3000, 0x4000, 8, 1),
        ];
        assert_eq!(ranges(&merge(parts)), [(0x1000, 0x3000), (0x3000, 0x4000)]);
    }

    #[test]
    fn gaps_stay_gaps_while_there_is_room() {
        let parts = vec![mapping(0x1000, 0x2000, 0, 0), mapping(0x3000, 0x4000, 0, 0)];
        assert_eq!(ranges(&merge(parts)), [(0x1000, 0x2000), (0x3000, 0x4000)]);
    }

    #[test]
    fn scattered_code_without_tables_is_joined_when_there_is_too_much_of_it() {
        let mut parts: Vec<unwind_mapping> = (0..3_000)
            .map(|n| mapping(0x10_0000 + n * 0x2000, 0x10_1000 + n * 0x2000, 0, 0))
            .collect();
        parts.push(mapping(0x7f00_0000_0000, 0x7f00_0000_1000, 9, 1));
        assert_eq!(
            ranges(&merge(parts)),
            [
                (0x10_0000, 0x10_1000 + 2_999 * 0x2000),
                (0x7f00_0000_0000, 0x7f00_0000_1000)
            ]
        );
    }

    #[test]
    fn a_state_is_prepared_beside_the_active_one_and_holds_the_lowest_mappings_that_fit() {
        let mut value = vec![0; size_of::<unwind_process>()];
        let mappings: Vec<unwind_mapping> = (0..5_000).map(|n| mapping(n, n + 1, 0, 1)).collect();
        for generation in 1..4 {
            prepare(&mut value, generation, 9, &mappings).unwrap();
            let process = *decode(&mut value).unwrap();
            let active = process.halves[(process.active & 1) as usize];
            assert_eq!(active.generation, generation - 1);
            activate(&mut value).unwrap();
            let process = *decode(&mut value).unwrap();
            let active = process.halves[(process.active & 1) as usize];
            assert_eq!(
                (active.generation, active.changes, active.count),
                (generation, 9, MAX_MAPPINGS as u32)
            );
            assert_eq!(
                active.mappings[MAX_MAPPINGS - 1].begin,
                MAX_MAPPINGS as u64 - 1
            );
        }
    }
}
