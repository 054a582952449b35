//! What the integration tests share: fixtures, guarded child processes, running memleak, reading its report.
//! No test lives here, and nothing here knows what a right answer is.
#![allow(
    dead_code,
    reason = "each test file is a crate of its own that uses a part of this one"
)]

pub mod elf;
pub mod fixture;
pub mod kernel_log;
pub mod memleak;
pub mod process;
pub mod report;

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
