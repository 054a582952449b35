//! `/metrics`: figures as series with names and units after Prometheus' conventions, of a bounded number.
//! Judges nothing; the text is the official client's, but for the escaping of labels, which it leaves out.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeMetric, LabelEncoder, MetricEncoder, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use rustix::time::{ClockId, clock_gettime};

use super::{ProcessNow, Update, WatchNow, page};
use crate::analysis::findings::Findings;
use crate::model::losses::{KINDS, Losses};
use crate::model::run::Headroom;
use crate::process::memory;
use crate::visible;

/// Processes with series of their own, those that hold most; the others are summed up in one.
const MOST_PROCESSES: usize = 50;

/// Characters of a label's value.
const LONGEST_LABEL: usize = 200;

/// The media type of the text.
pub fn kind(open: bool) -> &'static str {
    match open {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => "text/plain; version=0.0.4; charset=utf-8",
    }
}

/// All figures, as OpenMetrics text.
pub fn write(now: &Update, findings: &Findings, functions: usize) -> String {
    let mut registry = Registry::with_prefix("memleak");
    let mut families = general(now, findings);
    families.extend(of_processes(now, findings));
    families.extend(now.watch.iter().flat_map(|watch| of_watch(now, watch)));
    if functions > 0 {
        families.push(of_functions(now, findings, functions));
    }
    registry.register_collector(Box::new(Families(families)));
    let mut registry_of_process = Registry::default();
    registry_of_process.register_collector(Box::new(Families(of_memleak())));
    let mut written = String::new();
    // writing into a string does not fail
    let _ = text::encode_registry(&mut written, &registry);
    let _ = text::encode(&mut written, &registry_of_process);
    written
}

/// OpenMetrics text in the format before it: a counter's whole name is in its head, and units and the end are not told.
pub fn classic(open: &str) -> String {
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    for line in open.lines() {
        if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            kinds.insert(name, kind);
        }
    }
    let mut written = String::with_capacity(open.len());
    for line in open.lines() {
        let mut words = line.splitn(4, ' ');
        let head = (words.next(), words.next(), words.next(), words.next());
        let _ = match head {
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) => {
                let (suffix, kind) = match kinds.get(name) {
                    Some(&"counter") => ("_total", "counter"),
                    Some(&"info") => ("_info", "gauge"),
                    Some(&kind) => ("", kind),
                    None => ("", "untyped"),
                };
                let rest = if what == "TYPE" { kind } else { rest };
                writeln!(written, "# {what} {name}{suffix} {rest}")
            }
            (Some("#"), ..) => Ok(()),
            _ => writeln!(written, "{line}"),
        };
    }
    written
}

/// Series of one name.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    samples: Vec<(Vec<Label>, f64)>,
}

impl Family {
    fn gauge(name: &'static str, help: &'static str, unit: Option<Unit>) -> Self {
        Self {
            name,
            help,
            unit,
            kind: MetricType::Gauge,
            samples: Vec::new(),
        }
    }

    fn counter(name: &'static str, help: &'static str, unit: Option<Unit>) -> Self {
        Self {
            kind: MetricType::Counter,
            ..Self::gauge(name, help, unit)
        }
    }

    fn with(mut self, value: impl Into<Option<f64>>) -> Self {
        self.samples
            .extend(value.into().map(|value| (Vec::new(), value)));
        self
    }

    fn add(&mut self, labels: &[Label], value: f64) {
        self.samples.push((labels.to_vec(), value));
    }
}

/// A label's name and value.
#[derive(Clone, Debug)]
struct Label(&'static str, String);

impl Label {
    /// What comes from outside is shortened, and what is not seen in it spelled out.
    fn new(name: &'static str, value: &str) -> Self {
        Self(
            name,
            visible::line(value).chars().take(LONGEST_LABEL).collect(),
        )
    }
}

impl EncodeLabel for Label {
    fn encode(&self, mut encoder: LabelEncoder<'_>) -> fmt::Result {
        let mut key = encoder.encode_label_key()?;
        key.write_str(self.0)?;
        let mut value = key.encode_label_value()?;
        for character in self.1.chars() {
            match character {
                '\\' => value.write_str("\\\\")?,
                '"' => value.write_str("\\\"")?,
                '\n' => value.write_str("\\n")?,
                other => value.write_char(other)?,
            }
        }
        value.finish()
    }
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in self.0.iter().filter(|family| !family.samples.is_empty()) {
            let mut metric = encoder.encode_descriptor(
                family.name,
                family.help,
                family.unit.as_ref(),
                family.kind,
            )?;
            if let [(labels, value)] = &family.samples[..]
                && labels.is_empty()
            {
                encode(family.kind, *value, metric)?;
                continue;
            }
            for (labels, value) in &family.samples {
                let labelled = metric.encode_family(labels)?;
                encode(family.kind, *value, labelled)?;
            }
        }
        Ok(())
    }
}

