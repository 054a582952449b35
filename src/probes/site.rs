//! At which instruction of a function a probe sits: the cheapest one that sees what the function's entry sees.
//! Machine code in, an offset and its reason out; nothing about files, kernels or BPF.
//!
//! A uprobe replaces an instruction by a trap. The kernel then either emulates the instruction
//! (hundreds of nanoseconds) or single-steps a copy of it (some eight thousand more). Which ones are
//! emulated is `arch/x86/kernel/uprobes.c`: `branch_setup_xol_ops` and `push_setup_xol_ops`.

mod branches;

use super::symbols::{Function, Symbols};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The registers that carry integer arguments, in order (System V ABI for x86-64).
const ARGUMENTS: [Register; 6] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
];

/// What the caller knows about the function, which decides what a probe may skip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contract {
    /// How many leading arguments the probe reads; these registers are intact at the site.
    pub arguments: usize,
    /// The function is a `free`: a call with NULL as its first argument means nothing.
    pub null_is_ignored: bool,
}

impl Contract {
    /// A function of which nothing is known: all argument registers are kept.
    pub const UNKNOWN: Self = Self {
        arguments: ARGUMENTS.len(),
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
}

/// What keeps a probe at the symbol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Obstacle {
    /// The machine is not x86-64.
    Machine,
    /// The function's code could not be read.
    NoCode,
    /// Bytes at this offset are no instruction.
    Undecodable(u64),
    /// This instruction changes an argument or the stack pointer before any emulated one.
    Overwrites(String),
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
    if !symbols.is_x86_64() {
        return Site::kept(Obstacle::Machine);
    }
    let (Some(code), Some((segment, begin))) = (symbols.code(function), symbols.segment(function))
    else {
        return Site::kept(Obstacle::NoCode);
    };
    let site = choose_in(code, contract);
    match branches::from_outside(segment, begin, code.len(), site.offset) {
        Some(distance) => Site::kept(Obstacle::JumpFromOutside(distance)),
        None => site,
    }
}

/// As [`choose`], for a function whose whole x86-64 machine code is `code`, with nothing around it.
fn choose_in(code: &[u8], contract: Contract) -> Site {
    let site = match search(code, contract) {
        Ok(site) => site,
        Err(obstacle) => return Site::kept(obstacle),
    };
    match branches::from_inside(code, site.offset) {
        Some(obstacle) => Site::kept(obstacle),
        None => site,
    }
}

/// Walks the straight line from the entry to the earliest emulated instruction.
fn search(code: &[u8], contract: Contract) -> Result<Site, Obstacle> {
    let mut exit = None;
    walk(code, contract, &mut exit).or_else(|obstacle| {
        // The exit for NULL is itself emulated, so it serves where nothing behind it does.
        exit.map(|offset| Site::new(offset, Why::Moved(Emulated::ConditionalJump)))
            .ok_or(obstacle)
    })
}

/// As [`search`]; leaves in `exit` where the exit for NULL was passed.
fn walk(code: &[u8], contract: Contract, exit: &mut Option<u64>) -> Result<Site, Obstacle> {
    let mut effects = Effects::new(contract);
    let mut null_test = false;
    for instruction in instructions(code) {
        let offset = instruction.ip();
        if instruction.is_invalid() {
            return Err(Obstacle::Undecodable(offset));
        }
        if let Some(kind) = emulated(encoding(code, &instruction)) {
            if null_test && exit.is_none() && instruction.mnemonic() == Mnemonic::Je {
                *exit = Some(offset);
                continue;
            }
            return accept(offset, kind, exit.is_some(), &instruction);
        }
        effects.pass_over(&instruction)?;
        null_test = contract.null_is_ignored
            && (tests_first_argument(&instruction)
                || null_test && instruction.rflags_modified() == 0);
    }
    Err(Obstacle::EndOfFunction)
}

