//! glibc's heap as its own metadata describe it, read from outside: arenas, their chunks, and which of these are free.
//! Works on 2.26 to the newest, 64-bit; an arena that does not parse to its very end is refused whole.

use std::collections::HashSet;
use std::ops::Range;

use super::memory::{Area, Origin, ProcessMemory};

/// Bits of a chunk's size that are flags: the chunk before it is in use, it has a mapping of its own.
const PREV_INUSE: u64 = 1;
const IS_MMAPPED: u64 = 2;
const FLAGS: u64 = 7;
const MIN_CHUNK: u64 = 32;
const ALIGNMENT: u64 = 16;
/// From a chunk to what the program gets of it.
const HEADER: u64 = 16;

/// `struct malloc_state` has 127 bins, each a pair of links, after `top` and `last_remainder`; behind them a map of bits,
/// `next`, `next_free`, `attached_threads`, `system_mem`, `max_system_mem`. What comes before differs from version to version.
const BINS: usize = 127;
const BINS_BYTES: u64 = BINS as u64 * 16;
const TOP_BEFORE_BINS: u64 = 16;
const NEXT_AFTER_BINS: u64 = BINS_BYTES + 16;
const END_AFTER_BINS: u64 = NEXT_AFTER_BINS + 5 * 8;
/// The oldest chunks of a size, in singly linked lists right before `top`, where a version has them.
const FASTBINS: u64 = 10;

/// The largest distance from an arena's beginning to its bins.
const MAX_BEFORE_BINS: u64 = 160;

/// A heap of an arena but the main one's begins where its address is a multiple of this, unless it is tuned.
const HEAP_ALIGNMENTS: [u64; 3] = [64 << 20, 4 << 20, 1 << 30];

/// The largest `struct heap_info`.
const MAX_HEAP_HEADER: u64 = 128;

/// Chunks' sizes of `struct tcache_perthread_struct`, by version: 2.26, 2.30, 2.42.
const TCACHE_CHUNKS: [u64; 3] = [0x250, 0x290, 0x310];

/// Arenas at the most, and entries of a list of free chunks: what is hostile ends here.
const MAX_ARENAS: usize = 4096;
const MAX_LIST: usize = 1 << 22;

/// How much is read at a time.
const WINDOW: u64 = 1 << 20;

/// A piece of memory whose chunks follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapRange {
    /// From its first chunk to behind its last.
    pub range: Range<u64>,
    /// The chunk that all new ones are cut from, if it is here.
    pub top: Option<u64>,
    /// Everything that it takes: its header as well.
    pub whole: Range<u64>,
}

/// An arena.
#[derive(Clone, Debug)]
pub struct Arena {
    /// `struct malloc_state`: its links lead to chunks' headers, which are no pointers of the program.
    pub state: Range<u64>,
    /// Its heaps.
    pub heaps: Vec<HeapRange>,
    fastbins: Vec<u64>,
}

/// A chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where what the program gets of it begins.
    pub user: u64,
    /// Bytes that the program may use.
    pub usable: u64,
    /// Whether it is in use, as far as its neighbour tells: those in the lists of free chunks look so as well.
    pub in_use: bool,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Heap {
    /// Arenas whose structure is understood.
    pub arenas: Vec<Arena>,
    /// Why others are left out.
    pub refused: Vec<String>,
    /// States of arenas that were looked at.
    known: HashSet<u64>,
}

impl Heap {
    /// Finds the arenas of a process.
    pub fn find(memory: &ProcessMemory, areas: &[Area]) -> Self {
        let mut heap = Self::default();
        for area in areas {
            let is_data = area.writable && area.readable && !area.shared;
            let size = area.range.end - area.range.start;
            // .data and .bss, of libc or of a static program: the latter may be anonymous
            if !is_data || area.is_main_stack() || size > 16 << 20 {
                continue;
            }
            if let Some(bins) = find_bins(memory, area) {
                heap.add_arenas(memory, areas, bins);
            }
        }
        heap
    }

