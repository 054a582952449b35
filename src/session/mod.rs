//! The loop of a live run: wait, take a snapshot, report, until count, Ctrl-C or the target's end.
//! The only place that reads clocks, waits, and prints.

mod choice;
mod kernel;
mod outputs;
mod overhead;
mod probing;
mod processes;
mod reporter;
mod safety;
mod silence;
mod traced;
mod unwinding;
mod wait;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::analysis::select::Selection;
use crate::options::{Choice, Options, Sampling, TargetOption};
use crate::probes::{Candidate, ObjectPlan};
use crate::recording::model::Reason;
use crate::report::Frame;
use crate::snapshot::{Snapshot, StackId, Usage, WallTime};
use crate::stderr::say;
use crate::symbolize::Symbolizer;
use crate::target::{MappingEvents, Mappings, descendants, memory, objects_of_command};
use crate::tracer::{self, Config, ProcessFilter, Storage, Tracer};
use choice::Chosen;
use outputs::{Occasion, Outputs};
use overhead::Overhead;
use probing::Probing;
use processes::{Keepers, Processes};
use reporter::{Names, Reporter};
use silence::Silence;
use traced::Traced;
use unwinding::Unwinding;
use wait::{Interrupts, Schedule, Wake, monotonic};

/// Longer than a dynamic linker takes to map a program's libraries.
const SETTLING: Duration = Duration::from_millis(100);

/// Intervals in a row that the overhead may be above the user's limit, with this one the last.
const MAX_EXPENSIVE: u32 = 2;

/// Traces as the options say; gives memleak's exit status.
///
/// # Errors
/// Fails when tracing can't begin, or can't go on.
pub fn run(options: &Options) -> Result<u8> {
    if options.target == TargetOption::Kernel {
        return kernel::run(options);
    }
    tracer::check()?;
    let interrupts = Interrupts::catch()?;
    let many = options.many_processes();
    if many {
        allow_many_files();
    }
    let chosen = Chosen::new(options)?;
    let mapping_events = MappingEvents::start(many)?;
    let mut mappings = Mappings::default();
    let (mut target, candidates) = Traced::open(&options.target, &mut mappings)?;
    let first = target.pids().first().copied();
    let outputs = Outputs::open(options, first, wall_time(), monotonic_ns())?;
    let symbolizer = Symbolizer::new(&options.naming)?;
    let mut storage = Storage::new();
    let filter = many.then(|| chosen.filter()).transpose()?;
    let tracer = Tracer::load(
        &mut storage,
        Config {
            max_throwing_size: max_throwing_size(&target),
            ..config(options, filter)
        },
    )?;
    let held = matches!(target, Traced::Command(_))
        .then_some(first)
        .flatten();
    let mut session = Session {
        options,
        many,
        tracer,
        mappings,
        mapping_events,
        processes: Processes::new(chosen.rules.clone(), many, held),
        chosen,
        probing: Probing::new(options),
        unwinding: Unwinding::default(),
        symbolizer,
        lost_mappings: 0,
        overhead: None,
        expensive: 0,
        reporter: Reporter::new(&options.reporting, outputs),
    };
    session.arm(&target, &candidates)?;
    let ended = session
        .announce(&target)
        .and_then(|()| session.take_in())
        .and_then(|()| target.release())
        .and_then(|()| session.trace(&target, &interrupts));
    session.tracer.detach();
    let reporter = session.reporter;
    let status = match ended {
        Ok(End::TooExpensive) => target.see_off(&interrupts)?,
        Err(error) if !is_closed_pipe(&error) => {
            target.leave(&interrupts)?;
            return Err(match error.is::<io::Error>() {
                true => error.context("failed to write to the standard output"),
                false => error,
            });
        }
        Ok(End::Done) | Err(_) => target.leave(&interrupts)?,
    };
    Ok(reporter.finish()?.unwrap_or(status))
}

/// How a session ends.
enum End {
    /// All reports were made, the target ended, or the user wanted no more.
    Done,
    /// The overhead stayed above the user's limit.
    TooExpensive,
}

struct Session<'a> {
    options: &'a Options,
    /// Whether more than one process can come to be traced.
    many: bool,
    tracer: Tracer<'a>,
    mappings: Mappings,
    mapping_events: MappingEvents,
    processes: Processes,
    chosen: Chosen,
    probing: Probing<'a>,
    unwinding: Unwinding,
    symbolizer: Symbolizer,
    lost_mappings: u64,
    overhead: Option<Overhead>,
    /// Intervals in a row in which the overhead was above the limit.
    expensive: u32,
    reporter: Reporter<'a>,
}

