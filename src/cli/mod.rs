//! The command line: clap's arguments and the help text. No logic and no checks across arguments; those
//! are in `options`.

mod report;
mod watch;

pub use report::ReportArguments;
pub use watch::WatchArguments;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::analysis::SortKey;
use crate::publish::{LiveArguments, NamingArguments};
use crate::values::{self, Interval};

const AFTER_HELP: &str = "\
Examples:
  memleak -p 1234              report on process 1234 every 5 seconds
  memleak -p 1234 10 3         three reports, 10 seconds apart
  memleak -c './prog arg'      run a command and trace it from its first instruction to its end
  memleak -- ./prog arg        the same, its arguments taken as they are
  memleak -f -c 'make check'   with all the processes that it starts
  memleak --comm 'nginx*'      every process of that name, grouped by process
  memleak -p 1234 -a           show each block's address, size, thread and age as well
  memleak -p 1234 -C 10        only totals per stack, which are cheaper to read
  memleak -p 1234 -s 100       record one allocation in a hundred, and estimate
  memleak --cache 'ext4*'      without a target: the kernel's allocators, here some caches of theirs
  memleak watch --listen 9464  watch the memory of all processes, and trace whichever grows

Exit status: 0 done, 1 could not trace, 2 wrong usage, 23 a gate (--fail-on) tripped;
with a command, the command's own (128 + signal number if a signal ended it).";

