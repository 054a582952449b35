//! Gates: conditions on a finished run that fail a build, and the sentences that say why.
//! Exit codes and printing are not decided here.

use std::fmt;
use std::str::FromStr;

use crate::values;

/// A condition that `--fail-on` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Some stack grows.
    Growth,
    /// Anything is outstanding in the last report.
    Leak,
    /// At least this many bytes are outstanding in the last report.
    Bytes(u64),
    /// At least this many allocations are outstanding in the last report.
    Count(u64),
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gate::Growth => write!(f, "growth"),
            Gate::Leak => write!(f, "leak"),
            Gate::Bytes(bytes) => write!(f, "bytes={bytes}"),
            Gate::Count(count) => write!(f, "count={count}"),
        }
    }
}

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Gate, String> {
        match text.split_once('=') {
            None if text == "growth" => Ok(Gate::Growth),
            None if text == "leak" => Ok(Gate::Leak),
            Some(("bytes", size)) => at_least_one(values::size(size)?).map(Gate::Bytes),
            Some(("count", count)) => {
                let count = count
                    .parse()
                    .map_err(|_| format!("{count:?} is not a number"))?;
                at_least_one(count).map(Gate::Count)
            }
            _ => Err("expected growth, leak, bytes=SIZE or count=N".to_owned()),
        }
    }
}

fn at_least_one(limit: u64) -> Result<u64, String> {
    if limit == 0 {
        Err("0 would always trip; to allow nothing, use leak".to_owned())
    } else {
        Ok(limit)
    }
}

/// What gates look at: the last report and the verdicts, after comparison and suppressions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Stacks with outstanding memory.
    pub stacks: u64,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// Stacks that grow.
    pub growing: u64,
    /// They may only look so, as frees may have been missed.
    pub growth_is_doubtful: bool,
    /// Nothing was seen of the target, so that no gate can be passed.
    pub unseen: bool,
}

/// A gate that tripped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tripped {
    /// Which.
    pub gate: Gate,
    /// Why, in words.
    pub why: String,
}

/// The gates that trip, in the order in which they were asked for, each once.
pub fn check(gates: &[Gate], outcome: Outcome) -> Vec<Tripped> {
    let mut tripped: Vec<Tripped> = Vec::new();
    for &gate in gates {
        if let Some(why) = reason(gate, outcome)
            && tripped.iter().all(|earlier| earlier.gate != gate)
        {
            tripped.push(Tripped { gate, why });
        }
    }
    tripped
}

fn reason(gate: Gate, outcome: Outcome) -> Option<String> {
    let Outcome {
        stacks,
        bytes,
        count,
        growing,
        growth_is_doubtful,
        unseen,
    } = outcome;
    match gate {
        _ if unseen => Some("nothing was seen: no probed function was called".to_owned()),
        Gate::Growth if growing > 0 && growth_is_doubtful => Some(format!(
            "{} of memory may grow, unless frees were missed",
            plural(growing, "stack")
        )),
        Gate::Growth if growing > 0 => Some(format!(
            "{} of memory {}",
            plural(growing, "stack"),
            grow(growing)
        )),
        Gate::Leak if bytes > 0 || count > 0 => {
            let (blocks, stacks) = (plural(count, "allocation"), plural(stacks, "stack"));
            Some(format!(
                "{} in {blocks} from {stacks} outstanding",
                plural(bytes, "byte")
            ))
        }
        Gate::Bytes(limit) if bytes >= limit => {
            Some(format!("{} outstanding", plural(bytes, "byte")))
        }
        Gate::Count(limit) if count >= limit => {
            Some(format!("{} outstanding", plural(count, "allocation")))
        }
        _ => None,
    }
}

fn grow(stacks: u64) -> &'static str {
    if stacks == 1 { "grows" } else { "grow" }
}

fn plural(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_read() {
        let read = |text: &str| text.parse::<Gate>();
        assert_eq!(read("growth"), Ok(Gate::Growth));
        assert_eq!(read("leak"), Ok(Gate::Leak));
        assert_eq!(read("bytes=4096"), Ok(Gate::Bytes(4096)));
        assert_eq!(read("bytes=64M"), Ok(Gate::Bytes(64 << 20)));
        assert_eq!(read("bytes=2GiB"), Ok(Gate::Bytes(2 << 30)));
        assert_eq!(read("bytes=1kb"), Ok(Gate::Bytes(1024)));
        assert_eq!(read("count=7"), Ok(Gate::Count(7)));
        for wrong in [
            "",
            "leaks",
            "bytes",
            "bytes=",
            "bytes=-1",
            "bytes=1X",
            "bytes=99999999999T",
            "count=1K",
        ] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        assert!(read("bytes=0").unwrap_err().contains("use leak"));
    }

    #[test]
    fn doubtful_growth_trips_as_what_may_be() {
        let outcome = Outcome {
            growing: 2,
            growth_is_doubtful: true,
            ..Outcome::default()
        };
        assert_eq!(
            check(&[Gate::Growth], outcome)[0].why,
            "2 stacks of memory may grow, unless frees were missed"
        );
    }

    #[test]
    fn what_was_not_seen_passes_no_gate() {
        let outcome = Outcome {
            unseen: true,
            ..Outcome::default()
        };
        for gate in [Gate::Growth, Gate::Leak, Gate::Bytes(1), Gate::Count(1)] {
            assert!(
                check(&[gate], outcome)[0]
                    .why
                    .starts_with("nothing was seen")
            );
        }
    }

    #[test]
    fn gates_trip_at_their_limit_and_say_why() {
        let outcome = Outcome {
            stacks: 2,
            bytes: 100,
            count: 1,
            growing: 1,
            growth_is_doubtful: false,
            unseen: false,
        };
        let gates = [
            Gate::Count(1),
            Gate::Growth,
            Gate::Bytes(101),
            Gate::Bytes(100),
            Gate::Leak,
            Gate::Leak,
        ];
        let tripped: Vec<String> = check(&gates, outcome)
            .iter()
            .map(|t| format!("{}: {}", t.gate, t.why))
            .collect();
        let expected = [
            "count=1: 1 allocation outstanding",
            "growth: 1 stack of memory grows",
            "bytes=100: 100 bytes outstanding",
            "leak: 100 bytes in 1 allocation from 2 stacks outstanding",
        ];
        assert_eq!(tripped, expected);
        assert_eq!(check(&gates, Outcome::default()), []);
    }
}
