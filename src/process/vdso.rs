//! The vDSO: the code that the kernel maps into every process, which is no file's.
//! Reads this process's own, which is the same in all of them; knows nothing of symbols.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::files::proc;

/// How it is called where mappings are listed.
pub const NAME: &str = "[vdso]";

/// The vDSO as a file that only this process has: an ELF image whose places in the file are those in memory.
///
/// # Errors
/// When this process has none, or no memory for the file.
pub fn open() -> io::Result<File> {
    let maps = proc::text("/proc/self/maps")?;
    let (begin, end) = range(&maps).ok_or(io::ErrorKind::NotFound)?;
    let length = usize::try_from(end - begin).map_err(io::Error::other)?;
    let mut image = vec![0; length];
    File::open("/proc/self/mem")?.read_exact_at(&mut image, begin)?;
    let mut file = File::from(memfd_create("memleak-vdso", MemfdFlags::CLOEXEC)?);
    file.write_all(&image)?;
    Ok(file)
}

/// The addresses of the vDSO in a listing as /proc/PID/maps gives it.
fn range(maps: &str) -> Option<(u64, u64)> {
    let line = maps.lines().find(|line| line.ends_with(NAME))?;
    let (begin, end) = line.split_once(' ')?.0.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    let (begin, end) = (address(begin)?, address(end)?);
    (begin < end).then_some((begin, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_that_of_the_line_with_the_name() {
        let maps = "7ffd1000-7ffd5000 r--p 00000000 00:00 0    [vvar]\n\
                    7ffd5000-7ffd7000 r-xp 00000000 00:00 0    [vdso]\n";
        assert_eq!(range(maps), Some((0x7ffd_5000, 0x7ffd_7000)));
        assert_eq!(range("7ffd5000-7ffd7000 r-xp 00000000 00:00 0 x\n"), None);
        assert_eq!(range("7ffd7000-7ffd5000 [vdso]\n"), None);
    }

    #[test]
    fn it_is_an_elf_image() {
        let mut magic = [0; 4];
        open().unwrap().read_exact_at(&mut magic, 0).unwrap();
        assert_eq!(magic, object::elf::ELFMAG);
    }
}
