//! What a report could not see, in one line: what happened, how often, and which option helps.

use crate::model::losses::Losses;

/// The warning for what has been lost; none when the figures are complete.
pub fn warning(losses: &Losses) -> Option<String> {
    let parts: Vec<String> = losses
        .happened()
        .map(|(kind, count)| {
            let bytes = match kind.name {
                "allocations" => format!(" ({} bytes)", losses.allocation_bytes),
                _ => String::new(),
            };
            format!(
                "{count} {}{bytes} {}, {}",
                kind.noun(count),
                kind.fate,
                kind.advice
            )
        })
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
