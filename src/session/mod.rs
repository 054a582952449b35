//! The loop of a live run: wait, take a snapshot, report, until count, Ctrl-C or the target's end.
//! The only place that reads clocks, waits, and prints.

mod kernel;
mod outputs;
mod overhead;
mod reporter;
mod traced;
mod unwinding;
mod wait;

use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::analysis::select::Selection;
use crate::options::{Options, Sampling, TargetOption};
use crate::probes::{ObjectPlan, Search, Wanted, discover};
use crate::recording::model::Reason;
use crate::report::Frame;
use crate::snapshot::{Snapshot, StackId, Usage, WallTime};
use crate::stderr::say;
use crate::symbolize::Symbolizer;
use crate::target::{Exec, MappingEvents, Mappings};
use crate::tracer::{self, Config, Storage, Tracer};
use outputs::{Occasion, Outputs};
use overhead::Overhead;
use reporter::{Names, Reporter};
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
    let begun = monotonic();
    if options.target == TargetOption::Kernel {
        return kernel::run(options);
    }
    tracer::check()?;
    let interrupts = Interrupts::catch()?;
    let mapping_events = MappingEvents::start()?;
    let mut mappings = Mappings::default();
    let (mut target, candidates) = Traced::open(&options.target, &mut mappings)?;
    let pid = target.process().pid();
    let outputs = Outputs::open(options, Some(pid), wall_time(), monotonic_ns())?;
    let symbolizer = Symbolizer::new(pid, &options.naming)?;
    let wanted = Wanted {
        object: options.object.as_deref(),
        search: Search {
            prefix: &options.symbols_prefix,
            mappings: options.recording.mappings,
            at: options.probe_at,
        },
        own: &options.own_functions,
        debug_file: &|path, known_as| symbolizer.debug_file(path, known_as),
    };
    let objects = match discover(&candidates, &wanted) {
        Ok(objects) => objects,
        Err(error) => {
            wait::pause(SETTLING);
            match target.look_again(&mut mappings) {
                Some(candidates) => discover(&candidates, &wanted)?,
                None => return Err(error),
            }
        }
    };

    let mut storage = Storage::new();
    let mut tracer = Tracer::load(&mut storage, config(options))?;
    unwinding::warn_of_fallback(tracer.unwinder());
    let mut unwinding = Unwinding::default();
    unwinding.foresee(&mut tracer, &candidates)?;
    unwinding.refresh(&mut tracer, &mut mappings, pid)?;
    for object in &objects {
        if options.verbose {
            describe(object);
        }
        tracer
            .attach(object, Some(pid))
            .map_err(|error| match target.process().has_ended() {
                true => anyhow::anyhow!("process {pid} ended while memleak was attaching to it"),
                false => error,
            })?;
    }
    if options.verbose {
        unwinding::describe(&tracer);
        say!(
            "armed in {} ms ({:?} probes)",
            (monotonic() - begun).as_millis(),
            tracer.attachment()
        );
    }
    let mut session = Session {
        options,
        pid,
        tracer,
        mappings,
        mapping_events,
        unwinding,
        symbolizer,
        lost_mappings: 0,
        overhead: Overhead::start(pid, options.verbose || options.max_overhead.is_some()),
        expensive: 0,
        held: matches!(options.target, TargetOption::Command(_)),
        reporter: Reporter::new(&options.reporting, outputs),
    };
    let ended = session
        .announce()
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
    pid: u32,
    tracer: Tracer<'a>,
    mappings: Mappings,
    mapping_events: MappingEvents,
    unwinding: Unwinding,
    symbolizer: Symbolizer,
    lost_mappings: u64,
    overhead: Overhead,
    /// Intervals in a row in which the overhead was above the limit.
    expensive: u32,
    /// Whether the target is still to execute its first program.
    held: bool,
    reporter: Reporter<'a>,
}

