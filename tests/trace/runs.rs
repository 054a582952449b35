//! The main job on real processes: starting, attaching, reporting in time, ending well, naming what it found.
//! Exact figures in hard cases are in exact_*.rs, errors in errors.rs, other privileges in privileges.rs.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use crate::support::memleak::{
    self, ALL_STACKS, NEVER, attach, finish_well, last_report, ready, start,
};
use crate::support::process::Running;
use crate::support::report::{Held, Report, is_header, parse};
use crate::support::{fixture, require_root};
use rustix::process::Signal;

#[test]
fn the_eight_kinds_say_30000_bytes() {
    require_root();
    let program = &fixture::c("kinds");
    // Side by side, since each takes the two seconds of its two reports.
    std::thread::scope(|scope| {
        for kind in [
            "malloc",
            "calloc",
            "realloc",
            "posix_memalign",
            "valloc",
            "memalign",
            "pvalloc",
            "aligned_alloc",
        ] {
            scope.spawn(move || one_kind_says_30000_bytes(program, kind));
        }
    });
}

fn one_kind_says_30000_bytes(program: &Path, kind: &str) {
    let command = format!("{} {kind} 30000", program.display());
    let mut running =
        Running::spawn(memleak::command().args(["-c", &command, "-T", "1", "1", "2"]));
    running.stdout_line("first report", is_header);
    running.send_line();
    let finished = running.wait();
    let report = last_report(&finished);
    assert_eq!(
        report.total(),
        Held::new(30_000, 1),
        "{kind}: {finished:#?}"
    );
    let made = report.made_in(&format!("leak_{kind}"));
    assert_eq!(made, Held::new(30_000, 1), "{finished:#?}");
}

#[test]
fn a_program_that_lives_a_millisecond_gets_a_named_report() {
    require_root();
    let program = fixture::c("exit_now");
    let line = fixture::line_of("exit_now.c", "LEAK LINE");
    // Often, for it is a race that must not be one.
    for _ in 0..10 {
        let finished = memleak::run([Path::new("-c"), &program]);
        assert!(finished.status.success(), "{finished:#?}");
        let report = last_report(&finished);
        assert_eq!(report.total(), Held::new(1234, 1), "{finished:#?}");
        let frame = &report.stacks[0].frames[0];
        assert_eq!(frame.symbol, "leak_and_leave", "{finished:#?}");
        assert_eq!(frame.module, "exit_now", "{finished:#?}");
        assert!(
            frame.location.ends_with(&format!("exit_now.c:{line}")),
            "{finished:#?}"
        );
    }
}

