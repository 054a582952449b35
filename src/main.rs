//! memleak: find memory that is never freed.

mod report;
mod snapshot;
mod skel { #![allow(warnings)] include!(concat!(env!("OUT_DIR"), "/memleak.skel.rs")); }

fn main() {}
