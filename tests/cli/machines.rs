//! What machines read of `memleak report`: annotations, SARIF, JUnit, JSON on growth, and compressed recordings.
//! Each recording is written here, so that every figure can be told beforehand.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// A recording in the making, of a report every five seconds.
#[derive(Default)]
struct Run {
    lines: String,
    /// Of each stack, its bytes in every snapshot.
    series: Vec<Vec<u64>>,
}

impl Run {
    fn new() -> Run {
        let mut run = Run::default();
        run.line(&json!({
            "type": "header", "format": "memleak-recording", "version": 1, "tool": "memleak 0.1.0",
            "command": ["memleak"], "host": {"name": "h", "kernel": "6.1", "machine": "x86_64"},
            "target": {"kind": "process", "pid": 7, "command": ["/srv/server"]},
        }));
        run.line(&json!({"type": "module", "id": 0, "path": "/srv/server"}));
        run.line(&json!({"type": "module", "id": 1, "path": "/lib/libstdc++.so.6"}));
        run
    }

    fn line(&mut self, line: &Value) {
        writeln!(self.lines, "{line}").unwrap();
    }

    /// Adds a stack: functions innermost first, each with its place, and its bytes over time.
    fn stack(&mut self, tgid: u32, frames: &[(&str, &str, u32)], bytes: Vec<u64>) {
        let id = self.series.len();
        let frame = |(at, (name, file, line)): (usize, &(&str, &str, u32))| {
            let module = u32::from(name.starts_with("operator"));
            let mut frame = json!({
                "address": format!("{:#x}", 0x1000 + 256 * id + at), "module": module,
                "symbol": name, "symbol_offset": 4,
            });
            if !file.is_empty() {
                frame["file"] = json!(file);
                frame["line"] = json!(line);
            }
            frame
        };
        let frames: Vec<Value> = frames.iter().enumerate().map(frame).collect();
        self.line(
            &json!({"type": "stack", "id": id, "tgid": tgid, "class": "heap", "frames": frames}),
        );
        self.series.push(bytes);
    }

    /// Writes the recording; `headroom` is what is left to the target.
    fn write(mut self, path: &Path, headroom: u64) {
        let snapshots = self.series[0].len();
        for at in 0..snapshots {
            let held = self.series.iter().enumerate();
            let held: Vec<(usize, u64)> = held
                .map(|(stack, bytes)| (stack, bytes[at]))
                .filter(|(_, bytes)| *bytes > 0)
                .collect();
            let stacks: Vec<usize> = held.iter().map(|(stack, _)| *stack).collect();
            let bytes: Vec<u64> = held.iter().map(|(_, bytes)| *bytes).collect();
            let line = json!({
                "type": "snapshot", "unix_ns": 1_700_000_000_000_000_000u64 + at as u64 * 5_000_000_000,
                "utc_offset_s": 0, "elapsed_ns": at as u64 * 5_000_000_000, "reason": "interval",
                "complete": true, "estimated": false, "losses": {},
                "headroom": {"bytes": headroom, "limit": "cgroup"},
                "stack": stacks, "bytes": bytes, "count": vec![1; bytes.len()],
            });
            self.line(&line);
        }
        fs::write(path, self.lines).unwrap();
    }
}

fn rising(start: u64, step: u64) -> Vec<u64> {
    (0..24).map(|at| start + at * step).collect()
}

/// A C++ server with three culprits, one of them through three stacks, and memory that stays.
fn server(path: &Path) {
    let mut run = Run::new();
    let make_shared = (
        "std::shared_ptr<app::Session> std::make_shared<app::Session, int&>(int&)",
        "/usr/include/c++/12/bits/shared_ptr.h",
        1010,
    );
    let new = ("operator new(unsigned long)", "", 0);
    let main = ("main", "/srv/src/main.cpp", 9);
    for (at, caller) in ["http", "grpc", "timer"].into_iter().enumerate() {
        let caller = (caller, "/srv/src/front.cpp", 30 + at as u32);
        run.stack(
            7,
            &[
                new,
                make_shared,
                ("app::Server::open(int)", "/srv/src/server.cpp", 12),
                caller,
                main,
            ],
            rising(1000, 500 * (at as u64 + 1)),
        );
    }
    run.stack(
        7,
        &[
            new,
            (
                "void std::vector<int, std::allocator<int> >::_M_realloc_insert<int const&>(int const&)",
                "",
                0,
            ),
            ("app::Log::append(int)", "/srv/src/log, v2.cpp", 40),
            main,
        ],
        rising(5000, 2000),
    );
    run.stack(
        7,
        &[
            new,
            (
                "void app::Cache<int>::put<int>(int)",
                "/srv/src/cache.h",
                70,
            ),
            main,
        ],
        rising(0, 250),
    );
    run.stack(
        7,
        &[
            ("xmalloc", "", 0),
            ("start_up", "/srv/src/main.cpp", 3),
            main,
        ],
        vec![1_000_000; 24],
    );
    run.write(path, 550_000);
}

