//! The loop of a live run: wait, take a snapshot, report, until count, Ctrl-C or the target's end.
//! The only place that reads clocks, waits, and prints.

mod traced;
mod wait;

use std::io::{self, BufWriter, ErrorKind, Stdout, Write};
use std::time::Duration;

use anyhow::Result;

use crate::analysis::rank;
use crate::options::{Options, Sampling, TargetOption};
use crate::output::{warning, write_call, write_text};
use crate::probes::{ObjectPlan, Search, Wanted, discover};
use crate::report::{Entry, Report};
use crate::snapshot::{Snapshot, WallTime};
use crate::symbolize::Symbolizer;
use crate::target::{Exec, MappingEvents, Mappings};
use crate::tracer::{self, Config, Filter, Storage, Tracer};
use traced::Traced;
use wait::{Interrupts, Wake, monotonic};

/// Traces as the options say; gives memleak's exit status.
///
/// # Errors
/// Fails when tracing can't begin, or can't go on.
pub fn run(options: &Options) -> Result<u8> {
    let begun = monotonic();
    if options.target == TargetOption::Kernel {
        anyhow::bail!("kernel mode is not built yet: name a process with -p or a command with -c");
    }
    tracer::check()?;
    let interrupts = Interrupts::catch()?;
    let mapping_events = MappingEvents::start()?;
    let mut mappings = Mappings::default();
    let (mut target, candidates) = Traced::open(&options.target, &mut mappings)?;
    let pid = target.process().pid();
    let objects = discover(
        &candidates,
        &Wanted {
            object: options.object.as_deref(),
            search: Search {
                prefix: &options.symbols_prefix,
                mappings: options.recording.mappings,
                at: options.probe_at,
            },
        },
    )?;

    let mut storage = Storage::new();
    let mut tracer = Tracer::load(&mut storage, config(options))?;
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
        eprintln!(
            "memleak: armed in {} ms ({:?} probes)",
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
        symbolizer: Symbolizer::new(),
        lost_mappings: 0,
        held: matches!(options.target, TargetOption::Command(_)),
        out: BufWriter::new(io::stdout()),
    };
    let ended = session
        .announce()
        .and_then(|()| session.take_in())
        .and_then(|()| target.release())
        .and_then(|()| session.trace(&target, &interrupts));
    session.tracer.detach();
    let status = target.leave(&interrupts);
    match ended {
        Err(error) if is_closed_pipe(&error) => status,
        Err(error) => Err(error),
        Ok(()) => status,
    }
}

struct Session<'a> {
    options: &'a Options,
    pid: u32,
    tracer: Tracer<'a>,
    mappings: Mappings,
    mapping_events: MappingEvents,
    symbolizer: Symbolizer,
    lost_mappings: u64,
    /// Whether the target is still to execute its first program.
    held: bool,
    out: BufWriter<Stdout>,
}

impl Session<'_> {
    /// BCC's first line.
    fn announce(&mut self) -> Result<()> {
        match &self.options.target {
            TargetOption::Command(words) => {
                let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
                writeln!(
                    self.out,
                    "Executing '{}' and tracing the resulting process.",
                    words.join(" ")
                )?;
            }
            TargetOption::Process(_) | TargetOption::Kernel => {}
        }
        writeln!(self.out, "Attaching to pid {}, Ctrl+C to quit.", self.pid)?;
        Ok(self.out.flush()?)
    }

    fn trace(&mut self, target: &Traced, interrupts: &Interrupts) -> Result<()> {
        use std::os::fd::AsFd as _;
        let mut reports = 0;
        let mut deadline = monotonic() + self.options.interval;
        loop {
            let mut descriptors = vec![self.tracer.descriptor()];
            descriptors.extend(self.mapping_events.descriptors());
            let process = target.process().as_fd();
            let wake = wait::wait(interrupts, process, &descriptors, Some(deadline))?;
            self.take_in()?;
            match wake {
                Wake::Reports => continue,
                // nothing is young any more once its process is gone
                Wake::Exit => return self.report(Duration::ZERO),
                Wake::Interrupt => return self.report(self.options.reporting.older),
                Wake::Deadline => {
                    self.report(self.options.reporting.older)?;
                    reports += 1;
                    if self.options.count == Some(reports) {
                        return Ok(());
                    }
                    // keep the pace, but never try to make up for reports that were missed
                    deadline = (deadline + self.options.interval).max(monotonic());
                }
            }
        }
    }

    /// Takes in what the kernel has reported.
    fn take_in(&mut self) -> Result<()> {
        let pid = self.pid;
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
        for call in self.tracer.take_calls()? {
            write_call(&call, &mut self.out)?;
        }
        Ok(self.out.flush()?)
    }

    fn report(&mut self, older: Duration) -> Result<()> {
        let reporting = &self.options.reporting;
        let filter = Filter {
            // totals know no ages, so nothing is left out beside them either
            older: match reporting.combined_only {
                true => Duration::ZERO,
                false => older,
            },
            tids: reporting.tids.clone(),
            allocations: reporting.show_allocations && !reporting.combined_only,
        };
        let now_ns = u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX);
        let mut snapshot = self.tracer.snapshot(now_ns, &filter)?;
        snapshot.time = wall_time();
        snapshot.losses.mappings = self.lost_mappings;
        let report = self.name(&snapshot)?;
        write_text(&report, &mut self.out)?;
        self.out.flush()?;
        if let Some(warning) = warning(&report.losses) {
            eprintln!("memleak: warning: {warning}");
        }
        Ok(())
    }

    /// Ranks a snapshot and names what will be shown.
    fn name(&mut self, snapshot: &Snapshot) -> Result<Report> {
        let reporting = &self.options.reporting;
        let ranking = rank(snapshot, reporting.sort, reporting.top);
        let mut entries = Vec::new();
        for usage in &ranking.shown {
            let stack = self.tracer.stack(usage.stack)?;
            let frames =
                stack.map(|stack| self.symbolizer.frames(&self.mappings, self.pid, &stack));
            entries.push(Entry {
                tgid: usage.tgid,
                class: usage.class,
                bytes: usage.bytes,
                count: usage.count,
                oldest_ns: usage.oldest_ns,
                turnover: usage.turnover,
                frames,
            });
        }
        Ok(Report {
            time: snapshot.time,
            top: reporting.top,
            allocations: ranking.allocations,
            entries,
            total_stacks: ranking.total_stacks,
            total_bytes: ranking.total_bytes,
            total_count: ranking.total_count,
            estimated: snapshot.estimated,
            losses: snapshot.losses,
        })
    }
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
        verbose: options.verbose,
    }
}

/// Says what is probed in an object.
fn describe(object: &ObjectPlan) {
    let path = object.shown.display();
    for probe in &object.plan.probes {
        eprintln!("memleak: {path}: {} {}", probe.names(), probe.site);
    }
    if !object.plan.missing.is_empty() {
        eprintln!("memleak: {path}: lacks {}", object.plan.missing.join(", "));
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
