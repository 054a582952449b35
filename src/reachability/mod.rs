//! Lost or held: which blocks of a process nothing points to any more, told from outside while it runs. Reads the
//! process's memory; knows nothing of probes, stacks or reports.

pub mod glibc;
pub mod graph;
pub mod index;
pub mod kernel_roots;
pub mod memory;
pub mod scan;
pub mod threads;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use glibc::{Chunk, Heap};
use graph::{Edges, Marked, RootId};
use index::{BlockId, Index};
use memory::{Area, Origin, ProcessMemory};
use scan::{Anonymous, Scope, Seen};
use threads::{Stopped, Thread};
use watch::Held;
pub use watch::Watch;

pub use graph::State;
pub use scan::{Root, RootKind};

/// Pointers between blocks that are kept at the most: 8 bytes each with their room to grow.
const MAX_EDGES: usize = 128 << 20;

/// Looks at a running process at the most, and how many in a row must find nothing new before it is settled.
const MAX_LOOKS: usize = 12;
const SETTLED: usize = 3;

/// What is read in a second, at the least: an estimate of how long a process would have to stand.
const BYTES_PER_MS: u64 = 1 << 20;

/// When the process may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For registers and stacks, and once more for all of it where something seems lost and it won't take longer.
    Auto {
        /// The longest that it may stand.
        max_pause: Duration,
    },
    /// For registers and stacks only.
    Live,
    /// For all of it.
    Stop,
}

/// A block that the tracer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where it begins.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Whether it is a mapping that the program made itself.
    pub mapping: bool,
    /// Whether it belongs to the runtime that keeps it in a way that can't be seen, as the dynamic linker's do.
    pub kept: bool,
}

/// What to look for.
#[derive(Debug)]
pub struct Request {
    /// The process.
    pub pid: u32,
    /// The blocks that the tracer knows, in any order.
    pub blocks: Vec<Block>,
    /// Whether these are all that there are: the process was traced from its start, and nothing was left out.
    pub complete: bool,
    /// When it may stand.
    pub mode: Mode,
}

/// A block that was there before the process was traced, or that the tracer left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unrecorded {
    /// Where it begins.
    pub address: u64,
    /// Bytes that the program may use of it.
    pub size: u64,
    /// What it is.
    pub state: State,
    /// What leads to it.
    pub root: Option<Root>,
}

/// The answer.
#[derive(Debug, Default)]
pub struct Answer {
    /// The state of each block of the request, and of the held what leads to it; none for those that had gone.
    pub blocks: Vec<Option<(State, Option<Root>)>>,
    /// Blocks that the tracer does not know.
    pub unrecorded: Vec<Unrecorded>,
    /// Whether what is called lost was seen while the process stood, or in looks that agreed.
    pub confirmed: bool,
    /// How long the process stood at the most.
    pub pause: Duration,
    /// Its system calls that a stop may have ended with EINTR, with how many threads.
    pub interrupted: BTreeMap<&'static str, usize>,
    /// Parts of the allocator's memory that could not be understood, and why.
    pub refused: Vec<String>,
    /// Bytes that were read.
    pub bytes: u64,
    /// What took how long: the last look, and marking.
    pub scan: Duration,
    /// As above.
    pub marking: Duration,
}

impl Answer {
    /// How many blocks are lost, and how many bytes.
    pub fn lost(&self) -> usize {
        let is_lost = |state: State| matches!(state, State::Lost | State::LostIndirectly);
        let known = self
            .blocks
            .iter()
            .flatten()
            .filter(|of| is_lost(of.0))
            .count();
        known
            + self
                .unrecorded
                .iter()
                .filter(|of| is_lost(of.state))
                .count()
    }
}

/// Tells of each block whether the process can still reach it.
///
/// # Errors
/// Says why memory can't be read, or threads can't be stopped; the process goes on as it was.
pub fn examine(request: &Request, watch: Option<&Watch>) -> Result<Answer> {
    // the kernel lets go what a thread traces when that thread ends, whatever happened to it
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| look(request, watch));
        looking
            .join()
            .map_err(|_| anyhow!("failed to look for lost blocks"))?
    })
}

