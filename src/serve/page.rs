//! The page at `/`: processes first, then what grows, then the largest stacks; it keeps itself up to date.
//! Names come from outside: each passes through `escape`, and the page may run no script but its own.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::{Update, WatchNow};
use crate::analysis::Limits;
use crate::analysis::blame::Blame;
use crate::analysis::findings::{Finding, Findings};
use crate::model::report::{Entry, Frame, Report};
use crate::output::html::escape;
use crate::output::units;

/// Rows of each table.
const MOST_ROWS: usize = 100;

/// Functions of a stack that its row names.
const MOST_CALLERS: usize = 6;

const STYLE: &str = include_str!("assets/live.css");
const SCRIPT: &str = include_str!("assets/live.js");

/// The content security policy: the page's own script and style by their hash, and requests to where it came from.
pub fn policy() -> String {
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
}

fn hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

/// The whole page.
pub fn write(now: &Update, findings: &Findings, limits: Limits) -> String {
    let report = &findings.report;
    let mut main = String::new();
    main.push_str(&match &now.watch {
        Some(watch) => watching(now, watch),
        None => summary(now, report),
    });
    main.push_str(&losses(report));
    main.push_str(&processes(now, findings));
    main.push_str(&growing(findings));
    main.push_str(&largest(findings, limits));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><link rel=\"icon\" href=\"data:,\"><title>memleak, live</title><style>{STYLE}</style></head>\
         <body><h1>memleak</h1><nav><a href=\"/report.html\">charts</a> <a href=\"/report.txt\">text</a> \
         <a href=\"/report.json\">JSON</a> <a href=\"/debug/pprof/heap\">pprof</a> \
         <a href=\"/recording.jsonl\">recording</a> <a href=\"/metrics\">metrics</a></nav>\
         <main>{main}</main><script>{SCRIPT}</script></body></html>\n"
    )
}

fn summary(now: &Update, report: &Report) -> String {
    if now.is_empty() {
        return "<p id=\"summary\">No report yet.</p>".to_owned();
    }
    let (hour, minute, second) = report.time.hms();
    let estimate = if report.estimated {
        ", estimated from a sample"
    } else {
        ""
    };
    format!(
        "<p id=\"summary\">At <time>{hour:02}:{minute:02}:{second:02}</time>: <b id=\"bytes\">{}</b> bytes \
         ({}) in <b id=\"blocks\">{}</b> blocks of {} stacks{estimate}.</p>",
        report.total_bytes,
        units::size(report.total_bytes),
        report.total_count,
        report.total_stacks
    )
}

/// The summary of `memleak watch`, and whom it suspects.
fn watching(now: &Update, watch: &WatchNow) -> String {
    let (hour, minute, second) = now.report.time.hms();
    let tracing = match &watch.tracing {
        Some((pid, comm)) => format!("tracing <b>{pid} {}</b>", escape(comm)),
        None => "tracing nobody".to_owned(),
    };
    let name = |pid: u32| {
        let process = now.processes.iter().find(|process| process.pid == pid);
        process.map_or(String::new(), |process| escape(&process.comm))
    };
    let rows = watch.suspects.iter().map(|(pid, suspicion)| {
        format!(
            "<tr><td>{pid}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            name(*pid),
            units::rate(suspicion.bytes_per_s),
            units::size(suspicion.grown_bytes),
            suspicion.limit_in_s.map_or(String::new(), units::duration),
        )
    });
    let head = "<th>pid</th><th>name</th><th>by</th><th>grown</th><th>limit in</th>";
    format!(
        "<p id=\"summary\">At <time>{hour:02}:{minute:02}:{second:02}</time>: <b id=\"watched\">{}</b> processes watched, \
         <b id=\"suspects\">{}</b> of them grow; {tracing}; {} traced so far, leaks found in {}.</p>{}",
        watch.processes,
        watch.suspects.len(),
        windows(watch.traced),
        watch.findings,
        table("Suspects", head, rows)
    )
}

fn windows(count: u64) -> String {
    match count {
        1 => "1 window".to_owned(),
        count => format!("{count} windows"),
    }
}

fn losses(report: &Report) -> String {
    let mut list = String::new();
    for (kind, count) in report.losses.happened() {
        let _ = write!(
            list,
            "<li>{count} {} {}: {}</li>",
            escape(kind.noun(count)),
            escape(kind.fate),
            escape(kind.advice)
        );
    }
    match list.is_empty() {
        true => list,
        false => format!("<section class=\"losses\"><h2>Not seen</h2><ul>{list}</ul></section>"),
    }
}

