//! Mappings that allocators make for themselves are not the program's, whatever function they are in: a thread's first
//! free, a trim. Mappings of the program's own are in exact_mmap.rs.

use crate::support::memleak::{self, NEVER, finish_well, last_report};
use crate::support::process::Running;
use crate::support::report::{Held, Report};
use crate::support::{fixture, require_root};

fn assert_no_phantom(report: &Report, what: &str) {
    assert_eq!(
        report.made_in("keep_one"),
        Held::new(103, 1),
        "{what}: {report:#?}"
    );
    assert_eq!(
        report.made_in("map_two_pages"),
        Held::new(8192, 1),
        "{what}: {report:#?}"
    );
    // glibc keeps the stacks of threads that have ended: those are mapped for the program
    let stacks = ["pthread_create", "allocate_stack"];
    let large = report.sum(|stack| {
        let mut symbols = stack.frames.iter().map(|frame| &*frame.symbol);
        stack.held.bytes >= 1 << 20 && !symbols.any(|symbol| stacks.contains(&symbol))
    });
    assert_eq!(large, Held::default(), "{what}: {report:#?}");
    assert_eq!(
        report.through("free_first"),
        Held::default(),
        "{what}: {report:#?}"
    );
}

#[test]
fn threads_that_begin_with_a_free_map_nothing() {
    require_root();
    let program = fixture::c_with("first_free", &["-pthread"]);
    for threads in ["4", "8"] {
        let report = memleak::last_report_of(&[], &program, &[threads]);
        assert_no_phantom(&report, threads);
        let report = memleak::last_report_attached(&[], &program, &[threads]);
        assert_no_phantom(&report, threads);
    }
}

#[test]
fn preloaded_allocators_map_for_themselves() {
    require_root();
    let program = fixture::c_with("first_free", &["-pthread"]);
    for library in [
        "libjemalloc.so.2",
        "libtcmalloc.so.4",
        "libtcmalloc_minimal.so.4",
        "libmimalloc.so.2",
    ] {
        let mut command = memleak::command();
        command.env("LD_PRELOAD", library);
        command.env("MALLOC_CONF", "background_thread:true,dirty_decay_ms:0");
        command
            .args(["-T", "1000", NEVER, "--"])
            .arg(&program)
            .arg("8");
        let mut running = Running::spawn(&mut command);
        running.expect("ready");
        running.send_line();
        running.expect("done");
        assert_no_phantom(&last_report(&finish_well(running)), library);
    }
}

#[test]
fn so_do_those_within_static_programs() {
    require_root();
    let program = fixture::c_with("first_free", &["-pthread", "-static"]);
    let report = memleak::last_report_of(&[], &program, &["8"]);
    assert_no_phantom(&report, "static");
}

#[test]
fn a_gate_passes_where_only_an_arena_was_reserved() {
    require_root();
    let program = fixture::c_with("first_free", &["-pthread"]);
    let options = ["--fail-on", "bytes=64M", NEVER];
    let mut running = memleak::start(&options, &program, &["4"]);
    running.expect("ready");
    running.send_line();
    running.expect("done");
    finish_well(running);
}
