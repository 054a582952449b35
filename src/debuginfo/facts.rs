//! What the headers of an ELF file say of the file as a whole: who it is, where its debug information is, how it is
//! loaded. From bytes; finds no files.

use std::io::{self, BufRead as _, BufReader};

use flate2::Crc;
use object::elf::{FileHeader32, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader as _};
use object::{Endianness, FileKind, Object as _, ReadRef};
use serde::{Deserialize, Serialize};

use crate::limits;

/// More loaded parts than linkers write.
const MOST_SEGMENTS: usize = 1024;

/// Bytes of a build id that are believed.
const LONGEST_BUILD_ID: usize = 64;

/// What the headers say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// GNU build id, if there is one.
    pub build_id: Option<Vec<u8>>,
    /// Whether it has debug information itself.
    pub has_debug_info: bool,
    /// The name and the checksum of the file that has it.
    pub debug_link: Option<(Vec<u8>, u32)>,
    /// The parts of it that are loaded into memory.
    pub segments: Vec<Segment>,
}

/// A part of a file that is loaded into memory. Files with debug information only have none that holds anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    offset: u64,
    size: u64,
    address: u64,
}

impl Segment {
    /// The address of a place in the file, as the file numbers addresses.
    pub fn address_of(&self, offset: u64) -> Option<u64> {
        let inside = offset
            .checked_sub(self.offset)
            .filter(|&inside| inside < self.size)?;
        inside.checked_add(self.address)
    }
}

impl Facts {
    /// Whether nothing is larger than it can be.
    pub fn is_sound(&self) -> bool {
        let build_id = self.build_id.as_ref().map_or(0, Vec::len);
        let link = self.debug_link.as_ref().map_or(0, |(name, _)| name.len());
        build_id <= LONGEST_BUILD_ID && link <= limits::NAME && self.segments.len() <= MOST_SEGMENTS
    }
}

/// Reads the headers of a file; `None` when it is no ELF file, or a damaged one.
pub fn facts(data: &[u8]) -> Option<Facts> {
    let file = object::File::parse(data).ok()?;
    let build_id = file.build_id().ok().flatten();
    let link = file.gnu_debuglink().ok().flatten();
    Some(Facts {
        build_id: build_id
            .filter(|id| id.len() <= LONGEST_BUILD_ID)
            .map(<[u8]>::to_vec),
        has_debug_info: file.section_by_name(".debug_info").is_some(),
        debug_link: link
            .filter(|(name, _)| name.len() <= limits::NAME)
            .map(|(name, checksum)| (name.to_vec(), checksum)),
        segments: segments(data).unwrap_or_default(),
    })
}

/// The loaded parts of an ELF file; `None` when it is damaged.
pub fn segments(data: &[u8]) -> Option<Vec<Segment>> {
    match FileKind::parse(data).ok()? {
        FileKind::Elf64 => loaded::<FileHeader64<Endianness>, _>(data),
        FileKind::Elf32 => loaded::<FileHeader32<Endianness>, _>(data),
        _ => None,
    }
}

fn loaded<'data, Header, R>(data: R) -> Option<Vec<Segment>>
where
    Header: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let header = Header::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, data).ok()?.iter();
    let loaded = segments
        .filter(|segment| segment.p_type(endian) == PT_LOAD)
        .take(MOST_SEGMENTS)
        .map(|segment| Segment {
            offset: segment.p_offset(endian).into(),
            size: segment.p_filesz(endian).into(),
            address: segment.p_vaddr(endian).into(),
        });
    Some(loaded.collect())
}

/// The CRC of a whole file, as debug links carry it.
///
/// # Errors
/// When it can't be read.
pub fn checksum(file: &std::os::fd::OwnedFd) -> io::Result<u32> {
    let mut reader = BufReader::with_capacity(1 << 20, std::fs::File::from(file.try_clone()?));
    let mut checksum = Crc::new();
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(checksum.sum());
        }
        checksum.update(bytes);
        let length = bytes.len();
        reader.consume(length);
    }
}
