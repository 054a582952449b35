//! The programs that allocate on command: compiled, started, told what to do. They know nothing of tracers.

use anyhow::{Context as _, Result, ensure};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tempfile::TempDir;

/// Where the workloads are.
pub const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/workloads");

/// A target that has not answered by then is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the benchmark compiled; removed at its end.
pub struct Workloads {
    directory: TempDir,
}

impl Workloads {
    /// Compiles the workloads, with frame pointers, so that every tracer finds whole stacks.
    pub fn build() -> Result<Self> {
        let directory = tempfile::tempdir().context("failed to make a temporary directory")?;
        for name in ["target", "kernel"] {
            compile(name, Frames::WithPointers, &directory.path().join(name))?;
        }
        let without = directory.path().join(Frames::WithoutPointers.target());
        compile("target", Frames::WithoutPointers, &without)?;
        Ok(Self { directory })
    }

    /// Starts the program that obeys commands.
    pub fn start(&self) -> Result<Target> {
        self.start_built(Frames::WithPointers)
    }

    /// Starts it as it was built in one of two ways.
    pub fn start_built(&self, frames: Frames) -> Result<Target> {
        let mut target = Target::start(&self.directory.path().join(frames.target()))?;
        target.ask("pairs 4")?; // libc's own buffers are allocated before anything is measured
        Ok(target)
    }

    /// Starts the program that makes the kernel allocate.
    pub fn start_for_kernel(&self) -> Result<Target> {
        Target::start(&self.directory.path().join("kernel"))
    }
}

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// With frame pointers.
    WithPointers,
    /// Without.
    WithoutPointers,
}

impl Frames {
    fn target(self) -> &'static str {
        match self {
            Self::WithPointers => "target",
            Self::WithoutPointers => "target-without-frame-pointers",
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::WithPointers => "-fno-omit-frame-pointer",
            Self::WithoutPointers => "-fomit-frame-pointer",
        }
    }
}

fn compile(name: &str, frames: Frames, output: &Path) -> Result<()> {
    let status = Command::new("cc")
        .args([
            "-O1",
            "-g",
            "-Wall",
            frames.flag(),
            "-fno-optimize-sibling-calls",
            "-pthread",
        ])
        .arg(format!("{SOURCES}/{name}.c"))
        .arg("-o")
        .arg(output)
        .status()
        .context("failed to run cc")?;
    ensure!(status.success(), "failed to compile {SOURCES}/{name}.c");
    Ok(())
}

/// A running `target.c` or `kernel.c`; killed when dropped.
pub struct Target {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Target {
    fn start(path: &Path) -> Result<Self> {
        let directory = path.parent().context("the target has no directory")?;
        let mut child = Command::new(path)
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {}", path.display()))?;
        let input = child.stdin.take().context("the target has no stdin")?;
        let output = child.stdout.take().context("the target has no stdout")?;
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            for line in lines {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            input,
            answers,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it a command, without waiting for the answer.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        writeln!(self.input, "{command}").context("failed to command the target")
    }

    /// Waits for the next answer.
    pub fn answer(&mut self) -> Result<f64> {
        let line = self
            .answers
            .recv_timeout(PATIENCE)
            .context("the target does not answer")?;
        line.trim()
            .parse()
            .with_context(|| format!("the target answered {line:?}"))
    }

    /// Gives it a command and waits for the answer.
    pub fn ask(&mut self, command: &str) -> Result<f64> {
        self.tell(command)?;
        self.answer()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
