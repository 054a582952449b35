//! Which of the target's objects hold the allocator, and the functions to probe in each.
//! Reads object files; knows nothing of processes or of how probes are attached.

mod linker;
mod own_traces;

pub use linker::debug_hook;
pub use own_traces::takes_stacks;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::files::{self, Kept, Opened};
use crate::probes::{Inspection, OwnFunction, Plan, Probe, Question, Search};
use crate::reader;
use anyhow::{Context as _, Result, anyhow, bail};

/// The functions to probe in one object.
#[derive(Clone, Debug)]
pub struct ObjectPlan {
    /// The object's file.
    pub file: Arc<Kept>,
    /// The path to show, as the target sees it.
    pub shown: PathBuf,
    /// What the object has.
    pub plan: Plan,
}

/// An object that the target maps.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its file.
    pub file: Arc<Kept>,
    /// The path as the target sees it.
    pub shown: PathBuf,
}

impl Candidate {
    /// An object under a name that the user or memleak itself gives.
    pub fn named(path: PathBuf) -> Self {
        Self {
            file: Kept::named(&path),
            shown: path,
        }
    }

    /// Opens its file.
    ///
    /// # Errors
    /// When it is gone, or no regular file.
    pub fn open(&self) -> Result<Arc<Opened>> {
        let opened = self.file.open();
        opened.with_context(|| format!("failed to open {}", self.shown.display()))
    }
}

/// What to look for.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// The object that the user named, if any: a path, or a library's short name such as `c`.
    pub object: Option<&'a Path>,
    /// What to look for in it.
    pub search: Search<'a>,
    /// Whether the candidates are all that there is, so that Rust's functions serve where they hold nothing else.
    pub all: bool,
    /// Functions to probe as well, in whatever object has them.
    pub own: &'a [OwnFunction],
    /// Finds the file with a stripped object's symbols, given the object and its path as the target sees it.
    pub debug_file: &'a dyn Fn(&Opened, &Path) -> Option<Opened>,
}

/// Chooses among the objects that the target maps, or takes the one that the user named.
///
/// # Errors
/// Fails when no object has an allocator, naming those that were looked at, and the way out.
pub fn discover(candidates: &[Candidate], wanted: &Wanted<'_>) -> Result<Vec<ObjectPlan>> {
    let mut objects = match wanted.object {
        Some(object) => vec![plan_named(&named_object(object, candidates), wanted)?],
        None => discover_all(candidates, wanted)?,
    };
    for function in wanted.own {
        add_own(&mut objects, function, candidates, wanted)?;
    }
    Ok(objects)
}

fn discover_all(candidates: &[Candidate], wanted: &Wanted<'_>) -> Result<Vec<ObjectPlan>> {
    let mut known = HashSet::new();
    let distinct = candidates
        .iter()
        // a file can have several names, such as musl's dynamic linker and its libc
        .filter(|candidate| {
            let identity = candidate.file.identity();
            identity.is_none_or(|identity| known.insert(identity))
        });
    let mut found: Vec<Looked> = Vec::new();
    for candidate in distinct {
        match look(candidate, wanted) {
            Ok(looked) => found.push(looked),
            Err(error) if is_exhausted(&error) => return Err(error),
            // what can't be read is not ELF code: a device, or a file of another format
            Err(_) => {}
        }
    }
    if wanted.all && !found.iter().any(|looked| looked.object.plan.allocates()) {
        for looked in &mut found {
            looked.object.plan.resort();
        }
    }
    let bare = found.iter().find(|looked| looked.bare);
    let bare = bare.map(|looked| looked.object.shown.clone());
    found.retain(|looked| looked.object.plan.allocates());
    if found.is_empty() && wanted.own.is_empty() {
        bail!(nothing_found(candidates, bare.as_deref(), wanted));
    }
    Ok(found.into_iter().map(|looked| looked.object).collect())
}

