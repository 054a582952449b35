//! Text from outside as it may be shown: what would move a cursor, reorder or hide text, or end a line is spelled out.
//! Every stream and format that holds names passes through here; what is said is decided elsewhere.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write};

/// Whether a character does something to a terminal or to the text around it instead of being seen.
pub fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Text within a line: `\n`, `\t`, `\x1b` and `\u{202e}` stand for what is not seen. Ordinary names stay as they are.
pub fn line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match is_hidden(character) {
            true => shown.push_str(&spelled(character)),
            false => shown.push(character),
        }
    }
    Cow::Owned(shown)
}

fn spelled(character: char) -> String {
    match character {
        '\n' => "\\n".to_owned(),
        '\t' => "\\t".to_owned(),
        '\0'..='\x7f' => format!("\\x{:02x}", u32::from(character)),
        _ => character.escape_unicode().to_string(),
    }
}

/// How a stream spells what is not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// As [`line`] does.
    Text,
    /// As in strings of JSON, which is where nearly all text is.
    Json,
}

/// A stream that may be able to make text stand out.
pub trait Emphasis: Write {
    /// Makes what follows bold, or ordinary again. What can't does nothing.
    ///
    /// # Errors
    /// Whatever the stream fails with.
    fn embolden(&mut self, _on: bool) -> io::Result<()> {
        Ok(())
    }
}

impl Emphasis for Vec<u8> {}

/// Whether the standard output is a terminal whose user wants text to stand out.
pub fn stdout_is_styled() -> bool {
    let unset = |name: &str| std::env::var_os(name).is_none_or(|value| value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
    io::stdout().is_terminal() && unset("NO_COLOR") && !dumb
}

/// A stream to which only what is seen, tabs and line ends pass. What is no UTF-8 is spelled `\xff`.
pub struct Visible<W> {
    out: W,
    spelling: Spelling,
    styled: bool,
    bold: bool,
    /// The beginning of a character whose rest has yet to come.
    begun: Vec<u8>,
}

impl<W: Write> Visible<W> {
    /// What is written goes to `out`.
    pub fn new(out: W, spelling: Spelling) -> Self {
        Self {
            out,
            spelling,
            styled: false,
            bold: false,
            begun: Vec::new(),
        }
    }

    /// Lets text stand out, or not.
    pub fn styled(mut self, styled: bool) -> Self {
        self.styled = styled;
        self
    }

    /// Passes on text, and what is between it, if the latter is no character that has just begun.
    fn pass_on(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.text(chunk.valid())?;
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_beginning(invalid) {
                self.begun = invalid.to_vec();
                return Ok(());
            }
            self.bytes(invalid)?;
        }
        Ok(())
    }

    fn text(&mut self, mut text: &str) -> io::Result<()> {
        let hidden = |character: char| is_hidden(character) && !"\n\t".contains(character);
        while let Some(at) = text.find(hidden) {
            let (seen, rest) = text.split_at(at);
            self.out.write_all(seen.as_bytes())?;
            let character = rest.chars().next().unwrap_or_default();
            self.hidden(character)?;
            text = &rest[character.len_utf8()..];
        }
        self.out.write_all(text.as_bytes())
    }

    fn hidden(&mut self, character: char) -> io::Result<()> {
        match self.spelling {
            Spelling::Text => write!(self.out, "{}", spelled(character)),
            Spelling::Json => {
                let mut units = [0; 2];
                let units = character.encode_utf16(&mut units);
                units
                    .iter()
                    .try_for_each(|unit| write!(self.out, "\\u{unit:04x}"))
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        bytes
            .iter()
            .try_for_each(|byte| write!(self.out, "\\x{byte:02x}"))
    }
}

/// Whether more bytes could make a character of these. What [`utf8_chunks`] finds at the end is cut, or wrong at its last.
///
/// [`utf8_chunks`]: slice::utf8_chunks
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

impl<W: Write> Write for Visible<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.begun.is_empty() {
            self.pass_on(bytes)?;
        } else {
            let mut all = std::mem::take(&mut self.begun);
            all.extend_from_slice(bytes);
            self.pass_on(&all)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let begun = std::mem::take(&mut self.begun);
        self.bytes(&begun)?;
        self.out.flush()
    }
}

impl<W: Write> Emphasis for Visible<W> {
    fn embolden(&mut self, on: bool) -> io::Result<()> {
        let begun = std::mem::take(&mut self.begun);
        self.bytes(&begun)?;
        if !self.styled || self.bold == on {
            return Ok(());
        }
        self.bold = on;
        self.out.write_all(match on {
            true => b"\x1b[1m",
            false => b"\x1b[22m",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\x1b[2J\x07\x7f\u{9b}5m\u{202e}\u{200b}\u{2028}\u{e0041}z\n\tö€😀";

    #[test]
    fn what_is_not_seen_is_spelled_out() {
        assert_eq!(
            line(HOSTILE),
            "a\\x1b[2J\\x07\\x7f\\u{9b}5m\\u{202e}\\u{200b}\\u{2028}\\u{e0041}z\\n\\tö€😀"
        );
        assert!(matches!(
            line("operator new(unsigned long)"),
            Cow::Borrowed(_)
        ));
    }

    #[test]
    fn a_stream_keeps_its_lines_however_it_is_cut() {
        let whole = line(HOSTILE).replace("\\n\\t", "\n\t") + "\\xff\\xc3(\\xe2\\x82";
        let mut bytes = HOSTILE.as_bytes().to_vec();
        bytes.extend(b"\xff\xc3(\xe2\x82");
        for size in 1..bytes.len() {
            let mut stream = Visible::new(Vec::new(), Spelling::Text);
            for piece in bytes.chunks(size) {
                stream.write_all(piece).unwrap();
            }
            stream.flush().unwrap();
            assert_eq!(String::from_utf8(stream.out).unwrap(), whole, "{size}");
        }
    }

    #[test]
    fn json_means_the_same() {
        let mut stream = Visible::new(Vec::new(), Spelling::Json);
        serde_json::to_writer(&mut stream, HOSTILE).unwrap();
        assert!(stream.out.is_ascii() || !String::from_utf8_lossy(&stream.out).contains(is_hidden));
        let read: String = serde_json::from_slice(&stream.out).unwrap();
        assert_eq!(read, HOSTILE);
    }
}
