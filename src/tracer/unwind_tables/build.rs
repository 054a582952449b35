//! Has the tables of many files built at once, and does something else meanwhile.
//! Knows files only; where tables go is the parent's business.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::files::Kept;
use crate::reader::{self, KnownCode};

/// How often something else is done meanwhile.
const TICK: Duration = Duration::from_millis(2);
/// How long the user waits in silence.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Files that are open at the same time.
const OPEN_FILES: usize = 32;

/// What is done while something takes long.
pub struct Meanwhile<'a> {
    /// Every few milliseconds.
    pub tick: &'a mut dyn FnMut(),
    /// Every half second: told how many of how many tables are built.
    pub progress: &'a mut dyn FnMut(usize, usize),
}

impl Meanwhile<'_> {
    /// What comes next; none when nothing more will.
    pub fn wait<T>(&mut self, coming: &Receiver<T>) -> Option<T> {
        loop {
            match coming.recv_timeout(TICK) {
                Ok(come) => return Some(come),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => (self.tick)(),
            }
        }
    }
}

/// Reads the code of all files; results are in their order, without a table for a file that can't be read or has none.
pub fn build_all(kept: &[Arc<Kept>], meanwhile: &mut Meanwhile<'_>) -> Vec<KnownCode> {
    let (mut before, mut told) = (Duration::ZERO, 0);
    let mut tables = Vec::new();
    for some in kept.chunks(OPEN_FILES) {
        let open = |kept: &Arc<Kept>| kept.open().ok()?.file().try_clone().ok();
        let files: Vec<Option<File>> = some.iter().map(open).collect();
        let mut passed = Duration::ZERO;
        let done_before = tables.len();
        tables.extend(reader::code(files, &mut |done, time| {
            (meanwhile.tick)();
            passed = time;
            let intervals = (before + time).as_millis() / PROGRESS_INTERVAL.as_millis();
            if intervals > told {
                told = intervals;
                (meanwhile.progress)(done_before + done, kept.len());
            }
        }));
        before += passed;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_come_in_the_order_that_was_asked_for() {
        let files = ["/proc/self/exe", "/nonexistent", "/proc/self/exe"].map(Kept::named);
        let mut meanwhile = Meanwhile {
            tick: &mut || {},
            progress: &mut |_, _| {},
        };
        let tables = build_all(&files, &mut meanwhile);
        let built: Vec<bool> = tables.iter().map(|code| code.table.is_some()).collect();
        assert_eq!(built, [true, false, true]);
    }
}
