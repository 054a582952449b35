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
