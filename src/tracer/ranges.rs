//! Anonymous mappings as ranges of addresses that can be cut, moved and replaced piece by piece.
//! Pure: it is told what happened, in any order that the kernel's rings deliver, and reads no clock.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// The flag of mremap(2) that leaves the old mapping in place.
const MREMAP_DONTUNMAP: u64 = 4;

/// A part of a mapping, or all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First address after it. The bytes of a mapping end where the program asked, not with the page.
    pub end: u64,
    /// The stack that made the mapping.
    pub stack: u64,
    /// The thread that made it.
    pub tid: u32,
    /// When it was made, in ns of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Since when it is where it is: later than `time_ns` once mremap has moved it.
    placed_ns: u64,
    /// Number of the mapping that it was cut from.
    pub mapping: u64,
}

/// When a call ran, in ns of CLOCK_MONOTONIC. Calls of several threads overlap: what a call removes was
/// there before it began, and what it makes is there from its return on.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Its entry.
    pub entry_ns: u64,
    /// Its return.
    pub return_ns: u64,
}

/// A piece whose addresses another call was given before the call that freed them has returned.
struct Displaced {
    tgid: u32,
    start: u64,
    piece: Piece,
    /// When the call that was given the addresses returned.
    by_ns: u64,
}

/// Displaced pieces to remember: far more than threads that can be inside mremap at a time.
const MAX_DISPLACED: usize = 4096;

/// The ranges of all processes, by process and first address.
#[derive(Default)]
pub struct Ranges {
    pieces: BTreeMap<(u32, u64), Piece>,
    /// What an mremap may yet turn out to have moved away, oldest first.
    displaced: VecDeque<Displaced>,
    mappings: u64,
}

impl Ranges {
    /// A process made an anonymous mapping, perhaps over older ones.
    pub fn map(&mut self, tgid: u32, at: Range<u64>, span: Span, stack: u64, tid: u32) {
        self.displace(tgid, &whole_pages(at.clone()), span);
        if at.is_empty() {
            return;
        }
        self.mappings += 1;
        let piece = Piece {
            end: at.end,
            stack,
            tid,
            time_ns: span.return_ns,
            placed_ns: span.return_ns,
            mapping: self.mappings,
        };
        self.pieces.insert((tgid, at.start), piece);
    }

    /// A process removed, or mapped a file over, what was in a range.
    pub fn unmap(&mut self, tgid: u32, at: Range<u64>, span: Span) {
        let at = whole_pages(at);
        self.take(tgid, &at, span);
        self.reclaim(tgid, &at, span);
    }

    /// A process moved, grew or shrank a mapping. What grows belongs to the stack that made the mapping.
    pub fn remap(&mut self, tgid: u32, old: Range<u64>, new: Range<u64>, span: Span, flags: u64) {
        let old_pages = whole_pages(old.clone());
        let new_pages = whole_pages(new.clone());
        let moved = match flags & MREMAP_DONTUNMAP {
            0 => {
                let mut moved = self.take(tgid, &old_pages, span);
                moved.extend(self.reclaim(tgid, &old_pages, span));
                moved
            }
            _ => self.within(tgid, &old_pages, span),
        };
        self.displace(tgid, &new_pages, span);
        for (start, mut piece) in moved {
            // the piece at the end of the old range is the one that grows
            let grows = whole_pages(start..piece.end).end == old_pages.end
                && new_pages.end - new_pages.start > old_pages.end - old_pages.start;
            let shift = |address: u64| address.wrapping_sub(old.start).wrapping_add(new.start);
            let start = shift(start);
            piece.end = match grows {
                true => new.end,
                false => shift(piece.end).min(new.end),
            };
            piece.placed_ns = span.return_ns;
            if start < piece.end {
                self.pieces.insert((tgid, start), piece);
            }
        }
    }

    /// A process executed another program: what it had mapped before is gone.
    pub fn forget(&mut self, tgid: u32, before_ns: u64) {
        self.pieces
            .retain(|(owner, _), piece| *owner != tgid || piece.time_ns >= before_ns);
        self.displaced.retain(|displaced| displaced.tgid != tgid);
    }

