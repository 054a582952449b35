//! Which objects take stacks of their own when memory is allocated: sanitizers, heap profilers. Return probes show in
//! these. What is said of it is decided elsewhere.

use std::path::Path;

use super::Candidate;
use crate::probes::Question;
use crate::reader;

/// Functions that tell what an object brings, and what people call that.
const TOOLS: [(&str, &str); 8] = [
    ("__asan_init", "AddressSanitizer"),
    ("__hwasan_init", "HWAddressSanitizer"),
    ("__lsan_init", "LeakSanitizer"),
    ("__lsan_do_leak_check", "LeakSanitizer"),
    ("__tsan_init", "ThreadSanitizer"),
    ("__msan_init", "MemorySanitizer"),
    ("heaptrack_malloc", "heaptrack"),
    ("memory_profiler_start", "bytehound"),
];

/// What the names of libraries that bring one have in them. They can be part of the program as well.
const LIBRARIES: [&str; 4] = ["san", "clang_rt", "heaptrack", "bytehound"];

/// The first object that takes stacks of its own, and the tool that does so.
pub fn takes_stacks(candidates: &[Candidate]) -> Option<(&Path, &'static str)> {
    let is_likely = |candidate: &Candidate| {
        let name = candidate.shown.file_name().unwrap_or_default();
        let name = name.to_string_lossy();
        LIBRARIES.iter().any(|part| name.contains(part))
    };
    // the program comes first, or nearly so
    let mut looked_at = candidates.iter().enumerate();
    looked_at.find_map(
        |(place, candidate)| match place < 2 || is_likely(candidate) {
            true => Some((&*candidate.shown, tool(candidate)?)),
            false => None,
        },
    )
}

fn tool(candidate: &Candidate) -> Option<&'static str> {
    let file = candidate.open().ok()?;
    let question = Question::places(&TOOLS.map(|(function, _)| function));
    let places = reader::functions(file.file(), None, question).ok()?.places;
    let mut found = TOOLS.iter().zip(places);
    found.find_map(|((_, tool), place)| place.map(|_| *tool))
}
