//! Maps that fill up: what is reported and what is said to be lost add up to the truth.
//! Figures where nothing is lost are in the exact_*.rs files.

use crate::support::memleak::{self, ALL_STACKS, NEVER, last_report};
use crate::support::process::Finished;
use crate::support::report::{Held, Report};
use crate::support::{fixture, require_root};

/// Runs the one phase of a fixture that has more to come, and ends it.
fn run(options: &[&str], name: &str, arguments: &[&str], phases: &[&str]) -> (Report, Finished) {
    require_root();
    let options = [options, &["-T", ALL_STACKS, NEVER]].concat();
    let mut running = memleak::start(&options, &fixture::c(name), arguments);
    running.expect("ready");
    for phase in phases {
        running.send_line();
        running.expect(phase);
    }
    let finished = memleak::finish_well(running);
    (last_report(&finished), finished)
}

/// The part of the one warning that names `option`.
fn warning<'a>(finished: &'a Finished, option: &str) -> &'a str {
    let lines: Vec<&String> = finished
        .stderr
        .iter()
        .filter(|line| line.contains(option))
        .collect();
    // One for each report, and there was one report.
    assert_eq!(lines.len(), 1, "warnings that name {option}: {finished:#?}");
    let mut parts = lines[0].split(';');
    parts.find(|part| part.contains(option)).expect("a part")
}

/// The first whole number of a text.
fn first_number(text: &str) -> u64 {
    let mut words = text.split(|c: char| !c.is_ascii_digit());
    let number = words.find_map(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("no number in {text:?}"))
}

#[test]
fn over_a_million_blocks_fit_when_asked_for() {
    let (report, finished) = run(
        &["--max-allocs", "1500000"],
        "many_live",
        &["1200000"],
        &["leaked"],
    );
    assert_eq!(report.made_in("leak_many"), Held::each(1_200_000, 8));
    assert_eq!(report.made_in("leak_late"), Held::each(2, 5003));
    assert!(
        finished
            .stderr
            .iter()
            .all(|line| !line.contains("--max-allocs")),
        "{finished:#?}"
    );
}

#[test]
fn what_does_not_fit_is_counted_and_named() {
    // 1,000,000 is the default; the array of pointers in the program is a block as well.
    let (report, finished) = run(&[], "many_live", &["1200000"], &["leaked"]);
    let lost = first_number(warning(&finished, "--max-allocs"));
    let reported = report.total().count;
    assert_eq!(reported + lost, 1_200_003, "{:#?}", finished.stderr);
    assert!(reported <= 1_000_000, "{:#?}", finished.stderr);
    assert!(
        reported >= 990_000,
        "the map was not used: {:#?}",
        finished.stderr
    );
}

#[test]
fn a_full_map_leaves_the_rest_right() {
    // Half of the blocks are freed again, those that were not recorded among them or not: no free of an
    // unrecorded block may take anything away from what was recorded.
    let (report, finished) = run(
        &["--max-allocs", "6000"],
        "many_live",
        &["10000"],
        &["leaked", "freed"],
    );
    let lost = first_number(warning(&finished, "--max-allocs"));
    assert!(lost >= 4003, "{finished:#?}");
    // Of the first 5,000 + 1 that were recorded, 5,000 were freed; the rest of the room held later ones.
    let recorded = 10_003 - lost;
    assert_eq!(report.total().count, recorded - 5000, "{finished:#?}");
}

#[test]
fn sixteen_thousand_stacks_of_ten_bytes_are_all_there() {
    let (report, finished) = run(&["--stack-storage-size", "20000"], "stacks", &[], &["done"]);
    assert_eq!(report.made_in("leak_at_the_end"), Held::each(16_384, 10));
    assert_eq!(report.stacks.len(), 16_384);
    assert!(
        finished
            .stderr
            .iter()
            .all(|line| !line.contains("--stack-storage-size")),
        "{:#?}",
        finished.stderr
    );
}

#[test]
fn stacks_beyond_the_map_count_under_a_name_of_their_own() {
    for (options, room) in [(&[][..], 10_240), (&["--stack-storage-size", "1000"], 1000)] {
        let (report, finished) = run(options, "stacks", &[], &["done"]);
        assert_eq!(report.total(), Held::each(16_384, 10));
        let not_stored = report.sum(|stack| {
            let stack = format!("{stack:?}");
            stack.contains("[stack not stored]")
        });
        assert!(not_stored.count >= 16_384 - room, "{not_stored:?}");
        let lost = first_number(warning(&finished, "--stack-storage-size"));
        assert_eq!(lost, not_stored.count, "{:#?}", finished.stderr);
        assert_eq!(
            report.made_in("leak_at_the_end").count + not_stored.count,
            16_384,
            "{not_stored:?}"
        );
    }
}

#[test]
fn nothing_lost_is_nothing_said() {
    require_root();
    let options = ["-T", ALL_STACKS, NEVER];
    let mut running = memleak::start(&options, &fixture::c("sizes"), &[]);
    running.expect("ready");
    running.send_line();
    running.expect("done");
    let finished = memleak::finish_well(running);
    for line in &finished.stderr {
        assert!(!line.contains("incomplete"), "{finished:#?}");
    }
}
