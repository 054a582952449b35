//! Several processes at once: children that are followed, lists of processes, processes by name and by cgroup.
//! What one process's report holds is checked elsewhere; here it is whose block is whose.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::memleak::{self, ALL_STACKS, NEVER, armed, finish_well, last_report_of};
use crate::support::process::{Finished, Running};
use crate::support::report::{Held, Report, all_reports, parse};
use crate::support::{fixture, require_root};
use rustix::process::Signal;
use tempfile::TempDir;

const PARENT: Held = Held {
    bytes: 3 * 5001,
    count: 3,
};
const CHILD: Held = Held {
    bytes: 12_345,
    count: 1,
};
const GRANDCHILD: Held = Held {
    bytes: 2 * 7003,
    count: 2,
};

/// Asserts what the fixture `forks` leaves, in its three processes.
fn assert_family(report: &Report, parent: u32, child: u32) {
    let of = |pid: u32| -> Held { report.sum(|stack| stack.pid == pid) };
    assert_eq!(report.made_by(parent, "parent_leak"), PARENT, "{report:#?}");
    assert_eq!(report.made_by(child, "child_leak"), CHILD, "{report:#?}");
    assert_eq!(of(parent), PARENT, "{report:#?}");
    assert_eq!(of(child), CHILD, "{report:#?}");
    assert_eq!(report.made_in("leak_after_exec"), GRANDCHILD, "{report:#?}");
    assert_eq!(
        report.total().bytes,
        PARENT.bytes + CHILD.bytes + GRANDCHILD.bytes,
        "{report:#?}"
    );
}

/// A forked child's leak of 12,345 bytes is found, under the child.
#[test]
fn the_children_of_a_command_are_followed_each_with_its_own_blocks() {
    require_root();
    let program = fixture::c("forks");
    let mut running = memleak::start(&["-f", "-T", ALL_STACKS, NEVER], &program, &[]);
    let parent = attached_pid(&mut running);
    running.expect("ready");
    running.send_line();
    let child = running.expect_number("child") as u32;
    running.expect("done");
    let finished = finish_well(running);
    let report = all_reports(&finished.stdout);
    assert_family(&report, parent, child);
    let ended = report.processes.iter().filter(|process| process.ended);
    assert_eq!(ended.count(), 3, "{report:#?}");
}

#[test]
fn the_children_of_a_running_process_are_followed() {
    require_root();
    let program = fixture::c("forks");
    let mut target = memleak::ready(&program, &[]);
    let parent = target.pid();
    let tracer = memleak::attach(parent, &["-f", "-T", ALL_STACKS], NEVER);
    target.send_line();
    let child = target.expect_number("child") as u32;
    target.expect("done");
    assert!(target.finish().status.success());
    let finished = finish_well(tracer);
    assert_family(&all_reports(&finished.stdout), parent, child);
}

/// A child frees the block that it has inherited; its parent still holds it.
#[test]
fn a_child_that_frees_inherited_blocks_leaves_its_parents() {
    require_root();
    let report = {
        let options = ["-f"];
        last_report_of(&options, &fixture::c("fork_free"), &[])
    };
    assert_eq!(report.made_in("parent_block"), Held::each(3, 5001));
}

/// memleak with -v, its probes in place.
fn tracing(arguments: &[&str]) -> Running {
    let mut command = memleak::command();
    command.args(["-v", "-T", ALL_STACKS, "--top-processes", "100000"]);
    command
        .args(["--stack-storage-size", "100000"])
        .args(arguments);
    armed(&mut command)
}

/// Ends a memleak that would go on.
fn interrupt(tracer: Running) -> Finished {
    tracer.signal(Signal::INT);
    finish_well(tracer)
}

/// The fixture `on_demand`, running.
fn leaky(program: &Path, size: u64) -> Running {
    memleak::ready(program, &[&size.to_string()])
}

fn leak(process: &mut Running) {
    process.send_line();
    process.expect("done");
}

/// A program under a name of its own.
fn named(folder: &TempDir, program: &Path, name: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::copy(program, &path).expect("failed to copy a fixture");
    path
}

/// A name that no other test's processes have, with one letter at its end.
fn unique(letter: char) -> String {
    format!("mlk{}{letter}", std::process::id())
}