    /// The ring of arenas that the main one, with bins at that address, belongs to.
    fn add_arenas(&mut self, memory: &ProcessMemory, areas: &[Area], main_bins: u64) {
        let Some(ring) = ring_of(memory, main_bins) else {
            return;
        };
        let before_bins = main_bins - ring[0];
        for state in ring {
            if !self.known.insert(state) {
                continue;
            }
            let bins = state + before_bins;
            let top = memory.word(bins - TOP_BEFORE_BINS).unwrap_or(0);
            let heaps = match heap_alignment(memory, state) {
                // not a byte was allocated of it yet
                _ if top == bins - TOP_BEFORE_BINS => Ok(Vec::new()),
                None => main_heap(memory, areas, top),
                Some(alignment) => {
                    let state = state..bins + END_AFTER_BINS;
                    thread_heaps(memory, areas, state, top, alignment)
                }
            };
            match heaps {
                Ok(heaps) => self.arenas.push(Arena {
                    state: state..bins + END_AFTER_BINS,
                    fastbins: fastbins(memory, state, bins),
                    heaps,
                }),
                Err(why) => self.refused.push(format!("arena at {state:#x}: {why}")),
            }
        }
    }

    /// The addresses of the chunks' user memory that lie in lists of free chunks, though their neighbours call them used:
    /// `caches` are the chunks that may be threads' caches.
    pub fn listed_free(&self, memory: &ProcessMemory, caches: &[Chunk]) -> HashSet<u64> {
        let mut free = HashSet::new();
        for arena in &self.arenas {
            for first in &arena.fastbins {
                follow(memory, *first, HEADER, &mut free, |chunk| chunk + HEADER);
            }
        }
        for cache in caches {
            free.extend(listed_in_cache(memory, *cache).into_iter().flatten());
        }
        free
    }

    /// Where the first block of each heap begins.
    pub fn first_blocks(&self) -> impl Iterator<Item = u64> {
        let heaps = self.arenas.iter().flat_map(|arena| &arena.heaps);
        heaps.map(|heap| heap.range.start + HEADER)
    }

    /// Reads the heads of the lists again: the program went on.
    pub fn refresh(&mut self, memory: &ProcessMemory) {
        for arena in &mut self.arenas {
            let bins = arena.state.end - END_AFTER_BINS;
            arena.fastbins = fastbins(memory, arena.state.start, bins);
            let top = memory.word(bins - TOP_BEFORE_BINS).unwrap_or(0);
            for heap in &mut arena.heaps {
                if heap.top.is_some() {
                    heap.top = Some(top);
                }
            }
        }
    }
}

/// Whether a chunk may be a thread's cache of free chunks, by its size.
pub fn may_be_cache(chunk: &Chunk) -> bool {
    TCACHE_CHUNKS.contains(&(chunk.usable + 8))
}

/// Visits the chunks of a heap in order, each with as much of its user memory as is read at a time; `wanted` says whose
/// memory is to be read at all.
///
/// # Errors
/// Says where the chunks stop making sense.
pub fn walk(
    memory: &ProcessMemory,
    heap: &HeapRange,
    mut visit: impl FnMut(Chunk, u64, &[u8]),
    wanted: impl Fn(&Chunk) -> bool,
) -> Result<(), String> {
    let mut window = Window::new(memory);
    let mut at = heap.range.start;
    let end = heap.range.end;
    let size_of = |window: &mut Window<'_>, at: u64| -> Result<u64, String> {
        let size = window
            .word(at + 8)
            .ok_or_else(|| format!("chunk at {at:#x} can't be read"))?;
        let plain = size & !FLAGS;
        match plain >= MIN_CHUNK && plain.is_multiple_of(ALIGNMENT) && plain <= end - at {
            true => Ok(size),
            false => Err(format!("chunk at {at:#x} has size {size:#x}")),
        }
    };
    while at < end {
        if heap.top == Some(at) {
            return Ok(());
        }
        // an older heap ends with chunks that stand for nothing
        let is_last = heap.top.is_none() && end - at <= 2 * MIN_CHUNK;
        if is_last
            && window
                .word(at + 8)
                .is_some_and(|size| size & !FLAGS <= ALIGNMENT)
        {
            return Ok(());
        }
        let size = size_of(&mut window, at)? & !FLAGS;
        let next = at + size;
        let in_use = match next < end {
            true => window
                .word(next + 8)
                .is_some_and(|size| size & PREV_INUSE != 0),
            false => heap.top.is_some(),
        };
        let chunk = Chunk {
            user: at + HEADER,
            usable: size - 8,
            in_use,
        };
        if wanted(&chunk) {
            let behind = chunk.user + chunk.usable;
            let mut from = chunk.user;
            while from < behind {
                let part = window.bytes(from, behind.min(end));
                if part.is_empty() {
                    break;
                }
                visit(chunk, from, part);
                from += part.len() as u64;
            }
        } else {
            visit(chunk, chunk.user, &[]);
        }
        at = next;
    }
    match heap.top {
        Some(top) => Err(format!("chunks pass over the top at {top:#x}")),
        None => Ok(()),
    }
}