fn look(request: &Request, watch: Option<&Watch>) -> Result<Answer> {
    let mut examination = Examination::begin(request, watch)?;
    let stop = match request.mode {
        Mode::Stop => true,
        Mode::Live => false,
        Mode::Auto { max_pause } => {
            let live = examination.look_live(1)?;
            if live.lost() == 0 {
                return Ok(live);
            }
            Duration::from_millis(live.bytes / BYTES_PER_MS) <= max_pause
        }
    };
    match stop {
        true => examination.look_stopped(),
        false => examination.look_live(MAX_LOOKS),
    }
}

/// What stays the same between looks.
struct Examination<'a> {
    request: &'a Request,
    watch: Option<&'a Watch>,
    memory: ProcessMemory,
    heap: Heap,
    index: Index,
    caches: Vec<Chunk>,
    anonymous: Anonymous,
    /// For each block of the index, its number in the request.
    requested: Vec<Option<u32>>,
    /// Blocks that hold what they point to, whatever points to them.
    kept: Vec<BlockId>,
    pause: Duration,
    interrupted: BTreeMap<&'static str, usize>,
}

impl<'a> Examination<'a> {
    /// Lists the blocks.
    fn begin(request: &'a Request, watch: Option<&'a Watch>) -> Result<Self> {
        let memory = ProcessMemory::open(request.pid)?;
        let areas = memory.areas()?;
        let mut heap = Heap::find(&memory, &areas);
        let (mut chunks, caches) = chunks_in_use(&memory, &mut heap);
        chunks.extend(mapped_chunks(&memory, &areas, &request.blocks));
        let foreign = request
            .blocks
            .iter()
            .any(|block| !block.mapping && !is_in_heap(&heap, &chunks, block.address));
        let anonymous = match (foreign || !heap.refused.is_empty(), request.complete) {
            (false, _) => Anonymous::Root,
            (true, true) => Anonymous::Allocator,
            (true, false) => Anonymous::Unknown,
        };
        let own: HashSet<u64> = caches.iter().map(|cache| cache.user).collect();
        let mut all: BTreeMap<u64, (Range<u64>, Option<u32>)> = chunks
            .iter()
            .filter(|chunk| !own.contains(&chunk.user))
            .map(|chunk| (chunk.user, (chunk.user..chunk.user + chunk.usable, None)))
            .collect();
        for (number, block) in (0u32..).zip(&request.blocks) {
            // what a pool hands out within a chunk takes the chunk's place
            let around = all.range(..=block.address).next_back();
            if let Some((&start, (range, None))) = around
                && start < block.address
                && range.contains(&block.address)
            {
                all.remove(&start);
            }
            let range = block.address..block.address.saturating_add(block.size);
            all.insert(block.address, (range, Some(number)));
        }
        let index = Index::new(all.values().map(|(range, _)| range.clone()));
        let mut requested = vec![None; index.len()];
        for (start, (_, number)) in &all {
            if let Some(block) = index.at(*start) {
                requested[block as usize] = *number;
            }
        }
        // code is reached in ways that no pointer shows, and what is shared by whoever shares it
        let kept = request
            .blocks
            .iter()
            .filter(|block| block.kept || (block.mapping && is_apart(&areas, block.address)));
        let kept = kept.filter_map(|block| index.at(block.address)).collect();
        Ok(Self {
            request,
            watch,
            memory,
            heap,
            index,
            caches,
            anonymous,
            requested,
            kept,
            pause: Duration::ZERO,
            interrupted: BTreeMap::new(),
        })
    }

    /// Looks once, while the process stands.
    fn look_stopped(&mut self) -> Result<Answer> {
        let standing = self.stop()?;
        let (seen, took) = {
            let _first = Precedence::take();
            self.scan(standing.threads())?
        };
        self.resume(standing);
        Ok(self.judge(&[seen], took, true))
    }

    /// Looks while it runs, until looks agree; registers and stacks are read while it stands.
    fn look_live(&mut self, looks: usize) -> Result<Answer> {
        let mut all: Vec<Seen> = Vec::new();
        let mut settled = 0;
        let mut fewest = usize::MAX;
        loop {
            let standing = self.stop()?;
            let threads = standing.threads().to_vec();
            self.resume(standing);
            let (seen, took) = self.scan(&threads)?;
            all.push(seen);
            let answer = self.judge(&all, took, false);
            let lost = answer.lost();
            settled = if lost < fewest { 0 } else { settled + 1 };
            fewest = lost;
            if lost == 0 || settled >= SETTLED || all.len() >= looks {
                return Ok(answer);
            }
        }
    }

