//! A run without a target: the kernel's allocators, from attaching to the last report.
//! Differs from a process's run in that nothing is mapped, nothing ends, and stacks are the kernel's.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::outputs::{Occasion, Outputs};
use super::wait::{self, Interrupts, Wake, monotonic};
use super::{config, is_closed_pipe, key_of, monotonic_ns, report_of, wall_time};
use crate::analysis::findings::Finding;
use crate::analysis::kernel_memory::{Account, account};
use crate::analysis::rank;
use crate::analysis::select::KMALLOC;
use crate::options::{Options, Unwind};
use crate::output::{growth, warning, write_call, write_text};
use crate::recording::model::Reason;
use crate::report::{Entry, Frame, Report};
use crate::snapshot::{Class, Snapshot, StackId, Usage};
use crate::stderr::say;
use crate::symbolize::KernelSymbols;
use crate::tracer::{self, Config, Filter, KernelEvents, Storage, Tracer};

/// Traces the kernel as the options say; gives memleak's exit status.
///
/// # Errors
/// Fails when tracing can't begin, or can't go on.
pub fn run(options: &Options) -> Result<u8> {
    let begun = monotonic();
    tracer::check()?;
    let interrupts = Interrupts::catch()?;
    let outputs = Outputs::open(options, None, wall_time(), monotonic_ns())?;
    let symbols = KernelSymbols::read()?;
    if symbols.is_empty() {
        say!(
            "warning: the kernel hides its addresses: functions stay unknown, and pages of slabs are \
             counted beside their objects; set kernel.kptr_restrict to 0 or 1, and run as root"
        );
    }
    let mut storage = Storage::new();
    let mut tracer = Tracer::load(
        &mut storage,
        Config {
            kernel: Some(KernelEvents {
                percpu: options.recording.percpu,
            }),
            unwind: Unwind::FramePointers,
            ..config(options)
        },
    )?;
    ensure!(
        options.reporting.selection.cache.is_none() || tracer.tells_caches()?,
        "this kernel does not tell the caches of objects: leave out --cache"
    );
    let unseen = tracer.attach_kernel()?;
    if !unseen.is_empty() {
        let functions: Vec<&str> = unseen.iter().map(|unseen| unseen.function()).collect();
        say!(
            "warning: this kernel does not tell of frees through {}: such blocks are shown until \
             their address is used again",
            functions.join(" and ")
        );
    }
    if options.verbose {
        say!(
            "armed in {} ms (raw tracepoints)",
            (monotonic() - begun).as_millis()
        );
    }
    let mut session = KernelSession {
        options,
        tracer,
        symbols,
        stacks: HashMap::new(),
        out: BufWriter::new(match outputs.takes_stdout() {
            true => Box::new(io::sink()),
            false => Box::new(io::stdout()),
        }),
        outputs,
    };
    let ended = session.trace(&interrupts);
    session.tracer.detach();
    let outputs = session.outputs;
    // as for a process, a reader that has left is an end like any other
    match ended {
        Err(error) if !is_closed_pipe(&error) => Err(error),
        _ => Ok(outputs.finish()?.unwrap_or(0)),
    }
}

/// What is known of a stack of the kernel.
struct KnownStack {
    frames: Option<Vec<Frame>>,
    cache: Option<String>,
}

struct KernelSession<'a> {
    options: &'a Options,
    tracer: Tracer<'a>,
    symbols: KernelSymbols,
    /// Named once: a module that is unloaded takes its names along.
    stacks: HashMap<StackId, Rc<KnownStack>>,
    out: BufWriter<Box<dyn Write>>,
    outputs: Outputs,
}

