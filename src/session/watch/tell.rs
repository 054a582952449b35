//! How findings reach people: a line, a command of theirs with JSON on its input, and the folder of recordings.
//! What is a finding is decided elsewhere.

use std::fs::{self, DirEntry};
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tempfile::TempDir;

use crate::analysis::blame::Blame;
use crate::analysis::findings::Finding;
use crate::analysis::growth::Growth;
use crate::analysis::suspect::Suspicion;
use crate::options::RecordLimits;
use crate::output::units;
use crate::session::wait::monotonic;
use crate::stderr::say;

/// Stacks of a finding that are handed to a command.
const MOST_STACKS: usize = 20;

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How recordings are called, so that nothing else in their folder is ever removed.
const PREFIX: &str = "memleak-";
const SUFFIX: &str = ".jsonl";

/// What there is to tell of a process.
pub struct News<'a> {
    /// The process.
    pub pid: u32,
    /// What it is called.
    pub comm: &'a str,
    /// The container that it runs in, by id.
    pub container: Option<&'a str>,
    /// Why it was suspected.
    pub suspicion: Suspicion,
    /// For how long it has been growing, as far as anybody looked, in seconds.
    pub since_s: f64,
    /// Windows so far.
    pub windows: u32,
    /// Whether frees may have been missed.
    pub doubtful: bool,
    /// Whether the kernel killed it for want of memory.
    pub oom_killed: bool,
    /// The recording of the last window, where it is kept.
    pub recording: Option<&'a Path>,
    /// What grows, fastest first.
    pub growing: &'a [Finding],
}

impl News<'_> {
    /// The finding in a line.
    pub fn line(&self, blame: &Blame) -> String {
        let who = format!("process {} ({})", self.pid, self.comm);
        let grows = format!(
            "{} for {}",
            units::rate(self.suspicion.bytes_per_s),
            units::duration(self.since_s)
        );
        let how = match (self.oom_killed, self.suspicion.limit_in_s) {
            (true, _) => {
                format!("out of memory: the kernel has killed {who}, which grew by {grows}")
            }
            (false, Some(seconds)) => format!(
                "leak: {who} grows by {grows}, its limit is met in {}",
                units::duration(seconds)
            ),
            (false, None) => format!("leak: {who} grows by {grows}"),
        };
        format!("{how}; {}", self.culprits(blame))
    }

    /// "leak_more and 2 other stacks leak 1.2 MiB/s, traced once"
    fn culprits(&self, blame: &Blame) -> String {
        let Some(fastest) = self.growing.first() else {
            return "no stack grew while it was traced".to_owned();
        };
        let frames = fastest.entry.frames.as_deref().unwrap_or_default();
        let culprit = blame.culprit(frames);
        let function = culprit.map_or("[unknown]".to_owned(), |culprit| culprit.function);
        let (who, plural) = match self.growing.len() - 1 {
            0 => (function, false),
            1 => (format!("{function} and another stack"), true),
            others => (format!("{function} and {others} other stacks"), true),
        };
        let leaks = match (self.doubtful, plural) {
            (true, _) => "may leak",
            (false, true) => "leak",
            (false, false) => "leaks",
        };
        let times = match self.windows {
            1 => "traced once".to_owned(),
            times => format!("traced {times} times"),
        };
        let rate = units::rate(self.growing.iter().map(Finding::bytes_per_s).sum());
        format!("{who} {leaks} {rate}, {times}")
    }

    fn json(&self, blame: &Blame) -> Document<'_> {
        Document {
            format: "memleak-finding",
            version: 1,
            pid: self.pid,
            comm: self.comm,
            container: self.container,
            resident: Resident {
                bytes_per_s: self.suspicion.bytes_per_s,
                low: self.suspicion.low,
                high: self.suspicion.high,
                since_s: self.since_s,
                grown_bytes: self.suspicion.grown_bytes,
                limit_in_s: self.suspicion.limit_in_s,
            },
            windows: self.windows,
            growth_is_doubtful: self.doubtful,
            oom_killed: self.oom_killed,
            recording: self
                .recording
                .as_ref()
                .map(|path| path.to_string_lossy().into_owned()),
            growing: self
                .growing
                .iter()
                .take(MOST_STACKS)
                .map(|finding| stack(finding, blame))
                .collect(),
        }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    format: &'static str,
    version: u32,
    pid: u32,
    comm: &'a str,
    container: Option<&'a str>,
    resident: Resident,
    windows: u32,
    growth_is_doubtful: bool,
    oom_killed: bool,
    recording: Option<String>,
    growing: Vec<Stack>,
}

#[derive(Serialize)]
struct Resident {
    bytes_per_s: f64,
    low: f64,
    high: f64,
    since_s: f64,
    grown_bytes: u64,
    limit_in_s: Option<f64>,
}

#[derive(Serialize)]
struct Stack {
    function: String,
    bytes_per_s: f64,
    low: f64,
    high: f64,
    bytes: u64,
    count: u64,
    functions: Vec<String>,
}

fn stack(finding: &Finding, blame: &Blame) -> Stack {
    let frames = finding.entry.frames.as_deref().unwrap_or_default();
    let Growth { rate, .. } = finding.growth;
    Stack {
        function: blame
            .culprit(frames)
            .map_or_else(String::new, |culprit| culprit.function),
        bytes_per_s: rate.map_or(0.0, |rate| rate.bytes_per_s),
        low: rate.map_or(0.0, |rate| rate.low),
        high: rate.map_or(0.0, |rate| rate.high),
        bytes: finding.entry.bytes,
        count: finding.entry.count,
        functions: frames
            .iter()
            .map(|frame| {
                frame
                    .function
                    .as_ref()
                    .map_or("[unknown]", |function| &function.name)
                    .to_owned()
            })
            .collect(),
    }
}

