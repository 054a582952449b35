//! What a run has to answer for, function by function: what grows, and what is left. Formats for machines list these.
//! What counts as a failure is told by the gates that tripped.

use std::collections::BTreeMap;

use super::blame::Culprit;
use super::findings::Findings;
use super::gate::{Gate, Tripped};
use super::groups;

/// What is wrong with a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// What it allocates grows.
    Growth,
    /// It left memory behind, or holds it.
    Outstanding,
}

/// One function, and what is wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// What is wrong.
    pub kind: Kind,
    /// Whether a gate tripped over it.
    pub fails: bool,
    /// The process; 0 for the kernel.
    pub tgid: u32,
    /// Who is to blame; none for stacks that could not be stored.
    pub culprit: Option<Culprit>,
    /// Bytes that it holds.
    pub bytes: u64,
    /// Allocations that it holds.
    pub count: u64,
    /// Stacks through which it got them.
    pub stacks: usize,
    /// Bytes a second, where it grows.
    pub bytes_per_s: Option<f64>,
}

impl Problem {
    /// What the culprit is called.
    pub fn function(&self) -> &str {
        let culprit = self.culprit.as_ref();
        culprit.map_or("[stack not stored]", |culprit| culprit.function.as_str())
    }
}

/// The functions that grow, most severe first, then those that hold memory, largest first.
pub fn problems(findings: &Findings, tripped: &[Tripped]) -> Vec<Problem> {
    let trips = |wanted: fn(&Gate) -> bool| tripped.iter().any(|tripped| wanted(&tripped.gate));
    let growth_fails = trips(|gate| *gate == Gate::Growth);
    let holding_fails = trips(|gate| *gate != Gate::Growth);
    let mut all: Vec<Problem> = findings
        .groups
        .iter()
        .map(|group| Problem {
            kind: Kind::Growth,
            fails: growth_fails,
            tgid: group.tgid,
            culprit: group.culprit.clone(),
            bytes: group.bytes,
            count: group.count,
            stacks: group.stacks.len(),
            bytes_per_s: group.growth.rate.map(|rate| rate.bytes_per_s),
        })
        .collect();
    all.extend(outstanding(findings, holding_fails));
    all
}

fn outstanding(findings: &Findings, fails: bool) -> Vec<Problem> {
    let mut held: BTreeMap<_, Problem> = BTreeMap::new();
    // largest first, so that the place is that of the largest stack
    for entry in findings.report.entries.iter().rev() {
        let frames = entry.frames.as_deref();
        let culprit = frames.and_then(|frames| findings.blame.culprit(frames));
        let problem = held
            .entry(groups::key(entry.tgid, culprit.as_ref()))
            .or_insert_with(|| Problem {
                kind: Kind::Outstanding,
                fails,
                tgid: entry.tgid,
                culprit,
                bytes: 0,
                count: 0,
                stacks: 0,
                bytes_per_s: None,
            });
        problem.bytes = problem.bytes.saturating_add(entry.bytes);
        problem.count = problem.count.saturating_add(entry.count);
        problem.stacks += 1;
    }
    let mut held: Vec<Problem> = held.into_values().collect();
    held.sort_by_key(|problem| std::cmp::Reverse((problem.bytes, problem.count)));
    held
}
