//! The memory of another process, read in large pieces: what it maps, which pages it has touched, and their bytes.
//! Knows nothing of blocks or pointers.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, bail};

/// In an entry of pagemap: the page is in memory, swapped out, or a page of a file or shared.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// Where memory comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Bytes of a file, by the path in /proc/PID/maps.
    File(Vec<u8>),
    /// Anonymous memory; with what /proc/PID/maps calls it, such as `[heap]`, or nothing.
    Anonymous(Vec<u8>),
    /// A device, whose memory may change or hang when it is read.
    Device,
}

/// A piece of a process's address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its addresses.
    pub range: Range<u64>,
    /// What the process may do there.
    pub readable: bool,
    /// Whether it can hold what the program wrote.
    pub writable: bool,
    /// Whether it can hold code.
    pub executable: bool,
    /// Whether other processes may write there as well.
    pub shared: bool,
    /// What it is made of.
    pub origin: Origin,
    /// Of a file, its inode and where in it the area begins.
    pub inode: u64,
    /// Bytes from the file's beginning.
    pub offset: u64,
}

impl Area {
    /// Whether it belongs to the file of that path.
    pub fn path(&self) -> Option<&[u8]> {
        match &self.origin {
            Origin::File(path) => Some(path),
            _ => None,
        }
    }

    /// Whether it is a stack of the process's first thread.
    pub fn is_main_stack(&self) -> bool {
        self.origin == Origin::Anonymous(b"[stack]".to_vec())
    }
}

/// A process whose memory can be read.
pub struct ProcessMemory {
    pid: i32,
    pagemap: Option<File>,
    /// The other way in, where process_vm_readv is not allowed.
    mem: Option<File>,
    page: u64,
}

impl ProcessMemory {
    /// Takes hold of a process's memory.
    ///
    /// # Errors
    /// Says that memory may not be read, and what it would take.
    pub fn open(pid: u32) -> Result<Self> {
        let memory = Self {
            pid: i32::try_from(pid).context("no such process")?,
            pagemap: File::open(format!("/proc/{pid}/pagemap")).ok(),
            mem: None,
            page: rustix::param::page_size() as u64,
        };
        if is_32_bit(pid) {
            bail!("process {pid} is a 32-bit program, whose pointers are not understood");
        }
        let areas = memory.areas()?;
        let Some(probe) = areas.iter().find(|area| area.readable && !area.shared) else {
            bail!("process {pid} has no memory");
        };
        let mut word = [0; 8];
        if memory.read(probe.range.start, &mut word).is_ok() {
            return Ok(memory);
        }
        let mem = File::open(format!("/proc/{pid}/mem"));
        let mem = mem.with_context(|| {
            format!("failed to read the memory of process {pid} (it takes CAP_SYS_PTRACE)")
        })?;
        let memory = Self {
            mem: Some(mem),
            ..memory
        };
        memory
            .read(probe.range.start, &mut word)
            .with_context(|| format!("failed to read the memory of process {pid}"))?;
        Ok(memory)
    }

    /// The process's id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// What the process maps now, by address.
    ///
    /// # Errors
    /// When it has gone.
    pub fn areas(&self) -> Result<Vec<Area>> {
        // a first thread that has ended shows nothing, though others go on
        let own = fs::read(format!("/proc/{}/maps", self.pid)).unwrap_or_default();
        let mut areas = parse_areas(&own);
        if areas.is_empty() {
            for thread in super::threads::ids(self.pid) {
                let maps = fs::read(format!("/proc/{}/task/{thread}/maps", self.pid));
                areas = parse_areas(&maps.unwrap_or_default());
                if !areas.is_empty() {
                    break;
                }
            }
        }
        if areas.is_empty() {
            bail!("process {} has ended", self.pid);
        }
        Ok(areas)
    }

    /// Reads bytes from an address on; fails unless all of them are there.
    ///
    /// # Errors
    /// When a part can't be read.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        match self.read_some(address, bytes) {
            read if read == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Reads bytes from an address on, as many as there are: how many.
    pub fn read_some(&self, address: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let (at, rest) = (address.wrapping_add(done as u64), &mut bytes[done..]);
            let read = match &self.mem {
                Some(mem) => mem.read_at(rest, at),
                None => read_vm(self.pid, at, rest),
            };
            match read {
                Ok(read) if read > 0 => done += read,
                _ => break,
            }
        }
        done
    }

    /// Reads a word.
    pub fn word(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.read(address, &mut word).ok()?;
        Some(u64::from_ne_bytes(word))
    }

    /// The parts of a range that may hold anything: pages that were never touched read as zeros and are left out, and
    /// where `written` is set, those that still are a file's as well. Parts are whole pages, but at the range's ends.
    pub fn touched(&self, range: Range<u64>, written: bool) -> Vec<Range<u64>> {
        const ENTRIES: u64 = 1 << 16;
        let Some(pagemap) = &self.pagemap else {
            return vec![range];
        };
        let mut parts: Vec<Range<u64>> = Vec::new();
        let mut entries = Vec::new();
        let (mut page, end) = (range.start / self.page, range.end.div_ceil(self.page));
        while page < end {
            let count = ENTRIES.min(end - page);
            entries.resize(count as usize * 8, 0u8);
            if pagemap.read_exact_at(&mut entries, page * 8).is_err() {
                // the rest can't be told, so it is read
                push(&mut parts, page * self.page..end * self.page);
                break;
            }
            for (at, entry) in entries.chunks_exact(8).enumerate() {
                let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
                let there = entry & (PRESENT | SWAPPED) != 0;
                if there && !(written && entry & OF_FILE != 0) {
                    let start = (page + at as u64) * self.page;
                    push(&mut parts, start..start + self.page);
                }
            }
            page += count;
        }
        for part in &mut parts {
            *part = part.start.max(range.start)..part.end.min(range.end);
        }
        parts
    }
}

