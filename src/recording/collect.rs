//! Builds a recording from one full report after the other, giving every stack its number.
//! Reports arrive symbolized and stamped: nothing here reads a clock or a file.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::report::{Entry, Frame, Report};
use crate::model::run::{Figure, Header, Headroom, Reason, Recording, SnapshotRecord, StackRecord};
use crate::model::snapshot::{Class, Reach};

/// What a report does not tell about its moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moment {
    /// Nanoseconds since tracing began, by a clock that never steps.
    pub elapsed_ns: u64,
    /// Why the report was made.
    pub reason: Reason,
    /// The target's resident memory in bytes.
    pub rss_bytes: Option<u64>,
    /// What the target can still take before it meets its limit.
    pub headroom: Option<Headroom>,
}

/// What a stack holds at one moment, with all that is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The figures.
    pub figure: Figure,
    /// How much can't be reached, where that was looked at.
    pub reach: Option<Reach>,
}

/// A recording in the making.
#[derive(Debug, Default)]
pub struct Collector {
    recording: Recording,
    numbers: HashMap<Identity, u32>,
    most_snapshots: Option<usize>,
}

/// What makes a stack the same in two reports: its addresses. Its names do not, as a later report may know more of
/// them (a JIT's map is written late); where a log gives no addresses, names must do.
type Identity = (
    u32,
    Class,
    Option<Arc<str>>,
    Option<Vec<(u64, Option<Frame>)>>,
);

impl Collector {
    /// An empty recording.
    pub fn new(header: Header) -> Collector {
        let recording = Recording {
            header,
            ..Recording::default()
        };
        Collector {
            recording,
            numbers: HashMap::new(),
            most_snapshots: None,
        }
    }

    /// A recording to be continued.
    pub fn of(recording: Recording) -> Collector {
        let stacks = recording.stacks.iter().zip(0..);
        let numbers = stacks
            .map(|(stack, at)| {
                (
                    identity(
                        stack.tgid,
                        stack.class,
                        stack.allocator.as_ref(),
                        stack.frames.as_deref(),
                    ),
                    at,
                )
            })
            .collect();
        Collector {
            recording,
            numbers,
            most_snapshots: None,
        }
    }

    /// Keeps no more than about `most` snapshots (at least two), by dropping every other one when there are more:
    /// for runs without end. Stacks are all kept.
    pub fn with_most_snapshots(mut self, most: usize) -> Collector {
        self.most_snapshots = Some(most.max(2));
        self
    }

    /// Adds the figures of `report`, which must list every stack with outstanding memory.
    pub fn push(&mut self, report: &Report, moment: Moment) {
        for process in &report.processes {
            self.name_process(process.tgid, &process.name);
            match process.ended {
                true => self.end_process(process.tgid, moment.elapsed_ns),
                // another one may have got its id
                false => {
                    self.recording.ended.remove(&process.tgid);
                }
            }
        }
        let rows = self.rows(&report.entries);
        let reach: Option<Vec<Reach>> = rows.iter().map(|row| row.reach).collect();
        self.push_snapshot(SnapshotRecord {
            time: report.time,
            elapsed_ns: moment.elapsed_ns,
            reason: moment.reason,
            figures: rows.into_iter().map(|row| row.figure).collect(),
            complete: true,
            reach: reach.unwrap_or_default(),
            look: report.look.clone(),
            estimated: report.estimated,
            losses: report.losses,
            rss_bytes: moment.rss_bytes,
            headroom: moment.headroom,
        });
    }

    /// Says what a process is called.
    pub fn name_process(&mut self, tgid: u32, name: &str) {
        let known = self.recording.processes.get(&tgid);
        if known.is_none_or(|known| known != name) {
            self.recording.processes.insert(tgid, name.to_owned());
        }
    }

    /// Says that a process was seen to have ended, in ns as snapshots count; the first time is remembered.
    pub fn end_process(&mut self, tgid: u32, at_ns: u64) {
        self.recording.ended.entry(tgid).or_insert(at_ns);
    }

    /// Adds a snapshot whose stacks have their numbers already.
    pub fn push_snapshot(&mut self, snapshot: SnapshotRecord) {
        self.recording.snapshots.push(snapshot);
        if self
            .most_snapshots
            .is_some_and(|most| self.recording.snapshots.len() > most)
        {
            drop_every_other(&mut self.recording.snapshots);
        }
    }

    /// The figures of entries, by ascending number of their stacks; entries of one stack become one row.
    pub fn rows(&mut self, entries: &[Entry]) -> Vec<Row> {
        let mut rows: Vec<Row> = entries
            .iter()
            .map(|entry| Row {
                figure: Figure {
                    stack: self.number_of(entry),
                    bytes: entry.bytes,
                    count: entry.count,
                    oldest_ns: entry.oldest_ns,
                },
                reach: entry.reach,
            })
            .collect();
        rows.sort_by_key(|row| row.figure.stack);
        rows.dedup_by(|next, kept| next.figure.stack == kept.figure.stack && add(kept, next));
        rows
    }

