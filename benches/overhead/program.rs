//! Real programs: started, stopped short of their work, then fed and timed. They know nothing of tracers.

use crate::target::SOURCES;
use anyhow::{Context as _, Result, bail, ensure};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// A real program, which does its work once it has its input.
pub struct Program {
    /// What people call it.
    pub name: &'static str,
    command: Vec<PathBuf>,
    input: String,
}

impl Program {
    /// The programs that are timed as a whole.
    pub fn all() -> Result<Vec<Self>> {
        let python = ["python3".into(), format!("{SOURCES}/parse.py").into()];
        Ok(vec![
            Self {
                name: "python3 parsing JSON",
                command: python.into(),
                input: String::new(),
            },
            Self {
                name: "sqlite3 inserting 5,000 rows",
                command: vec!["sqlite3".into(), ":memory:".into()],
                input: sqlite_input(),
            },
            Self {
                name: "gcc compiling a file",
                command: [
                    compiler()?,
                    "-quiet".into(),
                    "-O2".into(),
                    "-o".into(),
                    "/dev/null".into(),
                    "-".into(),
                ]
                .into(),
                input: compiler_input(),
            },
        ])
    }

    /// Starts it. It does nothing of note until [`RunningProgram::finish`].
    pub fn start(&self) -> Result<RunningProgram> {
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("failed to start {}", self.command[0].display()))?;
        let stdin = child.stdin.take();
        let running = RunningProgram { child, stdin };
        running.wait_until_it_reads()?;
        Ok(running)
    }

    /// What it reads.
    pub fn input(&self) -> &str {
        &self.input
    }
}

/// A started program; killed when dropped.
pub struct RunningProgram {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl RunningProgram {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it its input and waits for its end. Returns how long that took.
    pub fn finish(mut self, input: &str) -> Result<Duration> {
        let begin = Instant::now();
        if let Some(mut stdin) = self.stdin.take() {
            stdin
                .write_all(input.as_bytes())
                .context("failed to write a program's input")?;
        }
        let status = self.child.wait().context("failed to wait for a program")?;
        ensure!(status.success(), "a traced program failed: {status}");
        Ok(begin.elapsed())
    }

    /// Blocked in a read of its stdin: its libraries are mapped and its start is over.
    fn wait_until_it_reads(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let call = std::fs::read_to_string(format!("/proc/{}/syscall", self.pid()));
            // `read` is system call 0 on x86-64 and 63 on aarch64; the next word is its descriptor.
            let read = if cfg!(target_arch = "x86_64") {
                "0 0x0 "
            } else {
                "63 0x0 "
            };
            if call.is_ok_and(|call| call.starts_with(read)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("a program did not begin to read its input")
    }
}

impl Drop for RunningProgram {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sqlite_input() -> String {
    let mut input =
        String::from("create table t(id integer primary key, name text, value real);\nbegin;\n");
    for row in 0..5_000 {
        input += &format!("insert into t values({row}, 'row number {row}', {row}.5);\n");
    }
    input + "commit;\nselect count(*) from t;\n"
}

/// gcc is a driver; what compiles, and allocates, is its cc1.
fn compiler() -> Result<PathBuf> {
    let output = Command::new("gcc").arg("-print-prog-name=cc1").output();
    let output = output.context("failed to ask gcc for its compiler")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

fn compiler_input() -> String {
    let function = |n: usize| {
        format!(
            "int f{n}(int *values, int count) {{ int sum = {n}; for (int i = 0; i < count; i++) \
             {{ if (values[i] % {} == 0) sum += values[i] * {n}; else sum ^= values[i] << {}; }} return sum; }}\n",
            n + 2,
            n % 13
        )
    };
    (0..40).map(function).collect()
}
