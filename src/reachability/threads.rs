//! The threads of another process: stopped for a moment, with their registers, and let go again. Should memleak be killed
//! meanwhile, the kernel lets them go. Nothing is read or judged here.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long a thread may take to stop: one that waits for a device in the kernel stops only then.
pub(super) const STOP_PATIENCE: Duration = Duration::from_millis(500);

/// Between two looks at whether a thread has stopped.
const TICK: Duration = Duration::from_micros(20);

/// The stack pointer, what may be a pointer in registers, and where thread-local memory lies.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    /// The stack pointer.
    pub sp: u64,
    /// The thread pointer (x86-64's fs base).
    pub thread_pointer: u64,
    /// All general and vector registers, in words.
    pub words: Vec<u64>,
    /// The number of the system call that it is in, if it is in one.
    pub call: i64,
}

/// A stopped thread.
#[derive(Clone, Debug)]
pub struct Thread {
    /// Its id.
    pub tid: i32,
    /// Its registers.
    pub registers: Registers,
    /// The system call that it waits in and that an interruption ends with EINTR.
    pub interrupted: Option<&'static str>,
}

/// All threads of a process, standing until this is dropped. It must be made, and dropped, in a thread of memleak's that
/// ends soon after: whatever did not stop in time is let go then, by the kernel.
pub struct Stopped {
    /// Threads that are attached to, and the signal that each was about to take.
    attached: Vec<(i32, i32)>,
    /// Those that stand.
    pub threads: Vec<Thread>,
}

impl Stopped {
    /// Stops all threads of a process.
    ///
    /// # Errors
    /// When it may not be traced, another tracer has it, or a thread does not stop in time; then none stands.
    pub fn stop(pid: i32) -> Result<Self> {
        let mut stopped = Self {
            attached: Vec::new(),
            threads: Vec::new(),
        };
        // threads can make threads until all of them stand
        while stopped.stop_new(pid)? > 0 {}
        if stopped.threads.is_empty() {
            bail!("process {pid} has ended");
        }
        Ok(stopped)
    }

    /// Stops the threads that were not known before; how many there are.
    fn stop_new(&mut self, pid: i32) -> Result<usize> {
        let mut new = Vec::new();
        for tid in ids(pid) {
            if self.attached.iter().any(|(known, _)| *known == tid) {
                continue;
            }
            let interrupted = interrupted_call(pid, tid);
            if seize(pid, tid, 0)? {
                interrupt(tid);
                self.attached.push((tid, 0));
                new.push((tid, interrupted));
            }
        }
        for (tid, interrupted) in &new {
            if self.wait_for(pid, *tid)? {
                self.threads.push(thread(*tid, *interrupted)?);
            }
        }
        Ok(new.len())
    }

    /// Waits until a thread stands; false when it has ended meanwhile.
    fn wait_for(&mut self, pid: i32, tid: i32) -> Result<bool> {
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            match wait(tid) {
                Ok(Some(status)) if libc::WIFSTOPPED(status) => {
                    // a signal that it was about to take is handed back when it goes on
                    if status >> 16 == 0
                        && let Some(attached) = self.attached.iter_mut().find(|of| of.0 == tid)
                    {
                        attached.1 = libc::WSTOPSIG(status);
                    }
                    return Ok(true);
                }
                Ok(Some(_)) | Err(_) => return Ok(false),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(TICK),
                Ok(None) => bail!("{}", stuck(pid, tid)),
            }
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for (tid, signal) in self.attached.drain(..) {
            detach(tid, signal);
        }
    }
}

/// A thread that stands, with its registers.
///
/// # Errors
/// When it has been killed.
pub(super) fn thread(tid: i32, interrupted: Option<&'static str>) -> Result<Thread> {
    let registers =
        registers(tid).with_context(|| format!("failed to read the registers of thread {tid}"))?;
    Ok(Thread {
        tid,
        registers,
        interrupted,
    })
}

/// Why a thread does not stop.
pub(super) fn stuck(pid: i32, tid: i32) -> String {
    let state = state(pid, tid).map_or(String::new(), |state| format!(", state {state}"));
    format!(
        "thread {tid} of process {pid} did not stop within {} ms (it is frozen, waits for a device, or for a child that \
         shares its memory{state})",
        STOP_PATIENCE.as_millis()
    )
}

/// The ids of a process's threads.
pub fn ids(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        .collect()
}

/// Attaches to a thread, which goes on; false when it has ended.
#[allow(unsafe_code)] // there is no safe wrapper
pub(super) fn seize(pid: i32, tid: i32, options: i32) -> Result<bool> {
    // SAFETY: this request takes no pointer to memory of this process.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0usize, options as usize) };
    if seized < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(false),
            // a first thread that has ended can't be traced, and has no registers
            Some(libc::EPERM) if state(pid, tid) == Some('Z') => Ok(false),
            Some(libc::EPERM) => bail!("{}", refused(pid)),
            _ => Err(error).with_context(|| format!("failed to stop thread {tid}")),
        };
    }
    Ok(true)
}

/// Asks a thread that is attached to to stop.
#[allow(unsafe_code)] // there is no safe wrapper
pub(super) fn interrupt(tid: i32) {
    // SAFETY: this request takes no pointer. A thread that has ended is an error of no matter.
    unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0usize, 0usize) };
}

