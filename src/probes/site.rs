//! At which instruction of a function a probe sits: the cheapest one that sees what the function's entry sees.
//! Machine code in, an offset and its reason out; nothing about files, kernels or BPF.
//!
//! A uprobe replaces an instruction by a trap. The kernel then either emulates the instruction
//! (hundreds of nanoseconds) or single-steps a copy of it (some eight thousand more). Which ones are
//! emulated, and what the others do to a call, is told by architecture.

mod aarch64;
mod x86_64;

use super::symbols::{Function, Symbols};
use crate::unwind::Machine;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the caller knows about the function, which decides what a probe may skip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contract {
    /// How many leading arguments the probe reads; these registers are intact at the site.
    pub arguments: usize,
    /// The function is a `free`: a call with NULL as its first argument means nothing, and its return is not trapped.
    pub null_is_ignored: bool,
}

/// How many arguments are passed in registers and can be read.
const MOST_ARGUMENTS: usize = 6;

impl Contract {
    /// A function of which nothing is known: all argument registers are kept.
    pub const UNKNOWN: Self = Self {
        arguments: MOST_ARGUMENTS,
        null_is_ignored: false,
    };
    /// `void free(void *)`.
    pub const FREE: Self = Self {
        arguments: 1,
        null_is_ignored: true,
    };

    /// A function whose first `arguments` arguments the probe reads.
    pub const fn reads(arguments: usize) -> Self {
        Self {
            arguments,
            null_is_ignored: false,
        }
    }
}

/// Where a probe goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Distance from the function's first byte, in bytes; zero is the symbol itself.
    pub offset: u64,
    /// Why there.
    pub why: Why,
}

/// The reason for a site. Its text completes "probed here because …" for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// The first instruction is emulated already.
    First(Emulated),
    /// Moved to the earliest emulated instruction.
    Moved(Emulated),
    /// Moved past the exit which is taken for NULL only.
    MovedPastNull(Emulated),
    /// Kept: the search ended at an instruction that may not be skipped.
    Kept(Obstacle),
    /// Kept: the user wants it there.
    AskedFor,
}

/// An instruction that the kernel emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Emulated {
    /// `push` of a general register.
    Push,
    /// `nop` of one or two bytes.
    Nop,
    /// `jmp` to a fixed place.
    Jump,
    /// `je`, `ja` and their kin: seen whether taken or not.
    ConditionalJump,
    /// `call` of a fixed place; only accepted as the first instruction.
    Call,
    /// `adr` or `adrp`.
    Address,
}

/// What keeps a probe at the symbol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Obstacle {
    /// The machine is another.
    Machine,
    /// The function's code could not be read.
    NoCode,
    /// Bytes at this offset are no instruction.
    Undecodable(u64),
    /// This instruction changes an argument or the stack pointer before any emulated one.
    Overwrites(String),
    /// The instruction at this offset is not among those whose effects are known here.
    Unknown(u64),
    /// This instruction keeps or signs the return address, which a trap of the return has to replace before.
    KeepsReturnAddress(String),
    /// This instruction may leave the straight line before any emulated one.
    Leaves(String),
    /// No instruction of the function is emulated.
    EndOfFunction,
    /// The function jumps to a computed place, which could be the site.
    ComputedJump(u64),
    /// A branch of the function goes back to the site, or to what was skipped.
    JumpBack(u64),
    /// So does a branch of other code, this far from the symbol.
    JumpFromOutside(i64),
}

impl Site {
    /// The symbol, because the user wants it there.
    pub fn asked_for() -> Self {
        Self::new(0, Why::AskedFor)
    }

    fn new(offset: u64, why: Why) -> Self {
        Self { offset, why }
    }

    fn kept(obstacle: Obstacle) -> Self {
        Self::new(0, Why::Kept(obstacle))
    }
}

/// Chooses the site in `function`, an instruction boundary inside it.
///
/// The site is reached exactly once per call, with the argument registers that `contract` names,
/// the stack pointer and the return address as they were at the symbol. The one exception is a
/// call of a `free` with NULL, which may leave before it. Nothing else in the object jumps there.
pub fn choose(symbols: &Symbols, function: &Function, contract: Contract) -> Site {
    let Some(machine) = symbols.machine() else {
        return Site::kept(Obstacle::Machine);
    };
    let (Some(code), Some((segment, begin))) = (symbols.code(function), symbols.segment(function))
    else {
        return Site::kept(Obstacle::NoCode);
    };
    let (site, outside) = match machine {
        Machine::X86_64 => {
            let site = x86_64::choose_in(code, contract);
            let outside = x86_64::from_outside(segment, begin, code.len(), site.offset);
            (site, outside)
        }
        Machine::Aarch64 => {
            let site = aarch64::choose_in(code, contract);
            let outside = aarch64::from_outside(segment, begin, code.len(), site.offset);
            (site, outside)
        }
    };
    match outside {
        Some(distance) => Site::kept(Obstacle::JumpFromOutside(distance)),
        None => site,
    }
}

/// Whether a kernel that memleak runs on does harm where the instruction at a site is probed.
pub fn is_harmful(symbols: &Symbols, function: &Function, site: &Site) -> bool {
    let word = || {
        let at = usize::try_from(site.offset).ok()?;
        let word = symbols.code(function)?.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(word.try_into().ok()?))
    };
    symbols.machine() == Some(Machine::Aarch64) && word().is_some_and(aarch64::is_harmful)
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Why::First(kind) => write!(
                f,
                "at the symbol: its first instruction, {kind}, is emulated"
            ),
            Why::Moved(kind) => write!(
                f,
                "at +{}: the earliest emulated instruction, {kind}",
                self.offset
            ),
            Why::MovedPastNull(kind) => write!(
                f,
                "at +{}: the earliest emulated instruction behind the exit for NULL, {kind}",
                self.offset
            ),
            Why::Kept(obstacle) => write!(f, "at the symbol: {obstacle}"),
            Why::AskedFor => write!(f, "at the symbol, as asked for"),
        }
    }
}

impl fmt::Display for Emulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Emulated::Push => "a push",
            Emulated::Nop => "a nop",
            Emulated::Jump => "a jump",
            Emulated::ConditionalJump => "a conditional jump",
            Emulated::Call => "a call",
            Emulated::Address => "an adr",
        })
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Machine => f.write_str("sites are only chosen on x86-64 and aarch64"),
            Obstacle::NoCode => f.write_str("its code is not in the file"),
            Obstacle::Undecodable(offset) => write!(f, "no instruction at +{offset}"),
            Obstacle::Overwrites(name) => {
                write!(
                    f,
                    "`{name}` changes an argument or the stack before any emulated instruction"
                )
            }
            Obstacle::Unknown(offset) => {
                write!(
                    f,
                    "what the instruction at +{offset} does is not known here"
                )
            }
            Obstacle::KeepsReturnAddress(name) => write!(
                f,
                "`{name}` keeps the return address, or changes it, before any emulated instruction"
            ),
            Obstacle::Leaves(name) => {
                write!(f, "`{name}` may leave before any emulated instruction")
            }
            Obstacle::EndOfFunction => f.write_str("none of its instructions is emulated"),
            Obstacle::ComputedJump(offset) => {
                write!(f, "the jump at +{offset} could go anywhere in it")
            }
            Obstacle::JumpBack(offset) => {
                write!(f, "the branch at +{offset} goes back to its beginning")
            }
            Obstacle::JumpFromOutside(distance) => {
                write!(
                    f,
                    "a branch {distance:+} bytes away may go to its beginning"
                )
            }
        }
    }
}
