//! The kernel's announcements of new code mappings and of exec, machine-wide, as perf reports them.
//! They reach `Mappings` even when the process is gone before anybody could look at its /proc.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use perf_event::data::{Mmap2, Record};
use perf_event::events::Software;
use perf_event::{Builder, Clock, SampleFlag, Sampler};

use super::mappings::{MappingRecord, Mappings};

/// Bytes of ring buffer per CPU: about a thousand announcements, of which each exec makes a few.
const RING_BYTES: usize = 128 * 1024;

/// The kernel's flag, in a comm record, for a name that changed because of exec (PERF_RECORD_MISC_COMM_EXEC).
const COMM_EXEC: u16 = 1 << 13;

/// A process executed another program: all that it had mapped is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exec {
    /// The process.
    pub pid: u32,
    /// When, in ns of CLOCK_MONOTONIC.
    pub time_ns: u64,
}

/// What else was announced beside mappings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// In the order in which it happened.
    pub executed: Vec<Exec>,
    /// Announcements, of any process, that found no room.
    pub lost: u64,
}

/// Rings that collect the announcements, one for each CPU.
pub struct MappingEvents {
    rings: Vec<Sampler>,
}

impl MappingEvents {
    /// Starts collecting.
    ///
    /// # Errors
    /// Fails without CAP_PERFMON, or where perf events are not built into the kernel.
    pub fn start() -> Result<Self> {
        let rings = online_cpus()?
            .into_iter()
            .map(open_ring)
            .collect::<io::Result<Vec<_>>>()
            .context("failed to follow the mappings of processes (is CAP_PERFMON missing?)")?;
        Ok(Self { rings })
    }

    /// Hands over what has been announced since the last call, for the processes that `wanted` names.
    pub fn drain(&mut self, mappings: &mut Mappings, wanted: impl Fn(u32) -> bool) -> News {
        let mut announcements = Vec::new();
        let (mut executed, mut lost) = (Vec::new(), 0);
        for ring in &mut self.rings {
            while let Some(record) = ring.next_record() {
                let time_ns = trailing_time(&record.to_contiguous());
                let misc = record.misc();
                match record.parse_record() {
                    Ok(Record::Comm(comm)) if misc & COMM_EXEC != 0 && wanted(comm.pid) => {
                        announcements.push((time_ns, comm.pid, Announcement::Exec));
                    }
                    Ok(Record::Mmap2(event)) if wanted(event.pid) => {
                        let mapped = Announcement::Mapped(record_of(&event, time_ns));
                        announcements.push((time_ns, event.pid, mapped));
                    }
                    Ok(Record::Lost(record)) => lost += record.lost,
                    _ => {}
                }
            }
        }
        // a process that moves between CPUs leaves its traces in several rings
        announcements.sort_by_key(|(time_ns, ..)| *time_ns);
        for (time_ns, pid, announcement) in announcements {
            match announcement {
                Announcement::Exec => {
                    mappings.forget(pid);
                    executed.push(Exec { pid, time_ns });
                }
                Announcement::Mapped(record) => mappings.add(pid, record),
            }
        }
        News { executed, lost }
    }

    /// Descriptors that become readable when something is announced.
    #[allow(unsafe_code)] // the crate gives raw descriptors only
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.iter().map(|ring| {
            // SAFETY: the ring owns the descriptor, and the borrow of `self` keeps the ring.
            unsafe { BorrowedFd::borrow_raw(ring.as_counter().as_raw_fd()) }
        })
    }
}

enum Announcement {
    Exec,
    Mapped(MappingRecord),
}

fn record_of(event: &Mmap2<'_>, since_ns: u64) -> MappingRecord {
    MappingRecord {
        range: event.addr..event.addr.saturating_add(event.len),
        offset: event.pgoff,
        device: rustix::fs::makedev(event.maj().unwrap_or(0), event.min().unwrap_or(0)),
        inode: event.ino().unwrap_or(0),
        path: PathBuf::from(event.filename_os()),
        since_ns,
    }
}

/// The time in ns of CLOCK_MONOTONIC that the kernel appends to every record, as nothing else was asked for.
fn trailing_time(record: &[u8]) -> u64 {
    record
        .last_chunk()
        .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

fn open_ring(cpu: usize) -> io::Result<Sampler> {
    let mut ring = Builder::new(Software::DUMMY)
        .any_pid()
        .one_cpu(cpu)
        .mmap(true)
        .mmap2(true)
        .comm(true)
        .comm_exec(true)
        .sample(SampleFlag::TIME)
        .clockid(Clock::MONOTONIC)
        .sample_id_all(true)
        .wakeup_watermark(1)
        .build()?
        .sampled(RING_BYTES)?;
    ring.enable()?;
    Ok(ring)
}

/// Reads the list of CPUs, such as `0-3,8`.
fn online_cpus() -> Result<Vec<usize>> {
    let path = "/sys/devices/system/cpu/online";
    let list = fs::read_to_string(path).with_context(|| format!("failed to read {path}"))?;
    parse_cpus(list.trim()).with_context(|| format!("failed to understand {path}: {list}"))
}

fn parse_cpus(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_understood() {
        assert_eq!(parse_cpus("0"), Some(vec![0]));
        assert_eq!(parse_cpus("0-2,5,7-8"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(parse_cpus("0-"), None);
    }
}
