//! The estimate of what tracing costs the target: events, time in BPF, share of its CPU time.
//! Reads /proc and asks the tracer; what to do about it is decided elsewhere.

use std::fmt;
use std::hint::black_box;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::wait::monotonic;
use crate::files::proc;
use crate::process::Mappings;
use crate::tracer::{Activity, RunTime, Statistics, Tracer, TrapCost};

/// How long the kernel's statistics are on, unless they are wanted throughout: they cost some time at
/// every event, and the time of an event hardly changes.
const STATISTICS: Duration = Duration::from_millis(100);

/// Calls to measure a trap with: about 5 ms.
const CALLS: u32 = 1000;

/// CPU time below which its share can't be told: the kernel counts it in ticks of 10 ms.
const LEAST_CPU: Duration = Duration::from_millis(50);

/// What tracing has cost since it began, or in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Times that a program ran.
    pub events: u64,
    /// In this time.
    pub elapsed: Duration,
    /// Time in BPF, where the kernel tells.
    pub in_bpf: Option<Duration>,
    /// Share of the CPU time, from 0 to 1, where that is long enough to tell.
    pub share: Option<f64>,
    /// Whether that is the machine's CPU time, and not the target's.
    pub of_machine: bool,
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        let rate = self.events as f64 / seconds;
        write!(f, "{} events ({rate:.0}/s)", self.events)?;
        if let Some(in_bpf) = self.in_bpf {
            write!(f, ", {:.1} ms in BPF", in_bpf.as_secs_f64() * 1e3)?;
        }
        let whose = if self.of_machine { "machine" } else { "target" };
        match self.share {
            Some(share) => write!(f, ", about {:.1}% of the {whose}'s CPU time", share * 100.0),
            None => write!(
                f,
                ", the {whose} used too little CPU time to tell the share of it"
            ),
        }
    }
}

/// Keeps the estimate.
pub struct Overhead {
    /// Whose CPU time is looked at; none: the machine's.
    pid: Option<u32>,
    statistics: Option<Statistics>,
    throughout: bool,
    run_time: RunTime,
    trap: Option<TrapCost>,
    begun: Reading,
    previous: Reading,
}

/// Figures at one moment.
#[derive(Clone, Copy, Default)]
struct Reading {
    at: Duration,
    activity: Activity,
    cpu: Duration,
}

impl Overhead {
    /// Begins, beside a process or, without one, beside all that the machine does. With `throughout`, the kernel's
    /// statistics stay on.
    pub fn start(pid: Option<u32>, throughout: bool) -> Self {
        let begun = Reading {
            at: monotonic(),
            activity: Activity::default(),
            cpu: cpu_time(pid).unwrap_or_default(),
        };
        Self {
            pid,
            statistics: Statistics::start(),
            throughout,
            run_time: RunTime::default(),
            trap: None,
            begun,
            previous: begun,
        }
    }

    /// When the statistics are to be turned off, if they still are to be.
    pub fn statistics_end(&self) -> Option<Duration> {
        let limited = self.statistics.is_some() && !self.throughout;
        limited.then(|| self.begun.at + STATISTICS)
    }

    /// Turns the statistics off, if the time has come.
    pub fn end_statistics(&mut self, tracer: &Tracer<'_>) -> Result<()> {
        if self.statistics_end().is_some_and(|end| monotonic() >= end) {
            self.run_time = tracer.run_time()?;
            self.statistics = None;
        }
        Ok(())
    }

    /// The estimates since the last call, and since the start.
    pub fn estimate(&mut self, tracer: &mut Tracer<'_>) -> Result<(Estimate, Estimate)> {
        let (now, trap) = self.look(tracer)?;
        let recent = self.since(&self.previous, &now, trap);
        let total = self.since(&self.begun, &now, trap);
        self.previous = now;
        Ok((recent, total))
    }

    /// The estimate since the start.
    pub fn total(&mut self, tracer: &mut Tracer<'_>) -> Result<Estimate> {
        let (now, trap) = self.look(tracer)?;
        Ok(self.since(&self.begun, &now, trap))
    }

    fn look(&mut self, tracer: &mut Tracer<'_>) -> Result<(Reading, TrapCost)> {
        if self.statistics.is_some() {
            self.run_time = tracer.run_time()?;
        }
        let trap = match self.trap {
            Some(trap) => trap,
            None => *self.trap.insert(measure_trap(tracer)?),
        };
        let now = Reading {
            at: monotonic(),
            activity: tracer.activity()?,
            // once it has gone, what was read last has to do
            cpu: cpu_time(self.pid).unwrap_or(self.previous.cpu),
        };
        Ok((now, trap))
    }

    fn since(&self, from: &Reading, to: &Reading, trap: TrapCost) -> Estimate {
        Estimate {
            of_machine: self.pid.is_none(),
            ..estimate(from, to, self.run_time, trap)
        }
    }
}

fn estimate(from: &Reading, to: &Reading, run_time: RunTime, trap: TrapCost) -> Estimate {
    let entries = to.activity.entries.saturating_sub(from.activity.entries);
    let returns = to.activity.returns.saturating_sub(from.activity.returns);
    let events = entries + returns;
    let bpf_ns = match run_time.runs {
        0 => None,
        runs => Some(run_time.ns as f64 / runs as f64 * events as f64),
    };
    let trap_ns = entries as f64 * trap.entry_ns + returns as f64 * trap.return_ns;
    let cpu = to.cpu.saturating_sub(from.cpu);
    let spent_ns = trap_ns + bpf_ns.unwrap_or(0.0);
    let share = (cpu >= LEAST_CPU).then(|| (spent_ns / cpu.as_nanos() as f64).min(1.0));
    Estimate {
        events,
        elapsed: to.at.saturating_sub(from.at),
        in_bpf: bpf_ns.map(|ns| Duration::from_nanos(ns as u64)),
        share,
        of_machine: false,
    }
}

