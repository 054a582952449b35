//! A window: memleak itself, on one process, for a bounded time, recording; so that whatever happens in there is over with it.
//! What came out is joined and told elsewhere.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::analysis::watch::Suspect;
use crate::model::run::Recording;
use crate::options::WatchOptions;
use crate::recording::load;
use crate::session::wait::monotonic;
use crate::visible;

/// Reports in a window at the least: enough to tell a rise from noise.
const REPORTS: u32 = 12;

/// Reports are no further apart, so that there are some of a process that is killed meanwhile.
const RARELY: Duration = Duration::from_secs(10);

/// How much longer than its reports a window may take.
const LATE: Duration = Duration::from_secs(30);

/// Bytes of what a window said that are looked at.
const MOST_SAID: u64 = 64 << 10;

/// A process that is being traced.
pub struct Window {
    /// Whom it is about.
    pub suspect: Suspect,
    /// What the process is called.
    pub comm: String,
    /// When it began, on CLOCK_MONOTONIC.
    pub began: Duration,
    /// Where it is recorded.
    pub path: PathBuf,
    longest: Duration,
    child: Child,
    ended: OwnedFd,
    said: File,
}

impl Window {
    /// Opens a window. `overhead` is the share of the process's own CPU time that tracing may take, in percent.
    ///
    /// # Errors
    /// When memleak can't be started.
    pub fn open(
        suspect: Suspect,
        comm: String,
        path: PathBuf,
        options: &WatchOptions,
        overhead: f64,
    ) -> Result<Self> {
        let length = options.window;
        let failed = "failed to start a window";
        let said = tempfile::tempfile().context(failed)?;
        let interval = (length / REPORTS).min(RARELY);
        let reports = length.as_secs_f64() / interval.as_secs_f64();
        let mut child = Command::new("/proc/self/exe")
            .args(["-p", &suspect.who.pid.to_string(), "--no-growth", "-T", "1"])
            .args(["--max-overhead", &format!("{overhead:.3}"), "--record"])
            .arg(&path)
            .arg(format!("{:.3}", interval.as_secs_f64()))
            .arg(format!("{:.0}", reports.ceil()))
            .args(naming(options))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said.try_clone().context(failed)?)
            .spawn()
            .context(failed)?;
        let ended = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(ended) => ended,
            Err(errno) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(errno).context(failed);
            }
        };
        Ok(Self {
            suspect,
            comm,
            began: monotonic(),
            path,
            longest: length + LATE,
            child,
            ended,
            said,
        })
    }

    /// Asks it to end, if it has taken too long; kills it if that did not help.
    pub fn hurry(&mut self) {
        let taken = monotonic() - self.began;
        if taken > self.longest + LATE {
            let _ = self.child.kill();
        } else if taken > self.longest {
            self.stop();
        }
    }

    /// Asks it to end.
    pub fn stop(&self) {
        // it may have ended by itself
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
    }

    /// Ends it at once, if it has not ended, and waits for that; the kernel takes its probes away.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What it recorded, once it has ended.
    ///
    /// # Errors
    /// When it could not trace.
    pub fn close(&mut self) -> Result<Recording> {
        let status = self.child.wait().context("failed to wait for a window")?;
        let loaded = read(&self.path);
        match loaded {
            Ok(recording) if !recording.snapshots.is_empty() => Ok(recording),
            // why, it has said last
            _ => Err(match self.last_line() {
                Some(line) => anyhow!("{line}"),
                None => anyhow!("it ended with {status}"),
            }),
        }
    }

    fn last_line(&mut self) -> Option<String> {
        let mut said = Vec::new();
        self.said.rewind().ok()?;
        (&self.said).take(MOST_SAID).read_to_end(&mut said).ok()?;
        let said = String::from_utf8_lossy(&said);
        let line = said.lines().next_back()?;
        let line = line.strip_prefix("memleak: ").unwrap_or(line);
        Some(visible::line(line).into_owned())
    }
}

impl AsFd for Window {
    /// Becomes readable when the window has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

/// The options for names, as memleak itself takes them.
fn naming(options: &WatchOptions) -> Vec<OsString> {
    let mut words = Vec::new();
    for folder in &options.naming.debug_dirs {
        words.extend(["--debug-dir".into(), folder.into()]);
    }
    for url in &options.naming.debuginfod {
        words.extend(["--debuginfod".into(), url.into()]);
    }
    words
}

fn read(path: &Path) -> Result<Recording> {
    if !path.is_file() {
        bail!("no recording");
    }
    Ok(load::load(path)?.recording)
}
