//! The command line of `memleak watch`. What is done with it is in `session::watch`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};

use crate::publish::{NamingArguments, ServingArguments};
use crate::values;

/// Look at all processes' memory, without probes; trace whichever grows, for a moment; and tell what leaks
#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("watched").multiple(false)))]
pub struct WatchArguments {
    /// Watch the processes whose name matches; may be repeated. Without a choice, all are watched
    #[arg(long, value_name = "GLOB", help_heading = "Target", group = "watched")]
    pub comm: Vec<String>,

    /// Watch the processes in this cgroup and below; may be repeated
    #[arg(long, value_name = "PATH", help_heading = "Target", group = "watched")]
    pub cgroup: Vec<PathBuf>,

    /// Watch the processes of this container, by its id or the beginning of it; may be repeated
    #[arg(long, value_name = "ID", help_heading = "Target", group = "watched")]
    pub container: Vec<String>,

    /// Time between two looks at their memory
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::duration, help_heading = "Suspicion")]
    pub every: Duration,

    /// Growth of fewer bytes is none
    #[arg(long, value_name = "BYTES", default_value = "8M", value_parser = values::size, help_heading = "Suspicion")]
    pub least_growth: u64,

    /// A process that would meet its memory limit within this time is suspected sooner
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = values::duration, help_heading = "Suspicion")]
    pub limit_within: Duration,

    /// How long a suspect is traced
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = values::duration, help_heading = "Tracing")]
    pub window: Duration,

    /// Of the whole machine's CPU time, tracing may take this percentage; above it, it ends early
    #[arg(
        long,
        value_name = "PCT",
        default_value_t = 2.0,
        help_heading = "Tracing"
    )]
    pub max_overhead: f64,

    /// Where names come from.
    #[command(flatten)]
    pub naming: NamingArguments,

    /// Pass over functions and modules that match when a stack's culprit is named; may be repeated
    #[arg(long, value_name = "GLOB", help_heading = "Stacks")]
    pub blame_skip: Vec<String>,

    /// Keep a recording of each time a suspect was traced in this folder, for memleak report
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub record: Option<PathBuf>,

    /// Bytes of recordings to keep at the most; the oldest go first
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = values::size, requires = "record", help_heading = "Output")]
    pub record_size: u64,

    /// How long recordings are kept at the most
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = values::duration, requires = "record", help_heading = "Output")]
    pub record_age: Duration,

    /// Run this command, by /bin/sh, for each finding, which it gets as JSON on its standard input
    #[arg(long, value_name = "COMMAND", help_heading = "Output")]
    pub on_finding: Option<String>,

    /// Where findings can be seen.
    #[command(flatten)]
    pub serving: ServingArguments,

    /// Say on stderr who is traced, and why nothing was found
    #[arg(short, long)]
    pub verbose: bool,
}
