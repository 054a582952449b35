//! From addresses to frames with names, by way of the mappings that were there. The only user of blazesym.
//! Each place in a file is looked up once, however often reports show it.

mod debug_files;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use blazesym::helper::read_elf_build_id;
use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer as Resolver};

pub use debug_files::DebugFiles;

use crate::report::{Frame, Function, Location, Module};
use crate::snapshot::Stack;
use crate::target::{Mappings, ObjectFile};

/// Resolves addresses, and remembers.
pub struct Symbolizer {
    resolver: Resolver,
    /// By the objects' numbers.
    modules: HashMap<usize, KnownModule>,
}

struct KnownModule {
    module: Arc<Module>,
    path: Option<PathBuf>,
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
    /// Nothing is read before the first address comes.
    pub fn new() -> Self {
        let resolver = Resolver::builder()
            .enable_code_info(true)
            .enable_inlined_fns(true)
            .enable_demangling(true)
            .build();
        Self {
            resolver,
            modules: HashMap::new(),
        }
    }

    /// Names the frames of a process's stack, given as return addresses.
    pub fn frames(&mut self, mappings: &Mappings, pid: u32, stack: &Stack) -> Vec<Frame> {
        stack
            .iter()
            .map(|address| self.frame(mappings, pid, *address))
            .collect()
    }

    fn frame(&mut self, mappings: &Mappings, pid: u32, address: u64) -> Frame {
        // The return address is behind the call, and may belong to the next function: look at the call.
        let call = address.saturating_sub(1);
        let Some(mapping) = mappings.find(pid, call) else {
            return Frame {
                address,
                ..Frame::default()
            };
        };
        let known = self
            .modules
            .entry(mapping.object.id)
            .or_insert_with(|| KnownModule::new(&mapping.object));
        let offset = mapping.file_offset(call);
        let resolver = &self.resolver;
        let path = known.path.as_deref();
        let place = known.places.entry(offset).or_insert_with(|| {
            path.map_or_else(Place::default, |path| resolve(resolver, path, offset))
        });
        Frame {
            address,
            module: Some(Arc::clone(&known.module)),
            file_offset: path.is_some().then(|| mapping.file_offset(address)),
            function: place.function.clone(),
            function_offset: place.offset,
            inlined: place.inlined.clone(),
        }
    }
}

impl KnownModule {
    fn new(object: &ObjectFile) -> Self {
        let path = object.openable_path();
        let build_id = path
            .as_ref()
            .and_then(|path| read_elf_build_id(path).ok().flatten());
        let module = Module {
            path: object.path.clone(),
            build_id: build_id.map(std::borrow::Cow::into_owned),
        };
        Self {
            module: Arc::new(module),
            path,
            places: HashMap::new(),
        }
    }
}

/// Looks up a place in an ELF file. What can't be read, or is damaged, stays unknown.
fn resolve(resolver: &Resolver, path: &std::path::Path, offset: u64) -> Place {
    let source = Source::Elf(Elf::new(path));
    match resolver.symbolize_single(&source, Input::FileOffset(offset)) {
        Ok(Symbolized::Sym(symbol)) => place(&symbol),
        Ok(Symbolized::Unknown(_)) | Err(_) => Place::default(),
    }
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
