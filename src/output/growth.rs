//! The list of growing stacks that ends the text report, from the third one on.
//! BCC's own lines are `text`'s. As tools take the last line with "byte" in it for a report's, none here says it.

use std::io::{self, Write};

use super::units;
use crate::analysis::findings::Finding;
use crate::model::report::{Frame, Function};
use crate::model::run::Limit;
use crate::visible;

/// Functions of a stack that its line names.
const NAMES: usize = 4;

/// The longest time left that is worth a word: a year, in seconds.
const SOON_S: f64 = 365.25 * 86_400.0;

/// Stacks that are listed; there is a count of the rest.
const LISTED: usize = 10;

/// Writes the growing stacks, which arrive most severe first; nothing when there are none. `limit` is what the times
/// left are about; `doubtful`: frees may be missing; `process` tells what to call a process, where there are several.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write(
    growing: &[Finding],
    limit: Option<Limit>,
    doubtful: bool,
    process: impl Fn(u32) -> Option<String>,
    out: &mut impl Write,
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
        write_finding(finding, limit, process(finding.entry.tgid), out)?;
    }
    if growing.len() > LISTED {
        writeln!(out, "\tand {} more", growing.len() - LISTED)?;
    }
    Ok(())
}

fn write_finding(
    finding: &Finding,
    limit: Option<Limit>,
    process: Option<String>,
    out: &mut impl Write,
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
    writeln!(out, ": {}", chain(entry.frames.as_deref()))
}

/// The innermost functions with a name, and where the first is: "slow_leak < main \[service\]".
fn chain(frames: Option<&[Frame]>) -> String {
    let Some(frames) = frames else {
        return "stack not stored".to_owned();
    };
    let names: Vec<String> = frames.iter().flat_map(names).take(NAMES).collect();
    let module = frames.iter().find_map(|frame| frame.module.as_ref());
    let module = module.map_or(String::new(), |module| {
        format!(" [{}]", visible::line(&module.name()))
    });
    let names = if names.is_empty() {
        "[unknown]".to_owned()
    } else {
        names.join(" < ")
    };
    names + &module
}

/// The functions of a frame as the report's own lines name them, so that they can be found there.
fn names(frame: &Frame) -> Vec<String> {
    let inlined = frame
        .inlined
        .iter()
        .map(|function| visible::line(&function.name).into_owned());
    let function = |function: &Function| {
        format!(
            "{}+{:#x}",
            visible::line(&function.name),
            frame.function_offset
        )
    };
    inlined
        .chain(frame.function.as_ref().map(function))
        .collect()
}
