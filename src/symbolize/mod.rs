//! From addresses to frames with names, by way of the mappings that were there. What is in files is read by the reader.
//! Each place in a file is looked up once, however often reports show it.

mod debug_files;
pub mod debuginfod;
mod kernel;
mod perf_map;
pub mod resolve;
mod separate;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use anyhow::Result;

pub use debug_files::{DebugFiles, Servers};
pub use kernel::KernelSymbols;

use crate::debuginfo::{Named, NamedPlace, Places};
use debuginfod::{Debuginfod, Part};
use perf_map::PerfMap;
pub use perf_map::parse as perf_map_line;
pub use separate::Reach;
use separate::{DebugFile, Folders, RootId};

use crate::files::{self, Kept, MOST_OBJECT_BYTES, Opened};
use crate::model::report::{Frame, Function, Location, Module};
use crate::model::snapshot::Stack;
use crate::process::{Mapping, Mappings, ObjectFile};
use crate::reader;

/// Places that are looked up with one request.
const MOST_PLACES: usize = 256;

/// The module of code that a process has generated.
const GENERATED: &str = "[jit]";

/// How frames get their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// Whether inlined functions are left out.
    pub no_inlines: bool,
    /// Folders with debug information, besides those that are always looked into.
    pub debug_dirs: Vec<PathBuf>,
    /// Servers to ask for what is nowhere else, besides those of the environment.
    pub debuginfod: Vec<String>,
}

/// Resolves the addresses of processes, and remembers.
pub struct Symbolizer {
    /// The folders with debug information that the user names.
    named_dirs: Vec<PathBuf>,
    inlines: bool,
    /// What is below the folders that the user names.
    debug_files: Vec<DebugFiles>,
    debuginfod: Option<Debuginfod>,
    /// Whether servers may be asked.
    may_download: bool,
    processes: HashMap<u32, Process>,
    generated_module: Arc<Module>,
    /// By the objects' numbers, and the root that debug files may have come from, where it is not memleak's own: what
    /// one process's root holds must not name the code of others.
    modules: HashMap<(usize, Option<RootId>), KnownModule>,
}

/// What a process's names depend on besides the files that it maps.
struct Process {
    /// Where it finds debug information.
    folders: Rc<Folders>,
    generated: PerfMap,
    /// Whether the names of generated code are to be read before they are asked for.
    stale: bool,
}

struct KnownModule {
    object: Weak<ObjectFile>,
    module: Arc<Module>,
    has_file: bool,
    /// Whether neither the file nor another one that was found has debug information.
    lacks_debug_info: bool,
    /// Files with its debug information, below the folders that the user names.
    named: Vec<PathBuf>,
    /// One that was found where the object leads to.
    found: Option<Arc<Kept>>,
    places: HashMap<u64, Place>,
}

/// What is known of a place in a file: the functions, innermost inlined first, and the distance from the
/// first byte of the outermost, in bytes.
#[derive(Clone, Default)]
struct Place {
    function: Option<Function>,
    offset: u64,
    inlined: Vec<Function>,
}

impl Symbolizer {
    /// Knows no process yet. Other files than those below `debug_dirs` are not read before the first address comes.
    ///
    /// # Errors
    /// When one of `debug_dirs` can't be read.
    pub fn new(naming: &Naming) -> Result<Self> {
        let debug_files = naming
            .debug_dirs
            .iter()
            .map(|folder| DebugFiles::below(folder))
            .collect::<Result<_>>()?;
        Ok(Self {
            named_dirs: naming.debug_dirs.clone(),
            inlines: !naming.no_inlines,
            processes: HashMap::new(),
            generated_module: Arc::new(Module {
                path: PathBuf::from(GENERATED),
                build_id: None,
            }),
            debug_files,
            debuginfod: Debuginfod::new(&naming.debuginfod),
            may_download: false,
            modules: HashMap::new(),
        })
    }

    /// Takes hold of the root of a living process. One that was forked shares its parent's, at first.
    pub fn add(&mut self, pid: u32, parent: Option<u32>) {
        let inherited = parent
            .and_then(|parent| self.processes.get(&parent))
            .map(|parent| Rc::clone(&parent.folders));
        let folders = inherited.unwrap_or_else(|| Rc::new(Folders::new(&self.named_dirs, pid)));
        let process = Process {
            generated: PerfMap::of(pid, Rc::clone(&folders)),
            folders,
            stale: true,
        };
        self.processes.insert(pid, process);
    }

