//! The processes of a run on several: what each holds, how fast it grows, and whether it has ended.
//! Scripts make its names filter the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::markup::escape;
use super::{Page, words};

/// Rows; the processes that hold most stay.
const MOST: usize = 200;

/// What a process comes to.
#[derive(Default)]
struct Sum {
    bytes: u64,
    count: u64,
    stacks: u64,
    bytes_per_s: f64,
}

/// The way to the table, for the list of sections.
pub fn link(page: &Page<'_>) -> &'static str {
    match page.recording.processes.is_empty() {
        true => "",
        false => "<a href=\"#processes\">Processes</a>",
    }
}

/// A table of the processes, largest first; nothing where there could be only one.
pub fn processes(page: &Page<'_>) -> String {
    let recording = page.recording;
    if recording.processes.is_empty() {
        return String::new();
    }
    let mut sums: BTreeMap<u32, Sum> = recording
        .processes
        .keys()
        .map(|tgid| (*tgid, Sum::default()))
        .collect();
    let figures = recording.snapshots.last().map(|last| &last.figures);
    for figure in figures.into_iter().flatten() {
        if let Some(stack) = recording.stacks.get(figure.stack as usize) {
            let sum = sums.entry(stack.tgid).or_default();
            sum.bytes = sum.bytes.saturating_add(figure.bytes);
            sum.count = sum.count.saturating_add(figure.count);
            sum.stacks += 1;
        }
    }
    for group in page.groups {
        let rate = group.growth.rate.map_or(0.0, |rate| rate.bytes_per_s);
        sums.entry(group.tgid).or_default().bytes_per_s += rate;
    }
    let mut order: Vec<(u32, Sum)> = sums.into_iter().collect();
    order.sort_by(|a, b| {
        let key = |sum: &Sum| (sum.bytes, sum.count);
        (b.1.bytes_per_s > 0.0)
            .cmp(&(a.1.bytes_per_s > 0.0))
            .then_with(|| key(&b.1).cmp(&key(&a.1)))
            .then(a.0.cmp(&b.0))
    });
    table(page, &order)
}

fn table(page: &Page<'_>, order: &[(u32, Sum)]) -> String {
    let mut html = format!(
        "<section id=\"processes\" class=\"panel\" aria-labelledby=\"processes-title\">\n<div class=\"panel-head\"><h2 id=\"processes-title\">Processes</h2><p class=\"hint\">{}</p></div>\n<div class=\"table-wrap\"><table>\n<thead><tr><th>Process</th><th class=\"num\">Bytes</th><th class=\"num\">Allocations</th><th class=\"num\">Stacks</th><th class=\"num\">Growth</th></tr></thead>\n<tbody>\n",
        words::plural(order.len() as u64, "process", "processes")
    );
    for (tgid, sum) in order.iter().take(MOST) {
        let name = page.recording.processes.get(tgid);
        let title = match name {
            Some(name) => format!("pid {tgid} ({name})"),
            None => format!("pid {tgid}"),
        };
        let ended = match page.recording.ended.contains_key(tgid) {
            true => " <span class=\"ended\">ended</span>",
            false => "",
        };
        let growth = match sum.bytes_per_s > 0.0 {
            true => format!("+{}", words::rate(sum.bytes_per_s)),
            false => "–".to_owned(),
        };
        let _ = writeln!(
            html,
            "<tr><td data-process=\"{tgid}\"><bdi>{}</bdi>{ended}</td><td class=\"num\">{}</td><td class=\"num\">{}</td><td class=\"num\">{}</td><td class=\"num\">{growth}</td></tr>",
            escape(&title),
            words::bytes(sum.bytes as f64),
            words::count(sum.count),
            words::count(sum.stacks),
        );
    }
    html.push_str("</tbody></table></div>\n");
    let more = order.len().saturating_sub(MOST);
    if more > 0 {
        let _ = writeln!(
            html,
            "<p class=\"hint\">And {} that hold less.</p>",
            words::plural(more as u64, "process", "processes")
        );
    }
    html.push_str("</section>");
    html
}
