//! Whole programs, timed from their input to their end.

use crate::Setup;
use crate::floor::Floor;
use crate::program::Program;
use crate::table::{Table, cell, median, number};
use crate::tracer::Tracer;
use anyhow::Result;

/// Measures and prints.
pub fn run(setup: &Setup, floor: &Floor) -> Result<()> {
    let programs = Program::all()?;
    let tracers = setup.tracers();
    // times[tracer][program][round], in milliseconds
    let mut times = vec![vec![Vec::new(); programs.len()]; tracers.len()];
    for round in 1..=setup.rounds {
        for (program, index) in programs.iter().zip(0..) {
            for (tracer, times) in tracers.iter().zip(&mut times) {
                eprintln!(
                    "programs, round {round} of {}: {}, {}",
                    setup.rounds,
                    program.name,
                    tracer.name()
                );
                match measure(floor, tracer, program) {
                    Ok(time) => times[index].push(time),
                    Err(error) => eprintln!("  failed: {error:#}"),
                }
            }
        }
    }
    let mut columns = vec!["milliseconds"];
    columns.extend(programs.iter().map(|program| program.name));
    let table = Table::begin("Whole programs", &columns);
    let untraced: Vec<Option<f64>> = times[0].iter().map(|rounds| median(rounds)).collect();
    for (tracer, rounds) in tracers.iter().zip(&times) {
        let mut cells = vec![tracer.name().to_string()];
        cells.extend(rounds.iter().zip(&untraced).map(|(rounds, untraced)| {
            let own = median(rounds);
            let ratio = own
                .zip(*untraced)
                .map(|(own, base)| format!(" (× {})", number(own / base)));
            cell(own) + &ratio.unwrap_or_default()
        }));
        table.row(&cells);
    }
    table.end("In brackets: as a multiple of the untraced program's time.");
    Ok(())
}

fn measure(floor: &Floor, tracer: &Tracer, program: &Program) -> Result<f64> {
    let running = program.start()?;
    let mut attached = tracer.attach(floor, running.pid(), 3600)?;
    attached.settle()?;
    Ok(running.finish(program.input())?.as_secs_f64() * 1000.0)
}