/// Adds a function of the user's to the object that has it: the one that is named with it, or the first.
fn add_own(
    objects: &mut Vec<ObjectPlan>,
    function: &OwnFunction,
    candidates: &[Candidate],
    wanted: &Wanted<'_>,
) -> Result<()> {
    let named = function.object.as_deref().map(Path::new).or(wanted.object);
    let looked_at = match named {
        Some(object) => vec![named_object(object, candidates)],
        None => candidates.to_vec(),
    };
    let place = |candidate: &Candidate| -> Result<Result<Option<Probe>>> {
        let inspection = inspect(candidate, wanted, std::slice::from_ref(function))?;
        let found = inspection.own.into_iter().next().flatten();
        // C's names have no dots
        if found.is_some() && inspection.is_go && function.name.contains('.') {
            return Ok(Err(anyhow!(
                "{}: {} is a Go function: Go moves stacks, which a probed return would not survive",
                function.option,
                function.name
            )));
        }
        Ok(Ok(found))
    };
    let mut found = None;
    for candidate in &looked_at {
        match place(candidate) {
            Ok(probe) => found = probe?.map(|probe| (candidate, probe)),
            Err(error) if named.is_some() => return Err(error),
            // not an ELF object
            Err(_) => {}
        }
        if found.is_some() {
            break;
        }
    }
    let Some((candidate, probe)) = found else {
        let (option, name) = (function.option, &function.name);
        match &looked_at[..] {
            [one] if named.is_some() => bail!(
                "{option}: {} has no function {name} (names are those of its symbol table)",
                one.shown.display()
            ),
            _ => bail!(
                "{option}: no object of the target has a function {name} (names are those of the \
                 symbol table; name an object that is not mapped yet as OBJECT!{name})"
            ),
        }
    };
    let identity = candidate.file.identity();
    match objects
        .iter_mut()
        .find(|object| object.file.identity() == identity)
    {
        Some(object) => object.plan.add(probe),
        None => {
            let mut object = ObjectPlan {
                file: Arc::clone(&candidate.file),
                shown: candidate.shown.clone(),
                plan: Plan::default(),
            };
            object.plan.add(probe);
            objects.push(object);
        }
    }
    Ok(())
}

/// The target's program, if it is written in Go.
pub fn go_program(candidates: &[Candidate]) -> Option<&Path> {
    let is_go = |candidate: &&Candidate| {
        let file = candidate.open().map_err(|error| error.to_string());
        let found =
            file.and_then(|file| reader::functions(file.file(), None, Question::places(&[])));
        found.is_ok_and(|found| found.is_go && found.is_program)
    };
    // the program comes first, or nearly so
    let program = candidates.iter().take(2).find(is_go)?;
    Some(&program.shown)
}

/// Why no allocator was found, and what to do. `bare` is a static program without symbols, if one was met.
fn nothing_found(candidates: &[Candidate], bare: Option<&Path>, wanted: &Wanted<'_>) -> String {
    if let Some(path) = go_program(candidates) {
        return format!(
            "{} is a Go program without C code: its heap is Go's own, which moves stacks in a way that probes must \
             not meet; use Go's pprof (net/http/pprof)",
            path.display()
        );
    }
    if let Some(path) = bare {
        return format!(
            "{} is statically linked and stripped, so its allocator has no name: install its debug \
             symbols, name their folder with --debug-dir, or run a build that is not stripped",
            path.display()
        );
    }
    let names: Vec<String> = candidates
        .iter()
        .map(|candidate| candidate.shown.display().to_string())
        .collect();
    format!(
        "no object of the target has {}malloc or its kin: name the allocator's object with -O \
         (looked at {})",
        wanted.search.prefix,
        names.join(", ")
    )
}

fn plan_named(named: &Candidate, wanted: &Wanted<'_>) -> Result<ObjectPlan> {
    let Looked { mut object, bare } = look(named, wanted)?;
    if !object.plan.allocates() {
        object.plan.resort();
    }
    if object.plan.allocates() {
        return Ok(object);
    }
    let path = named.shown.display();
    let prefix = wanted.search.prefix;
    match object.plan.probes.first() {
        _ if bare => bail!(nothing_found(&[], Some(&named.shown), wanted)),
        Some(probe) => bail!(
            "{path} has {} but no function that allocates: \
             name the allocator's object with -O, or another prefix with -S",
            probe.name
        ),
        None => bail!(
            "{path} has no {prefix}malloc or its kin: \
             name another object with -O, or another prefix with -S"
        ),
    }
}

/// An object that was looked at.
struct Looked {
    object: ObjectPlan,
    /// It is a whole program, and has no symbols.
    bare: bool,
}

fn look(candidate: &Candidate, wanted: &Wanted<'_>) -> Result<Looked> {
    let inspection = inspect(candidate, wanted, &[])?;
    Ok(Looked {
        object: ObjectPlan {
            file: Arc::clone(&candidate.file),
            shown: candidate.shown.clone(),
            plan: inspection.plan,
        },
        bare: inspection.is_bare,
    })
}