#[test]
fn a_command_gets_its_arguments_as_a_shell_would_split_them() {
    require_root();
    let directory = tempfile::tempdir().expect("a directory");
    let long = directory.path().join("a-directory-with-a-rather-long-name");
    fs::create_dir(&long).expect("a directory");
    let program = long.join("a-program-with-a-rather-long-name");
    fs::copy(fixture::c("arguments"), &program).expect("a copy");
    let path = format!("{}:/usr/bin:/bin", long.display());
    for name in [
        program.to_str().expect("text"),
        "a-program-with-a-rather-long-name",
    ] {
        let command = format!(r#"{name} one 'two words' "it's" thr\ ee ''"#);
        let mut memleak = memleak::command();
        let running = Running::spawn(memleak.env("PATH", &path).args(["-c", &command]));
        let finished = finish_well(running);
        for line in ["arg=one", "arg=two words", "arg=it's", "arg=thr ee", "arg="] {
            assert!(
                finished.stdout.iter().any(|seen| seen == line),
                "{line}: {finished:#?}"
            );
        }
        let report = last_report(&finished);
        assert_eq!(
            report.made_in("leak_for_arguments"),
            Held::new(106, 1),
            "{finished:#?}"
        );
    }
}

#[test]
fn a_program_after_two_dashes_is_taken_as_it_is() {
    require_root();
    let arguments = ["-p", "it's", "two words"];
    let finished = finish_well(start(&[], &fixture::c("arguments"), &arguments));
    for argument in arguments {
        let line = format!("arg={argument}");
        assert!(finished.stdout.contains(&line), "{line}: {finished:#?}");
    }
    let report = last_report(&finished);
    assert_eq!(
        report.made_in("leak_for_arguments"),
        Held::new(104, 1),
        "{finished:#?}"
    );
}

/// The first report whose figures were read after this call.
fn fresh_report(tracer: &mut Running) -> Report {
    let begun = tracer.seen().iter().filter(|line| is_header(line)).count();
    for _ in 0..3 {
        tracer.stdout_line("report", is_header);
    }
    parse(tracer.seen()).swap_remove(begun + 1)
}

#[test]
fn each_report_on_a_running_process_is_right() {
    require_root();
    let mut target = ready(&fixture::c("two_threads"), &[]);
    let mut tracer = attach(target.pid(), &["-o", "0"], "0.3");
    for round in 1..=3 {
        target.send_line();
        target.expect("leaked");
        let report = fresh_report(&mut tracer);
        assert_eq!(
            report.made_in("leak_in_thread"),
            Held::each(11 * round, 1001),
            "{report:#?}"
        );
        assert!(report.made_in("work_in_balance").count <= 1, "{report:#?}");
    }
    target.close_stdin();
    target.expect("unharmed");
    assert!(target.finish().status.success());
    let finished = finish_well(tracer);
    let report = last_report(&finished);
    assert_eq!(
        report.made_in("leak_in_thread"),
        Held::each(33, 1001),
        "{finished:#?}"
    );
}

#[test]
fn the_target_is_unharmed_when_memleak_is_killed() {
    require_root();
    for _ in 0..5 {
        let mut target = ready(&fixture::c("two_threads"), &[]);
        let tracer = attach(target.pid(), &["-o", "0"], "0.1");
        target.send_line();
        target.expect("leaked");
        tracer.signal(Signal::KILL);
        assert_eq!(tracer.wait().status.signal(), Some(9));
        target.send_line();
        target.expect("leaked");
        target.close_stdin();
        target.expect("unharmed");
        assert!(target.finish().status.success());
    }
}

#[test]
fn the_target_lives_on_after_a_clean_detach() {
    require_root();
    let mut target = ready(&fixture::c("two_threads"), &[]);
    let mut command = memleak::command();
    command.args(["-v", "-o", "0", "-p", &target.pid().to_string(), "0.2", "2"]);
    let finished = finish_well(memleak::armed(&mut command));
    assert_eq!(parse(&finished.stdout).len(), 2, "{finished:#?}");
    target.send_line();
    target.expect("leaked");
    assert!(target.finish().status.success());
}

#[test]
fn ctrl_c_gives_a_last_report_and_a_clean_end() {
    require_root();
    for signal in [Signal::INT, Signal::TERM] {
        let mut target = ready(&fixture::c("two_threads"), &[]);
        let tracer = attach(target.pid(), &["-o", "0"], NEVER);
        target.send_line();
        target.expect("leaked");
        tracer.signal(signal);
        let finished = tracer.wait();
        assert!(finished.status.success(), "{finished:#?}");
        let report = last_report(&finished);
        assert_eq!(
            report.made_in("leak_in_thread"),
            Held::each(11, 1001),
            "{finished:#?}"
        );
        assert!(target.finish().status.success());
    }
}

#[test]
fn a_reader_that_goes_away_is_a_clean_end() {
    require_root();
    let target = ready(&fixture::c("two_threads"), &[]);
    let script = format!(
        "{} -o 0 -p {} 0.1 | head -n 1 >&2; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_memleak"),
        target.pid()
    );
    let finished = Running::spawn(Command::new("bash").args(["-c", &script])).finish();
    assert_eq!(finished.stdout, ["0"], "{finished:#?}");
    assert!(target.finish().status.success());
}

#[test]
fn the_commands_status_is_memleaks() {
    require_root();
    let program = fixture::c("exit_now");
    for (argument, status) in [("0", 0), ("7", 7), ("255", 255), ("abort", 128 + 6)] {
        let finished = start(&[], &program, &[argument]).finish();
        assert_eq!(finished.status.code(), Some(status), "{finished:#?}");
        assert_eq!(
            last_report(&finished).total(),
            Held::new(1234, 1),
            "{finished:#?}"
        );
    }
}

#[test]
fn a_command_gets_sigterm_when_the_count_runs_out() {
    require_root();
    let mut command = memleak::command();
    command
        .args(["0.2", "2", "--"])
        .arg(fixture::c("two_threads"));
    let running = Running::spawn(&mut command);
    let finished = running.wait();
    assert_eq!(finished.status.code(), Some(128 + 15), "{finished:#?}");
    let said = finished
        .stderr
        .iter()
        .filter(|line| line.contains("SIGTERM"))
        .count();
    assert_eq!(said, 1, "{finished:#?}");
    let headers = finished
        .stdout
        .iter()
        .filter(|line| is_header(line))
        .count();
    assert!((2..=3).contains(&headers), "{finished:#?}");
}

#[test]
fn the_commands_streams_are_its_own() {
    require_root();
    let mut running = start(
        &[],
        Path::new("/bin/sh"),
        &["-c", "read x; echo got; echo err >&2"],
    );
    running.send_line();
    running.expect("got");
    running.stderr_line("the command's own line", |line| line == "err");
    finish_well(running);
}

#[test]
fn an_inlined_leak_is_named_as_inlined() {
    require_root();
    let finished = finish_well(start(&[], &fixture::c("inlined"), &[]));
    let report = last_report(&finished);
    let frames = &report.stacks[0].frames;
    let inlined = frames.iter().find(|frame| frame.symbol == "inlined_leaker");
    let inlined = inlined.unwrap_or_else(|| panic!("{finished:#?}"));
    assert_eq!(inlined.module, "inlined", "{finished:#?}");
    let leak = format!("inlined.c:{}", fixture::line_of("inlined.c", "LEAK LINE"));
    let call = format!("inlined.c:{}", fixture::line_of("inlined.c", "CALL LINE"));
    assert!(inlined.location.ends_with(&leak), "{finished:#?}");
    let outer = frames.iter().find(|frame| frame.symbol == "outer_caller");
    assert!(
        outer.expect("the caller").location.ends_with(&call),
        "{finished:#?}"
    );
}

