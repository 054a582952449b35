//! One unwind rule: how the caller's registers follow from a frame's, and its 32-bit form that the BPF unwinder reads.
//! Nothing here knows ELF or DWARF; the tables that point at rules live in the parent module.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// Largest CFA offset from rsp in bytes: 17 bits of 8-byte words.
const MAX_UNSIGNED_OFFSET: i64 = ((1 << 17) - 1) * 8;
/// Largest CFA offset from any other base in bytes, either way: the same 17 bits with a sign.
const MAX_SIGNED_OFFSET: i64 = (1 << 16) * 8 - 8;
/// Number of rules that a 16-bit index can tell apart.
const MAX_RULES: usize = 1 << 16;

/// The register that a CFA is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// The stack pointer.
    Sp,
    /// The frame pointer register (rbp, x29), whatever the function keeps in it.
    Fp,
}

/// Where a frame keeps its caller's rbp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SavedRbp {
    /// Still in rbp.
    Same,
    /// On the stack, this many bytes below the CFA; a positive multiple of 8.
    BelowCfa(u16),
    /// On the stack, at the CFA's base register plus this many bytes; a multiple of 8.
    AtBase(i16),
    /// Nowhere that a rule can express: frames further out that need rbp can't be unwound.
    Lost,
}

/// What a frame on aarch64 has saved of its caller's registers, and how many bytes from the CFA's base register;
/// multiples of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SavedLink {
    /// Nothing: both are still in x29 and x30, as in a function that calls none.
    Nothing,
    /// A frame record: x29, and x30 behind it.
    Record(u32),
    /// x30 alone; x29 is as it was.
    Link(u32),
    /// x30 here, and x29 nowhere that a rule can express.
    LinkWithoutFp(u32),
}

/// How to get from a frame to its caller. Except where said, rules are of x86-64: the return address is at CFA−8 and the
/// caller's stack pointer is the CFA. Offsets are in bytes and multiples of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// No unwind information covers the code: take a frame-pointer step, with care.
    NoFde,
    /// The outermost frame: its return address is undefined.
    Stop,
    /// Unwind information exists, but no rule here can express it.
    Unsupported,
    /// A signal trampoline: the registers of the interrupted code are in the kernel's `rt_sigframe`, counted from the
    /// stack pointer. The pc is no return address: look it up as it is.
    Signal,
    /// A lazy procedure linkage table entry: the CFA is rsp+8, and 8 more once the entry has pushed its index, which
    /// it has from `threshold` bytes into its 16 bytes on.
    Plt {
        /// Offset of the first instruction after the push.
        threshold: u8,
    },
    /// The CFA is a register plus an offset.
    Offset {
        /// The register.
        base: Base,
        /// Bytes to add.
        offset: i32,
        /// Where the caller's rbp is.
        rbp: SavedRbp,
    },
    /// The CFA is read from memory at a register plus an offset, as in functions that realign their stack (DRAP).
    Deref {
        /// The register.
        base: Base,
        /// Bytes to add before reading.
        offset: i32,
        /// Bytes to add to what was read; at most 56.
        add: u8,
        /// Where the caller's rbp is.
        rbp: SavedRbp,
    },
    /// On aarch64: the CFA is a register plus an offset, and the caller's stack pointer.
    Record {
        /// The register.
        base: Base,
        /// Bytes to add; a multiple of 16.
        offset: u32,
        /// Where the return address and the caller's x29 are.
        saved: SavedLink,
    },
}

