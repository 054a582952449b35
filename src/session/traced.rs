//! The target of a session, from the user's words to processes that are held or running. Who joins them later is
//! `choice`'s and the tracer's to say.

use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use super::interrupts::Interrupts;
use super::probing;
use super::wait::{self, Wake};
use crate::discovery::Candidate;
use crate::options::{Options, TargetOption};
use crate::process::{
    self, Ending, HeldCommand, Mappings, Process, User, is_kernel_thread, name, objects_of_command,
    thread_group,
};
use crate::stderr::say;

/// An interval that hardly anybody wants, and that many a process has for its id.
const LONG_INTERVAL: Duration = Duration::from_secs(600);

/// Whom tracing begins with.
pub enum Traced {
    /// Processes that were running before; never none.
    Processes(Vec<Process>),
    /// One that memleak starts.
    Command(HeldCommand),
    /// Whoever fits.
    Whoever,
}

/// Fails for a thread that is in none of the processes: nothing would be counted.
fn refuse_foreign_threads(tids: &[u32], pids: &[u32]) -> Result<()> {
    let is_in = |tid: u32, pid: u32| thread_group(tid) == Some(pid);
    match tids
        .iter()
        .find(|tid| !pids.iter().any(|pid| is_in(**tid, *pid)))
    {
        None => Ok(()),
        Some(tid) => match thread_group(*tid) {
            Some(group) => bail!(
                "--tid {tid} is a thread of process {group}, which is not traced: use -p {group}"
            ),
            None => bail!(
                "--tid {tid}: there is no such thread; those of a process are in /proc/{}/task",
                pids[0]
            ),
        },
    }
}

impl Traced {
    /// Takes hold of the target; a command is started, but held. Gives the objects that it maps, or will.
    ///
    /// # Errors
    /// Fails when there is no such process or command, or when what it maps can't be found out.
    pub fn open(options: &Options, mappings: &mut Mappings) -> Result<(Self, Vec<Candidate>)> {
        match &options.target {
            TargetOption::Processes(pids) => {
                let mut processes = Vec::new();
                let mut candidates = Vec::new();
                for pid in pids {
                    let process = Process::open(*pid)?;
                    let read = mappings.read(*pid);
                    if process.has_ended() {
                        bail!("process {pid} has ended");
                    }
                    read.with_context(|| unreadable_map(*pid))?;
                    candidates.extend(probing::candidates(&mappings.objects(*pid)));
                    processes.push(process);
                }
                if !options.follow {
                    refuse_foreign_threads(&options.reporting.tids, pids)?;
                }
                Ok((Self::Processes(processes), candidates))
            }
            TargetOption::Command(words) => {
                let user = options.user.as_deref().map(User::find).transpose()?;
                if user.is_none() {
                    tell_rights();
                }
                let (command, path) = HeldCommand::start(words, user)?;
                let candidates = objects_of_command(&path)?.into_iter().map(Candidate::named);
                Ok((Self::Command(command), candidates.collect()))
            }
            TargetOption::Chosen(_) => Ok((Self::Whoever, Vec::new())),
            TargetOption::Kernel => {
                bail!("the kernel is no process")
            }
        }
    }

    /// What the target maps by now: a process that has just executed its program had yet to map the rest. A command is
    /// held, so nothing changes.
    pub fn look_again(&self, mappings: &mut Mappings) -> Option<Vec<Candidate>> {
        let Self::Processes(processes) = self else {
            return None;
        };
        let mut candidates = Vec::new();
        for process in processes {
            mappings.read(process.pid()).ok()?;
            candidates.extend(probing::candidates(&mappings.objects(process.pid())));
        }
        Some(candidates)
    }

    /// The processes that the user named or started.
    pub fn processes(&self) -> &[Process] {
        match self {
            Self::Processes(processes) => processes,
            Self::Command(command) => std::slice::from_ref(command.process()),
            Self::Whoever => &[],
        }
    }

    /// Their ids.
    pub fn pids(&self) -> Vec<u32> {
        self.processes().iter().map(Process::pid).collect()
    }

    /// Whether the kernel can keep probes to the target: it knows a process by its first thread, which may have ended.
    pub fn keeps_probes(&self) -> bool {
        !self.processes().iter().any(Process::first_thread_ended)
    }

    /// Fails if one of them has ended.
    pub fn still_lives(&self) -> Result<()> {
        match self.processes().iter().find(|process| process.has_ended()) {
            Some(process) => bail!(
                "process {} ended while memleak was attaching to it",
                process.pid()
            ),
            None => Ok(()),
        }
    }

