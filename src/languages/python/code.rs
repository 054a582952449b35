//! What code objects say: names as Python writes text, and the line of an instruction, in the form of each version.
//! The bytes are the target's: nothing in them is believed further than they reach.

use crate::languages::{KeptCode, Text};
use crate::model::report::{Function, Location};

/// Bits of a text's state.
const KIND_SHIFT: u32 = 2;
const KIND_MASK: u32 = 7;

/// What stands for what is left out of a name.
const LEFT_OUT: char = '…';

/// The function, file and line of an instruction.
pub fn function(version: (u8, u8), code: &KeptCode, position: u32) -> Function {
    let (name, is_whole) = text(&code.name);
    let name = match is_whole {
        true => name,
        false => format!("{name}{LEFT_OUT}"),
    };
    let (file, is_whole) = text(&code.file);
    let file = match is_whole {
        true => file,
        false => format!("{LEFT_OUT}{file}"),
    };
    let position = position.cast_signed();
    let line = match version {
        (3, 8 | 9) => line_by_steps(code, i64::from(position)),
        (3, 10) => line_by_ranges(code, i64::from(position) * 2),
        _ => line_by_locations(code, i64::from(position)),
    };
    Function {
        name: match name.is_empty() {
            true => "[unnamed]".to_owned(),
            false => name,
        },
        location: (!file.is_empty()).then(|| Location {
            file: file.into(),
            line,
        }),
    }
}

