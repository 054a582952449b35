//! Opens what users hand to `memleak report` and finds out what it is: a recording or a tool's log.
//! The grammars of each live in `read` and the importers.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::log::LogBuilder;
use super::read::{self, Loaded};
use super::{compressed, import_bcc, import_libbpf_tools, import_text, log};
use crate::model::report::Frame;

/// Bytes of a log, which is held in memory.
const MOST_LOG: u64 = 4 << 30;

/// Reads the file at `path`, which may be compressed; `-` is the standard input.
///
/// # Errors
/// When it cannot be read, or is neither a recording nor a log of memleak.
pub fn load(path: &Path) -> Result<Loaded> {
    let name = path.display();
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(path).with_context(|| format!("failed to open {name}"))?)
    };
    let input = Box::new(BufReader::with_capacity(1 << 16, input));
    compressed::decompressed(input)
        .and_then(read_any)
        .with_context(|| format!("failed to read {name}"))
}

/// Reads a recording or a log.
///
/// # Errors
/// See [`load`].
pub fn read_any(mut input: impl BufRead) -> Result<Loaded> {
    let start = input.fill_buf()?;
    match start.first() {
        None => bail!("it is empty"),
        Some(b'{') => read::read(input),
        Some(_) if start.contains(&0) => {
            bail!("it is neither a memleak recording nor a text log of memleak")
        }
        Some(_) => {
            let mut bytes = Vec::new();
            let read = (&mut input).take(MOST_LOG + 1).read_to_end(&mut bytes)?;
            if read as u64 > MOST_LOG {
                bail!("it is a log of more than 4 GiB: report on parts of it");
            }
            import(&String::from_utf8_lossy(&bytes))
        }
    }
}

/// Reads a log of any of the known tools: the first frame shows which.
fn import(text: &str) -> Result<Loaded> {
    if !text.lines().any(|line| log::report_heading(line).is_some()) {
        bail!("it is neither a memleak recording nor a text log of memleak: no report found in it");
    }
    let frame = first_frame(text).unwrap_or_default();
    Ok(if import_libbpf_tools::is_frame(frame) {
        import_as(
            text,
            import_libbpf_tools::builder(),
            import_libbpf_tools::frame,
        )
    } else if import_text::is_frame(frame) || frame.is_empty() {
        import_as(text, import_text::builder(), import_text::frame)
    } else {
        import_as(text, import_bcc::builder(), import_bcc::frame)
    })
}

/// The first line below an entry's heading that is a frame.
fn first_frame(text: &str) -> Option<&str> {
    let mut lines = text
        .lines()
        .skip_while(|line| log::entry_heading(line).is_none())
        .skip(1);
    lines.find(|line| {
        line.starts_with([' ', '\t'])
            && !log::is_block(line)
            && !log::is_lost_stack(line)
            && log::entry_heading(line).is_none()
    })
}

fn import_as(
    text: &str,
    mut builder: LogBuilder,
    frame: impl Fn(&str, &mut LogBuilder) -> Option<Frame>,
) -> Loaded {
    text.lines().for_each(|line| builder.line(line, &frame));
    let mut warnings = Vec::new();
    // Whoever wrote the log was stopped in the middle of a report, whose figures would look as if memory had shrunk.
    if !text.ends_with('\n') && builder.drop_open_report() {
        warnings.push("its last report is cut off, and was left out".to_owned());
    }
    Loaded {
        recording: builder.finish(),
        warnings,
    }
}

#[cfg(test)]
mod tests;
