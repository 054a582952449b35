//! Gates: conditions on a finished run that fail a build, and the sentences that say why.
//! Exit codes and printing are not decided here.

use std::fmt;
use std::str::FromStr;

use crate::model::snapshot::Amount;
use crate::values;

/// A condition that `--fail-on` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Some stack grows.
    Growth,
    /// Anything is lost in the last report, or outstanding where that can't be told.
    Leak,
    /// At least this many bytes are lost in the last report.
    Lost(u64),
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
            Gate::Lost(1) => write!(f, "lost"),
            Gate::Lost(bytes) => write!(f, "lost={bytes}"),
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
            None if text == "lost" => Ok(Gate::Lost(1)),
            Some(("lost", size)) => at_least_one(values::size(size)?).map(Gate::Lost),
            Some(("bytes", size)) => at_least_one(values::size(size)?).map(Gate::Bytes),
            Some(("count", count)) => {
                let count = count
                    .parse()
                    .map_err(|_| format!("{count:?} is not a number"))?;
                at_least_one(count).map(Gate::Count)
            }
            _ => Err("expected growth, leak, lost, lost=SIZE, bytes=SIZE or count=N".to_owned()),
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
    /// Stacks with outstanding memory, without what runtimes keep.
    pub stacks: u64,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding allocations.
    pub count: u64,
    /// What counts as a leak: the lost and the undecided; all of it where that was not told.
    pub leak: Amount,
    /// What is lost, where that was told.
    pub lost: Option<Amount>,
    /// Stacks that grow, or functions whose stacks do together.
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
        leak,
        lost,
    } = outcome;
    match gate {
        // an empty block is lost as well
        Gate::Lost(limit) if lost.is_some() => lost
            .filter(|lost| lost.bytes >= limit || (limit == 1 && lost.count > 0))
            .map(|lost| format!("{} lost", amount(lost))),
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
        Gate::Leak if leak.count > 0 && lost.is_some() => {
            Some(format!("{} not known to be held", amount(leak)))
        }
        Gate::Leak if leak.bytes > 0 || leak.count > 0 => {
            let stacks = plural(stacks, "stack");
            Some(format!("{} from {stacks} outstanding", amount(leak)))
        }
        Gate::Lost(_) => Some("what is lost could not be told".to_owned()),
        Gate::Bytes(limit) if bytes >= limit => {
            Some(format!("{} outstanding", plural(bytes, "byte")))
        }
        Gate::Count(limit) if count >= limit => {
            Some(format!("{} outstanding", plural(count, "allocation")))
        }
        _ => None,
    }
}

fn amount(amount: Amount) -> String {
    let blocks = plural(amount.count, "allocation");
    format!("{} in {blocks}", plural(amount.bytes, "byte"))
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
        assert_eq!(read("lost"), Ok(Gate::Lost(1)));
        assert_eq!(read("lost=64K"), Ok(Gate::Lost(64 << 10)));
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
    fn what_is_lost_trips_where_it_is_told_and_where_it_can_not_be() {
        let outcome = |bytes, count| Outcome {
            lost: Some(Amount { bytes, count }),
            leak: Amount { bytes, count },
            bytes: 1000,
            count: 10,
            ..Outcome::default()
        };
        let gates = [Gate::Lost(1), Gate::Lost(64), Gate::Leak];
        let tripped = |outcome| -> Vec<String> {
            let tripped = check(&gates, outcome);
            tripped
                .iter()
                .map(|t| format!("{}: {}", t.gate, t.why))
                .collect()
        };
        assert!(tripped(outcome(0, 0)).is_empty());
        let few = "63 bytes in 2 allocations";
        assert_eq!(
            tripped(outcome(63, 2)),
            [
                format!("lost: {few} lost"),
                format!("leak: {few} not known to be held")
            ]
        );
        assert_eq!(tripped(outcome(64, 1)).len(), 3);
        // an empty block is lost as well
        assert_eq!(
            tripped(outcome(0, 1))[0],
            "lost: 0 bytes in 1 allocation lost"
        );
        let untold = Outcome {
            lost: None,
            ..outcome(0, 0)
        };
        assert_eq!(tripped(untold)[0], "lost: what is lost could not be told");
    }

    #[test]
    fn gates_trip_at_their_limit_and_say_why() {
        let outcome = Outcome {
            stacks: 2,
            bytes: 100,
            count: 1,
            leak: Amount {
                bytes: 100,
                count: 1,
            },
            lost: None,
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
