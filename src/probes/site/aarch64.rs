//! Sites in aarch64 code: which instructions the kernel emulates, and what a few others do to a call.
//! Whatever is not known here ends the search, so that a new instruction can cost time and never a target.
//!
//! Which instructions are emulated is `arch/arm64/kernel/probes/decode-insn.c`: of these, the ones that every kernel
//! since 5.10 emulates and that do not read memory.
//!
//! A trap of the return replaces x30 at the site. Behind an instruction that has saved x30, the return would not be seen;
//! behind one that has signed it, the function would die of its own check. So neither is passed over.

use super::{Contract, Emulated, Obstacle, Site, Why};

const FRAME_POINTER: u32 = 29;
const LINK: u32 = 30;
/// The number that stands for the stack pointer or for nothing, by instruction.
const SP_OR_ZERO: u32 = 31;

/// What an instruction is to a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// The kernel emulates it.
    Emulated(Emulated),
    /// It writes these registers, and reads none that matters.
    Writes([Option<u32>; 2]),
    /// It moves the stack pointer.
    MovesStack,
    /// It saves x30 or changes it.
    KeepsReturnAddress(&'static str),
    /// It may leave the straight line.
    Leaves(&'static str),
    /// Nothing is known of it.
    Unknown,
}

/// As [`super::choose`], for a function whose whole machine code is `code`, with nothing around it.
pub(super) fn choose_in(code: &[u8], contract: Contract) -> Site {
    let site = match search(code, contract) {
        Ok(site) => site,
        Err(obstacle) => return Site::kept(obstacle),
    };
    match from_inside(code, site.offset) {
        Some(obstacle) => Site::kept(obstacle),
        None => site,
    }
}

/// Whether some kernel does harm when the instruction is probed: Linux 5.10 emulated loads of literals by reading the
/// kernel's memory in place of the program's, and a trap between exclusive accesses keeps them from ever succeeding.
pub(super) fn is_harmful(word: u32) -> bool {
    let is_literal_load = word & 0x3b00_0000 == 0x1800_0000;
    let is_exclusive = word & 0x3f00_0000 == 0x0800_0000;
    is_literal_load || is_exclusive
}

/// Walks the straight line from the entry to the earliest emulated instruction.
fn search(code: &[u8], contract: Contract) -> Result<Site, Obstacle> {
    let mut exit = None;
    walk(code, contract, &mut exit).or_else(|obstacle| {
        // The exit for NULL is itself emulated, so it serves where nothing behind it does.
        exit.map(|offset| accept(offset, Emulated::ConditionalJump, false))
            .ok_or(obstacle)
    })
}

/// As [`search`]; leaves in `exit` where the exit for NULL was passed.
fn walk(code: &[u8], contract: Contract, exit: &mut Option<u64>) -> Result<Site, Obstacle> {
    for (offset, word) in words(code) {
        let name = || name(word);
        match effect(word) {
            Effect::Emulated(_)
                if contract.null_is_ignored && exit.is_none() && leaves_for_null(word) =>
            {
                *exit = Some(offset);
            }
            Effect::Emulated(kind) => return Ok(accept(offset, kind, exit.is_some())),
            Effect::MovesStack => return Err(Obstacle::Overwrites(name())),
            Effect::Writes(registers) => {
                if registers.iter().flatten().any(|it| matters(*it, contract)) {
                    return Err(Obstacle::Overwrites(name()));
                }
            }
            Effect::KeepsReturnAddress(name) => {
                return Err(Obstacle::KeepsReturnAddress(name.to_owned()));
            }
            Effect::Leaves(name) => return Err(Obstacle::Leaves(name.to_owned())),
            Effect::Unknown => return Err(Obstacle::Unknown(offset)),
        }
    }
    Err(Obstacle::EndOfFunction)
}

fn accept(offset: u64, kind: Emulated, past_null: bool) -> Site {
    match offset {
        0 => Site::new(0, Why::First(kind)),
        _ if past_null => Site::new(offset, Why::MovedPastNull(kind)),
        _ => Site::new(offset, Why::Moved(kind)),
    }
}

fn matters(register: u32, contract: Contract) -> bool {
    (register as usize) < contract.arguments || register == FRAME_POINTER || register == LINK
}

/// `cbz x0`
fn leaves_for_null(word: u32) -> bool {
    word & 0xff00_001f == 0xb400_0000
}

/// The instructions of `code` with their distances from its beginning.
fn words(code: &[u8]) -> impl Iterator<Item = (u64, u32)> {
    let words = code
        .as_chunks()
        .0
        .iter()
        .map(|word| u32::from_le_bytes(*word));
    (0..).step_by(4).zip(words)
}

/// The instruction as `-v` shows it: most by their code.
fn name(word: u32) -> String {
    format!("{word:08x}")
}

fn branch_name(word: u32) -> Option<&'static str> {
    match word {
        _ if word & 0xfc00_0000 == 0x9400_0000 => Some("bl"),
        _ if word & 0xffff_fc1f == 0xd65f_0000 => Some("ret"),
        _ if word & 0xfe00_0000 == 0xd600_0000 => Some("a computed branch"),
        _ if word & 0xff00_0000 == 0xd400_0000 => Some("a system call or trap"),
        _ => None,
    }
}

