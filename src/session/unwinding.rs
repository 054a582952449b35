//! Keeps the unwinder's tables in step with what the target maps.
//! Knows neither the tables' contents nor how mappings are found out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use anyhow::Result;

use super::patched;
use crate::discovery::{Candidate, debug_hook};
use crate::files::Kept;
use crate::model::losses::CutStacks;
use crate::process::{Mapping, Mappings, ObjectFile, Process};
use crate::stderr::say;
use crate::tracer::{Code, CodeMapping, DeferredWalk, Tracer, Unwinder};

/// Processes that the tracer is told of at the most: each takes a quarter of a MiB. In others the unwinder finds its
/// way by asking the kernel, which takes longer.
const MOST_DESCRIBED: usize = 128;

/// Bytes of the vDSO at the most.
const MOST_IMAGE_BYTES: u64 = 1 << 20;

/// What the tracer was told.
#[derive(Default)]
pub struct Unwinding {
    /// By process, the state of its mappings, and the changes that its dynamic linker had made by then.
    told: HashMap<u32, (u64, u32)>,
    /// Device and inode of the dynamic linkers that are watched: in one process, or, with none, in all.
    linkers: HashSet<(Option<u32>, (u64, u64))>,
}

impl Unwinding {
    /// Loads the tables of what a command will map, so that they are there when it does.
    ///
    /// # Errors
    /// Fails when the kernel refuses memory.
    pub fn foresee(&self, tracer: &mut Tracer<'_>, candidates: &[Candidate]) -> Result<()> {
        if !tracer.wants_tables() {
            return Ok(());
        }
        let files = candidates.iter().filter_map(|candidate| {
            Some((candidate.file.identity()?, Arc::clone(&candidate.file)))
        });
        tracer.load_tables(files, report_progress)
    }

    /// Watches the dynamic linker among `candidates`, if there is one, in one process or in all.
    pub fn watch_linker(
        &mut self,
        tracer: &mut Tracer<'_>,
        candidates: &[Candidate],
        pid: Option<u32>,
    ) {
        if !tracer.wants_tables() {
            return;
        }
        let Some((linker, offset)) = debug_hook(candidates) else {
            return;
        };
        if !self.linkers.insert((pid, linker.identity)) {
            return;
        }
        // a process can have ended meanwhile
        if let Err(error) = tracer.watch_linker(&linker.path(), offset, pid)
            && pid.is_none_or(|pid| Process::open(pid).is_ok())
        {
            say!("warning: libraries that take the place of others are noticed late: {error:#}");
        }
    }

    /// Watches where interpreters among `candidates` end code, in the one process that is traced. Without it the programs
    /// look at all code each time, which takes longer.
    pub fn watch_code_ends(
        &self,
        tracer: &mut Tracer<'_>,
        mappings: &Mappings,
        candidates: &[Candidate],
        pid: u32,
    ) {
        for candidate in candidates {
            let Ok(file) = candidate.open() else {
                continue;
            };
            if let Some(offset) = tracer.code_end(file.identity)
                && !patched::is_changed(&file, offset, mappings, pid)
            {
                // a process can have ended meanwhile
                let _ = tracer.watch_code_ends(file.identity, &file.path(), pid);
            }
        }
    }