fn report(path: &Path, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_memleak"))
        .arg("report")
        .arg(path)
        .args(options)
        .env("GITHUB_WORKSPACE", "/srv")
        .env_remove("GITHUB_STEP_SUMMARY")
        .output()
        .unwrap()
}

fn stdout(path: &Path, options: &[&str]) -> String {
    String::from_utf8(report(path, options).stdout).unwrap()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    (folder, path)
}

#[test]
fn three_culprits_are_three_lines_with_their_places() {
    let (_folder, path) = folder();
    server(&path);
    let text = stdout(&path, &[]);
    let (_, growth) = text
        .split_once("Growing stacks, by proven rate:\n")
        .unwrap();
    let expected = "\
\t+600 B/s (600 B/s to 600 B/s) over 115 s, 70.3 KiB in 3 blocks of 3 stacks: app::Server::open server.cpp:12 [server]
\t+400 B/s (400 B/s to 400 B/s) over 115 s, 49.8 KiB in 1 blocks: app::Log::append log, v2.cpp:40 [server]
\t+50 B/s (50 B/s to 50 B/s) over 110 s, 5.62 KiB in 1 blocks: app::Cache<int>::put<int> cache.h:70 [server]
\t+1.03 KiB/s in all, cgroup's memory limit used up in 8.73 min
";
    assert_eq!(growth, expected);
    let json: Value = serde_json::from_str(&stdout(&path, &["--json", "-"])).unwrap();
    let functions = json["growth"]["functions"].as_array().unwrap();
    assert_eq!(functions.len(), 3);
    assert_eq!(functions[0]["blame"]["function"], "app::Server::open");
    assert_eq!(functions[0]["blame"]["line"], 12);
    assert_eq!(functions[0]["stacks"], 3);
    assert_eq!(functions[0]["growth"]["proven"], true);
}

#[test]
fn the_time_left_is_that_of_the_sum() {
    let (_folder, path) = folder();
    let mut run = Run::new();
    let mut sum = 0.0;
    for stack in 0..178 {
        let name = format!("leak_{}", stack % 60);
        run.stack(
            7,
            &[(&name, "/srv/a.c", stack), ("main", "", 0)],
            rising(100, u64::from(stack) + 1),
        );
        sum += (f64::from(stack) + 1.0) / 5.0;
    }
    run.write(&path, 10_000_000);
    let json: Value = serde_json::from_str(&stdout(&path, &["--json", "-"])).unwrap();
    assert_eq!(json["growing"].as_array().unwrap().len(), 178);
    let left = json["growth"]["exhausted_in_s"].as_f64().unwrap();
    let expected = 10_000_000.0 / sum;
    assert!((left / expected - 1.0).abs() < 0.01, "{left} {expected}");
    assert_eq!(json["growing"][0]["growth"]["exhausted_in_s"], left);
}

#[test]
fn a_child_that_leaked_and_ended_fails_the_gate() {
    let (_folder, path) = folder();
    let mut run = Run::new();
    run.line(&json!({"type": "process", "tgid": 7, "name": "parent"}));
    run.line(
        &json!({"type": "process", "tgid": 8, "name": "child", "ended_ns": 8 * 5_000_000_000u64}),
    );
    let child = (0..24).map(|at: u64| 100 * at.min(7) + 100).collect();
    run.stack(7, &[("idle", "", 0)], vec![64; 24]);
    run.stack(8, &[("work", "/srv/child.c", 5)], child);
    run.write(&path, 1_000_000);
    let output = report(&path, &["--fail-on", "growth"]);
    assert_eq!(output.status.code(), Some(23));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("pid 8 (child): work child.c:5 [server]"),
        "{text}"
    );
}

