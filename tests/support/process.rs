//! A child process with piped streams, read line by line as they come, and killed when a test drops it.
//! Knows nothing of memleak or of any fixture.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a test waits for anything before it fails with the full output. A bound, not a measure.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// One of a child's output streams.
struct Stream {
    name: &'static str,
    arriving: Receiver<String>,
    /// Lines taken from `arriving` so far.
    seen: Vec<String>,
    reader: Option<JoinHandle<()>>,
}

/// A running child. Dropping it kills it.
pub struct Running {
    child: Child,
    what: String,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
    /// Everything printed, in order of arrival, for messages.
    transcript: Arc<Mutex<String>>,
}

/// What a finished child left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Lines of its standard output.
    pub stdout: Vec<String>,
    /// Lines of its standard error.
    pub stderr: Vec<String>,
}

impl Running {
    /// Starts a child with all three streams piped.
    pub fn spawn(command: &mut Command) -> Running {
        Running::spawn_reading(command, Stdio::piped())
    }

    /// Starts a child with `stdin` for its standard input and the other streams piped.
    pub fn spawn_reading(command: &mut Command, stdin: impl Into<Stdio>) -> Running {
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("failed to start {command:?}: {error}"));
        let transcript = Arc::new(Mutex::new(String::new()));
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        Running {
            what: format!("{command:?}"),
            stdin: child.stdin.take(),
            stdout: Stream::read("out", stdout, &transcript),
            stderr: Stream::read("err", stderr, &transcript),
            child,
            transcript,
        }
    }

    /// The child's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to the child's standard input.
    pub fn send(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        if let Err(error) = writeln!(stdin, "{line}") {
            self.fail(&format!("failed to write to stdin: {error}"));
        }
    }

    /// Writes a newline to the child's standard input: the fixtures' signal to go on.
    pub fn send_line(&mut self) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        if let Err(error) = stdin.write_all(b"\n") {
            self.fail(&format!("failed to write to stdin: {error}"));
        }
    }

    /// Closes the child's standard input: the fixtures' signal to exit.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("failed to send a signal");
    }

    /// Waits for a line of standard output for which `wanted` holds, and returns it.
    pub fn stdout_line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let found = self.stdout.wait_for(wanted);
        found.unwrap_or_else(|why| self.fail(&format!("no {what} on stdout: {why}")))
    }

    /// Waits for a line of standard error for which `wanted` holds, and returns it.
    pub fn stderr_line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let found = self.stderr.wait_for(wanted);
        found.unwrap_or_else(|why| self.fail(&format!("no {what} on stderr: {why}")))
    }

    /// Waits for a line of standard output that is exactly `word`.
    pub fn expect(&mut self, word: &str) {
        self.stdout_line(&format!("line {word:?}"), |line| line == word);
    }

    /// Waits for a line "name value" of standard output, and returns the value.
    pub fn expect_number(&mut self, name: &str) -> u64 {
        let prefix = format!("{name} ");
        let line = self.stdout_line(&format!("number {name:?}"), |line| {
            line.starts_with(&prefix)
        });
        line[prefix.len()..].parse().expect("a number")
    }

    /// Lines of standard output that were waited through so far.
    pub fn seen(&self) -> &[String] {
        &self.stdout.seen
    }

    /// Lines of the standard error that were waited through so far.
    pub fn seen_on_stderr(&self) -> &[String] {
        &self.stderr.seen
    }

    /// Takes what was printed on standard output before this call.
    pub fn catch_up(&mut self) {
        self.stdout.seen.extend(self.stdout.arriving.try_iter());
    }

    /// Closes standard input and waits for the child's end.
    pub fn finish(mut self) -> Finished {
        self.close_stdin();
        self.wait()
    }

    /// Waits for the child's end, with standard input left as it is.
    pub fn wait(mut self) -> Finished {
        let deadline = Instant::now() + PATIENCE;
        // The streams end when the last process that holds them does; then waiting is short.
        for drained in [self.stdout.drain(deadline), self.stderr.drain(deadline)] {
            if let Err(why) = drained {
                self.fail(&why);
            }
        }
        let status = self.child.wait().expect("failed to wait for a child");
        Finished {
            status,
            stdout: std::mem::take(&mut self.stdout.seen),
            stderr: std::mem::take(&mut self.stderr.seen),
        }
    }

    /// Ends the test with all that the child printed.
    pub fn fail(&self, why: &str) -> ! {
        let transcript = self.transcript.lock().expect("no panic while locked");
        panic!("{why}\nof: {}\nits output:\n{transcript}", self.what);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended and was waited for, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stream {
    fn read(
        name: &'static str,
        source: impl Read + Send + 'static,
        transcript: &Arc<Mutex<String>>,
    ) -> Stream {
        let (sender, arriving) = channel();
        let transcript = Arc::clone(transcript);
        let reader = std::thread::spawn(move || forward(name, source, &sender, &transcript));
        Stream {
            name,
            arriving,
            seen: Vec::new(),
            reader: Some(reader),
        }
    }

    /// Takes lines until one is wanted. Says why when none came.
    fn wait_for(&mut self, wanted: impl Fn(&str) -> bool) -> Result<String, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.arriving.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line);
                    let line = self.seen.last().expect("just pushed");
                    if wanted(line) {
                        return Ok(line.clone());
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Err("nothing came in time".to_owned()),
                Err(RecvTimeoutError::Disconnected) => return Err("the stream ended".to_owned()),
            }
        }
    }

    /// Takes all lines to the stream's end.
    fn drain(&mut self, deadline: Instant) -> Result<(), String> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.arriving.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("std{} did not end in time", self.name));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        Ok(())
    }
}

/// Sends a stream's lines on, and keeps the beginning of them for messages.
fn forward(name: &str, source: impl Read, lines: &Sender<String>, transcript: &Mutex<String>) {
    const ENOUGH: usize = 200_000;

    let mut source = BufReader::new(source);
    let mut bytes = Vec::new();
    while matches!(source.read_until(b'\n', &mut bytes), Ok(length) if length > 0) {
        let line = String::from_utf8_lossy(&bytes)
            .trim_end_matches('\n')
            .to_owned();
        bytes.clear();
        let mut transcript = transcript.lock().expect("no panic while locked");
        if transcript.len() < ENOUGH {
            let _ = writeln!(transcript, "{name}: {line}");
        }
        drop(transcript);
        // The test may have seen enough and gone; the child must still be able to write.
        let _ = lines.send(line);
    }
}
