//! The processes that a session traces: who they are, from fork or exec to their last report, as the kernel tells it.
//! Knows nothing of what they allocate; what they map and are made of is kept by those that it hands it to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;

use super::choice::Rules;
use super::wait::monotonic;
use crate::reader;
use crate::report::ProcessEntry;
use crate::stderr::say;
use crate::symbolize::Symbolizer;
use crate::target::{Event, Mappings, What, name};
use crate::tracer::Tracer;

/// How long the last report of a process that has ended may take: then it is made out of turn, for all that have.
const LAST_REPORT: Duration = Duration::from_secs(1);

/// The kernel announces a process before it puts it into the set of those that are traced: this much earlier at the
/// most.
const ANNOUNCED_BEFORE_NS: u64 = 100_000_000;

/// Files that are kept open although no traced process maps them.
const UNUSED_FILES: usize = 512;

/// The traced processes, living or with their last report to come.
pub struct Processes {
    rules: Rules,
    many: bool,
    known: BTreeMap<u32, Known>,
    /// A command that is still to execute its program.
    held: Option<u32>,
    /// When the first of those ended that have no last report yet.
    first_ended: Option<Duration>,
}

struct Known {
    name: String,
    since_ns: u64,
    /// Whether it is certain that it is traced.
    confirmed: bool,
    ended_ns: Option<u64>,
}

/// What is kept of each process elsewhere.
pub struct Keepers<'a, 'obj> {
    /// What processes map.
    pub mappings: &'a mut Mappings,
    /// What processes call their code.
    pub symbolizer: &'a mut Symbolizer,
    /// What processes hold.
    pub tracer: &'a mut Tracer<'obj>,
}

impl Processes {
    /// Nobody yet. With `many`, others can join.
    pub fn new(rules: Rules, many: bool, held: Option<u32>) -> Self {
        Self {
            rules,
            many,
            known: BTreeMap::new(),
            held,
            first_ended: None,
        }
    }

    /// Adds a process that is traced, and was before it was looked at.
    pub fn add(&mut self, pid: u32, symbolizer: &mut Symbolizer) {
        symbolizer.add(pid, None);
        self.insert(pid, name(pid).unwrap_or_else(|| "?".into()), 0, true);
    }

    /// Whether a process is among those that are traced, and lives as far as is known.
    pub fn contains(&self, pid: u32) -> bool {
        self.known
            .get(&pid)
            .is_some_and(|known| known.ended_ns.is_none())
    }

    /// Whether a process is the command that is still to execute its program.
    pub fn is_held(&self, pid: u32) -> bool {
        self.held == Some(pid)
    }

    /// The processes that live, as far as is known.
    pub fn living(&self) -> impl Iterator<Item = u32> {
        self.known
            .iter()
            .filter(|(_, known)| known.ended_ns.is_none() && known.confirmed)
            .map(|(pid, _)| *pid)
    }

    /// What a process is called.
    pub fn name(&self, pid: u32) -> &str {
        self.known.get(&pid).map_or("?", |known| &known.name)
    }

    /// Those of whom `events` tell that a thread has ended, and who are traced no longer. The end of one that is traced
    /// alone is waited for elsewhere.
    pub fn gone(&self, events: &[Event], tracer: &Tracer<'_>) -> BTreeSet<u32> {
        if !self.many {
            return BTreeSet::new();
        }
        let ended = events
            .iter()
            .filter(|event| matches!(event.what, What::ThreadEnded));
        let mut gone: BTreeSet<u32> = ended.map(|event| event.pid).collect();
        gone.retain(|pid| !tracer.is_traced(*pid));
        gone
    }

    /// Takes in what happened; of those that are `gone`, that is all there will be, and they end with the last of their
    /// threads. Gives the processes that have come to map something.
    ///
    /// # Errors
    /// When the tracer fails.
    pub fn apply(
        &mut self,
        events: Vec<Event>,
        gone: &BTreeSet<u32>,
        keepers: &mut Keepers<'_, '_>,
    ) -> Result<BTreeSet<u32>> {
        let mut changed = BTreeSet::new();
        let mut ends = BTreeMap::new();
        for Event { time_ns, pid, what } in events {
            match what {
                What::Mapped(record) if self.contains(pid) => {
                    keepers.mappings.add(pid, record);
                    changed.insert(pid);
                }
                What::Executed(name) => self.executed(pid, name, time_ns, keepers)?,
                What::Renamed(name) if self.contains(pid) => {
                    if let Some(known) = self.known.get_mut(&pid) {
                        known.name = name;
                    }
                }
                What::ForkedFrom(parent) if self.rules.children && self.contains(parent) => {
                    // whoever had this number before
                    if let Some(ended_ns) = ends.remove(&pid) {
                        self.end(pid, ended_ns);
                    }
                    self.forked(pid, parent, time_ns, keepers)?;
                    changed.insert(pid);
                }
                What::ThreadEnded if gone.contains(&pid) => {
                    ends.insert(pid, time_ns);
                }
                _ => {}
            }
        }
        for (pid, time_ns) in ends {
            if self.contains(pid) {
                self.end(pid, time_ns);
            }
        }
        self.confirm(keepers.tracer);
        changed.retain(|pid| self.known.get(pid).is_some_and(|known| known.confirmed));
        Ok(changed)
    }

