//! Statistics of one series: the Theil–Sen slope, the Mann–Kendall test, thinning, and rises and falls.
//! Knows numbers only: what they mean for a stack is `growth`'s to say.

/// The most points that the quadratic statistics look at.
pub const MOST_POINTS: usize = 200;

/// Quantile of the normal distribution for a two-sided 95 % interval.
const Z95: f64 = 1.959_963_984_540_054;

/// One point of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// When, in ns since any fixed moment.
    pub at_ns: u64,
    /// How much.
    pub bytes: u64,
}

/// A slope in bytes per second with the ends of its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// The median of the slopes between all pairs of points.
    pub median: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Outcome of the Mann–Kendall test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MannKendall {
    /// Pairs that rise less pairs that fall.
    pub score: i64,
    /// Standard deviation of the score under "no trend", ties taken into account.
    pub deviation: f64,
    /// Probability of a score at least as far from 0 in either direction under "no trend".
    pub p_value: f64,
}

impl MannKendall {
    /// Whether the series rises, with an error of at most `alpha` (one-sided).
    pub fn rises(&self, alpha: f64) -> bool {
        self.score > 0 && self.p_value / 2.0 < alpha
    }

    /// Whether the series falls, with an error of at most `alpha` (one-sided).
    pub fn falls(&self, alpha: f64) -> bool {
        self.score < 0 && self.p_value / 2.0 < alpha
    }
}

/// At most [`MOST_POINTS`] points that stand for `points`: the median of each of equally long runs of neighbours.
///
/// Medians keep values that were really seen and a spike out; picking every n-th point would turn a sawtooth whose
/// period is close to n snapshots into a false trend.
pub fn thin(points: &[Point]) -> Vec<Point> {
    if points.len() <= MOST_POINTS {
        return points.to_vec();
    }
    let bound = |bucket: usize| bucket * points.len() / MOST_POINTS;
    (0..MOST_POINTS)
        .filter_map(|bucket| median_point(&points[bound(bucket)..bound(bucket + 1)]))
        .collect()
}

fn median_point(points: &[Point]) -> Option<Point> {
    let mut bytes: Vec<u64> = points.iter().map(|point| point.bytes).collect();
    bytes.sort_unstable();
    let middle = points.len() / 2;
    Some(Point {
        at_ns: points.get(middle)?.at_ns,
        bytes: *bytes.get(middle)?,
    })
}

/// The Mann–Kendall test with the tie correction of its variance and a continuity correction.
///
/// Source: M. G. Kendall, Rank Correlation Methods (1975); R. O. Gilbert, Statistical Methods for Environmental
/// Pollution Monitoring (1987), section 16.4.
pub fn mann_kendall(points: &[Point]) -> MannKendall {
    let score = score(points);
    let variance = variance(points);
    if variance <= 0.0 {
        return MannKendall {
            score,
            deviation: 0.0,
            p_value: 1.0,
        };
    }
    let deviation = variance.sqrt();
    let z = (score.abs() - 1).max(0) as f64 / deviation;
    MannKendall {
        score,
        deviation,
        p_value: libm::erfc(z / std::f64::consts::SQRT_2),
    }
}

fn score(points: &[Point]) -> i64 {
    let mut score = 0;
    for (at, earlier) in points.iter().enumerate() {
        for later in &points[at + 1..] {
            score += match later.bytes.cmp(&earlier.bytes) {
                std::cmp::Ordering::Greater => 1,
                std::cmp::Ordering::Equal => 0,
                std::cmp::Ordering::Less => -1,
            };
        }
    }
    score
}

fn variance(points: &[Point]) -> f64 {
    let term = |n: usize| {
        let n = n as f64;
        n * (n - 1.0) * (2.0 * n + 5.0)
    };
    let mut bytes: Vec<u64> = points.iter().map(|point| point.bytes).collect();
    bytes.sort_unstable();
    let ties: f64 = bytes
        .chunk_by(|a, b| a == b)
        .map(|group| term(group.len()))
        .sum();
    (term(points.len()) - ties) / 18.0
}

