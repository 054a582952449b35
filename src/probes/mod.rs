//! Which functions are probed and where: rows of a table, the functions of an ELF object, the instruction in each.
//! No BPF, and nothing about what a probe does once it is hit.

mod discover;
mod site;
mod symbols;
mod table;

use std::collections::BTreeMap;

use anyhow::Result;

pub use discover::{Candidate, ObjectPlan, Wanted, discover};
pub use table::{HEAP, MAPPINGS, Operation, Signature};

use site::{Contract, Site, choose};
use symbols::Symbols;

/// A function of an object that is to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its full name, prefix included.
    pub name: String,
    /// How to read a call of it.
    pub signature: Signature,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Functions to probe, by place in the file.
    pub probes: Vec<Probe>,
    /// Functions that the object lacks.
    pub missing: Vec<String>,
}

impl Plan {
    /// Whether blocks that are allocated here would be seen.
    pub fn allocates(&self) -> bool {
        self.probes
            .iter()
            .any(|probe| probe.signature.operation == Operation::Allocate)
    }
}

/// Where in a function its probe may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Finds the functions to probe in the ELF object whose file holds `data`. Functions that share their code
/// are probed once.
///
/// # Errors
/// Fails when `data` is not a 64-bit ELF object.
pub fn plan(data: &[u8], search: Search<'_>) -> Result<Plan> {
    let symbols = Symbols::parse(data)?;
    let mappings = if search.mappings { MAPPINGS } else { &[] };
    let heap = HEAP
        .iter()
        .map(|row| (format!("{}{}", search.prefix, row.name), row));
    let mappings = mappings.iter().map(|row| (row.name.to_string(), row));
    let mut by_place: BTreeMap<u64, Probe> = BTreeMap::new();
    let mut missing = Vec::new();
    for (name, row) in heap.chain(mappings) {
        let Some(function) = symbols.find(&name) else {
            missing.push(name);
            continue;
        };
        by_place
            .entry(function.file_offset)
            .and_modify(|probe| probe.aliases.push(name.clone()))
            .or_insert_with(|| Probe {
                name,
                signature: row.signature,
                function_offset: function.file_offset,
                length: function.size,
                site: match search.at {
                    ProbeAt::Cheapest => choose(&symbols, &function, contract(row.signature)),
                    ProbeAt::Symbol => Site::asked_for(),
                },
                aliases: Vec::new(),
            });
    }
    Ok(Plan {
        probes: by_place.into_values().collect(),
        missing,
    })
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
