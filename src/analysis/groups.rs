//! Growth by who is to blame: stacks of one function of a process are judged by what they hold together.
//! The statistics are `growth`'s, and who is to blame is `blame`'s to say.

use std::collections::BTreeMap;

use super::blame::Culprit;
use super::growth::{self, Growth, Rate, StackGrowth, Verdict};
use crate::model::run::Recording;

/// Groups whose sums are followed at a time; bounds the memory for long recordings.
const GROUPS_AT_ONCE: usize = 1024;

/// What grows, by one function of one process.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The process; 0 for the kernel.
    pub tgid: u32,
    /// Who is to blame; none for stacks that could not be stored.
    pub culprit: Option<Culprit>,
    /// What all its stacks did together.
    pub growth: Growth,
    /// Bytes that they held when last judged.
    pub bytes: u64,
    /// Allocations that they held then.
    pub count: u64,
    /// The stacks that hold more than they began with, or grow by themselves; most severe first.
    pub stacks: Vec<usize>,
}

/// What all groups come to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Together {
    /// The sum of their rates.
    pub bytes_per_s: f64,
    /// Seconds until the target's headroom is used up at that rate, where a limit is known.
    pub exhausted_in_s: Option<f64>,
}

/// What makes stacks a group: the process, and the function and module of the culprit, wherever in it the call is.
type Key = (u32, Option<(String, Option<String>)>);

/// The key of a stack's group.
pub fn key(tgid: u32, culprit: Option<&Culprit>) -> Key {
    let named = |culprit: &Culprit| {
        let module = culprit.module.as_ref();
        let module = module.map(|module| module.path.to_string_lossy().into_owned());
        (culprit.function.clone(), module)
    };
    (tgid, culprit.map(named))
}

/// The groups that grow, most severe first. `culprit_of` names a stack; `figures_of` gives the bytes and allocations of
/// one when it was last judged.
pub fn groups(
    recording: &Recording,
    verdicts: &[StackGrowth],
    culprit_of: impl Fn(usize) -> Option<Culprit>,
    figures_of: impl Fn(&StackGrowth) -> (u64, u64),
) -> Vec<Group> {
    let mut members: BTreeMap<Key, (Option<Culprit>, Vec<StackGrowth>)> = BTreeMap::new();
    for verdict in verdicts {
        let Some(stack) = recording.stacks.get(verdict.stack) else {
            continue;
        };
        let culprit = culprit_of(verdict.stack);
        let key = key(stack.tgid, culprit.as_ref());
        // verdicts come most severe first: the culprit's place is that of the worst
        let group = members.entry(key).or_insert_with(|| (culprit, Vec::new()));
        group.1.push(*verdict);
    }
    let rising: Vec<_> = members
        .into_iter()
        // of several, each may hold no more than it began with: each call has a stack of its own
        .filter(|(_, (_, verdicts))| {
            verdicts.len() > 1 || verdicts.iter().any(|verdict| rises(&verdict.growth))
        })
        .collect();
    let mut groups = Vec::new();
    for part in rising.chunks(GROUPS_AT_ONCE) {
        let stacks: Vec<Vec<usize>> = part
            .iter()
            .map(|(_, (_, verdicts))| verdicts.iter().map(|verdict| verdict.stack).collect())
            .collect();
        let sums = growth::sums(recording, &stacks);
        for (((tgid, _), (culprit, verdicts)), sum) in part.iter().zip(sums) {
            let growths = verdicts.iter().map(|verdict| verdict.growth);
            let Some(growth) = together(growths, growth::judge(&sum)) else {
                continue;
            };
            let held = verdicts.iter().map(&figures_of);
            let (bytes, count) = held.fold((0u64, 0u64), |sum, held| {
                (sum.0.saturating_add(held.0), sum.1.saturating_add(held.1))
            });
            groups.push(Group {
                tgid: *tgid,
                culprit: culprit.clone(),
                growth,
                bytes,
                count,
                stacks: risen(verdicts),
            });
        }
    }
    sort(&mut groups);
    groups
}

/// The stacks that make a group grow: those that rise, or all where each stays as it began.
fn risen(verdicts: &[StackGrowth]) -> Vec<usize> {
    let of = |wanted: fn(&Growth) -> bool| -> Vec<usize> {
        let wanted = verdicts.iter().filter(|verdict| wanted(&verdict.growth));
        wanted.map(|verdict| verdict.stack).collect()
    };
    match of(rises) {
        none if none.is_empty() => of(|_| true),
        some => some,
    }
}

/// Orders groups, most severe first.
pub fn sort(groups: &mut [Group]) {
    let name = |group: &Group| {
        group
            .culprit
            .as_ref()
            .map(|culprit| culprit.function.clone())
    };
    groups.sort_by(|a, b| {
        a.growth
            .by_severity(&b.growth)
            .then_with(|| a.tgid.cmp(&b.tgid))
            .then_with(|| name(a).cmp(&name(b)))
    });
}