/// The Theil–Sen slope with Sen's interval; `None` when no two points differ in time.
///
/// Source: P. K. Sen, Estimates of the Regression Coefficient Based on Kendall's Tau, JASA 63 (1968).
pub fn theil_sen(points: &[Point], deviation: f64) -> Option<Slope> {
    let mut slopes = Vec::with_capacity(points.len() * points.len().saturating_sub(1) / 2);
    for (at, earlier) in points.iter().enumerate() {
        for later in &points[at + 1..] {
            let nanoseconds = later.at_ns as f64 - earlier.at_ns as f64;
            if nanoseconds != 0.0 {
                slopes.push((later.bytes as f64 - earlier.bytes as f64) * 1e9 / nanoseconds);
            }
        }
    }
    if slopes.is_empty() {
        return None;
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let last = slopes.len() - 1;
    let spread = Z95 * deviation;
    let rank = |from_start: f64| slopes[(from_start.max(0.0) as usize).min(last)];
    let middle = if slopes.len() % 2 == 1 {
        slopes[slopes.len() / 2]
    } else {
        (slopes[slopes.len() / 2 - 1] + slopes[slopes.len() / 2]) / 2.0
    };
    let pairs = slopes.len() as f64;
    // Sen's ranks count from 1: the interval reaches from the M1-th to the (M2 + 1)-th smallest slope.
    Some(Slope {
        median: middle,
        low: rank((pairs - spread) / 2.0 - 1.0),
        high: rank(((pairs + spread) / 2.0).ceil()),
    })
}

/// How often the series turned after a rise or fall of at least `least` bytes: (rises, falls).
pub fn swings(points: &[Point], least: u64) -> (usize, usize) {
    let Some(first) = points.first() else {
        return (0, 0);
    };
    let (mut low, mut high) = (first.bytes, first.bytes);
    let (mut rises, mut falls) = (0, 0);
    let mut rising = None;
    for point in points {
        low = low.min(point.bytes);
        high = high.max(point.bytes);
        if rising != Some(true) && point.bytes - low >= least {
            rises += 1;
            rising = Some(true);
            high = point.bytes;
        } else if rising != Some(false) && high - point.bytes >= least {
            falls += 1;
            rising = Some(false);
            low = point.bytes;
        }
    }
    (rises, falls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(bytes: &[u64]) -> Vec<Point> {
        bytes
            .iter()
            .enumerate()
            .map(|(at, &bytes)| Point {
                at_ns: at as u64 * 1_000_000_000,
                bytes,
            })
            .collect()
    }

    #[test]
    fn mann_kendall_counts_rises_less_falls() {
        // Of the six pairs five rise and one falls.
        let outcome = mann_kendall(&series(&[10, 15, 14, 20]));
        assert_eq!(outcome.score, 4);
        assert!((outcome.deviation - (4.0 * 3.0 * 13.0 / 18.0f64).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn ties_lower_the_variance_and_a_constant_series_proves_nothing() {
        let tied = mann_kendall(&series(&[1, 1, 2, 2, 3]));
        let expected = (5.0 * 4.0 * 15.0 - 2.0 * (2.0 * 1.0 * 9.0)) / 18.0f64;
        assert!((tied.deviation - expected.sqrt()).abs() < 1e-12);
        assert_eq!(mann_kendall(&series(&[7; 20])).p_value, 1.0);
    }

    #[test]
    fn p_of_five_rising_points_is_below_one_in_twenty() {
        let outcome = mann_kendall(&series(&[1, 2, 3, 4, 5]));
        assert_eq!(outcome.score, 10);
        assert!(outcome.rises(0.05) && outcome.p_value < 0.05, "{outcome:?}");
        assert!(!mann_kendall(&series(&[1, 2, 3])).rises(0.05));
    }

    #[test]
    fn theil_sen_ignores_an_outlier() {
        let mut bytes: Vec<u64> = (0..20).map(|at| 1000 + at * 10).collect();
        bytes[7] = 1_000_000;
        let points = series(&bytes);
        let slope = theil_sen(&points, mann_kendall(&points).deviation).unwrap();
        assert_eq!(slope.median, 10.0);
        assert!(
            slope.low <= 10.0 && slope.high >= 10.0 && slope.low > 0.0,
            "{slope:?}"
        );
    }

    #[test]
    fn points_at_one_moment_have_no_slope() {
        let points = [Point { at_ns: 5, bytes: 1 }, Point { at_ns: 5, bytes: 2 }];
        assert_eq!(theil_sen(&points, 1.0), None);
        assert_eq!(theil_sen(&[], 0.0), None);
    }

    #[test]
    fn thinning_is_bounded_ordered_and_leaves_short_series_alone() {
        let long = series(&(0..5003).collect::<Vec<u64>>());
        let thinned = thin(&long);
        assert_eq!(thinned.len(), MOST_POINTS);
        assert!(
            thinned
                .windows(2)
                .all(|pair| pair[0].at_ns < pair[1].at_ns && pair[0].bytes < pair[1].bytes)
        );
        assert_eq!(thin(&long[..100]), long[..100]);
    }

    #[test]
    fn swings_count_turns_of_at_least_the_threshold() {
        assert_eq!(swings(&series(&[0, 50, 100, 0, 50, 100, 0]), 50), (2, 2));
        assert_eq!(swings(&series(&[0, 10, 20, 30]), 20), (1, 0));
        assert_eq!(swings(&series(&[0, 10, 5, 12, 6, 13]), 20), (0, 0));
        assert_eq!(swings(&[], 1), (0, 0));
    }
}
