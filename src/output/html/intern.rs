//! Strings, modules and calls that many stacks share, kept once each and named by their index in the page's data.
//! Knows how much text it holds, so that a page can stay within its size.

use std::collections::HashMap;

use serde::Serialize;

use super::markup::visible;
use crate::analysis::calls::{Call, short};
use crate::model::report::hex;

/// What stands for "unknown" in place of an index.
const NONE: i64 = -1;

/// Bytes that a call or a string costs in JSON beside its own text.
const OVERHEAD: usize = 48;

/// A module: name, path, build id in hex (empty where there is none).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ModuleEntry(pub String, pub String, pub String);

/// A call: name, module, file, line, address, offset, whether inlined, the short name where it differs.
/// `assets/report.js` reads this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct CallEntry(i64, i64, i64, u32, String, Option<u64>, u8, i64);

/// The tables so far.
#[derive(Debug, Default)]
pub struct Tables {
    /// Names and files.
    pub strings: Vec<String>,
    /// Modules.
    pub modules: Vec<ModuleEntry>,
    /// Calls.
    pub calls: Vec<CallEntry>,
    string_places: HashMap<String, usize>,
    module_places: HashMap<ModuleEntry, usize>,
    call_places: HashMap<CallEntry, usize>,
}

impl Tables {
    /// At most how many bytes of JSON a stack of these calls would add.
    pub fn cost(&self, calls: &[Call<'_>]) -> usize {
        calls.iter().map(|call| self.cost_of(call)).sum()
    }

    /// The place of a call, which is added where it is new.
    pub fn call(&mut self, call: &Call<'_>) -> usize {
        let entry = CallEntry(
            call.name.map_or(NONE, |name| self.string(name)),
            self.module(call),
            call.location.map_or(NONE, |location| {
                self.string(&location.file.to_string_lossy())
            }),
            call.location
                .and_then(|location| location.line)
                .unwrap_or(0),
            format!("0x{:016x}", call.address),
            call.offset,
            u8::from(call.inlined),
            self.short_name(call),
        );
        place(entry, &mut self.call_places, &mut self.calls)
    }

    fn short_name(&mut self, call: &Call<'_>) -> i64 {
        let Some(name) = call.name else {
            return NONE;
        };
        let short = short(&visible(name));
        if short == visible(name) {
            NONE
        } else {
            self.string(&short)
        }
    }

    fn string(&mut self, text: &str) -> i64 {
        let text = visible(text).into_owned();
        place(text, &mut self.string_places, &mut self.strings) as i64
    }

    fn module(&mut self, call: &Call<'_>) -> i64 {
        let Some(module) = call.module else {
            return NONE;
        };
        let entry = ModuleEntry(
            visible(&module.name()).into_owned(),
            visible(&module.path.to_string_lossy()).into_owned(),
            hex(module.build_id.as_deref().unwrap_or_default()),
        );
        place(entry, &mut self.module_places, &mut self.modules) as i64
    }

    fn cost_of(&self, call: &Call<'_>) -> usize {
        // The short name is never longer than the name.
        let name = call.name.map_or(0, |name| 2 * self.cost_of_text(name));
        let file = call.location.map_or(0, |location| {
            self.cost_of_text(&location.file.to_string_lossy())
        });
        OVERHEAD + name + file
    }

    fn cost_of_text(&self, text: &str) -> usize {
        let text = visible(text);
        if self.string_places.contains_key(text.as_ref()) {
            return 0;
        }
        // Every character can be spelled as \uXXXX at worst.
        let escaped = text
            .chars()
            .filter(|&c| c == '"' || c == '\\' || super::payload::is_active(c))
            .count();
        text.len() + 5 * escaped + 3
    }
}

fn place<T: Clone + Eq + std::hash::Hash>(
    entry: T,
    places: &mut HashMap<T, usize>,
    all: &mut Vec<T>,
) -> usize {
    if let Some(&known) = places.get(&entry) {
        return known;
    }
    let new = all.len();
    all.push(entry.clone());
    places.insert(entry, new);
    new
}