// The 32-bit form, which src/bpf/user/stack.bpf.h decodes:
//   bits 0..3    kind
//   bits 3..20   CFA offset in 8-byte words: unsigned for KIND_RSP, otherwise two's complement
//   KIND_RSP, KIND_RBP:
//     bits 20..32  words between the CFA and the saved rbp below it; 0 = same, all ones = lost
//   KIND_DEREF_RSP, KIND_DEREF_RBP:
//     bits 20..28  the same in 8 bits, or a signed count of words from the base register
//     bits 28..31  words to add to the CFA that was read
//     bit  31      the saved rbp is counted from the base register
//   KIND_RECORD:
//     bit  3       the base register is x29, otherwise sp
//     bits 4..20   CFA offset in 16-byte words
//     bits 20..30  words between the base register and what is saved
//     bits 30..32  what is saved
//   KIND_SPECIAL:
//     bits 3..8    which one
//     bits 20..24  the PLT threshold
const KIND_SPECIAL: u32 = 0;
const KIND_RSP: u32 = 1;
const KIND_RBP: u32 = 2;
const KIND_DEREF_RSP: u32 = 3;
const KIND_DEREF_RBP: u32 = 4;
const KIND_RECORD: u32 = 5;
const RECORD_FROM_FP: u32 = 1 << 3;
const RECORD_OFFSETS: u32 = 0xf_fff0;
const RECORD_SLOTS: u32 = 0x3ff;
const SPECIAL_NO_FDE: u32 = 0;
const SPECIAL_STOP: u32 = 1;
const SPECIAL_UNSUPPORTED: u32 = 2;
const SPECIAL_SIGNAL: u32 = 3;
const SPECIAL_PLT: u32 = 4;
const RBP_LOST: u32 = 0xfff;
const RBP_LOST_SHORT: u32 = 0xff;

impl Rule {
    /// The 32-bit form. A rule whose numbers don't fit becomes [`Rule::Unsupported`]'s; a saved rbp that doesn't fit
    /// becomes lost, because most frames unwind without it.
    pub fn encode(self) -> u32 {
        let special = |which: u32| KIND_SPECIAL | which << 3;
        match self {
            Rule::NoFde => special(SPECIAL_NO_FDE),
            Rule::Stop => special(SPECIAL_STOP),
            Rule::Unsupported => special(SPECIAL_UNSUPPORTED),
            Rule::Signal => special(SPECIAL_SIGNAL),
            Rule::Plt { threshold } if threshold < 16 => {
                special(SPECIAL_PLT) | u32::from(threshold) << 20
            }
            Rule::Plt { .. } => special(SPECIAL_UNSUPPORTED),
            Rule::Offset { base, offset, rbp } => match encode_offset(base, offset) {
                Some(offset) => base.kind() | offset | encode_rbp(rbp) << 20,
                None => special(SPECIAL_UNSUPPORTED),
            },
            Rule::Deref {
                base,
                offset,
                add,
                rbp,
            } => match encode_signed(offset) {
                Some(offset) if add <= 56 && add % 8 == 0 => {
                    base.deref_kind()
                        | offset
                        | u32::from(add / 8) << 28
                        | encode_rbp_short(rbp) << 20
                }
                _ => special(SPECIAL_UNSUPPORTED),
            },
            Rule::Record {
                base,
                offset,
                saved,
            } => encode_record(base, offset, saved).unwrap_or(special(SPECIAL_UNSUPPORTED)),
        }
    }

    /// The rule that [`Rule::encode`] made `code` from; what it never makes decodes as unsupported.
    pub fn decode(code: u32) -> Rule {
        match code & 7 {
            KIND_SPECIAL => match code >> 3 & 0x1f {
                SPECIAL_NO_FDE => Rule::NoFde,
                SPECIAL_STOP => Rule::Stop,
                SPECIAL_SIGNAL => Rule::Signal,
                SPECIAL_PLT => Rule::Plt {
                    threshold: (code >> 20 & 0xf) as u8,
                },
                _ => Rule::Unsupported,
            },
            KIND_RSP => Rule::Offset {
                base: Base::Sp,
                offset: (code & 0xf_fff8) as i32,
                rbp: decode_rbp(code),
            },
            KIND_RBP => Rule::Offset {
                base: Base::Fp,
                offset: signed_offset(code),
                rbp: decode_rbp(code),
            },
            KIND_DEREF_RSP => decode_deref(Base::Sp, code),
            KIND_DEREF_RBP => decode_deref(Base::Fp, code),
            KIND_RECORD => decode_record(code),
            _ => Rule::Unsupported,
        }
    }
}

