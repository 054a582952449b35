//! The code that each process maps, over time: what an address meant stays known after the mapping, the
//! process or the file's name has gone. Fed from /proc and from `mapping_events`; resolves no symbols.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::vdso;
use crate::files::proc;
use crate::files::{MOST_OBJECT_BYTES, Opened, Root, open_mapped};

/// A file that holds code, kept open so that its name may go.
#[derive(Debug)]
pub struct ObjectFile {
    /// Number that no other object of this run has.
    pub id: usize,
    /// The path as the process that maps it sees it, or a label such as `[vdso]`.
    pub path: PathBuf,
    device: u64,
    inode: u64,
    file: Option<Opened>,
}

impl ObjectFile {
    /// A path under which the very file that was mapped can be opened, whatever becomes of its name; none when it can't
    /// be had, or when the mapping is no file's.
    pub fn openable_path(&self) -> Option<PathBuf> {
        self.file.as_ref().map(Opened::path)
    }

    /// Device and inode, which no other file has while this one is open; none for what is no file.
    pub fn identity(&self) -> Option<(u64, u64)> {
        (self.inode != 0).then_some((self.device, self.inode))
    }
}

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
    /// Whether it is known to be there no longer.
    unmapped: bool,
}

impl Mapping {
    /// Where in the file the byte at `address` is, which lies in the range.
    pub fn file_offset(&self, address: u64) -> u64 {
        self.offset
            .wrapping_add(address.wrapping_sub(self.range.start))
    }
}

/// A mapping as /proc or an event describes it.
#[derive(Clone, Debug)]
pub struct MappingRecord {
    /// The addresses.
    pub range: Range<u64>,
    /// Where in the file the range begins, in bytes.
    pub offset: u64,
    /// Device of the file, as stat(2) gives it.
    pub device: u64,
    /// Inode of the file; 0 for what is no file.
    pub inode: u64,
    /// Path as the process sees it, or a label.
    pub path: PathBuf,
    /// When it was mapped, in ns of CLOCK_MONOTONIC; 0 where that is not known.
    pub since_ns: u64,
}

/// A file that is open no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedFile {
    /// Its number as an object.
    pub object: usize,
    /// Device and inode, unless the file is open under another path still.
    pub identity: Option<(u64, u64)>,
}

/// What every traced process maps, or has mapped.
#[derive(Default)]
pub struct Mappings {
    processes: HashMap<u32, ProcessMappings>,
    objects: HashMap<Key, Arc<ObjectFile>>,
    opened: usize,
    revision: u64,
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
    /// In the order in which they came.
    list: Vec<Mapping>,
    revision: u64,
}

impl Mappings {
    /// Reads what a living process maps now. What it no longer does leaves its layout.
    ///
    /// # Errors
    /// Fails when /proc/PID/maps can't be read.
    pub fn read(&mut self, pid: u32) -> Result<()> {
        let path = proc::folder(pid).join("maps");
        let shown = path.display();
        let file = File::open(&path).with_context(|| format!("failed to open {shown}"))?;
        let mut mapped = Vec::new();
        for line in BufReader::new(file).split(b'\n') {
            let line = line.with_context(|| format!("failed to read {shown}"))?;
            if let Some(record) = parse_maps_line(&line) {
                mapped.push((record.range.clone(), record.inode));
                self.add(pid, record);
            }
        }
        self.remove_all_but(pid, &mapped);
        Ok(())
    }