#[test]
fn names_of_cpp_and_rust_are_demangled() {
    require_root();
    let options = ["-T", ALL_STACKS];
    let report = last_report(&finish_well(start(&options, &fixture::cpp("mangled"), &[])));
    assert_eq!(
        report.through("shapes::Circle<int>::leak(int)"),
        Held::new(777, 1),
        "{report:#?}"
    );
    let report = last_report(&finish_well(start(
        &options,
        &fixture::rust("forgets"),
        &[],
    )));
    assert_eq!(
        report.through("forgets::forget_boxes"),
        Held::each(3, 901),
        "{report:#?}"
    );
}

#[test]
fn the_libc_to_probe_is_the_one_in_the_targets_root() {
    require_root();
    let root = tempfile::tempdir().expect("a directory");
    let program = fixture::c("sizes");
    copy_with_libraries(&program, root.path());
    let mut target = Running::spawn(Command::new("chroot").arg(root.path()).arg("/sizes"));
    target.expect("ready");
    let tracer = attach(target.pid(), &[], NEVER);
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

/// Copies a program to the top of a directory, and its libraries to where it looks for them in there.
fn copy_with_libraries(program: &Path, root: &Path) {
    let listed = Command::new("ldd").arg(program).output().expect("ldd runs");
    let listed = String::from_utf8(listed.stdout).expect("text");
    for library in listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let copy = root.join(&library[1..]);
        fs::create_dir_all(copy.parent().expect("a directory")).expect("a directory");
        fs::copy(library, copy).expect("a copy");
    }
    fs::copy(program, root.join(program.file_name().expect("a name"))).expect("a copy");
}

#[test]
fn an_object_of_choice_is_probed() {
    require_root();
    let program = fixture::c_with("own_allocator", &["-fno-builtin"]);
    let object = program.to_str().expect("text");
    let report = memleak::last_report_of(&["-O", object], &program, &[]);
    assert_eq!(
        report.made_in("leak_by_own"),
        Held::each(4, 111),
        "{report:#?}"
    );
    let report = memleak::last_report_attached(&["--obj", object], &program, &[]);
    assert_eq!(
        report.made_in("leak_by_own"),
        Held::each(4, 111),
        "{report:#?}"
    );
}

#[test]
fn functions_that_an_object_lacks_are_skipped_aloud() {
    require_root();
    let program = fixture::c_with("own_allocator", &["-fno-builtin"]);
    let object = program.to_str().expect("text");
    let mut running = start(&["-v", "-O", object], &program, &[]);
    running.expect("ready");
    let finished = finish_well(running);
    assert!(
        finished.stderr.iter().any(|line| line.contains("calloc")),
        "{finished:#?}"
    );
}

#[test]
fn an_allocator_with_a_prefix_is_probed() {
    require_root();
    let flags = ["-fno-builtin", "-Dmalloc=my_malloc", "-Dfree=my_free"];
    let program = fixture::c_with("own_allocator", &flags);
    let object = program.to_str().expect("text");
    let report = memleak::last_report_of(&["-O", object, "-S", "my_"], &program, &[]);
    assert_eq!(
        report.made_in("leak_by_own"),
        Held::each(4, 111),
        "{report:#?}"
    );
}

#[test]
fn the_stream_shows_each_call() {
    require_root();
    let mut running = start(&["-t", "-v"], &fixture::c("stream"), &[]);
    running.expect("ready");
    running.send_line();
    let addresses: Vec<u64> = (0..4).map(|_| running.expect_number("address")).collect();
    running.expect("done");
    let finished = finish_well(running);
    let [first, second, moved, mapping] = addresses[..] else {
        panic!("{addresses:?}")
    };
    let lines: Vec<&String> = finished.stdout.iter().chain(&finished.stderr).collect();
    for (function, size, address) in [
        ("malloc", "1234", Some(first)),
        ("calloc", "1233", Some(second)),
        ("realloc", "2345", Some(moved)),
        ("free", "", Some(second)),
        ("malloc", "9223372036854771711", None),
        ("mmap", "20480", Some(mapping)),
        ("munmap", "20480", Some(mapping)),
    ] {
        let found = lines.iter().any(|line| {
            let words: Vec<&str> = line
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .collect();
            let has = |word: &str| word.is_empty() || words.contains(&word);
            let hex = |address: u64| format!("{address:x}");
            has(function)
                && has(size)
                && address.is_none_or(|address| {
                    words
                        .iter()
                        .any(|word| word.trim_start_matches("0x") == hex(address))
                })
        });
        assert!(found, "no {function} {size} {address:x?} in {finished:#?}");
    }
}
