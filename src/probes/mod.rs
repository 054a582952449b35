//! Which functions are probed and where: rows of a table, the functions of an ELF object, the instruction in each.
//! No BPF, and nothing about what a probe does once it is hit.

mod discover;
mod symbols;
mod table;

use std::collections::BTreeMap;

use anyhow::Result;

pub use discover::{Candidate, ObjectPlan, Wanted, discover};
pub use table::{HEAP, MAPPINGS, Operation, Signature};

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
    /// Where the probe goes in the object's file, in bytes.
    pub site: u64,
    /// Other rows' functions at the same place, which this probe serves as well.
    pub aliases: Vec<String>,
}

impl Probe {
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

/// Finds the functions to probe in the ELF object whose file holds `data`: the heap's under `prefix`, and,
/// if `mappings`, those for anonymous mappings. Functions that share their code are probed once.
///
/// # Errors
/// Fails when `data` is not a 64-bit ELF object.
pub fn plan(data: &[u8], prefix: &str, mappings: bool) -> Result<Plan> {
    let symbols = Symbols::parse(data)?;
    let mappings = if mappings { MAPPINGS } else { &[] };
    let heap = HEAP
        .iter()
        .map(|row| (format!("{prefix}{}", row.name), row));
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
                site: function.file_offset,
                aliases: Vec::new(),
            });
    }
    Ok(Plan {
        probes: by_place.into_values().collect(),
        missing,
    })
}
