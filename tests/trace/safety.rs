//! Programs that probes could hurt: exceptions, filters of system calls, Go. They run on as if nobody had looked.
//! What is refused for other reasons is in errors.rs.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::support::memleak::{self, NEVER, finish_well, last_report};
use crate::support::process::Running;
use crate::support::report::Held;
use crate::support::{fixture, kernel_log, require_root};

/// Attaches and detaches that a target has to survive.
const CYCLES: usize = 200;

fn ready_with_library(program: &Path, library: &str) -> Running {
    let mut command = Command::new(program);
    let mut target = Running::spawn(command.env("LD_PRELOAD", library));
    target.expect("ready");
    target
}

/// Lets a program's `new` fail under trace; its exception has to arrive.
fn assert_caught(mut target: Running) {
    let tracer = memleak::attach(target.pid(), &[], NEVER);
    target.send_line();
    target.expect("caught");
    target.expect("done");
    assert!(target.finish().status.success());
    let finished = finish_well(tracer);
    let report = last_report(&finished);
    assert_eq!(
        report.made_in("leak_after"),
        Held::each(3, 1301),
        "{report:#?}"
    );
    let told = |line: &String| line.contains("1 C++ allocation not followed");
    assert!(finished.stderr.iter().any(told), "{finished:#?}");
}

#[test]
fn an_operator_new_that_fails_still_throws() {
    require_root();
    let program = fixture::cpp("throws");
    for library in ["libjemalloc.so.2", "libtcmalloc.so.4"] {
        assert_caught(ready_with_library(&program, library));
    }
}

#[test]
fn under_a_limit_of_the_address_space_every_new_can_throw() {
    require_root();
    let program = fixture::cpp("operators");
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -v 2000000; LD_PRELOAD=libjemalloc.so.2 exec \"$0\"",
    ]);
    let mut target = Running::spawn(command.arg(&program));
    target.expect("ready");
    let tracer = memleak::attach(target.pid(), &[], NEVER);
    target.send_line();
    target.expect("done");
    assert!(target.finish().status.success());
    let finished = finish_well(tracer);
    let report = last_report(&finished);
    // nothrow forms return, and so does malloc
    assert_eq!(
        report.through("leak_nothrow"),
        Held::new(3005, 1),
        "{report:#?}"
    );
    assert_eq!(
        report.through("from_malloc"),
        Held::new(5001, 1),
        "{report:#?}"
    );
    assert_eq!(report.through("leak_new"), Held::default(), "{report:#?}");
    let told = |line: &String| line.contains(" C++ allocations not followed");
    assert!(finished.stderr.iter().any(told), "{finished:#?}");
}

/// Attaches and detaches again and again; then one leak is found, and the target ends as it should.
fn assert_survives(mut target: Running, function: &str, size: u64) {
    let pid = target.pid().to_string();
    for cycle in 0..CYCLES {
        let finished = memleak::run(["-p", &pid, "0.001", "1"]);
        assert!(finished.status.success(), "cycle {cycle}: {finished:#?}");
        if cycle % 20 == 0 {
            target.send_line();
            target.expect("done");
        }
    }
    let tracer = memleak::attach(target.pid(), &[], NEVER);
    target.send_line();
    target.expect("done");
    assert!(target.finish().status.success());
    let report = last_report(&finish_well(tracer));
    assert_eq!(report.through(function), Held::new(size, 1), "{report:#?}");
}

#[test]
fn a_program_that_filters_its_system_calls_lives_on() {
    require_root();
    let target = memleak::ready(&fixture::c("filtered"), &[]);
    assert_survives(target, "leak_filtered", 1501);
}

#[test]
fn a_command_that_filters_its_system_calls_is_traced() {
    require_root();
    let report = memleak::last_report_of(&[], &fixture::c("filtered"), &[]);
    assert_eq!(
        report.through("leak_filtered"),
        Held::new(1501, 1),
        "{report:#?}"
    );
}

/// Before a command starts, a filtered process of memleak's own tries a return probe; nobody's business but memleak's.
#[test]
fn no_line_in_the_kernel_log_tells_of_a_trace() {
    require_root();
    let before: HashSet<String> = kernel_log::read().into_iter().collect();
    let report = memleak::last_report_of(&[], &fixture::c("filtered"), &[]);
    assert_eq!(report.through("leak_filtered"), Held::new(1501, 1));
    let lines: Vec<String> = kernel_log::read()
        .into_iter()
        .filter(|line| line.contains(env!("CARGO_BIN_EXE_memleak")) && !before.contains(line))
        .collect();
    assert!(lines.is_empty(), "{lines:#?}");
}

#[test]
fn a_setuid_command_runs_with_its_owners_rights() {
    require_root();
    const NOBODY: u32 = 65534;
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("setuid");
    std::fs::copy(fixture::c("setuid"), &program).expect("a copy");
    std::os::unix::fs::chown(&program, Some(NOBODY), None).expect("an owner");
    let mode = std::fs::Permissions::from_mode(0o4755);
    std::fs::set_permissions(&program, mode).expect("a mode");
    for options in [&["-T", "100", NEVER][..], &["-f", "-T", "100", NEVER]] {
        let mut running = memleak::start(options, &program, &[]);
        running.expect("ready");
        running.send_line();
        assert_eq!(running.expect_number("euid"), u64::from(NOBODY));
        running.expect("done");
        let report = last_report(&finish_well(running));
        let expected = Held::new(1601, 1);
        assert_eq!(report.through("leak_setuid"), expected, "{report:#?}");
        assert_eq!(report.total(), expected, "{report:#?}");
    }
}

/// What a return probe replaces, a sanitizer reads as its own stack trace: that is said.
#[test]
fn a_program_that_takes_stacks_of_its_own_is_warned_of() {
    require_root();
    let program = fixture::c_with("known_leak", &["-fsanitize=address"]);
    let mut command = memleak::command();
    // its own report would end it with another status
    command
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .args([NEVER, "--"]);
    let finished = finish_well(Running::spawn(command.arg(&program)));
    let told = |line: &String| {
        line.contains("AddressSanitizer, whose own stack traces show memleak's return probes")
    };
    assert!(finished.stderr.iter().any(told), "{finished:#?}");
}

#[test]
fn a_go_program_lives_on_and_its_c_code_is_seen() {
    require_root();
    let target = memleak::ready(&fixture::go("go_cgo", &["CGO_ENABLED=1"]), &[]);
    assert_survives(target, "leak_in_c", 1701);
}

#[test]
fn of_a_go_program_only_its_c_code_is_probed() {
    require_root();
    let program = fixture::go("go_cgo", &["CGO_ENABLED=1"]);
    let refused = |options: &[&str], program: &Path| -> String {
        let arguments = options
            .iter()
            .map(Path::new)
            .chain([Path::new("--"), program]);
        let finished = memleak::run(arguments);
        assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
        finished.stderr.join("\n")
    };
    let line = refused(&["--alloc", "main.grow:size=1"], &program);
    assert!(line.contains("main.grow is a Go function"), "{line}");

    let pure = fixture::go("go_pure", &["CGO_ENABLED=0"]);
    let line = refused(&[], &pure);
    assert!(line.contains("is a Go program without C code"), "{line}");

    let mut target = memleak::ready(&program, &[]);
    let tracer = memleak::attach(target.pid(), &[], NEVER);
    target.send_line();
    target.expect("done");
    assert!(target.finish().status.success());
    let finished = finish_well(tracer);
    let warned = |line: &String| line.contains("only what its C code allocates is seen");
    assert!(finished.stderr.iter().any(warned), "{finished:#?}");
}
