//! The last report as JSON, for scripts; docs/json.md describes every field.
//! Names and meanings here are a published format: change them only with a new version.

use std::io::{self, Write};

use jiff::Timestamp;
use jiff::tz::Offset;
use serde::Serialize;

use crate::analysis::blame::Culprit;
use crate::analysis::findings::{Finding, Findings, Hidden};
use crate::analysis::gate::Tripped;
use crate::analysis::groups::Group;
use crate::analysis::growth::Growth;
use crate::analysis::identity::{self, Precision};
use crate::model::losses::Losses;
use crate::model::report::{Entry, Frame, Function, Language, ListedAllocation, ProcessEntry, hex};
use crate::model::run::Header;
use crate::model::snapshot::{Allocation, Look, Reach, WallTime};
use crate::visible::{Spelling, Visible};

/// What the document's `format` says.
const FORMAT: &str = "memleak-report";
const VERSION: u32 = 1;

/// Writes the findings of a run and the gates that tripped, as one document.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write(
    header: &Header,
    duration_ns: u64,
    findings: &Findings,
    tripped: &[Tripped],
    out: &mut impl Write,
) -> io::Result<()> {
    let document = document(header, duration_ns, findings, tripped);
    serde_json::to_writer_pretty(Visible::new(&mut *out, Spelling::Json), &document)?;
    writeln!(out)
}

/// Writes the findings so far on a line.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write_line(
    header: &Header,
    duration_ns: u64,
    findings: &Findings,
    out: &mut impl Write,
) -> io::Result<()> {
    let document = document(header, duration_ns, findings, &[]);
    // at once, so that a reader never sees half a line
    let mut line = Vec::new();
    serde_json::to_writer(Visible::new(&mut line, Spelling::Json), &document)?;
    line.push(b'\n');
    out.write_all(&line)
}

#[derive(Serialize)]
struct Document<'a> {
    format: &'static str,
    version: u32,
    source: &'static str,
    tool: &'a str,
    command: &'a [String],
    host: HostPart<'a>,
    target: TargetPart<'a>,
    time: Option<String>,
    duration_ns: u64,
    estimated: bool,
    totals: Totals,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_or_held: Option<&'a Look>,
    losses: Losses,
    suppressed: SuppressedPart<'a>,
    in_baseline: Totals,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    processes: Vec<ProcessPart<'a>>,
    entries: Vec<EntryPart<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allocations: Vec<AllocationPart<'a>>,
    growing: Vec<EntryPart<'a>>,
    growth: TogetherPart,
    growth_is_doubtful: bool,
    tripped: Vec<TrippedPart<'a>>,
}

#[derive(Serialize)]
struct HostPart<'a> {
    name: &'a str,
    kernel: &'a str,
    machine: &'a str,
}

#[derive(Serialize)]
struct TargetPart<'a> {
    kind: &'static str,
    pid: Option<u32>,
    command: &'a [String],
}

#[derive(Serialize)]
struct ProcessPart<'a> {
    tgid: u32,
    name: &'a str,
    #[serde(flatten)]
    totals: Totals,
}

#[derive(Serialize)]
struct Totals {
    stacks: u64,
    bytes: u64,
    count: u64,
}

#[derive(Serialize)]
struct SuppressedPart<'a> {
    #[serde(flatten)]
    totals: Totals,
    patterns: Vec<PatternPart<'a>>,
}

#[derive(Serialize)]
struct PatternPart<'a> {
    pattern: &'a String,
    #[serde(flatten)]
    totals: Totals,
}

#[derive(Serialize)]
struct EntryPart<'a> {
    id: String,
    tgid: u32,
    class: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocator: Option<&'a str>,
    bytes: u64,
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_ns: Option<u64>,
    #[serde(flatten)]
    reach: Option<Reach>,
    growth: GrowthPart,
    blame: Option<BlamePart>,
    frames: Option<Vec<FramePart<'a>>>,
}

#[derive(Serialize)]
struct BlamePart {
    function: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    module: Option<String>,
}