/// A chunk that has a mapping of its own, if one begins at an address.
pub fn mapped_chunk(memory: &ProcessMemory, at: u64, area: &Range<u64>) -> Option<Chunk> {
    let mut header = [0; 16];
    memory.read(at, &mut header).ok()?;
    let word = |at: usize| u64::from_ne_bytes(header[at..at + 8].try_into().unwrap_or_default());
    let (before, size) = (word(0), word(8));
    let plain = size & !FLAGS;
    let fits = size & FLAGS == IS_MMAPPED
        && before < 1 << 24
        && before.is_multiple_of(ALIGNMENT)
        && plain >= 4096
        && plain <= area.end - at
        && (at - before).is_multiple_of(4096)
        && (before + plain).is_multiple_of(4096);
    fits.then(|| Chunk {
        user: at + HEADER,
        usable: plain - HEADER,
        in_use: true,
    })
}

/// Where 127 pairs of links look like an arena's bins: an empty one's lead to itself.
fn find_bins(memory: &ProcessMemory, area: &Area) -> Option<u64> {
    let size = (area.range.end - area.range.start) as usize;
    let mut bytes = vec![0; size];
    memory.read(area.range.start, &mut bytes).ok()?;
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()))
        .collect();
    let address = |at: usize| area.range.start + at as u64 * 8;
    let is_bin = |at: usize| {
        let itself = address(at) - 16;
        let (forward, back) = (words[at], words[at + 1]);
        let linked = |link: u64| link.is_multiple_of(ALIGNMENT) && link != 0;
        (forward == itself && back == itself)
            || (linked(forward) && linked(back) && forward != itself)
    };
    let is_empty = |at: usize| words[at] == address(at) - 16 && words[at + 1] == words[at];
    let mut at = 2;
    while at + 2 * BINS + 7 <= words.len() {
        // few programs fill a bin at both ends of the list
        let run = (0..BINS).take_while(|bin| is_bin(at + 2 * bin)).count();
        if run == BINS && (0..BINS).filter(|bin| is_empty(at + 2 * bin)).count() > BINS / 3 {
            // the bin before the first would be `top` and `last_remainder`
            return Some(address(at));
        }
        at += 1;
    }
    None
}

/// The arenas that lead to one another, the main one first.
fn ring_of(memory: &ProcessMemory, main_bins: u64) -> Option<Vec<u64>> {
    let next_of_main = memory.word(main_bins + NEXT_AFTER_BINS)?;
    let is_main = |state: u64| state < main_bins && main_bins - state <= MAX_BEFORE_BINS;
    // with one arena, it leads to itself
    let mut others = Vec::new();
    let mut next = next_of_main;
    while !is_main(next) {
        if next == 0 || others.contains(&next) || others.len() >= MAX_ARENAS {
            return None;
        }
        others.push(next);
        // all are laid out alike, and the distance to their bins is that of the main one, which is not known yet
        let candidates = (0..=MAX_BEFORE_BINS).step_by(8);
        let mut found = candidates.filter_map(|before| {
            let bins = next + before;
            let link = memory.word(bins + NEXT_AFTER_BINS)?;
            let before_main = main_bins.checked_sub(before)?;
            let plausible =
                link == before_main || (link != 0 && link & 0xffff < 0x200 && link != next);
            (plausible && has_bins(memory, bins)).then_some(link)
        });
        next = found.next()?;
    }
    others.insert(0, next);
    Some(others)
}

/// Whether an arena's bins begin at an address, by the first that are empty.
fn has_bins(memory: &ProcessMemory, bins: u64) -> bool {
    let mut bytes = [0; BINS_BYTES as usize];
    if memory.read(bins, &mut bytes).is_err() {
        return false;
    }
    let link = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    let own = |bin: usize| link(bin * 16) == bins + bin as u64 * 16 - 16;
    (0..BINS).filter(|bin| own(*bin)).count() > BINS / 3
        && (0..BINS).all(|bin| link(bin * 16) != 0 && link(bin * 16 + 8) != 0)
}

