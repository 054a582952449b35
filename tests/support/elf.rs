//! Writes ELF files that no linker would: a function at 4096 that calls its argument, and whatever sections a test wants.
//! What is wrong with them is each test's own matter.

use std::collections::HashMap;

/// Address and offset of the code.
pub const CODE: u64 = 0x1000;

/// `push rbp; mov rbp,rsp; call rdi; pop rbp; ret`
const CALLS_ITS_ARGUMENT: [u8; 8] = [0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3];

/// A section of a file.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// `sh_type`
    pub kind: u32,
    /// `sh_flags`
    pub flags: u64,
    /// `sh_addr`
    pub address: u64,
    /// Its bytes.
    pub data: Vec<u8>,
    /// Where the header says that they are, and how many, if that is something else.
    pub claims: Option<(u64, u64)>,
    /// The section that `sh_link` names.
    pub link: &'static str,
    /// `sh_info`
    pub info: u32,
    /// `sh_entsize`
    pub entry_size: u64,
}

/// Bytes that the program loads.
pub fn section(name: &'static str, data: Vec<u8>) -> Section {
    Section {
        name,
        kind: 1,
        data,
        ..Section::default()
    }
}

/// A symbol table with functions: name's offset among `names`, address, size.
pub fn symbols(functions: impl Iterator<Item = (u32, u64, u64)>, names: Vec<u8>) -> [Section; 2] {
    let mut table = vec![0; 24];
    for (name, address, size) in functions {
        table.extend(name.to_le_bytes());
        // a global function in section 1
        table.extend([0x12, 0, 1, 0]);
        table.extend(address.to_le_bytes());
        table.extend(size.to_le_bytes());
    }
    let table = Section {
        kind: 2,
        link: ".strtab",
        info: 1,
        entry_size: 24,
        ..section(".symtab", table)
    };
    let names = Section {
        kind: 3,
        ..section(".strtab", names)
    };
    [table, names]
}

/// The symbol table that calls the code by one name.
pub fn named(name: &str) -> [Section; 2] {
    let names = [b"\0", name.as_bytes(), b"\0"].concat();
    symbols([(1, CODE, 64)].into_iter(), names)
}

/// A file with these sections, and more executable segments: address, offset, size.
pub fn file(sections: &[Section], segments: &[(u64, u64, u64)]) -> Vec<u8> {
    let mut code = CALLS_ITS_ARGUMENT.to_vec();
    code.resize(0x1000, 0x90);
    let mut bytes = vec![0; CODE as usize];
    bytes.extend(&code);
    let text = Section {
        flags: 6,
        address: CODE,
        claims: Some((CODE, code.len() as u64)),
        ..section(".text", Vec::new())
    };
    let mut all = vec![Section::default(), text];
    all.extend_from_slice(sections);
    all.push(Section {
        kind: 3,
        ..section(".shstrtab", Vec::new())
    });
    let mut names = vec![0];
    let mut at: HashMap<&str, (usize, u32)> = HashMap::new();
    for (index, section) in all.iter().enumerate() {
        at.insert(section.name, (index, names.len() as u32));
        names.extend([section.name.as_bytes(), b"\0"].concat());
    }
    if let Some(last) = all.last_mut() {
        last.data = names;
    }
    let mut headers = Vec::new();
    for section in &all {
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        let (offset, size) = section
            .claims
            .unwrap_or((bytes.len() as u64, section.data.len() as u64));
        bytes.extend(&section.data);
        let link = at.get(section.link).map_or(0, |(index, _)| *index as u32);
        headers.extend(at[section.name].1.to_le_bytes());
        headers.extend(section.kind.to_le_bytes());
        for word in [section.flags, section.address, offset, size] {
            headers.extend(word.to_le_bytes());
        }
        headers.extend(link.to_le_bytes());
        headers.extend(section.info.to_le_bytes());
        headers.extend(1u64.to_le_bytes());
        headers.extend(section.entry_size.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let table = bytes.len() as u64;
    bytes.extend(headers);
    let own = [(0, 0, 0x1000), (CODE, CODE, code.len() as u64)];
    let loaded: Vec<_> = own.iter().chain(segments).collect();
    put_header(&mut bytes, table, loaded.len() as u16, all.len() as u16);
    for (index, (address, offset, size)) in loaded.into_iter().enumerate() {
        let mut header = Vec::new();
        header.extend(1u32.to_le_bytes());
        header.extend(if index == 0 { 4u32 } else { 5 }.to_le_bytes());
        for word in [*offset, *address, 0, *size, *size, 0x1000] {
            header.extend(word.to_le_bytes());
        }
        bytes[64 + 56 * index..][..56].copy_from_slice(&header);
    }
    bytes
}

fn put_header(bytes: &mut [u8], sections_at: u64, segments: u16, sections: u16) {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    // a shared object for x86-64
    header.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    for word in [CODE, 64, sections_at] {
        header.extend(word.to_le_bytes());
    }
    header.extend(0u32.to_le_bytes());
    for half in [64, 56, segments, 64, sections, sections - 1] {
        header.extend(half.to_le_bytes());
    }
    bytes[..64].copy_from_slice(&header);
}
