//! One file per output format, each from finished data to bytes.
//! Pure: no files are opened here, no clock is read.

pub mod flamegraph;
pub mod folded;
pub mod growth;
pub mod json;
pub mod pprof;
mod units;
