//! Python: finds CPython in an ELF file, of whichever version, and names the frames that it runs.
//! Knows bytes only: which process runs it, and how its frames are walked, is the BPF programs' business.

mod code;
mod layout;

use std::collections::HashMap;

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};
use object::elf::FileHeader64;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{LittleEndian, Object as _, ObjectSymbol as _};

use super::{Code, Interpreter};
use crate::model::report::Language;
use crate::unwind::function_starts;
pub use code::function;
pub use layout::{Layout, Loops};

/// What is looked for among the symbols that other objects may use.
const WANTED: [&str; 10] = [
    RUNTIME,
    CODE_TYPE,
    TEXT_TYPE,
    BYTES_TYPE,
    EVALUATE,
    THREAD_STATE,
    VERSION,
    SINCE_3_8,
    SINCE_3_9,
    SINCE_3_10,
];
const RUNTIME: &str = "_PyRuntime";
const CODE_TYPE: &str = "PyCode_Type";
const TEXT_TYPE: &str = "PyUnicode_Type";
const BYTES_TYPE: &str = "PyBytes_Type";
const EVALUATE: &str = "_PyEval_EvalFrameDefault";
const THREAD_STATE: &str = "PyGILState_GetThisThreadState";
/// The version as a number; since 3.11.
const VERSION: &str = "Py_Version";
const SINCE_3_8: &str = "PyCode_NewWithPosOnlyArgs";
const SINCE_3_9: &str = "PyFrame_GetCode";
const SINCE_3_10: &str = "PyModule_AddObjectRef";

/// An evaluation loop smaller than this has its instructions elsewhere: the real ones take more than 30 KiB.
const SMALLEST_LOOP: u64 = 16 << 10;

/// Where a type says how its objects are taken down.
const DEALLOCATE: u64 = 0x30;

/// How much of a function is decoded at the most, in bytes.
const MOST_CODE: u64 = 1 << 20;

type Elf<'a> = ElfFile64<'a, LittleEndian>;

/// Where a symbol is, and its size in bytes.
#[derive(Clone, Copy)]
struct Symbol {
    address: u64,
    size: u64,
}

/// An ELF file, and those of its symbols that matter.
struct Image<'a> {
    data: &'a [u8],
    elf: Elf<'a>,
    symbols: HashMap<&'static str, Symbol>,
}

/// Finds CPython in an ELF file's bytes, if it is there.
///
/// # Errors
/// It is one whose frames can't be walked: which, and why.
pub fn find(data: &[u8]) -> Result<Option<Interpreter>, String> {
    let Some(image) = Image::parse(data) else {
        return Ok(None);
    };
    let version = image.version();
    let named = |why: &str| format!("Python {}.{}: {why}", version.0, version.1);
    let exported = |name: &str| {
        image
            .symbol(name)
            .ok_or_else(|| named(&format!("it does not export {name}")))
    };
    let (runtime, evaluate) = (exported(RUNTIME)?, exported(EVALUATE)?);
    let key = image.thread_key(runtime);
    let offsets = image.bytes(runtime.address, layout::SELF_DESCRIPTION_BYTES);
    let python = layout::of(version, key, offsets).map_err(|why| named(&why))?;
    let outside = match python.loops {
        // the others are found by what lies on their stacks
        Loops::ByCode => image.outlined(evaluate).unwrap_or_default(),
        Loops::Each | Loops::Marked | Loops::Called => Code::default(),
    };
    Ok(Some(Interpreter {
        language: Language::Python,
        version,
        loop_code: [
            Code {
                begin: evaluate.address,
                size: evaluate.size,
            },
            outside,
        ],
        tail_calls: evaluate.size < SMALLEST_LOOP,
        runtime: runtime.address,
        code_type: exported(CODE_TYPE)?.address,
        text_type: exported(TEXT_TYPE)?.address,
        bytes_type: exported(BYTES_TYPE)?.address,
        code_end: image.code_end(exported(CODE_TYPE)?),
        python,
    }))
}

impl<'a> Image<'a> {
    /// None for a file without CPython.
    fn parse(data: &'a [u8]) -> Option<Self> {
        let elf = Elf::parse(data).ok()?;
        let mut symbols = HashMap::new();
        for symbol in elf
            .dynamic_symbols()
            .filter(|symbol| !symbol.is_undefined())
        {
            let name = symbol.name_bytes().unwrap_or_default();
            if let Some(wanted) = WANTED.iter().find(|wanted| wanted.as_bytes() == name) {
                let (address, size) = (symbol.address(), symbol.size());
                symbols.insert(*wanted, Symbol { address, size });
            }
        }
        let is_python = symbols.contains_key(RUNTIME) || symbols.contains_key(EVALUATE);
        is_python.then_some(Self { data, elf, symbols })
    }

    fn symbol(&self, name: &str) -> Option<Symbol> {
        self.symbols.get(name).copied()
    }