    /// Takes out of a process's layout what nothing of `mapped`, ranges and inodes, shows any part of.
    fn remove_all_but(&mut self, pid: u32, mapped: &[(Range<u64>, u64)]) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        for mapping in &mut process.list {
            let stays = mapped.iter().any(|(range, inode)| {
                *inode == mapping.object.inode && overlap(range, &mapping.range)
            });
            if !stays && !mapping.unmapped {
                mapping.unmapped = true;
                self.revision += 1;
                process.revision = self.revision;
            }
        }
    }

    /// Adds a mapping. It takes the place of what was at its addresses before.
    pub fn add(&mut self, pid: u32, record: MappingRecord) {
        let object = self.object(pid, &record);
        let process = self.processes.entry(pid).or_default();
        let mappings = &mut process.list;
        let new = Mapping {
            range: record.range,
            offset: record.offset,
            object,
            since_ns: record.since_ns,
            unmapped: false,
        };
        let known = mappings
            .iter_mut()
            .rev()
            .find(|old| overlap(&old.range, &new.range));
        match known {
            Some(old)
                if old.range == new.range
                    && old.offset == new.offset
                    && !old.unmapped
                    && Arc::ptr_eq(&old.object, &new.object) =>
            {
                // /proc can show a mapping before its event comes, which knows the time
                if old.since_ns == 0 {
                    old.since_ns = new.since_ns;
                }
            }
            _ => {
                mappings.push(new);
                self.revision += 1;
                process.revision = self.revision;
            }
        }
    }

    /// Forgets what a process mapped: it has executed another program, or has ended.
    pub fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
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

    /// Closes files that no process is known to map any more, once there are more than `most` files. Gives what was closed:
    /// by now another file may have got its device and inode.
    pub fn close_unused(&mut self, most: usize) -> Vec<ClosedFile> {
        if self.objects.len() <= most {
            return Vec::new();
        }
        let closed: Vec<ClosedFile> = self
            .objects
            .extract_if(|_, object| Arc::strong_count(object) == 1)
            .map(|(_, object)| ClosedFile {
                object: object.id,
                identity: object.identity(),
            })
            .collect();
        // a file can be known by several paths
        let open: HashSet<_> = self
            .objects
            .values()
            .filter_map(|object| object.identity())
            .collect();
        let still_open = |file: &ClosedFile| file.identity.is_some_and(|id| open.contains(&id));
        closed
            .into_iter()
            .map(|file| match still_open(&file) {
                true => ClosedFile {
                    identity: None,
                    ..file
                },
                false => file,
            })
            .collect()
    }

    /// The processes of which anything is known.
    pub fn processes(&self) -> Vec<u32> {
        self.processes.keys().copied().collect()
    }

    /// Where a process maps a file now, which is told by device and inode, as far as is known.
    pub fn copies(&self, pid: u32, identity: (u64, u64)) -> Vec<Mapping> {
        let mut copies = self.layout(pid);
        copies.retain(|mapping| mapping.object.identity() == Some(identity));
        copies
    }

    fn of(&self, pid: u32) -> &[Mapping] {
        self.processes
            .get(&pid)
            .map_or(&[], |process| process.list.as_slice())
    }

    /// What a process maps at each address, as far as is known: without what later mappings have covered.
    pub fn layout(&self, pid: u32) -> Vec<Mapping> {
        let mut layout: Vec<Mapping> = Vec::new();
        for mapping in self.of(pid) {
            layout = layout
                .into_iter()
                .flat_map(|older| without(older, &mapping.range))
                .collect();
            layout.push(mapping.clone());
        }
        layout.retain(|mapping| !mapping.unmapped);
        layout.sort_by_key(|mapping| mapping.range.start);
        layout
    }

    /// The mapping of a process that covered an address at a time in ns of CLOCK_MONOTONIC; where all that are known
    /// came later, the first of them.
    pub fn find(&self, pid: u32, address: u64, at_ns: u64) -> Option<&Mapping> {
        let mappings = self.of(pid);
        let covering = || {
            mappings
                .iter()
                .filter(|mapping| mapping.range.contains(&address))
        };
        covering()
            .rev()
            .find(|mapping| mapping.since_ns <= at_ns)
            .or_else(|| covering().next())
    }

    /// The distinct files that a process maps, in the order in which they were mapped.
    pub fn objects(&self, pid: u32) -> Vec<Arc<ObjectFile>> {
        let mut objects: Vec<Arc<ObjectFile>> = Vec::new();
        for mapping in self.of(pid) {
            let known = objects
                .iter()
                .any(|known| Arc::ptr_eq(known, &mapping.object));
            if !known && mapping.object.inode != 0 {
                objects.push(Arc::clone(&mapping.object));
            }
        }
        objects
    }

    fn object(&mut self, pid: u32, record: &MappingRecord) -> Arc<ObjectFile> {
        let mut key = Key {
            device: record.device,
            inode: record.inode,
            path: record.path.clone(),
            only: None,
        };
        for only in [None, Some(pid)] {
            key.only = only;
            let known = self.objects.get(&key);
            // what could not be opened once may be by another process's leave, or while another mapping lasts
            if let Some(known) = known.filter(|known| known.file.is_some() || known.inode == 0) {
                return Arc::clone(known);
            }
        }
        let opened = open_object(pid, record);
        let is_certain = opened.as_ref().is_none_or(|(_, is_certain)| *is_certain);
        key.only = (!is_certain).then_some(pid);
        let id = self.objects.get(&key).map_or(self.opened, |known| known.id);
        self.opened += 1;
        let object = Arc::new(ObjectFile {
            id,
            path: record.path.clone(),
            // the device that stat(2) gives can differ from the one in maps (btrfs, overlayfs)
            device: opened
                .as_ref()
                .filter(|_| record.inode != 0)
                .map_or(record.device, |(opened, _)| opened.identity.0),
            inode: record.inode,
            file: opened.map(|(opened, _)| opened),
        });
        self.objects.insert(key, Arc::clone(&object));
        object
    }
}

