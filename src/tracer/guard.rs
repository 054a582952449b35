//! The links of user probes, and a thread that drops at once those that a translator would meet: it can't wait until the
//! session has time. Knows nothing of what the probes do.

use std::collections::BTreeSet;
use std::mem;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use libbpf_rs::{Link, MapCore, MapHandle, RingBufferBuilder};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::skel::types;
use crate::process::translators::is_translator;

/// How long to wait between attempts to hold a process.
const HOLD_PAUSE: Duration = Duration::from_micros(200);

/// How long a process may take to stop: it is running, or about to.
const HOLD_PATIENCE: Duration = Duration::from_millis(20);

/// Links of probes by the process that they are in; none: in all.
pub struct Guard {
    shared: Arc<Mutex<Shared>>,
    /// Held while links are being dropped: a process that ends in the middle of it leaves breakpoints behind.
    dropping: Arc<Mutex<()>>,
    /// Becomes readable when a translator has begun.
    news: Arc<OwnedFd>,
    /// Ends the thread.
    stop: Arc<OwnedFd>,
}

#[derive(Default)]
struct Shared {
    links: Vec<(Option<u32>, Link)>,
    /// Processes in which there may be no probe, by number.
    spared: BTreeSet<u32>,
    /// What has begun and is still to be told.
    begun: Vec<TranslatorStart>,
}

/// A translator has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TranslatorStart {
    /// Its process.
    pub pid: u32,
    /// What its file is called.
    pub name: String,
}

impl Guard {
    /// Begins to watch the programs that begin, as the ring tells.
    ///
    /// # Errors
    /// When the kernel refuses a descriptor, or a thread.
    pub fn start(ring: MapHandle) -> Result<Self> {
        let descriptor = || {
            let flags = EventfdFlags::CLOEXEC.union(EventfdFlags::NONBLOCK);
            eventfd(0, flags).context("failed to create an event descriptor")
        };
        let guard = Self {
            shared: Arc::default(),
            dropping: Arc::default(),
            news: Arc::new(descriptor()?),
            stop: Arc::new(descriptor()?),
        };
        let (shared, dropping, news, stop) = (
            Arc::clone(&guard.shared),
            Arc::clone(&guard.dropping),
            Arc::clone(&guard.news),
            Arc::clone(&guard.stop),
        );
        thread::Builder::new()
            .name("guard".to_owned())
            .spawn(move || {
                hurry();
                // without it nobody is spared, as without this thread
                let _ = watch(&ring, &shared, &dropping, &news, &stop);
            })
            .context("failed to start a thread")?;
        Ok(guard)
    }

    /// Attaches probes in one process, or in all, and keeps their links; nothing where there may be none. A translator that
    /// begins meanwhile stands until this is done.
    ///
    /// # Errors
    /// Whatever `attach` fails with.
    pub fn attach(
        &self,
        pid: Option<u32>,
        attach: impl FnOnce() -> Result<Vec<Link>>,
    ) -> Result<()> {
        let mut shared = lock(&self.shared);
        let met = match pid {
            Some(pid) => shared.spared.contains(&pid),
            None => !shared.spared.is_empty(),
        };
        if !met {
            let links = attach()?;
            shared
                .links
                .extend(links.into_iter().map(|link| (pid, link)));
        }
        Ok(())
    }

    /// Lets go of the links of some processes.
    pub fn release(&self, wanted: impl Fn(Option<u32>) -> bool) -> Vec<Link> {
        let mut shared = lock(&self.shared);
        let released = shared.links.extract_if(.., |(pid, _)| wanted(*pid));
        released.map(|(_, link)| link).collect()
    }

    /// Waits until links that are being dropped are gone.
    pub fn settle(&self) {
        drop(self.dropping.lock());
    }

    /// No probe may be in a process; what is there goes.
    pub fn spare(&self, pid: u32) {
        lock(&self.shared).spared.insert(pid);
        drop(self.release(|of| of == Some(pid)));
    }

    /// The translators that have begun have ended.
    pub fn forget(&self) {
        lock(&self.shared).spared.clear();
    }

    /// The translators that have begun since the last time.
    pub fn take(&self) -> Vec<TranslatorStart> {
        let mut count = [0; 8];
        // nothing to read means nothing new
        let _ = rustix::io::read(&*self.news, &mut count);
        std::mem::take(&mut lock(&self.shared).begun)
    }

    /// Becomes readable when a translator has begun.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        signal(&self.stop);
    }
}

/// What is behind a lock stays whole, whoever panicked with it.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signal(descriptor: &OwnedFd) {
    let _ = rustix::io::write(descriptor, &1u64.to_ne_bytes());
}