/// Whether a process executes a program of 32 bits, as its ELF header tells.
fn is_32_bit(pid: u32) -> bool {
    let mut header = [0; 5];
    let file = File::open(format!("/proc/{pid}/exe"));
    file.and_then(|file| file.read_exact_at(&mut header, 0))
        .is_ok_and(|()| header == *b"\x7fELF\x01")
}

/// Adds a range, to the last one if it follows it.
fn push(parts: &mut Vec<Range<u64>>, range: Range<u64>) {
    match parts.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => parts.push(range),
    }
}

/// Reads as much as there is from an address on in one call.
#[allow(unsafe_code)] // there is no safe wrapper
fn read_vm(pid: i32, address: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: bytes.len(),
    };
    // SAFETY: the kernel writes at most iov_len bytes to `bytes`, which is borrowed for the call; `remote` is an address
    // of the other process, which the kernel checks.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Reads /proc/PID/maps: bytes, since paths need not be text. Lines without sense are left out.
pub fn parse_areas(maps: &[u8]) -> Vec<Area> {
    maps.split(|byte| *byte == b'\n')
        .filter_map(parse_area)
        .collect()
}

fn parse_area(line: &[u8]) -> Option<Area> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (start, end) = text()?.split_once('-')?;
    let permissions = text()?.as_bytes();
    let offset = u64::from_str_radix(text()?, 16).ok()?;
    let _device = text()?;
    let inode: u64 = text()?.parse().ok()?;
    let name = fields.next().unwrap_or_default().trim_ascii_start();
    let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
    if range.is_empty() || permissions.len() < 4 {
        return None;
    }
    let shared = permissions[3] == b's';
    // memory that is shared without a file has one that is deleted from the start
    let memory_of_shm = [&b"/dev/zero"[..], b"/dev/shm/", b"/SYSV", b"/memfd:"];
    let shm = memory_of_shm.iter().any(|prefix| name.starts_with(prefix));
    let origin = if inode == 0 && !name.starts_with(b"/") {
        Origin::Anonymous(name.to_vec())
    } else if name.starts_with(b"/dev/") && !shm || name.starts_with(b"anon_inode:") {
        Origin::Device
    } else {
        Origin::File(name.strip_suffix(b" (deleted)").unwrap_or(name).to_vec())
    };
    Some(Area {
        range,
        readable: permissions[0] == b'r',
        writable: permissions[1] == b'w',
        executable: permissions[2] == b'x',
        shared,
        origin,
        inode,
        offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_understood_as_bytes() {
        let maps = b"55d0-55f0 rw-p 00001000 fe:01 77   /usr/bin/\xe9t\xe9 (deleted)\n\
            7f00-7f10 rw-p 00000000 00:00 0 \n7ffd-7ffe rw-p 00000000 00:00 0    [stack]\n\
            1000-2000 rw-s 00000000 00:05 9 /dev/dri/card0\n2000-3000 rw-s 00000000 00:01 3 /dev/zero (deleted)\nrubbish\n\
            5-4 rw-p 0 0:0 0\n";
        let areas = parse_areas(maps);
        assert_eq!(areas.len(), 5);
        assert_eq!(
            areas[0].origin,
            Origin::File(b"/usr/bin/\xe9t\xe9".to_vec())
        );
        assert_eq!((areas[0].inode, areas[0].offset), (77, 0x1000));
        assert_eq!(areas[1].origin, Origin::Anonymous(Vec::new()));
        assert!(areas[2].is_main_stack());
        assert_eq!(areas[3].origin, Origin::Device);
        assert!(areas[4].shared && areas[4].path() == Some(b"/dev/zero"));
    }

    #[test]
    fn own_memory_is_read_and_untouched_pages_are_left_out() {
        let memory = ProcessMemory::open(std::process::id()).unwrap();
        let words = [0x1122_3344_5566_7788_u64, 42];
        let address = words.as_ptr() as u64;
        assert_eq!(memory.word(address), Some(words[0]));
        assert_eq!(memory.word(8), None);
        let length = 64 << 20;
        let mut large: Vec<u8> = Vec::with_capacity(length);
        large.spare_capacity_mut()[length / 2].write(7);
        let start = large.as_ptr() as u64;
        let touched = memory.touched(start..start + length as u64, false);
        let bytes: u64 = touched.iter().map(|part| part.end - part.start).sum();
        let middle = start + length as u64 / 2;
        assert!(touched.iter().any(|part| part.contains(&middle)));
        assert!(bytes < length as u64 / 2, "{touched:x?}");
    }
}
