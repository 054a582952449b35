//! From snapshots to what they mean: ranking, growth, comparison, suppressions, gates.
//! Pure: no I/O, no clock, no formatting.

pub mod compare;
pub mod findings;
pub mod gate;
pub mod growth;
pub mod identity;
pub mod suppress;
pub mod trend;