fn processes(now: &Update, findings: &Findings) -> String {
    let mut rows: Vec<(u64, u64, String)> = Vec::new();
    for process in &now.processes {
        let entries = || {
            now.report
                .entries
                .iter()
                .filter(|entry| entry.tgid == process.pid)
        };
        let bytes = entries().fold(0_u64, |sum, entry| sum.saturating_add(entry.bytes));
        let rate: f64 = findings
            .growing
            .iter()
            .filter(|finding| finding.entry.tgid == process.pid)
            .map(Finding::bytes_per_s)
            .sum();
        let resident = process.resident_bytes.map_or(String::new(), units::size);
        let left = process
            .headroom
            .map(|headroom| headroom.bytes as f64 / rate);
        let left = left
            .filter(|_| rate > 0.0)
            .map_or(String::new(), units::duration);
        let grows = if rate > 0.0 {
            units::rate(rate)
        } else {
            String::new()
        };
        let row = format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{grows}</td><td>{left}</td></tr>",
            process.pid,
            escape(&process.comm),
            escape(
                process
                    .container
                    .as_deref()
                    .map_or("", |id| id.get(..12).unwrap_or(id))
            ),
            resident,
            units::size(bytes),
        );
        rows.push((rate as u64, bytes, row));
    }
    rows.sort_by_key(|row| std::cmp::Reverse((row.0, row.1)));
    table(
        "Processes",
        "<th>pid</th><th>name</th><th>container</th><th>resident</th><th>outstanding</th><th>grows</th>\
         <th>limit in</th>",
        rows.into_iter().map(|(_, _, row)| row),
    )
}

fn growing(findings: &Findings) -> String {
    let heading = match findings.growth_is_doubtful() {
        true => "May be growing, as frees were missed",
        false => "Growing",
    };
    let rows = findings.growing.iter().map(|finding| {
        format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            units::rate(finding.bytes_per_s()),
            units::size(finding.entry.bytes),
            process(&findings.report, &finding.entry),
            stack(&findings.blame, &finding.entry)
        )
    });
    table(
        heading,
        "<th>by</th><th>holds</th><th>process</th><th>stack</th>",
        rows,
    )
}

fn largest(findings: &Findings, limits: Limits) -> String {
    let report = &findings.report;
    let mut entries: Vec<&Entry> = report.entries.iter().collect();
    limits.cut(&mut entries, |entry| (entry.tgid, entry.bytes));
    let rows = entries.iter().rev().map(|entry| {
        format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            units::size(entry.bytes),
            entry.count,
            process(report, entry),
            stack(&findings.blame, entry)
        )
    });
    table(
        "Largest",
        "<th>holds</th><th>blocks</th><th>process</th><th>stack</th>",
        rows,
    )
}

fn process(report: &Report, entry: &Entry) -> String {
    let name = report.process_name(entry.tgid).unwrap_or_default();
    escape(&format!("{} {name}", entry.tgid))
}

fn stack(blame: &Blame, entry: &Entry) -> String {
    let frames = entry.frames.as_deref();
    let callers = frames.unwrap_or_default().iter().take(MOST_CALLERS);
    let callers: Vec<&str> = callers
        .map(|frame| {
            frame
                .function
                .as_ref()
                .map_or("[unknown]", |function| &function.name)
        })
        .collect();
    let callers: String = callers.join(" ← ").chars().take(400).collect();
    format!(
        "<code>{}</code><small>{}</small>",
        escape(&culprit(blame, frames)),
        escape(&callers)
    )
}

/// The function that a stack is named by.
pub fn culprit(blame: &Blame, frames: Option<&[Frame]>) -> String {
    match frames {
        None => "[stack not stored]".to_owned(),
        Some(frames) => blame
            .culprit(frames)
            .map_or("[empty stack]".to_owned(), |culprit| culprit.function),
    }
}

fn table(heading: &str, head: &str, rows: impl Iterator<Item = String>) -> String {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return String::new();
    }
    let shown: String = rows.by_ref().take(MOST_ROWS).collect();
    let rest = rows.count();
    let rest = match rest {
        0 => String::new(),
        rest => format!("<p>and {rest} more</p>"),
    };
    format!(
        "<section><h2>{heading}</h2><table><thead><tr>{head}</tr></thead><tbody>{shown}</tbody></table>{rest}</section>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::ProcessNow;

    #[test]
    fn a_name_stays_text() {
        let mut update = Update::default();
        update.processes.push(ProcessNow {
            pid: 1,
            comm: "</main><script>".to_owned(),
            container: Some("\u{fc}berlang\u{fc}\u{fc}\u{fc}\u{fc}".to_owned()),
            ..ProcessNow::default()
        });
        let limits = Limits {
            stacks: 10,
            processes: None,
        };
        let page = write(&update, &Findings::default(), limits);
        assert!(page.contains("&lt;/main&gt;&lt;script&gt;"));
        assert_eq!(page.matches("<script>").count(), 1);
        assert_eq!(page.matches("</main>").count(), 1);
    }
}
