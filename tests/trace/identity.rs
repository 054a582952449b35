//! Who a process is, and what the kernel says of it: names that are no text, first threads that have ended, lists of ids.
//! Whose block is whose among several processes is checked in processes.rs.

use std::collections::BTreeMap;
use std::process::Command;

use crate::support::memleak::{self, ALL_STACKS, NEVER, finish_well, last_report};
use crate::support::report::{Held, all_reports};
use crate::support::{fixture, require_root};
use rustix::process::Signal;

/// Children that come and go while memleak can't run have a name each, and are reported once.
#[test]
fn what_happens_while_memleak_is_kept_from_running_is_exact() {
    require_root();
    const CHILDREN: usize = 400;
    let program = fixture::c("crowd");
    let all = ["-f", "-v", "-T", ALL_STACKS, "--top-processes", ALL_STACKS];
    let mut running = memleak::start(
        &[&all[..], &[NEVER]].concat(),
        &program,
        &[&CHILDREN.to_string()],
    );
    running.expect("ready");
    running.signal(Signal::STOP);
    running.send_line();
    running.expect("done");
    running.signal(Signal::CONT);
    let finished = finish_well(running);
    let lost = finished
        .stderr
        .iter()
        .find(|line| line.contains("not seen"));
    assert_eq!(lost, None, "{finished:#?}");
    let report = all_reports(&finished.stdout);
    let mut held: BTreeMap<u32, Held> = BTreeMap::new();
    for stack in report.stacks.iter().filter(|stack| {
        stack
            .frames
            .iter()
            .any(|frame| frame.symbol == "leak_in_crowd")
    }) {
        let sum = held.entry(stack.pid).or_default();
        sum.bytes += stack.held.bytes;
        sum.count += stack.held.count;
    }
    assert_eq!(held.len(), CHILDREN, "{finished:#?}");
    let wrong = held.iter().find(|(_, held)| **held != Held::each(10, 1009));
    assert_eq!(wrong, None, "{finished:#?}");
    for process in &report.processes {
        assert_eq!(process.name, "crowd", "{process:?}");
        assert!(process.ended, "{process:?}");
    }
}

#[test]
fn two_processes_of_one_number_are_two() {
    require_root();
    let program = fixture::c("same_number");
    for stopped in [false, true] {
        let options = ["-f", "-v", "-T", ALL_STACKS, NEVER];
        let mut running = memleak::start(&options, &program, &[]);
        running.expect("ready");
        if stopped {
            running.signal(Signal::STOP);
        }
        running.send_line();
        let child = running.expect_number("child") as u32;
        running.expect("done");
        running.signal(Signal::CONT);
        let finished = finish_well(running);
        let report = all_reports(&finished.stdout);
        let made = |function| report.made_by(child, function);
        assert_eq!(made("leak_first"), Held::each(1, 2221), "{finished:#?}");
        assert_eq!(made("leak_second"), Held::each(2, 3331), "{finished:#?}");
        let parts = report
            .processes
            .iter()
            .filter(|process| process.pid == child);
        assert_eq!(parts.count(), 2, "{finished:#?}");
    }
}

/// Attaches to a fixture and lets it leak once. Gives what is reported of `function`.
fn leaked_once(options: &[&str], program: &str, arguments: &[&str], function: &str) -> Held {
    let mut target = memleak::ready(&fixture::c(program), arguments);
    let options = [options, &["-T", ALL_STACKS]].concat();
    let tracer = memleak::attach(target.pid(), &options, NEVER);
    target.send_line();
    target.expect("done");
    finish_well(target);
    last_report(&finish_well(tracer)).made_in(function)
}

#[test]
fn names_that_are_no_utf_8_stand_in_nobodys_way() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("UTF-8");
    for options in [&[][..], &["-f"]] {
        let held = leaked_once(options, "odd_names", &[path], "leak_under_odd_names");
        assert_eq!(held, Held::each(1, 3003), "{options:?}");
    }
}

#[test]
fn a_process_whose_first_thread_has_ended_is_traced() {
    require_root();
    for options in [&[][..], &["-f"]] {
        let held = leaked_once(options, "main_thread_ends", &[], "leak_in_another_thread");
        assert_eq!(held, Held::each(1, 4567), "{options:?}");
    }
}

/// Where nobody else can be taken for the process, others that map the same library are left alone.
#[test]
fn beside_a_process_whose_first_thread_has_ended_nobody_is_traced() {
    require_root();
    let mut bystander = memleak::ready(&fixture::c("on_demand"), &["1111"]);
    let target = memleak::ready(&fixture::c("main_thread_ends"), &[]);
    let tracer = memleak::attach(target.pid(), &["-T", ALL_STACKS], NEVER);
    bystander.send_line();
    bystander.expect("done");
    finish_well(bystander);
    finish_well(target);
    let report = last_report(&finish_well(tracer));
    assert_eq!(report.total(), Held::default(), "{report:#?}");
}

/// `memleak -p $(pidof NAME)` gives a list whose second id stands where the interval does.
#[test]
fn a_second_process_id_is_not_taken_for_an_interval() {
    require_root();
    let program = fixture::c("on_demand");
    let two = [(); 2].map(|()| memleak::ready(&program, &["7"]));
    let [one, other] = [&two[0], &two[1]].map(|process| process.pid().to_string());
    for arguments in [vec!["-p", &one, &other], vec!["-p", &one, &other, "1", "2"]] {
        let finished = memleak::run(arguments);
        assert!(
            matches!(finished.status.code(), Some(1 | 2)),
            "{finished:#?}"
        );
        let [line] = &finished.stderr[..] else {
            panic!("{finished:#?}");
        };
        assert!(line.contains("-p ") && line.contains(','), "{finished:#?}");
    }
    let listed = memleak::run(["-p", &format!("{one} {other}"), "0.1", "1"]);
    let attached = format!("pids {}", [one, other].join(", "));
    assert!(
        listed.stdout.iter().any(|line| line.contains(&attached)),
        "{listed:#?}"
    );
}

/// The interval may be a process's number, if it is not the next of a list.
#[test]
fn an_interval_that_is_some_other_process_is_an_interval() {
    require_root();
    let target = memleak::ready(&fixture::c("on_demand"), &["7"]);
    let mut sleeper = Command::new("sleep")
        .arg("600")
        .spawn()
        .expect("sleep runs");
    let tracer = memleak::attach(target.pid(), &[], &sleeper.id().to_string());
    finish_well(target);
    let finished = finish_well(tracer);
    sleeper.kill().expect("sleep can be ended");
    sleeper.wait().expect("sleep can be waited for");
    let hint = format!(",{}", sleeper.id());
    let told = finished.stderr.iter().any(|line| line.contains(&hint));
    assert_eq!(told, sleeper.id() >= 600, "{finished:#?}");
}
