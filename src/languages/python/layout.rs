//! Where CPython keeps what a walk over its frames reads: told by itself since 3.13, before that known for each version.
//! Offsets in bytes from the beginning of what they are in. Reads no process.

use serde::{Deserialize, Serialize};

/// How much of the runtime's state describes the rest, since 3.13.
pub const SELF_DESCRIPTION_BYTES: u64 = 0x2d0;

/// What the description begins with.
const COOKIE: &[u8; 8] = b"xdebugpy";

/// How frames tell which of them one call of the evaluation loop runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loops {
    /// Each has a call of its own, known by its code.
    #[default]
    ByCode,
    /// Each has a call of its own, with a record on its stack.
    Each,
    /// The first one is marked, and its call has a record on its stack.
    Marked,
    /// The first one is called by a frame that lies on the call's stack.
    Called,
}

/// The offsets, as `interpreter.h` explains them; 0 stands for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "interpreter.h tells of each")]
pub struct Layout {
    pub loops: Loops,
    pub thread_key: u32,
    pub thread_id: u32,
    pub thread_frame: u32,
    pub thread_loop: u32,
    pub through_loop: bool,
    pub loop_frame: u32,
    pub loop_caller: u32,
    pub frame_bytes: u32,
    pub frame_caller: u32,
    pub frame_code: u32,
    pub frame_position: u32,
    pub frame_kind: u32,
    pub first_kind: u32,
    pub code_bytes: u32,
    pub code_line: u32,
    pub code_file: u32,
    pub code_name: u32,
    pub code_lines: u32,
    pub code_begun: u32,
    pub code_instructions: u32,
    pub text_bytes: u32,
    pub wide_text_bytes: u32,
}

/// Up to 3.10, frames are objects.
const OBJECTS: Layout = Layout {
    loops: Loops::ByCode,
    thread_key: 0,
    thread_id: 0xb0,
    thread_frame: 0x18,
    thread_loop: 0,
    through_loop: false,
    loop_frame: 0,
    loop_caller: 0,
    frame_bytes: 0x70,
    frame_caller: 0x18,
    frame_code: 0x20,
    frame_position: 0x68,
    frame_kind: 0,
    first_kind: 0,
    code_bytes: 0x80,
    code_line: 0x28,
    code_file: 0x68,
    code_name: 0x70,
    code_lines: 0x78,
    code_begun: 0,
    code_instructions: 0,
    text_bytes: 48,
    wide_text_bytes: 72,
};

const V3_10: Layout = Layout {
    loops: Loops::Each,
    thread_loop: 0x30,
    loop_caller: 0x8,
    frame_bytes: 0x68,
    frame_position: 0x60,
    ..OBJECTS
};

/// Since 3.11, frames lie one behind the other, and one call of the loop runs many.
const V3_11: Layout = Layout {
    loops: Loops::Marked,
    thread_key: 0,
    thread_id: 0x98,
    thread_frame: 0x38,
    thread_loop: 0,
    through_loop: true,
    loop_frame: 0x8,
    loop_caller: 0x10,
    frame_bytes: 0x48,
    frame_caller: 0x30,
    frame_code: 0x20,
    frame_position: 0x38,
    frame_kind: 0x44,
    first_kind: 0,
    code_bytes: 0xb0,
    code_line: 0x48,
    code_file: 0x70,
    code_name: 0x80,
    code_lines: 0x88,
    code_begun: 0xa8,
    code_instructions: 0xb8,
    text_bytes: 48,
    wide_text_bytes: 72,
};

const V3_12: Layout = Layout {
    loops: Loops::Called,
    thread_id: 0x88,
    thread_frame: 0x38,
    loop_frame: 0,
    loop_caller: 0,
    frame_caller: 0x8,
    frame_code: 0,
    frame_kind: 0x46,
    first_kind: 3,
    code_bytes: 0xb8,
    code_line: 0x44,
    code_begun: 0xb0,
    code_instructions: 0xc0,
    text_bytes: 40,
    wide_text_bytes: 56,
    ..V3_11
};

/// The layout of a version, whose file tells where the key of threads' states is, and, since 3.13, describes the rest.
///
/// # Errors
/// Why its frames can't be walked.
pub fn of(
    version: (u8, u8),
    key: Option<u64>,
    description: Option<&[u8]>,
) -> Result<Layout, String> {
    let (known, key_of_version) = match version {
        (3, 8) => (OBJECTS, 0x570),
        (3, 9) => (OBJECTS, 0x248),
        (3, 10) => (V3_10, 0x248),
        (3, 11) => (V3_11, 0x250),
        (3, 12) => (V3_12, 0x608),
        (3, 13) => {
            let begun = Begun(0xb8);
            (described(description, &V3_13_PLACES, begun)?, 0x870)
        }
        (3, 14) => {
            let begun = Begun(0xc0);
            (described(description, &V3_14_PLACES, begun)?, 0x920)
        }
        _ => return Err("its layout is not known".to_owned()),
    };
    let key = key
        .and_then(|key| u32::try_from(key).ok())
        .unwrap_or(key_of_version);
    Ok(Layout {
        thread_key: key,
        ..known
    })
}

/// Where code says from which instruction on it is seen to run: what the description lacks.
struct Begun(u32);

