//! The command line, without privileges: help, version, and refusals of wrong usage in one line each.
//! Nothing here traces; errors that need root to be met are in errors.rs.

use std::fs;
use std::path::Path;

use crate::support::memleak;

/// Set to write the golden files anew instead of comparing with them.
const BLESS: &str = "MEMLEAK_BLESS";

fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os(BLESS).is_some() {
        fs::write(&path, text).expect("failed to write the golden file");
        return;
    }
    let golden = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("no {}: {error}; {BLESS}=1 makes it", path.display()));
    assert_eq!(
        text,
        golden,
        "{} differs; {BLESS}=1 writes it anew",
        path.display()
    );
}

/// Standard output of a run that must succeed and be silent on standard error.
fn text_of(arguments: &[&str]) -> String {
    let finished = memleak::run(arguments);
    assert!(
        finished.status.success() && finished.stderr.is_empty(),
        "{finished:#?}"
    );
    finished.stdout.join("\n") + "\n"
}

#[test]
fn help() {
    assert_golden("help.txt", &text_of(&["--help"]));
    assert_golden("help-short.txt", &text_of(&["-h"]));
}

#[test]
fn version() {
    let version = text_of(&["--version"]);
    assert_eq!(
        version,
        concat!("memleak ", env!("CARGO_PKG_VERSION"), "\n")
    );
    assert_eq!(text_of(&["-V"]), version);
}

#[test]
fn wrong_usage_is_one_line_and_status_2() {
    for (arguments, named) in [
        (&["-p", "1", "-c", "true"][..], "--command"),
        (&["-p", "1", "--", "true"], "--pid"),
        (&["-c", "true", "--", "true"], "--command"),
        (&["-c", ""], "--command"),
        (&["-c", "echo 'open"], "quote"),
        (&["-p", "1", "-z", "11", "-Z", "10"], "--min-size"),
        (&["-p", "1", "0"], "interval"),
        (&["-p", "1", "nan"], "interval"),
        (&["-p", "1", "-1"], "-1"),
        (&["-p", "1", "never"], "never"),
        (&["-p", "1", "5", "0"], "count"),
        (&["-p", "1", "5", "1.5"], "1.5"),
        (&["-p", "0"], "--pid"),
        (&["-p", "me"], "me"),
        (&["-p"], "--pid"),
        (&["--sort", "age", "-p", "1"], "--sort"),
        (&["-s", "0", "-p", "1"], "--sample-rate"),
        (&["-T", "0", "-p", "1"], "--top"),
        (&["-T", "few", "-p", "1"], "--top"),
        (&["--max-allocs", "0", "-p", "1"], "--max-allocs"),
        (
            &["--stack-storage-size", "0", "-p", "1"],
            "--stack-storage-size",
        ),
        (
            &["--perf-max-stack-depth", "0", "-p", "1"],
            "--perf-max-stack-depth",
        ),
        (
            &["--perf-max-stack-depth", "4000", "-p", "1"],
            "--perf-max-stack-depth",
        ),
        (&["--no-such-option"], "--no-such-option"),
        (&["-p", "1", "5", "10", "15"], "15"),
    ] {
        let finished = memleak::run(arguments);
        assert_eq!(
            finished.status.code(),
            Some(2),
            "{arguments:?}: {finished:#?}"
        );
        assert_eq!(finished.stderr.len(), 1, "{arguments:?}: {finished:#?}");
        assert!(
            finished.stderr[0].contains(named),
            "{arguments:?}: {finished:#?}"
        );
        assert!(finished.stdout.is_empty(), "{arguments:?}: {finished:#?}");
    }
}

/// What wrong command lines are told, as a table to read: each gets one line and status 2.
#[test]
fn wrong_command_lines_are_told_what_to_do() {
    let mut table = String::new();
    for arguments in WRONG {
        let finished = memleak::run(*arguments);
        let shown = shell_words::join(*arguments);
        assert_eq!(finished.status.code(), Some(2), "{shown}: {finished:#?}");
        assert_eq!(finished.stderr.len(), 1, "{shown}: {finished:#?}");
        assert!(finished.stdout.is_empty(), "{shown}: {finished:#?}");
        table += &format!("$ memleak {shown}\n{}\n", finished.stderr[0]);
    }
    assert_golden("wrong-command-lines.txt", &table);
}

