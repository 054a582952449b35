//! Which block an address points into: a direct table over sorted blocks, made for billions of questions most of which
//! end in "none". Pure; knows nothing of where the blocks come from.

use std::ops::Range;

/// A block's number in an [`Index`], by address from 0.
pub type BlockId = u32;

/// Addresses of user space are below 2^48 on x86-64 (4-level tables) and aarch64.
const ADDRESS_BITS: u32 = 48;
/// Bits of an address within a chunk of the table, and within a page.
const CHUNK_SHIFT: u32 = 21;
const PAGE_SHIFT: u32 = 12;
/// Bits below what selects a table of chunks.
const TABLE_SHIFT: u32 = 39;
const TABLE_ENTRIES: usize = 1 << (TABLE_SHIFT - CHUNK_SHIFT);
const PAGES: usize = 1 << (CHUNK_SHIFT - PAGE_SHIFT);

/// For each page of 2 MiB, the first block that ends behind the page's start; one more for the page after the last.
type Chunk = [BlockId; PAGES + 1];

/// Blocks by address.
pub struct Index {
    starts: Vec<u64>,
    ends: Vec<u64>,
    /// For each 512 GiB: 1 + the number of its table; 0 where no block lies.
    roots: Vec<u16>,
    /// For each 2 MiB of a table: 1 + the number of its chunk.
    tables: Vec<Vec<u32>>,
    chunks: Vec<Chunk>,
}

impl Index {
    /// Takes blocks as ranges of addresses, sorted and disjoint. An empty one still has its first byte, since a pointer
    /// to it holds it. What does not fit (out of order, beyond user space, too many) is left out.
    pub fn new(blocks: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut index = Self {
            starts: Vec::new(),
            ends: Vec::new(),
            roots: vec![0; 1 << (ADDRESS_BITS - TABLE_SHIFT)],
            tables: Vec::new(),
            chunks: Vec::new(),
        };
        for Range { start, end } in blocks {
            let end = end.max(start.saturating_add(1));
            let fits = index.ends.last().is_none_or(|last| *last <= start);
            if fits && end <= 1 << ADDRESS_BITS && index.starts.len() < BlockId::MAX as usize {
                index.starts.push(start);
                index.ends.push(end);
            }
        }
        index.fill();
        index
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The addresses of a block.
    pub fn range(&self, block: BlockId) -> Range<u64> {
        self.starts[block as usize]..self.ends[block as usize]
    }

    /// The block that begins at an address.
    pub fn at(&self, address: u64) -> Option<BlockId> {
        self.find(address)
            .filter(|block| self.starts[*block as usize] == address)
    }

    /// The block that an address points into, anywhere.
    #[inline]
    pub fn find(&self, address: u64) -> Option<BlockId> {
        let root = *self.roots.get((address >> TABLE_SHIFT) as usize)?;
        let table = self.tables.get(usize::from(root).wrapping_sub(1))?;
        let chunk = table[(address >> CHUNK_SHIFT) as usize & (TABLE_ENTRIES - 1)];
        let chunk = self.chunks.get((chunk as usize).wrapping_sub(1))?;
        let page = (address >> PAGE_SHIFT) as usize & (PAGES - 1);
        let first = chunk[page] as usize;
        // the block of the next page may begin in this one
        let last = (chunk[page + 1] as usize + 1).min(self.starts.len());
        let behind = first + self.starts[first..last].partition_point(|start| *start <= address);
        let block = behind.checked_sub(1).filter(|block| *block >= first)?;
        (address < self.ends[block]).then_some(block as BlockId)
    }

    /// The blocks that lie in or reach into a range of addresses.
    pub fn within(&self, range: Range<u64>) -> Range<BlockId> {
        let first = self.ends.partition_point(|end| *end <= range.start);
        let behind = self.starts.partition_point(|start| *start < range.end);
        first as BlockId..behind.max(first) as BlockId
    }

    fn fill(&mut self) {
        let mut block = 0;
        while block < self.starts.len() {
            let chunk_start = self.starts[block] >> CHUNK_SHIFT << CHUNK_SHIFT;
            self.fill_chunk(chunk_start, block);
            // a block that reaches further belongs to the next chunk as well
            let next = chunk_start + (1 << CHUNK_SHIFT);
            while block < self.starts.len() && self.ends[block] <= next {
                block += 1;
            }
            if block < self.starts.len() && self.starts[block] < next {
                block = self.fill_long(block, next);
            }
        }
    }

    /// Fills the chunks from `next` on that `block` reaches into; gives the first block that ends behind them.
    fn fill_long(&mut self, block: usize, next: u64) -> usize {
        let end = self.ends[block];
        let mut start = next;
        while start < end {
            self.fill_chunk(start, block);
            start += 1 << CHUNK_SHIFT;
        }
        // blocks behind it in its last chunk were filled with it
        let mut behind = block + 1;
        while behind < self.starts.len() && self.ends[behind] <= start {
            behind += 1;
        }
        match behind < self.starts.len() && self.starts[behind] < start {
            true => self.fill_long(behind, start),
            false => behind,
        }
    }

    /// Makes the chunk at an address, given the first block that ends behind its start.
    fn fill_chunk(&mut self, start: u64, first: usize) {
        let mut chunk = [0; PAGES + 1];
        let mut block = first;
        for (page, cell) in (0u64..).zip(&mut chunk) {
            let page = start + (page << PAGE_SHIFT);
            while block < self.ends.len() && self.ends[block] <= page {
                block += 1;
            }
            *cell = block as BlockId;
        }
        self.chunks.push(chunk);
        let root = (start >> TABLE_SHIFT) as usize;
        if self.roots[root] == 0 {
            self.tables.push(vec![0; TABLE_ENTRIES]);
            self.roots[root] = self.tables.len() as u16;
        }
        let table = &mut self.tables[usize::from(self.roots[root]) - 1];
        table[(start >> CHUNK_SHIFT) as usize & (TABLE_ENTRIES - 1)] = self.chunks.len() as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator of numbers, so that a failure can be repeated (xorshift64).
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % limit
        }
    }

