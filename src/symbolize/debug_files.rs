//! Names for places in files that are known by their build id: from a folder of unstripped files, long after the run.
//! Live processes and their mappings are the business of the module above.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::debuginfod::{Debuginfod, Part};
use super::resolve::{Place, Resolver};
use crate::debuginfo::{Places, Segment};
use crate::files::{self, MOST_OBJECT_BYTES, Opened};
use crate::model::run::Recording;
use crate::reader;

/// Folders within folders that are looked into.
const DEEPEST: usize = 32;

/// The ELF files below a folder, by build id.
pub struct DebugFiles {
    builds: HashMap<Vec<u8>, Build>,
}

/// The files of one build.
#[derive(Default)]
struct Build {
    paths: Vec<PathBuf>,
    segments: Vec<Segment>,
}

impl DebugFiles {
    /// Finds the files. Those that cannot be read, or are no ELF files, are passed over.
    ///
    /// # Errors
    /// When the folder itself cannot be read.
    pub fn below(folder: &Path) -> Result<DebugFiles> {
        let mut paths = Vec::new();
        list(folder, DEEPEST, &mut paths)
            .with_context(|| format!("failed to read the debug files in {}", folder.display()))?;
        // The order in which a folder lists its files is its own.
        paths.sort();
        let mut builds: HashMap<Vec<u8>, Build> = HashMap::new();
        for path in paths.into_iter().filter(|path| is_elf(path)) {
            let facts = files::open(&path, MOST_OBJECT_BYTES)
                .ok()
                .and_then(|file| reader::facts(file.file()));
            if let Some(facts) = facts
                && let Some(build_id) = facts.build_id
            {
                let build = builds.entry(build_id).or_default();
                build.segments.extend(facts.segments);
                build.paths.push(path);
            }
        }
        Ok(DebugFiles { builds })
    }

    /// The files of a build.
    pub fn paths(&self, build_id: &[u8]) -> &[PathBuf] {
        self.builds.get(build_id).map_or(&[], |build| &build.paths)
    }
}

/// The builds of a recording, from debuginfod servers.
pub struct Servers {
    debuginfod: Debuginfod,
    /// Where each build was when it was traced.
    places: HashMap<Vec<u8>, PathBuf>,
    builds: HashMap<Vec<u8>, Option<Build>>,
}

impl Servers {
    /// None when no server is named.
    pub fn new(named: &[String], recording: &Recording) -> Option<Self> {
        let stacks = recording.stacks.iter();
        let frames = stacks.flat_map(|stack| stack.frames.iter().flatten());
        let modules = frames.filter_map(|frame| frame.module.as_ref());
        let places = modules
            .filter_map(|module| Some((module.build_id.clone()?, module.path.clone())))
            .collect();
        Some(Self {
            debuginfod: Debuginfod::new(named)?,
            places,
            builds: HashMap::new(),
        })
    }
}

impl Resolver for Servers {
    fn resolve(&mut self, build_id: &[u8], file_offset: u64) -> Option<Place> {
        let (debuginfod, places) = (&mut self.debuginfod, &self.places);
        let build = self.builds.entry(build_id.to_vec()).or_insert_with(|| {
            let path = debuginfod.find(build_id, Part::Debuginfo)?;
            // its segments say which address is at an offset: those of the file itself, if it is still there
            let local = places
                .get(build_id)
                .and_then(|path| segments(path, build_id));
            let segments = local.or_else(|| {
                let executable = debuginfod.find(build_id, Part::Executable)?;
                segments(&executable, build_id)
            })?;
            Some(Build {
                paths: vec![path],
                segments,
            })
        });
        build.as_ref()?.resolve(file_offset)
    }
}

/// The segments of a file, if it is of a build.
fn segments(path: &Path, build_id: &[u8]) -> Option<Vec<Segment>> {
    let file = files::open(path, MOST_OBJECT_BYTES).ok()?;
    let facts = reader::facts(file.file())?;
    (facts.build_id.as_deref() == Some(build_id)).then_some(facts.segments)
}

impl Resolver for DebugFiles {
    fn resolve(&mut self, build_id: &[u8], file_offset: u64) -> Option<Place> {
        self.builds.get(build_id)?.resolve(file_offset)
    }
}

