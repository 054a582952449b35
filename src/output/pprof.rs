//! The profile.proto format of pprof, gzipped: what `go tool pprof`, Pyroscope, Parca and Speedscope open.
//! The messages' shapes are in `proto`; this fills them.

mod interest;
mod proto;

use std::collections::HashMap;
use std::hash::Hash;
use std::io::{self, Write};
use std::sync::Arc;

use flate2::{Compression, GzBuilder};
use prost::Message;

use crate::analysis::blame::Blame;
use crate::analysis::calls::calls;
use crate::model::report::{Entry, Frame, Function, Module, Report, hex};
use crate::model::snapshot::Reach;
use proto::{Label, Line, Location, Mapping, Profile, Sample, ValueType};

/// Bytes of a page: mappings are said to end on one.
const PAGE: u64 = 4096;

/// Writes the report's stacks with their outstanding bytes and allocations, and with allocations so far where they
/// are known. `blame` says which function is in view; `dated` whether the report's time has a date; `duration_ns` is how long the run lasted.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write(
    report: &Report,
    blame: &Blame,
    dated: bool,
    duration_ns: u64,
    out: &mut impl Write,
) -> io::Result<()> {
    let bytes = profile(report, blame, dated, duration_ns).encode_to_vec();
    // No name and no time in the gzip header, so that equal input gives equal output.
    let mut gzip = GzBuilder::new().write(out, Compression::default());
    gzip.write_all(&bytes)?;
    gzip.finish()?;
    Ok(())
}

fn profile(report: &Report, blame: &Blame, dated: bool, duration_ns: u64) -> Profile {
    let mut builder = Builder::default();
    builder.strings.number("");
    let types = vec![
        builder.value_type("inuse_objects", "count"),
        builder.value_type("inuse_space", "bytes"),
    ];
    // Largest first, as viewers without an order of their own show them.
    let samples = report
        .entries
        .iter()
        .rev()
        .map(|entry| builder.sample(entry, report.process_name(entry.tgid)))
        .collect();
    let period_type = Some(builder.value_type("space", "bytes"));
    let default_sample_type = builder.text("inuse_space");
    let estimated = "figures are estimates scaled up from a sample";
    let comment = if report.estimated {
        vec![builder.text(estimated)]
    } else {
        Vec::new()
    };
    let (dropped, kept) = interest::expressions(&report.entries, blame);
    let (drop_frames, keep_frames) = (builder.text(&dropped), builder.text(&kept));
    let main = main_module(&report.entries, blame);
    Profile {
        sample_type: types,
        sample: samples,
        drop_frames,
        keep_frames,
        mapping: builder.mappings(main.as_deref()),
        location: builder.locations,
        function: builder.functions,
        string_table: builder.strings.list,
        time_nanos: if dated { report.time.unix_ns } else { 0 },
        duration_nanos: signed(duration_ns),
        period_type,
        period: 1,
        comment,
        default_sample_type,
    }
}

/// What most of a stack's bytes are.
fn state_of(entry: &Entry, reach: Reach) -> &'static str {
    let held = entry.bytes.saturating_sub(reach.not_held().bytes);
    let states = [
        (reach.lost.bytes, "lost"),
        (reach.lost_indirectly.bytes, "lost indirectly"),
        (reach.undecided.bytes, "undecided"),
        (held, "held"),
    ];
    // of several that are equal, the first
    let most = states.into_iter().rev().max_by_key(|(bytes, _)| *bytes);
    most.map_or("held", |(_, state)| state)
}

/// The main program: the object that holds the outermost function of the user's on most bytes.
fn main_module(entries: &[Entry], blame: &Blame) -> Option<Arc<Module>> {
    let mut bytes: HashMap<&Arc<Module>, u64> = HashMap::new();
    for entry in entries {
        let calls = calls(entry.frames.as_deref().unwrap_or_default());
        let outermost = calls.iter().rev().find(|call| blame.is_users(call));
        if let Some(module) = outermost.and_then(|call| call.module) {
            let sum = bytes.entry(module).or_default();
            *sum = sum.saturating_add(entry.bytes.max(1));
        }
    }
    let most = bytes
        .into_iter()
        .max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(a.0)))?;
    Some(Arc::clone(most.0))
}

/// The tables of a profile in the making. Ids count from 1; 0 means none.
#[derive(Default)]
struct Builder {
    strings: Numbered<String>,
    modules: Numbered<Mapped>,
    /// What is known of each of `modules`.
    seen: Vec<Seen>,
    frames: HashMap<(u32, Frame), u64>,
    locations: Vec<Location>,
    function_ids: HashMap<(String, String), u64>,
    functions: Vec<proto::Function>,
}

/// A module, and the address of its file's first byte where that is known: it differs between processes.
type Mapped = (Arc<Module>, Option<u64>);

/// What the frames in a module were like.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// The end of the page of the highest address.
    end: u64,
    functions: bool,
    files: bool,
}

