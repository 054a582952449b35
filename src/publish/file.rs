//! Where outputs go: a file is written whole or not at all, beside its place, then renamed; devices and pipes are written
//! directly. Follows no link that another user has set, and takes nothing over from another's file. Knows no formats.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, Stat, fstatfs, openat, readlinkat,
    statat,
};
use rustix::io::Errno;
use tempfile::NamedTempFile;

/// Links that a path may lead through, as many as for the kernel.
const MOST_LINKS: usize = 40;

/// How long a pipe or device may take nothing.
const PATIENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// Permissions of a new report, before the umask takes away its share.
const REPORT: u32 = 0o644;

/// Permissions of a new recording: it has names and command lines that only its owner may know.
const RECORDING: u32 = 0o600;

/// What may be taken over of one's own file.
const PERMISSIONS: u32 = 0o777;

/// Looks whether a file could be written at `path`.
///
/// # Errors
/// When its folder is not there, or it is a folder itself.
pub fn check_folder(path: &Path) -> Result<()> {
    if path == Path::new("-") {
        return Ok(());
    }
    let name = path.display();
    let place = Place::find(path)?;
    match place.way() {
        Way::Folder => bail!("failed to write {name}: it is a folder"),
        Way::Direct | Way::Replace(_) => Ok(()),
    }
}

/// Writes `content` to the file at `path`; `-` is the standard output.
///
/// # Errors
/// Whatever writing fails with, naming the file. A reader that closed the standard output is no error.
pub fn write(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    if path == Path::new("-") {
        return write_stdout(content);
    }
    let place = Place::find(path)?;
    let result = match place.way() {
        Way::Folder => Err(Errno::ISDIR.into()),
        Way::Direct => place
            .open()
            .and_then(|direct| write_buffered(direct, content)),
        Way::Replace(mode) => place.replace(mode, content),
    };
    result.with_context(|| format!("failed to write {}", path.display()))
}

/// Begins a recording or another stream at `path`, `-` for the standard output, with what `begin` writes. It stands there from the beginning, as a recording is for runs
/// that are killed.
///
/// # Errors
/// Whatever writing fails with, naming the file; where another user's file is in the way.
pub fn record<T>(path: &Path, begin: impl FnOnce(Box<dyn Write>) -> io::Result<T>) -> Result<T> {
    if path == Path::new("-") {
        return begin(Box::new(io::stdout())).context("failed to write to the standard output");
    }
    let name = path.display();
    let place = Place::find(path)?;
    let begun = match place.way() {
        Way::Folder => bail!("failed to write {name}: it is a folder"),
        Way::Direct => place.open().and_then(|direct| begin(Box::new(direct))),
        Way::Replace(_) if place.is_anothers() && !place.is_shared() => {
            bail!("failed to record: {name} is another user's file; remove it, or name another")
        }
        Way::Replace(mode) => place.begin(mode, begin),
    };
    begun.with_context(|| format!("failed to write {name}"))
}

fn write_stdout(content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    match write_buffered(io::stdout().lock(), content) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("failed to write to the standard output"),
    }
}

fn write_buffered(
    out: impl Write,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    content(&mut out)?;
    out.flush()
}

/// A name in a folder, found without following another user's links.
struct Place {
    folder: OwnedFd,
    name: OsString,
    /// What is there now.
    there: Option<Stat>,
}

/// How to write to a place.
enum Way {
    /// Not at all.
    Folder,
    /// To what is there: a device, a pipe, or an open file of memleak's own.
    Direct,
    /// By renaming a new file over it; with the permissions of one's own old file, if there is one.
    Replace(Option<u32>),
}

