//! Lays tables out in the BPF maps: rows in blocks, an index of pages, one dictionary of rules.
//! Knows nothing of processes; the layout is told in src/bpf/unwind.h.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType};
use libbpf_sys::bpf_map_create_opts;

use super::super::skel::types::unwind_block;
use super::Usage;
use super::build::Meanwhile;
use crate::unwind::{CodePages, Dictionary, Segment, Table};

/// Rows in one block: what a 16-bit index reaches.
const BLOCK_ROWS: usize = size_of::<unwind_block>() / size_of::<u32>();
// Layout of a page's value, as src/bpf/unwind.h tells.
const PAGE_FIRST_SHIFT: u32 = 16;
const PAGE_BLOCK_SHIFT: u32 = 32;

/// A segment of a file whose rows are in the maps.
#[derive(Clone, Copy, Debug)]
pub struct LoadedSegment {
    /// The part of the file.
    pub segment: Segment,
    /// Key of its first page in `unwind_pages`.
    pub first_page: u32,
}

/// A file's segments; empty where no table could be had.
pub type LoadedFile = Vec<LoadedSegment>;

/// A block of rows that is not full yet.
struct Block {
    key: u32,
    map: MapHandle,
    rows: Vec<u32>,
}

impl Block {
    /// Adds an empty block to the map of blocks.
    fn add(blocks: &MapHandle, key: u32) -> Result<Self> {
        let map = create_array("unwind_block", size_of::<unwind_block>())?;
        let fd = map.as_fd().as_raw_fd().to_ne_bytes();
        blocks
            .update(&key.to_ne_bytes(), &fd, MapFlags::ANY)
            .context("failed to add a block of unwind rows")?;
        Ok(Block {
            key,
            map,
            rows: Vec::with_capacity(BLOCK_ROWS),
        })
    }
}

/// The maps, and how far they are filled.
pub struct Store {
    blocks: MapHandle,
    pages: MapHandle,
    rules_map: MapHandle,
    rules: Dictionary,
    published_rules: usize,
    block: Option<Block>,
    spare: Option<Receiver<Result<Block>>>,
    next_block: u32,
    next_page: u32,
    usage: Usage,
}

impl Store {
    /// A store in maps that are still empty.
    pub fn new(blocks: MapHandle, pages: MapHandle, rules_map: MapHandle) -> Self {
        Store {
            blocks,
            pages,
            rules_map,
            rules: Dictionary::new(),
            published_rules: 0,
            block: None,
            spare: None,
            // 0 is for pages without rows
            next_block: 1,
            next_page: 0,
            usage: Usage::default(),
        }
    }

    /// What the maps hold.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Puts a table's rows and pages into the maps; its rules only come with [`Store::publish_rules`]. Gives no segments
    /// where there is no table, or no room for it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn load(
        &mut self,
        table: Option<&Table>,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<LoadedFile> {
        let Some(table) = table.filter(|table| self.has_room(table)) else {
            self.usage.failed += 1;
            return Ok(Vec::new());
        };
        let numbers = table.renumbering(&mut self.rules);
        let mut loaded = Vec::new();
        for code in &table.code {
            loaded.push(self.load_segment(table, code, &numbers, meanwhile)?);
        }
        self.publish_block()?;
        self.usage.files += 1;
        self.usage.rows += table.rows.len();
        self.usage.rules = self.rules.codes().len();
        Ok(loaded)
    }

