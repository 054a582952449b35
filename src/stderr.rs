//! The one way to standard error: lines that begin with memleak's name, and libbpf's own.
//! What is said is decided elsewhere.

use std::io::{self, Write as _};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::visible::{self, Spelling, Visible};

/// Says a line on standard error, formatted as `format!` does. Line ends within it are spelled out.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::stderr::line(&format!($($arguments)*))
    };
}
pub use say;

/// Writes a line. Unlike `eprint!` it does not panic where nobody reads or the disk is full: there is no
/// place left to complain at, and tracing must end in an orderly way all the same.
pub fn line(line: &str) {
    let line = visible::line(line);
    let _ = io::stderr().write_all(format!("memleak: {line}\n").as_bytes());
}

/// Passes on the lines of libbpf and the kernel.
pub fn pass_on(lines: &str) {
    let _ = Visible::new(io::stderr(), Spelling::Text).write_all(lines.as_bytes());
}

/// Writes a short text, if that is possible without waiting: neither for a reader, nor for a thread that waits for one.
pub fn try_write(text: &str) {
    let stderr = rustix::stdio::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    let ready = poll(&mut fds, Some(&Timespec::default()));
    if ready.is_ok() && fds[0].revents().contains(PollFlags::OUT) {
        let _ = rustix::io::write(stderr, text.as_bytes());
    }
}
