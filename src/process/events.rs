//! What happens to processes, in the order in which it does. Data only: perf tells of addresses and names, the tracer's
//! own programs of lives.

use super::mappings::MappingRecord;

/// Something that happened to a process.
#[derive(Clone, Debug)]
pub struct Event {
    /// When, in ns of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// The process.
    pub pid: u32,
    /// What.
    pub what: What,
}

/// What can happen to a process.
#[derive(Clone, Debug)]
pub enum What {
    /// It has mapped code.
    Mapped(MappingRecord),
    /// It begins to execute another program: all that it had mapped is gone.
    NewImage,
    /// It has given itself another name.
    Renamed(String),
    /// It was made by this process, with all that it maps and under its name, and is traced.
    Forked {
        /// Its parent.
        parent: u32,
        /// Its name.
        name: String,
    },
    /// It has mapped another program and is about to run it, under a name of its own; and it is traced, as before or from
    /// now on.
    Executed(String),
    /// It executes a program for which it is traced no longer.
    Left,
    /// It has ended, called so.
    Ended(String),
}
