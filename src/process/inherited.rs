//! How memleak itself was started: which signals were ignored or blocked, how many files it could open. A command gets
//! that back.
//! Catching signals is the session's business.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Signals are numbered from 1 to this.
const MOST_SIGNALS: i32 = 64;

/// Bit n - 1: signal n was ignored.
static IGNORED: AtomicU64 = AtomicU64::new(0);
/// Bit n - 1: signal n was blocked.
static BLOCKED: AtomicU64 = AtomicU64::new(0);

/// How many files could be open; none before the limit is raised.
static MOST_FILES: OnceLock<Rlimit> = OnceLock::new();

/// Open files that memleak needs for one process: its programs, their maps and probes, and some of the process's files.
const LEAST_FILES: u64 = 128;

/// Raises the limit of open files as far as it may be.
///
/// # Errors
/// When that is too little to begin with.
pub fn allow_many_files() -> Result<()> {
    let before = *MOST_FILES.get_or_init(|| getrlimit(Resource::Nofile));
    let raised = Rlimit {
        current: before.maximum,
        ..before
    };
    // without them it goes on as far as it gets
    let _ = setrlimit(Resource::Nofile, raised);
    match getrlimit(Resource::Nofile).current {
        Some(most) if most < LEAST_FILES => bail!(
            "at most {most} files may be open, and memleak needs {LEAST_FILES}: raise the limit (`ulimit -n`)"
        ),
        _ => Ok(()),
    }
}

/// The C library calls it before `main`: Rust ignores SIGPIPE by then, and nothing tells whether it was ignored before.
#[allow(unsafe_code)]
// the only place that comes before Rust's own start
// SAFETY: the section holds pointers to functions of this type; it calls nothing that needs Rust's runtime.
#[unsafe(link_section = ".init_array")]
#[used]
static REMEMBER: extern "C" fn() = remember;

#[allow(unsafe_code)]
extern "C" fn remember() {
    let blocked = blocked_now();
    let set = |of: &dyn Fn(i32) -> bool| {
        let signals = (1..=MOST_SIGNALS).filter(|signal| of(*signal));
        signals.fold(0, |set, signal| set | bit(signal))
    };
    IGNORED.store(set(&is_ignored_now), Ordering::Relaxed);
    BLOCKED.store(
        set(&|signal| is_member(&blocked, signal)),
        Ordering::Relaxed,
    );
    // where it is ignored, nobody's end can be waited for
    // SAFETY: no handler is set.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Whether memleak was started with this signal ignored, as by nohup.
pub fn was_ignored(signal: i32) -> bool {
    IGNORED.load(Ordering::Relaxed) & bit(signal) != 0
}

fn was_blocked(signal: i32) -> bool {
    BLOCKED.load(Ordering::Relaxed) & bit(signal) != 0
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Blocks all signals in this thread: a process that it forks gets none before [`restore`].
#[allow(unsafe_code)]
pub fn block_all() {
    let mut all = MaybeUninit::uninit();
    // SAFETY: sigfillset initializes the set that pthread_sigmask then reads.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut());
    }
}

/// Gives a process between fork and exec the signals and the limit that memleak was started with. Makes only async-signal-safe calls.
#[allow(unsafe_code)]
pub fn restore() {
    if let Some(before) = MOST_FILES.get() {
        let _ = setrlimit(Resource::Nofile, *before);
    }
    for signal in 1..=MOST_SIGNALS {
        let action = match was_ignored(signal) {
            true => libc::SIG_IGN,
            false => libc::SIG_DFL,
        };
        // SAFETY: no handler is set; for what can't be changed, it fails and changes nothing.
        unsafe { libc::signal(signal, action) };
    }
    let mut blocked = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set that the other calls then change and read.
    unsafe {
        libc::sigemptyset(blocked.as_mut_ptr());
        for signal in (1..=MOST_SIGNALS).filter(|signal| was_blocked(*signal)) {
            libc::sigaddset(blocked.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, blocked.as_ptr(), ptr::null_mut());
    }
}

#[allow(unsafe_code)]
fn is_ignored_now(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action it only writes the old one, for which there is room; zeros are one as well.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

#[allow(unsafe_code)]
fn blocked_now() -> libc::sigset_t {
    let mut blocked = MaybeUninit::zeroed();
    // SAFETY: without a new mask it only writes the old one, for which there is room; zeros are an empty set.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), blocked.as_mut_ptr());
        blocked.assume_init()
    }
}

#[allow(unsafe_code)]
fn is_member(set: &libc::sigset_t, signal: i32) -> bool {
    // SAFETY: the set is initialized; a number that is no signal's is refused.
    unsafe { libc::sigismember(set, signal) == 1 }
}
