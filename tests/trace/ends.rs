//! memleak ends when it is told to, whatever it is stuck in, and its command starts as it would without it. Needs root.
//! What the reports say is other tests' matter.

use std::fs::{self, File};
use std::io::{PipeReader, Write as _, pipe};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::memleak::{NEVER, finish_well, last_report};
use crate::support::process::{PATIENCE, Running};
use crate::support::report::Held;
use crate::support::{fixture, memleak, require_root};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, mknodat};
use rustix::process::{Pid, Signal, kill_process};

/// From the signal to the end: the five seconds that memleak allows itself, and what a loaded machine adds.
const AT_MOST: Duration = Duration::from_secs(6);

/// A child that is killed when a test drops it.
struct Guarded(Child);

impl Guarded {
    fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().expect("a child"))
    }

    /// Waits until one of its threads is where the kernel's function of this name waits.
    fn until_stuck_in(&self, function: &str) {
        let tasks = format!("/proc/{}/task", self.0.id());
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let stuck = fs::read_dir(&tasks).expect("its threads").any(|task| {
                let wchan = task.map(|task| fs::read_to_string(task.path().join("wchan")));
                matches!(wchan, Ok(Ok(wchan)) if wchan.contains(function))
            });
            if stuck {
                return;
            }
            thread::yield_now();
        }
        panic!("it never waited in {function}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("a signal");
    }

    /// Sends SIGTERM, and gives the time to the end and the exit status.
    fn terminate(mut self) -> (Duration, Option<i32>) {
        let begun = Instant::now();
        self.signal(Signal::TERM);
        let status = self.0.wait().expect("its end");
        (begun.elapsed(), status.code())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // both fail when it has ended and was waited for
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The writing end of a pipe that is full, and that nobody reads.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, mut writer) = pipe().expect("a pipe");
    let flags = fcntl_getfl(&writer).expect("flags");
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).expect("flags");
    while writer.write(&[0; 4096]).is_ok() {}
    while writer.write(&[0]).is_ok() {}
    fcntl_setfl(&writer, flags).expect("flags");
    (reader, writer.into())
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a FIFO");
}

fn tracing(options: &[&str], pid: u32) -> Command {
    let mut command = memleak::command();
    command.args(options).args(["-p", &pid.to_string()]);
    command.stdin(Stdio::null());
    command
}

#[test]
fn a_reader_that_stopped_does_not_hold_memleak() {
    require_root();
    let target = memleak::ready(&fixture::c("sizes"), &[]);
    for options in [&[][..], &["-t"], &["-f", "-v"]] {
        let (_reader, stdout) = full_pipe();
        let mut command = tracing(options, target.pid());
        command.arg("0.01").stdout(stdout).stderr(Stdio::null());
        let tracer = Guarded::spawn(&mut command);
        tracer.until_stuck_in("pipe_write");
        let (time, status) = tracer.terminate();
        assert!(time < AT_MOST, "{options:?}: {time:?}");
        assert_eq!(status, Some(1), "{options:?}");
    }
}

#[test]
fn neither_does_one_of_standard_error() {
    require_root();
    let target = memleak::ready(&fixture::c("sizes"), &[]);
    let (_reader, stderr) = full_pipe();
    let mut command = tracing(&["-v"], target.pid());
    command.arg(NEVER).stdout(Stdio::null()).stderr(stderr);
    let tracer = Guarded::spawn(&mut command);
    tracer.until_stuck_in("pipe_write");
    let (time, _) = tracer.terminate();
    assert!(time < AT_MOST, "{time:?}");
}

#[test]
fn the_second_signal_ends_what_the_first_did_not() {
    require_root();
    let target = memleak::ready(&fixture::c("sizes"), &[]);
    let (_reader, stdout) = full_pipe();
    let mut command = tracing(&[], target.pid());
    command.arg("0.01").stdout(stdout).stderr(Stdio::null());
    let tracer = Guarded::spawn(&mut command);
    tracer.until_stuck_in("pipe_write");
    let begun = Instant::now();
    tracer.signal(Signal::TERM);
    // what comes together with the first counts as one
    while begun.elapsed() < Duration::from_millis(300) {
        thread::yield_now();
    }
    let (time, _) = tracer.terminate();
    assert!(time < Duration::from_secs(3), "{time:?}");
}

#[test]
fn a_pipe_that_nobody_reads_is_no_output_and_holds_nothing() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fifo");
    fifo(&path);
    let path = path.to_str().expect("text");
    for option in ["--html", "--json", "--record"] {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", &PATIENCE.as_secs().to_string()]);
        command.arg(env!("CARGO_BIN_EXE_memleak"));
        command.args([option, path, "--"]);
        command.arg(fixture::c("exit_now"));
        let finished = Running::spawn(&mut command).finish();
        assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
        let expected = format!("memleak: failed to write {path}: nobody reads from it");
        assert!(finished.stderr.contains(&expected), "{finished:#?}");
    }
}

