//! The processes that a session traces: who they are, from fork or exec to their last report, as the kernel tells it.
//! Knows nothing of what they allocate; what they map and are made of is kept by those that it hands it to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use anyhow::Result;

use super::wait::monotonic;
use crate::model::report::ProcessEntry;
use crate::process::{Event, MappingRecord, Mappings, Process, What, name};
use crate::symbolize::Symbolizer;
use crate::tracer::Tracer;

/// How long the last report of a process that has ended may take: then it is made out of turn, for all that have.
const LAST_REPORT: Duration = Duration::from_secs(1);

/// How long it may take from a program's first mapping to the word that the process is traced which executes it.
const JOINING_NS: u64 = 1_000_000_000;

/// Processes that can be about to join, and what is kept for each: more than any program maps before it runs.
const MOST_JOINING: usize = 1024;
const MOST_MAPPED: usize = 32;

/// What stands for a name that was lost.
const NO_NAME: &str = "?";

/// The traced processes, living or with their last report to come.
pub struct Processes {
    many: bool,
    known: BTreeMap<u32, Known>,
    /// What has been announced and is still to be taken in: behind a process that must get its last report first, as
    /// another one has come under its number.
    queue: VecDeque<Event>,
    /// What processes have mapped since they began to execute a program: those for whom that may be the reason to join.
    joining: BTreeMap<u32, Joining>,
    /// A command that is still to execute its program.
    held: Option<u32>,
    /// The command that memleak started.
    first: Option<u32>,
    /// Announcements of lives that were lost, and made up for.
    lost_lives: u64,
    /// When the first of those ended that have no last report yet.
    first_ended: Option<Duration>,
}

struct Known {
    name: String,
    since_ns: u64,
    /// Whether it was found, and not announced: the end of such a one can have come before it was traced.
    found: bool,
    /// Whether it is executing a program, whose mappings are known.
    new_image: bool,
    ended_ns: Option<u64>,
}

/// A process that may be about to join.
struct Joining {
    since_ns: u64,
    mapped: Vec<MappingRecord>,
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
    pub fn new(many: bool, held: Option<u32>) -> Self {
        Self {
            many,
            known: BTreeMap::new(),
            queue: VecDeque::new(),
            joining: BTreeMap::new(),
            held,
            first: held,
            lost_lives: 0,
            first_ended: None,
        }
    }

    /// Adds a process that was found among those that run, at a time in ns of CLOCK_MONOTONIC.
    pub fn add(&mut self, pid: u32, now_ns: u64, symbolizer: &mut Symbolizer) {
        symbolizer.add(pid, None);
        let name = name(pid).unwrap_or_else(|| NO_NAME.into());
        self.insert(pid, name, now_ns);
        if let Some(known) = self.known.get_mut(&pid) {
            known.found = true;
        }
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
            .filter(|(_, known)| known.ended_ns.is_none())
            .map(|(pid, _)| *pid)
    }

    /// Whether a process is the command that memleak started.
    pub fn is_first(&self, pid: u32) -> bool {
        self.first == Some(pid)
    }

    /// What a process is called.
    pub fn name(&self, pid: u32) -> &str {
        self.known.get(&pid).map_or(NO_NAME, |known| &known.name)
    }

    /// Whether a process must get its last report before anything else can be taken in.
    pub fn is_blocked(&self) -> bool {
        self.queue
            .front()
            .is_some_and(|event| self.must_wait(event))
    }

    /// Takes in what happened. Gives the processes that have come to map something.
    ///
    /// # Errors
    /// When the tracer fails.
    pub fn apply(
        &mut self,
        events: Vec<Event>,
        keepers: &mut Keepers<'_, '_>,
    ) -> Result<BTreeSet<u32>> {
        self.queue.extend(events);
        // a process that moves between CPUs leaves its traces in several rings
        self.queue
            .make_contiguous()
            .sort_by_key(|event| event.time_ns);
        let mut changed = BTreeSet::new();
        while let Some(event) = self.queue.pop_front() {
            if self.must_wait(&event) {
                self.queue.push_front(event);
                break;
            }
            self.take(event, &mut changed, keepers)?;
        }
        Ok(changed)
    }