/// What is left of a mapping when something else is mapped over `range`.
fn without(mapping: Mapping, range: &Range<u64>) -> impl Iterator<Item = Mapping> {
    let part = |start: u64, end: u64| Mapping {
        range: start..end,
        offset: mapping.file_offset(start),
        object: Arc::clone(&mapping.object),
        since_ns: mapping.since_ns,
        unmapped: mapping.unmapped,
    };
    let Range { start, end } = mapping.range;
    let parts = [
        part(start, end.min(range.start)),
        part(start.max(range.end), end),
    ];
    parts.into_iter().filter(|part| !part.range.is_empty())
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Opens the mapped file, under whichever name leads to it, and tells whether it is certain that it is the very same one.
fn open_object(pid: u32, record: &MappingRecord) -> Option<(Opened, bool)> {
    if record.inode == 0 {
        // without it, its code has no names and its frames no rules
        let is_vdso = record.path.as_os_str() == vdso::NAME;
        let image = is_vdso.then(|| vdso::open().ok()).flatten()?;
        return Some((Opened::own(image).ok()?, true));
    }
    // works for deleted files too, but only while the process lives, and with privilege
    if let Ok(opened) = open_mapped(pid, &record.range, MOST_OBJECT_BYTES)
        && opened.identity.1 == record.inode
    {
        return Some((opened, true));
    }
    [Root::of(pid), Root::own()]
        .into_iter()
        .flatten()
        .filter_map(|root| root.open(&record.path, MOST_OBJECT_BYTES).ok())
        .find(|opened| opened.identity.1 == record.inode)
        .map(|opened| {
            let is_certain = opened.identity.0 == record.device;
            (opened, is_certain)
        })
}

/// Whether a process maps code of the file with this inode at an address now.
pub fn maps_file_at(pid: u32, address: u64, inode: u64) -> bool {
    let maps = proc::text(proc::folder(pid).join("maps")).unwrap_or_default();
    let mut records = maps
        .lines()
        .filter_map(|line| parse_maps_line(line.as_bytes()));
    records.any(|record| record.inode == inode && record.range.contains(&address))
}

/// Reads one line of /proc/PID/maps; none when it maps no code.
fn parse_maps_line(line: &[u8]) -> Option<MappingRecord> {
    let mut parts = line.splitn(6, |byte| *byte == b' ');
    let mut fields = parts
        .by_ref()
        .take(5)
        .map(str::from_utf8)
        .map_while(Result::ok);
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode = fields.next()?.parse().ok()?;
    let path = parts.next().unwrap_or_default().trim_ascii_start();
    if permissions.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let major = u32::from_str_radix(major, 16).ok()?;
    let minor = u32::from_str_radix(minor, 16).ok()?;
    Some(MappingRecord {
        range: u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?,
        offset,
        device: rustix::fs::makedev(major, minor),
        inode,
        path: proc::path(path.strip_suffix(b" (deleted)").unwrap_or(path), b"\n"),
        since_ns: 0,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

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
    fn a_line_of_maps_is_understood() {
        let line = "7f0a-7f0f r-xp 00026000 fe:01 1234                       /lib/a b.so (deleted)";
        let record = parse_maps_line(line.as_bytes()).unwrap();
        assert_eq!(record.range, 0x7f0a..0x7f0f);
        assert_eq!(record.offset, 0x26000);
        assert_eq!(record.inode, 1234);
        assert_eq!(record.device, rustix::fs::makedev(0xfe, 1));
        assert_eq!(record.path, Path::new("/lib/a b.so"));
    }

    #[test]
    fn a_name_that_is_no_utf_8_stays_what_it_is() {
        let line = b"7f0a-7f0f r-xp 00026000 fe:01 1234 /lib/caf\xe9\\012.so";
        let record = parse_maps_line(line).unwrap();
        assert_eq!(record.path.as_os_str().as_bytes(), b"/lib/caf\xe9\n.so");
    }

    #[test]
    fn lines_without_code_or_sense_are_left_out() {
        for line in [
            "",
            "x",
            "0-1 rw-p 0 0:0 0 /a",
            "0-1 r-xp zz 0:0 0 /a",
            "1 r-xp",
        ] {
            assert!(parse_maps_line(line.as_bytes()).is_none(), "{line}");
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
            .into_iter()
            .map(|mapping| (mapping.range, mapping.offset))
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
        mappings.remove_all_but(1, &[(0x1000..0x2000, 0), (0x4000..0x5000, 77)]);
        assert_ne!(mappings.revision(1), revision);
        let layout = mappings.layout(1);
        assert_eq!(layout.len(), 1);
        assert_eq!(layout[0].range, 0x1000..0x2000);
        assert!(mappings.find(1, 0x4abc, 0).is_some());
        mappings.add(1, record(0x4000..0x5000, "/goes"));
        assert_eq!(mappings.layout(1).len(), 2);
    }

    #[test]
    fn files_that_nobody_maps_are_closed_and_told_by_what_they_were() {
        let file = |path: &str, inode| MappingRecord {
            inode,
            ..record(0x1000..0x2000, path)
        };
        let mut mappings = Mappings::default();
        mappings.add(1, file("/nowhere/gone", 7));
        mappings.add(2, file("/nowhere/elsewhere", 8));
        mappings.add(3, file("/nowhere/stays", 8));
        mappings.forget(1);
        mappings.forget(2);
        assert_eq!(mappings.close_unused(3), []);
        let mut closed = mappings.close_unused(2);
        closed.sort_by_key(|file| file.object);
        let identities: Vec<_> = closed
            .iter()
            .map(|file| file.identity.map(|(_, inode)| inode))
            .collect();
        assert_eq!(identities, [Some(7), None]);
        assert_eq!(mappings.objects.len(), 1);
    }

    #[test]
    fn own_code_is_found_and_can_be_opened() {
        let mut mappings = Mappings::default();
        let pid = std::process::id();
        mappings.read(pid).unwrap();
        let address = own_code_is_found_and_can_be_opened as fn() as usize as u64;
        let mapping = mappings.find(pid, address, 0).unwrap();
        let path = mapping.object.openable_path().unwrap();
        assert_eq!(
            fs::metadata(path).unwrap().ino(),
            fs::metadata("/proc/self/exe").unwrap().ino()
        );
    }
}