#[derive(Serialize)]
struct TogetherPart {
    bytes_per_s: f64,
    exhausted_in_s: Option<f64>,
    limit: Option<&'static str>,
    functions: Vec<GroupPart>,
}

#[derive(Serialize)]
struct GroupPart {
    tgid: u32,
    blame: Option<BlamePart>,
    bytes: u64,
    count: u64,
    growth: GrowthPart,
    stacks: usize,
}

#[derive(Serialize)]
struct GrowthPart {
    verdict: &'static str,
    proven: bool,
    continuous: bool,
    bytes_per_s: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
    p_value: f64,
    snapshots: usize,
    span_ns: u64,
    exhausted_in_s: Option<f64>,
}

#[derive(Serialize)]
struct FramePart<'a> {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    module: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_offset: Option<String>,
    #[serde(flatten)]
    function: Option<FunctionPart<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    language: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol_offset: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inlined: Vec<FunctionPart<'a>>,
}

#[derive(Serialize)]
struct FunctionPart<'a> {
    symbol: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
struct AllocationPart<'a> {
    tgid: u32,
    address: String,
    size: u64,
    tid: u32,
    age_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocator: Option<&'a str>,
}

#[derive(Serialize)]
struct TrippedPart<'a> {
    gate: String,
    why: &'a str,
}

fn document<'a>(
    header: &'a Header,
    duration_ns: u64,
    findings: &'a Findings,
    tripped: &'a [Tripped],
) -> Document<'a> {
    let report = &findings.report;
    let entries = report.entries.iter().zip(&findings.growth).rev();
    Document {
        format: FORMAT,
        version: VERSION,
        source: header.source.name(),
        tool: &header.tool,
        command: &header.command,
        host: HostPart {
            name: &header.host.name,
            kernel: &header.host.kernel,
            machine: &header.host.machine,
        },
        target: TargetPart {
            kind: header.target.kind.name(),
            pid: header.target.pid,
            command: &header.target.command,
        },
        time: header
            .source
            .is_dated()
            .then(|| timestamp(report.time))
            .flatten(),
        duration_ns,
        estimated: report.estimated,
        totals: Totals {
            stacks: report.total_stacks,
            bytes: report.total_bytes,
            count: report.total_count,
        },
        lost_or_held: report.look.as_ref(),
        losses: report.losses,
        suppressed: suppressed_part(findings),
        in_baseline: totals(&findings.left_out.known),
        processes: report.processes.iter().map(process_part).collect(),
        entries: entries
            .map(|(entry, growth)| entry_part(entry, growth, findings))
            .collect(),
        allocations: report.allocations.iter().map(allocation_part).collect(),
        growing: findings
            .growing
            .iter()
            .map(|Finding { entry, growth }| entry_part(entry, growth, findings))
            .collect(),
        growth: together_part(findings),
        growth_is_doubtful: findings.growth_is_doubtful(),
        tripped: tripped
            .iter()
            .map(|t| TrippedPart {
                gate: t.gate.to_string(),
                why: &t.why,
            })
            .collect(),
    }
}

/// RFC 3339 with the offset that was local then; `None` for a time that no calendar holds.
fn timestamp(time: WallTime) -> Option<String> {
    let timestamp = Timestamp::from_nanosecond(i128::from(time.unix_ns)).ok()?;
    let offset = Offset::from_seconds(time.utc_offset_s).ok()?;
    Some(timestamp.display_with_offset(offset).to_string())
}

fn suppressed_part(findings: &Findings) -> SuppressedPart<'_> {
    let left_out = &findings.left_out;
    let pattern = |(pattern, hidden)| PatternPart {
        pattern,
        totals: totals(hidden),
    };
    SuppressedPart {
        totals: totals(&left_out.suppressed),
        patterns: left_out.by_pattern.iter().map(pattern).collect(),
    }
}

fn process_part(process: &ProcessEntry) -> ProcessPart<'_> {
    ProcessPart {
        tgid: process.tgid,
        name: &process.name,
        totals: Totals {
            stacks: process.stacks,
            bytes: process.bytes,
            count: process.count,
        },
    }
}