    /// Makes the rules of all loaded tables known to the unwinder.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn publish_rules(&mut self) -> Result<()> {
        if self.published_rules != self.rules.codes().len() {
            write_words(&self.rules_map, self.rules.codes())
                .context("failed to write unwind rules")?;
            self.published_rules = self.rules.codes().len();
        }
        Ok(())
    }

    /// Has an empty block at hand, soon: adding one waits for all running programs, which takes milliseconds.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn prepare_block(&mut self) -> Result<()> {
        let room = self.next_block < self.blocks.max_entries();
        if self.spare.is_none() && room {
            self.spare = Some(self.add_block()?);
        }
        Ok(())
    }

    /// Begins to add a block.
    fn add_block(&mut self) -> Result<Receiver<Result<Block>>> {
        let (blocks, key) = (MapHandle::try_from(&self.blocks)?, self.next_block);
        self.next_block += 1;
        let (sender, coming) = mpsc::channel();
        // nobody waits for a block when memleak ends
        thread::spawn(move || _ = sender.send(Block::add(&blocks, key)));
        Ok(coming)
    }

    fn has_room(&self, table: &Table) -> bool {
        let pages: usize = table.code.iter().map(CodePages::page_count).sum();
        // A block is left when a page doesn't fit any more, so two in a row are more than one full.
        let blocks = table.rows.len() / BLOCK_ROWS * 2 + 2;
        self.next_page as usize + pages <= self.pages.max_entries() as usize
            && self.next_block as usize + blocks <= self.blocks.max_entries() as usize
    }

    fn load_segment(
        &mut self,
        table: &Table,
        code: &CodePages,
        numbers: &[u16],
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<LoadedSegment> {
        let first_page = self.next_page;
        let count = code.page_count() as u32;
        let mut values: Vec<u8> = Vec::with_capacity(code.page_count() * size_of::<u64>());
        for page in code.first_rows.windows(2) {
            let rows = table
                .rows
                .get(page[0] as usize..page[1] as usize)
                .unwrap_or_default();
            values.extend(self.store_page(rows, numbers, meanwhile)?.to_ne_bytes());
        }
        let keys: Vec<u8> = (first_page..)
            .take(code.page_count())
            .flat_map(u32::to_ne_bytes)
            .collect();
        if count > 0 {
            self.pages
                .update_batch(&keys, &values, count, MapFlags::ANY, MapFlags::ANY)
                .context("failed to write the pages of an unwind table")?;
        }
        self.next_page += count;
        Ok(LoadedSegment {
            segment: code.segment,
            first_page,
        })
    }

    /// Adds a page's rows to the block under way, or to a new one, and tells where they are. A page never crosses from
    /// one block to the next, so that a search stays in one value.
    fn store_page(
        &mut self,
        rows: &[u32],
        numbers: &[u16],
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<u64> {
        let Some(last) = rows.len().checked_sub(1) else {
            return Ok(0);
        };
        if self
            .block
            .as_ref()
            .is_none_or(|block| block.rows.len() + rows.len() > BLOCK_ROWS)
        {
            self.publish_block()?;
            let coming = match self.spare.take() {
                Some(coming) => coming,
                None => self.add_block()?,
            };
            let block = meanwhile.wait(&coming);
            self.block = Some(block.context("failed to add a block of unwind rows")??);
            self.usage.row_bytes += size_of::<unwind_block>();
        }
        let Some(block) = &mut self.block else {
            return Ok(0);
        };
        let first = block.rows.len() as u64;
        block.rows.extend(rows.iter().map(|row| {
            let number = numbers.get((row & 0xffff) as usize).copied();
            row & 0xffff_0000 | u32::from(number.unwrap_or(Dictionary::UNSUPPORTED))
        }));
        Ok(u64::from(block.key) << PAGE_BLOCK_SHIFT | first << PAGE_FIRST_SHIFT | last as u64)
    }

    fn publish_block(&mut self) -> Result<()> {
        match &self.block {
            Some(block) => {
                write_words(&block.map, &block.rows).context("failed to write unwind rows")
            }
            None => Ok(()),
        }
    }
}

/// An array with one element, to be the inner map of another.
///
/// # Errors
/// When the kernel refuses.
pub fn create_array(name: &str, value_size: usize) -> Result<MapHandle> {
    let options = bpf_map_create_opts {
        sz: size_of::<bpf_map_create_opts>() as u64,
        ..Default::default()
    };
    let key_size = size_of::<u32>() as u32;
    MapHandle::create(
        MapType::Array,
        Some(name),
        key_size,
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
