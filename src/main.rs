//! memleak: find memory that is never freed.

mod analysis;
mod recording;
mod report;
mod snapshot;

fn main() {}
