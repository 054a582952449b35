//! A command that is started but held just before its first instruction, until the tracer is ready.
//! What it will map is foretold in `linked`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use super::{Ending, Process, User, inherited};

/// A command between fork and exec.
pub struct HeldCommand {
    name: OsString,
    process: Process,
    gate: Arc<OwnedFd>,
    spawning: Option<JoinHandle<io::Result<Child>>>,
    child: Option<Child>,
}

impl HeldCommand {
    /// Starts `words`, a program and its arguments, and holds it before it executes the program.
    /// It inherits stdin, stdout, stderr, environment and working directory, and runs as `user` if there is one.
    ///
    /// # Errors
    /// Fails when the program can't be found or executed, or no process can be made.
    pub fn start(words: &[OsString], user: Option<User>) -> Result<(Self, PathBuf)> {
        let (name, arguments) = words
            .split_first()
            .ok_or_else(|| anyhow!("no command was given"))?;
        let path = find_program(name)?;
        let gate = Arc::new(
            eventfd(0, EventfdFlags::CLOEXEC).context("failed to create an event descriptor")?,
        );
        let (pid_reader, pid_writer) =
            pipe_with(PipeFlags::CLOEXEC).context("failed to create a pipe")?;

        let mut command = Command::new(&path);
        command.arg0(name).args(arguments);
        if let Some(user) = &user {
            user.introduce(&mut command);
        }
        hold_before_exec(&mut command, Arc::clone(&gate), pid_writer, user);
        // spawn returns only once the command has executed its program, so it gets a thread of its own
        let spawning = thread::spawn(move || {
            // memleak's own handlers are in the new process until `hold` runs there
            inherited::block_all();
            command.spawn()
        });

        let mut pid = [0; 4];
        let process = match read(&pid_reader, &mut pid) {
            Ok(4) => Process::open(u32::from_ne_bytes(pid))?,
            _ => {
                let error = match spawning.join() {
                    Ok(Err(error)) => error,
                    _ => io::Error::other("the new process sent no word"),
                };
                return Err(error).with_context(|| format!("failed to start {}", name.display()));
            }
        };
        let held = Self {
            name: name.clone(),
            process,
            gate,
            spawning: Some(spawning),
            child: None,
        };
        Ok((held, path))
    }

    /// The process, which keeps its id when it executes the program.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Whether it was released, and executes its program or has done so.
    pub fn has_run(&self) -> bool {
        self.child.is_some()
    }

    /// Lets the command run.
    ///
    /// # Errors
    /// Fails when the kernel refuses to execute the program.
    pub fn release(&mut self) -> Result<()> {
        write(&*self.gate, &1u64.to_ne_bytes()).context("failed to release the command")?;
        let spawned = self.spawning.take().map(JoinHandle::join);
        match spawned {
            Some(Ok(Ok(child))) => {
                self.child = Some(child);
                Ok(())
            }
            Some(Ok(Err(error))) => {
                Err(error).with_context(|| format!("failed to execute {}", self.name.display()))
            }
            Some(Err(_)) | None => bail!("failed to execute {}", self.name.display()),
        }
    }

    /// Waits until the command has ended.
    ///
    /// # Errors
    /// Fails when it was never released.
    pub fn wait(&mut self) -> Result<Ending> {
        let child = self.child.as_mut().context("the command never ran")?;
        let status = child.wait().context("failed to wait for the command")?;
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => Ending::Exited(code),
            (None, signal) => Ending::Signaled(signal.unwrap_or(0)),
        })
    }
}

impl Drop for HeldCommand {
    /// A command that was never released never runs: nobody will be there to trace it.
    fn drop(&mut self) {
        if let Some(spawning) = self.spawning.take() {
            // Nothing to do about an error: the process is ending, or gone.
            let _ = self.process.signal(Signal::KILL);
            if let Ok(Ok(mut child)) = spawning.join() {
                let _ = child.wait();
            }
        }
    }
}

/// Makes the new process send its id and then wait at the gate. Should memleak die meanwhile, the kernel
/// kills it, since nobody would open the gate any more.
#[allow(unsafe_code)] // pre_exec is the only way to run code between fork and exec
fn hold_before_exec(
    command: &mut Command,
    gate: Arc<OwnedFd>,
    pid_writer: OwnedFd,
    user: Option<User>,
) {
    let parent = rustix::process::getpid();
    let hold = move || -> io::Result<()> {
        inherited::restore();
        // before the next, which a change of users undoes
        if let Some(user) = &user {
            user.become_it()?;
        }
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(parent) {
            return Err(io::Error::other("memleak has ended"));
        }
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        write(&pid_writer, &pid.to_ne_bytes())?;
        let mut opened = [0; 8];
        while let Err(errno) = read(&*gate, &mut opened) {
            if errno != Errno::INTR {
                return Err(errno.into());
            }
        }
        set_parent_process_death_signal(None)?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes plain
    // system calls, allocates nothing and takes no locks.
    unsafe {
        command.pre_exec(hold);
    }
}

/// Where the program is that a shell would execute under this name.
fn find_program(name: &OsStr) -> Result<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("command not found: {}", name.display())
            }
            Err(error) => Err(error).with_context(|| format!("failed to read {}", name.display())),
            Ok(_) if is_executable(&path) => Ok(path),
            Ok(_) => bail!("command is not executable: {}", name.display()),
        };
    }
    let search = env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    let mut candidates = env::split_paths(&search).map(|directory| directory.join(name));
    let mut found = None;
    for path in candidates.by_ref() {
        if is_executable(&path) {
            return Ok(path);
        }
        if found.is_none() && path.is_file() {
            found = Some(path);
        }
    }
    match found {
        Some(path) => bail!("command is not executable: {}", path.display()),
        None => bail!(
            "command not found: {} (looked for it on PATH)",
            name.display()
        ),
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
