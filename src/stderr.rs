//! The one way to standard error: lines that begin with memleak's name, and libbpf's own.
//! What is said is decided elsewhere.

use std::fmt;
use std::io::{self, Write as _};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Says a line on standard error, formatted as `format!` does.
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::stderr::write(format_args!("memleak: {}\n", format_args!($($arguments)*)))
    };
}
pub(crate) use say;

/// Writes to standard error. Unlike `eprint!` it does not panic where nobody reads or the disk is full: there is no
/// place left to complain at, and tracing must end in an orderly way all the same.
pub fn write(text: fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
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
