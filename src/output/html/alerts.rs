//! What grows by who is to blame, each with its rate and its stacks, or a calm word where none does.
//! Their lines are drawn by the scripts.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::markup::{escape, name_of_group, path_of};
use super::run::last_losses;
use super::{Page, words};
use crate::analysis::groups::Group;
use crate::analysis::growth::Verdict;

/// Stacks that an alert lists.
const MOST_STACKS: usize = 5;

/// Alerts that are spelled out; further ones are counted.
const MOST_ALERTS: usize = 12;

/// The functions that grow. `places` tells where the page's data has a stack.
pub fn alerts(page: &Page<'_>, places: &HashMap<usize, usize>) -> String {
    let growing = page.groups;
    let title = match last_losses(page.recording).may_lack_frees() {
        true => "What may be growing",
        false => "What grows",
    };
    let mut html = format!(
        "<section id=\"growth\" class=\"panel\" aria-labelledby=\"growth-title\">\n<div class=\"panel-head\"><h2 id=\"growth-title\">{title}</h2>"
    );
    if growing.is_empty() {
        let _ = write!(html, "</div>\n{}\n</section>", no_alert(page));
        return html;
    }
    html.push_str(
        "<p class=\"hint\">fastest proven rate first</p></div>\n<div class=\"alerts\">\n",
    );
    for group in growing.iter().take(MOST_ALERTS) {
        html.push_str(&alert(page, group, places));
    }
    html.push_str("</div>\n");
    let more = growing.len().saturating_sub(MOST_ALERTS);
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

fn alert(page: &Page<'_>, group: &Group, places: &HashMap<usize, usize>) -> String {
    let growth = &group.growth;
    let mut facts = Vec::new();
    if let Some(rate) = growth.rate {
        facts.push(format!(
            "<b class=\"alert-rate\">+{}</b>",
            words::rate(rate.bytes_per_s)
        ));
        facts.push(format!(
            "95 % interval {}",
            words::rates(rate.low, rate.high)
        ));
    }
    facts.push(format!(
        "now <b>{}</b> in {}",
        words::bytes(group.bytes as f64),
        words::plural(group.count, "allocation", "allocations")
    ));
    if growth.continuous {
        facts.push(format!(
            "rose in every one of {}",
            words::plural(growth.points as u64, "snapshot", "snapshots")
        ));
    }
    if !growth.is_proven() {
        facts.push("too early to prove".to_owned());
    }
    let facts: String = facts
        .iter()
        .map(|fact| format!("<span>{fact}</span>"))
        .collect();
    format!(
        "<article class=\"alert\"{}>\n<div><h3 class=\"alert-name\"><bdi>{}</bdi></h3>\n<p class=\"alert-place\"><bdi>{}</bdi></p>\n<p class=\"alert-facts\">{facts}</p>{}</div>\n<div class=\"alert-side\"></div>\n</article>\n",
        link(group.stacks.first(), places),
        escape(&name_of_group(group)),
        escape(&whereabouts(page, group)),
        stacks(page, group, places)
    )
}

/// Where the page's data has a stack, for the scripts to lead there.
fn link(stack: Option<&usize>, places: &HashMap<usize, usize>) -> String {
    let place = stack.and_then(|stack| places.get(stack));
    place
        .map(|place| format!(" data-stack=\"{place}\""))
        .unwrap_or_default()
}

/// File and line, module and process of a group's culprit.
fn whereabouts(page: &Page<'_>, group: &Group) -> String {
    let culprit = group.culprit.as_ref();
    let location = culprit.and_then(|culprit| culprit.location.as_ref());
    let place = location.map(|location| {
        let line = location
            .line
            .map_or(String::new(), |line| format!(":{line}"));
        format!("{}{line}", location.file.display())
    });
    let module = culprit.and_then(|culprit| culprit.module.as_ref());
    let process = page.recording.processes.get(&group.tgid);
    let process = process.map(|name| {
        let ended = match page.recording.ended.contains_key(&group.tgid) {
            true => ", ended",
            false => "",
        };
        format!("pid {} ({name}){ended}", group.tgid)
    });
    let parts = [place, module.map(|module| module.name()), process];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

/// The stacks of a group and what each of them gains: how the culprit is reached.
fn stacks(page: &Page<'_>, group: &Group, places: &HashMap<usize, usize>) -> String {
    let mut html = "<ul class=\"alert-stacks\">\n".to_owned();
    for stack in group.stacks.iter().take(MOST_STACKS) {
        let growth = page.growth.iter().find(|growth| growth.stack == *stack);
        let rate = growth.and_then(|growth| growth.growth.rate);
        let rate = rate.map_or(String::new(), |rate| {
            format!("+{} ", words::rate(rate.bytes_per_s.max(0.0)))
        });
        let path = match path_of(page, *stack) {
            path if path.is_empty() => "no caller is known".to_owned(),
            path => path,
        };
        let rate = match group.stacks.len() {
            1 => String::new(),
            _ => format!("<b>{rate}</b>"),
        };
        let _ = writeln!(
            html,
            "<li{}>{rate}<bdi>{}</bdi></li>",
            link(Some(stack), places),
            escape(&path)
        );
    }
    let more = group.stacks.len().saturating_sub(MOST_STACKS);
    if more > 0 {
        let _ = writeln!(
            html,
            "<li>and {}</li>",
            words::plural(more as u64, "more stack", "more stacks")
        );
    }
    html + "</ul>"
}
