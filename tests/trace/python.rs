//! Python: the frames that it runs are those that it tells of itself, in the places that they have among native ones.
//! The interpreter is the machine's own; those of other versions are in `slow`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::memleak::{ALL_STACKS, NEVER, attach, finish_well, last_report, start};
use crate::support::process::{Finished, Running};
use crate::support::pythons::{self, PYTHON, script};
use crate::support::report::{Held, Report, Stack};
use crate::support::{fixture, require_root};

/// Runs a script that shakes hands, attached; its last report, and the lines that it printed.
fn attached(options: &[&str], arguments: &[&str]) -> (Report, Finished, Vec<String>) {
    let mut target = Running::spawn(Command::new(PYTHON).args(arguments));
    target.expect("ready");
    let options = [options, &["-T", ALL_STACKS]].concat();
    let tracer = attach(target.pid(), &options, NEVER);
    target.send_line();
    target.expect("done");
    target.send_line();
    let lines = target.finish().stdout;
    let finished = finish_well(tracer);
    (last_report(&finished), finished, lines)
}

/// The symbols of a stack, those that Python runs with its mark.
fn symbols(stack: &Stack) -> Vec<String> {
    let name = |frame: &crate::support::report::Frame| match frame.module.as_str() {
        "python" => format!("{} [python]", frame.symbol),
        _ => frame.symbol.clone(),
    };
    stack.frames.iter().map(name).collect()
}

fn stack_of(report: &Report, bytes: u64) -> &Stack {
    let mut found = report.stacks.iter().filter(|of| of.held.bytes == bytes);
    found
        .next()
        .unwrap_or_else(|| panic!("no stack with {bytes} bytes: {report:#?}"))
}

#[test]
fn frames_of_a_running_process_are_those_that_python_tells() {
    require_root();
    let frames = script("frames.py");
    let (report, finished, lines) = attached(&[], &[&frames]);
    pythons::compare(&report, &lines);
    assert_eq!(lost(&finished), None, "{finished:#?}");
}

#[test]
fn a_command_that_ends_at_once_keeps_its_names() {
    require_root();
    let frames = script("frames.py");
    let options = ["-T", ALL_STACKS, NEVER];
    let running = start(&options, Path::new(PYTHON), &[&frames, "now"]);
    let finished = finish_well(running);
    pythons::compare(&last_report(&finished), &finished.stdout);
    assert_eq!(lost(&finished), None, "{finished:#?}");
}

/// What the last warning says of frames that are not shown.
fn lost(finished: &Finished) -> Option<&String> {
    let of_frames = |line: &&String| line.contains("of the interpreter's frames");
    finished.stderr.iter().rfind(of_frames)
}

/// Builds the extension; gives its folder.
fn extension() -> TempDir {
    let folder = TempDir::new().unwrap();
    let include = Command::new(PYTHON)
        .args([
            "-c",
            "import sysconfig; print(sysconfig.get_path('include'))",
        ])
        .output()
        .unwrap();
    let include = format!("-I{}", String::from_utf8(include.stdout).unwrap().trim());
    let source = script("leaky_extension.c");
    let flags = ["-g", "-O1", "-shared", "-fPIC", "-Wall", &include, "-o"];
    let status = Command::new("cc")
        .args(flags)
        .args([
            &folder.path().join("leaky_extension.so"),
            &PathBuf::from(source),
        ])
        .status()
        .unwrap();
    assert!(status.success(), "python3-dev is needed");
    folder
}

#[test]
fn frames_of_an_extension_stay_between_those_that_python_runs() {
    require_root();
    let folder = extension();
    let program = folder.path().join("uses.py");
    let text = "\
import leaky_extension, os

def inner():
    leaky_extension.leak(1234567)

def outer():
    leaky_extension.call(inner)

outer()
os._exit(0)
";
    fs::write(&program, text).unwrap();
    let program = program.to_str().unwrap();
    let options = ["-T", ALL_STACKS, NEVER];
    let finished = finish_well(start(&options, Path::new(PYTHON), &[program]));
    let report = last_report(&finished);
    let stack = stack_of(&report, 1_234_567);
    let all = symbols(stack);
    let wanted = [
        "leak",
        "inner [python]",
        "call",
        "outer [python]",
        "<module> [python]",
    ];
    let found: Vec<&String> = all
        .iter()
        .filter(|name| wanted.contains(&name.as_str()))
        .collect();
    assert_eq!(found, wanted, "{stack:#?}");
    assert!(
        !all.iter().any(|name| name == "_PyEval_EvalFrameDefault"),
        "{stack:#?}"
    );
    let places = stack.frames.iter().filter(|frame| frame.module == "python");
    let places: Vec<&str> = places.map(|frame| frame.location.as_str()).collect();
    let lines = [4, 7, 9].map(|line| format!("{program}:{line}"));
    assert_eq!(places, lines, "{stack:#?}");

    let options = ["-T", ALL_STACKS, "--hide-interpreter", NEVER];
    let finished = finish_well(start(&options, Path::new(PYTHON), &[program]));
    let report = last_report(&finished);
    let all = symbols(stack_of(&report, 1_234_567));
    assert_eq!(all[..5], wanted, "{report:#?}");
}

