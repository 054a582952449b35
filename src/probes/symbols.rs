//! The functions that one 64-bit ELF object defines, from the object's bytes: name, address, place in the file.
//! No I/O and no judgement about where in a function a probe belongs (that is `site`).

use anyhow::Context as _;
use object::elf::{self, FileHeader64};
use object::read::elf::{
    Dyn as _, FileHeader, ProgramHeader as _, SectionHeader as _, SectionTable, Sym as _,
    VersionTable,
};
use object::{Endianness, SectionIndex};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use crate::limits;
use crate::unwind::{Machine, function_starts};

type Header = FileHeader64<Endianness>;
type RawSymbol = elf::Sym64<Endianness>;

/// A function as its object defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The plain name, without a version.
    pub name: String,
    /// Virtual address in the object's own numbering.
    pub address: u64,
    /// Offset of the first instruction in the file: what a uprobe is attached to.
    pub file_offset: u64,
    /// Length in bytes; never zero.
    pub size: u64,
}

/// The functions of one object, by plain name.
pub struct Symbols<'data> {
    data: &'data [u8],
    machine: elf::Machine,
    kind: Kind,
    segments: Vec<Segment>,
    functions: HashMap<&'data [u8], Candidate>,
}

/// What the headers say of an object as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kind {
    /// A process begins with it; it is no library.
    program: bool,
    /// It names a dynamic linker.
    linked_dynamically: bool,
    /// It carries a `.symtab`.
    has_symbol_table: bool,
    /// Go's linker made it.
    go: bool,
}

/// Which definition of a name wins, best first: what the dynamic linker would bind comes before
/// what only a debugger sees, the default version before the hidden ones that old binaries keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Exported,
    Global,
    HiddenVersion,
    Local,
}

/// One definition. Ordered by preference; the lowest address breaks ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: Rank,
    address: u64,
    size: u64,
}

/// A loadable segment: file bytes `offset..offset + size` appear at `address`.
struct Segment {
    address: u64,
    offset: u64,
    size: u64,
}

impl<'data> Symbols<'data> {
    /// Reads the symbol tables of the ELF object in `data`, `.dynsym` and `.symtab` alike.
    ///
    /// An object without symbols is not an error: it has no functions to find.
    ///
    /// # Errors
    /// Fails where `data` is no 64-bit ELF object or its headers or tables point outside it.
    pub fn parse(data: &'data [u8]) -> anyhow::Result<Self> {
        let header = Header::parse(data).context("failed to read the 64-bit ELF header")?;
        let endian = header.endian().context("failed to read the ELF header")?;
        let segments = segments(header, endian, data)?;
        let sections = header
            .sections(endian, data)
            .context("failed to read the ELF section headers")?;
        let mut symbols = Self {
            data,
            machine: header.e_machine(endian),
            kind: kind(header, endian, data, &sections)?,
            segments,
            functions: HashMap::new(),
        };
        symbols.add_dynamic(endian, &sections)?;
        symbols.add_static(endian, &sections, data, |_| true)?;
        Ok(symbols)
    }

    /// Whose code the object holds, of the machines that are known.
    pub fn machine(&self) -> Option<Machine> {
        match self.machine {
            elf::EM_X86_64 => Some(Machine::X86_64),
            elf::EM_AARCH64 => Some(Machine::Aarch64),
            _ => None,
        }
    }

    /// Whether a process begins with the object, be it a position-independent one; libraries are none, even where they can
    /// be run.
    pub fn is_program(&self) -> bool {
        self.kind.program
    }

    /// Whether it is a program that brings all of its code, libc's included.
    pub fn is_static_program(&self) -> bool {
        self.kind.program && !self.kind.linked_dynamically
    }

    /// Whether it holds code of Go's, whose stacks move: their functions can't be probed at their returns.
    pub fn is_go(&self) -> bool {
        self.kind.go
    }

