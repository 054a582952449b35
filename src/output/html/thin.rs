//! Thinning: a long series becomes a few hundred points that keep every peak and every trough.
//! Works on positions and values alone; which series are worth keeping is decided in `payload`.

/// A division of the snapshots into runs; each run becomes one point, or two where it holds several snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Position after the last snapshot of each run, ascending.
    ends: Vec<usize>,
    /// Positions of snapshots that tell of the largest stacks only; ascending.
    partial: Vec<usize>,
}

impl Buckets {
    /// Divides `snapshots` so that at most `max_points` points (at least 4) remain. The first and the last snapshot
    /// keep a run of their own, so that a series begins and ends with its true values.
    pub fn new(snapshots: usize, max_points: usize) -> Buckets {
        if snapshots <= max_points.max(4) {
            return Buckets {
                ends: (1..=snapshots).collect(),
                partial: Vec::new(),
            };
        }
        let inner = snapshots - 2;
        let runs = (max_points.max(4) - 2) / 2;
        let mut ends = vec![1];
        ends.extend((1..=runs).map(|run| 1 + inner * run / runs));
        ends.push(snapshots);
        Buckets {
            ends,
            partial: Vec::new(),
        }
    }

    /// Says at which positions (ascending) a series that is not mentioned is unknown; elsewhere it holds nothing.
    pub fn with_partial(mut self, positions: impl IntoIterator<Item = usize>) -> Buckets {
        self.partial = positions.into_iter().collect();
        self
    }

    /// The most snapshots that any run holds; 0 when there are none.
    pub fn largest(&self) -> usize {
        self.runs()
            .map(|(begin, end)| end - begin)
            .max()
            .unwrap_or(0)
    }

    /// Points that every thinned series has.
    pub fn points(&self) -> usize {
        self.runs().map(|(begin, end)| (end - begin).min(2)).sum()
    }

    /// The places of the points on the time axis: of a run of several snapshots, its first and its last.
    pub fn times(&self, times: &[i64]) -> Vec<i64> {
        let mut thinned = Vec::with_capacity(self.points());
        for (begin, end) in self.runs() {
            thinned.extend(times.get(begin));
            if end - begin > 1 {
                thinned.extend(times.get(end - 1));
            }
        }
        thinned
    }

    /// Thins a whole series at once.
    pub fn thin(&self, values: &[Option<u64>]) -> Vec<Option<u64>> {
        let mut lane = Lane::new(self);
        for (position, value) in values.iter().enumerate() {
            lane.push(position, *value);
        }
        lane.finish()
    }

    fn runs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(self.ends.iter().copied())
    }
}

/// One series being thinned while the snapshots go by, without its values being held.
#[derive(Clone, Debug)]
pub struct Lane<'a> {
    buckets: &'a Buckets,
    /// The position that comes next.
    next: usize,
    bucket: usize,
    low: Option<(u64, usize)>,
    high: Option<(u64, usize)>,
    points: Vec<Option<u64>>,
}

