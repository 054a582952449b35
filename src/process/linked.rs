//! What a command will map once it runs: its interpreter, executable and shared libraries, as its own
//! dynamic linker lists them. Knows nothing of allocators.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use object::elf::{ELFMAG, FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadCache};

use crate::files::{self, MOST_OBJECT_BYTES};

/// Scripts may name a script as their interpreter; the kernel follows this many.
const MAX_INTERPRETERS: usize = 4;

/// A `#!` line is cut off after this many bytes.
const MAX_INTERPRETER_LINE: u64 = 256;

/// The objects that the program at `path` maps when it starts, the executable first, in the order in which
/// the dynamic linker resolves symbols. A statically linked program maps just itself.
///
/// # Errors
/// Fails when a file can't be read, when it is neither a 64-bit ELF program nor a script that names one,
/// or when its dynamic linker can't tell.
pub fn objects_of_command(path: &Path) -> Result<Vec<PathBuf>> {
    let program = executed_by(path)?;
    let Some(linker) = dynamic_linker(&program)? else {
        return Ok(vec![program]);
    };
    // $ORIGIN is the folder of the file itself, whatever links lead there
    let file = fs::canonicalize(&program).unwrap_or_else(|_| program.clone());
    // This is how ldd works, and it honours the environment as the program itself will.
    let listing = Command::new(&linker)
        .arg("--list")
        .arg(file)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("failed to run {}", linker.display()))?;
    let mut objects = vec![program];
    objects.extend(parse_listing(&listing.stdout));
    Ok(objects)
}

/// The ELF program that runs when `path` is executed: itself, or what its `#!` line names.
fn executed_by(path: &Path) -> Result<PathBuf> {
    let mut program = path.to_path_buf();
    for _ in 0..=MAX_INTERPRETERS {
        match interpreter_of_script(&program)? {
            Some(interpreter) => program = interpreter,
            None => return Ok(program),
        }
    }
    bail!("{} names too many interpreters", path.display())
}

fn interpreter_of_script(path: &Path) -> Result<Option<PathBuf>> {
    let file = files::open(path, MOST_OBJECT_BYTES)
        .with_context(|| format!("failed to open {}", path.display()))?;
    let mut line = Vec::new();
    BufReader::new(file.into_file().take(MAX_INTERPRETER_LINE))
        .read_until(b'\n', &mut line)
        .with_context(|| format!("failed to read {}", path.display()))?;
    if line.starts_with(&ELFMAG) {
        return Ok(None);
    }
    let Some(rest) = line.strip_prefix(b"#!") else {
        // as execvp does with what the kernel can't execute
        return Ok(Some(PathBuf::from("/bin/sh")));
    };
    let rest = rest.trim_ascii();
    let end = rest
        .iter()
        .position(|byte| byte.is_ascii_whitespace())
        .unwrap_or(rest.len());
    Ok(Some(PathBuf::from(std::ffi::OsString::from_vec(
        rest[..end].to_vec(),
    ))))
}

/// The path in the program's `PT_INTERP` header; none when it is statically linked.
fn dynamic_linker(program: &Path) -> Result<Option<PathBuf>> {
    let read = || -> Result<Option<PathBuf>> {
        let data = ReadCache::new(files::open(program, MOST_OBJECT_BYTES)?.into_file());
        let header = FileHeader64::<Endianness>::parse(&data)?;
        let endian = header.endian()?;
        for segment in header.program_headers(endian, &data)? {
            if segment.p_type(endian) != PT_INTERP {
                continue;
            }
            let bytes = segment
                .data(endian, &data)
                .map_err(|()| anyhow::anyhow!("PT_INTERP points outside the file"))?;
            let end = bytes.iter().position(|byte| *byte == 0);
            let path = &bytes[..end.unwrap_or(bytes.len())];
            return Ok(Some(PathBuf::from(std::ffi::OsStr::from_bytes(path))));
        }
        Ok(None)
    };
    read().with_context(|| {
        format!(
            "failed to read {} as a 64-bit ELF program",
            program.display()
        )
    })
}

/// Reads lines such as `\tlibc.so.6 => /lib/libc.so.6 (0x7f…)` and `\t/lib/ld-linux.so.2 (0x7f…)`.
fn parse_listing(listing: &[u8]) -> impl Iterator<Item = PathBuf> {
    listing.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = String::from_utf8_lossy(line);
        let object = match line.split_once(" => ") {
            Some((_, path)) => path,
            None => line.trim_start(),
        };
        let (path, _) = object.rsplit_once(" (0x")?;
        path.starts_with('/').then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_of_glibc_is_understood() {
        let listing = b"\tlinux-vdso.so.1 (0x00007ffc)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1a)\n\
            \tlibmissing.so => not found\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f1b)\n";
        let paths: Vec<PathBuf> = parse_listing(listing).collect();
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(paths, expected.map(PathBuf::from));
    }

    #[test]
    fn a_dynamic_program_maps_its_libc() {
        let objects = objects_of_command(Path::new("/bin/true")).unwrap();
        assert_eq!(objects[0], Path::new("/bin/true"));
        assert!(objects.iter().any(|path| path.ends_with("libc.so.6")));
    }

    #[test]
    fn a_script_maps_what_its_interpreter_maps() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        std::fs::write(&script, "#! /bin/sh -e\necho\n").unwrap();
        let objects = objects_of_command(&script).unwrap();
        assert_eq!(objects[0], Path::new("/bin/sh"));
    }

    #[test]
    fn text_without_an_interpreter_is_the_shells() {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().join("text");
        std::fs::write(&text, "echo").unwrap();
        let objects = objects_of_command(&text).unwrap();
        assert_eq!(objects[0], Path::new("/bin/sh"));
    }

    #[test]
    fn a_damaged_program_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        std::fs::write(&program, b"\x7fELF and then nothing").unwrap();
        let error = objects_of_command(&program).unwrap_err();
        assert!(format!("{error:#}").contains("64-bit ELF"));
    }
}
