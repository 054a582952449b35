//! Our own text output, and the newer form of memleak.py's, which it equals: frames with addresses.
//! The older form, without addresses, is `import_bcc`'s.

use super::log::{self, LogBuilder, Top};
use super::model::Source;
use crate::report::Frame;

/// Whether a line is a frame of this form: "\t\t0x000055dde4ed4181\tmain+0x6d \[allocs\]".
pub fn is_frame(line: &str) -> bool {
    line.starts_with([' ', '\t']) && address(line.trim()).is_some()
}

/// A log of this form.
pub fn builder() -> LogBuilder {
    LogBuilder::new(Source::Text, Top::Asked)
}

/// The frame on a line; a source location may follow the module.
pub fn frame(line: &str, builder: &mut LogBuilder) -> Option<Frame> {
    let (address, rest) = address(line)?;
    let symbol = log::symbol(rest);
    let location = log::location(&symbol.rest);
    Some(builder.make_frame(address, symbol, location))
}

fn address(line: &str) -> Option<(u64, &str)> {
    let (digits, rest) = line.strip_prefix("0x")?.split_once(['\t', ' '])?;
    Some((u64::from_str_radix(digits, 16).ok()?, rest.trim()))
}