    /// Whether its symbol table was stripped off.
    pub fn is_stripped(&self) -> bool {
        !self.kind.has_symbol_table
    }

    /// Adds the functions that the object's debug file names, whose bytes are `debug`: those that begin where the object's
    /// own unwind information says that a function begins. A debug file can come from anybody, and a probe within an
    /// instruction would change what the code does.
    ///
    /// # Errors
    /// Fails where `debug` is no 64-bit ELF object, or its tables point outside it.
    pub fn add_debug_file(&mut self, debug: &'data [u8]) -> anyhow::Result<()> {
        let header = Header::parse(debug).context("failed to read the 64-bit ELF header")?;
        let endian = header.endian().context("failed to read the ELF header")?;
        let sections = header
            .sections(endian, debug)
            .context("failed to read the ELF section headers")?;
        self.kind.has_symbol_table = true;
        let starts = function_starts(self.data);
        self.add_static(endian, &sections, debug, |address| {
            starts.binary_search(&address).is_ok()
        })
    }

    /// The names of all functions, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &'data str> {
        self.functions
            .keys()
            .filter_map(|name| std::str::from_utf8(name).ok())
    }

    /// The function called `name`, in its default version where there are several.
    ///
    /// Undefined symbols, empty ones and indirect functions (`STT_GNU_IFUNC`, whose symbol is
    /// the resolver and not the function) are not found.
    pub fn find(&self, name: &str) -> Option<Function> {
        let candidate = self.functions.get(name.as_bytes())?;
        Some(Function {
            name: name.to_string(),
            address: candidate.address,
            file_offset: self.file_offset(candidate.address)?,
            size: candidate.size,
        })
    }

    /// The machine code of `function`, or nothing where the file does not hold all of it.
    pub fn code(&self, function: &Function) -> Option<&'data [u8]> {
        let begin = usize::try_from(function.file_offset).ok()?;
        let end = begin.checked_add(usize::try_from(function.size).ok()?)?;
        self.data.get(begin..end)
    }

    /// The file's bytes of the loadable segment that holds `function`, and where it begins in them.
    pub fn segment(&self, function: &Function) -> Option<(&'data [u8], usize)> {
        let segment = self.segment_of(function.address)?;
        let offset = usize::try_from(segment.offset).ok()?;
        let size = usize::try_from(segment.size).ok()?;
        let bytes = self.data.get(offset..offset.checked_add(size)?)?;
        let begin = usize::try_from(function.address - segment.address).ok()?;
        Some((bytes, begin))
    }

    /// Where the loadable segment that holds `function` is in the file, in bytes.
    pub fn file_range(&self, function: &Function) -> Option<Range<u64>> {
        let segment = self.segment_of(function.address)?;
        Some(segment.offset..segment.offset.checked_add(segment.size)?)
    }

    fn file_offset(&self, address: u64) -> Option<u64> {
        let segment = self.segment_of(address)?;
        segment.offset.checked_add(address - segment.address)
    }

    fn segment_of(&self, address: u64) -> Option<&Segment> {
        self.segments.iter().find(|segment| {
            address
                .checked_sub(segment.address)
                .is_some_and(|inside| inside < segment.size)
        })
    }

    fn add_dynamic(
        &mut self,
        endian: Endianness,
        sections: &SectionTable<'data, Header>,
    ) -> anyhow::Result<()> {
        let table = sections
            .symbols(endian, self.data, elf::SHT_DYNSYM)
            .context("failed to read .dynsym")?;
        let strings = strings(endian, sections, table.string_section(), self.data);
        // Versions only rank names, so an object whose version tables are broken still has functions.
        let versions: VersionTable<Header> = sections
            .versions(endian, self.data)
            .ok()
            .flatten()
            .unwrap_or_default();
        for (index, symbol) in table.enumerate() {
            let Some(name) = name(strings, symbol.st_name(endian)) else {
                continue;
            };
            let hidden = !versions.is_empty() && versions.version_index(endian, index).is_hidden();
            let rank = if hidden {
                Rank::HiddenVersion
            } else {
                Rank::Exported
            };
            self.add(endian, name, symbol, rank);
        }
        Ok(())
    }

    fn add_static(
        &mut self,
        endian: Endianness,
        sections: &SectionTable<'data, Header>,
        data: &'data [u8],
        begins_at: impl Fn(u64) -> bool,
    ) -> anyhow::Result<()> {
        let table = sections
            .symbols(endian, data, elf::SHT_SYMTAB)
            .context("failed to read .symtab")?;
        let strings = strings(endian, sections, table.string_section(), data);
        for symbol in table.iter() {
            let Some(name) = name(strings, symbol.st_name(endian)) else {
                continue;
            };
            let (name, version) = split_version(name);
            let rank = match version {
                Version::Hidden => Rank::HiddenVersion,
                _ if symbol.is_local() => Rank::Local,
                Version::None | Version::Default => Rank::Global,
            };
            if begins_at(symbol.st_value(endian)) {
                self.add(endian, name, symbol, rank);
            }
        }
        Ok(())
    }

    fn add(&mut self, endian: Endianness, name: &'data [u8], symbol: &RawSymbol, rank: Rank) {
        let candidate = Candidate {
            rank,
            address: symbol.st_value(endian),
            size: symbol.st_size(endian),
        };
        let is_function = symbol.st_type() == elf::STT_FUNC && !symbol.is_undefined(endian);
        if !is_function || candidate.size == 0 || name.is_empty() {
            return;
        }
        let name = runtime_function(name).unwrap_or(name);
        match self.functions.entry(name) {
            Entry::Vacant(entry) => {
                entry.insert(candidate);
            }
            Entry::Occupied(mut entry) => {
                let best = candidate.min(*entry.get());
                entry.insert(best);
            }
        }
    }
}

