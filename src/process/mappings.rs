//! The code that each process maps, over time: what an address meant stays known after the mapping, the
//! process or the file's name has gone. Fed from /proc and from `mapping_events`; resolves no symbols.

mod layout;
mod maps;
mod object;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;

use layout::Layout;
pub use layout::Mapping;
pub use maps::{MappingRecord, maps_file_at};
pub use object::ObjectFile;

/// What every traced process maps, or has mapped.
#[derive(Default)]
pub struct Mappings {
    processes: HashMap<u32, ProcessMappings>,
    /// The files of what processes map, or may map again.
    objects: HashMap<Key, Arc<ObjectFile>>,
    /// By process, the files that have come since they were asked for, by their numbers.
    new: HashMap<u32, BTreeMap<usize, Arc<ObjectFile>>>,
    /// Device and inode of files that are mapped no longer, and that others may have got.
    released: HashSet<(u64, u64)>,
    found: usize,
    revision: u64,
    forgotten: u64,
}

/// What objects are told apart by.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    path: PathBuf,
    /// The process in whose root the file was found by its name, where it is not certain that it is the one that is mapped:
    /// other processes must not take it for what they map.
    only: Option<u32>,
}

/// What one process maps, or has mapped.
#[derive(Clone, Default)]
struct ProcessMappings {
    /// A child shares it with its parent until either maps something else.
    layout: Arc<Layout>,
    revision: u64,
}

impl Mappings {
    /// Reads what a living process maps now. What it no longer does leaves its layout.
    ///
    /// # Errors
    /// Fails when /proc/PID/maps can't be read.
    pub fn read(&mut self, pid: u32) -> Result<()> {
        let records = maps::read(pid)?;
        self.replace(pid, records);
        Ok(())
    }

    fn replace(&mut self, pid: u32, records: Vec<MappingRecord>) {
        let process = self.processes.entry(pid).or_default();
        let begun = Arc::make_mut(&mut process.layout).begin_reading();
        for record in records {
            self.add(pid, record);
        }
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let (changed, forgotten) = Arc::make_mut(&mut process.layout).end_reading(begun);
        self.forgotten += forgotten;
        if changed {
            self.revision += 1;
            process.revision = self.revision;
        }
    }

    /// Adds a mapping. It takes the place of what was at its addresses before.
    pub fn add(&mut self, pid: u32, record: MappingRecord) {
        let process = self.processes.entry(pid).or_default();
        if record.range.is_empty() || Arc::make_mut(&mut process.layout).knows(&record) {
            return;
        }
        let original = process.layout.original(&record);
        let (object, offset) =
            original.unwrap_or_else(|| (self.object(pid, &record), record.offset));
        if object.identity().is_some() {
            let new = self.new.entry(pid).or_default();
            new.insert(object.id, Arc::clone(&object));
        }
        self.revision += 1;
        let process = self.processes.entry(pid).or_default();
        process.revision = self.revision;
        let layout = Arc::make_mut(&mut process.layout);
        self.forgotten += layout.add(record.range, offset, object, record.since_ns);
    }

    /// Reads anew what a process maps, once so much has come that much must have gone.
    pub fn tidy(&mut self, pid: u32) {
        let process = self.processes.get(&pid);
        if process.is_some_and(|process| process.layout.is_stale()) {
            // should it have gone, there is nothing to be told of it any more
            let _ = self.read(pid);
        }
    }

    /// Processes of which so much is gone that it is worth to say what of it is needed, by [`Mappings::keep_needed`].
    pub fn long(&self) -> Vec<u32> {
        let long =
            |(pid, process): (&u32, &ProcessMappings)| process.layout.is_long().then_some(*pid);
        self.processes.iter().filter_map(long).collect()
    }

    /// Forgets what a process has mapped and does no longer, where it shows none of these addresses.
    pub fn keep_needed(&mut self, pid: u32, addresses: &BTreeSet<u64>) {
        if let Some(process) = self.processes.get_mut(&pid) {
            Arc::make_mut(&mut process.layout).keep_needed(addresses);
        }
    }

