//! Sampling: estimates without bias, marked as estimates, and calls that cost less when they are left out.
//! Exact figures are in the exact_*.rs files.

use crate::support::memleak::{
    self, ALL_STACKS, NEVER, attach, finish_well, last_report, ready, start,
};
use crate::support::{fixture, require_root};

/// The mean of some runs' estimates of a leak of 10,000 blocks of 100 bytes: bytes and count.
fn mean_estimate(runs: u32, sampler: &[&str], arguments: &[&str]) -> (f64, f64) {
    require_root();
    let program = fixture::c("known_leak");
    let (mut bytes, mut count) = (0.0, 0.0);
    for _ in 0..runs {
        let options = [&["-T", ALL_STACKS], sampler].concat();
        let report = last_report(&finish_well(start(&options, &program, arguments)));
        assert!(
            report.stacks.iter().all(|stack| stack.estimated),
            "{report:#?}"
        );
        let estimate = report.made_in("leak_hundred");
        bytes += estimate.bytes as f64;
        count += estimate.count as f64;
    }
    (bytes / f64::from(runs), count / f64::from(runs))
}

/// One run's standard deviation is 3%, so the mean's is 0.42%: 2% are over four and a half of those.
fn assert_unbiased((bytes, count): (f64, f64)) {
    assert!(
        (bytes / 1_000_000.0 - 1.0).abs() < 0.02,
        "mean of {bytes} bytes"
    );
    assert!(
        (count / 10_000.0 - 1.0).abs() < 0.02,
        "mean of {count} allocations"
    );
}

#[test]
fn one_in_n_is_unbiased() {
    assert_unbiased(mean_estimate(50, &["-s", "10"], &[]));
}

#[test]
fn one_in_so_many_bytes_is_unbiased() {
    assert_unbiased(mean_estimate(50, &["--sample-bytes", "1000"], &[]));
}

#[test]
fn a_call_inside_another_gets_no_second_chance() {
    // Beside another tracer of the same libc, for whom the kernel traps returns in our target as well.
    let idle = ready(&fixture::c("sizes"), &[]);
    let _other = attach(idle.pid(), &[], NEVER);
    // The mean of ten has a standard deviation of 1%; with a second chance it would be 90% too high.
    for sampler in [
        &["-s", "10"][..],
        &["-s", "10", "--no-mmap"],
        &["-s", "10", "-C", "--no-mmap"],
    ] {
        let (bytes, _) = mean_estimate(10, sampler, &["array"]);
        assert!(
            (bytes / 1_000_000.0 - 1.0).abs() < 0.1,
            "{sampler:?}: mean of {bytes} bytes"
        );
    }
}

#[test]
fn large_blocks_are_never_missed_when_sampling_by_bytes() {
    require_root();
    // The chance to miss a block of 300,000 bytes at one sample in 1,000 is e^-300.
    let report = memleak::last_report_of(&["--sample-bytes", "1000"], &fixture::c("large"), &[]);
    assert_eq!(report.made_in("large_malloc").count, 3, "{report:#?}");
}

#[test]
fn one_in_one_is_exact_and_no_estimate() {
    require_root();
    let options = ["-s", "1", "-T", ALL_STACKS];
    let report = last_report(&finish_well(start(
        &options,
        &fixture::c("known_leak"),
        &[],
    )));
    assert!(
        report.stacks.iter().all(|stack| !stack.estimated),
        "{report:#?}"
    );
    assert_eq!(report.made_in("leak_hundred").bytes, 1_000_000);
}

/// How often programs ran, as the last line about the overhead tells.
fn events(options: &[&str]) -> u64 {
    let finished = finish_well(start(options, &fixture::c("hot_loop"), &["100000"]));
    let events = finished.stderr.iter().find_map(|line| {
        let (events, _) = line
            .strip_prefix("memleak: overhead: ")?
            .split_once(" events ")?;
        events.parse().ok()
    });
    events.unwrap_or_else(|| panic!("no overhead: {finished:#?}"))
}

#[test]
fn the_returns_of_calls_that_are_left_out_run_no_program() {
    require_root();
    // two entries a pair, with or without a return
    let others = events(&[]).checked_sub(300_000).expect("three a pair");
    let filtered = events(&["-z", "4096"]);
    assert!(
        (200_000..=200_000 + others).contains(&filtered),
        "{filtered}"
    );
    // 100 of 100,000 calls are recorded on average: more than 200 never
    let sampled = events(&["-s", "1000"]);
    assert!((200_000..=200_200 + others).contains(&sampled), "{sampled}");
}
