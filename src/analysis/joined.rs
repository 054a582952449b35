//! The windows in which one process was traced, joined into one history: what of a leak that takes hours shows in minutes.
//! Stacks are the same by their functions; recordings are given, and nothing here reads files.

use std::collections::BTreeMap;

use super::findings::Finding;
use super::growth::{self, Growth, Rate, Verdict};
use super::identity::{Precision, identity};
use crate::model::losses::Losses;
use crate::model::report::Entry;
use crate::model::run::Recording;

/// Stacks that are kept of a process: those that grow fastest, then those that hold most.
const MOST_STACKS: usize = 200;

/// What the windows of one process showed together.
#[derive(Clone, Debug, Default)]
pub struct Joined {
    windows: u32,
    traced_ns: u64,
    began_ns: Option<u64>,
    ended_ns: u64,
    losses: Losses,
    stacks: BTreeMap<String, Stack>,
}

#[derive(Clone, Debug)]
struct Stack {
    /// What was left of each window at its end, added up.
    entry: Entry,
    /// Windows in which it grew.
    grew_in: u32,
    grew_last: bool,
    /// Bytes that it grew by in those, and the ends of what that may have been.
    grown: [f64; 3],
    points: usize,
    p_value: f64,
}

impl Joined {
    /// Adds a window that began at a time, on any clock that goes on. Says whether anything grew in it.
    pub fn add(&mut self, recording: &Recording, began_ns: u64) -> bool {
        let snapshots = growth::judged_snapshots(recording);
        let Some((report, last)) = snapshots
            .len()
            .checked_sub(1)
            .and_then(|at| Some((recording.report(at)?, snapshots.get(at)?)))
        else {
            return false;
        };
        self.windows += 1;
        self.traced_ns += last.elapsed_ns;
        self.began_ns.get_or_insert(began_ns);
        self.ended_ns = began_ns.saturating_add(last.elapsed_ns);
        self.losses = report.losses;
        self.stacks
            .values_mut()
            .for_each(|stack| stack.grew_last = false);
        for entry in report.entries {
            self.take(entry);
        }
        let mut any = false;
        for verdict in growth::analyze(recording) {
            let record = recording.stacks.get(verdict.stack);
            let (Some(record), true) = (record, verdict.growth.is_growing()) else {
                continue;
            };
            let key = identity(record.class, record.frames.as_deref(), Precision::Function);
            if let Some(stack) = self.stacks.get_mut(&key) {
                stack.grew(&verdict.growth, last.elapsed_ns, self.windows);
                any = true;
            }
        }
        self.cut();
        any
    }

    /// Windows so far.
    pub fn windows(&self) -> u32 {
        self.windows
    }

    /// What was lost in the last one.
    pub fn losses(&self) -> Losses {
        self.losses
    }

    /// What the windows left behind, added up.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.stacks.values().map(|stack| &stack.entry)
    }

    /// The stacks that grew in at least half of the windows and in the last one, fastest first. Rates are over all the time
    /// that was traced.
    pub fn growing(&self) -> Vec<Finding> {
        let mut growing: Vec<Finding> = self
            .stacks
            .values()
            .filter(|stack| stack.grew_last && stack.grew_in * 2 >= self.windows)
            .map(|stack| self.finding(stack))
            .collect();
        growing.sort_by(|one, other| one.growth.by_severity(&other.growth));
        growing
    }

    fn finding(&self, stack: &Stack) -> Finding {
        let seconds = (self.traced_ns as f64 / 1e9).max(1e-9);
        let [bytes_per_s, low, high] = stack.grown.map(|bytes| bytes / seconds);
        Finding {
            entry: stack.entry.clone(),
            growth: Growth {
                verdict: Verdict::Growing,
                continuous: stack.grew_in == self.windows,
                rate: Some(Rate {
                    bytes_per_s,
                    low,
                    high,
                }),
                p_value: stack.p_value,
                points: stack.points,
                span_ns: self.ended_ns.saturating_sub(self.began_ns.unwrap_or(0)),
                first_bytes: 0,
                last_bytes: stack.entry.bytes,
            },
        }
    }

    fn take(&mut self, entry: Entry) {
        let key = identity(entry.class, entry.frames.as_deref(), Precision::Function);
        match self.stacks.get_mut(&key) {
            Some(stack) => {
                stack.entry.bytes = stack.entry.bytes.saturating_add(entry.bytes);
                stack.entry.count = stack.entry.count.saturating_add(entry.count);
            }
            None => {
                let stack = Stack {
                    entry,
                    grew_in: 0,
                    grew_last: false,
                    grown: [0.0; 3],
                    points: 0,
                    p_value: 1.0,
                };
                self.stacks.insert(key, stack);
            }
        }
    }

    fn cut(&mut self) {
        if self.stacks.len() <= MOST_STACKS {
            return;
        }
        let mut ranked: Vec<(u64, u64, String)> = self
            .stacks
            .iter()
            .map(|(key, stack)| (stack.grown[0] as u64, stack.entry.bytes, key.clone()))
            .collect();
        ranked.sort_unstable_by(|one, other| other.cmp(one));
        for (.., key) in ranked.drain(MOST_STACKS..) {
            self.stacks.remove(&key);
        }
    }
}