/// Why a process can't be stopped, and what to do.
fn refused(pid: i32) -> String {
    let tracer = status_field(&format!("/proc/{pid}/status"), "TracerPid");
    match tracer.as_deref() {
        Some("0") | None => format!(
            "process {pid} may not be stopped: that takes CAP_SYS_PTRACE (and kernel.yama.ptrace_scope below 3)"
        ),
        Some(tracer) => format!(
            "process {pid} may not be stopped: process {tracer} (a debugger, or strace) traces it already"
        ),
    }
}

fn status_field(path: &str, field: &str) -> Option<String> {
    let status = fs::read(path).ok()?;
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.strip_prefix(':')?.trim().to_owned())
}

/// Whether a thread has ended, though it is still listed.
pub(super) fn has_ended(pid: i32, tid: i32) -> bool {
    state(pid, tid).is_none_or(|state| matches!(state, 'Z' | 'X'))
}

fn state(pid: i32, tid: i32) -> Option<char> {
    status_field(&format!("/proc/{pid}/task/{tid}/status"), "State")?
        .chars()
        .next()
}

/// Calls that a stop ends with EINTR even where no signal has a handler (signal(7)).
pub(super) fn interrupted_call(pid: i32, tid: i32) -> Option<&'static str> {
    let number = waiting_in(pid, tid)?;
    let calls = [
        (libc::SYS_epoll_pwait, "epoll_wait"),
        (libc::SYS_epoll_pwait2, "epoll_wait"),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_epoll_wait, "epoll_wait"),
        (libc::SYS_semop, "semop"),
        (libc::SYS_semtimedop, "semop"),
        (libc::SYS_rt_sigtimedwait, "sigtimedwait"),
        (libc::SYS_recvfrom, "recv with a timeout"),
        (libc::SYS_recvmsg, "recv with a timeout"),
    ];
    let found = calls.into_iter().find(|(known, _)| *known == number);
    found.map(|(_, name)| name)
}

/// The number of the system call that a thread waits in.
pub(super) fn waiting_in(pid: i32, tid: i32) -> Option<i64> {
    let call = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    call.split(' ').next()?.trim().parse().ok()
}

/// Takes a thread's next change of state, if there is one.
#[allow(unsafe_code)] // rustix can't wait for threads of other processes (__WALL)
fn wait(tid: i32) -> io::Result<Option<i32>> {
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    match unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) } {
        0 => Ok(None),
        found if found == tid => Ok(Some(status)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[allow(unsafe_code)] // there is no safe wrapper
pub(super) fn detach(tid: i32, signal: i32) {
    // SAFETY: this request takes no pointer. A thread that has ended is an error of no matter.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, 0usize, signal as usize) };
}

/// A set of registers, as the kernel hands it out.
#[allow(unsafe_code)] // there is no safe wrapper
fn register_set(tid: i32, set: i32, bytes: &mut [u8]) -> io::Result<usize> {
    let mut vector = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the kernel writes at most iov_len bytes to `bytes`, which is borrowed for the call.
    let got = unsafe { libc::ptrace(libc::PTRACE_GETREGSET, tid, set as usize, &raw mut vector) };
    match got {
        0 => Ok(vector.iov_len),
        _ => Err(io::Error::last_os_error()),
    }
}

/// From the kernel's uapi/linux/elf.h.
const NT_PRSTATUS: i32 = 1;
#[cfg(target_arch = "x86_64")]
const NT_VECTORS: i32 = 0x202; // NT_X86_XSTATE
#[cfg(not(target_arch = "x86_64"))]
const NT_VECTORS: i32 = 2; // NT_FPREGSET
#[cfg(target_arch = "aarch64")]
const NT_ARM_TLS: i32 = 0x401;

fn registers(tid: i32) -> io::Result<Registers> {
    let mut bytes = [0u8; 512];
    let length = register_set(tid, NT_PRSTATUS, &mut bytes)?;
    let mut words: Vec<u64> = words(&bytes[..length]).collect();
    // user_regs_struct: orig_rax is its 16th word, rsp its 20th, fs_base its 22nd; user_pt_regs: sp follows x0 to x30
    #[cfg(target_arch = "x86_64")]
    let (sp, thread_pointer, call) = (
        word_at(&words, 19),
        word_at(&words, 21),
        word_at(&words, 15),
    );
    #[cfg(target_arch = "aarch64")]
    let (sp, thread_pointer, call) = (
        word_at(&words, 31),
        {
            let mut tls = [0; 8];
            let _ = register_set(tid, NT_ARM_TLS, &mut tls);
            u64::from_ne_bytes(tls)
        },
        word_at(&words, 8),
    );
    let mut vectors = vec![0; 16 << 10];
    if let Ok(length) = register_set(tid, NT_VECTORS, &mut vectors) {
        words.extend(self::words(&vectors[..length]));
    }
    Ok(Registers {
        sp,
        thread_pointer,
        words,
        call: call.cast_signed(),
    })
}

fn word_at(words: &[u64], at: usize) -> u64 {
    words.get(at).copied().unwrap_or(0)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes
        .chunks_exact(8)
        .map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()))
}
