//! What one process maps at each address, and what it has mapped there before. Knows nothing of where that is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::maps::MappingRecord;
use super::object::ObjectFile;

/// Mappings of a process that are there no longer and still known: of more, the oldest are forgotten.
const MOST_PAST: usize = 4096;

/// Mappings that come before what a process maps is read anew at the earliest: nobody tells of those that go.
const LEAST_NEWS: usize = 256;

/// Mappings that are gone before it is worth asking which of them are needed.
const LEAST_PAST: usize = 256;

/// A range of addresses that a file's code is mapped at.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// The addresses.
    pub range: Range<u64>,
    /// Where in the file the range begins, in bytes.
    pub offset: u64,
    /// The file.
    pub object: Arc<ObjectFile>,
    /// Since when it is there, in ns of CLOCK_MONOTONIC; 0 where that is not known.
    pub since_ns: u64,
    /// Its place in the order in which the process's mappings came.
    order: u64,
    /// The last reading that showed it.
    seen: u64,
    /// Held while it is there: that can be counted.
    #[allow(dead_code)]
    mapped: Option<Arc<()>>,
}

impl Mapping {
    /// Where in the file the byte at `address` is, which lies in the range.
    pub fn file_offset(&self, address: u64) -> u64 {
        self.offset
            .wrapping_add(address.wrapping_sub(self.range.start))
    }

    /// Whether both show the same bytes of a file at the addresses that both have.
    fn continues(&self, other: &Self) -> bool {
        let bias = |mapping: &Self| mapping.range.start.wrapping_sub(mapping.offset);
        Arc::ptr_eq(&self.object, &other.object) && bias(self) == bias(other)
    }

    fn part(&self, range: Range<u64>) -> Self {
        Self {
            offset: self.file_offset(range.start),
            range,
            ..self.clone()
        }
    }
}

/// What one process maps, or has mapped.
#[derive(Clone, Default)]
pub struct Layout {
    /// What is there, by first address; none overlap.
    present: BTreeMap<u64, Mapping>,
    /// What was there, in the order in which it went.
    past: VecDeque<Mapping>,
    /// As many were needed when that was asked last.
    needed: usize,
    /// How many mappings have come, and readings.
    count: u64,
    /// How many mappings came since all that is there was read.
    news: usize,
}

impl Layout {
    /// What is there, in ascending order.
    pub fn present(&self) -> impl Iterator<Item = &Mapping> {
        self.present.values()
    }

    /// The files of what is there, each once, in the order in which they came.
    pub fn objects(&self) -> Vec<Arc<ObjectFile>> {
        let mut present: Vec<&Mapping> = self.present.values().collect();
        present.sort_by_key(|mapping| mapping.order);
        let mut known = BTreeSet::new();
        present.retain(|mapping| {
            mapping.object.identity().is_some() && known.insert(mapping.object.id)
        });
        let objects = present.into_iter();
        objects.map(|mapping| Arc::clone(&mapping.object)).collect()
    }

    /// What is there at an address.
    pub fn at(&self, address: u64) -> Option<&Mapping> {
        let (_, last) = self.present.range(..=address).next_back()?;
        last.range.contains(&address).then_some(last)
    }

    /// What was at an address at a time in ns of CLOCK_MONOTONIC; where all that is known came later, the first of it.
    pub fn find(&self, address: u64, at_ns: u64) -> Option<&Mapping> {
        let present = self.at(address);
        if present.is_some_and(|mapping| mapping.since_ns <= at_ns) {
            return present;
        }
        let covering = |mapping: &&Mapping| mapping.range.contains(&address);
        let past = self.past.iter().filter(covering);
        let last = past.clone().filter(|mapping| mapping.since_ns <= at_ns);
        let first = past.chain(present).min_by_key(|mapping| mapping.order);
        last.max_by_key(|mapping| mapping.order).or(first)
    }

    /// Whether a record tells what is known. Of what is, it can tell the time.
    pub fn knows(&mut self, record: &MappingRecord) -> bool {
        let Some(known) = self.present.get_mut(&record.range.start) else {
            return false;
        };
        let same = known.range == record.range
            && known.offset == record.offset
            && known.object.is_of(record);
        if same {
            // /proc can show a mapping before its event comes, which knows the time
            if known.since_ns == 0 {
                known.since_ns = record.since_ns;
            }
            known.seen = self.count;
        }
        same
    }

