//! A run without a target: the kernel's allocators, from attaching to the last report.
//! Differs from a process's run in that nothing is mapped, nothing ends, and stacks are the kernel's.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Result, ensure};

use super::interrupts::Interrupts;
use super::outputs::{Occasion, Outputs};
use super::reporter::{Names, Reporter};
use super::wait::{self, Schedule, Wake, monotonic};
use super::{config, is_closed_pipe, monotonic_ns, wall_time};
use crate::analysis::kernel_memory::{Account, account};
use crate::analysis::select::KMALLOC;
use crate::model::capture::Unwind;
use crate::model::report::Frame;
use crate::model::run::Reason;
use crate::model::snapshot::{Class, Snapshot, StackId, Usage};
use crate::options::Options;
use crate::stderr::say;
use crate::symbolize::KernelSymbols;
use crate::tracer::{self, Config, KernelCode, KernelEvents, Storage, Tracer, UnwindTable};

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
    let mut storage = Storage::default();
    let mut tracer = Tracer::load(
        &mut storage,
        Config {
            kernel: Some(KernelEvents {
                percpu: options.recording.percpu,
                user_pages: options.reporting.user_pages,
                code: KernelCode {
                    interrupts: symbols.interrupt_entries(),
                    system_call: symbols.function("do_syscall_64"),
                    unwind_table: unwind_table(&symbols),
                },
            }),
            unwind: Unwind::FramePointers,
            from_start: false,
            ..config(options, None)
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
        reporter: Reporter::new(&options.reporting, outputs),
    };
    let ended = session.trace(&interrupts);
    session.tracer.detach();
    let reporter = session.reporter;
    // as for a process, a reader that has left is an end like any other
    match ended {
        Err(error) if !is_closed_pipe(&error) => Err(error),
        _ => Ok(reporter.finish()?.unwrap_or(0)),
    }
}

/// Where the kernel's unwind table is, if it has one and shows its data's symbols.
fn unwind_table(symbols: &KernelSymbols) -> Option<UnwindTable> {
    let place = |name| symbols.data(name);
    let addresses = place("__start_orc_unwind_ip")?..place("__stop_orc_unwind_ip")?;
    Some(UnwindTable {
        addresses: (addresses.start < addresses.end).then_some(addresses)?,
        entries: place("__start_orc_unwind")?,
    })
}

/// What is known of a stack of the kernel.
struct KnownStack {
    frames: Option<Vec<Frame>>,
    cache: Option<Arc<str>>,
}

struct KernelSession<'a> {
    options: &'a Options,
    tracer: Tracer<'a>,
    symbols: KernelSymbols,
    /// Named once: a module that is unloaded takes its names along.
    stacks: HashMap<StackId, Rc<KnownStack>>,
    reporter: Reporter<'a>,
}

impl KernelSession<'_> {
    fn trace(&mut self, interrupts: &Interrupts) -> Result<()> {
        self.reporter
            .say("Attaching to kernel allocators, Ctrl+C to quit.")?;
        let mut schedule = Schedule::begin(self.options);
        loop {
            let descriptors = self.tracer.descriptors();
            let wake = wait::wait(interrupts, None, &descriptors, Some(schedule.deadline()))?;
            self.reporter.show_calls(&self.tracer.take_calls()?)?;
            match wake {
                Wake::Reports | Wake::Exit => {}
                Wake::Interrupt => return self.last_report(),
                Wake::Demand => self.report(Reason::Demand)?,
                Wake::Mark => self.report(Reason::Mark)?,
                Wake::Deadline if schedule.is_last() => return self.last_report(),
                Wake::Deadline => {
                    self.report(Reason::Interval)?;
                    schedule.advance();
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
        let now_ns = monotonic_ns();
        let filter = self.reporter.filter(reporting.older);
        let mut snapshot = self.tracer.snapshot(now_ns, &filter)?;
        snapshot.time = wall_time();
        self.symbols.refresh()?;
        let mut names = KernelNames {
            tracer: &self.tracer,
            symbols: &self.symbols,
            stacks: &mut self.stacks,
        };
        let mut hidden = names.select(&mut snapshot, self.options)?;
        // these pass through no function that is known
        if reporting.selection.is_empty() {
            let pages = self.tracer.counted_user_pages();
            hidden.count += pages;
            hidden.bytes += pages * rustix::param::page_size() as u64;
        }
        let occasion = Occasion {
            now_ns,
            reason,
            ..Occasion::default()
        };
        self.reporter.report(&snapshot, &occasion, &mut names)?;
        if hidden.count > 0 {
            say!(
                "{} bytes in {} pages of processes and files are not shown (--user-pages shows them)",
                hidden.bytes,
                hidden.count
            );
        }
        Ok(())
    }
}

/// Names the kernel's stacks.
struct KernelNames<'a, 'obj> {
    tracer: &'a Tracer<'obj>,
    symbols: &'a KernelSymbols,
    stacks: &'a mut HashMap<StackId, Rc<KnownStack>>,
}

impl KernelNames<'_, '_> {
    /// Leaves out what is counted elsewhere, and what the user doesn't want to see; gives the user's pages among it.
    fn select(&mut self, snapshot: &mut Snapshot, options: &Options) -> Result<Hidden> {
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
        let cache = cache.map(Arc::from);
        let known = Rc::new(KnownStack { frames, cache });
        self.stacks.insert(id, Rc::clone(&known));
        Ok(known)
    }
}

impl Names for KernelNames<'_, '_> {
    fn frames(&mut self, usage: &Usage) -> Result<Option<Vec<Frame>>> {
        Ok(self.stack(usage.stack)?.frames.clone())
    }

    fn cache(&mut self, stack: StackId) -> Result<Option<Arc<str>>> {
        Ok(self.stack(stack)?.cache.clone())
    }
}

/// Memory that is traced but not shown.
#[derive(Clone, Copy, Debug, Default)]
struct Hidden {
    bytes: u64,
    count: u64,
}
