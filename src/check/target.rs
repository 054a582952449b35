//! What tracing one process would be like: whether it can be, what would be probed, how stacks and names will be.
//! Reads only.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Fact;
use crate::discovery::{Candidate, ObjectPlan, Wanted, discover, go_program, takes_stacks};
use crate::files::{Opened, proc};
use crate::probes::{ProbeAt, Search};
use crate::process::{Mappings, Process, name, translators};
use crate::reader;
use crate::session;
use crate::symbolize::{Naming, Reach, Symbolizer};

/// Files that are open at the same time.
const OPEN_FILES: usize = 32;

/// Objects that a line names at the most.
const MOST_NAMED: usize = 4;

pub fn facts(pid: u32) -> Vec<Fact> {
    let process = match Process::open(pid) {
        Ok(process) => process,
        Err(error) => return vec![Fact::failed("process", format!("{error:#}"))],
    };
    let mut facts = vec![identity(pid)];
    if let Some(translator) = translators::translator(pid) {
        facts.push(Fact::failed(
            "translator",
            format!("it runs in {translator}, which would die of probes"),
        ));
        return facts;
    }
    facts.extend(state(&process, pid));
    let mut mappings = Mappings::default();
    if let Err(error) = mappings.read(pid) {
        facts.push(Fact::failed("mappings", format!("{error:#}")));
        return facts;
    }
    let objects = mappings.objects(pid);
    let candidates = session::candidates(&objects);
    let mut symbolizer = match Symbolizer::new(&Naming::default()) {
        Ok(symbolizer) => symbolizer,
        Err(error) => {
            facts.push(Fact::failed("names", format!("{error:#}")));
            return facts;
        }
    };
    symbolizer.add(pid, None);
    facts.extend(allocators(&symbolizer, pid, &candidates));
    facts.extend(runtimes(&candidates));
    facts.push(stacks(&candidates));
    facts.push(names(&symbolizer, pid, &candidates));
    facts
}

fn identity(pid: u32) -> Fact {
    let program = std::fs::read_link(format!("/proc/{pid}/exe"));
    let program = program.map_or_else(|_| String::new(), |path| format!(", {}", path.display()));
    let name = name(pid).unwrap_or_default();
    Fact::ok("process", format!("{name}{program}"))
}

fn state(process: &Process, pid: u32) -> Vec<Fact> {
    let mut facts = Vec::new();
    let stat = proc::text(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    if let Some(state @ ("T" | "t")) = fields.split_whitespace().next() {
        facts.push(Fact::note(
            "state",
            match state {
                "T" => "it is stopped: nothing is seen until it goes on",
                _ => "a debugger has stopped it: nothing is seen until it goes on",
            },
        ));
    }
    if process.filters_system_calls() {
        facts.push(Fact::note(
            "seccomp",
            "it filters its system calls; where that and this kernel's return probes do not go together, it is refused",
        ));
    }
    facts
}

fn allocators(symbolizer: &Symbolizer, pid: u32, candidates: &[Candidate]) -> Vec<Fact> {
    let debug =
        |file: &Opened, known_as: &Path| symbolizer.debug_file(pid, file, known_as, Reach::Process);
    let wanted = Wanted {
        object: None,
        search: Search {
            prefix: "",
            mappings: true,
            at: ProbeAt::Cheapest,
        },
        all: true,
        own: &[],
        debug_file: &debug,
    };
    match discover(candidates, &wanted) {
        Ok(plans) => plans.iter().map(allocator).collect(),
        Err(error) => vec![Fact::failed("allocator", format!("{error:#}"))],
    }
}

fn allocator(object: &ObjectPlan) -> Fact {
    let mut families: Vec<&str> = object
        .plan
        .probes
        .iter()
        .map(|probe| &*probe.allocator)
        .collect();
    families.sort_unstable();
    families.dedup();
    let functions = object.plan.probes.len();
    Fact::ok(
        "allocator",
        format!(
            "{} in {}: {functions} functions would be probed",
            families.join(", "),
            object.shown.display()
        ),
    )
}

/// What is mapped that has a heap, or stacks, of its own.
fn runtimes(candidates: &[Candidate]) -> Vec<Fact> {
    let mut facts = Vec::new();
    if go_program(candidates).is_some() {
        facts.push(Fact::note(
            "language",
            "Go: only what its C code allocates is seen, Go's own heap is pprof's",
        ));
    }
    if let Some((path, tool)) = takes_stacks(candidates) {
        facts.push(Fact::note(
            "sanitizers",
            format!(
                "{} brings {tool}, whose own stack traces would show memleak's probes",
                path.display()
            ),
        ));
    }
    facts
}

fn stacks(candidates: &[Candidate]) -> Fact {
    let open = |candidate: &Candidate| candidate.open().ok()?.file().try_clone().ok();
    let code: Vec<_> = candidates
        .chunks(OPEN_FILES)
        .flat_map(|some| reader::code(some.iter().map(open).collect(), &mut |_, _: Duration| {}))
        .collect();
    let without: Vec<&PathBuf> = candidates
        .iter()
        .zip(&code)
        .filter(|(_, code)| code.table.is_none())
        .map(|(candidate, _)| &candidate.shown)
        .collect();
    let count = candidates.len();
    match without.is_empty() {
        true => Fact::ok(
            "stacks",
            format!("all {count} objects that it maps have unwind tables"),
        ),
        false => Fact::note(
            "stacks",
            format!(
                "{} of {count} objects have no unwind tables and are walked by frame pointers: {}",
                without.len(),
                list(&without)
            ),
        ),
    }
}

/// Where lines and the names of static functions come from.
fn names(symbolizer: &Symbolizer, pid: u32, candidates: &[Candidate]) -> Fact {
    let has_lines = |candidate: &Candidate| {
        candidate.open().is_ok_and(|file| {
            let facts = reader::facts(file.file());
            facts.is_some_and(|facts| facts.has_debug_info)
                || symbolizer
                    .debug_file(pid, &file, &candidate.shown, Reach::Process)
                    .is_some()
        })
    };
    let without: Vec<&PathBuf> = candidates
        .iter()
        .filter(|candidate| !has_lines(candidate))
        .map(|candidate| &candidate.shown)
        .collect();
    let count = candidates.len();
    match without.is_empty() {
        true => Fact::ok(
            "names",
            "all objects have debug information: files and lines",
        ),
        false => Fact::note(
            "names",
            format!(
                "{} of {count} objects have no debug information, so no files and lines: {}",
                without.len(),
                list(&without)
            ),
        ),
    }
}

fn list(paths: &[&PathBuf]) -> String {
    let mut shown: Vec<String> = paths
        .iter()
        .take(MOST_NAMED)
        .map(|path| path.display().to_string())
        .collect();
    if paths.len() > MOST_NAMED {
        shown.push("…".to_owned());
    }
    shown.join(", ")
}
