//! Whether a process's resident memory grows as a leak does, by a history of readings alone: no probe, no clock, no I/O.
//! The statistics live in `trend`; whom to trace, and when, is `watch`'s to say.

use std::collections::VecDeque;

use super::trend::{self, Point};

/// Points of each span of a history. With a reading every 5 seconds: 10 minutes, 2 hours and a day.
const KEPT: usize = 120;

/// Readings that one point of each span stands for.
const READINGS: [u32; 3] = [1, 12, 144];

/// Points without which nothing is judged: 3 minutes.
const ENOUGH: usize = 36;

/// The same where a limit is near.
const ENOUGH_IF_URGENT: usize = 12;

/// Parts that a span is cut into, each of which has to do its share.
const PARTS: usize = 6;

/// A part must rise by this share of what all parts do on average, and the last ones as well: a cache levels off.
const SHARE: f64 = 0.25;

/// No part may bring more than this of all growth: that would be a step.
const STEP: f64 = 0.6;

/// Growth of less than this part of what was there before is none.
const LEAST_PART: f64 = 0.02;

/// What a history has reached before, it may reach again with so much on top.
const BEFORE: f64 = 1.02;

/// Error that the trend test may make, one-sided; there are many processes.
const ALPHA: f64 = 0.001;

/// The same where a limit is near.
const ALPHA_IF_URGENT: f64 = 0.025;

/// The resident memory of one process over time, in three spans: fine and short, up to coarse and long.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    spans: [Span; 3],
}

/// Points at equal distances, each the least of what it stands for: a leak raises the floor, a tooth does not.
#[derive(Clone, Debug, Default)]
struct Span {
    points: VecDeque<Point>,
    /// The most of what each point stands for.
    tops: VecDeque<u64>,
    least: u64,
    most: u64,
    taken: u32,
}

/// What there is to suspect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suspicion {
    /// How fast it grows: the median slope.
    pub bytes_per_s: f64,
    /// Lower end of the slope's 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Since when it has been looked at that grows, in ns of the readings' clock.
    pub since_ns: u64,
    /// Bytes that came in that time.
    pub grown_bytes: u64,
    /// Seconds until a limit is met at that rate, if that is soon.
    pub limit_in_s: Option<f64>,
}

/// What counts as growth, and what as soon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sensitivity {
    /// Growth of fewer bytes is none.
    pub least_bytes: u64,
    /// A limit that is met within so many seconds makes a suspect sooner.
    pub soon_s: f64,
}

impl Readings {
    /// Adds a reading.
    pub fn push(&mut self, at_ns: u64, bytes: u64) {
        for (span, readings) in self.spans.iter_mut().zip(READINGS) {
            span.push(at_ns, bytes, readings);
        }
    }

    /// Judges the spans, the longest first. `headroom` is asked for what is left to the process only where it grows.
    pub fn judge(
        &self,
        sensitivity: Sensitivity,
        headroom: impl FnOnce() -> Option<u64>,
    ) -> Option<Suspicion> {
        let rising: Vec<(usize, Vec<Point>)> = self
            .spans
            .iter()
            .enumerate()
            .map(|(at, span)| (at, span.points.iter().copied().collect::<Vec<Point>>()))
            .filter(|(_, points)| may_rise(points))
            .collect();
        // for most processes, that is all
        if rising.is_empty() {
            return None;
        }
        let left = headroom();
        let judged = rising.iter().rev();
        let mut suspicions = judged.filter_map(|(at, points)| {
            let urgent = self.urgent(points, left, sensitivity);
            urgent.or_else(|| self.steady(*at, points, sensitivity))
        });
        suspicions.next()
    }

    /// A rise that brings a limit near.
    fn urgent(
        &self,
        points: &[Point],
        left: Option<u64>,
        sensitivity: Sensitivity,
    ) -> Option<Suspicion> {
        let left = left? as f64;
        // by the ends alone, so that the rest is worked out for few
        let roughly = left / slope_of_ends(points)?;
        if points.len() < ENOUGH_IF_URGENT || roughly > sensitivity.soon_s * 2.0 {
            return None;
        }
        let suspicion = rise(points, ALPHA_IF_URGENT, 0)?;
        let limit_in_s = left / suspicion.bytes_per_s;
        (limit_in_s < sensitivity.soon_s).then_some(Suspicion {
            limit_in_s: Some(limit_in_s),
            ..suspicion
        })
    }

