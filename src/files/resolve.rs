//! From a name to what it stands for inside a root, in one call where the kernel knows how, else step by step.
//! What is found is held, not opened: nothing happens to it, be it a device or a pipe.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat};
use rustix::io::Errno;

/// Links that are followed on the way at the most, as by the kernel.
const MOST_LINKS: usize = 40;

const HELD: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Which links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// All.
    All,
    /// Those of folders; a link that the whole name stands for is what is found.
    Folders,
}

/// Finds what a name stands for, below `root`.
pub fn open(root: BorrowedFd<'_>, path: &Path, follow: Follow) -> io::Result<OwnedFd> {
    let flags = match follow {
        Follow::All => HELD,
        Follow::Folders => HELD.union(OFlags::NOFOLLOW),
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, path, flags, Mode::empty(), resolve) {
        // before Linux 5.6, or where system calls are filtered
        Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => walk(root, path, follow, |_| true),
        // somebody renames folders meanwhile
        Err(Errno::AGAIN) => Err(ErrorKind::Interrupted.into()),
        found => Ok(found?),
    }
}

/// Finds what a name stands for, below `root`, one component at a time; each thing on the way must be `fit`, the root and
/// what is found included.
pub fn walk(
    root: BorrowedFd<'_>,
    path: &Path,
    follow: Follow,
    fit: impl Fn(&Stat) -> bool,
) -> io::Result<OwnedFd> {
    let check = |found: &OwnedFd| -> io::Result<Stat> {
        let status = fstat(found)?;
        match fit(&status) {
            true => Ok(status),
            false => Err(ErrorKind::PermissionDenied.into()),
        }
    };
    let root = root.try_clone_to_owned()?;
    check(&root)?;
    // the folders from the root to where the walk stands
    let mut folders: Vec<OwnedFd> = Vec::new();
    let mut ahead = steps(path);
    let mut links = 0;
    while let Some(step) = ahead.pop_front() {
        if step.as_bytes() == b".." {
            folders.pop();
            continue;
        }
        if step.as_bytes() == b"/" {
            folders.clear();
            continue;
        }
        let here = folders.last().unwrap_or(&root);
        let found = openat(here, &step, HELD | OFlags::NOFOLLOW, Mode::empty())?;
        let status = check(&found)?;
        let is_link = FileType::from_raw_mode(status.st_mode) == FileType::Symlink;
        if is_link && (follow == Follow::All || !ahead.is_empty()) {
            links += 1;
            if links > MOST_LINKS {
                return Err(Errno::LOOP.into());
            }
            // the text of the link, never where the kernel itself would go
            let to = readlinkat(&found, "", Vec::new())?;
            let mut steps = steps(Path::new(OsStr::from_bytes(to.as_bytes())));
            steps.append(&mut ahead);
            ahead = steps;
            continue;
        }
        folders.push(found);
    }
    match folders.pop() {
        Some(found) => Ok(found),
        None => Ok(root.as_fd().try_clone_to_owned()?),
    }
}

/// The components of a path; `/` for the root.
fn steps(path: &Path) -> VecDeque<OsString> {
    let step = |component: Component<'_>| match component {
        Component::CurDir => None,
        other => Some(other.as_os_str().to_owned()),
    };
    path.components().filter_map(step).collect()
}

/// Whether root, or memleak's own user, owns it, and nobody else may write it. What a link says can't be changed, whatever
/// its mode.
pub fn is_roots_alone(status: &Stat) -> bool {
    const WRITABLE_BY_OTHERS: u32 = 0o002;
    const WRITABLE_BY_GROUP: u32 = 0o020;
    let is_link = FileType::from_raw_mode(status.st_mode) == FileType::Symlink;
    let group = status.st_mode & WRITABLE_BY_GROUP != 0 && status.st_gid != 0;
    let others = status.st_mode & WRITABLE_BY_OTHERS != 0;
    let own = rustix::process::geteuid().as_raw();
    [0, own].contains(&status.st_uid) && (is_link || !(group || others))
}
