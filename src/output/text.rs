//! The text report: BCC's, byte for byte, which other tools read. What BCC lacks follows at the end of its
//! lines, or on lines of its own for inlined frames.

use std::collections::BTreeSet;
use std::io::{self, Write};

use super::{lost, units};
use crate::analysis::blame::Blame;
use crate::analysis::calls::calls;
use crate::model::report::{Entry, Frame, Function, ListedAllocation, ProcessEntry, Report};
use crate::visible::{self, Emphasis};

/// Processes that are listed of those that have ended and left nothing.
const LISTED: usize = 10;

/// Writes a report; the calls to blame stand out where they can.
pub fn write_text(report: &Report, blame: &Blame, out: &mut impl Emphasis) -> io::Result<()> {
    let (hour, minute, second) = report.time.hms();
    writeln!(
        out,
        "[{hour:02}:{minute:02}:{second:02}] Top {} stacks with outstanding allocations:",
        report.top
    )?;
    match report.processes.is_empty() {
        true => write_part(report, blame, |_| true, out),
        false => write_processes(report, blame, out),
    }?;
    report
        .look
        .as_ref()
        .map_or(Ok(()), |look| lost::write(look, out))
}

/// What belongs to the processes that are wanted: blocks, then stacks.
fn write_part(
    report: &Report,
    blame: &Blame,
    wanted: impl Fn(u32) -> bool,
    out: &mut impl Emphasis,
) -> io::Result<()> {
    for listed in report.allocations.iter().filter(|of| wanted(of.tgid)) {
        write_allocation(listed, out)?;
    }
    for entry in report.entries.iter().filter(|of| wanted(of.tgid)) {
        write_entry(entry, report.estimated, blame, out)?;
    }
    Ok(())
}

/// A part for each process, the one that holds most last. Those that hold nothing are left out, unless they have
/// ended. As tools take the last line with "byte" in it for a report's, none here says it.
fn write_processes(report: &Report, blame: &Blame, out: &mut impl Emphasis) -> io::Result<()> {
    let shown: BTreeSet<u32> = report.entries.iter().map(|entry| entry.tgid).collect();
    let mut processes: Vec<&ProcessEntry> = report.processes.iter().collect();
    processes.sort_by_key(|process| (process.bytes, process.count, process.tgid));
    let (empty, holding): (Vec<_>, Vec<_>) = processes
        .into_iter()
        .partition(|process| process.count == 0);
    let ended: Vec<String> = empty
        .iter()
        .filter(|process| process.ended)
        .map(|process| of_process(process))
        .collect();
    if !ended.is_empty() {
        let more = ended.len().saturating_sub(LISTED);
        let listed = ended[..ended.len() - more].join(", ");
        let more = match more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        writeln!(out, "Ended, with nothing left: {listed}{more}")?;
    }
    let (part, left_out): (Vec<&ProcessEntry>, Vec<_>) = holding
        .into_iter()
        .partition(|process| shown.contains(&process.tgid));
    if !left_out.is_empty() {
        let sum = |figure: fn(&ProcessEntry) -> u64| {
            left_out
                .iter()
                .fold(0u64, |sum, process| sum.saturating_add(figure(process)))
        };
        writeln!(
            out,
            "{} more processes hold {} in {} blocks (--top-processes shows more)",
            left_out.len(),
            units::size(sum(|process| process.bytes)),
            sum(|process| process.count)
        )?;
    }
    for process in part {
        let ended = if process.ended { ", ended" } else { "" };
        writeln!(out, "Process {}{ended}:", of_process(process))?;
        write_part(report, blame, |tgid| tgid == process.tgid, out)?;
    }
    Ok(())
}

/// "4711 (nginx)"
fn of_process(process: &ProcessEntry) -> String {
    format!("{} ({})", process.tgid, visible::line(&process.name))
}

