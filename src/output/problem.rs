//! Words for what a run has to answer for, which the formats for machines share.
//! What is told is decided in `analysis`.

use std::path::Path;

use super::units;
use crate::analysis::problems::{Kind, Problem};
use crate::model::report::Report;

/// Functions that hold memory and are listed one by one; there may be thousands.
pub const MOST_OUTSTANDING: usize = 50;

/// The functions to list: all that grow, and the largest of the others.
pub fn listed(problems: &[Problem]) -> impl Iterator<Item = &Problem> {
    let growing = problems
        .iter()
        .filter(|problem| problem.kind == Kind::Growth);
    let outstanding = problems
        .iter()
        .filter(|problem| problem.kind == Kind::Outstanding);
    growing.chain(outstanding.take(MOST_OUTSTANDING))
}

/// "Server::open grows", "Server::open holds memory".
pub fn title(problem: &Problem, doubtful: bool) -> String {
    let verb = match (problem.kind, doubtful) {
        (Kind::Growth, false) => "grows",
        (Kind::Growth, true) => "may grow",
        (Kind::Outstanding, _) => "holds memory",
    };
    format!("{} {verb}", problem.function())
}

/// "+1.2 KiB/s, 26 KiB in 13 allocations from 2 stacks, pid 12 (server)".
pub fn message(problem: &Problem, report: &Report) -> String {
    let mut parts = Vec::new();
    if let Some(rate) = problem.bytes_per_s {
        parts.push(format!("+{}", units::rate(rate)));
    }
    let plural = |number: u64| if number == 1 { "" } else { "s" };
    parts.push(format!(
        "{} in {} allocation{} from {} stack{}",
        units::size(problem.bytes),
        problem.count,
        plural(problem.count),
        problem.stacks,
        plural(problem.stacks as u64)
    ));
    if let Some(name) = report.process_name(problem.tgid) {
        parts.push(format!("pid {} ({name})", problem.tgid));
    }
    parts.join(", ")
}

/// The source file as a repository knows it: below `root` without it, others as they are.
pub fn file(problem: &Problem, root: &Path) -> Option<(String, Option<u32>)> {
    let location = problem.culprit.as_ref()?.location.as_ref()?;
    let file = location.file.strip_prefix(root).unwrap_or(&location.file);
    Some((file.to_string_lossy().into_owned(), location.line))
}
