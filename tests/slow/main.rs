//! What takes minutes, a browser, Valgrind or the machine to itself.
//! What traces a few processes for a moment is in `trace`.

#[path = "../support/mod.rs"]
mod support;

mod bystanders;
mod hostile;
mod html;
mod kernel;
mod kernel_load;
mod pythons;
mod soak;
mod truth;
