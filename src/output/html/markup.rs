//! The parts of the page that are there without scripts: headline, alerts, losses, how it was run.
//! All text from outside passes through `escape`; charts, table and flame graph are drawn by the scripts.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use super::calls::{Call, blame, calls, visible};
use super::intern::hex;
use super::{Page, is_alarming, words};
use crate::analysis::growth::{StackGrowth, Verdict};
use crate::recording::model::{Limit, Recording, SnapshotRecord, StackRecord, TargetKind};
use crate::report::Module;
use crate::snapshot::Losses;

/// Alerts that are spelled out; further ones are counted.
const MOST_ALERTS: usize = 12;

/// Rows of the table that stands in where scripts do not run.
const MOST_PLAIN_ROWS: usize = 20;

/// Text as HTML shows it, safe in elements and in quoted attributes.
pub fn escape(text: &str) -> String {
    let text = visible(text);
    let mut escaped = String::with_capacity(text.len() + text.len() / 8);
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// What was traced, in a few words.
fn target(recording: &Recording) -> String {
    let target = &recording.header.target;
    let command = shell_words::join(&target.command);
    match (target.kind, target.pid, command.is_empty()) {
        (TargetKind::Kernel, ..) => "the kernel".to_owned(),
        (TargetKind::System, ..) => "every process".to_owned(),
        (_, _, false) => command,
        (_, Some(pid), true) => format!("process {pid}"),
        (_, None, true) => "an unnamed target".to_owned(),
    }
}

/// The page's title.
pub fn title(recording: &Recording) -> String {
    let target = target(recording);
    let short: String = target.chars().take(60).collect();
    format!(
        "memleak: {short}{}",
        if short.len() < target.len() {
            "…"
        } else {
            ""
        }
    )
}

fn code(text: &str) -> String {
    format!("<code>{}</code>", escape(text))
}

/// How bad it is; decides the colour of the headline.
#[derive(Clone, Copy)]
enum Tone {
    Alert,
    Unsure,
    Ok,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Tone::Alert => "tone-alert",
            Tone::Unsure => "tone-unsure",
            Tone::Ok => "tone-ok",
        }
    }
}

/// The verdict: a sentence, and what to add to it. Both are HTML.
struct Sentence {
    tone: Tone,
    verdict: String,
    more: String,
}

/// Target, verdict and the key figures.
pub fn headline(page: &Page<'_>) -> String {
    let recording = page.recording;
    let sentence = sentence(page);
    let mut html = format!(
        "<section class=\"headline {}\" aria-label=\"Summary\">\n<p class=\"eyebrow\">{}</p>\n<h1><span>{}</span></h1>\n",
        sentence.tone.class(),
        eyebrow(recording),
        sentence.verdict
    );
    if !sentence.more.is_empty() {
        let _ = writeln!(html, "<p class=\"more\">{}</p>", sentence.more);
    }
    html.push_str(&figures(page));
    html.push_str(&notes(page));
    html.push_str("</section>");
    html
}

fn eyebrow(recording: &Recording) -> String {
    let header = &recording.header;
    let mut parts = vec![code(&target(recording))];
    if let Some(pid) = header
        .target
        .pid
        .filter(|_| !header.target.command.is_empty())
    {
        parts.push(format!("process {pid}"));
    }
    if !header.host.name.is_empty() {
        parts.push(format!("on {}", escape(&header.host.name)));
    }
    let duration = recording.duration_ns();
    if duration > 0 {
        parts.push(format!(
            "watched for {}",
            words::duration(seconds(duration))
        ));
    }
    parts.join(" · ")
}