/// The bytes of a string table; none where it is damaged.
fn strings<'data>(
    endian: Endianness,
    sections: &SectionTable<'data, Header>,
    index: SectionIndex,
    data: &'data [u8],
) -> &'data [u8] {
    let section = sections.section(index).ok();
    let strings = section.and_then(|section| section.data(endian, data).ok());
    strings.unwrap_or_default()
}

/// The name at an offset in a string table. Names that are longer than any are passed over, and not searched for their
/// ends, which a table can have as many of as it has bytes.
fn name(strings: &[u8], offset: u32) -> Option<&[u8]> {
    let rest = strings.get(offset as usize..)?;
    let rest = &rest[..rest.len().min(limits::NAME + 1)];
    let end = rest.iter().position(|&byte| byte == 0)?;
    Some(&rest[..end])
}

fn kind(
    header: &Header,
    endian: Endianness,
    data: &[u8],
    sections: &SectionTable<'_, Header>,
) -> anyhow::Result<Kind> {
    let headers = header
        .program_headers(endian, data)
        .context("failed to read the ELF program headers")?;
    let mut kind = Kind {
        program: header.e_type(endian) == elf::ET_EXEC,
        ..Kind::default()
    };
    for segment in headers {
        kind.linked_dynamically |= segment.p_type(endian) == elf::PT_INTERP;
        // damage here costs no more than the flag
        for entry in segment
            .dynamic(endian, data)
            .ok()
            .flatten()
            .into_iter()
            .flatten()
        {
            kind.program |= entry.d_tag(endian) == elf::DT_FLAGS_1
                && entry.d_val(endian) & elf::DF_1_PIE.0 != 0;
        }
    }
    kind.go = [&b".go.buildinfo"[..], b".note.go.buildid"]
        .iter()
        .any(|name| sections.section_by_name(endian, name).is_some());
    kind.has_symbol_table = sections
        .iter()
        .any(|section| section.sh_type(endian) == elf::SHT_SYMTAB);
    Ok(kind)
}

