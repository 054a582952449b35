//! `memleak watch` on services that leak, cache, or do nothing, as an administrator runs it.
//! Needs root, cgroups that limit memory, and Debian's prometheus.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::http::get;
use crate::support::process::Running;
use crate::support::{fixture, memleak, require_root};

/// A watch that looks often and traces for a moment.
const HASTY: &[&str] = &["--every", "100ms", "--least-growth", "1M"];

fn service(what: &str) -> Running {
    let mut running = Running::spawn(Command::new(fixture::c("watched")).arg(what));
    running.expect("ready");
    running
}

fn watching(options: &[&str]) -> Running {
    let mut command = memleak::command();
    command.arg("watch").args(HASTY).args(options);
    let mut watch = Running::spawn(&mut command);
    watch.stderr_line("beginning", |line| line.starts_with("memleak: watching"));
    watch
}

/// The port at which a watch listens; it says so before it watches.
fn port(watch: &Running) -> u16 {
    let prefix = "memleak: listening at http://127.0.0.1:";
    let mut lines = watch.seen_on_stderr().iter();
    let line = lines.find_map(|line| line.strip_prefix(prefix));
    let port = line.expect("an address").trim_end_matches('/');
    port.parse().expect("a port")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn who_leaks_is_found_and_nobody_else_is_traced() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let (recordings, told) = (folder.path().join("recordings"), folder.path().join("told"));
    let services = ["leaker", "cacher", "still"].map(service);
    let mut watch = watching(&[
        "-v",
        "--comm",
        "leaker",
        "--comm",
        "cacher",
        "--comm",
        "still",
        "--window",
        "2s",
        "--listen",
        "0",
        "--metrics-functions",
        "1",
        "--record",
        path(&recordings),
        "--on-finding",
        &format!("cat > {0}.new; mv {0}.new {0}", told.display()),
    ]);
    let pid = services[0].pid();
    let finding = watch.stderr_line("finding", |line| line.starts_with("memleak: leak:"));
    let who = format!("process {pid} (leaker) grows by ");
    assert!(finding.contains(&who), "{finding}");
    assert!(finding.contains("leak_a_block leaks "), "{finding}");

    let metrics = get(port(&watch), "/metrics").text();
    let labels = format!("pid=\"{pid}\",comm=\"leaker\",container=\"");
    assert!(metrics.contains("memleak_watched_processes 3"), "{metrics}");
    assert!(metrics.contains("memleak_findings_total 1"), "{metrics}");
    for name in [
        "memleak_growth_bytes_per_second",
        "memleak_suspect_growth_bytes_per_second",
    ] {
        let line = format!("{name}{{{labels}");
        assert!(metrics.contains(&line), "{line} in\n{metrics}");
    }
    assert!(metrics.contains("function=\"leak_a_block\"}"), "{metrics}");
    let page = get(port(&watch), "/").text();
    assert!(
        page.contains("<b id=\"watched\">3</b> processes watched"),
        "{page}"
    );
    assert!(page.contains("<code>leak_a_block</code>"), "{page}");
    let json: Value =
        serde_json::from_slice(&get(port(&watch), "/report.json").body).expect("JSON");
    assert_eq!(
        json["growing"].as_array().map(Vec::len),
        Some(1),
        "{json:#}"
    );

    watch.signal(Signal::TERM);
    let finished = watch.wait();
    assert!(finished.status.success(), "{finished:#?}");
    let traced = finished
        .stderr
        .iter()
        .filter(|line| line.contains("tracing process"));
    assert!(
        traced.clone().all(|line| line.contains("(leaker)")),
        "{finished:#?}"
    );
    // a second window may have been under way
    let files = files(&recordings);
    assert!((1..=traced.count()).contains(&files.len()), "{files:?}");
    let again = memleak::run(["report", path(&files[0])]);
    assert!(
        again
            .stdout
            .iter()
            .any(|line| line.contains("leak_a_block+")),
        "{again:#?}"
    );
    let told: Value = serde_json::from_slice(&fs::read(told).expect("a finding")).expect("JSON");
    assert_eq!(told["format"], "memleak-finding");
    assert_eq!(
        (&told["pid"], &told["comm"]),
        (&pid.into(), &"leaker".into())
    );
    assert_eq!(told["growing"][0]["function"], "leak_a_block");
    assert_eq!(told["oom_killed"], false);
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

#[test]
fn a_window_ends_with_the_watch() {
    require_root();
    let leaker = service("leak-on");
    let mut watch = watching(&["-v", "--comm", "leak-on", "--window", "1h"]);
    watch.stderr_line("window", |line| line.contains("tracing process"));
    let window = child_of(watch.pid());
    watch.signal(Signal::TERM);
    let finished = watch.wait();
    assert!(finished.status.success(), "{finished:#?}");
    assert!(
        !Path::new(&format!("/proc/{window}")).exists(),
        "{window} goes on"
    );
    drop(leaker);
}

/// The only child of a process.
fn child_of(pid: u32) -> u32 {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).expect("its children");
    let mut children = children.split_whitespace();
    let child = children.next().expect("a child").parse().expect("a number");
    assert_eq!(children.next(), None);
    child
}

#[test]
fn who_is_killed_for_want_of_memory_is_told_of_with_what_grew() {
    require_root();
    let cgroup = LimitedCgroup::new(48 << 20);
    let leaker = cgroup.start("leak-all");
    let mut watch = watching(&["--comm", "leak-all", "--window", "6s"]);
    let line = watch.stderr_line("end", |line| line.starts_with("memleak: out of memory"));
    let killed = format!("the kernel has killed process {} (leak-all)", leaker.pid());
    assert!(
        line.contains(&killed) && line.contains("leak_a_block leaks"),
        "{line}"
    );
}

/// A cgroup in which a process is killed that takes too much.
struct LimitedCgroup {
    folder: PathBuf,
}

impl LimitedCgroup {
    fn new(bytes: u64) -> LimitedCgroup {
        let name = format!("memleak-watch-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = match first.join("memory.limit_in_bytes").exists() {
            true => (first, "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max"),
        };
        let folder = root.join(name);
        fs::create_dir_all(&folder).expect("failed to make a cgroup");
        let failed = "no cgroups limit memory here: leave the test out with --skip killed_for_want";
        fs::write(folder.join(limit), bytes.to_string()).expect(failed);
        LimitedCgroup { folder }
    }

    fn start(&self, what: &str) -> Running {
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec \"$0\" {what}",
            self.folder.display()
        );
        let program = fixture::c("watched");
        let mut running = Running::spawn(Command::new("sh").arg("-c").arg(script).arg(program));
        running.expect("ready");
        running
    }
}

impl Drop for LimitedCgroup {
    fn drop(&mut self) {
        // a process that has just ended can still be in it, which is no reason to fail
        let _ = fs::remove_dir(&self.folder);
    }
}

#[test]
fn what_can_not_be_recorded_is_said_at_once() {
    require_root();
    let file = tempfile::NamedTempFile::new().expect("a file");
    let finished = memleak::run(["watch", "--record", path(file.path())]);
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    assert!(
        finished.stderr[0].contains("failed to make the folder"),
        "{finished:#?}"
    );
}