impl Session<'_> {
    /// BCC's first line.
    fn announce(&mut self) -> Result<()> {
        if let TargetOption::Command(words) = &self.options.target {
            let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            let words = words.join(" ");
            self.reporter.say(&format!(
                "Executing '{words}' and tracing the resulting process."
            ))?;
        }
        let pid = self.pid;
        self.reporter
            .say(&format!("Attaching to pid {pid}, Ctrl+C to quit."))
    }

    fn trace(&mut self, target: &Traced, interrupts: &Interrupts) -> Result<End> {
        let mut schedule = Schedule::begin(self.options);
        loop {
            let mut descriptors = vec![self.tracer.descriptor()];
            descriptors.extend(self.mapping_events.descriptors());
            let process = target.process().as_fd();
            let deadline = schedule.deadline();
            let until = self
                .overhead
                .statistics_end()
                .unwrap_or(deadline)
                .min(deadline);
            let wake = wait::wait(interrupts, Some(process), &descriptors, Some(until))?;
            self.take_in()?;
            self.overhead.end_statistics(&self.tracer)?;
            let older = self.options.reporting.older;
            match wake {
                Wake::Reports => {}
                Wake::Deadline if until < deadline => {}
                // nothing is young any more once its process is gone
                Wake::Exit => return self.last_report(Duration::ZERO, Reason::Final),
                Wake::Interrupt => return self.last_report(older, Reason::Interval),
                Wake::Demand => self.report(older, Reason::Demand)?,
                Wake::Mark => self.report(older, Reason::Mark)?,
                Wake::Deadline if schedule.is_last() => {
                    return self.last_report(older, Reason::Interval);
                }
                Wake::Deadline => {
                    self.report(older, Reason::Interval)?;
                    if self.is_too_expensive()? {
                        self.last_report(older, Reason::Interval)?;
                        return Ok(End::TooExpensive);
                    }
                    schedule.advance();
                }
            }
        }
    }

    /// Takes in what the kernel has reported.
    fn take_in(&mut self) -> Result<()> {
        let pid = self.pid;
        // before the mappings: all that these need is announced by now
        let walks = self.tracer.take_deferred_walks()?;
        let news = self
            .mapping_events
            .drain(&mut self.mappings, |mapped| mapped == pid);
        for Exec { pid, time_ns } in news.executed {
            if !std::mem::take(&mut self.held) {
                self.tracer.forget(pid, time_ns)?;
            }
        }
        // what was lost may have been another process's, and can be read anew while this one lives
        if news.lost > 0 && self.mappings.read(pid).is_err() {
            self.lost_mappings += news.lost;
        }
        self.unwinding
            .refresh(&mut self.tracer, &mut self.mappings, pid)?;
        unwinding::finish(&mut self.tracer, &self.mappings, walks)?;
        self.reporter.show_calls(&self.tracer.take_calls()?)
    }

    /// The report that ends the session, and what all of it has cost.
    fn last_report(&mut self, older: Duration, reason: Reason) -> Result<End> {
        self.report(older, reason)?;
        let (_, total) = self.overhead.estimate(&self.tracer)?;
        say!("overhead: {total}");
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
        let (recent, _) = self.overhead.estimate(&self.tracer)?;
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

    fn report(&mut self, older: Duration, reason: Reason) -> Result<()> {
        let now_ns = monotonic_ns();
        // what is older than now has a stack that can be finished now
        self.take_in()?;
        let mut snapshot = self.tracer.snapshot(now_ns, &self.reporter.filter(older))?;
        snapshot.time = wall_time();
        snapshot.losses.mappings = self.lost_mappings;
        self.symbolizer.refresh();
        let mut names = ProcessNames {
            tracer: &mut self.tracer,
            mappings: &self.mappings,
            symbolizer: &mut self.symbolizer,
            pid: self.pid,
            now_ns,
        };
        names.select(&mut snapshot, &self.options.reporting.selection)?;
        let occasion = Occasion {
            now_ns,
            reason,
            pid: Some(self.pid),
        };
        self.reporter.report(&snapshot, occasion, &mut names)?;
        self.symbolizer.rest();
        Ok(())
    }
}

/// Names a process's stacks as of a time.
struct ProcessNames<'a, 'obj> {
    tracer: &'a mut Tracer<'obj>,
    mappings: &'a Mappings,
    symbolizer: &'a mut Symbolizer,
    pid: u32,
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
                .frames(self.mappings, self.pid, &stack, at_ns)
        }))
    }

    fn allocator(&mut self, stack: StackId) -> Result<Option<Arc<str>>> {
        self.tracer.allocator(stack)
    }
}

fn monotonic_ns() -> u64 {
    u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX)
}

fn config(options: &Options) -> Config {
    let recording = &options.recording;
    Config {
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
        processes: None,
        kernel: None,
        verbose: options.verbose,
    }
}

/// Says what is probed in an object.
fn describe(object: &ObjectPlan) {
    let path = object.shown.display();
    for probe in &object.plan.probes {
        let allocator = &probe.allocator;
        say!("{path}: {allocator}: {} {}", probe.names(), probe.site);
    }
    if !object.plan.missing.is_empty() {
        say!("{path}: lacks {}", object.plan.missing.join(", "));
    }
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
