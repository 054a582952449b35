//! Walks that the programs could not finish, since a file's table was still to be read: they are finished here, and
//! what stood for their stacks is resolved. How a step is made is told in `unwind`; what is mapped where is asked for.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::skel::types;
use crate::model::losses::CutStacks;
use crate::model::snapshot::StackId;
use crate::unwind::{End, Frame, Link, Rule, step};

/// What words of a stack have that are no addresses: INTERPRETED_FRAME of src/bpf/interpreter.h.
const INTERPRETED_FRAME: u64 = 1 << 63;
/// Frames, and marks between them, that a walk over an interpreter's frames can give; INTERPRETED_WORDS.
const INTERPRETED_WORDS: usize = 256;
/// In place of a mark: the frame is known by its code.
const MARK_BY_CODE: u64 = 0;
/// No frame of an evaluation loop is left.
const NO_MARK: u64 = u64::MAX;

/// Bytes of a page of stack memory, as the programs send it on any machine.
const PAGE_BYTES: usize = 4096;

/// A walk up a stack, and the stack's memory, as of the moment when it came to a file without a table.
#[derive(Clone, Debug)]
pub struct DeferredWalk {
    /// The process.
    pub tgid: u32,
    /// When, in ns of CLOCK_MONOTONIC.
    pub time_ns: u64,
    id: StackId,
    frame: Frame,
    hash: u64,
    walked: types::stack,
    interpreted: types::interpreted,
    interpreted_words: [u64; INTERPRETED_WORDS],
    memory_begin: u64,
    /// Bit by bit, the pages of `memory` that could be read.
    readable: u32,
    memory: Vec<u64>,
}

/// What an address of code is worth to a walk.
pub enum Found {
    /// The rule for it, and the number of the table that it is from, 0 for none.
    Rule(Rule, u32),
    /// It is in no known code.
    Nothing,
}

impl DeferredWalk {
    /// Takes over what the programs have sent; none if it is not that.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let (header, memory) = data.split_at_checked(size_of::<types::deferred_walk>())?;
        let event: &types::deferred_walk = plain::from_bytes(header).ok()?;
        Some(Self {
            tgid: event.tgid,
            time_ns: event.time_ns,
            id: StackId(event.id),
            frame: Frame {
                pc: event.pc,
                sp: event.sp,
                bp: event.bp,
                is_return_address: event.is_return_address != 0,
                link: Link {
                    register: event.link,
                    sp_is_bound: event.sp_is_bound != 0,
                    mask: event.address_mask,
                },
            },
            hash: event.hash,
            walked: event.walked,
            interpreted: event.interpreted,
            interpreted_words: event.interpreted_words,
            memory_begin: event.sp & !(PAGE_BYTES as u64 - 1),
            readable: event.readable,
            memory: memory
                .as_chunks()
                .0
                .iter()
                .map(|word| u64::from_ne_bytes(*word))
                .collect(),
        })
    }

    fn word(&self, address: u64) -> Option<u64> {
        let offset = usize::try_from(address.checked_sub(self.memory_begin)?).ok()?;
        let page = u32::try_from(offset / PAGE_BYTES).ok()?;
        let readable = self.readable.checked_shr(page)? & 1 != 0;
        (readable && offset.is_multiple_of(8)).then(|| self.memory.get(offset / 8).copied())?
    }

    /// Walks on to the stack's end, or to `max_depth` frames.
    fn walk(&mut self, max_depth: usize, mut rule_at: impl FnMut(u64) -> Found) -> WalkEnd {
        loop {
            let Found::Rule(rule, table) = rule_at(self.frame.code_address()) else {
                return WalkEnd::UnknownCode;
            };
            let depth = self.walked.depth as usize;
            let Some(address) = self.walked.addresses[..].get_mut(depth) else {
                return WalkEnd::Depth;
            };
            if depth >= max_depth {
                return WalkEnd::Depth;
            }
            *address = self.frame.pc;
            self.walked.depth += 1;
            self.interpreted.hash_before = [self.hash, self.interpreted.hash_before[0]];
            self.hash = hash_address(self.hash ^ u64::from(table), self.frame.pc);
            let left = self.frame;
            match step(&self.frame, rule, |address| self.word(address)) {
                Ok(frame) => self.frame = frame,
                Err(end) => return WalkEnd::At(end),
            }
            if self.is_next_loop(&left) && !self.merge(max_depth) {
                return WalkEnd::Depth;
            }
        }
    }

    /// Whether the frame that was left just now is that of the interpreter's next evaluation loop; `is_next_loop` of
    /// src/bpf/interpreted.bpf.h.
    fn is_next_loop(&mut self, left: &Frame) -> bool {
        let interpreted = &mut self.interpreted;
        let code = interpreted.loop_begin.iter().zip(interpreted.loop_size);
        let is_loop = code
            .into_iter()
            .any(|(begin, size)| left.pc.wrapping_sub(*begin) < size);
        let is_next = match interpreted.mark {
            NO_MARK => false,
            MARK_BY_CODE => is_loop,
            mark => (left.sp..self.frame.sp).contains(&mark),
        };
        if is_loop && !is_next {
            interpreted.lost = 1;
        }
        is_next
    }

    /// Puts the frames that the loop runs in its native frame's place, which was added last; tells whether there was room.
    fn merge(&mut self, max_depth: usize) -> bool {
        let interpreted = &mut self.interpreted;
        let words = &self.interpreted_words;
        let words = &words[..(interpreted.count as usize).min(words.len())];
        let rest = words.get(interpreted.next as usize..).unwrap_or_default();
        let count = rest
            .iter()
            .take_while(|word| **word & INTERPRETED_FRAME != 0)
            .count();
        let (frames, behind) = rest.split_at(count);
        // one that runs nothing that is to be seen stays what it is
        if count > 0 {
            let replaced = 1 + u32::from(interpreted.tail_calls != 0 && self.walked.depth > 1);
            self.walked.depth -= replaced;
            self.hash = interpreted.hash_before[replaced as usize - 1];
        }
        for word in frames {
            let depth = self.walked.depth as usize;
            match self.walked.addresses[..].get_mut(depth) {
                Some(address) if depth < max_depth => *address = *word,
                _ => return false,
            }
            self.walked.depth += 1;
            self.hash = hash_address(self.hash, *word);
        }
        interpreted.mark = behind.first().copied().unwrap_or(NO_MARK);
        interpreted.next += count as u32 + 1;
        true
    }
}

