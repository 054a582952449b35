//! The one way to files that others control: found inside a root, regular, of bounded size, opened without waiting.
//! What is in them is read elsewhere; text that the kernel makes (/proc, /sys) needs none of this.

mod kept;
pub mod proc;
mod resolve;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, stat};

pub use kept::{Kept, Way, is_exhausted};
use resolve::Follow;

/// Bytes of an object or of debug information that are worth opening at the most.
pub const MOST_OBJECT_BYTES: u64 = 16 << 30;

/// How a path that leads to a file in hand is opened again: read only, never waiting for whoever has a lease on the file,
/// never becoming the owner of a terminal.
const REOPENED: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// A regular file, open for reading.
#[derive(Debug)]
pub struct Opened {
    file: File,
    /// Device and inode, as stat(2) gives them: no other file has them while this one is open.
    pub identity: (u64, u64),
    /// Bytes, when it was opened.
    pub size: u64,
    /// Who owns it, by user id.
    pub owner: u32,
}

impl Opened {
    /// A file of memleak's own making.
    ///
    /// # Errors
    /// When it is no regular file.
    pub fn own(file: File) -> io::Result<Self> {
        let status = regular(&file, u64::MAX)?;
        Ok(Self::with(file, &status))
    }

    fn with(file: File, status: &Stat) -> Self {
        Self {
            file,
            identity: (status.st_dev, status.st_ino),
            size: u64::try_from(status.st_size).unwrap_or(u64::MAX),
            owner: status.st_uid,
        }
    }

    /// A path by which this process can open the very same file again, whatever becomes of its name.
    pub fn path(&self) -> PathBuf {
        path_of(self.file.as_fd())
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file alone.
    pub fn into_file(self) -> File {
        self.file
    }
}

/// What `/` means to somebody, or a folder that stands for it: names are looked up below it, and lead nowhere else,
/// whatever links and `..` they contain.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// What `/` means to memleak.
    ///
    /// # Errors
    /// Without a descriptor to spare.
    pub fn own() -> io::Result<Self> {
        Self::at(Path::new("/"))
    }

    /// What `/` means to a living process; it stays known when the process has gone.
    ///
    /// # Errors
    /// When there is no such process, or without the privilege to look into it.
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::at(&proc::folder(pid).join("root"))
    }

    /// A folder.
    ///
    /// # Errors
    /// When there is none.
    pub fn at(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, path, flags, Mode::empty())?))
    }

    /// Opens a regular file of at most `most_bytes`, links on the way followed within the root.
    ///
    /// # Errors
    /// When there is none, when it is larger, or when it is anything else than a regular file.
    pub fn open(&self, path: &Path, most_bytes: u64) -> io::Result<Opened> {
        open_found(
            &resolve::open(self.0.as_fd(), path, Follow::All)?,
            most_bytes,
        )
    }

    /// Opens a regular file as [`Root::open`] does, but one of a living process's making: it is no link, has no second name,
    /// and belongs to root or to one of `owners`.
    ///
    /// # Errors
    /// As [`Root::open`], and when it is somebody else's.
    pub fn open_made_by(&self, owners: &[u32], path: &Path, most_bytes: u64) -> io::Result<Opened> {
        let found = resolve::open(self.0.as_fd(), path, Follow::Folders)?;
        let status = fstat(&found)?;
        if status.st_nlink > 1 || !is_owned_by(&status, owners) {
            return Err(ErrorKind::PermissionDenied.into());
        }
        open_found(&found, most_bytes)
    }

    /// Opens a regular file that may say something of every process: one that root (or memleak's own user) owns, as every folder and link on the way, and that nobody else
    /// may write.
    ///
    /// # Errors
    /// As [`Root::open`], and when somebody else may change what is found under the name.
    pub fn open_trusted(&self, path: &Path, most_bytes: u64) -> io::Result<Opened> {
        let found = resolve::walk(self.0.as_fd(), path, Follow::All, resolve::is_roots_alone)?;
        open_found(&found, most_bytes)
    }
}

/// Opens a regular file that the user names: by memleak's own `/` and working folder.
///
/// # Errors
/// When there is none, when it is larger than `most_bytes`, or when it is anything else than a regular file.
pub fn open(path: &Path, most_bytes: u64) -> io::Result<Opened> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    open_found(&openat(CWD, path, flags, Mode::empty())?, most_bytes)
}

/// Opens the regular file that a process maps at these addresses, even one that has been removed. While the process lives,
/// and with privilege.
///
/// # Errors
/// When there is no such mapping, or without the privilege.
pub fn open_mapped(pid: u32, range: &Range<u64>, most_bytes: u64) -> io::Result<Opened> {
    let name = format!("map_files/{:x}-{:x}", range.start, range.end);
    open(&proc::own_folder(pid).join(name), most_bytes)
}

/// Whether the user names something that is there; it isn't opened for that.
pub fn exists(path: &Path) -> bool {
    stat(path).is_ok()
}

/// Whose files a process may be taken at its word for: its effective user, and whoever is root in its user namespace; nobody
/// when it has gone. Root is one in any case.
pub fn owners(pid: u32) -> Vec<u32> {
    let number = |text: &str, line: &dyn Fn(&str) -> bool, field| -> Option<u32> {
        let line = text.lines().find(|text| line(text))?;
        line.split_ascii_whitespace().nth(field)?.parse().ok()
    };
    let folder = proc::folder(pid);
    let read = |name: &str| proc::text(folder.join(name)).unwrap_or_default();
    let effective = number(&read("status"), &|line| line.starts_with("Uid:"), 2);
    let first = |line: &str| line.split_ascii_whitespace().next() == Some("0");
    let root = number(&read("uid_map"), &first, 1);
    effective.into_iter().chain(root).collect()
}

fn is_owned_by(status: &Stat, owners: &[u32]) -> bool {
    status.st_uid == 0 || owners.contains(&status.st_uid)
}

/// Opens for reading what was found, if it is a regular file.
fn open_found(found: &OwnedFd, most_bytes: u64) -> io::Result<Opened> {
    let status = regular(found, most_bytes)?;
    let file = openat(CWD, path_of(found.as_fd()), REOPENED, Mode::empty())?;
    Ok(Opened::with(File::from(file), &status))
}

fn regular(found: impl AsFd, most_bytes: u64) -> io::Result<Stat> {
    let status = fstat(found)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    match u64::try_from(status.st_size) {
        Ok(size) if size <= most_bytes => Ok(status),
        _ => Err(ErrorKind::FileTooLarge.into()),
    }
}

fn path_of(file: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests;
