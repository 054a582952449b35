//! The end of the page: what was lost, how the figures came about, and a plain table for viewers without scripts.
//! What is lost is counted in the tracer.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::Page;
use super::markup::{code, escape, name_of, path_of, seconds, target};
use super::words;
use crate::model::losses::Losses;
use crate::model::report::{Module, hex};
use crate::model::run::{Recording, Source};

/// Rows of the table that stands in where scripts do not run.
const MOST_PLAIN_ROWS: usize = 20;

/// A plain table of the largest stacks, for viewers that run no scripts.
pub fn largest(page: &Page<'_>) -> String {
    let Some(last) = page.recording.snapshots.last() else {
        return String::new();
    };
    let mut figures: Vec<_> = last.figures.iter().collect();
    figures.sort_by_key(|figure| {
        (
            std::cmp::Reverse((figure.bytes, figure.count)),
            figure.stack,
        )
    });
    let mut html = "<table class=\"plain-table\"><thead><tr><th>Allocated in</th><th class=\"num\">Bytes</th><th class=\"num\">Count</th></tr></thead><tbody>\n".to_owned();
    for figure in figures.iter().take(MOST_PLAIN_ROWS) {
        let stack = figure.stack as usize;
        let _ = writeln!(
            html,
            "<tr><td><code>{}</code> {}</td><td class=\"num\">{}</td><td class=\"num\">{}</td></tr>",
            escape(&name_of(page, stack)),
            escape(&path_of(page, stack)),
            words::bytes(figure.bytes as f64),
            words::count(figure.count)
        );
    }
    html.push_str("</tbody></table>");
    html
}

/// The losses of the whole run.
pub fn last_losses(recording: &Recording) -> Losses {
    let last = recording.snapshots.last();
    last.map(|last| last.losses).unwrap_or_default()
}

/// What the tracer could not see or store.
pub fn losses(recording: &Recording) -> String {
    let losses = last_losses(recording);
    let mut items = lost(&losses);
    items.extend(cut_short(&losses));
    let body = if items.is_empty() {
        let (class, lead, rest) = if recording.header.source == Source::Recording {
            (
                "calm",
                "Nothing was lost.",
                "Every allocation, stack and free that memleak met is in these figures.",
            )
        } else {
            (
                "calm unsure",
                "Unknown.",
                "The log that this was read from does not tell what was lost.",
            )
        };
        format!("<p class=\"{class}\"><b>{lead}</b><span>{rest}</span></p>")
    } else {
        let items: String = items
            .iter()
            .map(|(what, hint)| format!("<li><b>{what}</b> <span>{hint}</span></li>\n"))
            .collect();
        format!("<ul class=\"lost\">\n{items}</ul>")
    };
    format!(
        "<section id=\"losses\" class=\"panel\" aria-labelledby=\"losses-title\">\n<div class=\"panel-head\"><h2 id=\"losses-title\">What was lost</h2></div>\n{body}\n</section>"
    )
}

/// How many stacks end early, and why. The figures themselves are whole, so this is no matter for the headline.
fn cut_short(losses: &Losses) -> Option<(String, String)> {
    let cut = losses.cut.total();
    let reasons = losses.cut.reasons();
    let reasons: Vec<String> = reasons
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("{} {why}", words::count(*count)))
        .collect();
    (cut > 0).then(|| {
        (
            format!(
                "{} cut short.",
                words::plural(cut, "stack was", "stacks were")
            ),
            format!(
                "{}. Bytes and counts are whole.",
                escape(&reasons.join(", "))
            ),
        )
    })
}

/// What happened and how often, and what helps.
pub fn lost(losses: &Losses) -> Vec<(String, String)> {
    losses
        .happened()
        .map(|(kind, number)| {
            let bytes = match kind.name {
                "allocations" => format!(" of {}", words::bytes(losses.allocation_bytes as f64)),
                _ => String::new(),
            };
            let what = words::plural(number, kind.one, kind.many);
            (
                format!("{what}{bytes} {}.", kind.fate),
                format!("{}; {}.", kind.cause, kind.advice),
            )
        })
        .collect()
}

/// How the figures came about.
pub fn run(recording: &Recording) -> String {
    let mut html = "<section id=\"run\" class=\"panel\" aria-labelledby=\"run-title\">\n<div class=\"panel-head\"><h2 id=\"run-title\">How it was run</h2></div>\n<dl class=\"run-grid\">\n".to_owned();
    for (name, value) in run_facts(recording) {
        let _ = writeln!(html, "<dt>{name}</dt><dd>{value}</dd>");
    }
    html.push_str("</dl>\n");
    html.push_str(&modules(recording));
    html.push_str("</section>");
    html
}

/// Names and values (HTML) of what is known about the run.
fn run_facts(recording: &Recording) -> Vec<(&'static str, String)> {
    let header = &recording.header;
    let text = |text: &str| (!text.is_empty()).then(|| escape(text));
    let host = [&header.host.name, &header.host.machine]
        .map(String::as_str)
        .join(" ");
    let ended = recording
        .snapshots
        .last()
        .map(|last| last.time)
        .filter(|_| header.started.is_some());
    let facts = [
        ("Target", Some(target_fact(recording))),
        (
            "Command line",
            (!header.command.is_empty()).then(|| code(&shell_words::join(&header.command))),
        ),
        ("Recorded by", text(&header.tool)),
        ("Read from", Some(escape(header.source.name()))),
        ("Host", text(host.trim())),
        ("Kernel", text(&header.host.kernel)),
        ("Started", header.started.map(words::date_time)),
        ("Last snapshot", ended.map(words::date_time)),
        (
            "Snapshots",
            Some(words::count(recording.snapshots.len() as u64)),
        ),
        (
            "Interval",
            header
                .interval_ns
                .map(|interval| words::duration(seconds(interval))),
        ),
        (
            "Page size",
            header.page_size.map(|size| words::bytes(size as f64)),
        ),
    ];
    facts
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)))
        .collect()
}

fn target_fact(recording: &Recording) -> String {
    let header = &recording.header.target;
    let pid = header
        .pid
        .filter(|_| !header.command.is_empty())
        .map(|pid| format!(" · process {pid}"));
    format!("{}{}", code(&target(recording)), pid.unwrap_or_default())
}

/// The objects that the stacks run through, with their build ids.
fn modules(recording: &Recording) -> String {
    let frames = recording
        .stacks
        .iter()
        .filter_map(|stack| stack.frames.as_deref())
        .flatten();
    let modules: BTreeSet<&Module> = frames.filter_map(|frame| frame.module.as_deref()).collect();
    if modules.is_empty() {
        return String::new();
    }
    let mut html = format!(
        "<details><summary>{} on the stacks</summary>\n<table class=\"plain-table\"><thead><tr><th>Path</th><th>Build id</th></tr></thead><tbody>\n",
        words::plural(modules.len() as u64, "module", "modules")
    );
    for module in modules {
        let id = module.build_id.as_deref().map_or("–".to_owned(), hex);
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td class=\"mono\">{id}</td></tr>",
            escape(&module.path.to_string_lossy())
        );
    }
    html.push_str("</tbody></table></details>\n");
    html
}

/// The last line of the page.
pub fn foot() -> String {
    format!(
        "Made by memleak {}. This file is complete in itself and asks nothing of the network.",
        env!("CARGO_PKG_VERSION")
    )
}
