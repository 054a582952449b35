//! Recordings of whole runs: their shape in memory, their file, and other tools' logs read as such.
//! What the figures mean is judged in `analysis`; how they look is `output`'s.

pub mod collect;
pub mod model;
pub mod read;
mod wire;
pub mod write;
