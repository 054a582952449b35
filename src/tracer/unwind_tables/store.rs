//! Lays tables out in the BPF maps: rows in blocks, an index of pages, one dictionary of rules.
//! Knows nothing of processes; the layout is told in src/bpf/unwind.h.

use std::collections::HashMap;
use std::fmt::Display;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType};
use libbpf_sys::bpf_map_create_opts;

use super::super::skel::types::unwind_block;
use super::Usage;
use super::build::Meanwhile;
use super::rules::{MOST_RULES, SharedRules};
use crate::stderr::say;
use crate::tracer::quota::Quota;
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

/// What the maps hold of a file.
#[derive(Clone, Debug, Default)]
pub struct LoadedFile {
    /// Its segments; empty where no table could be had.
    pub segments: Vec<LoadedSegment>,
    /// Its owner's user id.
    owner: u32,
    /// First page and number of pages, for each segment.
    pages: Vec<(u32, u32)>,
    /// Keys of the blocks that hold its rows, each once.
    blocks: Vec<u32>,
    rows: usize,
    rules: Vec<u16>,
    added_rules: usize,
}

/// New rules of one file, where the maps are shared: the largest libraries have a quarter as many.
const MOST_RULES_OF_FILE: usize = 8192;

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
    rules: SharedRules,
    block: Option<Block>,
    spare: Option<Receiver<Result<Block>>>,
    next_block: u32,
    /// Files with rows in a block, by its key.
    block_users: HashMap<u32, u32>,
    free_blocks: Vec<u32>,
    next_page: u32,
    /// First page and number of pages.
    free_pages: Vec<(u32, u32)>,
    shares: Shares,
    usage: Usage,
}

/// Who may take how much of the maps.
struct Shares {
    rules: Quota,
    rules_of_file: usize,
    pages: Quota,
    rows: Quota,
}

impl Store {
    /// A store in maps that are still empty; `shared` tells whether processes of several users may need them.
    pub fn new(blocks: MapHandle, pages: MapHandle, rules_map: MapHandle, shared: bool) -> Self {
        let rows = blocks.max_entries() as usize * BLOCK_ROWS;
        Store {
            shares: Shares {
                rules: Quota::new(MOST_RULES, shared),
                rules_of_file: if shared {
                    MOST_RULES_OF_FILE
                } else {
                    MOST_RULES
                },
                pages: Quota::new(pages.max_entries() as usize, shared),
                rows: Quota::new(rows, shared),
            },
            blocks,
            pages,
            rules_map,
            rules: SharedRules::new(),
            block: None,
            spare: None,
            // 0 is for pages without rows
            next_block: 1,
            block_users: HashMap::new(),
            free_blocks: Vec::new(),
            next_page: 0,
            free_pages: Vec::new(),
            usage: Usage::default(),
        }
    }

    /// What the maps hold.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Puts the rows and pages of a file's table into the maps; its rules only come with [`Store::publish_rules`]. Gives no
    /// segments where there is no table, or no room for it. `name` is what the file is called, `owner` the user whose file
    /// it is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn load(
        &mut self,
        table: Option<&Table>,
        (name, owner): (&dyn Display, u32),
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<LoadedFile> {
        let Some(table) = table else {
            self.usage.failed += 1;
            return Ok(LoadedFile::default());
        };
        if !self.has_room(table, owner) {
            self.usage.failed += 1;
            say!(
                "warning: there is no room for the unwind table of {name}: stacks through it may end early"
            );
            return Ok(LoadedFile::default());
        }
        let most = self.shares.rules.left(owner).min(self.shares.rules_of_file);
        let numbered = self.rules.add(table.rules.codes(), most);
        if numbered.refused > 0 {
            say!(
                "warning: {name} has {} unwind rules more than there is room for: stacks through it may end early",
                numbered.refused
            );
        }
        let mut loaded = LoadedFile {
            owner,
            rows: table.rows.len(),
            added_rules: numbered.added,
            rules: numbered.numbers,
            ..LoadedFile::default()
        };
        for code in &table.code {
            self.load_segment(table, code, &mut loaded, meanwhile)?;
        }
        self.publish_block()?;
        for block in &loaded.blocks {
            *self.block_users.entry(*block).or_default() += 1;
        }
        self.shares.rules.take(owner, loaded.added_rules);
        self.shares.pages.take(owner, page_count(table));
        self.shares.rows.take(owner, loaded.rows);
        self.usage.files += 1;
        self.usage.rows += loaded.rows;
        self.usage.rules = self.rules.count();
        Ok(loaded)
    }

