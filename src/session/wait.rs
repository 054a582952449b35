//! The one place that waits: for the interval, Ctrl-C, the target's end, and what the kernel reports.
//! Decides nothing; it says what came first.

use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write};
use rustix::time::{ClockId, clock_gettime};
use signal_hook::consts::{SIGUSR1, SIGUSR2};

use crate::options::Options;

/// Why waiting is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The time has come.
    Deadline,
    /// The user asked to stop (SIGINT, SIGTERM or SIGHUP).
    Interrupt,
    /// The target has ended.
    Exit,
    /// The user wants a report now (SIGUSR1).
    Demand,
    /// The user marks a baseline (SIGUSR2).
    Mark,
    /// The kernel has reported something.
    Reports,
}

/// When reports are due.
pub struct Schedule {
    interval: Duration,
    /// Reports until the last one, if there is one.
    left: Option<u64>,
    deadline: Duration,
}

impl Schedule {
    /// The first report is due an interval from now.
    pub fn begin(options: &Options) -> Self {
        Self {
            interval: options.interval,
            left: options.count,
            deadline: monotonic() + options.interval,
        }
    }

    /// When the next report is due, on CLOCK_MONOTONIC.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Whether the report that is due is the last one.
    pub fn is_last(&self) -> bool {
        self.left == Some(1)
    }

    /// A report was made: keeps the pace, but never tries to make up for reports that were missed.
    pub fn advance(&mut self) {
        self.left = self.left.map(|left| left.saturating_sub(1));
        self.deadline = (self.deadline + self.interval).max(monotonic());
    }
}

/// Ctrl-C as a descriptor.
pub struct Interrupts {
    descriptor: OwnedFd,
    demands: UnixStream,
    marks: UnixStream,
}

impl Interrupts {
    /// From here on SIGINT, SIGTERM and SIGHUP no longer end memleak.
    ///
    /// # Errors
    /// Fails when no handler can be set.
    pub fn catch() -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let descriptor = eventfd(0, flags).context("failed to create an event descriptor")?;
        let sender = descriptor
            .try_clone()
            .context("failed to create an event descriptor")?;
        ctrlc::set_handler(move || {
            // the counter can't overflow within the patience of a person
            let _ = write(&sender, &1u64.to_ne_bytes());
        })
        .context("failed to catch Ctrl-C")?;
        Ok(Self {
            descriptor,
            demands: signals(SIGUSR1)?,
            marks: signals(SIGUSR2)?,
        })
    }

    /// Whether one has come since the last time.
    pub fn take(&self) -> bool {
        read(&self.descriptor, &mut [0; 8]).is_ok()
    }
}

/// A stream that gets a byte with every signal of a kind.
fn signals(signal: i32) -> Result<UnixStream> {
    let failed = "failed to catch SIGUSR1 and SIGUSR2";
    let (receiver, sender) = UnixStream::pair().context(failed)?;
    receiver.set_nonblocking(true).context(failed)?;
    signal_hook::low_level::pipe::register(signal, sender).context(failed)?;
    Ok(receiver)
}

/// Takes in what has come; signals that come close together count as one.
fn take_signals(mut stream: &UnixStream) -> bool {
    let mut any = false;
    while matches!(stream.read(&mut [0; 64]), Ok(1..)) {
        any = true;
    }
    any
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Time since boot on CLOCK_MONOTONIC, which the BPF programs read as well.
pub fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Waits for a time.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Waits until something comes, or until the deadline. What ends the session comes first. Without a target, none
/// ends.
///
/// # Errors
/// Fails when the descriptors can't be waited for.
pub fn wait(
    interrupts: &Interrupts,
    target: Option<BorrowedFd<'_>>,
    reports: &[BorrowedFd<'_>],
    deadline: Option<Duration>,
) -> Result<Wake> {
    loop {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_sub(monotonic());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut fds = vec![
            PollFd::from_borrowed_fd(interrupts.as_fd(), PollFlags::IN),
            match target {
                Some(target) => PollFd::from_borrowed_fd(target, PollFlags::IN),
                None => PollFd::from_borrowed_fd(interrupts.as_fd(), PollFlags::empty()),
            },
            PollFd::from_borrowed_fd(interrupts.demands.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(interrupts.marks.as_fd(), PollFlags::IN),
        ];
        fds.extend(
            reports
                .iter()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)),
        );
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno).context("failed to wait"),
        }
        let ready = |index: usize| fds[index].revents().contains(PollFlags::IN);
        if ready(0) && interrupts.take() {
            return Ok(Wake::Interrupt);
        }
        if ready(1) {
            return Ok(Wake::Exit);
        }
        if ready(2) && take_signals(&interrupts.demands) {
            return Ok(Wake::Demand);
        }
        if ready(3) && take_signals(&interrupts.marks) {
            return Ok(Wake::Mark);
        }
        if deadline.is_some_and(|deadline| monotonic() >= deadline) {
            return Ok(Wake::Deadline);
        }
        if fds[4..].iter().any(|fd| !fd.revents().is_empty()) {
            return Ok(Wake::Reports);
        }
    }
}