impl Place {
    fn find(path: &Path) -> Result<Self> {
        let failed = || format!("failed to write {}", path.display());
        let mut folder = open_folder(Path::new(".")).with_context(failed)?;
        let mut left = Vec::new();
        push(&mut left, path);
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == "/" {
                folder = open_folder(Path::new("/")).with_context(failed)?;
                continue;
            }
            let there = match statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(errno).with_context(failed),
            };
            let link = there.filter(|stat| kind(stat) == FileType::Symlink);
            let trusted = link.filter(|stat| is_trusted(stat.st_uid));
            // what the kernel's own links lead to has no other name
            if trusted.is_some() && !is_proc(&folder) {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP).with_context(failed);
                }
                let target = readlinkat(&folder, &name, Vec::new()).with_context(failed)?;
                push(
                    &mut left,
                    Path::new(&OsString::from_vec(target.into_bytes())),
                );
                continue;
            }
            if left.is_empty() && name != ".." && name != "." {
                return Ok(Self {
                    folder,
                    name,
                    there,
                });
            }
            if link.is_some() && trusted.is_none() {
                bail!(
                    "failed to write {}: {} in it is another user's symbolic link",
                    path.display(),
                    name.display()
                );
            }
            if there.is_none() {
                bail!(
                    "failed to write {}: there is no folder {}",
                    path.display(),
                    path.parent().unwrap_or(path).display()
                );
            }
            let mut flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            if link.is_none() {
                flags |= OFlags::NOFOLLOW;
            }
            folder = openat(&folder, &name, flags, Mode::empty()).with_context(failed)?;
        }
        bail!("failed to write {}: it is a folder", path.display())
    }

    fn way(&self) -> Way {
        let Some(stat) = &self.there else {
            return Way::Replace(None);
        };
        match kind(stat) {
            FileType::Directory => Way::Folder,
            FileType::RegularFile if self.is_anothers() => Way::Replace(None),
            FileType::RegularFile => Way::Replace(Some(stat.st_mode & PERMISSIONS)),
            FileType::Symlink if is_proc(&self.folder) && is_trusted(stat.st_uid) => Way::Direct,
            FileType::Symlink => Way::Replace(None),
            // whoever put a pipe there waits for what root writes
            _ if self.is_anothers() && self.is_shared() => Way::Replace(None),
            _ => Way::Direct,
        }
    }

    /// Whether what is there belongs to another user.
    fn is_anothers(&self) -> bool {
        self.there
            .is_some_and(|stat| stat.st_uid != rustix::process::geteuid().as_raw())
    }

    /// Whether others put files into the folder, as into /tmp.
    fn is_shared(&self) -> bool {
        let mode = statat(&self.folder, "", AtFlags::EMPTY_PATH).map(|stat| stat.st_mode);
        mode.is_ok_and(|mode| mode & (libc::S_IWOTH | libc::S_ISVTX) != 0)
    }

    /// Opens what is there, a pipe or a device, and never waits for long.
    fn open(&self) -> io::Result<Direct> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK;
        let flags = flags | OFlags::NOCTTY | OFlags::CLOEXEC;
        match openat(&self.folder, &self.name, flags, Mode::empty()) {
            Ok(file) => Ok(Direct(file.into())),
            Err(Errno::NXIO) => Err(io::Error::other("nobody reads from it")),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A new file beside the place, with nobody else's permissions.
    fn new_file(&self, mode: u32, kept: Option<u32>) -> io::Result<NamedTempFile> {
        let file =
            tempfile::Builder::new()
                .prefix(".memleak-")
                .make_in(self.folder_path(), |path| {
                    File::options()
                        .write(true)
                        .create_new(true)
                        .custom_flags(libc::O_NOFOLLOW)
                        .mode(mode)
                        .open(path)
                })?;
        if let Some(kept) = kept {
            file.as_file()
                .set_permissions(Permissions::from_mode(kept))?;
        }
        Ok(file)
    }

    /// The open folder's name: whatever its old one has come to mean, files are made in this folder.
    fn folder_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd()))
    }

    fn replace(
        &self,
        kept: Option<u32>,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let file = self.new_file(REPORT, kept)?;
        write_buffered(file.as_file(), content)?;
        // A full disk may show only now.
        file.as_file().sync_data()?;
        file.persist(self.folder_path().join(&self.name))
            .map_err(|error| error.error)?;
        Ok(())
    }

    fn begin<T>(
        &self,
        kept: Option<u32>,
        begin: impl FnOnce(Box<dyn Write>) -> io::Result<T>,
    ) -> io::Result<T> {
        let file = self.new_file(RECORDING, kept)?;
        let begun = begin(Box::new(file.as_file().try_clone()?))?;
        file.persist(self.folder_path().join(&self.name))
            .map_err(|error| error.error)?;
        Ok(begun)
    }
}

/// A pipe or a device. Where it takes nothing for long, that is an error.
struct Direct(File);

impl Write for Direct {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                written => return written,
            }
            let mut fds = [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::OUT)];
            match poll(&mut fds, Some(&PATIENCE)) {
                Ok(0) => return Err(io::Error::other("nobody reads from it any more")),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts a path's components in front of those that are left; the next one is the last of the list.
fn push(left: &mut Vec<OsString>, path: &Path) {
    let components: Vec<OsString> = path
        .components()
        .filter(|component| *component != Component::CurDir)
        .map(|component| component.as_os_str().to_owned())
        .collect();
    left.extend(components.into_iter().rev());
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether a link of this user's is followed: root's, and one's own.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn is_proc(folder: &OwnedFd) -> bool {
    fstatfs(folder).is_ok_and(|system| system.f_type == PROC_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn files(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.unwrap().file_name().to_string_lossy().into_owned()
        };
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_output_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        write(&path, |out| out.write_all(b"old")).unwrap();
        let failed = write(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::other("no more"))
        });
        assert!(format!("{:#}", failed.unwrap_err()).contains("failed to write"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(files(folder.path()), ["out"]);
    }

    #[test]
    fn a_link_stays_a_link_and_modes_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("out"), folder.path().join("link"));
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        write(&link, |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
    }

    #[test]
    fn devices_are_written_not_replaced() {
        write(Path::new("/dev/null"), |out| out.write_all(b"gone")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let full = write(Path::new("/dev/full"), |out| out.write_all(b"much"));
        assert!(format!("{:#}", full.unwrap_err()).contains("No space left"));
    }

    #[test]
    fn paths_that_cannot_be_written_are_known_before() {
        assert!(check_folder(Path::new("/no/such/folder/x")).is_err());
        assert!(check_folder(Path::new("/")).is_err());
        assert!(check_folder(Path::new("-")).is_ok());
        assert!(check_folder(Path::new("x")).is_ok());
    }
}
