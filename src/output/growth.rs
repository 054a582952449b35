//! The list of what grows, by who is to blame, that ends the text report, from the third one on.
//! BCC's own lines are `text`'s. As tools take the last line with "byte" in it for a report's, none here says it.

use std::io;

use super::units;
use crate::analysis::blame::Culprit;
use crate::analysis::groups::{Group, Together};
use crate::model::run::Limit;
use crate::visible::{self, Emphasis};

/// The longest time left that is worth a word: a year, in seconds.
const SOON_S: f64 = 365.25 * 86_400.0;

/// Functions that are listed; there is a count of the rest.
const LISTED: usize = 10;

/// What grows.
#[derive(Clone, Copy, Debug)]
pub struct List<'a> {
    /// By who is to blame, most severe first.
    pub groups: &'a [Group],
    /// What all of them come to.
    pub together: Together,
    /// What the time left is about.
    pub limit: Option<Limit>,
    /// Frees may have been missed.
    pub doubtful: bool,
}

/// Writes what grows, a line for each function; nothing when nothing does. `process` tells what to call a process,
/// where there are several.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write(
    list: &List<'_>,
    process: impl Fn(u32) -> Option<String>,
    out: &mut impl Emphasis,
) -> io::Result<()> {
    let groups = list.groups;
    if groups.is_empty() {
        return Ok(());
    }
    match list.doubtful {
        true => writeln!(
            out,
            "Stacks that may be growing, as frees were missed, by rate:"
        )?,
        false => writeln!(out, "Growing stacks, by proven rate:")?,
    }
    let left = time_left(list);
    for group in groups.iter().take(LISTED) {
        let left = left.as_deref().filter(|_| groups.len() == 1);
        write_group(group, left, process(group.tgid), out)?;
    }
    if groups.len() > LISTED {
        writeln!(out, "\tand {} more", groups.len() - LISTED)?;
    }
    if groups.len() > 1 {
        let left = left.map_or(String::new(), |left| format!(", {left}"));
        let rate = units::rate(list.together.bytes_per_s);
        writeln!(out, "\t+{rate} in all{left}")?;
    }
    Ok(())
}

/// "cgroup's memory limit used up in 2 h", where that is soon enough to matter.
fn time_left(list: &List<'_>) -> Option<String> {
    let seconds = list
        .together
        .exhausted_in_s
        .filter(|left| *left <= SOON_S)?;
    let limit = list.limit?.describe();
    Some(format!("{limit} used up in {}", units::duration(seconds)))
}

fn write_group(
    group: &Group,
    left: Option<&str>,
    process: Option<String>,
    out: &mut impl Emphasis,
) -> io::Result<()> {
    let growth = &group.growth;
    let rate = growth.rate.map_or(0.0, |rate| rate.bytes_per_s);
    write!(out, "\t+{}", units::rate(rate))?;
    if let Some(rate) = growth.rate {
        let (low, high) = (units::rate(rate.low), units::rate(rate.high));
        write!(out, " ({low} to {high})")?;
    }
    let span = units::duration(growth.span_ns as f64 / 1e9);
    let held = units::size(group.bytes);
    write!(out, " over {span}, {held} in {} blocks", group.count)?;
    if group.stacks.len() > 1 {
        write!(out, " of {} stacks", group.stacks.len())?;
    }
    if !growth.is_proven() {
        write!(out, ", too early to prove")?;
    }
    if let Some(left) = left {
        write!(out, ", {left}")?;
    }
    if let Some(process) = process {
        write!(out, ", {}", visible::line(&process))?;
    }
    write!(out, ": ")?;
    write_culprit(group.culprit.as_ref(), out)?;
    writeln!(out)
}

/// Who is to blame, where, and in which object: `Server::open server.cpp:12 [server]`.
fn write_culprit(culprit: Option<&Culprit>, out: &mut impl Emphasis) -> io::Result<()> {
    let Some(culprit) = culprit else {
        return write!(out, "stack not stored");
    };
    out.embolden(true)?;
    write!(out, "{}", visible::line(&culprit.function))?;
    out.embolden(false)?;
    write!(out, "{}", whereabouts(culprit))
}

/// ` server.cpp:12 [server]`, as far as it is known.
fn whereabouts(culprit: &Culprit) -> String {
    let place = culprit
        .place()
        .map_or(String::new(), |place| format!(" {}", visible::line(&place)));
    let module = culprit.module.as_ref().map_or(String::new(), |module| {
        let name = module.name();
        format!(" [{}]", visible::line(name.trim_matches(['[', ']'])))
    });
    place + &module
}