impl<'a> Lane<'a> {
    /// Begins a series; positions that are skipped count as 0, or as unknown where the snapshot is partial.
    pub fn new(buckets: &'a Buckets) -> Lane<'a> {
        Lane {
            buckets,
            next: 0,
            bucket: 0,
            low: None,
            high: None,
            points: Vec::with_capacity(buckets.points()),
        }
    }

    /// Adds the value at `position`. A position that was passed already is ignored.
    pub fn push(&mut self, position: usize, value: Option<u64>) {
        if position < self.next {
            return;
        }
        while self.next < position {
            self.take(self.absent());
        }
        self.take(value);
    }

    /// The points: lowest and highest value of each run, in the order in which they occurred.
    pub fn finish(mut self) -> Vec<Option<u64>> {
        let end = self.buckets.ends.last().copied().unwrap_or(0);
        while self.next < end {
            self.take(self.absent());
        }
        self.points
    }

    fn absent(&self) -> Option<u64> {
        let partial = self.buckets.partial.binary_search(&self.next).is_ok();
        (!partial).then_some(0)
    }

    fn take(&mut self, value: Option<u64>) {
        let Some(&end) = self.buckets.ends.get(self.bucket) else {
            return;
        };
        let at = self.next;
        self.next += 1;
        if let Some(value) = value {
            if self.low.is_none_or(|(low, _)| value < low) {
                self.low = Some((value, at));
            }
            if self.high.is_none_or(|(high, _)| value > high) {
                self.high = Some((value, at));
            }
        }
        if self.next == end {
            self.close();
        }
    }

    fn close(&mut self) {
        let begin = match self.bucket {
            0 => 0,
            bucket => self.buckets.ends[bucket - 1],
        };
        let (low, high) = (self.low.take(), self.high.take());
        let falls = matches!((low, high), (Some((_, low)), Some((_, high))) if high < low);
        let (first, second) = if falls { (high, low) } else { (low, high) };
        self.points.push(first.map(|(value, _)| value));
        if self.next - begin > 1 {
            self.points.push(second.map(|(value, _)| value));
        }
        self.bucket += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(values: &[u64]) -> Vec<Option<u64>> {
        values.iter().copied().map(Some).collect()
    }

    #[test]
    fn short_series_stay_as_they_are() {
        let buckets = Buckets::new(5, 8);
        assert_eq!(
            buckets.thin(&some(&[5, 4, 9, 1, 2])),
            some(&[5, 4, 9, 1, 2])
        );
        assert_eq!(buckets.times(&[10, 20, 30, 40, 50]), [10, 20, 30, 40, 50]);
        assert_eq!(buckets.largest(), 1);
    }

    #[test]
    fn no_snapshots_give_no_points() {
        let buckets = Buckets::new(0, 8);
        assert_eq!(buckets.thin(&[]), []);
        assert_eq!((buckets.points(), buckets.largest()), (0, 0));
    }

    #[test]
    fn peaks_troughs_and_both_ends_survive() {
        let mut values = vec![100; 5_000];
        values[0] = 7;
        values[1_234] = 1_000;
        values[1_235] = 1;
        values[4_999] = 55;
        let buckets = Buckets::new(values.len(), 400);
        let thinned = buckets.thin(&some(&values));
        assert!(thinned.len() <= 400, "{} points", thinned.len());
        assert_eq!(thinned.len(), buckets.points());
        assert_eq!(thinned.len(), buckets.times(&vec![0; 5_000]).len());
        assert_eq!(thinned.first(), Some(&Some(7)));
        assert_eq!(thinned.last(), Some(&Some(55)));
        let peak = thinned
            .iter()
            .position(|value| *value == Some(1_000))
            .expect("the peak");
        assert_eq!(thinned[peak + 1], Some(1), "in the order of occurrence");
    }

    #[test]
    fn every_length_gives_the_promised_number_of_points() {
        for snapshots in 0..300 {
            let buckets = Buckets::new(snapshots, 20);
            let thinned = buckets.thin(&vec![Some(1); snapshots]);
            assert_eq!(thinned.len(), buckets.points(), "{snapshots} snapshots");
            assert!(thinned.len() <= 20, "{snapshots} snapshots");
            assert!(thinned.iter().all(Option::is_some));
        }
    }

    #[test]
    fn skipped_positions_count_as_absent() {
        let buckets = Buckets::new(4, 8);
        let mut known = Lane::new(&buckets);
        known.push(1, Some(6));
        known.push(1, Some(9));
        assert_eq!(known.finish(), some(&[0, 6, 0, 0]));
        let buckets = buckets.with_partial([0, 1, 3]);
        let mut unknown = Lane::new(&buckets);
        unknown.push(2, Some(6));
        assert_eq!(unknown.finish(), [None, None, Some(6), None]);
    }
}
