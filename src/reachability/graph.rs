//! From roots and edges to the state of every block, and to the root that holds it. Pure.

use super::index::BlockId;

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Nothing points to it, or only blocks that it leads to itself.
    Lost,
    /// Only lost blocks point to it.
    LostIndirectly,
    /// Something that the program can reach points to it.
    Held,
    /// Only memory that memleak knows nothing of points to it.
    Undecided,
}

/// The pointers that blocks hold. Each block's are added in one go, whatever the order of the blocks.
#[derive(Debug, Default)]
pub struct Edges {
    /// For each block, where its pointers are in `targets`.
    ranges: Vec<(u32, u32)>,
    targets: Vec<BlockId>,
    current: Option<BlockId>,
    limit: usize,
    /// Blocks to which pointers lead that found no room: they can't be called lost.
    dropped: Vec<BlockId>,
}

impl Edges {
    /// No pointers between `count` blocks yet, and at most `limit` of them.
    pub fn new(count: usize, limit: usize) -> Self {
        Self {
            ranges: vec![(0, 0); count],
            limit: limit.min(u32::MAX as usize),
            ..Self::default()
        }
    }

    /// What is added from now on is in `block`. One that was left for another does not get any more.
    pub fn begin(&mut self, block: BlockId) {
        if self.current != Some(block)
            && let Some(range) = self.ranges.get_mut(block as usize)
        {
            let at = self.targets.len() as u32;
            *range = (at, at);
            self.current = Some(block);
        }
    }

    /// The block that was begun last points to another. A pointer to itself says nothing, nor does the same one again.
    #[inline]
    pub fn add(&mut self, to: BlockId) {
        let Some(from) = self.current else {
            return;
        };
        let range = &mut self.ranges[from as usize];
        let known = range.0 < range.1 && self.targets.last() == Some(&to);
        if to == from || known {
            return;
        }
        if self.targets.len() < self.limit {
            self.targets.push(to);
            range.1 = self.targets.len() as u32;
        } else if self.dropped.last() != Some(&to) && self.dropped.len() < self.limit {
            self.dropped.push(to);
        }
    }

    /// Blocks to which pointers lead that found no room: what is not held otherwise is undecided.
    pub fn dropped(&self) -> &[BlockId] {
        &self.dropped
    }

    fn of(&self, block: BlockId) -> &[BlockId] {
        match self.ranges.get(block as usize) {
            Some(&(begin, end)) => &self.targets[begin as usize..end as usize],
            None => &[],
        }
    }
}

/// A root's number, in the order in which roots are preferred when several lead to a block.
pub type RootId = u32;

/// The answer for every block.
#[derive(Debug)]
pub struct Marked {
    /// What each block is.
    pub states: Vec<State>,
    /// Of the held, the root that leads to it; [`Marked::NO_ROOT`] for others.
    pub roots: Vec<RootId>,
}

impl Marked {
    /// No root leads there.
    pub const NO_ROOT: RootId = RootId::MAX;
}

/// Marks `count` blocks: what `roots` (root, block) lead to is held, what only `unknown` leads to is undecided, the rest is
/// lost. Several scans of a running target are united by giving all their edges.
pub fn mark(
    count: usize,
    mut roots: Vec<(RootId, BlockId)>,
    unknown: &[BlockId],
    edges: &[&Edges],
) -> Marked {
    let mut marked = Marked {
        states: vec![State::Lost; count],
        roots: vec![Marked::NO_ROOT; count],
    };
    roots.sort_unstable();
    roots.dedup();
    for (root, block) in roots {
        spread(&mut marked, block, State::Held, root, edges);
    }
    for block in unknown {
        spread(
            &mut marked,
            *block,
            State::Undecided,
            Marked::NO_ROOT,
            edges,
        );
    }
    mark_indirect(&mut marked.states, edges);
    marked
}

/// Gives a block, and what it leads to, a state, where they are still thought lost.
fn spread(marked: &mut Marked, block: BlockId, state: State, root: RootId, edges: &[&Edges]) {
    let mut take = |block: BlockId, waiting: &mut Vec<BlockId>| {
        if let Some(known) = marked.states.get_mut(block as usize)
            && *known == State::Lost
        {
            *known = state;
            marked.roots[block as usize] = root;
            waiting.push(block);
        }
    };
    let mut waiting = Vec::new();
    take(block, &mut waiting);
    while let Some(block) = waiting.pop() {
        for edges in edges {
            for target in edges.of(block) {
                take(*target, &mut waiting);
            }
        }
    }
}

/// Of the lost, those that another lost block leads to are lost indirectly; of blocks that lead to each other and that
/// nothing else leads to, one stays, so that each loss has a block that stands for it (Valgrind's rule).
fn mark_indirect(states: &mut [State], edges: &[&Edges]) {
    let order = finishing_order(states, edges);
    let mut waiting = Vec::new();
    let mut seen = vec![false; states.len()];
    // the block that a search left last is led to by none of those left, or by such as it leads to itself
    for leader in order.into_iter().rev() {
        if seen[leader as usize] {
            continue;
        }
        seen[leader as usize] = true;
        waiting.push(leader);
        while let Some(block) = waiting.pop() {
            for target in edges.iter().flat_map(|edges| edges.of(block)) {
                let at = *target as usize;
                if states.get(at) == Some(&State::Lost) && !seen[at] {
                    seen[at] = true;
                    states[at] = State::LostIndirectly;
                    waiting.push(*target);
                }
            }
        }
    }
}

