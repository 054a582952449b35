//! Kernel mode under load: processes that come and go, and connections, for a minute.
//! What the load gave back must not be reported, the kernel must not complain, and memory must come back.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use crate::support::process::{PATIENCE, Running};
use crate::support::report::{self, Report};
use crate::support::{kernel_log, memleak, require_root};
use rustix::process::Signal;

/// How long the load lasts.
const LOAD: Duration = Duration::from_secs(60);

/// Caches of what processes and connections are made of, whose objects are freed one by one. (What goes through
/// kfree_rcu and kmem_cache_free_bulk is seen only on kernels with kprobes.)
const CACHES: [&str; 8] = [
    "task_struct",
    "signal_cache",
    "files_cache",
    "mm_struct",
    "filp",
    "sock_inode_cache",
    "TCP",
    "skbuff_head_cache",
];

/// Memory that may be missing afterwards: the machine has its own life.
const TOLERANCE_KIB: u64 = 64 << 10;

/// What the kernel says when something is wrong with it.
const COMPLAINTS: [&str; 7] = [
    "WARNING",
    "BUG",
    "Call Trace",
    "Oops",
    "lockup",
    "stall",
    "page allocation failure",
];

/// Starts a thread that says its number, waits for the tracer, and then takes turns until the time is over; gives
/// the number of turns.
fn load(mut turn: impl FnMut() + Send + 'static) -> (u32, impl FnOnce() -> JoinHandle<u64>) {
    let (tell, told) = channel();
    let (start, started) = channel();
    let thread = spawn(move || {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        tell.send(tid.cast_unsigned()).expect("a listener");
        started.recv().expect("a start");
        let begin = Instant::now();
        let mut turns = 0;
        while begin.elapsed() < LOAD {
            turn();
            turns += 1;
        }
        turns
    });
    let tid = told.recv().expect("a thread");
    (tid, move || {
        start.send(()).expect("a thread");
        thread
    })
}

fn run_a_program() {
    assert!(Command::new("true").status().expect("a child").success());
}

/// A connection to ourselves, with some data each way.
fn connect(listener: &TcpListener) {
    let address = listener.local_addr().expect("an address");
    let mut near = TcpStream::connect(address).expect("a connection");
    let (mut far, _) = listener.accept().expect("a connection");
    let mut block = [7; 10_000];
    near.write_all(&block).expect("written");
    far.read_exact(&mut block).expect("read");
    far.write_all(&block).expect("written");
    near.read_exact(&mut block).expect("read");
}

/// Kibibytes that /proc/meminfo gives under a name.
fn meminfo(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = text.lines().find(|line| line.starts_with(name));
    let figure = line.and_then(|line| line.split_ascii_whitespace().nth(1));
    figure
        .and_then(|figure| figure.parse().ok())
        .expect("a figure")
}

/// Outstanding objects by cache.
fn objects(report: &Report) -> BTreeMap<&'static str, u64> {
    let mut objects = BTreeMap::new();
    for cache in CACHES {
        let suffix = format!("({cache})");
        let held = report.sum(|stack| {
            let innermost = stack.frames.first();
            innermost.is_some_and(|frame| frame.symbol.ends_with(&suffix))
        });
        if held.count > 0 {
            objects.insert(cache, held.count);
        }
    }
    objects
}

/// The last warning about what is missing in the figures.
fn last_warning(stderr: &[String]) -> Option<&String> {
    stderr
        .iter()
        .rfind(|line| line.contains("incomplete so far"))
}

/// The figure that the last warning gives before some words; 0 when it has none.
fn lost(stderr: &[String], what: &str) -> u64 {
    let part = last_warning(stderr)
        .and_then(|line| line.split([':', ';']).find(|part| part.contains(what)));
    part.map_or(0, |part| {
        let figure = part.trim().split(' ').next();
        figure
            .and_then(|figure| figure.parse().ok())
            .expect("a figure")
    })
}

/// Waits for what the kernel frees late; the objects that stay.
fn settled(tracer: &mut Running) -> BTreeMap<&'static str, u64> {
    let deadline = Instant::now() + PATIENCE / 6;
    loop {
        tracer.signal(Signal::USR1);
        tracer.stdout_line("report", report::is_header);
        // a report is known to be complete when the next one begins
        let complete = report::parse(tracer.seen()).into_iter().rev().nth(1);
        let left = complete.as_ref().map(objects);
        match left {
            Some(left) if left.is_empty() || Instant::now() > deadline => return left,
            _ => {}
        }
    }
}

#[test]
#[ignore = "takes a minute: run by `make soak`"]
fn a_minute_of_processes_and_connections_leaves_nothing() {
    let _machine = crate::support::serial();
    require_root();
    let log = kernel_log::read();
    let available = meminfo("MemAvailable");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let (programs_tid, programs) = load(run_a_program);
    let (connections_tid, connections) = load(move || connect(&listener));

    let mut command = memleak::command();
    command.args(["-v", "--no-growth", "-o", "0", "-T", memleak::ALL_STACKS]);
    command.args(["--stack-storage-size", "100000"]);
    for tid in [programs_tid, connections_tid] {
        command.args(["--tid", &tid.to_string()]);
    }
    let mut tracer = memleak::armed(command.arg(memleak::NEVER));
    let (programs, connections) = (programs(), connections());
    let programs = programs.join().expect("the load");
    let connections = connections.join().expect("the load");
    let tracing = meminfo("MemAvailable");
    let left = settled(&mut tracer);
    tracer.signal(Signal::INT);
    let finished = memleak::finish_well(tracer);

    let events = lost(&finished.stderr, "kernel events not seen");
    println!(
        "{programs} programs and {connections} connections in {} s; {events} events lost; objects left: {left:?}",
        LOAD.as_secs()
    );
    if let Some(line) = last_warning(&finished.stderr) {
        println!("{line}");
        // nothing found its table full
        for option in ["--max-allocs", "--stack-storage-size"] {
            assert!(!line.contains(option), "{line}");
        }
    }
    let told = |line: &String| line.contains("does not tell of frees");
    let missed = lost(&finished.stderr, "frees missed");
    assert!(
        missed <= events || finished.stderr.iter().any(told),
        "{missed} frees missed"
    );
    assert!(left.values().sum::<u64>() <= events, "{left:?}");

    let begin = Instant::now();
    while meminfo("MemAvailable") + TOLERANCE_KIB < available && begin.elapsed() < PATIENCE {
        sleep(Duration::from_millis(100));
    }
    let after = meminfo("MemAvailable");
    println!(
        "MiB available before, while tracing, after: {} {} {}",
        available >> 10,
        tracing >> 10,
        after >> 10
    );
    assert!(after + TOLERANCE_KIB >= available, "{available} {after}");
    let news = kernel_log::read();
    let complaint = news
        .iter()
        .filter(|line| !log.contains(line))
        .find(|line| COMPLAINTS.iter().any(|words| line.contains(words)));
    assert_eq!(complaint, None);
}
