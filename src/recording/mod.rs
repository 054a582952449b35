//! Recordings of whole runs: their shape in memory, their file, and other tools' logs read as such.
//! What the figures mean is judged in `analysis`; how they look is `output`'s.

pub mod collect;
mod compressed;
mod import_bcc;
mod import_libbpf_tools;
mod import_text;
pub mod join;
pub mod load;
mod log;
pub mod read;
mod wire;
pub mod write;
