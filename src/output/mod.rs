//! One file per format. Pure: a finished Report (or Call) in, bytes out; no clock, no files, no looking up.

mod text;
mod trace;
mod warnings;

pub use text::write_text;
pub use trace::write_call;
pub use warnings::warning;
