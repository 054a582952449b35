//! Which stacks grow, how fast, and when the memory is used up: verdicts over the snapshots' figures.
//! The statistics live in `trend`; nothing here formats or looks at symbols.

use std::cmp::Ordering;

use super::trend::{self, MannKendall, Point, Slope};
use crate::model::run::{Reason, Recording, SnapshotRecord};

/// With fewer points than this, no test can prove a trend: only a rise in every single one counts.
pub const ENOUGH_POINTS: usize = 5;

/// A trend over less time than this, in ns, may be a start that settles: it is told, but not as proven.
pub const ENOUGH_NS: u64 = 5_000_000_000;

/// Error that the trend tests may make, one-sided.
const ALPHA: f64 = 0.025;

/// A fall of this part of the whole range, or more, is a tooth and not noise.
const TOOTH: f64 = 0.4;

/// Stacks whose series are held in memory at a time; bounds the memory for long recordings with many stacks.
const STACKS_AT_ONCE: usize = 1024;

/// What a stack's outstanding bytes did over the snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// They rise, and still rose at the end: a leak, or a cache that has not filled yet.
    Growing,
    /// They stay where they are, or stopped rising.
    Plateau,
    /// They rise and fall back again and again.
    Sawtooth,
    /// They fall.
    Shrinking,
    /// Fewer than three snapshots, or too few to prove anything.
    TooShort,
}

impl Verdict {
    /// The name used in every output.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Growing => "growing",
            Verdict::Plateau => "plateau",
            Verdict::Sawtooth => "sawtooth",
            Verdict::Shrinking => "shrinking",
            Verdict::TooShort => "too short",
        }
    }
}

/// A slope with its uncertainty, in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Theil–Sen estimate: the median of the slopes between all pairs of snapshots.
    pub bytes_per_s: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end of its 95 % interval.
    pub high: f64,
}

/// What one stack's series shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// The judgement.
    pub verdict: Verdict,
    /// Whether bytes rose in every consecutive snapshot since the stack first appeared, three or more of them.
    pub continuous: bool,
    /// The trend; `None` when there are fewer than two points.
    pub rate: Option<Rate>,
    /// Two-sided p of the Mann–Kendall test against "no trend"; 1 when it could not be made.
    pub p_value: f64,
    /// Snapshots judged.
    pub points: usize,
    /// Nanoseconds between the first and the last of them.
    pub span_ns: u64,
    /// Bytes in the first of them.
    pub first_bytes: u64,
    /// Bytes in the last of them.
    pub last_bytes: u64,
}

impl Growth {
    /// Whether this is a stack to warn of.
    pub fn is_growing(&self) -> bool {
        self.verdict == Verdict::Growing
    }

    /// Whether growth rests on enough points and time to be called proven.
    pub fn is_proven(&self) -> bool {
        self.is_growing() && self.points >= ENOUGH_POINTS && self.span_ns >= ENOUGH_NS
    }

    /// The rate that is proven: the lower end of the interval, 0 where there is none.
    pub fn proven_bytes_per_s(&self) -> f64 {
        self.rate.map_or(0.0, |rate| rate.low.max(0.0))
    }

    /// Most severe first: growing ones before others, then by proven rate, by rate, by bytes.
    pub fn by_severity(&self, other: &Growth) -> Ordering {
        let rate = |growth: &Growth| growth.rate.map_or(0.0, |rate| rate.bytes_per_s);
        other
            .is_growing()
            .cmp(&self.is_growing())
            .then_with(|| {
                other
                    .proven_bytes_per_s()
                    .total_cmp(&self.proven_bytes_per_s())
            })
            .then_with(|| rate(other).total_cmp(&rate(self)))
            .then_with(|| other.last_bytes.cmp(&self.last_bytes))
    }
}

/// A verdict and the stack it is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StackGrowth {
    /// Index into the recording's stacks.
    pub stack: usize,
    /// What its series shows.
    pub growth: Growth,
}

/// Judges every stack of a recording that held anything; the most severe comes first.
pub fn analyze(recording: &Recording) -> Vec<StackGrowth> {
    let snapshots = judged_snapshots(recording);
    let mut verdicts = Vec::new();
    for first in (0..recording.stacks.len()).step_by(STACKS_AT_ONCE) {
        let stacks = first..recording.stacks.len().min(first + STACKS_AT_ONCE);
        for (stack, mut points) in stacks.clone().zip(series(snapshots, stacks)) {
            let end = end_ns(recording, stack);
            points.retain(|point| point.at_ns < end);
            if !points.is_empty() {
                verdicts.push(StackGrowth {
                    stack,
                    growth: judge(&points),
                });
            }
        }
    }
    verdicts.sort_by(|a, b| a.growth.by_severity(&b.growth).then(a.stack.cmp(&b.stack)));
    verdicts
}