impl Base {
    fn kind(self) -> u32 {
        match self {
            Base::Sp => KIND_RSP,
            Base::Fp => KIND_RBP,
        }
    }

    fn deref_kind(self) -> u32 {
        match self {
            Base::Sp => KIND_DEREF_RSP,
            Base::Fp => KIND_DEREF_RBP,
        }
    }
}

fn encode_offset(base: Base, offset: i32) -> Option<u32> {
    match base {
        Base::Sp => {
            let fits = (0..=MAX_UNSIGNED_OFFSET).contains(&i64::from(offset)) && offset % 8 == 0;
            fits.then_some(offset as u32)
        }
        Base::Fp => encode_signed(offset),
    }
}

fn encode_signed(offset: i32) -> Option<u32> {
    let fits = i64::from(offset).abs() <= MAX_SIGNED_OFFSET && offset % 8 == 0;
    fits.then_some(offset as u32 & 0xf_fff8)
}

fn encode_rbp(rbp: SavedRbp) -> u32 {
    match rbp {
        SavedRbp::Same => 0,
        SavedRbp::BelowCfa(bytes)
            if bytes > 0 && bytes % 8 == 0 && u32::from(bytes / 8) < RBP_LOST =>
        {
            u32::from(bytes / 8)
        }
        _ => RBP_LOST,
    }
}

fn encode_rbp_short(rbp: SavedRbp) -> u32 {
    match rbp {
        SavedRbp::Same => 0,
        SavedRbp::BelowCfa(bytes)
            if bytes > 0 && bytes % 8 == 0 && u32::from(bytes / 8) < RBP_LOST_SHORT =>
        {
            u32::from(bytes / 8)
        }
        SavedRbp::AtBase(bytes) if bytes % 8 == 0 && i8::try_from(bytes / 8).is_ok() => {
            1 << 11 | u32::from((bytes / 8) as u8)
        }
        _ => RBP_LOST_SHORT,
    }
}

fn decode_rbp(code: u32) -> SavedRbp {
    match code >> 20 {
        0 => SavedRbp::Same,
        RBP_LOST => SavedRbp::Lost,
        words => SavedRbp::BelowCfa(words as u16 * 8),
    }
}

fn decode_deref(base: Base, code: u32) -> Rule {
    let words = code >> 20 & 0xff;
    let rbp = match (code >> 31, words) {
        (1, words) => SavedRbp::AtBase(i16::from(words as u8 as i8) * 8),
        (_, 0) => SavedRbp::Same,
        (_, RBP_LOST_SHORT) => SavedRbp::Lost,
        (_, words) => SavedRbp::BelowCfa(words as u16 * 8),
    };
    Rule::Deref {
        base,
        offset: signed_offset(code),
        add: (code >> 28 & 7) as u8 * 8,
        rbp,
    }
}

fn encode_record(base: Base, offset: u32, saved: SavedLink) -> Option<u32> {
    let (kind, slot) = match saved {
        SavedLink::Nothing => (0, 0),
        SavedLink::Record(slot) => (1, slot),
        SavedLink::Link(slot) => (2, slot),
        SavedLink::LinkWithoutFp(slot) => (3, slot),
    };
    let from_fp = match base {
        Base::Sp => 0,
        Base::Fp => RECORD_FROM_FP,
    };
    let fits = offset & !RECORD_OFFSETS == 0 && slot % 8 == 0 && slot / 8 <= RECORD_SLOTS;
    fits.then_some(KIND_RECORD | from_fp | offset | (slot / 8) << 20 | kind << 30)
}

