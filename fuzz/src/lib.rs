//! What each fuzz target does with its input: one parser each, of what others write. `cargo test --test cli fuzz::` runs
//! them over their corpus and over mutations of it for a moment, on any toolchain; `make fuzz` runs each for a minute.

pub mod targets;
