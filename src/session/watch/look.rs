//! What the processes that are watched hold, by `/proc` alone: nobody is probed here.
//! What it means is judged in `analysis`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use crate::analysis::watch::Who;
use crate::files::proc;
use crate::process::{is_kernel_thread, memory, name, start_time};
use crate::session::choice::Chosen;

/// Bytes of /proc/PID/statm: seven numbers.
const STATM_BYTES: usize = 256;

/// Looks between two looks at the names of processes that fit or don't by their name.
const NAMES_EVERY: u64 = 12;

/// Everybody who is looked at.
pub struct Looks {
    chosen: Chosen,
    /// memleak's own program: what it starts is not looked at.
    own: Option<(u64, u64)>,
    looks: u64,
    known: HashMap<u32, Known>,
    /// Processes that could not be looked at, as too many files are open.
    pub unseen: usize,
}

/// A process that was seen before.
struct Known {
    who: Who,
    comm: String,
    /// Its statm, while it is to be looked at. The kernel does not take another process of that number for it.
    statm: Option<File>,
}

impl Looks {
    /// Looks at those who fit.
    pub fn new(chosen: Chosen) -> Self {
        Self {
            chosen,
            own: program("self"),
            looks: 0,
            known: HashMap::new(),
            unseen: 0,
        }
    }

    /// Everybody who lives, with the memory that no file and no other process has, in bytes.
    pub fn look(&mut self) -> Vec<(Who, u64)> {
        self.looks += 1;
        self.unseen = 0;
        let present = self.chosen.candidates();
        self.known.retain(|pid, _| present.contains(pid));
        let again = self.looks.is_multiple_of(NAMES_EVERY);
        let mut readings = Vec::with_capacity(present.len());
        for pid in present {
            let bytes = self.known.get(&pid).and_then(anonymous);
            let stale = again && self.changed_its_name(pid);
            let ended = bytes.is_none()
                && self
                    .known
                    .get(&pid)
                    .is_some_and(|known| known.statm.is_some());
            if stale || ended {
                self.known.remove(&pid);
            }
            if !self.known.contains_key(&pid) {
                self.meet(pid);
                continue;
            }
            if let (Some(bytes), Some(known)) = (bytes, self.known.get(&pid)) {
                readings.push((known.who, bytes));
            }
        }
        readings
    }

    /// What a process is called.
    pub fn comm(&self, pid: u32) -> String {
        self.known
            .get(&pid)
            .map(|known| known.comm.clone())
            .unwrap_or_default()
    }

    /// Whether a process still is the one that it was.
    pub fn lives(&self, who: Who) -> bool {
        start_time(who.pid) == Some(who.started)
    }

    fn meet(&mut self, pid: u32) {
        // it may have ended meanwhile
        let (Some(comm), Some(started)) = (name(pid), start_time(pid)) else {
            return;
        };
        let wanted = self.chosen.fits(&comm)
            && !is_kernel_thread(pid)
            && (self.own.is_none() || program(&pid.to_string()) != self.own);
        let statm = match wanted.then(|| File::open(proc::folder(pid).join("statm"))) {
            Some(Ok(file)) => Some(file),
            Some(Err(_)) => {
                self.unseen += 1;
                return;
            }
            None => None,
        };
        let who = Who { pid, started };
        self.known.insert(pid, Known { who, comm, statm });
    }

    /// A program that was executed may fit although its process did not before.
    fn changed_its_name(&self, pid: u32) -> bool {
        let known = self.known.get(&pid);
        known.is_some_and(|known| name(pid).is_some_and(|now| now != known.comm))
    }
}

/// Resident memory less what files and other processes have of it.
fn anonymous(known: &Known) -> Option<u64> {
    let mut bytes = [0; STATM_BYTES];
    let read = known.statm.as_ref()?.read_at(&mut bytes, 0).ok()?;
    memory::anonymous_in(str::from_utf8(bytes.get(..read)?).ok()?)
}

/// The file of a process's program.
fn program(pid: &str) -> Option<(u64, u64)> {
    let file = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((file.dev(), file.ino()))
}
