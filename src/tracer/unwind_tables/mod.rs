//! What the BPF unwinder knows: the tables of files, each loaded once, and per process its executable mappings.
//! Which mappings a process has is found elsewhere; what a table says comes from `unwind`.

mod build;
mod process;
mod rules;
mod store;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use libbpf_rs::{ErrorKind, MapCore as _, MapFlags, MapHandle};

use super::deferred::Found;
use super::interpreters::Interpreters;
use super::skel::types::{
    unwind_code, unwind_file, unwind_file_key, unwind_mapping, unwind_process, unwind_segment,
};
use crate::files::Kept;
use crate::reader::KnownCode;
use crate::unwind::{self, PAGE_SIZE, Rule, Segment, Table};
pub use build::Meanwhile;
use build::build_all;
pub use process::encode;
use process::merge;
use store::{LoadedFile, LoadedSegment, Store, create_array};

/// Device and inode of a file, as stat(2) gives them.
pub type FileId = (u64, u64);

/// Where the bytes of an executable mapping come from.
#[derive(Clone, Debug)]
pub enum Code {
    /// A file.
    File {
        /// Device and inode. The file must stay open or mapped, so that no other one gets them.
        id: FileId,
        /// How it is had.
        file: Arc<Kept>,
    },
    /// A file that can't be opened.
    Unreadable {
        /// Device and inode.
        id: FileId,
    },
    /// An ELF image that is only in memory: the vDSO.
    Image(Vec<u8>),
    /// Memory without unwind information, such as what a JIT compiler fills.
    Anonymous,
}

/// An executable mapping of a process.
#[derive(Clone, Debug)]
pub struct CodeMapping {
    /// First address.
    pub begin: u64,
    /// First address behind it.
    pub end: u64,
    /// Where it begins in the file, in bytes.
    pub file_offset: u64,
    /// Where its bytes come from.
    pub code: Code,
}

/// The maps of the loaded BPF object that hold the tables.
pub struct Maps {
    /// `unwind_blocks`
    pub blocks: MapHandle,
    /// `unwind_pages`
    pub pages: MapHandle,
    /// `unwind_rules`
    pub rules: MapHandle,
    /// `unwind_processes`
    pub processes: MapHandle,
    /// `unwind_files`
    pub files: MapHandle,
    /// `interpreters`
    pub interpreters: MapHandle,
}

/// What the tables hold and cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Files with a table.
    pub files: usize,
    /// Unwind rows of all files.
    pub rows: usize,
    /// Different rules.
    pub rules: usize,
    /// Bytes of map memory for rows.
    pub row_bytes: usize,
    /// Files without a table, because they could not be read or the maps are full.
    pub failed: usize,
}

/// A process that the unwinder knows: its value in `unwind_processes`.
struct Described {
    map: MapHandle,
    value: Vec<u8>,
}

impl Described {
    fn empty() -> Result<Self> {
        Ok(Self {
            map: create_array("unwind_process", size_of::<unwind_process>())?,
            value: vec![0; size_of::<unwind_process>()],
        })
    }
}

/// A file that was read: what the maps hold of it, and its table, for walks outside of the kernel.
struct KnownFile {
    loaded: LoadedFile,
    table: Option<Table>,
    /// The row of the interpreter that it holds; 0: it has none.
    interpreter: u16,
}

/// The unwind tables of all traced processes. Files stay once they are loaded: the next process maps them again.
pub struct UnwindTables {
    store: Store,
    processes: MapHandle,
    files_map: MapHandle,
    described: HashMap<u32, Described>,
    files: HashMap<FileId, KnownFile>,
    images: HashMap<Vec<u8>, KnownFile>,
    interpreters: Interpreters,
    /// Interpreters whose frames are not followed: in which file, which, and why.
    refused: Vec<String>,
    generation: u32,
}

impl UnwindTables {
    /// Tables in maps that are still empty; `shared` tells whether processes of several users may be traced.
    pub fn new(maps: Maps, shared: bool) -> Self {
        UnwindTables {
            store: Store::new(maps.blocks, maps.pages, maps.rules, shared),
            processes: maps.processes,
            files_map: maps.files,
            described: HashMap::new(),
            files: HashMap::new(),
            images: HashMap::new(),
            interpreters: Interpreters::new(maps.interpreters),
            refused: Vec::new(),
            generation: 0,
        }
    }