const WRONG: &[&[&str]] = &[
    &["1234"],
    &["nginx"],
    &["nginx", "5"],
    &["-5"],
    &["5x"],
    &["0"],
    &["1e300"],
    &["5", "0"],
    &["5", "1.5"],
    &["5", "10", "15"],
    &["-p"],
    &["-p", ""],
    &["-p", " "],
    &["-p", "0"],
    &["-p", "-1"],
    &["-p", "12,0"],
    &["-p", "12x"],
    &["-p", "12", "34", "56", "78"],
    &["-p", "no-such-program"],
    &["-p", "1", "-c", "true"],
    &["-p", "1", "--", "true"],
    &["-p", "1", "--comm", "nginx"],
    &["-p", "1", "--system"],
    &["-p", "1", "--user", "nobody"],
    &["-p", "1", "-z", "4X"],
    &["-p", "1", "-z", "-4"],
    &["-p", "1", "-z", "2K", "-Z", "1K"],
    &["-p", "1", "-o", "soon"],
    &["-p", "1", "-s", "0"],
    &["-p", "1", "-s", "2", "--sample-bytes", "4K"],
    &["-p", "1", "--sample-bytes", "0"],
    &["-p", "1", "--sample-bytes", "8G"],
    &["-p", "1", "-T", "0"],
    &["-p", "1", "-T", "few"],
    &["-p", "1", "--top-processes", "0"],
    &["-p", "1", "--sort", "age"],
    &["-p", "1", "-a", "-C"],
    &["-p", "1", "-C", "--tid", "1"],
    &["-p", "1", "--tid", "x"],
    &["-p", "1", "--max-allocs", "0"],
    &["-p", "1", "--stack-storage-size", "0"],
    &["-p", "1", "--perf-max-stack-depth", "128"],
    &["-p", "1", "--max-overhead", "0"],
    &["-p", "1", "--unwind", "orc"],
    &["-p", "1", "--probe-at", "exit"],
    &["-p", "1", "--percpu"],
    &["-p", "1", "--cache", "dentry"],
    &["-p", "1", "--user-pages"],
    &["-p", "1", "--alloc", "f:size=7"],
    &["-p", "1", "--alloc", "f"],
    &["-p", "1", "--realloc", "f:size=1"],
    &["-p", "1", "--fail-on", "leaks"],
    &["-p", "1", "--fail-on", "bytes=0"],
    &["-p", "1", "--fail-on", "bytes=1X"],
    &["-p", "1", "--error-exitcode", "3"],
    &["-p", "1", "--by-line"],
    &["-p", "1", "--since-mark", "--baseline", "x"],
    &["-p", "1", "--no-such-option"],
    &["-p", "1", "--folow"],
    &["report", "x", "--htlm", "y"],
    &["-c", ""],
    &["-c", " "],
    &["-c", "echo 'open"],
    &["-c", "FOO=1 ./prog"],
    &["-c", "true", "--", "true"],
    &["-c", "true", "--percpu"],
    &["--", ""],
    &["--comm", ""],
    &["--comm", "sixteen-letters!"],
    &["--comm", "a", "--cgroup", "b"],
    &["--container", "web"],
    &["-f"],
    &["-O", "x.so"],
    &["--no-mmap"],
    &["report"],
    &["report", "--nope"],
    &["report", "-T", "few", "x"],
    &["completions", "tcsh"],
];

#[test]
fn completions_name_the_options() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text_of(&["completions", shell]);
        assert!(script.contains("show-allocs"), "{shell}: {script}");
    }
}

#[test]
fn kernel_mode_says_what_it_does() {
    // Without a target memleak traces the kernel, which needs privileges that this test does not ask for: it
    // may not end in a usage error or in silence.
    let finished = memleak::run(["1", "1"]);
    assert_ne!(finished.status.code(), Some(2), "{finished:#?}");
    assert!(
        !finished.stdout.is_empty() || !finished.stderr.is_empty(),
        "{finished:#?}"
    );
}
