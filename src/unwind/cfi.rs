//! Call frame information in DWARF's own terms (gimli) → code ranges with one rule each.
//! Nothing here knows how rows are packed; the layout of tables lives in the parent module.

mod aarch64;
mod x86_64;

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, EndianSlice, FrameDescriptionEntry,
    LittleEndian, Operation, Register, RegisterRule, UnwindContext, UnwindContextStorage,
    UnwindExpression, UnwindOffset, UnwindSection, UnwindTableRow,
};

use super::Machine;
use super::rule::Rule;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Operations in the longest expression that is understood here, the linkage table's.
const LONGEST_EXPRESSION: usize = 9;

/// Bytes of an entry's common part: compilers write some twenty.
const LONGEST_CIE: usize = 4096;

/// Storage for gimli's evaluation: gimli's own has room for 192 registers in each row, of which code names at most
/// these; copying it is a large part of the time.
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
    machine: Machine,
    cies: HashMap<usize, CommonInformationEntry<Bytes<'a>>>,
    context: UnwindContext<usize, Storage>,
}

impl<'a, S: UnwindSection<Bytes<'a>>> Section<'a, S>
where
    S::Offset: UnwindOffset<usize>,
{
    /// Wraps a section of code for a machine, whose encoded pointers count from `bases`.
    pub fn new(section: S, bases: BaseAddresses, machine: Machine) -> Self {
        Section {
            section,
            bases,
            machine,
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
                        let rule = match self.machine {
                            Machine::X86_64 => x86_64::rule_of(row, &fde, &self.section),
                            Machine::Aarch64 => aarch64::rule_of(row, &fde),
                        };
                        emit(row.start_address(), rule);
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
