//! A command's threads, watched from its first instruction to its end, so that its memory can be looked at when it is about
//! to go: the kernel tells of each thread that ends before anything is freed. Reads no memory and judges nothing.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{read, write};
use signal_hook::consts::SIGCHLD;
use signal_hook::low_level::{pipe, unregister};

use super::threads::{self, STOP_PATIENCE, Thread};

/// Between two looks at threads that have yet to come to their end.
const TICK: Duration = Duration::from_millis(2);

/// What the kernel is to tell of: the end of a thread, new threads, another program.
const OPTIONS: i32 =
    libc::PTRACE_O_TRACEEXIT | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEEXEC;

/// A process that is watched by a thread of memleak's. Should memleak be killed, the kernel lets the process go on.
pub struct Watch {
    pid: u32,
    commands: Option<Sender<Command>>,
    wake: OwnedFd,
    at_end: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    Stop(Sender<Result<Vec<Thread>>>),
    Resume,
}

/// The process, standing until this is dropped.
pub struct Held<'a> {
    /// Its threads.
    pub threads: Vec<Thread>,
    watch: &'a Watch,
}

impl Watch {
    /// Watches a process that has one thread, and has yet to execute its program.
    ///
    /// # Errors
    /// When it may not be traced.
    pub fn start(pid: u32) -> Result<Self> {
        let process = i32::try_from(pid).context("no such process")?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = eventfd(0, flags).context("failed to create an event descriptor")?;
        let at_end = eventfd(0, flags).context("failed to create an event descriptor")?;
        let (commands, receiver) = channel();
        let (ready, is_ready) = channel();
        let (woken, end) = (wake.try_clone()?, at_end.try_clone()?);
        let watching = move || match Watching::begin(process, receiver, woken, end) {
            Ok(watching) => {
                let _ = ready.send(Ok(()));
                watching.run();
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name("watch".to_owned());
        let thread = thread.spawn(watching).context("failed to start a thread")?;
        is_ready.recv().context("failed to watch the command")??;
        Ok(Self {
            pid,
            commands: Some(commands),
            wake,
            at_end,
            thread: Some(thread),
        })
    }

    /// Stops all threads; where they stand already, at the end of the process, that is all the same.
    ///
    /// # Errors
    /// When a thread does not stop in time, or the process has ended.
    pub fn stop(&self) -> Result<Held<'_>> {
        let (reply, answer) = channel();
        self.send(Command::Stop(reply));
        let threads = answer
            .recv()
            .map_err(|_| anyhow!("the process has ended"))??;
        Ok(Held {
            threads,
            watch: self,
        })
    }

    /// Readable once all threads stand at the end of the process, until it is stopped and let go once more.
    pub fn at_end(&self) -> BorrowedFd<'_> {
        self.at_end.as_fd()
    }