#[test]
fn stacks_are_chosen_and_suppressed_by_what_python_runs() {
    require_root();
    let frames = script("frames.py");
    let folder = TempDir::new().unwrap();
    let suppressions = folder.path().join("suppressions");
    fs::write(&suppressions, "leak:^Server.static$\n").unwrap();
    let suppressions = suppressions.to_str().unwrap();
    let json = folder.path().join("report.json");
    let outputs = [
        "--json",
        json.to_str().unwrap(),
        "--suppressions",
        suppressions,
    ];
    let options = [
        &["-T", ALL_STACKS, "--function", "Server.*"],
        &outputs[..],
        &[NEVER],
    ]
    .concat();
    let finished = finish_well(start(&options, Path::new(PYTHON), &[&frames, "now"]));
    let document: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let of_python = |frame: &&Value| frame["language"] == "python";
    let entries = document["entries"].as_array().unwrap();
    let mut functions: BTreeMap<&str, Held> = BTreeMap::new();
    for entry in entries {
        let frames = entry["frames"].as_array().unwrap();
        let method = frames.iter().filter(of_python).nth(1).unwrap();
        assert_eq!(method["file"], frames_file().to_str().unwrap());
        let held = functions
            .entry(method["symbol"].as_str().unwrap())
            .or_default();
        *held = Held::new(
            held.bytes + entry["bytes"].as_u64().unwrap(),
            held.count + entry["count"].as_u64().unwrap(),
        );
    }
    let names: Vec<&str> = functions.keys().copied().collect();
    let expected = ["Server.__getattr__", "Server.__init__", "Server.value"];
    assert_eq!(names, expected, "{finished:#?}");
    assert_eq!(functions["Server.__init__"].count, 2, "{finished:#?}");
    assert_eq!(document["suppressed"]["count"], 1, "{finished:#?}");
}

fn frames_file() -> PathBuf {
    script("frames.py").into()
}

#[test]
fn damaged_frames_are_left_alone_and_counted() {
    require_root();
    let version = Command::new(PYTHON).arg("--version").output().unwrap();
    assert!(
        version.stdout.starts_with(b"Python 3.11."),
        "the fixture damages what Python 3.11 keeps"
    );
    let library = fixture::c_with("scribble", &["-shared", "-fPIC"]);
    let scribble = script("scribble.py");
    let (report, finished, lines) = attached(&[], &[&scribble, library.to_str().unwrap()]);
    let mut expected: BTreeMap<&str, Held> = BTreeMap::new();
    for line in &lines {
        if let Some((kind, size)) = line.split_once(' ') {
            let held = expected.entry(kind).or_default();
            *held = Held::new(held.bytes + size.parse::<u64>().unwrap(), held.count + 1);
        }
    }
    assert_eq!(expected["scribbled"].count, 33);
    let of_python = |stack: &Stack| {
        let python = stack.frames.iter().filter(|frame| frame.module == "python");
        python.count()
    };
    let loops = |stack: &Stack| {
        let frames = stack.frames.iter();
        let loops = frames.filter(|frame| frame.symbol == "_PyEval_EvalFrameDefault");
        loops.count()
    };
    let held = |wanted: &dyn Fn(&Stack) -> bool| {
        report.sum(|stack| stack.frames[0].symbol == "scribble" && wanted(stack))
    };
    // native frames, and nothing of what was damaged
    assert_eq!(
        held(&|stack| loops(stack) == 1 && of_python(stack) == 0),
        expected["scribbled"],
        "{report:#?}"
    );
    // as many as a stack may have
    assert_eq!(
        held(&|stack| of_python(stack) > 100),
        expected["endless"],
        "{report:#?}"
    );
    let whole = held(&|stack| loops(stack) == 0 && (2..=3).contains(&of_python(stack)));
    let kinds = ["whole", "astray", "remembered"].map(|kind| expected[kind]);
    let bytes = kinds.iter().map(|held| held.bytes).sum();
    let sum = Held::new(bytes, kinds.iter().map(|held| held.count).sum());
    assert_eq!(whole, sum, "{report:#?}");
    let lost = lost(&finished).unwrap_or_else(|| panic!("nothing is said: {finished:#?}"));
    assert!(lost.contains("33 stacks without some"), "{lost}");
}
