//! A running process: whether it can be traced, whether it still lives.
//! Its memory map is read in `mappings`.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::files::proc;

/// What the kernel's own threads have among their flags, from its `sched.h`.
const PF_KTHREAD: u64 = 0x0020_0000;

/// Bytes that the kernel keeps of a name.
const MAX_NAME: usize = 15;

/// A process, held by a pidfd so that its number can't come to mean another one.
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

impl Process {
    /// Takes hold of the process with this id.
    ///
    /// # Errors
    /// Fails when there is none, when it has ended, when it is a thread other than a process's first, or
    /// a thread of the kernel.
    pub fn open(pid: u32) -> Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(raw) = raw else {
            bail!("no such process: {pid}");
        };
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => bail!("no such process: {pid}"),
            // what pidfd_open says of a thread that leads no process
            Err(Errno::INVAL | Errno::NOENT) => match thread_group(pid) {
                Some(group) => bail!("{pid} is a thread of process {group}: use -p {group}"),
                None => bail!("no such process: {pid}"),
            },
            Err(errno) => {
                return Err(errno).with_context(|| format!("failed to open process {pid}"));
            }
        };
        let process = Self { pid, pidfd };
        if process.has_ended() {
            bail!("process {pid} has ended");
        }
        if is_kernel_thread(pid) {
            bail!(
                "{pid} is a kernel thread, which has no user memory: run without -p for the kernel"
            );
        }
        Ok(process)
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has ended, reaped or not.
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(ready) if ready > 0)
    }

    /// Whether its first thread has ended, though others go on.
    pub fn first_thread_ended(&self) -> bool {
        proc::folder(self.pid) != proc::own_folder(self.pid)
    }

    /// Whether any of its threads filters system calls (seccomp).
    pub fn filters_system_calls(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid));
        let mut tasks = tasks.into_iter().flatten().flatten();
        tasks.any(|task| {
            let status = proc::text(task.path().join("status")).unwrap_or_default();
            let mode = status
                .lines()
                .find_map(|line| line.strip_prefix("Seccomp:"));
            mode.is_some_and(|mode| mode.trim() != "0")
        })
    }

    /// The same process, held once more.
    ///
    /// # Errors
    /// Fails when there are no more descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        let pidfd = self.pidfd.try_clone();
        Ok(Self {
            pid: self.pid,
            pidfd: pidfd.with_context(|| format!("failed to open process {}", self.pid))?,
        })
    }

    /// Asks it to end, also where it is stopped. One that has ended already is not an error.
    ///
    /// # Errors
    /// Fails when it may not be signaled.
    pub fn end(&self) -> Result<()> {
        self.signal(Signal::TERM)?;
        self.signal(Signal::CONT)
    }

    /// Sends it a signal. One that has ended already is not an error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => {
                Err(errno).with_context(|| format!("failed to signal process {}", self.pid))
            }
        }
    }
}

impl AsFd for Process {
    /// Becomes readable when the process ends.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// The processes that run now, as far as /proc shows them.
pub fn running() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// What a process is called: at most 15 bytes; none when it has ended.
pub fn name(pid: u32) -> Option<String> {
    let name = proc::text(format!("/proc/{pid}/comm")).ok()?;
    Some(name.strip_suffix('\n').unwrap_or(&name).to_owned())
}

/// The processes of a name, by ascending id, but this one: what `/proc` calls them, or the file of their program where the
/// kernel had to cut that.
pub fn named(wanted: &str) -> Vec<u32> {
    let own = std::process::id();
    let mut pids = running();
    pids.retain(|pid| *pid != own && is_named(*pid, wanted));
    pids.sort_unstable();
    pids
}

fn is_named(pid: u32, wanted: &str) -> bool {
    if name(pid).is_some_and(|name| name == wanted) {
        return true;
    }
    let program = fs::read_link(format!("/proc/{pid}/exe"));
    wanted.len() > MAX_NAME
        && program.is_ok_and(|path| path.file_name().is_some_and(|file| file == wanted))
}

/// The memory of a process, to be read at its addresses.
///
/// # Errors
/// When it has gone, or without the privilege.
pub fn memory_of(pid: u32) -> io::Result<File> {
    File::open(proc::folder(pid).join("mem"))
}

/// Children, their children and so on.
pub fn descendants(pids: &[u32]) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = running()
        .into_iter()
        .filter_map(|pid| Some((pid, status_field(pid, "PPid")?.parse().ok()?)))
        .collect();
    let mut family = pids.to_vec();
    let mut at = 0;
    while let Some(&parent) = family.get(at) {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        for (child, _) in children {
            if !family.contains(child) {
                family.push(*child);
            }
        }
        at += 1;
    }
    family.split_off(pids.len())
}

fn status_field(pid: u32, field: &str) -> Option<String> {
    let status = proc::text(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.strip_prefix(':')?.trim().to_string())
}

/// The process that a thread belongs to; none when there is no such thread.
pub fn thread_group(pid: u32) -> Option<u32> {
    status_field(pid, "Tgid")?.parse().ok()
}

/// The kernel's own threads are marked as such, and have no memory that could tell.
pub fn is_kernel_thread(pid: u32) -> bool {
    stat_field(pid, 9).is_some_and(|flags| flags & PF_KTHREAD != 0)
}

/// When a process began, in ticks since boot: with its id, that tells it from any other. None when it has ended, whether or
/// not anybody has waited for it.
pub fn start_time(pid: u32) -> Option<u64> {
    let fields = stat_fields(pid)?;
    let lives = !matches!(fields.first()?.as_str(), "Z" | "X");
    lives.then(|| fields.get(22 - 3)?.parse().ok()).flatten()
}

/// A number of /proc/PID/stat, by its place as proc(5) counts; from the fourth on.
fn stat_field(pid: u32, place: usize) -> Option<u64> {
    stat_fields(pid)?.get(place - 3)?.parse().ok()
}

/// What /proc/PID/stat says behind the process's name, which can hold anything; from the third field on.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let stat = proc::text(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_ascii_whitespace().map(str::to_owned).collect())
}