/// Whether a stack belongs to the growth of its group.
pub fn rises(growth: &Growth) -> bool {
    growth.is_growing() || growth.last_bytes > growth.first_bytes
}

/// What a group's growth is: that of the sum, where it grows; else that of its growing stacks, as a leak may hide
/// behind what rises and falls. None where neither grows.
pub fn together(stacks: impl Iterator<Item = Growth>, sum: Growth) -> Option<Growth> {
    if sum.is_growing() {
        return Some(sum);
    }
    stacks.filter(Growth::is_growing).reduce(|a, b| Growth {
        verdict: Verdict::Growing,
        continuous: a.continuous && b.continuous,
        rate: added(a.rate, b.rate),
        p_value: a.p_value.min(b.p_value),
        points: a.points.max(b.points),
        span_ns: a.span_ns.max(b.span_ns),
        first_bytes: a.first_bytes.saturating_add(b.first_bytes),
        last_bytes: a.last_bytes.saturating_add(b.last_bytes),
    })
}

fn added(a: Option<Rate>, b: Option<Rate>) -> Option<Rate> {
    match (a, b) {
        (Some(a), Some(b)) => Some(Rate {
            bytes_per_s: a.bytes_per_s + b.bytes_per_s,
            low: a.low + b.low,
            high: a.high + b.high,
        }),
        (a, b) => a.or(b),
    }
}

/// What groups come to with `headroom` bytes left.
pub fn sum(groups: &[Group], headroom: Option<u64>) -> Together {
    let rates = groups.iter().filter_map(|group| group.growth.rate);
    let bytes_per_s: f64 = rates.map(|rate| rate.bytes_per_s.max(0.0)).sum();
    let left = headroom.filter(|_| bytes_per_s > 0.0);
    Together {
        bytes_per_s,
        exhausted_in_s: left.map(|bytes| bytes as f64 / bytes_per_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::run::{Figure, SnapshotRecord, StackRecord};
    use crate::model::snapshot::Class;

    /// A run of as many stacks as there are series, each with its bytes in every snapshot, five seconds apart.
    fn run(series: &[Vec<u64>]) -> Recording {
        let stack = StackRecord {
            tgid: 7,
            class: Class::Heap,
            allocator: None,
            frames: None,
        };
        let snapshot = |at: usize| SnapshotRecord {
            elapsed_ns: at as u64 * 5_000_000_000,
            complete: true,
            figures: series
                .iter()
                .zip(0..)
                .map(|(bytes, stack)| Figure {
                    stack,
                    bytes: bytes[at],
                    count: 1,
                    oldest_ns: None,
                })
                .collect(),
            ..SnapshotRecord::default()
        };
        Recording {
            stacks: vec![stack; series.len()],
            snapshots: (0..series[0].len()).map(snapshot).collect(),
            ..Recording::default()
        }
    }

    fn culprit(name: &str) -> Option<Culprit> {
        Some(Culprit {
            function: name.to_owned(),
            location: None,
            module: None,
        })
    }

    fn judged(run: &Recording, names: &[&str]) -> Vec<Group> {
        let verdicts = growth::analyze(run);
        let held = |verdict: &StackGrowth| (verdict.growth.last_bytes, 1);
        groups(run, &verdicts, |stack| culprit(names[stack]), held)
    }

    #[test]
    fn many_stacks_of_one_function_are_one_group_and_the_time_left_is_of_the_sum() {
        let series: Vec<Vec<u64>> = (1..=178)
            .map(|rate| (0..12).map(|at| 1000 + at * 5 * rate).collect())
            .collect();
        let run = run(&series);
        let names: Vec<&str> = (0..178).map(|at| ["f", "g"][at % 2]).collect();
        let groups = judged(&run, &names);
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0].stacks.len(), 89);
        let together = sum(&groups, Some(1_593_100));
        assert!((together.bytes_per_s - 15_931.0).abs() < 1e-6);
        assert!((together.exhausted_in_s.unwrap() - 100.0).abs() < 1e-6);
    }

    #[test]
    fn a_stack_that_grows_is_told_where_the_sum_does_not() {
        let up: Vec<u64> = (0..20).map(|at| 1000 * at).collect();
        let down: Vec<u64> = up.iter().rev().copied().collect();
        let both = run(&[up.clone(), down.clone()]);
        let groups = judged(&both, &["f", "f"]);
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].stacks, [0]);
        assert_eq!(judged(&run(&[down]), &["f"]), []);
    }

    #[test]
    fn a_sum_can_grow_where_no_stack_does() {
        // each call has a stack of its own, which stays
        let series: Vec<Vec<u64>> = (0..20)
            .map(|stack| (0..20).map(|at| u64::from(at >= stack) * 100).collect())
            .collect();
        let run = run(&series);
        let groups = judged(&run, &["f"; 20]);
        assert_eq!(groups.len(), 1);
        assert!((groups[0].growth.rate.unwrap().bytes_per_s - 20.0).abs() < 1.0);
        assert_eq!(groups[0].bytes, 2000);
    }
}
