//! One look at a process's memory: which words point into which blocks, from where. Roots are what the program reaches
//! without a block's help: registers, stacks, globals, the kernel. Judges nothing.

use std::collections::HashSet;
use std::ops::Range;

use super::glibc::{self, Heap};
use super::graph::Edges;
use super::index::{BlockId, Index};
use super::kernel_roots;
use super::memory::{Area, Origin, ProcessMemory};
use super::threads::Thread;

/// Bytes below the stack pointer that a function may use (x86-64's red zone; elsewhere it does no harm).
const RED_ZONE: u64 = 128;

/// Thread-local memory around the thread pointer, where the rest of its mapping is an allocator's.
const TLS_BEFORE: u64 = 1 << 20;
const TLS_BEHIND: u64 = 64 << 10;

/// How much is read at a time.
const WINDOW: usize = 256 << 10;

/// What kind of thing a root is, in the order in which roots are preferred when several lead to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RootKind {
    /// A variable of a program or library.
    Global,
    /// A thread's stack.
    Stack,
    /// A thread's registers.
    Register,
    /// What the kernel hands back: data of epoll, values of timers.
    Kernel,
    /// Memory that the program mapped before it was traced.
    Untracked,
    /// A block of the runtime's own, or one that came while the memory was looked at.
    Block,
}

/// A word outside of all blocks that points into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Root {
    /// What it is.
    pub kind: RootKind,
    /// Where it lies; of registers, the thread's id.
    pub place: u64,
    /// Where it points.
    pub block: BlockId,
}

/// What is looked at.
pub struct Scope<'a> {
    /// The process.
    pub memory: &'a ProcessMemory,
    /// What it maps.
    pub areas: &'a [Area],
    /// The blocks that are to be judged.
    pub index: &'a Index,
    /// glibc's arenas.
    pub heap: &'a Heap,
    /// Chunks that the allocator has for itself, such as threads' caches.
    pub caches: &'a [glibc::Chunk],
    /// What anonymous memory outside of blocks and arenas is.
    pub anonymous: Anonymous,
    /// Pointers at the most.
    pub max_edges: usize,
}

/// What anonymous memory is that belongs to no block and to no arena that is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anonymous {
    /// The program's.
    Root,
    /// An allocator's, all blocks of which are known: its free memory and its notes hold nothing.
    Allocator,
    /// An allocator's, some blocks of which are not known.
    Unknown,
}

/// What was seen.
pub struct Seen {
    /// Words outside of blocks.
    pub roots: Vec<Root>,
    /// Blocks that memory points to of which nothing is known.
    pub unknown: Vec<BlockId>,
    /// Words in blocks.
    pub edges: Edges,
    /// Bytes that were read.
    pub bytes: u64,
}