impl KernelSession<'_> {
    fn trace(&mut self, interrupts: &Interrupts) -> Result<()> {
        writeln!(self.out, "Attaching to kernel allocators, Ctrl+C to quit.")?;
        self.out.flush()?;
        let mut reports = 0;
        let mut deadline = monotonic() + self.options.interval;
        loop {
            let descriptors = [self.tracer.descriptor()];
            let wake = wait::wait(interrupts, None, &descriptors, Some(deadline))?;
            for call in self.tracer.take_calls()? {
                write_call(&call, &mut self.out)?;
            }
            self.out.flush()?;
            match wake {
                Wake::Reports | Wake::Exit => {}
                Wake::Interrupt => return self.last_report(),
                Wake::Demand => self.report(Reason::Demand)?,
                Wake::Mark => self.report(Reason::Mark)?,
                Wake::Deadline => {
                    reports += 1;
                    if self.options.count == Some(reports) {
                        return self.last_report();
                    }
                    self.report(Reason::Interval)?;
                    // keep the pace, but never try to make up for reports that were missed
                    deadline = (deadline + self.options.interval).max(monotonic());
                }
            }
        }
    }

    fn last_report(&mut self) -> Result<()> {
        self.report(Reason::Interval)?;
        if self.options.trace {
            let calls = self.tracer.losses().calls;
            say!("{calls} calls were dropped from the trace");
        }
        Ok(())
    }

    fn report(&mut self, reason: Reason) -> Result<()> {
        let reporting = &self.options.reporting;
        let filter = Filter {
            // totals know no ages, so nothing is left out beside them either
            older: match reporting.combined_only {
                true => Duration::ZERO,
                false => reporting.older,
            },
            tids: reporting.tids.clone(),
            allocations: reporting.show_allocations && !reporting.combined_only,
        };
        let now_ns = monotonic_ns();
        let mut snapshot = self.tracer.snapshot(now_ns, &filter)?;
        snapshot.time = wall_time();
        self.symbols.refresh()?;
        let hidden = self.select(&mut snapshot)?;
        let report = self.name(&snapshot)?;
        let occasion = Occasion {
            now_ns,
            reason,
            pid: None,
        };
        let report = self.outputs.take(&snapshot, report, occasion);
        write_text(&report, &mut self.out)?;
        self.write_growth(&snapshot)?;
        self.out.flush()?;
        if hidden.count > 0 {
            say!(
                "{} bytes in {} pages of processes and files are not shown (--user-pages shows them)",
                hidden.bytes,
                hidden.count
            );
        }
        if let Some(warning) = warning(&report.losses) {
            say!("warning: {warning}");
        }
        Ok(())
    }

    /// Leaves out what is counted elsewhere, and what the user doesn't want to see; gives the user's pages among it.
    fn select(&mut self, snapshot: &mut Snapshot) -> Result<Hidden> {
        let options = self.options;
        let mut hidden = Hidden::default();
        let mut kept = Vec::new();
        for mut usage in snapshot.usage.drain(..) {
            let known = self.stack(usage.stack)?;
            let frames = known.frames.as_deref().unwrap_or_default();
            match account(usage.class, frames, options.recording.percpu) {
                Account::Backing => continue,
                Account::Class(class) => usage.class = class,
            }
            let cache = match usage.class {
                Class::Slab => known.cache.as_deref().or(Some(KMALLOC)),
                _ => None,
            };
            if !options.reporting.selection.wants(frames, cache) {
                continue;
            }
            if usage.class == Class::UserPages && !options.reporting.user_pages {
                hidden.bytes += usage.bytes;
                hidden.count += usage.count;
                continue;
            }
            kept.push(usage);
        }
        snapshot.usage = kept;
        Ok(hidden)
    }

    /// Ranks a snapshot and names what will be shown.
    fn name(&mut self, snapshot: &Snapshot) -> Result<Report> {
        let reporting = &self.options.reporting;
        let ranking = rank(snapshot, reporting.sort, self.outputs.stacks_to_name());
        let mut entries = Vec::new();
        for usage in &ranking.shown {
            entries.push(self.entry(usage)?);
        }
        Ok(report_of(snapshot, ranking, entries, reporting.top))
    }

    /// Ends a report with the stacks that grow.
    fn write_growth(&mut self, snapshot: &Snapshot) -> Result<()> {
        let (growing, limit) = self.outputs.growing(None);
        let mut findings = Vec::new();
        for (key, growth) in growing {
            if let Some(usage) = snapshot.usage.iter().find(|usage| key_of(usage) == key) {
                findings.push(Finding {
                    entry: self.entry(usage)?,
                    growth,
                });
            }
        }
        let findings = self.outputs.filter_growing(findings);
        Ok(growth::write(&findings, limit, &mut self.out)?)
    }

    fn entry(&mut self, usage: &Usage) -> Result<Entry> {
        Ok(Entry {
            tgid: usage.tgid,
            class: usage.class,
            bytes: usage.bytes,
            count: usage.count,
            oldest_ns: usage.oldest_ns,
            turnover: usage.turnover,
            frames: self.stack(usage.stack)?.frames.clone(),
        })
    }

    /// Names a stack; where the cache is known, it stands behind the function that allocates from it.
    fn stack(&mut self, id: StackId) -> Result<Rc<KnownStack>> {
        if let Some(known) = self.stacks.get(&id) {
            return Ok(Rc::clone(known));
        }
        let stack = self.tracer.stack(id)?;
        let mut frames = stack.map(|stack| self.symbols.frames(&stack));
        let cache = self.tracer.cache_of(id)?;
        let allocator = frames
            .iter_mut()
            .flatten()
            .next()
            .and_then(|frame| frame.function.as_mut());
        if let (Some(function), Some(cache)) = (allocator, &cache) {
            function.name = format!("{}({cache})", function.name);
        }
        let known = Rc::new(KnownStack { frames, cache });
        self.stacks.insert(id, Rc::clone(&known));
        Ok(known)
    }
}

/// Memory that is traced but not shown.
#[derive(Clone, Copy, Debug, Default)]
struct Hidden {
    bytes: u64,
    count: u64,
}
