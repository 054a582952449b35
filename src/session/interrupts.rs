//! The user's signals: the first asks the session to end, and a thread of their own sees to it that memleak does,
//! wherever the rest is stuck. What an orderly end is, the session knows.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::low_level::{exit, pipe};

use crate::process::{Process, inherited};
use crate::stderr;

/// From the first signal to the end, at the most.
const PATIENCE: Duration = Duration::from_secs(5);

/// From the second signal to the end, at the most: as long as it takes if nothing is stuck.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// Signals that come this close together are one wish: a terminal that goes away sends several.
const ONE_WISH: Duration = Duration::from_millis(100);

/// Signals as descriptors.
pub struct Interrupts {
    descriptor: OwnedFd,
    demands: UnixStream,
    marks: UnixStream,
    ending: Arc<Mutex<Ending>>,
}

/// What is left to do for a traced command.
#[derive(Default)]
struct Ending {
    /// The command, from the moment that memleak must not leave it behind as if nothing had been.
    command: Option<Process>,
    /// It has got its SIGTERM.
    told: bool,
    /// All else is done: memleak waits for the command, as long as that takes.
    waits: bool,
}

impl Interrupts {
    /// From here on SIGINT, SIGTERM and SIGHUP no longer end memleak at once; a SIGHUP that is ignored, as under nohup,
    /// stays ignored.
    ///
    /// # Errors
    /// Fails when no handler can be set.
    pub fn catch() -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let descriptor = eventfd(0, flags).context("failed to create an event descriptor")?;
        let asks = descriptor
            .try_clone()
            .context("failed to create an event descriptor")?;
        let ending = Arc::new(Mutex::new(Ending::default()));
        let watched = Arc::clone(&ending);
        let wishes = wishes().context("failed to catch Ctrl-C")?;
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || see_to_the_end(wishes, &asks, &watched))
            .context("failed to start a thread")?;
        Ok(Self {
            descriptor,
            demands: signals(SIGUSR1)?,
            marks: signals(SIGUSR2)?,
            ending,
        })
    }

    /// Whether the user has asked to end since the last time.
    pub fn take(&self) -> bool {
        read(&self.descriptor, &mut [0; 8]).is_ok()
    }

    /// Readable when a report is wanted.
    pub fn demands(&self) -> BorrowedFd<'_> {
        self.demands.as_fd()
    }

    /// Whether a report is wanted; signals that come close together count as one.
    pub fn take_demand(&self) -> bool {
        take_signals(&self.demands)
    }

    /// Readable when a baseline is to be marked.
    pub fn marks(&self) -> BorrowedFd<'_> {
        self.marks.as_fd()
    }

    /// Whether a baseline is to be marked; signals that come close together count as one.
    pub fn take_mark(&self) -> bool {
        take_signals(&self.marks)
    }

    /// From here on this command gets a SIGTERM, or a SIGKILL at the second signal, before memleak leaves.
    ///
    /// # Errors
    /// Fails when there are no more descriptors.
    pub fn answer_for(&self, command: &Process) -> Result<()> {
        lock(&self.ending).command = Some(command.try_clone()?);
        Ok(())
    }

    /// The command has got its SIGTERM.
    pub fn command_is_told(&self) {
        lock(&self.ending).told = true;
    }

    /// Whether the command has got its SIGTERM.
    pub fn was_command_told(&self) -> bool {
        lock(&self.ending).told
    }

    /// All is done but to wait for the command: that may take longer than anything else.
    pub fn only_command_is_left(&self) {
        lock(&self.ending).waits = true;
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn lock(ending: &Mutex<Ending>) -> MutexGuard<'_, Ending> {
    ending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream that gets a byte with every signal that asks to end.
fn wishes() -> Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    sender.set_nonblocking(true)?;
    if !inherited::was_ignored(SIGHUP) {
        pipe::register(SIGHUP, sender.try_clone()?)?;
    }
    pipe::register(SIGTERM, sender.try_clone()?)?;
    ctrlc::set_handler(move || {
        // where it is full, there is no lack of wishes
        let _ = (&sender).write(&[0]);
    })?;
    Ok(receiver)
}

/// A stream that gets a byte with every signal of a kind.
fn signals(signal: i32) -> Result<UnixStream> {
    let failed = "failed to catch SIGUSR1 and SIGUSR2";
    let (receiver, sender) = UnixStream::pair().context(failed)?;
    receiver.set_nonblocking(true).context(failed)?;
    pipe::register(signal, sender).context(failed)?;
    Ok(receiver)
}

fn take_signals(mut stream: &UnixStream) -> bool {
    let mut any = false;
    while matches!(stream.read(&mut [0; 64]), Ok(1..)) {
        any = true;
    }
    any
}

/// Hands signals on to the session, and leaves when it does not end in time.
fn see_to_the_end(wishes: UnixStream, asks: &OwnedFd, ending: &Mutex<Ending>) {
    let ask = || {
        // the counter can't overflow within the patience of a person
        let _ = write(asks, &1u64.to_ne_bytes());
    };
    if !wish(&wishes, None) {
        return;
    }
    ask();
    let first = Instant::now();
    let again = loop {
        let left = PATIENCE.checked_sub(first.elapsed());
        let waits = left.is_none() && lock(ending).waits;
        let came = match left {
            Some(left) => wish(&wishes, Some(left)),
            None if waits => wish(&wishes, None),
            None => break false,
        };
        if came && first.elapsed() > ONE_WISH {
            break true;
        }
    };
    if again {
        ask();
        let moment = match lock(ending).waits {
            true => PATIENCE,
            false => LAST_MOMENT,
        };
        thread::sleep(moment);
    }
    leave(again, ending);
}

/// Waits for a signal; says whether one came in time.
fn wish(mut wishes: &UnixStream, time: Option<Duration>) -> bool {
    // no time at all would be no limit
    let time = time.map(|time| time.max(Duration::from_millis(1)));
    if wishes.set_read_timeout(time).is_err() {
        return false;
    }
    loop {
        match wishes.read(&mut [0]) {
            Ok(bytes) => return bytes > 0,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// Ends memleak from here; the kernel takes its probes away. Waits for nothing that the rest may be stuck in.
fn leave(again: bool, ending: &Mutex<Ending>) -> ! {
    let ending = lock(ending);
    if let Some(command) = &ending.command {
        let _ = match (again, ending.told) {
            (true, _) => command.signal(Signal::KILL),
            (false, false) => command.end(),
            (false, true) => Ok(()),
        };
    }
    let when = match again {
        true => "at the second signal",
        false => "5 seconds after the signal",
    };
    stderr::try_write(&format!("memleak: left {when}, before all was written\n"));
    exit(1)
}