    /// Takes back the room of a file that no process maps any more.
    pub fn unload(&mut self, loaded: &LoadedFile) {
        if loaded.segments.is_empty() {
            return;
        }
        self.rules.remove(&loaded.rules);
        self.free_pages.extend(&loaded.pages);
        self.free_pages.sort_unstable();
        self.free_pages.dedup_by(|next, last| {
            let adjacent = last.0 + last.1 == next.0;
            last.1 += if adjacent { next.1 } else { 0 };
            adjacent
        });
        for key in &loaded.blocks {
            let users = self.block_users.entry(*key).or_default();
            *users = users.saturating_sub(1);
            let is_open = self.block.as_ref().is_some_and(|block| block.key == *key);
            if *users == 0 && !is_open {
                self.block_users.remove(key);
                self.free_blocks.push(*key);
                self.usage.row_bytes = self
                    .usage
                    .row_bytes
                    .saturating_sub(size_of::<unwind_block>());
            }
        }
        let pages: u32 = loaded.pages.iter().map(|(_, count)| count).sum();
        self.shares
            .rules
            .give_back(loaded.owner, loaded.added_rules);
        self.shares.pages.give_back(loaded.owner, pages as usize);
        self.shares.rows.give_back(loaded.owner, loaded.rows);
        self.usage.files = self.usage.files.saturating_sub(1);
        self.usage.rows = self.usage.rows.saturating_sub(loaded.rows);
        self.usage.rules = self.rules.count();
    }

    /// Makes the rules of all loaded tables known to the unwinder.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn publish_rules(&mut self) -> Result<()> {
        match self.rules.take_changed() {
            true => write_words(&self.rules_map, self.rules.codes())
                .context("failed to write unwind rules"),
            false => Ok(()),
        }
    }

    /// Has an empty block at hand, soon: adding one waits for all running programs, which takes milliseconds.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn prepare_block(&mut self) -> Result<()> {
        let room = self.next_block < self.blocks.max_entries() || !self.free_blocks.is_empty();
        if self.spare.is_none() && room {
            self.spare = Some(self.add_block()?);
        }
        Ok(())
    }

    /// Begins to add a block.
    fn add_block(&mut self) -> Result<Receiver<Result<Block>>> {
        let blocks = MapHandle::try_from(&self.blocks)?;
        // what a block that is used again held is gone with its map
        let key = self.free_blocks.pop().unwrap_or_else(|| {
            self.next_block += 1;
            self.next_block - 1
        });
        let (sender, coming) = mpsc::channel();
        // nobody waits for a block when memleak ends
        thread::spawn(move || _ = sender.send(Block::add(&blocks, key)));
        Ok(coming)
    }

    fn has_room(&self, table: &Table, owner: u32) -> bool {
        let pages = page_count(table);
        // A block is left when a page doesn't fit any more, so two in a row are more than one full.
        let blocks = table.rows.len() / BLOCK_ROWS * 2 + 2;
        let pages_left = self.pages.max_entries().saturating_sub(self.next_page) as usize;
        let blocks_left = self.blocks.max_entries().saturating_sub(self.next_block) as usize;
        let fits = |code: &CodePages| {
            let count = code.page_count() as u32;
            self.free_pages.iter().any(|(_, free)| *free >= count)
        };
        (pages <= pages_left || table.code.iter().all(fits))
            && blocks <= blocks_left + self.free_blocks.len()
            && pages <= self.shares.pages.left(owner)
            && table.rows.len() <= self.shares.rows.left(owner)
    }

    /// Room for so many pages in a row; none where there is not so much.
    fn take_pages(&mut self, count: u32) -> Option<u32> {
        if let Some((first, free)) = self.free_pages.iter_mut().find(|(_, free)| *free >= count) {
            let begin = *first;
            *first += count;
            *free -= count;
            self.free_pages.retain(|(_, free)| *free > 0);
            return Some(begin);
        }
        let begin = self.next_page;
        let end = begin.checked_add(count)?;
        (end <= self.pages.max_entries()).then(|| {
            self.next_page = end;
            begin
        })
    }

    fn load_segment(
        &mut self,
        table: &Table,
        code: &CodePages,
        loaded: &mut LoadedFile,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<()> {
        let count = code.page_count() as u32;
        let Some(first_page) = self.take_pages(count) else {
            return Ok(());
        };
        let mut values: Vec<u8> = Vec::with_capacity(code.page_count() * size_of::<u64>());
        for page in code.first_rows.windows(2) {
            let rows = table
                .rows
                .get(page[0] as usize..page[1] as usize)
                .unwrap_or_default();
            values.extend(self.store_page(rows, loaded, meanwhile)?.to_ne_bytes());
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
        loaded.pages.push((first_page, count));
        loaded.segments.push(LoadedSegment {
            segment: code.segment,
            first_page,
        });
        Ok(())
    }

    /// Adds a page's rows to the block under way, or to a new one, and tells where they are. A page never crosses from
    /// one block to the next, so that a search stays in one value.
    fn store_page(
        &mut self,
        rows: &[u32],
        loaded: &mut LoadedFile,
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
            let last = self.block.take().map(|block| block.key);
            let unused = |key: &u32| {
                !loaded.blocks.contains(key)
                    && self.block_users.get(key).is_none_or(|users| *users == 0)
            };
            self.free_blocks.extend(last.filter(unused));
            let block = meanwhile.wait(&coming);
            self.block = Some(block.context("failed to add a block of unwind rows")??);
            self.usage.row_bytes += size_of::<unwind_block>();
        }
        let Some(block) = &mut self.block else {
            return Ok(0);
        };
        if !loaded.blocks.contains(&block.key) {
            loaded.blocks.push(block.key);
        }
        let first = block.rows.len() as u64;
        block.rows.extend(rows.iter().map(|row| {
            let number = loaded.rules.get((row & 0xffff) as usize).copied();
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

fn page_count(table: &Table) -> usize {
    table.code.iter().map(CodePages::page_count).sum()
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
