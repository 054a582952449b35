//! What tracing costs a program, measured in one go and printed as Markdown: `make bench`, as root.
//! The order of the sections is here; how each is measured is in a file of its own.
//!
//! Environment: `MEMLEAK_PEER` names other tracers to compare with, separated by colons, that are
//! started as `PEER -p PID INTERVAL`, or `PEER INTERVAL` for the kernel; `BENCH_ROUNDS` (5) is how often each figure is measured;
//! `BENCH_ONLY` names the sections to run (`events`, `programs`, `reports`, `kernel`, `system`, `unwinder`), separated by commas.

mod events;
mod floor;
mod kernel;
mod machine;
mod program;
mod programs;
mod reports;
mod system;
mod table;
mod target;
mod tracer;
mod unwinder;
mod usage;

use anyhow::{Context as _, Result, ensure};
use floor::{At, Floor};
use std::path::PathBuf;
use std::process::ExitCode;
use tracer::Tracer;

/// How and with what the benchmark runs.
struct Setup {
    rounds: usize,
    only: Option<String>,
    peers: Vec<PathBuf>,
    workloads: target::Workloads,
}

impl Setup {
    fn read() -> Result<Self> {
        let rounds = match std::env::var("BENCH_ROUNDS") {
            Ok(rounds) => rounds.parse().context("failed to read BENCH_ROUNDS")?,
            Err(_) => 5,
        };
        ensure!(rounds > 0, "BENCH_ROUNDS has to be at least 1");
        let peers = std::env::var("MEMLEAK_PEER").unwrap_or_default();
        Ok(Self {
            rounds,
            only: std::env::var("BENCH_ONLY")
                .ok()
                .filter(|only| !only.is_empty()),
            peers: peers
                .split(':')
                .filter(|p| !p.is_empty())
                .map(PathBuf::from)
                .collect(),
            workloads: target::Workloads::build()?,
        })
    }

    fn runs(&self, section: &str) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| only.split(',').any(|name| name == section))
    }

    fn ours(&self, name: &str, options: &[&str]) -> Tracer {
        Tracer::command(name, env!("CARGO_BIN_EXE_memleak"), options)
    }

    fn peers(&self) -> impl Iterator<Item = Tracer> {
        self.peers.iter().map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let parent = path.parent().and_then(|parent| parent.file_name());
            let parent = parent.unwrap_or_default().to_string_lossy();
            Tracer::command(&format!("{parent}/{name}"), path, &[])
        })
    }

    /// The tool that the goals compare with.
    fn first_peer(&self) -> Option<String> {
        self.peers().next().map(|peer| peer.name().to_string())
    }

    /// Everything that the cost of an event is measured under.
    fn tracers(&self) -> Vec<Tracer> {
        let mut tracers = vec![
            Tracer::Untraced,
            Tracer::Floor(At::Sites),
            Tracer::Floor(At::Symbols),
            self.ours("memleak", &[]),
            self.ours("memleak -C", &["-C"]),
            self.ours("memleak -s 100", &["-s", "100"]),
            self.ours("memleak -z 1000000", &["-z", "1000000"]),
        ];
        tracers.extend(self.peers());
        tracers
    }

    /// Those that the kernel's allocators are traced by.
    fn kernel_tracers(&self) -> Vec<Tracer> {
        let mut tracers = vec![Tracer::Untraced];
        tracers.extend(self.tools());
        tracers
    }

    /// Those that report, and have memory of their own.
    fn tools(&self) -> Vec<Tracer> {
        let mut tools = vec![self.ours("memleak", &[]), self.ours("memleak -C", &["-C"])];
        tools.extend(self.peers());
        tools
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to run the benchmark: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let setup = Setup::read()?;
    let floor = Floor::load()?;
    println!("{}", machine::describe());
    if setup.runs("events") {
        events::run(&setup, &floor)?;
    }
    if setup.runs("programs") {
        programs::run(&setup, &floor)?;
    }
    if setup.runs("reports") {
        reports::run(&setup, &floor)?;
    }
    if setup.runs("unwinder") {
        unwinder::run(&setup, &floor)?;
    }
    if setup.runs("kernel") {
        kernel::run(&setup)?;
    }
    if setup.runs("system") {
        system::run(&setup)?;
    }
    Ok(())
}
