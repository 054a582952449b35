//! What tracing every process of the machine costs processes that come and go, and how much memory it takes while they do.
//! Every round goes through all tracers once, so that what disturbs the machine disturbs all of them.

use crate::Setup;
use crate::table::{Table, cell, median, number};
use crate::tracer::{Attached, Tracer};
use crate::usage::{self, Memory};
use anyhow::{Context as _, Result};
use std::time::{Duration, Instant};

/// Between reports, in seconds.
const INTERVAL: u32 = 5;

/// How long processes come and go for the measurement of memory.
const MINUTE: Duration = Duration::from_secs(60);

/// Measures and prints.
pub fn run(setup: &Setup) -> Result<()> {
    let tracers = [
        Tracer::Untraced,
        setup.ours("memleak --system", &["--system"]),
    ];
    let mut costs = [Vec::new(), Vec::new()];
    for round in 1..=setup.rounds {
        for (tracer, costs) in tracers.iter().zip(&mut costs) {
            eprintln!(
                "system, round {round} of {}: {}",
                setup.rounds,
                tracer.name()
            );
            let mut target = setup.workloads.start_for_kernel()?;
            let attached = attach(tracer)?;
            costs.push(target.ask("processes")?);
            attached.detach()?;
        }
    }
    print_costs(&tracers, &costs);
    eprintln!("system: a minute of processes");
    print_memory(&over_a_minute(setup, &tracers[1])?);
    Ok(())
}

fn attach(tracer: &Tracer) -> Result<Attached> {
    let mut attached = tracer.attach_to_system(INTERVAL)?;
    attached.announced()?;
    Ok(attached)
}

/// Memory after ten seconds of processes, by when the tables of what they map are loaded, and after a minute.
fn over_a_minute(setup: &Setup, tracer: &Tracer) -> Result<[Memory; 2]> {
    let mut target = setup.workloads.start_for_kernel()?;
    let mut attached = attach(tracer)?;
    let pid = attached.tool().context("no tool")?.pid();
    let begin = Instant::now();
    let mut run_until = |end: Duration| -> Result<Memory> {
        while begin.elapsed() < end {
            target.ask("processes")?;
        }
        usage::memory(pid)
    };
    let early = run_until(MINUTE / 6)?;
    let late = run_until(MINUTE)?;
    attached.detach()?;
    Ok([early, late])
}

fn print_costs(tracers: &[Tracer], costs: &[Vec<f64>]) {
    let table = Table::begin(
        "Short processes",
        &["µs of CPU time a process", "spawn, wait"],
    );
    for (tracer, own) in tracers.iter().zip(costs) {
        let ratio = median(own)
            .zip(median(&costs[0]))
            .map(|(own, base)| format!(" (× {})", number(own / base)));
        table.row(&[
            tracer.name().to_string(),
            cell(median(own)) + &ratio.unwrap_or_default(),
        ]);
    }
    table.end("One after the other, as fast as they end, with the parent's part. In brackets: as a multiple of untraced.");
}

fn print_memory(memory: &[Memory; 2]) {
    let table = Table::begin(
        "Memory while processes come and go",
        &["MiB", "resident", "BPF maps"],
    );
    for (name, memory) in ["after 10 seconds", "after a minute"].iter().zip(memory) {
        let mib = |bytes: u64| number(bytes as f64 / f64::from(1 << 20));
        table.row(&[(*name).to_string(), mib(memory.resident), mib(memory.maps)]);
    }
    table.end("Of memleak --system, which reports every five seconds.");
}
