//! What a session does with its reports besides printing them: growth, recording, outputs, gates, marks.
//! Figures come from the session; nothing here traces or waits.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Result;

use super::is_closed_pipe;
use crate::analysis::Limits;
use crate::analysis::SortKey;
use crate::analysis::blame::{Blame, Culprit};
use crate::analysis::groups::{self, Group, Together};
use crate::analysis::history::{History, Key};
use crate::files::proc;
use crate::model::report::{Entry, ProcessEntry, Report};
use crate::model::run::{Header, Headroom, Host, Limit, Reason, Source, Target, TargetKind};
use crate::model::snapshot::{Snapshot, WallTime};
use crate::options::{Choice, Options, TargetOption};
use crate::process::memory;
use crate::process::{cgroups, name};
use crate::publish::{LiveRun, ServingArguments};
use crate::recording::collect::Moment;
use crate::serve::{ProcessNow, Server, Settings, Update};
use crate::stderr::say;

/// The first report that ends with the growing stacks: it takes three points to see a rise that goes on.
const FIRST_WITH_GROWTH: u64 = 3;

/// Stacks of ended processes that outputs are still told of at the end; the largest stay.
const MOST_OF_ENDED: usize = 4096;

/// Stacks that are newly named in each report to see whose they are: those that grow come first.
const MOST_NAMED: usize = 100;

/// Growing functions of ended processes that are remembered.
const MOST_ENDED_GROUPS: usize = 100;

/// Processes whose limits are looked at: they mostly share them.
const MOST_LIMITS: usize = 32;

/// Processes that endpoints tell the resident memory of: those that hold most.
const MOST_TOLD: usize = 200;

/// Everything that is done with reports besides printing them.
pub struct Outputs {
    run: LiveRun,
    server: Option<Server>,
    history: Option<History>,
    /// Who is to blame for stacks of the history; none where the user does not want to see one.
    culprits: BTreeMap<Key, Option<Named>>,
    /// What grew for as long as its process lived.
    ended_groups: Vec<Group>,
    began_ns: u64,
    sort: SortKey,
    limits: Limits,
    /// What processes held when they ended, with names, smallest first.
    ended: Vec<Entry>,
    ended_processes: Vec<ProcessEntry>,
    /// Whether the recording could not be written: the session goes on, but does not end well.
    failed: bool,
}

/// A stack that has been looked at.
#[derive(Clone, Debug)]
struct Named {
    culprit: Option<Culprit>,
    bytes: u64,
    count: u64,
}

/// When, why and of whom a report is made.
#[derive(Clone, Debug, Default)]
pub struct Occasion {
    /// CLOCK_MONOTONIC in ns.
    pub now_ns: u64,
    /// Why.
    pub reason: Reason,
    /// The living processes whose memory is looked at; none: the kernel.
    pub pids: Vec<u32>,
    /// The processes as the report lists them, by id; none where there can't be several.
    pub processes: Vec<ProcessEntry>,
    /// Only those that have ended are to be shown.
    pub ended_only: bool,
    /// Times that a probe was met.
    pub events: u64,
    /// Share of the CPU time that tracing takes, from 0 to 1, where that was asked for and can be told.
    pub overhead: Option<f64>,
}

impl Occasion {
    /// "pid 4711 (nginx)", where there can be several.
    pub fn name_of(&self, tgid: u32) -> Option<String> {
        let found = self
            .processes
            .binary_search_by_key(&tgid, |process| process.tgid);
        found
            .ok()
            .map(|at| format!("pid {tgid} ({})", self.processes[at].name))
    }

    /// Whether a process has ended, where there can be several.
    fn has_ended(&self, tgid: u32) -> bool {
        let found = self
            .processes
            .binary_search_by_key(&tgid, |process| process.tgid);
        found.is_ok_and(|at| self.processes[at].ended)
    }

    /// The resident memory of all processes in bytes; what they share counts in each.
    fn rss_bytes(&self) -> Option<u64> {
        let all = self
            .pids
            .iter()
            .filter_map(|pid| memory::resident_bytes(*pid));
        all.reduce(u64::saturating_add)
    }

