//! Signals that come in the middle of allocator calls, a hundred thousand of them: nothing is counted twice or lost, and
//! the target lives. Calls that are left by longjmp are in exact_flow.rs.

use std::path::PathBuf;

use crate::support::memleak::{self, ALL_STACKS, NEVER, last_report};
use crate::support::process::{Finished, Running};
use crate::support::report::{Held, Report};
use crate::support::{fixture, require_root};

const SIGNALS: &str = "100000";
const PAGE: u64 = 4096;

struct Ledger {
    blocks: Held,
    pages: Held,
}

fn program() -> PathBuf {
    fixture::c_with("signals", &["-pthread"])
}

/// Traces the fixture with handlers on a stack, and what it says itself. It has a libc of its own: where another tracer
/// traps returns in the same file, be it for another process, the kernel traps them here as well.
fn run(stack: &str, work: &str) -> (Ledger, Report, Finished) {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let libc = format!("/usr/lib/{}-linux-gnu/libc.so.6", std::env::consts::ARCH);
    std::fs::copy(libc, folder.path().join("libc.so.6")).expect("a copy of libc");
    let mut command = memleak::command();
    command.args(["-T", ALL_STACKS, NEVER, "--"]).arg(program());
    command.args([stack, work, SIGNALS]);
    let mut running = Running::spawn(command.env("LD_LIBRARY_PATH", folder.path()));
    running.expect("ready");
    running.send_line();
    let count = running.expect_number("blocks");
    let bytes = running.expect_number("bytes");
    let pages = running.expect_number("pages");
    running.expect("done");
    let ledger = Ledger {
        blocks: Held::new(bytes, count),
        pages: Held::each(pages, PAGE),
    };
    let finished = memleak::finish_well(running);
    (ledger, last_report(&finished), finished)
}

fn heap(report: &Report) -> Held {
    let allocators = ["leak", "grow", "leak_in_handler"];
    let all = allocators.map(|function| report.made_in(function));
    Held::new(
        all.iter().map(|held| held.bytes).sum(),
        all.iter().map(|held| held.count).sum(),
    )
}

/// Calls of handlers that were not followed, as the last warning says.
fn not_followed(finished: &Finished) -> u64 {
    // of one as of many
    let place = |line: &String| {
        let one = line.find(" call of a signal handler not followed");
        one.or_else(|| line.find(" calls of signal handlers not followed"))
    };
    let told = finished.stderr.iter().rev();
    let Some((line, at)) = told.filter_map(|line| Some((line, place(line)?))).next() else {
        return 0;
    };
    let number = line[..at].rsplit(' ').next();
    let number = number.and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no number in {line:?}"))
}

fn assert_nothing_else_is_lost(finished: &Finished) {
    let told = |line: &String| line.contains("incomplete") && !line.contains("signal handler");
    assert!(!finished.stderr.iter().any(told), "{finished:#?}");
}

/// Where handlers run on the thread's stack, or on one below it, everything is exact.
fn assert_exact(work: &str) {
    for stack in ["own", "lower"] {
        let (ledger, report, finished) = run(stack, work);
        assert_eq!(heap(&report), ledger.blocks, "{stack}: {report:#?}");
        assert_eq!(
            report.made_in("map_page"),
            ledger.pages,
            "{stack}: {report:#?}"
        );
        assert_eq!(not_followed(&finished), 0, "{stack}: {finished:#?}");
        assert_nothing_else_is_lost(&finished);
    }
}

#[test]
fn handlers_that_map_while_their_thread_allocates() {
    assert_exact("allocating");
}

#[test]
fn handlers_that_allocate_while_their_thread_maps() {
    assert_exact("mapping");
}

/// The kernel would take what such a handler has interrupted for left, and end the target. What the handler maps is
/// counted as lost, and what it unmaps is not: so the one page at the end is there, or among the lost.
#[test]
fn handlers_above_what_they_interrupt_end_nobody() {
    for stack in ["upper", "disarmed"] {
        let (ledger, report, finished) = run(stack, "allocating");
        assert_eq!(heap(&report), ledger.blocks, "{stack}: {report:#?}");
        let lost = not_followed(&finished);
        assert!(lost > 0, "{stack}: {finished:#?}");
        let pages = report.made_in("map_page");
        let expected = [ledger.pages, Held::default()];
        assert!(expected.contains(&pages), "{stack}: {report:#?}");
        assert_nothing_else_is_lost(&finished);
    }
}

#[test]
fn handlers_above_that_allocate_are_told_as_lost() {
    let (ledger, report, finished) = run("upper", "mapping");
    let lost = not_followed(&finished);
    assert!(lost > 0, "{finished:#?}");
    let held = heap(&report);
    assert!(held.count <= ledger.blocks.count, "{report:#?}");
    assert!(held.count + lost >= ledger.blocks.count, "{report:#?}");
    assert_eq!(report.made_in("map_page"), ledger.pages, "{report:#?}");
}
