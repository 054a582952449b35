//! What /proc/PID/maps and the kernel's announcements say of a mapping. Files aren't opened here.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::files::proc;

/// A mapping as /proc or an event describes it.
#[derive(Clone, Debug)]
pub struct MappingRecord {
    /// The addresses.
    pub range: Range<u64>,
    /// Where in the file the range begins, in bytes.
    pub offset: u64,
    /// Device of the file, as stat(2) gives it.
    pub device: u64,
    /// Inode of the file; 0 for what is no file.
    pub inode: u64,
    /// Path as the process sees it, or a label.
    pub path: PathBuf,
    /// When it was mapped, in ns of CLOCK_MONOTONIC; 0 where that is not known.
    pub since_ns: u64,
}

impl MappingRecord {
    /// Whether it is memory without a file or a name.
    pub fn is_anonymous(&self) -> bool {
        // as /proc/PID/maps and as perf's events name it; of huge pages
        const NAMES: [&str; 3] = ["", "//anon", "/anon_hugepage"];
        let path = self.path.to_str().unwrap_or("?");
        NAMES.contains(&path) && (self.inode == 0 || path == NAMES[2])
    }

    /// Whether both are of one file, and this one's bytes are those before `next`'s, with as much between them as their
    /// addresses say.
    fn goes_on_at(&self, next: &Self) -> bool {
        let distance = |end: u64, start: u64| end.wrapping_sub(start);
        self.inode != 0
            && (self.device, self.inode) == (next.device, next.inode)
            && self.path == next.path
            && distance(next.offset, self.offset) == distance(next.range.start, self.range.start)
    }
}

/// The code that a living process maps now, in ascending order.
///
/// # Errors
/// Fails when /proc/PID/maps can't be read.
pub fn read(pid: u32) -> Result<Vec<MappingRecord>> {
    let path = proc::folder(pid).join("maps");
    let shown = path.display();
    let file = File::open(&path).with_context(|| format!("failed to open {shown}"))?;
    let mut lines = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.with_context(|| format!("failed to read {shown}"))?;
        lines.extend(parse_line(&line));
    }
    Ok(code(lines))
}

/// What of all mappings, of which each comes with whether it is code, is code. What is anonymous in the middle of a file's
/// is that file's: the program has copied it to larger pages.
fn code(mut lines: Vec<(MappingRecord, bool)>) -> Vec<MappingRecord> {
    for middle in 1..lines.len().saturating_sub(1) {
        let [(before, _), (here, is_code), (after, _)] = &lines[middle - 1..=middle + 1] else {
            continue;
        };
        let adjacent = before.range.end == here.range.start && here.range.end == after.range.start;
        if *is_code && here.is_anonymous() && adjacent && before.goes_on_at(after) {
            lines[middle].0 = MappingRecord {
                range: here.range.clone(),
                offset: before.offset + (here.range.start - before.range.start),
                ..before.clone()
            };
        }
    }
    let code = lines.into_iter().filter(|(_, is_code)| *is_code);
    code.map(|(record, _)| record).collect()
}

/// Whether a process maps code of the file with this inode at an address now.
pub fn maps_file_at(pid: u32, address: u64, inode: u64) -> bool {
    let records = read(pid).unwrap_or_default();
    let mut records = records.iter();
    records.any(|record| record.inode == inode && record.range.contains(&address))
}

/// Reads one line of /proc/PID/maps; tells, too, whether it maps code.
fn parse_line(line: &[u8]) -> Option<(MappingRecord, bool)> {
    let mut parts = line.splitn(6, |byte| *byte == b' ');
    let mut fields = parts
        .by_ref()
        .take(5)
        .map(str::from_utf8)
        .map_while(Result::ok);
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode = fields.next()?.parse().ok()?;
    let path = parts.next().unwrap_or_default().trim_ascii_start();
    let is_code = permissions.as_bytes().get(2) == Some(&b'x');
    let major = u32::from_str_radix(major, 16).ok()?;
    let minor = u32::from_str_radix(minor, 16).ok()?;
    let record = MappingRecord {
        range: u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?,
        offset,
        device: rustix::fs::makedev(major, minor),
        inode,
        path: proc::path(path.strip_suffix(b" (deleted)").unwrap_or(path), b"\n"),
        since_ns: 0,
    };
    Some((record, is_code))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_line_of_maps_is_understood() {
        let line = "7f0a-7f0f r-xp 00026000 fe:01 1234                       /lib/a b.so (deleted)";
        let (record, is_code) = parse_line(line.as_bytes()).unwrap();
        assert!(is_code);
        assert_eq!(record.range, 0x7f0a..0x7f0f);
        assert_eq!(record.offset, 0x26000);
        assert_eq!(record.inode, 1234);
        assert_eq!(record.device, rustix::fs::makedev(0xfe, 1));
        assert_eq!(record.path, Path::new("/lib/a b.so"));
    }

    #[test]
    fn a_name_that_is_no_utf_8_stays_what_it_is() {
        let line = b"7f0a-7f0f r-xp 00026000 fe:01 1234 /lib/caf\xe9\\012.so";
        let (record, _) = parse_line(line).unwrap();
        assert_eq!(record.path.as_os_str().as_bytes(), b"/lib/caf\xe9\n.so");
    }

    #[test]
    fn lines_without_code_or_sense_are_left_out() {
        for line in [
            "",
            "x",
            "0-1 rw-p 0 0:0 0 /a",
            "0-1 r-xp zz 0:0 0 /a",
            "1 r-xp",
        ] {
            let record = parse_line(line.as_bytes()).filter(|(_, is_code)| *is_code);
            assert!(record.is_none(), "{line}");
        }
    }

    #[test]
    fn code_that_was_copied_to_larger_pages_stays_its_files() {
        let read = |lines: &[&str]| {
            let lines = lines.iter();
            let records = code(
                lines
                    .filter_map(|line| parse_line(line.as_bytes()))
                    .collect(),
            );
            let shown = |record: &MappingRecord| (record.inode, record.offset);
            records.iter().map(shown).collect::<Vec<_>>()
        };
        let (before, after) = (
            "1000-2000 r-xp 00004000 fe:01 7 /bin/a",
            "6000-7000 r-xp 00009000 fe:01 7 /bin/a",
        );
        let between = "2000-6000 r-xp 00000000 00:00 0 ";
        assert_eq!(
            read(&[before, between, after]),
            [(7, 0x4000), (7, 0x5000), (7, 0x9000)]
        );
        // at the end of a program's code
        let data = after.replace("r-x", "r--");
        assert_eq!(read(&[before, between, &data]), [(7, 0x4000), (7, 0x5000)]);
        // what only lies beside code, or between others', is no part of it
        let elsewhere = "6000-7000 r-xp 0000a000 fe:01 7 /bin/a";
        let other = "6000-7000 r-xp 00009000 fe:01 8 /bin/b";
        let named = "2000-6000 r-xp 00000000 00:00 0 [anon:jit]";
        for lines in [
            &[before, between][..],
            &[before, between, elsewhere],
            &[before, between, other],
            &[before, named, after],
        ] {
            assert_eq!(read(lines)[1].0, 0, "{lines:?}");
        }
    }
}
