//! The loop of a live run: wait, take a snapshot, report, until count, Ctrl-C or the target's end.
//! The only place that reads clocks, waits, and prints.

mod arming;
mod choice;
mod interpreters;
mod interrupts;
mod kernel;
mod lines;
mod lost;
mod outputs;
mod overhead;
mod patched;
mod probing;
mod processes;
mod reporter;
mod reporting;
mod safety;
mod silence;
mod traced;
mod translators;
mod unwinding;
mod wait;
pub mod watch;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Parser as _;

use crate::cli::Arguments;
use crate::model::capture::Sampling;
use crate::model::run::Reason;
use crate::model::snapshot::WallTime;
use crate::options::{Options, TargetOption, validate};
use crate::process::{MappingEvents, Mappings, ObjectFile, inherited, memory};
use crate::reader;
use crate::stderr::say;
use crate::symbolize::Symbolizer;
use crate::tracer::{self, Config, ProcessFilter, Single, Storage, Tracer};
use choice::Chosen;
use interpreters::Interpreters;
use interrupts::Interrupts;
use lost::LostOrHeld;
use outputs::Outputs;
use overhead::Overhead;
pub use probing::candidates;
use probing::{Probing, Scope};
use processes::{Keepers, Processes};
use reporter::Reporter;
use silence::Silence;
use traced::Traced;
use unwinding::Unwinding;
use wait::{Schedule, Wake, monotonic};

/// Files that stay known although no traced process maps them.
const UNUSED_FILES: usize = 512;

/// Traces as the options say; gives memleak's exit status.
///
/// # Errors
/// Fails when tracing can't begin, or can't go on.
pub fn run(options: &Options) -> Result<u8> {
    options.hints.iter().for_each(|hint| say!("{hint}"));
    if options.target == TargetOption::Kernel {
        return kernel::run(options);
    }
    traced::check_interval(options)?;
    tracer::check()?;
    reader::start();
    let interrupts = Interrupts::catch()?;
    let many = options.many_processes();
    inherited::allow_many_files()?;
    let chosen = Chosen::new(&options.target, options.follow)?;
    let mapping_events = MappingEvents::start(many)?;
    let mut mappings = Mappings::default();
    let (mut target, candidates) = Traced::open(options, &mut mappings)?;
    translators::refuse(&target, options)?;
    if let Traced::Command(command) = &target {
        interrupts.answer_for(command.process())?;
    }
    let first = target.pids().first().copied();
    let outputs = Outputs::open(options, first, wall_time(), monotonic_ns())?;
    let symbolizer = Symbolizer::new(&options.naming)?;
    let mut storage = Storage::default();
    let filter = many.then(|| chosen.filter()).transpose()?;
    let tracer = Tracer::load(
        &mut storage,
        Config {
            max_throwing_size: max_throwing_size(&target),
            single: first.filter(|_| !many).map(|pid| Single {
                pid,
                kept_apart: target.keeps_probes(),
            }),
            ..config(options, filter)
        },
    )?;
    let held = matches!(target, Traced::Command(_))
        .then_some(first)
        .flatten();
    let mut session = Session {
        options,
        many,
        scope: Scope::Everyone,
        looked_for_translators: monotonic(),
        tracer,
        mappings,
        mapping_events,
        processes: Processes::new(many, held),
        chosen,
        probing: Probing::new(options),
        unwinding: Unwinding::default(),
        interpreters: Interpreters::default(),
        symbolizer,
        lost_mappings: 0,
        is_ending: false,
        unprobed: None,
        overhead: None,
        expensive: 0,
        lost: LostOrHeld::default(),
        reporter: Reporter::new(&options.reporting, outputs),
    };
    session.arm(&target, &candidates)?;
    let ended = session
        .announce(&target)
        .and_then(|()| session.take_in())
        .and_then(|()| {
            session.lost = LostOrHeld::begin(options, &target);
            target.release()
        })
        .and_then(|()| session.trace(&target, &interrupts));
    session.stop_watching();
    session.tracer.detach();
    // what came later had nothing either
    let unprobed = match session.tracer.activity()?.entries {
        0 => session.unprobed.take(),
        _ => None,
    };
    let reporter = session.reporter;
    let ended = match ended {
        Err(error) if is_closed_pipe(&error) => Ok(End::Done),
        ended => ended,
    };
    if !matches!(ended, Ok(End::TooExpensive)) {
        target.dismiss(&interrupts)?;
    }
    // what goes elsewhere is not lost with the standard output, nor with a command that won't end
    let ended = match (ended, unprobed) {
        (Ok(_), Some(error)) => Err(error),
        (ended, _) => ended,
    };
    let finished = reporter.finish();
    let status = target.see_off(&interrupts)?;
    match (ended, finished) {
        (Ok(_), finished) => Ok(finished?.unwrap_or(status)),
        (Err(error), finished) => {
            if let Err(other) = finished {
                say!("{other:#}");
            }
            Err(match error.is::<io::Error>() {
                true => error.context("failed to write to the standard output"),
                false => error,
            })
        }
    }
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
    /// Where probes go.
    scope: Scope,
    /// When translators were last looked for, on CLOCK_MONOTONIC.
    looked_for_translators: Duration,
    tracer: Tracer<'a>,
    mappings: Mappings,
    mapping_events: MappingEvents,
    processes: Processes,
    chosen: Chosen,
    probing: Probing<'a>,
    unwinding: Unwinding,
    interpreters: Interpreters,
    symbolizer: Symbolizer,
    lost_mappings: u64,
    /// Why there was nothing to probe in the first program; who comes later may have something.
    unprobed: Option<anyhow::Error>,
    /// Whether the report that is made is the last.
    is_ending: bool,
    overhead: Option<Overhead>,
    /// Intervals in a row in which the overhead was above the limit.
    expensive: u32,
    lost: LostOrHeld,
    reporter: Reporter<'a>,
}

