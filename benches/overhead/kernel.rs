//! What kernel mode costs programs that make the kernel allocate: loops of system calls, in CPU time; and how soon it begins.
//! Every round goes through all tracers once, so that what disturbs the machine disturbs all of them.

use crate::Setup;
use crate::table::{Table, cell, median, number};
use crate::tracer::Tracer;
use anyhow::Result;

/// Longer than a measurement lasts, so that no report falls into it.
const NO_REPORTS: u32 = 3600;

/// Command of the target, and the column's name.
const LOOPS: [(&str, &str); 3] = [
    ("sockets", "socketpair, write, close"),
    ("files", "create, close, unlink"),
    ("processes", "spawn, wait"),
];

/// What added cost may be of the first peer's.
const GOAL: f64 = 0.55;

/// Seconds from the start until events are seen.
const START_GOAL: f64 = 0.2;

/// What was measured under one tracer, by round.
#[derive(Default)]
struct Results {
    /// Microseconds of CPU time a turn, by loop.
    turns: [Vec<f64>; LOOPS.len()],
    /// Seconds from its start until it rests.
    settled: Vec<f64>,
    /// Seconds from Ctrl-C until it has left.
    left: Vec<f64>,
}

/// Measures and prints.
pub fn run(setup: &Setup) -> Result<()> {
    let tracers = setup.kernel_tracers();
    let mut results: Vec<Results> = tracers.iter().map(|_| Results::default()).collect();
    for round in 1..=setup.rounds {
        for (tracer, results) in tracers.iter().zip(&mut results) {
            let name = tracer.name();
            eprintln!("kernel, round {round} of {}: {name}", setup.rounds);
            if let Err(error) = measure(setup, tracer, results) {
                eprintln!("  failed: {error:#}");
            }
        }
    }
    print_costs(&tracers, &results);
    print_starts(&tracers, &results);
    print_goals(&tracers, &results, setup.first_peer().as_deref());
    Ok(())
}

fn measure(setup: &Setup, tracer: &Tracer, results: &mut Results) -> Result<()> {
    let mut target = setup.workloads.start_for_kernel()?;
    let mut attached = tracer.attach_to_system(NO_REPORTS)?;
    let settled = attached.settle()?;
    results
        .settled
        .extend(settled.map(|time| time.as_secs_f64()));
    for (turns, (command, _)) in results.turns.iter_mut().zip(LOOPS) {
        turns.push(target.ask(command)?);
    }
    let left = attached.detach()?;
    results.left.extend(left.map(|time| time.as_secs_f64()));
    Ok(())
}

fn print_costs(tracers: &[Tracer], results: &[Results]) {
    let mut columns = vec!["µs of CPU time a turn"];
    columns.extend(LOOPS.iter().map(|(_, name)| *name));
    let table = Table::begin("Kernel mode", &columns);
    for (tracer, own) in tracers.iter().zip(results) {
        let mut cells = vec![tracer.name().to_string()];
        cells.extend(
            own.turns
                .iter()
                .zip(&results[0].turns)
                .map(|(own, untraced)| {
                    let ratio = median(own)
                        .zip(median(untraced))
                        .map(|(own, base)| format!(" (× {})", number(own / base)));
                    cell(median(own)) + &ratio.unwrap_or_default()
                }),
        );
        table.row(&cells);
    }
    table.end(
        "A turn of a loop, its children included. In brackets: as a multiple of the untraced loop's time.",
    );
}

fn print_starts(tracers: &[Tracer], results: &[Results]) {
    let columns = ["milliseconds", "start to armed", "Ctrl-C to end"];
    let table = Table::begin("Start and end of kernel mode", &columns);
    for (tracer, own) in tracers.iter().zip(results) {
        if matches!(tracer, Tracer::Command { .. }) {
            let milliseconds =
                |seconds: &[f64]| cell(median(seconds).map(|median| median * 1000.0));
            table.row(&[
                tracer.name().to_string(),
                milliseconds(&own.settled),
                milliseconds(&own.left),
            ]);
        }
    }
    table.end("Armed: the tool uses less than 1% of a CPU.");
}

/// What is aimed at: a start of so many seconds, and, where there is a peer, added costs as ratios to the first one's.
fn print_goals(tracers: &[Tracer], results: &[Results], peer: Option<&str>) {
    let find = |name: &str| {
        let index = tracers.iter().position(|tracer| tracer.name() == name)?;
        Some(&results[index])
    };
    let Some(ours) = find("memleak") else {
        return;
    };
    let added = |own: &Results, index: usize| {
        Some(median(&own.turns[index])? - median(&results[0].turns[index])?)
    };
    let table = Table::begin("Goals of kernel mode", &["", "measured", "goal"]);
    let peer = peer.and_then(find);
    for (index, (_, name)) in LOOPS.iter().enumerate().filter(|_| peer.is_some()) {
        let ratio = added(ours, index)
            .zip(peer.and_then(|peer| added(peer, index)))
            .map(|(ours, peer)| ours / peer);
        let name = format!("added cost to the first peer's: {name}");
        table.row(&[name, cell(ratio), format!("≤ {GOAL}")]);
    }
    table.row(&[
        "start to armed, in seconds".to_string(),
        cell(median(&ours.settled)),
        format!("≤ {START_GOAL}"),
    ]);
    table.end("Ratios of medians of one run.");
}