/// Distinct values in the order in which they first came.
struct Numbered<T> {
    list: Vec<T>,
    numbers: HashMap<T, usize>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Numbered<T> {
        Numbered {
            list: Vec::new(),
            numbers: HashMap::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Numbered<T> {
    fn number<Q>(&mut self, value: &Q) -> usize
    where
        T: std::borrow::Borrow<Q>,
        Q: ToOwned<Owned = T> + Eq + Hash + ?Sized,
    {
        if let Some(&number) = self.numbers.get(value) {
            return number;
        }
        let number = self.list.len();
        self.list.push(value.to_owned());
        self.numbers.insert(value.to_owned(), number);
        number
    }
}

impl Builder {
    fn text(&mut self, text: &str) -> i64 {
        self.strings.number(text) as i64
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType {
            r#type: self.text(kind),
            unit: self.text(unit),
        }
    }

    fn sample(&mut self, entry: &Entry, process: Option<&str>) -> Sample {
        let value = vec![signed(entry.count), signed(entry.bytes)];
        let location_id = match &entry.frames {
            Some(frames) => frames
                .iter()
                .map(|frame| self.location(entry.tgid, frame))
                .collect(),
            None => vec![self.not_stored()],
        };
        Sample {
            location_id,
            value,
            label: self.labels(entry, process),
        }
    }

    fn labels(&mut self, entry: &Entry, process: Option<&str>) -> Vec<Label> {
        let class = Label {
            key: self.text("class"),
            str: self.text(entry.class.name()),
            ..Label::default()
        };
        let mut labels = vec![class];
        if let Some(allocator) = &entry.allocator {
            labels.push(Label {
                key: self.text("allocator"),
                str: self.text(allocator),
                ..Label::default()
            });
        }
        if entry.tgid != 0 {
            labels.push(Label {
                key: self.text("pid"),
                num: i64::from(entry.tgid),
                ..Label::default()
            });
        }
        if let Some(reach) = entry.reach {
            let state = state_of(entry, reach);
            labels.push(Label {
                key: self.text("reach"),
                str: self.text(state),
                ..Label::default()
            });
        }
        if let Some(process) = process {
            labels.push(Label {
                key: self.text("process"),
                str: self.text(process),
                ..Label::default()
            });
        }
        labels
    }

    /// A frame that stands for a stack that could not be stored.
    fn not_stored(&mut self) -> u64 {
        let function = Some(Function {
            name: "[stack not stored]".to_owned(),
            location: None,
        });
        self.location(
            0,
            &Frame {
                function,
                ..Frame::default()
            },
        )
    }

    fn location(&mut self, tgid: u32, frame: &Frame) -> u64 {
        if let Some(&id) = self.frames.get(&(tgid, frame.clone())) {
            return id;
        }
        let id = self.locations.len() as u64 + 1;
        // The call, not the instruction after it: that one may belong to another line or function.
        let address = frame.address.saturating_sub(1);
        let mapping_id = self.mapping(frame, address);
        let line = frame
            .inlined
            .iter()
            .chain(&frame.function)
            .map(|function| self.line(function))
            .collect();
        self.locations.push(Location {
            id,
            mapping_id,
            address,
            line,
            is_folded: false,
        });
        self.frames.insert((tgid, frame.clone()), id);
        id
    }

    /// The mapping that holds a frame. Modules are told apart by where they lie, as that differs between processes.
    fn mapping(&mut self, frame: &Frame, address: u64) -> u64 {
        let Some(module) = &frame.module else {
            return 0;
        };
        let base = frame
            .file_offset
            .and_then(|offset| frame.address.checked_sub(offset));
        let number = self.modules.number(&(Arc::clone(module), base));
        self.seen.resize(self.modules.list.len(), Seen::default());
        let seen = &mut self.seen[number];
        seen.end = seen
            .end
            .max((address / PAGE).saturating_add(1).saturating_mul(PAGE));
        seen.functions |= frame.function.is_some();
        seen.files |= frame
            .function
            .as_ref()
            .is_some_and(|function| function.location.is_some());
        number as u64 + 1
    }

    /// The mappings, that of the main program first, as viewers take the first one for it.
    fn mappings(&mut self, main: Option<&Module>) -> Vec<Mapping> {
        let is_main: Vec<bool> = self
            .modules
            .list
            .iter()
            .map(|(module, _)| main == Some(module.as_ref()))
            .collect();
        let modules = std::mem::take(&mut self.modules.list);
        let seen = std::mem::take(&mut self.seen);
        let mapping = |(at, ((module, base), seen)): (usize, (Mapped, Seen))| {
            // Where the file's offset is unknown, so is where the mapping begins.
            let (memory_start, memory_limit) = base.map_or((0, 0), |base| (base, seen.end));
            let build_id = hex(module.build_id.as_deref().unwrap_or_default());
            Mapping {
                id: at as u64 + 1,
                memory_start,
                memory_limit,
                file_offset: 0,
                filename: self.strings.number(module.path.to_string_lossy().as_ref()) as i64,
                build_id: self.strings.number(build_id.as_str()) as i64,
                // Without these, viewers look for the file and its names by themselves.
                has_functions: seen.functions,
                has_filenames: seen.files,
                has_line_numbers: seen.files,
                has_inline_frames: seen.files,
            }
        };
        let mut mappings: Vec<Mapping> = modules
            .into_iter()
            .zip(seen)
            .enumerate()
            .map(mapping)
            .collect();
        // stable: the others stay in order, and ids stay what they are
        mappings.sort_by_key(|mapping| !is_main[mapping.id as usize - 1]);
        mappings
    }

    fn line(&mut self, function: &Function) -> Line {
        let place = function.location.as_ref();
        let line = place.and_then(|place| place.line).unwrap_or(0);
        let file = place.map_or(String::new(), |place| {
            place.file.to_string_lossy().into_owned()
        });
        Line {
            function_id: self.function(&function.name, file),
            line: i64::from(line),
        }
    }

    fn function(&mut self, name: &str, file: String) -> u64 {
        let key = (name.to_owned(), file);
        if let Some(&id) = self.function_ids.get(&key) {
            return id;
        }
        let id = self.functions.len() as u64 + 1;
        let (name, filename) = (self.text(name), self.text(&key.1));
        self.functions.push(proto::Function {
            id,
            name,
            system_name: name,
            filename,
            start_line: 0,
        });
        self.function_ids.insert(key, id);
        id
    }
}

/// The format's numbers are signed; what does not fit is as large as can be.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
