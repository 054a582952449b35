//! Programs that translate the code of others, and would die of a breakpoint in it: valgrind, qemu's user mode. They must
//! live beside memleak, whoever is traced. What is reported of the traced is checked elsewhere, but for their being traced.

use std::path::Path;
use std::process::Command;

use crate::support::memleak::{self, ALL_STACKS, NEVER, armed, finish_well};
use crate::support::process::Running;
use crate::support::report::{Held, parse};
use crate::support::{fixture, require_root};
use rustix::process::Signal;

/// Ways to run a program that reads its code as data.
const TRANSLATORS: [&[&str]; 2] = [&["qemu-x86_64-static"], &["valgrind", "-q"]];

fn assert_lives(translator: &[&str], program: &Path) {
    let output = Command::new(translator[0])
        .args(&translator[1..])
        .arg(program)
        .output()
        .unwrap_or_else(|error| panic!("the test needs {translator:?}: {error}"));
    assert!(output.status.success(), "{translator:?}: {output:#?}");
}

/// memleak with options that make it trace `pids` among others, with its probes in place.
fn traced(options: &[&str]) -> Running {
    let mut command = memleak::command();
    command
        .args(["-v", "-o", "0", "-T", ALL_STACKS])
        .args(options)
        .arg(NEVER);
    armed(&mut command)
}

#[test]
fn translators_live_beside_whatever_is_traced() {
    require_root();
    let _machine = crate::support::serial();
    let program = fixture::c("large");
    let bystander = fixture::c("exit_now");
    let held = Held::new(900_003, 3);
    for choice in ["-f", "list", "--comm", "--system"] {
        let mut target = memleak::ready(&program, &[]);
        let mut other = memleak::ready(&program, &[]);
        let pids = [target.pid(), other.pid()].map(|pid| pid.to_string());
        let list = pids.join(",");
        let tracer = match choice {
            "-f" => traced(&["-f", "-p", &pids[0]]),
            "list" => traced(&["-p", &list]),
            "--comm" => traced(&["--comm", "large"]),
            _ => {
                let mut command = memleak::command();
                armed(command.args(["-v", "--system", NEVER]))
            }
        };
        for translator in TRANSLATORS {
            assert_lives(translator, &bystander);
        }
        // those that are traced still are, with probes for all again or of their own
        for process in [&mut target, &mut other] {
            process.send_line();
            process.expect("done");
        }
        tracer.signal(Signal::INT);
        // of all processes nothing is traced beside a translator, which is said
        match choice {
            "--system" => {
                let finished = tracer.finish();
                let said = |line: &String| line.contains("nothing is traced until");
                assert!(finished.stderr.iter().any(said), "{finished:#?}");
            }
            _ => {
                let finished = finish_well(tracer);
                let report = parse(&finished.stdout).pop().expect("a report");
                let found = report.made_by(target.pid(), "large_malloc");
                assert_eq!(found, held, "{choice}: {finished:#?}");
            }
        }
        assert!(target.finish().status.success());
        assert!(other.finish().status.success());
    }
}

#[test]
fn a_translator_that_runs_already_is_found_before_probes_are_for_everyone() {
    require_root();
    let _machine = crate::support::serial();
    let mut command = Command::new("valgrind");
    command.arg("-q").arg(fixture::c("large"));
    let mut translated = Running::spawn(&mut command);
    translated.expect("ready");
    let mut tracer = traced(&["--comm", "nobody"]);
    translated.send_line();
    translated.expect("done");
    let finished = translated.finish();
    assert!(finished.status.success(), "{finished:#?}");
    tracer.catch_up();
    tracer.signal(Signal::INT);
    let finished = finish_well(tracer);
    let warned = |line: &String| line.contains("memcheck-") && line.contains("would die of probes");
    assert!(finished.stderr.iter().any(warned), "{finished:#?}");
}

#[test]
fn a_translator_is_refused_as_the_target() {
    require_root();
    let _machine = crate::support::serial();
    let program = fixture::c("large");
    let program = program.to_str().expect("text");
    for command in [["valgrind", program], ["qemu-x86_64-static", program]] {
        let finished = memleak::run([&["--"][..], &command].concat());
        assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
        assert_eq!(finished.stderr.len(), 1, "{finished:#?}");
        assert!(
            finished.stderr[0].contains("translates the code"),
            "{finished:#?}"
        );
    }
    let mut command = Command::new("qemu-x86_64-static");
    let mut translated = Running::spawn(command.arg(program));
    translated.expect("ready");
    let finished = memleak::run(["-p", &translated.pid().to_string()]);
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    assert!(
        finished.stderr[0].contains("runs under qemu-"),
        "{finished:#?}"
    );
    assert!(translated.finish().status.success());
}

/// A traced command that becomes a translator lives, and is not traced from then on.
#[test]
fn a_command_that_executes_a_translator_lives() {
    require_root();
    let _machine = crate::support::serial();
    let program = fixture::c("exit_now");
    for translator in TRANSLATORS {
        for options in [&[][..], &["-f"]] {
            let mut command = memleak::command();
            command
                .args(options)
                .args(["--", "env"])
                .args(translator)
                .arg(&program);
            let finished = Running::spawn(&mut command).finish();
            assert!(finished.status.success(), "{finished:#?}");
            let told = |line: &String| line.contains("translates the code that it runs");
            assert!(finished.stderr.iter().any(told), "{finished:#?}");
        }
    }
    // what the fixture is without it
    assert!(!last_report_of_exit_now(&program).stacks.is_empty());
}

fn last_report_of_exit_now(program: &Path) -> crate::support::report::Report {
    let finished = finish_well(memleak::start(&["-T", ALL_STACKS, NEVER], program, &[]));
    parse(&finished.stdout).pop().expect("a report")
}
