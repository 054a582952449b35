//! One file per format. Pure: a finished Report (or Call) in, bytes out; no clock, no files, no looking up.

pub mod flamegraph;
pub mod folded;
pub mod growth;
pub mod html;
pub mod json;
mod lost;
pub mod pprof;
mod text;
mod trace;
mod units;
mod warnings;

pub use text::write_text;
pub use trace::write_call;
pub use warnings::warning;
