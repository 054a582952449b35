//! A report's way from a snapshot to the user: ranked, named, handed to the outputs, printed, with what grows behind.
//! The same for processes and the kernel; takes no snapshot, knows no stack, reads no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::lines::WholeLines;
use super::outputs::{Occasion, Outputs};
use crate::analysis::history::Key;
use crate::analysis::rank;
use crate::model::call::Call;
use crate::model::losses::Losses;
use crate::model::report::{Entry, Frame, ListedAllocation, ProcessEntry, Report};
use crate::model::snapshot::{Snapshot, StackId, Usage};
use crate::options::Reporting;
use crate::output::{growth, warning, write_call, write_text};
use crate::stderr::say;
use crate::tracer::Filter;
use crate::visible::{self, Spelling, Visible};

/// Whoever can name what a snapshot holds.
pub trait Names {
    /// The frames of a stack, innermost first; none when it was not stored.
    ///
    /// # Errors
    /// Fails when the stack can't be read.
    fn frames(&mut self, usage: &Usage) -> Result<Option<Vec<Frame>>>;

    /// The slab cache that a stack allocates from, where there is such a thing.
    ///
    /// # Errors
    /// Fails when the cache can't be read.
    fn cache(&mut self, _stack: StackId) -> Result<Option<Arc<str>>> {
        Ok(None)
    }

    /// Files that could not be read to their end so far.
    fn lost_files(&self) -> u64 {
        0
    }

    /// The allocator that a stack calls, where there are several and it is not the C library's.
    ///
    /// # Errors
    /// Fails when the stack can't be read.
    fn allocator(&mut self, _stack: StackId) -> Result<Option<Arc<str>>> {
        Ok(None)
    }
}

/// Where reports go.
pub struct Reporter<'a> {
    reporting: &'a Reporting,
    outputs: Outputs,
    out: Visible<WholeLines<Box<dyn Write>>>,
}

impl<'a> Reporter<'a> {
    /// Prints to the standard output, unless one of the outputs goes there.
    pub fn new(reporting: &'a Reporting, outputs: Outputs) -> Self {
        let styled = !outputs.takes_stdout() && visible::stdout_is_styled();
        let stream: Box<dyn Write> = match outputs.takes_stdout() {
            true => Box::new(io::sink()),
            false => Box::new(io::stdout()),
        };
        Self {
            reporting,
            out: Visible::new(WholeLines::new(stream), Spelling::Text).styled(styled),
            outputs,
        }
    }

    /// What belongs to a snapshot, when blocks younger than `older` are left out.
    pub fn filter(&self, older: Duration) -> Filter {
        let reporting = self.reporting;
        Filter {
            // totals know no ages, so nothing is left out beside them either
            older: match reporting.combined_only {
                true => Duration::ZERO,
                false => older,
            },
            tids: reporting.tids.clone(),
            allocations: reporting.show_allocations && !reporting.combined_only,
            ..Filter::default()
        }
    }

