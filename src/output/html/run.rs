//! The end of the page: what was lost, how the figures came about, and a plain table for viewers without scripts.
//! What is lost is counted in the tracer.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::intern::hex;
use super::markup::{code, escape, name_of, path_of, seconds, target};
use super::words;
use crate::recording::model::{Recording, Source};
use crate::report::Module;
use crate::snapshot::Losses;

/// Rows of the table that stands in where scripts do not run.
const MOST_PLAIN_ROWS: usize = 20;

/// A plain table of the largest stacks, for viewers that run no scripts.
pub fn largest(recording: &Recording) -> String {
    let Some(last) = recording.snapshots.last() else {
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
            escape(&name_of(recording, stack)),
            escape(&path_of(recording, stack)),
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
    let mut items: Vec<(String, String)> = lost(&losses)
        .into_iter()
        .map(|(what, hint)| (what, hint.to_owned()))
        .collect();
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
pub fn lost(losses: &Losses) -> Vec<(String, &'static str)> {
    let plural = words::plural;
    let all = [
        (
            losses.allocations,
            format!(
                "{} of {} were not recorded.",
                plural(losses.allocations, "allocation", "allocations"),
                words::bytes(losses.allocation_bytes as f64)
            ),
            "The map of live blocks was full; raise it with --max-allocs.",
        ),
        (
            losses.stacks,
            format!(
                "{} counted without a stack.",
                plural(losses.stacks, "allocation was", "allocations were")
            ),
            "The map of stacks was full; raise it with --stack-storage-size.",
        ),
        (
            losses.ranges,
            format!(
                "{} dropped.",
                plural(
                    losses.ranges,
                    "change of a mapping was",
                    "changes of mappings were"
                )
            ),
            "Their buffer was full: some mappings may be missing, or shown although they are gone; leave them out with --no-mmap.",
        ),
        (
            losses.mappings,
            format!(
                "{} not seen.",
                plural(losses.mappings, "code mapping was", "code mappings were")
            ),
            "Their buffer was full: some frames may stay unknown.",
        ),
        (
            losses.files,
            format!(
                "{} not read to the end.",
                plural(losses.files, "file was", "files were")
            ),
            "Reading took too much time or memory: some frames may stay unknown or missing.",
        ),
        (
            losses.threads,
            format!(
                "{} not seen.",
                plural(losses.threads, "call was", "calls were")
            ),
            "The kernel had no memory for a thread's state; lower --max-allocs.",
        ),
        (
            losses.missed_frees,
            format!(
                "{} missed.",
                plural(losses.missed_frees, "free was", "frees were")
            ),
            "An address was handed out again while it still counted as live; the older block was replaced.",
        ),
        (
            losses.unseen_frees,
            format!(
                "{} of freeing not seen.",
                plural(losses.unseen_frees, "way is", "ways are")
            ),
            "The kernel does not tell of them; such blocks are shown until their address is handed out again.",
        ),
        (
            losses.events,
            format!(
                "{} of the kernel not seen.",
                plural(losses.events, "event was", "events were")
            ),
            "They came in an interrupt of memleak’s own program.",
        ),
        (
            losses.processes,
            format!(
                "{} not traced.",
                plural(losses.processes, "process was", "processes were")
            ),
            "There were too many; name fewer.",
        ),
        (
            losses.files,
            format!(
                "{} not read to the end.",
                plural(losses.files, "file was", "files were")
            ),
            "Some frames may stay unknown or missing.",
        ),
        (
            losses.silent,
            "Nothing was seen.".to_owned(),
            "No probed function was called in the whole run, so that nothing can be said of the target’s memory.",
        ),
        (
            losses.late_processes,
            format!(
                "{} not seen from the first instruction, or not for a moment.",
                plural(losses.late_processes, "process was", "processes were")
            ),
            "A translator such as valgrind ran, which would have died of probes for everyone: each process got its own.",
        ),
        (
            losses.unfollowed,
            format!(
                "{} not followed.",
                plural(
                    losses.unfollowed,
                    "C++ allocation was",
                    "C++ allocations were"
                )
            ),
            "Failing with an exception while its return is probed could have ended the program, and it was large enough to fail.",
        ),
        (
            losses.in_handlers,
            format!(
                "{} not followed.",
                plural(
                    losses.in_handlers,
                    "call of a signal handler was",
                    "calls of signal handlers were"
                )
            ),
            "They were made on an alternate stack within other calls, and trapping their return would have ended the program.",
        ),
        (
            losses.lives,
            format!(
                "{} not seen.",
                plural(
                    losses.lives,
                    "start or end of a process was",
                    "starts and ends of processes were"
                )
            ),
            "Their buffer was full: some processes may have no name, or be reported late; trace fewer.",
        ),
    ];
    let happened = all.into_iter().filter(|(number, ..)| *number > 0);
    happened.map(|(_, what, hint)| (what, hint)).collect()
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
