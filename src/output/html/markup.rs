//! What every part of the page's markup is made with: escaping, and the names of the target and of stacks.
//! All text from outside passes through `escape`. The parts themselves are in `headline`, `alerts` and `run`.

use std::borrow::Cow;

use super::Page;
use crate::analysis::blame::Blame;
use crate::analysis::calls::{Call, calls};
use crate::analysis::groups::Group;
use crate::model::run::{Recording, StackRecord, TargetKind};
use crate::visible::is_hidden;

/// Longest name that the page carries, in characters; generated C++ names can fill megabytes.
const LONGEST_NAME: usize = 4_000;

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
pub fn name_of(page: &Page<'_>, stack: usize) -> String {
    let record = page.recording.stacks.get(stack);
    record
        .map(|record| name_of_record(record, page.blame))
        .unwrap_or_default()
}

fn name_of_record(record: &StackRecord, blame: &Blame) -> String {
    match record.frames.as_deref().map(calls) {
        None => "[stack not stored]".to_owned(),
        Some(calls) => calls
            .get(blame.position(&calls))
            .map_or("[empty stack]".to_owned(), Call::title),
    }
}

/// What a group is called.
pub fn name_of_group(group: &Group) -> String {
    let culprit = group.culprit.as_ref();
    culprit.map_or("[stack not stored]".to_owned(), |culprit| {
        culprit.function.clone()
    })
}

/// The functions that called the one a stack is named by.
pub fn path_of(page: &Page<'_>, stack: usize) -> String {
    let frames = page
        .recording
        .stacks
        .get(stack)
        .and_then(|record| record.frames.as_deref());
    let calls = calls(frames.unwrap_or_default());
    let callers = calls
        .iter()
        .skip(page.blame.position(&calls) + 1)
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

/// Text from outside as it can be shown: control characters and those that reorder a line are spelled out,
/// and what is longer than any screen is cut.
pub fn visible(text: &str) -> Cow<'_, str> {
    let long = text.chars().nth(LONGEST_NAME).is_some();
    if !long && !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for character in text.chars().take(LONGEST_NAME) {
        if is_hidden(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    if long {
        shown.push('…');
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invisible_characters_are_spelled_out_and_endless_names_cut() {
        assert_eq!(visible("a<b>(c)"), "a<b>(c)");
        assert_eq!(visible("a\nb\u{202e}c"), "a\\u{a}b\\u{202e}c");
        assert_eq!(
            visible(&"x".repeat(9_000)).chars().count(),
            LONGEST_NAME + 1
        );
    }
}