/// The snapshots that growth is judged by: all but the one after the target's exit, whose figures obey other rules
/// (what was young counts, and what the target frees on its way out is gone).
pub fn judged_snapshots(recording: &Recording) -> &[SnapshotRecord] {
    match recording.snapshots.split_last() {
        Some((last, before)) if last.reason == Reason::Final => before,
        _ => &recording.snapshots,
    }
}

/// When a stack's process was first seen to have ended, in ns as snapshots count; its figures from then on obey other
/// rules, like those after the target's exit.
pub fn end_ns(recording: &Recording, stack: usize) -> u64 {
    let owner = recording.stacks.get(stack).map(|stack| stack.tgid);
    let ended = owner.and_then(|tgid| recording.ended.get(&tgid));
    ended.copied().unwrap_or(u64::MAX)
}

/// What the stacks of each group hold together, in the snapshots that tell of all of them, from the first that names one.
/// No stack is in two groups, and the stacks of a group are of one process.
pub fn sums(recording: &Recording, groups: &[Vec<usize>]) -> Vec<Vec<Point>> {
    let mut places = vec![None; recording.stacks.len()];
    for (at, stacks) in groups.iter().enumerate() {
        for &stack in stacks {
            places[stack] = Some(at);
        }
    }
    let end = |stacks: &Vec<usize>| stacks.first().map_or(0, |&stack| end_ns(recording, stack));
    let ends: Vec<u64> = groups.iter().map(end).collect();
    let mut all: Vec<Vec<Point>> = vec![Vec::new(); groups.len()];
    for snapshot in judged_snapshots(recording) {
        let mut sums = vec![(0u64, 0usize); groups.len()];
        for figure in &snapshot.figures {
            if let Some(Some(at)) = places.get(figure.stack as usize) {
                let (bytes, listed) = &mut sums[*at];
                *bytes = bytes.saturating_add(figure.bytes);
                *listed += 1;
            }
        }
        for (at, (bytes, listed)) in sums.into_iter().enumerate() {
            let tells = match snapshot.complete {
                true => listed > 0 || !all[at].is_empty(),
                false => listed == groups[at].len(),
            };
            if tells && snapshot.elapsed_ns < ends[at] {
                let at_ns = snapshot.elapsed_ns;
                all[at].push(Point { at_ns, bytes });
            }
        }
    }
    all
}

/// The series of some stacks, each from the first snapshot that names it. Where a complete snapshot leaves a stack
/// out it held nothing; where an incomplete one does, the series has no point.
fn series(snapshots: &[SnapshotRecord], stacks: std::ops::Range<usize>) -> Vec<Vec<Point>> {
    let mut all: Vec<Vec<Point>> = vec![Vec::new(); stacks.len()];
    for snapshot in snapshots {
        let at_ns = snapshot.elapsed_ns;
        let from = snapshot
            .figures
            .partition_point(|figure| (figure.stack as usize) < stacks.start);
        let mut figures = snapshot.figures[from..].iter().peekable();
        for (stack, points) in stacks.clone().zip(&mut all) {
            if let Some(figure) = figures.next_if(|figure| figure.stack as usize == stack) {
                points.push(Point {
                    at_ns,
                    bytes: figure.bytes,
                });
            } else if snapshot.complete && !points.is_empty() {
                points.push(Point { at_ns, bytes: 0 });
            }
        }
    }
    all
}

/// Judges one series, ordered by time.
pub fn judge(points: &[Point]) -> Growth {
    let thinned = trend::thin(points);
    let flat = points.windows(2).all(|pair| pair[0].bytes == pair[1].bytes);
    let test = if flat {
        flat_test()
    } else {
        trend::mann_kendall(&thinned)
    };
    let slope = if flat {
        flat_slope(points)
    } else {
        trend::theil_sen(&thinned, test.deviation)
    };
    let continuous =
        points.len() >= 3 && points.windows(2).all(|pair| pair[1].bytes > pair[0].bytes);
    let verdict = match points.len() {
        0..3 => Verdict::TooShort,
        _ if flat => Verdict::Plateau,
        3..ENOUGH_POINTS if continuous => Verdict::Growing,
        3..ENOUGH_POINTS => Verdict::TooShort,
        _ => classify(&thinned, &test, slope),
    };
    let rate = slope.map(|slope| Rate {
        bytes_per_s: slope.median,
        low: slope.low,
        high: slope.high,
    });
    Growth {
        verdict,
        continuous,
        rate,
        p_value: test.p_value,
        points: points.len(),
        span_ns: span_ns(points),
        first_bytes: points.first().map_or(0, |point| point.bytes),
        last_bytes: points.last().map_or(0, |point| point.bytes),
    }
}