/// Find memory that is never freed: print the call stacks that hold it.
#[derive(Debug, Parser)]
#[command(group(ArgGroup::new("target").multiple(false)))]
#[command(version, after_help = AFTER_HELP, max_term_width = 100, disable_help_subcommand = true, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What to do other than trace.
    #[command(subcommand)]
    pub mode: Option<Command>,

    /// Seconds between reports; fractions are allowed, and units, such as 500ms
    #[arg(value_name = "interval", default_value = "5", value_parser = values::interval)]
    pub interval: Interval,

    /// Reports to print before leaving; without it, until Ctrl-C or the target's end
    #[arg(value_name = "count")]
    pub count: Option<u64>,

    /// Program to run and trace, with its arguments
    #[arg(last = true, value_name = "PROG ARGS", group = "target")]
    pub program: Vec<OsString>,

    /// Trace this running process, by its id or its name, or several: -p 12,34, or -p repeated
    #[arg(
        short,
        long,
        value_name = "PID",
        help_heading = "Target",
        group = "target"
    )]
    pub pid: Vec<String>,

    /// Run this command, split into words as a shell would, and trace it
    #[arg(
        short,
        long,
        value_name = "COMMAND",
        help_heading = "Target",
        group = "target"
    )]
    pub command: Option<String>,

    /// Trace the processes whose name matches, now and later; may be repeated
    #[arg(long, value_name = "GLOB", help_heading = "Target", group = "target")]
    pub comm: Vec<String>,

    /// Trace the processes in this cgroup and below, now and later; may be repeated
    #[arg(long, value_name = "PATH", help_heading = "Target", group = "target")]
    pub cgroup: Vec<PathBuf>,

    /// Trace the processes of this container, by its id or the beginning of it; may be repeated
    #[arg(long, value_name = "ID", help_heading = "Target", group = "target")]
    pub container: Vec<String>,

    /// Trace all processes, now and later
    #[arg(long, help_heading = "Target", group = "target")]
    pub system: bool,

    /// Trace the children of traced processes as well, whatever they execute
    #[arg(short, long, help_heading = "Target")]
    pub follow: bool,

    /// Run the command as this user, instead of with memleak's own rights
    #[arg(long, value_name = "NAME", help_heading = "Target")]
    pub user: Option<String>,

    /// Probe the allocator functions of this object instead of those that the target maps
    #[arg(short = 'O', long, value_name = "OBJECT", help_heading = "Target")]
    pub obj: Option<PathBuf>,

    /// Prefix of the allocator functions' names, such as je_
    #[arg(
        short = 'S',
        long,
        value_name = "PREFIX",
        default_value = "",
        hide_default_value = true,
        help_heading = "Target"
    )]
    pub symbols_prefix: String,

    /// Count what a function of the program's own allocates as well, such as 'pool_alloc:size=2': by the number of an
    /// argument, size=1*2, or size=const:64; out=1 if the block is stored where the first points; OBJECT!FUNCTION:…
    /// for an object's own
    #[arg(long, value_name = "SPEC", help_heading = "Target")]
    pub alloc: Vec<String>,

    /// The same for a function that resizes, such as 'pool_realloc:ptr=1,size=2'
    #[arg(long, value_name = "SPEC", help_heading = "Target")]
    pub realloc: Vec<String>,

    /// The same for a function that frees, such as 'pool_free:ptr=1'
    #[arg(long, value_name = "SPEC", help_heading = "Target")]
    pub free: Vec<String>,

    /// Where in a function its probe goes: where it costs least, or at the function's first instruction
    #[arg(
        long,
        value_enum,
        value_name = "PLACE",
        default_value = "auto",
        help_heading = "Target"
    )]
    pub probe_at: SiteChoice,

    /// How stacks are unwound: with the tables that programs carry, by frame pointers, or as the kernel allows
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        default_value = "auto",
        help_heading = "Stacks"
    )]
    pub unwind: UnwindChoice,

    /// Leave out inlined functions, which makes naming stacks cheaper
    #[arg(long, help_heading = "Stacks")]
    pub no_inlines: bool,

    /// Leave out an interpreter's own native frames where the frames that it runs are shown
    #[arg(long, help_heading = "Stacks")]
    pub hide_interpreter: bool,

    /// Where names come from.
    #[command(flatten)]
    pub naming: NamingArguments,

    /// Trace per-CPU allocations as well (kernel)
    #[arg(short = 'P', long, help_heading = "Target")]
    pub percpu: bool,

    /// Show pages that hold files' contents or are mapped into processes as well (kernel)
    #[arg(long, help_heading = "Target")]
    pub user_pages: bool,

    /// Only objects of the slab caches that match; kmalloc's all go by the name kmalloc (kernel)
    #[arg(long, value_name = "GLOB", help_heading = "Report")]
    pub cache: Option<String>,

    /// Only stacks that pass through a function that matches
    #[arg(long, value_name = "GLOB", help_heading = "Report")]
    pub function: Option<String>,

    /// Only stacks that pass through this shared object or kernel module; may be a glob
    #[arg(long, value_name = "NAME", help_heading = "Report")]
    pub module: Option<String>,

    /// Show at most this many stacks
    #[arg(
        short = 'T',
        long,
        value_name = "N",
        default_value_t = 10,
        help_heading = "Report"
    )]
    pub top: u64,

    /// Show at most this many processes, where several are traced
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Report")]
    pub top_processes: u64,

    /// Leave out allocations younger than this many milliseconds, or than 2s, while the target lives
    #[arg(
        short,
        long,
        value_name = "MS",
        default_value = "500",
        value_parser = values::milliseconds,
        help_heading = "Report"
    )]
    pub older: u64,

    /// What ranks the stacks
    #[arg(
        long,
        value_enum,
        value_name = "KEY",
        default_value = "size",
        help_heading = "Report"
    )]
    pub sort: SortKey,

    /// List the address, size, thread and age of each block as well
    #[arg(short = 'a', long, help_heading = "Report")]
    pub show_allocs: bool,

    /// Only totals per stack: cheaper to read, but without ages and addresses
    #[arg(short = 'C', long, help_heading = "Report")]
    pub combined_only: bool,

    /// Count only what this thread allocated; may be repeated
    #[arg(long, value_name = "TID", help_heading = "Report")]
    pub tid: Vec<u32>,

    /// Print each allocator call as it happens
    #[arg(short, long, help_heading = "Report")]
    pub trace: bool,

    /// Record roughly one in N allocations, and scale the figures back to estimates
    #[arg(
        short,
        long,
        value_name = "N",
        conflicts_with = "sample_bytes",
        help_heading = "What is recorded"
    )]
    pub sample_rate: Option<u32>,

    /// Record roughly one allocation per N bytes, large ones more likely, and scale back to estimates
    #[arg(long, value_name = "N", value_parser = values::small_size, help_heading = "What is recorded")]
    pub sample_bytes: Option<u32>,

    /// Only allocations of at least this many bytes, or 4K
    #[arg(
        short = 'z',
        long,
        value_name = "BYTES",
        value_parser = values::size,
        help_heading = "What is recorded"
    )]
    pub min_size: Option<u64>,

    /// Only allocations of at most this many bytes
    #[arg(
        short = 'Z',
        long,
        value_name = "BYTES",
        value_parser = values::size,
        help_heading = "What is recorded"
    )]
    pub max_size: Option<u64>,

    /// Leave out anonymous mappings that the program makes itself
    #[arg(long, help_heading = "What is recorded")]
    pub no_mmap: bool,

    /// Accepted for BCC's sake: a block whose free was missed is always replaced, and counted
    #[arg(short = 'F', long, help_heading = "What is recorded")]
    pub wa_missing_free: bool,

    /// Live blocks to keep track of at the most
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1_000_000,
        help_heading = "Limits"
    )]
    pub max_allocs: u32,

    /// Distinct stacks to keep at the most
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10_240,
        help_heading = "Limits"
    )]
    pub stack_storage_size: u32,

    /// Frames to keep of each stack, 1 to 127
    #[arg(long, value_name = "N", default_value_t = 127, help_heading = "Limits")]
    pub perf_max_stack_depth: u32,

    /// Detach when tracing takes more than this percentage of the target's CPU time, for two intervals
    #[arg(long, value_name = "PCT", help_heading = "Limits")]
    pub max_overhead: Option<f64>,

    /// Tell blocks that nothing points to any more from those that are held: at the last report, on SIGUSR1, and when a
    /// command ends. The target stands for a moment
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "auto",
        help_heading = "Lost or held"
    )]
    pub lost: Option<LostChoice>,

    /// Tell that at each Nth report as well
    #[arg(
        long,
        value_name = "N",
        requires = "lost",
        help_heading = "Lost or held"
    )]
    pub lost_every: Option<u64>,

    /// The longest that the target may stand, in milliseconds, with --lost=auto
    #[arg(
        long,
        value_name = "MS",
        default_value = "200",
        value_parser = values::milliseconds,
        help_heading = "Lost or held"
    )]
    pub max_pause: u64,

    /// What to do with reports besides printing them.
    #[command(flatten)]
    pub live: LiveArguments,

    /// Say on stderr what is probed and how
    #[arg(short, long)]
    pub verbose: bool,
}

