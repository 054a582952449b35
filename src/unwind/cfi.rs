//! Call frame information in DWARF's own terms (gimli) → code ranges with one rule each.
//! Nothing here knows how rows are packed; the layout of tables lives in the parent module.

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, CommonInformationEntry, EndianSlice, FrameDescriptionEntry,
    LittleEndian, Operation, Register, RegisterRule, UnwindContext, UnwindContextStorage,
    UnwindExpression, UnwindOffset, UnwindSection, UnwindTableRow,
};

use super::rule::{Base, Rule, SavedRbp};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

// DWARF register numbers of the x86-64 psABI, figure 3.36.
const RBP: Register = Register(6);
const RSP: Register = Register(7);
const RETURN_ADDRESS: Register = Register(16);
/// Offset of rip from rsp in a signal trampoline: `uc_mcontext.gregs[REG_RIP]` behind the popped return address.
const SIGNAL_RIP: i64 = 168;
/// Operations in the longest expression that is understood here, the linkage table's.
const LONGEST_EXPRESSION: usize = 9;

/// Bytes of an entry's common part: compilers write some twenty.
const LONGEST_CIE: usize = 4096;

/// Storage for gimli's evaluation: gimli's own has room for 192 registers in each row, of which x86-64 code names at
/// most these; copying it is a large part of the time.
struct Storage;

impl UnwindContextStorage<usize> for Storage {
    type Rules = [(Register, RegisterRule<usize>); 40];
    type Stack = Box<[UnwindTableRow<usize, Self>; 8]>;
}

/// The code that one frame description entry covers, and where it stands in its section.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// First address.
    pub start: u64,
    /// First address behind the code.
    pub end: u64,
    offset: usize,
}

#[cfg(test)]
impl Entry {
    /// An entry that stands nowhere.
    pub fn new(start: u64, end: u64) -> Self {
        Entry {
            start,
            end,
            offset: 0,
        }
    }
}

/// A `.eh_frame` or `.debug_frame` section that can be read entry by entry.
pub struct Section<'a, S: UnwindSection<Bytes<'a>>> {
    section: S,
    bases: BaseAddresses,
    cies: HashMap<usize, CommonInformationEntry<Bytes<'a>>>,
    context: UnwindContext<usize, Storage>,
}

impl<'a, S: UnwindSection<Bytes<'a>>> Section<'a, S>
where
    S::Offset: UnwindOffset<usize>,
{
    /// Wraps a section whose encoded pointers count from `bases`.
    pub fn new(section: S, bases: BaseAddresses) -> Self {
        Section {
            section,
            bases,
            cies: HashMap::new(),
            context: UnwindContext::new_in(),
        }
    }

    /// The entries up to the first that is malformed, in the section's order.
    pub fn entries(&mut self) -> Vec<Entry> {
        let mut found = Vec::new();
        let mut entries = self.section.entries(&self.bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else {
                continue;
            };
            let cies = &mut self.cies;
            let parsed = partial.parse(|section, bases, offset| cie(cies, section, bases, offset));
            if let Ok(fde) = parsed {
                found.push(Entry {
                    start: fde.initial_address(),
                    end: fde.end_address(),
                    offset: fde.offset(),
                });
            }
        }
        found
    }

    /// Calls `emit` with the start and rule of each stretch of an entry's code, in address order. Code whose rules
    /// are malformed is unsupported from there on.
    pub fn rules(&mut self, entry: Entry, mut emit: impl FnMut(u64, Rule)) {
        let cies = &mut self.cies;
        let parsed = self.section.fde_from_offset(
            &self.bases,
            S::Offset::from(entry.offset),
            |section, bases, offset| cie(cies, section, bases, offset),
        );
        let Ok(fde) = parsed else {
            return emit(entry.start, Rule::Unsupported);
        };
        let Ok(mut rows) = fde.rows(&self.section, &self.bases, &mut self.context) else {
            return emit(entry.start, Rule::Unsupported);
        };
        let mut reached = entry.start;
        loop {
            match rows.next_row() {
                Ok(Some(row)) => {
                    reached = row.end_address().max(reached);
                    if row.start_address() < row.end_address() {
                        emit(row.start_address(), rule_of(row, &fde, &self.section));
                    }
                }
                Ok(None) => return,
                Err(_) => return emit(reached, Rule::Unsupported),
            }
        }
    }
}

/// The entry's common part, parsed once per section.
fn cie<'a, S: UnwindSection<Bytes<'a>>>(
    known: &mut HashMap<usize, CommonInformationEntry<Bytes<'a>>>,
    section: &S,
    bases: &BaseAddresses,
    offset: S::Offset,
) -> gimli::Result<CommonInformationEntry<Bytes<'a>>> {
    let key: usize = UnwindOffset::into(offset);
    if let Some(cie) = known.get(&key) {
        return Ok(cie.clone());
    }
    let cie = section.cie_from_offset(bases, offset)?;
    // each function's rules begin with all of its instructions
    if cie.entry_len() > LONGEST_CIE {
        return Err(gimli::Error::UnsupportedOffset);
    }
    known.insert(key, cie.clone());
    Ok(cie)
}

fn rule_of<'a, S: UnwindSection<Bytes<'a>>>(
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
        RSP => Some(Base::Rsp),
        RBP => Some(Base::Rbp),
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

/// The operations of an expression; `None` where it is malformed or longer than any that is understood here.
fn operations<'a, S: UnwindSection<Bytes<'a>>>(
    expression: &UnwindExpression<usize>,
    fde: &FrameDescriptionEntry<Bytes<'a>>,
    section: &S,
) -> Option<Vec<Operation<Bytes<'a>>>> {
    let expression = expression.get(section).ok()?;
    let mut iterator = expression.operations(fde.cie().encoding());
    let mut operations = Vec::new();
    while let Some(operation) = iterator.next().ok()? {
        if operations.len() == LONGEST_EXPRESSION {
            return None;
        }
        operations.push(operation);
    }
    Some(operations)
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
