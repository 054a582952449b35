//! What the BPF unwinder knows: the tables of files, each loaded once, and per process its executable mappings.
//! Which mappings a process has is found elsewhere; what a table says comes from `unwind`.

mod build;
mod store;

use std::collections::HashMap;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use libbpf_rs::{ErrorKind, MapCore as _, MapFlags, MapHandle};

use super::skel::types::{unwind_mapping, unwind_process};
use crate::unwind::{self, PAGE_SIZE, Segment};
use build::build_all;
use store::{LoadedFile, Store, create_array};

/// Mappings that fit in one process's value.
const MAX_MAPPINGS: usize = (size_of::<unwind_process>() - offset_of!(unwind_process, mappings))
    / size_of::<unwind_mapping>();

/// Device and inode of a file, as stat(2) gives them.
pub type FileId = (u64, u64);

/// Where the bytes of an executable mapping come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Code {
    /// A file.
    File {
        /// Device and inode. The file must stay open while it is traced, so that no other one gets them.
        id: FileId,
        /// Where it can be opened now.
        path: PathBuf,
    },
    /// An ELF image that is only in memory: the vDSO.
    Image(Vec<u8>),
    /// Memory without unwind information, such as what a JIT compiler fills.
    Anonymous,
}

/// An executable mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// The unwind tables of all traced processes. Files stay once they are loaded: the next process maps them again.
pub struct UnwindTables {
    store: Store,
    processes: MapHandle,
    files: HashMap<FileId, LoadedFile>,
    images: HashMap<Vec<u8>, LoadedFile>,
    generation: u32,
}

impl UnwindTables {
    /// Tables in maps that are still empty.
    pub fn new(maps: Maps) -> Self {
        UnwindTables {
            store: Store::new(maps.blocks, maps.pages, maps.rules),
            processes: maps.processes,
            files: HashMap::new(),
            images: HashMap::new(),
            generation: 0,
        }
    }

    /// What the tables hold and cost so far.
    pub fn usage(&self) -> Usage {
        self.store.usage()
    }

    /// Loads the tables of files before any process maps them. While that takes longer
    /// than half a second, `progress` is told how many of how many are built.
    ///
    /// # Errors
    /// When the kernel refuses memory for a map. A file that can't be read is no error: it counts in
    /// [`Usage::failed`], and the unwinder follows frame pointers through it.
    pub fn load_files(
        &mut self,
        files: impl Iterator<Item = (FileId, PathBuf)>,
        progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        let mut new: Vec<(FileId, PathBuf)> = Vec::new();
        for (id, path) in files {
            if !self.files.contains_key(&id) && !new.iter().any(|(known, _)| *known == id) {
                new.push((id, path));
            }
        }
        let tables = build_all(new.iter().map(|(_, path)| path.as_path()), progress);
        for ((id, _), table) in new.iter().zip(tables) {
            let loaded = self.store.load(table)?;
            self.files.insert(*id, loaded);
        }
        self.store.publish_rules()
    }

    /// Makes `mappings`, which don't overlap, what the unwinder knows of a process, in place of what it knew. Tables
    /// that are new are loaded first, as by [`UnwindTables::load_files`].
    ///
    /// # Errors
    /// When the kernel refuses memory for a map.
    pub fn set_process(
        &mut self,
        tgid: u32,
        mappings: &[CodeMapping],
        progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        for mapping in mappings {
            if let Code::Image(bytes) = &mapping.code
                && !self.images.contains_key(bytes)
            {
                let loaded = self.store.load(unwind::build(&bytes[..]).ok())?;
                self.images.insert(bytes.clone(), loaded);
            }
        }
        let files = mappings.iter().filter_map(|mapping| match &mapping.code {
            Code::File { id, path } => Some((*id, path.clone())),
            Code::Image(_) | Code::Anonymous => None,
        });
        self.load_files(files, progress)?;
        let mut described: Vec<unwind_mapping> = mappings
            .iter()
            .map(|mapping| self.describe(mapping))
            .collect();
        described.sort_by_key(|mapping| mapping.begin);
        self.publish(tgid, &merge(described))?;
        self.store.prepare_block()
    }

    /// Forgets a process that has ended.
    ///
    /// # Errors
    /// When the kernel refuses; not when the process was unknown.
    pub fn remove_process(&mut self, tgid: u32) -> Result<()> {
        match self.processes.delete(&tgid.to_ne_bytes()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error)
                .with_context(|| format!("failed to forget the mappings of process {tgid}")),
            _ => Ok(()),
        }
    }

    fn describe(&self, mapping: &CodeMapping) -> unwind_mapping {
        let loaded = match &mapping.code {
            Code::File { id, .. } => self.files.get(id),
            Code::Image(bytes) => self.images.get(bytes),
            Code::Anonymous => None,
        };
        let mut described = unwind_mapping {
            begin: mapping.begin,
            end: mapping.end,
            ..Default::default()
        };
        let segments = loaded.map(Vec::as_slice).unwrap_or_default();
        let best = segments
            .iter()
            .max_by_key(|loaded| shown(mapping, loaded.segment));
        if let Some(loaded) = best.filter(|loaded| shown(mapping, loaded.segment) > 0) {
            let Segment {
                vaddr, file_offset, ..
            } = loaded.segment;
            // All of this wraps: a bias is a distance, as is what is added to a page's number.
            described.bias = mapping
                .begin
                .wrapping_sub(mapping.file_offset)
                .wrapping_add(file_offset)
                .wrapping_sub(vaddr);
            described.page_bias = loaded.first_page.wrapping_sub((vaddr / PAGE_SIZE) as u32);
            described.has_table = 1;
        }
        described
    }

    fn publish(&mut self, tgid: u32, mappings: &[unwind_mapping]) -> Result<()> {
        self.generation += 1;
        let value = process_value(self.generation, mappings)?;
        let map = create_array("unwind_process", size_of::<unwind_process>())?;
        map.update(&0u32.to_ne_bytes(), &value, MapFlags::ANY)
            .and_then(|()| {
                let fd = map.as_fd().as_raw_fd().to_ne_bytes();
                self.processes
                    .update(&tgid.to_ne_bytes(), &fd, MapFlags::ANY)
            })
            .with_context(|| format!("failed to store the mappings of process {tgid}"))
    }
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

