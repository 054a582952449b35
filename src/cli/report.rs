//! The command line of `memleak report`. What is done with it is in `offline`.

use std::path::PathBuf;

use clap::Args;

use crate::publish::{NamingArguments, OutputArguments};

/// Report on recordings and logs of earlier runs
#[derive(Args, Clone, Debug)]
pub struct ReportArguments {
    /// Recordings, text output of memleak, or logs of memleak.py or libbpf-tools memleak; - is the standard
    /// input. Several are parts of one run, in this order
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Print the last report as text; this is what happens when no other output is asked for
    #[arg(long, help_heading = "Output")]
    pub text: bool,

    /// Show at most this many stacks in the text
    #[arg(
        short = 'T',
        long,
        value_name = "N",
        default_value_t = 10,
        help_heading = "Output"
    )]
    pub top: usize,

    /// Where names come from, for frames that have none yet.
    #[command(flatten)]
    pub naming: NamingArguments,

    /// Outputs, comparison and gates.
    #[command(flatten)]
    pub output: OutputArguments,
}
