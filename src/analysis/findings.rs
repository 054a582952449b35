//! What a finished run comes to: its last report and its growing stacks, after comparison and suppressions.
//! Outputs and gates both read this, so that they never disagree.

use std::collections::{BTreeMap, HashMap};

use super::blame::Blame;
use super::compare::Baseline;
use super::gate::Outcome;
use super::groups::{self, Group, Together};
use super::growth::{self, Growth, StackGrowth};
use super::runtimes;
use super::suppress::Suppressions;
use crate::model::report::{Entry, Report};
use crate::model::run::{Figure, Headroom, Recording};
use crate::model::snapshot::{Amount, Look, Reach};

/// What to leave out of reports.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Leave out stacks that these rules name.
    pub suppressions: Option<Suppressions>,
    /// Leave out what this earlier run held already.
    pub baseline: Option<Baseline>,
    /// What runtimes keep to the end counts as a leak, where lost and held can't be told apart.
    pub counts_runtimes: bool,
}

/// Memory that was left out of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Stacks that are not shown at all.
    pub stacks: u64,
    /// Bytes.
    pub bytes: u64,
    /// Allocations.
    pub count: u64,
}

/// What each part of a filter left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// By suppressions, in all.
    pub suppressed: Hidden,
    /// By suppressions, per pattern.
    pub by_pattern: BTreeMap<String, Hidden>,
    /// As the baseline held it already.
    pub known: Hidden,
}

/// An entry and what is known of its growth.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What the stack holds.
    pub entry: Entry,
    /// What it did over the snapshots.
    pub growth: Growth,
}

impl Finding {
    /// How fast it grows; 0 where that can't be told.
    pub fn bytes_per_s(&self) -> f64 {
        self.growth.rate.map_or(0.0, |rate| rate.bytes_per_s)
    }
}

/// What a finished run comes to.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The last report: all stacks, smallest first; empty when there was none.
    pub report: Report,
    /// What each entry of `report` did over the snapshots, in the same order.
    pub growth: Vec<Growth>,
    /// The growing stacks, most severe first, with what they held when last judged.
    pub growing: Vec<Finding>,
    /// What grows, by who is to blame, most severe first.
    pub groups: Vec<Group>,
    /// What all of that comes to.
    pub together: Together,
    /// What every stack of the recording did, hidden or not, most severe first.
    pub verdicts: Vec<StackGrowth>,
    /// What was left to the target when growth was last judged.
    pub headroom: Option<Headroom>,
    /// What the filter left out of the last report.
    pub left_out: LeftOut,
    /// Who is to blame for stacks.
    pub blame: Blame,
    /// What counts as a leak: what is lost or undecided, and all that is outstanding where that was not told.
    pub leak: Amount,
    /// What does not, where it was not told, as runtimes keep it to the end of every program.
    pub kept_by_runtimes: Hidden,
    /// Numbers of the recording's stacks that the filter left out altogether.
    pub hidden_stacks: Vec<usize>,
}

impl Findings {
    /// Whether what grows may only look so, as frees may have been missed.
    pub fn growth_is_doubtful(&self) -> bool {
        self.report.losses.may_lack_frees()
    }

    /// What is lost, where that was told.
    fn lost(&self) -> Option<Amount> {
        let look = self.report.look.as_ref();
        look.filter(|look| look.failed.is_none())
            .map(Look::all_lost)
    }

    /// Leaves out all but the largest entries; totals stay.
    pub fn cut(&mut self, most: usize) {
        let surplus = self.report.entries.len().saturating_sub(most);
        self.report.entries.drain(..surplus);
        self.growth.drain(..surplus.min(self.growth.len()));
    }

