//! From arguments to options: every value checked, every default settled, conflicts refused.
//! Pure: no I/O, no look at the system.

mod shell;
mod target;
mod watch;

pub use target::process_ids;
pub use watch::{RecordLimits, WatchOptions, validate as validate_watch};

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use wildmatch::WildMatch;

use crate::analysis::SortKey;
use crate::analysis::gate::Gate;
use crate::analysis::select::Selection;
use crate::cli::{Arguments, LostChoice, SiteChoice, UnwindChoice};
use crate::model::capture::{Sampling, Unwind};
use crate::model::snapshot::MAX_STACK_DEPTH;
use crate::probes::{Operation, OwnFunction, ProbeAt};
use crate::process::Names;
use crate::publish::LiveArguments;
use crate::reachability::Mode;
use crate::symbolize::Naming;

/// One sample in a GiB: what the programs' arithmetic can hold.
const MAX_SAMPLE_BYTES: u32 = 1 << 30;

/// Entries of a BPF hash map: the kernel wants a power of two of buckets, of 16 bytes each, in less than 4 GiB,
/// and the tracer needs an entry more than there are stacks.
const MAX_MAP_ENTRIES: u32 = 1 << 26;

/// Who is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetOption {
    /// Running processes: at least one, none twice.
    Processes(Vec<u32>),
    /// A command to start: program and arguments, never empty.
    Command(Vec<OsString>),
    /// Whoever fits, now and later.
    Chosen(Choice),
    /// The kernel's allocators.
    Kernel,
}

/// What makes a process a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Its name.
    Names {
        /// As the user wrote them.
        patterns: Vec<String>,
        /// As they are looked for.
        names: Box<Names>,
    },
    /// Its cgroup, or one above it.
    Cgroups(Vec<PathBuf>),
    /// Its container, by the beginning of the id.
    Containers(Vec<String>),
    /// Nothing but being one.
    All,
}

/// Which allocations are recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// Sizes in bytes.
    pub sizes: RangeInclusive<u64>,
    /// How many are recorded.
    pub sampling: Sampling,
    /// Whether anonymous mappings count.
    pub mappings: bool,
    /// Whether per-CPU memory of the kernel counts.
    pub percpu: bool,
    /// Live blocks at the most.
    pub max_allocations: u32,
    /// Distinct stacks at the most.
    pub max_stacks: u32,
    /// Frames per stack at the most.
    pub max_depth: u32,
}

/// How reports look.
#[derive(Clone, Debug, PartialEq)]
pub struct Reporting {
    /// Stacks to show at the most, of each process.
    pub top: usize,
    /// Processes to show at the most.
    pub top_processes: usize,
    /// What ranks them.
    pub sort: SortKey,
    /// Younger allocations are left out while the target lives.
    pub older: Duration,
    /// Whether each block is listed.
    pub show_allocations: bool,
    /// Read totals per stack only.
    pub combined_only: bool,
    /// Count only these threads' allocations; empty: all.
    pub tids: Vec<u32>,
    /// Which stacks to show.
    pub selection: Selection,
    /// Whether an interpreter's native frames are left out where the frames that it runs are shown.
    pub hide_interpreter: bool,
    /// Whether pages of processes and files are shown in kernel mode.
    pub user_pages: bool,
}

/// When and how lost blocks are told from held ones, besides at the end and when asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// When the target may stand.
    pub mode: Mode,
    /// At each report of this number as well.
    pub every: Option<u64>,
}

