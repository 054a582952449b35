//! What needs no privileges: the command line, and reports of recordings and logs.
//! Nothing here traces.

#[path = "../support/mod.rs"]
mod support;

mod formats;
mod fuzz;
mod harness;
mod house;
mod losses;
mod machines;
mod usage;
