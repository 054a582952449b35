//! The kernel's announcements of new code mappings, of programs and of names, machine-wide, as perf reports them.
//! They come even when the process is gone before anybody could look at its /proc. Who lives is not told here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use perf_event::data::{Mmap2, Record};
use perf_event::events::Software;
use perf_event::{Builder, Clock, SampleFlag, Sampler};

use super::events::{Event, What};
use super::mappings::MappingRecord;
use crate::files::proc;

/// Bytes of ring buffer per CPU, for one process and at the least: about a thousand announcements, of which each exec makes
/// a few.
const LEAST_RING_BYTES: usize = 128 * 1024;

/// The same for several processes at the most, and of all CPUs: memleak may have to wait for the processor while others
/// execute programs by the thousand.
const MOST_RING_BYTES: usize = 2 << 20;
const MOST_BYTES: usize = 32 << 20;

/// The kernel's flag, in a comm record, for a name that changed because of exec (PERF_RECORD_MISC_COMM_EXEC).
const COMM_EXEC: u16 = 1 << 13;

/// Times that the rings are read over again while news keeps coming.
const MAX_PASSES: usize = 16;

/// What has been announced.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// In the order in which it happened.
    pub events: Vec<Event>,
    /// Announcements, of any process, that found no room.
    pub lost: u64,
}

/// Rings that collect the announcements, one for each CPU.
pub struct MappingEvents {
    rings: Vec<Sampler>,
}

impl MappingEvents {
    /// Starts collecting, for one process or for `many`.
    ///
    /// # Errors
    /// Fails without CAP_PERFMON, or where perf events are not built into the kernel.
    pub fn start(many: bool) -> Result<Self> {
        let cpus = online_cpus()?;
        let bytes = ring_bytes(many, cpus.len());
        let rings = cpus
            .into_iter()
            .map(|cpu| {
                // who may not lock as much memory gets what everybody does
                open_ring(cpu, bytes).or_else(|_| open_ring(cpu, LEAST_RING_BYTES))
            })
            .collect::<io::Result<Vec<_>>>()
            .context("failed to follow the mappings of processes (is CAP_PERFMON missing?)")?;
        Ok(Self { rings })
    }

    /// Hands over what has been announced since the last call, of the processes that `wanted` names.
    pub fn drain(&mut self, wanted: impl Fn(u32) -> bool) -> News {
        let mut news = News::default();
        // What one ring tells can be the outcome of what another has got since it was read: once a pass over all of
        // them brings nothing new, nothing is missing before the last that is known.
        for _ in 0..MAX_PASSES {
            if !self.read(&wanted, &mut news) {
                break;
            }
        }
        // a process that moves between CPUs leaves its traces in several rings
        news.events.sort_by_key(|event| event.time_ns);
        news
    }

    /// Reads what the rings hold; tells whether that was anything.
    fn read(&mut self, wanted: &impl Fn(u32) -> bool, news: &mut News) -> bool {
        let mut any = false;
        for ring in &mut self.rings {
            while let Some(record) = ring.next_record() {
                any = true;
                let time_ns = trailing_time(&record.to_contiguous());
                let misc = record.misc();
                match record.parse_record() {
                    Ok(Record::Lost(record)) => news.lost += record.lost,
                    Ok(record) => {
                        let event = event_of(&record, misc, time_ns);
                        news.events.extend(event.filter(|event| wanted(event.pid)));
                    }
                    Err(_) => {}
                }
            }
        }
        any
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

/// Bytes of each ring: a power of 2.
fn ring_bytes(many: bool, cpus: usize) -> usize {
    if !many {
        return LEAST_RING_BYTES;
    }
    let share = (MOST_BYTES / cpus.max(1)).next_power_of_two();
    share.clamp(LEAST_RING_BYTES, MOST_RING_BYTES)
}

/// None for what tells nothing of a process as a whole.
fn event_of(record: &Record<'_>, misc: u16, time_ns: u64) -> Option<Event> {
    let (pid, what) = match record {
        Record::Mmap2(event) => (event.pid, What::Mapped(record_of(event, time_ns))),
        Record::Comm(comm) => {
            let name = String::from_utf8_lossy(&comm.comm).into_owned();
            match misc & COMM_EXEC {
                0 if comm.pid != comm.tid => return None,
                0 => (comm.pid, What::Renamed(name)),
                _ => (comm.pid, What::NewImage),
            }
        }
        _ => return None,
    };
    Some(Event { time_ns, pid, what })
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

fn open_ring(cpu: usize, bytes: usize) -> io::Result<Sampler> {
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
        .sampled(bytes)?;
    ring.enable()?;
    Ok(ring)
}

/// Reads the list of CPUs, such as `0-3,8`.
fn online_cpus() -> Result<Vec<usize>> {
    let path = "/sys/devices/system/cpu/online";
    let list = proc::text(path).with_context(|| format!("failed to read {path}"))?;
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
    fn rings_are_large_where_many_processes_share_few_processors() {
        assert_eq!(ring_bytes(false, 2), LEAST_RING_BYTES);
        assert_eq!(ring_bytes(true, 2), MOST_RING_BYTES);
        assert_eq!(ring_bytes(true, 64), 512 << 10);
        assert_eq!(ring_bytes(true, 4096), LEAST_RING_BYTES);
    }

    #[test]
    fn lists_of_cpus_are_understood() {
        assert_eq!(parse_cpus("0"), Some(vec![0]));
        assert_eq!(parse_cpus("0-2,5,7-8"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(parse_cpus("0-"), None);
    }
}
