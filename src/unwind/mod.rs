//! The unwind information of an ELF file → compact tables that a BPF program can search: per 64 KiB page of code, rows
//! of "from this address on, this rule". Pure: bytes in, tables out; no files, no processes, no maps.

mod cfi;
mod elf;
mod rule;
mod signals;
mod walk;

use cfi::{Entry, Section};
use elf::Image;
pub use elf::{Machine, Segment};
use object::ReadRef;
pub use rule::{Dictionary, Rule};
use serde::{Deserialize, Serialize};
pub use walk::{End, Frame, Link, step};

/// Code that one page of a table covers, in bytes.
pub const PAGE_SIZE: u64 = 1 << 16;
/// Functions are padded to 16 bytes: a smaller gap between two entries holds no code of its own.
const LARGEST_PADDING: u64 = 15;

/// Why a file has no table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The bytes are not an ELF file, or its headers are broken.
    Malformed(String),
    /// The file is for a machine whose registers the rules don't know; its ELF machine number.
    UnsupportedMachine(u16),
    /// The file is for another machine than this one.
    OtherMachine,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Malformed(what) => write!(f, "failed to parse the ELF file: {what}"),
            Error::UnsupportedMachine(machine) => {
                write!(
                    f,
                    "failed to read unwind information: unsupported architecture (ELF machine {machine})"
                )
            }
            Error::OtherMachine => {
                f.write_str("failed to read unwind information: the file is for another machine")
            }
        }
    }
}

impl std::error::Error for Error {}

/// From `address` on, up to the next row, the rule with this index in [`Table::rules`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    address: u64,
    rule: u16,
}

/// An executable segment and its pages. Addresses are the file's own (before any load bias).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodePages {
    /// The part of the file that is executable.
    pub segment: Segment,
    /// Index in [`Table::rows`] of each page's first row, and of the row behind the last page. The first page is the
    /// one that holds the segment's first address.
    pub first_rows: Vec<u32>,
}

impl CodePages {
    /// Number of 64 KiB pages.
    pub fn page_count(&self) -> usize {
        self.first_rows.len().saturating_sub(1)
    }
}

/// The unwind rows of one ELF file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// The executable segments, in the order of the program headers.
    pub code: Vec<CodePages>,
    /// `(address & 0xffff) << 16 | index of the rule in rules`, ascending within a page. A page's first row is always
    /// for offset 0, so that a search within the page never misses.
    pub rows: Vec<u32>,
    /// This file's rules, numbered for this table alone.
    pub rules: Dictionary,
}

impl Table {
    /// Whether its parts fit together, which is not to be taken for granted where another process has built it.
    pub fn is_sound(&self) -> bool {
        let rules = self.rules.codes().len() as u32;
        let pages = |code: &CodePages| {
            let bytes = code.segment.vaddr % PAGE_SIZE;
            code.segment
                .size
                .checked_add(bytes)
                .map(|bytes| bytes.div_ceil(PAGE_SIZE))
        };
        self.code.iter().all(|code| {
            pages(code) == Some(code.page_count() as u64)
                && code.first_rows.is_sorted()
                && code
                    .first_rows
                    .last()
                    .is_none_or(|last| *last as usize <= self.rows.len())
        }) && self.rows.iter().all(|row| row & 0xffff < rules)
    }

    /// The rule for an address of the file, found as the BPF program finds it; `None` outside executable segments.
    pub fn lookup(&self, address: u64) -> Option<Rule> {
        let pages = self
            .code
            .iter()
            .find(|pages| pages.segment.contains(address))?;
        let page = usize::try_from(address / PAGE_SIZE - pages.segment.vaddr / PAGE_SIZE).ok()?;
        let first = *pages.first_rows.get(page)? as usize;
        let end = *pages.first_rows.get(page + 1)? as usize;
        let rows = self.rows.get(first..end)?;
        let behind = rows.partition_point(|row| u64::from(row >> 16) <= address % PAGE_SIZE);
        let index = rows.get(behind.checked_sub(1)?)? & 0xffff;
        Some(Rule::decode(*self.rules.codes().get(index as usize)?))
    }
}

/// Builds the table of an ELF file or of a memory image such as the vDSO. `.eh_frame` is used first, `.debug_frame` for
/// code that it doesn't cover. The file can be a slice, or a reader that loads only the parts asked for. Broken unwind information costs the code it describes, never the rest.
///
/// # Errors
/// When the headers can't be parsed or the file is for another machine than this one.
pub fn build<'a>(file: impl ReadRef<'a>) -> Result<Table, Error> {
    build_for(Machine::NATIVE, file)
}

/// As [`build`], for a machine.
fn build_for<'a>(machine: Machine, file: impl ReadRef<'a>) -> Result<Table, Error> {
    let image = Image::parse(file)?;
    if image.machine != machine {
        return Err(Error::OtherMachine);
    }
    let mut rules = Dictionary::new();
    let mut changes = changes(&image, &mut rules);
    if machine == Machine::Aarch64 {
        let signal = rules.intern(Rule::Signal.encode());
        changes = signals::mark(file, &image.code, changes, signal);
    }
    let mut rows = Vec::with_capacity(changes.len());
    let code = image
        .code
        .iter()
        .map(|segment| CodePages {
            segment: *segment,
            first_rows: pack(*segment, &changes, &mut rows),
        })
        .collect();
    Ok(Table { code, rows, rules })
}

