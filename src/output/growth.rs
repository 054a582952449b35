//! The list of growing stacks that ends the text report, from the third one on.
//! BCC's own lines are `text`'s. As tools take the last line with "byte" in it for a report's, none here says it.

use std::io;

use super::units;
use crate::analysis::blame::{Blame, Culprit};
use crate::analysis::findings::Finding;
use crate::model::report::Frame;
use crate::model::run::Limit;
use crate::visible::{self, Emphasis};

/// The longest time left that is worth a word: a year, in seconds.
const SOON_S: f64 = 365.25 * 86_400.0;

/// Stacks that are listed; there is a count of the rest.
const LISTED: usize = 10;

/// Writes the growing stacks, which arrive most severe first; nothing when there are none. `limit` is what the times
/// left are about; `doubtful`: frees may be missing; `blame` says who is named; `process` tells what to call a process, where there are several.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write(
    growing: &[Finding],
    limit: Option<Limit>,
    doubtful: bool,
    blame: &Blame,
    process: impl Fn(u32) -> Option<String>,
    out: &mut impl Emphasis,
) -> io::Result<()> {
    if growing.is_empty() {
        return Ok(());
    }
    match doubtful {
        true => writeln!(
            out,
            "Stacks that may be growing, as frees were missed, by rate:"
        )?,
        false => writeln!(out, "Growing stacks, by proven rate:")?,
    }
    for finding in growing.iter().take(LISTED) {
        write_finding(finding, limit, blame, process(finding.entry.tgid), out)?;
    }
    if growing.len() > LISTED {
        writeln!(out, "\tand {} more", growing.len() - LISTED)?;
    }
    Ok(())
}

fn write_finding(
    finding: &Finding,
    limit: Option<Limit>,
    blame: &Blame,
    process: Option<String>,
    out: &mut impl Emphasis,
) -> io::Result<()> {
    let Finding { entry, growth } = finding;
    let rate = growth.rate.map_or(0.0, |rate| rate.bytes_per_s);
    write!(out, "\t+{}", units::rate(rate))?;
    if let Some(rate) = growth.rate {
        write!(
            out,
            " ({} to {})",
            units::rate(rate.low),
            units::rate(rate.high)
        )?;
    }
    let span = units::duration(growth.span_ns as f64 / 1e9);
    write!(
        out,
        " over {span}, {} in {} blocks",
        units::size(entry.bytes),
        entry.count
    )?;
    if let (Some(seconds @ ..=SOON_S), Some(limit)) = (growth.exhausted_in_s, limit) {
        write!(
            out,
            ", {} used up in {}",
            limit.describe(),
            units::duration(seconds)
        )?;
    }
    if let Some(process) = process {
        write!(out, ", {}", visible::line(&process))?;
    }
    write!(out, ": ")?;
    write_culprit(entry.frames.as_deref(), blame, out)?;
    writeln!(out)
}

/// Who is to blame, where, and in which object: `Server::open server.cpp:12 [server]`.
fn write_culprit(
    frames: Option<&[Frame]>,
    blame: &Blame,
    out: &mut impl Emphasis,
) -> io::Result<()> {
    let Some(frames) = frames else {
        return write!(out, "stack not stored");
    };
    let Some(culprit) = blame.culprit(frames) else {
        return write!(out, "[unknown]");
    };
    out.embolden(true)?;
    write!(out, "{}", visible::line(&culprit.function))?;
    out.embolden(false)?;
    write!(out, "{}", whereabouts(&culprit))
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
