//! The one place that waits: for the interval, Ctrl-C, the target's end, and what the kernel reports.
//! Decides nothing; it says what came first.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::interrupts::Interrupts;
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

/// Time since boot on CLOCK_MONOTONIC, which the BPF programs read as well.
pub fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Waits for a time.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Waits for a process to end, whose descriptor this is; tells whether it did before the deadline.
pub fn ends(process: BorrowedFd<'_>, deadline: Duration) -> bool {
    loop {
        let timeout = timespec(deadline.saturating_sub(monotonic()));
        let mut fds = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
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
        let timeout = deadline.map(|deadline| timespec(deadline.saturating_sub(monotonic())));
        let mut fds = vec![
            PollFd::from_borrowed_fd(interrupts.as_fd(), PollFlags::IN),
            match target {
                Some(target) => PollFd::from_borrowed_fd(target, PollFlags::IN),
                None => PollFd::from_borrowed_fd(interrupts.as_fd(), PollFlags::empty()),
            },
            PollFd::from_borrowed_fd(interrupts.demands(), PollFlags::IN),
            PollFd::from_borrowed_fd(interrupts.marks(), PollFlags::IN),
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
        if ready(2) && interrupts.take_demand() {
            return Ok(Wake::Demand);
        }
        if ready(3) && interrupts.take_mark() {
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