fn register(word: u32, at: u32) -> u32 {
    word >> at & 0x1f
}

fn writes(first: u32) -> Effect {
    Effect::Writes([Some(first), None])
}

/// What an instruction does.
fn effect(word: u32) -> Effect {
    if let Some(kind) = emulated(word) {
        return Effect::Emulated(kind);
    }
    if let Some(name) = branch_name(word) {
        return Effect::Leaves(name);
    }
    match word >> 25 & 0xf {
        0b1000 | 0b1001 => by_immediate(word),
        0b0101 | 0b1101 => by_registers(word),
        0b0100 | 0b1100 => of_memory(word),
        0b1010 | 0b1011 => of_the_system(word),
        _ => Effect::Unknown,
    }
}

/// The instructions that the kernel emulates, of those that can be a site.
fn emulated(word: u32) -> Option<Emulated> {
    let branches = [
        (0xfc00_0000, 0x1400_0000, Emulated::Jump),            // b
        (0xff00_0010, 0x5400_0000, Emulated::ConditionalJump), // b.cond
        (0x7e00_0000, 0x3400_0000, Emulated::ConditionalJump), // cbz, cbnz
        (0x7e00_0000, 0x3600_0000, Emulated::ConditionalJump), // tbz, tbnz
        (0x1f00_0000, 0x1000_0000, Emulated::Address),         // adr, adrp
    ];
    branches
        .into_iter()
        .find(|(mask, bits, _)| word & mask == *bits)
        .map(|(_, _, kind)| kind)
}

/// "Data processing, immediate".
fn by_immediate(word: u32) -> Effect {
    let destination = register(word, 0);
    let sets_flags = word & 1 << 29 != 0;
    match word >> 23 & 0x7 {
        // add and sub, which can move the stack pointer: `mov x29, sp` is one
        0b010 if destination == SP_OR_ZERO && !sets_flags => Effect::MovesStack,
        0b010 => writes(destination),
        // and, orr, eor; ands
        0b100 if destination == SP_OR_ZERO && word >> 29 & 0b11 != 0b11 => Effect::MovesStack,
        0b100 => reading(register(word, 5), destination),
        // movn, movz, movk; bitfields
        0b101 => writes(destination),
        0b110 => reading(register(word, 5), destination),
        // extr
        0b111 if word & 0x7fa0_0000 == 0x1380_0000 => reading(register(word, 5), destination),
        _ => Effect::Unknown,
    }
}

/// "Data processing, register".
fn by_registers(word: u32) -> Effect {
    let destination = register(word, 0);
    // add and sub of an extended register, without flags
    if word & 0x3f20_0000 == 0x0b20_0000 && destination == SP_OR_ZERO {
        return Effect::MovesStack;
    }
    match reading(register(word, 5), destination) {
        Effect::Writes(_) => reading(register(word, 16), destination),
        other => other,
    }
}

/// An instruction that reads a register, which must not be x30: what has a copy can return by it.
fn reading(source: u32, destination: u32) -> Effect {
    match source {
        LINK => Effect::KeepsReturnAddress("a copy of x30"),
        _ => writes(destination),
    }
}

