//! What memleak can do with fewer privileges than root's, and what it says when they are too few.
//! Everything else about tracing is in runs.rs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use crate::support::memleak::{NEVER, finish_well, last_report};
use crate::support::process::Running;
use crate::support::report::Held;
use crate::support::{fixture, memleak, require_root};
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

/// The recipe of the README: those of a group get the capabilities, others nothing.
#[test]
fn a_group_may_trace_with_the_programs_own_capabilities() {
    const GROUP: u32 = 54321;
    let files = reachable(fixture::c("exit_now"));
    chown(&files.memleak, None, Some(GROUP)).expect("a group");
    fs::set_permissions(&files.memleak, fs::Permissions::from_mode(0o750)).expect("a mode");
    let given = Command::new("setcap")
        .arg("cap_bpf,cap_perfmon=ep")
        .arg(&files.memleak)
        .status();
    assert!(given.expect("setcap runs").success());
    let run = |command: &mut Command| {
        command.arg(&files.memleak).arg("--").arg(&files.program);
        Running::spawn(command).finish()
    };
    let groups = format!("--groups={GROUP}");
    let finished = run(Command::new("setpriv").args(["--reuid", USER, "--regid", USER, &groups]));
    assert!(finished.status.success(), "{finished:#?}");
    let report = last_report(&finished);
    assert_eq!(report.total(), Held::new(1234, 1), "{finished:#?}");
    // a command's linker can't be watched with these two alone: docs/security.md
    let warning = finished.stderr.iter().find(|line| {
        line.contains("warning") && !line.contains("libraries that take the place of others")
    });
    assert_eq!(warning, None, "{finished:#?}");
    // setpriv keeps root's capabilities until it executes the program
    let refused = run(Command::new("runuser").args(["-u", "nobody", "--"]));
    let denied = |line: &String| line.contains("failed to execute") && line.contains("denied");
    assert!(refused.stderr.iter().any(denied), "{refused:#?}");
}

#[test]
fn a_command_runs_as_somebody() {
    let files = reachable(fixture::c("setuid"));
    for options in [&[][..], &["-f"]] {
        let options = [options, &["--user", "nobody", NEVER]].concat();
        let mut running = memleak::start(&options, &files.program, &[]);
        running.expect("ready");
        running.send_line();
        assert_eq!(running.expect_number("euid"), 65534);
        running.expect("done");
        let report = last_report(&finish_well(running));
        assert_eq!(report.made_in("leak_setuid"), Held::new(1601, 1));
    }
    let shown = "id -u; id -g; id -G; echo $HOME $USER $LOGNAME; grep CapEff /proc/self/status";
    let shell = |command: &mut Command| {
        let lines = Running::spawn(command.args(["sh", "-c", shown])).finish();
        let lines = lines.stdout.into_iter();
        let is_ours = |line: &String| !line.starts_with(['[', '\t']);
        let ours = lines
            .filter(is_ours)
            .filter(|line| !line.contains("tracing the resulting"));
        ours.filter(|line| !line.starts_with("Attaching"))
            .collect::<Vec<String>>()
    };
    let traced = shell(memleak::command().args(["--user", "nobody", NEVER, "--"]));
    let plain = shell(Command::new("runuser").args(["-u", "nobody", "--"]));
    assert_eq!(traced, plain);
    assert_eq!(traced.len(), 5, "{traced:?}");
}

#[test]
fn nobody_is_whom_a_command_cannot_run_as() {
    let files = reachable(fixture::c("exit_now"));
    let program = files.program.to_str().expect("text");
    let refused = |mut command: Command, expected: &str| {
        let finished = Running::spawn(&mut command).finish();
        assert_ne!(finished.status.code(), Some(0), "{finished:#?}");
        assert_eq!(finished.stderr, [expected], "{finished:#?}");
    };
    let mut command = memleak::command();
    command.args(["--user", "no such", "--", program]);
    refused(
        command,
        "memleak: failed to run the command as no such: there is no such user",
    );
    let mut command = memleak::command();
    command.args(["--user", "nobody", "-p", "1"]);
    refused(command, "memleak: --user is for a command (-c or --)");
    let mut command = as_user(TWO_CAPABILITIES);
    command
        .arg(&files.memleak)
        .args(["--user", "root", "--", program]);
    refused(
        command,
        "memleak: failed to run the command as root: only root may run it as somebody",
    );
}

#[test]
fn under_sudo_the_commands_rights_are_told_once() {
    let files = reachable(fixture::c("exit_now"));
    let told = |user: &str, options: &[&str]| {
        let mut command = memleak::command();
        command.args(options).arg("--").arg(&files.program);
        let finished = finish_well(Running::spawn(command.env("SUDO_USER", user)));
        let lines = finished.stderr.iter();
        lines
            .filter(|line| line.contains("root's rights"))
            .cloned()
            .collect::<Vec<_>>()
    };
    let expected = "memleak: the command has root's rights as well: --user alice runs it as alice";
    assert_eq!(told("alice", &[]), [expected]);
    assert!(told("alice", &["--user", "nobody"]).is_empty());
    assert!(told("root", &[]).is_empty());
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
