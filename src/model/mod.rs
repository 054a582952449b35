//! The data that rooms hand to each other: snapshots, reports, calls, runs, losses. Imports no other room.
//! What the figures mean is decided in `analysis`, how they are shown in `output`.

pub mod call;
pub mod capture;
pub mod losses;
pub mod report;
pub mod run;
pub mod snapshot;
