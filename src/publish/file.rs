//! Writes one output whole or not at all: to a temporary name beside the target, then renamed.
//! Knows nothing of formats.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What new files may be read and written by, before the umask takes away its share.
const NEW_FILE_MODE: u32 = 0o666;

/// Looks whether a file could be written at `path`.
///
/// # Errors
/// When its folder is not there, or it is a folder itself.
pub fn check_folder(path: &Path) -> Result<()> {
    if path == Path::new("-") {
        return Ok(());
    }
    let name = path.display();
    if path.is_dir() {
        bail!("failed to write {name}: it is a folder");
    }
    let folder = folder(path);
    if !folder.is_dir() {
        bail!(
            "failed to write {name}: there is no folder {}",
            folder.display()
        );
    }
    Ok(())
}

/// Writes `content` to the file at `path`; `-` is the standard output. Devices and pipes are written directly.
///
/// # Errors
/// Whatever writing fails with, naming the file. A reader that closed the standard output is no error.
pub fn write(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    if path == Path::new("-") {
        return write_stdout(content);
    }
    let name = path.display();
    // Through a link, its target is replaced, not the link.
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let result = match fs::metadata(&real) {
        Ok(metadata) if metadata.is_file() => replace(&real, metadata.permissions(), content),
        Ok(_) => File::options()
            .write(true)
            .open(&real)
            .and_then(|file| write_buffered(file, content)),
        Err(_) => replace(&real, Permissions::from_mode(NEW_FILE_MODE), content),
    };
    result.with_context(|| format!("failed to write {name}"))
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

fn replace(
    path: &Path,
    permissions: Permissions,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let file = tempfile::Builder::new()
        .prefix(".memleak-")
        .permissions(permissions)
        .tempfile_in(folder(path))?;
    write_buffered(file.as_file(), content)?;
    // A full disk may show only now.
    file.as_file().sync_data()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
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
