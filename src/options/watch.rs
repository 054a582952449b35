//! From the arguments of `memleak watch` to its options: every value checked.
//! Pure: no I/O, no look at the system.

use std::path::PathBuf;
use std::time::Duration;

use super::target::choice;
use super::{Choice, TargetOption};
use crate::analysis::suspect::Sensitivity;
use crate::cli::WatchArguments;
use crate::publish::{NamingArguments, ServingArguments};

/// Between two looks there is at least this, or looking would cost more than tracing.
const SHORTEST: Duration = Duration::from_millis(100);

/// Within less, growth can't be told from noise.
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);

/// A day's worth of centuries is enough, and far below where a Duration would overflow.
const LONGEST: Duration = Duration::from_secs(1_000_000_000);

/// Where recordings go, and how much of them stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordLimits {
    /// Where to.
    pub folder: PathBuf,
    /// Bytes of all of them at the most.
    pub most_bytes: u64,
    /// Age of each at the most.
    pub longest: Duration,
}

/// Everything that the user asked of `memleak watch`.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchOptions {
    /// Who is watched.
    pub target: TargetOption,
    /// Between two looks.
    pub every: Duration,
    /// How long a suspect is traced.
    pub window: Duration,
    /// Of the machine's CPU time, in percent, that tracing may take.
    pub max_overhead: f64,
    /// What counts as growth.
    pub sensitivity: Sensitivity,
    /// How frames get their names.
    pub naming: NamingArguments,
    /// Who is never to blame.
    pub blame_skip: Vec<String>,
    /// Whether recordings are kept.
    pub record: Option<RecordLimits>,
    /// What is run for each finding.
    pub on_finding: Option<String>,
    /// Where findings can be seen.
    pub serving: ServingArguments,
    /// Say who is traced, and why nothing was found.
    pub verbose: bool,
}

/// Checks the arguments. The error is one line that says what to change.
///
/// # Errors
/// When something that was typed is wrong.
pub fn validate(arguments: WatchArguments) -> Result<WatchOptions, String> {
    let chosen = choice(&arguments.comm, &arguments.cgroup, &arguments.container)?;
    for (option, time, shortest) in [
        ("--every", arguments.every, SHORTEST),
        ("--window", arguments.window, SHORTEST_WINDOW),
        ("--limit-within", arguments.limit_within, Duration::ZERO),
        ("--record-age", arguments.record_age, Duration::ZERO),
    ] {
        if time < shortest {
            return Err(format!("{option} must be at least {shortest:?}"));
        }
        if time > LONGEST {
            return Err(format!("{option} must be at most 1e9 seconds"));
        }
    }
    if !(arguments.max_overhead > 0.0 && arguments.max_overhead <= 100.0) {
        return Err("--max-overhead must be a percentage above 0, and at most 100".into());
    }
    if arguments
        .on_finding
        .as_deref()
        .is_some_and(|command| command.trim().is_empty())
    {
        return Err("--on-finding must be a command: it is empty".into());
    }
    Ok(WatchOptions {
        target: TargetOption::Chosen(chosen.unwrap_or(Choice::All)),
        every: arguments.every,
        window: arguments.window,
        max_overhead: arguments.max_overhead,
        sensitivity: Sensitivity {
            least_bytes: arguments.least_growth,
            soon_s: arguments.limit_within.as_secs_f64(),
        },
        naming: arguments.naming,
        blame_skip: arguments.blame_skip,
        record: arguments.record.map(|folder| RecordLimits {
            folder,
            most_bytes: arguments.record_size,
            longest: arguments.record_age,
        }),
        on_finding: arguments.on_finding,
        serving: arguments.serving,
        verbose: arguments.verbose,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Arguments, Command};

    fn options(arguments: &[&str]) -> Result<WatchOptions, String> {
        let words = ["memleak", "watch"].iter().chain(arguments);
        let arguments = Arguments::try_parse_from(words).map_err(|error| error.to_string())?;
        match arguments.mode {
            Some(Command::Watch(watch)) => validate(*watch),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_are_watched_where_nobody_is_chosen() {
        let all = options(&[]).unwrap();
        assert_eq!(all.target, TargetOption::Chosen(Choice::All));
        assert_eq!(all.every, Duration::from_secs(5));
        assert_eq!(all.window, Duration::from_secs(60));
        assert_eq!(all.sensitivity.least_bytes, 8 << 20);
        assert_eq!(all.record, None);
        let some = options(&["--comm", "nginx*", "--window", "2m"]).unwrap();
        assert!(matches!(
            some.target,
            TargetOption::Chosen(Choice::Names { .. })
        ));
        assert_eq!(some.window, Duration::from_secs(120));
    }

    #[test]
    fn wrong_values_are_refused_with_the_option_named() {
        for (arguments, named) in [
            (vec!["--every", "0"], "--every"),
            (vec!["--every", "soon"], "--every"),
            (vec!["--every", "1e300"], "--every"),
            (vec!["--window", "1ms"], "--window"),
            (vec!["--max-overhead", "0"], "--max-overhead"),
            (vec!["--max-overhead", "nan"], "--max-overhead"),
            (vec!["--comm", "a", "--cgroup", "b"], "--comm"),
            (vec!["--comm", "sixteen-letters!"], "15 characters"),
            (vec!["--container", "web"], "--container"),
            (vec!["--record-size", "1G"], "--record"),
            (vec!["--on-finding", " "], "--on-finding"),
            (vec!["--metrics-functions", "3"], "--listen"),
        ] {
            let message = options(&arguments).unwrap_err();
            assert!(message.contains(named), "{arguments:?} gave: {message}");
        }
    }
}
