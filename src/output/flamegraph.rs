//! The flame graph as an SVG with search and zoom, drawn by inferno.
//! Which frames there are and what they are called is `folded`'s.

use std::io::{self, Write};

use inferno::flamegraph::{self, Options, TextTruncateDirection};

use super::folded;
use crate::model::report::Report;
use crate::visible;

/// Draws the report's stacks by their bytes.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write(report: &Report, title: &str, out: &mut impl Write) -> io::Result<()> {
    let lines: Vec<String> = folded::fold(report, name)
        .into_iter()
        .filter(|&(_, bytes)| bytes > 0)
        .scan(u64::MAX, |left, (stack, bytes)| {
            // the graph adds up without looking
            let bytes = bytes.min(*left);
            *left -= bytes;
            Some(format!("{stack} {bytes}"))
        })
        .collect();
    if lines.is_empty() {
        return write_empty(title, out);
    }
    let mut options = Options::default();
    options.title = visible::line(title).into_owned();
    options.count_name = "bytes".to_owned();
    // A function's beginning tells more than its parameters.
    options.text_truncate_direction = TextTruncateDirection::Right;
    // Colours by name, so that equal input gives equal output.
    options.hash = true;
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
        .map_err(io::Error::other)
}

/// A name as inferno takes it: a last word that is a number would be read as a figure.
fn name(name: &str) -> String {
    let name = folded::safe(name);
    match name.trim_end().rsplit_once(' ') {
        Some((start, word)) if word.parse::<f64>().is_ok() => format!("{start}_{word}"),
        _ => name,
    }
}

fn write_empty(title: &str, out: &mut impl Write) -> io::Result<()> {
    let title: String = title
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || " :,.-".contains(c) {
                c
            } else {
                ' '
            }
        })
        .collect();
    writeln!(out, r#"<?xml version="1.0" standalone="no"?>"#)?;
    writeln!(
        out,
        r#"<svg version="1.1" width="1200" height="80" xmlns="http://www.w3.org/2000/svg">"#
    )?;
    writeln!(
        out,
        r#"<text x="600" y="30" text-anchor="middle" font-family="sans-serif">{title}</text>"#
    )?;
    writeln!(
        out,
        r#"<text x="600" y="55" text-anchor="middle" font-family="sans-serif">nothing outstanding</text>"#
    )?;
    writeln!(out, "</svg>")
}
