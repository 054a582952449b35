//! What one object has that is to be probed, asked and answered as data: the object's bytes are read by the reader.
//! Which objects are asked about, and what follows, is decided in `discover`.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::internals::MOST_PIECES;
use super::symbols::Symbols;
use super::table::Signature;
use super::{OwnFunction, Plan, Probe, ProbeAt, Search, plan, plan_own};
use crate::limits;

/// More functions than the table has, and than anybody names.
const MOST_PROBES: usize = 1 << 16;

/// What is wanted of an object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Question {
    /// What the object's file is called, without its folders.
    file: String,
    prefix: String,
    mappings: bool,
    at: ProbeAt,
    own: Vec<(String, Signature)>,
    /// Names of functions whose places are wanted as well.
    places: Vec<String>,
}

/// What an object has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inspection {
    /// The functions of the table.
    pub plan: Plan,
    /// For each function of the user's, how to probe it, if the object has it.
    pub own: Vec<Option<Probe>>,
    /// For each name of a place, its offset in the file, in bytes.
    pub places: Vec<Option<u64>>,
    /// It holds code of Go's.
    pub is_go: bool,
    /// A process begins with it.
    pub is_program: bool,
    /// Its symbol table was stripped off.
    pub is_stripped: bool,
    /// It is a whole program, and has no symbols.
    pub is_bare: bool,
}

impl Question {
    /// Asks about the functions of the table and the user's own.
    pub fn functions(file: &str, search: Search<'_>, own: &[OwnFunction]) -> Self {
        let own = own.iter().map(|own| (own.name.clone(), own.signature));
        Self {
            file: file.to_owned(),
            prefix: search.prefix.to_owned(),
            mappings: search.mappings,
            at: search.at,
            own: own.collect(),
            places: Vec::new(),
        }
    }

    /// Asks what kind of object it is, and where functions begin.
    pub fn places(names: &[&str]) -> Self {
        let nothing = Search {
            prefix: "",
            mappings: false,
            at: ProbeAt::Symbol,
        };
        Self {
            places: names.iter().copied().map(str::to_owned).collect(),
            ..Self::functions("", nothing, &[])
        }
    }
}

impl Inspection {
    /// Whether it can be true of a file of `length` bytes, which is not to be taken for granted where another process
    /// says so.
    pub fn is_sound(&self, length: u64) -> bool {
        let plan = &self.plan;
        let probes = plan.probes.iter().chain(&plan.last_resort);
        let probes: Vec<&Probe> = probes.chain(self.own.iter().flatten()).collect();
        let inside = |probe: &&Probe| {
            let end = probe.function_offset.checked_add(probe.length);
            let site = probe.function_offset.checked_add(probe.site.offset);
            end.is_some_and(|end| end <= length) && site.is_some_and(|site| site < length)
        };
        let names = probes.iter().flat_map(|probe| {
            let aliases = probe.aliases.iter().map(String::as_str);
            aliases.chain([&*probe.name, &*probe.allocator])
        });
        probes.len() + plan.missing.len() <= MOST_PROBES
            && probes.iter().all(inside)
            && self.places.iter().flatten().all(|place| *place < length)
            && plan.allocator_code.len() <= MOST_PIECES
            && plan
                .allocator_code
                .iter()
                .all(|piece| piece.start < piece.end && piece.end <= length)
            && names
                .chain(plan.missing.iter().map(String::as_str))
                .all(is_short)
    }
}

fn is_short(name: &str) -> bool {
    name.len() <= limits::NAME
}

/// Reads an object's symbols, those of its debug file included.
///
/// # Errors
/// When it is no ELF object, or a damaged one.
pub fn inspect(data: &[u8], debug: Option<&[u8]>, question: &Question) -> Result<Inspection> {
    let mut symbols = Symbols::parse(data)?;
    if let Some(debug) = debug {
        symbols
            .add_debug_file(debug)
            .context("failed to read its debug file")?;
    }
    let search = Search {
        prefix: &question.prefix,
        mappings: question.mappings,
        at: question.at,
    };
    let own = question.own.iter().map(|(name, signature)| {
        let function = symbols.find(name)?;
        plan_own(&symbols, name, *signature, &function, search.at)
    });
    let places = question.places.iter();
    Ok(Inspection {
        own: own.collect(),
        places: places
            .map(|name| Some(symbols.find(name)?.file_offset))
            .collect(),
        plan: plan(&symbols, &question.file, search),
        is_go: symbols.is_go(),
        is_program: symbols.is_program(),
        is_stripped: symbols.is_stripped(),
        is_bare: symbols.is_stripped() && symbols.is_static_program(),
    })
}