    /// The interpreters of the files that were read.
    pub fn interpreters(&self) -> &Interpreters {
        &self.interpreters
    }

    /// Takes the interpreters whose frames are not followed: in which file, which, and why.
    pub fn take_refused(&mut self) -> Vec<String> {
        std::mem::take(&mut self.refused)
    }

    /// Whether a file holds an interpreter whose frames are followed.
    pub fn is_interpreter(&self, id: FileId) -> bool {
        self.interpreter_row(id) > 0
    }

    /// The row of the interpreter that a file holds; 0 for none.
    pub fn interpreter_row(&self, id: FileId) -> u16 {
        self.files.get(&id).map_or(0, |known| known.interpreter)
    }

    /// The same as [`UnwindTables::interpreters`], to be changed.
    pub fn interpreters_mut(&mut self) -> &mut Interpreters {
        &mut self.interpreters
    }

    /// What the tables hold and cost so far.
    pub fn usage(&self) -> Usage {
        self.store.usage()
    }

    /// Loads the tables of files before any process maps them.
    ///
    /// # Errors
    /// When the kernel refuses memory for a map. A file that can't be read is no error: it counts in
    /// [`Usage::failed`], and the unwinder follows frame pointers through it.
    pub fn load_files(
        &mut self,
        files: impl Iterator<Item = (FileId, Arc<Kept>)>,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<()> {
        let mut known = HashSet::new();
        let (new, kept): (Vec<FileId>, Vec<Arc<Kept>>) = files
            .filter(|(id, _)| !self.files.contains_key(id) && known.insert(*id))
            .unzip();
        if new.is_empty() {
            return Ok(());
        }
        let code = build_all(&kept, meanwhile);
        for ((id, file), code) in new.iter().zip(kept).zip(code) {
            let KnownCode {
                table,
                interpreter,
                refused,
            } = code;
            // what can't be asked has no table either
            let opened = file.open().ok().filter(|_| table.is_some());
            let name = opened
                .as_ref()
                .and_then(|opened| fs::read_link(opened.path()).ok());
            let name = name.unwrap_or_else(|| PathBuf::from("a file"));
            let owner = opened.map_or(0, |opened| opened.owner);
            let of = (&name.display() as &dyn Display, owner);
            let loaded = self.store.load(table.as_ref(), of, meanwhile)?;
            let why = refused.map(|why| format!("{}: {why}", name.display()));
            self.refused.extend(why);
            let interpreter = match &interpreter {
                Some(interpreter) => self.interpreters.row(interpreter)?,
                None => 0,
            };
            let known = KnownFile {
                loaded,
                table,
                interpreter,
            };
            self.files.insert(*id, known);
        }
        self.store.publish_rules()?;
        for id in &new {
            self.publish_file(*id)?;
        }
        Ok(())
    }

    /// Makes `mappings`, which don't overlap, what the unwinder knows of a process, in place of what it knew, until its
    /// `code_changes` are other than `changes`. Tables
    /// that are new are loaded first, as by [`UnwindTables::load_files`].
    ///
    /// # Errors
    /// When the kernel refuses memory for a map.
    pub fn set_process(
        &mut self,
        tgid: u32,
        mappings: &[CodeMapping],
        changes: u32,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<()> {
        for mapping in mappings {
            if let Code::Image(bytes) = &mapping.code {
                self.load_image(bytes, meanwhile)?;
            }
        }
        let files = mappings.iter().filter_map(|mapping| match &mapping.code {
            Code::File { id, file } => Some((*id, Arc::clone(file))),
            Code::Unreadable { .. } | Code::Image(_) | Code::Anonymous => None,
        });
        self.load_files(files, meanwhile)?;
        let mut described = Vec::new();
        for mapping in mappings {
            match mapping.code {
                // not code without tables, but code whose tables are not known: stacks end there, and are counted
                Code::Unreadable { id } => self.publish_unreadable(id)?,
                _ => described.push(self.describe(mapping)),
            }
        }
        described.sort_by_key(|mapping| mapping.begin);
        self.publish(tgid, changes, &merge(described))?;
        self.store.prepare_block()
    }

    fn load_image(&mut self, bytes: &[u8], meanwhile: &mut Meanwhile<'_>) -> Result<()> {
        if !self.images.contains_key(bytes) {
            let table = unwind::build(bytes).ok();
            let loaded = self.store.load(table.as_ref(), (&"[vdso]", 0), meanwhile)?;
            let known = KnownFile {
                loaded,
                table,
                interpreter: 0,
            };
            self.images.insert(bytes.to_vec(), known);
        }
        Ok(())
    }

    /// Forgets what a process mapped: it has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_process(&mut self, tgid: u32) -> Result<()> {
        if self.described.remove(&tgid).is_none() {
            return Ok(());
        }
        match self.processes.delete(&tgid.to_ne_bytes()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("failed to forget process {tgid}"))
            }
            _ => Ok(()),
        }
    }

    /// Forgets a file that is open no longer, so that another one with its device and inode is read anew. Nobody maps it:
    /// its room in the maps is for others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_file(&mut self, id: FileId) -> Result<()> {
        let Some(known) = self.files.remove(&id) else {
            return Ok(());
        };
        match self.files_map.delete(&file_key(id)?) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).context("failed to forget a file's unwind table");
            }
            _ => {}
        }
        self.store.unload(&known.loaded);
        Ok(())
    }

    /// The rule for an address in a mapping. The table of a file that is new is loaded first.
    ///
    /// # Errors
    /// When the kernel refuses memory for a map.
    pub fn rule_at(
        &mut self,
        mapping: &CodeMapping,
        address: u64,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<Found> {
        let known = match &mapping.code {
            Code::Unreadable { .. } => return Ok(Found::Nothing),
            Code::Anonymous => None,
            Code::Image(bytes) => {
                self.load_image(bytes, meanwhile)?;
                self.images.get(bytes)
            }
            Code::File { id, file } => {
                if !self.files.contains_key(id) {
                    self.load_files(std::iter::once((*id, Arc::clone(file))), meanwhile)?;
                }
                self.files.get(id)
            }
        };
        let found = known.and_then(|known| {
            let loaded = segment_of(mapping, &known.loaded.segments)?;
            let in_file = address.wrapping_sub(bias(mapping, loaded.segment));
            let rule = known.table.as_ref()?.lookup(in_file);
            Some(Found::Rule(rule.unwrap_or(Rule::NoFde), page_bias(loaded)))
        });
        Ok(found.unwrap_or(Found::Rule(Rule::NoFde, 0)))
    }

    fn describe(&self, mapping: &CodeMapping) -> unwind_mapping {
        let loaded = match &mapping.code {
            Code::File { id, .. } => self.files.get(id).map(|known| &known.loaded),
            Code::Image(bytes) => self.images.get(bytes).map(|known| &known.loaded),
            Code::Unreadable { .. } | Code::Anonymous => None,
        };
        let mut described = unwind_mapping {
            begin: mapping.begin,
            end: mapping.end,
            ..Default::default()
        };
        let segments = loaded
            .map(|loaded| &loaded.segments[..])
            .unwrap_or_default();
        if let Some(loaded) = segment_of(mapping, segments) {
            described.bias = bias(mapping, loaded.segment);
            described.page_bias = page_bias(loaded);
            described.code = unwind_code::UNWIND_TABLE.0 as u16;
        }
        if let Code::File { id, .. } = &mapping.code {
            described.interpreter = self.files.get(id).map_or(0, |known| known.interpreter);
        }
        described
    }

    /// Lets the BPF programs find the file's table where a mapping is not described yet. A file with more segments than fit
    /// is left to [`UnwindTables::set_process`].
    fn publish_file(&self, id: FileId) -> Result<()> {
        let known = self.files.get(&id);
        let loaded = known.map_or(&[][..], |known| &known.loaded.segments);
        let value = encode(|file: &mut unwind_file| {
            file.count = loaded.len() as u32;
            file.interpreter = known.map_or(0, |known| known.interpreter);
            for (slot, loaded) in file.segments.iter_mut().zip(loaded) {
                slot.file_offset = loaded.segment.file_offset;
                slot.size = loaded.segment.size;
                slot.vaddr = loaded.segment.vaddr;
                slot.first_page = loaded.first_page;
            }
        })?;
        if loaded.len() > size_of::<unwind_file>() / size_of::<unwind_segment>() {
            return Ok(());
        }
        self.publish_as(id, &value)
    }

    /// Lets the BPF programs not wait for the file's table.
    fn publish_unreadable(&self, id: FileId) -> Result<()> {
        let value = encode(|file: &mut unwind_file| file.unreadable = 1)?;
        self.publish_as(id, &value)
    }

    fn publish_as(&self, id: FileId, value: &[u8]) -> Result<()> {
        match self.files_map.update(&file_key(id)?, value, MapFlags::ANY) {
            // No room: mappings of the file wait for the tracer.
            Err(error) if error.kind() == ErrorKind::Other => Ok(()),
            result => result.context("failed to store where a file's unwind table is"),
        }
    }

    fn publish(&mut self, tgid: u32, changes: u32, mappings: &[unwind_mapping]) -> Result<()> {
        // 0 stands for a process that is not described
        self.generation = self.generation.wrapping_add(1).max(1);
        let (new, described) = match self.described.entry(tgid) {
            Entry::Occupied(known) => (false, known.into_mut()),
            Entry::Vacant(room) => (true, room.insert(Described::empty()?)),
        };
        let Described { map, value } = described;
        let write = |value: &[u8]| {
            map.update(&[0; size_of::<u32>()], value, MapFlags::ANY)
                .with_context(|| format!("failed to store the mappings of process {tgid}"))
        };
        process::prepare(value, self.generation, changes, mappings)?;
        write(value)?;
        process::activate(value)?;
        write(value)?;
        if new {
            // only now, or the programs would find that it maps nothing
            let fd = map.as_fd().as_raw_fd().to_ne_bytes();
            self.processes
                .update(&tgid.to_ne_bytes(), &fd, MapFlags::ANY)
                .with_context(|| {
                    format!("failed to make room for the mappings of process {tgid}")
                })?;
        }
        Ok(())
    }
}