/// The addresses at which functions begin by an ELF file's own `.eh_frame`, sorted; none where it has none.
pub fn function_starts<'a>(file: impl ReadRef<'a>) -> Vec<u64> {
    let Ok(image) = Image::parse(file) else {
        return Vec::new();
    };
    let section = image.eh_frame();
    let entries =
        section.map(|(section, bases)| Section::new(section, bases, image.machine).entries());
    let mut starts: Vec<u64> = entries
        .into_iter()
        .flatten()
        .filter(|entry| image.code.iter().any(|code| code.contains(entry.start)))
        .map(|entry| entry.start)
        .collect();
    starts.sort_unstable();
    starts.dedup();
    starts
}

/// Where rules change over the whole file, by address.
fn changes(image: &Image, rules: &mut Dictionary) -> Vec<Change> {
    let mut eh_frame = image
        .eh_frame()
        .map(|(section, bases)| Section::new(section, bases, image.machine));
    let mut debug_frame = image
        .debug_frame()
        .map(|(section, bases)| Section::new(section, bases, image.machine));
    let mut entries: Vec<(Entry, bool)> = Vec::new();
    if let Some(section) = &mut eh_frame {
        entries.extend(section.entries().into_iter().map(|entry| (entry, false)));
    }
    if let Some(section) = &mut debug_frame {
        entries.extend(section.entries().into_iter().map(|entry| (entry, true)));
    }
    entries.retain(|(entry, _)| {
        entry.start < entry.end
            && image
                .code
                .iter()
                .any(|code| code.overlaps(entry.start, entry.end))
    });
    entries.sort_by_key(|(entry, fallback)| (entry.start, *fallback, entry.end));

    let mut changes = Changes {
        changes: Vec::new(),
        covered_to: 0,
    };
    for (entry, fallback) in entries {
        changes.begin(entry);
        let mut emit = |address: u64, rule: Rule| {
            // a return leads to its first byte without a call before it, and a walk looks a byte earlier: in padding
            let returned_to = address == entry.start && matches!(rule, Rule::Stop | Rule::Signal);
            let address = address.saturating_sub(u64::from(returned_to));
            changes.add(address, rules.intern(rule.encode()));
        };
        if let (false, Some(section)) = (fallback, &mut eh_frame) {
            section.rules(entry, &mut emit);
        } else if let (true, Some(section)) = (fallback, &mut debug_frame) {
            section.rules(entry, &mut emit);
        }
        changes.covered_to = changes.covered_to.max(entry.end);
    }
    changes.finish()
}

/// Collects rule changes; entries come by ascending start.
struct Changes {
    changes: Vec<Change>,
    /// End of the code that entries have covered so far.
    covered_to: u64,
}

impl Changes {
    /// Marks the gap before an entry, unless it is padding.
    fn begin(&mut self, entry: Entry) {
        if entry.start.saturating_sub(self.covered_to) > LARGEST_PADDING {
            self.push(self.covered_to, Dictionary::NO_FDE);
        }
    }

    /// Adds a change inside the current entry; where entries overlap, the earlier one holds.
    fn add(&mut self, address: u64, rule: u16) {
        self.push(address.max(self.covered_to), rule);
    }

    fn push(&mut self, address: u64, rule: u16) {
        match self.changes.last_mut() {
            Some(last) if last.address == address => last.rule = rule,
            Some(last) if last.address > address || last.rule == rule => {}
            _ => self.changes.push(Change { address, rule }),
        }
    }

    fn finish(mut self) -> Vec<Change> {
        self.push(self.covered_to, Dictionary::NO_FDE);
        self.changes
    }
}

/// Appends a segment's rows page by page; returns where each page begins.
fn pack(segment: Segment, changes: &[Change], rows: &mut Vec<u32>) -> Vec<u32> {
    let mut first_rows = Vec::new();
    let mut next = changes.partition_point(|change| change.address <= segment.vaddr);
    let mut rule = next
        .checked_sub(1)
        .and_then(|last| changes.get(last))
        .map_or(Dictionary::NO_FDE, |change| change.rule);
    let mut page = segment.vaddr / PAGE_SIZE * PAGE_SIZE;
    while page < segment.end() {
        first_rows.push(rows.len() as u32);
        rows.push(u32::from(rule));
        let page_end = page.saturating_add(PAGE_SIZE);
        while let Some(change) = changes
            .get(next)
            .filter(|change| change.address < page_end.min(segment.end()))
        {
            let row = (change.address % PAGE_SIZE) as u32;
            if row == 0 {
                rows.pop();
            }
            rows.push(row << 16 | u32::from(change.rule));
            rule = change.rule;
            next += 1;
        }
        page = page_end;
    }
    first_rows.push(rows.len() as u32);
    first_rows
}

#[cfg(test)]
mod tests;
