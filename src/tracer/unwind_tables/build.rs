//! Builds the tables of many files at once, on threads.
//! Knows files only; where tables go is the parent's business.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use object::ReadCache;

use crate::unwind::{self, Table};

/// How long the user waits in silence.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Builds the tables of all files, on as many threads as there are processors; results are in the order of `paths`, none
/// for a file that can't be read or has no table. `progress` is told now and then how many of how many are done.
pub fn build_all<'a>(
    paths: impl Iterator<Item = &'a Path>,
    mut progress: impl FnMut(usize, usize),
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
        loop {
            match built.recv_timeout(PROGRESS_INTERVAL) {
                Ok((index, table)) => {
                    done += 1;
                    if let Some(slot) = tables.get_mut(index) {
                        *slot = table;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => progress(done, paths.len()),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
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
        let tables = build_all(paths.into_iter(), |_, _| {});
        let built: Vec<bool> = tables.iter().map(Option::is_some).collect();
        assert_eq!(built, [true, false, true]);
    }
}
