//! What a live run serves over HTTP, as its clients meet it: browsers, Prometheus, pprof, and some that mean no good.
//! Needs root, Go and Debian's promtool.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::Value;

use crate::support::http::{ask, connect, get, promtool};
use crate::support::process::Running;
use crate::support::{fixture, memleak, require_root, serial};

/// A service that does what it is told, and memleak on it with endpoints; reports are made on demand only.
struct Served {
    service: Running,
    tracer: Running,
    port: u16,
}

impl Served {
    fn start(options: &[&str]) -> Served {
        require_root();
        let mut service = Running::spawn(&mut Command::new(fixture::c("service")));
        service.send("before");
        service.expect("done");
        let mut command = memleak::command();
        command.args([
            "-v",
            "-o",
            "0",
            "--listen",
            "0",
            "-p",
            &service.pid().to_string(),
        ]);
        command.args(options).arg(memleak::NEVER);
        let mut tracer = Running::spawn(&mut command);
        let prefix = "memleak: listening at http://127.0.0.1:";
        let line = tracer.stderr_line("address", |line| line.starts_with(prefix));
        let port = line[prefix.len()..].trim_end_matches('/').parse();
        tracer.stderr_line("`armed` line", |line| line.starts_with("memleak: armed"));
        Served {
            service,
            tracer,
            port: port.expect("a port"),
        }
    }

    /// Lets the service do something, and memleak report it.
    fn serve(&mut self, what: &str) {
        self.service.send(what);
        self.service.expect("done");
        self.report();
    }

    fn report(&mut self) {
        self.tracer.signal(Signal::USR1);
        self.tracer
            .stdout_line("report", |line| line.contains("] Top "));
    }
}

#[test]
fn every_endpoint_shows_the_last_report() {
    let mut served = Served::start(&["--metrics-functions", "5"]);
    let port = served.port;
    assert_eq!(get(port, "/healthz").text(), "ok\n");
    assert!(get(port, "/").text().contains("No report yet"));
    for _ in 0..12 {
        served.serve("round");
    }
    let report: Value = serde_json::from_slice(&get(port, "/report.json").body).expect("JSON");
    let growing = report["growing"].as_array().expect("a list");
    assert_eq!(growing.len(), 1, "{growing:#?}");
    assert_eq!(growing[0]["bytes"], 12 * 333);
    let pid = served.service.pid();
    let page = get(port, "/").text();
    let (processes, growth) = (page.find("Processes"), page.find("<h2>Growing"));
    assert!(processes < growth && processes.is_some(), "{page}");
    assert!(page.contains("<code>slow_leak</code>"), "{page}");
    assert!(
        get(port, "/report.txt")
            .text()
            .contains("3996 bytes in 12 allocations")
    );
    assert!(get(port, "/report.html").text().contains("slow_leak"));

    let metrics = get(port, "/metrics").text();
    let has = |line: &str| assert!(metrics.contains(line), "no {line} in\n{metrics}");
    let labels = format!("pid=\"{pid}\",comm=\"service\",container=\"");
    has(&format!("memleak_growth_bytes_per_second{{{labels}"));
    has("function=\"slow_leak\"}");
    has("memleak_losses_total{kind=\"missed_frees\"} 0");
    has("memleak_build_info{version=");
    let open = [("Accept", "application/openmetrics-text;version=1.0.0")];
    let open = ask(port, "GET", "/metrics", &open);
    assert!(open.text().ends_with("# EOF\n") && open.headers.contains("openmetrics-text"));

    let recording = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(recording.path(), get(port, "/recording.jsonl").body).expect("written");
    let again = memleak::run(["report", recording.path().to_str().expect("a path")]);
    assert!(
        again.stdout.iter().any(|line| line.contains("slow_leak+")),
        "{again:#?}"
    );
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let mut served = Served::start(&["--metrics-functions", "5"]);
    for _ in 0..6 {
        served.serve("round");
    }
    let mut tool = Command::new(promtool())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    let mut input = tool.stdin.take().expect("a pipe");
    input
        .write_all(&get(served.port, "/metrics").body)
        .expect("promtool reads");
    drop(input);
    let output = tool.wait_with_output().expect("promtool ends");
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stderr.is_empty() && output.stdout.is_empty(),
        "{output:?}"
    );
}

