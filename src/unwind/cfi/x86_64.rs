//! What call frame information says of x86-64 code → rules: the return address is at CFA−8.
//! Nothing here reads sections.

use gimli::{
    CfaRule, FrameDescriptionEntry, Operation, Register, RegisterRule, UnwindExpression,
    UnwindSection, UnwindTableRow,
};

use super::{Bytes, Storage, operations};
use crate::unwind::rule::{Base, Rule, SavedRbp};

// DWARF register numbers of the x86-64 psABI, figure 3.36.
const RBP: Register = Register(6);
const RSP: Register = Register(7);
const RETURN_ADDRESS: Register = Register(16);
/// Offset of rip from rsp in a signal trampoline: `uc_mcontext.gregs[REG_RIP]` behind the popped return address.
const SIGNAL_RIP: i64 = 168;

/// The rule of a row.
pub(super) fn rule_of<'a, S: UnwindSection<Bytes<'a>>>(
    row: &UnwindTableRow<usize, Storage>,
    fde: &FrameDescriptionEntry<Bytes<'a>>,
    section: &S,
) -> Rule {
    let operations = |expression: &UnwindExpression<usize>| operations(expression, fde, section);
    match row.register(RETURN_ADDRESS) {
        Some(RegisterRule::Undefined) => return Rule::Stop,
        Some(RegisterRule::Offset(-8)) => {}
        Some(RegisterRule::Expression(expression)) if fde.is_signal_trampoline() => {
            return match operations(&expression).as_deref() {
                Some(
                    [
                        Operation::RegisterOffset {
                            register: RSP,
                            offset: SIGNAL_RIP,
                            ..
                        },
                    ],
                ) => Rule::Signal,
                _ => Rule::Unsupported,
            };
        }
        _ => return Rule::Unsupported,
    }
    match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            match (base(*register), i32::try_from(*offset)) {
                (Some(base), Ok(offset)) => Rule::Offset {
                    base,
                    offset,
                    rbp: saved_rbp(row, base, operations),
                },
                _ => Rule::Unsupported,
            }
        }
        CfaRule::Expression(expression) => match operations(expression) {
            Some(cfa) => plt(&cfa)
                .or_else(|| {
                    let (base, offset, add) = deref(&cfa)?;
                    Some(Rule::Deref {
                        base,
                        offset,
                        add,
                        rbp: saved_rbp(row, base, operations),
                    })
                })
                .unwrap_or(Rule::Unsupported),
            None => Rule::Unsupported,
        },
    }
}

fn base(register: Register) -> Option<Base> {
    match register {
        RSP => Some(Base::Sp),
        RBP => Some(Base::Fp),
        _ => None,
    }
}

fn saved_rbp<'a>(
    row: &UnwindTableRow<usize, Storage>,
    cfa_base: Base,
    operations: impl Fn(&UnwindExpression<usize>) -> Option<Vec<Operation<Bytes<'a>>>>,
) -> SavedRbp {
    match row.register(RBP) {
        // An undefined rbp may hold anything: keeping it is as good as any guess, and what gcc's own unwinder does.
        None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => SavedRbp::Same,
        Some(RegisterRule::Offset(offset)) => match u16::try_from(-i128::from(offset)) {
            Ok(below) if below > 0 => SavedRbp::BelowCfa(below),
            _ => SavedRbp::Lost,
        },
        Some(RegisterRule::Expression(expression)) => match operations(&expression).as_deref() {
            Some(
                [
                    Operation::RegisterOffset {
                        register, offset, ..
                    },
                ],
            ) if base(*register) == Some(cfa_base) => {
                i16::try_from(*offset).map_or(SavedRbp::Lost, SavedRbp::AtBase)
            }
            _ => SavedRbp::Lost,
        },
        _ => SavedRbp::Lost,
    }
}

/// `*(register + offset) + add`
fn deref(operations: &[Operation<Bytes<'_>>]) -> Option<(Base, i32, u8)> {
    let (register, offset, rest) = match operations {
        [
            Operation::RegisterOffset {
                register, offset, ..
            },
            Operation::Deref { size: 8, .. },
            rest @ ..,
        ] => (*register, *offset, rest),
        _ => return None,
    };
    let add = match rest {
        [] => 0,
        [Operation::PlusConstant { value }] => u8::try_from(*value).ok()?,
        _ => return None,
    };
    Some((base(register)?, i32::try_from(offset).ok()?, add))
}

/// `rsp + 8 + ((rip & 15) >= threshold) << 3`, as linkers write it for their lazy procedure linkage tables.
fn plt(operations: &[Operation<Bytes<'_>>]) -> Option<Rule> {
    use Operation::{And, Ge, Plus, RegisterOffset, Shl, UnsignedConstant};
    match operations {
        [
            RegisterOffset {
                register: RSP,
                offset: 8,
                ..
            },
            RegisterOffset {
                register: RETURN_ADDRESS,
                offset: 0,
                ..
            },
            UnsignedConstant { value: 15 },
            And,
            UnsignedConstant { value: threshold },
            Ge,
            UnsignedConstant { value: 3 },
            Shl,
            Plus,
        ] => u8::try_from(*threshold)
            .ok()
            .map(|threshold| Rule::Plt { threshold }),
        _ => None,
    }
}
