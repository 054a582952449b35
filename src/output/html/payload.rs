//! The page's data: a compact JSON of the stacks, their figures and their thinned series, for the scripts to read.
//! `assets/report.js` knows this shape; words and markup are made elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::io;

use serde::Serialize;

use super::Page;
use super::intern::{CallEntry, ModuleEntry, Tables};
use super::select::{Chosen, Selection, peaks, select};
use super::thin::{Buckets, Lane};
use crate::analysis::blame::Blame;
use crate::analysis::calls::calls;
use crate::analysis::growth::{Growth, Verdict};
use crate::analysis::identity::{self, Precision};
use crate::model::run::{Reason, Recording};
use crate::model::snapshot::WallTime;

/// Points of a line in the charts.
const CHART_POINTS: usize = 800;

/// Points of the little line in a row of the table.
const SPARK_POINTS: usize = 48;

/// The data, ready to be put into the page.
#[derive(Debug)]
pub struct Data {
    /// JSON that is safe inside a `<script>` element.
    pub json: String,
    /// Where the page's data has a stack of the recording.
    pub places: HashMap<usize, usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    /// The first snapshot, in ms since the epoch as its local clock showed it.
    start: i64,
    /// Milliseconds between the start of tracing and the first snapshot.
    before: i64,
    /// Whether the dates mean something.
    dated: bool,
    snapshots: usize,
    /// The most snapshots that a pair of points stands for.
    per_point: usize,
    /// Milliseconds since the first snapshot, for every point.
    times: Vec<i64>,
    /// When a baseline was marked, likewise.
    marks: Vec<i64>,
    total: Line,
    rss: Option<Vec<Option<u64>>>,
    series: Vec<Series>,
    strings: Vec<String>,
    modules: Vec<ModuleEntry>,
    calls: Vec<CallEntry>,
    stacks: Vec<StackData>,
    other: Other,
    /// Names of processes by id, where there can be several.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    processes: BTreeMap<u32, String>,
}

#[derive(Serialize)]
struct Line {
    bytes: Vec<Option<u64>>,
    count: Vec<Option<u64>>,
}

#[derive(Serialize)]
struct Series {
    stack: usize,
    #[serde(flatten)]
    line: Line,
}

#[derive(Serialize)]
struct StackData {
    /// The same in every run: what links name it by.
    id: String,
    calls: Option<Vec<usize>>,
    blame: usize,
    bytes: u64,
    count: u64,
    peak: u64,
    /// Age of the oldest block in ms.
    age: Option<u64>,
    pid: u32,
    class: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocator: Option<String>,
    growth: Option<GrowthData>,
    /// Bytes over time as parts of a hundred of the most.
    spark: Vec<Option<u64>>,
}

#[derive(Serialize)]
struct GrowthData {
    growing: bool,
    verdict: usize,
    continuous: bool,
    /// Bytes per second: the estimate and the ends of its interval.
    rate: Option<[f64; 3]>,
    points: usize,
}

#[derive(Default, Serialize)]
struct Other {
    stacks: usize,
    bytes: u64,
    count: u64,
}

/// Builds the data of a page. Fails only if JSON cannot express it, which no recording brings about.
pub fn json(page: &Page<'_>) -> io::Result<Data> {
    let peaks = peaks(page.recording);
    let selection = select(page, &peaks);
    let places = selection
        .stacks
        .iter()
        .enumerate()
        .map(|(at, chosen)| (chosen.stack, at))
        .collect();
    let payload = build(page, &selection, &peaks);
    let json = serde_json::to_string(&payload).map_err(io::Error::other)?;
    Ok(Data {
        json: defuse(&json),
        places,
    })
}

