//! Has the tables of many files built at once, and does something else meanwhile.
//! Knows files only; where tables go is the parent's business.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::files::{self, MOST_OBJECT_BYTES};
use crate::reader;
use crate::unwind::Table;

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

/// Builds the tables of all files; results are in the order of `paths`, none for a file that can't be read or has no
/// table.
pub fn build_all<'a>(
    paths: impl Iterator<Item = &'a Path>,
    meanwhile: &mut Meanwhile<'_>,
) -> Vec<Option<Table>> {
    let paths: Vec<&Path> = paths.collect();
    let (mut before, mut told) = (Duration::ZERO, 0);
    let mut tables = Vec::new();
    for paths_of_some in paths.chunks(OPEN_FILES) {
        let open = |path: &&Path| Some(files::open(path, MOST_OBJECT_BYTES).ok()?.into_file());
        let files: Vec<Option<File>> = paths_of_some.iter().map(open).collect();
        let mut passed = Duration::ZERO;
        let done_before = tables.len();
        tables.extend(reader::tables(files, &mut |done, time| {
            (meanwhile.tick)();
            passed = time;
            let intervals = (before + time).as_millis() / PROGRESS_INTERVAL.as_millis();
            if intervals > told {
                told = intervals;
                (meanwhile.progress)(done_before + done, paths.len());
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
        let paths = ["/proc/self/exe", "/nonexistent", "/proc/self/exe"].map(Path::new);
        let mut meanwhile = Meanwhile {
            tick: &mut || {},
            progress: &mut |_, _| {},
        };
        let tables = build_all(paths.into_iter(), &mut meanwhile);
        let built: Vec<bool> = tables.iter().map(Option::is_some).collect();
        assert_eq!(built, [true, false, true]);
    }
}
