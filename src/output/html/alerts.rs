//! The stacks that grow, each with its rate and how long the memory lasts, or a calm word where none does.
//! Their lines are drawn by the scripts.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::markup::{escape, name_of, path_of};
use super::run::last_losses;
use super::{Page, growing, words};
use crate::analysis::growth::{StackGrowth, Verdict};

/// Alerts that are spelled out; further ones are counted.
const MOST_ALERTS: usize = 12;

/// The stacks that grow. `places` tells where the page's data has a stack.
pub fn alerts(page: &Page<'_>, places: &HashMap<usize, usize>) -> String {
    let growing = growing(page);
    let title = match last_losses(page.recording).may_lack_frees() {
        true => "Stacks that may be growing",
        false => "Growing stacks",
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
    for stack in growing.iter().take(MOST_ALERTS) {
        html.push_str(&alert(page, stack, places.get(&stack.stack)));
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

fn alert(page: &Page<'_>, stack: &StackGrowth, place: Option<&usize>) -> String {
    let growth = &stack.growth;
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
        escape(&name_of(page, stack.stack)),
        escape(&path_of(page, stack.stack)),
    )
}
