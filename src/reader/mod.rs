//! Files of others are read in a process without rights that may die: how the rest of memleak asks it.
//! What files say is understood elsewhere; what reading one may cost is told in `limits`.

mod child;
mod pool;
#[cfg_attr(test, allow(dead_code))] // unit tests would lock themselves in
mod sandbox;
mod wire;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::debuginfo::{Facts, NamedPlace, Places};
use crate::languages::Interpreter;
use crate::limits;
use crate::probes::{Inspection, Question};
use crate::unwind::Table;
use pool::{Job, Pool};
use wire::{Answer, Request};

/// What a reader is called where processes are listed.
const NAME: &str = "memleak-reader";

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// Which file it is, and in which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct FileKey {
    device: u64,
    inode: u64,
    size: i64,
    changed: (i64, i64),
}

impl FileKey {
    fn of(file: &impl AsFd) -> io::Result<Self> {
        let found = rustix::fs::fstat(file)?;
        Ok(Self {
            device: found.st_dev,
            inode: found.st_ino,
            size: found.st_size,
            changed: (found.st_mtime, found.st_mtime_nsec as i64),
        })
    }
}

/// Becomes a reader, where memleak was started to be one; gives the exit status.
pub fn serve_if_asked() -> Option<ExitCode> {
    let asked = std::env::args_os().next().is_some_and(|name| name == NAME);
    asked.then(child::run)
}

/// Begins to start a reader, which takes some milliseconds, before the first file is to be read.
pub fn start() {
    with_pool(|pool| pool.start());
}

/// Whether a process is memleak itself, or one of its readers.
pub fn is_memleak(pid: u32) -> bool {
    pid == std::process::id() || with_pool(|pool| pool.pids().contains(&pid))
}

/// Files that could not be read, because that took too long, too much memory, or ended a reader.
pub fn lost_files() -> u64 {
    with_pool(|pool| pool.lost())
}

/// What the headers of an ELF file say; none if it is none.
pub fn facts(file: &impl AsFd) -> Option<Facts> {
    match ask(Request::Facts, &[file.as_fd()]) {
        Some(Answer::Facts(facts)) => facts.filter(Facts::is_sound),
        _ => None,
    }
}

/// The CRC of all bytes of a file, as debug links have it; none if it can't be read.
pub fn checksum(file: &impl AsFd) -> Option<u32> {
    match ask(Request::Checksum, &[file.as_fd()]) {
        Some(Answer::Checksum(checksum)) => checksum,
        _ => None,
    }
}

/// What is known of a file's code.
#[derive(Debug, Default)]
pub struct KnownCode {
    /// Its unwind rows; none if it has none.
    pub table: Option<Table>,
    /// The interpreter that it holds.
    pub interpreter: Option<Interpreter>,
    /// Why the frames of its interpreter are not followed, and which that is.
    pub refused: Option<String>,
}

/// Characters of a reason why an interpreter is not followed.
const LONGEST_REASON: usize = 200;

/// The unwind rows of files, and their interpreters. `tick` is called every few milliseconds, and told how many files are
/// done and how long that took.
pub fn code<F: Into<OwnedFd>>(
    files: Vec<Option<F>>,
    tick: &mut dyn FnMut(usize, Duration),
) -> Vec<KnownCode> {
    let jobs = files
        .into_iter()
        .map(|file| Job::new(Request::Code, vec![file?.into()]).ok())
        .collect();
    let answers = with_pool(|pool| pool.run(jobs, tick));
    let known = answers.into_iter().map(|answer| match answer {
        Some(Answer::Code(table, interpreter)) => KnownCode {
            table: table.ok().filter(Table::is_sound),
            refused: interpreter
                .as_ref()
                .err()
                .map(|why| why.chars().take(LONGEST_REASON).collect()),
            interpreter: interpreter.ok().flatten().map(|found| *found),
        },
        _ => KnownCode::default(),
    });
    known.collect()
}

/// Which functions an object has that are to be probed, and where. `debug` has symbols that it lacks.
///
/// # Errors
/// Why it can't be read.
pub fn functions(
    object: &impl AsFd,
    debug: Option<BorrowedFd<'_>>,
    question: Question,
) -> Result<Inspection, String> {
    let length = rustix::fs::fstat(object).map_or(0, |found| found.st_size);
    let files: Vec<BorrowedFd<'_>> = [object.as_fd()].into_iter().chain(debug).collect();
    match ask(Request::Functions(question), &files) {
        Some(Answer::Functions(Ok(found))) if !found.is_sound(length.unsigned_abs()) => {
            Err("what was read of it makes no sense".into())
        }
        Some(Answer::Functions(found)) => found,
        _ => Err("it can't be read safely".into()),
    }
}

/// What is at places of an object's code, in the order in which they were asked for; `debug` are files with its debug
/// information.
pub fn names<F: AsFd>(files: &[F], places: Places) -> Vec<Option<NamedPlace>> {
    let count = places.count();
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    match ask(Request::Names(places), &files) {
        Some(Answer::Names(names))
            if names.len() == count && names.iter().flatten().all(NamedPlace::is_sound) =>
        {
            names
        }
        _ => vec![None; count],
    }
}

/// Lets go of the memory that reading took. The next request for a name takes longer.
pub fn rest() {
    with_pool(|pool| pool.rest());
}

fn ask(request: Request, files: &[BorrowedFd<'_>]) -> Option<Answer> {
    let files = files.iter().take(limits::FILES);
    let files: io::Result<Vec<OwnedFd>> = files.map(BorrowedFd::try_clone_to_owned).collect();
    let job = Job::new(request, files.ok()?).ok();
    with_pool(|pool| pool.run(vec![job], &mut |_, _| {})).pop()?
}

fn with_pool<T>(work: impl FnOnce(&mut Pool) -> T) -> T {
    let mut pool: MutexGuard<'_, Option<Pool>> =
        POOL.lock().unwrap_or_else(PoisonError::into_inner);
    work(pool.get_or_insert_with(Pool::default))
}