impl Session<'_> {
    /// Puts the probes in place.
    fn arm(&mut self, target: &Traced, candidates: &[Candidate]) -> Result<()> {
        let begun = monotonic();
        unwinding::warn_of_fallback(self.tracer.unwinder());
        self.tracer.attach_processes()?;
        for pid in target.pids() {
            self.add(pid)?;
        }
        let only = match (self.many, target.pids().first()) {
            (false, Some(pid)) => Some(*pid),
            _ => None,
        };
        self.unwinding.foresee(&mut self.tracer, candidates)?;
        self.unwinding
            .watch_linker(&mut self.tracer, candidates, only);
        let found = self.add_present(target)?;
        self.tell_unwinder()?;
        if target.is_finite() {
            let objects = self.find_allocators(target, candidates)?;
            safety::check(&self.tracer, target.processes(), candidates, &objects)?;
            for object in objects {
                self.probing
                    .attach(&mut self.tracer, &object, only)
                    .map_err(|error| target.still_lives().err().unwrap_or(error))?;
            }
        }
        safety::check_unknown(&self.tracer, self.many || target.is_held())?;
        self.probe_others(&found)?;
        let verbose = self.options.verbose;
        if verbose {
            unwinding::describe(&self.tracer);
            say!(
                "armed in {} ms ({:?} probes)",
                (monotonic() - begun).as_millis(),
                self.tracer.attachment()
            );
        }
        let throughout = verbose || self.options.max_overhead.is_some();
        self.overhead = Some(Overhead::start(only, throughout));
        Ok(())
    }

    /// Traces a process that runs already.
    fn add(&mut self, pid: u32) -> Result<()> {
        if self.many {
            self.tracer.add_process(pid)?;
        }
        self.processes.add(pid, &mut self.symbolizer);
        Ok(())
    }

    /// Adds the processes that belong to the target without being named: those that fit, and children.
    fn add_present(&mut self, target: &Traced) -> Result<Vec<u32>> {
        let mut found: Vec<u32> = self.chosen.members().into_iter().collect();
        if self.options.follow {
            let family = [target.pids(), found.clone()].concat();
            found.extend(descendants(&family));
        }
        found.retain(|pid| !self.processes.contains(*pid) && *pid != std::process::id());
        for &pid in &found {
            self.add(pid)?;
            // one that has just ended has nothing to be seen
            let _ = self.mappings.read(pid);
        }
        Ok(found)
    }

    /// Chooses what to probe in the processes that were named or started.
    fn find_allocators(
        &mut self,
        target: &Traced,
        candidates: &[Candidate],
    ) -> Result<Vec<ObjectPlan>> {
        let first = target.pids().first().copied();
        let own = &self.options.own_functions;
        let (probing, symbolizer) = (&self.probing, &self.symbolizer);
        let debug = |path: &Path, known_as: &Path| symbolizer.debug_file(first?, path, known_as);
        probing
            .discover(candidates, true, own, &debug)
            .or_else(|error| {
                wait::pause(SETTLING);
                match target.look_again(&mut self.mappings) {
                    Some(candidates) => probing.discover(&candidates, true, own, &debug),
                    None => Err(error),
                }
            })
    }

    /// Probes what processes map that were not named. Where there are none yet, those to come will mostly have the
    /// machine's own libc, which is what a shell has.
    fn probe_others(&mut self, found: &[u32]) -> Result<()> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for &pid in found {
            candidates.extend(probing::candidates(&self.mappings.objects(pid)));
        }
        if self.many && self.options.object.is_none() {
            candidates.extend(own_libc());
        }
        if !candidates.is_empty() {
            self.unwinding.foresee(&mut self.tracer, &candidates)?;
            self.unwinding
                .watch_linker(&mut self.tracer, &candidates, None);
        }
        let first = found.first().copied();
        let own = &self.options.own_functions;
        let plans = self
            .probing
            .discover(&candidates, true, own, &|path, known_as| {
                self.symbolizer.debug_file(first?, path, known_as)
            });
        // for those that were named there are probes already
        let plans = match matches!(self.options.target, TargetOption::Chosen(_)) {
            true => plans?,
            false => plans.unwrap_or_default(),
        };
        for object in plans {
            self.probing.attach(&mut self.tracer, &object, None)?;
        }
        for pid in self.processes.living() {
            self.probing.know(&self.mappings, pid);
        }
        Ok(())
    }

    /// BCC's first line.
    fn announce(&mut self, target: &Traced) -> Result<()> {
        if let TargetOption::Command(words) = &self.options.target {
            let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            let words = words.join(" ");
            self.reporter.say(&format!(
                "Executing '{words}' and tracing the resulting process."
            ))?;
        }
        let pids: Vec<String> = target.pids().iter().map(u32::to_string).collect();
        let whom = match (&self.options.target, pids.as_slice()) {
            (TargetOption::Chosen(choice), _) => self.describe_choice(choice),
            (_, [pid]) => format!("pid {pid}"),
            (_, pids) => format!("pids {}", pids.join(", ")),
        };
        self.reporter
            .say(&format!("Attaching to {whom}, Ctrl+C to quit."))?;
        if !target.is_finite() && self.processes.have_ended() {
            say!("there is no such process yet: waiting for one");
        }
        Ok(())
    }

    fn describe_choice(&self, choice: &Choice) -> String {
        let folders: Vec<String> = self
            .chosen
            .folders()
            .map(|folder| folder.display().to_string())
            .collect();
        match choice {
            Choice::Names { patterns, .. } => format!("processes called {}", patterns.join(", ")),
            Choice::Cgroups(_) => format!("the processes of {}", folders.join(", ")),
            Choice::Containers(ids) => {
                format!(
                    "the processes of container {} ({})",
                    ids.join(", "),
                    folders.join(", ")
                )
            }
            Choice::All => "all processes".to_owned(),
        }
    }

    fn trace(&mut self, target: &Traced, interrupts: &Interrupts) -> Result<End> {
        let mut schedule = Schedule::begin(self.options);
        // of several processes, the programs don't tell whose calls they saw
        let mut silence = match (self.many, target.pids().first()) {
            (false, Some(pid)) => Some(Silence::begin(&self.tracer, *pid)?),
            _ => None,
        };
        loop {
            let mut descriptors = Vec::from(self.tracer.descriptors());
            descriptors.extend(self.mapping_events.descriptors());
            let deadline = schedule.deadline();
            let until = [
                Some(deadline),
                self.overhead.as_ref().and_then(Overhead::statistics_end),
                self.processes.last_reports_due(),
            ];
            let until = until.into_iter().flatten().min();
            // of several, the tracer tells who is left
            let process = target.processes().first().filter(|_| !self.many);
            let process = process.map(|process| process.as_fd());
            let wake = wait::wait(interrupts, process, &descriptors, until)?;
            self.take_in()?;
            if let Some(overhead) = &mut self.overhead {
                overhead.end_statistics(&self.tracer)?;
            }
            let older = self.options.reporting.older;
            match wake {
                Wake::Reports => {}
                Wake::Deadline if monotonic() < deadline => {}
                // nothing is young any more once its process is gone
                Wake::Exit => return self.last_report(Duration::ZERO, Reason::Final),
                Wake::Interrupt => return self.last_report(older, Reason::Interval),
                Wake::Demand => self.report(older, Reason::Demand, false)?,
                Wake::Mark => self.report(older, Reason::Mark, false)?,
                Wake::Deadline if schedule.is_last() => {
                    silence.iter_mut().try_for_each(|s| s.look(&self.tracer))?;
                    return self.last_report(older, Reason::Interval);
                }
                Wake::Deadline => {
                    silence.iter_mut().try_for_each(|s| s.look(&self.tracer))?;
                    self.report(older, Reason::Interval, false)?;
                    if self.is_too_expensive()? {
                        self.last_report(older, Reason::Interval)?;
                        return Ok(End::TooExpensive);
                    }
                    schedule.advance();
                }
            }
            if self.many && target.is_finite() && self.processes.have_ended() {
                return self.last_report(Duration::ZERO, Reason::Final);
            }
            let due = self.processes.last_reports_due();
            if due.is_some_and(|due| due <= monotonic()) {
                self.report(older, Reason::Interval, true)?;
            }
        }
    }

    /// Takes in what the kernel has reported.
    fn take_in(&mut self) -> Result<()> {
        // before the mappings: all that these need is announced by now
        let walks = self.tracer.take_deferred_walks()?;
        let (many, processes) = (self.many, &self.processes);
        let news = self
            .mapping_events
            .drain(|pid| many || processes.contains(pid));
        let mut keepers = Keepers {
            mappings: &mut self.mappings,
            symbolizer: &mut self.symbolizer,
            tracer: &mut self.tracer,
        };
        let changed = self.processes.apply(news.events, &mut keepers)?;
        if news.lost > 0 {
            self.make_up_for(news.lost);
        }
        if !changed.is_empty() {
            let now_ns = monotonic_ns();
            for pid in &changed {
                let name = self.processes.name(*pid);
                self.probing.follow(
                    &mut self.tracer,
                    (&self.mappings, &self.symbolizer),
                    (*pid, name),
                    (!many).then_some(*pid),
                    now_ns,
                );
                if many {
                    self.unwinding
                        .load(&mut self.tracer, &self.mappings, *pid)?;
                }
            }
        }
        self.tell_unwinder()?;
        unwinding::finish(&mut self.tracer, &self.mappings, walks)?;
        self.reporter.show_calls(&self.tracer.take_calls()?)
    }

    /// Announcements were lost. What they told may have been of other processes, and can be read anew while these live.
    fn make_up_for(&mut self, lost: u64) {
        let read: Vec<bool> = self
            .processes
            .living()
            .map(|pid| self.mappings.read(pid).is_ok())
            .collect();
        // of several, some may have come and gone
        if self.many || read.contains(&false) {
            self.lost_mappings += lost;
        }
    }

    /// Tells the unwinder what processes map: of several, those that it has asked for or knows of.
    fn tell_unwinder(&mut self) -> Result<()> {
        let processes = &self.processes;
        let unknown = self
            .unwinding
            .learn(&mut self.tracer, &mut self.mappings, |pid| {
                processes.contains(pid)
            })?;
        let all = !self.many || !self.tracer.finds_mappings();
        let told: Vec<u32> = processes
            .living()
            .filter(|pid| all || unknown.contains(pid) || self.unwinding.knows(*pid))
            .collect();
        for pid in told {
            self.unwinding
                .refresh(&mut self.tracer, &mut self.mappings, pid)?;
        }
        Ok(())
    }

    /// The report that ends the session, and what all of it has cost.
    fn last_report(&mut self, older: Duration, reason: Reason) -> Result<End> {
        self.report(older, reason, false)?;
        if let Some(overhead) = &mut self.overhead {
            let (_, total) = overhead.estimate(&self.tracer)?;
            say!("overhead: {total}");
        }
        let losses = self.tracer.losses();
        unwinding::describe_cut(&self.tracer, &losses.cut);
        let calls = losses.calls;
        if self.options.trace {
            say!("{calls} calls were dropped from the trace");
        }
        Ok(End::Done)
    }

    /// Looks at the last interval; says so when the limit was passed for the second time in a row.
    fn is_too_expensive(&mut self) -> Result<bool> {
        let limit = self.options.max_overhead;
        if limit.is_none() && !self.options.verbose {
            return Ok(false);
        }
        let Some(overhead) = &mut self.overhead else {
            return Ok(false);
        };
        let (recent, _) = overhead.estimate(&self.tracer)?;
        if self.options.verbose {
            say!("overhead: {recent}");
        }
        let Some(limit) = limit else {
            return Ok(false);
        };
        match recent.share.is_some_and(|share| share * 100.0 > limit) {
            true => self.expensive += 1,
            false => self.expensive = 0,
        }
        if self.expensive < MAX_EXPENSIVE {
            return Ok(false);
        }
        say!(
            "detaching: the overhead stayed above --max-overhead {limit} for \
             {MAX_EXPENSIVE} intervals ({recent})"
        );
        self.tracer.detach();
        Ok(true)
    }

    /// Reports on all processes, or only on those that have ended since the last time.
    fn report(&mut self, older: Duration, reason: Reason, ended_only: bool) -> Result<()> {
        let now_ns = monotonic_ns();
        // what is older than now has a stack that can be finished now
        self.take_in()?;
        self.synchronize(now_ns)?;
        let ended = self.processes.ended();
        let mut filter = self.reporter.filter(older);
        filter.ended = ended.keys().copied().collect();
        filter.ended_only = ended_only && !self.reporter.needs_all();
        let mut snapshot = self.tracer.snapshot(now_ns, &filter)?;
        snapshot.time = wall_time();
        snapshot.losses.mappings = self.lost_mappings;
        self.symbolizer.refresh();
        let mut names = ProcessNames {
            tracer: &mut self.tracer,
            mappings: &self.mappings,
            symbolizer: &mut self.symbolizer,
            now_ns,
        };
        names.select(&mut snapshot, &self.options.reporting.selection)?;
        let occasion = Occasion {
            now_ns,
            reason,
            pids: self.processes.living().collect(),
            processes: self.processes.entries(filter.ended_only),
            ended_only,
        };
        self.reporter.report(&snapshot, &occasion, &mut names)?;
        self.symbolizer.rest();
        self.retire(&ended)
    }

    /// Of several processes, makes sure of who is traced, and lets the unwinder know those that have lived for a while.
    fn synchronize(&mut self, now_ns: u64) -> Result<()> {
        if !self.many {
            return Ok(());
        }
        for pid in self.chosen.latecomers() {
            if !self.processes.contains(pid) {
                self.add(pid)?;
                let _ = self.mappings.read(pid);
                let name = self.processes.name(pid);
                say!("tracing process {pid} ({name}) from now on: it was moved to the cgroup");
            }
        }
        let mut keepers = Keepers {
            mappings: &mut self.mappings,
            symbolizer: &mut self.symbolizer,
            tracer: &mut self.tracer,
        };
        self.processes.synchronize(now_ns, &mut keepers);
        for pid in self.processes.living() {
            let name = self.processes.name(pid);
            self.probing.follow(
                &mut self.tracer,
                (&self.mappings, &self.symbolizer),
                (pid, name),
                None,
                now_ns,
            );
            self.unwinding
                .refresh(&mut self.tracer, &mut self.mappings, pid)?;
        }
        Ok(())
    }

    /// Forgets the processes that have got their last report.
    fn retire(&mut self, ended: &BTreeMap<u32, u64>) -> Result<()> {
        let mut keepers = Keepers {
            mappings: &mut self.mappings,
            symbolizer: &mut self.symbolizer,
            tracer: &mut self.tracer,
        };
        self.processes.retire(&mut keepers)?;
        self.unwinding.forget(ended);
        self.reporter.forget(ended);
        Ok(())
    }
}