    /// Whether an event is of a new process under the number of one that is still to get its last report.
    fn must_wait(&self, event: &Event) -> bool {
        let comes = matches!(event.what, What::Forked { .. } | What::Executed(_));
        let ended = |known: &Known| known.ended_ns.is_some();
        comes && self.known.get(&event.pid).is_some_and(ended)
    }

    fn take(
        &mut self,
        Event { time_ns, pid, what }: Event,
        changed: &mut BTreeSet<u32>,
        keepers: &mut Keepers<'_, '_>,
    ) -> Result<()> {
        let known = self
            .known
            .get_mut(&pid)
            .filter(|known| known.ended_ns.is_none());
        match (what, known) {
            (What::Mapped(record), Some(_)) => {
                keepers.mappings.add(pid, record);
                changed.insert(pid);
            }
            (What::Mapped(record), None) => {
                if let Some(joining) = self.joining.get_mut(&pid)
                    && joining.mapped.len() < MOST_MAPPED
                {
                    joining.mapped.push(record);
                }
            }
            (What::NewImage, Some(known)) => {
                known.new_image = true;
                self.replace_image(pid, time_ns, keepers)?;
            }
            (What::NewImage, None) => self.may_join(pid, time_ns),
            (What::Renamed(name), Some(known)) => known.name = name,
            (What::Forked { parent, name }, None) => {
                self.fork(pid, (parent, name, time_ns), keepers);
                changed.insert(pid);
            }
            // it was found before it was announced, or its end was lost
            (What::Forked { parent, name }, Some(known)) => {
                if known.since_ns < time_ns {
                    let again = What::Forked { parent, name };
                    self.end(pid, time_ns);
                    self.queue.push_front(Event {
                        time_ns,
                        pid,
                        what: again,
                    });
                }
            }
            (What::Executed(name), None) => {
                self.join(pid, name, time_ns, keepers);
                changed.insert(pid);
            }
            (What::Executed(name), Some(known)) => {
                known.name = name;
                if !std::mem::take(&mut known.new_image) {
                    self.read_image(pid, time_ns, keepers)?;
                    changed.insert(pid);
                }
            }
            (What::Left, Some(known)) => {
                if !std::mem::take(&mut known.new_image) {
                    self.replace_image(pid, time_ns, keepers)?;
                }
                self.end(pid, time_ns);
            }
            (What::Ended(name), Some(known)) => {
                if known.since_ns <= time_ns {
                    known.name = name;
                    self.end(pid, time_ns);
                }
            }
            (What::Renamed(_) | What::Left | What::Ended(_), None) => {}
        }
        Ok(())
    }

    /// Makes sure of who is traced: of those who were found, some may have ended before; and where announcements were lost,
    /// the set that the programs keep is right. `lost` are those lost so far.
    pub fn synchronize(&mut self, now_ns: u64, lost: u64, keepers: &mut Keepers<'_, '_>) {
        // what is still to be taken in tells it, and may need those who have ended since
        if !self.many || self.is_blocked() {
            return;
        }
        let set = keepers.tracer.processes();
        let lost_more = lost > std::mem::replace(&mut self.lost_lives, lost);
        let has_gone = |pid: &u32, known: &Known| {
            let left = !set.contains(pid) && (lost_more || known.found);
            left || (known.found && Process::open(*pid).is_err())
        };
        let gone: Vec<u32> = self
            .known
            .iter()
            .filter(|(pid, known)| known.ended_ns.is_none() && has_gone(pid, known))
            .map(|(pid, _)| *pid)
            .collect();
        for pid in gone {
            keepers.tracer.remove_process(pid);
            self.end(pid, now_ns);
        }
        let unknown = set.iter().filter(|_| lost_more);
        for &pid in unknown {
            if !self.known.contains_key(&pid) {
                self.add(pid, now_ns, keepers.symbolizer);
                // should it have gone, its end is told next time
                let _ = keepers.mappings.read(pid);
            }
        }
    }

