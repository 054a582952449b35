//! Fills the BPF maps that the unwinder searches: each file's table once, and per process its executable mappings.
//! Which mappings a process has is found elsewhere; what a table says comes from `unwind`.

use std::collections::HashMap;
use std::fs::File;
use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType};
use libbpf_sys::bpf_map_create_opts;
use object::ReadCache;

use super::skel::types::{unwind_block, unwind_mapping, unwind_process};
use crate::unwind::{self, CodePages, Dictionary, PAGE_SIZE, Segment, Table};

/// Rows in one block: what a 16-bit index reaches.
const BLOCK_ROWS: usize = size_of::<unwind_block>() / size_of::<u32>();
/// Mappings that fit in one process's value.
const MAX_MAPPINGS: usize = (size_of::<unwind_process>() - offset_of!(unwind_process, mappings))
    / size_of::<unwind_mapping>();
// Layout of a page's value, as src/bpf/unwind.h tells.
const PAGE_FIRST_SHIFT: u32 = 16;
const PAGE_BLOCK_SHIFT: u32 = 32;
/// How long the user waits in silence while tables are built.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// The identity of a file that is mapped, as `/proc/PID/maps` gives it. The build id tells a file from one that was
/// given the same inode later.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FileId {
    device: u64,
    inode: u64,
    build_id: Option<Vec<u8>>,
}

/// Where the bytes of an executable mapping come from.
#[derive(Clone, Debug)]
pub enum Code {
    /// A file that can be opened at this path (by way of `/proc/PID/map_files` or the target's root, for example).
    File {
        /// Device number in `/proc/PID/maps`.
        device: u64,
        /// Inode number in `/proc/PID/maps`.
        inode: u64,
        /// Where to open it.
        path: PathBuf,
    },
    /// An ELF image that is only in memory: the vDSO.
    Image(Vec<u8>),
    /// Anonymous memory, which has no unwind information.
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

/// A segment of a file whose rows are in the maps.
#[derive(Clone, Copy, Debug)]
struct LoadedSegment {
    segment: Segment,
    first_page: u32,
}

/// A file's segments; empty where no table could be had.
type LoadedFile = Vec<LoadedSegment>;

/// A block of rows under way: full blocks are only in the map.
struct Block {
    key: u32,
    map: MapHandle,
    rows: Vec<u32>,
}

/// The unwind tables of all traced processes. Files stay once they are loaded: the next process maps them again.
pub struct UnwindTables {
    maps: Maps,
    rules: Dictionary,
    published_rules: usize,
    files: HashMap<FileId, LoadedFile>,
    images: HashMap<Vec<u8>, LoadedFile>,
    block: Option<Block>,
    spare: Option<Block>,
    next_block: u32,
    next_page: u32,
    generation: u32,
    usage: Usage,
}

impl UnwindTables {
    /// Tables in maps that are still empty.
    pub fn new(maps: Maps) -> Self {
        UnwindTables {
            maps,
            rules: Dictionary::new(),
            published_rules: 0,
            files: HashMap::new(),
            images: HashMap::new(),
            block: None,
            spare: None,
            next_block: 1,
            next_page: 0,
            generation: 0,
            usage: Usage::default(),
        }
    }

    /// What the tables hold and cost so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Makes `mappings` what the unwinder knows of a process, in place of what it knew. Tables that are new are
    /// built first; while that takes longer than half a second, `progress` is told how many of how many are built.
    ///
    /// # Errors
    /// When the kernel refuses memory for a map. A file that can't be read is no error: it counts in
    /// [`Usage::failed`], and the unwinder follows frame pointers through it.
    pub fn set_process(
        &mut self,
        tgid: u32,
        mappings: &[CodeMapping],
        progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        let files: Vec<Option<FileId>> = mappings
            .iter()
            .map(|mapping| identify(&mapping.code))
            .collect();
        self.load_new_files(mappings, &files, progress)?;
        let mut described: Vec<unwind_mapping> = mappings
            .iter()
            .zip(&files)
            .map(|(mapping, file)| self.describe(mapping, file.as_ref()))
            .collect();
        described.sort_by_key(|mapping| mapping.begin);
        self.publish_process(tgid, &merge(described))?;
        self.prepare_block()
    }

