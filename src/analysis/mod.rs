//! What the figures mean. Pure: Snapshots in, decisions out; no I/O, no clock, no names.

mod rank;

pub use rank::rank;
