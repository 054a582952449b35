//! Joins recordings that are parts of one run, such as a log that was rotated, in the order they are given.
//! Stacks that are the same keep one number.

use super::collect::Collector;
use crate::model::run::{Recording, SnapshotRecord};

/// One recording of all parts; the first one's header stands for all. `None` when there are no parts.
pub fn join(parts: Vec<Recording>) -> Option<Recording> {
    let mut parts = parts.into_iter();
    let first = parts.next()?;
    let (started, origin) = (first.header.clone(), first.snapshots.first().cloned());
    let mut joined = first;
    for part in parts {
        append(&mut joined, part, origin.as_ref());
    }
    joined.header = started;
    Some(joined)
}

fn append(joined: &mut Recording, part: Recording, origin: Option<&SnapshotRecord>) {
    let shift = shift_ns(joined, &part, origin);
    let mut collector = Collector::of(std::mem::take(joined));
    let numbers: Vec<u32> = part
        .stacks
        .into_iter()
        .map(|stack| collector.number(stack))
        .collect();
    for (tgid, name) in &part.processes {
        collector.name_process(*tgid, name);
    }
    for (tgid, ended) in &part.ended {
        collector.end_process(*tgid, ended.saturating_add(shift));
    }
    for mut snapshot in part.snapshots {
        snapshot.elapsed_ns = snapshot.elapsed_ns.saturating_add(shift);
        renumber(&mut snapshot, &numbers);
        collector.push_snapshot(snapshot);
    }
    *joined = collector.finish();
}

/// What to add to the part's times. The wall clock tells where it is dated; a log without dates goes on one step
/// after what came before.
fn shift_ns(joined: &Recording, part: &Recording, origin: Option<&SnapshotRecord>) -> u64 {
    let (Some(origin), Some(last), Some(next)) =
        (origin, joined.snapshots.last(), part.snapshots.first())
    else {
        return 0;
    };
    let dated = joined.header.source.is_dated() && part.header.source.is_dated();
    let by_clock = next
        .time
        .unix_ns
        .saturating_sub(origin.time.unix_ns)
        .max(0)
        .unsigned_abs();
    let begins = if dated {
        by_clock.saturating_add(origin.elapsed_ns)
    } else {
        last.elapsed_ns.saturating_add(step_ns(joined))
    };
    begins.max(last.elapsed_ns).saturating_sub(next.elapsed_ns)
}

/// The time between the last two snapshots.
fn step_ns(recording: &Recording) -> u64 {
    match recording.snapshots.as_slice() {
        [.., before, last] => last.elapsed_ns.saturating_sub(before.elapsed_ns),
        _ => 0,
    }
}

fn renumber(snapshot: &mut SnapshotRecord, numbers: &[u32]) {
    let reach = std::mem::take(&mut snapshot.reach);
    let mut order: Vec<usize> = (0..snapshot.figures.len()).collect();
    for figure in &mut snapshot.figures {
        figure.stack = numbers
            .get(figure.stack as usize)
            .copied()
            .unwrap_or(figure.stack);
    }
    order.sort_by_key(|&at| snapshot.figures[at].stack);
    let figures = std::mem::take(&mut snapshot.figures);
    snapshot.figures = order.iter().map(|&at| figures[at]).collect();
    if !reach.is_empty() {
        snapshot.reach = order.iter().map(|&at| reach[at]).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::run::Source;
    use crate::recording::load::read_any;

    fn log(second: u32, name: &str, bytes: u64) -> Recording {
        let text = format!(
            "[00:00:{second:02}] Top 10 stacks with outstanding allocations:\n\
             \t{bytes} bytes in 1 allocations from stack\n\t\t{name}+0x1 [a]\n\
             [00:00:{:02}] Top 10 stacks with outstanding allocations:\n\
             \t{bytes} bytes in 1 allocations from stack\n\t\tmain+0x1 [a]\n",
            second + 5
        );
        read_any(text.as_bytes()).unwrap().recording
    }

    #[test]
    fn parts_go_on_where_the_one_before_ended_and_share_stacks() {
        let joined = join(vec![log(1, "f", 10), log(30, "g", 20), log(31, "f", 30)]).unwrap();
        let seconds: Vec<u64> = joined
            .snapshots
            .iter()
            .map(|s| s.elapsed_ns / 1_000_000_000)
            .collect();
        assert_eq!(seconds, [0, 5, 10, 15, 20, 25]);
        let stacks: Vec<u32> = joined
            .snapshots
            .iter()
            .map(|s| s.figures[0].stack)
            .collect();
        assert_eq!(stacks, [0, 1, 2, 1, 0, 1]);
        assert_eq!(joined.stacks.len(), 3);
        assert!(join(Vec::new()).is_none());
    }

    #[test]
    fn a_part_behind_the_end_of_time_stays_there() {
        let mut first = log(1, "f", 1);
        first.snapshots[1].elapsed_ns = u64::MAX - 1;
        let joined = join(vec![first, log(1, "f", 1)]).unwrap();
        let times: Vec<u64> = joined.snapshots.iter().map(|s| s.elapsed_ns).collect();
        assert!(times.is_sorted(), "{times:?}");
        assert_eq!(times[2..], [u64::MAX; 2]);
    }

    #[test]
    fn dated_parts_keep_the_gap_between_them() {
        let dated = |second| {
            let mut part = log(second, "f", 1);
            part.header.source = Source::Recording;
            part
        };
        let joined = join(vec![dated(1), dated(31)]).unwrap();
        let seconds: Vec<u64> = joined
            .snapshots
            .iter()
            .map(|s| s.elapsed_ns / 1_000_000_000)
            .collect();
        assert_eq!(seconds, [0, 5, 30, 35]);
    }
}