    /// The file's mapping that an anonymous one takes the place of, or of a part of it: code that a program has copied to
    /// larger pages stays what it was.
    pub fn original(&self, record: &MappingRecord) -> Option<(Arc<ObjectFile>, u64)> {
        let old = self
            .at(record.range.start)
            .filter(|_| record.is_anonymous())?;
        let within = old.range.end >= record.range.end && old.object.identity().is_some();
        within.then(|| {
            let offset = old.file_offset(record.range.start);
            (Arc::clone(&old.object), offset)
        })
    }

    /// Adds what an object shows `range` of, from `offset` on; what was at these addresses before is remembered. Gives the
    /// number of files' mappings that had to be forgotten for that.
    pub fn add(
        &mut self,
        range: Range<u64>,
        offset: u64,
        object: Arc<ObjectFile>,
        since_ns: u64,
    ) -> u64 {
        self.count += 1;
        self.news += 1;
        let mut new = Mapping {
            range,
            offset,
            since_ns,
            order: self.count,
            seen: self.count,
            mapped: Some(Arc::clone(&object.mapped)),
            object,
        };
        // the kernel splits and merges mappings
        if let Some(old) = self.at(new.range.start).filter(|old| old.continues(&new)) {
            new.order = old.order;
            new.since_ns = match old.since_ns {
                0 => new.since_ns,
                since_ns => since_ns,
            };
        }
        let forgotten = self.cover(&new.range, Some(&new));
        self.present.insert(new.range.start, new);
        forgotten
    }

    /// Begins a reading of all that is there; gives what to end it with.
    pub fn begin_reading(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// What a reading since `begun` has not shown is gone. Gives whether there was any, and the number of files' mappings
    /// that had to be forgotten.
    pub fn end_reading(&mut self, begun: u64) -> (bool, u64) {
        self.news = 0;
        let gone: Vec<Range<u64>> = self
            .present
            .values()
            .filter(|mapping| mapping.seen < begun)
            .map(|mapping| mapping.range.clone())
            .collect();
        let forgotten = gone.iter().map(|range| self.cover(range, None)).sum();
        (!gone.is_empty(), forgotten)
    }

    /// Whether so much has come that much must have gone.
    pub fn is_stale(&self) -> bool {
        self.news > LEAST_NEWS && self.news > self.present.len() / 2
    }

    /// Whether so much has gone that it is worth asking what of it is needed.
    pub fn is_long(&self) -> bool {
        self.past.len() > LEAST_PAST + 2 * self.needed
    }

    /// Forgets what is gone and shows none of these addresses.
    pub fn keep_needed(&mut self, addresses: &BTreeSet<u64>) {
        self.past
            .retain(|mapping| addresses.range(mapping.range.clone()).next().is_some());
        self.needed = self.past.len();
    }

    /// Makes room at a range of addresses. What was there is remembered, unless the `new` one goes on with it.
    fn cover(&mut self, range: &Range<u64>, new: Option<&Mapping>) -> u64 {
        let before = self.at(range.start).map(|mapping| mapping.range.start);
        let first = before.unwrap_or(range.start);
        let covered: Vec<u64> = match first < range.end {
            true => self
                .present
                .range(first..range.end)
                .map(|(start, _)| *start)
                .collect(),
            false => Vec::new(),
        };
        let mut forgotten = 0;
        for start in covered {
            let Some(old) = self.present.remove(&start) else {
                continue;
            };
            let Range { start, end } = old.range;
            for rest in [start..end.min(range.start), start.max(range.end)..end] {
                if !rest.is_empty() {
                    self.present.insert(rest.start, old.part(rest));
                }
            }
            if !new.is_some_and(|new| new.continues(&old)) {
                let gone = old.part(start.max(range.start)..end.min(range.end));
                forgotten += self.remember(gone);
            }
        }
        forgotten
    }

    fn remember(&mut self, gone: Mapping) -> u64 {
        let same = |last: &Mapping| last.range == gone.range && last.continues(&gone);
        // plugins come and go at the same addresses
        if self.past.back().is_some_and(same) {
            return 0;
        }
        self.past.push_back(Mapping {
            mapped: None,
            ..gone
        });
        if self.past.len() <= MOST_PAST {
            return 0;
        }
        let forgotten = self.past.pop_front();
        u64::from(forgotten.is_some_and(|mapping| mapping.object.identity().is_some()))
    }
}
