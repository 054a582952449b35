//! memleak: find memory that is never freed. The rooms stand here; the command line's `main` and the benchmarks use
//! them. No function lives here.

// eprint! panics where it can't write; reports go through writers whose errors are handled
#![cfg_attr(not(test), deny(clippy::print_stderr, clippy::print_stdout))]

pub mod analysis;
pub mod check;
pub mod cli;
pub mod debuginfo;
pub mod discovery;
pub mod files;
pub mod languages;
pub mod limits;
pub mod man;
pub mod model;
pub mod offline;
pub mod options;
pub mod output;
pub mod probes;
pub mod process;
pub mod publish;
pub mod reachability;
pub mod reader;
pub mod recording;
pub mod serve;
pub mod session;
pub mod stderr;
pub mod symbolize;
pub mod tracer;
pub mod unwind;
pub mod values;
pub mod visible;
