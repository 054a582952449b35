//! A recording in which everything was lost that can be: every output says all of it.
//! How losses are counted is checked where they happen.

use std::fs;
use std::path::Path;
use std::process::Command;

use memleak::model::losses::KINDS;
use serde_json::{Value, json};

/// The losses of a run in which each kind happened, a different number of times.
fn all_losses() -> Value {
    let counts = KINDS.iter().zip(101..);
    let mut losses: Value = counts
        .map(|(kind, count)| (kind.name.to_owned(), json!(count)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    losses["allocation_bytes"] = json!(4096);
    losses["cut"] = json!({"depth": 51, "unknown_code": 52, "unsupported": 53, "unreadable": 54, "frame_pointer": 55});
    losses
}

/// A recording whose snapshots have these losses.
fn recording(losses: &Value) -> String {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/recordings/service.jsonl");
    let text = fs::read_to_string(path).expect("the recording");
    text.lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).expect("JSON");
            if line["type"] == "snapshot" {
                line["losses"] = losses.clone();
            }
            format!("{line}\n")
        })
        .collect()
}

#[test]
fn every_output_shows_every_loss() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let losses = all_losses();
    fs::write(path("run.jsonl"), recording(&losses)).expect("a recording");
    let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .arg("report")
        .arg(path("run.jsonl"))
        .arg("--text")
        .arg("--html")
        .arg(path("page.html"))
        .arg("--json")
        .arg(path("report.json"))
        .output()
        .expect("memleak runs");
    let text = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{text}");
    let page = fs::read_to_string(path("page.html")).expect("a page");
    let report = fs::read(path("report.json")).expect("a report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");

    assert_eq!(report["losses"], losses);
    for (kind, count) in KINDS.iter().zip(101..) {
        let bytes = |text| if kind.name == "allocations" { text } else { "" };
        let told = format!(
            "{count} {}{} {}, {}",
            kind.many,
            bytes(" (4096 bytes)"),
            kind.fate,
            kind.advice
        );
        assert!(text.contains(&told), "{told}: {text}");
        let shown = format!(
            "<b>{count} {}{} {}.</b> <span>{}; {}.</span>",
            kind.many,
            bytes(" of 4.00 KiB"),
            kind.fate,
            kind.cause,
            kind.advice
        );
        assert!(page.contains(&shown), "{shown}");
    }
    assert!(page.contains("265 stacks were cut short.") && !page.contains("Nothing was lost."));
}
