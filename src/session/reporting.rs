//! A report of what the traced processes hold: taken, named, handed on, and what has ended forgotten.
//! When one is due is the loop's business; how it looks is the outputs'.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::outputs::Occasion;
use super::probing::Scope;
use super::processes::Keepers;
use super::reporter::Names;
use super::{End, Session, interpreters, lost, monotonic_ns, silence, unwinding, wall_time};
use crate::analysis::select::Selection;
use crate::languages::InterpretedFrame;
use crate::model::report::{Frame, Language};
use crate::model::run::Reason;
use crate::model::snapshot::{Snapshot, Stack, StackId, Usage};
use crate::process::Mappings;
use crate::reader;
use crate::stderr::say;
use crate::symbolize::Symbolizer;
use crate::tracer::{Filter, NamedFrame, Tracer};

/// Intervals in a row that the overhead may be above the user's limit, with this one the last.
const MAX_EXPENSIVE: u32 = 2;

impl Session<'_> {
    /// The report that ends the session, and what all of it has cost.
    pub(super) fn last_report(&mut self, older: Duration, reason: Reason) -> Result<End> {
        self.take_in()?;
        self.settle()?;
        self.is_ending = true;
        self.report(older, reason, false)?;
        silence::tell_of_children(self.tracer.children_started());
        if let Some(overhead) = &mut self.overhead {
            let (_, total) = overhead.estimate(&mut self.tracer)?;
            say!("overhead: {total}");
        }
        let losses = self.tracer.losses();
        unwinding::describe_cut(&self.tracer, &losses.cut);
        interpreters::describe_lost(&self.tracer);
        let calls = losses.calls;
        if self.options.trace {
            say!("{calls} calls were dropped from the trace");
        }
        Ok(End::Done)
    }

    /// Looks at the last interval; says so when the limit was passed for the second time in a row.
    pub(super) fn is_too_expensive(&mut self) -> Result<bool> {
        let limit = self.options.max_overhead;
        if limit.is_none() && !self.options.verbose {
            return Ok(false);
        }
        let Some(overhead) = &mut self.overhead else {
            return Ok(false);
        };
        let (recent, _) = overhead.estimate(&mut self.tracer)?;
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
    pub(super) fn report(
        &mut self,
        older: Duration,
        reason: Reason,
        ended_only: bool,
    ) -> Result<()> {
        let looked = self.look_for_lost(reason, ended_only)?;
        let now_ns = monotonic_ns();
        // what is older than now has a stack that can be finished now
        self.take_in()?;
        self.synchronize(now_ns)?;
        let mut ended = self.processes.ended();
        let mut filter = self.reporter.filter(older);
        filter.ended = ended.clone();
        filter.ended_only = ended_only && !self.reporter.needs_all();
        let (states, look) = looked.unzip();
        let can_tell = look.as_ref().is_some_and(|look| look.failed.is_none());
        filter.states = states.filter(|_| can_tell);
        let mut snapshot = self.tracer.snapshot(now_ns, &filter)?;
        snapshot.look = look;
        self.adopt(&mut snapshot, now_ns);
        ended = self.processes.ended();
        snapshot.time = wall_time();
        snapshot.losses.mappings = self.lost_mappings + self.mappings.forgotten();
        snapshot.losses.late_processes = self.probing.late();
        // while a run goes on, a target may just be idle
        let silent = self.is_ending && self.tracer.activity()?.entries == 0;
        snapshot.losses.silent = silent.into();
        if self.is_ending && self.symbolizer.has_servers() {
            // what they take must cost the target nothing
            self.tracer.detach();
            self.symbolizer.download();
        }
        self.symbolizer.refresh();
        let (events, overhead) = match self.reporter.serves() {
            true => self.cost()?,
            false => (0, None),
        };
        let mut names = ProcessNames {
            tracer: &mut self.tracer,
            mappings: &self.mappings,
            symbolizer: &mut self.symbolizer,
            now_ns,
            hide_interpreters: self.options.reporting.hide_interpreter,
        };
        names.select(&mut snapshot, &self.options.reporting.selection)?;
        if let Some(look) = &mut snapshot.look {
            lost::sum_up(look, &snapshot.usage);
        }
        let occasion = Occasion {
            now_ns,
            reason,
            pids: self.processes.living().collect(),
            processes: self.processes.entries(filter.ended_only),
            ended_only,
            events,
            overhead,
        };
        self.reporter.report(&snapshot, &occasion, &mut names)?;
        self.symbolizer.rest();
        self.retire(&ended)?;
        self.forget_mappings(now_ns)
    }

    /// Forgets mappings that are gone and that no stack needs which still holds something.
    fn forget_mappings(&mut self, now_ns: u64) -> Result<()> {
        let long = self.mappings.long();
        if long.is_empty() {
            return Ok(());
        }
        let everything = self.tracer.snapshot(now_ns, &Filter::default())?;
        let mut needed: HashMap<u32, BTreeSet<u64>> = HashMap::new();
        for usage in everything.usage {
            if long.contains(&usage.tgid)
                && let Some(stack) = self.tracer.stack(usage.stack)?
            {
                let addresses = needed.entry(usage.tgid).or_default();
                addresses.extend(stack.iter().map(|address| address.saturating_sub(1)));
            }
        }
        for pid in long {
            let addresses = needed.remove(&pid).unwrap_or_default();
            self.mappings.keep_needed(pid, &addresses);
        }
        Ok(())
    }

    /// How often probes were met so far, and the share of the CPU time that they took.
    fn cost(&mut self) -> Result<(u64, Option<f64>)> {
        let Some(overhead) = &mut self.overhead else {
            return Ok((0, None));
        };
        let total = overhead.total(&mut self.tracer)?;
        Ok((total.events, total.share))
    }

    /// Sees to what nobody is known to hold.
    fn adopt(&mut self, snapshot: &mut Snapshot, now_ns: u64) {
        let holders = snapshot.usage.iter().map(|usage| usage.tgid).collect();
        let mut keepers = Keepers {
            mappings: &mut self.mappings,
            symbolizer: &mut self.symbolizer,
            tracer: &mut self.tracer,
        };
        let later = self.processes.adopt(holders, now_ns, &mut keepers);
        snapshot.usage.retain(|usage| !later.contains(&usage.tgid));
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
        let lost = keepers.tracer.losses().lives;
        self.processes.synchronize(now_ns, lost, &mut keepers);
        for pid in self.processes.living().collect::<Vec<_>>() {
            let objects = self.mappings.take_new_objects(pid);
            self.follow(pid, objects, now_ns);
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
        if self.scope == Scope::Each {
            let pids = ended.keys().copied().collect();
            self.tracer.detach_from(Some(&pids));
            self.probing.forget(Some(&pids));
        }
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
    /// Whether frames of interpreters are left out where those are shown that they run.
    hide_interpreters: bool,
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

impl ProcessNames<'_, '_> {
    /// A frame that an interpreter runs.
    fn interpreted(&mut self, word: u64) -> Result<Option<Frame>> {
        let Some(frame) = InterpretedFrame::from_word(word) else {
            return Ok(None);
        };
        let NamedFrame { language, function } = self.tracer.name_interpreted(frame)?;
        Ok(Some(Frame {
            module: language.map(Language::module),
            function,
            language,
            ..Frame::default()
        }))
    }

    /// Whether the code at a return address is an interpreter's own.
    fn is_interpreters(&self, pid: u32, address: u64, at_ns: u64) -> bool {
        let mapping = self.mappings.find(pid, address.saturating_sub(1), at_ns);
        mapping
            .and_then(|mapping| mapping.object.identity())
            .is_some_and(|file| self.tracer.is_interpreter(file))
    }
}

impl Names for ProcessNames<'_, '_> {
    fn frames(&mut self, usage: &Usage) -> Result<Option<Vec<Frame>>> {
        // code may since have been replaced at the stack's addresses
        let at_ns = self.now_ns.saturating_sub(usage.oldest_ns.unwrap_or(0));
        let Some(stack) = self.tracer.stack(usage.stack)? else {
            return Ok(None);
        };
        let is_interpreted = |word: u64| InterpretedFrame::from_word(word).is_some();
        let hide = self.hide_interpreters && stack.iter().any(|word| is_interpreted(*word));
        let mut frames = Vec::new();
        for part in stack.chunk_by(|one, next| is_interpreted(*one) == is_interpreted(*next)) {
            if is_interpreted(part[0]) {
                for word in part {
                    frames.extend(self.interpreted(*word)?);
                }
                continue;
            }
            let wanted =
                |address: &&u64| !(hide && self.is_interpreters(usage.tgid, **address, at_ns));
            let part: Stack = part.iter().filter(wanted).copied().collect();
            frames.extend(
                self.symbolizer
                    .frames(self.mappings, usage.tgid, &part, at_ns),
            );
        }
        Ok(Some(frames))
    }

    fn allocator(&mut self, stack: StackId) -> Result<Option<Arc<str>>> {
        self.tracer.allocator(stack)
    }

    fn lost_files(&self) -> u64 {
        reader::lost_files()
    }
}
