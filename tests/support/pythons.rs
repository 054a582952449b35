//! What Python tells of its own frames, compared with what a report has. Scripts are those of tests/fixtures.
//! Runs nothing.

use std::collections::BTreeMap;
use std::path::Path;

use super::report::Report;

/// The machine's own interpreter.
pub const PYTHON: &str = "/usr/bin/python3";

/// Bytes of names and of files that are kept at the least; others are cut.
const KEPT: usize = 160;

/// The path of a fixture.
pub fn script(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let path = folder.join(name);
    path.to_str().expect("a path in Unicode").to_owned()
}

/// Compares the frames of each block that frames.py has told of.
///
/// # Panics
/// When one differs.
pub fn compare(report: &Report, lines: &[String]) {
    let mut told: BTreeMap<Vec<String>, u64> = BTreeMap::new();
    for line in lines {
        let Some(line) = line.strip_prefix("kept ") else {
            continue;
        };
        let (size, frames) = line.split_once(' ').expect("a size and frames");
        let frames = frames.split('\t').map(comparable).collect();
        *told.entry(frames).or_default() += size.parse::<u64>().expect("a size");
    }
    assert!(told.len() > 25, "{told:#?}");
    let mut found: BTreeMap<Vec<String>, u64> = BTreeMap::new();
    for stack in &report.stacks {
        let python = stack.frames.iter().filter(|frame| frame.module == "python");
        let frames =
            python.map(|frame| comparable(&format!("{}@{}", frame.symbol, frame.location)));
        *found.entry(frames.collect()).or_default() += stack.held.bytes;
    }
    for (frames, bytes) in told {
        let bytes_found = found.get(&frames);
        let near: Vec<_> = found.iter().filter(|(_, held)| **held == bytes).collect();
        assert_eq!(bytes_found, Some(&bytes), "{frames:#?}, but {near:#?}");
    }
}

/// A frame without what is cut of long names, and of the beginning of long files.
fn comparable(frame: &str) -> String {
    let (name, place) = frame.split_once('@').unwrap_or((frame, ""));
    let (file, line) = place.rsplit_once(':').unwrap_or((place, ""));
    let name: String = name.chars().take(KEPT).collect();
    let skipped = file.chars().count().saturating_sub(KEPT);
    let file: String = file.chars().skip(skipped).collect();
    format!("{name}@{file}:{line}")
}