fn span_ns(points: &[Point]) -> u64 {
    match (points.first(), points.last()) {
        (Some(first), Some(last)) => last.at_ns.saturating_sub(first.at_ns),
        _ => 0,
    }
}

fn flat_test() -> MannKendall {
    MannKendall {
        score: 0,
        deviation: 0.0,
        p_value: 1.0,
    }
}

fn flat_slope(points: &[Point]) -> Option<Slope> {
    (points.len() >= 2).then_some(Slope {
        median: 0.0,
        low: 0.0,
        high: 0.0,
    })
}

fn classify(points: &[Point], test: &MannKendall, slope: Option<Slope>) -> Verdict {
    let Some(slope) = slope else {
        return Verdict::TooShort;
    };
    if test.rises(ALPHA)
        && slope.median > 0.0
        && still_rises(points, slope)
        && outgrows_its_swings(points)
    {
        return Verdict::Growing;
    }
    if is_sawtooth(points) {
        return Verdict::Sawtooth;
    }
    if test.falls(ALPHA) && slope.median < 0.0 {
        return Verdict::Shrinking;
    }
    Verdict::Plateau
}

/// Whether the end still rises: a cache that has filled rises over the whole, but no more at its end.
/// The last two thirds must rise by themselves, which one that filled early does not. The last third must either
/// show a rise of its own that is not negligible beside the whole's, or be too noisy to rule the whole's slope out.
fn still_rises(points: &[Point], whole: Slope) -> bool {
    if points.len() >= 3 * ENOUGH_POINTS
        && !trend::mann_kendall(&points[points.len() / 3..]).rises(ALPHA)
    {
        return false;
    }
    let tail = &points[points.len() - (points.len() / 3).max(ENOUGH_POINTS).min(points.len())..];
    let test = trend::mann_kendall(tail);
    let Some(slope) = trend::theil_sen(tail, test.deviation) else {
        return false;
    };
    (test.rises(2.0 * ALPHA) && slope.median >= 0.1 * whole.median) || slope.high >= whole.median
}

/// Whether the rise is more than a phase of swings. Mann–Kendall alone takes a few teeth of a saw for a trend, as
/// neighbours in a tooth depend on each other: so the last third must lie above the first by a good part of the
/// range, and the smoothed series must have no big fall.
fn outgrows_its_swings(points: &[Point]) -> bool {
    let third = (points.len() / 3).max(1);
    let gain = median(&points[points.len() - third..]) - median(&points[..third]);
    let smooth = smoothed(points);
    let (low, high) = ends(&smooth, 0.0);
    let (_, falls) = trend::swings(&smooth, tooth(low, high));
    let (low, high) = ends(points, 0.05);
    falls == 0 && gain >= 0.25 * (high as f64 - low as f64)
}

/// Whether the series rises and falls by big parts of its range again and again.
fn is_sawtooth(points: &[Point]) -> bool {
    let (low, high) = ends(points, 0.0);
    let (rises, falls) = trend::swings(points, tooth(low, high));
    rises + falls >= 3 && (high - low) as f64 >= 0.2 * high as f64
}

fn tooth(low: u64, high: u64) -> u64 {
    (((high - low) as f64 * TOOTH) as u64).max(1)
}

fn median(points: &[Point]) -> f64 {
    let mut bytes: Vec<u64> = points.iter().map(|point| point.bytes).collect();
    bytes.sort_unstable();
    bytes
        .get(bytes.len() / 2)
        .map_or(0.0, |&bytes| bytes as f64)
}

/// The values below and above which a part of the points lies.
fn ends(points: &[Point], outside: f64) -> (u64, u64) {
    let mut bytes: Vec<u64> = points.iter().map(|point| point.bytes).collect();
    bytes.sort_unstable();
    let skipped = (bytes.len() as f64 * outside) as usize;
    let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
    (at(skipped), at(bytes.len().saturating_sub(1 + skipped)))
}

/// The medians of a dozen runs of neighbours, or the points themselves where there are few.
fn smoothed(points: &[Point]) -> Vec<Point> {
    const RUNS: usize = 12;
    if points.len() < 2 * RUNS {
        return points.to_vec();
    }
    let bound = |run: usize| run * points.len() / RUNS;
    (0..RUNS)
        .map(|run| &points[bound(run)..bound(run + 1)])
        .map(|run| Point {
            at_ns: run[run.len() / 2].at_ns,
            bytes: median(run) as u64,
        })
        .collect()
}

#[cfg(test)]
mod tests;