/// Has an object's symbols read, those of its debug file included.
fn inspect(candidate: &Candidate, wanted: &Wanted<'_>, own: &[OwnFunction]) -> Result<Inspection> {
    let name = candidate.shown.file_name().unwrap_or_default();
    let question = Question::functions(&name.to_string_lossy(), wanted.search, own);
    let opened = candidate.open()?;
    let unreadable =
        |why: String| anyhow!(why).context(format!("failed to read {}", candidate.shown.display()));
    let object = opened.file();
    let found = reader::functions(object, None, question.clone()).map_err(unreadable)?;
    // of libraries, what they export is enough, and what they don't is much
    if found.is_stripped
        && (found.is_program || wanted.object.is_some())
        && let Some(debug) = (wanted.debug_file)(&opened, &candidate.shown)
    {
        let debug = debug.file().as_fd();
        return reader::functions(object, Some(debug), question).map_err(unreadable);
    }
    Ok(found)
}

/// Whether there was no descriptor left, which must not look like an object without an allocator.
fn is_exhausted(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(files::is_exhausted)
}

/// `c` and `libc.so.6` mean the target's own; everything else is a path.
fn named_object(object: &Path, candidates: &[Candidate]) -> Candidate {
    let named = Candidate {
        file: Kept::named(object),
        // /proc/PID/exe is not how the file is called
        shown: match object.starts_with("/proc") {
            true => fs::read_link(object).unwrap_or_else(|_| object.to_path_buf()),
            false => object.to_path_buf(),
        },
    };
    let Some(name) = object.to_str().filter(|name| !name.contains('/')) else {
        return named;
    };
    if files::exists(object) {
        return named;
    }
    let library = format!("lib{name}.so");
    let matching = candidates.iter().find(|candidate| {
        let file = candidate
            .shown
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        file == name || file == library || file.starts_with(&format!("{library}."))
    });
    matching.cloned().unwrap_or(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::ProbeAt;

    fn candidate(path: &str) -> Candidate {
        Candidate {
            file: Kept::named(path),
            shown: path.into(),
        }
    }

    fn libc() -> Candidate {
        candidate("/lib/x86_64-linux-gnu/libc.so.6")
    }

    const WANTED: Wanted<'static> = Wanted {
        object: None,
        search: Search {
            prefix: "",
            mappings: true,
            at: ProbeAt::Cheapest,
        },
        all: true,
        own: &[],
        debug_file: &|_, _| None,
    };

    #[test]
    fn the_libc_is_found_among_the_mapped_objects() {
        let found = discover(&[candidate("/bin/true"), libc()], &WANTED).unwrap();
        assert_eq!(found.len(), 1);
        let probes = &found[0].plan.probes;
        let names: Vec<&str> = probes.iter().map(|probe| probe.name.as_str()).collect();
        for name in [
            "malloc",
            "free",
            "realloc",
            "calloc",
            "posix_memalign",
            "munmap",
        ] {
            assert!(names.contains(&name), "{name} not in {names:?}");
        }
        assert!(
            found[0].plan.missing.is_empty(),
            "{:?}",
            found[0].plan.missing
        );
    }

    #[test]
    fn functions_at_one_place_are_probed_once() {
        let found = discover(&[libc()], &WANTED).unwrap();
        let mut sites: Vec<u64> = found[0]
            .plan
            .probes
            .iter()
            .map(crate::probes::Probe::offset)
            .collect();
        sites.sort_unstable();
        sites.dedup();
        assert_eq!(sites.len(), found[0].plan.probes.len());
    }

    #[test]
    fn a_short_name_means_the_targets_own() {
        let wanted = Wanted {
            object: Some(Path::new("c")),
            ..WANTED
        };
        let found = discover(&[candidate("/bin/true"), libc()], &wanted).unwrap();
        assert_eq!(found[0].shown, libc().shown);
    }

    #[test]
    fn a_file_with_two_names_is_probed_once() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("libc.so");
        std::os::unix::fs::symlink(libc().shown, &link).unwrap();
        let found = discover(&[candidate(link.to_str().unwrap()), libc()], &WANTED).unwrap();
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn an_object_without_an_allocator_is_named_with_the_way_out() {
        let error = discover(&[candidate("/bin/true")], &WANTED).unwrap_err();
        assert!(error.to_string().contains("/bin/true"));
        assert!(error.to_string().contains("-O"));
        let wanted = Wanted {
            object: Some(Path::new("/bin/true")),
            ..WANTED
        };
        let error = discover(&[], &wanted).unwrap_err();
        assert!(error.to_string().contains("/bin/true has no malloc"));
    }
}