    /// Makes up for announcements that were lost: the set that the programs keep is right.
    pub fn synchronize(&mut self, now_ns: u64, keepers: &mut Keepers<'_, '_>) {
        if !self.many {
            return;
        }
        let traced = keepers.tracer.processes();
        let gone: Vec<u32> = self
            .known
            .iter()
            .filter(|(pid, known)| {
                let settled = known.since_ns.saturating_add(ANNOUNCED_BEFORE_NS) < now_ns;
                known.ended_ns.is_none() && settled && !traced.contains(pid)
            })
            .map(|(pid, _)| *pid)
            .collect();
        for pid in gone {
            self.end(pid, now_ns);
        }
        for pid in traced {
            if !self.known.contains_key(&pid) {
                self.add(pid, keepers.symbolizer);
                // should it have gone, its end is told next time
                let _ = keepers.mappings.read(pid);
            }
        }
    }

    /// When last reports are due, on CLOCK_MONOTONIC.
    pub fn last_reports_due(&self) -> Option<Duration> {
        self.first_ended.map(|first| first + LAST_REPORT)
    }

    /// Whether all have ended, with or without their last report.
    pub fn have_ended(&self) -> bool {
        self.living().next().is_none()
    }

    /// Those that have ended and are to get their last report, with when they did.
    pub fn ended(&self) -> BTreeMap<u32, u64> {
        self.known
            .iter()
            .filter_map(|(pid, known)| Some((*pid, known.ended_ns?)))
            .collect()
    }

    /// The processes as reports list them: where there can be several.
    pub fn entries(&self, ended_only: bool) -> Vec<ProcessEntry> {
        if !self.many {
            return Vec::new();
        }
        self.known
            .iter()
            .filter(|(_, known)| known.ended_ns.is_some() || !ended_only)
            .map(|(pid, known)| ProcessEntry {
                tgid: *pid,
                name: known.name.clone(),
                ended: known.ended_ns.is_some() && known.confirmed,
                ..ProcessEntry::default()
            })
            .collect()
    }

    /// Forgets those that have ended: they have got their last report.
    ///
    /// # Errors
    /// When the tracer fails.
    pub fn retire(&mut self, keepers: &mut Keepers<'_, '_>) -> Result<()> {
        let ended = self.ended();
        self.first_ended = None;
        if !self.many || ended.is_empty() {
            return Ok(());
        }
        keepers.tracer.clear(&ended)?;
        for pid in ended.keys() {
            self.known.remove(pid);
            keepers.mappings.forget(*pid);
            keepers.symbolizer.remove(*pid);
        }
        let closed = keepers.mappings.close_unused(UNUSED_FILES);
        keepers
            .symbolizer
            .forget_objects(closed.iter().map(|file| file.object));
        keepers
            .tracer
            .forget_files(closed.iter().filter_map(|file| file.identity))
    }

    fn insert(&mut self, pid: u32, name: String, since_ns: u64, confirmed: bool) {
        let known = Known {
            name,
            since_ns,
            confirmed,
            ended_ns: None,
        };
        self.known.insert(pid, known);
    }

    fn end(&mut self, pid: u32, time_ns: u64) {
        if let Some(known) = self.known.get_mut(&pid) {
            known.ended_ns = Some(time_ns);
            // should it have been traced after all, the next report will tell
            if known.confirmed {
                self.first_ended.get_or_insert_with(monotonic);
            }
        }
    }

    fn forked(
        &mut self,
        pid: u32,
        parent: u32,
        time_ns: u64,
        keepers: &mut Keepers<'_, '_>,
    ) -> Result<()> {
        if self.contains(pid) {
            return Ok(());
        }
        self.replace(pid, keepers)?;
        let name = self.name(parent).to_owned();
        let confirmed = self
            .known
            .get(&parent)
            .is_some_and(|parent| parent.confirmed);
        keepers.mappings.fork(parent, pid);
        keepers.symbolizer.add(pid, Some(parent));
        self.insert(pid, name, time_ns, confirmed);
        Ok(())
    }

    fn executed(
        &mut self,
        pid: u32,
        name: String,
        time_ns: u64,
        keepers: &mut Keepers<'_, '_>,
    ) -> Result<()> {
        let wanted = self.rules.wants(&name);
        if !self.contains(pid) {
            if self.many && !reader::is_memleak(pid) && (wanted || self.rules.cgroups) {
                self.replace(pid, keepers)?;
                keepers.symbolizer.add(pid, None);
                self.insert(pid, name, time_ns, wanted);
            }
            return Ok(());
        }
        if self.is_held(pid) {
            self.held = None;
        } else {
            keepers.tracer.forget(pid, time_ns)?;
        }
        keepers.mappings.forget(pid);
        keepers.symbolizer.add(pid, None);
        let leaves = self.many && !wanted && !self.rules.executed;
        if let Some(known) = self.known.get_mut(&pid) {
            // it is to go under the name under which it was traced
            if !leaves {
                known.name = name;
            }
        }
        if leaves {
            self.end(pid, time_ns);
        }
        Ok(())
    }

    /// Makes room for a new process under the number of one that has ended.
    fn replace(&mut self, pid: u32, keepers: &mut Keepers<'_, '_>) -> Result<()> {
        let known = self.known.get(&pid).filter(|known| known.confirmed);
        let Some(ended_ns) = known.and_then(|known| known.ended_ns) else {
            return Ok(());
        };
        say!(
            "warning: process {pid} ({}) has ended, and there is another one of this number before its last report",
            self.name(pid)
        );
        keepers.tracer.clear(&BTreeMap::from([(pid, ended_ns)]))?;
        keepers.mappings.forget(pid);
        Ok(())
    }

    /// Settles who is traced of those of whom the announcements did not tell.
    fn confirm(&mut self, tracer: &Tracer<'_>) {
        let now_ns = u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX);
        self.known.retain(|pid, known| {
            known.confirmed = known.confirmed || tracer.is_traced(*pid);
            let recent = known.since_ns.saturating_add(ANNOUNCED_BEFORE_NS) >= now_ns;
            known.confirmed || recent || known.ended_ns.is_some()
        });
    }
}