enum WalkEnd {
    At(End),
    Depth,
    UnknownCode,
}

/// Which stack it was that something has stood for, and whose walk that was.
#[derive(Clone, Copy)]
struct Identity {
    stack: StackId,
    tgid: u32,
    time_ns: u64,
}

/// Stacks that were finished here.
#[derive(Default)]
pub struct FinishedStacks {
    identities: HashMap<StackId, Identity>,
    stacks: HashMap<StackId, types::stack>,
    cut: CutStacks,
    interpreted_lost: u64,
}

impl FinishedStacks {
    /// Finishes a walk; `rule_at` gives the rule for an address of code.
    pub fn finish(
        &mut self,
        mut walk: DeferredWalk,
        max_depth: usize,
        rule_at: impl FnMut(u64) -> Found,
    ) {
        let was_lost = u64::from(walk.interpreted.lost);
        let end = walk.walk(max_depth, rule_at);
        self.interpreted_lost += u64::from(walk.interpreted.lost).saturating_sub(was_lost);
        match end {
            WalkEnd::At(End::Complete) => {}
            WalkEnd::At(End::Unsupported) => self.cut.unsupported += 1,
            WalkEnd::At(End::Unreadable) => self.cut.unreadable += 1,
            WalkEnd::At(End::FramePointer) => self.cut.frame_pointer += 1,
            WalkEnd::Depth => self.cut.depth += 1,
            WalkEnd::UnknownCode => self.cut.unknown_code += 1,
        }
        let hash = walk.hash.max(1);
        let stack = StackId(hash.wrapping_add(walk.walked.allocator.into()));
        let identity = Identity {
            stack,
            tgid: walk.tgid,
            time_ns: walk.time_ns,
        };
        self.identities.insert(walk.id, identity);
        self.stacks.entry(stack).or_insert(walk.walked);
    }