#[test]
fn pprof_pulls_profiles_and_what_grew_between_two() {
    let mut served = Served::start(&[]);
    served.serve("round");
    let url = format!("http://127.0.0.1:{}/debug/pprof/heap", served.port);
    let top = |arguments: &[&str]| {
        let home = tempfile::tempdir().expect("a folder");
        let output = Command::new("go")
            .args([
                "tool",
                "pprof",
                "-symbolize=none",
                "-unit=B",
                "-nodefraction=0",
                "-top",
            ])
            .args(arguments)
            .env("PPROF_TMPDIR", home.path())
            .output()
            .expect("go runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let first = top(&[&url]);
    assert!(
        first.contains("333B") && first.contains("slow_leak"),
        "{first}"
    );
    assert!(first.contains("65536B"), "{first}");

    // asks before the service goes on, and gets what came since
    let mut asked = connect(served.port);
    write!(
        asked,
        "GET /debug/pprof/heap?seconds=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .expect("asked");
    assert_eq!(get(served.port, "/healthz").status, 200);
    served.service.send("after");
    served.service.expect("done");
    let mut answer = Vec::new();
    asked.set_nonblocking(true).expect("a socket");
    loop {
        // the server waits for the time to pass, and then for a report
        served.report();
        match asked.read_to_end(&mut answer) {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
    }
    let begin = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("an answer")
        + 4;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &answer[begin..]).expect("written");
    let grown = top(&[file.path().to_str().expect("a path")]);
    assert!(
        grown.contains("2222B") && grown.contains("leak_after"),
        "{grown}"
    );
    assert!(
        !grown.contains("65536B") && !grown.contains("slow_leak"),
        "{grown}"
    );

    let pid = served.service.pid();
    assert_eq!(
        get(served.port, &format!("/debug/pprof/heap?pid={pid}")).status,
        200
    );
    assert_eq!(get(served.port, "/debug/pprof/heap?pid=1").status, 404);
}

#[test]
fn requests_are_answered_as_the_protocol_wants() {
    let mut served = Served::start(&["--allow-host", "node7.example"]);
    served.serve("round");
    let port = served.port;
    let whole = get(port, "/report.json");
    let head = ask(port, "HEAD", "/report.json", &[]);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(
        head.header("content-length"),
        Some(whole.body.len().to_string().as_str())
    );
    let tag = whole.header("etag").expect("a tag").to_owned();
    let same = ask(port, "GET", "/report.json", &[("If-None-Match", &tag)]);
    assert_eq!((same.status, same.body.len()), (304, 0));
    served.serve("round");
    let newer = ask(port, "GET", "/report.json", &[("If-None-Match", &tag)]);
    assert_eq!(newer.status, 200);

    let status = |method: &str, path: &str, headers: &[(&str, &str)]| {
        ask(port, method, path, headers).status
    };
    assert_eq!(status("POST", "/", &[]), 405);
    assert_eq!(status("GET", "/../../etc/passwd", &[]), 404);
    assert_eq!(status("GET", "/", &[("Host", "evil.example")]), 421);
    assert_eq!(status("GET", "/", &[("Host", "node7.example:80")]), 200);
    assert_eq!(
        status("GET", "/", &[("Origin", "http://evil.example")]),
        403
    );
}

#[test]
fn a_malicious_process_name_is_inert() {
    require_root();
    let _alone = serial();
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("<script>\"\n}");
    std::fs::copy(fixture::c("service"), &program).expect("a copy");
    let mut service = Running::spawn(&mut Command::new(&program));
    service.send("before");
    service.expect("done");
    let mut command = memleak::command();
    command.args([
        "-v",
        "-o",
        "0",
        "--listen",
        "0",
        "--comm",
        "<script>*",
        memleak::NEVER,
    ]);
    let mut tracer = Running::spawn(&mut command);
    let prefix = "memleak: listening at http://127.0.0.1:";
    let line = tracer.stderr_line("address", |line| line.starts_with(prefix));
    let port: u16 = line[prefix.len()..]
        .trim_end_matches('/')
        .parse()
        .expect("a port");
    tracer.stderr_line("`armed` line", |line| line.starts_with("memleak: armed"));
    service.send("round");
    service.expect("done");
    tracer.signal(Signal::USR1);
    tracer.stdout_line("report", |line| line.contains("] Top "));
    let page = get(port, "/").text();
    assert!(page.contains("&lt;script&gt;&quot;"), "{page}");
    assert_eq!(page.matches("<script>").count(), 1, "{page}");
    let metrics = get(port, "/metrics").text();
    assert!(metrics.contains(r#"comm="<script>\""#), "{metrics}");
    assert!(
        metrics
            .lines()
            .all(|line| line.starts_with(['#', 'm', 'p'])),
        "{metrics}"
    );
}

#[test]
fn hostile_clients_neither_stop_the_tracer_nor_fill_its_memory() {
    let _alone = serial();
    let mut served = Served::start(&[]);
    served.serve("round");
    let port = served.port;
    // each holds what it can
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        ..limits
    };
    setrlimit(Resource::Nofile, raised).expect("as many files as may be open");
    assert_eq!(get(port, "/report.html").status, 200);
    let before = resident_kib(served.tracer.pid());

    let begun: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = connect(port);
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ");
            stream
        })
        .collect();
    assert_eq!(get(port, "/healthz").status, 200);
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 0..10_000 {
        held.push(connect(port));
        if held.len() == 500 {
            held.clear();
        }
    }
    served.serve("round");
    assert_eq!(get(port, "/healthz").status, 200);

    let mut endless = connect(port);
    let _ = endless.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ");
    let block = [b'a'; 65_536];
    let taken = (0..16_384)
        .take_while(|_| endless.write_all(&block).is_ok())
        .count();
    assert!(taken < 1024, "{taken} times 64 KiB of a header were taken");
    for seed in 0..100_u8 {
        let garbage: Vec<u8> = (0..4000_u32).map(|at| (at * 7) as u8 ^ seed).collect();
        let _ = connect(port).write_all(&garbage);
    }
    let deaf: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = connect(port);
            stream.set_nonblocking(true).expect("a socket");
            for _ in 0..50 {
                let _ = stream.write(b"GET /report.html HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
            }
            stream
        })
        .collect();
    served.serve("round");
    let report: Value = serde_json::from_slice(&get(port, "/report.json").body).expect("JSON");
    assert!(report.to_string().contains("slow_leak"), "{report}");
    let grown = resident_kib(served.tracer.pid()).saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB more than before");
    drop((begun, deaf));
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.expect("a size").parse().expect("a number")
}