fn decode_record(code: u32) -> Rule {
    let slot = (code >> 20 & RECORD_SLOTS) * 8;
    Rule::Record {
        base: match code & RECORD_FROM_FP {
            0 => Base::Sp,
            _ => Base::Fp,
        },
        offset: code & RECORD_OFFSETS,
        saved: match code >> 30 {
            0 if slot != 0 => return Rule::Unsupported,
            0 => SavedLink::Nothing,
            1 => SavedLink::Record(slot),
            2 => SavedLink::Link(slot),
            _ => SavedLink::LinkWithoutFp(slot),
        },
    }
}

fn signed_offset(code: u32) -> i32 {
    // Bit 19 is the sign: move it to the top and back.
    ((code & 0xf_fff8) as i32) << 12 >> 12
}

/// Rules in their 32-bit form, each once, numbered in the order in which they came.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Vec<u32>", into = "Vec<u32>")]
pub struct Dictionary {
    codes: Vec<u32>,
    index: HashMap<u32, u16>,
}

impl From<Dictionary> for Vec<u32> {
    fn from(dictionary: Dictionary) -> Self {
        dictionary.codes
    }
}

impl TryFrom<Vec<u32>> for Dictionary {
    type Error = &'static str;

    /// Takes the rules of a dictionary in their order; each must be there once, the two fixed ones first.
    fn try_from(codes: Vec<u32>) -> Result<Self, Self::Error> {
        let mut dictionary = Self::new();
        if !codes.starts_with(&dictionary.codes) || codes.len() > MAX_RULES {
            return Err("these are not the rules of a dictionary");
        }
        for code in &codes {
            dictionary.intern(*code);
        }
        match dictionary.codes.len() == codes.len() {
            true => Ok(dictionary),
            false => Err("a rule is there twice"),
        }
    }
}

impl Dictionary {
    /// Index of [`Rule::NoFde`] in every dictionary.
    pub const NO_FDE: u16 = 0;
    /// Index of [`Rule::Unsupported`] in every dictionary.
    pub const UNSUPPORTED: u16 = 1;

    /// A dictionary of the two rules whose index is fixed.
    pub fn new() -> Self {
        let mut new = Dictionary {
            codes: Vec::new(),
            index: HashMap::new(),
        };
        new.intern(Rule::NoFde.encode());
        new.intern(Rule::Unsupported.encode());
        new
    }

    /// The index of a rule in its 32-bit form, added if it is new. In a full dictionary a new rule is unsupported.
    pub fn intern(&mut self, code: u32) -> u16 {
        if let Some(&index) = self.index.get(&code) {
            return index;
        }
        if self.codes.len() == MAX_RULES {
            return Dictionary::UNSUPPORTED;
        }
        let index = self.codes.len() as u16;
        self.codes.push(code);
        self.index.insert(code, index);
        index
    }

    /// The rules in their 32-bit form, by index.
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }
}

impl Default for Dictionary {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(base: Base, offset: i32, rbp: SavedRbp) -> Rule {
        Rule::Offset { base, offset, rbp }
    }

    fn record(base: Base, offset: u32, saved: SavedLink) -> Rule {
        Rule::Record {
            base,
            offset,
            saved,
        }
    }

