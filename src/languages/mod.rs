//! Languages whose frames an interpreter runs: what the BPF programs must know of an interpreter, and what its frames
//! are called. A language is a room below this one; here is only what they have in common, and nothing reads a process.

pub mod python;

use serde::{Deserialize, Serialize};

use crate::model::report::{Function, Language};

/// Code from its first address on, in the file's own addresses; empty where `size` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// First address.
    pub begin: u64,
    /// Bytes.
    pub size: u64,
}

impl Code {
    /// Whether it holds an address.
    pub fn contains(self, address: u64) -> bool {
        address.wrapping_sub(self.begin) < self.size
    }
}

/// An interpreter that a file holds. Addresses are the file's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    /// What it runs.
    pub language: Language,
    /// Its version, major and minor.
    pub version: (u8, u8),
    /// The code of its evaluation loop, whose calls run interpreted frames.
    pub loop_code: [Code; 2],
    /// Whether that loop calls another function, which runs the instructions.
    pub tail_calls: bool,
    /// Where its state begins.
    pub runtime: u64,
    /// What objects are marked with that are code.
    pub code_type: u64,
    /// What objects are marked with that are text.
    pub text_type: u64,
    /// What objects are marked with that are bytes.
    pub bytes_type: u64,
    /// Where in the file the function begins with which it ends a piece of code, in bytes, if that is known.
    pub code_end: Option<u64>,
    /// Where things are.
    pub python: python::Layout,
}

/// Finds the interpreter in an ELF file's bytes, if it has one.
///
/// # Errors
/// It has one whose frames can't be walked: which, and why.
pub fn find(file: &[u8]) -> Result<Option<Interpreter>, String> {
    python::find(file)
}

/// A frame that an interpreter runs, in place of an address of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterpretedFrame {
    /// The number of what is kept of its code.
    pub code: u32,
    /// Where it is in that code; the unit is its interpreter's.
    pub position: u32,
}

impl InterpretedFrame {
    /// The frame that a word of a stack stands for; none if it is an address: the layout is that of `interpreter.h`.
    pub fn from_word(word: u64) -> Option<Self> {
        (word >> 63 != 0).then_some(Self {
            code: (word >> 32) as u32 & !(1 << 31),
            position: word as u32,
        })
    }
}

/// Text as an interpreter had it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// Characters of all of it.
    pub length: u32,
    /// How it is written, in the interpreter's own bits.
    pub state: u32,
    /// What was kept of it.
    pub bytes: Vec<u8>,
}

/// What was kept of a piece of interpreted code when it was first seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptCode {
    /// Its first line.
    pub first_line: u32,
    /// What it is called.
    pub name: Text,
    /// The file that it is from; of a long name, the end.
    pub file: Text,
    /// The lines of its instructions, in the interpreter's own form.
    pub lines: Vec<u8>,
    /// Whether these are all.
    pub has_all_lines: bool,
}

/// The function, file and line of a place in code.
pub fn function(interpreter: &Interpreter, code: &KeptCode, position: u32) -> Function {
    match interpreter.language {
        Language::Python => python::function(interpreter.version, code, position),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_the_highest_bit_are_interpreted_frames() {
        assert_eq!(InterpretedFrame::from_word(0x7fff_ffff_ffff), None);
        let frame = InterpretedFrame {
            code: 0x7fff_fffe,
            position: 0xffff_ffff,
        };
        assert_eq!(
            InterpretedFrame::from_word(0xffff_fffe_ffff_ffff),
            Some(frame)
        );
    }
}