    /// What is left to the process that has the least.
    pub fn headroom(&self) -> Option<Headroom> {
        let all = self.pids.iter().take(MOST_LIMITS);
        let alone = self.pids.len() == 1;
        all.filter_map(|pid| memory::headroom(*pid, alone))
            .min_by_key(|headroom| headroom.bytes)
    }
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
        let limits = Limits {
            stacks: options.reporting.top,
            processes: options
                .many_processes()
                .then_some(options.reporting.top_processes),
        };
        let header = header(&options.target, pid, options.interval, started);
        let blame = Blame::new(&options.live.output.blame_skip);
        let server = serve(&options.live.serving, blame, limits, &header)?;
        Ok(Self {
            run: LiveRun::open(&options.live, header)?.with_top(options.reporting.top),
            server,
            history: (!options.live.no_growth).then(History::default),
            culprits: BTreeMap::new(),
            ended_groups: Vec::new(),
            began_ns,
            sort: options.reporting.sort,
            limits,
            ended: Vec::new(),
            ended_processes: Vec::new(),
            failed: false,
        })
    }

    /// Whether an output goes to the standard output, where no report may then be printed.
    pub fn takes_stdout(&self) -> bool {
        self.run.takes_stdout()
    }

    /// Who is to blame for stacks.
    pub fn blame(&self) -> &Blame {
        self.run.blame()
    }

    /// How many stacks a report must name for what was asked: all of them, or those that are shown.
    pub fn to_name(&self) -> Limits {
        match self.run.needs_names() || self.server.is_some() {
            true => Limits {
                stacks: usize::MAX,
                processes: None,
            },
            false => self.limits,
        }
    }

    /// Whether every report must hold all processes, and not only those to show.
    pub fn needs_reports(&self) -> bool {
        self.run.needs_reports() || self.server.is_some()
    }

    /// Whether reports are served to others while the run goes on.
    pub fn serves(&self) -> bool {
        self.server.is_some()
    }

    /// Forgets how processes grew that have ended.
    pub fn forget(&mut self, ended: &BTreeMap<u32, u64>) {
        if let Some(history) = &mut self.history {
            history.forget(|tgid| ended.contains_key(&tgid));
            self.culprits.retain(|key, _| history.knows(key));
        }
    }

    /// Takes a snapshot and the report made of it, of as many stacks as [`Outputs::to_name`] says. Gives the part
    /// of the report to print.
    ///
    /// # Errors
    /// When whoever read what goes to the standard output has left.
    pub fn take(
        &mut self,
        snapshot: &Snapshot,
        report: Report,
        occasion: &Occasion,
    ) -> Result<Report> {
        let ended = |tgid: u32| occasion.has_ended(tgid);
        self.judge_ended(ended);
        let counts = occasion.reason != Reason::Final && !occasion.ended_only;
        if let (Some(history), true) = (&mut self.history, counts) {
            history.push(snapshot, ended);
        }
        if self.needs_reports() {
            let moment = Moment {
                elapsed_ns: occasion.now_ns.saturating_sub(self.began_ns),
                reason: occasion.reason,
                rss_bytes: occasion.rss_bytes(),
                headroom: occasion.headroom(),
            };
            let whole = self.with_ended(&report);
            if self.run.needs_reports()
                && let Err(error) = self.run.push(&whole, moment)
            {
                if self.run.takes_stdout() && is_closed_pipe(&error) {
                    return Err(error);
                }
                say!("{error:#}");
                self.failed = true;
            }
            self.publish(whole, moment, occasion);
            self.keep_ended(&report);
        }
        if occasion.reason == Reason::Mark {
            self.run.mark(&report);
        }
        Ok(self.shown(report, occasion.ended_only))
    }

    /// Hands a report to the endpoints, if there are any.
    fn publish(&self, report: Report, moment: Moment, occasion: &Occasion) {
        if let Some(server) = &self.server {
            let report = self.run.shown(report);
            server.publish(Update {
                processes: processes_now(&report, &occasion.pids),
                report,
                moment,
                growing: None,
                events: occasion.events,
                overhead: occasion.overhead,
                watch: None,
            });
        }
    }

    /// A report with what the processes held that ended before it: what they left behind is not forgotten at the end.
    fn with_ended(&self, report: &Report) -> Report {
        let mut report = report.clone();
        if self.ended_processes.is_empty() {
            return report;
        }
        report.entries.extend(self.ended.iter().cloned());
        report
            .entries
            .sort_by_key(|entry| (entry.bytes, entry.count));
        report.total_stacks += self.ended.len() as u64;
        for entry in &self.ended {
            report.total_bytes = report.total_bytes.saturating_add(entry.bytes);
            report.total_count = report.total_count.saturating_add(entry.count);
        }
        let known: Vec<ProcessEntry> = std::mem::take(&mut report.processes);
        let is_known = |tgid: u32| known.iter().any(|process| process.tgid == tgid);
        report.processes = self
            .ended_processes
            .iter()
            .filter(|process| !is_known(process.tgid))
            .cloned()
            .collect();
        report.processes.extend(known);
        report.processes.sort_by_key(|process| process.tgid);
        report.sum_processes();
        report
    }

    /// Keeps what ended processes hold in their last report.
    fn keep_ended(&mut self, report: &Report) {
        let ended = |tgid: u32| {
            let found = report
                .processes
                .binary_search_by_key(&tgid, |process| process.tgid);
            found.is_ok_and(|at| report.processes[at].ended)
        };
        let entries = report.entries.iter().filter(|entry| ended(entry.tgid));
        self.ended.extend(entries.cloned());
        let holding = report.processes.iter();
        self.ended_processes.extend(
            holding
                .filter(|process| process.ended && process.count > 0)
                .cloned(),
        );
        if self.ended.len() > MOST_OF_ENDED {
            self.ended.sort_by_key(|entry| (entry.bytes, entry.count));
            let dropped = self.ended.len() - MOST_OF_ENDED;
            self.ended.drain(..dropped);
            say!(
                "warning: {dropped} of the smallest stacks of ended processes are left out of outputs and gates"
            );
        }
    }

    fn shown(&self, mut report: Report, ended_only: bool) -> Report {
        if ended_only {
            report.processes.retain(|process| process.ended);
            let processes = &report.processes;
            let ended = |tgid: &u32| {
                processes
                    .binary_search_by_key(tgid, |process| process.tgid)
                    .is_ok()
            };
            report.entries.retain(|entry| ended(&entry.tgid));
            report.allocations.retain(|listed| ended(&listed.tgid));
        }
        if !self.run.needs_names() && self.server.is_none() {
            return report;
        }
        let mut shown = self.run.shown(report);
        shown.sum_processes();
        // A comparison changes figures, and with them the order by bytes that it leaves.
        if self.sort == SortKey::Count {
            shown
                .entries
                .sort_by_key(|entry| (entry.count, entry.bytes));
        }
        self.limits
            .cut(&mut shown.entries, |entry| (entry.tgid, entry.bytes));
        shown.top = self.limits.stacks;
        shown
    }

    /// The stacks to name before [`Outputs::groups`] can tell what grows; none before the third report.
    pub fn to_blame(&self) -> Vec<Key> {
        let Some(history) = self.judged_history() else {
            return Vec::new();
        };
        // what is left out can change with every mark and every byte
        let again = self.run.filter().baseline.is_some();
        let rising = history.rising().into_iter();
        rising
            .filter(|key| again || !self.culprits.contains_key(key))
            .take(MOST_NAMED)
            .collect()
    }

    /// Takes the name of a stack, unless the user does not want to see it.
    pub fn name(&mut self, key: Key, entry: &Entry) {
        let kept = self.run.filter().remaining(std::slice::from_ref(entry));
        let is_wanted = kept.first().is_some_and(Option::is_some);
        let frames = entry.frames.as_deref();
        let named = is_wanted.then(|| Named {
            culprit: frames.and_then(|frames| self.run.blame().culprit(frames)),
            bytes: entry.bytes,
            count: entry.count,
        });
        self.culprits.insert(key, named);
    }

    /// What grows by who is to blame, most severe first, with what it comes to, and the limit that the time left is
    /// about. Processes that have ended come last.
    pub fn groups(
        &mut self,
        snapshot: &Snapshot,
        headroom: Option<Headroom>,
    ) -> (Vec<Group>, Together, Option<Limit>) {
        for usage in &snapshot.usage {
            let key = (usage.tgid, usage.class, usage.stack);
            if let Some(Some(named)) = self.culprits.get_mut(&key) {
                (named.bytes, named.count) = (usage.bytes, usage.count);
            }
        }
        let mut groups = self.judged(|_| true);
        let together = groups::sum(&groups, headroom.map(|headroom| headroom.bytes));
        groups.extend(self.ended_groups.iter().cloned());
        (groups, together, headroom.map(|headroom| headroom.limit))
    }

    /// Judges the processes that have just ended for as long as they lived.
    fn judge_ended(&mut self, ended: impl Fn(u32) -> bool) {
        let judged = self.judged(ended);
        self.ended_groups.extend(judged);
        groups::sort(&mut self.ended_groups);
        self.ended_groups.truncate(MOST_ENDED_GROUPS);
    }

    fn judged_history(&self) -> Option<&History> {
        let history = self.history.as_ref()?;
        (history.snapshots() >= FIRST_WITH_GROWTH).then_some(history)
    }

    /// What grows of the stacks whose names are known, in the processes that are wanted.
    fn judged(&self, wanted: impl Fn(u32) -> bool) -> Vec<Group> {
        let Some(history) = self.judged_history() else {
            return Vec::new();
        };
        let mut stacks: BTreeMap<_, Vec<(Key, &Named)>> = BTreeMap::new();
        for (key, named) in &self.culprits {
            if let (true, Some(named)) = (wanted(key.0) && history.knows(key), named) {
                let group = groups::key(key.0, named.culprit.as_ref());
                stacks.entry(group).or_default().push((*key, named));
            }
        }
        let mut all = Vec::new();
        for ((tgid, _), stacks) in stacks {
            let keys: Vec<Key> = stacks.iter().map(|(key, _)| *key).collect();
            let Some((_, growth)) = history.judge(&keys) else {
                continue;
            };
            let sum = |of: fn(&Named) -> u64| {
                let figures = stacks.iter().map(|(_, named)| of(named));
                figures.fold(0, u64::saturating_add)
            };
            all.push(Group {
                tgid,
                culprit: stacks[0].1.culprit.clone(),
                growth,
                bytes: sum(|named| named.bytes),
                count: sum(|named| named.count),
                stacks: (0..stacks.len()).collect(),
            });
        }
        groups::sort(&mut all);
        all
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

/// The living processes of a report, those that hold most.
fn processes_now(report: &Report, pids: &[u32]) -> Vec<ProcessNow> {
    let held = |pid: u32| {
        let found = report
            .processes
            .binary_search_by_key(&pid, |process| process.tgid);
        found.map_or(0, |at| report.processes[at].bytes)
    };
    let mut pids = pids.to_vec();
    pids.sort_by_key(|&pid| (std::cmp::Reverse(held(pid)), pid));
    pids.truncate(MOST_TOLD);
    let alone = pids.len() == 1;
    let now = pids.into_iter().map(|pid| ProcessNow {
        pid,
        comm: report
            .process_name(pid)
            .map_or_else(|| name(pid), |name| Some(name.to_owned()))
            .unwrap_or_default(),
        container: cgroups::container_of(pid),
        resident_bytes: memory::resident_bytes(pid),
        headroom: memory::headroom(pid, alone),
    });
    now.collect()
}

/// Listens, if that is asked for.
///
/// # Errors
/// When the address can't be listened at.
pub fn serve(
    serving: &ServingArguments,
    blame: Blame,
    limits: Limits,
    header: &Header,
) -> Result<Option<Server>> {
    let Some(address) = serving.listen else {
        return Ok(None);
    };
    let mut hosts = serving.allow_host.clone();
    hosts.push(header.host.name.clone());
    let settings = Settings {
        address,
        hosts,
        functions: serving.metrics_functions,
        blame,
        limits,
    };
    Server::start(settings, header.clone()).map(Some)
}

/// What a run of this process says of itself.
pub fn header(
    target: &TargetOption,
    pid: Option<u32>,
    interval: Duration,
    started: WallTime,
) -> Header {
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let (kind, command) = match target {
        TargetOption::Processes(_) => (
            TargetKind::Process,
            pid.map(command_line).unwrap_or_default(),
        ),
        TargetOption::Chosen(Choice::All) => (TargetKind::System, Vec::new()),
        TargetOption::Chosen(_) => (TargetKind::Process, Vec::new()),
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
        interval_ns: u64::try_from(interval.as_nanos()).ok(),
        page_size: Some(rustix::param::page_size() as u64),
    }
}

/// A process's command line; empty when it has ended, or never had one.
fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(proc::folder(pid).join("cmdline")).unwrap_or_default();
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
