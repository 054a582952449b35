//! Names for code that a process has generated: the perf maps that JIT compilers write, in the process's own /tmp.
//! What it maps from files is named elsewhere.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::rc::Rc;

use super::separate::Folders;
use crate::files::proc;
use crate::files::{Opened, owners};

/// Bytes of a map that are read at the most.
const MOST_BYTES: u64 = 64 << 20;

/// Functions of a process that are remembered at the most.
const MOST_FUNCTIONS: usize = 1 << 20;

/// Bytes before the place where reading went no further, by which a map that was only added to is recognized.
const MARK: usize = 64;

/// The code that one process has generated.
pub struct PerfMap {
    pid: u32,
    folders: Rc<Folders>,
    path: PathBuf,
    /// Whose file it may be, by user id, besides root's.
    owners: Vec<u32>,
    read: Read,
    code: Code,
}

/// How far a map was read.
#[derive(Default)]
struct Read {
    identity: (u64, u64),
    /// Bytes that were there when it was read last.
    size: u64,
    /// Bytes up to the end of the last whole line.
    done: u64,
    /// The last bytes of these.
    mark: Vec<u8>,
}

impl PerfMap {
    /// Nothing is read yet; the process must be alive.
    pub fn of(pid: u32, folders: Rc<Folders>) -> Self {
        let name = format!("tmp/perf-{}.map", pid_in_namespace(pid).unwrap_or(pid));
        Self {
            pid,
            folders,
            path: PathBuf::from(name),
            owners: Vec::new(),
            read: Read::default(),
            code: Code::default(),
        }
    }

    /// Reads what has been written since. What was read before stays when the file has gone.
    pub fn refresh(&mut self) {
        // it may have changed its user since, and have gone since
        let owners = owners(self.pid);
        if !owners.is_empty() {
            self.owners = owners;
        }
        let found = self.folders.root().and_then(|root| {
            let found = root.open_made_by(&self.owners, &self.path, u64::MAX);
            found.ok()
        });
        if let Some(found) = found
            && (found.identity, found.size) != (self.read.identity, self.read.size)
        {
            // what can't be read tells no names
            let _ = self.read_on(&found);
        }
    }

    fn read_on(&mut self, found: &Opened) -> io::Result<()> {
        if !self.read.continues(found) {
            self.read = Read::default();
        }
        let read = &mut self.read;
        (read.identity, read.size) = (found.identity, found.size);
        let mut lines = BufReader::new(found.file());
        lines.seek(SeekFrom::Start(read.done))?;
        let mut line = Vec::new();
        while read.done < MOST_BYTES {
            line.clear();
            let most = MOST_BYTES - read.done;
            io::Read::take(&mut lines, most).read_until(b'\n', &mut line)?;
            // its end is still to be written
            if line.pop() != Some(b'\n') {
                break;
            }
            read.done += line.len() as u64 + 1;
            self.code.add(&String::from_utf8_lossy(&line));
        }
        read.mark = vec![0; MARK.min(usize::try_from(read.done).unwrap_or(MARK))];
        let begin = read.done - read.mark.len() as u64;
        found.file().read_exact_at(&mut read.mark, begin)
    }

    /// The name of the function that holds an address, and the distance from its first byte.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        self.code.find(address)
    }
}

impl Read {
    /// Whether a file is the one that was read, with more behind what was read, as far as its last bytes tell.
    fn continues(&self, file: &Opened) -> bool {
        let mut mark = vec![0; self.mark.len()];
        let begin = self.done - mark.len() as u64;
        file.identity == self.identity
            && file.size >= self.done
            && file.file().read_exact_at(&mut mark, begin).is_ok()
            && mark == self.mark
    }
}

/// The process's number in its own namespace, which is the one in the map's name.
fn pid_in_namespace(pid: u32) -> Option<u32> {
    let status = proc::text(format!("/proc/{pid}/status")).ok()?;
    let numbers = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().next_back()?.parse().ok()
}

/// Functions by their first byte, none overlapping.
#[derive(Default)]
struct Code(BTreeMap<u64, Function>);

struct Function {
    end: u64,
    name: String,
}

