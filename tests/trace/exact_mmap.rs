//! Anonymous mappings as ranges, to the byte: parts unmapped, covered, grown, shrunk and moved.
//! What the heap does is in exact_heap.rs.

use crate::support::memleak::{last_report_attached, last_report_of};
use crate::support::report::Report;
use crate::support::{fixture, require_root};

/// Bytes that each mode of mmap_ranges leaves mapped; its source explains them.
const MODES: &[(&str, u64)] = &[
    ("whole", 0),
    ("head", 1_044_480),
    ("middle", 1_007_616),
    ("tail", 1_036_288),
    ("hole_by_hole", 32_768),
    ("over_two", 32_768),
    ("reservation", 0),
    ("fixed_over", 4_194_304),
    ("grow", 36_864),
    ("shrink", 20_480),
    ("move_fixed", 81_920),
    ("dontunmap", 40_960),
    ("remap_part", 40_960),
    ("failed", 12_288),
    ("file", 0),
    ("file_over", 20_480),
    ("shared_anon", 12_288),
    ("odd_length", 0),
    ("brk", 0),
];

/// Asserts the bytes of a mode, all of them under the functions that map.
fn assert_bytes(mode: &str, bytes: u64, report: &Report) {
    assert_eq!(report.total().bytes, bytes, "{mode}: {report:#?}");
    let mappers = ["map_pages", "map_shared", "mremap_pages"];
    let named: u64 = mappers
        .iter()
        .map(|function| report.made_in(function).bytes)
        .sum();
    assert_eq!(named, bytes, "{mode}: {report:#?}");
}

#[test]
fn ranges_from_the_start() {
    require_root();
    let program = fixture::c("mmap_ranges");
    for (mode, bytes) in MODES {
        assert_bytes(mode, *bytes, &last_report_of(&[], &program, &[mode]));
    }
    assert_bytes(
        "before",
        49_152,
        &last_report_of(&[], &program, &["before"]),
    );
}

#[test]
fn ranges_attached() {
    require_root();
    let program = fixture::c("mmap_ranges");
    for (mode, bytes) in MODES {
        assert_bytes(mode, *bytes, &last_report_attached(&[], &program, &[mode]));
    }
}

#[test]
fn ranges_from_before_attaching_are_no_concern_and_do_no_harm() {
    require_root();
    let report = last_report_attached(&[], &fixture::c("mmap_ranges"), &["before"]);
    assert_bytes("before", 8192, &report);
}

#[test]
fn a_trimmed_range_is_one_allocation() {
    require_root();
    let program = fixture::c("mmap_ranges");
    for mode in ["head", "tail", "shrink", "grow"] {
        let report = last_report_of(&[], &program, &[mode]);
        assert_eq!(report.total().count, 1, "{mode}: {report:#?}");
    }
}

#[test]
fn no_mmap_leaves_mappings_out() {
    require_root();
    let program = fixture::c("mmap_ranges");
    for mode in ["head", "fixed_over", "grow"] {
        let report = last_report_of(&["--no-mmap"], &program, &[mode]);
        assert_eq!(report.total().bytes, 0, "{mode}: {report:#?}");
    }
}

#[test]
fn no_mmap_keeps_large_blocks_of_the_heap() {
    require_root();
    let report = last_report_of(&["--no-mmap"], &fixture::c("large"), &[]);
    assert_eq!(report.made_in("large_malloc").bytes, 900_003, "{report:#?}");
    assert_eq!(report.total().count, 18, "{report:#?}");
}