/// The plain name of a function of Rust's runtime: `__rust_alloc` for `_RNvCs…_7___rustc12___rust_alloc` (v0 mangling
/// of a path in the crate `__rustc`: each name behind its length, and a `_` before names that begin with one).
fn runtime_function(mangled: &[u8]) -> Option<&[u8]> {
    const CRATE: &[u8] = b"7___rustc";
    let path = mangled.strip_prefix(b"_RNvC")?;
    let crate_name = path.windows(CRATE.len()).position(|part| part == CRATE)?;
    let last = &path[crate_name + CRATE.len()..];
    let digits = last.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let length: usize = std::str::from_utf8(&last[..digits]).ok()?.parse().ok()?;
    let name = last[digits..].strip_prefix(b"_")?;
    (name.len() == length).then_some(name)
}

fn segments(header: &Header, endian: Endianness, data: &[u8]) -> anyhow::Result<Vec<Segment>> {
    let headers = header
        .program_headers(endian, data)
        .context("failed to read the ELF program headers")?;
    Ok(headers
        .iter()
        .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
        .map(|segment| Segment {
            address: segment.p_vaddr(endian),
            offset: segment.p_offset(endian),
            size: segment.p_filesz(endian),
        })
        .collect())
}

/// What follows the `@` of a name in `.symtab`, where the static linker writes versions into names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    None,
    Default,
    Hidden,
}

