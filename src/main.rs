//! memleak: find memory that is never freed.

mod probes;
mod report;
mod snapshot;

fn main() {}
