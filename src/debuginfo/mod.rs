//! What an object and its debug information say of places in it: facts that identify it, names, files and lines.
//! Bytes in, data out; runs in the reader, and knows no process.

mod demangle;
mod facts;
mod mini;
mod places;

pub use demangle::demangle;
pub use facts::{Facts, Segment, checksum, facts, segments};
pub use mini::MiniSymbols;
pub use places::{Named, NamedPlace, Namer, Places};
