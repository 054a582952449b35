//! Where the debug information of a stripped file lies: by build id, or by the file's debug link, in the usual folders
//! and in those that the user names. What is in it is not looked at here.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::facts::Facts;
use crate::reader;
use crate::target::proc;

/// The folder for debug information that distributions agree on.
const DEBUG_FOLDER: &str = "usr/lib/debug";

/// A build id shorter than this can't be split into a folder's and a file's name.
const SHORTEST_BUILD_ID: usize = 2;

/// The folders in which debug files are looked for.
pub struct Folders {
    /// Those that the user names.
    named: Vec<PathBuf>,
    /// What `/` means, to the target first.
    roots: Vec<PathBuf>,
    /// Keeps the target's root when the target has gone.
    _target_root: Option<File>,
}

impl Folders {
    /// Takes hold of the root that a process sees; without the privilege for that, our own has to do.
    pub fn new(named: Vec<PathBuf>, pid: u32) -> Self {
        let target_root = fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::PATH.union(OFlags::DIRECTORY).bits().cast_signed())
            .open(proc::folder(pid).join("root"))
            .ok();
        let held = target_root
            .as_ref()
            .map(|root| PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())));
        Self {
            named,
            roots: held.into_iter().chain([PathBuf::from("/")]).collect(),
            _target_root: target_root,
        }
    }

    /// What `/` means, to the target first.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// The file with the debug information that a file, which the target knows by a path, lacks; none when it has its
    /// own, or when nobody has.
    pub fn find(&self, facts: &Facts, known_as: &Path) -> Option<PathBuf> {
        if facts.has_debug_info {
            return None;
        }
        let build_id = facts.build_id.as_deref();
        let by_build_id = build_id.and_then(|build_id| self.by_build_id(build_id));
        by_build_id.or_else(|| {
            let (name, checksum) = facts.debug_link.as_ref()?;
            // a name without folders, says the format: anything else could lead anywhere
            let name = Path::new(std::str::from_utf8(name).ok()?).file_name()?;
            self.by_link(Path::new(name), known_as, *checksum)
        })
    }

    fn by_build_id(&self, build_id: &[u8]) -> Option<PathBuf> {
        if build_id.len() < SHORTEST_BUILD_ID {
            return None;
        }
        let (first, rest) = build_id.split_at(1);
        let name = format!(".build-id/{}/{}.debug", hex(first), hex(rest));
        let usual = self.roots.iter().map(|root| root.join(DEBUG_FOLDER));
        let folders = self.named.iter().cloned().chain(usual);
        folders.map(|folder| folder.join(&name)).find(|path| {
            let facts = File::open(path).ok().and_then(|file| reader::facts(&file));
            facts.is_some_and(|facts| facts.build_id.as_deref() == Some(build_id))
        })
    }

    fn by_link(&self, name: &Path, known_as: &Path, checksum: u32) -> Option<PathBuf> {
        let folder = known_as.parent()?;
        let folder = folder.strip_prefix("/").unwrap_or(folder);
        let named = self
            .named
            .iter()
            .flat_map(|named| [named.join(name), named.join(folder).join(name)]);
        let usual = self.roots.iter().flat_map(|root| {
            let beside = root.join(folder);
            let apart = root.join(DEBUG_FOLDER).join(folder);
            [
                beside.join(name),
                beside.join(".debug").join(name),
                apart.join(name),
            ]
        });
        named.chain(usual).find(|path| {
            let file = File::open(path).ok();
            file.and_then(|file| reader::checksum(&file)) == Some(checksum)
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
