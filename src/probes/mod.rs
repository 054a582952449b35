//! Which functions are probed and where: rows of a table, the functions of an ELF object, the instruction in each.
//! No BPF, and nothing about what a probe does once it is hit.

mod families;
mod inspect;
mod internals;
mod live;
mod own;
pub mod site;
pub mod symbols;
mod table;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use families::LIBC;
pub use inspect::{Inspection, Question, inspect};
pub use live::is_patched;
pub use own::OwnFunction;
pub use table::{Operation, Signature};

use families::{Member, mapping_members, members};
use site::{Contract, Site, choose, is_harmful};
use symbols::{Function, Symbols};

/// A function of an object that is to be probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Its full name, prefix included.
    pub name: String,
    /// How to read a call of it.
    pub signature: Signature,
    /// The allocator that it belongs to; `libc` for the C library's.
    pub allocator: Arc<str>,
    /// Where its code begins in the object's file, in bytes.
    pub function_offset: u64,
    /// Length of its code in bytes.
    pub length: u64,
    /// Which of its instructions is probed, and why.
    pub site: Site,
    /// Other rows' functions at the same place, which this probe serves as well.
    pub aliases: Vec<String>,
}

impl Probe {
    /// Where the probe goes in the object's file, in bytes.
    pub fn offset(&self) -> u64 {
        self.function_offset + self.site.offset
    }

    /// Whether a call of the other is read and judged just like one of this.
    pub fn is_like(&self, other: &Self) -> bool {
        self.signature == other.signature && self.allocator == other.allocator
    }

    /// Lets the other's calls go by this one's names and its own.
    pub fn share(&mut self, other: &Self) {
        self.aliases.push(other.name.clone());
        self.aliases.extend_from_slice(&other.aliases);
    }

    /// All the names under which its code can be called.
    pub fn names(&self) -> String {
        let mut names = self.name.clone();
        for alias in &self.aliases {
            names.push('/');
            names.push_str(alias);
        }
        names
    }
}

/// What an object has of the functions in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Functions to probe, by place in the file.
    pub probes: Vec<Probe>,
    /// Functions to probe as well if nothing else gives blocks.
    pub last_resort: Vec<Probe>,
    /// Functions that could be expected and that the object lacks.
    pub missing: Vec<String>,
    /// Where the object's allocator maps memory from: ranges of its file in bytes.
    pub allocator_code: Vec<Range<u64>>,
}

impl Plan {
    /// Whether blocks that are allocated here would be seen.
    pub fn allocates(&self) -> bool {
        allocate(&self.probes)
    }

    /// Whether the object has a function that maps memory.
    pub fn maps(&self) -> bool {
        let maps = |probe: &Probe| probe.signature.operation == Operation::Mmap;
        self.probes.iter().any(maps)
    }

    /// Probes what otherwise would be left to another allocator, for there is none.
    pub fn resort(&mut self) {
        self.probes.append(&mut self.last_resort);
        self.probes.sort_by_key(|probe| probe.function_offset);
    }

    /// Probes a function as the user says, whatever else it is known as.
    pub fn add(&mut self, probe: Probe) {
        self.probes
            .retain(|known| known.function_offset != probe.function_offset);
        self.probes.push(probe);
    }
}

fn allocate(probes: &[Probe]) -> bool {
    probes
        .iter()
        .any(|probe| probe.signature.operation == Operation::Allocate)
}

/// Where in a function its probe may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeAt {
    /// Where it costs least.
    Cheapest,
    /// At its first instruction.
    Symbol,
}

/// What to look for in an object.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// Prefix of the heap functions' names.
    pub prefix: &'a str,
    /// Whether the functions for anonymous mappings are wanted.
    pub mappings: bool,
    /// Where the probes may go.
    pub at: ProbeAt,
}

/// Finds the functions to probe in an ELF object of which `file` is the name. Functions that share their code are
/// probed once.
fn plan(symbols: &Symbols<'_>, file: &str, search: Search<'_>) -> Plan {
    let mut wanted = members(symbols, file, search.prefix);
    if search.mappings {
        wanted.extend(mapping_members());
    }
    let mut by_place: BTreeMap<u64, (Probe, bool)> = BTreeMap::new();
    let mut missing = Vec::new();
    for member in wanted {
        let Some(function) = symbols.find(&member.name) else {
            if member.expected {
                missing.push(member.name);
            }
            continue;
        };
        let last_resort = member.last_resort;
        let Some(probe) = probe(symbols, &member, &function, search.at) else {
            missing.push(member.name);
            continue;
        };
        by_place
            .entry(function.file_offset)
            .and_modify(|(probe, last)| {
                probe.aliases.push(member.name.clone());
                *last &= last_resort;
            })
            .or_insert((probe, last_resort));
    }
    let (mut probes, mut last_resort) = (Vec::new(), Vec::new());
    for (probe, last) in by_place.into_values() {
        match last {
            true => last_resort.push(probe),
            false => probes.push(probe),
        }
    }
    let allocator_code = match allocate(&probes) || allocate(&last_resort) {
        true => internals::allocator_code(symbols),
        false => Vec::new(),
    };
    Plan {
        probes,
        last_resort,
        missing,
        allocator_code,
    }
}

/// None where a probe would do harm.
fn probe(
    symbols: &Symbols<'_>,
    member: &Member,
    function: &Function,
    at: ProbeAt,
) -> Option<Probe> {
    let site = match at {
        ProbeAt::Cheapest => choose(symbols, function, contract(member.signature)),
        ProbeAt::Symbol => Site::asked_for(),
    };
    (!is_harmful(symbols, function, &site)).then(|| Probe {
        site,
        name: member.name.clone(),
        signature: member.signature,
        allocator: member.allocator.clone(),
        function_offset: function.file_offset,
        length: function.size,
        aliases: Vec::new(),
    })
}

/// The probe of a function as the user describes it; none where it would do harm.
fn plan_own(
    symbols: &Symbols<'_>,
    name: &str,
    signature: Signature,
    function: &Function,
    at: ProbeAt,
) -> Option<Probe> {
    let member = Member {
        name: name.to_owned(),
        signature,
        allocator: name.into(),
        expected: true,
        last_resort: false,
    };
    probe(symbols, &member, function, at)
}

/// What a probe of such a function relies on.
fn contract(signature: Signature) -> Contract {
    match signature.operation {
        Operation::Free => Contract::FREE,
        Operation::Mmap | Operation::Munmap | Operation::Mremap => Contract::UNKNOWN,
        Operation::Allocate | Operation::Reallocate => {
            let read = [
                signature.size,
                signature.count,
                signature.block,
                signature.out,
            ];
            Contract::reads(read.into_iter().flatten().max().unwrap_or(0).into())
        }
    }
}
