//! Folded stacks: one line per stack, root first, frames joined by `;`, then a blank and the bytes.
//! Also what names look like there, which the flame graph shares.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::model::report::{Entry, Frame, Function, Report};
use crate::visible;

/// Writes the report's stacks, sorted; equal ones (of several classes) are summed. Where there can be several
/// processes, each is the root of its own.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write(report: &Report, out: &mut impl Write) -> io::Result<()> {
    for (stack, bytes) in fold(report, safe) {
        writeln!(out, "{stack} {bytes}")?;
    }
    Ok(())
}

/// The report's stacks, root first and joined by `;`, with their bytes; `name` makes names safe.
pub fn fold(report: &Report, name: impl Fn(&str) -> String) -> BTreeMap<String, u64> {
    let mut folded = BTreeMap::new();
    for entry in &report.entries {
        let mut stack = stack(entry, &name);
        // as stackcollapse-perf does it when it tells processes apart
        if let Some(process) = report.process_name(entry.tgid) {
            stack = format!("{};{stack}", name(&format!("{process}-{}", entry.tgid)));
        }
        let bytes: &mut u64 = folded.entry(stack).or_default();
        *bytes = bytes.saturating_add(entry.bytes);
    }
    folded
}

fn stack(entry: &Entry, name: impl Fn(&str) -> String) -> String {
    let Some(frames) = &entry.frames else {
        return name("[stack not stored]");
    };
    let names: Vec<String> = frames
        .iter()
        .rev()
        .flat_map(frame_names)
        .map(|text| name(&text))
        .collect();
    if names.is_empty() {
        name("[empty stack]")
    } else {
        names.join(";")
    }
}

/// The functions of a frame, outermost first: the one that was compiled, then those inlined in it.
pub fn frame_names(frame: &Frame) -> Vec<String> {
    let Some(function) = &frame.function else {
        return vec![unnamed(frame)];
    };
    let inlined = frame
        .inlined
        .iter()
        .rev()
        .map(|function| function.name.clone());
    let own = match frame.language {
        Some(_) => with_place(function),
        None => function.name.clone(),
    };
    std::iter::once(own).chain(inlined).collect()
}

/// A function with its file and line, as profilers of interpreted languages write it: many files have one of this name.
fn with_place(function: &Function) -> String {
    let Some(place) = &function.location else {
        return function.name.clone();
    };
    let file = place.file.file_name().unwrap_or(place.file.as_os_str());
    let file = file.to_string_lossy();
    match place.line {
        Some(line) => format!("{} ({file}:{line})", function.name),
        None => format!("{} ({file})", function.name),
    }
}

fn unnamed(frame: &Frame) -> String {
    match &frame.module {
        Some(module) => format!("[{}]", module.name()),
        None => "[unknown]".to_owned(),
    }
}

/// A name without what would end it: `;` becomes `:`, white space a blank, and what is not seen is spelled out.
pub fn safe(name: &str) -> String {
    if name.is_empty() {
        return "[unnamed]".to_owned();
    }
    visible::line(name)
        .chars()
        .map(|c| match c {
            ';' => ':',
            c if c.is_whitespace() => ' ',
            c => c,
        })
        .collect()
}