/// Where the description has what is wanted.
struct Places {
    thread_frame: usize,
    thread_id: usize,
    frame_caller: usize,
    frame_code: usize,
    frame_position: usize,
    frame_kind: usize,
    code_file: usize,
    code_name: usize,
    code_lines: usize,
    code_line: usize,
    code_instructions: usize,
    text_bytes: usize,
}

const V3_13_PLACES: Places = Places {
    thread_frame: 0xb8,
    thread_id: 0xc0,
    frame_caller: 0xe8,
    frame_code: 0xf0,
    frame_position: 0xf8,
    frame_kind: 0x108,
    code_file: 0x118,
    code_name: 0x128,
    code_lines: 0x130,
    code_line: 0x138,
    code_instructions: 0x158,
    text_bytes: 0x230,
};

const V3_14_PLACES: Places = Places {
    thread_frame: 0xd0,
    thread_id: 0xd8,
    frame_caller: 0x100,
    frame_code: 0x108,
    frame_position: 0x110,
    frame_kind: 0x120,
    code_file: 0x140,
    code_name: 0x150,
    code_lines: 0x158,
    code_line: 0x160,
    code_instructions: 0x180,
    text_bytes: 0x280,
};

/// The description says whether threads run without a common lock.
const FREE_THREADED: usize = 0x10;

/// What the programs read at once, in bytes.
const MOST_READ: u32 = 256;

fn described(description: Option<&[u8]>, places: &Places, begun: Begun) -> Result<Layout, String> {
    let description = description
        .filter(|bytes| bytes.starts_with(COOKIE))
        .ok_or("it does not describe itself")?;
    let number = |at: usize| {
        let word = description.get(at..at + 8)?;
        Some(u64::from_le_bytes(word.try_into().ok()?))
    };
    if number(FREE_THREADED) != Some(0) {
        return Err("it is the free-threaded build".to_owned());
    }
    let offset = |at: usize| {
        number(at)
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| *number < MOST_READ)
            .ok_or_else(|| "it describes itself in another way".to_owned())
    };
    let layout = Layout {
        loops: Loops::Called,
        thread_key: 0,
        thread_id: offset(places.thread_id)?,
        thread_frame: offset(places.thread_frame)?,
        thread_loop: 0,
        through_loop: false,
        loop_frame: 0,
        loop_caller: 0,
        frame_bytes: offset(places.frame_kind)?.next_multiple_of(8),
        frame_caller: offset(places.frame_caller)?,
        frame_code: offset(places.frame_code)?,
        frame_position: offset(places.frame_position)?,
        frame_kind: offset(places.frame_kind)?,
        first_kind: 3,
        code_bytes: (begun.0 + 8).next_multiple_of(8),
        code_line: offset(places.code_line)?,
        code_file: offset(places.code_file)?,
        code_name: offset(places.code_name)?,
        code_lines: offset(places.code_lines)?,
        code_begun: begun.0,
        code_instructions: offset(places.code_instructions)?,
        text_bytes: offset(places.text_bytes)?,
        wide_text_bytes: offset(places.text_bytes)? + 16,
    };
    let code = [
        layout.code_line,
        layout.code_file,
        layout.code_name,
        layout.code_lines,
    ];
    let frame = [
        layout.frame_caller,
        layout.frame_code,
        layout.frame_position,
    ];
    let fits = |offsets: &[u32], bytes: u32| offsets.iter().all(|offset| offset + 8 <= bytes);
    if !fits(&code, layout.code_bytes) || !fits(&frame, layout.frame_bytes) {
        return Err("it describes itself in another way".to_owned());
    }
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(places: &[(usize, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; SELF_DESCRIPTION_BYTES as usize];
        bytes[..8].copy_from_slice(COOKIE);
        for (at, value) in places {
            bytes[*at..*at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn versions_that_are_not_known_are_refused() {
        assert!(of((3, 7), Some(8), None).is_err());
        assert!(of((3, 15), Some(8), None).is_err());
        assert!(of((3, 13), Some(8), None).is_err());
        assert_eq!(of((3, 8), None, None).map(|of| of.thread_key), Ok(0x570));
        assert_eq!(of((3, 8), Some(8), None).map(|of| of.thread_key), Ok(8));
        assert_eq!(of((3, 11), None, None).map(|of| of.thread_key), Ok(0x250));
    }

    #[test]
    fn a_description_is_believed_as_far_as_it_makes_sense() {
        let sound = [
            (0xb8, 0x48),
            (0xc0, 0x98),
            (0xe8, 8),
            (0xf0, 0),
            (0xf8, 0x38),
            (0x108, 0x46),
            (0x118, 0x70),
            (0x128, 0x80),
            (0x130, 0x88),
            (0x138, 0x44),
            (0x158, 0xc8),
            (0x230, 40),
        ];
        let layout = of((3, 13), None, Some(&description(&sound))).unwrap();
        assert_eq!(layout.frame_kind, 0x46);
        assert_eq!(layout.frame_bytes, 0x48);
        assert_eq!(layout.wide_text_bytes, 56);
        for (at, value) in [(FREE_THREADED, 1), (0xe8, 1 << 40), (0x118, 0xf8)] {
            let mut wrong = sound.to_vec();
            wrong.push((at, value));
            assert!(of((3, 13), None, Some(&description(&wrong))).is_err());
        }
        let mut strange = description(&sound);
        strange[0] = b'y';
        assert!(of((3, 13), None, Some(&strange)).is_err());
    }
}