    /// All pieces: process, first address, piece.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u64, &Piece)> {
        self.pieces
            .iter()
            .map(|((tgid, start), piece)| (*tgid, *start, piece))
    }

    /// Cuts a range out; gives what was there before the call began.
    fn take(&mut self, tgid: u32, at: &Range<u64>, span: Span) -> Vec<(u64, Piece)> {
        let taken = self.within(tgid, at, span);
        for (start, piece) in self.overlapping(tgid, at, span) {
            self.pieces.remove(&(tgid, start));
            if start < at.start {
                let head = Piece {
                    end: at.start,
                    ..piece
                };
                self.pieces.insert((tgid, start), head);
            }
            if piece.end > at.end {
                self.pieces.insert((tgid, at.end), piece);
            }
        }
        taken
    }

    /// Cuts a range out for what a call was given there. A thread that frees addresses may return, and be heard
    /// of, later than the one that is given them next: so what was there is remembered for a while.
    fn displace(&mut self, tgid: u32, at: &Range<u64>, span: Span) {
        for (start, piece) in self.take(tgid, at, span) {
            if self.displaced.len() == MAX_DISPLACED {
                self.displaced.pop_front();
            }
            self.displaced.push_back(Displaced {
                tgid,
                start,
                piece,
                by_ns: span.return_ns,
            });
        }
    }

    /// Cuts a range out of what was displaced while a call ran; gives what was there before the call began.
    fn reclaim(&mut self, tgid: u32, at: &Range<u64>, span: Span) -> Vec<(u64, Piece)> {
        let mut reclaimed = Vec::new();
        self.displaced.retain(|displaced| {
            let (start, piece) = (displaced.start, displaced.piece);
            let belongs = displaced.tgid == tgid
                && start < at.end
                && piece.end > at.start
                && piece.placed_ns <= span.entry_ns
                && displaced.by_ns >= span.entry_ns;
            if belongs {
                let end = piece.end.min(at.end);
                reclaimed.push((start.max(at.start), Piece { end, ..piece }));
            }
            !belongs
        });
        reclaimed
    }

    /// The pieces in a range, cut to it.
    fn within(&self, tgid: u32, at: &Range<u64>, span: Span) -> Vec<(u64, Piece)> {
        let mut pieces = self.overlapping(tgid, at, span);
        for (start, piece) in &mut pieces {
            *start = (*start).max(at.start);
            piece.end = piece.end.min(at.end);
        }
        pieces
    }

    fn overlapping(&self, tgid: u32, at: &Range<u64>, span: Span) -> Vec<(u64, Piece)> {
        if at.is_empty() {
            return Vec::new();
        }
        let before = self.pieces.range((tgid, 0)..(tgid, at.start)).next_back();
        let inside = self.pieces.range((tgid, at.start)..(tgid, at.end));
        before
            .into_iter()
            .chain(inside)
            .filter(|(_, piece)| piece.end > at.start && piece.placed_ns <= span.entry_ns)
            .map(|((_, start), piece)| (*start, *piece))
            .collect()
    }
}

