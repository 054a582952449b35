//! `memleak watch`: looks at what processes hold, traces the strongest suspect for a while, and tells what it found.
//! Whom to suspect is decided in `analysis`; a window of tracing is a memleak of its own.

mod look;
mod tell;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::choice::Chosen;
use super::interrupts::Interrupts;
use super::outputs;
use super::overhead::cpu_time;
use super::wait::{self, Wake, monotonic};
use super::{monotonic_ns, wall_time};
use crate::analysis::Limits;
use crate::analysis::blame::Blame;
use crate::analysis::joined::Joined;
use crate::analysis::suspect::Suspicion;
use crate::analysis::watch::{Outcome, Suspect, Watch, Who};
use crate::files::proc;
use crate::model::losses::Losses;
use crate::model::report::{ProcessEntry, Report};
use crate::model::run::{Reason, Recording};
use crate::options::WatchOptions;
use crate::process::{cgroups, inherited, memory};
use crate::recording::collect::Moment;
use crate::serve::{ProcessNow, Server, Update, WatchNow};
use crate::stderr::say;
use look::Looks;
use tell::{News, Recordings, Teller};
use window::Window;

/// Looks between two times that the endpoints are told of everybody; they are told of windows at once.
const PUBLISH_EVERY: u64 = 12;

/// Processes that the endpoints are told of: suspects and traced ones first, then those that hold most.
const MOST_TOLD: usize = 100;

/// Processes whose windows are remembered.
const MOST_JOINED: usize = 100;

/// What the text of the endpoints shows.
const SHOWN: Limits = Limits {
    stacks: 10,
    processes: Some(MOST_TOLD),
};

/// From a SIGTERM to the end of a window, at the most.
const LAST_MOMENT: Duration = Duration::from_millis(600);

/// Shares of its CPU time that tracing may take from a process, in percent, however idle or busy it is.
const LEAST_SHARE: f64 = 0.1;
const MOST_SHARE: f64 = 50.0;

/// Watches until somebody asks to end.
///
/// # Errors
/// When watching can't begin, or can't go on.
pub fn run(options: &WatchOptions) -> Result<u8> {
    crate::tracer::check()?;
    let interrupts = Interrupts::catch()?;
    inherited::allow_many_files()?;
    let chosen = Chosen::new(&options.target, false)?;
    let recordings = Recordings::open(options.record.clone())?;
    let header = outputs::header(&options.target, None, options.every, wall_time());
    let blame = Blame::new(&options.blame_skip);
    let server = outputs::serve(&options.serving, blame.clone(), SHOWN, &header)?;
    say!("watching, Ctrl+C to quit");
    let window_ns = u64::try_from(options.window.as_nanos()).unwrap_or(u64::MAX);
    let mut watching = Watching {
        options,
        blame,
        began: monotonic(),
        looks: Looks::new(chosen),
        count: 0,
        watch: Watch::new(options.sensitivity, window_ns),
        readings: Vec::new(),
        next: None,
        window: None,
        joined: BTreeMap::new(),
        containers: BTreeMap::new(),
        counts: Counts::default(),
        oom_kills: oom_kills(),
        teller: Teller::new(options.on_finding.clone()),
        recordings,
        server,
    };
    watching.go_on(&interrupts)?;
    watching.end();
    Ok(0)
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    traced: u64,
    failed: u64,
    findings: u64,
    oom_kills: u64,
}

/// The processes whose windows are joined.
#[derive(Debug)]
struct Traced {
    joined: Joined,
    comm: String,
    container: Option<String>,
    /// Why it was traced last.
    suspicion: Suspicion,
    /// What the last window recorded, where that is kept.
    recording: Option<PathBuf>,
    /// Whether the kernel killed it for want of memory.
    killed: bool,
}

/// Whom to trace next, if it still is the strongest suspect at the next look; by then it is known how busy it is.
#[derive(Clone, Copy, Debug)]
struct Next {
    who: Who,
    at: Duration,
    cpu: Duration,
}