impl Code {
    /// Adds a map's line, `START SIZE NAME` in hexadecimal. Memory is used again, so later lines are right.
    fn add(&mut self, line: &str) {
        if let Some((start, end, name)) = parse(line) {
            self.remove(start, end);
            if self.0.len() < MOST_FUNCTIONS {
                let name = name.to_owned();
                self.0.insert(start, Function { end, name });
            }
        }
    }

    fn remove(&mut self, start: u64, end: u64) {
        let overlapping = self.0.range(..end).rev();
        let gone: Vec<u64> = overlapping
            .take_while(|(_, function)| function.end > start)
            .map(|(start, _)| *start)
            .collect();
        for start in gone {
            self.0.remove(&start);
        }
    }

    fn find(&self, address: u64) -> Option<(&str, u64)> {
        let (start, function) = self.0.range(..=address).next_back()?;
        (address < function.end).then(|| (function.name.as_str(), address - start))
    }
}

/// A line of a perf map: where a function begins and ends, and its name; none for what is no such line.
pub fn parse(line: &str) -> Option<(u64, u64, &str)> {
    let (start, rest) = line.split_once(' ')?;
    let (size, name) = rest.split_once(' ')?;
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let (start, size) = (number(start)?, number(size)?);
    (size > 0).then_some((start, start.checked_add(size)?, name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::files::Root;

    #[test]
    fn functions_are_found_and_later_ones_replace_those_they_cover() {
        let mut code = Code::default();
        for line in [
            "1000 100 first one",
            "0x1100 80 second",
            "nonsense",
            "2000 0 empty",
            "ffffffffffffffff 10 wraps",
        ] {
            code.add(line);
        }
        assert_eq!(code.find(0x1000), Some(("first one", 0)));
        assert_eq!(code.find(0x10ff), Some(("first one", 0xff)));
        assert_eq!(code.find(0x1100), Some(("second", 0)));
        assert_eq!(code.find(0x1180), None);
        assert_eq!(code.find(0xfff), None);
        code.add("1080 100 third");
        assert_eq!(code.find(0x1000), None);
        assert_eq!(code.find(0x117f), Some(("third", 0xff)));
    }

    /// The map of a process whose `/` is a folder.
    fn map_in(root: &std::path::Path) -> (PerfMap, PathBuf) {
        fs::create_dir(root.join("tmp")).unwrap();
        let pid = std::process::id();
        let folders = Folders::in_root(Root::at(root).unwrap());
        let path = root.join(format!("tmp/perf-{pid}.map"));
        (PerfMap::of(pid, Rc::new(folders)), path)
    }

    #[test]
    fn a_map_is_read_as_it_grows_and_kept_when_it_has_gone() {
        let root = tempfile::tempdir().unwrap();
        let (mut map, path) = map_in(root.path());
        map.refresh();
        assert_eq!(map.find(0x1000), None);
        fs::write(&path, "1000 10 one\n2000 10 tw").unwrap();
        map.refresh();
        assert_eq!(map.find(0x2000), None, "its line is not whole");
        fs::write(&path, "1000 10 one\n2000 10 two\n").unwrap();
        map.refresh();
        fs::remove_file(&path).unwrap();
        map.refresh();
        assert_eq!(map.find(0x1001), Some(("one", 1)));
        assert_eq!(map.find(0x2001), Some(("two", 1)));
    }

    #[test]
    fn a_map_that_was_written_anew_is_read_anew() {
        let root = tempfile::tempdir().unwrap();
        let (mut map, path) = map_in(root.path());
        fs::write(&path, "1000 10 one\n").unwrap();
        map.refresh();
        fs::write(&path, "1000 10 other\n3000 10 three\n").unwrap();
        map.refresh();
        assert_eq!(map.find(0x1000), Some(("other", 0)));
        assert_eq!(map.find(0x3000), Some(("three", 0)));
    }

    #[test]
    fn a_map_without_an_end_is_read_to_its_limit() {
        let root = tempfile::tempdir().unwrap();
        let (mut map, path) = map_in(root.path());
        fs::write(&path, "1000 10 one\n").unwrap();
        fs::File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_len(10 << 30)
            .unwrap();
        map.refresh();
        assert_eq!(map.find(0x1000), Some(("one", 0)));
        assert!(map.read.done <= MOST_BYTES);
    }
}