    /// Whether all threads stand at the end of the process.
    pub fn is_at_end(&self) -> bool {
        let mut descriptors = [PollFd::new(&self.at_end, PollFlags::IN)];
        poll(&mut descriptors, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn send(&self, command: Command) {
        // a thread that has ended drops what it is sent
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
            let _ = write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.watch.send(Command::Resume);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.commands = None;
        let _ = write(&self.wake, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A thread of the process.
#[derive(Default)]
struct Tracee {
    state: State,
    interrupted: Option<&'static str>,
}

/// Where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Runs,
    /// It stands because it was asked to; it gets this signal when it goes on.
    Stands { signal: i32 },
    /// It stands, and all of the process does, by a signal that stops.
    Suspended,
    /// It is about to end.
    Ends,
}

struct Watching {
    pid: i32,
    tracees: BTreeMap<i32, Tracee>,
    commands: Receiver<Command>,
    wake: OwnedFd,
    at_end: OwnedFd,
    changes: UnixStream,
    registered: signal_hook::SigId,
    /// Who wants all threads to stand, and until when.
    asked: Option<(Sender<Result<Vec<Thread>>>, Instant)>,
    /// All stand for somebody.
    holds: bool,
    /// When the first thread came to the end of the process.
    ending: Option<Instant>,
}

impl Watching {
    fn begin(
        pid: i32,
        commands: Receiver<Command>,
        wake: OwnedFd,
        at_end: OwnedFd,
    ) -> Result<Self> {
        let (changes, other) = UnixStream::pair().context("failed to create a socket pair")?;
        changes.set_nonblocking(true)?;
        let registered = pipe::register(SIGCHLD, other).context("failed to catch SIGCHLD")?;
        if !threads::seize(pid, pid, OPTIONS)? {
            bail!("process {pid} has ended");
        }
        Ok(Self {
            pid,
            tracees: BTreeMap::from([(pid, Tracee::default())]),
            commands,
            wake,
            at_end,
            changes,
            registered,
            asked: None,
            holds: false,
            ending: None,
        })
    }

    /// Goes on until the process has ended, or nobody wants to know any more: the kernel then lets it go.
    fn run(mut self) {
        while !self.tracees.is_empty() {
            let waits = self.asked.is_some() || (self.ending.is_some() && !self.is_at_end());
            let mut descriptors = [
                PollFd::new(&self.wake, PollFlags::IN),
                PollFd::new(&self.changes, PollFlags::IN),
            ];
            let tick = Timespec {
                tv_sec: 0,
                tv_nsec: i64::from(TICK.subsec_nanos()),
            };
            let _ = poll(&mut descriptors, waits.then_some(&tick));
            let _ = read(&self.wake, &mut [0; 8]);
            while read(&self.changes, &mut [0; 64]).is_ok_and(|read| read > 0) {}
            if !self.take_changes() || !self.take_commands() {
                break;
            }
            self.settle();
        }
        unregister(self.registered);
    }

    /// Takes what the kernel tells; false when the process has ended.
    fn take_changes(&mut self) -> bool {
        while let Some(change) = next_change() {
            match change {
                Change::Stopped { tid, status } => self.take_stop(tid, status),
                Change::Ended { tid } if tid == self.pid => return false,
                Change::Ended { tid } => {
                    bury(tid);
                    self.tracees.remove(&tid);
                }
            }
        }
        true
    }

    fn take_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Stop(reply)) => self.ask(reply),
                Ok(Command::Resume) => self.resume(),
                Err(std::sync::mpsc::TryRecvError::Empty) => return true,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Asks all threads to stand.
    fn ask(&mut self, reply: Sender<Result<Vec<Thread>>>) {
        for (tid, tracee) in &mut self.tracees {
            if tracee.state == State::Runs {
                tracee.interrupted = threads::interrupted_call(self.pid, *tid);
                threads::interrupt(*tid);
            }
        }
        self.asked = Some((reply, Instant::now() + STOP_PATIENCE));
    }

    /// Lets all go on; those that are at their end, to it.
    fn resume(&mut self) {
        self.holds = false;
        if self.is_at_end() {
            return self.let_end();
        }
        for (tid, tracee) in &mut self.tracees {
            match tracee.state {
                State::Stands { signal } => go_on(*tid, signal),
                // it goes on to stand by the signal that stopped it
                State::Suspended => listen(*tid),
                State::Runs | State::Ends => continue,
            }
            tracee.state = State::Runs;
        }
    }

    /// Lets the threads that are at their end go: nobody holds them, nor has to bury them.
    fn let_end(&mut self) {
        self.ending = None;
        let _ = read(&self.at_end, &mut [0; 8]);
        self.tracees.retain(|tid, tracee| {
            let ends = tracee.state == State::Ends;
            if ends {
                threads::detach(*tid, 0);
            }
            !ends
        });
    }

    fn is_at_end(&self) -> bool {
        self.ending.is_some() && self.tracees.values().all(|of| of.state == State::Ends)
    }

    fn take_stop(&mut self, tid: i32, status: i32) {
        let (event, signal) = (status >> 8, status & 0xff);
        if !self.tracees.contains_key(&tid) && !threads::ids(self.pid).contains(&tid) {
            // a process of its own that began in an unusual way
            return threads::detach(tid, 0);
        }
        let stands = self.asked.is_some() || self.holds;
        let tracee = self.tracees.entry(tid).or_default();
        match event {
            libc::PTRACE_EVENT_EXIT => self.take_end(tid),
            libc::PTRACE_EVENT_EXEC => {
                // the program's other threads have ended
                self.tracees.retain(|known, _| *known == tid);
                go_on(tid, 0);
            }
            libc::PTRACE_EVENT_STOP if signal != libc::SIGTRAP => match stands {
                true => tracee.state = State::Suspended,
                false => listen(tid),
            },
            libc::PTRACE_EVENT_STOP => match stands {
                true => tracee.state = State::Stands { signal: 0 },
                false => go_on(tid, 0),
            },
            0 if stands => tracee.state = State::Stands { signal },
            0 => go_on(tid, signal),
            _ => go_on(tid, 0),
        }
    }

    /// A thread is about to end: alone, or with the process.
    fn take_end(&mut self, tid: i32) {
        let alone = threads::thread(tid, None)
            .is_ok_and(|thread| thread.registers.call == libc::SYS_exit)
            && self.ending.is_none();
        let others = self
            .tracees
            .iter()
            .any(|(other, tracee)| *other != tid && tracee.state != State::Ends);
        if alone && others {
            self.tracees.remove(&tid);
            return threads::detach(tid, 0);
        }
        if let Some(tracee) = self.tracees.get_mut(&tid) {
            tracee.state = State::Ends;
        }
        self.ending.get_or_insert_with(Instant::now);
        if self.is_at_end() {
            let _ = write(&self.at_end, &1u64.to_ne_bytes());
        }
    }

    /// Whether no thread is left that the kernel has yet to tell of.
    fn knows_all(&self) -> bool {
        let unknown = |tid: &i32| !self.tracees.contains_key(tid);
        let mut unknown = threads::ids(self.pid).into_iter().filter(unknown);
        unknown.all(|tid| threads::has_ended(self.pid, tid))
    }

    /// Sees to what is waited for.
    fn settle(&mut self) {
        if let Some(since) = self.ending
            && !self.is_at_end()
        {
            // another program takes the process over, which waits for all other threads to end
            let executes = self.tracees.iter().any(|(tid, tracee)| {
                let call = threads::waiting_in(self.pid, *tid);
                tracee.state == State::Runs
                    && call
                        .is_some_and(|call| [libc::SYS_execve, libc::SYS_execveat].contains(&call))
            });
            if executes || since.elapsed() > STOP_PATIENCE {
                self.let_end();
            }
        }
        let Some((reply, deadline)) = self.asked.take() else {
            return;
        };
        let runs = self.tracees.iter().find(|(_, of)| of.state == State::Runs);
        match runs {
            None if !self.knows_all() => self.asked = Some((reply, deadline)),
            None => {
                self.holds = true;
                let threads = self.tracees.iter();
                let threads = threads.map(|(tid, of)| threads::thread(*tid, of.interrupted));
                let threads: Result<Vec<Thread>> = threads.collect();
                if reply.send(threads).is_err() {
                    self.resume();
                }
            }
            Some((tid, _)) if Instant::now() > deadline => {
                let _ = reply.send(Err(anyhow!(threads::stuck(self.pid, *tid))));
                self.resume();
            }
            Some(_) => self.asked = Some((reply, deadline)),
        }
    }
}

/// What has become of a thread.
enum Change {
    Stopped { tid: i32, status: i32 },
    Ended { tid: i32 },
}

/// The next change of a thread that this thread traces. An end is shown only: whoever started the process takes it.
fn next_change() -> Option<Change> {
    let shown = wait_id(
        libc::P_ALL,
        0,
        libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT,
    )?;
    let (tid, status) = (pid_of(&shown), status_of(&shown));
    if shown.si_code != libc::CLD_TRAPPED && shown.si_code != libc::CLD_STOPPED {
        return Some(Change::Ended { tid });
    }
    // it may have been killed meanwhile, which the next look tells
    wait_id(libc::P_PID, tid.cast_unsigned(), libc::WSTOPPED)?;
    Some(Change::Stopped { tid, status })
}

fn bury(tid: i32) {
    wait_id(libc::P_PID, tid.cast_unsigned(), libc::WEXITED);
}

/// Waits for nothing: gives what there is of threads that this thread traces.
#[allow(unsafe_code)] // rustix can't wait for threads (__WALL)
fn wait_id(kind: libc::idtype_t, id: u32, options: i32) -> Option<libc::siginfo_t> {
    // SAFETY: siginfo_t is plain data, for which zeros are valid.
    let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = options | libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
    // SAFETY: the kernel writes one siginfo_t.
    let result = unsafe { libc::waitid(kind, id, &raw mut found, options) };
    (result == 0 && pid_of(&found) != 0).then_some(found)
}

#[allow(unsafe_code)] // the libc crate can't know which of its members a siginfo_t has
fn pid_of(found: &libc::siginfo_t) -> i32 {
    // SAFETY: waitid fills in SIGCHLD's members, or leaves zeros.
    unsafe { found.si_pid() }
}

#[allow(unsafe_code)] // as above
fn status_of(found: &libc::siginfo_t) -> i32 {
    // SAFETY: as above.
    unsafe { found.si_status() }
}

#[allow(unsafe_code)] // there is no safe wrapper
fn go_on(tid: i32, signal: i32) {
    // SAFETY: this request takes no pointer. A thread that has ended is an error of no matter.
    unsafe { libc::ptrace(libc::PTRACE_CONT, tid, 0usize, signal as usize) };
}

/// Leaves a thread standing by the signal that stopped it, until another lets it go on.
#[allow(unsafe_code)] // there is no safe wrapper
fn listen(tid: i32) {
    // SAFETY: as above.
    unsafe { libc::ptrace(libc::PTRACE_LISTEN, tid, 0usize, 0usize) };
}
