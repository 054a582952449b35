//! Several processes at once: children that are followed, lists of processes, processes by name and by cgroup.
//! What one process's report holds is checked elsewhere; here it is whose block is whose.

mod common;

use common::memleak::{self, ALL_STACKS, NEVER, finish_well, last_report_of};
use common::process::Running;
use common::report::{Held, Report, parse};
use common::{fixture, require_root};

const PARENT: Held = Held {
    bytes: 3 * 5001,
    count: 3,
};
const CHILD: Held = Held {
    bytes: 12_345,
    count: 1,
};
const GRANDCHILD: Held = Held {
    bytes: 2 * 7003,
    count: 2,
};

/// All that a run reported, as one report: last reports of processes come when these end.
fn all_reports(lines: &[String]) -> Report {
    let mut all = Report::default();
    for report in parse(lines) {
        all.processes.extend(report.processes);
        all.stacks.extend(report.stacks);
        all.allocations.extend(report.allocations);
    }
    all
}

/// Asserts what the fixture `forks` leaves, in its three processes.
fn assert_family(report: &Report, parent: u32, child: u32) {
    let of = |pid: u32| -> Held { report.sum(|stack| stack.pid == pid) };
    assert_eq!(report.made_by(parent, "parent_leak"), PARENT, "{report:#?}");
    assert_eq!(report.made_by(child, "child_leak"), CHILD, "{report:#?}");
    assert_eq!(of(parent), PARENT, "{report:#?}");
    assert_eq!(of(child), CHILD, "{report:#?}");
    assert_eq!(report.made_in("leak_after_exec"), GRANDCHILD, "{report:#?}");
    assert_eq!(
        report.total().bytes,
        PARENT.bytes + CHILD.bytes + GRANDCHILD.bytes,
        "{report:#?}"
    );
}

#[test]
fn the_children_of_a_command_are_followed_each_with_its_own_blocks() {
    require_root();
    let program = fixture::c("forks");
    let mut running = memleak::start(&["-f", "-T", ALL_STACKS, NEVER], &program, &[]);
    let parent = attached_pid(&mut running);
    running.expect("ready");
    running.send_line();
    let child = running.expect_number("child") as u32;
    running.expect("done");
    let finished = finish_well(running);
    let report = all_reports(&finished.stdout);
    assert_family(&report, parent, child);
    let ended = report.processes.iter().filter(|process| process.ended);
    assert_eq!(ended.count(), 3, "{report:#?}");
}

#[test]
fn the_children_of_a_running_process_are_followed() {
    require_root();
    let program = fixture::c("forks");
    let mut target = memleak::ready(&program, &[]);
    let parent = target.pid();
    let tracer = memleak::attach(parent, &["-f", "-T", ALL_STACKS], NEVER);
    target.send_line();
    let child = target.expect_number("child") as u32;
    target.expect("done");
    assert!(target.finish().status.success());
    let finished = finish_well(tracer);
    assert_family(&all_reports(&finished.stdout), parent, child);
}

#[test]
fn a_child_that_frees_inherited_blocks_leaves_its_parents() {
    require_root();
    let report = {
        let options = ["-f"];
        last_report_of(&options, &fixture::c("fork_free"), &[])
    };
    assert_eq!(report.made_in("parent_block"), Held::each(3, 5001));
}

/// The pid that memleak says it attaches to.
fn attached_pid(running: &mut Running) -> u32 {
    let prefix = "Attaching to pid ";
    let line = running.stdout_line("`Attaching` line", |line| line.starts_with(prefix));
    let digits = line[prefix.len()..].split(',').next().expect("a comma");
    digits.parse().expect("a pid")
}
