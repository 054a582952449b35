//! Which stacks the page carries, and which of them get a line in the charts.
//! Ranks and cuts by size; the data itself is built in `payload`.

use std::collections::{BTreeMap, BTreeSet};

use super::Page;
use super::intern::Tables;
use crate::analysis::calls::{Call, calls};
use crate::model::run::{Figure, Recording, StackRecord};

/// Lines in the charts beside the total.
const MOST_LINES: usize = 10;

/// Stacks in the table.
const MOST_STACKS: usize = 5_000;

/// Bytes of JSON that calls and their names may fill.
const TEXT_BUDGET: usize = 6 << 20;

/// One stack that the page carries.
#[derive(Debug)]
pub struct Chosen<'a> {
    /// Index into the recording's stacks.
    pub stack: usize,
    /// The stack.
    pub record: &'a StackRecord,
    /// What it holds in the last snapshot, if anything.
    pub last: Option<Figure>,
}

/// What the page carries and what it leaves out.
#[derive(Debug, Default)]
pub struct Selection<'a> {
    /// The stacks, growing ones first, then by bytes.
    pub stacks: Vec<Chosen<'a>>,
    /// How many of them, from the first, get a line in the charts.
    pub lines: usize,
    /// Figures of the last snapshot whose stacks did not fit.
    pub left_out: Vec<Figure>,
}

/// Chooses the stacks: those that grow, then the largest, then (for the charts) those that once were large.
/// `peaks` holds the most bytes that each stack ever had.
pub fn select<'a>(page: &Page<'a>, peaks: &[u64]) -> Selection<'a> {
    let recording = page.recording;
    let last = last_figures(recording);
    let order = ranked(page, &last, peaks);
    let mut tables = Tables::default();
    let mut text = 0;
    let mut selection = Selection::default();
    for stack in order {
        let Some(record) = recording.stacks.get(stack) else {
            continue;
        };
        let calls = record.frames.as_deref().map(calls).unwrap_or_default();
        let cost = tables.cost(&calls) + 8 * calls.len();
        let fits = selection.stacks.len() < MOST_STACKS && text + cost <= TEXT_BUDGET;
        if fits {
            text += cost;
            remember(&mut tables, &calls);
            let last = last.get(&stack).copied();
            selection.stacks.push(Chosen {
                stack,
                record,
                last,
            });
        } else if let Some(figure) = last.get(&stack) {
            selection.left_out.push(*figure);
        }
    }
    selection.lines = selection.stacks.len().min(MOST_LINES);
    selection
}

fn remember(tables: &mut Tables, calls: &[Call<'_>]) {
    for call in calls {
        tables.call(call);
    }
}

/// Indices of stacks in the order in which they deserve room.
fn ranked(page: &Page<'_>, last: &BTreeMap<usize, Figure>, peaks: &[u64]) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let growing = page.growth.iter().filter(|stack| stack.growth.is_growing());
    let of_groups = page.groups.iter().flat_map(|group| group.stacks.iter());
    let mut order: Vec<usize> = growing
        .map(|stack| stack.stack)
        .chain(of_groups.copied())
        .filter(|stack| seen.insert(*stack))
        .collect();
    let mut largest: Vec<(&usize, &Figure)> = last.iter().collect();
    largest
        .sort_by_key(|(stack, figure)| (std::cmp::Reverse((figure.bytes, figure.count)), **stack));
    order.extend(
        largest
            .into_iter()
            .map(|(stack, _)| *stack)
            .filter(|stack| seen.insert(*stack)),
    );
    let mut gone: Vec<usize> = (0..peaks.len())
        .filter(|stack| peaks[*stack] > 0 && !seen.contains(stack))
        .collect();
    gone.sort_by_key(|stack| (std::cmp::Reverse(peaks[*stack]), *stack));
    gone.truncate(MOST_LINES.saturating_sub(order.len()));
    order.extend(gone);
    order
}

/// What each stack holds in the last snapshot.
fn last_figures(recording: &Recording) -> BTreeMap<usize, Figure> {
    let Some(snapshot) = recording.snapshots.last() else {
        return BTreeMap::new();
    };
    let figures = snapshot.figures.iter();
    figures
        .filter(|figure| figure.bytes > 0 || figure.count > 0)
        .map(|figure| (figure.stack as usize, *figure))
        .collect()
}

/// The most bytes that each stack of the recording ever had.
pub fn peaks(recording: &Recording) -> Vec<u64> {
    let mut peaks = vec![0; recording.stacks.len()];
    for figure in recording
        .snapshots
        .iter()
        .flat_map(|snapshot| &snapshot.figures)
    {
        if let Some(peak) = peaks.get_mut(figure.stack as usize) {
            *peak = figure.bytes.max(*peak);
        }
    }
    peaks
}
