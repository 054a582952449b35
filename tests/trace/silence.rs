//! A report without stacks must not look like a program without leaks: where nothing was seen, that is said, and no gate is
//! passed. What is seen is checked elsewhere.

use crate::support::memleak::{self, NEVER, finish_well};
use crate::support::process::{Finished, Running};
use crate::support::report::{Held, parse};
use crate::support::{fixture, require_root};

fn says(finished: &Finished, text: &str) -> bool {
    finished.stderr.iter().any(|line| line.contains(text))
}

/// The end of a run with options on a program that waits for its input to end.
fn run_on(options: &[&str], fixture: &str) -> Finished {
    let options = [options, &[NEVER]].concat();
    let mut running = memleak::start(&options, &fixture::c(fixture), &[]);
    running.expect("ready");
    running.finish()
}

#[test]
fn a_run_in_which_nothing_was_seen_passes_no_gate() {
    require_root();
    for gate in ["leak", "growth", "bytes=64M", "count=5"] {
        let finished = run_on(&["--fail-on", gate], "quiet");
        assert_eq!(finished.status.code(), Some(23), "{finished:#?}");
        assert!(says(&finished, "nothing was seen"), "{finished:#?}");
    }
    let finished = run_on(&[], "quiet");
    assert!(finished.status.success(), "{finished:#?}");
    assert!(
        says(&finished, "called no probed function"),
        "{finished:#?}"
    );
}

#[test]
fn a_command_that_starts_others_is_told_of_the_option_that_follows_them() {
    require_root();
    let mut running = memleak::start(&[NEVER], &fixture::c("forks"), &[]);
    running.expect("ready");
    running.send_line();
    running.expect("done");
    let finished = finish_well(running);
    assert!(
        says(&finished, "the target started 1 process, not traced: -f"),
        "{finished:#?}"
    );
    // followed, they need no word
    let mut command = memleak::command();
    command.args(["-f", NEVER, "--"]).arg(fixture::c("forks"));
    let mut running = Running::spawn(&mut command);
    running.expect("ready");
    running.send_line();
    running.expect("done");
    assert!(!says(&finish_well(running), "not traced"));
}

/// The init program of a container is static and has no allocator that anybody could find; the program behind it does.
#[test]
fn what_a_launcher_starts_or_becomes_is_traced_from_its_first_instruction() {
    require_root();
    let launcher = fixture::c_with("launcher", &["-static", "-s"]);
    let program = fixture::c("exit_now");
    let program = program.to_str().expect("text");
    for (options, arguments) in [(&[][..], &[program][..]), (&["-f"], &["fork", program])] {
        let options = [options, &[NEVER]].concat();
        let finished = finish_well(memleak::start(&options, &launcher, arguments));
        let report = parse(&finished.stdout).pop().expect("a report");
        assert_eq!(
            report.made_in("leak_and_leave"),
            Held::new(1234, 1),
            "{finished:#?}"
        );
    }
}