/// Names processes' stacks as of a time.
struct ProcessNames<'a, 'obj> {
    tracer: &'a mut Tracer<'obj>,
    mappings: &'a Mappings,
    symbolizer: &'a mut Symbolizer,
    now_ns: u64,
}

impl ProcessNames<'_, '_> {
    /// Leaves out the stacks that the user doesn't want to see.
    fn select(&mut self, snapshot: &mut Snapshot, selection: &Selection) -> Result<()> {
        if selection.is_empty() {
            return Ok(());
        }
        let mut kept = Vec::new();
        for usage in snapshot.usage.drain(..) {
            let frames = self.frames(&usage)?;
            if selection.wants(frames.as_deref().unwrap_or_default(), None) {
                kept.push(usage);
            }
        }
        snapshot.usage = kept;
        Ok(())
    }
}

impl Names for ProcessNames<'_, '_> {
    fn frames(&mut self, usage: &Usage) -> Result<Option<Vec<Frame>>> {
        // code may since have been replaced at the stack's addresses
        let at_ns = self.now_ns.saturating_sub(usage.oldest_ns.unwrap_or(0));
        let stack = self.tracer.stack(usage.stack)?;
        Ok(stack.map(|stack| {
            self.symbolizer
                .frames(self.mappings, usage.tgid, &stack, at_ns)
        }))
    }

