//! Live runs with recording, outputs, gates, and reports on demand. Needs root.
//! The fixtures wait for the test, and the test for them: nothing here depends on time.

use std::fs;
use std::io::{BufRead as _, BufReader, Lines, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

fn compile(folder: &Path, source: &str, flags: &[&str]) -> PathBuf {
    let program = folder.join(source.trim_end_matches(".c"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(source);
    let status = Command::new("cc")
        .args([
            "-g",
            "-O1",
            "-fno-omit-frame-pointer",
            "-fno-optimize-sibling-calls",
        ])
        .args(flags)
        .arg("-o")
        .args([&program, &source])
        .status()
        .unwrap();
    assert!(status.success());
    program
}

fn memleak() -> Command {
    Command::new(env!("CARGO_BIN_EXE_memleak"))
}

/// Memory that a running fixture holds is looked at through these.
struct Traced {
    service: Child,
    rounds: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    tracer: Child,
    reports: BufReader<ChildStdout>,
}

impl Traced {
    /// Starts the service, and memleak on it, with the interval so long that only signals make reports.
    fn start(folder: &Path, options: &[&str]) -> Traced {
        let program = compile(folder, "service.c", &[]);
        let mut service = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let rounds = service.stdin.take().unwrap();
        let answers = BufReader::new(service.stdout.take().unwrap()).lines();
        let mut tracer = memleak()
            .args(["-p", &service.id().to_string(), "-o", "0"])
            .args(options)
            .arg("100000")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut reports = BufReader::new(tracer.stdout.take().unwrap());
        let mut attached = String::new();
        reports.read_line(&mut attached).unwrap();
        assert!(attached.starts_with("Attaching to pid"), "{attached}");
        Traced {
            service,
            rounds,
            answers,
            tracer,
            reports,
        }
    }

    /// Lets the service do something, and waits until it has.
    fn serve(&mut self, what: &str) {
        writeln!(self.rounds, "{what}").unwrap();
        assert_eq!(self.answers.next().unwrap().unwrap(), "done");
    }

    /// Asks for a report, and waits until it has begun: its figures are then taken.
    fn signal(&mut self, signal: &str) {
        let pid = self.tracer.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", signal, &pid])
                .status()
                .unwrap()
                .success()
        );
        let mut line = String::new();
        while !line.contains("] Top ") {
            line.clear();
            assert!(
                self.reports.read_line(&mut line).unwrap() > 0,
                "the tracer has left"
            );
        }
    }

    /// Ends the service, and with it the trace. Gives the rest of the reports, stderr and the exit status.
    fn end(mut self) -> (String, String, Option<i32>) {
        drop(self.rounds);
        self.service.wait().unwrap();
        let (mut reports, mut errors) = (String::new(), String::new());
        self.reports.read_to_string(&mut reports).unwrap();
        self.tracer
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut errors)
            .unwrap();
        (reports, errors, self.tracer.wait().unwrap().code())
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn functions(entry: &Value) -> Vec<&str> {
    entry["frames"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|frame| frame["symbol"].as_str())
        .collect()
}

#[test]
fn of_all_that_a_service_does_exactly_the_slow_leak_grows() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (record, live) = (path("run.jsonl"), path("live.json"));
    let options = ["--record", &record, "--json", &live, "--fail-on", "growth"];
    let mut traced = Traced::start(folder.path(), &options);
    for _ in 0..24 {
        traced.serve("round");
        traced.signal("USR1");
    }
    let (_, errors, status) = traced.end();
    assert_eq!(status, Some(23), "{errors}");
    assert!(
        errors.contains("failed on growth: 1 stack of memory grows"),
        "{errors}"
    );

    let live = json(Path::new(&live));
    let growing = live["growing"].as_array().unwrap();
    assert_eq!(growing.len(), 1, "{growing:#?}");
    assert!(
        functions(&growing[0]).starts_with(&["slow_leak"]),
        "{growing:#?}"
    );
    assert_eq!(
        (&growing[0]["bytes"], &growing[0]["count"]),
        (&Value::from(24 * 333), &Value::from(24))
    );
    assert_eq!(growing[0]["growth"]["continuous"], true);
    let verdict = |function: &str| {
        let entries = live["entries"].as_array().unwrap();
        let entry = entries
            .iter()
            .find(|entry| functions(entry).starts_with(&[function]))
            .unwrap();
        entry["growth"]["verdict"].as_str().unwrap()
    };
    assert_eq!(
        ["start_up", "fill_cache", "sawtooth"].map(verdict),
        ["plateau", "plateau", "sawtooth"]
    );

    let offline = memleak()
        .args(["report", &record, "--json", "-", "--fail-on", "growth"])
        .output()
        .unwrap();
    assert_eq!(offline.status.code(), Some(23));
    let offline: Value = serde_json::from_slice(&offline.stdout).unwrap();
    for same in [
        "entries",
        "growing",
        "totals",
        "target",
        "time",
        "duration_ns",
    ] {
        assert_eq!(offline[same], live[same], "{same}");
    }
}

#[test]
fn a_mark_hides_what_came_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut traced = Traced::start(folder.path(), &["--since-mark"]);
    traced.serve("before");
    traced.signal("USR2");
    traced.serve("after");
    let (reports, errors, status) = traced.end();
    assert_eq!(status, Some(0), "{errors}");
    let (_, last) = reports.rsplit_once("] Top ").unwrap();
    assert!(
        last.contains("\t2222 bytes in 1 allocations from stack\n"),
        "{reports}"
    );
    assert!(
        last.contains("leak_after+") && !last.contains("leak_before+"),
        "{reports}"
    );
}

fn gate(program: &Path, options: &[&str]) -> Output {
    memleak()
        .args(options)
        .args(["--fail-on", "leak", "-c"])
        .arg(program)
        .output()
        .unwrap()
}

#[test]
fn a_leak_fails_a_build_a_fixed_program_passes_and_a_known_leak_passes_with_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let leaking = compile(folder.path(), "ci_leak.c", &[]);
    let output = gate(&leaking, &[]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(23), "{stderr}");
    assert!(
        stderr.contains("failed on leak: 4321 bytes in 1 allocation from 1 stack outstanding"),
        "{stderr}"
    );
    assert_eq!(
        gate(&leaking, &["--error-exitcode", "7"]).status.code(),
        Some(7)
    );

    let rules = folder.path().join("known");
    fs::write(&rules, "leak:^forget$\n").unwrap();
    let output = gate(&leaking, &["--suppressions", rules.to_str().unwrap()]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(
        stderr.contains("suppressed: 4321 bytes in 1 allocations"),
        "{stderr}"
    );
    assert!(!String::from_utf8_lossy(&output.stdout).contains("forget"));

    let fixed = compile(folder.path(), "ci_leak.c", &["-DFIXED"]);
    let output = gate(&fixed, &[]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn what_an_earlier_run_left_is_the_baseline_of_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old.jsonl");
    let old = old.to_str().unwrap();
    let mut traced = Traced::start(folder.path(), &["--record", old]);
    traced.serve("before");
    let (_, errors, status) = traced.end();
    assert_eq!(status, Some(0), "{errors}");

    for (leaks, expected) in [(&["before"][..], 0), (&["before", "after"][..], 23)] {
        let mut traced = Traced::start(folder.path(), &["--baseline", old, "--fail-on", "leak"]);
        leaks.iter().for_each(|leak| traced.serve(leak));
        let (reports, errors, status) = traced.end();
        assert_eq!(status, Some(expected), "{reports}{errors}");
        assert!(
            errors.contains("in the baseline already: 1111 bytes in 1 allocations"),
            "{errors}"
        );
        assert!(!reports.contains("leak_before+"), "{reports}");
    }
}

#[test]
fn an_output_on_the_standard_output_is_alone_there() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "ci_leak.c", &[]);
    let output = memleak()
        .args(["--json", "-", "-c"])
        .arg(&program)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["totals"]["bytes"], 4321);
    assert_eq!(report["target"]["kind"], "command");
}