    /// Whether it is a command that has yet to execute its program.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Command(command) if !command.has_run())
    }

    /// Whether the session ends when nobody is left to trace: there is nobody to wait for.
    pub fn is_finite(&self) -> bool {
        !matches!(self, Self::Whoever)
    }

    /// Lets a held command run.
    pub fn release(&mut self) -> Result<()> {
        match self {
            Self::Processes(_) | Self::Whoever => Ok(()),
            Self::Command(command) => command.release(),
        }
    }

    /// Asks a command to end; a process goes on by itself.
    ///
    /// # Errors
    /// Fails when the command can't be signaled.
    pub fn dismiss(&mut self, interrupts: &Interrupts) -> Result<()> {
        match self {
            // still held, it would never see a SIGTERM: it is ended when it is dropped
            Self::Command(command) if command.has_run() && !command.process().has_ended() => {
                ask_to_end(command.process(), interrupts)
            }
            _ => Ok(()),
        }
    }

    /// Waits for a command's end, patiently until the user interrupts: then it is killed, or asked to end if it was not
    /// before. Gives the exit status that memleak should end with.
    ///
    /// # Errors
    /// Fails when the command can't be waited for or signaled.
    pub fn see_off(&mut self, interrupts: &Interrupts) -> Result<u8> {
        let Self::Command(command) = self else {
            return Ok(0);
        };
        if !command.has_run() {
            return Ok(1);
        }
        interrupts.only_command_is_left();
        while end_or_interrupt(interrupts, command.process())? == Wake::Interrupt {
            match interrupts.was_command_told() {
                true => kill(command.process())?,
                false => ask_to_end(command.process(), interrupts)?,
            }
        }
        Ok(command.wait().map_or(1, Ending::shell_status))
    }
}

/// Whoever puts sudo before memleak may not think of the command.
fn tell_rights() {
    let user = std::env::var_os("SUDO_USER").filter(|user| user != "root");
    if let (Some(user), true) = (user, rustix::process::geteuid().is_root()) {
        let user = user.display();
        say!("the command has root's rights as well: --user {user} runs it as {user}");
    }
}

fn ask_to_end(command: &Process, interrupts: &Interrupts) -> Result<()> {
    say!("sending SIGTERM to the command (pid {})", command.pid());
    command.end()?;
    interrupts.command_is_told();
    Ok(())
}

fn kill(command: &Process) -> Result<()> {
    say!("sending SIGKILL to the command");
    command.signal(Signal::KILL)
}

/// An interval can be the second process of a list whose ids are words of their own, as in `-p $(pidof nginx)`. Such a list
/// is refused where it shows: both processes have one name. Where an interval could be a process, that is said.
///
/// # Errors
/// When it is a list.
pub fn check_interval(options: &Options) -> Result<()> {
    let TargetOption::Processes(pids) = &options.target else {
        return Ok(());
    };
    let seconds = options.interval;
    let number = u32::try_from(seconds.as_secs()).unwrap_or(0);
    let is_process = seconds.subsec_nanos() == 0 && number > 0 && !is_kernel_thread(number);
    let (Some(name), Some(pid)) = (name(number).filter(|_| is_process), pids.last()) else {
        return Ok(());
    };
    if process::name(*pid).is_some_and(|first| first == name) && !pids.contains(&number) {
        bail!(
            "{number} is where the interval stands, and a process called {name} like {pid}: \
             to trace both, say -p {pid},{number}, or -p \"$(pidof {name})\""
        );
    }
    if seconds >= LONG_INTERVAL {
        say!(
            "reporting every {number} seconds: to trace process {number} ({name}) as well, say -p {pid},{number}"
        );
    }
    Ok(())
}

/// Waits for one of the two. There are no reports any more, so signals that ask for one are passed over.
fn end_or_interrupt(interrupts: &Interrupts, process: &Process) -> Result<Wake> {
    loop {
        let wake = wait::wait(interrupts, Some(process.as_fd()), &[], None)?;
        if matches!(wake, Wake::Exit | Wake::Interrupt) {
            return Ok(wake);
        }
    }
}

fn unreadable_map(pid: u32) -> String {
    let hint = match rustix::process::geteuid().is_root() {
        true => "",
        false => " (another user's takes CAP_SYS_PTRACE as well)",
    };
    format!("failed to read the memory map of process {pid}{hint}")
}
