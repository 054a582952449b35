//! The cost of one report, and the memory behind it, as the number of live blocks grows.

use crate::Setup;
use crate::floor::Floor;
use crate::table::{Table, cell, median};
use crate::tracer::{Tool, Tracer};
use crate::usage;
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Live blocks, and the stacks that hold them.
const SIZES: [(u32, u32); 6] = [
    (1_000, 1_000),
    (10_000, 1_000),
    (10_000, 10_000),
    (100_000, 1_000),
    (100_000, 10_000),
    (1_000_000, 10_000),
];
/// Seconds between reports.
const INTERVAL: u32 = 2;
/// A tool that needs longer for its reports than that is given up.
const PATIENCE: Duration = Duration::from_secs(180);
/// A tool that rests for so long has finished what it was busy with.
const REST: Duration = Duration::from_millis(50);

struct Cost {
    /// Seconds of CPU time per report.
    cpu: f64,
    /// Seconds that a report takes.
    wall: f64,
    memory: usage::Memory,
}

impl Cost {
    /// All its memory, in bytes.
    fn total(&self) -> u64 {
        self.memory.resident + self.memory.maps
    }
}

/// One tool's costs, by size; nothing where it failed.
type Costs = [Option<Cost>; SIZES.len()];

/// Measures and prints.
pub fn run(setup: &Setup, floor: &Floor) -> Result<()> {
    let tools = setup.tools();
    let costs: Vec<Costs> = tools
        .iter()
        .map(|tool| SIZES.map(|size| measure_or_tell(setup, floor, tool, size)))
        .collect();
    print_costs(&tools, &costs);
    if let (Some(ours), Some(peer)) = (
        tools.iter().position(|tool| tool.name() == "memleak"),
        tools
            .iter()
            .position(|tool| Some(tool.name()) == setup.first_peer().as_deref()),
    ) {
        print_goals(&costs[ours], &costs[peer]);
    }
    Ok(())
}

fn print_costs(tools: &[Tracer], costs: &[Costs]) {
    let columns = [
        "",
        "live blocks",
        "stacks",
        "CPU ms per report",
        "ms per report",
        "resident MiB",
        "maps MiB",
        "bytes per block",
    ];
    let table = Table::begin("Reports and memory", &columns);
    for (tool, costs) in tools.iter().zip(costs) {
        let smallest = costs[0].as_ref().map(Cost::total);
        for ((blocks, stacks), cost) in SIZES.iter().zip(costs) {
            let show = |figure: &dyn Fn(&Cost) -> f64| cell(cost.as_ref().map(figure));
            let per_block = cost.as_ref().zip(smallest).map(|(cost, smallest)| {
                cost.total().saturating_sub(smallest) as f64 / f64::from(*blocks)
            });
            table.row(&[
                tool.name().to_string(),
                blocks.to_string(),
                stacks.to_string(),
                show(&|cost| cost.cpu * 1000.0),
                show(&|cost| cost.wall * 1000.0),
                show(&|cost| mebibytes(cost.memory.resident)),
                show(&|cost| mebibytes(cost.memory.maps)),
                cell(per_block.filter(|_| *blocks > SIZES[0].0)),
            ]);
        }
    }
    table.end(
        "CPU per report includes what the tool does between reports. Bytes per block: what is added to the \
         memory that it has with a thousand live blocks, stacks included.",
    );
}

