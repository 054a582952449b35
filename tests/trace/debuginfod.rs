//! Names and lines from a debuginfod server, Debian's own on loopback, live and in reports of recordings, and from the cache
//! when the server is gone. Where else debug information comes from is checked in stacks.rs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::support::memleak::{self, ALL_STACKS, NEVER};
use crate::support::process::Running;
use crate::support::report::{Held, parse};
use crate::support::{fixture, require_root};

/// A server for the files below a folder, ended with this.
struct Server {
    child: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// The first line of what a server answers, if it answers at all.
fn status(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).ok()?;
    let text = String::from_utf8_lossy(&answer[..length]).into_owned();
    text.lines().next().map(str::to_owned)
}

fn serve(folder: &Path, build_id: &str) -> Server {
    let port = free_port();
    let child = Command::new("debuginfod")
        .args(["-F", "-d", ":memory:", "-p", &port.to_string()])
        .arg(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("debuginfod is installed");
    let server = Server {
        child,
        url: format!("http://127.0.0.1:{port}"),
    };
    let path = format!("/buildid/{build_id}/debuginfo");
    // it scans before it knows the file, and says so to nobody
    let found = |_: &u32| status(port, &path).is_some_and(|line| line.contains(" 200 "));
    assert!((0..u32::MAX).any(|at| found(&at)));
    server
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    let output = command.args(arguments).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the leak is called and where it stands, in a text report; `[unknown]` and nothing if it is not known.
fn name_of_leak(text: &[String]) -> (String, String) {
    let reports = parse(text);
    let stack = reports
        .iter()
        .flat_map(|report| &report.stacks)
        .find(|stack| stack.held == Held::new(1234, 1))
        .unwrap_or_else(|| panic!("{text:#?}"));
    (
        stack.frames[0].symbol.clone(),
        stack.frames[0].location.clone(),
    )
}

#[test]
fn names_and_lines_come_from_a_server_and_then_from_the_cache() {
    require_root();
    let folder = TempDir::new().unwrap();
    let (programs, served, cache) = ("programs", "served", "cache");
    for name in [programs, served] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let program = fixture::c_with("exit_now", &["-Wl,--build-id"]);
    let stripped = folder.path().join(programs).join("prog");
    fs::copy(&program, &stripped).unwrap();
    fs::copy(&program, folder.path().join(served).join("unstripped")).unwrap();
    run(folder.path(), "strip", &["--strip-all", "programs/prog"]);
    let notes = run(folder.path(), "readelf", &["-n", "programs/prog"]);
    let (_, build_id) = notes.split_once("Build ID: ").expect("a build id");
    let build_id = build_id.split_whitespace().next().unwrap();
    let server = serve(&folder.path().join(served), build_id);

    let trace = |options: &[&str]| {
        let mut command = memleak::command();
        command
            .env("DEBUGINFOD_CACHE_PATH", folder.path().join(cache))
            .args(["-T", ALL_STACKS])
            .args(options)
            .args([NEVER, "--"])
            .arg(&stripped);
        Running::spawn(&mut command).finish()
    };
    let recording = folder.path().join("run.jsonl");
    let recording = recording.to_str().unwrap();
    let without = trace(&["--record", recording]);
    assert_eq!(name_of_leak(&without.stdout).0, "[unknown]", "{without:#?}");
    let with = trace(&["--debuginfod", &server.url]);
    let named = |lines: &[String]| {
        let (symbol, location) = name_of_leak(lines);
        assert_eq!(symbol, "leak_and_leave", "{lines:#?}");
        let line = fixture::line_of("exit_now.c", "LEAK LINE");
        assert!(
            location.ends_with(&format!("exit_now.c:{line}")),
            "{location}"
        );
    };
    named(&with.stdout);

    // the server is gone: the cache has it
    let url = server.url.clone();
    drop(server);
    let mut command = memleak::command();
    command
        .env("DEBUGINFOD_CACHE_PATH", folder.path().join(cache))
        .env("DEBUGINFOD_URLS", url)
        .args(["report", "--text", recording]);
    named(&Running::spawn(&mut command).finish().stdout);
}

/// A server that answers every request with the same bytes.
fn answer_always(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(answer);
        }
    });
    format!("http://127.0.0.1:{port}")
}

#[test]
fn a_server_that_lies_or_is_not_there_costs_a_line() {
    require_root();
    let folder = TempDir::new().unwrap();
    let program = fixture::c_with("exit_now", &["-Wl,--build-id"]);
    let stripped = folder.path().join("prog");
    fs::copy(&program, &stripped).unwrap();
    run(folder.path(), "strip", &["--strip-all", "prog"]);
    let lie = answer_always(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\x7fELF");
    for (url, told) in [
        (&*lie, "is not what was asked for"),
        ("http://127.0.0.1:1", "failed to load"),
    ] {
        let mut command = memleak::command();
        command
            .env("DEBUGINFOD_CACHE_PATH", folder.path().join("cache"))
            .args(["-T", ALL_STACKS, "--debuginfod", url, NEVER, "--"])
            .arg(&stripped);
        let finished = Running::spawn(&mut command).finish();
        assert_eq!(name_of_leak(&finished.stdout).0, "[unknown]");
        let lines = finished
            .stderr
            .iter()
            .filter(|line| line.contains("debuginfod:"));
        let lines: Vec<_> = lines.collect();
        assert!(
            !lines.is_empty() && lines.iter().all(|line| line.contains(told)),
            "{finished:#?}"
        );
    }
}
