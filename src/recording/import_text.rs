//! Our own text output, and the newer form of memleak.py's, which it equals: frames with addresses.
//! The older form, without addresses, is `import_bcc`'s.

use super::log::{self, LogBuilder, Top};
use crate::model::report::{Frame, Function, Language, Location};
use crate::model::run::Source;

/// Whether a line is a frame of this form: "\t\t0x000055dde4ed4181\tmain+0x6d \[allocs\]".
pub fn is_frame(line: &str) -> bool {
    line.starts_with([' ', '\t']) && address(line.trim()).is_some()
}

/// A log of this form.
pub fn builder() -> LogBuilder {
    LogBuilder::new(Source::Text, Top::Asked)
}

/// The frame on a line; a source location may follow the module. A line for an inlined function comes before the
/// frame that it is part of, at the same address, and is none of its own.
pub fn frame(line: &str, builder: &mut LogBuilder) -> Option<Frame> {
    let (address, rest) = address(line)?;
    if let Some((name, place)) = rest.split_once(INLINED) {
        builder.push_inlined(name, location(place));
        return None;
    }
    if let Some(frame) = interpreted(rest) {
        return Some(frame);
    }
    let symbol = log::symbol(rest);
    let location = location(&symbol.rest);
    Some(builder.make_frame(address, symbol, location))
}

/// A frame that an interpreter ran: its language stands where other frames have their object, and it has no offset.
fn interpreted(text: &str) -> Option<Frame> {
    Language::ALL.into_iter().find_map(|language| {
        let (name, place) = text.split_once(&format!(" [{}]", language.name()))?;
        let is_native = name
            .rsplit_once("+0x")
            .is_some_and(|(_, digits)| u64::from_str_radix(digits, 16).is_ok());
        (!is_native && !name.starts_with("[unknown]")).then(|| Frame {
            module: Some(language.module()),
            function: Some(Function {
                name: name.to_owned(),
                location: location(place),
            }),
            language: Some(language),
            ..Frame::default()
        })
    })
}

/// What marks an inlined function, after its name.
const INLINED: &str = " [inlined]";

/// A source location, with its line or without.
fn location(text: &str) -> Option<Location> {
    let text = text.trim();
    let file_only = || {
        (!text.is_empty()).then(|| Location {
            file: text.into(),
            line: None,
        })
    };
    log::location(text).or_else(file_only)
}

fn address(line: &str) -> Option<(u64, &str)> {
    let (digits, rest) = line.strip_prefix("0x")?.split_once(['\t', ' '])?;
    Some((u64::from_str_radix(digits, 16).ok()?, rest.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreted_frames_are_told_from_programs_of_the_same_name() {
        let mut builder = builder();
        let mut read = |text: &str| frame(text, &mut builder).unwrap();
        let line = "0x0000000000000000\tServer.serve [python] /srv/a b.py:15";
        let found = read(line);
        assert_eq!(found.language, Some(Language::Python));
        assert_eq!(found.module, Some(Language::Python.module()));
        let function = found.function.unwrap();
        assert_eq!(function.name, "Server.serve");
        let location = function.location.unwrap();
        assert_eq!(location.file.to_str(), Some("/srv/a b.py"));
        assert_eq!(location.line, Some(15));
        for native in [
            "0x0000000000000010\tmain+0x6d [python] main.c:3",
            "0x0000000000000010\t[unknown] [python]",
        ] {
            assert_eq!(read(native).language, None, "{native}");
        }
    }
}