/// What memleak does other than trace.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Report on recordings and logs of earlier runs
    Report(Box<ReportArguments>),
    /// Look at all processes' memory, without probes; trace whichever grows, for a moment; and tell what leaks
    Watch(Box<WatchArguments>),
    /// Say what this machine offers and lacks for tracing, and, with -p, what tracing a process would be like
    Check(CheckArguments),
    /// Write the manual pages into a folder
    Man {
        /// Where to
        folder: PathBuf,
    },
    /// Print what completes memleak's options in a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Say what this machine offers and lacks for tracing, and, with -p, what tracing a process would be like
#[derive(Args, Clone, Debug)]
pub struct CheckArguments {
    /// Look at this process as well, by its id or its name; may be repeated
    #[arg(short, long, value_name = "PID")]
    pub pid: Vec<String>,

    /// Print the facts as JSON
    #[arg(long)]
    pub json: bool,
}

/// What `--probe-at` chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SiteChoice {
    /// the earliest instruction that the kernel emulates, if that is safe
    Auto,
    /// the first instruction
    Symbol,
}

/// What `--unwind` chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnwindChoice {
    /// tables where the kernel takes the unwinder, else frame pointers
    Auto,
    /// tables, or no tracing at all
    Dwarf,
    /// frame pointers only
    Fp,
}

/// What `--lost` chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LostChoice {
    /// stand for registers and stacks; once more for all of the memory, if something seems lost and it is quick
    Auto,
    /// stand for registers and stacks only
    Live,
    /// stand for all of the memory, however long that takes
    Stop,
}
