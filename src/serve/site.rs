//! What the endpoints show now, made when somebody asks for it and kept until the next report.
//! Knows formats and no clients; figures are those that were handed in.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use hyper::body::Bytes;

use super::request::Format;
use super::{Settings, Update, metrics, page};
use crate::analysis::Limits;
use crate::analysis::blame::Blame;
use crate::analysis::findings::{self, Filter, Findings};
use crate::analysis::growth;
use crate::model::report::{Entry, Report};
use crate::model::run::Header;
use crate::output::{html, json, pprof, write_text};
use crate::recording::collect::Collector;
use crate::recording::write::Writer;
use crate::visible::{Spelling, Visible};

/// Reports that are kept for the charts; of more, older ones are thinned out.
const MOST_SNAPSHOTS: usize = 240;

/// Stacks that the charts may be about: with more, as of processes that came and went, they begin anew.
const MOST_STACKS: usize = 50_000;

/// Nothing may be loaded or run by what is shown.
const INERT: &str =
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Something to show, whole.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its media type.
    pub kind: &'static str,
    /// What browsers may load for it.
    pub policy: String,
    /// What to do with it in a browser, if it is a file to keep.
    pub file_name: Option<&'static str>,
    /// Another body has another tag.
    pub tag: String,
    /// What it is.
    pub body: Bytes,
}

/// The state of the endpoints.
pub struct Site {
    header: Header,
    limits: Limits,
    functions: usize,
    blame: Blame,
    now: Arc<Update>,
    collector: Collector,
    /// Reports taken in.
    version: u64,
    /// Judged of the reports so far, once anybody asked.
    judged: Option<Findings>,
    pages: HashMap<(Format, bool), Page>,
}

impl Site {
    /// Shows this, in which there is no report yet.
    pub fn new(now: Arc<Update>, header: Header, settings: Settings) -> Site {
        Site {
            collector: collector(&header),
            header,
            limits: settings.limits,
            functions: settings.functions,
            blame: settings.blame,
            now,
            version: 0,
            judged: None,
            pages: HashMap::new(),
        }
    }

    /// Shows this from now on, if that is new.
    pub fn take(&mut self, update: Arc<Update>) {
        if Arc::ptr_eq(&update, &self.now) {
            return;
        }
        if self.collector.recording().stacks.len() > MOST_STACKS {
            self.collector = collector(&self.header);
        }
        self.collector.push(&update.report, update.moment);
        self.now = update;
        self.version += 1;
        self.judged = None;
        self.pages.clear();
    }

    /// What is asked for; none where there is no such process. `open` says whether figures are wanted as OpenMetrics.
    pub fn page(&mut self, format: &Format, open: bool) -> Option<Page> {
        if let Format::Pprof(Some(pid)) = format
            && !self
                .now
                .report
                .entries
                .iter()
                .any(|entry| entry.tgid == *pid)
        {
            return None;
        }
        let key = (format.clone(), open && *format == Format::Metrics);
        if let Some(page) = self.pages.get(&key) {
            return Some(page.clone());
        }
        let page = self.make(format, open);
        // what tells of memleak itself is never the same
        if *format != Format::Metrics {
            self.pages.insert(key, page.clone());
        }
        Some(page)
    }