/// Everything that the user asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Who is traced.
    pub target: TargetOption,
    /// Whether children of traced processes are traced as well.
    pub follow: bool,
    /// Whom a command runs as, where it is not memleak's own user.
    pub user: Option<String>,
    /// Probe this object instead of the target's libc.
    pub object: Option<PathBuf>,
    /// Prefix of the allocator functions' names.
    pub symbols_prefix: String,
    /// The user's own allocator functions.
    pub own_functions: Vec<OwnFunction>,
    /// Where in a function its probe may go.
    pub probe_at: ProbeAt,
    /// How stacks are unwound.
    pub unwind: Unwind,
    /// How frames get their names.
    pub naming: Naming,
    /// Time between reports.
    pub interval: Duration,
    /// Reports before leaving.
    pub count: Option<u64>,
    /// Print each call as it happens.
    pub trace: bool,
    /// Detach above this percentage of the target's CPU time.
    pub max_overhead: Option<f64>,
    /// Which allocations are recorded.
    pub recording: Recording,
    /// How reports look.
    pub reporting: Reporting,
    /// Whether lost blocks are told from held ones.
    pub lost: Option<Lost>,
    /// What to do with reports besides printing them.
    pub live: LiveArguments,
    /// Say what is probed and how.
    pub verbose: bool,
    /// What may not be meant as it was typed; to be said before anything else.
    pub hints: Vec<String>,
}

impl Options {
    /// Whether more than one process can come to be traced.
    pub fn many_processes(&self) -> bool {
        match &self.target {
            TargetOption::Processes(pids) => self.follow || pids.len() > 1,
            TargetOption::Command(_) => self.follow,
            TargetOption::Chosen(_) => true,
            TargetOption::Kernel => false,
        }
    }
}

/// Checks the arguments. `find` gives the processes of a name; `alone` says that there is one argument and no more. The
/// error is one line that says what to change.
///
/// # Errors
/// When something that was typed is wrong, or does not fit the rest.
pub fn validate(
    arguments: Arguments,
    find: impl Fn(&str) -> Vec<u32>,
    alone: bool,
) -> Result<Options, String> {
    let recording = validate_recording(&arguments)?;
    let reporting = validate_reporting(&arguments)?;
    // a day's worth of centuries is enough, and far below where a Duration would overflow
    let seconds = arguments.interval.seconds;
    if !(seconds > 0.0 && seconds <= 1e9) {
        return Err("interval must be a number of seconds above 0, and at most 1e9".into());
    }
    if arguments.count == Some(0) {
        return Err("count must be at least 1".into());
    }
    if !arguments
        .max_overhead
        .is_none_or(|percentage| percentage > 0.0)
    {
        return Err("--max-overhead must be a percentage above 0".into());
    }
    let target = target::validate_target(&arguments, find)?;
    if alone && target == TargetOption::Kernel {
        target::refuse_lone_number(&arguments)?;
    }
    if arguments.user.is_some() && !matches!(target, TargetOption::Command(_)) {
        return Err("--user is for a command (-c or --)".into());
    }
    let is_kernel = target == TargetOption::Kernel;
    target::refuse_other_target(&arguments, is_kernel)?;
    Ok(Options {
        max_overhead: arguments.max_overhead,
        interval: Duration::from_secs_f64(seconds),
        count: arguments.count,
        object: arguments.obj.clone(),
        symbols_prefix: arguments.symbols_prefix.clone(),
        own_functions: own_functions(&arguments)?,
        probe_at: match arguments.probe_at {
            SiteChoice::Auto => ProbeAt::Cheapest,
            SiteChoice::Symbol => ProbeAt::Symbol,
        },
        unwind: match arguments.unwind {
            UnwindChoice::Auto => Unwind::Auto,
            UnwindChoice::Dwarf => Unwind::Tables,
            UnwindChoice::Fp => Unwind::FramePointers,
        },
        naming: Naming {
            no_inlines: arguments.no_inlines,
            debug_dirs: arguments.naming.debug_dirs.clone(),
            debuginfod: arguments.naming.debuginfod.clone(),
        },
        trace: arguments.trace,
        lost: validate_lost(&arguments, is_kernel)?,
        live: arguments.live.clone(),
        verbose: arguments.verbose,
        follow: arguments.follow,
        user: arguments.user.clone(),
        target,
        recording,
        reporting,
        hints: arguments
            .command
            .as_deref()
            .map_or_else(Vec::new, shell::hints),
    })
}