    /// Prints a line.
    ///
    /// # Errors
    /// When the standard output can't be written.
    pub fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.out, "{}", visible::line(line))?;
        Ok(self.out.flush()?)
    }

    /// Prints calls as they came.
    ///
    /// # Errors
    /// When the standard output can't be written.
    pub fn show_calls(&mut self, calls: &[Call]) -> Result<()> {
        for call in calls {
            write_call(call, &mut self.out)?;
        }
        Ok(self.out.flush()?)
    }

    /// Reports a snapshot.
    ///
    /// # Errors
    /// When the standard output can't be written, or a stack can't be read.
    pub fn report(
        &mut self,
        snapshot: &Snapshot,
        occasion: &Occasion,
        names: &mut impl Names,
    ) -> Result<()> {
        let report = self.name(snapshot, &occasion.processes, names)?;
        let report = self.outputs.take(snapshot, report, occasion)?;
        write_text(&report, self.outputs.blame(), &mut self.out)?;
        if !occasion.ended_only {
            self.write_growth(snapshot, occasion, names)?;
        }
        self.out.flush()?;
        if let Some(warning) = warning(&report.losses) {
            say!("warning: {warning}");
        }
        Ok(())
    }

    /// Whether every snapshot must hold all processes.
    pub fn needs_all(&self) -> bool {
        self.outputs.needs_reports()
    }

    /// Whether reports are served to others while the run goes on.
    pub fn serves(&self) -> bool {
        self.outputs.serves()
    }

    /// Forgets processes that have got their last report.
    pub fn forget(&mut self, ended: &BTreeMap<u32, u64>) {
        self.outputs.forget(ended);
    }

    /// Ends the outputs; gives the exit status, if that is not the session's own to say.
    ///
    /// # Errors
    /// When an output can't be written.
    pub fn finish(self) -> Result<Option<u8>> {
        self.outputs.finish()
    }

    /// Ranks a snapshot and names what will be shown.
    fn name(
        &self,
        snapshot: &Snapshot,
        processes: &[ProcessEntry],
        names: &mut impl Names,
    ) -> Result<Report> {
        let ranking = rank(snapshot, self.reporting.sort, self.outputs.to_name());
        let mut entries = Vec::new();
        for usage in &ranking.shown {
            entries.push(entry(usage, names)?);
        }
        let mut allocations = Vec::new();
        for (tgid, stack, allocation) in ranking.allocations {
            let cache = names.cache(stack)?;
            let allocator = names.allocator(stack)?;
            allocations.push(ListedAllocation {
                tgid,
                allocation,
                cache,
                allocator,
            });
        }
        Ok(Report {
            time: snapshot.time,
            top: self.reporting.top,
            processes: with_figures(processes, &snapshot.usage),
            allocations,
            entries,
            total_stacks: ranking.total_stacks,
            total_bytes: ranking.total_bytes,
            total_count: ranking.total_count,
            look: snapshot.look.clone(),
            estimated: snapshot.estimated,
            // names have been read by now
            losses: Losses {
                files: names.lost_files(),
                ..snapshot.losses
            },
        })
    }

    /// Ends a report with the stacks that grow.
    fn write_growth(
        &mut self,
        snapshot: &Snapshot,
        occasion: &Occasion,
        names: &mut impl Names,
    ) -> Result<()> {
        let to_blame = self.outputs.to_blame();
        let wanted: BTreeSet<&Key> = to_blame.iter().collect();
        for usage in &snapshot.usage {
            let key = key_of(usage);
            if wanted.contains(&key) {
                let entry = entry(usage, names)?;
                self.outputs.name(key, &entry);
            }
        }
        let (groups, together, limit) = self.outputs.groups(snapshot, occasion.headroom());
        let list = growth::List {
            groups: &groups,
            together,
            limit,
            doubtful: snapshot.losses.may_lack_frees(),
        };
        let named = |tgid| occasion.name_of(tgid);
        Ok(growth::write(&list, named, &mut self.out)?)
    }
}

/// Processes with what each of them holds.
fn with_figures(processes: &[ProcessEntry], usage: &[Usage]) -> Vec<ProcessEntry> {
    let mut processes = processes.to_vec();
    for usage in usage {
        let found = processes.binary_search_by_key(&usage.tgid, |process| process.tgid);
        if let Ok(at) = found {
            let process = &mut processes[at];
            process.stacks += 1;
            process.bytes = process.bytes.saturating_add(usage.bytes);
            process.count = process.count.saturating_add(usage.count);
        }
    }
    processes
}

/// Names what a stack holds.
fn entry(usage: &Usage, names: &mut impl Names) -> Result<Entry> {
    Ok(Entry {
        tgid: usage.tgid,
        class: usage.class,
        allocator: names.allocator(usage.stack)?,
        bytes: usage.bytes,
        count: usage.count,
        oldest_ns: usage.oldest_ns,
        reach: usage.reach,
        frames: names.frames(usage)?,
    })
}

fn key_of(usage: &Usage) -> Key {
    (usage.tgid, usage.class, usage.stack)
}
