//! Stacks of programs without frame pointers, against what their own backtrace() says.
//! Needs root, and gcc with libc6-dev (for static builds too).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
/// Where each chain of the fixture runs, and how many there are.
const PLACES: [(&str, usize); 2] = [("main", 6), ("thread", 6)];

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

fn gcc(arguments: &[&str], output: &Path, sources: &[PathBuf]) {
    let status = Command::new("gcc")
        .args(["-O2", "-fomit-frame-pointer", "-Wall"])
        .arg("-o")
        .arg(output)
        .args(sources)
        .args(arguments)
        .status()
        .expect("the test needs gcc");
    assert!(status.success(), "failed to compile {}", output.display());
}

/// The addresses of each leaked block's stack, by the block's size, from a text report.
fn reported_stacks(report: &str) -> HashMap<usize, Vec<u64>> {
    let mut stacks: HashMap<usize, Vec<u64>> = HashMap::new();
    let mut size = None;
    for line in report.lines() {
        if let Some((bytes, _)) = line.trim().split_once(" bytes in 1 allocations from stack") {
            size = bytes.parse().ok();
        } else if let (Some(size), Some(frame)) = (size, line.strip_prefix("\t\t0x")) {
            let (address, rest) = frame.split_once('\t').unwrap_or((frame, ""));
            if !rest.contains("[inlined]") {
                let address = u64::from_str_radix(address, 16).unwrap();
                stacks.entry(size).or_default().push(address);
            }
        } else {
            size = None;
        }
    }
    stacks
}

/// Runs the fixture under memleak and compares all its stacks but for their first frames, which differ by the call.
fn check(program: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .args(["-o", "0", "-T", "1000", "-c"])
        .arg(program)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let stacks = reported_stacks(&text);
    let mut compared: HashMap<&str, usize> = HashMap::new();
    for line in text.lines().filter(|line| line.matches('|').count() == 2) {
        let fields: Vec<&str> = line.split('|').collect();
        let (chain, size, frames) = (fields[0], fields[1], fields[2]);
        let expected: Vec<u64> = frames
            .split_whitespace()
            .map(|frame| u64::from_str_radix(frame.trim_start_matches("0x"), 16).unwrap())
            .collect();
        let stack = &stacks[&size.parse::<usize>().unwrap()];
        assert_eq!(stack[1..], expected, "{chain}\n{text}\n{errors}");
        *compared
            .entry(chain.split(',').next().unwrap())
            .or_default() += 1;
    }
    assert_eq!(compared, HashMap::from(PLACES), "{text}");
}

#[test]
fn stacks_of_a_program_and_its_library_are_what_backtrace_says() {
    let directory = TempDir::new().unwrap();
    let (library, program) = (
        directory.path().join("libstack_chain.so"),
        directory.path().join("stack_chain"),
    );
    gcc(
        &["-shared", "-fPIC"],
        &library,
        &[fixture("stack_chain_lib.c")],
    );
    gcc(
        &["-Wl,-rpath,$ORIGIN"],
        &program,
        &[fixture("stack_chain.c"), library],
    );
    check(&program);
}

#[test]
fn stacks_of_static_programs_are_what_backtrace_says() {
    let directory = TempDir::new().unwrap();
    let sources = [fixture("stack_chain.c"), fixture("stack_chain_lib.c")];
    for flags in [&["-static"][..], &["-static-pie", "-fPIE"][..]] {
        let program = directory.path().join("stack_chain");
        gcc(flags, &program, &sources);
        check(&program);
    }
}