impl Build {
    fn resolve(&self, file_offset: u64) -> Option<Place> {
        // The return address is behind the call, and may belong to the next function: look at the call.
        let call = file_offset.checked_sub(1)?;
        // A file with debug information only has no contents, and so no offsets: the stripped one beside it does.
        let address = self
            .segments
            .iter()
            .find_map(|segment| segment.address_of(call))?;
        let files: Vec<fs::File> = self
            .paths
            .iter()
            .filter_map(|path| files::open(path, MOST_OBJECT_BYTES).ok())
            .map(Opened::into_file)
            .collect();
        let found = reader::names(&files, Places::at_addresses(vec![address]));
        let place = super::Place::from(found.into_iter().next()??);
        Some(Place {
            function: place.function?,
            function_offset: place.offset,
            inlined: place.inlined,
        })
    }
}

fn list(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 0 {
            // What may not be read below the folder does not hide what may.
            let _ = list(&entry.path(), depth - 1, paths);
        } else if kind.is_file() || kind.is_symlink() {
            paths.push(entry.path());
        }
    }
    Ok(())
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    files::open(path, MOST_OBJECT_BYTES)
        .and_then(|file| file.into_file().read_exact(&mut magic))
        .is_ok()
        && magic == *b"\x7fELF"
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use object::{Object as _, ObjectSymbol as _};

    use super::*;

    const SOURCE: &str = "\
static inline __attribute__((always_inline)) int twice(int x) { return __builtin_abs(x) * 2; }
__attribute__((noinline)) int outer(int x) {
    return twice(x) + 1;
}
int main(int argc, char **argv) { (void)argv; return outer(argc); }
";

    fn run(program: &str, arguments: &[&str], folder: &Path) {
        let status = Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .status()
            .unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    }

    /// A build with its stripped and debug-only files; gives the build id and the offset of `outer`.
    fn build(folder: &Path) -> (Vec<u8>, u64) {
        fs::write(folder.join("a.c"), SOURCE).unwrap();
        run(
            "cc",
            &["-g", "-O1", "-Wl,--build-id", "-o", "a", "a.c"],
            folder,
        );
        let data = fs::read(folder.join("a")).unwrap();
        let file = object::File::parse(&*data).unwrap();
        let outer = file
            .symbols()
            .find(|symbol| symbol.name() == Ok("outer"))
            .unwrap()
            .address();
        // Where offsets and addresses differ, this would have to be the offset.
        let segments = crate::debuginfo::segments(&data).unwrap();
        assert_eq!(
            segments
                .iter()
                .find_map(|segment| segment.address_of(outer)),
            Some(outer)
        );
        (file.build_id().unwrap().unwrap().to_vec(), outer)
    }

    fn check(folder: &Path, build_id: &[u8], offset: u64) {
        let mut files = DebugFiles::below(folder).unwrap();
        let place = files.resolve(build_id, offset + 1).unwrap();
        assert_eq!(
            (place.function.name.as_str(), place.function_offset),
            ("outer", 1)
        );
        let location = place.function.location.unwrap();
        assert!(location.file.ends_with("a.c"), "{location:?}");
        assert_eq!(files.resolve(&[1, 2, 3], offset + 1), None);
        assert_eq!(files.resolve(build_id, u64::MAX), None);
        assert_eq!(files.resolve(build_id, 0), None);
    }

    #[test]
    fn places_are_named_from_an_unstripped_file_or_a_stripped_one_with_its_debug_information() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (build_id, outer) = build(folder);
        check(folder, &build_id, outer);

        fs::create_dir_all(folder.join("split/debug")).unwrap();
        run(
            "objcopy",
            &["--only-keep-debug", "a", "split/debug/a.debug"],
            folder,
        );
        run("strip", &["-o", "split/stripped", "a"], folder);
        check(&folder.join("split"), &build_id, outer);

        let mut stripped_only = DebugFiles::below(&folder.join("split/debug")).unwrap();
        assert_eq!(
            stripped_only.resolve(&build_id, outer + 1),
            None,
            "offsets cannot be known"
        );
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_and_foreign_files_are_not() {
        assert!(DebugFiles::below(Path::new("/no/such/folder")).is_err());
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("text"), "hello").unwrap();
        fs::write(folder.path().join("damaged"), "\x7fELF\x02\x01\x01").unwrap();
        assert!(DebugFiles::below(folder.path()).unwrap().builds.is_empty());
    }
}