/// The user's command for findings. One runs at a time.
pub struct Teller {
    command: Option<String>,
    running: Option<(Child, Duration)>,
}

impl Teller {
    /// Tells by a line and, if there is one, by this command, which a shell reads.
    pub fn new(command: Option<String>) -> Self {
        Self {
            command,
            running: None,
        }
    }

    /// Tells of a finding.
    pub fn tell(&mut self, news: &News<'_>, blame: &Blame) {
        say!("{}", news.line(blame));
        self.look();
        let Some(command) = &self.command else {
            return;
        };
        if self.running.is_some() {
            return say!("warning: the command of --on-finding still runs: it is not told of this");
        }
        match start(command, &news.json(blame)) {
            Ok(child) => self.running = Some((child, monotonic())),
            Err(error) => say!("warning: {error:#}"),
        }
    }

    /// Sees to a command that has ended, or takes too long.
    pub fn look(&mut self) {
        let Some((child, began)) = &mut self.running else {
            return;
        };
        if monotonic() - *began > PATIENCE {
            say!("warning: the command of --on-finding took longer than a minute and is killed");
            let _ = child.kill();
        }
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                if !status.success() {
                    say!("warning: the command of --on-finding ended with {status}");
                }
                self.running = None;
            }
            Err(_) => self.running = None,
        }
    }
}

/// The input is in a file, so that nobody waits for a command that does not read.
fn start(command: &str, document: &Document<'_>) -> Result<Child> {
    let failed = "failed to run the command of --on-finding";
    let mut input = tempfile::tempfile().context(failed)?;
    serde_json::to_writer(&input, document).context(failed)?;
    writeln!(input).context(failed)?;
    input.rewind().context(failed)?;
    Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(input)
        // what it says is no output of memleak's
        .stdout(Stdio::null())
        .spawn()
        .context(failed)
}

/// Where windows are recorded.
pub struct Recordings {
    limits: Option<RecordLimits>,
    /// Where recordings go that nobody keeps.
    passing: TempDir,
}

impl Recordings {
    /// Makes the folder if it is not there.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn open(limits: Option<RecordLimits>) -> Result<Self> {
        if let Some(limits) = &limits {
            let folder = &limits.folder;
            fs::create_dir_all(folder)
                .with_context(|| format!("failed to make the folder {}", folder.display()))?;
        }
        let passing = tempfile::Builder::new().prefix("memleak-watch-").tempdir();
        let passing = passing.context("failed to make a folder for windows (TMPDIR says where)")?;
        Ok(Self { limits, passing })
    }

    /// Where the next window goes.
    pub fn next(&self, pid: u32, unix_s: i64) -> PathBuf {
        let folder = self
            .limits
            .as_ref()
            .map_or(self.passing.path(), |limits| &limits.folder);
        folder.join(format!("{PREFIX}{unix_s}-{pid}{SUFFIX}"))
    }

    /// Whether recordings stay.
    pub fn keeps(&self) -> bool {
        self.limits.is_some()
    }

    /// Removes what is too old or too much, oldest first, and what nobody keeps.
    pub fn tidy(&self, last: &Path) {
        let Some(limits) = &self.limits else {
            let _ = fs::remove_file(last);
            return;
        };
        let mut files = recordings(&limits.folder);
        files.sort_by_key(|(modified, ..)| *modified);
        let mut bytes: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        let now = SystemTime::now();
        for (modified, size, path) in files {
            let age = now.duration_since(modified).unwrap_or_default();
            if bytes <= limits.most_bytes && age <= limits.longest {
                break;
            }
            match fs::remove_file(&path) {
                Ok(()) => bytes -= size,
                Err(error) => say!("warning: failed to remove {}: {error}", path.display()),
            }
        }
    }
}

fn recordings(folder: &Path) -> Vec<(SystemTime, u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| recording(&entry)).collect()
}

fn recording(entry: &DirEntry) -> Option<(SystemTime, u64, PathBuf)> {
    let name = entry.file_name();
    let name = name.to_str()?;
    let middle = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let own = middle
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'-');
    let metadata = entry
        .metadata()
        .ok()
        .filter(|metadata| own && metadata.is_file())?;
    Some((metadata.modified().ok()?, metadata.len(), entry.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_recordings_go_first_and_nothing_else_goes() {
        let folder = tempfile::tempdir().unwrap();
        let limits = RecordLimits {
            folder: folder.path().to_path_buf(),
            most_bytes: 250,
            longest: Duration::from_secs(3600),
        };
        let recordings = Recordings::open(Some(limits)).unwrap();
        let now = SystemTime::now();
        let write = |path: &Path, age: u64| {
            let file = fs::File::create(path).unwrap();
            file.set_len(100).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
        };
        let paths: Vec<PathBuf> = (1..=4)
            .map(|at| recordings.next(at, 100 - i64::from(at)))
            .collect();
        for (path, age) in paths.iter().zip([10, 20, 30, 7200]) {
            write(path, age);
        }
        let other = folder.path().join("memleak-notes.jsonl");
        write(&other, 90_000);
        recordings.tidy(&paths[0]);
        let left: Vec<bool> = paths.iter().map(|path| path.exists()).collect();
        assert_eq!(left, [true, true, false, false]);
        assert!(other.exists());
    }

    #[test]
    fn what_nobody_keeps_is_gone_at_once() {
        let recordings = Recordings::open(None).unwrap();
        let path = recordings.next(7, 1);
        fs::write(&path, "x").unwrap();
        recordings.tidy(&path);
        assert!(!path.exists() && !recordings.keeps());
    }
}
