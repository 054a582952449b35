//! What is at places of a file's code: functions, inlined ones, lines of source. The only user of blazesym.
//! Runs in the reader, for files say what they like; which file knows what is found elsewhere.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer as Resolver};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::demangle::{bounded_bytes, demangle};
use super::facts::{Segment, segments};
use super::mini::MiniSymbols;
use crate::limits;

/// Places to be looked up in an object, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Places {
    at: At,
    /// Whether functions that are inlined are wanted.
    inlines: bool,
    /// Whether its symbol table must do.
    simple: bool,
}

/// How places are given.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum At {
    /// Offsets in the first file, in bytes; the others have its debug information.
    Offsets(Vec<u64>),
    /// Addresses, as all of the files number them.
    Addresses(Vec<u64>),
}

/// A function, and the place in its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its name, demangled.
    pub name: String,
    /// The source file's name and the line, counted from 1, as far as they are known.
    pub location: Option<(Vec<u8>, Option<u32>)>,
}

/// What is known of a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPlace {
    /// The function that was compiled to hold it.
    pub function: Named,
    /// Bytes from the function's first to the place.
    pub offset: u64,
    /// The functions that are inlined there, innermost first.
    pub inlined: Vec<Named>,
}

impl Places {
    /// Places in a file, by their offsets in bytes.
    pub fn at_offsets(offsets: Vec<u64>, inlines: bool) -> Self {
        Self {
            at: At::Offsets(offsets),
            inlines,
            simple: false,
        }
    }

    /// Places in files that all number addresses alike.
    pub fn at_addresses(addresses: Vec<u64>) -> Self {
        Self {
            at: At::Addresses(addresses),
            inlines: true,
            simple: false,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let (At::Offsets(places) | At::Addresses(places)) = &self.at;
        places.len()
    }

    /// Has only the symbol table looked up.
    pub fn simplify(&mut self) {
        self.simple = true;
    }

    /// Whether only the symbol table is looked up.
    pub fn is_simple(&self) -> bool {
        self.simple
    }
}

impl NamedPlace {
    /// Whether nothing is larger than it may be.
    pub fn is_sound(&self) -> bool {
        let sound = |named: &Named| {
            let path = named.location.as_ref().map_or(0, |(file, _)| file.len());
            named.name.len() <= limits::NAME && path <= limits::NAME
        };
        sound(&self.function)
            && self.inlined.len() <= limits::INLINED
            && self.inlined.iter().all(sound)
    }
}

/// Looks places up, and remembers what it has read.
#[derive(Default)]
pub struct Namer {
    /// For names with inlined functions, and without.
    resolvers: [Option<Resolver>; 2],
    /// What stripped objects carry themselves, with their segments.
    mini: HashMap<PathBuf, Option<(Vec<Segment>, MiniSymbols)>>,
}

impl Namer {
    /// Looks up places in files that can be opened under paths. What can't be read, or is damaged, stays unknown.
    pub fn look_up(&mut self, files: &[PathBuf], places: &Places) -> Vec<Option<NamedPlace>> {
        let resolver = &*self.resolvers[usize::from(places.inlines)]
            .get_or_insert_with(|| resolver(places.inlines));
        let simple = places.simple;
        match &places.at {
            At::Addresses(addresses) => addresses
                .iter()
                .map(|address| look_up_address(resolver, files, *address, simple))
                .collect(),
            At::Offsets(offsets) => {
                let Some((file, debug)) = files.split_first() else {
                    return vec![None; offsets.len()];
                };
                // files with debug information know addresses only
                let segments = match debug.is_empty() {
                    true => Vec::new(),
                    false => read_segments(file).unwrap_or_default(),
                };
                let mini = self
                    .mini
                    .entry(file.clone())
                    .or_insert_with(|| read_mini(file));
                let carried = |offset| {
                    let (segments, symbols) = mini.as_ref()?;
                    symbols.look_up(address_of(segments, offset)?)
                };
                let place = |offset: &u64| {
                    address_of(&segments, *offset)
                        .and_then(|address| look_up_address(resolver, debug, address, simple))
                        // the exported functions are in none of both tables
                        .or_else(|| carried(*offset))
                        .or_else(|| look_up_offset(resolver, file, *offset, simple))
                };
                offsets.iter().map(place).collect()
            }
        }
    }
}

#[allow(unsafe_code)] // mapping is what keeps large objects out of memory
fn read_segments(path: &Path) -> Option<Vec<Segment>> {
    let file = File::open(path).ok()?;
    // SAFETY: the file is mapped read-only. Should somebody truncate it, the reader ends, which is what it is for.
    let data = unsafe { Mmap::map(&file) }.ok()?;
    segments(&data)
}

/// The address that an object gives to what it has at an offset.
fn address_of(segments: &[Segment], offset: u64) -> Option<u64> {
    segments
        .iter()
        .find_map(|segment| segment.address_of(offset))
}

#[allow(unsafe_code)] // as above
fn read_mini(path: &Path) -> Option<(Vec<Segment>, MiniSymbols)> {
    let file = File::open(path).ok()?;
    // SAFETY: as above: the file is mapped read-only, in the reader.
    let data = unsafe { Mmap::map(&file) }.ok()?;
    Some((segments(&data)?, MiniSymbols::read(&data)?))
}

fn look_up_address(
    resolver: &Resolver,
    files: &[PathBuf],
    address: u64,
    simple: bool,
) -> Option<NamedPlace> {
    let mut files = files.iter();
    files.find_map(|path| look_up(resolver, elf(path, !simple), Input::VirtOffset(address)))
}

/// Looks a place up in a file's own debug information, then in its symbols.
fn look_up_offset(
    resolver: &Resolver,
    path: &Path,
    offset: u64,
    simple: bool,
) -> Option<NamedPlace> {
    let debug = (!simple).then(|| look_up(resolver, elf(path, true), Input::FileOffset(offset)));
    debug
        .flatten()
        .or_else(|| look_up(resolver, elf(path, false), Input::FileOffset(offset)))
}

fn elf(path: &Path, debug: bool) -> Elf {
    let mut elf = Elf::new(path);
    elf.debug_syms = debug;
    elf
}

/// Follows no links to other files, and leaves names as they are.
fn resolver(inlines: bool) -> Resolver {
    Resolver::builder()
        .enable_code_info(true)
        .enable_inlined_fns(inlines)
        .enable_demangling(false)
        .set_debug_dirs(Some([""; 0]))
        .build()
}

fn look_up(resolver: &Resolver, elf: Elf, input: Input<u64>) -> Option<NamedPlace> {
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
        place.offset = symbol.offset as u64;
    }
    Some(place)
}

fn place(symbol: &Sym<'_>) -> NamedPlace {
    // blazesym lists them outermost first
    let inlined = symbol.inlined.iter().rev().take(limits::INLINED);
    NamedPlace {
        function: named(&symbol.name, symbol.code_info.as_deref()),
        offset: symbol.offset as u64,
        inlined: inlined
            .map(|inlined| named(&inlined.name, inlined.code_info.as_ref()))
            .collect(),
    }
}

fn named(name: &str, code: Option<&CodeInfo<'_>>) -> Named {
    Named {
        name: demangle(name),
        location: code.map(|code| {
            let path: Cow<'_, Path> = code.to_path();
            let file = bounded_bytes(path.as_os_str().as_bytes()).into_owned();
            (file, code.line)
        }),
    }
}