    fn make(&mut self, format: &Format, open: bool) -> Page {
        let mut body = Vec::new();
        let (kind, policy, file_name) = match format {
            Format::Live => {
                let limits = self.limits;
                let (now, findings) = self.judged();
                body = page::write(now, findings, limits).into_bytes();
                ("text/html; charset=utf-8", page::policy(), None)
            }
            Format::Html => {
                let (_, findings) = self.judged();
                let (groups, together) = (findings.groups.clone(), findings.together);
                let recording = self.collector.recording();
                let growth = &growth::analyze(recording);
                let page = html::Page {
                    recording,
                    growth,
                    groups: &groups,
                    together,
                    blame: &self.blame,
                    notes: &[],
                };
                // writing into memory does not fail
                let _ = html::write(&page, &mut body);
                // the page brings its own, which must not be narrowed
                (
                    "text/html; charset=utf-8",
                    "frame-ancestors 'none'".to_owned(),
                    None,
                )
            }
            Format::Json => {
                let header = self.header.clone();
                let (now, findings) = self.judged();
                let _ = json::write(&header, now.moment.elapsed_ns, findings, &[], &mut body);
                ("application/json", INERT.to_owned(), None)
            }
            Format::Text => {
                let _ = text(&self.now.report, self.limits, &self.blame, &mut body);
                ("text/plain; charset=utf-8", INERT.to_owned(), None)
            }
            Format::Pprof(pid) => {
                let report = of(&self.now.report, *pid);
                let spent = self.now.moment.elapsed_ns;
                let _ = pprof::write(&report, &self.blame, true, spent, &mut body);
                (
                    PPROF,
                    INERT.to_owned(),
                    Some("attachment; filename=\"heap.pb.gz\""),
                )
            }
            Format::Metrics => {
                let functions = self.functions;
                let (now, findings) = self.judged();
                let text = metrics::write(now, findings, functions);
                let text = match open {
                    true => text,
                    false => metrics::classic(&text),
                };
                body = text.into_bytes();
                (metrics::kind(open), INERT.to_owned(), None)
            }
            Format::Recording => {
                let _ = self.recording(&mut body);
                let name = Some("attachment; filename=\"recording.jsonl\"");
                ("application/jsonl", INERT.to_owned(), name)
            }
            Format::Health => {
                body = b"ok\n".to_vec();
                ("text/plain; charset=utf-8", INERT.to_owned(), None)
            }
        };
        Page {
            kind,
            policy,
            file_name,
            tag: format!("\"{}-{}\"", self.began(), self.version),
            body: Bytes::from(body),
        }
    }

    /// Two runs never have the same tags.
    fn began(&self) -> i64 {
        self.header.started.map_or(0, |started| started.unix_ns)
    }

    fn judged(&mut self) -> (&Update, &Findings) {
        let (collector, now, blame) = (&self.collector, &self.now, &self.blame);
        let findings = self.judged.get_or_insert_with(|| {
            let mut findings = findings::findings(collector.recording(), &Filter::default(), blame);
            if let Some(growing) = &now.growing {
                findings.growing.clone_from(growing);
            }
            // a recording leaves out who holds nothing
            findings.report.processes.clone_from(&now.report.processes);
            findings
        });
        (now, findings)
    }

    fn recording(&self, body: &mut Vec<u8>) -> io::Result<()> {
        let recording = self.collector.recording();
        let mut writer = Writer::new(body, &self.header)?;
        let mut snapshots = recording.snapshots.iter();
        snapshots.try_for_each(|snapshot| writer.append(recording, snapshot))
    }
}

fn collector(header: &Header) -> Collector {
    Collector::new(header.clone()).with_most_snapshots(MOST_SNAPSHOTS)
}

const PPROF: &str = "application/octet-stream";

/// What came to be outstanding between two reports, of one process or of all: what grew, and no more than that.
pub fn delta(
    earlier: &Update,
    later: &Update,
    pid: Option<u32>,
    seconds: u64,
    blame: &Blame,
) -> Page {
    let mut report = of(&later.report, pid);
    let mut before: HashMap<_, (u64, u64)> = HashMap::new();
    for entry in &earlier.report.entries {
        let sum = before.entry(identity(entry)).or_default();
        *sum = (
            sum.0.saturating_add(entry.bytes),
            sum.1.saturating_add(entry.count),
        );
    }
    for entry in &mut report.entries {
        let (bytes, count) = before.remove(&identity(entry)).unwrap_or_default();
        entry.bytes = entry.bytes.saturating_sub(bytes);
        entry.count = entry.count.saturating_sub(count);
    }
    report
        .entries
        .retain(|entry| entry.bytes > 0 || entry.count > 0);
    report
        .entries
        .sort_by_key(|entry| (entry.bytes, entry.count));
    let mut body = Vec::new();
    let spent = later
        .moment
        .elapsed_ns
        .saturating_sub(earlier.moment.elapsed_ns);
    // writing into memory does not fail
    let _ = pprof::write(&report, blame, true, spent, &mut body);
    Page {
        kind: PPROF,
        policy: INERT.to_owned(),
        file_name: Some("attachment; filename=\"heap-delta.pb.gz\""),
        tag: format!(
            "\"{}-{}-{seconds}\"",
            earlier.moment.elapsed_ns, later.moment.elapsed_ns
        ),
        body: Bytes::from(body),
    }
}

