//! Whether a function's code is in memory what it is in its file. The kernel emulates a probed instruction from the file,
//! so where a process has put another there, a probe would change what it does. Reads nothing itself.

use iced_x86::{Decoder, DecoderOptions};

use super::Probe;
use crate::unwind::Machine;

/// Bytes of a function's beginning that are compared at least: those that inline hooks replace.
const LEAST: u64 = 16;

/// An x86-64 instruction has no more bytes.
const LONGEST_INSTRUCTION: u64 = 15;

/// What a debugger or another tracer puts in the place of an instruction's first byte on x86-64.
const BREAKPOINT: u8 = 0xcc;

impl Probe {
    /// Bytes from the function's first that must be in memory what they are in the file: all that is run before the probed
    /// instruction, that instruction, and what inline hooks replace.
    pub fn compared_bytes(&self) -> u64 {
        let site = self.site.offset.saturating_add(LONGEST_INSTRUCTION);
        site.max(LEAST).min(self.length)
    }
}

/// Whether code in memory is another than in the file, breakpoints aside: the kernel knows these of all its tracers.
/// Both begin with the function, and are equally long.
pub fn is_patched(file: &[u8], memory: &[u8]) -> bool {
    if file == memory {
        return false;
    }
    match Machine::NATIVE {
        Machine::X86_64 => is_patched_x86_64(file, memory),
        Machine::Aarch64 => is_patched_aarch64(file, memory),
    }
}

fn is_patched_aarch64(file: &[u8], memory: &[u8]) -> bool {
    // `brk`, whatever its number
    let is_breakpoint = |word: [u8; 4]| u32::from_le_bytes(word) & 0xffe0_001f == 0xd420_0000;
    let (words, rest) = memory.as_chunks();
    let (expected, expected_rest) = file.as_chunks();
    rest != expected_rest
        || words.len() != expected.len()
        || words
            .iter()
            .zip(expected)
            .any(|(word, expected)| word != expected && !is_breakpoint(*word))
}

fn is_patched_x86_64(file: &[u8], memory: &[u8]) -> bool {
    let mut expected = file.to_vec();
    for instruction in &mut Decoder::new(64, file, DecoderOptions::NONE) {
        let start = usize::try_from(instruction.ip()).unwrap_or(usize::MAX);
        if memory.get(start) == Some(&BREAKPOINT)
            && let Some(byte) = expected.get_mut(start)
        {
            *byte = BREAKPOINT;
        }
    }
    expected != memory
}

#[cfg(test)]
mod tests {
    use super::*;

    /// push rbp; mov rbp, rsp; sub rsp, 16; nop…
    const CODE: [u8; 16] = [
        0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
        0x90,
    ];

    fn patched(at: usize, bytes: &[u8]) -> bool {
        let mut memory = CODE;
        memory[at..at + bytes.len()].copy_from_slice(bytes);
        is_patched_x86_64(&CODE, &memory)
    }

    #[test]
    fn what_is_as_in_the_file_but_for_breakpoints_is_not_patched() {
        assert!(!is_patched(&CODE, &CODE));
        assert!(!is_patched_x86_64(&CODE, &CODE));
        assert!(!patched(0, &[0xcc]));
        assert!(!patched(1, &[0xcc]));
        assert!(!patched(4, &[0xcc]));
    }

    #[test]
    fn on_aarch64_breakpoints_are_whole_words() {
        // stp x29, x30, [sp, #-32]!; mov x29, sp
        let code = [0xfd, 0x7b, 0xbe, 0xa9, 0xfd, 0x03, 0x00, 0x91];
        let with = |at: usize, word: u32| {
            let mut memory = code;
            memory[at..at + 4].copy_from_slice(&word.to_le_bytes());
            is_patched_aarch64(&code, &memory)
        };
        assert!(!is_patched_aarch64(&code, &code));
        assert!(!with(0, 0xd420_00a0), "the kernel's for probes");
        assert!(!with(4, 0xd420_0000), "a debugger's");
        assert!(with(0, 0x1400_1000), "b");
        assert!(with(4, 0xd280_0000), "mov x0, #0");
        assert!(is_patched_aarch64(&code, &code[..4]));
    }

    #[test]
    fn inline_hooks_are_patches() {
        // jmp rel32; jmp [rip]; push and ret; mov rax and jmp rax; a change behind the first instruction
        assert!(patched(0, &[0xe9, 1, 2, 3, 4]));
        assert!(patched(
            0,
            &[0xff, 0x25, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
        ));
        assert!(patched(0, &[0x68, 1, 2, 3, 4, 0xc3]));
        assert!(patched(
            0,
            &[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xff, 0xe0]
        ));
        assert!(patched(8, &[0xe9, 1, 2, 3, 4]));
        // not where an instruction begins
        assert!(patched(2, &[0xcc]));
    }
}