    /// Mappings of files that had to be forgotten, because a process had too many that are gone.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Forgets what a process mapped: it has executed another program, or has ended.
    pub fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.new.remove(&pid);
    }

    /// A process was forked, and maps what its parent does.
    pub fn fork(&mut self, parent: u32, child: u32) {
        if let Some(mappings) = self.processes.get(&parent) {
            self.processes.insert(child, mappings.clone());
        }
    }

    /// A number that changes whenever a process maps something else, and that no other state of it has; 0 where nothing
    /// is known of it.
    pub fn revision(&self, pid: u32) -> u64 {
        self.processes
            .get(&pid)
            .map_or(0, |process| process.revision)
    }

    /// Lets go of files that no process is known to map any more: of those that are closed, and of all once there are more
    /// than `most`. Gives device and inode of those that are gone for good, and that another file may have got by now.
    pub fn release(&mut self, most: usize) -> Vec<(u64, u64)> {
        let many = self.objects.len() > most;
        let gone = |object: &ObjectFile| !object.is_mapped() && (many || !object.is_open());
        let gone = self.objects.extract_if(|_, object| gone(object));
        self.released
            .extend(gone.filter_map(|(_, object)| object.identity()));
        if self.released.is_empty() {
            return Vec::new();
        }
        // a file can be known by several paths
        for object in self.objects.values() {
            object.identity().map(|id| self.released.remove(&id));
        }
        self.released.drain().collect()
    }

    /// The processes of which anything is known.
    pub fn processes(&self) -> Vec<u32> {
        self.processes.keys().copied().collect()
    }

    /// Where a process maps a file now, which is told by device and inode, as far as is known.
    pub fn copies(&self, pid: u32, identity: (u64, u64)) -> Vec<Mapping> {
        let of_file = |mapping: &&Mapping| mapping.object.identity() == Some(identity);
        self.layout(pid).filter(of_file).cloned().collect()
    }

    /// What a process maps at each address, as far as is known, in ascending order.
    pub fn layout(&self, pid: u32) -> impl Iterator<Item = &Mapping> {
        let process = self.processes.get(&pid).into_iter();
        process.flat_map(|process| process.layout.present())
    }

    /// The mapping of a process that covered an address at a time in ns of CLOCK_MONOTONIC; where all that are known
    /// came later, the first of them.
    pub fn find(&self, pid: u32, address: u64, at_ns: u64) -> Option<&Mapping> {
        self.processes.get(&pid)?.layout.find(address, at_ns)
    }

    /// The distinct files that a process maps, in the order in which they were mapped.
    pub fn objects(&self, pid: u32) -> Vec<Arc<ObjectFile>> {
        let process = self.processes.get(&pid);
        process.map_or_else(Vec::new, |process| process.layout.objects())
    }

    /// The files that a process has come to map since this was asked last.
    pub fn take_new_objects(&mut self, pid: u32) -> Vec<Arc<ObjectFile>> {
        let new = self.new.remove(&pid);
        new.map_or_else(Vec::new, |new| new.into_values().collect())
    }

    fn object(&mut self, pid: u32, record: &MappingRecord) -> Arc<ObjectFile> {
        let mut key = Key {
            device: record.device,
            inode: record.inode,
            path: record.path.clone(),
            only: None,
        };
        let mut id = self.found;
        for only in [None, Some(pid)] {
            key.only = only;
            match self.objects.get(&key) {
                Some(known) if is_still(known, pid, record) => return Arc::clone(known),
                // the same, which may be opened by another process's leave, or while another mapping lasts
                Some(known) if known.file().is_none() => id = known.id,
                _ => {}
            }
        }
        let (object, is_certain) = ObjectFile::find(id, pid, record);
        key.only = (!is_certain).then_some(pid);
        self.found += 1;
        let object = Arc::new(object);
        let last = self.objects.insert(key, Arc::clone(&object));
        self.released.extend(last.and_then(|last| last.identity()));
        object
    }
}

