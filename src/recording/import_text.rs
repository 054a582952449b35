//! Our own text output, and the newer form of memleak.py's, which it equals: frames with addresses.
//! The older form, without addresses, is `import_bcc`'s.

use super::log::{self, LogBuilder, Top};
use crate::model::report::{Frame, Location};
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
    let symbol = log::symbol(rest);
    let location = location(&symbol.rest);
    Some(builder.make_frame(address, symbol, location))
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
