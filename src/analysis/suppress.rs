//! Suppressions in LeakSanitizer's syntax: which stacks not to report, and how much each rule left out.
//! Reading the file is somebody else's work: this gets its text.

use std::path::Path;

use crate::model::report::{Frame, Function};

/// The rules of a suppression file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suppressions {
    rules: Vec<Rule>,
}

/// One `leak:` line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    pattern: String,
}

impl Suppressions {
    /// Reads rules: one `leak:pattern` a line; blank lines and those that begin with `#` are comments.
    ///
    /// # Errors
    /// One line that says which line is wrong, and why.
    pub fn parse(text: &str) -> Result<Suppressions, String> {
        let mut rules = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.strip_prefix("leak:") {
                Some("") => {
                    return Err(format!("line {}: a pattern must follow \"leak:\"", at + 1));
                }
                Some(pattern) => rules.push(Rule {
                    pattern: pattern.to_owned(),
                }),
                None => {
                    return Err(format!(
                        "line {}: expected \"leak:pattern\", found {line:?}",
                        at + 1
                    ));
                }
            }
        }
        Ok(Suppressions { rules })
    }

    /// The pattern of the first rule that matches a frame of the stack: its function, one inlined in it, a source
    /// file, or its module.
    pub fn rule_for(&self, frames: Option<&[Frame]>) -> Option<&str> {
        let frames = frames.unwrap_or_default();
        self.rules
            .iter()
            .map(|rule| rule.pattern.as_str())
            .find(|pattern| frames.iter().any(|frame| frame_matches(pattern, frame)))
    }
}

fn frame_matches(pattern: &str, frame: &Frame) -> bool {
    let path_matches = |path: &Path| matches(pattern, &path.to_string_lossy());
    let function_matches = |function: &Function| {
        matches(pattern, &function.name)
            || function
                .location
                .as_ref()
                .is_some_and(|location| path_matches(&location.file))
    };
    frame
        .function
        .iter()
        .chain(&frame.inlined)
        .any(function_matches)
        || frame
            .module
            .as_ref()
            .is_some_and(|module| path_matches(&module.path))
}

/// LeakSanitizer's matching: `*` stands for anything, `^` at the start and `$` at the end pin the pattern down, and
/// without them it may match any part of the text. Source: compiler-rt's TemplateMatch, in
/// sanitizer_common/sanitizer_suppressions and sanitizer_common.cpp.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, at_start) = match pattern.strip_prefix('^') {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    let (pattern, at_end) = match pattern.strip_suffix('$') {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    let mut pieces = pattern.split('*');
    // A split has at least one piece.
    let first = pieces.next().unwrap_or_default();
    let rest: Vec<&str> = pieces.collect();
    let Some((last, middle)) = rest.split_last() else {
        return matches_whole(first, text, at_start, at_end);
    };
    let Some(text) = after(first, text, at_start) else {
        return false;
    };
    let mut text = text;
    for piece in middle {
        match after(piece, text, false) {
            Some(rest) => text = rest,
            None => return false,
        }
    }
    if at_end {
        text.ends_with(last)
    } else {
        text.contains(last)
    }
}

fn matches_whole(piece: &str, text: &str, at_start: bool, at_end: bool) -> bool {
    match (at_start, at_end) {
        (true, true) => text == piece,
        (true, false) => text.starts_with(piece),
        (false, true) => text.ends_with(piece),
        (false, false) => text.contains(piece),
    }
}

/// What follows the first occurrence of `piece`.
fn after<'a>(piece: &str, text: &'a str, at_start: bool) -> Option<&'a str> {
    if at_start {
        return text.strip_prefix(piece);
    }
    text.find(piece).map(|at| &text[at + piece.len()..])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::report::{Location, Module};

    #[test]
    fn patterns_match_as_leak_sanitizer_does() {
        let cases = [
            ("foo", "a_foo_b", true),
            ("foo", "fo", false),
            ("^foo", "foobar", true),
            ("^foo", "a foo", false),
            ("foo$", "a foo", true),
            ("foo$", "foobar", false),
            ("^foo$", "foo", true),
            ("^foo$", "foofoo", false),
            ("f*o", "xxfabcoxx", true),
            ("^f*o$", "fabco", true),
            ("^f*o$", "fabcox", false),
            ("a*b*c", "..a..b..c..", true),
            ("a*b*c", "..a..c..b..", false),
            ("*", "", true),
            ("^ab*ba$", "aba", false),
            ("*foo*", "a foo b", true),
            ("lib*.so", "/usr/lib/libfoo.so.6", true),
            ("é*", "caf\u{e9}s", true),
            ("f$x", "f$x", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern, text), expected, "{pattern:?} on {text:?}");
        }
    }

    fn frame() -> Frame {
        let at = |file: &str| {
            Some(Location {
                file: file.into(),
                line: Some(1),
            })
        };
        Frame {
            module: Some(Arc::new(Module {
                path: "/usr/lib/libcrypto.so.3".into(),
                build_id: None,
            })),
            function: Some(Function {
                name: "ns::open(int)".into(),
                location: at("src/open.cc"),
            }),
            inlined: vec![Function {
                name: "helper".into(),
                location: at("src/helper.h"),
            }],
            ..Frame::default()
        }
    }

    #[test]
    fn rules_look_at_functions_files_and_modules_of_every_frame() {
        for pattern in [
            "ns::open",
            "^helper$",
            "open.cc",
            "helper.h",
            "libcrypto.so",
            "^/usr/lib/*.so",
        ] {
            let rules =
                Suppressions::parse(&format!("# why\n\n  leak:nothing\n leak:{pattern} \r\n"))
                    .unwrap();
            assert_eq!(
                rules.rule_for(Some(&[Frame::default(), frame()])),
                Some(pattern)
            );
        }
        let rules = Suppressions::parse("leak:libcrypt0").unwrap();
        assert_eq!(rules.rule_for(Some(&[frame()])), None);
        assert_eq!(rules.rule_for(None), None);
    }

    #[test]
    fn other_lines_are_refused_with_their_number() {
        assert!(
            Suppressions::parse("leak:a\nrace:b\n")
                .unwrap_err()
                .contains("line 2")
        );
        assert!(Suppressions::parse("leak:").unwrap_err().contains("line 1"));
        assert_eq!(Suppressions::parse(""), Ok(Suppressions::default()));
    }
}