/// The main arena's chunks: they begin with the program's break.
fn main_heap(memory: &ProcessMemory, areas: &[Area], top: u64) -> Result<Vec<HeapRange>, String> {
    let in_heap = |area: &&Area| area.origin == Origin::Anonymous(b"[heap]".to_vec());
    // without [heap] the break was not to be had, and the arena is made of mappings
    let area = areas
        .iter()
        .filter(in_heap)
        .find(|area| area.range.contains(&top))
        .ok_or("its top is not at the program's break")?;
    let size = memory.word(top + 8).ok_or("its top can't be read")? & !FLAGS;
    let end = top.saturating_add(size);
    if end > area.range.end {
        return Err("its top ends behind the program's break".into());
    }
    let starts = areas
        .iter()
        .filter(in_heap)
        .map(|area| area.range.start)
        .min();
    let start = starts.unwrap_or(area.range.start);
    // the break need not be aligned where the first chunk came to lie; libc may not be the first to move it
    let first = first_chunk(memory, start.next_multiple_of(ALIGNMENT), top, end)
        .ok_or("its chunks do not lead to its top")?;
    Ok(vec![HeapRange {
        range: first..end,
        top: Some(top),
        whole: start..end,
    }])
}

/// A place from which chunks lead to the top: the first of a few.
fn first_chunk(memory: &ProcessMemory, start: u64, top: u64, end: u64) -> Option<u64> {
    let mut tried = (start..start.saturating_add(1 << 16).min(top)).step_by(ALIGNMENT as usize);
    tried.find(|first| {
        let heap = HeapRange {
            range: *first..end,
            top: Some(top),
            whole: *first..end,
        };
        walk(memory, &heap, |_, _, _| {}, |_| false).is_ok()
    })
}

/// How heaps are aligned, for an arena that begins one; none for the main arena, which is a variable of libc.
fn heap_alignment(memory: &ProcessMemory, state: u64) -> Option<u64> {
    HEAP_ALIGNMENTS.into_iter().find(|alignment| {
        let base = state & !(alignment - 1);
        state - base <= MAX_HEAP_HEADER && memory.word(base) == Some(state)
    })
}

/// The heaps of an arena that is not the main one: the one with its top, then those that it filled before.
fn thread_heaps(
    memory: &ProcessMemory,
    areas: &[Area],
    state: Range<u64>,
    top: u64,
    alignment: u64,
) -> Result<Vec<HeapRange>, String> {
    let mut heaps = Vec::new();
    let mut base = top & !(alignment - 1);
    while base != 0 {
        if heaps.len() > MAX_ARENAS || !base.is_multiple_of(alignment) {
            return Err("its heaps lead nowhere".into());
        }
        let header: Option<Vec<u64>> = (0..3).map(|at| memory.word(base + at * 8)).collect();
        let [owner, before, size] = header.ok_or("a heap's header can't be read")?[..] else {
            return Err("a heap's header can't be read".into());
        };
        let mapped = areas
            .iter()
            .any(|area| area.range.contains(&base) && area.writable);
        if owner != state.start || size > alignment || !mapped {
            return Err(format!("the heap at {base:#x} is not its own"));
        }
        let has_state = state.start & !(alignment - 1) == base;
        let end = base + size;
        let first_top = (top & !(alignment - 1) == base).then_some(top);
        let starts = match has_state {
            true => vec![state.end.next_multiple_of(ALIGNMENT)],
            false => vec![base + 0x20, base + 0x30, base + 0x40],
        };
        let found = starts.into_iter().find_map(|first| {
            let heap = HeapRange {
                range: first..end,
                top: first_top,
                whole: base..end,
            };
            walk(memory, &heap, |_, _, _| {}, |_| false)
                .ok()
                .map(|()| heap)
        });
        heaps.push(
            found.ok_or_else(|| format!("the chunks of the heap at {base:#x} make no sense"))?,
        );
        base = before;
    }
    Ok(heaps)
}

