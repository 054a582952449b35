//! Writes a recording as JSON Lines while it grows: header, then stacks once each, then every snapshot, flushed.
//! The lines' shapes live in `wire`; reading lives in `read`.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use super::wire::{self, Hex, Line};
use crate::model::report::{Frame, Function, Location, Module, hex};
use crate::model::run::{Header, Recording, SnapshotRecord, StackRecord};
use crate::model::snapshot::{Reach, WallTime};
use crate::visible::{Spelling, Visible};

/// A recording file in the making.
pub struct Writer<W: Write> {
    out: W,
    modules: HashMap<Arc<Module>, u32>,
    stacks_written: usize,
    processes_written: BTreeMap<u32, (String, Option<u64>)>,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// Whatever `out` fails with.
    pub fn new(out: W, header: &Header) -> io::Result<Writer<W>> {
        let mut writer = Writer {
            out,
            modules: HashMap::new(),
            stacks_written: 0,
            processes_written: BTreeMap::new(),
        };
        writer.line(&Line::Header(header_line(header)))?;
        writer.out.flush()?;
        Ok(writer)
    }

    /// Writes `snapshot`, after those of the recording's processes and stacks that are new since the last call, and
    /// flushes: a kill loses at most the snapshot being written.
    ///
    /// # Errors
    /// Whatever the output fails with; the file then ends in a damaged line, and everything before it can be read.
    pub fn append(&mut self, recording: &Recording, snapshot: &SnapshotRecord) -> io::Result<()> {
        let stacks = &recording.stacks;
        self.processes(recording)?;
        for (id, stack) in stacks.iter().enumerate().skip(self.stacks_written) {
            self.stack(id as u32, stack)?;
        }
        self.stacks_written = self.stacks_written.max(stacks.len());
        self.line(&Line::Snapshot(snapshot_line(snapshot)))?;
        self.out.flush()
    }

    /// The processes of which there is something new to tell.
    fn processes(&mut self, recording: &Recording) -> io::Result<()> {
        for (&tgid, name) in &recording.processes {
            let ended_ns = recording.ended.get(&tgid).copied();
            let written = self.processes_written.get(&tgid);
            if written.is_none_or(|(known, ended)| known != name || *ended != ended_ns) {
                let name = name.clone();
                self.processes_written
                    .insert(tgid, (name.clone(), ended_ns));
                self.line(&Line::Process(wire::ProcessLine {
                    tgid,
                    name,
                    ended_ns,
                }))?;
            }
        }
        Ok(())
    }

    fn stack(&mut self, id: u32, stack: &StackRecord) -> io::Result<()> {
        let mut frames = None;
        if let Some(known) = &stack.frames {
            let parts = known
                .iter()
                .map(|frame| self.frame(frame))
                .collect::<io::Result<Vec<_>>>()?;
            frames = Some(parts);
        }
        let class = stack.class.name().to_owned();
        self.line(&Line::Stack(wire::StackLine {
            id,
            tgid: stack.tgid,
            class,
            allocator: stack.allocator.as_deref().map(str::to_owned),
            frames,
        }))
    }

    fn frame(&mut self, frame: &Frame) -> io::Result<wire::FramePart> {
        let module = frame
            .module
            .as_ref()
            .map(|module| self.module(module))
            .transpose()?;
        let (file, line) = place(frame.function.as_ref());
        Ok(wire::FramePart {
            address: Hex(frame.address),
            module,
            file_offset: frame.file_offset.map(Hex),
            language: frame.language.map(|language| language.name().to_owned()),
            symbol: frame
                .function
                .as_ref()
                .map(|function| function.name.clone()),
            symbol_offset: frame.function_offset,
            file,
            line,
            inlined: frame.inlined.iter().map(inlined).collect(),
        })
    }

    fn module(&mut self, module: &Arc<Module>) -> io::Result<u32> {
        if let Some(&id) = self.modules.get(module) {
            return Ok(id);
        }
        let id = self.modules.len() as u32;
        let build_id = module.build_id.as_deref().map(hex);
        self.line(&Line::Module(wire::ModuleLine {
            id,
            path: lossy(&module.path),
            build_id,
        }))?;
        self.modules.insert(Arc::clone(module), id);
        Ok(id)
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        // One write per line, so that a line is whole or absent in the file as far as the system allows.
        let mut bytes = Vec::new();
        serde_json::to_writer(Visible::new(&mut bytes, Spelling::Json), line)?;
        bytes.push(b'\n');
        self.out.write_all(&bytes)
    }
}

fn header_line(header: &Header) -> wire::HeaderLine {
    wire::HeaderLine {
        format: wire::FORMAT.to_owned(),
        version: wire::VERSION,
        tool: header.tool.clone(),
        command: header.command.clone(),
        host: wire::HostPart {
            name: header.host.name.clone(),
            kernel: header.host.kernel.clone(),
            machine: header.host.machine.clone(),
        },
        target: wire::TargetPart {
            kind: header.target.kind.name().to_owned(),
            pid: header.target.pid,
            command: header.target.command.clone(),
        },
        started: header.started.map(time_part),
        interval_ns: header.interval_ns,
        page_size: header.page_size,
    }
}

fn snapshot_line(snapshot: &SnapshotRecord) -> wire::SnapshotLine {
    let figures = &snapshot.figures;
    let ages_known = figures.iter().any(|figure| figure.oldest_ns.is_some());
    wire::SnapshotLine {
        unix_ns: snapshot.time.unix_ns,
        utc_offset_s: snapshot.time.utc_offset_s,
        elapsed_ns: snapshot.elapsed_ns,
        reason: snapshot.reason.name().to_owned(),
        estimated: snapshot.estimated,
        complete: snapshot.complete,
        rss_bytes: snapshot.rss_bytes,
        headroom: snapshot.headroom.map(|headroom| wire::HeadroomPart {
            bytes: headroom.bytes,
            limit: headroom.limit.name().to_owned(),
        }),
        losses: snapshot.losses,
        stack: figures.iter().map(|figure| figure.stack).collect(),
        bytes: figures.iter().map(|figure| figure.bytes).collect(),
        count: figures.iter().map(|figure| figure.count).collect(),
        oldest_ns: figures
            .iter()
            .filter(|_| ages_known)
            .map(|figure| figure.oldest_ns)
            .collect(),
        reach: snapshot.reach.iter().map(reach_part).collect(),
        look: snapshot.look.clone().map(Box::new),
    }
}

fn reach_part(reach: &Reach) -> [u64; 6] {
    let Reach {
        lost,
        lost_indirectly,
        undecided,
    } = reach;
    [
        lost.bytes,
        lost.count,
        lost_indirectly.bytes,
        lost_indirectly.count,
        undecided.bytes,
        undecided.count,
    ]
}

fn time_part(time: WallTime) -> wire::TimePart {
    wire::TimePart {
        unix_ns: time.unix_ns,
        utc_offset_s: time.utc_offset_s,
    }
}

fn inlined(function: &Function) -> wire::InlinedPart {
    let (file, line) = place(Some(function));
    wire::InlinedPart {
        symbol: function.name.clone(),
        file,
        line,
    }
}

fn place(function: Option<&Function>) -> (Option<String>, Option<u32>) {
    match function.and_then(|function| function.location.as_ref()) {
        Some(Location { file, line }) => (Some(lossy(file)), *line),
        None => (None, None),
    }
}

fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
