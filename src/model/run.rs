//! What a recording holds, in memory: how it was made, the stacks once each, and the figures of every snapshot.
//! Data and look-ups only: the file's format lives in `write` and `read`, other tools' logs in the importers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::losses::Losses;
use crate::model::report::{Entry, Frame, ProcessEntry, Report};
use crate::model::snapshot::{Class, Look, Reach, WallTime};

/// A run of memleak, or of a tool whose log was imported, as far as its file tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recording {
    /// Who recorded what, where and how.
    pub header: Header,
    /// Every stack that any snapshot names; [`Figure::stack`] is an index into this list.
    pub stacks: Vec<StackRecord>,
    /// What processes are called, by id, where there could be several; empty for one, and for the kernel.
    pub processes: BTreeMap<u32, String>,
    /// When processes were first seen to have ended, by id, in ns as [`SnapshotRecord::elapsed_ns`] counts.
    pub ended: BTreeMap<u32, u64>,
    /// The snapshots in the order in which they were taken. May be empty: a run can end before its first.
    pub snapshots: Vec<SnapshotRecord>,
}

/// The kind of file that a recording was read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Our own recording: nothing is missing.
    #[default]
    Recording,
    /// Our own text output: the top stacks only, times of day without a date.
    Text,
    /// The log of BCC's memleak.py: like our text.
    MemleakPy,
    /// The log of libbpf-tools' memleak: like our text.
    LibbpfTools,
}

impl Source {
    /// How users know the kind.
    pub fn name(self) -> &'static str {
        match self {
            Source::Recording => "memleak recording",
            Source::Text => "memleak text output",
            Source::MemleakPy => "memleak.py log",
            Source::LibbpfTools => "libbpf-tools memleak log",
        }
    }
}

impl Source {
    /// Whether its times have dates; logs tell the time of day only.
    pub fn is_dated(self) -> bool {
        self == Source::Recording
    }
}

/// Who recorded what, where and how. Whatever a foreign log does not tell is empty or `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// The kind of file this was read from.
    pub source: Source,
    /// Name and version of the tool that recorded, such as `memleak 0.1.0`.
    pub tool: String,
    /// The tool's command line, its own name first.
    pub command: Vec<String>,
    /// Where it ran.
    pub host: Host,
    /// What it traced.
    pub target: Target,
    /// When tracing began.
    pub started: Option<WallTime>,
    /// Nanoseconds between two planned reports.
    pub interval_ns: Option<u64>,
    /// Bytes of a page on that host.
    pub page_size: Option<u64>,
}

/// A machine, as far as a reader of its figures cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// The kernel's release, such as `6.1.0-18-amd64`.
    pub kernel: String,
    /// The architecture, as `uname -m` says it.
    pub machine: String,
}

/// What was traced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Which kind of target.
    pub kind: TargetKind,
    /// The process that tracing began with, if it was one.
    pub pid: Option<u32>,
    /// That process's command line; empty where it is unknown.
    pub command: Vec<String>,
}

/// The kinds of targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetKind {
    /// A log that does not tell.
    #[default]
    Unknown,
    /// A running process.
    Process,
    /// A command that the tool started.
    Command,
    /// Every process.
    System,
    /// The kernel's own memory.
    Kernel,
}

impl TargetKind {
    /// The name used in machine-readable outputs.
    pub fn name(self) -> &'static str {
        match self {
            TargetKind::Unknown => "unknown",
            TargetKind::Process => "process",
            TargetKind::Command => "command",
            TargetKind::System => "system",
            TargetKind::Kernel => "kernel",
        }
    }
}

/// One holder of memory: a stack, in a process, with a class of memory. Unique within a recording.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StackRecord {
    /// The process that owns the memory; 0 for the kernel and where a log does not tell.
    pub tgid: u32,
    /// What kind of memory it holds.
    pub class: Class,
    /// The allocator that gave it, where it is known and not the C library's.
    pub allocator: Option<Arc<str>>,
    /// The stack, innermost frame first; `None` when the tracer could not store it.
    pub frames: Option<Vec<Frame>>,
}

/// The figures of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SnapshotRecord {
    /// When they were taken, by the wall clock. Logs tell no date: their days count from 1970-01-01.
    pub time: WallTime,
    /// Nanoseconds since tracing began, by a clock that never steps; since the first report, where a log tells no more.
    pub elapsed_ns: u64,
    /// Why they were taken.
    pub reason: Reason,
    /// One per stack with outstanding memory, by ascending stack.
    pub figures: Vec<Figure>,
    /// Whether a stack that `figures` leaves out held nothing. Logs list only the top stacks: there it is unknown.
    pub complete: bool,
    /// How much can't be reached, parallel to `figures`; empty where that was not looked at.
    pub reach: Vec<Reach>,
    /// What a look at the target's memory came to, where there was one.
    pub look: Option<Look>,
    /// Whether the figures are estimates scaled up from a sample.
    pub estimated: bool,
    /// What was lost since the start.
    pub losses: Losses,
    /// The target's resident memory in bytes, where it has one.
    pub rss_bytes: Option<u64>,
    /// Bytes that the target can still take before it meets its limit, and which limit that is.
    pub headroom: Option<Headroom>,
}

