//! Where the debug information of a stripped file lies: by build id, or by the file's debug link, in the usual folders
//! and in those that the user names. What is in it is not looked at here.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::debuginfo::Facts;
use crate::files::proc;
use crate::files::{Kept, MOST_OBJECT_BYTES, Opened, Root, Way, owners};
use crate::model::report::hex;
use crate::reader;

/// The folder for debug information that distributions agree on.
const DEBUG_FOLDER: &str = "/usr/lib/debug";

/// A file is read as a whole for its checksum: not when it is larger than this.
const MOST_CHECKED_BYTES: u64 = 1 << 30;

/// A build id shorter than this can't be split into a folder's and a file's name.
const SHORTEST_BUILD_ID: usize = 2;

/// Who is affected by what a debug file says. Whoever made a process's root (a user in a mount namespace of his own) can
/// put any file there, also over `/usr/lib/debug`: what such a file says must not reach other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those processes alone that see the same root, in which the file may be found.
    Process,
    /// Every process that maps the object: the file must be one that only root can write, or put where it is.
    Everyone,
}

/// The folders in which debug files are looked for.
pub struct Folders {
    /// Those that the user names.
    named: Vec<PathBuf>,
    /// What `/` means to memleak.
    own: Option<Arc<Root>>,
    /// What `/` means to the process, unless that is the same; it stays known when the process has gone.
    target: Option<Arc<Root>>,
    /// The target's root, if it is not ours.
    foreign: Option<RootId>,
    /// Whose files are believed besides root's, by user id.
    owners: Vec<u32>,
}

/// A file with debug information.
pub struct DebugFile {
    /// The file.
    pub opened: Opened,
    way: Way,
}

/// A root directory that is not memleak's own: its mount namespace, device and inode.
pub type RootId = (PathBuf, u64, u64);

impl Folders {
    /// Takes hold of the root that a process sees; without the privilege for that, our own has to do.
    pub fn new(named: &[PathBuf], pid: u32) -> Self {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let foreign = foreign_root(pid);
        Self {
            named: named.iter().map(absolute).collect(),
            own: own_root(),
            target: foreign
                .as_ref()
                .and_then(|_| Root::of(pid).ok().map(Arc::new)),
            foreign,
            owners: owners(pid),
        }
    }

    /// Folders of a process that sees those below `root` only.
    #[cfg(test)]
    pub fn in_root(root: Root) -> Self {
        Self {
            named: Vec::new(),
            own: None,
            target: Some(Arc::new(root)),
            foreign: None,
            owners: Vec::new(),
        }
    }

    /// Whose files these are, unless they are those that memleak itself sees.
    pub fn foreign(&self) -> Option<&RootId> {
        self.foreign.as_ref()
    }

    /// What `/` means to the process, as far as is known.
    pub fn root(&self) -> Option<&Root> {
        self.target.as_deref().or(self.own.as_deref())
    }

    /// The file with the debug information that a file, which the target knows by a path, lacks; none when it has its
    /// own, or when nobody has. `reach` says who is affected by what the file says.
    pub fn find(&self, facts: &Facts, known_as: &Path, reach: Reach) -> Option<DebugFile> {
        if facts.has_debug_info {
            return None;
        }
        let by_build_id = facts
            .build_id
            .as_deref()
            .and_then(|build_id| self.by_build_id(build_id, reach));
        by_build_id.or_else(|| {
            let (name, checksum) = facts.debug_link.as_ref()?;
            // a name without folders, says the format: anything else could lead anywhere
            let name = Path::new(std::str::from_utf8(name).ok()?).file_name()?;
            self.by_link(Path::new(name), known_as, *checksum, reach)
        })
    }

    fn by_build_id(&self, build_id: &[u8], reach: Reach) -> Option<DebugFile> {
        if build_id.len() < SHORTEST_BUILD_ID {
            return None;
        }
        let (first, rest) = build_id.split_at(1);
        let name = format!(".build-id/{}/{}.debug", hex(first), hex(rest));
        let named = self.named.iter().map(|folder| folder.join(&name));
        let usual = [Path::new(DEBUG_FOLDER).join(&name)];
        self.candidates(named, usual, reach).find(|file| {
            let facts = reader::facts(file.opened.file());
            facts.is_some_and(|facts| facts.build_id.as_deref() == Some(build_id))
        })
    }

