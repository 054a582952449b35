//! What the text report says of lost and held memory: a word behind each stack, and a few lines at the end.
//! BCC's own lines are `text`'s. As tools take the last line with "byte" in it for a report's, none here says it.

use std::io::{self, Write};

use super::units;
use crate::model::report::Entry;
use crate::model::snapshot::{Amount, Look, Reach};
use crate::visible;

/// Holders that are listed; there is a count of the rest.
const LISTED: usize = 10;

/// What became of a stack's blocks, to end its line with: ": 12 of 50 lost"; nothing when all are held.
pub fn suffix(entry: &Entry, about: &str) -> String {
    let Some(reach) = entry.reach else {
        return String::new();
    };
    let part = |amount: Amount, what: &str| match amount.count {
        0 => None,
        count if count >= entry.count => Some(format!("all {what}")),
        count => Some(format!("{about}{count} of {about}{} {what}", entry.count)),
    };
    let lost = match (reach.lost.count, reach.lost_indirectly.count) {
        (0, _) => part(reach.lost_indirectly, "lost indirectly"),
        _ => part(reach.all_lost(), "lost"),
    };
    let parts: Vec<String> = lost
        .into_iter()
        .chain(part(reach.undecided, "undecided"))
        .collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!(": {}", parts.join(", ")),
    }
}

/// Ends a report with what the look at the target's memory came to.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write(look: &Look, out: &mut impl Write) -> io::Result<()> {
    if look.failed.is_some() {
        return Ok(());
    }
    writeln!(
        out,
        "Lost {}, held {}; {}",
        lost(look.reach),
        amount(look.held),
        stood(look)
    )?;
    if look.before.not_held().count > 0 || look.before_held.count > 0 {
        writeln!(
            out,
            "Allocated before memleak came, or left out: lost {}, held {}",
            lost(look.before),
            amount(look.before_held)
        )?;
    }
    if !look.confirmed && look.all_lost().count > 0 {
        writeln!(
            out,
            "What is lost is not confirmed: the target ran meanwhile (--lost=stop, or a longer --max-pause, confirms)"
        )?;
    }
    for what in &look.left_out {
        writeln!(out, "Not looked at: {}", visible::line(what))?;
    }
    write_holders(look, out)
}

fn write_holders(look: &Look, out: &mut impl Write) -> io::Result<()> {
    for holder in look.held_by.iter().take(LISTED) {
        writeln!(
            out,
            "Held through {}: {}",
            visible::line(&holder.name),
            amount(holder.held)
        )?;
    }
    match look.held_by.len().saturating_sub(LISTED) {
        0 => Ok(()),
        more => writeln!(out, "Held through {more} more"),
    }
}

/// "1.2 MiB in 3 blocks (400 B in 1 of them indirectly), undecided 5 B in 1"
fn lost(reach: Reach) -> String {
    let mut text = amount(reach.all_lost());
    if reach.lost_indirectly.count > 0 {
        let Amount { bytes, count } = reach.lost_indirectly;
        text += &format!(" ({} in {count} of them indirectly)", units::size(bytes));
    }
    if reach.undecided.count > 0 {
        text += &format!(", undecided {}", amount(reach.undecided));
    }
    text
}

fn amount(amount: Amount) -> String {
    let blocks = if amount.count == 1 { "block" } else { "blocks" };
    format!("{} in {} {blocks}", units::size(amount.bytes), amount.count)
}

fn stood(look: &Look) -> String {
    let mut text = format!("the target stood for {:.1} ms", look.stood_ns as f64 / 1e6);
    if !look.interrupted.is_empty() {
        text += &format!(
            " ({} may have ended with EINTR)",
            look.interrupted.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::Class;

    fn amount_of(bytes: u64, count: u64) -> Amount {
        Amount { bytes, count }
    }

    fn entry(reach: Option<Reach>) -> Entry {
        Entry {
            tgid: 1,
            class: Class::Heap,
            allocator: None,
            bytes: 500,
            count: 50,
            oldest_ns: None,
            reach,
            frames: None,
        }
    }

    #[test]
    fn a_stack_tells_how_many_of_its_blocks_are_lost() {
        let of = |lost, indirect, undecided| {
            let reach = Reach {
                lost: amount_of(lost * 10, lost),
                lost_indirectly: amount_of(indirect * 10, indirect),
                undecided: amount_of(undecided * 10, undecided),
            };
            suffix(&entry(Some(reach)), "")
        };
        assert_eq!(of(12, 0, 0), ": 12 of 50 lost");
        assert_eq!(of(10, 2, 1), ": 12 of 50 lost, 1 of 50 undecided");
        assert_eq!(of(20, 30, 0), ": all lost");
        assert_eq!(of(0, 50, 0), ": all lost indirectly");
        assert_eq!(of(0, 0, 50), ": all undecided");
        assert_eq!(of(0, 0, 0), "");
        assert_eq!(suffix(&entry(None), ""), "");
    }

    #[test]
    fn the_summary_never_says_byte() {
        let reach = Reach {
            lost: amount_of(2048, 2),
            lost_indirectly: amount_of(1, 1),
            undecided: amount_of(5, 1),
        };
        let look = Look {
            reach,
            held: amount_of(10, 1),
            before: reach,
            stood_ns: 3_100_000,
            interrupted: vec!["epoll_wait (2 threads)".into()],
            left_out: vec!["arena\n".into()],
            ..Look::default()
        };
        let mut out = Vec::new();
        write(&look, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "Lost 2 KiB in 3 blocks (1 B in 1 of them indirectly), undecided 5 B in 1 block, held 10 B in 1 block; \
             the target stood for 3.1 ms (epoll_wait (2 threads) may have ended with EINTR)\n\
             Allocated before memleak came, or left out: lost 2 KiB in 3 blocks (1 B in 1 of them indirectly), \
             undecided 5 B in 1 block, held 0 B in 0 blocks\n\
             What is lost is not confirmed: the target ran meanwhile (--lost=stop, or a longer --max-pause, confirms)\n\
             Not looked at: arena\\n\n"
        );
        assert!(!text.contains("byte"));
    }
}
