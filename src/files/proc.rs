//! Text that the kernel shows under /proc and /sys, and where to look for what all threads of a process share.
//! What the text means is known to whoever asks for it.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// The text of a file. It is bytes: names of files, processes and cgroups are whatever their makers chose, and the kernel
/// cuts them anywhere. What is no UTF-8 is replaced, which leaves everything around it as it was.
///
/// # Errors
/// When the file can't be read.
pub fn text(path: impl AsRef<Path>) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// A path as a listing of the kernel's shows it, where `escaped` bytes stand as a backslash and three octal digits.
pub fn path(shown: &[u8], escaped: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(shown.len());
    let mut rest = shown;
    while let Some((&first, behind)) = rest.split_first() {
        let escape = escaped
            .iter()
            .find(|byte| rest.starts_with(format!("\\{byte:03o}").as_bytes()));
        bytes.push(*escape.unwrap_or(&first));
        rest = match escape {
            Some(_) => &rest[4..],
            None => behind,
        };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The folder that shows a process's memory, root and program: its own, or, once its first thread has ended, that of a
/// thread that goes on.
pub fn folder(pid: u32) -> PathBuf {
    let own = own_folder(pid);
    if !lacks_program(&own) {
        return own;
    }
    let threads = fs::read_dir(own.join("task")).into_iter().flatten();
    let mut folders = threads.flatten().map(|thread| thread.path());
    folders.find(|thread| !lacks_program(thread)).unwrap_or(own)
}

/// The folder of a process, and of its first thread.
pub fn own_folder(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// Whether a thread has ended, or is one of the kernel's. Who may not know is told that it has a program.
fn lacks_program(thread: &Path) -> bool {
    let program = fs::read_link(thread.join("exe"));
    matches!(program, Err(error) if error.kind() == ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_utf_8_hides_nothing_around_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        fs::write(&path, b"Name:\tcaf\xe9\nPid:\t7\n").unwrap();
        assert_eq!(text(&path).unwrap().lines().nth(1), Some("Pid:\t7"));
    }

    #[test]
    fn what_the_kernel_escapes_in_paths_is_read_back_and_nothing_else() {
        let read = |shown, escaped| path(shown, escaped).into_os_string().into_vec();
        assert_eq!(read(br"/a\040b\134", b" \\"), b"/a b\\");
        assert_eq!(read(br"/a\040b\012\0", b"\n"), b"/a\\040b\n\\0");
    }

    #[test]
    fn a_process_whose_first_thread_lives_is_looked_at_there() {
        let own = std::process::id();
        assert_eq!(folder(own), PathBuf::from(format!("/proc/{own}")));
    }
}
