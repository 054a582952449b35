//! One file per format. Pure: a finished Report (or Call) in, bytes out; no clock, no files, no looking up.

pub mod flamegraph;
pub mod folded;
pub mod github;
pub mod growth;
pub mod html;
pub mod json;
pub mod junit;
mod lost;
pub mod pprof;
mod problem;
pub mod sarif;
mod text;
mod trace;
pub mod units;
mod warnings;

pub use text::write_text;
pub use trace::write_call;
pub use warnings::warning;
