//! Which frames are of no interest to pprof, so that what it calls flat is the user's function: its `drop_frames` and
//! `keep_frames`. Who is to blame is decided in `analysis`.

use std::collections::BTreeSet;

use crate::analysis::blame::Blame;
use crate::analysis::calls::calls;
use crate::model::report::Entry;

/// Bytes of a regular expression; what does not fit stays in sight.
const MOST: usize = 256 << 10;

/// Regular expressions of functions to drop with all that they call, and of those to keep.
pub fn expressions(entries: &[Entry], blame: &Blame) -> (String, String) {
    let (mut passed_over, mut culprits, mut callers) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for entry in entries {
        let calls = calls(entry.frames.as_deref().unwrap_or_default());
        let to_blame = blame.position(&calls);
        for (at, call) in calls.iter().enumerate() {
            let Some(name) = call.name else { continue };
            let names = match at.cmp(&to_blame) {
                std::cmp::Ordering::Less => &mut passed_over,
                std::cmp::Ordering::Equal => &mut culprits,
                std::cmp::Ordering::Greater => &mut callers,
            };
            names.insert(without_parameters(name));
        }
    }
    // what calls a culprit somewhere would drop it together with all else
    let dropped = passed_over
        .iter()
        .filter(|name| !culprits.contains(*name) && !callers.contains(*name));
    (any_of(dropped.copied()), any_of(culprits.iter().copied()))
}

/// The part of a name that pprof compares: up to the first parenthesis that is no part of it.
fn without_parameters(name: &str) -> &str {
    let mut at = 0;
    while let Some(found) = name[at..].find('(') {
        let open = at + found;
        let rest = &name[open..];
        if rest.starts_with("(anonymous namespace)") {
            at = open + "(anonymous namespace)".len();
        } else if rest.starts_with("()") && name[..open].ends_with("operator") {
            at = open + 2;
        } else {
            return &name[..open];
        }
    }
    name
}

/// An expression for any of some names.
fn any_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut expression = String::new();
    for name in names.filter(|name| !name.is_empty()) {
        let mut quoted = String::with_capacity(name.len() + 8);
        for character in name.chars() {
            if "\\.+*?()|[]{}^$".contains(character) {
                quoted.push('\\');
            }
            quoted.push(character);
        }
        if expression.len() + quoted.len() < MOST {
            if !expression.is_empty() {
                expression.push('|');
            }
            expression.push_str(&quoted);
        }
    }
    expression
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::{Frame, Function};
    use crate::model::snapshot::Class;

    fn entry(names: &[&str]) -> Entry {
        let frame = |name: &&str| Frame {
            function: Some(Function {
                name: (*name).to_owned(),
                location: None,
            }),
            ..Frame::default()
        };
        Entry {
            tgid: 1,
            class: Class::Heap,
            allocator: None,
            bytes: 1,
            count: 1,
            oldest_ns: None,
            reach: None,
            frames: Some(names.iter().map(frame).collect()),
        }
    }

    #[test]
    fn only_what_is_never_a_caller_is_dropped() {
        let entries = [
            entry(&[
                "operator new(unsigned long)",
                "void std::f<int>(int)",
                "app::g(int)",
                "main",
            ]),
            entry(&["std::run()", "app::h()", "void std::f<int>(int)", "main"]),
        ];
        let (dropped, kept) = expressions(&entries, &Blame::default());
        assert_eq!(dropped, "operator new|std::run");
        assert_eq!(kept, "app::g|app::h");
    }

    #[test]
    fn names_are_cut_as_pprof_cuts_them_and_quoted() {
        let cut = without_parameters;
        assert_eq!(
            cut("(anonymous namespace)::f(int)"),
            "(anonymous namespace)::f"
        );
        assert_eq!(cut("a::operator()(int) const"), "a::operator()");
        assert_eq!(cut("plain"), "plain");
        assert_eq!(any_of(["a::b<c*>", "d"].into_iter()), "a::b<c\\*>|d");
    }
}