#[test]
fn two_processes_have_a_report_each() {
    require_root();
    let program = fixture::c("on_demand");
    let (mut one, mut other) = (leaky(&program, 1111), leaky(&program, 2222));
    let (first, second) = (one.pid(), other.pid());
    let tracer = tracing(&["-p", &format!("{first},{second}"), NEVER]);
    leak(&mut one);
    leak(&mut other);
    leak(&mut other);
    finish_well(one);
    finish_well(other);
    let report = all_reports(&finish_well(tracer).stdout);
    assert_eq!(
        report.made_by(first, "leak_on_demand"),
        Held::each(1, 1111),
        "{report:#?}"
    );
    assert_eq!(
        report.made_by(second, "leak_on_demand"),
        Held::each(2, 2222),
        "{report:#?}"
    );
    assert_eq!(report.total(), Held::new(5555, 3), "{report:#?}");
}

#[test]
fn processes_of_a_name_are_traced_now_and_later_and_others_are_not() {
    require_root();
    let folder = TempDir::new().expect("a folder");
    let program = fixture::c("on_demand");
    let (wanted, unwanted) = (unique('a'), unique('b'));
    let named = |name| named(&folder, &program, name);
    let (present, other) = (named(&wanted), named(&unwanted));
    let mut early = leaky(&present, 1113);
    let mut bystander = leaky(&other, 4444);
    let mut tracer = tracing(&["--comm", &wanted.replace("mlk", "m?k"), NEVER]);
    let mut late = leaky(&present, 2223);
    let (first, second) = (early.pid(), late.pid());
    for process in [&mut early, &mut late, &mut bystander] {
        leak(process);
    }
    for process in [early, bystander] {
        finish_well(process);
    }
    // one gets its last report, the other one is still there
    let heading = format!("Process {first} ({wanted}), ended:");
    tracer.stdout_line("last report", |line| line == heading);
    late.send_line();
    late.expect("done");
    // all that is older than half a second is shown
    tracer.signal(Signal::USR1);
    finish_well(late);
    let heading = format!("Process {second} ({wanted}), ended:");
    tracer.stdout_line("last report", |line| line == heading);
    let finished = interrupt(tracer);
    let reports = parse(&finished.stdout);
    let last_of = |pid: u32| {
        let last = reports.iter().find(|report| {
            let mut ended = report.processes.iter().filter(|process| process.ended);
            ended.any(|process| process.pid == pid)
        });
        last.map(|report| report.made_by(pid, "leak_on_demand"))
    };
    assert_eq!(last_of(first), Some(Held::each(1, 1113)), "{finished:#?}");
    assert_eq!(last_of(second), Some(Held::each(2, 2223)), "{finished:#?}");
    let all = all_reports(&finished.stdout);
    let names = all.processes.iter().map(|process| &process.name);
    assert!(names.clone().all(|name| *name == wanted), "{finished:#?}");
}

/// A cgroup that is removed when it is dropped.
struct TestCgroup {
    folder: PathBuf,
    /// A hierarchy of version 1, if it is in one that was made for it.
    own_hierarchy: Option<tempfile::TempDir>,
}

impl TestCgroup {
    /// Of version 2.
    fn new(name: &str) -> TestCgroup {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let mount = mounts
            .lines()
            .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
            .and_then(|line| line.split(' ').nth(1))
            .expect("no cgroup2 is mounted here: leave the test out with --skip cgroup");
        let folder = Path::new(mount).join(name);
        fs::create_dir_all(&folder).expect("failed to make a cgroup");
        TestCgroup {
            folder,
            own_hierarchy: None,
        }
    }

    /// Of version 1, in a hierarchy without a controller.
    fn of_version_1(name: &str) -> TestCgroup {
        let hierarchy = tempfile::tempdir().expect("a folder");
        let options = format!("none,name={name}");
        let mounted = Command::new("mount")
            .args(["-t", "cgroup", "-o", &options, "none"])
            .arg(hierarchy.path())
            .status();
        assert!(mounted.is_ok_and(|status| status.success()), "mount failed");
        let folder = hierarchy.path().join("inner");
        fs::create_dir(&folder).expect("failed to make a cgroup");
        TestCgroup {
            folder,
            own_hierarchy: Some(hierarchy),
        }
    }

    /// Starts the fixture `on_demand` in it.
    fn start(&self, program: &Path, size: u64) -> Running {
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec \"$0\" {size}",
            self.folder.display()
        );
        let mut running = Running::spawn(Command::new("sh").arg("-c").arg(script).arg(program));
        running.expect("ready");
        running
    }

    fn path(&self) -> &str {
        self.folder.to_str().expect("a plain path")
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        // a process that has just ended can still be in it, which is no reason to fail
        let _ = fs::remove_dir(&self.folder);
        if let Some(hierarchy) = &self.own_hierarchy {
            let _ = Command::new("umount").arg(hierarchy.path()).status();
        }
    }
}