#[test]
fn a_pipe_whose_reader_stops_ends_the_recording_and_not_the_reports() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fifo");
    fifo(&path);
    // opened for both, so that neither end waits for the other
    let reader = File::options().read(true).write(true).open(&path);
    let mut reader = reader.expect("the FIFO");
    let flags = fcntl_getfl(&reader).expect("flags");
    fcntl_setfl(&reader, flags | OFlags::NONBLOCK).expect("flags");
    let target = memleak::ready(&fixture::c("sizes"), &[]);
    let options = ["--record", path.to_str().expect("text")];
    let mut tracer = memleak::attach(target.pid(), &options, "0.05");
    while reader.write(&[b'\n'; 4096]).is_ok() {}
    while reader.write(b"\n").is_ok() {}
    let ends = |line: &str| line.contains("the recording ends here: nobody reads from it any more");
    tracer.stderr_line("end of the recording", ends);
    tracer.signal(Signal::INT);
    assert_eq!(tracer.wait().status.code(), Some(1));
}

#[test]
fn a_stopped_target_is_left_as_it_is() {
    require_root();
    let target = memleak::ready(&fixture::c("sizes"), &[]);
    let tracer = memleak::attach(target.pid(), &[], NEVER);
    target.signal(Signal::STOP);
    let begun = Instant::now();
    tracer.signal(Signal::TERM);
    finish_well(tracer);
    assert!(begun.elapsed() < AT_MOST);
    let stat = fs::read_to_string(format!("/proc/{}/stat", target.pid())).expect("its state");
    assert!(stat.contains(") T "), "{stat}");
}

#[test]
fn a_stopped_command_ends_all_the_same() {
    require_root();
    let mut tracer = memleak::start(&[NEVER], &fixture::c("sizes"), &[]);
    tracer.expect("ready");
    let children = format!("/proc/{0}/task", tracer.pid());
    let of_thread = |task: fs::DirEntry| fs::read_to_string(task.path().join("children"));
    let child = fs::read_dir(children)
        .expect("its threads")
        .filter_map(|task| of_thread(task.ok()?).ok())
        .flat_map(|children| {
            children
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        // readers are children as well
        .find(|child| fs::read(format!("/proc/{child}/comm")).is_ok_and(|name| name == b"sizes\n"))
        .and_then(|child| Pid::from_raw(child.parse().ok()?));
    kill_process(child.expect("the command"), Signal::STOP).expect("a signal");
    tracer.signal(Signal::TERM);
    assert_eq!(tracer.wait().status.code(), Some(128 + 15));
}

#[test]
fn a_command_that_ignores_the_first_signal_is_killed_at_the_second() {
    require_root();
    let mut command = Command::new("env");
    command.args(["--ignore-signal=TERM", env!("CARGO_BIN_EXE_memleak")]);
    command
        .args(["-o", "0", NEVER, "--"])
        .arg(fixture::c("sizes"));
    let mut tracer = Running::spawn(&mut command);
    tracer.expect("ready");
    tracer.send_line();
    tracer.expect("done");
    tracer.signal(Signal::TERM);
    let told = tracer.stderr_line("SIGTERM", |line| line.contains("sending SIGTERM"));
    // it is told before the outputs are written and the probes' cost is given back: that counts as one wish no more
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(300) {
        thread::yield_now();
    }
    tracer.signal(Signal::TERM);
    let finished = tracer.wait();
    assert_eq!(
        finished.status.code(),
        Some(128 + 9),
        "{told} {finished:#?}"
    );
    assert_eq!(
        last_report(&finished).total(),
        Held::new(30 * 17 + 20 * 1001 + 10 * 10_007, 60)
    );
}

#[test]
fn under_nohup_a_terminal_that_goes_away_changes_nothing() {
    require_root();
    let mut target = memleak::ready(&fixture::c("sizes"), &[]);
    let mut command = Command::new("env");
    command.args(["--ignore-signal=HUP", env!("CARGO_BIN_EXE_memleak"), "-v"]);
    command.args(["-p", &target.pid().to_string(), NEVER]);
    let tracer = memleak::armed(&mut command);
    tracer.signal(Signal::HUP);
    target.send_line();
    target.expect("done");
    target.finish();
    let report = last_report(&finish_well(tracer));
    assert_eq!(report.total().count, 60, "{report:#?}");
}

#[test]
fn a_command_gets_the_signals_that_memleak_was_started_with() {
    require_root();
    let signals = |options: &[&str], traced: bool| {
        let mut command = Command::new("env");
        command.args(options);
        if traced {
            command.args([env!("CARGO_BIN_EXE_memleak"), NEVER, "--"]);
        }
        command.args(["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]);
        let finished = Running::spawn(&mut command).finish();
        let stderr = finished.stderr;
        let lines = finished.stdout.into_iter();
        let sets = lines.filter_map(|line| {
            let (name, set) = line.strip_prefix("Sig")?.split_once(":\t")?;
            let set = u64::from_str_radix(set, 16).expect("a set");
            // 32 and 33 are the C library's own, which it lets nobody change
            Some((name.to_owned(), set & !(3 << 31)))
        });
        let sets: Vec<(String, u64)> = sets.collect();
        assert_eq!(sets.len(), 3, "{stderr:?} {sets:?}");
        sets
    };
    for options in [
        &["--default-signal"][..],
        &["--ignore-signal=HUP,INT,USR1,USR2,PIPE"],
        &[
            "--ignore-signal=QUIT,CHLD",
            "--block-signal=USR1,WINCH,TERM",
        ],
    ] {
        assert_eq!(
            signals(options, true),
            signals(options, false),
            "{options:?}"
        );
    }
}
