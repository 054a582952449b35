//! What the figures mean: ranking, growth, comparison, suppressions, gates. Pure: Snapshots in, decisions out;
//! no I/O, no clock, no names.

pub mod blame;
pub mod calls;
pub mod compare;
pub mod findings;
pub mod gate;
pub mod groups;
pub mod growth;
pub mod history;
pub mod identity;
pub mod joined;
pub mod kernel_memory;
pub mod problems;
mod rank;
pub mod runtimes;
pub mod select;
pub mod suppress;
pub mod suspect;
pub mod trend;
pub mod watch;

pub use rank::{Limits, SortKey, rank};