    /// Bytes of a loaded segment's file content.
    fn bytes(&self, address: u64, count: u64) -> Option<&'a [u8]> {
        let endian = self.elf.endian();
        let headers: &FileHeader64<LittleEndian> = self.elf.elf_header();
        headers
            .program_headers(endian, self.data)
            .ok()?
            .iter()
            .filter(|header| header.p_type(endian) == object::elf::PT_LOAD)
            .find_map(|header| header.data_range(endian, self.data, address, count).ok()?)
    }

    /// Where in the file the function is that takes code objects down, as their type says.
    fn code_end(&self, code_type: Symbol) -> Option<u64> {
        let slot = code_type.address.checked_add(DEALLOCATE)?;
        let relocated = self
            .elf
            .dynamic_relocations()?
            .find(|(at, _)| *at == slot)
            .map(|(_, relocation)| relocation.addend().cast_unsigned());
        let stored = || {
            let bytes = self.bytes(slot, 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let function = relocated.or_else(stored)?;
        let starts = function_starts(self.data);
        starts.binary_search(&function).ok()?;
        let endian = self.elf.endian();
        let headers = self.elf.elf_header().program_headers(endian, self.data);
        let segment = headers.ok()?.iter().find(|header| {
            let offset = function.wrapping_sub(header.p_vaddr(endian));
            header.p_type(endian) == object::elf::PT_LOAD && offset < header.p_filesz(endian)
        })?;
        Some(segment.p_offset(endian) + (function - segment.p_vaddr(endian)))
    }

    /// Major and minor; the oldest that fits, where there is no number.
    fn version(&self) -> (u8, u8) {
        let number = self
            .symbol(VERSION)
            .and_then(|symbol| self.bytes(symbol.address, 4));
        if let Some(&[_, _, minor, major]) = number {
            return (major, minor);
        }
        let has = |name| self.symbol(name).is_some();
        match (has(SINCE_3_10), has(SINCE_3_9), has(SINCE_3_8)) {
            (true, ..) => (3, 10),
            (_, true, _) => (3, 9),
            (.., true) => (3, 8),
            _ => (3, 7),
        }
    }

    /// Where the key of threads' states is within the runtime's state, as a function tells that passes its address on.
    fn thread_key(&self, runtime: Symbol) -> Option<u64> {
        let function = self.symbol(THREAD_STATE)?;
        let code = self.bytes(function.address, function.size.min(256))?;
        let mut decoder = Decoder::with_ip(64, code, function.address, DecoderOptions::NONE);
        let mut found = None;
        while decoder.can_decode() {
            let instruction = decoder.decode();
            let address = match (instruction.mnemonic(), instruction.op1_kind()) {
                // from where another register says that the runtime's state is
                (Mnemonic::Lea, _) if instruction.memory_base() != Register::RIP => runtime
                    .address
                    .wrapping_add(instruction.memory_displacement64()),
                (Mnemonic::Lea, _) => instruction.memory_displacement64(),
                (Mnemonic::Mov, OpKind::Immediate32 | OpKind::Immediate32to64) => {
                    instruction.immediate(1)
                }
                _ => continue,
            };
            let offset = address.wrapping_sub(runtime.address);
            if offset < runtime.size {
                found = Some(offset);
            }
        }
        // the record of a runtime is its beginning: that is no key
        found.filter(|offset| *offset > 0)
    }

    /// Code of a function that its compiler has put elsewhere, as it is seldom run: jumps lead into its midst.
    fn outlined(&self, function: Symbol) -> Option<Code> {
        let within = Code {
            begin: function.address,
            size: function.size.min(MOST_CODE),
        };
        let code = self.bytes(within.begin, within.size)?;
        let starts = function_starts(self.data);
        let mut decoder = Decoder::with_ip(64, code, within.begin, DecoderOptions::NONE);
        let mut votes: HashMap<u64, (Code, u32)> = HashMap::new();
        while decoder.can_decode() {
            let instruction = decoder.decode();
            let target = instruction.near_branch_target();
            let jumps = instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near();
            if !jumps || within.contains(target) {
                continue;
            }
            let next = starts.partition_point(|start| *start <= target);
            let (Some(&begin), Some(&end)) = (starts.get(next.wrapping_sub(1)), starts.get(next))
            else {
                continue;
            };
            let entry = Code {
                begin,
                size: end - begin,
            };
            // a jump to a function's first instruction is a call of it
            if entry.contains(target) && begin != target {
                votes.entry(begin).or_insert((entry, 0)).1 += 1;
            }
        }
        votes
            .into_values()
            .max_by_key(|(entry, count)| (*count, entry.begin))
            .map(|(entry, _)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // the packages are those of scripts/install-packages.sh
    #[test]
    fn pythons_that_are_installed_are_found_whatever_they_are_linked_into() {
        let library = "/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0";
        for path in ["/usr/bin/python3.11", library] {
            let data = std::fs::read(path).unwrap();
            let found = find(&data).unwrap().unwrap();
            assert_eq!(found.version, (3, 11), "{path}");
            assert_eq!(found.python.thread_key, 0x250, "{path}");
            assert_eq!(found.python.loops, Loops::Marked, "{path}");
            assert!(found.loop_code[0].size > SMALLEST_LOOP, "{path}");
            assert!(!found.tail_calls && found.code_end.is_some(), "{path}");
        }
    }

    #[test]
    fn other_files_hold_no_python() {
        let program = std::fs::read("/bin/sh").unwrap();
        assert_eq!(find(&program), Ok(None));
        assert_eq!(find(b"no program"), Ok(None));
        assert_eq!(find(&[]), Ok(None));
    }

    #[test]
    fn damaged_files_are_survived() {
        let data = std::fs::read("/usr/bin/python3.11").unwrap();
        for at in (0..0x1_0000).step_by(97) {
            let mut damaged = data[..data.len() / 2].to_vec();
            damaged[at % 4096] ^= 0xff;
            damaged.truncate(data.len() / 2 - at * 13);
            let _ = find(&damaged);
        }
    }
}