fn totals(hidden: &Hidden) -> Totals {
    Totals {
        stacks: hidden.stacks,
        bytes: hidden.bytes,
        count: hidden.count,
    }
}

fn entry_part<'a>(entry: &'a Entry, growth: &Growth, findings: &Findings) -> EntryPart<'a> {
    let frames = entry.frames.as_deref();
    EntryPart {
        id: identity::short_id(&identity::identity(
            entry.class,
            frames,
            Precision::Function,
        )),
        tgid: entry.tgid,
        class: entry.class.name(),
        allocator: entry.allocator.as_deref(),
        bytes: entry.bytes,
        count: entry.count,
        oldest_ns: entry.oldest_ns,
        reach: entry.reach,
        growth: growth_part(growth, findings.together.exhausted_in_s),
        blame: frames
            .and_then(|frames| findings.blame.culprit(frames))
            .map(blame_part),
        frames: frames.map(|frames| frames.iter().map(frame_part).collect()),
    }
}

fn together_part(findings: &Findings) -> TogetherPart {
    let together = findings.together;
    let function = |group: &Group| GroupPart {
        tgid: group.tgid,
        blame: group.culprit.clone().map(blame_part),
        bytes: group.bytes,
        count: group.count,
        growth: growth_part(&group.growth, together.exhausted_in_s),
        stacks: group.stacks.len(),
    };
    TogetherPart {
        bytes_per_s: together.bytes_per_s,
        exhausted_in_s: together.exhausted_in_s,
        limit: findings.headroom.map(|headroom| headroom.limit.name()),
        functions: findings.groups.iter().map(function).collect(),
    }
}

fn blame_part(culprit: Culprit) -> BlamePart {
    let location = culprit.location.as_ref();
    BlamePart {
        file: location.map(|location| location.file.to_string_lossy().into_owned()),
        line: location.and_then(|location| location.line),
        module: culprit
            .module
            .map(|module| module.path.to_string_lossy().into_owned()),
        function: culprit.function,
    }
}

/// `exhausted_in_s` is the time left at the rate of all that grows.
fn growth_part(growth: &Growth, exhausted_in_s: Option<f64>) -> GrowthPart {
    GrowthPart {
        verdict: growth.verdict.name(),
        proven: growth.is_proven(),
        continuous: growth.continuous,
        bytes_per_s: growth.rate.map(|rate| rate.bytes_per_s),
        low: growth.rate.map(|rate| rate.low),
        high: growth.rate.map(|rate| rate.high),
        p_value: growth.p_value,
        snapshots: growth.points,
        span_ns: growth.span_ns,
        exhausted_in_s: exhausted_in_s.filter(|_| growth.is_growing()),
    }
}

fn frame_part(frame: &Frame) -> FramePart<'_> {
    let module = frame.module.as_ref();
    FramePart {
        address: address(frame.address),
        module: module.map(|module| module.path.to_string_lossy().into_owned()),
        build_id: module
            .and_then(|module| module.build_id.as_deref())
            .map(hex),
        file_offset: frame.file_offset.map(address),
        function: frame.function.as_ref().map(function_part),
        language: frame.language.map(Language::name),
        symbol_offset: (frame.function.is_some() && frame.language.is_none())
            .then_some(frame.function_offset),
        inlined: frame.inlined.iter().map(function_part).collect(),
    }
}

fn function_part(function: &Function) -> FunctionPart<'_> {
    let location = function.location.as_ref();
    FunctionPart {
        symbol: &function.name,
        file: location.map(|location| location.file.to_string_lossy().into_owned()),
        line: location.and_then(|location| location.line),
    }
}

fn allocation_part(listed: &ListedAllocation) -> AllocationPart<'_> {
    let Allocation {
        address,
        size,
        tid,
        age_ns,
    } = listed.allocation;
    AllocationPart {
        tgid: listed.tgid,
        address: self::address(address),
        size,
        tid,
        age_ns,
        cache: listed.cache.as_deref(),
        allocator: listed.allocator.as_deref(),
    }
}

/// Addresses are strings, as many JSON readers round numbers above 2^53.
fn address(value: u64) -> String {
    format!("{value:#x}")
}