    /// Forgets a process that has ended.
    ///
    /// # Errors
    /// When the kernel refuses; not when the process was unknown.
    pub fn remove_process(&mut self, tgid: u32) -> Result<()> {
        match self.maps.processes.delete(&tgid.to_ne_bytes()) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => Err(error)
                .with_context(|| format!("failed to forget the mappings of process {tgid}")),
            _ => Ok(()),
        }
    }

    fn load_new_files(
        &mut self,
        mappings: &[CodeMapping],
        files: &[Option<FileId>],
        progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        let mut paths: Vec<(FileId, PathBuf)> = Vec::new();
        for (mapping, file) in mappings.iter().zip(files) {
            match (&mapping.code, file) {
                (Code::File { path, .. }, Some(id)) => {
                    if !self.files.contains_key(id) && !paths.iter().any(|(known, _)| known == id) {
                        paths.push((id.clone(), path.clone()));
                    }
                }
                (Code::Image(bytes), _) if !self.images.contains_key(bytes) => {
                    let loaded = self.load(unwind::build(&bytes[..]).ok())?;
                    self.images.insert(bytes.clone(), loaded);
                }
                _ => {}
            }
        }
        let tables = build_all(&paths, progress);
        for ((id, _), table) in paths.into_iter().zip(tables) {
            let loaded = self.load(table)?;
            self.files.insert(id, loaded);
        }
        self.publish_rules()
    }

    /// Puts a table's rows and pages into the maps.
    fn load(&mut self, table: Option<Table>) -> Result<LoadedFile> {
        let Some(table) = table.filter(|table| self.has_room(table)) else {
            self.usage.failed += 1;
            return Ok(Vec::new());
        };
        let numbers = table.renumbering(&mut self.rules);
        let loaded = table
            .code
            .iter()
            .map(|code| self.load_segment(&table, code, &numbers))
            .collect::<Result<LoadedFile>>()?;
        self.publish_block()?;
        self.usage.files += 1;
        self.usage.rows += table.rows.len();
        self.usage.rules = self.rules.codes().len();
        Ok(loaded)
    }

    fn has_room(&self, table: &Table) -> bool {
        let pages: usize = table.code.iter().map(CodePages::page_count).sum();
        let blocks = table.rows.len() / BLOCK_ROWS * 2 + 2;
        self.next_page as usize + pages <= self.maps.pages.max_entries() as usize
            && self.next_block as usize + blocks <= self.maps.blocks.max_entries() as usize
    }

    fn load_segment(
        &mut self,
        table: &Table,
        code: &CodePages,
        numbers: &[u16],
    ) -> Result<LoadedSegment> {
        let first_page = self.next_page;
        let mut values: Vec<u8> = Vec::with_capacity(code.page_count() * size_of::<u64>());
        for page in code.first_rows.windows(2) {
            let rows = table
                .rows
                .get(page[0] as usize..page[1] as usize)
                .unwrap_or_default();
            let rows = rows.iter().map(|row| {
                let number = numbers
                    .get((row & 0xffff) as usize)
                    .copied()
                    .unwrap_or(Dictionary::UNSUPPORTED);
                row & 0xffff_0000 | u32::from(number)
            });
            values.extend(self.store_page(rows)?.to_ne_bytes());
        }
        let keys: Vec<u8> = (first_page..)
            .take(code.page_count())
            .flat_map(u32::to_ne_bytes)
            .collect();
        if !values.is_empty() {
            self.maps
                .pages
                .update_batch(
                    &keys,
                    &values,
                    code.page_count() as u32,
                    MapFlags::ANY,
                    MapFlags::ANY,
                )
                .context("failed to write the pages of an unwind table")?;
        }
        self.next_page += code.page_count() as u32;
        Ok(LoadedSegment {
            segment: code.segment,
            first_page,
        })
    }

