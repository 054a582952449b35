//! Builds the tables of many files at once, on threads.
//! Knows files only; where tables go is the parent's business.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use object::ReadCache;

use crate::unwind::{self, Table};

/// How often something else is done meanwhile.
const TICK: Duration = Duration::from_millis(2);
/// How long the user waits in silence, in ticks.
const PROGRESS_INTERVAL: usize = 250;

/// What is done while something takes long.
pub struct Meanwhile<'a> {
    /// Every few milliseconds.
    pub tick: &'a mut dyn FnMut(),
    /// Every half second: told how many of how many tables are built.
    pub progress: &'a mut dyn FnMut(usize, usize),
}

impl Meanwhile<'_> {
    /// What comes next; none when nothing more will. `done` of `all` tables are built so far; nobody is told of none.
    pub fn wait<T>(&mut self, coming: &Receiver<T>, done: usize, all: usize) -> Option<T> {
        for ticks in 1.. {
            match coming.recv_timeout(TICK) {
                Ok(come) => return Some(come),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => (self.tick)(),
            }
            if all > 0 && ticks % PROGRESS_INTERVAL == 0 {
                (self.progress)(done, all);
            }
        }
        None
    }
}

/// Builds the tables of all files, on as many threads as there are processors; results are in the order of `paths`, none
/// for a file that can't be read or has no table.
pub fn build_all<'a>(
    paths: impl Iterator<Item = &'a Path>,
    meanwhile: &mut Meanwhile<'_>,
) -> Vec<Option<Table>> {
    let paths: Vec<&Path> = paths.collect();
    let mut tables: Vec<Option<Table>> = paths.iter().map(|_| None).collect();
    let threads = thread::available_parallelism()
        .map_or(1, NonZeroUsize::get)
        .min(paths.len());
    let next = Mutex::new(paths.iter().enumerate());
    let (sender, built) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                let take = || next.lock().ok().and_then(|mut next| next.next());
                while let Some((index, path)) = take() {
                    if sender.send((index, build(path))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut done = 0;
        while let Some((index, table)) = meanwhile.wait(&built, done, paths.len()) {
            done += 1;
            if let Some(slot) = tables.get_mut(index) {
                *slot = table;
            }
        }
    });
    tables
}

/// Reads only the parts of the file that matter, which are a small share of a large one.
fn build(path: &Path) -> Option<Table> {
    let file = ReadCache::new(File::open(path).ok()?);
    unwind::build(&file).ok()
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