fn sentence(page: &Page<'_>) -> Sentence {
    let Some(last) = page.recording.snapshots.last() else {
        return Sentence {
            tone: Tone::Unsure,
            verdict: "Nothing was recorded.".to_owned(),
            more: "The run ended before its first snapshot.".to_owned(),
        };
    };
    let alarming = alarming(page);
    if let Some(worst) = alarming.first() {
        return growing_sentence(page, last, &alarming, worst);
    }
    if last
        .figures
        .iter()
        .all(|figure| figure.bytes == 0 && figure.count == 0)
    {
        return Sentence {
            tone: Tone::Ok,
            verdict: "Nothing is outstanding.".to_owned(),
            more: "Everything that was allocated while memleak watched had been freed by the last snapshot.".to_owned(),
        };
    }
    let held = format!(
        "{} are outstanding in {} from {}.",
        words::bytes(last.total_bytes() as f64),
        words::plural(last.total_count(), "allocation", "allocations"),
        words::plural(last.figures.len() as u64, "stack", "stacks"),
    );
    if page
        .growth
        .iter()
        .all(|stack| stack.growth.verdict == Verdict::TooShort)
    {
        let snapshots = words::plural(
            page.recording.snapshots.len() as u64,
            "snapshot is",
            "snapshots are",
        );
        return Sentence {
            tone: Tone::Unsure,
            verdict: held,
            more: format!(
                "{snapshots} too few to tell whether anything grows; run for longer, or with a shorter interval."
            ),
        };
    }
    Sentence {
        tone: Tone::Ok,
        verdict: "No stack is growing.".to_owned(),
        more: held,
    }
}

fn growing_sentence(
    page: &Page<'_>,
    last: &SnapshotRecord,
    alarming: &[&StackGrowth],
    worst: &StackGrowth,
) -> Sentence {
    let name = code(&name_of(page.recording, worst.stack));
    let gains = match worst.growth.rate {
        Some(rate) => format!("gains {}", words::rate(rate.bytes_per_s)),
        None => "gains memory in every snapshot".to_owned(),
    };
    let verdict = match alarming.len() {
        1 => format!("One stack is growing: {name} {gains}."),
        many => format!(
            "{} stacks are growing; {name} leads: it {gains}.",
            words::count(many as u64)
        ),
    };
    let soonest = alarming
        .iter()
        .filter_map(|stack| stack.growth.exhausted_in_s)
        .reduce(f64::min);
    let limit = last
        .headroom
        .map_or("the memory that is left", |headroom| match headroom.limit {
            Limit::Cgroup => "the memory limit of its cgroup",
            Limit::Available => "the memory available on the machine",
        });
    let more = soonest.map(|seconds| {
        format!(
            "At this rate {limit} is used up in {}.",
            words::forecast(seconds)
        )
    });
    Sentence {
        tone: Tone::Alert,
        verdict,
        more: more.unwrap_or_default(),
    }
}

fn alarming<'a>(page: &Page<'a>) -> Vec<&'a StackGrowth> {
    page.growth
        .iter()
        .filter(|stack| is_alarming(&stack.growth))
        .collect()
}

fn name_of(recording: &Recording, stack: usize) -> String {
    recording
        .stacks
        .get(stack)
        .map(name_of_record)
        .unwrap_or_default()
}

fn name_of_record(record: &StackRecord) -> String {
    match record.frames.as_deref().map(calls) {
        None => "[stack not stored]".to_owned(),
        Some(calls) => calls
            .get(blame(&calls))
            .map_or("[empty stack]".to_owned(), Call::title),
    }
}

