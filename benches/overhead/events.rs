//! The cost of one allocation: pairs of malloc and free at several depths, in threads, on many stacks, among many
//! live blocks; realloc; a steady load.
//! Every round goes through all tracers once, so that what disturbs the machine disturbs all of them.

use crate::Setup;
use crate::floor::Floor;
use crate::table::{Table, cell, median, number};
use crate::tracer::Tracer;
use anyhow::Result;
use std::time::Duration;

/// Longer than a measurement lasts, so that no report falls into it.
const NO_REPORTS: u32 = 3600;

/// Command of the target, and the column's name.
const STAGES: [(&str, &str); 7] = [
    ("pairs 4", "depth 4"),
    ("pairs 20", "depth 20"),
    ("pairs 50", "depth 50"),
    ("threads 2", "2 threads"),
    ("growth", "realloc"),
    ("scattered 1000", "1,000 stacks"),
    ("among 200000 2000", "200,000 live"),
];

/// What was measured under one tracer, round by round.
struct Results {
    /// Nanoseconds per event, by stage.
    stages: [Vec<f64>; STAGES.len()],
    /// Slowdown in percent by 10,000 pairs a second.
    steady: Vec<f64>,
    /// Seconds from the start until the target feels it, until the tool rests, and from Ctrl-C to its end.
    felt: Vec<f64>,
    settled: Vec<f64>,
    left: Vec<f64>,
    failure: Option<String>,
}

impl Results {
    fn new() -> Self {
        Self {
            stages: [const { Vec::new() }; STAGES.len()],
            steady: Vec::new(),
            felt: Vec::new(),
            settled: Vec::new(),
            left: Vec::new(),
            failure: None,
        }
    }

    fn stage(&self, index: usize) -> Option<f64> {
        median(&self.stages[index])
    }

    /// Both conditions hold from the later time on.
    fn armed(&self) -> Option<f64> {
        Some(median(&self.felt)?.max(median(&self.settled)?))
    }

    fn left(&self) -> Option<f64> {
        median(&self.left)
    }

    fn start_and_end(&self) -> Option<f64> {
        Some(self.armed()? + self.left()?)
    }
}

/// Measures and prints.
pub fn run(setup: &Setup, floor: &Floor) -> Result<()> {
    let tracers = setup.tracers();
    let mut results: Vec<Results> = tracers.iter().map(|_| Results::new()).collect();
    for round in 1..=setup.rounds {
        for (tracer, results) in tracers.iter().zip(&mut results) {
            if results.failure.is_some() {
                continue;
            }
            eprintln!(
                "events, round {round} of {}: {}",
                setup.rounds,
                tracer.name()
            );
            if let Err(error) = measure(setup, floor, tracer, results) {
                eprintln!("  failed: {error:#}");
                results.failure = Some(format!("{error:#}"));
            }
        }
    }
    print_costs(&tracers, &results);
    print_steady(&tracers, &results);
    print_starts(&tracers, &results);
    print_goals(&tracers, &results, setup.first_peer().as_deref());
    Ok(())
}

fn measure(setup: &Setup, floor: &Floor, tracer: &Tracer, results: &mut Results) -> Result<()> {
    let mut target = setup.workloads.start()?;
    let mut attached = tracer.attach(floor, target.pid(), NO_REPORTS)?;
    if attached.tool().is_some() {
        target.tell("watch")?;
        let settled = attached.settle()?;
        target.answer()?;
        results
            .settled
            .extend(settled.map(|time| time.as_secs_f64()));
    }
    for (results, (command, _)) in results.stages.iter_mut().zip(STAGES) {
        results.push(target.ask(command)?);
    }
    results.steady.push(target.ask("steady")?);
    if let Some(left) = attached.detach()? {
        results.left.push(left.as_secs_f64());
        results.felt.push(felt(setup, floor, tracer)?.as_secs_f64());
    }
    Ok(())
}

/// Time from a tool's start until the target feels it, on a target that does nothing but watch.
fn felt(setup: &Setup, floor: &Floor, tracer: &Tracer) -> Result<Duration> {
    let mut target = setup.workloads.start()?;
    target.tell("watch")?;
    let attached = tracer.attach(floor, target.pid(), NO_REPORTS)?;
    target.answer()?;
    let felt = attached.begin().elapsed();
    attached.detach()?;
    Ok(felt)
}

