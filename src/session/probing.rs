//! Which objects have been probed so far, and probes for those that come later: a process executes a static program, or
//! maps another libc. What to probe in an object is decided in `probes`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Weak};

use anyhow::{Context as _, Result};

use super::patched;

use crate::discovery::{Candidate, ObjectPlan, Wanted, discover};
use crate::files::Opened;
use crate::options::Options;
use crate::probes::{OwnFunction, Search};
use crate::process::{Mappings, ObjectFile};
use crate::stderr::say;
use crate::symbolize::{Reach, Symbolizer};
use crate::tracer::Tracer;

/// The objects that have been looked at.
pub struct Probing<'a> {
    options: &'a Options,
    /// The objects in which there is nothing new to find, by their numbers.
    seen: HashMap<usize, Weak<ObjectFile>>,
    /// Devices and inodes of the files that were searched before they were mapped.
    foreseen: HashSet<(u64, u64)>,
    /// Devices and inodes of the files that are probed: in one process, or, with none, in all that map them.
    probed: HashSet<(Option<u32>, (u64, u64))>,
    /// What is probed in the files that were found to hold an allocator. They stay open, or another file could get their
    /// numbers.
    plans: HashMap<(u64, u64), (ObjectPlan, Arc<Opened>)>,
    /// Processes that ran for a while before they got their first probe.
    late: u64,
}

/// Where probes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Into one process, the only one that is traced.
    Only(u32),
    /// Into each process that is traced, one by one.
    Each,
    /// Into files, for whoever maps them.
    Everyone,
}

impl<'a> Probing<'a> {
    /// Nothing is probed yet.
    pub fn new(options: &'a Options) -> Self {
        Self {
            options,
            seen: HashMap::new(),
            foreseen: HashSet::new(),
            probed: HashSet::new(),
            plans: HashMap::new(),
            late: 0,
        }
    }

    /// Chooses among objects what to probe; `all` as in [`Wanted`]. `debug` finds the debug information of one.
    ///
    /// # Errors
    /// When there is no allocator.
    pub fn discover(
        &self,
        candidates: &[Candidate],
        all: bool,
        own: &[OwnFunction],
        debug: &dyn Fn(&Opened, &Path) -> Option<Opened>,
    ) -> Result<Vec<ObjectPlan>> {
        let options = self.options;
        let wanted = Wanted {
            object: options.object.as_deref(),
            search: Search {
                prefix: &options.symbols_prefix,
                mappings: options.recording.mappings,
                at: options.probe_at,
            },
            all,
            own,
            debug_file: debug,
        };
        discover(candidates, &wanted)
    }

    /// Processes that ran for a while before they got their first probe: what they did until then is not counted.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// A process has come to be traced that may run already, and gets its probes by itself.
    pub fn note_late(&mut self, pid: u32) {
        if !self.probed.iter().any(|(known, _)| *known == Some(pid)) {
            self.late += 1;
        }
    }

    /// Forgets what is probed in processes that have ended, or, with none, in all.
    pub fn forget(&mut self, pids: Option<&BTreeSet<u32>>) {
        self.probed.retain(|(pid, _)| match (pid, pids) {
            (Some(pid), Some(pids)) => !pids.contains(pid),
            (None, None) => false,
            _ => true,
        });
    }

