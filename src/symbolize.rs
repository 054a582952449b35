//! From addresses to frames with names, by way of the mappings that were there. The only user of blazesym.
//! Each place in a file is looked up once, however often reports show it.

mod debug_files;
mod kernel;
mod perf_map;
mod separate;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use blazesym::helper::read_elf_build_id;
use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer as Resolver};

pub use debug_files::DebugFiles;
pub use kernel::KernelSymbols;

use debug_files::{Segment, segments};
use perf_map::PerfMap;
use separate::Folders;

use crate::options::Naming;
use crate::report::{Frame, Function, Location, Module};
use crate::snapshot::Stack;
use crate::target::{Mappings, ObjectFile};

/// Where blazesym follows links in debug information itself.
const DEBUG_FOLDERS: [&str; 2] = ["/usr/lib/debug", "/lib/debug"];

/// The module of code that a process has generated.
const GENERATED: &str = "[jit]";

/// Resolves the addresses of processes, and remembers.
pub struct Symbolizer {
    resolver: Resolver,
    /// Those that the user names.
    named_dirs: Vec<PathBuf>,
    debug_dirs: Vec<PathBuf>,
    inlines: bool,
    /// What is below the folders that the user names.
    debug_files: Vec<DebugFiles>,
    processes: HashMap<u32, Process>,
    generated_module: Arc<Module>,
    /// By the objects' numbers.
    modules: HashMap<usize, KnownModule>,
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
    module: Arc<Module>,
    path: Option<PathBuf>,
    debug: Vec<PathBuf>,
    /// Where offsets in the file are in its address space, for the files in `debug` know addresses only.
    segments: Vec<Segment>,
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
        let usual = DEBUG_FOLDERS.iter().map(PathBuf::from);
        let debug_dirs: Vec<PathBuf> = naming.debug_dirs.iter().cloned().chain(usual).collect();
        Ok(Self {
            resolver: resolver(&debug_dirs, !naming.no_inlines),
            named_dirs: naming.debug_dirs.clone(),
            debug_dirs,
            inlines: !naming.no_inlines,
            processes: HashMap::new(),
            generated_module: Arc::new(Module {
                path: PathBuf::from(GENERATED),
                build_id: None,
            }),
            debug_files,
            modules: HashMap::new(),
        })
    }

    /// Takes hold of the root of a living process. One that was forked shares its parent's, at first.
    pub fn add(&mut self, pid: u32, parent: Option<u32>) {
        let inherited = parent
            .and_then(|parent| self.processes.get(&parent))
            .map(|parent| Rc::clone(&parent.folders));
        let folders =
            inherited.unwrap_or_else(|| Rc::new(Folders::new(self.named_dirs.clone(), pid)));
        let process = Process {
            generated: PerfMap::of(pid, folders.roots()),
            folders,
            stale: true,
        };
        self.processes.insert(pid, process);
    }

    /// Lets go of a process.
    pub fn remove(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }

    /// Lets go of what was found in objects, by their numbers: nobody maps them any more.
    pub fn forget_objects(&mut self, objects: impl Iterator<Item = usize>) {
        for object in objects {
            self.modules.remove(&object);
        }
    }

    /// The file with the debug information of `file`, which a process knows by a path; none when `file` has its own, or
    /// when there is none.
    pub fn debug_file(&self, pid: u32, file: &Path, known_as: &Path) -> Option<PathBuf> {
        let folders = &self.processes.get(&pid)?.folders;
        let build_id = read_elf_build_id(file).ok().flatten();
        folders.find(file, known_as, build_id.as_deref())
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
        self.resolver = resolver(&self.debug_dirs, self.inlines);
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
        stack
            .iter()
            .filter_map(|address| self.frame(mappings, pid, *address, at_ns))
            .collect()
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
        let folders = self.processes.get(&pid).map(|process| &*process.folders);
        let known = self
            .modules
            .entry(mapping.object.id)
            .or_insert_with(|| KnownModule::new(&mapping.object, folders, &self.debug_files));
        let offset = mapping.file_offset(call);
        if !known.places.contains_key(&offset) {
            let place = known.resolve(&self.resolver, offset);
            known.places.insert(offset, place);
        }
        let place = known.places.get(&offset).cloned().unwrap_or_default();
        let frame = Frame {
            address,
            module: Some(Arc::clone(&known.module)),
            file_offset: known.path.is_some().then(|| mapping.file_offset(address)),
            function: place.function,
            function_offset: place.offset,
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

fn resolver(debug_dirs: &[PathBuf], inlines: bool) -> Resolver {
    Resolver::builder()
        .enable_code_info(true)
        .enable_inlined_fns(inlines)
        .enable_demangling(true)
        .set_debug_dirs(Some(debug_dirs))
        .build()
}

impl KnownModule {
    fn new(object: &ObjectFile, folders: Option<&Folders>, debug_files: &[DebugFiles]) -> Self {
        let path = object.openable_path();
        let build_id = path
            .as_ref()
            .and_then(|path| read_elf_build_id(path).ok().flatten());
        let build_id = build_id.map(std::borrow::Cow::into_owned);
        let named = build_id.iter().flat_map(|build_id| {
            debug_files
                .iter()
                .flat_map(|files| files.paths(build_id))
                .cloned()
        });
        let found = path
            .as_deref()
            .and_then(|path| folders?.find(path, &object.path, build_id.as_deref()));
        let debug: Vec<PathBuf> = named.chain(found).collect();
        let segments = match (&path, debug.is_empty()) {
            (Some(path), false) => segments(path).unwrap_or_default(),
            _ => Vec::new(),
        };
        let module = Module {
            path: match path {
                // generated code, as /proc/PID/maps and as perf's events name it
                None if matches!(object.path.to_str(), Some("" | "//anon")) => "[anon]".into(),
                _ => object.path.clone(),
            },
            build_id,
        };
        Self {
            module: Arc::new(module),
            path,
            debug,
            segments,
            places: HashMap::new(),
        }
    }

    /// Looks up a place in the file: in debug information that lies apart, in its own, in its symbols. What can't be
    /// read, or is damaged, stays unknown.
    fn resolve(&self, resolver: &Resolver, offset: u64) -> Place {
        let Some(path) = &self.path else {
            return Place::default();
        };
        let address = self
            .segments
            .iter()
            .find_map(|segment| segment.address_of(offset));
        let apart = address.and_then(|address| {
            self.debug
                .iter()
                .find_map(|debug| look_up(resolver, Elf::new(debug), Input::VirtOffset(address)))
        });
        let mut symbols_only = Elf::new(path);
        symbols_only.debug_syms = false;
        apart
            .or_else(|| look_up(resolver, Elf::new(path), Input::FileOffset(offset)))
            .or_else(|| look_up(resolver, symbols_only, Input::FileOffset(offset)))
            .unwrap_or_default()
    }
}

fn look_up(resolver: &Resolver, elf: Elf, input: Input<u64>) -> Option<Place> {
    let plain = Elf {
        debug_syms: false,
        ..elf.clone()
    };
    let symbol = match resolver.symbolize_single(&Source::Elf(elf), input) {
        Ok(Symbolized::Sym(symbol)) => symbol,
        Ok(Symbolized::Unknown(_)) | Err(_) => return None,
    };
    let mut place = place(&symbol);
    // blazesym gives functions that are in several pieces no beginning: the symbol table knows it
    if symbol.addr == 0
        && let Ok(Symbolized::Sym(symbol)) = resolver.symbolize_single(&Source::Elf(plain), input)
    {
        place.offset = symbol.offset as u64 + 1;
    }
    Some(place)
}

fn place(symbol: &Sym<'_>) -> Place {
    let function = |name: &str, code: Option<&CodeInfo<'_>>| Function {
        name: name.to_string(),
        location: code.map(location),
    };
    // blazesym lists them outermost first
    let inlined = symbol.inlined.iter().rev();
    Place {
        function: Some(function(&symbol.name, symbol.code_info.as_deref())),
        offset: symbol.offset as u64 + 1,
        inlined: inlined
            .map(|inlined| function(&inlined.name, inlined.code_info.as_ref()))
            .collect(),
    }
}

fn location(code: &CodeInfo<'_>) -> Location {
    Location {
        file: code.to_path().into_owned(),
        line: code.line,
    }
}
