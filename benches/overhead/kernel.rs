//! What kernel mode costs programs that make the kernel allocate: loops of system calls, in CPU time.
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

/// Microseconds of CPU time a turn, by loop and round.
type Results = [Vec<f64>; LOOPS.len()];

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
    print_goals(&tracers, &results, setup.first_peer().as_deref());
    Ok(())
}

fn measure(setup: &Setup, tracer: &Tracer, results: &mut Results) -> Result<()> {
    let mut target = setup.workloads.start_for_kernel()?;
    let mut attached = tracer.attach_to_system(NO_REPORTS)?;
    attached.settle()?;
    for (results, (command, _)) in results.iter_mut().zip(LOOPS) {
        results.push(target.ask(command)?);
    }
    attached.detach()?;
    Ok(())
}

fn print_costs(tracers: &[Tracer], results: &[Results]) {
    let mut columns = vec!["µs of CPU time a turn"];
    columns.extend(LOOPS.iter().map(|(_, name)| *name));
    let table = Table::begin("Kernel mode", &columns);
    for (tracer, own) in tracers.iter().zip(results) {
        let mut cells = vec![tracer.name().to_string()];
        cells.extend(own.iter().zip(&results[0]).map(|(own, untraced)| {
            let ratio = median(own)
                .zip(median(untraced))
                .map(|(own, base)| format!(" (× {})", number(own / base)));
            cell(median(own)) + &ratio.unwrap_or_default()
        }));
        table.row(&cells);
    }
    table.end(
        "A turn of a loop, its children included. In brackets: as a multiple of the untraced loop's time.",
    );
}

/// Added cost as a ratio to the first peer's, where there is one.
fn print_goals(tracers: &[Tracer], results: &[Results], peer: Option<&str>) {
    let find = |name: &str| {
        let index = tracers.iter().position(|tracer| tracer.name() == name)?;
        Some(&results[index])
    };
    let (Some(peer), Some(ours)) = (peer.and_then(find), find("memleak")) else {
        return;
    };
    let added =
        |own: &Results, index: usize| Some(median(&own[index])? - median(&results[0][index])?);
    let table = Table::begin(
        "Goals of kernel mode",
        &["added cost, to the first peer", "measured", "goal"],
    );
    for (index, (_, name)) in LOOPS.iter().enumerate() {
        let ratio = added(ours, index)
            .zip(added(peer, index))
            .map(|(ours, peer)| ours / peer);
        table.row(&[(*name).to_string(), cell(ratio), format!("≤ {GOAL}")]);
    }
    table.end("Ratios of medians of one run.");
}