    /// What gates look at.
    pub fn outcome(&self) -> Outcome {
        Outcome {
            stacks: self
                .report
                .total_stacks
                .saturating_sub(self.kept_by_runtimes.stacks),
            bytes: self.report.total_bytes,
            count: self.report.total_count,
            growing: self.growing.len().max(self.groups.len()) as u64,
            growth_is_doubtful: self.growth_is_doubtful(),
            unseen: self.report.losses.silent > 0,
            leak: self.leak,
            lost: self.lost(),
        }
    }
}

impl Filter {
    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.suppressions.is_none() && self.baseline.is_none()
    }

    /// `report` without what is left out, its totals made to fit. The report must list every stack, as a baseline
    /// cannot be compared with a part.
    pub fn apply(&self, report: Report) -> (Report, LeftOut) {
        if self.is_empty() {
            return (report, LeftOut::default());
        }
        let mut left_out = LeftOut::default();
        let kept = self.keep(&report.entries, &mut left_out);
        let mut entries: Vec<Entry> = kept.into_iter().flatten().collect();
        // A baseline takes parts of entries away, which may change their order. The sort is stable.
        if self.baseline.is_some() {
            entries.sort_by_key(|entry| (entry.bytes, entry.count));
        }
        (with_entries(report, entries), left_out)
    }

    /// Per entry, what remains of it.
    pub fn remaining(&self, entries: &[Entry]) -> Vec<Option<Entry>> {
        self.keep(entries, &mut LeftOut::default())
    }

    fn keep(&self, entries: &[Entry], left_out: &mut LeftOut) -> Vec<Option<Entry>> {
        let suppressed: Vec<bool> = entries
            .iter()
            .map(|entry| self.suppress(entry, left_out))
            .collect();
        // Suppressed stacks take no part in the comparison: their share of the baseline is nobody else's.
        let remaining: Vec<Entry> = entries
            .iter()
            .zip(&suppressed)
            .filter(|(_, suppressed)| !**suppressed)
            .map(|(e, _)| e.clone())
            .collect();
        let excess = match &self.baseline {
            Some(baseline) => baseline.excess(&remaining),
            None => remaining.iter().cloned().map(Some).collect(),
        };
        for (entry, excess) in remaining.iter().zip(&excess) {
            left_out.known.add_difference(entry, excess.as_ref());
        }
        let mut excess = excess.into_iter();
        suppressed
            .into_iter()
            .map(|suppressed| {
                if suppressed {
                    None
                } else {
                    excess.next().flatten()
                }
            })
            .collect()
    }

    fn suppress(&self, entry: &Entry, left_out: &mut LeftOut) -> bool {
        let rule = self
            .suppressions
            .as_ref()
            .and_then(|rules| rules.rule_for(entry.frames.as_deref()));
        let Some(pattern) = rule else { return false };
        left_out.suppressed.add_difference(entry, None);
        left_out
            .by_pattern
            .entry(pattern.to_owned())
            .or_default()
            .add_difference(entry, None);
        true
    }
}

impl Hidden {
    fn add_difference(&mut self, whole: &Entry, shown: Option<&Entry>) {
        self.stacks += u64::from(shown.is_none());
        let bytes = shown.map_or(0, |entry| entry.bytes);
        let count = shown.map_or(0, |entry| entry.count);
        self.bytes = (self.bytes).saturating_add(whole.bytes.saturating_sub(bytes));
        self.count = (self.count).saturating_add(whole.count.saturating_sub(count));
    }
}

fn with_entries(report: Report, entries: Vec<Entry>) -> Report {
    let sum = |value: fn(&Entry) -> u64| entries.iter().map(value).fold(0, u64::saturating_add);
    let look = report.look.map(|look| {
        let judged = entries
            .iter()
            .filter_map(|entry| Some((entry, entry.reach?)));
        let reach = judged
            .clone()
            .fold(Reach::default(), |sum, (_, reach)| sum.plus(reach));
        let all = judged.fold(Amount::default(), |sum, (entry, _)| {
            sum.plus(entry.amount())
        });
        Look {
            reach,
            held: all.minus(reach.not_held()),
            ..look
        }
    });
    let mut report = Report {
        look,
        total_stacks: entries.len() as u64,
        total_bytes: sum(|entry| entry.bytes),
        total_count: sum(|entry| entry.count),
        entries,
        ..report
    };
    report.sum_processes();
    report
}