fn build(page: &Page<'_>, selection: &Selection<'_>, peaks: &[u64]) -> Payload {
    let recording = page.recording;
    let times = times(recording);
    let first = recording.snapshots.first();
    let buckets = buckets(recording, CHART_POINTS);
    let lines = lines(recording, selection, &buckets);
    let sparks = sparks(recording, selection, peaks);
    let growth: BTreeMap<usize, &Growth> = page
        .growth
        .iter()
        .map(|stack| (stack.stack, &stack.growth))
        .collect();
    let mut tables = Tables::default();
    let stacks = selection.stacks.iter().zip(sparks);
    let stacks = stacks
        .map(|(chosen, spark)| StackData {
            spark,
            peak: peaks.get(chosen.stack).copied().unwrap_or(0),
            growth: growth.get(&chosen.stack).map(|growth| growth_data(growth)),
            ..stack_data(chosen, page.blame, &mut tables)
        })
        .collect();
    Payload {
        start: first.map_or(0, |first| local_clock(first.time)),
        before: first.map_or(0, |first| milliseconds(first.elapsed_ns)),
        dated: recording.header.source.is_dated(),
        snapshots: times.len(),
        per_point: buckets.largest(),
        marks: marks(recording, &times),
        times: buckets.times(&times),
        total: lines.total,
        rss: rss(recording, &buckets),
        series: lines.series,
        strings: tables.strings,
        modules: tables.modules,
        calls: tables.calls,
        stacks,
        other: other(selection),
        processes: recording.processes.clone(),
    }
}

/// Milliseconds between the first snapshot and each, never going back.
fn times(recording: &Recording) -> Vec<i64> {
    let mut latest = 0;
    let first = recording
        .snapshots
        .first()
        .map_or(0, |first| first.elapsed_ns);
    let snapshots = recording.snapshots.iter();
    snapshots
        .map(|snapshot| {
            latest = latest.max(milliseconds(snapshot.elapsed_ns.saturating_sub(first)));
            latest
        })
        .collect()
}

fn milliseconds(nanoseconds: u64) -> i64 {
    i64::try_from(nanoseconds / 1_000_000).unwrap_or(i64::MAX)
}

/// Milliseconds since the epoch as the local clock of the recording showed them.
fn local_clock(time: WallTime) -> i64 {
    let offset = 1000 * i64::from(time.utc_offset_s);
    time.unix_ns.div_euclid(1_000_000).saturating_add(offset)
}

/// When baselines were marked, in ms since the first snapshot.
fn marks(recording: &Recording, times: &[i64]) -> Vec<i64> {
    let marked = recording.snapshots.iter().zip(times);
    marked
        .filter(|(snapshot, _)| snapshot.reason == Reason::Mark)
        .map(|(_, time)| *time)
        .collect()
}

struct Lines {
    total: Line,
    series: Vec<Series>,
}

/// The total and the top stacks over time.
fn lines(recording: &Recording, selection: &Selection<'_>, buckets: &Buckets) -> Lines {
    let mut total = [Lane::new(buckets), Lane::new(buckets)];
    let mut lanes = vec![total.clone(); selection.lines];
    let places: HashMap<usize, usize> = selection
        .stacks
        .iter()
        .take(selection.lines)
        .enumerate()
        .map(|(at, chosen)| (chosen.stack, at))
        .collect();
    for (position, snapshot) in recording.snapshots.iter().enumerate() {
        total[0].push(position, Some(snapshot.total_bytes()));
        total[1].push(position, Some(snapshot.total_count()));
        for figure in &snapshot.figures {
            if let Some(&at) = places.get(&(figure.stack as usize)) {
                lanes[at][0].push(position, Some(figure.bytes));
                lanes[at][1].push(position, Some(figure.count));
            }
        }
    }
    let series = lanes.into_iter().enumerate().map(|(stack, lanes)| Series {
        stack,
        line: line(lanes),
    });
    Lines {
        series: series.collect(),
        total: line(total),
    }
}

