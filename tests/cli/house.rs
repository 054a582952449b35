//! The house's order: which room may import which, as ARCHITECTURE.md states it.
//! What a room does is not looked at.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms in the order of ARCHITECTURE.md, lowest first.
fn rooms() -> Vec<String> {
    let text = include_str!("../../ARCHITECTURE.md");
    let (_, table) = text.split_once("| room | what lives there |\n").unwrap();
    let rows = table
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'));
    let name = |row: &str| row.split('`').nth(1).unwrap().to_owned();
    rows.map(name).collect()
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every Rust file below a folder.
fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The rooms that a text names behind `crate::`.
fn imports(text: &str) -> BTreeSet<&str> {
    text.split("crate::")
        .skip(1)
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            &rest[..end.unwrap_or(rest.len())]
        })
        .collect()
}

#[test]
fn rooms_import_only_what_stands_above_them() {
    let rooms = rooms();
    let place = |name: &str| rooms.iter().position(|room| room == name);
    let mut files = Vec::new();
    rust_files(&sources(), &mut files);
    let mut wrong = Vec::new();
    for path in files {
        let name = path.strip_prefix(sources()).unwrap();
        let room = name.iter().next().unwrap().to_str().unwrap();
        let room = room.trim_end_matches(".rs");
        let tests = name.file_stem().is_some_and(|stem| stem == "tests");
        if ["lib", "main"].contains(&room) || tests {
            continue;
        }
        let Some(own) = place(room) else {
            panic!("ARCHITECTURE.md has no room {room}");
        };
        let text = fs::read_to_string(&path).unwrap();
        // tests beside the code may look anywhere
        let code = text.split("#[cfg(test)]").next().unwrap();
        for import in imports(code) {
            if import != room && place(import).is_none_or(|other| other >= own) {
                wrong.push(format!("{} imports {import}", name.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_room_is_declared_and_stands_in_the_plan() {
    let library = fs::read_to_string(sources().join("lib.rs")).unwrap();
    let declared: BTreeSet<String> = library
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect();
    assert_eq!(declared, rooms().into_iter().collect());
}

#[test]
fn every_file_says_what_lives_in_it() {
    let mut files = Vec::new();
    rust_files(&sources(), &mut files);
    let silent: Vec<PathBuf> = files
        .into_iter()
        .filter(|path| !fs::read_to_string(path).unwrap().starts_with("//! "))
        .collect();
    assert!(silent.is_empty(), "{silent:#?}");
}
