//! Lost or held: what nothing points to is called lost, and nothing else is, whatever holds it and however the target
//! ends. The target goes on whatever becomes of memleak.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::memleak::{self, NEVER, attach, command, ready};
use crate::support::process::{Finished, Running};
use crate::support::{fixture, require_root};

/// Blocks, and how many of them are lost and lost indirectly.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    count: u64,
    lost: u64,
    indirectly: u64,
    undecided: u64,
}

fn of(count: u64, lost: u64, indirectly: u64) -> Counts {
    Counts {
        count,
        lost,
        indirectly,
        undecided: 0,
    }
}

/// A finished run and its last report.
struct Run {
    finished: Finished,
    document: Value,
}

impl Run {
    /// What was allocated in a function.
    fn made_in(&self, function: &str) -> Counts {
        let mut counts = Counts::default();
        for entry in self.document["entries"].as_array().expect("entries") {
            let of = |name: &str| entry[name]["count"].as_u64().expect("a number");
            if entry["frames"][0]["symbol"] == function {
                counts.count += entry["count"].as_u64().expect("a number");
                counts.lost += of("lost");
                counts.indirectly += of("lost_indirectly");
                counts.undecided += of("undecided");
            }
        }
        counts
    }

    fn look(&self) -> &Value {
        &self.document["lost_or_held"]
    }
}

fn json_in(folder: &TempDir) -> PathBuf {
    folder.path().join("report.json")
}

fn with_json(running: Running, json: &Path) -> Run {
    let finished = running.finish();
    let text = fs::read_to_string(json).unwrap_or_else(|error| panic!("{error}: {finished:#?}"));
    Run {
        finished,
        document: serde_json::from_str(&text).expect("JSON"),
    }
}

/// Runs the fixture from its first instruction to its end, in one of its ways.
fn traced(kind: &str, options: &[&str]) -> Run {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let json = json_in(&folder);
    let json = json.to_str().expect("text");
    let options = [options, &["--json", json, NEVER]].concat();
    let mut running = memleak::start(&options, &fixture::c("lost_kinds"), &[kind]);
    running.expect("ready");
    running.send_line();
    running.expect("done");
    with_json(running, Path::new(json))
}

/// Attaches when the fixture has done its phase, and reports once. Nothing was recorded, so all is from before.
fn attached_late(kind: &str, options: &[&str]) -> Run {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let json = json_in(&folder);
    let json = json.to_str().expect("text");
    let mut target = ready(&fixture::c("lost_kinds"), &[kind]);
    target.send_line();
    target.expect("done");
    let options = [options, &["--json", json]].concat();
    let tracer = attach(target.pid(), &options, NEVER);
    tracer.signal(Signal::INT);
    let run = with_json(tracer, Path::new(json));
    assert!(target.finish().status.success());
    run
}

#[test]
fn what_is_held_in_any_way_is_held() {
    for (kind, count) in [
        ("interior", 101),
        ("mapping", 100),
        ("epoll", 100),
        ("timer", 10),
        ("list", 100),
        ("tls", 4),
        ("register", 1),
    ] {
        let run = traced(kind, &["--lost"]);
        assert_eq!(run.made_in("make_held"), of(count, 0, 0), "{kind}");
        assert_eq!(run.look()["lost"]["count"], 0, "{kind}: {:#}", run.look());
    }
}

#[test]
fn what_nothing_points_to_is_lost() {
    for (kind, lost, indirectly) in [
        ("lose", 100, 0),
        ("dead_frames", 100, 0),
        ("ring", 1, 99),
        ("containers", 1, 101),
    ] {
        let run = traced(kind, &["--lost"]);
        let expected = of(lost + indirectly, lost, indirectly);
        assert_eq!(run.made_in("make_lost"), expected, "{kind}");
    }
}

#[test]
fn free_memory_holds_nothing() {
    let run = traced("container_first", &["--lost"]);
    let counts = run.made_in("make_lost");
    assert!(counts.count == 100 && counts.lost >= 94, "{counts:?}");
}

#[test]
fn arenas_of_threads_are_understood() {
    let run = traced("arena", &["--lost"]);
    assert_eq!(run.made_in("make_held"), of(101, 0, 0));
    assert_eq!(run.made_in("make_lost"), of(100, 100, 0));
}

#[test]
fn every_way_to_end_is_seen_before_memory_is_gone() {
    for (kind, status) in [
        ("thread", Some(0)),
        ("group", Some(0)),
        ("abort", Some(134)),
        ("segv", Some(139)),
        ("kill", Some(137)),
    ] {
        let run = traced(kind, &["--lost"]);
        assert_eq!(run.finished.status.code(), status, "{kind}");
        assert_eq!(run.made_in("make_lost"), of(100, 100, 0), "{kind}");
        assert_eq!(run.look()["confirmed"], true, "{kind}");
    }
}