fn print_costs(tracers: &[Tracer], results: &[Results]) {
    let mut columns = vec!["ns per event"];
    columns.extend(STAGES.iter().map(|(_, name)| *name));
    let table = Table::begin("Cost of an event", &columns);
    for (tracer, result) in tracers.iter().zip(results) {
        let mut cells = vec![tracer.name().to_string()];
        cells.extend((0..STAGES.len()).map(|stage| {
            let ratio = added(results, tracers, result, stage)
                .map_or_else(String::new, |ratio| format!(" (× {})", number(ratio)));
            cell(result.stage(stage)) + &ratio
        }));
        table.row(&cells);
    }
    table.end(
        "A pair of malloc and free, or one realloc of a growing block. 1,000 stacks: each pair on the next one, all of \
         16 frames. 200,000 live: at depth 4, with so many blocks of 2,000 stacks outstanding. In brackets: the \
         added cost as a multiple of the floor's.",
    );
    for (tracer, failure) in tracers
        .iter()
        .zip(results.iter().filter_map(|r| r.failure.as_ref()))
    {
        eprintln!("{}: {failure}", tracer.name());
    }
}

/// What tracing adds, as a multiple of what the floor adds; nothing for the untraced program.
fn added(results: &[Results], tracers: &[Tracer], result: &Results, stage: usize) -> Option<f64> {
    let [untraced, floor] = [0, 1].map(|index| results.get(index).and_then(|r| r.stage(stage)));
    let own = result.stage(stage)?;
    debug_assert!(matches!(tracers, [Tracer::Untraced, Tracer::Floor(_), ..]));
    (own != untraced?).then_some((own - untraced?) / (floor? - untraced?))
}

fn print_steady(tracers: &[Tracer], results: &[Results]) {
    let table = Table::begin("10,000 allocations a second", &["", "slowdown in percent"]);
    for (tracer, result) in tracers.iter().zip(results) {
        table.row(&[tracer.name().to_string(), cell(median(&result.steady))]);
    }
    table.end("A thread that works for 100 µs between one malloc and its free, against the same without the two.");
}

fn print_starts(tracers: &[Tracer], results: &[Results]) {
    let columns = ["milliseconds", "start to armed", "Ctrl-C to end", "both"];
    let table = Table::begin("Start and end", &columns);
    for (tracer, result) in tracers.iter().zip(results) {
        if matches!(tracer, Tracer::Command { .. }) {
            let times = [result.armed(), result.left(), result.start_and_end()];
            let mut cells = vec![tracer.name().to_string()];
            cells.extend(times.map(|seconds| cell(seconds.map(|seconds| seconds * 1000.0))));
            table.row(&cells);
        }
    }
    table.end(
        "Armed: malloc and free are slower for the target, and the tool uses less than 1% of a CPU.",
    );
}

/// The goals that are ratios to the first peer, where there is one.
fn print_goals(tracers: &[Tracer], results: &[Results], peer: Option<&str>) {
    let find = |name: &str| {
        let index = tracers.iter().position(|tracer| tracer.name() == name)?;
        Some(&results[index])
    };
    let (Some(peer), Some(ours), Some(filtered)) = (
        peer.and_then(find),
        find("memleak"),
        find("memleak -z 1000000"),
    ) else {
        return;
    };
    let untraced = results[0].stage(0);
    let over = |own: &Results, other: &Results| {
        Some((own.stage(0)? - untraced?) / (other.stage(0)? - untraced?))
    };
    let table = Table::begin("Goals of events", &["ratio", "measured", "goal"]);
    let rows = [
        (
            "added cost of a pair at depth 4, to the first peer",
            over(ours, peer),
            "≤ 0.26",
        ),
        ("the same, to the floor", over(ours, &results[1]), "≤ 1.4"),
        (
            "added cost with a filter that drops everything, to the first peer",
            over(filtered, peer),
            "≤ 0.16",
        ),
        (
            "start to armed and Ctrl-C to end, to the first peer",
            ours.start_and_end()
                .zip(peer.start_and_end())
                .map(|(a, b)| a / b),
            "≤ 0.2",
        ),
    ];
    for (name, ratio, goal) in rows {
        table.row(&[name.to_string(), cell(ratio), goal.to_string()]);
    }
    table.end("Ratios of medians of one run.");
}