/// Why a snapshot was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    /// The interval had passed.
    #[default]
    Interval,
    /// Somebody asked for it (SIGUSR1).
    Demand,
    /// Somebody marked a baseline (SIGUSR2).
    Mark,
    /// The target exited: nothing counts as young any more, and much may have been freed on the way out.
    Final,
}

impl Reason {
    /// The name used in machine-readable outputs.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Interval => "interval",
            Reason::Demand => "demand",
            Reason::Mark => "mark",
            Reason::Final => "final",
        }
    }
}

/// What one stack holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Index into [`Recording::stacks`].
    pub stack: u32,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// Age of the oldest of them in ns, where ages are known.
    pub oldest_ns: Option<u64>,
}

/// How much memory is left to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// Bytes left.
    pub bytes: u64,
    /// What ends there.
    pub limit: Limit,
}

/// What a growing target runs into first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The memory limit of its cgroup, or of one above it.
    Cgroup,
    /// The most that a process may map or hold (RLIMIT_AS, RLIMIT_DATA).
    Rlimit,
    /// The machine's available memory (MemAvailable).
    Available,
}

impl Limit {
    /// The name used in machine-readable outputs.
    pub fn name(self) -> &'static str {
        match self {
            Limit::Cgroup => "cgroup",
            Limit::Rlimit => "rlimit",
            Limit::Available => "available",
        }
    }

    /// The name used in sentences: "time until the … is used up".
    pub fn describe(self) -> &'static str {
        match self {
            Limit::Cgroup => "cgroup's memory limit",
            Limit::Rlimit => "process's own limit",
            Limit::Available => "machine's available memory",
        }
    }
}

impl SnapshotRecord {
    /// Outstanding bytes over all its stacks.
    pub fn total_bytes(&self) -> u64 {
        self.figures
            .iter()
            .fold(0, |sum, figure| sum.saturating_add(figure.bytes))
    }

    /// Outstanding allocations over all its stacks.
    pub fn total_count(&self) -> u64 {
        self.figures
            .iter()
            .fold(0, |sum, figure| sum.saturating_add(figure.count))
    }
}

impl Recording {
    /// Nanoseconds from the start (or the first snapshot, where the start is unknown) to the last snapshot.
    pub fn duration_ns(&self) -> u64 {
        self.snapshots
            .last()
            .map_or(0, |snapshot| snapshot.elapsed_ns)
    }

    /// The recording as if some stacks had never held anything. All stacks keep their numbers.
    pub fn without_stacks(&self, hidden: &BTreeSet<usize>) -> Recording {
        let mut shown = self.clone();
        for snapshot in &mut shown.snapshots {
            let keeps: Vec<bool> = snapshot
                .figures
                .iter()
                .map(|figure| !hidden.contains(&(figure.stack as usize)))
                .collect();
            let mut keep = keeps.iter();
            snapshot.figures.retain(|_| keep.next() == Some(&true));
            let mut keep = keeps.iter();
            snapshot.reach.retain(|_| keep.next() == Some(&true));
        }
        shown
    }

    /// The snapshot at `index` as a report over all its stacks, smallest first; `None` beyond the last.
    pub fn report(&self, index: usize) -> Option<Report> {
        let snapshot = self.snapshots.get(index)?;
        let entries: Vec<Entry> = self
            .ranked(index)
            .into_iter()
            .filter_map(|at| self.entry(snapshot, at))
            .collect();
        let mut report = Report {
            time: snapshot.time,
            top: snapshot.figures.len(),
            processes: self.processes_of(&entries),
            allocations: Vec::new(),
            entries,
            total_stacks: snapshot.figures.len() as u64,
            total_bytes: snapshot.total_bytes(),
            total_count: snapshot.total_count(),
            look: snapshot.look.clone(),
            estimated: snapshot.estimated,
            losses: snapshot.losses,
        };
        report.sum_processes();
        Some(report)
    }

    /// The processes that entries belong to, where there could be several.
    fn processes_of(&self, entries: &[Entry]) -> Vec<ProcessEntry> {
        let owners: BTreeSet<u32> = entries.iter().map(|entry| entry.tgid).collect();
        let named = owners.into_iter().filter_map(|tgid| {
            let name = self.processes.get(&tgid)?.clone();
            Some(ProcessEntry {
                tgid,
                name,
                ..ProcessEntry::default()
            })
        });
        named.collect()
    }

    /// Places of the figures of the snapshot at `index`, in the order of [`Recording::report`]'s entries.
    pub fn ranked(&self, index: usize) -> Vec<usize> {
        let figures = self
            .snapshots
            .get(index)
            .map_or(&[][..], |snapshot| &snapshot.figures);
        let mut places: Vec<usize> = (0..figures.len()).collect();
        places.sort_by_key(|&at| {
            (
                figures[at].bytes,
                figures[at].count,
                std::cmp::Reverse(figures[at].stack),
            )
        });
        places
    }

    fn entry(&self, snapshot: &SnapshotRecord, at: usize) -> Option<Entry> {
        let figure = snapshot.figures.get(at)?;
        let stack = self.stacks.get(figure.stack as usize)?;
        Some(Entry {
            tgid: stack.tgid,
            class: stack.class,
            allocator: stack.allocator.clone(),
            bytes: figure.bytes,
            count: figure.count,
            oldest_ns: figure.oldest_ns,
            reach: snapshot.reach.get(at).copied(),
            frames: stack.frames.clone(),
        })
    }
}