    /// A rise that goes on, to where the process has not been before.
    fn steady(&self, span: usize, points: &[Point], sensitivity: Sensitivity) -> Option<Suspicion> {
        if points.len() < ENOUGH {
            return None;
        }
        let since = points.first()?.at_ns;
        let longer = self.spans[span + 1..].iter();
        let before = longer.map(|span| span.top_before(since)).max();
        let reached = before.unwrap_or(0) as f64 * BEFORE;
        match points.last()?.bytes as f64 > reached {
            true => rise(points, ALPHA, sensitivity.least_bytes),
            false => None,
        }
    }
}

impl Span {
    fn push(&mut self, at_ns: u64, bytes: u64, readings: u32) {
        self.least = match self.taken {
            0 => bytes,
            _ => self.least.min(bytes),
        };
        self.most = self.most.max(bytes);
        self.taken += 1;
        if self.taken < readings {
            return;
        }
        if self.points.len() == KEPT {
            self.points.pop_front();
            self.tops.pop_front();
        }
        let bytes = self.least;
        self.points.push_back(Point { at_ns, bytes });
        self.tops.push_back(self.most);
        (self.most, self.taken) = (0, 0);
    }

    /// The most that was reached before a time.
    fn top_before(&self, at_ns: u64) -> u64 {
        let tops = self.points.iter().zip(&self.tops);
        let before = tops.filter(|(point, _)| point.at_ns < at_ns);
        before.map(|(_, top)| *top).max().unwrap_or(0)
    }
}

/// A look at the ends: cheap enough for every process at every time.
fn may_rise(points: &[Point]) -> bool {
    match points {
        [first, .., last] if points.len() >= ENOUGH_IF_URGENT => last.bytes > first.bytes,
        _ => false,
    }
}

/// Bytes per second from the first point to the last.
fn slope_of_ends(points: &[Point]) -> Option<f64> {
    let (first, last) = (points.first()?, points.last()?);
    let seconds = last.at_ns.saturating_sub(first.at_ns) as f64 / 1e9;
    let grown = last.bytes.saturating_sub(first.bytes) as f64;
    (seconds > 0.0 && grown > 0.0).then_some(grown / seconds)
}

/// A rise in which every part of the time has its share.
fn rise(points: &[Point], alpha: f64, least_bytes: u64) -> Option<Suspicion> {
    let floors = floors(points);
    let (first, last) = (*floors.first()?, *floors.last()?);
    let grown = last.checked_sub(first)?;
    let least = least_bytes.max((first as f64 * LEAST_PART) as u64).max(1);
    if grown < least {
        return None;
    }
    let rises: Vec<f64> = floors
        .windows(2)
        .map(|pair| pair[1] as f64 - pair[0] as f64)
        .collect();
    let share = grown as f64 / rises.len() as f64 * SHARE;
    let does_its_share = |rise: &f64| *rise >= share;
    let most = rises.iter().copied().fold(0.0, f64::max);
    let idle = rises.iter().filter(|rise| !does_its_share(rise)).count();
    let goes_on = rises.iter().rev().take(2).all(does_its_share);
    let falls = rises.iter().any(|rise| *rise < -share);
    if idle > 1 || falls || !goes_on || most > grown as f64 * STEP {
        return None;
    }
    let test = trend::mann_kendall(points);
    let slope = trend::theil_sen(points, test.deviation)?;
    (test.rises(alpha) && slope.low > 0.0).then_some(Suspicion {
        bytes_per_s: slope.median,
        low: slope.low,
        high: slope.high,
        since_ns: points.first()?.at_ns,
        grown_bytes: points.last()?.bytes.saturating_sub(points.first()?.bytes),
        limit_in_s: None,
    })
}

