//! Processes that map more, and change it more often, than one would think: they are traced, with names, in time, and
//! within the descriptors that may be had.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::memleak::{self, ALL_STACKS, NEVER, finish_well, last_report};
use crate::support::process::Running;
use crate::support::report::{Held, is_header};
use crate::support::{fixture, require_root};

/// Files that may be open: fewer than a process maps.
const OPEN_FILES: &str = "176";
const MAPPED_FILES: &str = "400";

/// memleak, which may open few files.
fn limited(arguments: &[&str]) -> Command {
    let mut command = Command::new("prlimit");
    let limit = format!("--nofile={OPEN_FILES}");
    command.args([
        &limit,
        env!("CARGO_BIN_EXE_memleak"),
        "-v",
        "-T",
        ALL_STACKS,
    ]);
    command.args(arguments);
    command
}

/// A folder with more libraries than may be open, each a file of its own.
fn plugins() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let flags = ["-shared", "-fPIC", "-DLEAK=plugin_leak", "-DROOM=64"];
    let library = fixture::c_with("plugin", &flags);
    for number in 0..MAPPED_FILES.parse::<u32>().unwrap() {
        fs::copy(&library, folder.path().join(number.to_string())).unwrap();
    }
    (folder, fixture::c_with("many_plugins", &["-ldl"]))
}

fn descriptors(pid: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd"));
    open.expect("memleak lives").count()
}

#[test]
fn more_files_than_may_be_open_are_mapped_and_have_names() {
    require_root();
    let (folder, program) = plugins();
    let folder = folder.path().to_str().unwrap();
    let mut target = memleak::ready(&program, &[folder, MAPPED_FILES]);
    let tracer = memleak::armed(&mut limited(&["-p", &target.pid().to_string(), NEVER]));
    target.send_line();
    target.expect("done");
    finish_well(target);
    let finished = finish_well(tracer);
    let report = last_report(&finished);
    assert_eq!(
        report.made_in("plugin_leak"),
        Held::each(2, 777),
        "{finished:#?}"
    );
}

#[test]
fn more_files_than_may_be_open_are_mapped_by_a_command() {
    require_root();
    let (folder, program) = plugins();
    let folder = folder.path().to_str().unwrap();
    let program = program.to_str().unwrap();
    let mut command = limited(&[NEVER, "--", program, folder, MAPPED_FILES]);
    let mut running = Running::spawn(&mut command);
    running.expect("ready");
    running.send_line();
    running.expect("done");
    let finished = finish_well(running);
    let report = last_report(&finished);
    assert_eq!(
        report.made_in("plugin_leak"),
        Held::each(2, 777),
        "{finished:#?}"
    );
}

#[test]
fn too_few_descriptors_are_told_in_a_line() {
    require_root();
    let mut target = memleak::ready(&fixture::c("scattered_code"), &["1"]);
    let mut command = Command::new("prlimit");
    command.args(["--nofile=64", env!("CARGO_BIN_EXE_memleak")]);
    command.args(["-p", &target.pid().to_string(), NEVER]);
    let finished = Running::spawn(&mut command).finish();
    assert_eq!(finished.status.code(), Some(1));
    let [line] = &finished.stderr[..] else {
        panic!("{finished:#?}");
    };
    assert!(line.contains("ulimit -n"), "{line}");
    target.close_stdin();
    finish_well(target);
}

#[test]
fn a_command_gets_the_limit_of_descriptors_that_memleak_was_started_with() {
    require_root();
    for limits in ["--nofile=512:20000", "--nofile=1024"] {
        let show = |traced: bool| {
            let mut command = Command::new("prlimit");
            command.arg(limits);
            if traced {
                command.args([env!("CARGO_BIN_EXE_memleak"), NEVER, "--"]);
            }
            command.args(["grep", "^Max open files", "/proc/self/limits"]);
            let finished = Running::spawn(&mut command).finish();
            let mut lines = finished.stdout.into_iter();
            lines.find(|line| line.starts_with("Max open files"))
        };
        assert!(show(false).is_some());
        assert_eq!(show(true), show(false), "{limits}");
    }
}

#[test]
fn files_that_come_and_go_take_no_descriptors() {
    require_root();
    let folder = TempDir::new().unwrap();
    let folder = folder.path().to_str().unwrap();
    let mut target = memleak::ready(&fixture::c("code_comes_and_goes"), &[folder, "4000"]);
    let mut tracer = memleak::attach(target.pid(), &["-T", ALL_STACKS], "0.2");
    let before = descriptors(tracer.pid());
    target.send_line();
    target.expect("done");
    // what was mapped is known in the report that begins after that
    for _ in 0..3 {
        tracer.stdout_line("report", is_header);
    }
    let after = descriptors(tracer.pid());
    assert!(after < before + 140, "{before} and then {after}");
    finish_well(target);
    let finished = finish_well(tracer);
    let report = last_report(&finished);
    assert_eq!(
        report.made_in("leak_between"),
        Held::each(4, 3331),
        "{finished:#?}"
    );
    let lost = finished.stderr.iter().chain(&finished.stdout);
    let lost = lost.filter(|line| line.contains("code mapping")).count();
    assert_eq!(lost, 0, "no stack needs them: {finished:#?}");
}

#[test]
fn thirty_thousand_mappings_of_code_take_no_time() {
    require_root();
    let mut target = memleak::ready(&fixture::c("scattered_code"), &["30000"]);
    let begun = Instant::now();
    let tracer = memleak::attach(target.pid(), &["-T", ALL_STACKS], NEVER);
    target.send_line();
    target.expect("done");
    finish_well(target);
    let finished = finish_well(tracer);
    let taken = begun.elapsed();
    let report = last_report(&finished);
    assert_eq!(
        report.made_in("leak_beside_code"),
        Held::each(5, 2003),
        "{finished:#?}"
    );
    assert!(taken < Duration::from_secs(10), "{taken:?}");
}

/// Traces text that was copied, from the start or when it has been.
fn leaks_in_copied_text(program: &Path, late: bool) -> Held {
    let report = match late {
        true => memleak::last_report_attached(&[], program, &[]),
        false => memleak::last_report_of(&[], program, &[]),
    };
    report.made_in("leak_in_copied_text")
}

#[test]
fn text_that_was_copied_to_other_pages_keeps_its_names() {
    require_root();
    let program = fixture::c("huge_text");
    for late in [true, false] {
        assert_eq!(
            leaks_in_copied_text(&program, late),
            Held::each(3, 1109),
            "{late}"
        );
    }
}