    fn naive(blocks: &[Range<u64>], address: u64) -> Option<BlockId> {
        let found = blocks
            .iter()
            .position(|block| address >= block.start && address < block.end.max(block.start + 1));
        found.map(|found| found as BlockId)
    }

    #[test]
    fn it_answers_as_a_search_through_all_blocks_does() {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for _ in 0..60 {
            let mut at = 0x5555_0000_0000 + numbers.below(1 << 22);
            let mut blocks = Vec::new();
            for _ in 0..numbers.below(300) {
                at += match numbers.below(20) {
                    0 => numbers.below(1 << 23),
                    1 => 1 << 40,
                    _ => numbers.below(100),
                };
                let size = match numbers.below(20) {
                    0 => numbers.below(10 << 21),
                    1 => 0,
                    _ => numbers.below(200),
                };
                blocks.push(at..at + size);
                at += size.max(1);
            }
            let index = Index::new(blocks.iter().cloned());
            assert_eq!(index.len(), blocks.len());
            for block in &blocks {
                let around = [
                    block.start.wrapping_sub(1),
                    block.start,
                    block.end,
                    block.end + 1,
                ];
                let within = block.start + numbers.below((block.end - block.start).max(1));
                let last = block.end.wrapping_sub(1);
                for address in around.into_iter().chain([within, last]) {
                    assert_eq!(index.find(address), naive(&blocks, address), "{address:x}");
                }
            }
            for _ in 0..1000 {
                let address = 0x5555_0000_0000 + numbers.below(1 << 26);
                assert_eq!(index.find(address), naive(&blocks, address), "{address:x}");
            }
        }
    }

    #[test]
    fn what_can_be_no_address_is_in_no_block() {
        let index = Index::new([0x1000..0x2000, 0x7fff_ffff_f000..0x7fff_ffff_ffff]);
        for address in [
            0,
            1,
            0xfff,
            0x2000,
            u64::MAX,
            1 << 48,
            1 << 47,
            0xffff_8000_0000_0000,
        ] {
            assert_eq!(index.find(address), None, "{address:x}");
        }
        assert_eq!(index.find(0x7fff_ffff_fffe), Some(1));
        assert!(Index::new([]).is_empty());
    }

    #[test]
    fn blocks_that_overlap_or_are_out_of_order_are_left_out() {
        let index = Index::new([0x1000..0x2000, 0x1800..0x2800, 0x800..0x900, 0x3000..0x3000]);
        assert_eq!(index.len(), 2);
        assert_eq!(index.find(0x2400), None);
        assert_eq!(index.at(0x3000), Some(1));
        assert_eq!(index.at(0x1001), None);
    }

    #[test]
    fn the_blocks_of_a_range_are_found() {
        let index = Index::new([0x1000..0x2000, 0x3000..0x3010, 0x5000..0x6000]);
        assert_eq!(index.within(0x1fff..0x5001), 0..3);
        assert_eq!(index.within(0x2000..0x3000), 1..1);
        assert_eq!(index.within(0x7000..0x8000), 3..3);
    }
}