/// The segment that a mapping is for.
fn segment_of<'a>(
    mapping: &CodeMapping,
    segments: &'a [LoadedSegment],
) -> Option<&'a LoadedSegment> {
    let bytes = |loaded: &&LoadedSegment| shown(mapping, loaded.segment);
    segments
        .iter()
        .max_by_key(bytes)
        .filter(|loaded| bytes(loaded) > 0)
}

/// What to take from an address in a mapping for the file's own address. Like any distance, it wraps.
fn bias(mapping: &CodeMapping, segment: Segment) -> u64 {
    mapping
        .begin
        .wrapping_sub(mapping.file_offset)
        .wrapping_add(segment.file_offset)
        .wrapping_sub(segment.vaddr)
}

/// What to add to the number of a page in a segment for its key in `unwind_pages`. It wraps as well.
fn page_bias(loaded: &LoadedSegment) -> u32 {
    let first = (loaded.segment.vaddr / PAGE_SIZE) as u32;
    loaded.first_page.wrapping_sub(first)
}

/// Bytes of a segment that a mapping shows. The kernel maps whole pages, so a mapping can also show the end or the
/// beginning of a neighbouring segment.
fn shown(mapping: &CodeMapping, segment: Segment) -> u64 {
    let mapped_to = mapping
        .file_offset
        .saturating_add(mapping.end.saturating_sub(mapping.begin));
    let end = segment
        .file_offset
        .saturating_add(segment.size)
        .min(mapped_to);
    end.saturating_sub(segment.file_offset.max(mapping.file_offset))
}