impl Stack {
    /// It grew in the window of this number, which took so long. Stacks with the same functions count once for it.
    fn grew(&mut self, growth: &Growth, window_ns: u64, window: u32) {
        let seconds = window_ns as f64 / 1e9;
        if let Some(rate) = growth.rate {
            let rates = [rate.bytes_per_s, rate.low.max(0.0), rate.high];
            for (sum, rate) in self.grown.iter_mut().zip(rates) {
                *sum += rate * seconds;
            }
        }
        if !self.grew_last {
            self.grew_in = (self.grew_in + 1).min(window);
            self.grew_last = true;
        }
        self.points += growth.points;
        self.p_value = growth.p_value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::{Frame, Function};
    use crate::model::run::{Figure, SnapshotRecord, StackRecord};
    use crate::model::snapshot::Class;

    /// A window of a minute with a report every 5 seconds, and what stacks hold at each.
    fn window(stacks: &[(&str, &dyn Fn(u64) -> u64)]) -> Recording {
        let mut recording = Recording::default();
        for (name, _) in stacks {
            let function = Some(Function {
                name: (*name).to_owned(),
                location: None,
            });
            recording.stacks.push(StackRecord {
                tgid: 7,
                class: Class::Heap,
                allocator: None,
                frames: Some(vec![Frame {
                    function,
                    ..Frame::default()
                }]),
            });
        }
        for at in 1..=12 {
            let figures = stacks.iter().zip(0..).map(|((_, bytes), stack)| Figure {
                stack,
                bytes: bytes(at),
                count: 1,
                oldest_ns: None,
            });
            recording.snapshots.push(SnapshotRecord {
                elapsed_ns: at * 5_000_000_000,
                figures: figures.collect(),
                complete: true,
                ..SnapshotRecord::default()
            });
        }
        recording
    }

    #[test]
    fn what_grows_in_every_window_grows_over_hours() {
        let leaks = |at: u64| at * 1000;
        let still = |_| 5000;
        let mut joined = Joined::default();
        for hour in 0..3_u64 {
            let began_ns = hour * 3_600_000_000_000;
            assert!(joined.add(&window(&[("leak", &leaks), ("still", &still)]), began_ns));
        }
        let growing = joined.growing();
        assert_eq!(growing.len(), 1, "{growing:#?}");
        let (entry, growth) = (&growing[0].entry, &growing[0].growth);
        assert_eq!((entry.bytes, entry.count), (3 * 12_000, 3));
        assert!(
            (growth.rate.unwrap().bytes_per_s - 200.0).abs() < 1.0,
            "{growth:?}"
        );
        assert!(growth.continuous);
        assert_eq!(growth.span_ns, 2 * 3_600_000_000_000 + 60_000_000_000);
        assert_eq!(
            joined.entries().map(|entry| entry.bytes).sum::<u64>(),
            3 * 17_000
        );
    }

    #[test]
    fn what_stopped_growing_is_no_finding() {
        let leaks = |at: u64| at * 1000;
        let still = |_| 5000;
        let mut joined = Joined::default();
        assert!(joined.add(&window(&[("cache", &leaks)]), 0));
        assert!(!joined.add(&window(&[("cache", &still)]), 3_600_000_000_000));
        assert!(joined.growing().is_empty());
    }

    #[test]
    fn a_window_without_reports_is_none() {
        let mut joined = Joined::default();
        assert!(!joined.add(&Recording::default(), 0));
        assert_eq!(joined.windows(), 0);
    }
}
