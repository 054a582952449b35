//! MiniDebugInfo: the symbol table that Fedora and its kin leave in stripped objects, compressed in a section of its own.
//! Names of functions only: it has no lines and no inlined functions.

use std::io::{self, Cursor, Write};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

use super::NamedPlace;
use super::demangle::demangle;
use super::places::Named;
use crate::limits;

/// The section, an ELF file compressed with xz.
const SECTION: &str = ".gnu_debugdata";

/// The functions that an object's MiniDebugInfo names, by ascending address.
pub struct MiniSymbols {
    functions: Vec<Function>,
}

struct Function {
    address: u64,
    /// Bytes of its code; never 0.
    size: u64,
    name: String,
}

impl MiniSymbols {
    /// Reads what is in an object; none for one that has none, or whose is damaged or larger than it may be.
    pub fn read(object: &[u8]) -> Option<Self> {
        let file = object::File::parse(object).ok()?;
        let section = file.section_by_name(SECTION)?;
        let mut inflated = Bounded(Vec::new());
        let mut compressed = Cursor::new(section.data().ok()?);
        lzma_rs::xz_decompress(&mut compressed, &mut inflated).ok()?;
        let file = object::File::parse(&*inflated.0).ok()?;
        let mut functions: Vec<Function> = file
            .symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
            .filter_map(|symbol| {
                let name = String::from_utf8_lossy(symbol.name_bytes().ok()?).into_owned();
                Some(Function {
                    address: symbol.address(),
                    size: symbol.size(),
                    name,
                })
            })
            .collect();
        functions.sort_by(|a, b| (a.address, a.size, &a.name).cmp(&(b.address, b.size, &b.name)));
        Some(Self { functions })
    }

    /// The function whose code holds an address.
    pub fn look_up(&self, address: u64) -> Option<NamedPlace> {
        let after = self
            .functions
            .partition_point(|function| function.address <= address);
        let function = self.functions.get(after.checked_sub(1)?)?;
        let offset = address - function.address;
        (offset < function.size).then(|| NamedPlace {
            function: Named {
                name: demangle(&function.name),
                location: None,
            },
            offset,
            inlined: Vec::new(),
        })
    }
}

/// Takes no more than a section may inflate to.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > limits::MINI_DEBUG_INFO {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