impl Scope<'_> {
    /// Looks at everything. `threads` are those that stand, or stood a moment ago.
    pub fn scan(&self, threads: &[Thread]) -> Seen {
        let mut seen = Seen {
            roots: Vec::new(),
            unknown: Vec::new(),
            edges: Edges::new(self.index.len(), self.max_edges),
            bytes: 0,
        };
        self.scan_threads(threads, &mut seen);
        for value in kernel_roots::read(self.memory.pid()) {
            self.root(RootKind::Kernel, 0, value, &mut seen);
        }
        let stacks = self.stacks(threads);
        for (at, area) in self.areas.iter().enumerate() {
            self.scan_area(area, stacks[at], threads, &mut seen);
        }
        let walked = self.scan_heaps(&mut seen);
        self.scan_blocks(&walked, threads, &mut seen);
        seen
    }

    fn root(&self, kind: RootKind, place: u64, word: u64, seen: &mut Seen) {
        if let Some(block) = self.index.find(word) {
            seen.roots.push(Root { kind, place, block });
        }
    }

    fn scan_threads(&self, threads: &[Thread], seen: &mut Seen) {
        for thread in threads {
            for word in &thread.registers.words {
                self.root(RootKind::Register, thread.tid as u64, *word, seen);
            }
        }
    }

    /// For each area, where the live part of a stack begins that lies there.
    fn stacks(&self, threads: &[Thread]) -> Vec<Option<u64>> {
        let mut stacks = vec![None; self.areas.len()];
        for thread in threads {
            let sp = thread.registers.sp;
            let found = self.areas.iter().position(|area| area.range.contains(&sp));
            let Some(at) = found else {
                continue;
            };
            // what is below may be something else, unless a guard is at the end of the stack
            let area = &self.areas[at];
            let guard = at.checked_sub(1).map(|before| &self.areas[before]);
            let guarded = guard.is_some_and(|guard| {
                guard.range.end == area.range.start && !guard.readable && !guard.writable
            });
            if area.is_main_stack() || guarded {
                let live = sp.saturating_sub(RED_ZONE);
                let stack = stacks[at].get_or_insert(live);
                *stack = live.min(*stack);
            }
        }
        stacks
    }

    /// Looks at what of an area belongs to no block and no arena.
    fn scan_area(&self, area: &Area, stack: Option<u64>, threads: &[Thread], seen: &mut Seen) {
        if !area.readable || area.origin == Origin::Device {
            return;
        }
        let start = stack.unwrap_or(area.range.start);
        let mut parts = match (area.writable, &area.origin) {
            (true, _) => self.memory.touched(start..area.range.end, false),
            // relocated data that is protected since
            (false, Origin::File(_)) if !area.shared => {
                self.memory.touched(start..area.range.end, true)
            }
            _ => return,
        };
        let is_stack = stack.is_some() || area.is_main_stack();
        let kind = match &area.origin {
            _ if is_stack => RootKind::Stack,
            Origin::File(_) => RootKind::Global,
            _ if self.follows_file(area) => RootKind::Global,
            _ => RootKind::Untracked,
        };
        if kind == RootKind::Untracked && self.anonymous == Anonymous::Allocator {
            let tls = |thread: &Thread| {
                let pointer = thread.registers.thread_pointer;
                pointer.saturating_sub(TLS_BEFORE)..pointer.saturating_add(TLS_BEHIND)
            };
            let tls: Vec<Range<u64>> = threads.iter().map(tls).collect();
            parts = intersect(&parts, &tls);
        }
        for part in self.outside(parts) {
            self.scan_root(kind, part, seen);
        }
    }

    /// Whether an anonymous area is a file's .bss.
    fn follows_file(&self, area: &Area) -> bool {
        let before = self
            .areas
            .iter()
            .find(|other| other.range.end == area.range.start);
        area.origin == Origin::Anonymous(Vec::new())
            && area.writable
            && before.is_some_and(|file| file.path().is_some() && file.writable && !file.shared)
    }

    /// What of some ranges belongs to no block and no arena.
    fn outside(&self, parts: Vec<Range<u64>>) -> Vec<Range<u64>> {
        let mut rest = parts;
        for arena in &self.heap.arenas {
            rest = without(rest, &arena.state);
            for heap in &arena.heaps {
                rest = without(rest, &heap.whole);
            }
        }
        let blocks = rest.into_iter().flat_map(|part| {
            let mut gaps = Vec::new();
            let mut at = part.start;
            for block in self.index.within(part.clone()) {
                let block = self.index.range(block);
                gaps.push(at..block.start.max(at));
                at = at.max(block.end);
            }
            gaps.push(at..part.end.max(at));
            gaps
        });
        blocks.filter(|gap| !gap.is_empty()).collect()
    }

    fn scan_root(&self, kind: RootKind, range: Range<u64>, seen: &mut Seen) {
        let unknown = kind == RootKind::Untracked && self.anonymous == Anonymous::Unknown;
        let mut roots = std::mem::take(&mut seen.roots);
        let mut weak = std::mem::take(&mut seen.unknown);
        self.words(range, seen, |place, block, _| match unknown {
            true => weak.push(block),
            false => roots.push(Root { kind, place, block }),
        });
        (seen.roots, seen.unknown) = (roots, weak);
    }

    /// Reads a range and hands on each aligned word that points into a block, with its place.
    fn words(
        &self,
        range: Range<u64>,
        seen: &mut Seen,
        mut found: impl FnMut(u64, BlockId, &mut Edges),
    ) {
        let mut window = vec![0; WINDOW.min((range.end - range.start) as usize + 8)];
        let mut at = range.start.next_multiple_of(8);
        while at < range.end {
            let length = window.len().min((range.end - at) as usize) & !7;
            if length == 0 {
                break;
            }
            let read = self.memory.read_some(at, &mut window[..length]);
            seen.bytes += read as u64;
            let edges = &mut seen.edges;
            each_pointer(&window[..read], at, self.index, |place, block| {
                found(place, block, edges);
            });
            // a page that can't be read is passed over
            at = match read < length {
                true => (at + read as u64 + 1).next_multiple_of(4096),
                false => at + length as u64,
            };
        }
    }

    /// Goes through the arenas. What is in use there and is no block to be judged came since, and is a root. Gives the
    /// blocks that were looked at, and those that were found to be free meanwhile.
    fn scan_heaps(&self, seen: &mut Seen) -> HashSet<BlockId> {
        let mut walked = HashSet::new();
        let free = self.heap.listed_free(self.memory, self.caches);
        let is_free = |chunk: &glibc::Chunk| !chunk.in_use || free.contains(&chunk.user);
        let own: HashSet<u64> = self.caches.iter().map(|chunk| chunk.user).collect();
        for heap in self.heap.arenas.iter().flat_map(|arena| &arena.heaps) {
            let result = glibc::walk(
                self.memory,
                heap,
                |chunk, at, bytes| {
                    let block = self.index.at(chunk.user);
                    walked.extend(block);
                    if is_free(&chunk) || (own.contains(&chunk.user) && block.is_none()) {
                        return;
                    }
                    seen.bytes += bytes.len() as u64;
                    match block {
                        Some(block) => {
                            seen.edges.begin(block);
                            let end = self.index.range(block).end;
                            let length = (end.saturating_sub(at) as usize).min(bytes.len());
                            each_pointer(&bytes[..length], at, self.index, |_, to| {
                                seen.edges.add(to);
                            });
                        }
                        None => each_pointer(bytes, at, self.index, |place, block| {
                            let kind = RootKind::Block;
                            seen.roots.push(Root { kind, place, block });
                        }),
                    }
                },
                |chunk| !is_free(chunk),
            );
            // a heap that changed under a live look is not known to the end: what it would lead to is left undecided
            if result.is_err() {
                let blocks: Vec<BlockId> = self.index.within(heap.range.clone()).collect();
                seen.unknown
                    .extend(blocks.iter().filter(|block| !walked.contains(block)));
            }
        }
        walked
    }

    /// Looks at the blocks that lie in no arena.
    fn scan_blocks(&self, walked: &HashSet<BlockId>, threads: &[Thread], seen: &mut Seen) {
        for block in 0..self.index.len() as BlockId {
            if walked.contains(&block) {
                continue;
            }
            let mut range = self.index.range(block);
            // a stack that the program mapped itself holds nothing below its pointer
            let sp = threads.iter().map(|thread| thread.registers.sp);
            if let Some(sp) = sp.filter(|sp| range.contains(sp)).min() {
                range.start = range.start.max(sp.saturating_sub(RED_ZONE));
            }
            seen.edges.begin(block);
            let parts = match range.end - range.start > 64 << 10 {
                true => self.memory.touched(range, false),
                false => vec![range],
            };
            for part in parts {
                self.words(part, seen, |_, to, edges| edges.add(to));
            }
        }
    }
}

/// Hands on the words that point into a block, with their places.
#[inline]
fn each_pointer(bytes: &[u8], start: u64, index: &Index, mut found: impl FnMut(u64, BlockId)) {
    for (at, word) in bytes.chunks_exact(8).enumerate() {
        let word = u64::from_ne_bytes(word.try_into().unwrap_or_default());
        if let Some(block) = index.find(word) {
            found(start + at as u64 * 8, block);
        }
    }
}

fn without(parts: Vec<Range<u64>>, hole: &Range<u64>) -> Vec<Range<u64>> {
    let cut = parts.into_iter().flat_map(|part| {
        let before = part.start..part.end.min(hole.start).max(part.start);
        let behind = part.start.max(hole.end).min(part.end)..part.end;
        match part.start < hole.end && hole.start < part.end {
            true => vec![before, behind],
            false => vec![part],
        }
    });
    cut.filter(|part| !part.is_empty()).collect()
}

fn intersect(parts: &[Range<u64>], wanted: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut both = Vec::new();
    for part in parts {
        for wanted in wanted {
            let range = part.start.max(wanted.start)..part.end.min(wanted.end);
            if !range.is_empty() {
                both.push(range);
            }
        }
    }
    both
}
