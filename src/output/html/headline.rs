//! The top of the page: what was traced, the verdict as a sentence, the key figures, and notes about them.
//! The verdicts themselves are made in `analysis`.

use std::fmt::Write as _;

use super::markup::{code, escape, name_of_group, seconds, target};
use super::run::{last_losses, lost};
use super::{Page, words};
use crate::analysis::blame::Culprit;
use crate::analysis::groups::Group;
use crate::analysis::growth::{self, Verdict};
use crate::model::run::{Limit, Recording, SnapshotRecord};

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
        let _ = writeln!(html, "<p class=\"subline\">{}</p>", sentence.more);
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
    if let Some(worst) = page.groups.first() {
        return growing_sentence(page, last, worst);
    }
    if stacks(last) == 0 {
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
        words::plural(stacks(last), "stack", "stacks"),
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

fn growing_sentence(page: &Page<'_>, last: &SnapshotRecord, worst: &Group) -> Sentence {
    let doubtful = last.losses.may_lack_frees();
    let proven = page.groups.iter().any(|group| group.growth.is_proven());
    let who = who(page, worst);
    let gains = match worst.growth.rate {
        Some(rate) => format!("gains {}", words::rate(rate.bytes_per_s)),
        None => "gains memory in every snapshot".to_owned(),
    };
    let grow = match (page.groups.len(), doubtful) {
        (1, false) => "is growing",
        (_, false) => "are growing",
        (_, true) => "may be growing",
    };
    let verdict = match page.groups.len() {
        1 => format!("One function {grow}: {who} {gains}."),
        many => format!(
            "{} functions {grow}. The fastest, {who}, {gains}.",
            words::count(many as u64)
        ),
    };
    let mut more = Vec::new();
    if doubtful {
        more.push("Frees were missed: what looks like growth may be none.".to_owned());
    } else if !proven {
        more.push(format!(
            "It rose in every snapshot; {} of them over {} seconds would prove it.",
            growth::ENOUGH_POINTS,
            growth::ENOUGH_NS / 1_000_000_000
        ));
    }
    more.extend(time_left(page, last));
    Sentence {
        tone: match doubtful || !proven {
            true => Tone::Unsure,
            false => Tone::Alert,
        },
        verdict,
        more: more.join(" "),
    }
}

/// Who is to blame for a group, where in the source, and in which process, as far as that is known.
fn who(page: &Page<'_>, group: &Group) -> String {
    let name = code(&name_of_group(group));
    let place = group.culprit.as_ref().and_then(Culprit::place);
    let place = place.map_or(String::new(), |place| format!(" at {}", code(&place)));
    let process = page.recording.processes.get(&group.tgid);
    let process = process.map_or(String::new(), |process| {
        format!(" in {} (pid {})", code(process), group.tgid)
    });
    name + &place + &process
}

/// When the memory is used up by all that grows.
fn time_left(page: &Page<'_>, last: &SnapshotRecord) -> Option<String> {
    let seconds = page.together.exhausted_in_s?;
    let limit = last
        .headroom
        .map_or("the memory that is left", |headroom| match headroom.limit {
            Limit::Cgroup => "the memory limit of its cgroup",
            Limit::Rlimit => "the limit of its address space",
            Limit::Available => "the memory available on the machine",
        });
    let rate = match page.groups.len() {
        1 => "At this rate".to_owned(),
        _ => format!("At {} in all", words::rate(page.together.bytes_per_s)),
    };
    Some(format!(
        "{rate} {limit} is used up in {}.",
        words::forecast(seconds)
    ))
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
    let judged = !page
        .growth
        .iter()
        .all(|stack| stack.growth.verdict == Verdict::TooShort);
    let growing = match (page.groups.len(), judged) {
        (0, false) => ("–".to_owned(), "too few snapshots to tell".to_owned()),
        (0, true) => ("0".to_owned(), "functions".to_owned()),
        (some, _) => (
            words::count(some as u64),
            format!("+{}", words::rate(page.together.bytes_per_s)),
        ),
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
        ("Stacks", words::count(stacks(last)), largest(last)),
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
        (true, true) => format!("{since} since the start"),
        (true, false) => format!("{since}, {about}"),
    }
}

/// Stacks that hold something; logs may name others.
fn stacks(last: &SnapshotRecord) -> u64 {
    let figures = last.figures.iter();
    figures
        .filter(|figure| figure.bytes > 0 || figure.count > 0)
        .count() as u64
}

/// How much of all bytes the largest stack holds.
fn largest(last: &SnapshotRecord) -> String {
    let most = last.figures.iter().map(|figure| figure.bytes).max();
    match (most.unwrap_or(0), last.total_bytes()) {
        (_, 0) => String::new(),
        (most, total) => {
            let percent = most as f64 / total as f64 * 100.0;
            format!("the largest holds {percent:.0} %")
        }
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
    if recording
        .snapshots
        .iter()
        .any(|snapshot| !snapshot.complete)
    {
        notes.push(format!(
            "Read from a {}: it holds the top stacks of each report only, so totals and lines cover what it lists.",
            recording.header.source.name()
        ));
    }
    let lost: Vec<String> = lost(&last_losses(recording))
        .into_iter()
        .map(|(what, _)| what)
        .collect();
    if !lost.is_empty() {
        notes.push(format!("{} See “What was lost”.", lost.join(" ")));
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
