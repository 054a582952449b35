//! Sites in x86-64 code.
//! Nothing about what is told of a site to people.
//!
//! Which instructions are emulated is `arch/x86/kernel/uprobes.c`: `branch_setup_xol_ops` and `push_setup_xol_ops`.

mod branches;

pub(super) use branches::from_outside;

use super::{Contract, Emulated, MOST_ARGUMENTS, Obstacle, Site, Why};
#[cfg(test)]
use super::{Function, Symbols, choose};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

/// The registers that carry integer arguments, in order (System V ABI for x86-64).
const ARGUMENTS: [Register; MOST_ARGUMENTS] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
];

/// As [`super::choose`], for a function whose whole machine code is `code`, with nothing around it.
pub(super) fn choose_in(code: &[u8], contract: Contract) -> Site {
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

#[cfg(test)]
mod handmade_tests;
#[cfg(all(test, target_arch = "x86_64"))]
mod installed_tests;
