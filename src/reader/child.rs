//! The reader's own end: one request after the other, until memleak ends. Reads files, and calls those who understand
//! them; it has no rights, and may die of any of them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use memmap2::Mmap;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::wire::{Answer, Request};
use super::{FileKey, sandbox, wire};
use crate::debuginfo::{self, Namer};
use crate::languages;
use crate::limits;
use crate::probes;
use crate::unwind;

/// Reads what it is asked to, with the socket as standard input.
pub fn run() -> ExitCode {
    let folder = sandbox::enter();
    let Ok(socket) = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map(UnixStream::from)
    else {
        return ExitCode::FAILURE;
    };
    let hello: Result<(), String> = match &folder {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{error:#}")),
    };
    let greeted = wire::reply(&socket, &hello).is_ok();
    match folder {
        Ok(folder) if greeted => serve(&socket, folder),
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// Answers requests until there are no more. Open files are found by their numbers in `folder`.
pub fn serve(socket: &UnixStream, folder: PathBuf) {
    let mut reader = Reader {
        folder,
        files: HashMap::new(),
        namer: Namer::default(),
    };
    while let Ok(Some((request, files))) = wire::receive(socket) {
        limit_time();
        let answer = reader.answer(request, files);
        if answer.is_some_and(|answer| wire::reply(socket, &answer).is_err()) {
            return;
        }
    }
}

/// The kernel ends the process when a request takes longer.
fn limit_time() {
    let used = clock_gettime(ClockId::ProcessCPUTime).tv_sec;
    let most = u64::try_from(used).unwrap_or(0) + limits::CPU_SECONDS;
    let limit = Rlimit {
        current: Some(most),
        ..getrlimit(Resource::Cpu)
    };
    // in tests this would be the limit of all of them
    if !cfg!(test) {
        let _ = setrlimit(Resource::Cpu, limit);
    }
}

struct Reader {
    folder: PathBuf,
    /// Files that names were looked up in.
    files: HashMap<FileKey, Known>,
    namer: Namer,
}

struct Known {
    path: PathBuf,
    /// Keeps the path good.
    _file: OwnedFd,
}

impl Reader {
    fn answer(&mut self, request: Request, files: Vec<OwnedFd>) -> Option<Answer> {
        Some(match request {
            Request::Facts => {
                Answer::Facts(map(&files, 0).and_then(|data| debuginfo::facts(&data)))
            }
            Request::Checksum => Answer::Checksum(
                files
                    .first()
                    .and_then(|file| debuginfo::checksum(file).ok()),
            ),
            Request::Code => match map(&files, 0) {
                Some(data) => Answer::Code(
                    unwind::build(&*data).map_err(|error| error.to_string()),
                    languages::find(&data).map(|found| found.map(Box::new)),
                ),
                None => Answer::Code(Err("it can't be mapped".into()), Ok(None)),
            },
            Request::Functions(question) => Answer::Functions(match map(&files, 0) {
                Some(data) => {
                    let debug = map(&files, 1);
                    probes::inspect(&data, debug.as_deref(), &question)
                        .map_err(|error| format!("{error:#}"))
                }
                None => Err("it can't be mapped".into()),
            }),
            Request::Names(places) => {
                let count = places.count();
                let paths = files.into_iter().map(|file| self.path_of(file)).collect();
                let paths: Option<Vec<PathBuf>> = paths;
                Answer::Names(match paths {
                    Some(paths) => self.namer.look_up(&paths, &places),
                    None => vec![None; count],
                })
            }
            Request::Rest => {
                self.namer = Namer::default();
                self.files.clear();
                return None;
            }
        })
    }

    /// A path under which a file can be opened, now and at the next request.
    fn path_of(&mut self, file: OwnedFd) -> Option<PathBuf> {
        let key = FileKey::of(&file).ok()?;
        if let Some(known) = self.files.get(&key) {
            return Some(known.path.clone());
        }
        if self.files.len() >= limits::OPEN_FILES {
            self.namer = Namer::default();
            self.files.clear();
        }
        let mut file = file;
        let mut path = self.folder.join(file.as_raw_fd().to_string());
        if File::open(&path).is_err() {
            file = copy(&file).ok()?;
            path = self.folder.join(file.as_raw_fd().to_string());
        }
        let known = Known {
            path: path.clone(),
            _file: file,
        };
        self.files.insert(key, known);
        Some(path)
    }
}

/// A copy of a file that is open, but that nobody without rights may open.
fn copy(file: &OwnedFd) -> io::Result<OwnedFd> {
    let mut original = File::from(file.try_clone()?);
    if original.metadata()?.len() > limits::COPY {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut copy = File::from(memfd_create("memleak-copy", MemfdFlags::CLOEXEC)?);
    io::Seek::rewind(&mut original)?;
    io::copy(&mut original, &mut copy)?;
    Ok(copy.into())
}

#[allow(unsafe_code)] // mapping is what keeps large objects out of memory
fn map(files: &[OwnedFd], index: usize) -> Option<Mmap> {
    // SAFETY: the file is mapped read-only. Should somebody truncate it, this process ends, which is what it is for.
    unsafe { Mmap::map(files.get(index)?) }.ok()
}