/// The least of each part of the time.
fn floors(points: &[Point]) -> Vec<u64> {
    let bound = |part: usize| part * points.len() / PARTS;
    (0..PARTS)
        .filter_map(|part| {
            points[bound(part)..bound(part + 1)]
                .iter()
                .map(|point| point.bytes)
                .min()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1_048_576.0;
    const EVERY_S: u64 = 5;
    const SENSITIVITY: Sensitivity = Sensitivity {
        least_bytes: 1 << 20,
        soon_s: 3600.0,
    };

    /// Noise of about ±1, always the same.
    fn noise(at: u64) -> f64 {
        let mixed = (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        f64::from((mixed >> 40) as u32) / f64::from(1 << 23) - 1.0
    }

    /// Readings over some seconds, of MiB at a second.
    fn readings(seconds: u64, mib: impl Fn(f64) -> f64) -> Readings {
        let mut readings = Readings::default();
        for at in 0..seconds / EVERY_S {
            let bytes = (mib((at * EVERY_S) as f64) * MIB).max(0.0) as u64;
            readings.push(at * EVERY_S * 1_000_000_000, bytes);
        }
        readings
    }

    fn judge(seconds: u64, mib: impl Fn(f64) -> f64) -> Option<Suspicion> {
        readings(seconds, mib).judge(SENSITIVITY, || None)
    }

    #[test]
    fn a_leak_is_suspected_with_its_rate() {
        let found = judge(600, |s| 100.0 + 0.05 * s + 0.3 * noise(s as u64)).unwrap();
        assert!((found.bytes_per_s / MIB - 0.05).abs() < 0.005, "{found:?}");
        assert!(found.low > 0.0 && found.high > found.low);
        assert_eq!(found.limit_in_s, None);
    }

    #[test]
    fn a_slow_leak_is_suspected_by_its_day() {
        // 6 MiB an hour on top of 300
        let found = judge(20 * 3600, |s| 300.0 + s / 600.0 + 2.0 * noise(s as u64)).unwrap();
        assert!(
            (found.bytes_per_s * 600.0 / MIB - 1.0).abs() < 0.2,
            "{found:?}"
        );
    }

    #[test]
    fn what_stays_levels_off_or_falls_is_no_suspect() {
        let still = |s: f64| 200.0 + noise(s as u64);
        let cache = |s: f64| 50.0 + 400.0 * (1.0 - (-s / 150.0).exp()) + 0.2 * noise(s as u64);
        let start = |s: f64| (s * 5.0).min(300.0);
        let falls = |s: f64| 500.0 - s * 0.1;
        for seconds in [600, 1200, 7200] {
            assert_eq!(judge(seconds, still), None);
            assert_eq!(judge(seconds, cache), None);
            assert_eq!(judge(seconds, start), None);
            assert_eq!(judge(seconds, falls), None);
        }
    }

    #[test]
    fn a_step_is_no_suspect() {
        for at in [100.0, 300.0, 500.0, 560.0] {
            assert_eq!(
                judge(600, |s| if s < at { 100.0 } else { 180.0 }),
                None,
                "{at}"
            );
        }
    }

    #[test]
    fn teeth_are_no_suspect_once_they_were_seen() {
        let short = |s: f64| 100.0 + (s % 60.0);
        assert_eq!(judge(3600, short), None);
        let long = |s: f64| 100.0 + (s % 2400.0) * 0.1 + 0.3 * noise(s as u64);
        // in its third hour, whatever the moment
        for seconds in (7200..10_800).step_by(100) {
            assert_eq!(judge(seconds, long), None, "{seconds}");
        }
    }

    #[test]
    fn a_day_that_returns_is_no_suspect_on_the_next() {
        let daily =
            |s: f64| 400.0 - 150.0 * (s / 86_400.0 * std::f64::consts::TAU).cos() + noise(s as u64);
        for hour in 24..48 {
            assert_eq!(judge(hour * 3600, daily), None, "{hour}");
        }
    }

    #[test]
    fn a_near_limit_makes_a_suspect_sooner() {
        let readings = readings(90, |s| 100.0 + s * 0.5);
        assert_eq!(readings.judge(SENSITIVITY, || None), None);
        assert_eq!(readings.judge(SENSITIVITY, || Some(10_000 << 20)), None);
        let found = readings.judge(SENSITIVITY, || Some(100 << 20)).unwrap();
        let left = found.limit_in_s.unwrap();
        assert!((left - 200.0).abs() < 20.0, "{left}");
    }

    #[test]
    fn too_little_is_no_growth() {
        assert_eq!(judge(600, |s| 100.0 + s * 0.001), None);
        assert_eq!(judge(100, |s| 100.0 + s), None);
    }

    #[test]
    fn nobody_asks_for_limits_where_nothing_rises() {
        let readings = readings(600, |_| 100.0);
        let asked = readings.judge(SENSITIVITY, || panic!("nothing rises"));
        assert_eq!(asked, None);
    }
}