fn own_functions(arguments: &Arguments) -> Result<Vec<OwnFunction>, String> {
    let all = [
        (Operation::Allocate, &arguments.alloc),
        (Operation::Reallocate, &arguments.realloc),
        (Operation::Free, &arguments.free),
    ];
    all.into_iter()
        .flat_map(|(operation, texts)| texts.iter().map(move |text| (operation, text)))
        .map(|(operation, text)| OwnFunction::parse(operation, text))
        .collect()
}

/// A gate on what is lost asks to tell it.
fn validate_lost(arguments: &Arguments, kernel: bool) -> Result<Option<Lost>, String> {
    let gate = arguments
        .live
        .output
        .fail_on
        .iter()
        .any(|gate| matches!(gate, Gate::Lost(_)));
    let choice = arguments.lost.or(gate.then_some(LostChoice::Auto));
    let Some(choice) = choice else {
        return Ok(None);
    };
    if gate && kernel {
        return Err(
            "--fail-on lost needs a process: name one with -p, or a command with -c".into(),
        );
    }
    if arguments.lost_every == Some(0) {
        return Err("--lost-every must be at least 1".into());
    }
    if arguments.combined_only {
        return Err("--lost needs every block: leave out --combined-only".into());
    }
    if arguments.system {
        return Err("--lost makes its target stand: name processes instead of --system".into());
    }
    Ok(Some(Lost {
        mode: match choice {
            LostChoice::Auto => Mode::Auto {
                max_pause: Duration::from_millis(arguments.max_pause),
            },
            LostChoice::Live => Mode::Live,
            LostChoice::Stop => Mode::Stop,
        },
        every: arguments.lost_every,
    }))
}

fn glob(pattern: &Option<String>) -> Option<WildMatch> {
    pattern.as_deref().map(WildMatch::new)
}

fn validate_recording(arguments: &Arguments) -> Result<Recording, String> {
    let min = arguments.min_size.unwrap_or(0);
    let max = arguments.max_size.unwrap_or(u64::MAX);
    if min > max {
        return Err(format!("--min-size {min} is above --max-size {max}"));
    }
    let sampling = match (arguments.sample_rate, arguments.sample_bytes) {
        (Some(0), _) => return Err("--sample-rate must be at least 1".into()),
        (_, Some(0)) => return Err("--sample-bytes must be at least 1".into()),
        (_, Some(bytes)) if bytes > MAX_SAMPLE_BYTES => {
            return Err(format!("--sample-bytes must be at most {MAX_SAMPLE_BYTES}"));
        }
        (_, Some(bytes)) => Sampling::Bytes(bytes),
        (None | Some(1), None) => Sampling::All,
        (Some(rate), None) => Sampling::Rate(rate),
    };
    for (option, entries) in [
        ("--max-allocs", arguments.max_allocs),
        ("--stack-storage-size", arguments.stack_storage_size),
    ] {
        if !(1..=MAX_MAP_ENTRIES).contains(&entries) {
            return Err(format!("{option} must be from 1 to {MAX_MAP_ENTRIES}"));
        }
    }
    if !(1..=MAX_STACK_DEPTH).contains(&arguments.perf_max_stack_depth) {
        return Err(format!(
            "--perf-max-stack-depth must be from 1 to {MAX_STACK_DEPTH}"
        ));
    }
    Ok(Recording {
        sizes: min..=max,
        sampling,
        mappings: !arguments.no_mmap,
        percpu: arguments.percpu,
        max_allocations: arguments.max_allocs,
        max_stacks: arguments.stack_storage_size,
        max_depth: arguments.perf_max_stack_depth,
    })
}

