//! Heap figures to the byte, whatever allocators do inside: nesting, failures, realloc in all its cases.
//! Anonymous mappings are in exact_mmap.rs, forks and jumps in exact_flow.rs, full maps in losses.rs.

use std::path::Path;

use crate::support::memleak::{last_report_attached, last_report_of};
use crate::support::report::{Held, Report};
use crate::support::{fixture, require_root};

/// Traces a fixture from its start and attached to it, in both ways of reading, and checks each report.
fn in_every_mode(program: &Path, arguments: &[&str], check: impl Fn(&Report)) {
    require_root();
    for options in [&[][..], &["-C"]] {
        check(&last_report_of(options, program, arguments));
        check(&last_report_attached(options, program, arguments));
    }
}

/// Asserts what each function of a program made, and that its heap held nothing else that has a stack through
/// `main`.
fn assert_made(report: &Report, expected: &[(&str, Held)]) {
    for (function, held) in expected {
        assert_eq!(report.made_in(function), *held, "{function} in {report:#?}");
    }
}

#[test]
fn blocks_so_large_that_libc_maps_them_are_the_callers() {
    in_every_mode(&fixture::c("large"), &[], |report| {
        assert_made(
            report,
            &[
                ("large_malloc", Held::each(3, 300_001)),
                ("large_calloc", Held::each(3, 300_003)),
                ("large_realloc", Held::each(3, 300_005)),
                ("large_aligned_alloc", Held::each(3, 300_032)),
                ("large_posix_memalign", Held::each(3, 300_009)),
                ("large_memalign", Held::each(3, 300_011)),
            ],
        );
        assert_eq!(report.total().count, 18, "{report:#?}");
    });
}

#[test]
fn the_first_block_of_a_thread_is_counted_and_its_arena_is_not() {
    in_every_mode(&fixture::c("first_in_thread"), &[], |report| {
        assert_made(report, &[("first_of_thread", Held::new(101, 1))]);
        assert_eq!(report.through("thread"), Held::new(101, 1), "{report:#?}");
    });
}

#[test]
fn eight_threads_leak_every_byte_and_no_arena() {
    in_every_mode(&fixture::c("threads8"), &[], |report| {
        assert_made(report, &[("leak_from_eight", Held::each(80_000, 48))]);
        assert_eq!(
            report.through("thread"),
            Held::each(80_000, 48),
            "{report:#?}"
        );
    });
}

#[test]
fn realloc_in_every_case() {
    in_every_mode(&fixture::c("realloc_cases"), &[], |report| {
        assert_made(
            report,
            &[
                ("keep_when_realloc_fails", Held::new(7001, 1)),
                ("keep_when_array_overflows", Held::new(7003, 1)),
                ("realloc_of_null", Held::new(7005, 1)),
                ("realloc_to_zero", Held::default()),
                ("realloc_in_place", Held::new(7009, 1)),
                ("realloc_moved", Held::new(17_013, 1)),
                ("realloc_of_mapped", Held::new(900_017, 1)),
                ("allocate_first", Held::default()),
                ("block_in_the_way", Held::each(4, 33)),
            ],
        );
        assert_eq!(report.total().count, 10, "{report:#?}");
    });
}

#[test]
fn calls_that_fail_count_nothing() {
    in_every_mode(&fixture::c("failures"), &[], |report| {
        assert_made(report, &[("leak_after_failures", Held::new(4321, 1))]);
        assert_eq!(report.total(), Held::new(4321, 1), "{report:#?}");
    });
}

#[test]
fn aligned_blocks_that_were_freed_are_gone() {
    in_every_mode(&fixture::c("aligned_freed"), &[], |report| {
        assert_eq!(report.total(), Held::default(), "{report:#?}");
    });
}

#[test]
fn each_allocator_alone() {
    require_root();
    let program = fixture::c("kinds");
    for kind in [
        "malloc",
        "calloc",
        "realloc",
        "reallocarray",
        "posix_memalign",
        "valloc",
        "memalign",
        "pvalloc",
        "aligned_alloc",
    ] {
        for size in ["3001", "300001"] {
            let report = last_report_of(&[], &program, &[kind, size]);
            let expected = Held::new(size.parse().expect("a number"), 1);
            assert_eq!(
                report.made_in(&format!("leak_{kind}")),
                expected,
                "{report:#?}"
            );
            assert_eq!(report.total(), expected, "{report:#?}");
        }
    }
}

#[test]
fn over_two_to_the_24_allocations_and_a_tebibyte_from_one_stack() {
    require_root();
    // Combined figures are those that would wrap; running twice would only take twice as long.
    let report = last_report_of(&["-C"], &fixture::c("trillion"), &[]);
    assert_made(
        &report,
        &[
            ("make_next", Held::each(2, 65_537)),
            ("first_block", Held::default()),
        ],
    );
}
