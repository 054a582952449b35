//! Writes in whole lines, so that what a traced command prints to the same place never comes to stand within one.
//! Knows nothing of reports.

use std::io::{self, Write};

/// What a pipe takes in one piece, whoever else writes to it: PIPE_BUF of Linux.
const PIECE_BYTES: usize = 4096;

/// Collects lines, and passes on as many as make a piece. Only a line that is longer than that can be torn.
pub struct WholeLines<W> {
    out: W,
    pending: Vec<u8>,
}

impl<W: Write> WholeLines<W> {
    /// What is written goes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            pending: Vec::with_capacity(2 * PIECE_BYTES),
        }
    }

    /// Passes on pieces as long as more than `rest` bytes are pending.
    fn pass_on(&mut self, rest: usize) -> io::Result<()> {
        let mut begin = 0;
        while self.pending.len() - begin > rest {
            let piece = piece(&self.pending[begin..]);
            self.out.write_all(piece)?;
            begin += piece.len();
        }
        self.pending.drain(..begin);
        Ok(())
    }
}

impl<W: Write> Write for WholeLines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        self.pass_on(PIECE_BYTES)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass_on(0)?;
        self.out.flush()
    }
}

/// As many whole lines as make a piece, or what there is of a line that is longer.
fn piece(bytes: &[u8]) -> &[u8] {
    let most = &bytes[..bytes.len().min(PIECE_BYTES)];
    let end = most.iter().rposition(|byte| *byte == b'\n');
    match end {
        Some(end) => &most[..=end],
        None => most,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps each write apart.
    #[derive(Default)]
    struct Writes(Vec<Vec<u8>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_piece_is_small_and_ends_with_a_line() {
        let mut lines = WholeLines::new(Writes::default());
        let mut all = Vec::new();
        for length in 0..1000 {
            let line = "x".repeat(length % 97);
            write!(lines, "{line}").unwrap();
            writeln!(lines, " {length}").unwrap();
            all.extend(format!("{line} {length}\n").bytes());
        }
        lines.flush().unwrap();
        assert_eq!(lines.out.0.concat(), all);
        for piece in &lines.out.0 {
            assert!(piece.len() <= PIECE_BYTES);
            assert!(piece.ends_with(b"\n"));
        }
        assert!(lines.out.0.len() <= all.len() / (PIECE_BYTES - 110) + 1);
    }

    #[test]
    fn what_is_longer_than_a_piece_or_no_line_yet_is_passed_on_all_the_same() {
        let mut lines = WholeLines::new(Writes::default());
        let long = "y".repeat(3 * PIECE_BYTES);
        writeln!(lines, "a").unwrap();
        writeln!(lines, "{long}").unwrap();
        write!(lines, "no line").unwrap();
        lines.flush().unwrap();
        assert_eq!(
            lines.out.0.concat(),
            format!("a\n{long}\nno line").into_bytes()
        );
        assert_eq!(lines.out.0[0], b"a\n");
    }
}
