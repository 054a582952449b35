//! What a session does with its reports besides printing them: growth, recording, outputs, gates, marks.
//! Figures come from the session; nothing here traces or waits.

use std::fs;

use anyhow::Result;

use crate::analysis::findings::Finding;
use crate::analysis::growth::Growth;
use crate::analysis::history::{History, Key};
use crate::cli::SortKey;
use crate::options::{Options, TargetOption};
use crate::publish::LiveRun;
use crate::recording::collect::Moment;
use crate::recording::model::{Header, Headroom, Host, Limit, Reason, Source, Target, TargetKind};
use crate::report::{Entry, Report};
use crate::snapshot::{Snapshot, WallTime};
use crate::stderr::say;
use crate::target::memory;

/// The first report that ends with the growing stacks: it takes three points to see a rise that goes on.
const FIRST_WITH_GROWTH: u64 = 3;

/// Growing stacks that are named in each report.
const MOST_GROWING: usize = 100;

/// Everything that is done with reports besides printing them.
pub struct Outputs {
    run: LiveRun,
    history: Option<History>,
    began_ns: u64,
    sort: SortKey,
    top: usize,
    /// Whether the recording could not be written: the session goes on, but does not end well.
    failed: bool,
}

/// When and why a report is made.
#[derive(Clone, Copy, Debug)]
pub struct Occasion {
    /// CLOCK_MONOTONIC in ns.
    pub now_ns: u64,
    /// Why.
    pub reason: Reason,
    /// The process whose memory is looked at; none: the kernel.
    pub pid: Option<u32>,
}

impl Outputs {
    /// Opens what will be written, and reads what reports are compared with: before tracing, so that a misspelt path
    /// is known at once.
    ///
    /// # Errors
    /// When one of the files cannot be read or written.
    pub fn open(
        options: &Options,
        pid: Option<u32>,
        started: WallTime,
        began_ns: u64,
    ) -> Result<Self> {
        Ok(Self {
            run: LiveRun::open(&options.live, header(options, pid, started))?,
            history: (!options.live.no_growth).then(History::default),
            began_ns,
            sort: options.reporting.sort,
            top: options.reporting.top,
            failed: false,
        })
    }

    /// Whether an output goes to the standard output, where no report may then be printed.
    pub fn takes_stdout(&self) -> bool {
        self.run.takes_stdout()
    }

    /// How many stacks a report must name for what was asked: all of them, or those that are shown.
    pub fn stacks_to_name(&self) -> usize {
        if self.run.needs_names() {
            usize::MAX
        } else {
            self.top
        }
    }

    /// Takes a snapshot and the report made of it, of as many stacks as [`Outputs::stacks_to_name`] says. Gives the
    /// part of the report to print.
    pub fn take(&mut self, snapshot: &Snapshot, report: Report, occasion: Occasion) -> Report {
        if let (Some(history), false) = (&mut self.history, occasion.reason == Reason::Final) {
            history.push(snapshot);
        }
        if self.run.needs_reports() {
            let moment = Moment {
                elapsed_ns: occasion.now_ns.saturating_sub(self.began_ns),
                reason: occasion.reason,
                rss_bytes: occasion.pid.and_then(memory::resident_bytes),
                headroom: occasion.pid.and_then(memory::headroom),
            };
            if let Err(error) = self.run.push(&report, moment) {
                say!("{error:#}");
                self.failed = true;
            }
        }
        if occasion.reason == Reason::Mark {
            self.run.mark(&report);
        }
        self.shown(report)
    }

    fn shown(&self, report: Report) -> Report {
        if !self.run.needs_names() {
            return report;
        }
        let mut shown = self.run.shown(report);
        // A comparison changes figures, and with them the order by bytes that it leaves.
        if self.sort == SortKey::Count {
            shown
                .entries
                .sort_by_key(|entry| (entry.count, entry.bytes));
        }
        shown
            .entries
            .drain(..shown.entries.len().saturating_sub(self.top));
        shown.top = self.top;
        shown
    }

    /// The growing stacks to name, most severe first, and the limit that their times left are about; none before
    /// the third report.
    pub fn growing(&self, pid: Option<u32>) -> (Vec<(Key, Growth)>, Option<Limit>) {
        let Some(history) = self
            .history
            .as_ref()
            .filter(|history| history.snapshots() >= FIRST_WITH_GROWTH)
        else {
            return (Vec::new(), None);
        };
        let headroom: Option<Headroom> = pid.and_then(memory::headroom);
        let mut growing = history.growing(headroom.map(|headroom| headroom.bytes));
        growing.truncate(MOST_GROWING);
        (growing, headroom.map(|headroom| headroom.limit))
    }

    /// Growing stacks without those that the user does not want to see.
    pub fn filter_growing(&self, growing: Vec<Finding>) -> Vec<Finding> {
        let entries: Vec<Entry> = growing
            .iter()
            .map(|finding| finding.entry.clone())
            .collect();
        let kept = self.run.filter().remaining(&entries);
        growing
            .into_iter()
            .zip(kept)
            .filter_map(|(finding, kept)| kept.map(|_| finding))
            .collect()
    }

    /// Writes the outputs and judges the gates. Gives the exit status, if that is not the session's own to say.
    ///
    /// # Errors
    /// When an output cannot be written.
    pub fn finish(self) -> Result<Option<u8>> {
        let published = self.run.finish()?;
        published.notes.iter().for_each(|note| say!("{note}"));
        Ok(published.exit_code.or(self.failed.then_some(1)))
    }
}

fn header(options: &Options, pid: Option<u32>, started: WallTime) -> Header {
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let (kind, command) = match &options.target {
        TargetOption::Process(_) => (
            TargetKind::Process,
            pid.map(command_line).unwrap_or_default(),
        ),
        TargetOption::Command(words) => (
            TargetKind::Command,
            words
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
        ),
        TargetOption::Kernel => (TargetKind::Kernel, Vec::new()),
    };
    Header {
        source: Source::Recording,
        tool: concat!("memleak ", env!("CARGO_PKG_VERSION")).to_owned(),
        command: std::env::args_os()
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        host: Host {
            name: text(uname.nodename()),
            kernel: text(uname.release()),
            machine: text(uname.machine()),
        },
        target: Target { kind, pid, command },
        started: Some(started),
        interval_ns: u64::try_from(options.interval.as_nanos()).ok(),
        page_size: Some(rustix::param::page_size() as u64),
    }
}

/// A process's command line; empty when it has ended, or never had one.
fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes
        .strip_suffix(b"\0")
        .unwrap_or(&bytes)
        .split(|&byte| byte == 0);
    if bytes.is_empty() {
        Vec::new()
    } else {
        words
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect()
    }
}