    fn allocator(&mut self, stack: StackId) -> Result<Option<Arc<str>>> {
        self.tracer.allocator(stack)
    }
}

fn monotonic_ns() -> u64 {
    u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX)
}

/// The size up to which an allocation surely succeeds in all processes that are known by now.
fn max_throwing_size(target: &Traced) -> u64 {
    let own = std::process::id();
    let pids = target.pids().into_iter().chain([own]);
    pids.map(memory::surely_allocatable).min().unwrap_or(0)
}

fn config(options: &Options, processes: Option<ProcessFilter>) -> Config {
    let recording = &options.recording;
    Config {
        max_throwing_size: u64::MAX,
        sizes: (*recording.sizes.start(), *recording.sizes.end()),
        sampling: recording.sampling,
        mappings: recording.mappings,
        // what a sample of bytes stands for depends on each block's size, which totals don't keep
        combined: options.reporting.combined_only
            && !matches!(recording.sampling, Sampling::Bytes(_)),
        calls: options.trace,
        max_allocations: recording.max_allocations,
        max_stacks: recording.max_stacks,
        max_depth: recording.max_depth,
        unwind: options.unwind,
        processes,
        kernel: None,
        verbose: options.verbose,
    }
}

/// The libc that most programs of this machine have: a shell's.
fn own_libc() -> Vec<Candidate> {
    let objects = objects_of_command(Path::new("/bin/sh")).unwrap_or_default();
    objects
        .into_iter()
        .map(|path| Candidate {
            shown: path.clone(),
            path,
        })
        .collect()
}

/// Each process takes some open files: as many as may be had.
fn allow_many_files() {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        ..limits
    };
    // without them it goes on as far as it gets
    let _ = setrlimit(Resource::Nofile, raised);
}

fn wall_time() -> WallTime {
    let now = jiff::Zoned::now();
    WallTime {
        unix_ns: i64::try_from(now.timestamp().as_nanosecond()).unwrap_or(i64::MAX),
        utc_offset_s: now.offset().seconds(),
    }
}

/// Whoever read our output has left: that is an end like any other.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
