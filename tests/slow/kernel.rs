//! Kernel mode: what a known trigger allocates in the kernel is counted to the object, and goes away again.
//! Only this thread's allocations are looked at, as the machine is never quiet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use crate::support::memleak;
use crate::support::process::Running;
use crate::support::report::{self, Report};
use crate::support::require_root;
use libbpf_rs::query::ProgInfoIter;
use rustix::process::Signal;
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

/// How many of each are opened.
const COUNT: u64 = 137;

/// Instructions that the verifier may follow in a program. It takes about a microsecond for each, before tracing begins.
const MOST_VERIFIED: u32 = 60_000;

/// Reports to wait for what the kernel frees only after all CPUs have moved on.
const MOST_REPORTS: usize = 2000;

/// memleak on the kernel's allocators, counting what this thread makes; reports come on demand.
fn trace(options: &[&str]) -> Running {
    let tid = rustix::thread::gettid().as_raw_nonzero().to_string();
    let mut command = memleak::command();
    command.args(["-v", "--no-growth", "-o", "0", "-T", memleak::ALL_STACKS]);
    command.args(["--tid", &tid]).args(options);
    command.arg(memleak::NEVER);
    memleak::armed(&mut command)
}

/// Ends the tracer; its last report.
fn last_report(tracer: Running) -> Report {
    tracer.signal(Signal::INT);
    memleak::last_report(&memleak::finish_well(tracer))
}

/// Objects of a cache that this thread holds after `open`, and whether they go when they are dropped.
fn assert_counted<T>(cache: &str, function: &str, objects: u64, open: impl Fn() -> T) {
    require_root();
    let options = ["--cache", cache, "--function", function];
    let tracer = trace(&options);
    let held = open();
    let report = last_report(tracer);
    assert_eq!(report.total().count, objects, "{report:#?}");
    drop(held);

    let mut tracer = trace(&options);
    drop(open());
    for _ in 0..MOST_REPORTS {
        tracer.signal(Signal::USR1);
        tracer.stdout_line("report", report::is_header);
        // a report is known to be complete when the next one begins
        let complete = report::parse(tracer.seen()).into_iter().rev().nth(1);
        if complete.is_some_and(|report| report.total().count == 0) {
            last_report(tracer);
            return;
        }
    }
    tracer.fail("the objects stayed");
}

fn many<T>(open: impl Fn() -> T) -> Vec<T> {
    (0..COUNT).map(|_| open()).collect()
}

#[test]
fn pipes() {
    let _machine = crate::support::serial();
    let open = || rustix::pipe::pipe().expect("a pipe");
    assert_counted("filp", "*pipe*", 2 * COUNT, || many(open));
}

fn timers_held() -> Vec<OwnedFd> {
    many(|| timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).expect("a timer"))
}

#[test]
fn timers() {
    let _machine = crate::support::serial();
    assert_counted("filp", "*timerfd_create", COUNT, timers_held);
}

#[test]
fn sockets() {
    let _machine = crate::support::serial();
    let open = || UnixDatagram::unbound().expect("a socket");
    assert_counted("sock_inode_cache", "*socket*", COUNT, || many(open));
}

#[test]
fn the_page_cache_is_no_leak() {
    let _machine = crate::support::serial();
    require_root();
    let folder = tempfile::tempdir().expect("a directory");
    let write = || {
        let mut file = File::create(folder.path().join("file")).expect("a file");
        let block = vec![1; 1 << 20];
        for _ in 0..64 {
            file.write_all(&block).expect("written");
        }
    };
    let tracer = trace(&[]);
    write();
    tracer.signal(Signal::INT);
    let finished = memleak::finish_well(tracer);
    let report = memleak::last_report(&finished);
    // what is left is the kernel's own, such as the nodes that find the pages
    assert!(report.total().bytes < 16 << 20, "{report:#?}");
    let hidden = finished
        .stderr
        .iter()
        .find(|line| line.contains("--user-pages"))
        .expect("a line about hidden pages");
    let bytes = hidden
        .split(' ')
        .find_map(|word| word.parse::<u64>().ok())
        .expect("a number");
    assert!(bytes >= 64 << 20, "{hidden}");

    let tracer = trace(&["--user-pages"]);
    write();
    let report = last_report(tracer);
    assert!(report.total().bytes >= 64 << 20, "{report:#?}");
}

