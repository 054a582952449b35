//! A file whose code processes map: which one it is, and how it is had. Who maps it is not known here.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::vdso;
use super::maps::MappingRecord;
use crate::files::{Kept, MOST_OBJECT_BYTES, Opened, Root, Way, open_mapped};

/// A file that holds code, or what else has addresses.
#[derive(Debug)]
pub struct ObjectFile {
    /// Number that no other object of this run has.
    pub id: usize,
    /// The path as the process that maps it sees it, or a label such as `[vdso]`.
    pub path: PathBuf,
    device: u64,
    /// As the kernel gives it for mappings; it can differ from what stat(2) says (btrfs, overlayfs).
    mapped_device: u64,
    inode: u64,
    file: Option<Arc<Kept>>,
    /// Held by each mapping that is there.
    pub(super) mapped: Arc<()>,
}

impl ObjectFile {
    /// Looks for the file that a process maps. Tells, too, whether it is certain that it is the very same one: else it was
    /// found by its name in that process's root, and other processes must not take it for what they map.
    pub(super) fn find(id: usize, pid: u32, record: &MappingRecord) -> (Self, bool) {
        let found = find(pid, record);
        let is_certain = found.as_ref().is_none_or(|found| found.is_certain);
        let device = found.as_ref().map(|found| found.device);
        let object = Self {
            id,
            path: record.path.clone(),
            device: device
                .filter(|_| record.inode != 0)
                .unwrap_or(record.device),
            mapped_device: record.device,
            inode: record.inode,
            file: found.map(|found| found.file),
            mapped: Arc::new(()),
        };
        (object, is_certain)
    }

    /// The file; none when it can't be had, or when the mapping is no file's.
    pub fn file(&self) -> Option<&Arc<Kept>> {
        self.file.as_ref()
    }

    /// The file that was mapped, whatever has become of its name, unless it is gone.
    pub fn open(&self) -> Option<Arc<Opened>> {
        self.file.as_ref()?.open().ok()
    }

    /// Device and inode, which no other file has while this one is mapped or open; none for what is no file.
    pub fn identity(&self) -> Option<(u64, u64)> {
        (self.inode != 0).then_some((self.device, self.inode))
    }

    /// Whether a mapping is of this object.
    pub(super) fn is_of(&self, record: &MappingRecord) -> bool {
        self.inode == record.inode
            && self.mapped_device == record.device
            && self.path == record.path
    }

    /// Whether a process maps it now, as far as is known.
    pub(super) fn is_mapped(&self) -> bool {
        Arc::strong_count(&self.mapped) > 1
    }

    /// Whether it is open, so that no other file can have its device and inode.
    pub(super) fn is_open(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.is_open())
    }

    /// A process maps it there as well.
    pub(super) fn found_at(&self, pid: u32, record: &MappingRecord) {
        if let Some(file) = self.file.as_ref().filter(|_| self.inode != 0) {
            file.moved(way(pid, record));
        }
    }
}

struct Found {
    file: Arc<Kept>,
    device: u64,
    is_certain: bool,
}

fn way(pid: u32, record: &MappingRecord) -> Way {
    Way::Mapped {
        pid,
        range: record.range.clone(),
        path: record.path.clone(),
    }
}

/// Finds the mapped file, under whichever name leads to it.
fn find(pid: u32, record: &MappingRecord) -> Option<Found> {
    if record.inode == 0 {
        // without it, its code has no names and its frames no rules
        let is_vdso = record.path.as_os_str() == vdso::NAME;
        let image = is_vdso.then(|| vdso::open().ok()).flatten()?;
        return Some(Found {
            file: Kept::own(image).ok()?,
            device: record.device,
            is_certain: true,
        });
    }
    let is_it = |opened: &Opened| opened.identity.1 == record.inode;
    // works for deleted files too, but only while the process lives, and with privilege
    let mapped = open_mapped(pid, &record.range, MOST_OBJECT_BYTES).ok();
    let (opened, is_certain) = match mapped.filter(is_it) {
        Some(opened) => (opened, true),
        None => {
            let opened = [Root::of(pid), Root::own()]
                .into_iter()
                .flatten()
                .filter_map(|root| root.open(&record.path, MOST_OBJECT_BYTES).ok())
                .find(is_it)?;
            let is_certain = opened.identity.0 == record.device;
            (opened, is_certain)
        }
    };
    Some(Found {
        device: opened.identity.0,
        file: Kept::found(opened, way(pid, record)),
        is_certain,
    })
}