/// A file's key in `unwind_files`.
pub fn file_key((device, inode): FileId) -> Result<Vec<u8>> {
    encode(|key: &mut unwind_file_key| {
        key.inode = inode;
        // the kernel's own numbering of devices
        key.device = makedev_kernel(device);
    })
}

/// The kernel's own form of a device number, from that of stat(2).
fn makedev_kernel(device: u64) -> u32 {
    rustix::fs::major(device) << 20 | rustix::fs::minor(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_that_shows_the_edge_of_another_segment_belongs_to_the_larger_part() {
        let text = Segment {
            vaddr: 0x1000,
            file_offset: 0x1000,
            size: 0x1800,
        };
        let more = Segment {
            vaddr: 0x4800,
            file_offset: 0x2800,
            size: 0x2000,
        };
        let mapped = CodeMapping {
            begin: 0x5000,
            end: 0x8000,
            file_offset: 0x2000,
            code: Code::Anonymous,
        };
        assert_eq!(shown(&mapped, text), 0x800);
        assert_eq!(shown(&mapped, more), 0x2000);
    }

    #[test]
    fn devices_are_numbered_as_the_kernel_does() {
        let device = rustix::fs::makedev(0x103, 0x12345);
        assert_eq!(makedev_kernel(device), 0x103 << 20 | 0x12345);
    }
}