/// The first chunks of the lists before `top`, where they look like that.
fn fastbins(memory: &ProcessMemory, state: u64, bins: u64) -> Vec<u64> {
    let first = bins - TOP_BEFORE_BINS - FASTBINS * 8;
    let words: Vec<u64> = match first >= state + 8 {
        true => (0..FASTBINS)
            .filter_map(|at| memory.word(first + at * 8))
            .collect(),
        false => Vec::new(),
    };
    let is_chunk = |word: &u64| *word > 4096 && word.is_multiple_of(ALIGNMENT);
    words.into_iter().filter(is_chunk).collect()
}

/// Follows a list of free chunks whose link lies `link` bytes behind each entry, plain or as glibc 2.32 mangles it.
fn follow(
    memory: &ProcessMemory,
    first: u64,
    link: u64,
    free: &mut HashSet<u64>,
    user: impl Fn(u64) -> u64,
) {
    let mut entry = first;
    for _ in 0..MAX_LIST {
        if entry == 0 || !entry.is_multiple_of(ALIGNMENT) || !free.insert(user(entry)) {
            return;
        }
        let place = entry + link;
        let Some(word) = memory.word(place) else {
            return;
        };
        let mangled = word ^ (place >> 12);
        // a plain link is a multiple of 16 by chance only where it is mangled, and the other way round
        entry = match (
            plausible(memory, mangled, user(mangled)),
            plausible(memory, word, user(word)),
        ) {
            (true, _) => mangled,
            (false, true) => word,
            (false, false) => return,
        };
    }
}

/// Whether an entry of a list of free chunks may be one.
fn plausible(memory: &ProcessMemory, entry: u64, user: u64) -> bool {
    let size = || memory.word(user.wrapping_sub(8)).map(|size| size & !FLAGS);
    entry == 0
        || (entry.is_multiple_of(ALIGNMENT)
            && entry < 1 << 47
            && size().is_some_and(|size| size >= MIN_CHUNK && size.is_multiple_of(ALIGNMENT)))
}

/// The chunks that a thread keeps for itself, if `cache` is `struct tcache_perthread_struct`: numbers of entries, then
/// as many heads of lists; none where it does not look like that.
pub fn listed_in_cache(memory: &ProcessMemory, cache: Chunk) -> Option<HashSet<u64>> {
    let (bins, number) = match cache.usable + 8 {
        0x250 => (64, 1),
        0x290 => (64, 2),
        _ => (76, 2),
    };
    let mut bytes = vec![0; bins * (8 + number)];
    memory.read(cache.user, &mut bytes).ok()?;
    let mut free = HashSet::new();
    for (bin, head) in bytes[bins * number..].chunks_exact(8).enumerate() {
        let head = u64::from_ne_bytes(head.try_into().unwrap_or_default());
        if head == 0 {
            continue;
        }
        if !plausible(memory, head, head) {
            return None;
        }
        let mut listed = HashSet::new();
        follow(memory, head, 0, &mut listed, |entry| entry);
        for user in listed {
            let size = memory.word(user - 8)? & !FLAGS;
            // the lists of small chunks hold one size each
            if bin < 64 && size != bin as u64 * ALIGNMENT + MIN_CHUNK {
                return None;
            }
            free.insert(user);
        }
    }
    Some(free)
}

/// Memory that is read in pieces as a walk goes through it.
struct Window<'a> {
    memory: &'a ProcessMemory,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(memory: &'a ProcessMemory) -> Self {
        Self {
            memory,
            start: 0,
            bytes: Vec::new(),
        }
    }

    fn word(&mut self, at: u64) -> Option<u64> {
        let bytes = self.bytes(at, at + 8);
        Some(u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?))
    }

    /// The bytes from an address on, up to `end` at the most; none when they can't be read.
    fn bytes(&mut self, from: u64, end: u64) -> &[u8] {
        let known = self.start..self.start + self.bytes.len() as u64;
        if !known.contains(&from) || known.end < end.min(from + 8) {
            self.bytes.resize(WINDOW as usize, 0);
            self.start = from;
            let read = self.memory.read_some(from, &mut self.bytes);
            self.bytes.truncate(read);
        }
        let skip = (from - self.start) as usize;
        let length = ((end - from) as usize).min(self.bytes.len().saturating_sub(skip));
        self.bytes.get(skip..skip + length).unwrap_or_default()
    }
}