    fn by_link(
        &self,
        name: &Path,
        known_as: &Path,
        checksum: u32,
        reach: Reach,
    ) -> Option<DebugFile> {
        let folder = known_as.parent()?;
        let inner = folder.strip_prefix("/").unwrap_or(folder);
        let named = self
            .named
            .iter()
            .flat_map(|named| [named.join(name), named.join(inner).join(name)]);
        let usual = [
            folder.join(name),
            folder.join(".debug").join(name),
            Path::new(DEBUG_FOLDER).join(inner).join(name),
        ];
        self.candidates(named, usual, reach).find(|file| {
            let file = &file.opened;
            file.size <= MOST_CHECKED_BYTES && reader::checksum(file.file()) == Some(checksum)
        })
    }

    /// The files that are there, in folders that the user names and in the usual ones, and that may say something to those
    /// that `reach` means: to everyone, if nobody but root can have put it there.
    fn candidates<'a>(
        &'a self,
        named: impl IntoIterator<Item = PathBuf, IntoIter: 'a>,
        usual: impl IntoIterator<Item = PathBuf, IntoIter: 'a>,
        reach: Reach,
    ) -> impl Iterator<Item = DebugFile> + 'a {
        let own = self.own.as_ref();
        let trusted = move |place: PathBuf| {
            let opened = own?.open_trusted(&place, MOST_OBJECT_BYTES).ok()?;
            Some(DebugFile::new(opened, own?, place))
        };
        let named = named.into_iter().filter_map(move |place| match reach {
            Reach::Everyone => trusted(place),
            // the user vouches for what he names
            Reach::Process => {
                let opened = own?.open(&place, MOST_OBJECT_BYTES).ok()?;
                Some(DebugFile::new(opened, own?, place))
            }
        });
        let usual = usual.into_iter().filter_map(move |place| match reach {
            Reach::Everyone => trusted(place),
            Reach::Process => {
                let mut roots = self.target.iter().chain(own);
                roots.find_map(|root| self.found_in(root, &place))
            }
        });
        named.chain(usual)
    }

    /// Whoever may write a folder can put a file beside another's program: the process's own and root's are believed.
    fn found_in(&self, root: &Arc<Root>, place: &Path) -> Option<DebugFile> {
        let file = root.open(place, MOST_OBJECT_BYTES).ok()?;
        let is_believed = file.owner == 0 || self.owners.contains(&file.owner);
        is_believed.then(|| DebugFile::new(file, root, place.to_path_buf()))
    }
}

impl DebugFile {
    fn new(opened: Opened, root: &Arc<Root>, place: PathBuf) -> Self {
        Self {
            opened,
            way: Way::Below(Arc::clone(root), place),
        }
    }

    /// Keeps it at hand.
    pub fn keep(self) -> Arc<Kept> {
        Kept::found(self.opened, self.way)
    }
}

/// What `/` means to memleak, which is the same for all.
fn own_root() -> Option<Arc<Root>> {
    static OWN: OnceLock<Option<Arc<Root>>> = OnceLock::new();
    OWN.get_or_init(|| Root::own().ok().map(Arc::new)).clone()
}

/// A process's root, unless it is ours.
fn foreign_root(pid: u32) -> Option<RootId> {
    let id = |folder: &Path| -> Option<RootId> {
        let namespace = fs::read_link(folder.join("ns/mnt")).ok()?;
        let root = fs::metadata(folder.join("root")).ok()?;
        Some((namespace, root.dev(), root.ino()))
    };
    let of_process = id(&proc::folder(pid))?;
    (Some(&of_process) != id(Path::new("/proc/self")).as_ref()).then_some(of_process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_write_is_for_the_process_alone() {
        // the folder for temporary files itself is everybody's
        let everybodys = tempfile::tempdir().unwrap();
        let file = everybodys.path().join("a.debug");
        fs::write(&file, "").unwrap();
        let folders = Folders::new(&[], std::process::id());
        let found = |place: &Path, reach| {
            let mut found = folders.candidates([], [place.to_path_buf()], reach);
            found.next().is_some()
        };
        assert!(found(&file, Reach::Process));
        assert!(!found(&file, Reach::Everyone));
        // what only root may write
        for reach in [Reach::Process, Reach::Everyone] {
            assert!(found(Path::new("/etc/passwd"), reach), "{reach:?}");
            assert!(!found(Path::new("/no/such/file"), reach), "{reach:?}");
        }
    }

    #[test]
    fn our_own_root_is_not_foreign() {
        let folders = Folders::new(&[], std::process::id());
        assert_eq!(folders.foreign(), None);
        assert!(folders.target.is_none());
    }
}