/// Whether what a process maps is a file that is known, and not another one under its name and number.
fn is_still(known: &ObjectFile, pid: u32, record: &MappingRecord) -> bool {
    if record.inode == 0 {
        return true;
    }
    known.found_at(pid, record);
    known.is_open() || known.open().is_some()
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;
    use std::{fs, iter};

    use super::*;

    fn record(range: Range<u64>, path: &str) -> MappingRecord {
        MappingRecord {
            range,
            offset: 0x1000,
            device: 0,
            inode: 0,
            path: PathBuf::from(path),
            since_ns: 0,
        }
    }

    #[test]
    fn a_later_mapping_covers_an_earlier_one() {
        let mut mappings = Mappings::default();
        mappings.add(1, record(0x1000..0x9000, "/old"));
        mappings.add(1, record(0x4000..0x5000, "/new"));
        assert_eq!(
            mappings.find(1, 0x4abc, 0).unwrap().object.path,
            Path::new("/new")
        );
        assert_eq!(
            mappings.find(1, 0x5000, 0).unwrap().object.path,
            Path::new("/old")
        );
        assert_eq!(
            mappings.find(1, 0x4abc, 0).unwrap().file_offset(0x4abc),
            0x1abc
        );
        assert!(mappings.find(1, 0x9000, 0).is_none());
        assert!(mappings.find(2, 0x4abc, 0).is_none());
    }

    #[test]
    fn what_was_mapped_when_a_stack_was_captured_is_found() {
        let mut mappings = Mappings::default();
        mappings.add(1, record(0x1000..0x2000, "/first"));
        for (path, since_ns) in [("/second", 100), ("/third", 200)] {
            let mut record = record(0x1000..0x2000, path);
            record.since_ns = since_ns;
            mappings.add(1, record);
        }
        for (at_ns, path) in [(99, "/first"), (100, "/second"), (u64::MAX, "/third")] {
            let found = mappings.find(1, 0x1234, at_ns).unwrap();
            assert_eq!(found.object.path, Path::new(path), "{at_ns}");
        }
        assert!(mappings.find(1, 0x2000, 0).is_none());
    }

    #[test]
    fn the_layout_shows_each_address_once() {
        let mut mappings = Mappings::default();
        mappings.add(1, record(0x1000..0x9000, "/old"));
        mappings.add(1, record(0x4000..0x5000, "/new"));
        mappings.add(1, record(0x0000..0x2000, "/low"));
        let layout: Vec<_> = mappings
            .layout(1)
            .map(|mapping| (mapping.range.clone(), mapping.offset))
            .collect();
        assert_eq!(
            layout,
            [
                (0x0000..0x2000, 0x1000),
                (0x2000..0x4000, 0x2000),
                (0x4000..0x5000, 0x1000),
                (0x5000..0x9000, 0x5000),
            ]
        );
    }

    #[test]
    fn what_is_unmapped_leaves_the_layout_and_is_still_found() {
        let mut mappings = Mappings::default();
        mappings.add(1, record(0x1000..0x2000, "/stays"));
        mappings.add(1, record(0x4000..0x5000, "/goes"));
        let revision = mappings.revision(1);
        mappings.replace(1, vec![record(0x1000..0x2000, "/stays")]);
        assert_ne!(mappings.revision(1), revision);
        let layout: Vec<_> = mappings
            .layout(1)
            .map(|mapping| mapping.range.clone())
            .collect();
        assert_eq!(layout, std::slice::from_ref(&(0x1000..0x2000)));
        assert!(mappings.find(1, 0x4abc, 0).is_some());
        mappings.add(1, record(0x4000..0x5000, "/goes"));
        assert_eq!(mappings.layout(1).count(), 2);
    }

    #[test]
    fn what_is_gone_stays_known_while_a_stack_needs_it() {
        let mut mappings = Mappings::default();
        for number in 0..1000 {
            let start = 0x1000 * (number + 1);
            mappings.add(1, record(start..start + 0x1000, "/plugin"));
            mappings.replace(1, Vec::new());
        }
        assert_eq!(mappings.layout(1).count(), 0);
        assert_eq!(mappings.long(), [1]);
        mappings.keep_needed(1, &BTreeSet::from([0x5abc, 0x9def]));
        assert!(mappings.long().is_empty());
        let known = |address| mappings.find(1, address, 0).is_some();
        assert_eq!(
            [0x5000, 0x9fff, 0x4fff, 0xa000].map(known),
            [true, true, false, false]
        );
        assert_eq!(mappings.forgotten(), 0, "nothing that anybody needs");
    }

    #[test]
    fn what_comes_and_goes_for_ever_takes_bounded_memory() {
        let file = |number: u64| MappingRecord {
            inode: 7,
            ..record(0x1000 * number..0x1000 * (number + 1), "/nowhere/plugin")
        };
        let mut mappings = Mappings::default();
        for number in 1..=10_000 {
            mappings.add(1, file(number));
            if number % 100 == 0 {
                mappings.replace(1, vec![file(number)]);
            }
        }
        assert_eq!(mappings.layout(1).count(), 1);
        let known = (1..=10_000).filter(|number| mappings.find(1, 0x1000 * number, 0).is_some());
        assert_eq!(
            known.count() as u64 + mappings.forgotten(),
            10_000,
            "each loss is counted"
        );
        assert!(mappings.forgotten() > 5_000);
    }

    #[test]
    fn what_the_kernel_merges_or_splits_is_nothing_new() {
        let piece = |range: Range<u64>| MappingRecord {
            offset: range.start,
            since_ns: 5,
            ..record(range, "/a")
        };
        let mut mappings = Mappings::default();
        mappings.add(1, piece(0x1000..0x3000));
        mappings.add(1, piece(0x3000..0x5000));
        for cuts in [&[0x1000, 0x5000][..], &[0x1000, 0x2000, 0x5000]] {
            let pieces: Vec<Range<u64>> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
            let records = pieces.iter().cloned().map(|range| MappingRecord {
                since_ns: 0,
                ..piece(range)
            });
            mappings.replace(1, records.collect());
            let layout: Vec<_> = mappings
                .layout(1)
                .map(|mapping| mapping.range.clone())
                .collect();
            assert_eq!(layout, pieces);
            assert!(mappings.layout(1).all(|mapping| mapping.since_ns == 5));
        }
    }

    #[test]
    fn code_that_a_program_copies_to_larger_pages_stays_its_files() {
        let text = MappingRecord {
            inode: 7,
            ..record(0x20_0000..0x80_0000, "/nowhere/node")
        };
        let large = record(0x40_0000..0x60_0000, "//anon");
        let mut mappings = Mappings::default();
        mappings.add(1, text);
        mappings.add(1, large.clone());
        let found = mappings.find(1, 0x40_1234, 0).unwrap();
        assert_eq!(found.object.path, Path::new("/nowhere/node"));
        assert_eq!(found.file_offset(0x40_1234), 0x20_2234);
        // beside it, a program has what code it likes
        mappings.add(1, record(0x80_0000..0xa0_0000, "//anon"));
        let found = mappings.find(1, 0x80_0000, 0).unwrap();
        assert_eq!(found.object.path, Path::new("//anon"));
    }

    #[test]
    fn thousands_of_mappings_are_no_matter() {
        let all = |first: u64| {
            let range = |number| 0x2000 * number..0x2000 * number + 0x1000;
            (first..first + 60_000)
                .map(move |number| record(range(number), ""))
                .collect::<Vec<_>>()
        };
        let mut mappings = Mappings::default();
        for first in [1, 2, 30_000] {
            mappings.replace(1, all(first));
            assert_eq!(mappings.layout(1).count(), 60_000);
        }
        mappings.fork(1, 2);
        mappings.add(2, record(0x1000..0x2000, "/a"));
        assert_eq!(
            [1, 2].map(|pid| mappings.layout(pid).count()),
            [60_000, 60_001]
        );
    }

    #[test]
    fn files_that_nobody_maps_are_released_and_told_by_what_they_were() {
        let file = |path: &str, inode| MappingRecord {
            inode,
            ..record(0x1000..0x2000, path)
        };
        let mut mappings = Mappings::default();
        mappings.add(1, file("/nowhere/gone", 7));
        mappings.add(2, file("/nowhere/elsewhere", 8));
        mappings.add(3, file("/nowhere/stays", 8));
        assert_eq!(mappings.release(9), []);
        mappings.forget(1);
        mappings.forget(2);
        let released = mappings.release(9);
        let inodes: Vec<u64> = released.iter().map(|(_, inode)| *inode).collect();
        assert_eq!(inodes, [7], "the other is mapped under another name");
        assert_eq!(mappings.objects.len(), 1);
    }

    #[test]
    fn files_of_which_many_are_mapped_take_few_descriptors() {
        let mut mappings = Mappings::default();
        let pid = std::process::id();
        mappings.read(pid).unwrap();
        let objects = mappings.objects(pid);
        assert!(!objects.is_empty());
        assert_eq!(mappings.take_new_objects(pid).len(), objects.len());
        assert!(mappings.take_new_objects(pid).is_empty());
        for object in iter::repeat_n(&objects, 3).flatten() {
            assert_eq!(object.open().unwrap().identity, object.identity().unwrap());
        }
    }

    #[test]
    fn own_code_is_found_and_can_be_opened() {
        let mut mappings = Mappings::default();
        let pid = std::process::id();
        mappings.read(pid).unwrap();
        let address = own_code_is_found_and_can_be_opened as fn() as usize as u64;
        let mapping = mappings.find(pid, address, 0).unwrap();
        let opened = mapping.object.open().unwrap();
        let own = fs::metadata("/proc/self/exe").unwrap();
        assert_eq!(opened.identity, (own.dev(), own.ino()));
    }
}
