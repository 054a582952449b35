//! memleak: find memory that is never freed.

mod report;
mod snapshot;

fn main() {}
