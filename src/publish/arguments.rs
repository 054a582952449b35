//! The options for names, outputs, comparison and gates, which live runs and `memleak report` share.
//! What they do is decided elsewhere.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::analysis::gate::Gate;
use crate::analysis::identity::Precision;
use crate::values;

/// Options for where names come from.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct NamingArguments {
    /// Look for debug information in this folder as well, by build id or debug link; may be repeated
    #[arg(long = "debug-dir", value_name = "DIR", help_heading = "Stacks")]
    pub debug_dirs: Vec<PathBuf>,

    /// Ask this debuginfod server for debug information that is nowhere else, besides those in DEBUGINFOD_URLS; may be
    /// repeated
    #[arg(long, value_name = "URL", help_heading = "Stacks")]
    pub debuginfod: Vec<String>,
}

/// Options for the HTTP endpoints of a run that goes on.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct ServingArguments {
    /// Serve reports, a live page, metrics and profiles over HTTP at this port, of this machine alone unless an address is
    /// given
    #[arg(long, value_name = "[ADDR:]PORT", value_parser = values::listen, help_heading = "Output")]
    pub listen: Option<SocketAddr>,

    /// A name by which clients may ask there, beside addresses, localhost and this machine's name; may be repeated
    #[arg(
        long,
        value_name = "NAME",
        requires = "listen",
        help_heading = "Output"
    )]
    pub allow_host: Vec<String>,

    /// Name this many functions of each process that grow in the metrics
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        requires = "listen",
        help_heading = "Output"
    )]
    pub metrics_functions: usize,
}

/// What `--format` chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// workflow commands of GitHub Actions
    Github,
}

/// Options for outputs, comparison and gates.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct OutputArguments {
    /// Write an HTML page with charts, table and flame graph; - is the standard output, as for the others
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub html: Option<PathBuf>,

    /// Write the last report as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,

    /// Write the last report's stacks folded, root first, with their bytes
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub folded: Option<PathBuf>,

    /// Write a flame graph of the last report as SVG
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub flamegraph: Option<PathBuf>,

    /// Write the last report as a profile for pprof
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub pprof: Option<PathBuf>,

    /// Write what grows and what is left as SARIF 2.1.0
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub sarif: Option<PathBuf>,

    /// Write the gates as tests in JUnit's XML
    #[arg(
        long,
        value_name = "FILE",
        requires = "fail_on",
        help_heading = "Gates"
    )]
    pub junit: Option<PathBuf>,

    /// Print annotations for GitHub Actions at the end, and add to the job's summary
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Output")]
    pub format: Option<Format>,

    /// Pass over functions and modules that match when a stack's culprit is named; may be repeated
    #[arg(long, value_name = "GLOB", help_heading = "Stacks")]
    pub blame_skip: Vec<String>,

    /// Show only what is new or grew since this recording or log
    #[arg(long, value_name = "FILE", help_heading = "Comparison")]
    pub baseline: Option<PathBuf>,

    /// Show only what came after the last mark; SIGUSR2 sets one in a live run
    #[arg(long, conflicts_with = "baseline", help_heading = "Comparison")]
    pub since_mark: bool,

    /// Tell stacks of the baseline apart by source lines as well, not only by functions
    #[arg(long, requires = "baseline", help_heading = "Comparison")]
    pub by_line: bool,

    /// Leave out stacks that this file names, one leak:PATTERN a line, as LeakSanitizer has them
    #[arg(long, value_name = "FILE", help_heading = "Comparison")]
    pub suppressions: Option<PathBuf>,

    /// What runtimes keep to the end of every program does not count as a leak, where lost can't be told from held: on,
    /// off, or list it and leave
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        default_value = "on",
        help_heading = "Gates"
    )]
    pub builtin_suppressions: BuiltIn,

    /// Fail on growth, leak, lost, lost=SIZE, bytes=SIZE or count=N; may be repeated. lost asks for --lost
    #[arg(
        long,
        value_name = "GATE",
        value_delimiter = ',',
        help_heading = "Gates"
    )]
    pub fail_on: Vec<Gate>,

    /// Exit with this status when a gate fails
    #[arg(
        long,
        value_name = "N",
        default_value_t = 23,
        value_parser = clap::value_parser!(u8).range(1..),
        requires = "fail_on",
        help_heading = "Gates"
    )]
    pub error_exitcode: u8,
}

/// What `--builtin-suppressions` chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BuiltIn {
    /// they apply
    #[default]
    On,
    /// they don't
    Off,
    /// print them
    List,
}

impl OutputArguments {
    /// Whether the built-in suppressions are to be listed, and nothing else done.
    pub fn lists_suppressions(&self) -> bool {
        self.builtin_suppressions == BuiltIn::List
    }

    /// The files that outputs go to.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [
            &self.html,
            &self.json,
            &self.folded,
            &self.flamegraph,
            &self.pprof,
            &self.sarif,
            &self.junit,
        ]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
    }

    /// How stacks are matched with the baseline's.
    pub fn precision(&self) -> Precision {
        if self.by_line {
            Precision::Line
        } else {
            Precision::Function
        }
    }
}
