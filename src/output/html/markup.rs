//! What every part of the page's markup is made with: escaping, and the names of the target and of stacks.
//! All text from outside passes through `escape`. The parts themselves are in `headline`, `alerts` and `run`.

use super::calls::{Call, blame, calls, visible};
use crate::model::run::{Recording, StackRecord, TargetKind};

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

/// Text in the type of code.
pub fn code(text: &str) -> String {
    format!("<code>{}</code>", escape(text))
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

/// What was traced, in a few words.
pub fn target(recording: &Recording) -> String {
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

/// What a stack of the recording is called.
pub fn name_of(recording: &Recording, stack: usize) -> String {
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
pub fn path_of(recording: &Recording, stack: usize) -> String {
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

/// Nanoseconds in seconds.
pub fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
