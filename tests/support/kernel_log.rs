//! What the kernel has to say.

use std::process::Command;

/// The lines of the kernel's log.
pub fn read() -> Vec<String> {
    let output = Command::new("dmesg").output().expect("dmesg");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::to_owned).collect()
}
