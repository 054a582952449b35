//! Which of the target's objects hold the allocator, and the functions to probe in each.
//! Reads object files; knows nothing of processes or of how probes are attached.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use memmap2::Mmap;

use super::{Plan, Search, plan};

/// The functions to probe in one object.
#[derive(Clone, Debug)]
pub struct ObjectPlan {
    /// A path that leads to the object's file.
    pub path: PathBuf,
    /// The path to show, as the target sees it.
    pub shown: PathBuf,
    /// What the object has.
    pub plan: Plan,
}

/// An object that the target maps.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// A path that leads to its file.
    pub path: PathBuf,
    /// The path as the target sees it.
    pub shown: PathBuf,
}

/// What to look for.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The object that the user named, if any: a path, or a library's short name such as `c`.
    pub object: Option<&'a Path>,
    /// What to look for in it.
    pub search: Search<'a>,
}

/// Chooses among the objects that the target maps, or takes the one that the user named.
///
/// # Errors
/// Fails when no object has an allocator, naming those that were looked at, and the way out.
pub fn discover(candidates: &[Candidate], wanted: &Wanted<'_>) -> Result<Vec<ObjectPlan>> {
    if let Some(object) = wanted.object {
        let named = named_object(object, candidates);
        let found = plan_object(&named, wanted)?;
        if found.plan.probes.is_empty() {
            bail!(
                "{} has no {}malloc or its kin: \
                 name another object with -O, or another prefix with -S",
                named.shown.display(),
                wanted.search.prefix
            );
        }
        return Ok(vec![found]);
    }
    let found: Vec<ObjectPlan> = candidates
        .iter()
        // what can't be read is not ELF code: a device, or a file of another format
        .filter_map(|candidate| plan_object(candidate, wanted).ok())
        .filter(|object| object.plan.allocates())
        .collect();
    if found.is_empty() {
        let names: Vec<String> = candidates
            .iter()
            .map(|candidate| candidate.shown.display().to_string())
            .collect();
        bail!(
            "no object of the target has {}malloc or its kin: name the allocator's object with -O \
             (looked at {})",
            wanted.search.prefix,
            names.join(", ")
        );
    }
    Ok(found)
}

fn plan_object(candidate: &Candidate, wanted: &Wanted<'_>) -> Result<ObjectPlan> {
    let data = map_file(&candidate.path)?;
    let plan = plan(&data, wanted.search)
        .with_context(|| format!("failed to read {}", candidate.shown.display()))?;
    Ok(ObjectPlan {
        path: candidate.path.clone(),
        shown: candidate.shown.clone(),
        plan,
    })
}

/// `c` and `libc.so.6` mean the target's own; everything else is a path.
fn named_object(object: &Path, candidates: &[Candidate]) -> Candidate {
    let named = Candidate {
        path: object.to_path_buf(),
        shown: object.to_path_buf(),
    };
    let Some(name) = object.to_str().filter(|name| !name.contains('/')) else {
        return named;
    };
    if object.exists() {
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

#[allow(unsafe_code)] // mapping is what keeps large objects out of memory
fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
    // SAFETY: the file is mapped read-only. Should somebody truncate an object that is in use, the target
    // itself would crash as well.
    unsafe { Mmap::map(&file) }.with_context(|| format!("failed to map {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::ProbeAt;
    use super::*;

    fn candidate(path: &str) -> Candidate {
        Candidate {
            path: path.into(),
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
