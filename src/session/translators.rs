//! Keeps probes out of the way of translators such as valgrind, which die of them: refused as a target, and met with
//! probes in each traced process by itself instead of probes for everyone.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::probing::Scope;
use super::traced::Traced;
use super::wait::monotonic;
use super::{Session, monotonic_ns};
use crate::options::{Choice, Options, TargetOption};
use crate::process::translators::{is_translator, running, translator};
use crate::stderr::say;
use crate::tracer::TranslatorStart;

/// How often it is looked for translators, at the most, while one runs: it takes a look at every process.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Translators that a line names.
const NAMED: usize = 4;

/// Refuses a translator as the target.
///
/// # Errors
/// Names it, and says what to do.
pub fn refuse(target: &Traced, options: &Options) -> Result<()> {
    let is_one = |path: &OsStr| {
        let name = Path::new(path).file_name().unwrap_or_default();
        is_translator(name.as_bytes())
    };
    if let TargetOption::Command(words) = &options.target {
        match words.first().filter(|name| is_one(name)) {
            Some(name) => bail!(
                "{} translates the code of the program that it runs, and would die of the probes in it: \
                 trace the program without it",
                name.display()
            ),
            None => return Ok(()),
        }
    }
    for pid in target.pids() {
        if let Some(name) = translator(pid) {
            bail!(
                "process {pid} runs under {name}, which translates its code and would die of the probes in it: \
                 trace the program without it"
            );
        }
    }
    Ok(())
}

/// Where probes are to go. Into files, for whoever maps them, only where a process that nobody knows yet must be seen from
/// its first instruction, and where no translator runs.
pub fn scope(options: &Options, target: &Traced) -> Scope {
    if !options.many_processes() {
        let first = target.pids().first().copied();
        let only = first.filter(|_| target.keeps_probes());
        return only.map_or(Scope::Everyone, Scope::Only);
    }
    if !grows(options) && target.keeps_probes() {
        return Scope::Each;
    }
    let translators = running();
    if translators.is_empty() {
        if options.verbose {
            say!(
                "probes are put into files for whoever maps them: no translator such as valgrind runs, and should one \
                 begin, they are taken out"
            );
        }
        return Scope::Everyone;
    }
    let named: Vec<String> = translators
        .iter()
        .take(NAMED)
        .map(|(pid, name)| format!("{name} (process {pid})"))
        .collect();
    let more = match translators.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    say!(
        "warning: {}{more} would die of probes for everyone: {}",
        named.join(", "),
        instead(options)
    );
    Scope::Each
}

/// What is done while a translator runs.
fn instead(options: &Options) -> &'static str {
    match suspend(options, Scope::Each) {
        true => {
            "nothing is traced until no translator runs (--comm, --cgroup and -f go on beside it)"
        }
        false => {
            "each traced process has its own, and what a new one does in its first milliseconds is not counted"
        }
    }
}

/// Whether nothing is traced for the time being: of all processes, there are too many to probe one by one.
pub fn suspend(options: &Options, scope: Scope) -> bool {
    scope == Scope::Each && options.target == TargetOption::Chosen(Choice::All)
}

/// Whether processes can come to be traced that are not known yet.
fn grows(options: &Options) -> bool {
    options.follow || !matches!(options.target, TargetOption::Processes(_))
}

impl Session<'_> {
    /// Whether a process is a translator, so that it is left alone.
    pub(super) fn spares(&self, pid: u32) -> bool {
        let Some(name) = translator(pid) else {
            return false;
        };
        say!("process {pid} is left out: it runs under {name}, which would die of probes");
        self.tracer.spare(pid);
        true
    }

    /// Takes in that translators have begun: probes that they would have met are gone already.
    pub(super) fn meet_translators(&mut self) {
        let begun = self.tracer.take_translators();
        for TranslatorStart { pid, name } in &begun {
            if self.processes.contains(*pid) {
                say!(
                    "warning: process {pid} has become {name}, which translates the code that it runs and would die of \
                     probes: it is traced no longer"
                );
            }
            if self.scope == Scope::Everyone {
                say!(
                    "warning: {name} (process {pid}) has begun and would die of probes for everyone: {}",
                    instead(self.options)
                );
            }
        }
        // probes for everyone were dropped, or, where they were about to come, refused
        if !begun.is_empty() && self.scope == Scope::Everyone {
            self.scope = Scope::Each;
            self.probing.forget(None);
            self.unwinding.forget_linkers();
            let now_ns = monotonic_ns();
            for pid in self.processes.living().collect::<Vec<_>>() {
                // for a moment nothing of it was seen
                self.probing.note_late(pid);
                self.follow(pid, Vec::new(), now_ns);
            }
        }
    }

    /// Goes back to probes for everyone, where they are of use, once no translator runs.
    pub(super) fn return_to_everyone(&mut self) -> Result<()> {
        let wanted = self.many && grows(self.options) && self.scope == Scope::Each;
        let now = monotonic();
        if !wanted || now - self.looked_for_translators < LOOK_EVERY {
            return Ok(());
        }
        self.looked_for_translators = now;
        if !running().is_empty() {
            return Ok(());
        }
        self.tracer.forget_translators();
        self.scope = Scope::Everyone;
        self.unwinding.forget_linkers();
        self.probing
            .attach_everywhere(&mut self.tracer, &self.mappings)?;
        let living = self.processes.living().collect();
        self.tracer.detach_from(Some(&living));
        self.probing.forget(Some(&living));
        say!("no translator runs any more: probes are for everyone again");
        Ok(())
    }
}