    #[test]
    fn every_rule_survives_its_32_bit_form() {
        let rules = [
            Rule::NoFde,
            Rule::Stop,
            Rule::Unsupported,
            Rule::Signal,
            Rule::Plt { threshold: 11 },
            offset(Base::Sp, 8, SavedRbp::Same),
            offset(Base::Sp, 1_048_568, SavedRbp::BelowCfa(16)),
            offset(Base::Sp, 64, SavedRbp::BelowCfa(0xffe * 8)),
            offset(Base::Fp, 16, SavedRbp::BelowCfa(16)),
            offset(Base::Fp, -128, SavedRbp::Lost),
            offset(Base::Fp, -524_280, SavedRbp::Same),
            Rule::Deref {
                base: Base::Fp,
                offset: -8,
                add: 0,
                rbp: SavedRbp::AtBase(0),
            },
            Rule::Deref {
                base: Base::Fp,
                offset: -40,
                add: 0,
                rbp: SavedRbp::AtBase(-1024),
            },
            Rule::Deref {
                base: Base::Sp,
                offset: 152,
                add: 8,
                rbp: SavedRbp::BelowCfa(16),
            },
            Rule::Deref {
                base: Base::Sp,
                offset: 0,
                add: 56,
                rbp: SavedRbp::Lost,
            },
            Rule::Deref {
                base: Base::Sp,
                offset: 0,
                add: 0,
                rbp: SavedRbp::Same,
            },
            record(Base::Sp, 0, SavedLink::Nothing),
            record(Base::Sp, 1_048_560, SavedLink::Record(8184)),
            record(Base::Fp, 96, SavedLink::Record(0)),
            record(Base::Sp, 16, SavedLink::Link(8)),
            record(Base::Fp, 16, SavedLink::LinkWithoutFp(16)),
        ];
        for rule in rules {
            assert_eq!(Rule::decode(rule.encode()), rule);
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_unsupported_rather_than_wrong() {
        let too_big = [
            offset(Base::Sp, 1_048_576, SavedRbp::Same),
            offset(Base::Sp, -8, SavedRbp::Same),
            offset(Base::Sp, 12, SavedRbp::Same),
            offset(Base::Fp, 524_288, SavedRbp::Same),
            offset(Base::Fp, i32::MIN, SavedRbp::Same),
            Rule::Deref {
                base: Base::Fp,
                offset: -8,
                add: 64,
                rbp: SavedRbp::Same,
            },
            Rule::Plt { threshold: 16 },
            record(Base::Sp, 1_048_576, SavedLink::Nothing),
            record(Base::Sp, 24, SavedLink::Nothing),
            record(Base::Sp, 16_384, SavedLink::Record(8192)),
            record(Base::Sp, 16, SavedLink::Link(4)),
        ];
        for rule in too_big {
            assert_eq!(Rule::decode(rule.encode()), Rule::Unsupported, "{rule:?}");
        }
    }

    #[test]
    fn a_saved_rbp_that_does_not_fit_is_lost_and_the_rest_of_the_rule_stays() {
        let far = offset(Base::Sp, 40_000, SavedRbp::BelowCfa(0xfff * 8));
        assert_eq!(
            Rule::decode(far.encode()),
            offset(Base::Sp, 40_000, SavedRbp::Lost)
        );
        let from_base = offset(Base::Sp, 16, SavedRbp::AtBase(0));
        assert_eq!(
            Rule::decode(from_base.encode()),
            offset(Base::Sp, 16, SavedRbp::Lost)
        );
    }

    #[test]
    fn every_code_decodes_without_panic_to_something_stable() {
        for code in (0..=u32::MAX).step_by(65_521) {
            let rule = Rule::decode(code);
            assert_eq!(Rule::decode(rule.encode()), rule);
        }
    }

    #[test]
    fn a_dictionary_gives_equal_rules_one_index_and_stays_within_16_bits() {
        let mut rules = Dictionary::new();
        assert_eq!(rules.intern(Rule::NoFde.encode()), Dictionary::NO_FDE);
        assert_eq!(
            rules.intern(Rule::Unsupported.encode()),
            Dictionary::UNSUPPORTED
        );
        let first = rules.intern(offset(Base::Sp, 8, SavedRbp::Same).encode());
        assert_eq!(
            rules.intern(offset(Base::Sp, 8, SavedRbp::Same).encode()),
            first
        );
        for code in 1_000..200_000 {
            rules.intern(code);
        }
        assert_eq!(rules.codes().len(), 65_536);
        assert_eq!(rules.intern(300_000), Dictionary::UNSUPPORTED);
    }
}