/// The functions that called the one a stack is named by.
fn path_of(recording: &Recording, stack: usize) -> String {
    let frames = recording
        .stacks
        .get(stack)
        .and_then(|record| record.frames.as_deref());
    let calls = calls(frames.unwrap_or_default());
    let callers = calls
        .iter()
        .skip(blame(&calls) + 1)
        .take(5)
        .map(Call::title);
    callers
        .map(|caller| format!("← {caller}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn figures(page: &Page<'_>) -> String {
    let Some(last) = page.recording.snapshots.last() else {
        return String::new();
    };
    let about = if last.estimated {
        "estimated from a sample"
    } else {
        ""
    };
    let alarming = alarming(page);
    let rate: f64 = alarming
        .iter()
        .filter_map(|stack| stack.growth.rate)
        .map(|rate| rate.bytes_per_s)
        .sum();
    let judged = !page
        .growth
        .iter()
        .all(|stack| stack.growth.verdict == Verdict::TooShort);
    let growing = match (alarming.len(), judged) {
        (0, false) => ("–".to_owned(), "too few snapshots to tell".to_owned()),
        (0, true) => ("0".to_owned(), "stacks".to_owned()),
        (some, _) => (words::count(some as u64), format!("+{}", words::rate(rate))),
    };
    let average = match last.total_count() {
        0 => about.to_owned(),
        count => format!(
            "{} on average",
            words::bytes(last.total_bytes() as f64 / count as f64)
        ),
    };
    let mut cells = vec![
        (
            "Outstanding",
            words::bytes(last.total_bytes() as f64),
            change(page.recording, about),
        ),
        ("Allocations", words::count(last.total_count()), average),
        (
            "Stacks",
            words::count(last.figures.len() as u64),
            String::new(),
        ),
        ("Growing", growing.0, growing.1),
    ];
    if let Some(rss) = last.rss_bytes {
        cells.push((
            "Resident memory",
            words::bytes(rss as f64),
            rss_change(page.recording, rss),
        ));
    }
    let mut html = "<dl class=\"figures\">\n".to_owned();
    for (name, value, sub) in cells {
        let _ = writeln!(
            html,
            "<div class=\"figure\"><dt>{name}</dt><dd>{}<span class=\"sub\">{}</span></dd></div>",
            escape(&value),
            if sub.is_empty() {
                "&nbsp;".to_owned()
            } else {
                escape(&sub)
            }
        );
    }
    html.push_str("</dl>\n");
    html
}

fn change(recording: &Recording, about: &str) -> String {
    let (Some(first), Some(last)) = (recording.snapshots.first(), recording.snapshots.last())
    else {
        return String::new();
    };
    let since = signed(last.total_bytes() as f64 - first.total_bytes() as f64);
    match (recording.snapshots.len() > 1, about.is_empty()) {
        (false, _) => about.to_owned(),
        (true, true) => format!("{since} since the first snapshot"),
        (true, false) => format!("{since}, {about}"),
    }
}

fn rss_change(recording: &Recording, last: u64) -> String {
    let first = recording
        .snapshots
        .iter()
        .find_map(|snapshot| snapshot.rss_bytes)
        .unwrap_or(last);
    match recording.snapshots.len() {
        0 | 1 => String::new(),
        _ => signed(last as f64 - first as f64),
    }
}

fn signed(bytes: f64) -> String {
    format!(
        "{}{}",
        if bytes >= 0.0 { "+" } else { "" },
        words::bytes(bytes)
    )
}

fn notes(page: &Page<'_>) -> String {
    let mut notes: Vec<String> = page.notes.to_vec();
    let recording = page.recording;
    if !recording.header.source.is_complete() {
        notes.push(format!(
            "Read from a {}: it holds the top stacks of each report only, so totals and lines cover what it lists.",
            recording.header.source.name()
        ));
    }
    if recording
        .snapshots
        .last()
        .is_some_and(|last| last.losses != Losses::default())
    {
        notes.push(
            "Some of the target's memory could not be followed: see “What was lost”.".to_owned(),
        );
    }
    if notes.is_empty() {
        return String::new();
    }
    let items: String = notes
        .iter()
        .map(|note| format!("<li class=\"note\">{}</li>\n", escape(note)))
        .collect();
    format!("<ul class=\"notes\" aria-label=\"Notes\">\n{items}</ul>\n")
}

/// The stacks that grow. `places` tells where the page's data has a stack.
pub fn alerts(page: &Page<'_>, places: &HashMap<usize, usize>) -> String {
    let alarming = alarming(page);
    let mut html = "<section id=\"growth\" class=\"panel\" aria-labelledby=\"growth-title\">\n<div class=\"panel-head\"><h2 id=\"growth-title\">Growing stacks</h2>".to_owned();
    if alarming.is_empty() {
        let _ = write!(html, "</div>\n{}\n</section>", no_alert(page));
        return html;
    }
    html.push_str(
        "<p class=\"hint\">fastest proven rate first</p></div>\n<div class=\"alerts\">\n",
    );
    for stack in alarming.iter().take(MOST_ALERTS) {
        html.push_str(&alert(page.recording, stack, places.get(&stack.stack)));
    }
    html.push_str("</div>\n");
    let more = alarming.len().saturating_sub(MOST_ALERTS);
    if more > 0 {
        let _ = writeln!(
            html,
            "<p class=\"hint\">And {} more: choose “Growing only” in the table.</p>",
            words::count(more as u64)
        );
    }
    html.push_str("</section>");
    html
}

fn no_alert(page: &Page<'_>) -> String {
    let snapshots = words::plural(
        page.recording.snapshots.len() as u64,
        "snapshot",
        "snapshots",
    );
    let (class, lead, rest) = if page
        .growth
        .iter()
        .all(|stack| stack.growth.verdict == Verdict::TooShort)
    {
        let why = if page
            .recording
            .snapshots
            .last()
            .is_some_and(|last| last.figures.is_empty())
        {
            "Nothing is outstanding, so there is nothing to judge.".to_owned()
        } else {
            format!("Growth shows over several snapshots; this run has {snapshots}.")
        };
        ("calm unsure", "No verdict.", why)
    } else {
        (
            "calm",
            "Nothing grows.",
            format!("Over {snapshots}, every stack stayed level, rose and fell, or shrank."),
        )
    };
    format!("<p class=\"{class}\"><b>{lead}</b><span>{rest}</span></p>")
}

fn alert(recording: &Recording, stack: &StackGrowth, place: Option<&usize>) -> String {
    let growth = &stack.growth;
    let mut facts = Vec::new();
    if let Some(rate) = growth.rate {
        facts.push(format!(
            "<b class=\"alert-rate\">+{}</b>",
            words::rate(rate.bytes_per_s)
        ));
        facts.push(format!(
            "95 % interval {} to {}",
            words::rate(rate.low),
            words::rate(rate.high)
        ));
    }
    facts.push(format!(
        "now <b>{}</b>",
        words::bytes(growth.last_bytes as f64)
    ));
    if growth.continuous {
        facts.push(format!(
            "rose in every one of {}",
            words::plural(growth.points as u64, "snapshot", "snapshots")
        ));
    }
    if let Some(seconds) = growth.exhausted_in_s {
        facts.push(format!(
            "memory used up in <b>{}</b>",
            words::forecast(seconds)
        ));
    }
    let facts: String = facts
        .iter()
        .map(|fact| format!("<span>{fact}</span>"))
        .collect();
    let place = place
        .map(|place| format!(" data-stack=\"{place}\""))
        .unwrap_or_default();
    format!(
        "<article class=\"alert\"{place}>\n<div><h3 class=\"alert-name\"><bdi>{}</bdi></h3>\n<p class=\"alert-path\"><bdi>{}</bdi></p>\n<p class=\"alert-facts\">{facts}</p></div>\n<div class=\"alert-side\"></div>\n</article>\n",
        escape(&name_of(recording, stack.stack)),
        escape(&path_of(recording, stack.stack)),
    )
}

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

/// What the tracer could not see or store.
pub fn losses(recording: &Recording) -> String {
    let losses = recording
        .snapshots
        .last()
        .map(|last| last.losses)
        .unwrap_or_default();
    let items = lost(&losses);
    let body = if items.is_empty() {
        let (class, lead, rest) = if recording.header.source.is_complete() {
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

/// What happened and how often, and what helps.
fn lost(losses: &Losses) -> Vec<(String, &'static str)> {
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
            losses.events,
            format!(
                "{} dropped.",
                plural(losses.events, "event was", "events were")
            ),
            "A buffer to user space was full: some mappings may be missing or shown although they are gone.",
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
            losses.calls,
            format!(
                "{} not seen.",
                plural(losses.calls, "call was", "calls were")
            ),
            "The state of a thread could not be had at that moment.",
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

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