    /// Lets go of a process.
    pub fn remove(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }

    /// Lets go of what was found in objects of which nothing is known any more.
    pub fn forget_objects(&mut self) {
        self.modules
            .retain(|_, known| known.object.strong_count() > 0);
    }

    /// The file with the debug information of `file`, which a process knows by a path; none when `file` has its own, or
    /// when there is none that may say something to those that `reach` means.
    pub fn debug_file(
        &self,
        pid: u32,
        file: &Opened,
        known_as: &Path,
        reach: Reach,
    ) -> Option<Opened> {
        let folders = &self.processes.get(&pid)?.folders;
        let facts = reader::facts(file.file())?;
        Some(folders.find(&facts, known_as, reach)?.opened)
    }

    /// Whether servers could be asked for debug information that is nowhere else.
    pub fn has_servers(&self) -> bool {
        self.debuginfod.is_some()
    }

    /// From now on servers are asked: for objects that are known already, and for those to come.
    pub fn download(&mut self) {
        self.may_download = true;
        let Some(debuginfod) = &mut self.debuginfod else {
            return;
        };
        for module in self.modules.values_mut() {
            module.download(debuginfod);
        }
    }

    /// Names of generated code are to be read again.
    pub fn refresh(&mut self) {
        for process in self.processes.values_mut() {
            process.stale = true;
        }
    }

    /// Lets go of the files that were read, which take megabytes. What was found in them is remembered, so a report that
    /// shows the same stacks again needs none of them.
    pub fn rest(&mut self) {
        reader::rest();
    }

    /// Names the frames of a process's stack, given as return addresses, which was captured at a time in ns of
    /// CLOCK_MONOTONIC.
    pub fn frames(
        &mut self,
        mappings: &Mappings,
        pid: u32,
        stack: &Stack,
        at_ns: u64,
    ) -> Vec<Frame> {
        if let Some(process) = self.processes.get_mut(&pid)
            && std::mem::take(&mut process.stale)
        {
            process.generated.refresh();
        }
        self.look_up(mappings, pid, stack, at_ns);
        stack
            .iter()
            .filter_map(|address| self.frame(mappings, pid, *address, at_ns))
            .collect()
    }

    /// Looks up the places of a stack that are not known yet, with one request for each file.
    fn look_up(&mut self, mappings: &Mappings, pid: u32, stack: &Stack, at_ns: u64) {
        let mut wanted: BTreeMap<usize, (&Mapping, Vec<u64>)> = BTreeMap::new();
        for address in stack.iter() {
            let call = address.saturating_sub(1);
            let Some(mapping) = mappings.find(pid, call, at_ns) else {
                continue;
            };
            let offset = mapping.file_offset(call);
            let known = self.module(pid, mapping);
            if known.has_file && !known.places.contains_key(&offset) {
                let (_, offsets) = wanted
                    .entry(mapping.object.id)
                    .or_insert_with(|| (mapping, Vec::new()));
                offsets.push(offset);
            }
        }
        let inlines = self.inlines;
        for (mapping, mut offsets) in wanted.into_values() {
            offsets.sort_unstable();
            offsets.dedup();
            for offsets in offsets.chunks(MOST_PLACES) {
                let file = mapping.object.open();
                self.module(pid, mapping).look_up(file, offsets, inlines);
            }
        }
    }

    fn module(&mut self, pid: u32, mapping: &Mapping) -> &mut KnownModule {
        let folders = self.processes.get(&pid).map(|process| &*process.folders);
        self.modules
            .entry((
                mapping.object.id,
                folders.and_then(Folders::foreign).cloned(),
            ))
            .or_insert_with(|| {
                let mut module = KnownModule::new(&mapping.object, folders, &self.debug_files);
                if let Some(debuginfod) = &mut self.debuginfod
                    && self.may_download
                {
                    module.download(debuginfod);
                }
                module
            })
    }