struct Watching<'a> {
    options: &'a WatchOptions,
    blame: Blame,
    began: Duration,
    looks: Looks,
    count: u64,
    watch: Watch,
    readings: Vec<(Who, u64)>,
    next: Option<Next>,
    window: Option<Window>,
    joined: BTreeMap<Who, Traced>,
    containers: BTreeMap<Who, Option<String>>,
    counts: Counts,
    oom_kills: u64,
    teller: Teller,
    recordings: Recordings,
    server: Option<Server>,
}

impl Watching<'_> {
    fn go_on(&mut self, interrupts: &Interrupts) -> Result<()> {
        let mut due = monotonic();
        loop {
            let window = self.window.as_ref().map(|window| window.as_fd());
            match wait::wait(interrupts, window, &[], Some(due))? {
                Wake::Interrupt => return Ok(()),
                Wake::Exit => self.close_window(),
                Wake::Demand => self.publish(),
                Wake::Mark | Wake::Reports => {}
                Wake::Deadline => {
                    self.look();
                    due = (due + self.options.every).max(monotonic());
                }
            }
        }
    }

    fn look(&mut self) {
        self.count += 1;
        self.readings = self.looks.look();
        let now_ns = monotonic_ns();
        self.watch.look(now_ns, &self.readings, |pid| {
            Some(memory::headroom(pid, true)?.bytes)
        });
        self.forget();
        self.teller.look();
        match &mut self.window {
            Some(window) => window.hurry(),
            None => self.choose(now_ns),
        }
        if self.count.is_multiple_of(PUBLISH_EVERY) {
            self.publish();
        }
    }

    /// Forgets processes that have ended, but for those that the kernel killed: what they held last is what people look for.
    fn forget(&mut self) {
        let traced = self.window.as_ref().map(|window| window.suspect.who);
        let present: BTreeSet<Who> = self.readings.iter().map(|(who, _)| *who).collect();
        self.containers.retain(|who, _| present.contains(who));
        let stays = |who: &Who| present.contains(who) || Some(*who) == traced;
        let gone: Vec<Who> = self
            .joined
            .keys()
            .copied()
            .filter(|who| !stays(who))
            .collect();
        for who in gone {
            if self.joined.get(&who).is_some_and(|traced| traced.killed) {
                continue;
            }
            match self.was_killed(who) {
                true => self.tell(who),
                false => drop(self.joined.remove(&who)),
            }
        }
        self.oom_kills = oom_kills();
    }

    /// Notes whether a process that was traced has ended while the kernel killed for want of memory.
    fn was_killed(&mut self, who: Who) -> bool {
        let killed = !self.looks.lives(who) && oom_kills() > self.oom_kills;
        if let (true, Some(traced)) = (killed, self.joined.get_mut(&who)) {
            traced.killed = true;
            self.counts.oom_kills += 1;
        }
        killed
    }

    fn choose(&mut self, now_ns: u64) {
        let Some(suspect) = self.watch.next(now_ns) else {
            self.next = None;
            return;
        };
        let Some(cpu) = cpu_time(Some(suspect.who.pid)) else {
            return;
        };
        match self.next.filter(|next| next.who == suspect.who) {
            Some(next) => {
                let busy = cpu.saturating_sub(next.cpu).as_secs_f64();
                let elapsed = (monotonic() - next.at).as_secs_f64().max(1e-3);
                self.next = None;
                self.open_window(suspect, busy / elapsed);
            }
            None => {
                self.next = Some(Next {
                    who: suspect.who,
                    at: monotonic(),
                    cpu,
                });
            }
        }
    }

    /// Traces a process that keeps so many CPUs busy.
    fn open_window(&mut self, suspect: Suspect, busy: f64) {
        let pid = suspect.who.pid;
        let comm = self.looks.comm(pid);
        let path = self
            .recordings
            .next(pid, wall_time().unix_ns / 1_000_000_000);
        let share = share(self.options.max_overhead, busy);
        match Window::open(suspect, comm, path, self.options, share) {
            Ok(window) => {
                if self.options.verbose {
                    let comm = &window.comm;
                    say!("tracing process {pid} ({comm}): at most {share:.1}% of its CPU time");
                }
                self.window = Some(window);
            }
            Err(error) => {
                say!("warning: {error:#}");
                self.failed(suspect);
            }
        }
        self.publish();
    }

    fn failed(&mut self, suspect: Suspect) {
        self.counts.failed += 1;
        self.watch
            .traced(suspect.who, monotonic_ns(), Outcome::Failed);
    }

    fn close_window(&mut self) {
        let Some(mut window) = self.window.take() else {
            return;
        };
        let who = window.suspect.who;
        let mut news = false;
        match window.close() {
            Err(error) => {
                let comm = &window.comm;
                say!(
                    "process {} ({comm}) grows, and could not be traced: {error:#}",
                    who.pid
                );
                self.failed(window.suspect);
            }
            Ok(recording) => news = self.take(&window, &recording),
        }
        self.recordings.tidy(&window.path);
        self.limit_joined(who);
        self.publish();
        // whoever is told can ask the endpoints for more
        if news {
            self.tell(who);
        }
    }

    /// Takes in what a window showed; whether there is something to tell.
    fn take(&mut self, window: &Window, recording: &Recording) -> bool {
        let who = window.suspect.who;
        self.counts.traced += 1;
        let began_ns = u64::try_from(window.began.as_nanos()).unwrap_or(u64::MAX);
        let traced = self.joined.entry(who).or_insert_with(|| Traced {
            joined: Joined::default(),
            comm: window.comm.clone(),
            container: cgroups::container_of(who.pid),
            suspicion: window.suspect.suspicion,
            recording: None,
            killed: false,
        });
        traced.suspicion = window.suspect.suspicion;
        traced.recording = self.recordings.keeps().then(|| window.path.clone());
        traced.joined.add(recording, began_ns);
        let outcome = match traced.joined.growing().is_empty() {
            true => Outcome::Nothing,
            false => Outcome::Found,
        };
        self.watch.traced(who, monotonic_ns(), outcome);
        let found = outcome == Outcome::Found;
        self.counts.findings += u64::from(found);
        let news = self.was_killed(who) || found;
        if !news && self.options.verbose {
            say!(
                "process {} ({}) grows, and none of its stacks does",
                who.pid,
                window.comm
            );
        }
        news
    }

    fn tell(&mut self, who: Who) {
        let Some(traced) = self.joined.get(&who) else {
            return;
        };
        let news = News {
            pid: who.pid,
            comm: &traced.comm,
            container: traced.container.as_deref(),
            suspicion: traced.suspicion,
            since_s: monotonic_ns().saturating_sub(traced.suspicion.since_ns) as f64 / 1e9,
            windows: traced.joined.windows(),
            doubtful: traced.joined.losses().may_lack_frees(),
            oom_killed: traced.killed,
            recording: traced.recording.as_deref(),
            growing: &traced.joined.growing(),
        };
        self.teller.tell(&news, &self.blame);
    }

    /// Remembers so many processes, the last one among them.
    fn limit_joined(&mut self, last: Who) {
        while self.joined.len() > MOST_JOINED {
            let slowest = self.joined.iter().filter(|(who, _)| **who != last);
            let slowest = slowest
                .min_by(|(_, one), (_, other)| one.suspicion.low.total_cmp(&other.suspicion.low));
            let Some(who) = slowest.map(|(who, _)| *who) else {
                return;
            };
            self.joined.remove(&who);
        }
    }

    fn publish(&mut self) {
        if self.server.is_none() {
            return;
        }
        let suspects = self.watch.suspects();
        let processes = self.processes(&suspects);
        let update = Update {
            report: self.report(&processes),
            moment: Moment {
                elapsed_ns: u64::try_from((monotonic() - self.began).as_nanos())
                    .unwrap_or(u64::MAX),
                reason: Reason::Interval,
                ..Moment::default()
            },
            growing: Some(
                self.joined
                    .iter()
                    .flat_map(|(who, traced)| {
                        let mut growing = traced.joined.growing();
                        growing
                            .iter_mut()
                            .for_each(|finding| finding.entry.tgid = who.pid);
                        growing
                    })
                    .collect(),
            ),
            processes,
            events: 0,
            overhead: None,
            watch: Some(WatchNow {
                processes: self.watch.processes() as u64,
                unseen: self.looks.unseen as u64,
                suspects: suspects
                    .iter()
                    .map(|suspect| (suspect.who.pid, suspect.suspicion))
                    .collect(),
                tracing: self
                    .window
                    .as_ref()
                    .map(|window| (window.suspect.who.pid, window.comm.clone())),
                traced: self.counts.traced,
                failed: self.counts.failed,
                findings: self.counts.findings,
                oom_kills: self.counts.oom_kills,
            }),
        };
        if let Some(server) = &self.server {
            server.publish(update);
        }
    }

    fn processes(&mut self, suspects: &[Suspect]) -> Vec<ProcessNow> {
        let mut chosen: Vec<Who> = suspects.iter().map(|suspect| suspect.who).collect();
        chosen.extend(self.joined.keys());
        let mut held = self.readings.clone();
        held.sort_unstable_by_key(|(who, bytes)| (std::cmp::Reverse(*bytes), *who));
        chosen.extend(held.iter().map(|(who, _)| who));
        let mut seen = BTreeSet::new();
        chosen.retain(|who| seen.insert(*who));
        chosen.truncate(MOST_TOLD);
        let named = suspects.len() + self.joined.len();
        let now = chosen.into_iter().enumerate().map(|(at, who)| {
            let traced = self.joined.get(&who);
            let container = self.containers.entry(who).or_insert_with(|| match traced {
                Some(traced) => traced.container.clone(),
                None => cgroups::container_of(who.pid),
            });
            ProcessNow {
                pid: who.pid,
                comm: match traced {
                    Some(traced) => traced.comm.clone(),
                    None => self.looks.comm(who.pid),
                },
                container: container.clone(),
                resident_bytes: memory::resident_bytes(who.pid),
                headroom: (at < named)
                    .then(|| memory::headroom(who.pid, true))
                    .flatten(),
            }
        });
        now.collect()
    }

    /// What all windows left behind.
    fn report(&self, processes: &[ProcessNow]) -> Report {
        let mut report = Report {
            time: wall_time(),
            top: SHOWN.stacks,
            losses: self.losses(),
            ..Report::default()
        };
        for process in processes {
            report.processes.push(ProcessEntry {
                tgid: process.pid,
                name: process.comm.clone(),
                ..ProcessEntry::default()
            });
        }
        report.processes.sort_by_key(|process| process.tgid);
        for (who, traced) in &self.joined {
            report
                .entries
                .extend(traced.joined.entries().cloned().map(|mut entry| {
                    entry.tgid = who.pid;
                    entry
                }));
        }
        report
            .entries
            .sort_by_key(|entry| (entry.bytes, entry.count, entry.tgid));
        report.total_stacks = report.entries.len() as u64;
        for entry in &report.entries {
            report.total_bytes = report.total_bytes.saturating_add(entry.bytes);
            report.total_count = report.total_count.saturating_add(entry.count);
        }
        report.sum_processes();
        report
    }

    /// What was lost in the last windows of all.
    fn losses(&self) -> Losses {
        let all = self.joined.values().map(|traced| traced.joined.losses());
        all.fold(Losses::default(), |sum, losses| sum.plus(&losses))
    }

    /// Ends a window that is open, in time.
    fn end(&mut self) {
        let Some(window) = self.window.take() else {
            return;
        };
        window.stop();
        let until = monotonic() + LAST_MOMENT;
        wait::ends(window.as_fd(), until);
        window.kill();
    }
}

/// Of a process that keeps so many CPUs busy, the percentage of its time that is the wanted one of the machine.
fn share(of_machine: f64, busy: f64) -> f64 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    (of_machine * cpus / busy.max(1e-3)).clamp(LEAST_SHARE, MOST_SHARE)
}

/// How often the kernel has killed for want of memory since boot; 0 where it does not tell.
fn oom_kills() -> u64 {
    let text = proc::text("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_machine_is_one_of_the_process() {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        assert_eq!(share(2.0, cpus), 2.0);
        assert_eq!(share(2.0, cpus / 4.0), 8.0);
        assert_eq!(share(2.0, 0.0), MOST_SHARE);
        assert_eq!(share(0.0, cpus), LEAST_SHARE);
    }
}