#[test]
fn processes_of_a_cgroup2_are_traced_now_and_later() {
    require_root();
    let cgroup = TestCgroup::new(&unique('g'));
    let program = fixture::c("on_demand");
    let mut early = cgroup.start(&program, 1115);
    let mut outside = leaky(&program, 4444);
    let tracer = tracing(&["--cgroup", cgroup.path(), NEVER]);
    let mut late = cgroup.start(&program, 2225);
    leak(&mut outside);
    leak(&mut early);
    leak(&mut late);
    check_cgroup(tracer, early, late, outside);
}

#[test]
fn processes_that_move_to_a_cgroup_of_version_1_are_found_with_the_next_report() {
    require_root();
    let cgroup = TestCgroup::of_version_1(&unique('h'));
    let program = fixture::c("on_demand");
    let early = cgroup.start(&program, 1115);
    let mut outside = leaky(&program, 4444);
    let mut tracer = tracing(&["--cgroup", cgroup.path(), NEVER]);
    let late = cgroup.start(&program, 2225);
    leak(&mut outside);
    tracer.signal(Signal::USR1);
    tracer.stderr_line("latecomer", |line| line.contains("moved to the cgroup"));
    check_cgroup(tracer, early, late, outside);
}

/// What reads files for memleak is its own, even where memleak runs among those that it traces.
#[test]
fn the_readers_of_a_memleak_in_the_cgroup2_that_it_traces_are_not_traced() {
    require_root();
    let cgroup = TestCgroup::new(&unique('r'));
    let path = cgroup.path();
    let script = format!(
        "echo $$ > {path}/cgroup.procs; exec \"$0\" -v -T {ALL_STACKS} --cgroup {path} {NEVER}"
    );
    let memleak = memleak::command();
    let tracer = armed(
        Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg(memleak.get_program()),
    );
    let first = memleak::reader_of(tracer.pid());
    let reader = rustix::process::Pid::from_raw(first.cast_signed()).expect("a pid");
    rustix::process::kill_process(reader, Signal::KILL).expect("a reader");
    // its last report has names, for which another reader begins
    let mut process = cgroup.start(&fixture::c("on_demand"), 1115);
    leak(&mut process);
    let traced = process.pid();
    let report = all_reports(&interrupt_after(tracer, vec![process]).stdout);
    assert!(
        report.made_by(traced, "leak_on_demand").count >= 1,
        "{report:#?}"
    );
    let others = report
        .processes
        .iter()
        .filter(|process| process.pid != traced);
    assert_eq!(others.count(), 0, "{report:#?}");
}

fn check_cgroup(tracer: Running, mut early: Running, mut late: Running, outside: Running) {
    leak(&mut early);
    leak(&mut late);
    let (first, second) = (early.pid(), late.pid());
    let report = all_reports(&interrupt_after(tracer, vec![early, late]).stdout);
    drop(outside);
    let made = |pid: u32| report.made_by(pid, "leak_on_demand");
    assert_eq!(made(first).bytes % 1115, 0, "{report:#?}");
    assert!(made(first).count >= 1, "{report:#?}");
    assert_eq!(made(second).bytes, made(second).count * 2225, "{report:#?}");
    assert!(made(second).count >= 1, "{report:#?}");
    assert_eq!(
        report.sum(|stack| stack.held.bytes % 4444 == 0),
        Held::default(),
        "{report:#?}"
    );
}

/// Ends processes, waits for their last reports, and ends memleak.
fn interrupt_after(mut tracer: Running, processes: Vec<Running>) -> Finished {
    for process in processes {
        let heading = format!("Process {} (", process.pid());
        finish_well(process);
        tracer.stdout_line("last report", |line| {
            line.starts_with(&heading) && line.ends_with("ended:")
        });
    }
    interrupt(tracer)
}

