//! memleak: find memory that is never freed.

mod probes;
mod report;
mod snapshot;
mod skel { #![allow(warnings)] include!(concat!(env!("OUT_DIR"), "/memleak.skel.rs")); }

fn main() {}