    fn stop(&mut self) -> Result<Standing<'a>> {
        let since = Instant::now();
        let hold = match self.watch {
            Some(watch) => Hold::Watched(watch.stop()?),
            None => Hold::Attached(Stopped::stop(self.memory.pid())?),
        };
        let standing = Standing { since, hold };
        self.note_interrupted(standing.threads());
        Ok(standing)
    }

    fn resume(&mut self, standing: Standing<'_>) {
        let since = standing.since;
        drop(standing);
        self.pause = self.pause.max(since.elapsed());
    }

    fn note_interrupted(&mut self, threads: &[Thread]) {
        let mut calls: BTreeMap<&'static str, usize> = BTreeMap::new();
        for call in threads.iter().filter_map(|thread| thread.interrupted) {
            *calls.entry(call).or_default() += 1;
        }
        for (call, count) in calls {
            let most = self.interrupted.entry(call).or_default();
            *most = count.max(*most);
        }
    }

    fn scan(&mut self, threads: &[Thread]) -> Result<(Seen, Duration)> {
        let begin = Instant::now();
        let areas = self.memory.areas()?;
        self.heap.refresh(&self.memory);
        let scope = Scope {
            memory: &self.memory,
            areas: &areas,
            index: &self.index,
            heap: &self.heap,
            caches: &self.caches,
            anonymous: self.anonymous,
            max_edges: MAX_EDGES,
        };
        let seen = scope.scan(threads);
        Ok((seen, begin.elapsed()))
    }

    /// Marks what all looks saw.
    fn judge(&self, looks: &[Seen], scan: Duration, confirmed: bool) -> Answer {
        let begin = Instant::now();
        let mut roots: Vec<Root> = looks
            .iter()
            .flat_map(|seen| seen.roots.iter().copied())
            .collect();
        roots.extend(self.kept.iter().map(|block| Root {
            kind: RootKind::Block,
            place: self.index.range(*block).start,
            block: *block,
        }));
        roots.sort_unstable();
        roots.dedup();
        let numbered = (0..)
            .zip(&roots)
            .map(|(root, of)| (root as RootId, of.block));
        let mut unknown: Vec<BlockId> =
            looks.iter().flat_map(|seen| seen.unknown.clone()).collect();
        let edges: Vec<&Edges> = looks.iter().map(|seen| &seen.edges).collect();
        unknown.extend(edges.iter().flat_map(|edges| edges.dropped()));
        let marked = graph::mark(self.index.len(), numbered.collect(), &unknown, &edges);
        let mut answer = Answer {
            blocks: vec![None; self.request.blocks.len()],
            confirmed,
            pause: self.pause,
            interrupted: self.interrupted.clone(),
            refused: self.heap.refused.clone(),
            bytes: looks.last().map_or(0, |seen| seen.bytes),
            scan,
            ..Answer::default()
        };
        for (block, number) in (0..self.index.len() as BlockId).zip(&self.requested) {
            let state = marked.states[block as usize];
            let root = match marked.roots[block as usize] {
                Marked::NO_ROOT => None,
                root => roots.get(root as usize).copied(),
            };
            match number {
                Some(number) => answer.blocks[*number as usize] = Some((state, root)),
                None => {
                    let range = self.index.range(block);
                    answer.unrecorded.push(Unrecorded {
                        address: range.start,
                        size: range.end - range.start,
                        state,
                        root,
                    });
                }
            }
        }
        answer.marking = begin.elapsed();
        answer
    }
}

/// The process, standing until this is dropped.
struct Standing<'a> {
    since: Instant,
    hold: Hold<'a>,
}

enum Hold<'a> {
    Attached(Stopped),
    Watched(Held<'a>),
}

impl Standing<'_> {
    fn threads(&self) -> &[Thread] {
        match &self.hold {
            Hold::Attached(stopped) => &stopped.threads,
            Hold::Watched(held) => &held.threads,
        }
    }
}

