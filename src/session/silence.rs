//! A target that calls no probed function although its memory grows: it is told once, and where to look.
//! Reads counters; decides nothing about probes.

use anyhow::Result;

use crate::process::memory;
use crate::stderr::say;
use crate::tracer::Tracer;

/// Growth in an interval that is worth a word, in bytes: what the kernel's own rounding never comes to.
const GROWTH: u64 = 1 << 20;

/// Says that the target, traced alone, has started others.
pub fn tell_of_children(children: u64) {
    let processes = match children {
        0 => return,
        1 => "1 process".to_owned(),
        many => format!("{many} processes"),
    };
    say!("the target started {processes}, not traced: -f follows children");
}

/// What was seen of one process at the last look.
pub struct Silence {
    pid: u32,
    entries: u64,
    resident: u64,
    told: bool,
}

impl Silence {
    /// Begins to look.
    ///
    /// # Errors
    /// Fails when the counters can't be read.
    pub fn begin(tracer: &Tracer<'_>, pid: u32) -> Result<Self> {
        Ok(Self {
            pid,
            entries: tracer.activity()?.entries,
            resident: memory::anonymous_bytes(pid).unwrap_or(0),
            told: false,
        })
    }

    /// Looks at the end of an interval.
    ///
    /// # Errors
    /// Fails when the counters can't be read.
    pub fn look(&mut self, tracer: &Tracer<'_>) -> Result<()> {
        let entries = tracer.activity()?.entries;
        let resident = memory::anonymous_bytes(self.pid).unwrap_or(0);
        let grown = resident.saturating_sub(self.resident);
        if entries == self.entries && grown >= GROWTH && !self.told {
            self.told = true;
            say!(
                "warning: process {} called no probed function in this interval, but its memory grew by {} KiB: \
                 it has another allocator (-v lists what is probed; name it with -O and -S, or --alloc), touches \
                 memory that it had before, or makes raw system calls",
                self.pid,
                grown / 1024
            );
        }
        (self.entries, self.resident) = (entries, resident);
        Ok(())
    }
}
