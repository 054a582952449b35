//! memleak: find memory that is never freed.

mod analysis;
mod output;
mod recording;
mod report;
mod snapshot;

fn main() {}
