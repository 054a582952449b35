//! Where the debug information of a stripped file lies: by build id, or by the file's debug link, in the usual folders
//! and in those that the user names. What is in it is not looked at here.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use blazesym::helper::read_elf_build_id;
use flate2::Crc;
use object::{Object as _, ReadCache};
use rustix::fs::OFlags;

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

    /// The file with the debug information that `file`, which the target knows by a path, lacks; none when it has its
    /// own, or when nobody has.
    pub fn find(&self, file: &Path, known_as: &Path, build_id: Option<&[u8]>) -> Option<PathBuf> {
        let link = debug_link(file)?;
        let by_build_id = build_id.and_then(|build_id| self.by_build_id(build_id));
        by_build_id.or_else(|| {
            let (name, checksum) = link?;
            self.by_link(&name, known_as, checksum)
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
            read_elf_build_id(path)
                .is_ok_and(|found| found.is_some_and(|found| *found == *build_id))
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
        named
            .chain(usual)
            .find(|path| checksum_of(path) == Some(checksum))
    }
}

/// The debug link of a file that has no debug information itself: `None` when it has, or is no ELF file,
/// `Some(None)` when there is no link.
fn debug_link(file: &Path) -> Option<Option<(PathBuf, u32)>> {
    let data = ReadCache::new(File::open(file).ok()?);
    let file = object::File::parse(&data).ok()?;
    if file.section_by_name(".debug_info").is_some() {
        return None;
    }
    let link = file.gnu_debuglink().ok().flatten();
    Some(link.and_then(|(name, checksum)| {
        // a name without folders, says the format: anything else could lead anywhere
        let name = Path::new(std::str::from_utf8(name).ok()?).file_name()?;
        Some((PathBuf::from(name), checksum))
    }))
}

/// The CRC of a whole file, as debug links carry it.
fn checksum_of(path: &Path) -> Option<u32> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path).ok()?);
    let mut checksum = Crc::new();
    loop {
        let bytes = reader.fill_buf().ok()?;
        if bytes.is_empty() {
            return Some(checksum.sum());
        }
        checksum.update(bytes);
        let length = bytes.len();
        reader.consume(length);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