#[test]
fn the_container_that_an_id_begins_with_is_traced() {
    require_root();
    let id = |letter: char| format!("{:0>60}abc{letter}", std::process::id());
    let containers: Vec<TestCgroup> = ['d', 'e']
        .into_iter()
        .map(|letter| {
            let name = format!("docker-{}.scope", id(letter));
            TestCgroup::new(&name)
        })
        .collect();
    let program = fixture::c("on_demand");
    let mut process = containers[0].start(&program, 1117);
    let other = containers[1].start(&program, 4444);
    let tracer = tracing(&["--container", &id('d'), NEVER]);
    let several = memleak::run(["--container", &id('d')[..63]]);
    assert_eq!(several.status.code(), Some(1));
    let message = several.stderr.join("\n");
    assert!(message.contains("several containers"), "{message}");
    assert_eq!(several.stderr.len(), 1, "{message}");
    leak(&mut process);
    let pid = process.pid();
    let report = all_reports(&interrupt_after(tracer, vec![process]).stdout);
    assert_eq!(
        report.made_by(pid, "leak_on_demand"),
        Held::each(1, 1117),
        "{report:#?}"
    );
    drop(other);
}

#[test]
fn a_target_that_is_not_there_is_named_in_one_line() {
    require_root();
    let own = std::process::id().to_string();
    for (arguments, said) in [
        (
            vec!["-p", &format!("{own},4194305")],
            "no such process: 4194305",
        ),
        (vec!["--cgroup", "/nowhere"], "no such cgroup: /nowhere"),
        (vec!["--cgroup", "/tmp"], "/tmp is no cgroup"),
        (
            vec!["--container", "0123456789ab"],
            "begins with 0123456789ab",
        ),
    ] {
        let finished = memleak::run(&arguments);
        assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
        assert_eq!(finished.stderr.len(), 1, "{finished:#?}");
        assert!(finished.stderr[0].contains(said), "{finished:#?}");
    }
}

/// Kibibytes that memleak may take more after short processes than before: what is kept of each process that has ended
/// would be more than that.
const GROWTH_KIB: u64 = 8 << 10;

/// Kibibytes that a process has resident, and in the BPF maps that it holds.
fn memory(pid: u32) -> u64 {
    let figure = |text: &str, name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line[name.len()..].split_whitespace().next()?.parse().ok()
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let resident = figure(&status, "VmRSS:").expect("its memory");
    // several descriptors may be of one map
    let mut maps = BTreeMap::new();
    for descriptor in fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("its descriptors") {
        let text = fs::read_to_string(descriptor.expect("one").path()).unwrap_or_default();
        if let (Some(map), Some(bytes)) = (figure(&text, "map_id:"), figure(&text, "memlock:")) {
            maps.insert(map, bytes);
        }
    }
    resident + maps.values().sum::<u64>() / 1024
}

/// Starts short processes while the whole system is traced. Asserts that each is reported with its leak, and that nothing is
/// kept of them: the first quarter shows what memleak takes in any case, for tables and names.
fn short_processes(count: u64) {
    let _machine = crate::support::serial();
    require_root();
    let folder = TempDir::new().expect("a folder");
    let name = unique('s');
    let program = named(&folder, &fixture::c("short_lives"), &name);
    // others of the machine are traced as well, but not all that they allocate is of interest here
    let mut tracer = tracing(&["--system", "-z", "3331", "-Z", "3331", NEVER]);
    let mut took = Vec::new();
    for count in [count / 4, count - count / 4] {
        let mut busy = memleak::ready(&program, &[&count.to_string()]);
        let pid = busy.pid();
        busy.send_line();
        busy.expect("done");
        finish_well(busy);
        let heading = format!("Process {pid} (");
        // the first to start is the last to end
        tracer.stdout_line("last report", |line| {
            line.starts_with(&heading) || line.contains(&format!("{pid} ("))
        });
        took.push(memory(tracer.pid()));
    }
    let finished = interrupt(tracer);
    let report = all_reports(&finished.stdout);
    let lost = finished
        .stderr
        .iter()
        .rfind(|line| line.contains("incomplete"));
    println!("{count} processes; KiB after a quarter of them, and in the end: {took:?}; {lost:?}");
    assert_eq!(lost, None, "{finished:#?}");
    assert_eq!(report.made_in("short_leak"), Held::each(count, 3331));
    assert!(took[1] <= took[0] + GROWTH_KIB, "{took:?}");
}

#[test]
fn nothing_of_short_processes_is_lost_or_kept_in_a_system() {
    short_processes(120);
}

#[test]
#[ignore = "takes a minute: run by `make soak`"]
fn a_minute_of_short_processes_leaves_nothing() {
    short_processes(1200);
}

