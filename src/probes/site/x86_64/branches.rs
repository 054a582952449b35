//! Which branches lead into the beginning of a function, between its symbol and a site in it.
//! Through one of them a call would reach the site twice, or without having been called.

use super::{Obstacle, instructions};
use iced_x86::{FlowControl, Instruction, OpKind};
use std::ops::{Range, RangeInclusive};

/// Looks through the whole function `code` for a branch to an instruction behind the symbol, up to
/// and including the one at `site`. All of it has to be decodable and free of computed jumps.
pub(super) fn from_inside(code: &[u8], site: u64) -> Option<Obstacle> {
    if site == 0 {
        return None;
    }
    instructions(code).into_iter().find_map(|instruction| {
        let offset = instruction.ip();
        if instruction.is_invalid() {
            return Some(Obstacle::Undecodable(offset));
        }
        if is_computed_jump(&instruction) {
            return Some(Obstacle::ComputedJump(offset));
        }
        let target = branch_target(&instruction)?;
        (1..=site)
            .contains(&target)
            .then_some(Obstacle::JumpBack(offset))
    })
}

/// A jump through a register or an indexed table. A jump through a fixed slot (`jmp [rip+slot]`)
/// is a tail call through the global offset table: slots hold functions, not places inside one.
fn is_computed_jump(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::IndirectBranch
        && !instruction.is_ip_rel_memory_operand()
}

fn branch_target(instruction: &Instruction) -> Option<u64> {
    let is_near = instruction.op_kinds().any(|kind| {
        matches!(
            kind,
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        )
    });
    is_near.then(|| instruction.near_branch_target())
}

/// Looks through the rest of the object for the same: compilers split a function's cold half off,
/// and hand-written code jumps into its neighbours. Returns how far away such a branch is.
///
/// `segment` holds the function at `begin..begin + length`.
pub(in crate::probes::site) fn from_outside(
    segment: &[u8],
    begin: usize,
    length: usize,
    site: u64,
) -> Option<i64> {
    let site = usize::try_from(site).ok()?;
    if site == 0 {
        return None;
    }
    let function = begin..begin.checked_add(length)?;
    let targets = begin + 1..=begin.checked_add(site)?;
    near(segment, &function, &targets)
        .or_else(|| far(segment, &targets).find(|at| !function.contains(at)))
        .and_then(|at| Some(i64::try_from(at).ok()? - i64::try_from(begin).ok()?))
}

/// How far a branch with a one-byte distance reaches, with the branch itself.
const NEAR: usize = 0x82;

/// The position of a branch to `targets` in the code just before `function` or just behind it.
fn near(segment: &[u8], function: &Range<usize>, targets: &RangeInclusive<usize>) -> Option<usize> {
    // Where instructions begin before the function is not known. Decoding at a wrong byte falls
    // into step after a few instructions, so every start that one instruction could hide is tried.
    let earliest = function.start.saturating_sub(3 * NEAR);
    let before = (earliest..function.start.min(earliest + 15))
        .find_map(|start| branch_in(segment, start..function.start, targets));
    let end = segment.len().min(function.end.saturating_add(NEAR));
    before.or_else(|| branch_in(segment, function.end..end, targets))
}

/// The position of a branch to `targets` among the instructions that fill `range`.
fn branch_in(
    segment: &[u8],
    range: Range<usize>,
    targets: &RangeInclusive<usize>,
) -> Option<usize> {
    let base = range.start;
    instructions(segment.get(range)?)
        .into_iter()
        .find_map(|instruction| {
            let at = base + usize::try_from(instruction.ip()).ok()?;
            let distance = isize::try_from(branch_target(&instruction)?.cast_signed()).ok()?;
            let target = base.checked_add_signed(distance)?;
            targets.contains(&target).then_some(at)
        })
}

/// Positions of branches (`jmp`, `call`, conditional jumps) with a four-byte distance to `targets`.
/// Every byte is tried, an instruction's first or not: a chance hit costs one probe its better site.
fn far<'a>(
    segment: &'a [u8],
    targets: &'a RangeInclusive<usize>,
) -> impl Iterator<Item = usize> + 'a {
    let (first, span) = (*targets.start(), targets.end() - targets.start());
    let distances = segment.windows(4).enumerate().filter(move |(at, bytes)| {
        let Ok(distance) = <[u8; 4]>::try_from(*bytes) else {
            return false;
        };
        // A distance counts from the branch's end, modulo 2^32 like everything below.
        let target = (at + 4).wrapping_add(u32::from_le_bytes(distance) as usize);
        (target.wrapping_sub(first) as u32) as usize <= span
    });
    distances.filter_map(|(at, _)| match segment.get(at.checked_sub(2)?..at)? {
        [_, 0xe8 | 0xe9] => Some(at - 1),
        [0x0f, 0x80..=0x8f] => Some(at - 2),
        _ => None,
    })
}