fn accept(
    offset: u64,
    kind: Emulated,
    past_null: bool,
    instruction: &Instruction,
) -> Result<Site, Obstacle> {
    match (offset, kind) {
        (0, _) => Ok(Site::new(0, Why::First(kind))),
        // The kernel does not push an emulated call onto the shadow stack, so a call is never
        // sought out; at the symbol it is none of our doing.
        (_, Emulated::Call) => Err(Obstacle::Leaves(name(instruction))),
        _ if past_null => Ok(Site::new(offset, Why::MovedPastNull(kind))),
        _ => Ok(Site::new(offset, Why::Moved(kind))),
    }
}

/// Judges what an instruction that is skipped does to a call's arguments and its path.
struct Effects {
    keep: Vec<Register>,
    factory: InstructionInfoFactory,
}

impl Effects {
    fn new(contract: Contract) -> Self {
        let arguments = contract.arguments.min(ARGUMENTS.len());
        let mut keep = ARGUMENTS[..arguments].to_vec();
        keep.push(Register::RSP);
        Self {
            keep,
            factory: InstructionInfoFactory::new(),
        }
    }

    fn pass_over(&mut self, instruction: &Instruction) -> Result<(), Obstacle> {
        if instruction.flow_control() != FlowControl::Next {
            return Err(Obstacle::Leaves(name(instruction)));
        }
        let used = self.factory.info(instruction).used_registers();
        let overwrites = used.iter().any(|used| {
            is_write(used.access()) && self.keep.contains(&used.register().full_register())
        });
        if overwrites {
            return Err(Obstacle::Overwrites(name(instruction)));
        }
        Ok(())
    }
}

fn is_write(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// `test rdi, rdi` or `cmp rdi, 0`: ZF then says whether the first argument is NULL.
fn tests_first_argument(instruction: &Instruction) -> bool {
    if instruction.op0_kind() != OpKind::Register || instruction.op0_register() != Register::RDI {
        return false;
    }
    match (instruction.mnemonic(), instruction.op1_kind()) {
        (Mnemonic::Test, OpKind::Register) => instruction.op1_register() == Register::RDI,
        (Mnemonic::Cmp, OpKind::Immediate8to64 | OpKind::Immediate32to64) => {
            instruction.immediate(1) == 0
        }
        _ => false,
    }
}

/// Whether every kernel since 5.10 emulates the instruction with these bytes, and as what.
///
/// Only the plain encodings: a prefix makes the kernel refuse some of them, and single-step
/// others. Longer nops are emulated since 6.18 only; `endbr64` and `xchg r8, rax` (41 90) never.
fn emulated(bytes: &[u8]) -> Option<Emulated> {
    match bytes {
        [0x50..=0x57] | [0x41, 0x50..=0x57] => Some(Emulated::Push),
        [0x90] | [0x66, 0x90] => Some(Emulated::Nop),
        [0xeb, _] | [0xe9, _, _, _, _] => Some(Emulated::Jump),
        [0x70..=0x7f, _] | [0x0f, 0x80..=0x8f, _, _, _, _] => Some(Emulated::ConditionalJump),
        [0xe8, _, _, _, _] => Some(Emulated::Call),
        _ => None,
    }
}

/// The instructions of `code` in a line, numbered from zero; what can't be decoded is invalid.
fn instructions(code: &[u8]) -> Decoder<'_> {
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE)
}

fn encoding<'code>(code: &'code [u8], instruction: &Instruction) -> &'code [u8] {
    let begin = usize::try_from(instruction.ip()).unwrap_or(code.len());
    let end = begin.saturating_add(instruction.len());
    code.get(begin..end).unwrap_or_default()
}

fn name(instruction: &Instruction) -> String {
    format!("{:?}", instruction.mnemonic()).to_lowercase()
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
        })
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Machine => f.write_str("sites are only chosen on x86-64"),
            Obstacle::NoCode => f.write_str("its code is not in the file"),
            Obstacle::Undecodable(offset) => write!(f, "no instruction at +{offset}"),
            Obstacle::Overwrites(name) => {
                write!(
                    f,
                    "`{name}` changes an argument before any emulated instruction"
                )
            }
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

#[cfg(test)]
mod handmade_tests;
#[cfg(all(test, target_arch = "x86_64"))]
mod installed_tests;