/// The time that all CPUs were at work for anybody.
fn busy_time() -> Option<Duration> {
    let stat = proc::text("/proc/stat").ok()?;
    let mut fields = stat
        .strip_prefix("cpu ")?
        .split_ascii_whitespace()
        .map_while(|field| field.parse::<u64>().ok());
    let mut ticks = 0;
    // user, nice and system; then, past idle and iowait, interrupts and what a host took
    for skipped in [0, 0, 0, 2, 0] {
        ticks += fields.nth(skipped)?;
    }
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_nanos(
        ticks.saturating_mul(1_000_000_000) / per_second,
    ))
}

/// User and system time of a process, or of all that the machine runs, in all its threads, living or not yet reaped.
pub fn cpu_time(pid: Option<u32>) -> Option<Duration> {
    let Some(pid) = pid else {
        return busy_time();
    };
    let stat = proc::text(format!("/proc/{pid}/stat")).ok()?;
    // the second field is a name in parentheses that can hold anything
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let sum = ticks()? + ticks()?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_nanos(
        sum.saturating_mul(1_000_000_000) / per_second,
    ))
}

/// Where in memleak's own file the code of its functions begins, in bytes.
fn offsets_of<const N: usize>(functions: [extern "C" fn(); N]) -> Result<[u64; N]> {
    let mut own = Mappings::default();
    own.read(std::process::id())?;
    let mut offsets = [0; N];
    for (offset, function) in offsets.iter_mut().zip(functions) {
        let address = function as *const () as u64;
        let mapping = own.find(std::process::id(), address, u64::MAX);
        *offset = mapping
            .context("failed to find memleak's own code")?
            .file_offset(address);
    }
    Ok(offsets)
}

/// Puts an empty program at the return of `probed`, until what it gives is dropped.
///
/// # Errors
/// Fails when the kernel refuses.
pub fn probe_return(tracer: &Tracer<'_>) -> Result<impl Drop + use<>> {
    let [offset] = offsets_of([probed])?;
    tracer.probe_own_return(offset)
}

fn measure_trap(tracer: &mut Tracer<'_>) -> Result<TrapCost> {
    let functions: [extern "C" fn(); 2] = [probed, probed_too];
    tracer.trap_cost(offsets_of(functions)?, |which| {
        let function = black_box(functions[which]);
        let begun = monotonic();
        for _ in 0..CALLS {
            function();
        }
        (monotonic() - begun).as_nanos() as f64 / f64::from(CALLS)
    })
}

/// Does nothing, beginning with an instruction like those that allocators are probed at. On aarch64 that is one that the
/// kernel single-steps, so what is probed at another is estimated at too much.
#[unsafe(naked)]
#[allow(unsafe_code)] // the compiler leaves the choice of the first instruction in no other way
pub extern "C" fn probed() {
    #[cfg(target_arch = "x86_64")]
    core::arch::naked_asm!("push rbp", "pop rbp", "ret");
    #[cfg(target_arch = "aarch64")]
    core::arch::naked_asm!(
        "stp x29, x30, [sp, #-16]!",
        "ldp x29, x30, [sp], #16",
        "ret"
    );
}

/// The same, in other words, so that the compiler does not make one of the two.
#[unsafe(naked)]
#[allow(unsafe_code)] // as above
extern "C" fn probed_too() {
    #[cfg(target_arch = "x86_64")]
    core::arch::naked_asm!("push rbp", "nop", "pop rbp", "ret");
    #[cfg(target_arch = "aarch64")]
    core::arch::naked_asm!(
        "stp x29, x30, [sp, #-16]!",
        "nop",
        "ldp x29, x30, [sp], #16",
        "ret"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAP: TrapCost = TrapCost {
        entry_ns: 1000.0,
        return_ns: 500.0,
    };

    fn reading(seconds: u64, entries: u64, returns: u64, cpu_ms: u64) -> Reading {
        Reading {
            at: Duration::from_secs(seconds),
            activity: Activity { entries, returns },
            cpu: Duration::from_millis(cpu_ms),
        }
    }

    #[test]
    fn traps_and_programs_add_up() {
        let run_time = RunTime { runs: 10, ns: 3000 };
        let from = reading(1, 1000, 1000, 100);
        let to = reading(3, 21_000, 11_000, 1100);
        let estimate = estimate(&from, &to, run_time, TRAP);
        assert_eq!(estimate.events, 30_000);
        assert_eq!(estimate.in_bpf, Some(Duration::from_millis(9)));
        // 20 + 5 ms in traps and 9 ms in BPF, of a second
        assert!((estimate.share.unwrap() - 0.034).abs() < 1e-9);
        assert_eq!(
            estimate.to_string(),
            "30000 events (15000/s), 9.0 ms in BPF, about 3.4% of the target's CPU time"
        );
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_left_out() {
        let estimate = estimate(
            &reading(1, 0, 0, 0),
            &reading(2, 10, 0, 10),
            RunTime::default(),
            TRAP,
        );
        assert_eq!(estimate.in_bpf, None);
        assert_eq!(estimate.share, None);
    }

    #[test]
    fn own_cpu_time_can_be_read() {
        assert!(cpu_time(Some(std::process::id())).is_some());
        assert_eq!(cpu_time(Some(0)), None);
        let machine = cpu_time(None).unwrap();
        assert!(machine > cpu_time(Some(std::process::id())).unwrap());
    }
}
