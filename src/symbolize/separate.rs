//! Where the debug information of a stripped file lies: by build id, or by the file's debug link, in the usual folders
//! and in those that the user names. What is in it is not looked at here.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::facts::Facts;
use crate::reader;
use crate::target::proc;

/// The folder for debug information that distributions agree on.
const DEBUG_FOLDER: &str = "usr/lib/debug";

/// A build id shorter than this can't be split into a folder's and a file's name.
const SHORTEST_BUILD_ID: usize = 2;

/// Bits of a mode that let others than the owner write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Who is affected by what a debug file says. Whoever made a process's root (a user in a mount namespace of his own) can
/// put any file there, also over `/usr/lib/debug`: what such a file says must not reach other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The process alone through whose root the file may be found.
    Process,
    /// Every process that maps the object: the file must be one that only root, or memleak's own user, can write.
    Everyone,
}

/// The folders in which debug files are looked for.
pub struct Folders {
    /// Those that the user names.
    named: Vec<PathBuf>,
    /// What `/` means, to the target first.
    roots: Vec<PathBuf>,
    /// Keeps the target's root when the target has gone.
    _target_root: Option<File>,
    /// The target's root, if it is not ours.
    foreign: Option<RootId>,
}

/// A root directory that is not memleak's own: its mount namespace, device and inode.
pub type RootId = (PathBuf, u64, u64);

/// Our own root.
const OWN_ROOT: &str = "/";

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
            roots: held.into_iter().chain([PathBuf::from(OWN_ROOT)]).collect(),
            foreign: foreign_root(pid, target_root.as_ref()),
            _target_root: target_root,
        }
    }

    /// Whose files these are, unless they are those that memleak itself sees.
    pub fn foreign(&self) -> Option<&RootId> {
        self.foreign.as_ref()
    }

    /// What `/` means, to the target first.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// The file with the debug information that a file, which the target knows by a path, lacks; none when it has its
    /// own, or when nobody has. `reach` says who is affected by what the file says.
    pub fn find(&self, facts: &Facts, known_as: &Path, reach: Reach) -> Option<PathBuf> {
        if facts.has_debug_info {
            return None;
        }
        let build_id = facts.build_id.as_deref();
        let by_build_id = build_id.and_then(|build_id| self.by_build_id(build_id, reach));
        by_build_id.or_else(|| {
            let (name, checksum) = facts.debug_link.as_ref()?;
            // a name without folders, says the format: anything else could lead anywhere
            let name = Path::new(std::str::from_utf8(name).ok()?).file_name()?;
            self.by_link(Path::new(name), known_as, *checksum, reach)
        })
    }

    /// The roots whose files may be used.
    fn usable_roots(&self, reach: Reach) -> impl Iterator<Item = &Path> {
        let usable = move |root: &&Path| reach == Reach::Process || *root == Path::new(OWN_ROOT);
        self.roots.iter().map(PathBuf::as_path).filter(usable)
    }

    fn by_build_id(&self, build_id: &[u8], reach: Reach) -> Option<PathBuf> {
        if build_id.len() < SHORTEST_BUILD_ID {
            return None;
        }
        let (first, rest) = build_id.split_at(1);
        let name = format!(".build-id/{}/{}.debug", hex(first), hex(rest));
        let usual = self.usable_roots(reach).map(|root| root.join(DEBUG_FOLDER));
        let folders = self.named.iter().cloned().chain(usual);
        folders.map(|folder| folder.join(&name)).find(|path| {
            let facts = || File::open(path).ok().and_then(|file| reader::facts(&file));
            may_be_used(path, reach)
                && facts().is_some_and(|facts| facts.build_id.as_deref() == Some(build_id))
        })
    }

    fn by_link(
        &self,
        name: &Path,
        known_as: &Path,
        checksum: u32,
        reach: Reach,
    ) -> Option<PathBuf> {
        let folder = known_as.parent()?;
        let folder = folder.strip_prefix("/").unwrap_or(folder);
        let named = self
            .named
            .iter()
            .flat_map(|named| [named.join(name), named.join(folder).join(name)]);
        let usual = self.usable_roots(reach).flat_map(|root| {
            let beside = root.join(folder);
            let apart = root.join(DEBUG_FOLDER).join(folder);
            [
                beside.join(name),
                beside.join(".debug").join(name),
                apart.join(name),
            ]
        });
        named.chain(usual).find(|path| {
            let sum = || reader::checksum(&File::open(path).ok()?);
            may_be_used(path, reach) && sum() == Some(checksum)
        })
    }
}

/// A process's root, unless it is ours.
fn foreign_root(pid: u32, root: Option<&File>) -> Option<RootId> {
    let namespace = |folder: &Path| fs::read_link(folder.join("ns/mnt")).unwrap_or_default();
    let root = root?.metadata().ok()?;
    let own = fs::metadata(OWN_ROOT).ok()?;
    let of_process = (namespace(&proc::folder(pid)), root.dev(), root.ino());
    let of_memleak = (namespace(Path::new("/proc/self")), own.dev(), own.ino());
    (of_process != of_memleak).then_some(of_process)
}

/// Whether a debug file may say something to those that `reach` means: to everyone, if nobody but root or memleak's own
/// user can have written it, or put it, or a folder that it is in, where it is.
fn may_be_used(path: &Path, reach: Reach) -> bool {
    if reach == Reach::Process {
        return true;
    }
    let Ok(path) = path.canonicalize() else {
        return false;
    };
    let own = rustix::process::geteuid().as_raw();
    path.ancestors().all(|path| {
        fs::symlink_metadata(path).is_ok_and(|found| {
            (found.uid() == 0 || found.uid() == own) && found.mode() & WRITABLE_BY_OTHERS == 0
        })
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_others_can_write_is_for_the_process_alone() {
        // the folder for temporary files itself is everybody's
        let everybodys = tempfile::tempdir().unwrap();
        let file = everybodys.path().join("a.debug");
        fs::write(&file, "").unwrap();
        assert!(may_be_used(&file, Reach::Process));
        assert!(!may_be_used(&file, Reach::Everyone));
        assert!(!may_be_used(Path::new("/no/such/file"), Reach::Everyone));
        // what only root may write
        assert!(may_be_used(Path::new("/etc/passwd"), Reach::Everyone));
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(
            mode & WRITABLE_BY_OTHERS,
            0,
            "the folder decides, not the file"
        );
    }

    #[test]
    fn our_own_root_is_not_foreign() {
        let folders = Folders::new(Vec::new(), std::process::id());
        assert_eq!(folders.foreign(), None);
        assert_eq!(folders.usable_roots(Reach::Everyone).count(), 1);
    }
}