/// "Loads and stores" of general registers, at an address that they don't change.
fn of_memory(word: u32) -> Effect {
    let (first, second) = (register(word, 0), register(word, 10));
    let keeps = |register| register == LINK;
    // pairs at an offset, and with write-back
    if word & 0x3e00_0000 == 0x2800_0000 {
        let is_load = word & 1 << 22 != 0;
        let moves = word & 1 << 23 != 0;
        return match (is_load, moves) {
            (false, _) if keeps(first) || keeps(second) => {
                Effect::KeepsReturnAddress("a store of x30")
            }
            (_, true) if register(word, 5) == SP_OR_ZERO => Effect::MovesStack,
            (_, true) => Effect::Unknown,
            (false, false) => Effect::Writes([None, None]),
            (true, false) => Effect::Writes([Some(first), Some(second)]),
        };
    }
    let at_offset = word & 0x3f00_0000 == 0x3900_0000;
    let unscaled = word & 0x3f20_0c00 == 0x3800_0000;
    let by_register = word & 0x3f20_0c00 == 0x3820_0800;
    let with_write_back = word & 0x3f20_0400 == 0x3800_0400;
    let is_store = word >> 22 & 0b11 == 0;
    if is_store && keeps(first) && (at_offset || unscaled || by_register || with_write_back) {
        return Effect::KeepsReturnAddress("a store of x30");
    }
    match () {
        () if with_write_back && register(word, 5) == SP_OR_ZERO => Effect::MovesStack,
        () if !(at_offset || unscaled || by_register) => Effect::Unknown,
        () if is_store => Effect::Writes([None, None]),
        () => writes(first),
    }
}

/// "Branches, exception generating and system instructions" that are no branches: hints, and the thread's own register.
fn of_the_system(word: u32) -> Effect {
    const HINT: u32 = 0xd503_201f;
    if word & 0xffff_f01f == HINT {
        return match word >> 5 & 0x7f {
            // nop, and the marks of branch targets
            0 | 32 | 34 | 36 | 38 => Effect::Writes([None, None]),
            25 => Effect::KeepsReturnAddress("paciasp"),
            27 => Effect::KeepsReturnAddress("pacibsp"),
            _ => Effect::Unknown,
        };
    }
    match word & 0xffff_ffe0 {
        0xd53b_d040 => writes(register(word, 0)), // mrs of tpidr_el0
        _ => Effect::Unknown,
    }
}

/// Where a branch goes to, in bytes from itself.
fn distance(word: u32) -> Option<i64> {
    let field = |low: u32, bits: u32| {
        let unsigned = i64::from(word >> low & ((1 << bits) - 1));
        (unsigned << (64 - bits) >> (64 - bits)) * 4
    };
    match word {
        _ if word & 0x7c00_0000 == 0x1400_0000 => Some(field(0, 26)), // b, bl
        _ if word & 0xff00_0000 == 0x5400_0000 => Some(field(5, 19)), // b.cond, bc.cond
        _ if word & 0x7e00_0000 == 0x3400_0000 => Some(field(5, 19)), // cbz, cbnz
        _ if word & 0x7e00_0000 == 0x3600_0000 => Some(field(5, 14)), // tbz, tbnz
        _ if word & 0x7e00_0000 == 0x7400_0000 => Some(field(5, 9)),  // cb with a comparison
        _ => None,
    }
}

/// A branch to the place that a register holds. Through x16 and x17 functions are called, as the ABI has it; a jump table
/// uses others.
fn is_computed_jump(word: u32) -> bool {
    word & 0xfee0_0000 == 0xd600_0000 && !matches!(register(word, 5), 16 | 17)
}

/// Looks through the whole function `code` for a branch to an instruction behind the symbol, up to and including the one
/// at `site`. All of it has to be free of computed jumps.
fn from_inside(code: &[u8], site: u64) -> Option<Obstacle> {
    if site == 0 {
        return None;
    }
    words(code).find_map(|(offset, word)| {
        if is_computed_jump(word) {
            return Some(Obstacle::ComputedJump(offset));
        }
        let target = offset.checked_add_signed(distance(word)?)?;
        (1..=site)
            .contains(&target)
            .then_some(Obstacle::JumpBack(offset))
    })
}

