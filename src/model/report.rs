//! A finished report: what is outstanding, ranked, with names. The one shape that every output format reads.
//! Data only: ranking lives in `analysis`, naming in `symbolize`, formatting in `output`.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

use crate::model::losses::Losses;
use crate::model::snapshot::{Allocation, Amount, Class, Look, Reach, WallTime};

/// Bytes as lower-case hexadecimal digits: how build ids are written everywhere.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An object (executable, shared library, kernel or kernel module) that code belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Module {
    /// Path as the target sees it, or a pseudo name such as `[vdso]` or `[kernel]`.
    pub path: PathBuf,
    /// GNU build id, where the file has one.
    pub build_id: Option<Vec<u8>>,
}

impl Module {
    /// The last component of the path: what the text report prints in brackets.
    pub fn name(&self) -> String {
        match self.path.file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None => self.path.to_string_lossy().into_owned(),
        }
    }
}

/// A place in source code.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Source file as the debug information names it.
    pub file: PathBuf,
    /// Line, counted from 1, where known.
    pub line: Option<u32>,
}

/// A function that a frame runs in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Function {
    /// Demangled name.
    pub name: String,
    /// Source of the call, where debug information gives it.
    pub location: Option<Location>,
}

/// A language that an interpreter runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// CPython's.
    Python,
}

impl Language {
    /// All of them.
    pub const ALL: [Language; 1] = [Language::Python];

    /// The name used in outputs.
    pub fn name(self) -> &'static str {
        match self {
            Language::Python => "python",
        }
    }

    /// The language of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|language| language.name() == name)
    }

    /// What stands for an object with its code.
    pub fn module(self) -> Arc<Module> {
        static PYTHON: LazyLock<Arc<Module>> = LazyLock::new(|| {
            Arc::new(Module {
                path: "[python]".into(),
                build_id: None,
            })
        });
        match self {
            Language::Python => Arc::clone(&PYTHON),
        }
    }
}

/// One return address of a stack, with what is known about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame {
    /// The return address, as the target saw it.
    pub address: u64,
    /// The object that maps the address, if any does.
    pub module: Option<Arc<Module>>,
    /// The address's offset in the module's file in bytes, where the module is a file.
    pub file_offset: Option<u64>,
    /// The function that was compiled to hold the address; `None` prints as `[unknown]`.
    pub function: Option<Function>,
    /// Bytes from the function's first to the return address.
    pub function_offset: u64,
    /// The language that the function is written in, where an interpreter runs it: then there is no address.
    pub language: Option<Language>,
    /// Functions inlined at the call site, innermost first.
    pub inlined: Vec<Function>,
}

/// One stack of a report and what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The process that owns the memory; 0 for the kernel.
    pub tgid: u32,
    /// What kind of memory it is.
    pub class: Class,
    /// The allocator that gave it, where it is known and not the C library's.
    pub allocator: Option<Arc<str>>,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// Age of the oldest allocation in ns, where known.
    pub oldest_ns: Option<u64>,
    /// How much of it can't be reached, where that was looked at.
    pub reach: Option<Reach>,
    /// The stack, innermost frame first; `None` when it could not be stored.
    pub frames: Option<Vec<Frame>>,
}

impl Entry {
    /// What it holds.
    pub fn amount(&self) -> Amount {
        Amount {
            bytes: self.bytes,
            count: self.count,
        }
    }
}

/// One live block, as reports list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedAllocation {
    /// The process that owns it; 0 for the kernel.
    pub tgid: u32,
    /// The block.
    pub allocation: Allocation,
    /// The kernel's slab cache that it comes from, where it comes from a named one.
    pub cache: Option<Arc<str>>,
    /// The allocator that gave it, where it is known and not the C library's.
    pub allocator: Option<Arc<str>>,
}

/// A process of a report on several, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessEntry {
    /// Its id.
    pub tgid: u32,
    /// What it is called: the kernel's name of at most 15 bytes.
    pub name: String,
    /// Whether it has ended.
    pub ended: bool,
    /// Stacks with outstanding memory, shown or not.
    pub stacks: u64,
    /// Bytes over all its stacks, shown or not.
    pub bytes: u64,
    /// Allocations over all its stacks, shown or not.
    pub count: u64,
}

/// What is outstanding at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// When the figures were taken.
    pub time: WallTime,
    /// How many stacks were asked for; of each process, where there can be several.
    pub top: usize,
    /// The processes, by id, where there can be several; empty for one, and for the kernel.
    pub processes: Vec<ProcessEntry>,
    /// All live blocks, smallest first, if they were asked for.
    pub allocations: Vec<ListedAllocation>,
    /// The entries that were asked for, smallest first, as the text report prints them.
    pub entries: Vec<Entry>,
    /// Stacks with outstanding memory, shown or not.
    pub total_stacks: u64,
    /// Bytes over all stacks, shown or not.
    pub total_bytes: u64,
    /// Allocations over all stacks, shown or not.
    pub total_count: u64,
    /// What a look at the target's memory came to, where there was one.
    pub look: Option<Look>,
    /// Whether the figures are estimates scaled up from a sample.
    pub estimated: bool,
    /// What was lost since the start.
    pub losses: Losses,
}

impl Report {
    /// Makes the processes' figures those of the entries, which must list every stack.
    pub fn sum_processes(&mut self) {
        for process in &mut self.processes {
            (process.stacks, process.bytes, process.count) = (0, 0, 0);
        }
        for entry in &self.entries {
            let found = self
                .processes
                .binary_search_by_key(&entry.tgid, |process| process.tgid);
            if let Ok(at) = found {
                let process = &mut self.processes[at];
                process.stacks += 1;
                process.bytes = process.bytes.saturating_add(entry.bytes);
                process.count = process.count.saturating_add(entry.count);
            }
        }
    }

    /// What a process is called, where there can be several.
    pub fn process_name(&self, tgid: u32) -> Option<&str> {
        let found = self
            .processes
            .binary_search_by_key(&tgid, |process| process.tgid);
        found.ok().map(|at| self.processes[at].name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_known_by_their_names() {
        for language in Language::ALL {
            assert_eq!(Language::named(language.name()), Some(language));
            assert_eq!(language.module().name(), format!("[{}]", language.name()));
        }
        assert_eq!(Language::named("cobol"), None);
    }
}