/// Judges a recording.
pub fn findings(recording: &Recording, filter: &Filter, blame: &Blame) -> Findings {
    let verdicts = growth::analyze(recording);
    let growth_of: HashMap<usize, Growth> = verdicts
        .iter()
        .map(|verdict| (verdict.stack, verdict.growth))
        .collect();
    let (stacks, report) = last_report(recording);
    let mut left_out = LeftOut::default();
    let kept = filter.keep(&report.entries, &mut left_out);
    let hidden_stacks = stacks
        .iter()
        .zip(&kept)
        .filter(|(_, kept)| kept.is_none())
        .map(|(&at, _)| at)
        .collect();
    let mut shown: Vec<(Entry, Growth)> = stacks
        .iter()
        .zip(kept)
        .filter_map(|(stack, kept)| {
            Some((
                kept?,
                growth_of
                    .get(stack)
                    .copied()
                    .unwrap_or_else(|| growth::judge(&[])),
            ))
        })
        .collect();
    shown.sort_by_key(|(entry, _)| (entry.bytes, entry.count));
    let (entries, growth) = shown.into_iter().unzip();
    let report = with_entries(report, entries);
    let (leak, kept_by_runtimes) = leak(&report, filter.counts_runtimes);
    let headroom = recording
        .snapshots
        .iter()
        .rev()
        .find_map(|snapshot| snapshot.headroom);
    let groups = grouped(recording, &verdicts, filter, blame);
    Findings {
        report,
        leak,
        kept_by_runtimes,
        growth,
        growing: growing(recording, &verdicts, filter),
        together: groups::sum(&groups, headroom.map(|headroom| headroom.bytes)),
        groups,
        headroom,
        left_out,
        blame: blame.clone(),
        hidden_stacks,
        verdicts,
    }
}

/// What grows by who is to blame, without the stacks that suppressions name, and without what the baseline held already.
fn grouped(
    recording: &Recording,
    verdicts: &[StackGrowth],
    filter: &Filter,
    blame: &Blame,
) -> Vec<Group> {
    let frames = |stack: usize| recording.stacks.get(stack)?.frames.as_deref();
    let suppressed = |stack: usize| {
        let rules = filter.suppressions.as_ref();
        rules.is_some_and(|rules| rules.rule_for(frames(stack)).is_some())
    };
    let seen: Vec<StackGrowth> = verdicts
        .iter()
        .filter(|verdict| !suppressed(verdict.stack))
        .copied()
        .collect();
    let held = |verdict: &StackGrowth| {
        let count = figure_when_judged(recording, verdict.stack).map_or(0, |figure| figure.count);
        (verdict.growth.last_bytes, count)
    };
    let culprit = |stack: usize| blame.culprit(frames(stack)?);
    let mut groups = groups::groups(recording, &seen, culprit, held);
    if filter.baseline.is_some() {
        let of: HashMap<usize, &StackGrowth> = seen
            .iter()
            .map(|verdict| (verdict.stack, verdict))
            .collect();
        groups.retain(|group| {
            let stacks = group.stacks.iter().filter_map(|stack| of.get(stack));
            let entries: Vec<Entry> = stacks
                .map(|verdict| when_judged(recording, verdict))
                .collect();
            filter.remaining(&entries).iter().any(Option::is_some)
        });
    }
    groups
}