/// Joins neighbours that continue each other. Where more remain than the unwinder can search, memory without tables is
/// joined across the gaps between: JIT compilers scatter it in many small pieces.
fn merge(mappings: Vec<unwind_mapping>) -> Vec<unwind_mapping> {
    let same_table = |a: &unwind_mapping, b: &unwind_mapping| {
        a.has_table == b.has_table && a.bias == b.bias && a.page_bias == b.page_bias
    };
    let merged = join(mappings, |a, b| {
        a.end == b.begin && (same_table(a, b) || a.has_table == 0 && b.has_table == 0)
    });
    if merged.len() <= MAX_MAPPINGS {
        return merged;
    }
    join(merged, |a, b| a.has_table == 0 && b.has_table == 0)
}

fn join(
    mappings: Vec<unwind_mapping>,
    joins: impl Fn(&unwind_mapping, &unwind_mapping) -> bool,
) -> Vec<unwind_mapping> {
    let mut joined: Vec<unwind_mapping> = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        match joined.last_mut() {
            Some(last) if joins(last, &mapping) => last.end = mapping.end,
            _ => joined.push(mapping),
        }
    }
    joined
}

/// The value that tells the unwinder a process's mappings. What doesn't fit is left out: the highest addresses.
fn process_value(generation: u32, mappings: &[unwind_mapping]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size_of::<unwind_process>()];
    let process: &mut unwind_process = plain::from_mut_bytes(&mut bytes)
        .map_err(|error| anyhow!("failed to lay out the mappings of a process: {error:?}"))?;
    process.generation = generation;
    process.count = mappings.len().min(MAX_MAPPINGS) as u32;
    for (slot, mapping) in process.mappings.iter_mut().zip(mappings) {
        *slot = *mapping;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(begin: u64, end: u64, bias: u64, has_table: u32) -> unwind_mapping {
        unwind_mapping {
            begin,
            end,
            bias,
            page_bias: 0,
            has_table,
        }
    }

    fn ranges(mappings: Vec<unwind_mapping>) -> Vec<(u64, u64)> {
        merge(mappings)
            .iter()
            .map(|mapping| (mapping.begin, mapping.end))
            .collect()
    }

    #[test]
    fn mappings_of_one_file_that_continue_each_other_are_one() {
        let parts = vec![
            mapping(0x1000, 0x2000, 7, 1),
            mapping(0x2000, 0x3000, 7, 1),
            mapping(0x3000, 0x4000, 8, 1),
        ];
        assert_eq!(ranges(parts), [(0x1000, 0x3000), (0x3000, 0x4000)]);
    }

    #[test]
    fn gaps_stay_gaps_while_there_is_room() {
        let parts = vec![mapping(0x1000, 0x2000, 0, 0), mapping(0x3000, 0x4000, 0, 0)];
        assert_eq!(ranges(parts), [(0x1000, 0x2000), (0x3000, 0x4000)]);
    }

    #[test]
    fn scattered_code_without_tables_is_joined_when_there_is_too_much_of_it() {
        let mut parts: Vec<unwind_mapping> = (0..3_000)
            .map(|n| mapping(0x10_0000 + n * 0x2000, 0x10_1000 + n * 0x2000, 0, 0))
            .collect();
        parts.push(mapping(0x7f00_0000_0000, 0x7f00_0000_1000, 9, 1));
        assert_eq!(
            ranges(parts),
            [
                (0x10_0000, 0x10_1000 + 2_999 * 0x2000),
                (0x7f00_0000_0000, 0x7f00_0000_1000)
            ]
        );
    }

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
    fn a_value_holds_the_lowest_mappings_that_fit() {
        let mappings: Vec<unwind_mapping> = (0..5_000).map(|n| mapping(n, n + 1, 0, 1)).collect();
        let bytes = process_value(42, &mappings).unwrap();
        let process: &unwind_process = plain::from_bytes(&bytes).unwrap();
        assert_eq!(
            (process.generation, process.count),
            (42, MAX_MAPPINGS as u32)
        );
        let last = process.mappings[MAX_MAPPINGS - 1];
        assert_eq!(last.begin, MAX_MAPPINGS as u64 - 1);
    }
}