    /// The number of a stack, which is added if it is new.
    pub fn number(&mut self, stack: StackRecord) -> u32 {
        let identity = identity(
            stack.tgid,
            stack.class,
            stack.allocator.as_ref(),
            stack.frames.as_deref(),
        );
        *self.numbers.entry(identity).or_insert_with(|| {
            self.recording.stacks.push(stack);
            self.recording.stacks.len() as u32 - 1
        })
    }

    fn number_of(&mut self, entry: &Entry) -> u32 {
        let identity = identity(
            entry.tgid,
            entry.class,
            entry.allocator.as_ref(),
            entry.frames.as_deref(),
        );
        *self.numbers.entry(identity).or_insert_with(|| {
            let frames = entry.frames.clone();
            self.recording.stacks.push(StackRecord {
                tgid: entry.tgid,
                class: entry.class,
                allocator: entry.allocator.clone(),
                frames,
            });
            self.recording.stacks.len() as u32 - 1
        })
    }

    /// Drops the snapshots collected so far but keeps the stacks and their numbers: for a run that only writes a file.
    pub fn forget_snapshots(&mut self) {
        self.recording.snapshots.clear();
    }

    /// What has been collected so far.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// The header, to be completed by what becomes known only later.
    pub fn header_mut(&mut self) -> &mut Header {
        &mut self.recording.header
    }

    /// The finished recording.
    pub fn finish(self) -> Recording {
        self.recording
    }
}

fn identity(
    tgid: u32,
    class: Class,
    allocator: Option<&Arc<str>>,
    frames: Option<&[Frame]>,
) -> Identity {
    let identity = |frame: &Frame| (frame.address, (frame.address == 0).then(|| frame.clone()));
    (
        tgid,
        class,
        allocator.cloned(),
        frames.map(|frames| frames.iter().map(identity).collect()),
    )
}

/// Adds `more` to `sum`; always true, so that it can end a condition.
fn add(sum: &mut Row, more: &Row) -> bool {
    let figure = &mut sum.figure;
    figure.bytes = figure.bytes.saturating_add(more.figure.bytes);
    figure.count = figure.count.saturating_add(more.figure.count);
    figure.oldest_ns = figure.oldest_ns.max(more.figure.oldest_ns);
    sum.reach = sum.reach.zip(more.reach).map(|(a, b)| a.plus(b));
    true
}

/// Drops every second snapshot but never the last, nor one that somebody asked for.
fn drop_every_other(snapshots: &mut Vec<SnapshotRecord>) {
    let last = snapshots.len() - 1;
    let mut at = 0;
    snapshots.retain(|snapshot| {
        let keep = at % 2 == 0 || at == last || snapshot.reason != Reason::Interval;
        at += 1;
        keep
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: u64, bytes: u64) -> Entry {
        let frames = Some(vec![Frame {
            address,
            ..Frame::default()
        }]);
        let class = Class::Heap;
        Entry {
            allocator: None,
            tgid: 7,
            class,
            bytes,
            count: 1,
            oldest_ns: None,
            reach: None,
            frames,
        }
    }

    fn report(entries: Vec<Entry>) -> Report {
        Report {
            entries,
            ..Report::default()
        }
    }

    #[test]
    fn a_stack_keeps_its_number_and_is_stored_once() {
        let mut collector = Collector::new(Header::default());
        collector.push(&report(vec![entry(1, 10), entry(2, 20)]), Moment::default());
        collector.push(&report(vec![entry(3, 5), entry(2, 30)]), Moment::default());
        let recording = collector.finish();
        assert_eq!(recording.stacks.len(), 3);
        let figures = |at: usize| -> Vec<(u32, u64)> {
            recording.snapshots[at]
                .figures
                .iter()
                .map(|figure| (figure.stack, figure.bytes))
                .collect()
        };
        assert_eq!(figures(0), [(0, 10), (1, 20)]);
        assert_eq!(figures(1), [(1, 30), (2, 5)]);
    }

    #[test]
    fn two_entries_of_one_stack_become_one_figure() {
        let mut collector = Collector::new(Header::default());
        collector.push(
            &report(vec![entry(1, 10), entry(1, 20), entry(1, 3)]),
            Moment::default(),
        );
        let recording = collector.finish();
        assert_eq!(
            recording.snapshots[0].figures,
            [Figure {
                stack: 0,
                bytes: 33,
                count: 3,
                oldest_ns: None
            }]
        );
    }

    #[test]
    fn a_bounded_collector_keeps_the_first_the_last_and_the_asked_for() {
        let mut collector = Collector::new(Header::default()).with_most_snapshots(8);
        for at in 0..1000 {
            let reason = if at == 501 {
                Reason::Demand
            } else {
                Reason::Interval
            };
            collector.push(
                &report(vec![entry(1, at)]),
                Moment {
                    elapsed_ns: at,
                    reason,
                    ..Moment::default()
                },
            );
        }
        let kept: Vec<u64> = collector
            .recording()
            .snapshots
            .iter()
            .map(|snapshot| snapshot.elapsed_ns)
            .collect();
        assert!(kept.len() <= 9, "{kept:?}");
        assert!(
            kept.contains(&0) && kept.contains(&501) && kept.contains(&999),
            "{kept:?}"
        );
    }
}