    /// The identity of a stack, where something has stood for it.
    pub fn identity(&self, id: StackId) -> StackId {
        self.identities
            .get(&id)
            .map_or(id, |identity| identity.stack)
    }

    /// Lets go of the walks of processes that ended at a time in ns of CLOCK_MONOTONIC, and of the stacks that only they
    /// came to: their blocks are gone.
    pub fn forget(&mut self, ended: &BTreeMap<u32, u64>) {
        let known = self.identities.len();
        self.identities.retain(|_, walk| {
            let ended_ns = ended.get(&walk.tgid);
            ended_ns.is_none_or(|ended_ns| walk.time_ns > *ended_ns)
        });
        if self.identities.len() == known {
            return;
        }
        let used: HashSet<StackId> = self.identities.values().map(|walk| walk.stack).collect();
        self.stacks.retain(|id, _| used.contains(id));
        self.identities.shrink_to_fit();
        self.stacks.shrink_to_fit();
    }

    /// A stack that was finished here.
    pub fn stack(&self, id: StackId) -> Option<&types::stack> {
        self.stacks.get(&id)
    }

    /// Stacks without some of an interpreter's frames.
    pub fn interpreted_lost(&self) -> u64 {
        self.interpreted_lost
    }

    /// Stacks that ended too early even so.
    pub fn cut(&self) -> &CutStacks {
        &self.cut
    }
}

