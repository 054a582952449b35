//! Logs of libbpf-tools' memleak, in all the forms that its symbolizers give its frames.
//! Logs in BCC's form are `import_text`'s and `import_bcc`'s.

use super::log::{self, LogBuilder, Symbol, Top};
use crate::model::report::Frame;
use crate::model::run::Source;

/// Whether a line is a frame of this form: "\t0 \[<000055dde4ed4181>\] main+0x6d allocs.c:12".
pub fn is_frame(line: &str) -> bool {
    line.starts_with([' ', '\t']) && address(line.trim()).is_some()
}

/// A log of this form.
pub fn builder() -> LogBuilder {
    LogBuilder::new(Source::LibbpfTools, Top::Shown)
}

/// The frame on a line. What follows the function is, by symbolizer: "source.c:12", "/path/of/module:0", or
/// "\[/path/of/module\]", the last without a function where there is none.
pub fn frame(line: &str, builder: &mut LogBuilder) -> Option<Frame> {
    let (address, rest) = address(line)?;
    if rest == "<null sym>" {
        return Some(Frame {
            address,
            ..Frame::default()
        });
    }
    if let Some(module) = rest
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        let symbol = Symbol {
            module: Some(module.to_owned()),
            ..Symbol::default()
        };
        return Some(builder.make_frame(address, symbol, None));
    }
    let mut symbol = log::symbol(rest);
    let mut location = log::location(&symbol.rest);
    if let Some(place) = location.take_if(|place| place.line.is_none()) {
        symbol.module = Some(place.file.to_string_lossy().into_owned());
    }
    Some(builder.make_frame(address, symbol, location))
}

fn address(line: &str) -> Option<(u64, &str)> {
    let (number, rest) = line.split_once(" [<")?;
    let (digits, rest) = rest.split_once(">]")?;
    number.parse::<u32>().ok()?;
    Some((u64::from_str_radix(digits, 16).ok()?, rest.trim()))
}