/// What counts as a leak, and what of the rest is not known to be held but kept by runtimes.
fn leak(report: &Report, counts_runtimes: bool) -> (Amount, Hidden) {
    let mut leak = report
        .look
        .as_ref()
        .map_or(Amount::default(), |look| look.before.all_lost());
    let mut by_runtimes = Hidden::default();
    for entry in &report.entries {
        let (lost, unknown) = match entry.reach {
            Some(reach) => (reach.all_lost(), reach.undecided),
            None => (Amount::default(), entry.amount()),
        };
        leak = leak.plus(lost);
        let is_runtimes = || runtimes::keeps(entry.frames.as_deref());
        if unknown.count > 0 && !counts_runtimes && is_runtimes() {
            by_runtimes.stacks += 1;
            by_runtimes.bytes += unknown.bytes;
            by_runtimes.count += unknown.count;
        } else {
            leak = leak.plus(unknown);
        }
    }
    (leak, by_runtimes)
}

/// The last snapshot as a report, with the number of each entry's stack.
fn last_report(recording: &Recording) -> (Vec<usize>, Report) {
    let Some(last) = recording.snapshots.len().checked_sub(1) else {
        return Default::default();
    };
    let stacks = recording
        .ranked(last)
        .into_iter()
        .map(|at| recording.snapshots[last].figures[at].stack as usize);
    (stacks.collect(), recording.report(last).unwrap_or_default())
}

/// The growing stacks that the filter lets pass. They need not be in the last report: what a target frees on its way
/// out grew all the same.
fn growing(
    recording: &Recording,
    verdicts: &[growth::StackGrowth],
    filter: &Filter,
) -> Vec<Finding> {
    let growing: Vec<&growth::StackGrowth> = verdicts
        .iter()
        .filter(|verdict| verdict.growth.is_growing())
        .collect();
    let entries: Vec<Entry> = growing
        .iter()
        .map(|verdict| when_judged(recording, verdict))
        .collect();
    let kept = filter.remaining(&entries);
    let finding = |(verdict, kept): (&&growth::StackGrowth, Option<Entry>)| {
        Some(Finding {
            entry: kept?,
            growth: verdict.growth,
        })
    };
    growing.iter().zip(kept).filter_map(finding).collect()
}

/// What a stack held when its growth was last judged.
fn when_judged(recording: &Recording, verdict: &growth::StackGrowth) -> Entry {
    let figure = figure_when_judged(recording, verdict.stack);
    let stack = &recording.stacks[verdict.stack];
    Entry {
        tgid: stack.tgid,
        class: stack.class,
        allocator: stack.allocator.clone(),
        bytes: verdict.growth.last_bytes,
        count: figure.map_or(0, |figure| figure.count),
        oldest_ns: figure.and_then(|figure| figure.oldest_ns),
        reach: None,
        frames: stack.frames.clone(),
    }
}

/// The last figures that a stack was judged by.
fn figure_when_judged(recording: &Recording, stack: usize) -> Option<&Figure> {
    let end = growth::end_ns(recording, stack);
    let judged = growth::judged_snapshots(recording).iter().rev();
    judged
        .filter(|snapshot| snapshot.elapsed_ns < end)
        .find_map(|snapshot| {
            let figures = &snapshot.figures;
            let at = figures
                .binary_search_by_key(&stack, |figure| figure.stack as usize)
                .ok()?;
            figures.get(at)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_adds_up_to_no_more_than_there_are_numbers() {
        let entry = |bytes, count| Entry {
            tgid: 0,
            class: crate::model::snapshot::Class::Heap,
            allocator: None,
            bytes,
            count,
            oldest_ns: None,
            reach: None,
            frames: None,
        };
        let mut hidden = Hidden::default();
        for _ in 0..2 {
            hidden.add_difference(&entry(u64::MAX - 1, u64::MAX), None);
        }
        // an excess that is more than the whole, as in a recording that lies
        hidden.add_difference(&entry(1, 1), Some(&entry(2, 2)));
        assert_eq!(
            (hidden.stacks, hidden.bytes, hidden.count),
            (2, u64::MAX, u64::MAX)
        );
    }
}
