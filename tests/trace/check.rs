//! `memleak check`: facts about the machine and a process, and an exit status that says whether tracing would work.
//! What each fact means for a run is checked where that is traced.

use std::process::Command;

use serde_json::Value;

use crate::support::{fixture, memleak, require_root};

fn facts(arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let finished = memleak::run([&["check", "--json"], arguments].concat());
    let text = finished.stdout.join("\n");
    let facts = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{finished:#?}"));
    (finished.status.code(), facts)
}

fn about<'a>(facts: &'a [Value], name: &str) -> Vec<&'a Value> {
    facts.iter().filter(|fact| fact["about"] == name).collect()
}

#[test]
fn a_machine_that_traces_passes_and_a_process_is_described() {
    require_root();
    let target = memleak::ready(&fixture::c("large"), &[]);
    let pid = target.pid();
    let (status, facts) = facts(&["-p", &pid.to_string()]);
    assert_eq!(status, Some(0), "{facts:#?}");
    assert!(
        facts.iter().all(|fact| fact["state"] != "failed"),
        "{facts:#?}"
    );
    let allocator = about(&facts, "allocator");
    assert_eq!(allocator.len(), 1, "{facts:#?}");
    assert_eq!(allocator[0]["pid"], pid);
    assert!(allocator[0]["says"].as_str().unwrap().contains("libc.so.6"));
    assert_eq!(about(&facts, "seccomp").len(), 0, "{facts:#?}");
    drop(target);
}

#[test]
fn what_is_missing_is_named_and_fails() {
    require_root();
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set", "-bpf,-perfmon,-sys_admin"])
        .arg(memleak::command().get_program())
        .arg("check");
    let output = command.output().expect("setpriv runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let missing = |line: &str| line.starts_with("failed") && line.contains("CAP_BPF");
    assert!(text.lines().any(missing), "{text}");
}

#[test]
fn a_process_that_is_not_there_fails() {
    require_root();
    let (status, facts) = facts(&["-p", "4194303"]);
    assert_eq!(status, Some(1));
    let process = about(&facts, "process");
    assert!(
        process[0]["says"]
            .as_str()
            .unwrap()
            .contains("no such process"),
        "{facts:#?}"
    );
}