    /// Of processes that have something in a report, those of which nothing is known: what they hold is reported once,
    /// and then cleared away. Gives those that are only still to be taken in, and belong to a later report.
    pub fn adopt(
        &mut self,
        holders: BTreeSet<u32>,
        now_ns: u64,
        keepers: &mut Keepers<'_, '_>,
    ) -> BTreeSet<u32> {
        let (mut later, orphans): (BTreeSet<u32>, BTreeSet<u32>) = holders
            .into_iter()
            .filter(|pid| self.many && !self.known.contains_key(pid))
            .partition(|pid| self.lost_lives == 0 || keepers.tracer.is_traced(*pid));
        for pid in orphans {
            if self.queue.iter().any(|event| event.pid == pid) {
                later.insert(pid);
                continue;
            }
            keepers.symbolizer.add(pid, None);
            self.insert(pid, NO_NAME.to_owned(), 0);
            self.end(pid, now_ns);
        }
        later
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
                ended: known.ended_ns.is_some(),
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
        Ok(())
    }

    fn insert(&mut self, pid: u32, name: String, since_ns: u64) {
        let known = Known {
            name,
            since_ns,
            found: false,
            new_image: false,
            ended_ns: None,
        };
        self.known.insert(pid, known);
    }

    fn end(&mut self, pid: u32, time_ns: u64) {
        if let Some(known) = self.known.get_mut(&pid) {
            known.ended_ns = Some(time_ns);
            self.first_ended.get_or_insert_with(monotonic);
        }
    }

    fn fork(
        &mut self,
        pid: u32,
        (parent, name, time_ns): (u32, String, u64),
        keepers: &mut Keepers<'_, '_>,
    ) {
        self.insert(pid, name, time_ns);
        if self.known.contains_key(&parent) {
            keepers.mappings.fork(parent, pid);
            keepers.symbolizer.add(pid, Some(parent));
        } else {
            // of a cgroup that its parent is not in; should it have gone, its frames have no names
            keepers.symbolizer.add(pid, None);
            let _ = keepers.mappings.read(pid);
        }
    }

    /// A process begins to execute a program, for which it may come to be traced.
    fn may_join(&mut self, pid: u32, time_ns: u64) {
        if !self.many {
            return;
        }
        self.joining
            .retain(|_, joining| joining.since_ns.saturating_add(JOINING_NS) > time_ns);
        if self.joining.len() < MOST_JOINING {
            let joining = Joining {
                since_ns: time_ns,
                mapped: Vec::new(),
            };
            self.joining.insert(pid, joining);
        }
    }

    /// A process is traced from now on, as it executes a program.
    fn join(&mut self, pid: u32, name: String, time_ns: u64, keepers: &mut Keepers<'_, '_>) {
        keepers.symbolizer.add(pid, None);
        self.insert(pid, name, time_ns);
        match self.joining.remove(&pid) {
            Some(joining) => joining
                .mapped
                .into_iter()
                .for_each(|record| keepers.mappings.add(pid, record)),
            None => {
                let _ = keepers.mappings.read(pid);
            }
        }
    }

    /// A process executes another program: what it had is gone, from `time_ns` on.
    fn replace_image(
        &mut self,
        pid: u32,
        time_ns: u64,
        keepers: &mut Keepers<'_, '_>,
    ) -> Result<()> {
        if self.is_held(pid) {
            self.held = None;
        } else {
            keepers.tracer.forget(pid, time_ns)?;
        }
        keepers.mappings.forget(pid);
        keepers.symbolizer.add(pid, None);
        Ok(())
    }

    /// The same, where it was not announced what the program maps.
    fn read_image(&mut self, pid: u32, time_ns: u64, keepers: &mut Keepers<'_, '_>) -> Result<()> {
        self.replace_image(pid, time_ns, keepers)?;
        // should it have gone, its frames have no names
        let _ = keepers.mappings.read(pid);
        Ok(())
    }
}
