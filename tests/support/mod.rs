//! What the integration tests share: fixtures, guarded child processes, running memleak, reading its report.
//! No test lives here, and nothing here knows what a right answer is.
#![allow(dead_code, reason = "each of the three binaries uses a part of this")]

pub mod elf;
pub mod fixture;
pub mod http;
pub mod kernel_log;
pub mod memleak;
pub mod process;
pub mod pythons;
pub mod report;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Stops a test that cannot run without privileges. Never lets it pass unrun.
///
/// # Panics
/// When the tests do not run as root.
pub fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test traces with BPF and must run as root: use `sudo make test`"
    );
}

/// Keeps other tests of this kind from running while the guard lives: those that trace the whole machine or the kernel,
/// read the kernel's log, or load all CPUs. Cargo runs one binary after the other, so a lock within one is enough.
pub fn serial() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    // a test that failed has left nothing in here
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}
