//! Runs the memleak that Cargo built for the tests, and waits for what it says.
//! What it reports is read by `report`; what it should report is each test's own matter.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::process::{Finished, Running};
use super::report::{self, Report};

/// An interval in seconds that never comes: the only report is the last one.
pub const NEVER: &str = "3600";

/// A number of stacks that no fixture reaches.
pub const ALL_STACKS: &str = "100000";

/// memleak without arguments, as if root itself had started it.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memleak"));
    command.env_remove("SUDO_USER");
    command
}

/// `memleak OPTIONS -- PROGRAM ARGUMENTS`, running.
pub fn start(options: &[&str], program: &Path, arguments: &[&str]) -> Running {
    let mut command = command();
    command.args(options).arg("--").arg(program).args(arguments);
    Running::spawn(&mut command)
}

/// `memleak -v OPTIONS -p PID INTERVAL`, with its probes in place.
pub fn attach(pid: u32, options: &[&str], interval: &str) -> Running {
    let mut command = command();
    command.arg("-v").args(options);
    command.args(["-p", &pid.to_string(), interval]);
    armed(&mut command)
}

/// Starts a memleak command that has -v among its options, and waits until its probes are in place.
pub fn armed(command: &mut Command) -> Running {
    let mut running = Running::spawn(command);
    running.stderr_line("`armed` line", |line| line.starts_with("memleak: armed"));
    running
}

/// Starts a program on its own, without memleak, and waits until it says "ready".
pub fn ready(program: &Path, arguments: &[&str]) -> Running {
    let mut command = Command::new(program);
    command.args(arguments);
    let mut running = Running::spawn(&mut command);
    running.expect("ready");
    running
}

/// Traces a fixture from its first instruction through its one phase to its end; its last report.
pub fn last_report_of(options: &[&str], program: &Path, arguments: &[&str]) -> Report {
    let options = [options, &["-T", ALL_STACKS, NEVER]].concat();
    let mut running = start(&options, program, arguments);
    running.expect("ready");
    running.send_line();
    running.expect("done");
    last_report(&finish_well(running))
}

/// Attaches to a fixture that waits, lets it run its one phase and end; memleak's last report.
pub fn last_report_attached(options: &[&str], program: &Path, arguments: &[&str]) -> Report {
    let options = [options, &["-T", ALL_STACKS]].concat();
    let mut target = ready(program, arguments);
    let tracer = attach(target.pid(), &options, NEVER);
    target.send_line();
    target.expect("done");
    assert!(target.finish().status.success());
    last_report(&finish_well(tracer))
}

/// Waits for the end of a run that has to end with status 0.
pub fn finish_well(running: Running) -> Finished {
    let finished = running.finish();
    assert!(finished.status.success(), "{finished:#?}");
    finished
}

/// The last report of a finished run.
pub fn last_report(finished: &Finished) -> Report {
    let mut reports = report::parse(&finished.stdout);
    reports
        .pop()
        .unwrap_or_else(|| panic!("no report at all: {finished:#?}"))
}

/// Runs memleak with arguments to its end, without input.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Finished {
    Running::spawn(command().args(arguments)).finish()
}

/// The process that reads files for a memleak.
///
/// # Panics
/// When there is none.
pub fn reader_of(memleak: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{memleak}/task/{memleak}/children"));
    let children = children.expect("the kernel lists children");
    let mut pids = children
        .split_whitespace()
        .map(|pid| pid.parse::<u32>().expect("a pid"));
    let is_reader = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name == "memleak-reader\n")
    };
    pids.find(is_reader).expect("a reader")
}