/// What was kept of a text, and whether that is all of it.
fn text(text: &Text) -> (String, bool) {
    let width = text.state >> KIND_SHIFT & KIND_MASK;
    let characters: Vec<u32> = match width {
        2 => chunks(&text.bytes, u16::from_le_bytes),
        4 => chunks(&text.bytes, u32::from_le_bytes),
        // the first 256 characters of Unicode, ASCII among them
        _ => text.bytes.iter().map(|byte| u32::from(*byte)).collect(),
    };
    let is_whole = characters.len() as u64 >= u64::from(text.length);
    let written = characters
        .into_iter()
        .map(|code| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    (written, is_whole)
}

fn chunks<const N: usize, T: Into<u32>>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<u32> {
    let (chunks, _) = bytes.as_chunks();
    chunks.iter().map(|chunk| read(*chunk).into()).collect()
}

/// A line that can be one; the first one's where an instruction has not begun.
fn line(line: i64) -> Option<u32> {
    u32::try_from(line).ok().filter(|line| *line > 0)
}

/// Up to 3.9: pairs of how many bytes of code, and then how many lines, to go on.
fn line_by_steps(code: &KeptCode, position: i64) -> Option<u32> {
    let (mut at, mut now) = (0i64, i64::from(code.first_line));
    let (steps, _) = code.lines.as_chunks::<2>();
    for [bytes, lines] in steps {
        at += i64::from(*bytes);
        if at > position {
            return line(now);
        }
        now += i64::from(lines.cast_signed());
    }
    code.has_all_lines.then(|| line(now))?
}

/// 3.10: pairs of how many bytes of code there are, and how many lines further they are; some have none.
fn line_by_ranges(code: &KeptCode, position: i64) -> Option<u32> {
    const NO_LINE: i8 = -128;
    if position < 0 {
        return line(code.first_line.into());
    }
    let (mut at, mut now) = (0i64, i64::from(code.first_line));
    let (ranges, _) = code.lines.as_chunks::<2>();
    for [bytes, lines] in ranges {
        let lines = lines.cast_signed();
        at += i64::from(*bytes);
        if lines != NO_LINE {
            now += i64::from(lines);
        }
        if at > position {
            return (lines != NO_LINE).then(|| line(now))?;
        }
    }
    None
}

/// Since 3.11: entries that each begin with a byte above 127, with how many instructions they are for.
fn line_by_locations(code: &KeptCode, position: i64) -> Option<u32> {
    if position < 0 {
        return line(code.first_line.into());
    }
    let (mut at, mut now) = (0i64, i64::from(code.first_line));
    let mut bytes = code.lines.iter().copied().peekable();
    while let Some(first) = bytes.next() {
        let mut has_line = true;
        now += match first >> 3 & 15 {
            0..=9 => 0,
            kind @ 10..=12 => i64::from(kind) - 10,
            13 | 14 => signed(&mut bytes),
            _ => {
                has_line = false;
                0
            }
        };
        at += i64::from(first & 7) + 1;
        if at > position {
            return has_line.then(|| line(now))?;
        }
        while bytes.next_if(|byte| byte & 0x80 == 0).is_some() {}
    }
    None
}

/// A number of six bits a byte, the lowest first, and its sign in the lowest bit.
fn signed(bytes: &mut impl Iterator<Item = u8>) -> i64 {
    const MORE: u8 = 0x40;
    let (mut number, mut shift) = (0u64, 0);
    for byte in bytes.by_ref() {
        if shift < 60 {
            number |= u64::from(byte & 0x3f) << shift;
        }
        shift += 6;
        if byte & MORE == 0 {
            break;
        }
    }
    let magnitude = (number >> 1).cast_signed();
    match number & 1 {
        0 => magnitude,
        _ => -magnitude,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ascii(text: &str) -> Text {
        Text {
            length: text.len() as u32,
            state: 1 << KIND_SHIFT,
            bytes: text.as_bytes().to_vec(),
        }
    }

    fn code(first_line: u32, lines: &[u8]) -> KeptCode {
        KeptCode {
            first_line,
            name: ascii("leak_memory"),
            file: ascii("leak.py"),
            lines: lines.to_vec(),
            has_all_lines: true,
        }
    }

    fn lines(version: (u8, u8), code: &KeptCode, positions: &[i32]) -> Vec<Option<u32>> {
        let line = |position: &i32| {
            let found = function(version, code, position.cast_unsigned());
            found.location.and_then(|location| location.line)
        };
        positions.iter().map(line).collect()
    }

    #[test]
    fn functions_have_names_files_and_lines() {
        let found = function((3, 9), &code(7, &[]), 0);
        assert_eq!(found.name, "leak_memory");
        let location = found.location.unwrap();
        assert_eq!(location.file.to_str(), Some("leak.py"));
        assert_eq!(location.line, Some(7));
    }

    // The examples are those of CPython's lnotab_notes.txt, and of its locations.md.
    #[test]
    fn lines_of_steps_are_those_before_the_instruction() {
        let code = code(1, &[6, 1, 44, 5, 255, 0, 45, 127, 0, 73, 11, 1]);
        let at = [-1, 0, 5, 6, 49, 50, 349, 350, 360, 361, 9_999];
        let expected = [1, 1, 1, 2, 2, 7, 7, 207, 207, 208, 208].map(Some);
        assert_eq!(lines((3, 9), &code, &at), expected);
        assert_eq!(lines((3, 8), &code, &at), expected);
    }

    #[test]
    fn lines_of_ranges_can_be_missing() {
        let code = code(10, &[4, 0, 2, 128, 6, 3, 4, 255]);
        let at = [-1, 0, 1, 2, 3, 5, 6, 7, 8];
        let (ten, more, less) = (Some(10), Some(13), Some(12));
        let expected = [ten, ten, ten, None, more, more, less, less, None];
        assert_eq!(lines((3, 10), &code, &at), expected);
    }

    #[test]
    fn lines_of_locations_come_in_five_forms() {
        let entry = |kind: u8, units: u8| 0x80 | kind << 3 | (units - 1);
        let table = [
            &[entry(0, 2), 0x11][..],
            &[entry(11, 1), 1, 2],
            // +100: 200 in two pieces of six bits
            &[entry(13, 1), 0x48, 0x03],
            // -3
            &[entry(14, 8), 0x07, 0, 0, 0],
            &[entry(15, 1)],
            &[entry(12, 1), 1, 2],
        ]
        .concat();
        let code = code(5, &table);
        let at = [-1, 0, 1, 2, 3, 4, 11, 12, 13, 14];
        let expected =
            [5, 5, 5, 6, 106, 103, 103, 0, 105, 0].map(|line| (line > 0).then_some(line));
        assert_eq!(lines((3, 11), &code, &at), expected);
        assert_eq!(lines((3, 14), &code, &at), expected);
    }

    #[test]
    fn text_is_written_in_one_two_or_four_bytes_and_may_be_cut() {
        let mut kept = code(1, &[]);
        kept.name = Text {
            length: 3,
            state: 2 << KIND_SHIFT,
            bytes: vec![0xe9, 0, 0x17, 0x04],
        };
        kept.file = Text {
            length: 9,
            state: 1 << KIND_SHIFT,
            bytes: b"\xe9.py".to_vec(),
        };
        let found = function((3, 11), &kept, 0);
        assert_eq!(found.name, "éЗ…");
        assert_eq!(found.location.unwrap().file.to_str(), Some("…é.py"));
        kept.name = Text {
            length: 2,
            state: 4 << KIND_SHIFT,
            bytes: vec![0, 0xf6, 1, 0, 0, 0xd8, 0, 0],
        };
        assert_eq!(function((3, 11), &kept, 0).name, "\u{1f600}\u{fffd}");
    }

    #[test]
    fn tables_that_were_not_kept_whole_give_no_line_beyond() {
        let mut kept = code(1, &[6, 1]);
        kept.has_all_lines = false;
        assert_eq!(lines((3, 9), &kept, &[0, 6]), [Some(1), None]);
    }

    #[test]
    fn any_bytes_are_survived() {
        let bytes: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        for begin in 0..bytes.len() {
            let kept = code(u32::MAX, &bytes[begin..]);
            for version in [(3, 8), (3, 10), (3, 11)] {
                lines(version, &kept, &[i32::MIN, -1, 0, 77, i32::MAX]);
            }
        }
    }
}
