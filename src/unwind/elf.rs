//! The parts of an ELF file that unwinding needs: executable segments and frame sections.
//! What the frame sections say is read elsewhere.

use std::borrow::Cow;

use gimli::{
    BaseAddresses, DebugFrame, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, Pointer, Vendor,
};
use object::elf::{EM_AARCH64, EM_X86_64, FileHeader64, PF_X, PT_GNU_EH_FRAME, PT_LOAD};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Object, ObjectSection, ReadRef};

use serde::{Deserialize, Serialize};

use super::{Error, PAGE_SIZE};
use crate::limits;

/// More executable segments than linkers write; a file with more is made to waste memory.
const MAX_CODE_SEGMENTS: usize = 64;
/// Compressed sections that claim to be larger than this times their compressed size are lying: deflate can't do more.
const MAX_COMPRESSION: u64 = 1_032;
const ADDRESS_SIZE: u8 = 8;

type Elf<'a, R> = ElfFile64<'a, object::LittleEndian, R>;

/// An executable part of a file. `address − file_offset + vaddr − mapping start` is how a mapping's bias is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// First address, before any load bias.
    pub vaddr: u64,
    /// Where it begins in the file, in bytes.
    pub file_offset: u64,
    /// Bytes, in the file and in memory.
    pub size: u64,
}

impl Segment {
    /// First address behind the segment.
    pub fn end(&self) -> u64 {
        self.vaddr.saturating_add(self.size)
    }

    /// Whether the segment holds an address.
    pub fn contains(&self, address: u64) -> bool {
        (self.vaddr..self.end()).contains(&address)
    }

    /// Whether the segment shares an address with `start..end`.
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        start < self.end() && self.vaddr < end
    }
}

/// A machine whose code can be unwound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// x86-64.
    X86_64,
    /// aarch64.
    Aarch64,
}

impl Machine {
    /// The one that this program runs on.
    pub const NATIVE: Self = match cfg!(target_arch = "aarch64") {
        true => Self::Aarch64,
        false => Self::X86_64,
    };

    fn vendor(self) -> Vendor {
        match self {
            Machine::X86_64 => Vendor::Default,
            Machine::Aarch64 => Vendor::AArch64,
        }
    }
}

/// A section's bytes and address.
struct Frames<'a> {
    address: u64,
    bytes: Cow<'a, [u8]>,
}

/// What unwinding needs of an ELF file.
pub struct Image<'a> {
    /// Whose code it is.
    pub machine: Machine,
    /// The executable segments.
    pub code: Vec<Segment>,
    bases: BaseAddresses,
    eh_frame: Option<Frames<'a>>,
    debug_frame: Option<Frames<'a>>,
}

impl<'a> Image<'a> {
    /// Reads the headers of an ELF file.
    pub fn parse(file: impl ReadRef<'a>) -> Result<Self, Error> {
        let machine = machine(file)?;
        let elf = Elf::parse(file).map_err(malformed)?;
        let code = code_segments(&elf, file.len().unwrap_or(0))?;
        let section = |name: &str| elf.section_by_name(name);
        let mut bases = BaseAddresses::default();
        if let Some(text) = section(".text") {
            bases = bases.set_text(text.address());
        }
        if let Some(got) = section(".got") {
            bases = bases.set_got(got.address());
        }
        let eh_frame = section(".eh_frame")
            .filter(|section| section.size() <= limits::FRAME_SECTION)
            .and_then(|section| {
                Some(Frames {
                    address: section.address(),
                    bytes: Cow::Borrowed(section.data().ok()?),
                })
            })
            .filter(|frames| !frames.bytes.is_empty())
            .or_else(|| eh_frame_by_header(&elf, file));
        if let Some(frames) = &eh_frame {
            bases = bases.set_eh_frame(frames.address);
        }
        let debug_frame = section(".debug_frame").and_then(|section| uncompressed(&section));
        Ok(Image {
            machine,
            code,
            bases,
            eh_frame,
            debug_frame,
        })
    }

    /// The `.eh_frame` section and the addresses that its pointers count from.
    pub fn eh_frame(&self) -> Option<(EhFrame<EndianSlice<'_, LittleEndian>>, BaseAddresses)> {
        let frames = self.eh_frame.as_ref()?;
        let mut section = EhFrame::new(&frames.bytes, LittleEndian);
        section.set_address_size(ADDRESS_SIZE);
        section.set_vendor(self.machine.vendor());
        Some((section, self.bases.clone()))
    }

    /// The `.debug_frame` section and the addresses that its pointers count from.
    pub fn debug_frame(
        &self,
    ) -> Option<(DebugFrame<EndianSlice<'_, LittleEndian>>, BaseAddresses)> {
        let frames = self.debug_frame.as_ref()?;
        let mut section = DebugFrame::new(&frames.bytes, LittleEndian);
        section.set_address_size(ADDRESS_SIZE);
        section.set_vendor(self.machine.vendor());
        Some((section, self.bases.clone()))
    }
}