fn watch(
    ring: &MapHandle,
    shared: &Mutex<Shared>,
    dropping: &Mutex<()>,
    news: &OwnedFd,
    stop: &OwnedFd,
) -> Result<()> {
    let mut builder = RingBufferBuilder::new();
    let take = |data: &[u8]| {
        if let Ok(start) = plain::from_bytes::<types::program_start>(data) {
            begin(start, shared, dropping, news);
        }
        0
    };
    builder.add(ring as &dyn MapCore, take)?;
    let rings = builder.build()?;
    #[allow(unsafe_code)] // libbpf-rs hands out a number
    // SAFETY: the descriptor is the ring's, which lives as long as it is borrowed.
    let waiting = unsafe { BorrowedFd::borrow_raw(rings.epoll_fd()) };
    loop {
        let mut fds = [
            PollFd::new(&waiting, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => rings.consume()?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// A program begins: if it is a translator, what it would meet goes.
fn begin(
    start: &types::program_start,
    shared: &Mutex<Shared>,
    dropping: &Mutex<()>,
    news: &OwnedFd,
) {
    let name: Vec<u8> = start
        .name
        .iter()
        .map(|byte| byte.cast_unsigned())
        .take_while(|byte| *byte != 0)
        .collect();
    if !is_translator(&name) {
        // a process that has come to run something else can be probed again
        lock(shared).spared.remove(&start.tgid);
        return;
    }
    let busy = dropping.lock();
    // before anybody is told: this is what there is to hurry for
    drop_held(start.tgid, shared);
    drop(busy);
    lock(shared).begun.push(TranslatorStart {
        pid: start.tgid,
        name: String::from_utf8_lossy(&name).into_owned(),
    });
    signal(news);
}

/// Drops what a translator would meet while it stands: taking breakpoints out takes the kernel longer than some translators
/// take to read their first code.
fn drop_held(pid: u32, shared: &Mutex<Shared>) {
    let take_out = || {
        let mut all = lock(shared);
        all.spared.insert(pid);
        let met: Vec<(Option<u32>, Link)> = all
            .links
            .extract_if(.., |(of, _)| of.is_none_or(|of| of == pid))
            .collect();
        drop(all);
        super::drop_all(met.into_iter().map(|(_, link)| link).collect());
    };
    let taken_out = AtomicBool::new(false);
    thread::scope(|scope| {
        // what a thread traces, the kernel lets go when the thread ends: also what did not stop in time
        scope.spawn(|| {
            let mut held = None;
            while !taken_out.load(Ordering::Acquire) {
                // another memleak can hold it for its own sake
                held = held.or_else(|| Held::hold(pid));
                thread::sleep(HOLD_PAUSE);
            }
        });
        take_out();
        taken_out.store(true, Ordering::Release);
    });
}

/// A process that has just begun, and stands until this is dropped: for some ten milliseconds, without a signal that
/// anybody would see. Should memleak be killed meanwhile, the kernel lets it go.
struct Held {
    pid: i32,
    /// The signal that it was about to take.
    signal: i32,
}

#[allow(unsafe_code)] // there are no safe wrappers
impl Held {
    /// Stops a process; none where that can't be done, as when a debugger has it.
    fn hold(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0)?;
        // SAFETY: these requests take no pointers to memory of this process.
        if unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0usize, 0usize) } != 0 {
            return None;
        }
        let mut held = Self { pid, signal: 0 };
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0usize, 0usize) };
        let deadline = Instant::now() + HOLD_PATIENCE;
        while Instant::now() < deadline {
            // SAFETY: the structure consists of integers, for which zeros will do.
            let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
            let wanted = libc::WSTOPPED | libc::__WALL | libc::WNOHANG;
            // SAFETY: the kernel writes one structure. Ends of processes are left to whoever waits for them.
            if unsafe { libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut info, wanted) } != 0
            {
                break;
            }
            // SAFETY: the kernel has filled the fields of a child's change of state, or left all zero.
            let (stopped, status) = unsafe { (info.si_pid() == pid, info.si_status()) };
            if stopped {
                // a stop of ours carries an event above the signal's number
                held.signal = if status >> 8 == 0 { status } else { 0 };
                break;
            }
            thread::yield_now();
        }
        Some(held)
    }
}

#[allow(unsafe_code)] // as above
impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: this request takes no pointer. A process that has ended is an error of no matter.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.pid, 0usize, self.signal as usize) };
    }
}

/// Runs this thread before others: a translator reads its first code some milliseconds after it begins.
#[allow(unsafe_code)] // there is no safe wrapper
fn hurry() {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads the parameter, which lives through the call. Without the right to, the thread stays as it is.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority);
    }
}