#[test]
fn annotations_name_file_and_line() {
    let (folder, path) = folder();
    server(&path);
    let summary = folder.path().join("summary.md");
    fs::write(&summary, "before\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .arg("report")
        .arg(&path)
        .args(["--format", "github", "--fail-on", "growth"])
        .env("GITHUB_WORKSPACE", "/srv")
        .env("GITHUB_STEP_SUMMARY", &summary)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(23));
    let text = String::from_utf8(output.stdout).unwrap();
    let commands: Vec<&str> = text.lines().filter(|line| line.starts_with("::")).collect();
    assert_eq!(
        commands,
        [
            "::error title=memleak: failed on growth::5 stacks of memory grow",
            "::error file=src/server.cpp,line=12,title=memleak%3A app%3A%3AServer%3A%3Aopen grows::app::Server::open grows: +600 B/s, 70.3 KiB in 3 allocations from 3 stacks",
            "::error file=src/log%2C v2.cpp,line=40,title=memleak%3A app%3A%3ALog%3A%3Aappend grows::app::Log::append grows: +400 B/s, 49.8 KiB in 1 allocation from 1 stack",
            "::error file=src/cache.h,line=70,title=memleak%3A app%3A%3ACache<int>%3A%3Aput<int> grows::app::Cache<int>::put<int> grows: +50 B/s, 5.62 KiB in 1 allocation from 1 stack",
        ]
    );
    let summary = fs::read_to_string(summary).unwrap();
    assert!(summary.starts_with("before\n### memleak\n"));
    assert!(
        summary.contains("| `app::Server::open` | src/server.cpp:12 | +600 B/s,"),
        "{summary}"
    );
    // without a gate, nothing is an error
    let text = stdout(&path, &["--format", "github"]);
    assert!(text.contains("::warning file=src/server.cpp,line=12,") && !text.contains("::error"));
}

#[test]
fn sarif_has_a_result_for_each_function() {
    let (_folder, path) = folder();
    server(&path);
    let log: Value = serde_json::from_str(&stdout(&path, &["--sarif", "-"])).unwrap();
    assert_eq!(log["version"], "2.1.0");
    let results = log["runs"][0]["results"].as_array().unwrap();
    // three that grow, and the same three and one more that hold memory
    assert_eq!(results.len(), 7);
    assert_eq!(results[0]["ruleId"], "growth");
    assert_eq!(results[0]["level"], "warning");
    let place = &results[0]["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "src/server.cpp");
    assert_eq!(place["region"]["startLine"], 12);
    let other = &results[1]["locations"][0]["physicalLocation"];
    assert_eq!(other["artifactLocation"]["uri"], "src/log%2C%20v2.cpp");
    assert_eq!(results[3]["ruleId"], "outstanding");
    assert_eq!(results[3]["level"], "note");
    assert_eq!(
        results[3]["locations"][0]["logicalLocations"][0]["name"],
        "start_up"
    );
}

#[test]
fn junit_has_a_case_for_each_gate() {
    let (_folder, path) = folder();
    server(&path);
    let gates = ["--fail-on", "growth,count=1000", "--junit", "-"];
    let output = report(&path, &gates);
    assert_eq!(output.status.code(), Some(23));
    let xml = String::from_utf8(output.stdout).unwrap();
    let expected = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="memleak" tests="2" failures="1">
  <testsuite name="memleak" tests="2" failures="1" errors="0" skipped="0">
    <testcase classname="memleak" name="growth">
      <failure message="5 stacks of memory grow" type="growth">
app::Server::open grows (server.cpp:12): +600 B/s, 70.3 KiB in 3 allocations from 3 stacks
app::Log::append grows (log, v2.cpp:40): +400 B/s, 49.8 KiB in 1 allocation from 1 stack
app::Cache&lt;int&gt;::put&lt;int&gt; grows (cache.h:70): +50 B/s, 5.62 KiB in 1 allocation from 1 stack
      </failure>
    </testcase>
    <testcase classname="memleak" name="count=1000"/>
  </testsuite>
</testsuites>
"#;
    assert_eq!(xml, expected);
}

#[test]
fn compressed_recordings_are_read_like_others() {
    let (folder, path) = folder();
    server(&path);
    let expected = stdout(&path, &["--json", "-"]);
    let plain = fs::read(&path).unwrap();
    let gzip = folder.path().join("run.gz");
    let mut encoder = flate2::write::GzEncoder::new(
        fs::File::create(&gzip).unwrap(),
        flate2::Compression::fast(),
    );
    encoder.write_all(&plain).unwrap();
    encoder.finish().unwrap();
    assert!(stdout(&gzip, &["--json", "-"]) == expected);
    let zst = folder.path().join("run.zst");
    fs::write(&zst, zstd::encode_all(&plain[..], 1).unwrap()).unwrap();
    assert!(stdout(&zst, &["--json", "-"]) == expected);
    // a writer that was killed
    let cut = fs::read(&gzip).unwrap();
    fs::write(&gzip, &cut[..cut.len() / 2]).unwrap();
    let output = report(&gzip, &[]);
    assert!(output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("reading ends there, after"), "{error}");
}
