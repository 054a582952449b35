//! How the reader gives up all that it does not need before it looks at the first byte of another's file.
//! What it is asked and what it answers is told elsewhere.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, chroot, getrlimit, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit, setsid, umask,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_name, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use rustix::time::{ClockId, clock_gettime};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::limits;

/// The user and group without rights, as the kernel numbers them where it has to show one that it does not know.
const NOBODY: u32 = 65534;

/// Where a process finds its open files.
const DESCRIPTORS: &str = "/proc/self/fd";

/// Gives everything up but standard input, which is the socket, and the two other standard descriptors. Gives the
/// folder in which open files can be found by their numbers.
///
/// # Errors
/// When the kernel refuses what it refuses nobody.
pub fn enter() -> Result<PathBuf> {
    let _ = set_name(c"memleak-reader");
    // the first look at a clock asks for more than later ones
    let _ = clock_gettime(ClockId::ProcessCPUTime);
    close_the_rest();
    // a Ctrl-C at the terminal is for memleak
    let _ = setsid();
    umask(Mode::from_raw_mode(0o077));
    limit()?;
    let folder = confine();
    // while there still is the right to
    for capability in CapabilitySet::all().iter() {
        let _ = remove_capability_from_bounding_set(capability);
    }
    become_nobody();
    drop_capabilities();
    set_no_new_privs(true).context("failed to give up new privileges")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("failed to forbid dumps")?;
    // after the change of user, which clears it
    set_parent_process_death_signal(Some(Signal::KILL)).context("failed to follow memleak")?;
    seccompiler::apply_filter(&filter()?).context("failed to filter system calls")?;
    Ok(folder)
}

#[allow(unsafe_code)] // nobody else closes descriptors by the range
fn close_the_rest() {
    // SAFETY: nothing of this process has opened a descriptor so far: it has only just begun.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
    }
}

fn limit() -> Result<()> {
    let limits = [
        (Resource::Data, limits::MEMORY),
        (Resource::Stack, limits::STACK),
        // the copies of files that it may not open
        (Resource::Fsize, limits::COPY),
        (Resource::Core, 0),
        (Resource::Nproc, 0),
        (Resource::Memlock, 0),
        (
            Resource::Nofile,
            (limits::OPEN_FILES + 4 * limits::FILES) as u64,
        ),
    ];
    for (resource, most) in limits {
        let now = getrlimit(resource).maximum;
        let most = Some(now.map_or(most, |now| now.min(most)));
        let limit = Rlimit {
            current: most,
            maximum: most,
        };
        setrlimit(resource, limit).with_context(|| format!("failed to limit {resource:?}"))?;
    }
    Ok(())
}

/// Leaves no files in sight but those that are open. Without the privilege for that, only what the user may read
/// anyway stays in sight.
fn confine() -> PathBuf {
    let confined = chroot(DESCRIPTORS).and_then(|()| rustix::process::chdir("/"));
    match confined {
        Ok(()) => PathBuf::from("/"),
        Err(_) => PathBuf::from(DESCRIPTORS),
    }
}

/// Without the privilege for that, it is somebody without privileges already.
fn become_nobody() {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let _ = set_thread_groups(&[]);
    let _ = set_thread_res_gid(group, group, group);
    let _ = set_thread_res_uid(user, user, user);
}

fn drop_capabilities() {
    let _ = clear_ambient_capability_set();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    // giving up is always allowed
    let _ = set_capabilities(None, none);
}

/// Memory, the socket, the files that it was given, its own end: any other system call is refused.
fn filter() -> Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = SYSTEM_CALLS
        .iter()
        .map(|call| (*call, Vec::new()))
        .collect();
    // the mode, and that nothing is created
    let flags = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE) as u64;
    let reading = SeccompCondition::new(
        2,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(flags & !(libc::O_DIRECTORY as u64)),
        libc::O_RDONLY as u64,
    )?;
    rules.insert(libc::SYS_openat, vec![SeccompRule::new(vec![reading])?]);
    let filter = SeccompFilter::new(
        rules,
        // not its end: another version of libc can get by without what this one does not need
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(filter.try_into()?)
}

const SYSTEM_CALLS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_prlimit64,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    // what returns and calls of probed functions do from Linux 6.11 and 6.18 on: some kernels ask filters about it
    #[cfg(target_arch = "x86_64")]
    335,
    #[cfg(target_arch = "x86_64")]
    336,
];