/// One step of the hash that identifies a stack: `hash_address` of src/bpf/interpreted.bpf.h.
fn hash_address(hash: u64, address: u64) -> u64 {
    let mut hash = (hash ^ address).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 29
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(id: u64, memory: &[u64]) -> DeferredWalk {
        let mut walked = types::stack {
            depth: 1,
            allocator: 3,
            ..types::stack::default()
        };
        walked.addresses[0] = 0xff;
        DeferredWalk {
            interpreted: types::interpreted {
                mark: NO_MARK,
                ..types::interpreted::default()
            },
            interpreted_words: [0; INTERPRETED_WORDS],
            tgid: 1,
            time_ns: 5,
            id: StackId(id),
            frame: Frame {
                pc: 0x100,
                sp: 0x1000,
                bp: 0,
                is_return_address: true,
                link: Link::default(),
            },
            hash: 7,
            walked,
            memory_begin: 0x1000,
            readable: 1,
            memory: memory.to_vec(),
        }
    }

    fn addresses(finished: &FinishedStacks, id: u64) -> Vec<u64> {
        let stack = finished.stack(finished.identity(StackId(id))).unwrap();
        stack.addresses[..stack.depth as usize].to_vec()
    }

    fn rule_at(address: u64) -> Found {
        match address {
            0x999 => Found::Rule(Rule::Stop, 0),
            0xeee => Found::Nothing,
            // two words for each frame
            _ => Found::Rule(Rule::Plt { threshold: 0 }, 0),
        }
    }

    #[test]
    fn equal_stacks_are_one_whatever_stood_for_them() {
        let mut finished = FinishedStacks::default();
        for id in [10, 11] {
            finished.finish(walk(id, &[0, 0x200, 0, 0x99a]), 127, rule_at);
        }
        let identity = finished.identity(StackId(10));
        assert_eq!(identity, finished.identity(StackId(11)));
        assert_eq!(addresses(&finished, 10), [0xff, 0x100, 0x200, 0x99a]);
        assert_eq!(finished.stack(identity).unwrap().allocator, 3);
        assert_eq!(finished.identity(StackId(12)), StackId(12));
        assert_eq!(finished.cut(), &CutStacks::default());
    }

    /// A walk in whose stack two loops are, with these words, the first loop's mark taken already.
    fn interpreted(id: u64, mark: u64, words: &[u64], tail_calls: u32) -> DeferredWalk {
        let mut walk = walk(id, &[0, 0x200, 0, 0x300, 0, 0x400, 0, 0x99a]);
        walk.interpreted = types::interpreted {
            mark,
            count: words.len() as u32,
            loop_begin: [0x200, 0],
            loop_size: [0x10, 0],
            tail_calls,
            row: 1,
            ..types::interpreted::default()
        };
        walk.interpreted_words[..words.len()].copy_from_slice(words);
        walk
    }

    const ONE: u64 = INTERPRETED_FRAME | 1;
    const TWO: u64 = INTERPRETED_FRAME | 2;

    #[test]
    fn interpreted_frames_take_the_place_of_their_loops() {
        let mut finished = FinishedStacks::default();
        // the frame of 0x200 is from 0x1010 on, that of 0x400 from 0x1030 on
        finished.finish(
            interpreted(10, 0x1018, &[ONE, TWO, 0x1030, ONE], 0),
            127,
            rule_at,
        );
        assert_eq!(
            addresses(&finished, 10),
            [0xff, 0x100, ONE, TWO, 0x300, ONE, 0x99a]
        );
        // a loop that is known by its code, and what it calls to run instructions
        finished.finish(interpreted(11, MARK_BY_CODE, &[TWO], 1), 127, rule_at);
        assert_eq!(addresses(&finished, 11), [0xff, TWO, 0x300, 0x400, 0x99a]);
        assert_eq!(finished.interpreted_lost(), 0);
    }

    #[test]
    fn loops_without_frames_stay_and_are_counted() {
        let mut finished = FinishedStacks::default();
        finished.finish(interpreted(10, NO_MARK, &[], 0), 127, rule_at);
        let native = [0xff, 0x100, 0x200, 0x300, 0x400, 0x99a];
        assert_eq!(addresses(&finished, 10), native);
        assert_eq!(finished.interpreted_lost(), 1);
        // nothing to be seen runs there
        finished.finish(interpreted(11, 0x1018, &[], 0), 127, rule_at);
        assert_eq!(addresses(&finished, 11), native);
        assert_eq!(finished.interpreted_lost(), 1);
        finished.finish(interpreted(12, 0x1018, &[ONE, TWO], 0), 3, rule_at);
        assert_eq!(addresses(&finished, 12), [0xff, 0x100, ONE]);
        assert_eq!(finished.cut().depth, 1);
    }

    #[test]
    fn stacks_go_with_the_last_process_that_came_to_them() {
        let mut finished = FinishedStacks::default();
        let shared = [0, 0x200, 0, 0x99a];
        finished.finish(walk(10, &shared), 127, rule_at);
        finished.finish(walk(11, &[0, 0x99a]), 127, rule_at);
        let of = |tgid, time_ns, walk| DeferredWalk {
            tgid,
            time_ns,
            ..walk
        };
        finished.finish(of(2, 5, walk(12, &shared)), 127, rule_at);
        // another process under the number of one that ended
        finished.finish(of(1, 9, walk(13, &[0, 0x400, 0, 0x99a])), 127, rule_at);
        finished.forget(&BTreeMap::from([(1, 8)]));
        assert_eq!(finished.identity(StackId(11)), StackId(11));
        assert_eq!(addresses(&finished, 12), [0xff, 0x100, 0x200, 0x99a]);
        assert_eq!(addresses(&finished, 13), [0xff, 0x100, 0x400, 0x99a]);
        assert_eq!(finished.stacks.len(), 2);
        finished.forget(&BTreeMap::from([(1, 10), (2, 8)]));
        assert!(finished.stacks.is_empty());
    }

    #[test]
    fn what_ends_too_early_is_kept_as_far_as_it_goes_and_counted() {
        let mut finished = FinishedStacks::default();
        finished.finish(walk(1, &[0, 0x200]), 127, rule_at);
        finished.finish(walk(2, &[0, 0x200, 0, 0x300]), 2, rule_at);
        finished.finish(walk(3, &[0, 0xeef]), 127, rule_at);
        let untouched = DeferredWalk {
            readable: 0,
            ..walk(4, &[0, 0x200, 0, 0x99a])
        };
        finished.finish(untouched, 127, rule_at);
        assert_eq!(addresses(&finished, 1), [0xff, 0x100, 0x200]);
        assert_eq!(addresses(&finished, 2), [0xff, 0x100]);
        assert_eq!(addresses(&finished, 3), [0xff, 0x100]);
        assert_eq!(addresses(&finished, 4), [0xff, 0x100]);
        let cut = finished.cut();
        assert_eq!((cut.unreadable, cut.depth, cut.unknown_code), (2, 1, 1));
    }
}
