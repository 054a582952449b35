//! What memleak does when its own standard output or standard error can't be written: closed pipes, full disks.
//! Needs root. What the reports say is other tests' matter.

use std::fs::File;
use std::io::pipe;
use std::process::{Command, Stdio};

use crate::support::process::PATIENCE;
use crate::support::{fixture, memleak, require_root};

/// The writing end of a pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (_, writer) = pipe().expect("a pipe");
    writer.into()
}

fn full_disk() -> Stdio {
    let options = File::options().write(true).open("/dev/full");
    options.expect("/dev/full").into()
}

/// `memleak -c exit_now`, killed when it does not end by itself.
fn traces_a_command() -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--signal=KILL", &PATIENCE.as_secs().to_string()])
        .arg(env!("CARGO_BIN_EXE_memleak"))
        .arg("--")
        .arg(fixture::c("exit_now"))
        .env_remove("SUDO_USER")
        .stdin(Stdio::null());
    command
}

#[test]
fn nobody_to_read_the_reports_is_an_end_even_before_the_command_runs() {
    require_root();
    let finished = traces_a_command().stdout(closed_pipe()).output();
    let finished = finished.expect("timeout runs");
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.is_empty(), "{finished:?}");
}

#[test]
fn a_full_standard_output_is_an_error_that_says_so() {
    require_root();
    let finished = traces_a_command().stdout(full_disk()).output();
    let finished = finished.expect("timeout runs");
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    let message = String::from_utf8(finished.stderr).expect("text");
    let expected = "memleak: failed to write to the standard output: No space left on device";
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn what_standard_error_does_not_take_changes_nothing() {
    require_root();
    let status = |stderr: Stdio| {
        let run = traces_a_command()
            .stdout(Stdio::null())
            .stderr(stderr)
            .status();
        run.expect("timeout runs").code()
    };
    let undisturbed = status(Stdio::null());
    assert_eq!(status(closed_pipe()), undisturbed);
    assert_eq!(status(full_disk()), undisturbed);
    // a message that is all there is to say
    let refused = memleak::command()
        .args(["-p", "0"])
        .stderr(full_disk())
        .status();
    assert_eq!(refused.expect("memleak runs").code(), Some(2));
}
