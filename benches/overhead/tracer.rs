//! What watches a target while it is measured: nothing, empty probes, or a tool started as a command.

use crate::floor::{At, Floor};
use crate::usage;
use anyhow::{Context as _, Result, bail};
use libbpf_rs::Link;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A tool that uses less than 1% of a CPU for so long has attached what it attaches.
const REST: Duration = Duration::from_millis(300);
/// How often a tool's CPU time is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// A tool that has not got ready, or not left, by then is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// A way to be traced.
pub enum Tracer {
    /// Not at all.
    Untraced,
    /// By programs that do nothing.
    Floor(At),
    /// By a tool.
    Command {
        /// What the tables call it.
        name: String,
        /// The executable.
        path: PathBuf,
        /// Options before `-p PID INTERVAL`, or before `INTERVAL` to trace the kernel.
        options: Vec<String>,
    },
}

impl Tracer {
    /// A tool at `path` with `options`.
    pub fn command(name: &str, path: impl AsRef<Path>, options: &[&str]) -> Self {
        Self::Command {
            name: name.to_string(),
            path: path.as_ref().to_path_buf(),
            options: options.iter().map(ToString::to_string).collect(),
        }
    }

    /// What the tables call it.
    pub fn name(&self) -> &str {
        match self {
            Self::Untraced => "untraced",
            Self::Floor(At::Sites) => "floor: empty probes at the chosen sites",
            Self::Floor(At::Symbols) => "empty probes at the symbols",
            Self::Command { name, .. } => name,
        }
    }

    /// Begins to trace `pid`; a tool then reports every `interval` seconds.
    pub fn attach(&self, floor: &Floor, pid: u32, interval: u32) -> Result<Attached> {
        let begin = Instant::now();
        let by = match self {
            Self::Untraced => By::Nothing,
            Self::Floor(at) => By::Probes(floor.attach(pid, *at)?),
            Self::Command { path, options, .. } => {
                let target = ["-p".to_string(), pid.to_string()];
                By::Tool(Tool::start(
                    path,
                    &[options, &target[..]].concat(),
                    interval,
                )?)
            }
        };
        Ok(Attached { begin, by })
    }

    /// Begins to trace what a tool traces that is given no process: the kernel's allocators, or what its options say.
    pub fn attach_to_system(&self, interval: u32) -> Result<Attached> {
        let begin = Instant::now();
        let by = match self {
            Self::Untraced | Self::Floor(_) => By::Nothing,
            Self::Command { path, options, .. } => By::Tool(Tool::start(path, options, interval)?),
        };
        Ok(Attached { begin, by })
    }
}

/// A target is being traced; ends when dropped.
pub struct Attached {
    begin: Instant,
    by: By,
}

enum By {
    Nothing,
    Probes(#[expect(dead_code, reason = "kept for its drop, which detaches")] Vec<Link>),
    Tool(Tool),
}

impl Attached {
    /// When the attaching began.
    pub fn begin(&self) -> Instant {
        self.begin
    }

    /// The tool, where there is one.
    pub fn tool(&mut self) -> Option<&mut Tool> {
        match &mut self.by {
            By::Tool(tool) => Some(tool),
            By::Nothing | By::Probes(_) => None,
        }
    }

    /// Waits until a tool rests. Returns how long after its start its last activity was.
    pub fn settle(&mut self) -> Result<Option<Duration>> {
        let begin = self.begin;
        self.tool().map(|tool| tool.settle(begin)).transpose()
    }

    /// Waits until a tool says something, which is that it traces from now on.
    pub fn announced(&mut self) -> Result<()> {
        match self.tool() {
            Some(tool) => match tool.lines.recv_timeout(PATIENCE) {
                Ok(_) => Ok(()),
                Err(_) => bail!("the tool says nothing: {}", tool.complaint()),
            },
            None => Ok(()),
        }
    }

    /// Detaches. Returns how long a tool took to leave after Ctrl-C.
    pub fn detach(self) -> Result<Option<Duration>> {
        match self.by {
            By::Nothing | By::Probes(_) => Ok(None),
            By::Tool(mut tool) => tool.interrupt().map(Some),
        }
    }
}

/// A running tool; killed when dropped.
pub struct Tool {
    child: Child,
    errors: File,
    lines: Receiver<(Instant, String)>,
}

impl Tool {
    fn start(path: &Path, options: &[String], interval: u32) -> Result<Self> {
        let errors = tempfile::tempfile().context("failed to make a temporary file")?;
        let mut child = Command::new(path)
            .args(options)
            .arg(interval.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().context("failed to share a file")?)
            .spawn()
            .with_context(|| format!("failed to start {}", path.display()))?;
        let output = child.stdout.take().context("the tool has no stdout")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            errors,
            lines,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that it has used.
    pub fn cpu_time(&mut self) -> Result<Duration> {
        match usage::cpu_time(self.pid()) {
            Some(time) if self.child.try_wait().is_ok_and(|status| status.is_none()) => Ok(time),
            _ => bail!("the tool has left: {}", self.complaint()),
        }
    }

    /// The lines that it printed since the last call, with the times at which they arrived.
    pub fn lines(&self) -> impl Iterator<Item = (Instant, String)> {
        self.lines.try_iter()
    }

    fn settle(&mut self, begin: Instant) -> Result<Duration> {
        let (mut used, mut since) = (Duration::ZERO, Instant::now());
        while since.elapsed() < REST {
            std::thread::sleep(LOOK);
            let time = self.cpu_time()?;
            if time.saturating_sub(used) > REST / 100 {
                (used, since) = (time, Instant::now());
            }
            if begin.elapsed() > PATIENCE {
                bail!("the tool does not come to rest");
            }
        }
        Ok(since.duration_since(begin))
    }

    fn interrupt(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let pid = Pid::from_raw(self.pid().cast_signed()).context("the tool has no process id")?;
        kill_process(pid, Signal::INT).context("failed to interrupt the tool")?;
        while begin.elapsed() < PATIENCE {
            if self
                .child
                .try_wait()
                .context("failed to wait for the tool")?
                .is_some()
            {
                return Ok(begin.elapsed());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("the tool did not leave on Ctrl-C")
    }

    fn complaint(&mut self) -> String {
        let mut text = String::new();
        let _ = self.errors.rewind();
        let _ = self.errors.read_to_string(&mut text);
        text.lines().last().unwrap_or("it said nothing").to_string()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