/// Processes that end by the hundred in a second leave no moment in which none of them does.
#[test]
fn reports_come_while_processes_never_stop_ending() {
    let _machine = crate::support::serial();
    require_root();
    let mut endless = Command::new("sh");
    endless.args(["-c", "echo ready; while :; do /bin/true; done"]);
    let mut load = Running::spawn(&mut endless);
    load.expect("ready");
    let finished = memleak::run(["--comm", "true", "0.5", "4"]);
    assert!(finished.status.success(), "{finished:#?}");
    assert!(parse(&finished.stdout).len() >= 4, "{finished:#?}");
    load.signal(Signal::KILL);
    assert_eq!(
        load.finish().status.signal(),
        Some(9),
        "the load ended first"
    );
}

/// The library with leaks to preload into servers.
fn preloaded() -> PathBuf {
    fixture::c_with("preloaded_leak", &["-shared", "-fPIC", "-ldl"])
}

#[test]
fn the_workers_of_nginx_are_followed() {
    require_root();
    let folder = TempDir::new().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let configuration = format!(
        "daemon off; worker_processes 2; user root; pid {}; error_log stderr notice;\n\
         events {{ accept_mutex off; }}\n\
         http {{ access_log off; client_body_temp_path {}; proxy_temp_path {}; fastcgi_temp_path {};\n\
         uwsgi_temp_path {}; scgi_temp_path {};\n\
         server {{ listen unix:{}; location / {{ return 200 'hello'; }} }} }}\n",
        at("pid"),
        at("body"),
        at("proxy"),
        at("fastcgi"),
        at("uwsgi"),
        at("scgi"),
        at("socket"),
    );
    fs::write(folder.path().join("nginx.conf"), configuration).expect("failed to configure nginx");
    let preload = format!("LD_PRELOAD={}", preloaded().display());
    let options = ["-v", "-f", "-o", "0", "-T", ALL_STACKS, NEVER];
    let arguments = [&preload, "/usr/sbin/nginx", "-c", &at("nginx.conf")];
    let mut tracer = memleak::start(&options, Path::new("/usr/bin/env"), &arguments);
    let master = attached_pid(&mut tracer);
    for _ in 0..2 {
        tracer.stderr_line("worker", |line| line.contains("start worker process "));
    }
    const CONNECTIONS: u64 = 7;
    for _ in 0..CONNECTIONS {
        let mut stream = UnixStream::connect(at("socket")).expect("failed to connect to nginx");
        stream
            .write_all(b"GET / HTTP/1.0\r\n\r\n")
            .expect("failed to ask nginx");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("no answer of nginx");
        assert!(answer.ends_with("hello"), "{answer}");
    }
    tracer.signal(Signal::INT);
    let finished = tracer.finish();
    let report = all_reports(&finished.stdout);
    let made = report.made_in("leak_per_connection");
    assert_eq!(made, Held::each(CONNECTIONS, 4567), "{finished:#?}");
    let by_master = report.made_by(master, "leak_per_connection");
    assert_eq!(by_master, Held::default(), "{finished:#?}");
    let workers = report
        .processes
        .iter()
        .filter(|process| process.pid != master);
    assert!(
        workers.clone().all(|process| process.name == "nginx"),
        "{finished:#?}"
    );
    assert!(workers.count() >= 1, "{finished:#?}");
}

/// A folder to be the root of a process: a program, and what it needs.
fn root_with(files: &[(&Path, &str)]) -> TempDir {
    let root = TempDir::new().expect("a folder");
    for (file, place) in files {
        let target = root.path().join(place.trim_start_matches('/'));
        fs::create_dir_all(target.parent().expect("a folder")).expect("failed to make a root");
        fs::copy(file, target).unwrap_or_else(|error| panic!("no {}: {error}", file.display()));
    }
    root
}

/// The one child of a process.
fn child_of(pid: u32) -> u32 {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).expect("the children of a process");
    children.trim().parse().expect("one child")
}

fn a_process_in_a_container_is_traced_from_outside(root: &TempDir) {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "chroot"]);
    command.arg(root.path()).args(["/on_demand", "1119"]);
    let mut target = Running::spawn(&mut command);
    target.expect("ready");
    let pid = child_of(target.pid());
    let tracer = memleak::attach(pid, &["-T", ALL_STACKS], NEVER);
    leak(&mut target);
    finish_well(target);
    let report = memleak::last_report(&finish_well(tracer));
    assert_eq!(
        report.made_in("leak_on_demand"),
        Held::each(1, 1119),
        "{report:#?}"
    );
    assert_eq!(report.through("main"), Held::each(1, 1119), "{report:#?}");
    assert_eq!(report.total(), Held::each(1, 1119), "{report:#?}");
}

