//! From snapshots to what they mean: ranking, growth, comparison, suppressions, gates.
//! Pure: no I/O, no clock, no formatting.

pub mod growth;
pub mod trend;