fn write_allocation(listed: &ListedAllocation, out: &mut impl Write) -> io::Result<()> {
    let block = &listed.allocation;
    write!(
        out,
        "\taddr = {:x} size = {} tid = {} age = {} ms",
        block.address,
        block.size,
        block.tid,
        block.age_ns / 1_000_000
    )?;
    if let Some(cache) = &listed.cache {
        write!(out, " cache = {}", visible::line(cache))?;
    }
    if let Some(allocator) = &listed.allocator {
        write!(out, " allocator = {}", visible::line(allocator))?;
    }
    writeln!(out)
}

fn write_entry(
    entry: &Entry,
    estimated: bool,
    blame: &Blame,
    out: &mut impl Emphasis,
) -> io::Result<()> {
    let about = if estimated { "~" } else { "" };
    writeln!(
        out,
        "\t{about}{} bytes in {about}{} allocations from stack{}",
        entry.bytes,
        entry.count,
        lost::suffix(entry, about)
    )?;
    let Some(frames) = &entry.frames else {
        return writeln!(out, "\t\t[stack not stored]");
    };
    // every frame is as many calls as it has functions
    let mut to_blame = blame.position(&calls(frames)) as isize;
    for frame in frames {
        let strong = usize::try_from(to_blame).ok();
        write_frame(frame, strong, out)?;
        to_blame -= frame.inlined.len() as isize + 1;
    }
    Ok(())
}

/// Writes a frame's lines; the one at `strong`, counted from the frame's first, stands out.
fn write_frame(frame: &Frame, strong: Option<usize>, out: &mut impl Emphasis) -> io::Result<()> {
    let address = frame.address;
    for (at, function) in frame.inlined.iter().enumerate() {
        out.embolden(strong == Some(at))?;
        write!(
            out,
            "\t\t0x{address:016x}\t{} [inlined]",
            visible::line(&function.name)
        )?;
        write_location(function, out)?;
        out.embolden(false)?;
    }
    out.embolden(strong == Some(frame.inlined.len()))?;
    write!(out, "\t\t0x{address:016x}\t")?;
    match &frame.function {
        Some(function) => {
            write!(out, "{}", visible::line(&function.name))?;
            // where it is in interpreted code, its line says
            if frame.language.is_none() {
                write!(out, "+0x{:x}", frame.function_offset)?;
            }
        }
        None => write!(out, "[unknown]")?,
    }
    if let Some(module) = &frame.module {
        write!(out, " {}", bracketed(&visible::line(&module.name())))?;
    }
    match &frame.function {
        Some(function) => write_location(function, out)?,
        None => writeln!(out)?,
    }
    out.embolden(false)
}

/// Pseudo modules such as `[vdso]` have their brackets already.
fn bracketed(module: &str) -> String {
    match module.starts_with('[') {
        true => module.to_string(),
        false => format!("[{module}]"),
    }
}