/// The lost blocks in the order in which a depth-first search through them, by address, is done with each.
fn finishing_order(states: &[State], edges: &[&Edges]) -> Vec<BlockId> {
    let mut order = Vec::new();
    let mut seen = vec![false; states.len()];
    // blocks on the way, each with the pointer to follow next: in which list of edges, and where in it
    let mut path: Vec<(BlockId, usize, usize)> = Vec::new();
    for start in 0..states.len() {
        if states[start] != State::Lost || seen[start] {
            continue;
        }
        seen[start] = true;
        path.push((start as BlockId, 0, 0));
        while let Some((block, list, at)) = path.last_mut() {
            let Some(pointers) = edges.get(*list) else {
                order.push(*block);
                path.pop();
                continue;
            };
            let Some(target) = pointers.of(*block).get(*at) else {
                (*list, *at) = (*list + 1, 0);
                continue;
            };
            *at += 1;
            let next = *target as usize;
            if states.get(next) == Some(&State::Lost) && !seen[next] {
                seen[next] = true;
                path.push((*target, 0, 0));
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::State::{Held, Lost, LostIndirectly, Undecided};
    use super::*;

    fn edges(count: usize, pointers: &[(BlockId, BlockId)]) -> Edges {
        let mut edges = Edges::new(count, usize::MAX);
        for block in 0..count as BlockId {
            edges.begin(block);
            for (_, to) in pointers.iter().filter(|(from, _)| *from == block) {
                edges.add(*to);
            }
        }
        edges
    }

    fn states(count: usize, roots: &[BlockId], pointers: &[(BlockId, BlockId)]) -> Vec<State> {
        let roots = roots.iter().map(|block| (0, *block)).collect();
        mark(count, roots, &[], &[&edges(count, pointers)]).states
    }

    #[test]
    fn what_a_root_leads_to_is_held() {
        let states = states(5, &[0], &[(0, 1), (1, 2), (2, 0), (3, 2), (3, 4)]);
        assert_eq!(states, [Held, Held, Held, Lost, LostIndirectly]);
    }

    #[test]
    fn a_ring_that_nothing_holds_is_lost_with_one_block_for_all() {
        assert_eq!(
            states(3, &[], &[(0, 1), (1, 2), (2, 0)]),
            [Lost, LostIndirectly, LostIndirectly]
        );
        // a later block leads to the ring, and stands for it
        assert_eq!(
            states(4, &[], &[(0, 1), (1, 0), (3, 1)]),
            [LostIndirectly, LostIndirectly, Lost, Lost]
        );
        assert_eq!(states(1, &[], &[(0, 0)]), [Lost]);
    }

    #[test]
    fn memory_that_nothing_is_known_of_leaves_undecided_what_nothing_else_holds() {
        let edges = edges(4, &[(0, 1), (2, 1), (2, 3)]);
        let marked = mark(4, vec![(7, 0)], &[2], &[&edges]);
        assert_eq!(marked.states, [Held, Held, Undecided, Undecided]);
        assert_eq!(marked.roots, [7, 7, Marked::NO_ROOT, Marked::NO_ROOT]);
    }

    #[test]
    fn the_first_root_in_order_is_the_one_that_holds() {
        let edges = edges(2, &[(0, 1)]);
        let marked = mark(2, vec![(9, 1), (3, 0)], &[], &[&edges]);
        assert_eq!(marked.roots, [3, 3]);
    }

    #[test]
    fn scans_are_united() {
        let (first, second) = (edges(3, &[(0, 1)]), edges(3, &[(1, 2)]));
        let marked = mark(3, vec![(0, 0)], &[], &[&first, &second]);
        assert_eq!(marked.states, [Held, Held, Held]);
    }

    #[test]
    fn edges_beyond_the_limit_are_counted() {
        let mut edges = Edges::new(3, 1);
        edges.add(1);
        edges.begin(2);
        edges.add(0);
        edges.begin(2);
        edges.add(0);
        edges.add(2);
        edges.add(1);
        assert_eq!((edges.targets.len(), edges.dropped()), (1, &[1][..]));
        assert!(edges.of(0).is_empty());
        assert_eq!(edges.of(2), [0]);
        assert!(edges.of(7).is_empty());
    }

    /// Lost means that no path leads there from a root, whatever the graph; and each loss has a block that stands for it.
    #[test]
    fn marks_agree_with_the_definition_on_random_graphs() {
        let mut seed = 88_172_645_463_325_252_u64;
        let mut below = |limit: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % limit as u64) as usize
        };
        for _ in 0..300 {
            let count = 1 + below(12);
            let mut reach = vec![vec![false; count]; count];
            let pointers: Vec<(BlockId, BlockId)> = (0..below(24))
                .map(|_| (below(count) as BlockId, below(count) as BlockId))
                .collect();
            for (from, to) in &pointers {
                reach[*from as usize][*to as usize] = true;
            }
            for via in 0..count {
                for from in 0..count {
                    for to in 0..count {
                        reach[from][to] |= reach[from][via] && reach[via][to];
                    }
                }
            }
            let roots: Vec<BlockId> = (0..below(3)).map(|_| below(count) as BlockId).collect();
            let states = states(count, &roots, &pointers);
            let held = |at: usize| {
                let leads = |root: &BlockId| *root as usize == at || reach[*root as usize][at];
                roots.iter().any(leads)
            };
            for at in 0..count {
                assert_eq!(states[at] == Held, held(at), "{pointers:?} {roots:?}");
                if states[at] == LostIndirectly {
                    let leader = (0..count).any(|of| states[of] == Lost && reach[of][at]);
                    assert!(leader, "{pointers:?} {roots:?} {states:?}");
                }
                if states[at] == Lost {
                    let one_way =
                        |of: &usize| *of != at && !held(*of) && reach[*of][at] && !reach[at][*of];
                    assert_eq!((0..count).find(one_way), None, "{pointers:?} {states:?}");
                }
            }
        }
    }
}
