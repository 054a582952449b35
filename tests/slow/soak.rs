//! Soak: millions of random operations in eight threads, whose own ledger is the truth.
//! `make test` runs it short, `make soak` long.

use crate::support::memleak::{ALL_STACKS, NEVER, finish_well, last_report, start};
use crate::support::report::Held;
use crate::support::{fixture, require_root};

const SEEDS: [&str; 5] = ["1", "2", "3", "4", "5"];
const THREADS: &str = "8";

/// Runs the generator and compares each call site with its ledger.
fn soak(options: &[&str], seed: &str, operations: &str) {
    require_root();
    let options = [options, &["-o", "0", "-T", ALL_STACKS, NEVER]].concat();
    let mut running = start(&options, &fixture::c("soak"), &[seed, THREADS, operations]);
    running.expect("ready");
    running.send_line();
    running.expect("done");
    let finished = finish_well(running);
    let report = last_report(&finished);
    let ledger = ledger(&finished.stdout);
    assert_eq!(ledger.len(), 16, "{finished:#?}");
    let mut wrong = Vec::new();
    for (site, truth) in ledger {
        let reported = report.through(&site);
        if reported != truth {
            wrong.push(format!("{site}: truth {truth:?}, reported {reported:?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "seed {seed} {options:?}:\n{}\n{}",
        wrong.join("\n"),
        finished.stderr.join("\n")
    );
}

/// The lines `ledger FUNCTION BYTES COUNT`.
fn ledger(lines: &[String]) -> Vec<(String, Held)> {
    let entries = lines.iter().filter_map(|line| line.strip_prefix("ledger "));
    entries
        .map(|entry| {
            let words: Vec<&str> = entry.split(' ').collect();
            let figure = |word: &str| word.parse().expect("a number");
            (
                words[0].to_owned(),
                Held::new(figure(words[1]), figure(words[2])),
            )
        })
        .collect()
}

#[test]
fn a_short_soak_ends_with_the_ledgers_answer() {
    let _machine = crate::support::serial();
    for seed in SEEDS {
        soak(&[], seed, "50000");
    }
}

#[test]
fn a_short_soak_ends_with_the_ledgers_answer_in_combined_mode() {
    let _machine = crate::support::serial();
    for seed in SEEDS {
        soak(&["-C"], seed, "50000");
    }
}

#[test]
#[ignore = "takes minutes: run by `make soak`"]
fn a_long_soak_ends_with_the_ledgers_answer() {
    let _machine = crate::support::serial();
    for seed in SEEDS {
        soak(&[], seed, "1500000");
    }
}

#[test]
#[ignore = "takes minutes: run by `make soak`"]
fn sixty_million_operations_end_with_the_ledgers_answer_in_combined_mode() {
    let _machine = crate::support::serial();
    for seed in SEEDS {
        soak(&["-C"], seed, "1500000");
    }
}
