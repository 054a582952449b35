//! Annotations of GitHub Actions, and the summary of a job in Markdown.
//! Where they go, and what a failure is, is decided elsewhere.

use std::io::{self, Write};
use std::path::Path;

use super::{problem, units};
use crate::analysis::findings::Findings;
use crate::analysis::gate::Tripped;
use crate::analysis::problems::{Kind, Problem};
use crate::visible;

/// Annotations of a kind that GitHub shows for a step.
const MOST: usize = 10;

/// Writes workflow commands, a line each: an error for each function that a gate tripped over and for each gate, a
/// warning for what else grows. Source files below `root` are named as the repository knows them.
///
/// # Errors
/// Whatever `out` fails with.
pub fn annotations(
    findings: &Findings,
    problems: &[Problem],
    tripped: &[Tripped],
    root: &Path,
    out: &mut impl Write,
) -> io::Result<()> {
    for tripped in tripped {
        let why = data(&tripped.why);
        writeln!(
            out,
            "::error title=memleak: failed on {}::{why}",
            property(&tripped.gate.to_string())
        )?;
    }
    let told = problems
        .iter()
        .filter(|problem| problem.fails || problem.kind == Kind::Growth);
    for problem in told.take(MOST) {
        let level = if problem.fails { "error" } else { "warning" };
        let mut properties = Vec::new();
        if let Some((file, line)) = problem::file(problem, root) {
            properties.push(format!("file={}", property(&file)));
            properties.extend(line.map(|line| format!("line={line}")));
        }
        let title = problem::title(problem, findings.growth_is_doubtful());
        properties.push(format!("title={}", property(&format!("memleak: {title}"))));
        let message = problem::message(problem, &findings.report);
        writeln!(
            out,
            "::{level} {}::{}",
            properties.join(","),
            data(&format!("{title}: {message}"))
        )?;
    }
    Ok(())
}

/// Writes a job's summary.
///
/// # Errors
/// Whatever `out` fails with.
pub fn summary(
    findings: &Findings,
    problems: &[Problem],
    tripped: &[Tripped],
    root: &Path,
    out: &mut impl Write,
) -> io::Result<()> {
    writeln!(out, "### memleak\n")?;
    match tripped {
        [] => writeln!(out, "No gate failed.")?,
        tripped => {
            for tripped in tripped {
                writeln!(
                    out,
                    "- **failed on {}**: {}",
                    tripped.gate,
                    cell(&tripped.why)
                )?;
            }
        }
    }
    let report = &findings.report;
    writeln!(
        out,
        "\n{} in {} allocations from {} stacks are outstanding.\n",
        units::size(report.total_bytes),
        report.total_count,
        report.total_stacks
    )?;
    if let Some(seconds) = findings.together.exhausted_in_s {
        writeln!(
            out,
            "Growth of {} in all uses up the memory in {}.\n",
            units::rate(findings.together.bytes_per_s),
            units::duration(seconds)
        )?;
    }
    if problems.is_empty() {
        return Ok(());
    }
    writeln!(out, "| function | where | what |\n|---|---|---|")?;
    for problem in problems.iter().take(2 * MOST) {
        let place = problem::file(problem, root).map_or(String::new(), |(file, line)| {
            line.map_or(file.clone(), |line| format!("{file}:{line}"))
        });
        writeln!(
            out,
            "| `{}` | {} | {} |",
            cell(problem.function()),
            cell(&place),
            cell(&problem::message(problem, report))
        )?;
    }
    writeln!(out)
}

/// The text of a command, as the runner takes it back.
fn data(text: &str) -> String {
    visible::line(text).replace('%', "%25")
}

/// The value of a property.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// Text in a cell of a table of Markdown.
fn cell(text: &str) -> String {
    let text = visible::line(text);
    let mut cell = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '|' => cell.push_str("\\|"),
            '`' => cell.push('\''),
            '<' => cell.push_str("&lt;"),
            '>' => cell.push_str("&gt;"),
            other => cell.push(other),
        }
    }
    cell
}
