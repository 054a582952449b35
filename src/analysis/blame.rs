//! The one rule of blame: the first call of a stack that belongs to the user, past allocators, wrappers and runtimes.
//! Every output names a stack by it; figures and formats live elsewhere.

mod known;

use std::sync::Arc;

use wildmatch::WildMatch;

use super::calls::{Call, calls};
use crate::model::report::{Frame, Location, Module};

/// Whose a call is; the lowest that a stack has is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The user's.
    User,
    /// An interpreter's or virtual machine's, or of code that nobody knows.
    Interpreter,
    /// A language's library, the C library, or the loader.
    Runtime,
    /// What allocates on behalf of its caller, and what the user passes over.
    Allocator,
}

/// The rule, with what the user adds to it.
#[derive(Clone, Debug, Default)]
pub struct Blame {
    skipped: Vec<WildMatch>,
}

/// Who is to blame for a stack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Culprit {
    /// The function, without parameters; `[unknown]` and its place where it has no name.
    pub function: String,
    /// Where in the source it made the call, where that is known.
    pub location: Option<Location>,
    /// The object that holds it.
    pub module: Option<Arc<Module>>,
}

impl Culprit {
    /// "server.cpp:12", without folders, where the place is known.
    pub fn place(&self) -> Option<String> {
        let location = self.location.as_ref()?;
        let file = location
            .file
            .file_name()
            .unwrap_or(location.file.as_os_str());
        let file = file.to_string_lossy();
        Some(match location.line {
            Some(line) => format!("{file}:{line}"),
            None => file.into_owned(),
        })
    }
}

impl Blame {
    /// The rule, passing over functions and modules that match one of `globs` as well.
    pub fn new(globs: &[String]) -> Self {
        let skipped = globs.iter().map(|glob| WildMatch::new(glob)).collect();
        Self { skipped }
    }

    /// The place of the call to blame; 0 where there is none at all.
    pub fn position(&self, calls: &[Call<'_>]) -> usize {
        let parts = calls.iter().map(|call| self.part(call));
        let least = parts.enumerate().min_by_key(|&(at, part)| (part, at));
        least.map_or(0, |(at, _)| at)
    }

    /// Who is to blame for a stack; none where it holds nothing.
    pub fn culprit(&self, frames: &[Frame]) -> Option<Culprit> {
        let calls = calls(frames);
        let call = calls.get(self.position(&calls))?;
        Some(Culprit {
            function: call.title(),
            location: call.location.cloned(),
            module: call.module.cloned(),
        })
    }

    /// Whether a call is the user's own.
    pub fn is_users(&self, call: &Call<'_>) -> bool {
        self.part(call) == Part::User
    }

    fn part(&self, call: &Call<'_>) -> Part {
        let module = call.module.map(|module| module.name()).unwrap_or_default();
        let title = call.title();
        if self.skips(call, &title, &module) {
            return Part::Allocator;
        }
        match call.name {
            Some(_) => known::part(&title, &module, call.location),
            None => known::part_of_module(&module),
        }
    }

    fn skips(&self, call: &Call<'_>, title: &str, module: &str) -> bool {
        let matches = |text: &str| self.skipped.iter().any(|glob| glob.matches(text));
        matches(title) || matches(module) || call.name.is_some_and(matches)
    }
}

#[cfg(test)]
mod tests;