/// What mmap and munmap make of a range.
fn whole_pages(at: Range<u64>) -> Range<u64> {
    let page = rustix::param::page_size() as u64;
    at.start..at.end.checked_next_multiple_of(page).unwrap_or(at.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page, as machines have them on which this is run.
    const P: u64 = 4096;

    /// A mapping of 8 pages at page 16, made by stack 7.
    fn mapped() -> Ranges {
        let mut ranges = Ranges::default();
        ranges.map(1, 16 * P..24 * P, at(1), 7, 100);
        ranges
    }

    fn at(time_ns: u64) -> Span {
        Span {
            entry_ns: time_ns,
            return_ns: time_ns,
        }
    }

    /// First and end page of each piece of process 1.
    fn pages(ranges: &Ranges) -> Vec<(u64, u64)> {
        ranges
            .iter()
            .map(|(_, start, piece)| (start / P, piece.end / P))
            .collect()
    }

    #[test]
    fn munmap_cuts_head_middle_and_tail() {
        let mut ranges = mapped();
        ranges.unmap(1, 16 * P..17 * P, at(2));
        assert_eq!(pages(&ranges), [(17, 24)]);
        ranges.unmap(1, 23 * P..24 * P, at(2));
        assert_eq!(pages(&ranges), [(17, 23)]);
        ranges.unmap(1, 19 * P..20 * P, at(2));
        assert_eq!(pages(&ranges), [(17, 19), (20, 23)]);
        let mappings: Vec<u64> = ranges.iter().map(|(_, _, piece)| piece.mapping).collect();
        assert_eq!(mappings, [1, 1], "the pieces are still of one mapping");
        ranges.unmap(1, 0..100 * P, at(2));
        assert_eq!(pages(&ranges), []);
    }

    #[test]
    fn a_length_that_is_not_whole_pages_is_kept_and_unmapped_whole() {
        let mut ranges = Ranges::default();
        ranges.map(1, 16 * P..16 * P + 5000, at(1), 7, 100);
        assert_eq!(ranges.iter().next().unwrap().2.end, 16 * P + 5000);
        ranges.unmap(1, 16 * P..16 * P + 1, at(2));
        let (_, start, piece) = ranges.iter().next().unwrap();
        assert_eq!((start, piece.end), (17 * P, 16 * P + 5000));
        ranges.unmap(1, 17 * P..17 * P + 1, at(2));
        assert_eq!(ranges.iter().count(), 0);
    }

    #[test]
    fn a_fixed_mapping_replaces_part_of_a_reservation() {
        let mut ranges = mapped();
        ranges.map(1, 18 * P..20 * P, at(2), 8, 100);
        assert_eq!(pages(&ranges), [(16, 18), (18, 20), (20, 24)]);
        let stacks: Vec<u64> = ranges.iter().map(|(_, _, piece)| piece.stack).collect();
        assert_eq!(stacks, [7, 8, 7]);
    }

    #[test]
    fn mremap_grows_shrinks_and_moves() {
        let mut ranges = mapped();
        ranges.remap(1, 16 * P..24 * P, 16 * P..32 * P, at(2), 0);
        assert_eq!(pages(&ranges), [(16, 32)]);
        ranges.remap(1, 16 * P..32 * P, 16 * P..18 * P, at(3), 0);
        assert_eq!(pages(&ranges), [(16, 18)]);
        ranges.remap(1, 16 * P..18 * P, 64 * P..70 * P, at(4), 0);
        assert_eq!(pages(&ranges), [(64, 70)]);
        assert_eq!(ranges.iter().next().unwrap().2.stack, 7);
    }

    #[test]
    fn mremap_of_a_part_leaves_the_rest() {
        let mut ranges = mapped();
        ranges.remap(1, 18 * P..20 * P, 64 * P..66 * P, at(2), 0);
        assert_eq!(pages(&ranges), [(16, 18), (20, 24), (64, 66)]);
    }

    #[test]
    fn mremap_moves_a_mapping_that_has_a_hole() {
        let mut ranges = mapped();
        ranges.unmap(1, 18 * P..19 * P, at(2));
        ranges.remap(1, 16 * P..24 * P, 64 * P..73 * P, at(3), 0);
        assert_eq!(pages(&ranges), [(64, 66), (67, 73)]);
    }

    #[test]
    fn mremap_can_leave_the_old_mapping() {
        let mut ranges = mapped();
        ranges.remap(1, 16 * P..24 * P, 64 * P..72 * P, at(2), MREMAP_DONTUNMAP);
        assert_eq!(pages(&ranges), [(16, 24), (64, 72)]);
    }

    #[test]
    fn mremap_over_another_mapping_replaces_it() {
        let mut ranges = mapped();
        ranges.map(1, 64 * P..80 * P, at(2), 8, 100);
        ranges.remap(1, 16 * P..24 * P, 66 * P..74 * P, at(3), 0);
        assert_eq!(pages(&ranges), [(64, 66), (66, 74), (74, 80)]);
    }

    #[test]
    fn what_was_mapped_before_the_start_is_ignored() {
        let mut ranges = mapped();
        ranges.unmap(1, 100 * P..200 * P, at(2));
        ranges.remap(1, 100 * P..200 * P, 300 * P..500 * P, at(2), 0);
        ranges.unmap(1, 0..0, at(2));
        assert_eq!(pages(&ranges), [(16, 24)]);
    }

    #[test]
    fn an_address_means_something_in_one_process_only() {
        let mut ranges = mapped();
        ranges.unmap(2, 16 * P..24 * P, at(2));
        assert_eq!(pages(&ranges), [(16, 24)]);
    }

    #[test]
    fn a_munmap_does_not_remove_what_was_mapped_while_it_ran() {
        // Thread A unmaps; the kernel gives the addresses to thread B's mmap, which returns first.
        let mut ranges = mapped();
        ranges.map(
            1,
            16 * P..20 * P,
            Span {
                entry_ns: 11,
                return_ns: 12,
            },
            8,
            101,
        );
        ranges.unmap(
            1,
            16 * P..24 * P,
            Span {
                entry_ns: 10,
                return_ns: 13,
            },
        );
        assert_eq!(pages(&ranges), [(16, 20)]);
        assert_eq!(ranges.iter().next().unwrap().2.stack, 8);
    }

    /// A call's span.
    fn during(entry_ns: u64, return_ns: u64) -> Span {
        Span {
            entry_ns,
            return_ns,
        }
    }

    #[test]
    fn a_munmap_does_not_remove_what_was_moved_there_while_it_ran() {
        // Thread A unmaps pages 64 to 68; the kernel gives them to thread B's mremap, which returns first.
        let mut ranges = mapped();
        ranges.map(1, 64 * P..68 * P, at(2), 8, 100);
        ranges.remap(1, 16 * P..24 * P, 62 * P..70 * P, during(11, 12), 0);
        ranges.unmap(1, 64 * P..68 * P, during(10, 13));
        assert_eq!(pages(&ranges), [(62, 70)]);
        ranges.unmap(1, 62 * P..70 * P, at(14));
        assert_eq!(pages(&ranges), []);
    }

    #[test]
    fn an_mremap_finds_what_was_mapped_over_while_it_ran() {
        // Thread A moves its mapping away; the kernel gives the addresses to thread B's mmap, which returns
        // first.
        let mut ranges = mapped();
        ranges.map(1, 14 * P..20 * P, during(11, 12), 8, 101);
        ranges.remap(1, 16 * P..24 * P, 64 * P..72 * P, during(10, 13), 0);
        assert_eq!(pages(&ranges), [(14, 20), (64, 68), (68, 72)]);
        let stacks: Vec<u64> = ranges.iter().map(|(_, _, piece)| piece.stack).collect();
        assert_eq!(stacks, [8, 7, 7]);
    }

    #[test]
    fn what_was_replaced_before_a_call_began_does_not_come_back() {
        let mut ranges = mapped();
        ranges.map(1, 16 * P..24 * P, during(2, 3), 8, 100);
        ranges.remap(1, 16 * P..24 * P, 64 * P..72 * P, during(4, 5), 0);
        assert_eq!(pages(&ranges), [(64, 72)]);
        assert_eq!(ranges.iter().next().unwrap().2.stack, 8);
    }

    #[test]
    fn exec_leaves_what_was_mapped_since() {
        let mut ranges = mapped();
        ranges.map(2, 16 * P..24 * P, at(1), 7, 200);
        ranges.map(1, 64 * P..65 * P, at(5), 8, 100);
        ranges.forget(1, 5);
        let left: Vec<(u32, u64)> = ranges
            .iter()
            .map(|(tgid, start, _)| (tgid, start / P))
            .collect();
        assert_eq!(left, [(1, 64), (2, 16)]);
    }

    #[test]
    fn absurd_ranges_do_no_harm() {
        let mut ranges = mapped();
        ranges.unmap(1, u64::MAX - 1..u64::MAX, at(2));
        ranges.map(1, u64::MAX - 10..u64::MAX, at(2), 1, 1);
        ranges.remap(1, 0..u64::MAX, 5..7, at(3), 0);
        let backwards = Range { start: 8, end: 2 };
        ranges.remap(1, backwards.clone(), backwards, at(3), 0);
    }
}
