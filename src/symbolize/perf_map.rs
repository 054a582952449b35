//! Names for code that a process has generated: the perf maps that JIT compilers write, in the process's own /tmp.
//! What it maps from files is named elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::target::proc;

/// Bytes of a map that are read at the most.
const MOST_BYTES: u64 = 256 << 20;

/// The code that one process has generated.
pub struct PerfMap {
    candidates: Vec<PathBuf>,
    /// Bytes that were there when it was read last.
    read_bytes: u64,
    code: Code,
}

impl PerfMap {
    /// Nothing is read yet. `roots` are what `/` means, to the process first; the process must be alive.
    pub fn of(pid: u32, roots: &[PathBuf]) -> Self {
        let name = format!("tmp/perf-{}.map", pid_in_namespace(pid).unwrap_or(pid));
        Self {
            candidates: roots.iter().map(|root| root.join(&name)).collect(),
            read_bytes: 0,
            code: Code::default(),
        }
    }

    /// Reads what has been written since. What was read before stays when the file has gone.
    pub fn refresh(&mut self) {
        let found = self.candidates.iter().find_map(|path| open(path));
        let Some((file, length)) = found.filter(|(_, length)| *length != self.read_bytes) else {
            return;
        };
        let mut text = Vec::new();
        if file.take(MOST_BYTES).read_to_end(&mut text).is_ok() {
            self.read_bytes = length;
            self.code.add(&String::from_utf8_lossy(&text));
        }
    }

    /// The name of the function that holds an address, and the distance from its first byte.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        self.code.find(address)
    }
}

fn open(path: &Path) -> Option<(File, u64)> {
    let file = File::open(path).ok()?;
    let found = file.metadata().ok()?;
    found.is_file().then_some((file, found.len()))
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
    /// Adds a map's lines, `START SIZE NAME` in hexadecimal. Memory is used again, so later lines are right.
    fn add(&mut self, text: &str) {
        for line in text.lines() {
            if let Some((start, end, name)) = parse(line) {
                self.remove(start, end);
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

fn parse(line: &str) -> Option<(u64, u64, &str)> {
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

    #[test]
    fn functions_are_found_and_later_ones_replace_those_they_cover() {
        let mut code = Code::default();
        code.add("1000 100 first one\n0x1100 80 second\nnonsense\n2000 0 empty\nffffffffffffffff 10 wraps\n");
        assert_eq!(code.find(0x1000), Some(("first one", 0)));
        assert_eq!(code.find(0x10ff), Some(("first one", 0xff)));
        assert_eq!(code.find(0x1100), Some(("second", 0)));
        assert_eq!(code.find(0x1180), None);
        assert_eq!(code.find(0xfff), None);
        code.add("1080 100 third\n");
        assert_eq!(code.find(0x1000), None);
        assert_eq!(code.find(0x117f), Some(("third", 0xff)));
    }

    #[test]
    fn a_map_is_read_as_it_grows_and_kept_when_it_has_gone() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("tmp")).unwrap();
        let pid = std::process::id();
        let mut map = PerfMap::of(pid, &[root.path().to_owned()]);
        let path = root.path().join(format!("tmp/perf-{pid}.map"));
        map.refresh();
        assert_eq!(map.find(0x1000), None);
        fs::write(&path, "1000 10 one\n").unwrap();
        map.refresh();
        fs::write(&path, "1000 10 one\n2000 10 two\n").unwrap();
        map.refresh();
        fs::remove_file(&path).unwrap();
        map.refresh();
        assert_eq!(map.find(0x1001), Some(("one", 1)));
        assert_eq!(map.find(0x2001), Some(("two", 1)));
    }
}