fn validate_reporting(arguments: &Arguments) -> Result<Reporting, String> {
    if arguments.top == 0 {
        return Err("--top must be at least 1".into());
    }
    if arguments.top_processes == 0 {
        return Err("--top-processes must be at least 1".into());
    }
    if arguments.combined_only && arguments.show_allocs {
        return Err("--combined-only keeps no blocks: leave out --show-allocs".into());
    }
    if arguments.combined_only && !arguments.tid.is_empty() {
        return Err("--combined-only keeps no threads: leave out --tid".into());
    }
    Ok(Reporting {
        top: usize::try_from(arguments.top).unwrap_or(usize::MAX),
        top_processes: usize::try_from(arguments.top_processes).unwrap_or(usize::MAX),
        sort: arguments.sort,
        older: Duration::from_millis(arguments.older),
        show_allocations: arguments.show_allocs,
        combined_only: arguments.combined_only,
        tids: arguments.tid.clone(),
        selection: Selection {
            function: glob(&arguments.function),
            module: glob(&arguments.module),
            cache: glob(&arguments.cache),
        },
        hide_interpreter: arguments.hide_interpreter,
        user_pages: arguments.user_pages,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn options(arguments: &[&str]) -> Result<Options, String> {
        let alone = arguments.len() == 1;
        let arguments = std::iter::once("memleak").chain(arguments.iter().copied());
        let arguments = Arguments::try_parse_from(arguments).map_err(|error| error.to_string())?;
        let find = |name: &str| match name {
            "one" => vec![12],
            "two" => vec![12, 34],
            _ => Vec::new(),
        };
        validate(arguments, find, alone)
    }

    #[test]
    fn defaults_are_bccs() {
        let options = options(&["-p", "1"]).unwrap();
        assert_eq!(options.interval, Duration::from_secs(5));
        assert_eq!(options.count, None);
        assert_eq!(options.reporting.top, 10);
        assert_eq!(options.reporting.older, Duration::from_millis(500));
        assert_eq!(options.recording.sizes, 0..=u64::MAX);
        assert_eq!(options.recording.max_stacks, 10_240);
        assert_eq!(options.recording.max_depth, 127);
    }

    #[test]
    fn several_processes_are_named_in_a_list_or_one_by_one() {
        let pids = |arguments: &[&str]| match options(arguments).unwrap().target {
            TargetOption::Processes(pids) => pids,
            other => panic!("{other:?}"),
        };
        assert_eq!(pids(&["-p", "12,34"]), [12, 34]);
        assert_eq!(pids(&["-p", "34", "-p", "12", "-p", "34"]), [12, 34]);
        // as in -p "$(pidof nginx)" and -p "$(pgrep nginx)"
        assert_eq!(pids(&["-p", "34 12"]), [12, 34]);
        assert_eq!(pids(&["-p", "12\n34\n"]), [12, 34]);
        assert!(!options(&["-p", "12"]).unwrap().many_processes());
        assert!(!options(&["-p", "12,12"]).unwrap().many_processes());
        assert!(options(&["-p", "12,34"]).unwrap().many_processes());
        assert!(options(&["-f", "-p", "12"]).unwrap().many_processes());
    }

    #[test]
    fn a_process_may_be_named() {
        let target = |arguments: &[&str]| options(arguments).unwrap().target;
        assert_eq!(target(&["-p", "one"]), TargetOption::Processes(vec![12]));
        assert_eq!(
            target(&["-p", "one,7"]),
            TargetOption::Processes(vec![7, 12])
        );
        assert_eq!(target(&["300s"]), TargetOption::Kernel);
        assert_eq!(target(&["60"]), TargetOption::Kernel);
        assert_eq!(target(&["600", "2"]), TargetOption::Kernel);
        assert_eq!(target(&["-v", "3600"]), TargetOption::Kernel);
    }

    #[test]
    fn interval_may_be_a_fraction() {
        let options = options(&["-p", "1", "0.25", "3"]).unwrap();
        assert_eq!(options.interval, Duration::from_millis(250));
        assert_eq!(options.count, Some(3));
    }

    #[test]
    fn a_command_is_split_as_a_shell_would() {
        let options = options(&["-c", "prog one 'two words' \"three\""]).unwrap();
        let words = ["prog", "one", "two words", "three"].map(OsString::from);
        assert_eq!(options.target, TargetOption::Command(words.to_vec()));
    }

    #[test]
    fn a_program_after_two_dashes_is_taken_as_it_is() {
        let options = options(&["1", "2", "--", "prog", "-p", "it's"]).unwrap();
        let words = ["prog", "-p", "it's"].map(OsString::from);
        assert_eq!(options.target, TargetOption::Command(words.to_vec()));
        assert_eq!(options.count, Some(2));
    }

    #[test]
    fn wrong_values_are_refused_with_the_option_named() {
        for (arguments, named) in [
            (vec!["-p", "1", "0"], "interval"),
            (vec!["-p", "1", "nan"], "interval"),
            (vec!["-p", "1", "inf"], "interval"),
            (vec!["-p", "1", "1", "0"], "count"),
            (vec!["-p", "0"], "--pid"),
            (vec!["-p", "1", "-c", "x"], "--pid"),
            (vec!["-p", "1", "-z", "2", "-Z", "1"], "--min-size"),
            (vec!["-p", "1", "--sort", "age"], "--sort"),
            (vec!["-p", "1", "-s", "0"], "--sample-rate"),
            (vec!["-p", "1", "--sample-bytes", "0"], "--sample-bytes"),
            (
                vec!["-p", "1", "-s", "2", "--sample-bytes", "9"],
                "--sample-rate",
            ),
            (vec!["-p", "1", "-T", "0"], "--top"),
            (vec!["-p", "1", "1e300"], "1e9"),
            (vec!["-p", "1", "--max-allocs", "0"], "--max-allocs"),
            (vec!["-p", "1", "--max-allocs", "67108865"], "67108864"),
            (
                vec!["-p", "1", "--stack-storage-size", "4294967295"],
                "--stack-storage-size",
            ),
            (vec!["-p", "1", "-P"], "--percpu"),
            (vec!["-P", "--", "prog"], "--percpu"),
            (
                vec!["-p", "1", "--perf-max-stack-depth", "128"],
                "--perf-max-stack-depth",
            ),
            (vec!["-p", "1", "-C", "--tid", "1"], "--combined-only"),
            (vec!["-c", "a 'b"], "--command"),
            (vec!["-c", " "], "--command"),
            (vec!["-p", "1", "--", "prog"], "--pid"),
            (vec!["-p", "1", "--cache", "dentry"], "--cache"),
            (vec!["-p", "1", "--user-pages"], "--user-pages"),
            (vec!["-c", "x", "--percpu"], "--percpu"),
            (vec!["-O", "x.so"], "--obj"),
            (vec!["--alloc", "f:size=1"], "--alloc"),
            (vec!["-p", "1", "--alloc", "f:size=7"], "1 to 6"),
            (vec!["-p", "1", "--realloc", "f:size=1"], "ptr is missing"),
            (vec!["-p", "1", "--free", "f"], "--free"),
            (vec!["--max-overhead", "5"], "--max-overhead"),
            (vec!["-f"], "--follow"),
            (vec!["-p", "1,0"], "--pid"),
            (vec!["-p", "1,x"], "--pid"),
            (vec!["-p", ""], "--pid"),
            (vec!["-p", " "], "--pid"),
            (vec!["-p", "nobody"], "no process of that name"),
            (vec!["-p", "two"], "-p 12,34"),
            (vec!["1234"], "-p 1234"),
            (vec!["nginx"], "did you mean -p"),
            (vec!["--", ""], "empty"),
            (vec!["-c", "\"\" a"], "--command"),
            (vec!["-c", "A=1 prog"], "env A=1 prog"),
            (vec!["--comm", ""], "--comm"),
            (vec!["-p", "1", "-a", "-C"], "--show-allocs"),
            (vec!["-p", "1", "-z", "4X"], "64K"),
            (vec!["-p", "1", "-o", "soon"], "2s"),
            (vec!["-p", "1", "--system"], "--system"),
            (vec!["--comm", "a", "--cgroup", "b"], "--comm"),
            (vec!["--comm", "sixteen-letters!"], "15 characters"),
            (vec!["--container", "web"], "--container"),
            (vec!["-p", "1", "--top-processes", "0"], "--top-processes"),
        ] {
            let message = options(&arguments).unwrap_err();
            assert!(message.contains(named), "{arguments:?} gave: {message}");
        }
    }
}