impl Session<'_> {
    fn trace(&mut self, target: &Traced, interrupts: &Interrupts) -> Result<End> {
        let mut schedule = Schedule::begin(self.options);
        // of several processes, the programs don't tell whose calls they saw
        let mut silence = match (self.many, target.pids().first()) {
            (false, Some(pid)) => Some(Silence::begin(&self.tracer, *pid)?),
            _ => None,
        };
        loop {
            let mut descriptors = self.tracer.descriptors();
            descriptors.extend(self.mapping_events.descriptors());
            descriptors.extend(self.lost.descriptor());
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
            self.settle()?;
            self.look_at_end()?;
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

    /// Reports on processes that have ended and whose numbers others have by now, until all is taken in.
    fn settle(&mut self) -> Result<()> {
        while self.processes.is_blocked() {
            let older = self.options.reporting.older;
            self.report(older, Reason::Interval, true)?;
            self.take_in()?;
        }
        Ok(())
    }

    /// Takes in what the kernel has reported.
    fn take_in(&mut self) -> Result<()> {
        // before the mappings: all that these need is announced by now
        let walks = self.tracer.take_deferred_walks()?;
        self.meet_translators();
        self.return_to_everyone()?;
        let many = self.many;
        let processes = &self.processes;
        let mut news = self
            .mapping_events
            .drain(|pid| many || processes.contains(pid));
        // after the mappings, or a process would not be known that has some
        news.events.extend(self.tracer.take_lives()?);
        let mut keepers = Keepers {
            mappings: &mut self.mappings,
            symbolizer: &mut self.symbolizer,
            tracer: &mut self.tracer,
        };
        let changed = self.processes.apply(news.events, &mut keepers)?;
        for pid in &changed {
            self.mappings.tidy(*pid);
        }
        if news.lost > 0 {
            self.make_up_for(news.lost);
        }
        self.forget_files()?;
        // what a new library allocates fills the ring of walks until its table is there; searching it for an
        // allocator takes longer
        let mut new = BTreeMap::new();
        for pid in &changed {
            let objects = self.mappings.take_new_objects(*pid);
            if many {
                self.unwinding.load(&mut self.tracer, &objects)?;
            }
            new.insert(*pid, objects);
        }
        self.tell_unwinder()?;
        if !changed.is_empty() {
            let now_ns = monotonic_ns();
            for (pid, objects) in new {
                if self.scope == Scope::Each {
                    self.probing.note_late(pid);
                }
                self.follow(pid, objects, now_ns);
            }
        }
        unwinding::finish(&mut self.tracer, &self.mappings, walks)?;
        self.reporter.show_calls(&self.tracer.take_calls()?)
    }

    /// Lets go of files that nobody maps any more, and of what was kept of them.
    fn forget_files(&mut self) -> Result<()> {
        let gone = self.mappings.release(UNUSED_FILES);
        if gone.is_empty() {
            return Ok(());
        }
        self.symbolizer.forget_objects();
        self.probing.forget_objects();
        self.tracer.forget_files(gone.into_iter())
    }

    /// Probes what a process has come to map: these objects, or, where each process gets its own probes, whatever it maps.
    fn follow(&mut self, pid: u32, mut objects: Vec<Arc<ObjectFile>>, now_ns: u64) {
        if translators::suspend(self.options, self.scope) {
            return;
        }
        if self.scope == Scope::Each {
            objects = self.mappings.objects(pid);
            let candidates = probing::candidates(&objects);
            self.unwinding
                .watch_linker(&mut self.tracer, &candidates, Some(pid));
        }
        self.probing.follow(
            &mut self.tracer,
            (&self.mappings, &self.symbolizer),
            (pid, self.processes.name(pid), objects),
            self.scope,
            now_ns,
        );
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
        let asks = self.tracer.finds_mappings();
        let all = !self.many || !asks;
        let told: Vec<u32> = processes
            .living()
            // what is told of a held command would be taken for what it is going to execute
            .filter(|pid| asks || !processes.is_held(*pid))
            .filter(|pid| all || unknown.contains(pid) || self.unwinding.knows(*pid))
            .collect();
        for pid in told {
            self.unwinding
                .refresh(&mut self.tracer, &mut self.mappings, pid)?;
        }
        self.interpreters.tell(&mut self.tracer);
        Ok(())
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
        from_start: options.many_processes() || matches!(options.target, TargetOption::Command(_)),
        single: None,
        processes,
        kernel: None,
        verbose: options.verbose,
    }
}

/// How one process is traced where nothing else was asked for.
pub fn default_config() -> Config {
    let arguments = Arguments::parse_from(["memleak", "-p", "1"]);
    let options = validate(arguments, |_| Vec::new(), false);
    config(&options.expect("the defaults are valid"), None)
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