    /// Adds a page's rows to the block under way, or to a new one, and tells where they are. A page never crosses from
    /// one block to the next, so that a search stays in one value.
    fn store_page(&mut self, rows: impl ExactSizeIterator<Item = u32>) -> Result<u64> {
        let count = rows.len() as u64;
        if count == 0 {
            return Ok(0);
        }
        if self
            .block
            .as_ref()
            .is_none_or(|block| block.rows.len() + rows.len() > BLOCK_ROWS)
        {
            self.publish_block()?;
            let next = match self.spare.take() {
                Some(spare) => spare,
                None => self.new_block()?,
            };
            self.block = Some(next);
        }
        let Some(block) = &mut self.block else {
            return Ok(0);
        };
        let first = block.rows.len() as u64;
        block.rows.extend(rows);
        Ok(u64::from(block.key) << PAGE_BLOCK_SHIFT | first << PAGE_FIRST_SHIFT | (count - 1))
    }

    fn new_block(&mut self) -> Result<Block> {
        let map = create_array("unwind_block", size_of::<unwind_block>())?;
        let key = self.next_block;
        self.maps
            .blocks
            .update(
                &key.to_ne_bytes(),
                &map.as_fd().as_raw_fd().to_ne_bytes(),
                MapFlags::ANY,
            )
            .context("failed to add a block of unwind rows")?;
        self.next_block += 1;
        self.usage.row_bytes += size_of::<unwind_block>();
        Ok(Block {
            key,
            map,
            rows: Vec::with_capacity(BLOCK_ROWS),
        })
    }

    fn publish_block(&mut self) -> Result<()> {
        let Some(block) = &self.block else {
            return Ok(());
        };
        write_words(&block.map, &block.rows).context("failed to write unwind rows")
    }

    fn publish_rules(&mut self) -> Result<()> {
        if self.published_rules != self.rules.codes().len() {
            write_words(&self.maps.rules, self.rules.codes())
                .context("failed to write unwind rules")?;
            self.published_rules = self.rules.codes().len();
        }
        Ok(())
    }