/// memleak is the only process here that may be left out, and the only one of its name.
#[test]
fn its_own_calls_are_left_out_in_a_process_namespace_as_well() {
    let _machine = crate::support::serial();
    require_root();
    let name = "own-calls";
    let folder = tempfile::tempdir().expect("a directory");
    let program = folder.path().join(name);
    std::fs::copy(env!("CARGO_BIN_EXE_memleak"), &program).expect("a copy of memleak");
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(&program);
    command.args(["--trace", "0.1", "5"]);
    let finished = memleak::finish_well(Running::spawn(&mut command));
    let others = |line: &&String| line.contains(" kmem_cache_alloc ");
    assert!(finished.stdout.iter().any(|line| others(&line)), "no call");
    let own = finished.stdout.iter().find(|line| line.contains(name));
    assert_eq!(own, None);
}

#[test]
fn blocks_are_listed_with_their_cache() {
    let _machine = crate::support::serial();
    require_root();
    let tracer = trace(&["-a", "--cache", "filp", "--function", "*timerfd_create"]);
    let held = timers_held();
    let report = last_report(tracer);
    assert_eq!(report.allocations.len() as u64, COUNT, "{report:#?}");
    for block in &report.allocations {
        assert!(block.rest.ends_with("cache = filp"), "{block:?}");
    }
    drop(held);
}

/// The programs that a process holds: their names, and how many instructions the verifier followed.
fn verified_programs(pid: u32) -> BTreeMap<String, u32> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("descriptors");
    let ids: BTreeSet<u32> = descriptors
        .filter_map(|descriptor| std::fs::read_to_string(descriptor.ok()?.path()).ok())
        .filter(|text| text.contains("prog_type:"))
        .filter_map(|text| {
            text.split_once("prog_id:")?
                .1
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .collect();
    ProgInfoIter::default()
        .filter(|program| ids.contains(&program.id))
        .map(|program| {
            (
                program.name.to_string_lossy().into_owned(),
                program.verified_insns,
            )
        })
        .collect()
}

/// How far it follows a program is the same each time, unlike the time that it takes.
#[test]
fn the_verifier_is_soon_done_with_each_program() {
    let _machine = crate::support::serial();
    require_root();
    let tracer = trace(&["--percpu"]);
    let programs = verified_programs(tracer.pid());
    let kernel: Vec<_> = programs
        .iter()
        .filter(|(name, _)| name.starts_with("kernel_"))
        .collect();
    assert!(kernel.len() >= 10, "{programs:#?}");
    for (name, verified) in kernel {
        assert!(
            *verified > 0,
            "{name}: this kernel does not tell (Linux 5.16 does)"
        );
        assert!(*verified < MOST_VERIFIED, "{name}: {programs:#?}");
    }
    last_report(tracer);
}

/// Without kprobes two ways to free can't be seen, and what grows may not: the page has no alarm then.
#[test]
fn ways_to_free_that_are_not_seen_are_losses() {
    require_root();
    let folder = tempfile::tempdir().expect("a directory");
    let page = folder.path().join("page.html");
    let tracer = trace(&["--html", page.to_str().expect("a name")]);
    tracer.signal(Signal::INT);
    let finished = memleak::finish_well(tracer);
    let told = |words: &str| finished.stderr.iter().any(|line| line.contains(words));
    let page = std::fs::read_to_string(page).expect("a page");
    let unseen = told("does not tell of frees");
    assert_eq!(told("to free not seen"), unseen, "{finished:#?}");
    assert_eq!(page.contains("to free not seen."), unseen);
    if unseen {
        assert!(page.contains("<body class=\"doubtful\">"));
        assert!(!page.contains("tone-alert\" aria-label"));
    }
}

#[test]
fn options_of_processes_are_refused() {
    let _machine = crate::support::serial();
    for option in [["-O", "libc.so.6"], ["--max-overhead", "5"]] {
        let finished = memleak::run(option);
        assert_eq!(finished.status.code(), Some(2), "{finished:#?}");
        assert_eq!(finished.stderr.len(), 1, "{finished:#?}");
        assert!(finished.stderr[0].contains("-p"), "{finished:#?}");
    }
}
