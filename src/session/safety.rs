//! What tracing would do to a target that is not like others, found out before anything is attached: refused where it
//! would be hurt, said where it is safe but not all is seen.

use std::hint::black_box;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Result, bail};
use rustix::thread::{SecureComputingMode, set_secure_computing_mode};

use super::overhead;
use crate::discovery::{Candidate, ObjectPlan, go_program, takes_stacks};
use crate::process::Process;
use crate::stderr::say;
use crate::tracer::{Attachment, Tracer};

/// Looks at processes, the objects that they map, and what is to be probed in these.
///
/// # Errors
/// Fails when return probes would end one of the processes, saying why and what to do.
pub fn check(
    tracer: &Tracer<'_>,
    processes: &[Process],
    candidates: &[Candidate],
    objects: &[ObjectPlan],
) -> Result<()> {
    let filtered = processes
        .iter()
        .find(|process| process.filters_system_calls());
    if let Some(process) = filtered
        && !returns_pass_filters(tracer)?
    {
        bail!(
            "process {} filters its system calls (seccomp), and a return probe of this kernel would end it: \
             trace it on Linux 6.14 or later, or without its filter",
            process.pid()
        );
    }
    if let Some(path) = go_program(candidates) {
        say!(
            "warning: {} is a Go program: only what its C code allocates is seen, Go's own heap is pprof's",
            path.display()
        );
    }
    if let Some((path, tool)) = takes_stacks(candidates) {
        say!(
            "warning: {} brings {tool}, whose own stack traces show memleak's return probes in place of callers: \
             its suppressions may not match, and the target may end with another status; for those, run it \
             without memleak",
            path.display()
        );
    }
    let throws = |object: &ObjectPlan| object.plan.probes.iter().any(|p| p.signature.throws);
    if tracer.attachment() != Attachment::Session && objects.iter().any(throws) {
        say!(
            "warning: on this kernel a C++ `new` that fails ends the program while it is traced: \
             its exception can't pass a return probe"
        );
    }
    Ok(())
}

/// Warns where programs that are still to begin could be hurt.
///
/// # Errors
/// Fails when the kernel can't be asked.
pub fn check_unknown(tracer: &Tracer<'_>, programs_begin: bool) -> Result<()> {
    if programs_begin && !returns_pass_filters(tracer)? {
        say!(
            "warning: this kernel's return probes end programs that filter their system calls (seccomp): \
             trace such programs on Linux 6.14 or later"
        );
    }
    Ok(())
}

/// Whether a program that filters its system calls can be probed. Return probes of some kernels end with a system call
/// (Linux 6.11), which filters that do not know of it forbid; newer ones let it pass.
fn returns_pass_filters(tracer: &Tracer<'_>) -> Result<bool> {
    Ok(!tracer.returns_by_system_call()? || survives_return(tracer)?)
}

/// Tries it, in a process of its own: whether one that may do no more than read, write and exit lives through a return
/// probe. Its end is one that the filter allows too, or the kernel's log would tell of it.
#[allow(unsafe_code)] // pre_exec is the only way to run code in a new process
fn survives_return(tracer: &Tracer<'_>) -> Result<bool> {
    let _probe = overhead::probe_return(tracer)?;
    let mut trial = Command::new("/proc/self/exe");
    let function: extern "C" fn() = black_box(overhead::probed);
    let attempt = move || -> io::Result<()> {
        set_secure_computing_mode(SecureComputingMode::Strict)?;
        function();
        // SAFETY: ends this thread, the only one of its process. Not `_exit`, which ends a group of threads.
        unsafe {
            libc::syscall(libc::SYS_exit, 0);
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes two plain system calls
    // and calls a function that does nothing.
    unsafe {
        trial.pre_exec(attempt);
    }
    // it never gets to execute anything
    Ok(trial.spawn()?.wait()?.success())
}