    /// Reads anew what processes map in which the tracer has met code that it doesn't know. Gives those processes.
    ///
    /// # Errors
    /// Fails when the kernel's reports can't be read.
    pub fn learn(
        &self,
        tracer: &mut Tracer<'_>,
        mappings: &mut Mappings,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<BTreeSet<u32>> {
        let mut unknown = match tracer.wants_tables() {
            true => tracer.take_unknown_code()?,
            false => BTreeSet::new(),
        };
        unknown.retain(|pid| wanted(*pid));
        for pid in &unknown {
            // the process may be gone by now, and with it the need
            let _ = mappings.read(*pid);
        }
        Ok(unknown)
    }

    /// Loads the tables of what a process maps. That is enough where the unwinder can ask for the rest.
    ///
    /// # Errors
    /// Fails when the kernel refuses memory.
    pub fn load(&self, tracer: &mut Tracer<'_>, objects: &[Arc<ObjectFile>]) -> Result<()> {
        if !tracer.wants_tables() {
            return Ok(());
        }
        let files = objects
            .iter()
            .filter_map(|object| Some((object.identity()?, Arc::clone(object.file()?))));
        tracer.load_tables(files, report_progress)
    }

    /// Whether the tracer is told of a process already.
    pub fn knows(&self, pid: u32) -> bool {
        self.told.contains_key(&pid)
    }

    /// No dynamic linker is watched any more.
    pub fn forget_linkers(&mut self) {
        self.linkers.clear();
    }

    /// Processes that have ended have no mappings.
    pub fn forget(&mut self, ended: &BTreeMap<u32, u64>) {
        self.linkers
            .retain(|(pid, _)| pid.is_none_or(|pid| !ended.contains_key(&pid)));
        self.told.retain(|pid, _| !ended.contains_key(pid));
    }

    /// Tells the tracer what a process maps, if that has changed.
    ///
    /// # Errors
    /// Fails when the kernel refuses memory.
    pub fn refresh(
        &mut self,
        tracer: &mut Tracer<'_>,
        mappings: &mut Mappings,
        pid: u32,
    ) -> Result<()> {
        if !tracer.wants_tables() {
            return Ok(());
        }
        // before the mappings: with more changes, what is told here is stale
        let changes = tracer.code_changes(pid)?;
        if changes != self.told.get(&pid).map_or(0, |(_, changes)| *changes) {
            // the process may be gone by now, and with it the need
            let _ = mappings.read(pid);
        }
        let now = (mappings.revision(pid), changes);
        if self.told.get(&pid) == Some(&now) {
            return Ok(());
        }
        if !self.knows(pid) && self.told.len() >= MOST_DESCRIBED {
            return self.load(tracer, &mappings.objects(pid));
        }
        self.told.insert(pid, now);
        let code: Vec<CodeMapping> = mappings.layout(pid).filter_map(code_mapping).collect();
        tracer.set_code(pid, &code, changes, report_progress)
    }
}

/// Finishes walks that waited for tables. All that was mapped before they were made must be known by now.
///
/// # Errors
/// Fails when the kernel refuses memory.
pub fn finish(
    tracer: &mut Tracer<'_>,
    mappings: &Mappings,
    walks: Vec<DeferredWalk>,
) -> Result<()> {
    for walk in walks {
        let (pid, at_ns) = (walk.tgid, walk.time_ns);
        tracer.finish_walk(walk, |address| {
            code_mapping(mappings.find(pid, address, at_ns)?)
        })?;
    }
    Ok(())
}

/// Says that stacks may be incomplete, where tables were wanted and can't be had.
pub fn warn_of_fallback(unwinder: &Unwinder) {
    if let Unwinder::NoTables(why) = unwinder {
        say!(
            "warning: stacks are unwound by frame pointers and may end early: no unwind tables here ({})",
            why.replace('\n', " ")
        );
    }
}

/// Says how stacks are unwound and what that costs.
pub fn describe(tracer: &Tracer<'_>) {
    if !tracer.wants_tables() {
        return say!("unwinding by frame pointers");
    }
    let usage = tracer.table_usage();
    say!(
        "unwinding with tables: {} rows and {} rules of {} files in {} KiB, {} files without",
        usage.rows,
        usage.rules,
        usage.files,
        usage.row_bytes / 1024,
        usage.failed
    );
}

/// Says how many stacks are not whole, and why.
pub fn describe_cut(tracer: &Tracer<'_>, cut: &CutStacks) {
    let by = match tracer.wants_tables() {
        true => "with tables",
        // a chain of frame pointers that ends too early can look like one that ends well
        false => "by frame pointers, which skip callers of code without them",
    };
    let reasons: Vec<String> = cut
        .reasons()
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("{count} {why}"))
        .collect();
    match reasons.is_empty() {
        true => say!("stacks unwound {by}, none cut short"),
        false => say!("stacks unwound {by}, cut short: {}", reasons.join(", ")),
    }
}

fn report_progress(done: usize, all: usize) {
    say!("reading unwind tables: {done} of {all} files");
}

/// None for what no return address should be looked for in: the kernel's pages for uprobes, where the unwinder puts the
/// original return address, and the emulated vsyscall page.
fn code_mapping(mapping: &Mapping) -> Option<CodeMapping> {
    let label = mapping.object.path.as_os_str();
    if label == "[uprobes]" || label == "[vsyscall]" {
        return None;
    }
    let code = match (mapping.object.identity(), mapping.object.file()) {
        (Some(id), Some(file)) => Code::File {
            id,
            file: Arc::clone(file),
        },
        (Some(id), None) => Code::Unreadable { id },
        // the vDSO
        (None, Some(file)) => image(file).map_or(Code::Anonymous, Code::Image),
        (None, None) => Code::Anonymous,
    };
    Some(CodeMapping {
        begin: mapping.range.start,
        end: mapping.range.end,
        file_offset: mapping.offset,
        code,
    })
}

fn image(file: &Arc<Kept>) -> Option<Vec<u8>> {
    let opened = file.open().ok()?;
    let length = usize::try_from(opened.size.min(MOST_IMAGE_BYTES)).ok()?;
    let mut image = vec![0; length];
    opened.file().read_exact_at(&mut image, 0).ok()?;
    Some(image)
}