/// Looks through the rest of the object for the same. Returns how far away such a branch is, in bytes.
///
/// `segment` holds the function at `begin..begin + length`.
pub(super) fn from_outside(segment: &[u8], begin: usize, length: usize, site: u64) -> Option<i64> {
    if site == 0 {
        return None;
    }
    let phase = begin % 4;
    let begin = i64::try_from(begin - phase).ok()?;
    let function = begin..begin.checked_add(i64::try_from(length).ok()?)?;
    let targets = begin + 1..=begin.checked_add(i64::try_from(site).ok()?)?;
    words(segment.get(phase..)?).find_map(|(at, word)| {
        let at = i64::try_from(at).ok()?;
        let target = at.checked_add(distance(word)?)?;
        (targets.contains(&target) && !function.contains(&at)).then(|| at - begin)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // As GNU as writes them.
    const STP_FRAME: u32 = 0xa9be_7bfd; // stp x29, x30, [sp, #-32]!
    const STP_AT_OFFSET: u32 = 0xa901_7bfd; // stp x29, x30, [sp, #16]
    const PACIASP: u32 = 0xd503_233f;
    const BTI_C: u32 = 0xd503_245f;
    const NOP: u32 = 0xd503_201f;
    const SUB_SP: u32 = 0xd100_83ff; // sub sp, sp, #32
    const MOV_X29_SP: u32 = 0x9100_03fd;
    const MOV_X9_X0: u32 = 0xaa00_03e9;
    const MOV_X9_X30: u32 = 0xaa1e_03e9;
    const MOV_X0_X1: u32 = 0xaa01_03e0;
    const CMP_X0_0: u32 = 0xf100_001f;
    const ADD_X1_X1_1: u32 = 0x9100_0421;
    const LDR_X9_X8: u32 = 0xf940_0109; // ldr x9, [x8]
    const STR_X30: u32 = 0xf81f_0ffe; // str x30, [sp, #-16]!
    const STR_X1_X0: u32 = 0xf900_0001; // str x1, [x0]
    const LDR_LITERAL: u32 = 0x5800_0049; // ldr x9, 8
    const LDXR: u32 = 0xc85f_7c09; // ldxr x9, [x0]
    const LDADD: u32 = 0xf829_0009; // ldadd x9, x9, [x0]
    const MRS_TPIDR: u32 = 0xd53b_d049; // mrs x9, tpidr_el0
    const UMULH_X0: u32 = 0x9bc1_7c00; // umulh x0, x0, x1
    const ADRP_X9: u32 = 0x9000_0009;
    const CBZ_X0: u32 = 0xb400_0080; // cbz x0, +16
    const TBNZ: u32 = 0xb7f8_0060; // tbnz x0, #63, +12
    const B_EQ: u32 = 0x5400_0060;
    const B: u32 = 0x1400_0004;
    const BL: u32 = 0x9400_0004;
    const RET: u32 = 0xd65f_03c0;
    const BR_X2: u32 = 0xd61f_0040;
    const BR_X16: u32 = 0xd61f_0200;

    fn code(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn site(words: &[u32], contract: Contract) -> Site {
        choose_in(&code(words), contract)
    }

    fn moved(offset: u64, kind: Emulated) -> Site {
        Site::new(offset, Why::Moved(kind))
    }

    #[test]
    fn what_the_kernel_emulates_is_a_site_at_once() {
        for (word, kind) in [
            (ADRP_X9, Emulated::Address),
            (0x1000_0009, Emulated::Address),
            (CBZ_X0, Emulated::ConditionalJump),
            (TBNZ, Emulated::ConditionalJump),
            (B_EQ, Emulated::ConditionalJump),
            (B, Emulated::Jump),
        ] {
            let first = Site::new(0, Why::First(kind));
            assert_eq!(site(&[word, RET], Contract::UNKNOWN), first, "{word:x}");
        }
    }

    #[test]
    fn what_changes_nothing_that_matters_is_passed_over() {
        for word in [
            BTI_C, NOP, MOV_X9_X0, CMP_X0_0, LDR_X9_X8, STR_X1_X0, MRS_TPIDR, LDR_X9_X8,
        ] {
            let words = [word, ADRP_X9, RET];
            let expected = moved(4, Emulated::Address);
            assert_eq!(site(&words, Contract::UNKNOWN), expected, "{word:x}");
        }
        // glibc 2.43's malloc: the second argument is none
        let words = [ADD_X1_X1_1, CMP_X0_0, B_EQ, RET];
        assert_eq!(
            site(&words, Contract::reads(1)),
            moved(8, Emulated::ConditionalJump)
        );
    }

    #[test]
    fn nothing_is_looked_for_behind_what_signs_or_saves_the_return_address() {
        for word in [PACIASP, STP_FRAME, STP_AT_OFFSET, STR_X30, MOV_X9_X30] {
            for contract in [Contract::UNKNOWN, Contract::reads(0), Contract::FREE] {
                let found = site(&[word, ADRP_X9, RET], contract);
                let keeps = matches!(found.why, Why::Kept(Obstacle::KeepsReturnAddress(_)));
                assert!(keeps && found.offset == 0, "{word:x}: {found}");
            }
        }
    }

    #[test]
    fn nothing_is_looked_for_behind_what_changes_arguments_the_stack_or_the_frame_pointer() {
        for word in [MOV_X0_X1, UMULH_X0, SUB_SP, MOV_X29_SP] {
            let found = site(&[word, ADRP_X9, RET], Contract::reads(1));
            assert!(
                matches!(found.why, Why::Kept(Obstacle::Overwrites(_))),
                "{word:x}: {found}"
            );
        }
    }

    #[test]
    fn nothing_is_looked_for_behind_branches_and_what_is_not_known() {
        for word in [BL, RET, BR_X2, 0xd400_0001] {
            let found = site(&[word, ADRP_X9], Contract::reads(1));
            assert!(
                matches!(found.why, Why::Kept(Obstacle::Leaves(_))),
                "{word:x}: {found}"
            );
        }
        for word in [LDR_LITERAL, LDXR, LDADD, 0, !0, 0x6e00_1c00] {
            let found = site(&[word, ADRP_X9], Contract::reads(1));
            assert!(
                matches!(found.why, Why::Kept(Obstacle::Unknown(0))),
                "{word:x}: {found}"
            );
        }
        let found = site(&[NOP, NOP], Contract::UNKNOWN);
        assert_eq!(found, Site::kept(Obstacle::EndOfFunction));
    }

    #[test]
    fn a_free_is_probed_behind_its_exit_for_null_or_at_it() {
        let behind = [CBZ_X0, MOV_X9_X0, ADRP_X9, RET];
        let past = Site::new(8, Why::MovedPastNull(Emulated::Address));
        assert_eq!(site(&behind, Contract::FREE), past);
        let at = [CBZ_X0, STP_FRAME, MOV_X29_SP, RET];
        let first = Site::new(0, Why::First(Emulated::ConditionalJump));
        assert_eq!(site(&at, Contract::FREE), first);
        let later = [BTI_C, CBZ_X0, PACIASP, RET];
        assert_eq!(
            site(&later, Contract::FREE),
            moved(4, Emulated::ConditionalJump)
        );
        assert_eq!(
            site(&behind, Contract::reads(1)),
            Site::new(0, Why::First(Emulated::ConditionalJump))
        );
    }

    #[test]
    fn branches_to_what_is_passed_over_keep_the_symbol() {
        // b -8: to the second instruction
        let back = [NOP, ADRP_X9, NOP, 0x17ff_fffe, RET];
        let found = site(&back, Contract::UNKNOWN);
        assert_eq!(found, Site::kept(Obstacle::JumpBack(12)));
        // to the symbol itself: the function, called by itself
        let again = [NOP, ADRP_X9, NOP, 0x17ff_fffd, RET];
        assert_eq!(site(&again, Contract::UNKNOWN), moved(4, Emulated::Address));
        let table = [NOP, ADRP_X9, BR_X2];
        let found = site(&table, Contract::UNKNOWN);
        assert_eq!(found, Site::kept(Obstacle::ComputedJump(8)));
        let tail_call = [NOP, ADRP_X9, BR_X16];
        assert_eq!(
            site(&tail_call, Contract::UNKNOWN),
            moved(4, Emulated::Address)
        );
    }

    #[test]
    fn branches_from_elsewhere_in_the_object_are_found() {
        let function = [NOP, ADRP_X9, RET];
        let around = |before: u32, behind: u32| {
            let words = [&[before, NOP][..], &function, &[NOP, behind]].concat();
            from_outside(&code(&words), 8, 12, 4)
        };
        assert_eq!(around(NOP, NOP), None);
        assert_eq!(around(0x1400_0003, NOP), Some(-8), "b +12");
        assert_eq!(around(0x1400_0002, NOP), None, "b +8: the symbol");
        assert_eq!(around(NOP, 0x54ff_ffa0), Some(16), "b.eq -12");
        assert_eq!(around(NOP, 0xb7ff_ffa0), Some(16), "tbnz -12");
        assert_eq!(around(NOP, 0x97ff_fffd), Some(16), "bl -12");
    }

    #[test]
    fn what_some_kernel_does_harm_with_is_never_probed() {
        assert!(is_harmful(LDR_LITERAL) && is_harmful(LDXR));
        assert!(is_harmful(0x9800_0049), "ldrsw of a literal");
        assert!(is_harmful(0xc800_7c09), "stxr");
        for word in [STP_FRAME, PACIASP, LDR_X9_X8, ADRP_X9, CBZ_X0, LDADD] {
            assert!(!is_harmful(word), "{word:x}");
        }
    }
}