    /// Probes what is known to hold an allocator, for everyone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_everywhere(
        &mut self,
        tracer: &mut Tracer<'_>,
        mappings: &Mappings,
    ) -> Result<()> {
        for (object, _) in self.plans.values().cloned().collect::<Vec<_>>() {
            self.attach(tracer, mappings, &object, None)?;
        }
        Ok(())
    }

    /// Probes in a process what is known to hold an allocator, and what the process maps of it.
    fn attach_known(
        &mut self,
        tracer: &mut Tracer<'_>,
        mappings: &Mappings,
        objects: &[Arc<ObjectFile>],
        pid: u32,
    ) {
        for candidate in candidates(objects) {
            let known = candidate.file.identity().and_then(|id| self.plans.get(&id));
            if let Some((plan, _)) = known {
                let object = ObjectPlan {
                    file: candidate.file,
                    ..plan.clone()
                };
                // a process that has ended meanwhile is no matter
                let _ = self.attach(tracer, mappings, &object, Some(pid));
            }
        }
    }

    /// Probes, where `scope` says, what a process has come to map that nobody has mapped before. Where that is an allocator, what
    /// it did so far is not counted, which is said.
    pub fn follow(
        &mut self,
        tracer: &mut Tracer<'_>,
        maps: (&Mappings, &Symbolizer),
        (pid, name, mut objects): (u32, &str, Vec<Arc<ObjectFile>>),
        scope: Scope,
        now_ns: u64,
    ) {
        let (mappings, symbolizer) = maps;
        let only = match scope {
            Scope::Only(only) => Some(only),
            Scope::Each => Some(pid),
            Scope::Everyone => None,
        };
        if scope == Scope::Each {
            self.attach_known(tracer, mappings, &objects, pid);
        }
        if self.options.object.is_some() {
            return;
        }
        objects.retain(|object| self.see(object));
        // a process without an allocator is traced in vain, but no reason to stop
        let mut candidates = candidates(&objects);
        candidates.retain(|candidate| !self.is_foreseen(candidate));
        if candidates.is_empty() {
            return;
        }
        let reach = reach(only);
        let debug =
            |file: &Opened, known_as: &Path| symbolizer.debug_file(pid, file, known_as, reach);
        let found = self
            .discover(&candidates, false, &self.options.own_functions, &debug)
            .or_else(|_| self.discover(&candidates, false, &[], &debug))
            .unwrap_or_default();
        for object in found {
            if self.is_probed(&object, only) {
                continue;
            }
            let shown = object.shown.display();
            match self.attach(tracer, mappings, &object, only) {
                Ok(()) => say!(
                    "probing {shown}: process {pid} ({name}) has had it for {} ms, and what it allocated there \
                     so far is not counted",
                    mapped_for(mappings, pid, &object, now_ns)
                ),
                Err(error) => say!("warning: {error:#}"),
            }
        }
    }

    /// Nothing new is to be found in what a process maps now.
    pub fn know(&mut self, mappings: &Mappings, pid: u32) {
        for object in mappings.objects(pid) {
            self.see(&object);
        }
    }

    /// Tells whether an object is new.
    fn see(&mut self, object: &Arc<ObjectFile>) -> bool {
        let seen = Arc::downgrade(object);
        self.seen.insert(object.id, seen).is_none()
    }

    /// Forgets objects that nobody maps any more.
    pub fn forget_objects(&mut self) {
        self.seen.retain(|_, object| object.strong_count() > 0);
    }

    /// Nothing new is to be found in what a command is going to map.
    pub fn foresee(&mut self, candidates: &[Candidate]) {
        let searched = candidates.iter().filter_map(|of| of.file.identity());
        self.foreseen.extend(searched);
    }

    fn is_foreseen(&self, candidate: &Candidate) -> bool {
        let identity = candidate.file.identity();
        identity.is_some_and(|identity| self.foreseen.contains(&identity))
    }

    fn is_probed(&self, object: &ObjectPlan, pid: Option<u32>) -> bool {
        let identity = object.file.identity();
        identity.is_some_and(|identity| self.probed.contains(&(pid, identity)))
    }

    /// Probes an object, in one process or in all, unless it is probed already; without the functions that one of these has
    /// changed in its memory.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(
        &mut self,
        tracer: &mut Tracer<'_>,
        mappings: &Mappings,
        object: &ObjectPlan,
        pid: Option<u32>,
    ) -> Result<()> {
        if self.is_probed(object, pid) {
            return Ok(());
        }
        let opened = object.file.open();
        let opened =
            opened.with_context(|| format!("failed to open {}", object.shown.display()))?;
        let known = self.plans.contains_key(&opened.identity);
        let mut probed = object.clone();
        let pids = pid.map_or_else(|| mappings.processes(), |pid| vec![pid]);
        patched::leave_out(&mut probed, mappings, &pids);
        if self.options.verbose && !known {
            describe(&probed);
        }
        if !probed.plan.probes.is_empty() {
            tracer.attach(&probed, pid)?;
        }
        self.probed.insert((pid, opened.identity));
        self.plans.insert(opened.identity, (object.clone(), opened));
        Ok(())
    }
}

/// Objects as `probes` looks at them.
pub fn candidates(objects: &[Arc<ObjectFile>]) -> Vec<Candidate> {
    objects
        .iter()
        .filter_map(|object| {
            Some(Candidate {
                file: Arc::clone(object.file()?),
                shown: object.path.clone(),
            })
        })
        .collect()
}

/// Who is affected by probes in an object: the one process, or everyone who maps it.
pub fn reach(only: Option<u32>) -> Reach {
    match only {
        Some(_) => Reach::Process,
        None => Reach::Everyone,
    }
}

/// Milliseconds for which a process has mapped an object.
fn mapped_for(mappings: &Mappings, pid: u32, object: &ObjectPlan, now_ns: u64) -> u64 {
    let mut layout = mappings.layout(pid);
    let mapping = layout.find(|mapping| mapping.object.path == object.shown);
    mapping.map_or(0, |mapping| {
        now_ns.saturating_sub(mapping.since_ns) / 1_000_000
    })
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