    /// None for what is no frame of the program's: the kernel's return probes.
    fn frame(&mut self, mappings: &Mappings, pid: u32, address: u64, at_ns: u64) -> Option<Frame> {
        // The return address is behind the call, and may belong to the next function: look at the call.
        let call = address.saturating_sub(1);
        let Some(mapping) = mappings.find(pid, call, at_ns) else {
            return Some(self.generated_frame(pid, address).unwrap_or(Frame {
                address,
                ..Frame::default()
            }));
        };
        if mapping.object.path.as_os_str() == "[uprobes]" {
            return None;
        }
        let offset = mapping.file_offset(call);
        let known = self.module(pid, mapping);
        let place = known.places.get(&offset).cloned().unwrap_or_default();
        let frame = Frame {
            address,
            module: Some(Arc::clone(&known.module)),
            file_offset: known.has_file.then(|| mapping.file_offset(address)),
            function: place.function,
            function_offset: place.offset,
            language: None,
            inlined: place.inlined,
        };
        match frame.function {
            Some(_) => Some(frame),
            None => Some(self.generated_frame(pid, address).unwrap_or(frame)),
        }
    }

    /// A frame in code that the process has generated, if its maker has told the name.
    fn generated_frame(&self, pid: u32, address: u64) -> Option<Frame> {
        let generated = &self.processes.get(&pid)?.generated;
        let (name, offset) = generated.find(address.saturating_sub(1))?;
        Some(Frame {
            address,
            module: Some(Arc::clone(&self.generated_module)),
            function: Some(Function {
                name: name.to_owned(),
                location: None,
            }),
            function_offset: offset + 1,
            ..Frame::default()
        })
    }
}

impl KnownModule {
    fn new(
        object: &Arc<ObjectFile>,
        folders: Option<&Folders>,
        debug_files: &[DebugFiles],
    ) -> Self {
        let facts = object.open().and_then(|file| reader::facts(file.file()));
        let build_id = facts.as_ref().and_then(|facts| facts.build_id.clone());
        let named = build_id.iter().flat_map(|build_id| {
            debug_files
                .iter()
                .flat_map(|files| files.paths(build_id))
                .cloned()
        });
        let found = facts
            .as_ref()
            // the names are for those that see the same root
            .and_then(|facts| folders?.find(facts, &object.path, Reach::Process))
            .map(DebugFile::keep);
        let named: Vec<PathBuf> = named.collect();
        let module = Module {
            path: match object.file() {
                // generated code, as /proc/PID/maps and as perf's events name it
                None if matches!(object.path.to_str(), Some("" | "//anon")) => "[anon]".into(),
                _ => object.path.clone(),
            },
            build_id,
        };
        Self {
            object: Arc::downgrade(object),
            module: Arc::new(module),
            has_file: object.file().is_some(),
            lacks_debug_info: facts.is_some_and(|facts| !facts.has_debug_info)
                && named.is_empty()
                && found.is_none(),
            named,
            found,
            places: HashMap::new(),
        }
    }

    /// Gets debug information that is nowhere else; what was found without it is looked up anew.
    fn download(&mut self, debuginfod: &mut Debuginfod) {
        if !std::mem::take(&mut self.lacks_debug_info) {
            return;
        }
        let build_id = self.module.build_id.as_deref();
        if let Some(path) = build_id.and_then(|id| debuginfod.find(id, Part::Debuginfo)) {
            self.named.push(path);
            self.places.clear();
        }
    }

    /// Looks up places in the file: in debug information that lies apart, in its own, in its symbols. What can't be
    /// read, or is damaged, stays unknown.
    fn look_up(&mut self, own: Option<Arc<Opened>>, offsets: &[u64], inlines: bool) {
        let named = self.named.iter();
        let named: Vec<Opened> = named
            .filter_map(|path| files::open(path, MOST_OBJECT_BYTES).ok())
            .collect();
        let found = self.found.as_ref().and_then(|found| found.open().ok());
        let files: Vec<&File> = (own.iter().map(|file| file.file()))
            .chain(named.iter().map(Opened::file))
            .chain(found.iter().map(|file| file.file()))
            .collect();
        let found = reader::names(&files, Places::at_offsets(offsets.to_vec(), inlines));
        for (offset, found) in offsets.iter().zip(found) {
            self.places
                .insert(*offset, found.map(Place::from).unwrap_or_default());
        }
    }
}

impl From<NamedPlace> for Place {
    fn from(found: NamedPlace) -> Self {
        Self {
            function: Some(found.function.into()),
            // the return address is behind the call
            offset: found.offset.saturating_add(1),
            inlined: found.inlined.into_iter().map(Function::from).collect(),
        }
    }
}

impl From<Named> for Function {
    fn from(named: Named) -> Self {
        Self {
            name: named.name,
            location: named.location.map(|(file, line)| Location {
                file: OsString::from_vec(file).into(),
                line,
            }),
        }
    }
}