fn print_goals(ours: &Costs, peer: &Costs) {
    let ratio = |size: usize, figure: &dyn Fn(&Cost) -> f64| {
        let (ours, peer) = (ours[size].as_ref()?, peer[size].as_ref()?);
        Some(figure(ours) / figure(peer))
    };
    let largest = SIZES.len() - 1;
    let table = Table::begin(
        "Goals of reports and memory",
        &["ratio to the first peer", "measured", "goal"],
    );
    let rows = [
        (
            "CPU of a report of 1,000,000 blocks in 10,000 stacks",
            ratio(largest, &|cost| cost.cpu),
            "≤ 0.1",
        ),
        (
            "maps and resident memory with 1,000 live blocks",
            ratio(0, &|cost| cost.total() as f64),
            "≤ 0.3",
        ),
    ];
    for (name, ratio, goal) in rows {
        table.row(&[name.to_string(), cell(ratio), goal.to_string()]);
    }
    table.end("Ratios of medians of one run.");
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn measure_or_tell(setup: &Setup, floor: &Floor, tool: &Tracer, size: (u32, u32)) -> Option<Cost> {
    eprintln!(
        "reports: {} with {} live blocks in {} stacks",
        tool.name(),
        size.0,
        size.1
    );
    match measure(setup, floor, tool, size) {
        Ok(cost) => Some(cost),
        Err(error) => {
            eprintln!("  failed: {error:#}");
            None
        }
    }
}

fn measure(
    setup: &Setup,
    floor: &Floor,
    tracer: &Tracer,
    (blocks, stacks): (u32, u32),
) -> Result<Cost> {
    let mut target = setup.workloads.start()?;
    target.tell("watch")?;
    let mut attached = tracer.attach(floor, target.pid(), INTERVAL)?;
    attached.settle()?;
    target.answer()?;
    target.ask(&format!("hold {blocks} {stacks}"))?;
    let Some(tool) = attached.tool() else {
        bail!("only tools report");
    };
    let (cpu, wall) = watch_reports(tool, setup.rounds)?;
    let memory = usage::memory(tool.pid())?;
    attached.detach()?;
    Ok(Cost { cpu, wall, memory })
}

/// CPU time and duration of one report, in seconds: medians over `count` reports. The first two are
/// left out: in them the tool may still be busy with what has just been allocated.
fn watch_reports(tool: &mut Tool, count: usize) -> Result<(f64, f64)> {
    tool.lines().for_each(drop); // what was reported while the blocks were allocated
    let begin = Instant::now();
    let mut headers: Vec<(Instant, Duration)> = Vec::new();
    let mut busy = Busy::new(tool.cpu_time()?);
    while headers.len() < count + 3 {
        std::thread::sleep(Duration::from_millis(2));
        let cpu = tool.cpu_time()?;
        busy.look(cpu);
        headers.extend(
            tool.lines()
                .filter(|(_, line)| is_header(line))
                .map(|(at, _)| (at, cpu)),
        );
        if begin.elapsed() > PATIENCE {
            bail!("{} reports within {PATIENCE:?}", headers.len());
        }
    }
    let counted = &headers[2..];
    let cpu: Vec<f64> = counted
        .windows(2)
        .map(|pair| pair[1].1.saturating_sub(pair[0].1).as_secs_f64())
        .collect();
    // The last report's end has not been seen.
    let wall: Vec<f64> = counted[..counted.len() - 1]
        .iter()
        .filter_map(|(at, _)| busy.around(*at))
        .collect();
    Ok((median(&cpu).unwrap_or(0.0), median(&wall).unwrap_or(0.0)))
}

/// `[11:16:33] Top 10 stacks with outstanding allocations:`
fn is_header(line: &str) -> bool {
    line.starts_with('[') && line.contains("] Top ")
}

/// When a process used CPU time: spans with rests between them.
struct Busy {
    cpu: Duration,
    spans: Vec<(Instant, Instant)>,
}

impl Busy {
    fn new(cpu: Duration) -> Self {
        Self {
            cpu,
            spans: Vec::new(),
        }
    }

    fn look(&mut self, cpu: Duration) {
        if cpu == self.cpu {
            return;
        }
        self.cpu = cpu;
        let now = Instant::now();
        match self.spans.last_mut() {
            Some((_, end)) if now.duration_since(*end) < REST => *end = now,
            _ => self.spans.push((now, now)),
        }
    }

    /// Seconds that the span around `at` lasts.
    fn around(&self, at: Instant) -> Option<f64> {
        let (begin, end) = self
            .spans
            .iter()
            .find(|(begin, end)| *begin <= at + REST && at <= *end + REST)?;
        Some(end.duration_since(*begin).as_secs_f64())
    }
}
