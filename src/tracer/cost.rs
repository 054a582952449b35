//! What tracing costs, as the kernel tells: how often programs ran, how long in BPF, and what the traps
//! around them take. Measures; the estimate is made elsewhere.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context as _, Result};
use libbpf_rs::{Link, MapCore, MapFlags, ProgramMut, UprobeMultiOpts, UprobeOpts};

use super::kernel::{self, Attachment};
use super::skel::{MemleakProgs, types};
use super::{Tracer, attach};

/// This program's own file.
const OWN_FILE: &str = "/proc/self/exe";

/// How often programs ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// At the entry of a function.
    pub entries: u64,
    /// At the return of one.
    pub returns: u64,
}

/// What the kernel counted of programs while statistics were on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    /// How often they ran.
    pub runs: u64,
    /// How long in all, in ns.
    pub ns: u64,
}

/// What the kernel takes to run an empty program, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrapCost {
    /// At a function's entry.
    pub entry_ns: f64,
    /// At its return.
    pub return_ns: f64,
}

/// The kernel's statistics of BPF programs, which cost some time at every run: on until dropped.
pub struct Statistics {
    _descriptor: OwnedFd,
}

impl Statistics {
    /// Turns them on. None where the kernel has none or does not allow it (it takes CAP_SYS_ADMIN).
    #[allow(unsafe_code)] // libbpf-rs has no call for it
    pub fn start() -> Option<Self> {
        // SAFETY: no pointers are passed; a descriptor that is returned belongs to nobody else.
        let descriptor = unsafe {
            match libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) {
                descriptor if descriptor >= 0 => OwnedFd::from_raw_fd(descriptor),
                _ => return None,
            }
        };
        Some(Self {
            _descriptor: descriptor,
        })
    }
}

/// Sums the counters of all CPUs.
pub fn activity(map: &impl MapCore) -> Result<Activity> {
    let values = map
        .lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)
        .context("failed to read the counters of events")?
        .unwrap_or_default();
    let mut sum = Activity::default();
    for value in values {
        if let Ok(value) = plain::from_bytes::<types::activity>(&value) {
            sum.entries += value.entries;
            sum.returns += value.returns;
        }
    }
    Ok(sum)
}

