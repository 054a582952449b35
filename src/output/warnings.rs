//! What a report could not see, in one line: what happened, how often, and which option helps.

use crate::snapshot::Losses;

/// The warning for what has been lost; none when the figures are complete.
pub fn warning(losses: &Losses) -> Option<String> {
    let lost = [
        (
            losses.allocations,
            format!(
                "{} allocations ({} bytes) not recorded, raise --max-allocs",
                losses.allocations, losses.allocation_bytes
            ),
        ),
        (
            losses.stacks,
            format!(
                "{} stacks not stored, raise --stack-storage-size",
                losses.stacks
            ),
        ),
        (
            losses.ranges,
            format!(
                "{} changes of mappings dropped, leave mappings out with --no-mmap",
                losses.ranges
            ),
        ),
        (
            losses.mappings,
            format!(
                "{} code mappings not seen, some frames may stay unknown",
                losses.mappings
            ),
        ),
        (
            losses.threads,
            format!(
                "{} calls not seen for want of kernel memory, lower --max-allocs",
                losses.threads
            ),
        ),
        (
            losses.missed_frees,
            format!(
                "{} frees missed, their blocks were replaced",
                losses.missed_frees
            ),
        ),
        (
            losses.unseen_frees,
            format!(
                "{} ways to free not seen, their blocks are shown until their address is used again",
                losses.unseen_frees
            ),
        ),
        (
            losses.unfollowed,
            format!(
                "{} C++ allocations not followed, so large that failing with an exception could have ended the program",
                losses.unfollowed
            ),
        ),
        (
            losses.in_handlers,
            format!(
                "{} calls of signal handlers not followed, made on an alternate stack within other calls, as their \
                 return could not be trapped without ending the program",
                losses.in_handlers
            ),
        ),
        (
            losses.processes,
            format!(
                "{} processes not traced, as there were too many, name fewer",
                losses.processes
            ),
        ),
        (
            losses.silent,
            "the target called no probed function, so that nothing can be said of its memory"
                .to_owned(),
        ),
        (
            losses.late_processes,
            format!(
                "{} processes not seen from their first instruction, or for a moment, as a translator such as valgrind \
                 runs",
                losses.late_processes
            ),
        ),
        (
            losses.lives,
            format!(
                "{} starts and ends of processes not seen, some may have no name or be reported late, trace fewer",
                losses.lives
            ),
        ),
        (
            losses.events,
            format!(
                "{} kernel events not seen, as they came in an interrupt of memleak's own program",
                losses.events
            ),
        ),
        (
            losses.files,
            format!(
                "{} files not read to their end, some frames may stay unknown or missing",
                losses.files
            ),
        ),
    ];
    let parts: Vec<String> = lost
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(_, text)| text)
        .collect();
    (!parts.is_empty()).then(|| format!("incomplete so far: {}", parts.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_lost_means_no_warning() {
        assert_eq!(warning(&Losses::default()), None);
    }

    #[test]
    fn a_warning_says_how_often_and_what_helps() {
        let losses = Losses {
            allocations: 7,
            allocation_bytes: 70,
            stacks: 3,
            ..Losses::default()
        };
        assert_eq!(
            warning(&losses).unwrap(),
            "incomplete so far: 7 allocations (70 bytes) not recorded, raise --max-allocs; \
             3 stacks not stored, raise --stack-storage-size"
        );
    }
}
