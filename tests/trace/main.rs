//! Tracing real processes, as root. Each file is a subject; `cargo test --test trace processes::` runs one.
//! What takes minutes, a browser or the whole machine is in `slow`.

#[path = "../support/mod.rs"]
mod support;

mod allocator_mappings;
mod allocators;
mod check;
mod debuginfod;
mod endpoints;
mod ends;
mod errors;
mod exact_flow;
mod exact_heap;
mod exact_mmap;
mod hostile_files;
mod identity;
mod live_outputs;
mod losses;
mod lost;
mod mappings;
mod output_files;
mod own_allocators;
mod privileges;
mod processes;
mod python;
mod reports;
mod runs;
mod safety;
mod sampling;
mod servers;
mod signals;
mod silence;
mod stacks;
mod streams;
mod text;
mod unwinding;
mod watch;