    fn describe(&self, mapping: &CodeMapping, file: Option<&FileId>) -> unwind_mapping {
        let loaded = match (&mapping.code, file) {
            (Code::Image(bytes), _) => self.images.get(bytes),
            (_, Some(id)) => self.files.get(id),
            _ => None,
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

    fn publish_process(&mut self, tgid: u32, mappings: &[unwind_mapping]) -> Result<()> {
        self.generation += 1;
        let value = process_value(self.generation, mappings)?;
        let map = create_array("unwind_process", size_of::<unwind_process>())?;
        map.update(&0u32.to_ne_bytes(), &value, MapFlags::ANY)
            .and_then(|()| {
                let fd = map.as_fd().as_raw_fd().to_ne_bytes();
                self.maps
                    .processes
                    .update(&tgid.to_ne_bytes(), &fd, MapFlags::ANY)
            })
            .with_context(|| format!("failed to store the mappings of process {tgid}"))
    }

    /// Has an empty block at hand: adding one waits for all running programs, which is better done while nothing does.
    fn prepare_block(&mut self) -> Result<()> {
        let room = (self.next_block as usize) < self.maps.blocks.max_entries() as usize;
        if self.spare.is_none() && room {
            self.spare = Some(self.new_block()?);
        }
        Ok(())
    }
}

/// The value that tells the unwinder a process's mappings. What doesn't fit is left out: the highest addresses.
fn process_value(generation: u32, mappings: &[unwind_mapping]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size_of::<unwind_process>()];
    let process: &mut unwind_process = plain::from_mut_bytes(&mut bytes)
        .map_err(|error| anyhow!("failed to lay out the mappings of a process: {error:?}"))?;
    let kept = mappings.len().min(MAX_MAPPINGS);
    process.generation = generation;
    process.count = kept as u32;
    for (slot, mapping) in process.mappings.iter_mut().zip(mappings) {
        *slot = *mapping;
    }
    Ok(bytes)
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
    let join = |mappings: Vec<unwind_mapping>,
                joins: &dyn Fn(&unwind_mapping, &unwind_mapping) -> bool| {
        let mut joined: Vec<unwind_mapping> = Vec::with_capacity(mappings.len());
        for mapping in mappings {
            match joined.last_mut() {
                Some(last) if joins(last, &mapping) => last.end = mapping.end,
                _ => joined.push(mapping),
            }
        }
        joined
    };
    let mappings = join(mappings, &|a, b| a.end == b.begin && same_table(a, b));
    if mappings.len() <= MAX_MAPPINGS {
        return mappings;
    }
    join(mappings, &|a, b| a.has_table == 0 && b.has_table == 0)
}

fn identify(code: &Code) -> Option<FileId> {
    match code {
        Code::File {
            device,
            inode,
            path,
        } => {
            let build_id = File::open(path)
                .ok()
                .and_then(|file| unwind::build_id(&ReadCache::new(file)));
            Some(FileId {
                device: *device,
                inode: *inode,
                build_id,
            })
        }
        Code::Image(_) | Code::Anonymous => None,
    }
}

fn build_file(path: &PathBuf) -> Option<Table> {
    let file = ReadCache::new(File::open(path).ok()?);
    unwind::build(&file).ok()
}

/// Builds the tables of all files, on as many threads as there are processors; results are in the order of `paths`.
fn build_all(
    paths: &[(FileId, PathBuf)],
    mut progress: impl FnMut(usize, usize),
) -> Vec<Option<Table>> {
    let mut tables: Vec<Option<Table>> = paths.iter().map(|_| None).collect();
    let next = Mutex::new(paths.iter().map(|(_, path)| path).enumerate());
    let (sender, built) = mpsc::channel();
    let threads = thread::available_parallelism()
        .map_or(1, NonZeroUsize::get)
        .min(paths.len());
    thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                let take = || next.lock().ok().and_then(|mut next| next.next());
                while let Some((index, path)) = take() {
                    if sender.send((index, build_file(path))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut done = 0;
        loop {
            match built.recv_timeout(PROGRESS_INTERVAL) {
                Ok((index, table)) => {
                    done += 1;
                    if let Some(slot) = tables.get_mut(index) {
                        *slot = table;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => progress(done, paths.len()),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    tables
}

/// An array with one element, to be the inner map of another.
fn create_array(name: &str, value_size: usize) -> Result<MapHandle> {
    let options = bpf_map_create_opts {
        sz: size_of::<bpf_map_create_opts>() as u64,
        ..Default::default()
    };
    MapHandle::create(
        MapType::Array,
        Some(name),
        size_of::<u32>() as u32,
        value_size as u32,
        1,
        &options,
    )
    .context("failed to create a map for unwind tables")
}

/// Writes the only element of an array of u32 words; the words behind the given ones are 0.
fn write_words(map: &MapHandle, words: &[u32]) -> libbpf_rs::Result<()> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.resize(map.value_size() as usize, 0);
    map.update(&0u32.to_ne_bytes(), &bytes, MapFlags::ANY)
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
        assert_eq!(
            process.mappings[MAX_MAPPINGS - 1].begin,
            MAX_MAPPINGS as u64 - 1
        );
    }

    #[test]
    fn tables_come_in_the_order_that_was_asked_for() {
        let id = |inode| FileId {
            device: 0,
            inode,
            build_id: None,
        };
        let paths = [
            (id(1), PathBuf::from("/proc/self/exe")),
            (id(2), PathBuf::from("/nonexistent")),
            (id(3), PathBuf::from("/proc/self/exe")),
        ];
        let tables = build_all(&paths, |_, _| {});
        assert_eq!(
            tables.iter().map(Option::is_some).collect::<Vec<_>>(),
            [true, false, true]
        );
    }
}