fn split_version(name: &[u8]) -> (&[u8], Version) {
    let Some(at) = name.iter().position(|&byte| byte == b'@') else {
        return (name, Version::None);
    };
    let version = if name[at..].starts_with(b"@@") {
        Version::Default
    } else {
        Version::Hidden
    };
    (&name[..at], version)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C library of this machine (Debian: libc6).
    fn libc() -> Vec<u8> {
        let path = format!("/usr/lib/{}-linux-gnu/libc.so.6", std::env::consts::ARCH);
        std::fs::read(&path).unwrap_or_else(|error| panic!("failed to read {path}: {error}"))
    }

    #[test]
    fn libc_defines_its_allocators() {
        let data = libc();
        let symbols = Symbols::parse(&data).unwrap();
        assert_eq!(symbols.machine(), Some(Machine::NATIVE));
        for name in ["malloc", "free", "calloc", "realloc", "posix_memalign"] {
            let function = symbols.find(name).unwrap();
            assert_eq!(function.name, name);
            let code = symbols.code(&function).unwrap();
            assert_eq!(code.len() as u64, function.size);
        }
    }

    /// What `objcopy` makes of a program, with `malloc` where the debug file says that it is.
    fn debug_file_with_malloc_at(folder: &std::path::Path, distance: i64) -> (Vec<u8>, Vec<u8>) {
        let run = |program: &str, arguments: &[&str]| {
            let mut command = std::process::Command::new(program);
            let status = command.args(arguments).current_dir(folder).status();
            assert!(status.unwrap().success(), "{program} {arguments:?}");
        };
        let source = "int allowed(int x) { return x * 3 + 1; } int main(int c, char **v) { (void)v; return allowed(c); }";
        std::fs::write(folder.join("a.c"), source).unwrap();
        run("cc", &["-O1", "-o", "a", "a.c"]);
        let data = std::fs::read(folder.join("a")).unwrap();
        let allowed = Symbols::parse(&data).unwrap().find("allowed").unwrap();
        let at = allowed.address.checked_add_signed(distance).unwrap();
        let symbol = format!("malloc=.text:{:#x},function,global", at - text_start(&data));
        run("objcopy", &["--add-symbol", &symbol, "a", "a.debug"]);
        run("strip", &["a"]);
        // objcopy's symbols have no size: a debug file's that has one is what is looked at
        let debug = with_sizes(std::fs::read(folder.join("a.debug")).unwrap());
        (std::fs::read(folder.join("a")).unwrap(), debug)
    }

    fn text_start(data: &[u8]) -> u64 {
        use object::{Object as _, ObjectSection as _};
        let file = object::File::parse(data).unwrap();
        file.section_by_name(".text").unwrap().address()
    }

    /// Gives every symbol of a file a size.
    fn with_sizes(mut data: Vec<u8>) -> Vec<u8> {
        use object::{Object as _, ObjectSection as _};
        let file = object::File::parse(&*data).unwrap();
        let (offset, size) = file
            .section_by_name(".symtab")
            .unwrap()
            .file_range()
            .unwrap();
        for symbol in (offset..offset + size).step_by(24) {
            let at = symbol as usize + 16;
            data[at..at + 8].copy_from_slice(&9u64.to_le_bytes());
        }
        data
    }

    #[test]
    fn a_debug_file_names_only_what_begins_a_function_of_the_object() {
        let folder = tempfile::tempdir().unwrap();
        for (distance, found) in [(0, true), (2, false), (-1, false)] {
            let (data, debug) = debug_file_with_malloc_at(folder.path(), distance);
            let mut symbols = Symbols::parse(&data).unwrap();
            assert_eq!(symbols.find("malloc"), None);
            symbols.add_debug_file(&debug).unwrap();
            assert_eq!(symbols.find("malloc").is_some(), found, "{distance}");
        }
    }

    #[test]
    fn indirect_and_undefined_functions_are_not_found() {
        let data = libc();
        let symbols = Symbols::parse(&data).unwrap();
        // strlen is STT_GNU_IFUNC in libc; __tls_get_addr is imported from the dynamic linker.
        for name in ["strlen", "__tls_get_addr", "no_such_function", ""] {
            assert_eq!(symbols.find(name), None, "{name}");
        }
    }

    #[test]
    fn a_version_in_the_name_is_split_off() {
        assert_eq!(split_version(b"malloc"), (&b"malloc"[..], Version::None));
        let default = (&b"memalign"[..], Version::Default);
        assert_eq!(split_version(b"memalign@@GLIBC_2.2.5"), default);
        let hidden = (&b"memalign"[..], Version::Hidden);
        assert_eq!(split_version(b"memalign@GLIBC_2.2.5"), hidden);
    }

    #[test]
    fn the_default_version_wins_over_old_and_local_ones() {
        let candidate = |rank, address| Candidate {
            rank,
            address,
            size: 8,
        };
        let default = candidate(Rank::Exported, 0x30);
        assert!(default < candidate(Rank::Global, 0x20));
        assert!(default < candidate(Rank::HiddenVersion, 0x10));
        assert!(candidate(Rank::HiddenVersion, 0x10) < candidate(Rank::Local, 0x10));
        assert!(candidate(Rank::Local, 0x10) < candidate(Rank::Local, 0x20));
    }

    #[test]
    fn malformed_objects_are_errors_and_never_panics() {
        let data = libc();
        assert!(Symbols::parse(b"").is_err());
        assert!(Symbols::parse(b"#!/bin/sh\n").is_err());
        for length in (0..4096).chain((4096..data.len()).step_by(data.len() / 50 + 1)) {
            exercise(&data[..length]);
        }
        // Each byte of the ELF header and of the first three program headers, damaged in turn.
        for index in 0..256 {
            let mut damaged = data.clone();
            damaged[index] ^= 0xff;
            exercise(&damaged);
        }
    }

    fn exercise(data: &[u8]) {
        if let Ok(symbols) = Symbols::parse(data)
            && let Some(function) = symbols.find("malloc")
        {
            symbols.code(&function);
        }
    }

    #[test]
    fn code_outside_the_file_is_none() {
        let data = libc();
        let symbols = Symbols::parse(&data).unwrap();
        let mut function = symbols.find("malloc").unwrap();
        function.size = u64::MAX;
        assert_eq!(symbols.code(&function), None);
        function.file_offset = u64::MAX;
        function.size = 2;
        assert_eq!(symbols.code(&function), None);
    }
}
