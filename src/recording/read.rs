//! Reads a recording file back, as far as it is whole: a killed writer leaves a damaged last line behind.
//! The lines' shapes live in `wire`; other tools' logs are the importers' business.

use std::collections::HashMap;
use std::io::{self, BufRead, ErrorKind, Read as _};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::wire;
use crate::model::report::{Frame, Function, Language, Location, Module};
use crate::model::run::{
    Figure, Header, Headroom, Host, Limit, Reason, Recording, SnapshotRecord, Source, StackRecord,
    Target, TargetKind,
};
use crate::model::snapshot::{Amount, Class, Reach, WallTime};

/// Bytes of a line: a snapshot of 100,000 stacks takes a few MiB.
const MOST_LINE: u64 = 1 << 30;

/// A recording and what a user should know about the file it came from.
#[derive(Debug)]
pub struct Loaded {
    /// What could be read.
    pub recording: Recording,
    /// Sentences about what could not.
    pub warnings: Vec<String>,
}

/// Reads a recording, up to the first damaged line.
///
/// # Errors
/// When the input fails, or its first line is not the header of a recording that this version can read.
pub fn read(mut input: impl BufRead) -> Result<Loaded> {
    let mut line = Vec::new();
    next_line(&mut input, &mut line)?;
    let header = header(&line)?;
    let mut reader = Reader {
        recording: Recording {
            header,
            ..Recording::default()
        },
        ..Reader::default()
    };
    let mut warnings = Vec::new();
    for number in 2.. {
        match next_line(&mut input, &mut line) {
            Ok(true) => {}
            Ok(false) => break,
            // a compressed file whose writer was killed
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                let read = reader.recording.snapshots.len();
                warnings.push(format!(
                    "it is cut off: reading ends there, after {read} snapshots"
                ));
                break;
            }
            Err(error) => return Err(error.into()),
        }
        if let Err(error) = reader.line(&line) {
            let end = if line.ends_with(b"\n") {
                "is damaged"
            } else {
                "is cut off"
            };
            let read = reader.recording.snapshots.len();
            warnings.push(format!(
                "line {number} {end} ({error:#}): reading ends there, after {read} snapshots"
            ));
            break;
        }
    }
    Ok(Loaded {
        recording: reader.recording,
        warnings,
    })
}

/// Fills `line` with the next line and its end; false at the end of the input.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let read = input.take(MOST_LINE).read_until(b'\n', line)?;
    match read as u64 {
        MOST_LINE => Err(io::Error::other("it has a line of more than 1 GiB")),
        read => Ok(read > 0),
    }
}

fn header(line: &[u8]) -> Result<Header> {
    /// Just enough to tell a newer version from a damaged header.
    #[derive(serde::Deserialize)]
    struct Format {
        format: String,
        version: u32,
    }
    let kind: Format = serde_json::from_slice(line)
        .context("its first line is not the header of a memleak recording")?;
    ensure!(
        kind.format == wire::FORMAT,
        "its format is {:?}, not {:?}",
        kind.format,
        wire::FORMAT
    );
    ensure!(
        kind.version <= wire::VERSION,
        "it has version {} of the recording format, and this memleak reads up to {}: use a newer memleak",
        kind.version,
        wire::VERSION
    );
    serde_json::from_slice(line)
        .map(header_from)
        .context("its header is damaged")
}

fn header_from(line: wire::HeaderLine) -> Header {
    let kinds = [
        TargetKind::Process,
        TargetKind::Command,
        TargetKind::System,
        TargetKind::Kernel,
        TargetKind::Unknown,
    ];
    let kind = kinds
        .into_iter()
        .find(|kind| kind.name() == line.target.kind)
        .unwrap_or_default();
    Header {
        source: Source::Recording,
        tool: line.tool,
        command: line.command,
        host: Host {
            name: line.host.name,
            kernel: line.host.kernel,
            machine: line.host.machine,
        },
        target: Target {
            kind,
            pid: line.target.pid,
            command: line.target.command,
        },
        started: line.started.map(time_from),
        interval_ns: line.interval_ns,
        page_size: line.page_size,
    }
}

#[derive(Default)]
struct Reader {
    recording: Recording,
    modules: HashMap<u32, Arc<Module>>,
}

