//! What is said of interpreters: which are not followed, and what their allocators hide.
//! Knows neither processes nor stacks.

use crate::model::report::Language;
use crate::stderr::say;
use crate::tracer::Tracer;

/// What was said so far.
#[derive(Default)]
pub struct Interpreters {
    told: Vec<Language>,
}

impl Interpreters {
    /// Says what is worth knowing of the interpreters that have been found since the last time.
    pub fn tell(&mut self, tracer: &mut Tracer<'_>) {
        for which in tracer.take_refused_interpreters() {
            say!("warning: only native frames are shown of {which}");
        }
        for language in tracer.languages() {
            if self.told.contains(&language) {
                continue;
            }
            self.told.push(language);
            if !tracer.walks_interpreters() {
                say!(
                    "warning: only native frames are shown of {}: its own are followed with unwind tables, on x86-64, where \
                     the kernel takes the programs for that (Linux 5.17)",
                    language.name()
                );
            }
            match language {
                Language::Python => say!(
                    "python: objects of up to 512 bytes show as the arenas that hold them; with PYTHONMALLOC=malloc in \
                     its environment, Python allocates each by itself"
                ),
            }
        }
    }
}

/// Says how many stacks lack frames of an interpreter's, and why.
pub fn describe_lost(tracer: &Tracer<'_>) {
    let reasons: Vec<String> = tracer
        .interpreted_losses()
        .into_iter()
        .map(|(count, why)| format!("{count} {why}"))
        .collect();
    if !reasons.is_empty() {
        say!(
            "stacks with an interpreter's native frames instead of its own: {}",
            reasons.join(", ")
        );
    }
}
