//! What call frame information says of aarch64 code → rules: the return address is in x30, or saved beside x29.
//! Nothing here reads sections.

use gimli::{CfaRule, FrameDescriptionEntry, Register, RegisterRule, UnwindTableRow};

use super::{Bytes, Storage};
use crate::unwind::rule::{Base, Rule, SavedLink};

// DWARF register numbers of the AArch64 ABI. Whether x30 is signed (register 34) is not looked at: a walk takes any
// signature away.
const X29: Register = Register(29);
const X30: Register = Register(30);
const SP: Register = Register(31);

/// The rule of a row.
pub(super) fn rule_of(
    row: &UnwindTableRow<usize, Storage>,
    fde: &FrameDescriptionEntry<Bytes<'_>>,
) -> Rule {
    if fde.is_signal_trampoline() {
        return Rule::Signal;
    }
    record(row).unwrap_or(Rule::Unsupported)
}

fn record(row: &UnwindTableRow<usize, Storage>) -> Option<Rule> {
    let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else {
        return None;
    };
    let base = match register {
        SP => Base::Sp,
        X29 => Base::Fp,
        _ => return None,
    };
    // register rules count from the CFA, and may be below the base register, where the kernel may write
    let from_base = |from_cfa: i64| u32::try_from(offset.checked_add(from_cfa)?).ok();
    let saved = match (row.register(X30), row.register(X29)) {
        (Some(RegisterRule::Undefined), _) => return Some(Rule::Stop),
        (None | Some(RegisterRule::SameValue), None | Some(RegisterRule::SameValue)) => {
            SavedLink::Nothing
        }
        (Some(RegisterRule::Offset(link)), None | Some(RegisterRule::SameValue)) => {
            SavedLink::Link(from_base(link)?)
        }
        (Some(RegisterRule::Offset(link)), Some(RegisterRule::Offset(fp)))
            if fp.checked_add(8) == Some(link) =>
        {
            SavedLink::Record(from_base(fp)?)
        }
        (Some(RegisterRule::Offset(link)), _) => SavedLink::LinkWithoutFp(from_base(link)?),
        _ => return None,
    };
    Some(Rule::Record {
        base,
        offset: u32::try_from(offset).ok()?,
        saved,
    })
}

#[cfg(test)]
mod tests {
    use gimli::{BaseAddresses, EhFrame, LittleEndian, Vendor};

    use super::super::{Entry, Section};
    use super::*;
    use crate::unwind::Machine;

    /// Begins at sp, counts code in 4 and data in -8 bytes; the return address is in register 30.
    const CIE: &[u8] = b"\0\0\0\0\x01zR\0\x04\x78\x1e\x01\x00\x0c\x1f\x00";
    const START: u64 = 0x1000;

    fn sized(entry: &[u8]) -> Vec<u8> {
        let padding = entry.len().wrapping_neg() % 4;
        let length = u32::try_from(entry.len() + padding).unwrap();
        [&length.to_le_bytes(), entry, &vec![0; padding]].concat()
    }

    /// The rules of a function of 16 instructions, by the instruction at which they begin.
    fn rules(instructions: &[u8]) -> Vec<(u64, Rule)> {
        let cie = sized(CIE);
        let to_cie = u32::try_from(cie.len() + 4).unwrap().to_le_bytes();
        let fde = [
            &to_cie[..],
            &START.to_le_bytes(),
            &64_u64.to_le_bytes(),
            &[0],
            instructions,
        ]
        .concat();
        let bytes = [cie, sized(&fde), vec![0; 4]].concat();
        let mut section = EhFrame::new(&bytes, LittleEndian);
        section.set_address_size(8);
        section.set_vendor(Vendor::AArch64);
        let bases = BaseAddresses::default().set_eh_frame(0);
        let mut section = Section::new(section, bases, Machine::Aarch64);
        let entries: Vec<Entry> = section.entries();
        let mut found = Vec::new();
        for entry in entries {
            section.rules(entry, |address, rule| {
                found.push(((address - START) / 4, rule));
            });
        }
        found
    }

    fn record(base: Base, offset: u32, saved: SavedLink) -> Rule {
        Rule::Record {
            base,
            offset,
            saved,
        }
    }

    #[test]
    fn a_frame_record_is_found_whether_signed_or_not() {
        // paciasp; stp x29, x30, [sp, #-48]!; add x29, sp, #16, as if it were there
        let instructions = [
            0x41, 0x2d, // advance; negate_ra_state
            0x41, 0x0e, 48, 0x9d, 6, 0x9e, 5, // def_cfa_offset; x29 at -48, x30 at -40
            0x41, 0x0c, 29, 32, // def_cfa x29, 32
        ];
        assert_eq!(
            rules(&instructions),
            [
                (0, record(Base::Sp, 0, SavedLink::Nothing)),
                (1, record(Base::Sp, 0, SavedLink::Nothing)),
                (2, record(Base::Sp, 48, SavedLink::Record(0))),
                // both below the base register
                (3, Rule::Unsupported),
            ]
        );
    }

    #[test]
    fn the_link_register_can_be_saved_alone_or_apart() {
        let alone = [0x41, 0x0e, 16, 0x9e, 2];
        assert_eq!(
            rules(&alone)[1],
            (1, record(Base::Sp, 16, SavedLink::Link(0)))
        );
        let apart = [0x41, 0x0e, 32, 0x9d, 1, 0x9e, 4];
        assert_eq!(
            rules(&apart)[1],
            (1, record(Base::Sp, 32, SavedLink::LinkWithoutFp(0)))
        );
        let far = [0x41, 0x0e, 0x90, 0xa2, 0x04, 0x9d, 2, 0x9e, 1];
        assert_eq!(
            rules(&far)[1],
            (1, record(Base::Sp, 69_904, SavedLink::Record(69_888)))
        );
    }

    #[test]
    fn the_outermost_frame_and_what_cannot_be_expressed_are_told_apart() {
        assert_eq!(rules(&[0x07, 30]), [(0, Rule::Stop)]);
        // def_cfa x9, 16
        assert_eq!(rules(&[0x0c, 9, 16]), [(0, Rule::Unsupported)]);
        // x30 in x3
        assert_eq!(rules(&[0x09, 30, 3]), [(0, Rule::Unsupported)]);
    }
}