/// Sums what the kernel counted of programs.
pub fn run_time(programs: &[&ProgramMut<'_>]) -> Result<RunTime> {
    let mut sum = RunTime::default();
    for program in programs {
        let info = information(program)?;
        sum.runs += info.run_cnt;
        sum.ns += info.run_time_ns;
    }
    Ok(sum)
}

/// How often programs were due while they were at work already.
pub fn recursion_misses(programs: &[&ProgramMut<'_>]) -> Result<u64> {
    let mut sum = 0;
    for program in programs {
        sum += information(program)?.recursion_misses;
    }
    Ok(sum)
}

#[allow(unsafe_code)] // libbpf-rs reads these figures only for all programs of the machine
fn information(program: &ProgramMut<'_>) -> Result<libbpf_sys::bpf_prog_info> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut length = u32::try_from(size_of_val(&info))?;
    // SAFETY: the kernel writes at most `length` bytes to `info`, whose fields are integers and whose
    // pointers, all null, ask for nothing more.
    let result = unsafe {
        libbpf_sys::bpf_prog_get_info_by_fd(
            program.as_fd().as_raw_fd(),
            &raw mut info,
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(-result))
            .context("failed to read the statistics of a program");
    }
    Ok(info)
}

/// Puts an empty program at the return of a function of this program's own file, in every process that runs it.
pub fn probe_own_return(
    programs: &MemleakProgs<'_>,
    attachment: Attachment,
    offset: u64,
) -> Result<Link> {
    let offset = usize::try_from(offset)?;
    let link = if attachment == Attachment::Session {
        let options = UprobeMultiOpts {
            offsets: vec![offset],
            cookies: vec![0],
            session: true,
            ..UprobeMultiOpts::default()
        };
        programs
            .empty_session
            .attach_uprobe_multi_with_opts(-1, OWN_FILE, "", options)
    } else {
        let options = UprobeOpts {
            retprobe: true,
            ..UprobeOpts::default()
        };
        programs
            .empty_leave
            .attach_uprobe_with_opts(-1, OWN_FILE, offset, options)
    };
    link.context("failed to probe memleak's own code")
}

/// See `Tracer::trap_cost`. Gives the links as well, which nobody need wait to be rid of.
fn trap_cost(
    programs: &MemleakProgs<'_>,
    attachment: Attachment,
    offsets: [u64; 2],
    measure: impl Fn(usize) -> f64,
) -> Result<(TrapCost, Vec<Link>)> {
    let pid = i32::try_from(std::process::id())?;
    let [first, second] = [usize::try_from(offsets[0])?, usize::try_from(offsets[1])?];
    let single = |program: &ProgramMut<'_>, retprobe| {
        let options = UprobeOpts {
            retprobe,
            ..UprobeOpts::default()
        };
        program.attach_uprobe_with_opts(pid, OWN_FILE, first, options)
    };
    let plain_ns = measure(0);
    let (entry_ns, both_ns, links) = if attachment == Attachment::Session {
        let options = UprobeMultiOpts {
            offsets: vec![first, second],
            // whether the return is skipped
            cookies: vec![1, 0],
            session: true,
            ..UprobeMultiOpts::default()
        };
        let link = programs
            .empty_session
            .attach_uprobe_multi_with_opts(pid, OWN_FILE, "", options)?;
        (measure(0), measure(1), vec![link])
    } else {
        let enter = single(&programs.empty_enter, false)?;
        let entry_ns = measure(0);
        let leave = single(&programs.empty_leave, true)?;
        (entry_ns, measure(0), vec![enter, leave])
    };
    let cost = TrapCost {
        entry_ns: (entry_ns - plain_ns).max(0.0),
        return_ns: (both_ns - entry_ns).max(0.0),
    };
    Ok((cost, links))
}

impl Tracer<'_> {
    /// How often the programs have run so far.
    ///
    /// # Errors
    /// Fails when the counters can't be read.
    pub fn activity(&self) -> Result<Activity> {
        activity(&self.skel.maps.activity)
    }

    /// Runs and time of the programs in BPF, counted by the kernel while [`Statistics`] are on.
    ///
    /// # Errors
    /// Fails when the kernel does not tell.
    pub fn run_time(&self) -> Result<RunTime> {
        let programs = &self.skel.progs;
        let running: Vec<&ProgramMut<'_>> = match self.attachment {
            Attachment::Session => vec![&programs.user_session, &programs.user_free_multi],
            Attachment::Multi => vec![
                &programs.user_enter_multi,
                &programs.user_leave_multi,
                &programs.user_free_multi,
            ],
            Attachment::Single => vec![
                &programs.user_enter_single,
                &programs.user_leave_single,
                &programs.user_free_single,
            ],
            Attachment::Plain => attach::programs_by_row(programs)
                .into_iter()
                .take(self.functions.len())
                .chain([&programs.user_leave_plain])
                .collect(),
        };
        run_time(&running)
    }

    /// Whether this kernel's return probes end with a system call of the probed program's.
    ///
    /// # Errors
    /// Fails when the kernel's type information can't be read.
    pub fn returns_by_system_call(&self) -> Result<bool> {
        kernel::has_function("__x64_sys_uretprobe")
    }

    /// Puts an empty program at the return of a function of memleak's own, whose code begins at an offset of its file, in
    /// every process that runs it; until what it gives is dropped.
    ///
    /// # Errors
    /// Fails when the kernel refuses to probe it.
    pub fn probe_own_return(&self, offset: u64) -> Result<Link> {
        probe_own_return(&self.skel.progs, self.attachment, offset)
    }

    /// Measures what the kernel takes to run an empty program, at the entry and at the return of a function of this very
    /// program. There are two such functions, whose code begins at `offsets` of its file; they stay probed. `measure`
    /// calls one of them many times and gives the time of one call in ns.
    ///
    /// # Errors
    /// Fails when the kernel refuses to probe them.
    pub fn trap_cost(
        &mut self,
        offsets: [u64; 2],
        measure: impl Fn(usize) -> f64,
    ) -> Result<TrapCost> {
        let (cost, links) = trap_cost(&self.skel.progs, self.attachment, offsets, measure)?;
        self.links.extend(links);
        Ok(cost)
    }
}