fn encode(kind: MetricType, value: f64, encoder: MetricEncoder<'_>) -> fmt::Result {
    match kind {
        MetricType::Counter => ConstCounter::new(value).encode(encoder),
        _ => ConstGauge::new(value).encode(encoder),
    }
}

fn general(now: &Update, findings: &Findings) -> Vec<Family> {
    let mut build = Family::gauge("build_info", "Always 1, with memleak's version.", None);
    build.add(&[Label::new("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let report = &now.report;
    let taken = report.time.unix_ns as f64 / 1e9;
    vec![
        build,
        Family::gauge(
            "last_report_timestamp",
            "When the last report was made.",
            Some(Unit::Seconds),
        )
        .with((!now.is_empty()).then_some(taken)),
        Family::gauge(
            "growing_stacks",
            "Stacks whose outstanding memory grows.",
            None,
        )
        .with(findings.growing.len() as f64),
        Family::gauge(
            "estimated",
            "1 if figures are estimates from a sample.",
            None,
        )
        .with(f64::from(u8::from(report.estimated))),
        Family::counter("probe_events", "Times that a probe was met.", None)
            .with(now.events as f64),
        Family::gauge(
            "overhead",
            "Share of the CPU time that tracing takes.",
            Some(Unit::Other("ratio".to_owned())),
        )
        .with(now.overhead),
        losses(&report.losses),
        cut_stacks(&report.losses),
    ]
}

/// What `memleak watch` does, and whom it suspects.
fn of_watch(now: &Update, watch: &WatchNow) -> Vec<Family> {
    let rate = Some(Unit::Other("bytes_per_second".to_owned()));
    let mut windows = Family::counter("windows", "Times that a process was traced.", None);
    windows.add(&[Label::new("outcome", "traced")], watch.traced as f64);
    windows.add(&[Label::new("outcome", "failed")], watch.failed as f64);
    let mut growth = Family::gauge(
        "suspect_growth",
        "How fast the resident memory of a suspect grows.",
        rate,
    );
    let mut limit = Family::gauge(
        "suspect_limit_reached_in",
        "Time until a suspect meets a memory limit, where that is soon.",
        Some(Unit::Seconds),
    );
    for (pid, suspicion) in watch.suspects.iter().take(MOST_PROCESSES) {
        let process = now.processes.iter().find(|process| process.pid == *pid);
        let labels = labels(*pid, process, now);
        growth.add(&labels, suspicion.bytes_per_s);
        if let Some(seconds) = suspicion.limit_in_s {
            limit.add(&labels, seconds);
        }
    }
    let gauge = |name, help, value: u64| Family::gauge(name, help, None).with(value as f64);
    let counter = |name, help, value: u64| Family::counter(name, help, None).with(value as f64);
    vec![
        gauge(
            "watched_processes",
            "Processes that are looked at.",
            watch.processes,
        ),
        gauge(
            "unseen_processes",
            "Processes that could not be looked at.",
            watch.unseen,
        ),
        gauge(
            "suspects",
            "Processes whose memory grows as by a leak.",
            watch.suspects.len() as u64,
        ),
        gauge(
            "tracing",
            "1 while a process is traced.",
            u64::from(watch.tracing.is_some()),
        ),
        windows,
        counter(
            "findings",
            "Times that tracing found what grows.",
            watch.findings,
        ),
        counter(
            "oom_kills",
            "Traced processes that the kernel killed for want of memory.",
            watch.oom_kills,
        ),
        growth,
        limit,
    ]
}

/// Every kind of loss, those that did not happen as well: an alert must be able to tell 0 from nothing.
fn losses(losses: &Losses) -> Family {
    let mut family = Family::counter("losses", "What was not seen or stored, by kind.", None);
    let happened: BTreeMap<&str, u64> = losses
        .happened()
        .map(|(kind, count)| (kind.name, count))
        .collect();
    for kind in KINDS {
        let count = happened.get(kind.name).copied().unwrap_or(0);
        family.add(&[Label::new("kind", kind.name)], count as f64);
    }
    family
}

fn cut_stacks(losses: &Losses) -> Family {
    Family::counter(
        "cut_stacks",
        "Stacks that end before their outermost frame.",
        None,
    )
    .with(losses.cut.total() as f64)
}

/// What there is to say of a process.
#[derive(Clone, Debug, Default)]
struct Held {
    bytes: u64,
    count: u64,
    rate: [f64; 3],
    grows: bool,
}

impl Held {
    fn add(&mut self, other: &Held) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.count = self.count.saturating_add(other.count);
        self.grows |= other.grows;
        for (sum, part) in self.rate.iter_mut().zip(other.rate) {
            *sum += part;
        }
    }
}

fn of_processes(now: &Update, findings: &Findings) -> Vec<Family> {
    let mut held = held(now, findings);
    let mut ranked: Vec<u32> = held.keys().copied().collect();
    // growing ones first: they are what alerts are about
    ranked.sort_by_key(|pid| {
        let of = &held[pid];
        (std::cmp::Reverse((of.grows, of.bytes)), *pid)
    });
    let mut families = ProcessFamilies::new();
    for pid in ranked.iter().take(MOST_PROCESSES) {
        let process = now.processes.iter().find(|process| process.pid == *pid);
        let of = held.remove(pid).unwrap_or_default();
        families.add(&labels(*pid, process, now), &of, process);
    }
    if !held.is_empty() {
        let mut others = Held::default();
        held.values().for_each(|of| others.add(of));
        let label = ["pid", "comm", "container"].map(|name| Label::new(name, "other"));
        families.add(&label, &others, None);
    }
    families.list()
}

fn labels(pid: u32, process: Option<&ProcessNow>, now: &Update) -> [Label; 3] {
    let comm = process.map(|process| process.comm.as_str());
    let comm = comm.or_else(|| now.report.process_name(pid));
    let comm = comm.unwrap_or(if pid == 0 { "kernel" } else { "" });
    let container = process.and_then(|process| process.container.as_deref());
    [
        Label::new("pid", &pid.to_string()),
        Label::new("comm", comm),
        Label::new("container", container.unwrap_or_default()),
    ]
}

fn held(now: &Update, findings: &Findings) -> BTreeMap<u32, Held> {
    let mut held: BTreeMap<u32, Held> = BTreeMap::new();
    for process in &now.processes {
        held.entry(process.pid).or_default();
    }
    for entry in &now.report.entries {
        let of = held.entry(entry.tgid).or_default();
        of.bytes = of.bytes.saturating_add(entry.bytes);
        of.count = of.count.saturating_add(entry.count);
    }
    for finding in &findings.growing {
        if let Some(rate) = finding.growth.rate {
            let of = held.entry(finding.entry.tgid).or_default();
            of.grows = true;
            for (sum, part) in of
                .rate
                .iter_mut()
                .zip([rate.bytes_per_s, rate.low, rate.high])
            {
                *sum += part;
            }
        }
    }
    held
}

struct ProcessFamilies {
    bytes: Family,
    blocks: Family,
    growth: Family,
    low: Family,
    high: Family,
    resident: Family,
    headroom: Family,
    until_limit: Family,
}

impl ProcessFamilies {
    fn new() -> Self {
        let rate = |name, help| {
            Family::gauge(name, help, Some(Unit::Other("bytes_per_second".to_owned())))
        };
        let bytes = |name, help| Family::gauge(name, help, Some(Unit::Bytes));
        Self {
            bytes: bytes("outstanding", "Allocated and not freed."),
            blocks: Family::gauge(
                "outstanding_blocks",
                "Blocks allocated and not freed.",
                None,
            ),
            growth: rate("growth", "How fast the stacks grow that do, all together."),
            low: rate(
                "growth_low",
                "Lower end of the 95 % interval of the growth.",
            ),
            high: rate(
                "growth_high",
                "Upper end of the 95 % interval of the growth.",
            ),
            resident: bytes("resident_memory", "Resident memory of the process."),
            headroom: bytes(
                "headroom",
                "What the process can still take before it meets a limit.",
            ),
            until_limit: Family::gauge(
                "limit_reached_in",
                "Time until a limit is met if the process goes on growing like this.",
                Some(Unit::Seconds),
            ),
        }
    }

    fn add(&mut self, labels: &[Label], held: &Held, process: Option<&ProcessNow>) {
        self.bytes.add(labels, held.bytes as f64);
        self.blocks.add(labels, held.count as f64);
        let [rate, low, high] = held.rate;
        self.growth.add(labels, rate);
        self.low.add(labels, low);
        self.high.add(labels, high);
        if let Some(resident) = process.and_then(|process| process.resident_bytes) {
            self.resident.add(labels, resident as f64);
        }
        if let Some(Headroom { bytes, limit }) = process.and_then(|process| process.headroom) {
            let labels = [labels, &[Label::new("limit", limit.name())]].concat();
            self.headroom.add(&labels, bytes as f64);
            if rate > 0.0 {
                self.until_limit.add(&labels, bytes as f64 / rate);
            }
        }
    }

    fn list(self) -> Vec<Family> {
        vec![
            self.bytes,
            self.blocks,
            self.growth,
            self.low,
            self.high,
            self.resident,
            self.headroom,
            self.until_limit,
        ]
    }
}

/// The functions to blame for growth, so many of each process.
fn of_functions(now: &Update, findings: &Findings, most: usize) -> Family {
    let mut sums: BTreeMap<(u32, String), f64> = BTreeMap::new();
    let mut named: BTreeMap<u32, usize> = BTreeMap::new();
    for finding in &findings.growing {
        let name = page::culprit(&findings.blame, finding.entry.frames.as_deref());
        let key = (finding.entry.tgid, name);
        let room = named.entry(key.0).or_default();
        let within = named_processes(&sums, key.0);
        if !sums.contains_key(&key) && (*room >= most || within >= MOST_PROCESSES) {
            continue;
        }
        if !sums.contains_key(&key) {
            *room += 1;
        }
        *sums.entry(key).or_default() += finding.bytes_per_s();
    }
    let unit = Some(Unit::Other("bytes_per_second".to_owned()));
    let mut family = Family::gauge(
        "function_growth",
        "How fast what a function allocates grows.",
        unit,
    );
    for ((pid, function), rate) in sums {
        let process = now.processes.iter().find(|process| process.pid == pid);
        let labels = labels(pid, process, now);
        family.add(
            &[&labels[..], &[Label::new("function", &function)]].concat(),
            rate,
        );
    }
    family
}

/// Processes other than `pid` that have functions named already.
fn named_processes(sums: &BTreeMap<(u32, String), f64>, pid: u32) -> usize {
    let mut pids: Vec<u32> = sums
        .keys()
        .map(|(pid, _)| *pid)
        .filter(|other| *other != pid)
        .collect();
    pids.dedup();
    pids.len()
}

/// What memleak itself takes, by the names that every client library uses.
fn of_memleak() -> Vec<Family> {
    let own = std::process::id();
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu_seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    vec![
        Family::counter(
            "process_cpu",
            "CPU time that memleak has used.",
            Some(Unit::Seconds),
        )
        .with(cpu_seconds),
        Family::gauge(
            "process_resident_memory",
            "memleak's resident memory.",
            Some(Unit::Bytes),
        )
        .with(memory::resident_bytes(own).map(|bytes| bytes as f64)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::{Entry, ProcessEntry};
    use crate::model::snapshot::Class;

    fn update(processes: u32, comm: &str) -> Update {
        let mut update = Update::default();
        for pid in 1..=processes {
            update.processes.push(ProcessNow {
                pid,
                comm: comm.to_owned(),
                ..ProcessNow::default()
            });
            update.report.processes.push(ProcessEntry {
                tgid: pid,
                name: comm.to_owned(),
                ..ProcessEntry::default()
            });
            update.report.entries.push(Entry {
                tgid: pid,
                class: Class::Heap,
                allocator: None,
                bytes: 1000 + u64::from(pid),
                count: 1,
                oldest_ns: None,
                reach: None,
                frames: None,
            });
        }
        update
    }

    #[test]
    fn the_number_of_series_is_bounded_and_nothing_is_left_out_of_the_sum() {
        let text = write(&update(500, "x"), &Findings::default(), 0);
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("memleak_outstanding_bytes{"))
            .collect();
        assert_eq!(lines.len(), MOST_PROCESSES + 1);
        let value = |line: &&str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        assert_eq!(
            lines.iter().map(value).sum::<f64>(),
            f64::from((1..=500).map(|pid| 1000 + pid).sum::<u32>())
        );
        assert!(lines.iter().any(|line| line.contains("pid=\"other\"")));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_name_can_not_leave_its_label() {
        let text = write(&update(1, "a\"} 1\nevil{x=\"\\"), &Findings::default(), 0);
        assert!(!text.lines().any(|line| line.starts_with("evil")), "{text}");
        let line = text
            .lines()
            .find(|line| line.starts_with("memleak_outstanding_bytes{"))
            .unwrap();
        assert!(line.contains(r#"comm="a\"} 1\\nevil{x=\"\\","#), "{line}");
    }

    #[test]
    fn every_kind_of_loss_has_a_series() {
        let text = write(&update(1, "x"), &Findings::default(), 0);
        for kind in KINDS {
            assert!(
                text.contains(&format!("memleak_losses_total{{kind=\"{}\"}} 0", kind.name)),
                "{text}"
            );
        }
    }

    #[test]
    fn the_older_format_says_the_same() {
        let open = write(&update(1, "x"), &Findings::default(), 0);
        let classic = classic(&open);
        let samples = |text: &str| -> Vec<String> {
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(samples(&open), samples(&classic));
        assert!(
            classic.contains("# TYPE memleak_losses_total counter\n"),
            "{classic}"
        );
        assert!(classic.contains("# TYPE memleak_build_info gauge\n"));
        assert!(!classic.contains("# UNIT") && !classic.contains("# EOF"));
    }
}