/// While this lives, the thread goes before all others: a process stands, and waits for it.
struct Precedence;

impl Precedence {
    fn take() -> Self {
        // without the right to it, the process waits for its turn as well
        set_policy(libc::SCHED_FIFO, 1);
        Self
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        set_policy(libc::SCHED_OTHER, 0);
    }
}

#[allow(unsafe_code)] // there is no safe wrapper
fn set_policy(policy: i32, priority: i32) {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the kernel reads one structure, which lives through the call.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
}

/// The chunks of all arenas that are in use, and those that are threads' caches; an arena that does not parse is refused.
fn chunks_in_use(memory: &ProcessMemory, heap: &mut Heap) -> (Vec<Chunk>, Vec<Chunk>) {
    let mut chunks = Vec::new();
    let mut refused = Vec::new();
    heap.arenas.retain(|arena| {
        let known = chunks.len();
        for part in &arena.heaps {
            let result = glibc::walk(
                memory,
                part,
                |chunk, _, _| {
                    if chunk.in_use {
                        chunks.push(chunk);
                    }
                },
                |_| false,
            );
            if let Err(why) = result {
                chunks.truncate(known);
                refused.push(format!("arena at {:#x}: {why}", arena.state.start));
                return false;
            }
        }
        true
    });
    heap.refused.extend(refused);
    let candidates: Vec<Chunk> = chunks.iter().copied().filter(glibc::may_be_cache).collect();
    // an empty one looks like any block of its size, but is where a heap begins
    let firsts: BTreeSet<u64> = heap.first_blocks().collect();
    let caches: Vec<Chunk> = candidates
        .into_iter()
        .filter(|chunk| {
            let listed = glibc::listed_in_cache(memory, *chunk);
            listed.is_some_and(|listed| !listed.is_empty() || firsts.contains(&chunk.user))
        })
        .collect();
    let free = heap.listed_free(memory, &caches);
    chunks.retain(|chunk| !free.contains(&chunk.user));
    (chunks, caches)
}

/// Chunks that have mappings of their own: those at the beginning of a mapping, those right behind, and blocks that look
/// like one.
fn mapped_chunks(memory: &ProcessMemory, areas: &[Area], blocks: &[Block]) -> Vec<Chunk> {
    let mut found = BTreeMap::new();
    let known: BTreeSet<u64> = blocks.iter().map(|block| block.address).collect();
    let mappings: BTreeSet<u64> = blocks
        .iter()
        .filter(|of| of.mapping)
        .map(|of| of.address)
        .collect();
    for area in areas {
        let plain = area.origin == Origin::Anonymous(Vec::new());
        if !plain || !area.writable || area.shared {
            continue;
        }
        let mut at = area.range.start;
        while at < area.range.end && !mappings.contains(&at) {
            let Some(chunk) = glibc::mapped_chunk(memory, at, &area.range) else {
                break;
            };
            found.insert(chunk.user, chunk);
            at = chunk.user + chunk.usable;
        }
        for user in known.range(area.range.clone()) {
            let header = user - 16;
            if user % 4096 == 16
                && header >= area.range.start
                && let Some(chunk) = glibc::mapped_chunk(memory, header, &area.range)
            {
                found.insert(chunk.user, chunk);
            }
        }
    }
    found.into_values().collect()
}

/// Whether an address lies in memory that holds code, or that others share.
fn is_apart(areas: &[Area], address: u64) -> bool {
    let behind = areas.partition_point(|area| area.range.end <= address);
    let area = areas
        .get(behind)
        .filter(|area| area.range.contains(&address));
    area.is_some_and(|area| area.executable || area.shared)
}

/// Whether an address lies in an arena, or in a chunk with a mapping of its own.
fn is_in_heap(heap: &Heap, mapped: &[Chunk], address: u64) -> bool {
    let in_arena = |range: &Range<u64>| range.contains(&address);
    heap.arenas
        .iter()
        .flat_map(|arena| &arena.heaps)
        .any(|heap| in_arena(&heap.whole))
        || mapped
            .iter()
            .any(|chunk| (chunk.user..chunk.user + chunk.usable).contains(&address))
}