#[test]
fn blocks_from_before_are_told_apart_as_well() {
    for how in ["--lost=auto", "--lost=live", "--lost=stop"] {
        let run = attached_late("arena", &[how]);
        let before = |name: &str| {
            let amount = &run.look()[name];
            (amount["bytes"].as_u64(), amount["count"].as_u64())
        };
        let lost = &run.look()["before"]["lost"];
        assert_eq!(lost["count"], 100, "{how}: {:#}", run.look());
        assert!(before("before_held").1 >= Some(101), "{:#}", run.look());
        assert_eq!(run.look()["confirmed"], how != "--lost=live");
    }
}

#[test]
fn the_text_says_how_much_of_each_stack_is_lost() {
    let run = traced("lose", &["--lost"]);
    let lines = run.finished.stdout.join("\n");
    assert!(
        lines.contains("\t101300 bytes in 100 allocations from stack: all lost\n"),
        "{lines}"
    );
    assert!(
        lines.contains("\nLost 98.9 KiB in 100 blocks, held"),
        "{lines}"
    );
    let plain = traced("lose", &[]);
    assert!(plain.look().is_null());
    let lines = plain.finished.stdout.join("\n");
    assert!(
        !lines.contains("all lost") && !lines.contains("\nLost"),
        "{lines}"
    );
}

#[test]
fn a_gate_fails_on_what_is_lost_and_not_on_a_cache() {
    let leaks = traced("lose", &["--fail-on", "lost"]);
    assert_eq!(leaks.finished.status.code(), Some(23));
    let stderr = leaks.finished.stderr.join("\n");
    assert!(
        stderr.contains("failed on lost: 101300 bytes in 100 allocations lost"),
        "{stderr}"
    );
    assert!(leaks.finished.stdout.join("\n").contains("make_lost"));
    for gate in ["lost=98K", "leak"] {
        let leaks = traced("lose", &["--lost", "--fail-on", gate]);
        assert_eq!(leaks.finished.status.code(), Some(23), "{gate}");
    }
    for (kind, gates) in [("list", "lost,leak"), ("lose", "lost=99K")] {
        let passes = traced(kind, &["--lost", "--fail-on", gates]);
        assert_eq!(passes.finished.status.code(), Some(0), "{kind} {gates}");
    }
}

#[test]
fn a_recording_tells_it_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run.jsonl");
    let path = path.to_str().expect("text");
    let live = traced("containers", &["--lost", "--record", path]);
    let again = memleak::run(["report", path, "--text", "--fail-on", "lost"]);
    assert_eq!(again.status.code(), Some(23), "{again:#?}");
    let summary = |lines: &[String]| {
        let line = lines.iter().find(|line| line.starts_with("Lost "));
        line.cloned().unwrap_or_else(|| panic!("{lines:#?}"))
    };
    assert_eq!(summary(&live.finished.stdout), summary(&again.stdout));
}

/// A target whose memory takes a while to look at; memleak is killed at some moment of it.
#[test]
fn the_target_goes_on_when_memleak_is_killed() {
    require_root();
    let mut target = ready(&fixture::c("two_threads"), &[]);
    for round in 0..20 {
        let mut tracer = command();
        tracer.args(["-v", "--lost=stop", "--lost-every", "1"]);
        tracer.args(["-p", &target.pid().to_string(), "0.01"]);
        let mut tracer = memleak::armed(&mut tracer);
        for _ in 0..round {
            tracer.stderr_line("look", |line| line.starts_with("memleak: looked at"));
        }
        tracer.signal(Signal::KILL);
        drop(tracer);
        target.send_line();
        target.expect("leaked");
    }
    let finished = target.finish();
    assert!(finished.status.success(), "{finished:#?}");
    assert!(finished.stdout.iter().any(|line| line == "unharmed"));
}

#[test]
fn a_command_goes_on_when_memleak_is_killed() {
    require_root();
    let program = fixture::c("two_threads");
    let mut tracer = memleak::start(&["--lost", NEVER], &program, &[]);
    tracer.expect("ready");
    tracer.send_line();
    tracer.expect("leaked");
    tracer.signal(Signal::KILL);
    // the command has memleak's streams, and says so once they close
    let finished = tracer.finish();
    assert!(
        finished.stdout.iter().any(|line| line == "unharmed"),
        "{finished:#?}"
    );
}

#[test]
fn what_cannot_be_looked_at_is_said_and_reported_all_the_same() {
    require_root();
    let mut target = ready(&fixture::c("two_threads"), &[]);
    // another tracer has it
    let mut strace = std::process::Command::new("strace");
    strace.args(["-f", "-p", &target.pid().to_string()]);
    let mut strace = Running::spawn(&mut strace);
    strace.stderr_line("attached", |line| line.contains("attached"));
    let tracer = attach(target.pid(), &["--older", "0", "--fail-on", "lost"], NEVER);
    target.send_line();
    target.expect("leaked");
    tracer.signal(Signal::INT);
    let finished = tracer.finish();
    let stderr = finished.stderr.join("\n");
    assert!(stderr.contains("traces it already"), "{stderr}");
    assert!(
        stderr.contains("failed on lost: what is lost could not be told"),
        "{stderr}"
    );
    assert_eq!(finished.status.code(), Some(23), "{finished:#?}");
    assert!(finished.stdout.join("\n").contains("leak_in_thread"));
}