fn line([bytes, count]: [Lane<'_>; 2]) -> Line {
    Line {
        bytes: bytes.finish(),
        count: count.finish(),
    }
}

/// The division of the snapshots; those of logs tell of the largest stacks only.
fn buckets(recording: &Recording, points: usize) -> Buckets {
    let snapshots = recording.snapshots.iter().enumerate();
    let partial = snapshots.filter(|(_, snapshot)| !snapshot.complete);
    Buckets::new(recording.snapshots.len(), points)
        .with_partial(partial.map(|(position, _)| position))
}

/// The little lines of all stacks.
fn sparks(
    recording: &Recording,
    selection: &Selection<'_>,
    peaks: &[u64],
) -> Vec<Vec<Option<u64>>> {
    let buckets = buckets(recording, SPARK_POINTS);
    let mut places = vec![None; recording.stacks.len()];
    for (at, chosen) in selection.stacks.iter().enumerate() {
        places[chosen.stack] = Some(at);
    }
    let mut lanes = vec![Lane::new(&buckets); selection.stacks.len()];
    for (position, snapshot) in recording.snapshots.iter().enumerate() {
        for figure in &snapshot.figures {
            if let Some(Some(at)) = places.get(figure.stack as usize) {
                lanes[*at].push(position, Some(figure.bytes));
            }
        }
    }
    let lanes = lanes.into_iter().zip(&selection.stacks);
    lanes
        .map(|(lane, chosen)| percent(lane.finish(), peaks[chosen.stack]))
        .collect()
}

fn percent(values: Vec<Option<u64>>, most: u64) -> Vec<Option<u64>> {
    let share = |value: u64| (value as f64 / most.max(1) as f64 * 100.0).round() as u64;
    values.into_iter().map(|value| value.map(share)).collect()
}

fn rss(recording: &Recording, buckets: &Buckets) -> Option<Vec<Option<u64>>> {
    let values: Vec<_> = recording
        .snapshots
        .iter()
        .map(|snapshot| snapshot.rss_bytes)
        .collect();
    values
        .iter()
        .any(Option::is_some)
        .then(|| buckets.thin(&values))
}

fn stack_data(chosen: &Chosen<'_>, blame: &Blame, tables: &mut Tables) -> StackData {
    let frames = chosen.record.frames.as_deref().map(calls);
    let figure = chosen.last;
    let identity = identity::identity(
        chosen.record.class,
        chosen.record.frames.as_deref(),
        Precision::Function,
    );
    StackData {
        id: identity::short_id(&identity),
        blame: frames.as_deref().map_or(0, |calls| blame.position(calls)),
        calls: frames.map(|frames| frames.iter().map(|call| tables.call(call)).collect()),
        bytes: figure.map_or(0, |figure| figure.bytes),
        count: figure.map_or(0, |figure| figure.count),
        peak: 0,
        age: figure
            .and_then(|figure| figure.oldest_ns)
            .map(|age| age / 1_000_000),
        pid: chosen.record.tgid,
        class: chosen.record.class.name(),
        allocator: chosen.record.allocator.as_deref().map(str::to_owned),
        growth: None,
        spark: Vec::new(),
    }
}

fn growth_data(growth: &Growth) -> GrowthData {
    GrowthData {
        growing: growth.is_growing(),
        // The order of VERDICTS in assets/report.js.
        verdict: match growth.verdict {
            Verdict::Growing => 0,
            Verdict::Plateau => 1,
            Verdict::Sawtooth => 2,
            Verdict::Shrinking => 3,
            Verdict::TooShort => 4,
        },
        continuous: growth.continuous,
        rate: growth
            .rate
            .map(|rate| [rate.bytes_per_s, rate.low, rate.high]),
        points: growth.points,
    }
}

fn other(selection: &Selection<'_>) -> Other {
    let none = Other {
        stacks: selection.left_out.len(),
        ..Other::default()
    };
    selection.left_out.iter().fold(none, |sum, figure| Other {
        bytes: sum.bytes.saturating_add(figure.bytes),
        count: sum.count.saturating_add(figure.count),
        ..sum
    })
}

/// Whether a character could end the script element that holds the data, or a line of script.
pub fn is_active(character: char) -> bool {
    matches!(character, '<' | '>' | '&' | '\u{2028}' | '\u{2029}')
}

/// Spells active characters as JSON escapes. They occur inside of JSON strings only, so the value stays the same.
fn defuse(json: &str) -> String {
    let mut safe = String::with_capacity(json.len() + json.len() / 16);
    for character in json.chars() {
        if is_active(character) {
            safe.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            safe.push(character);
        }
    }
    safe
}
