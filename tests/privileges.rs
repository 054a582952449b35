//! What memleak can do with fewer privileges than root's, and what it says when they are too few.
//! Everything else about tracing is in trace.rs.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use common::memleak::{NEVER, finish_well, last_report};
use common::process::Running;
use common::report::Held;
use common::{fixture, memleak, require_root};
use tempfile::TempDir;

/// A user id that owns nothing.
const USER: &str = "65534";
const TWO_CAPABILITIES: &str = "+bpf,+perfmon";

/// Copies of memleak and a fixture where any user can reach them.
struct Reachable {
    _directory: TempDir,
    memleak: PathBuf,
    program: PathBuf,
}

fn reachable(fixture: PathBuf) -> Reachable {
    require_root();
    let directory = tempfile::tempdir_in("/tmp").expect("a directory");
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), open).expect("a mode");
    let copy = |from: PathBuf| {
        let to = directory.path().join(from.file_name().expect("a name"));
        fs::copy(from, &to).expect("a copy");
        to
    };
    Reachable {
        memleak: copy(PathBuf::from(env!("CARGO_BIN_EXE_memleak"))),
        program: copy(fixture),
        _directory: directory,
    }
}

/// A command as another user with these capabilities and no others.
fn as_user(capabilities: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
    if !capabilities.is_empty() {
        command.args(["--inh-caps", capabilities, "--ambient-caps", capabilities]);
    }
    command
}

#[test]
fn two_capabilities_trace_a_command() {
    let files = reachable(fixture::c("exit_now"));
    let mut command = as_user(TWO_CAPABILITIES);
    command.arg(&files.memleak).arg("--").arg(&files.program);
    let finished = finish_well(Running::spawn(&mut command));
    let report = last_report(&finished);
    assert_eq!(report.total(), Held::new(1234, 1), "{finished:#?}");
    assert_eq!(
        report.made_in("leak_and_leave"),
        Held::new(1234, 1),
        "{finished:#?}"
    );
}

#[test]
fn two_capabilities_trace_the_users_own_process() {
    let files = reachable(fixture::c("sizes"));
    let mut target = Running::spawn(as_user("").arg(&files.program));
    target.expect("ready");
    let mut command = as_user(TWO_CAPABILITIES);
    command
        .arg(&files.memleak)
        .args(["-v", "-p", &target.pid().to_string(), NEVER]);
    let tracer = memleak::armed(&mut command);
    target.send_line();
    target.expect("done");
    target.finish();
    let finished = finish_well(tracer);
    let report = last_report(&finished);
    assert_eq!(
        report.made_in("leak_large"),
        Held::each(10, 10_007),
        "{finished:#?}"
    );
    assert_eq!(report.total().count, 60, "{finished:#?}");
}

/// Kernels since 6.15 let CAP_PERFMON read another user's memory map; earlier ones do not.
#[test]
fn anothers_process_is_traced_or_the_missing_capability_is_named() {
    let files = reachable(fixture::c("sizes"));
    let mut target = memleak::ready(&fixture::c("sizes"), &[]);
    let mut command = as_user(TWO_CAPABILITIES);
    command
        .arg(&files.memleak)
        .args(["-v", "-p", &target.pid().to_string(), NEVER]);
    let mut tracer = Running::spawn(&mut command);
    let line = tracer.stderr_line("outcome", |line| {
        line.starts_with("memleak: armed") || line.contains("CAP_SYS_PTRACE")
    });
    if line.contains("CAP_SYS_PTRACE") {
        assert_eq!(tracer.finish().status.code(), Some(1));
        return;
    }
    target.send_line();
    target.expect("done");
    target.finish();
    let report = last_report(&finish_well(tracer));
    assert_eq!(
        report.total(),
        Held::new(30 * 17 + 20 * 1001 + 10 * 10_007, 60),
        "{report:#?}"
    );
}

#[test]
fn a_plain_user_is_told_what_is_missing() {
    let files = reachable(fixture::c("exit_now"));
    for capabilities in ["", "+bpf", "+perfmon"] {
        let mut command = as_user(capabilities);
        command.arg(&files.memleak).arg("--").arg(&files.program);
        let finished = Running::spawn(&mut command).finish();
        assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
        assert_eq!(finished.stderr.len(), 1, "{finished:#?}");
        let line = &finished.stderr[0];
        assert!(line.contains("root"), "{finished:#?}");
        assert!(
            line.contains("CAP_BPF") && line.contains("CAP_PERFMON"),
            "{finished:#?}"
        );
        assert!(finished.stdout.is_empty(), "{finished:#?}");
    }
}
