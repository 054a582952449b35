//! Runs that cannot trace: exit status 1 and exactly one line on standard error that says what to do.
//! Wrong usage is in usage.rs, missing privileges in privileges.rs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::memleak;
use crate::support::process::{Finished, Running};
use crate::support::{fixture, require_root};

/// Asserts a refusal: status 1, nothing on stdout, one line on stderr that holds each of `words`.
fn assert_refused(finished: &Finished, words: &[&str]) {
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    assert_eq!(finished.stderr.len(), 1, "{finished:#?}");
    assert!(parsed_nothing(finished), "{finished:#?}");
    for word in words {
        assert!(
            finished.stderr[0].contains(word),
            "no {word:?} in {finished:#?}"
        );
    }
}

fn parsed_nothing(finished: &Finished) -> bool {
    crate::support::report::parse(&finished.stdout).is_empty()
}

#[test]
fn no_such_process() {
    require_root();
    // Above any kernel's pid_max.
    assert_refused(
        &memleak::run(["-p", "4194305"]),
        &["4194305", "no such process"],
    );
}

#[test]
fn a_process_that_has_ended_but_was_not_waited_for() {
    require_root();
    let mut zombie = Command::new("true").spawn().expect("true runs");
    let pid = zombie.id().to_string();
    let state = format!("/proc/{pid}/stat");
    while !fs::read_to_string(&state)
        .expect("a zombie")
        .contains(") Z ")
    {
        std::thread::yield_now();
    }
    assert_refused(&memleak::run(["-p", &pid]), &[&pid]);
    zombie.wait().expect("a zombie can be waited for");
}

#[test]
fn a_kernel_thread() {
    require_root();
    // 2 is kthreadd wherever the tests see the host's processes, which tracing needs anyway.
    assert_refused(&memleak::run(["-p", "2"]), &["2", "kernel thread"]);
}

#[test]
fn a_command_that_does_not_exist() {
    require_root();
    for command in [
        "no-such-program-anywhere",
        "/no/such/program --with arguments",
    ] {
        let name = command.split(' ').next().expect("a word");
        assert_refused(&memleak::run(["-c", command]), &[name, "not found"]);
    }
    assert_refused(
        &memleak::run(["--", "no-such-program-anywhere"]),
        &["not found"],
    );
}

#[test]
fn a_command_that_is_not_executable() {
    require_root();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("plain-file");
    fs::write(&path, "no program\n").expect("a file");
    let name = path.to_str().expect("text");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("a mode");
    assert_refused(&memleak::run(["-c", name]), &[name, "executable"]);
    assert_refused(&memleak::run(["-c", "/usr"]), &["/usr"]);
    // Executable by its mode, but nothing that the kernel can run.
    fs::write(&path, [0x7f, b'E', b'L', b'F', 0, 0, 0, 0]).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    assert_refused(&memleak::run(["-c", name]), &[name]);
}

#[test]
fn an_object_without_allocators() {
    require_root();
    let listed = Command::new("ldd")
        .arg("/usr/bin/perl")
        .output()
        .expect("ldd runs");
    let listed = String::from_utf8(listed.stdout).expect("text");
    let libm = listed
        .split_whitespace()
        .find(|word| word.starts_with('/') && word.contains("libm"));
    let libm = libm.expect("perl uses libm");
    let program = fixture::c("exit_now");
    let program = program.to_str().expect("text");
    let finished = memleak::run(["-O", libm, "--", program]);
    assert_refused(&finished, &["libm", "-O"]);
}

#[test]
fn an_object_that_is_not_there_or_no_object() {
    require_root();
    let program = fixture::c("exit_now");
    let program = program.to_str().expect("text");
    assert_refused(
        &memleak::run(["-O", "/no/such.so", "--", program]),
        &["/no/such.so"],
    );
    assert_refused(
        &memleak::run(["-O", "/etc/passwd", "--", program]),
        &["/etc/passwd"],
    );
}

#[test]
fn a_kernel_without_btf() {
    require_root();
    // In a mount namespace of its own, the kernel's BTF is hidden under an empty directory.
    let program = fixture::c("exit_now");
    let script = format!(
        "mount -t tmpfs none /sys/kernel/btf && exec {} -c {}",
        env!("CARGO_BIN_EXE_memleak"),
        program.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    assert_refused(&Running::spawn(&mut command).finish(), &["BTF"]);
}