fn malformed(error: object::read::Error) -> Error {
    Error::Malformed(error.to_string())
}

/// Tells a file for another machine from a broken one; 32-bit and big-endian files have a machine number as well.
fn machine<'a>(file: impl ReadRef<'a>) -> Result<Machine, Error> {
    const BIG_ENDIAN: u8 = 2;
    const CLASS_64: u8 = 2;
    let too_short = || Error::Malformed("shorter than an ELF header".into());
    let header = file.read_bytes_at(0, 20).map_err(|()| too_short())?;
    let &[0x7f, b'E', b'L', b'F', class, data, .., low, high] = header else {
        return Err(Error::Malformed("no ELF magic".into()));
    };
    let machine = if data == BIG_ENDIAN {
        u16::from_be_bytes([low, high])
    } else {
        u16::from_le_bytes([low, high])
    };
    match machine {
        _ if class != CLASS_64 || data == BIG_ENDIAN => Err(Error::UnsupportedMachine(machine)),
        machine if machine == EM_X86_64.0 => Ok(Machine::X86_64),
        machine if machine == EM_AARCH64.0 => Ok(Machine::Aarch64),
        machine => Err(Error::UnsupportedMachine(machine)),
    }
}

fn code_segments<'a>(
    elf: &Elf<'a, impl ReadRef<'a>>,
    file_len: u64,
) -> Result<Vec<Segment>, Error> {
    let endian = elf.endian();
    let segments: Vec<Segment> = elf
        .elf_program_headers()
        .iter()
        .filter(|header| header.p_type(endian) == PT_LOAD && header.p_flags(endian).0 & PF_X.0 != 0)
        .map(|header| {
            let (vaddr, file_offset) = (header.p_vaddr(endian), header.p_offset(endian));
            // What is not in the file is not code; a claim beyond the file's end would only cost memory.
            let in_file = file_len.saturating_sub(file_offset).min(u64::MAX - vaddr);
            Segment {
                vaddr,
                file_offset,
                size: header.p_filesz(endian).min(in_file),
            }
        })
        .filter(|segment| segment.size > 0)
        .collect();
    let pages = |segment: &Segment| segment.size / PAGE_SIZE + 1;
    let pages = segments.iter().map(pages).fold(0, u64::saturating_add);
    if pages > limits::CODE_PAGES {
        return Err(Error::Malformed(format!("{pages} pages of code")));
    }
    if segments.len() > MAX_CODE_SEGMENTS {
        return Err(Error::Malformed(format!(
            "{} executable segments",
            segments.len()
        )));
    }
    Ok(segments)
}

fn uncompressed<'a>(section: &impl ObjectSection<'a>) -> Option<Frames<'a>> {
    let compressed = section.compressed_data().ok()?;
    let most = (compressed.data.len() as u64).saturating_mul(MAX_COMPRESSION);
    if compressed.uncompressed_size > most.min(limits::FRAME_SECTION) {
        return None;
    }
    let bytes = compressed.decompress().ok()?;
    (!bytes.is_empty()).then(|| Frames {
        address: section.address(),
        bytes,
    })
}

/// Finds `.eh_frame` in a file without section headers, through the header that the runtime's own unwinder uses. Its
/// length is not recorded: it is taken to reach to the end of its segment, and its terminator ends it.
fn eh_frame_by_header<'a, R: ReadRef<'a>>(elf: &Elf<'a, R>, file: R) -> Option<Frames<'a>> {
    let endian = elf.endian();
    let headers: &[<FileHeader64<object::LittleEndian> as FileHeader>::ProgramHeader] =
        elf.elf_program_headers();
    let header = headers
        .iter()
        .find(|header| header.p_type(endian) == PT_GNU_EH_FRAME)?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(header.p_vaddr(endian));
    let bytes = header.data(endian, file).ok()?;
    let parsed = EhFrameHdr::new(bytes, LittleEndian)
        .parse(&bases, ADDRESS_SIZE)
        .ok()?;
    let Pointer::Direct(address) = parsed.eh_frame_ptr() else {
        return None;
    };
    headers
        .iter()
        .filter(|header| header.p_type(endian) == PT_LOAD)
        .find_map(|header| {
            let offset = usize::try_from(address.checked_sub(header.p_vaddr(endian))?).ok()?;
            let bytes = header.data(endian, file).ok()?.get(offset..)?;
            let bytes = &bytes[..bytes.len().min(limits::FRAME_SECTION as usize)];
            (!bytes.is_empty()).then_some(Frames {
                address,
                bytes: Cow::Borrowed(bytes),
            })
        })
}
