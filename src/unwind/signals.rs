//! Signal trampolines of aarch64 that no unwind information describes, as that of the kernel's vDSO since Linux 5.8: they
//! are known by their two instructions. Pure: code and rows in, rows out.

use object::ReadRef;

use super::{Change, Dictionary, Segment};

/// `mov x8, #139` (rt_sigreturn); `svc #0`
const TRAMPOLINE: [u8; 8] = [0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4];
/// Code without unwind information that is looked through, in bytes: the vDSO is two pages.
const MOST_CODE: u64 = 1 << 16;

/// Adds rows with the rule `signal` for the trampolines in code that `changes` have no rule for.
pub(super) fn mark<'a>(
    file: impl ReadRef<'a>,
    code: &[Segment],
    changes: Vec<Change>,
    signal: u16,
) -> Vec<Change> {
    let mut marked: Vec<Change> = Vec::with_capacity(changes.len());
    let without = |start, end| stretches(code, start, end);
    let first = changes.first().map_or(u64::MAX, |change| change.address);
    for (from, to) in without(0, first) {
        mark_stretch(file, from, to, code, signal, &mut marked);
    }
    for (at, change) in changes.iter().enumerate() {
        marked.push(*change);
        if change.rule != Dictionary::NO_FDE {
            continue;
        }
        let end = changes.get(at + 1).map_or(u64::MAX, |next| next.address);
        for (from, to) in without(change.address, end) {
            mark_stretch(file, from, to, code, signal, &mut marked);
        }
    }
    marked
}

/// The parts of `start..end` that are code, by address.
fn stretches(code: &[Segment], start: u64, end: u64) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = code
        .iter()
        .map(|segment| (segment.vaddr.max(start), segment.end().min(end)))
        .filter(|(from, to)| from < to)
        .collect();
    found.sort_unstable();
    found
}

/// A return leads to the first of the two instructions, and a walk looks a byte before it.
fn mark_stretch<'a>(
    file: impl ReadRef<'a>,
    from: u64,
    to: u64,
    code: &[Segment],
    signal: u16,
    marked: &mut Vec<Change>,
) {
    let Some(segment) = code.iter().find(|segment| segment.contains(from)) else {
        return;
    };
    let offset = from - segment.vaddr + segment.file_offset;
    let Ok(bytes) = file.read_bytes_at(offset, (to - from).min(MOST_CODE)) else {
        return;
    };
    let mut at = (from.wrapping_neg() % 4) as usize;
    while let Some(eight) = bytes.get(at..at + TRAMPOLINE.len()) {
        if eight == TRAMPOLINE {
            let start = from + at as u64;
            let row = Change {
                address: start.saturating_sub(1).max(from),
                rule: signal,
            };
            // one that begins the stretch takes the place of its row
            if marked
                .last()
                .is_some_and(|last| last.address == row.address)
            {
                marked.pop();
            }
            marked.push(row);
            marked.push(Change {
                address: start + TRAMPOLINE.len() as u64,
                rule: Dictionary::NO_FDE,
            });
            at += TRAMPOLINE.len();
        } else {
            at += 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(address: u64, rule: u16) -> Change {
        Change { address, rule }
    }

    #[test]
    fn a_trampoline_without_rows_is_found_by_its_instructions() {
        let nop = [0x1f, 0x20, 0x03, 0xd5];
        let mut code = nop.repeat(8);
        code.splice(12..20, TRAMPOLINE);
        let segment = Segment {
            vaddr: 0x1000,
            file_offset: 0,
            size: 32,
        };
        let signal = 9;
        let rows = mark(&code[..], &[segment], vec![], signal);
        assert_eq!(
            rows,
            [change(0x100b, signal), change(0x1014, Dictionary::NO_FDE)]
        );
        let around = vec![
            change(0x1000, 5),
            change(0x100c, Dictionary::NO_FDE),
            change(0x1018, 5),
        ];
        let rows = mark(&code[..], &[segment], around, signal);
        assert_eq!(
            rows,
            [
                change(0x1000, 5),
                change(0x100c, signal),
                change(0x1014, Dictionary::NO_FDE),
                change(0x1018, 5),
            ]
        );
        let covered = vec![change(0x1000, 5), change(0x1020, Dictionary::NO_FDE)];
        assert_eq!(
            mark(&code[..], &[segment], covered.clone(), signal),
            covered
        );
    }
}
