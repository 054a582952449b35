//! One function for each parser of what others write. Whatever the input is, it must come back, soon, without a panic.
//! What the parsers should answer is tested beside them.

use memleak::analysis::suppress::Suppressions;
use memleak::debuginfo::{self, MiniSymbols};
use memleak::probes::{self, Operation, OwnFunction, ProbeAt, Question, Search};
use memleak::recording::{load, read};
use memleak::symbolize::perf_map_line;
use memleak::unwind;

/// A target's name, which is its corpus' folder as well, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("elf_symbols", elf_symbols),
    ("elf_facts", elf_facts),
    ("unwind_tables", unwind_tables),
    ("names", names),
    ("logs", logs),
    ("recordings", recordings),
    ("suppressions", suppressions),
    ("allocator_specs", allocator_specs),
    ("perf_maps", perf_maps),
];

/// The functions of an object, with their sites.
pub fn elf_symbols(data: &[u8]) {
    let search = Search {
        prefix: "",
        mappings: true,
        at: ProbeAt::Cheapest,
    };
    for file in ["libc.so.6", "program"] {
        if let Ok(found) = probes::inspect(data, None, &Question::functions(file, search, &[])) {
            // what is not sound is refused by whoever asked
            let _ = found.is_sound(data.len() as u64);
        }
    }
}

/// What the headers of an object say, and the symbols that it carries compressed.
pub fn elf_facts(data: &[u8]) {
    if let Some(facts) = debuginfo::facts(data) {
        let _ = facts.is_sound();
    }
    let _ = debuginfo::segments(data);
    if let Some(symbols) = MiniSymbols::read(data) {
        let _ = symbols.look_up(data.len() as u64);
    }
}

/// The unwind information of an object.
pub fn unwind_tables(data: &[u8]) {
    if let Ok(table) = unwind::build(data) {
        let _ = table.is_sound();
        for address in [0, data.len() as u64, u64::MAX] {
            let _ = table.lookup(address);
        }
    }
    let _ = unwind::function_starts(data);
}

/// A symbol's name.
pub fn names(data: &[u8]) {
    let name = debuginfo::demangle(&String::from_utf8_lossy(data));
    assert!(name.len() <= memleak::limits::NAME);
}

/// A log of another tool's, or memleak's own text.
pub fn logs(data: &[u8]) {
    let _ = load::read_any(data);
}

/// A recording.
pub fn recordings(data: &[u8]) {
    if let Ok(loaded) = read::read(data) {
        let recording = loaded.recording;
        for index in 0..recording.snapshots.len().min(4) {
            let _ = recording.report(index);
        }
    }
}

/// A file of suppressions.
pub fn suppressions(data: &[u8]) {
    let _ = Suppressions::parse(&String::from_utf8_lossy(data));
}

/// What is typed after --alloc, --realloc and --free.
pub fn allocator_specs(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for operation in [Operation::Allocate, Operation::Reallocate, Operation::Free] {
        let _ = OwnFunction::parse(operation, &text);
    }
}

/// Lines of a perf map.
pub fn perf_maps(data: &[u8]) {
    for line in String::from_utf8_lossy(data).lines() {
        if let Some((start, end, _)) = perf_map_line(line) {
            assert!(start < end);
        }
    }
}
