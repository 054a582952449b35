//! Figures that stay right when control leaves an allocator by another way than its return, or a process forks.
//! What allocators do by themselves is in exact_heap.rs.

use crate::support::memleak::{last_report_attached, last_report_of};
use crate::support::report::{Held, Report};
use crate::support::{fixture, require_root};

/// The last report of a fixture, traced from its start and attached to it.
fn both_ways(name: &str, arguments: &[&str]) -> [Report; 2] {
    require_root();
    let program = fixture::c(name);
    [
        last_report_of(&[], &program, arguments),
        last_report_attached(&[], &program, arguments),
    ]
}

fn leaks_after_a_jump_are_found(mode: &str) {
    for report in both_ways("longjmp", &[mode]) {
        assert_eq!(
            report.made_in("leak_after_jump"),
            Held::each(7, 2003),
            "{report:#?}"
        );
        assert_eq!(
            report.through("jumped_out_of"),
            Held::default(),
            "{report:#?}"
        );
    }
}

#[test]
fn after_a_jump_out_of_malloc_to_a_shallower_frame() {
    leaks_after_a_jump_are_found("shallower");
}

#[test]
fn after_a_jump_out_of_malloc_to_the_same_depth() {
    leaks_after_a_jump_are_found("same");
}

#[test]
fn after_a_jump_out_of_malloc_and_deeper_calls() {
    leaks_after_a_jump_are_found("deeper");
}

#[test]
fn after_a_jump_out_of_malloc_in_a_thread() {
    leaks_after_a_jump_are_found("thread");
}

#[test]
fn after_a_jump_out_of_realloc_its_block_is_still_there() {
    leaks_after_a_jump_are_found("realloc");
    for report in both_ways("longjmp", &["realloc"]) {
        assert_eq!(
            report.made_in("block_before_jump"),
            Held::new(2017, 1),
            "{report:#?}"
        );
    }
}

#[test]
fn after_a_jump_out_of_realloc_its_block_can_be_freed() {
    leaks_after_a_jump_are_found("realloc-free");
    for report in both_ways("longjmp", &["realloc-free"]) {
        assert_eq!(
            report.made_in("block_before_jump"),
            Held::default(),
            "{report:#?}"
        );
    }
}

#[test]
fn threads_that_die_inside_malloc_leave_others_tracked() {
    for report in both_ways("dies_inside", &[]) {
        assert_eq!(
            report.made_in("leak_in_later_thread"),
            Held::each(8, 3001),
            "{report:#?}"
        );
        assert_eq!(
            report.made_in("leak_in_main"),
            Held::each(5, 3003),
            "{report:#?}"
        );
        assert_eq!(
            report.through("died_inside"),
            Held::default(),
            "{report:#?}"
        );
    }
}

#[test]
fn a_thread_that_dies_inside_realloc_leaves_its_block() {
    for report in both_ways("dies_inside", &[]) {
        let held = report.made_in("block_of_the_ninth");
        assert_eq!(held, Held::new(2019, 1), "{report:#?}");
    }
}

#[test]
fn a_fork_inside_malloc_leaves_the_parent_tracked() {
    for report in both_ways("forks_inside", &[]) {
        assert_eq!(
            report.made_in("forked_inside"),
            Held::new(2007, 1),
            "{report:#?}"
        );
        assert_eq!(
            report.made_in("leak_after_fork"),
            Held::each(5, 2011),
            "{report:#?}"
        );
    }
}

#[test]
fn a_childs_frees_leave_its_parents_blocks_alone() {
    for report in both_ways("fork_free", &[]) {
        assert_eq!(
            report.made_in("parent_block"),
            Held::each(3, 5001),
            "{report:#?}"
        );
    }
}

#[test]
fn a_program_that_replaces_itself_leaves_nothing_behind() {
    for report in both_ways("execs", &[]) {
        assert_eq!(
            report.made_in("leak_after_exec"),
            Held::each(3, 1009),
            "{report:#?}"
        );
        assert_eq!(report.total(), Held::each(3, 1009), "{report:#?}");
    }
}