impl Reader {
    fn line(&mut self, line: &[u8]) -> Result<()> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        match serde_json::from_slice::<wire::Kind>(line)?.kind.as_str() {
            "header" => bail!("a second header"),
            "module" => self.module(serde_json::from_slice(line)?),
            "stack" => self.stack(serde_json::from_slice(line)?),
            "process" => self.process(serde_json::from_slice(line)?),
            "snapshot" => self.snapshot(serde_json::from_slice(line)?),
            // Something that a later memleak added without breaking what was there.
            _ => Ok(()),
        }
    }

    fn module(&mut self, line: wire::ModuleLine) -> Result<()> {
        let build_id = match &line.build_id {
            Some(text) => Some(wire::unhex(text).context("a build id that is not hexadecimal")?),
            None => None,
        };
        self.modules.insert(
            line.id,
            Arc::new(Module {
                path: line.path.into(),
                build_id,
            }),
        );
        Ok(())
    }

    fn process(&mut self, line: wire::ProcessLine) -> Result<()> {
        match line.ended_ns {
            Some(ended) => self.recording.ended.insert(line.tgid, ended),
            None => self.recording.ended.remove(&line.tgid),
        };
        self.recording.processes.insert(line.tgid, line.name);
        Ok(())
    }

    fn stack(&mut self, line: wire::StackLine) -> Result<()> {
        ensure!(
            line.id as usize == self.recording.stacks.len(),
            "stack {} is out of order",
            line.id
        );
        let class = Class::ALL
            .into_iter()
            .find(|class| class.name() == line.class);
        let class =
            class.with_context(|| format!("an unknown class of memory, {:?}", line.class))?;
        let frames = match line.frames {
            Some(parts) => Some(
                parts
                    .into_iter()
                    .map(|part| self.frame(part))
                    .collect::<Result<Vec<Frame>>>()?,
            ),
            None => None,
        };
        self.recording.stacks.push(StackRecord {
            tgid: line.tgid,
            class,
            allocator: line.allocator.map(Arc::from),
            frames,
        });
        Ok(())
    }

    fn frame(&self, part: wire::FramePart) -> Result<Frame> {
        let module = match part.module {
            Some(id) => Some(Arc::clone(
                self.modules
                    .get(&id)
                    .with_context(|| format!("no module {id}"))?,
            )),
            None => None,
        };
        Ok(Frame {
            address: part.address.0,
            module,
            file_offset: part.file_offset.map(|offset| offset.0),
            function: part.symbol.map(|name| function(name, part.file, part.line)),
            function_offset: part.symbol_offset,
            // a language that is yet to come is read as far as it is known
            language: part.language.as_deref().and_then(Language::named),
            inlined: part
                .inlined
                .into_iter()
                .map(|part| function(part.symbol, part.file, part.line))
                .collect(),
        })
    }

    fn snapshot(&mut self, line: wire::SnapshotLine) -> Result<()> {
        let stacks = self.recording.stacks.len();
        ensure!(
            line.stack.iter().all(|&stack| (stack as usize) < stacks),
            "a stack that was not described"
        );
        ensure!(line.stack.is_sorted_by(|a, b| a < b), "stacks out of order");
        let earlier = self
            .recording
            .snapshots
            .last()
            .map_or(0, |snapshot| snapshot.elapsed_ns);
        ensure!(line.elapsed_ns >= earlier, "time runs backwards");
        let reasons = [
            Reason::Interval,
            Reason::Demand,
            Reason::Mark,
            Reason::Final,
        ];
        self.recording.snapshots.push(SnapshotRecord {
            time: WallTime {
                unix_ns: line.unix_ns,
                utc_offset_s: line.utc_offset_s,
            },
            elapsed_ns: line.elapsed_ns,
            reason: reasons
                .into_iter()
                .find(|reason| reason.name() == line.reason)
                .unwrap_or_default(),
            figures: figures(&line)?,
            complete: line.complete,
            reach: reach(&line)?,
            look: line.look.map(|look| *look),
            estimated: line.estimated,
            losses: line.losses,
            rss_bytes: line.rss_bytes,
            headroom: line.headroom.and_then(headroom_from),
        });
        Ok(())
    }
}

fn figures(line: &wire::SnapshotLine) -> Result<Vec<Figure>> {
    let length = line.stack.len();
    ensure!(
        line.bytes.len() == length && line.count.len() == length,
        "columns of different lengths"
    );
    ensure!(
        line.oldest_ns.is_empty() || line.oldest_ns.len() == length,
        "columns of different lengths"
    );
    let figure = |(at, &stack): (usize, &u32)| Figure {
        stack,
        bytes: line.bytes[at],
        count: line.count[at],
        oldest_ns: line.oldest_ns.get(at).copied().flatten(),
    };
    Ok(line.stack.iter().enumerate().map(figure).collect())
}

fn reach(line: &wire::SnapshotLine) -> Result<Vec<Reach>> {
    let length = line.reach.len();
    ensure!(
        length == 0 || length == line.stack.len(),
        "columns of different lengths"
    );
    let amount = |bytes, count| Amount { bytes, count };
    let reach = |&[lost, losts, indirect, indirects, undecided, undecideds]: &[u64; 6]| Reach {
        lost: amount(lost, losts),
        lost_indirectly: amount(indirect, indirects),
        undecided: amount(undecided, undecideds),
    };
    Ok(line.reach.iter().map(reach).collect())
}

fn time_from(part: wire::TimePart) -> WallTime {
    WallTime {
        unix_ns: part.unix_ns,
        utc_offset_s: part.utc_offset_s,
    }
}

fn headroom_from(part: wire::HeadroomPart) -> Option<Headroom> {
    let limit = [Limit::Cgroup, Limit::Rlimit, Limit::Available]
        .into_iter()
        .find(|limit| limit.name() == part.limit)?;
    Some(Headroom {
        bytes: part.bytes,
        limit,
    })
}

fn function(name: String, file: Option<String>, line: Option<u32>) -> Function {
    Function {
        name,
        location: file.map(|file| Location {
            file: file.into(),
            line,
        }),
    }
}

#[cfg(test)]
mod tests;
