//! From the target to probes in place: who is traced from the start, what they allocate with, what is said of it.
//! Where a process that comes later gets its probes is in `probing`.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::overhead::Overhead;
use super::probing::Scope;
use super::traced::Traced;
use super::wait::monotonic;
use super::{Session, monotonic_ns, probing, safety, translators, unwinding, wait};
use crate::discovery::{Candidate, ObjectPlan};
use crate::files::Opened;
use crate::options::{Choice, TargetOption};
use crate::process::{descendants, objects_of_command};
use crate::reader;
use crate::stderr::say;

/// Longer than a dynamic linker takes to map a program's libraries.
const SETTLING: Duration = Duration::from_millis(100);

impl Session<'_> {
    /// Puts the probes in place.
    pub(super) fn arm(&mut self, target: &Traced, candidates: &[Candidate]) -> Result<()> {
        let begun = monotonic();
        unwinding::warn_of_fallback(self.tracer.unwinder());
        self.tracer.attach_processes()?;
        // from here on, a translator that begins is noticed
        self.scope = translators::scope(self.options, target);
        for pid in target.pids() {
            self.add(pid)?;
        }
        let only = match self.scope {
            Scope::Only(pid) => Some(pid),
            Scope::Each | Scope::Everyone => None,
        };
        self.unwinding.foresee(&mut self.tracer, candidates)?;
        if self.scope != Scope::Each {
            self.unwinding
                .watch_linker(&mut self.tracer, candidates, only);
        }
        if let Some(pid) = only {
            self.unwinding
                .watch_code_ends(&mut self.tracer, &self.mappings, candidates, pid);
        }
        let found = self.add_present(target)?;
        self.tell_unwinder()?;
        if target.is_finite() {
            let objects = match self.find_allocators(target, candidates) {
                Ok(objects) => objects,
                // a launcher: what it starts, or becomes, may have one
                Err(error) if self.may_come_later(target) => {
                    say!("warning: {error:#}; what it starts or becomes is probed when it comes");
                    self.unprobed = Some(error);
                    self.likely_allocators()
                }
                Err(error) => return Err(error),
            };
            safety::check(&self.tracer, target.processes(), candidates, &objects)?;
            self.probing.foresee(candidates);
            let pids = match self.scope {
                Scope::Each => target.pids().into_iter().map(Some).collect(),
                Scope::Only(_) | Scope::Everyone => vec![only],
            };
            for (object, pid) in objects
                .iter()
                .flat_map(|of| pids.iter().map(move |pid| (of, pid)))
            {
                self.probing
                    .attach(&mut self.tracer, &self.mappings, object, *pid)
                    .map_err(|error| target.still_lives().err().unwrap_or(error))?;
            }
        }
        safety::check_unknown(&self.tracer, self.many || target.is_held())?;
        self.probe_others(&found)?;
        let verbose = self.options.verbose;
        if verbose {
            unwinding::describe(&self.tracer);
            say!(
                "armed in {} ms ({:?} probes)",
                (monotonic() - begun).as_millis(),
                self.tracer.attachment()
            );
        }
        let throughout = verbose || self.options.max_overhead.is_some();
        self.overhead = Some(Overhead::start(
            target.pids().first().copied().filter(|_| !self.many),
            throughout,
        ));
        give_memory_back();
        Ok(())
    }

    /// Traces a process that runs already.
    pub(super) fn add(&mut self, pid: u32) -> Result<()> {
        if self.many {
            self.tracer.add_process(pid)?;
        }
        self.processes
            .add(pid, monotonic_ns(), &mut self.symbolizer);
        Ok(())
    }

    /// Adds the processes that belong to the target without being named: those that fit, and children.
    fn add_present(&mut self, target: &Traced) -> Result<Vec<u32>> {
        let mut found: Vec<u32> = self.chosen.members().into_iter().collect();
        if self.options.follow {
            let family = [target.pids(), found.clone()].concat();
            found.extend(descendants(&family));
        }
        found.retain(|pid| !self.processes.contains(*pid) && !reader::is_memleak(*pid));
        found.retain(|pid| !self.spares(*pid));
        for &pid in &found {
            self.add(pid)?;
            // one that has just ended has nothing to be seen
            let _ = self.mappings.read(pid);
        }
        Ok(found)
    }

    /// Chooses what to probe in the processes that were named or started.
    fn find_allocators(
        &mut self,
        target: &Traced,
        candidates: &[Candidate],
    ) -> Result<Vec<ObjectPlan>> {
        let first = target.pids().first().copied();
        let own = &self.options.own_functions;
        let (probing, symbolizer) = (&self.probing, &self.symbolizer);
        let reach = probing::reach(first.filter(|_| !self.many));
        let debug =
            |file: &Opened, known_as: &Path| symbolizer.debug_file(first?, file, known_as, reach);
        probing
            .discover(candidates, true, own, &debug)
            .or_else(|error| {
                wait::pause(SETTLING);
                match target.look_again(&mut self.mappings) {
                    Some(candidates) => probing.discover(&candidates, true, own, &debug),
                    None => Err(error),
                }
            })
    }

    /// Whether what allocates may still come, where the first program has nothing: what the user names must be there.
    fn may_come_later(&self, target: &Traced) -> bool {
        let options = self.options;
        let named = options.object.is_some()
            || !options.own_functions.is_empty()
            || !options.symbols_prefix.is_empty();
        !named && (self.many || target.is_held())
    }

    /// What a program will probably allocate with that another one is to execute: the machine's own libc.
    fn likely_allocators(&self) -> Vec<ObjectPlan> {
        let libc = own_libc();
        let found = self.probing.discover(&libc, true, &[], &|_, _| None);
        found.unwrap_or_default()
    }

    /// Probes what processes map that were not named. Where there are none yet, those to come will mostly have the
    /// machine's own libc, which is what a shell has.
    fn probe_others(&mut self, found: &[u32]) -> Result<()> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for &pid in found {
            candidates.extend(probing::candidates(&self.mappings.objects(pid)));
        }
        if self.scope == Scope::Each {
            self.unwinding.foresee(&mut self.tracer, &candidates)?;
            let now_ns = monotonic_ns();
            for pid in self.processes.living().collect::<Vec<_>>() {
                self.follow(pid, Vec::new(), now_ns);
            }
            return Ok(());
        }
        if self.many && self.options.object.is_none() {
            candidates.extend(own_libc());
        }
        if !candidates.is_empty() {
            self.unwinding.foresee(&mut self.tracer, &candidates)?;
            self.unwinding
                .watch_linker(&mut self.tracer, &candidates, None);
        }
        let first = found.first().copied();
        let own = &self.options.own_functions;
        let plans = self
            .probing
            .discover(&candidates, true, own, &|file, known_as| {
                self.symbolizer
                    .debug_file(first?, file, known_as, probing::reach(None))
            });
        // for those that were named there are probes already
        let plans = match matches!(self.options.target, TargetOption::Chosen(_)) {
            true => plans?,
            false => plans.unwrap_or_default(),
        };
        for object in plans {
            match self.tracer.refusal(&object) {
                Some(why) => say!("warning: {why}"),
                None => self
                    .probing
                    .attach(&mut self.tracer, &self.mappings, &object, None)?,
            }
        }
        for pid in self.processes.living() {
            self.probing.know(&self.mappings, pid);
        }
        Ok(())
    }

    /// BCC's first line.
    pub(super) fn announce(&mut self, target: &Traced) -> Result<()> {
        if let TargetOption::Command(words) = &self.options.target {
            let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            let words = words.join(" ");
            self.reporter.say(&format!(
                "Executing '{words}' and tracing the resulting process."
            ))?;
        }
        let pids: Vec<String> = target.pids().iter().map(u32::to_string).collect();
        let whom = match (&self.options.target, pids.as_slice()) {
            (TargetOption::Chosen(choice), _) => self.describe_choice(choice),
            (_, [pid]) => format!("pid {pid}"),
            (_, pids) => format!("pids {}", pids.join(", ")),
        };
        self.reporter
            .say(&format!("Attaching to {whom}, Ctrl+C to quit."))?;
        if !target.is_finite() && self.processes.have_ended() {
            say!("there is no such process yet: waiting for one");
        }
        Ok(())
    }

    fn describe_choice(&self, choice: &Choice) -> String {
        let folders: Vec<String> = self
            .chosen
            .folders()
            .map(|folder| folder.display().to_string())
            .collect();
        match choice {
            Choice::Names { patterns, .. } => format!("processes called {}", patterns.join(", ")),
            Choice::Cgroups(_) => format!("the processes of {}", folders.join(", ")),
            Choice::Containers(ids) => {
                format!(
                    "the processes of container {} ({})",
                    ids.join(", "),
                    folders.join(", ")
                )
            }
            Choice::All => "all processes".to_owned(),
        }
    }
}

/// What it took to load programs and to read tables is not needed again: glibc keeps it unless it is asked.
#[allow(unsafe_code)] // there is no other way to ask
fn give_memory_back() {
    // SAFETY: it takes no pointer, and may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// The libc that most programs of this machine have: a shell's.
fn own_libc() -> Vec<Candidate> {
    let objects = objects_of_command(Path::new("/bin/sh")).unwrap_or_default();
    objects.into_iter().map(Candidate::named).collect()
}