/// Ends the line, with the place in the source if it is known.
fn write_location(function: &Function, out: &mut impl Write) -> io::Result<()> {
    match &function.location {
        Some(location) => match location.line {
            Some(line) => writeln!(
                out,
                " {}:{line}",
                visible::line(&location.file.to_string_lossy())
            ),
            None => writeln!(out, " {}", visible::line(&location.file.to_string_lossy())),
        },
        None => writeln!(out),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::model::report::{Location, Module};
    use crate::model::snapshot::{Allocation, Class, WallTime};

    fn function(name: &str, place: Option<(&str, u32)>) -> Function {
        Function {
            name: name.into(),
            location: place.map(|(file, line)| Location {
                file: PathBuf::from(file),
                line: Some(line),
            }),
        }
    }

    fn report() -> Report {
        let module = |path: &str| {
            Some(Arc::new(Module {
                path: PathBuf::from(path),
                build_id: None,
            }))
        };
        let frames = vec![
            Frame {
                address: 0x55dd_e4ed_4181,
                module: module("/usr/bin/allocs"),
                function: Some(function("main", Some(("src/allocs.c", 12)))),
                function_offset: 0x6d,
                inlined: vec![function("leak", Some(("src/allocs.c", 5)))],
                ..Frame::default()
            },
            Frame {
                address: 0x7fbd_5c4a_124a,
                module: module("/lib/libc.so.6"),
                function: Some(function("__libc_start_call_main", None)),
                function_offset: 0x7a,
                ..Frame::default()
            },
            Frame {
                address: 0x7ffc_0000_0010,
                module: module("[vdso]"),
                ..Frame::default()
            },
            Frame {
                address: 0x10,
                ..Frame::default()
            },
        ];
        let listed = |size, cache| ListedAllocation {
            tgid: 1,
            allocation: Allocation {
                address: 0x0094_8cd0,
                size,
                tid: 77,
                age_ns: 1_234_567_890,
            },
            cache,
            allocator: None,
        };
        let entry = |bytes, count, frames| Entry {
            allocator: None,
            tgid: 1,
            class: Class::Heap,
            bytes,
            count,
            oldest_ns: None,
            reach: None,
            frames,
        };
        Report {
            time: WallTime {
                unix_ns: (11 * 3600 + 16 * 60 + 33) * 1_000_000_000,
                utc_offset_s: 0,
            },
            top: 10,
            entries: vec![entry(16, 1, None), entry(80, 5, Some(frames))],
            allocations: vec![listed(16, None), listed(520, Some("leaky_objects".into()))],
            ..Report::default()
        }
    }

    fn text(report: &Report) -> String {
        let mut out = Vec::new();
        write_text(report, &Blame::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_report_is_bccs() {
        let expected = "\
[11:16:33] Top 10 stacks with outstanding allocations:
\taddr = 948cd0 size = 16 tid = 77 age = 1234 ms
\taddr = 948cd0 size = 520 tid = 77 age = 1234 ms cache = leaky_objects
\t16 bytes in 1 allocations from stack
\t\t[stack not stored]
\t80 bytes in 5 allocations from stack
\t\t0x000055dde4ed4181\tleak [inlined] src/allocs.c:5
\t\t0x000055dde4ed4181\tmain+0x6d [allocs] src/allocs.c:12
\t\t0x00007fbd5c4a124a\t__libc_start_call_main+0x7a [libc.so.6]
\t\t0x00007ffc00000010\t[unknown] [vdso]
\t\t0x0000000000000010\t[unknown]
";
        assert_eq!(text(&report()), expected);
    }

    #[test]
    fn several_processes_get_a_part_each_the_largest_last() {
        let mut report = report();
        report.allocations.clear();
        report.entries.drain(1..);
        let mut of = |tgid, bytes| {
            let mut entry = report.entries[0].clone();
            (entry.tgid, entry.bytes) = (tgid, bytes);
            report.entries.push(entry);
        };
        of(2, 5);
        of(3, 7);
        let process = |tgid, name: &str, ended| ProcessEntry {
            tgid,
            name: name.into(),
            ended,
            ..ProcessEntry::default()
        };
        report.processes = vec![
            process(1, "one", false),
            process(2, "a (b)\n", true),
            process(3, "three", false),
            process(4, "idle", false),
            process(5, "gone", true),
        ];
        report.sum_processes();
        report.entries.retain(|entry| entry.tgid != 3);
        let expected = "\
[11:16:33] Top 10 stacks with outstanding allocations:
Ended, with nothing left: 5 (gone)
1 more processes hold 7 B in 1 blocks (--top-processes shows more)
Process 2 (a (b)\\n), ended:
\t5 bytes in 1 allocations from stack
\t\t[stack not stored]
Process 1 (one):
\t16 bytes in 1 allocations from stack
\t\t[stack not stored]
";
        assert_eq!(text(&report), expected);
    }

    #[test]
    fn estimates_are_marked() {
        let mut report = report();
        report.estimated = true;
        assert!(text(&report).contains("\t~80 bytes in ~5 allocations from stack\n"));
    }
}