#[test]
fn a_process_with_another_root_and_musl_is_traced_from_outside() {
    require_root();
    let program = fixture::with_compiler("on_demand", "musl-gcc", &["-no-pie"]);
    let linker = Path::new("/lib/ld-musl-x86_64.so.1");
    let root = root_with(&[
        (&program, "/on_demand"),
        (linker, "/lib/ld-musl-x86_64.so.1"),
    ]);
    a_process_in_a_container_is_traced_from_outside(&root);
}

#[test]
fn a_process_with_another_root_and_a_libc_of_its_own_is_traced_from_outside() {
    require_root();
    let program = fixture::c("on_demand");
    let libc = Path::new("/lib/x86_64-linux-gnu/libc.so.6");
    let linker = Path::new("/lib64/ld-linux-x86-64.so.2");
    let root = root_with(&[
        (&program, "/on_demand"),
        (libc, "/lib/x86_64-linux-gnu/libc.so.6"),
        (linker, "/lib64/ld-linux-x86-64.so.2"),
    ]);
    a_process_in_a_container_is_traced_from_outside(&root);
}

#[test]
fn memleak_in_a_pid_namespace_uses_its_numbers() {
    require_root();
    for (options, expected) in [(vec![], PARENT), (vec!["-f"], PARENT)] {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
        command.arg(env!("CARGO_BIN_EXE_memleak")).args(&options);
        command
            .args(["-T", ALL_STACKS, NEVER, "--"])
            .arg(fixture::c("forks"));
        let mut running = Running::spawn(&mut command);
        let parent = attached_pid(&mut running);
        assert!(parent < 1000, "{parent} is no number of a new namespace");
        running.expect("ready");
        running.send_line();
        let child = running.expect_number("child") as u32;
        running.expect("done");
        let finished = finish_well(running);
        let report = all_reports(&finished.stdout);
        match options.is_empty() {
            true => assert_eq!(report.made_in("parent_leak"), expected, "{finished:#?}"),
            false => assert_family(&report, parent, child),
        }
    }
}

#[test]
fn outputs_and_logs_tell_processes_apart() {
    require_root();
    let folder = TempDir::new().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let options = [
        "-f",
        "--json",
        &at("run.json"),
        "--folded",
        &at("run.folded"),
    ];
    let more = [
        "--record",
        &at("run.jsonl"),
        "--fail-on",
        "count=1",
        "-T",
        ALL_STACKS,
        NEVER,
    ];
    let options = [&options[..], &more[..]].concat();
    let mut running = memleak::start(&options, &fixture::c("forks"), &[]);
    let parent = attached_pid(&mut running);
    running.expect("ready");
    running.send_line();
    let child = running.expect_number("child") as u32;
    running.expect("done");
    let finished = running.finish();
    // a leak in a child that has gone still fails a build
    assert_eq!(finished.status.code(), Some(23), "{finished:#?}");
    assert_family(&all_reports(&finished.stdout), parent, child);

    let json = fs::read_to_string(at("run.json")).expect("a JSON report");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let processes = json["processes"].as_array().expect("processes");
    assert_eq!(processes.len(), 3, "{json:#}");
    let of_child = processes.iter().find(|process| process["tgid"] == child);
    assert_eq!(of_child.expect("the child")["bytes"], 12_345, "{json:#}");
    let folded = fs::read_to_string(at("run.folded")).expect("folded stacks");
    assert!(folded.contains(&format!("forks-{child};")), "{folded}");

    // and what was printed can be read again, as the recording can
    fs::write(
        folder.path().join("run.log"),
        finished.stdout.join("\n") + "\n",
    )
    .expect("a log");
    let recorded = memleak::run(["report", "-T", ALL_STACKS, &at("run.jsonl")]);
    assert_family(&all_reports(&recorded.stdout), parent, child);
    let again = memleak::run(["report", "-T", ALL_STACKS, &at("run.log")]);
    let read = all_reports(&again.stdout);
    assert!(!read.processes.is_empty(), "{again:#?}");
    for stack in &read.stacks {
        assert!(
            read.processes
                .iter()
                .any(|process| process.pid == stack.pid),
            "{again:#?}"
        );
    }
}

/// The pid that memleak says it attaches to.
fn attached_pid(running: &mut Running) -> u32 {
    let prefix = "Attaching to pid ";
    let line = running.stdout_line("`Attaching` line", |line| line.starts_with(prefix));
    let digits = line[prefix.len()..].split(',').next().expect("a comma");
    digits.parse().expect("a pid")
}