/// What makes a stack the same in two reports of a run.
fn identity(entry: &Entry) -> (u32, &'static str, Option<Arc<str>>, Vec<u64>) {
    let frames = entry.frames.iter().flatten();
    (
        entry.tgid,
        entry.class.name(),
        entry.allocator.clone(),
        frames.map(|frame| frame.address).collect(),
    )
}

/// The part of a report that is about one process, or all of it.
fn of(report: &Report, pid: Option<u32>) -> Report {
    let mut report = report.clone();
    if let Some(pid) = pid {
        report.entries.retain(|entry| entry.tgid == pid);
    }
    report
}

fn text(report: &Report, limits: Limits, blame: &Blame, out: &mut Vec<u8>) -> io::Result<()> {
    let mut report = report.clone();
    limits.cut(&mut report.entries, |entry| (entry.tgid, entry.bytes));
    report.top = limits.stacks;
    let mut out = Visible::new(out, Spelling::Text);
    write_text(&report, blame, &mut out)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::Frame;
    use crate::model::snapshot::Class;
    use crate::recording::collect::Moment;

    fn update(second: u64, stacks: &[(u64, u64)]) -> Update {
        let entry = |&(address, bytes): &(u64, u64)| Entry {
            tgid: 7,
            class: Class::Heap,
            allocator: None,
            bytes,
            count: 1,
            oldest_ns: None,
            reach: None,
            frames: Some(vec![Frame {
                address,
                ..Frame::default()
            }]),
        };
        let mut update = Update::default();
        update.report.entries = stacks.iter().map(entry).collect();
        update.moment = Moment {
            elapsed_ns: second * 1_000_000_000,
            ..Moment::default()
        };
        update
    }

    fn empty() -> Site {
        let settings = Settings {
            address: ([127, 0, 0, 1], 0).into(),
            hosts: Vec::new(),
            functions: 0,
            blame: Blame::default(),
            limits: Limits {
                stacks: 10,
                processes: None,
            },
        };
        Site::new(Arc::default(), Header::default(), settings)
    }

    #[test]
    fn a_page_is_made_once_for_each_report() {
        let mut site = empty();
        site.take(Arc::new(update(1, &[(1, 100)])));
        let first = site.page(&Format::Json, false).unwrap();
        let again = site.page(&Format::Json, false).unwrap();
        assert_eq!(first.tag, again.tag);
        assert_eq!(first.body.as_ptr(), again.body.as_ptr());
        site.take(Arc::new(update(2, &[(1, 200)])));
        let next = site.page(&Format::Json, false).unwrap();
        assert_ne!(first.tag, next.tag);
        assert!(String::from_utf8_lossy(&next.body).contains("\"bytes\": 200"));
    }

    #[test]
    fn a_process_that_holds_nothing_has_no_profile() {
        let mut site = empty();
        site.take(Arc::new(update(1, &[(1, 100)])));
        assert!(site.page(&Format::Pprof(Some(7)), false).is_some());
        assert!(site.page(&Format::Pprof(Some(8)), false).is_none());
    }

    #[test]
    fn a_delta_has_what_grew() {
        let earlier = update(1, &[(1, 100), (2, 50)]);
        let later = update(3, &[(1, 160), (2, 40), (3, 5)]);
        let page = delta(&earlier, &later, None, 2, &Blame::default());
        let mut plain = Vec::new();
        io::Read::read_to_end(
            &mut flate2::read::GzDecoder::new(&page.body[..]),
            &mut plain,
        )
        .unwrap();
        // no block more, 60 bytes more
        assert!(plain.windows(2).any(|pair| pair == [0, 60]), "{plain:?}");
        assert!(
            !plain.windows(2).any(|pair| pair == [1, 160 - 128]),
            "{plain:?}"
        );
        assert_eq!(
            delta(&later, &later, None, 2, &Blame::default()).body.len(),
            delta(&later, &later, Some(9), 2, &Blame::default())
                .body
                .len()
        );
    }
}
