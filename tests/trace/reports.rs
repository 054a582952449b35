//! Reports of a target that lives: under churn, by age, by thread, by size, in each order and way of reading.
//! The figures of a finished target are in the exact_*.rs files.

use std::collections::BTreeSet;
use std::fs;

use crate::support::memleak::{self, ALL_STACKS, NEVER, attach, finish_well, last_report, ready};
use crate::support::process::Running;
use crate::support::report::{Held, Report, is_header, parse};
use crate::support::{fixture, require_root};
use serde_json::Value;
use tempfile::TempDir;

/// Waits for `n` more reports to be complete: each is once the next one's header is there.
fn next_reports(tracer: &mut Running, n: usize) -> Vec<Report> {
    let begun = tracer.seen().iter().filter(|line| is_header(line)).count();
    for _ in 0..=n {
        tracer.stdout_line("report", is_header);
    }
    let reports = parse(tracer.seen());
    reports[begun..begun + n].to_vec()
}

/// A report whose figures were read after this call: those printed before it are passed over, and so is the
/// one that was being made.
fn fresh_report(tracer: &mut Running) -> Report {
    tracer.catch_up();
    next_reports(tracer, 2).pop().expect("two reports")
}

#[test]
fn churn_never_shows_more_than_was_live_nor_an_address_twice() {
    require_root();
    let program = fixture::c("churn");
    let options = ["-v", "-a", "-o", "0", "-T", ALL_STACKS, "0.2", "20"];
    // From the start, since the blocks have to be seen; SIGTERM at the end of the count ends the program.
    let running = memleak::start(&options, &program, &["100000", "100000"]);
    let finished = running.wait();
    let reports = parse(&finished.stdout);
    let full: Vec<&Report> = reports
        .iter()
        .filter(|report| report.made_in("hold_steady").count == 100_000)
        .collect();
    for report in &full {
        let churning = report.made_in("churn_one");
        assert!(churning.count <= 100_000, "{churning:?}");
        // A single writer holds all slots but one at every moment; what a reading misses are blocks that
        // moved to another address while it ran.
        assert!(churning.count > 0, "{churning:?}");
        assert_eq!(churning.bytes, churning.count * 24);
        let addresses: BTreeSet<u64> = report
            .allocations
            .iter()
            .map(|block| block.address)
            .collect();
        assert_eq!(
            addresses.len(),
            report.allocations.len(),
            "an address is there twice"
        );
        assert_eq!(report.allocations.len() as u64, report.total().count);
    }
    for report in &reports {
        assert!(report.made_in("hold_steady").count <= 100_000);
        assert!(report.made_in("churn_one").count <= 100_000);
    }
    assert!(
        full.len() >= 10,
        "only {} reports saw all that is steady",
        full.len()
    );
}

#[test]
fn combined_reports_under_churn_never_show_more_than_was_live() {
    require_root();
    let options = ["-v", "-C", "-T", ALL_STACKS, "0.2", "20"];
    let running = memleak::start(&options, &fixture::c("churn"), &["100000", "100000"]);
    let reports = parse(&running.wait().stdout);
    assert!(reports.len() >= 20, "{} reports", reports.len());
    for report in &reports {
        assert!(report.made_in("hold_steady").count <= 100_000);
        let churning = report.made_in("churn_one");
        assert!(churning.count <= 100_000, "{churning:?}");
        assert!(churning.bytes <= 2_400_000, "{churning:?}");
    }
}

#[test]
fn combined_figures_equal_the_others_when_the_target_is_quiet() {
    require_root();
    for (name, arguments) in [
        ("sizes", &[][..]),
        ("threads8", &[]),
        ("large", &[]),
        ("stacks", &[]),
    ] {
        let program = fixture::c(name);
        let mut target = ready(&program, arguments);
        let options = ["-T", ALL_STACKS, "-o", "0", "--stack-storage-size", "20000"];
        let mut plain = attach(target.pid(), &options, "0.3");
        let mut combined = attach(target.pid(), &[&options[..], &["-C"]].concat(), "0.3");
        target.send_line();
        target.expect("done");
        let plain = by_stack(&fresh_report(&mut plain));
        let combined = by_stack(&fresh_report(&mut combined));
        assert!(!plain.is_empty());
        assert_eq!(plain, combined, "{name}");
    }
}

/// The stacks of a report with what they hold, in an order of their own.
fn by_stack(report: &Report) -> BTreeSet<(u64, u64, String)> {
    let key = |stack: &crate::support::report::Stack| {
        let symbols: Vec<&str> = stack.frames.iter().map(|frame| &*frame.symbol).collect();
        (stack.held.bytes, stack.held.count, symbols.join(";"))
    };
    report.stacks.iter().map(key).collect()
}

#[test]
fn young_blocks_are_hidden_by_default_while_the_target_lives() {
    require_root();
    // The default is 500 ms and the blocks live for 100; the program says whether this machine let them.
    for _ in 0..10 {
        let mut target = ready(&fixture::c("young"), &[]);
        let mut command = memleak::command();
        command.args([
            "-v",
            "-T",
            ALL_STACKS,
            "-p",
            &target.pid().to_string(),
            "0.7",
        ]);
        let mut tracer = memleak::armed(&mut command);
        let reports = next_reports(&mut tracer, 3);
        target.close_stdin();
        let longest = target.expect_number("longest");
        if longest >= 450 {
            continue;
        }
        for report in &reports {
            assert_eq!(report.made_in("make_young"), Held::default(), "{report:#?}");
        }
        let last = last_report(&finish_well(tracer));
        // Nothing is young in the last report after the target's end.
        assert_eq!(last.made_in("make_young"), Held::each(10, 61), "{last:#?}");
        return;
    }
    panic!("this machine never let a program run for two seconds without a stall of 350 ms");
}

#[test]
fn older_hides_by_age_and_the_last_report_hides_nothing() {
    require_root();
    let program = fixture::c("young");
    for (older, live) in [("3600000", Held::default()), ("0", Held::new(6007, 1))] {
        let options = ["-v", "-T", ALL_STACKS, "-o", older, "0.3"];
        let mut running = memleak::start(&options, &program, &[]);
        running.expect("ready");
        let report = fresh_report(&mut running);
        assert_eq!(
            report.made_in("keep_old"),
            live,
            "--older {older}: {report:#?}"
        );
        let last = last_report(&finish_well(running));
        assert_eq!(
            last.made_in("keep_old"),
            Held::new(6007, 1),
            "--older {older}: {last:#?}"
        );
        assert_eq!(
            last.made_in("make_young"),
            Held::each(10, 61),
            "--older {older}: {last:#?}"
        );
    }
}

/// Lets the `sizes` fixture leak under the given options.
fn report_of_sizes(options: &[&str]) -> (Report, Vec<u64>) {
    require_root();
    let mut target = ready(&fixture::c("sizes"), &[]);
    let tracer = attach(target.pid(), options, NEVER);
    target.send_line();
    let addresses = (0..10).map(|_| target.expect_number("addr")).collect();
    target.expect("done");
    target.finish();
    (last_report(&finish_well(tracer)), addresses)
}

#[test]
fn sizes_can_be_limited_from_below_and_above() {
    let (small, middle, large) = (
        Held::each(30, 17),
        Held::each(20, 1001),
        Held::each(10, 10_007),
    );
    let nothing = Held::default();
    for (options, expected) in [
        (&[][..], [small, middle, large]),
        (&["-z", "1001"], [nothing, middle, large]),
        (&["-z", "1002"], [nothing, nothing, large]),
        (&["-Z", "1001"], [small, middle, nothing]),
        (&["-Z", "1000"], [small, nothing, nothing]),
        (
            &["--min-size", "18", "--max-size", "10006"],
            [nothing, middle, nothing],
        ),
        (&["-z", "17", "-Z", "17"], [small, nothing, nothing]),
        (&["-C", "-z", "1002"], [nothing, nothing, large]),
    ] {
        let (report, _) = report_of_sizes(options);
        let made = ["leak_small", "leak_middle", "leak_large"].map(|name| report.made_in(name));
        assert_eq!(made, expected, "{options:?}: {report:#?}");
    }
}

#[test]
fn top_keeps_the_largest_and_prints_it_last() {
    let (report, _) = report_of_sizes(&[]);
    let order: Vec<&str> = report
        .stacks
        .iter()
        .map(|stack| &*stack.frames[0].symbol)
        .collect();
    assert_eq!(order, ["leak_small", "leak_middle", "leak_large"]);
    let (report, _) = report_of_sizes(&["-T", "2"]);
    let order: Vec<&str> = report
        .stacks
        .iter()
        .map(|stack| &*stack.frames[0].symbol)
        .collect();
    assert_eq!(order, ["leak_middle", "leak_large"]);
}

#[test]
fn stacks_can_be_cut() {
    for depth in [1, 2] {
        let (report, _) = report_of_sizes(&["--perf-max-stack-depth", &depth.to_string()]);
        assert_eq!(report.total().count, 60, "{report:#?}");
        for stack in &report.stacks {
            assert_eq!(stack.frames.len(), depth, "{report:#?}");
        }
    }
}

#[test]
fn sort_count_ranks_by_allocations() {
    let (report, _) = report_of_sizes(&["--sort", "count"]);
    let order: Vec<&str> = report
        .stacks
        .iter()
        .map(|stack| &*stack.frames[0].symbol)
        .collect();
    assert_eq!(order, ["leak_large", "leak_middle", "leak_small"]);
    let (report, _) = report_of_sizes(&["--sort", "count", "-T", "1"]);
    assert_eq!(report.total(), Held::each(30, 17), "{report:#?}");
}

#[test]
fn show_allocs_lists_every_block_where_it_is() {
    let (report, addresses) = report_of_sizes(&["-a", "-T", ALL_STACKS]);
    let listed: BTreeSet<u64> = report
        .allocations
        .iter()
        .filter(|block| block.size == 10_007)
        .map(|block| block.address)
        .collect();
    assert_eq!(listed, addresses.into_iter().collect());
    assert_eq!(report.allocations.len(), 60, "{report:#?}");
}

/// Lets the `by_thread` fixture leak, with the options that its threads' ids give.
fn report_by_thread(options: impl Fn(u64, u64) -> Vec<String>) -> (Report, u64, u64) {
    require_root();
    let mut target = ready(&fixture::c("by_thread"), &[]);
    let tid = |name: &str| {
        let lines = target.seen().iter();
        let mut values = lines.filter_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        values.next().expect("a thread id before \"ready\"")
    };
    let (first, second) = (tid("first"), tid("second"));
    let options = options(first, second);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let tracer = attach(target.pid(), &options, NEVER);
    target.send_line();
    target.expect("done");
    target.finish();
    (last_report(&finish_well(tracer)), first, second)
}

#[test]
fn tid_limits_the_report_to_threads() {
    let tid = |tid: u64| ["--tid".to_owned(), tid.to_string()];
    let (report, ..) = report_by_thread(|first, _| tid(first).to_vec());
    assert_eq!(report.total(), Held::each(5, 401), "{report:#?}");
    let (report, ..) = report_by_thread(|_, second| tid(second).to_vec());
    assert_eq!(report.total(), Held::each(7, 403), "{report:#?}");
    let (report, ..) = report_by_thread(|first, second| [tid(first), tid(second)].concat());
    assert_eq!(
        report.made_in("leak_by_thread"),
        Held::new(5 * 401 + 7 * 403, 12),
        "{report:#?}"
    );
}

#[test]
fn show_allocs_names_the_thread_and_the_age_of_each_block() {
    let (report, first, second) = report_by_thread(|_, _| vec!["-a".to_owned()]);
    for (size, tid, count) in [(401, first, 5), (403, second, 7)] {
        let blocks: Vec<_> = report
            .allocations
            .iter()
            .filter(|b| b.size == size)
            .collect();
        assert_eq!(blocks.len(), count, "{report:#?}");
        for block in blocks {
            let mut words = block.rest.split(|c: char| !c.is_ascii_alphanumeric());
            assert!(
                words.any(|word| word == tid.to_string()),
                "no thread {tid} in {block:?}"
            );
            assert!(block.rest.contains("age"), "no age in {block:?}");
        }
    }
}

#[test]
fn show_allocs_lists_the_same_blocks_in_json() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out.json");
    let path = out.to_str().expect("a path of letters").to_owned();
    let (report, first, second) =
        report_by_thread(|_, _| vec!["-a".to_owned(), "--json".to_owned(), path.clone()]);
    let document: Value = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    let number = |value: &Value| value.as_u64().expect("a number");
    let blocks = document["allocations"].as_array().expect("an array");
    let mut listed = BTreeSet::new();
    for block in blocks {
        let address = block["address"].as_str().expect("a string");
        let address = address.strip_prefix("0x").expect("hexadecimal");
        let address = u64::from_str_radix(address, 16).expect("an address");
        assert!(number(&block["age_ns"]) > 0, "{block}");
        assert_eq!(block["tgid"], document["target"]["pid"], "{block}");
        listed.insert((address, number(&block["size"]), number(&block["tid"])));
    }
    assert_eq!(listed.len(), blocks.len(), "an address is there twice");
    for (size, tid, count) in [(401, first, 5), (403, second, 7)] {
        let of_thread = listed
            .iter()
            .filter(|block| (block.1, block.2) == (size, tid));
        assert_eq!(of_thread.count(), count, "{document:#}");
    }
    let printed: BTreeSet<(u64, u64)> = report
        .allocations
        .iter()
        .map(|block| (block.address, block.size))
        .collect();
    let listed: BTreeSet<(u64, u64)> = listed.into_iter().map(|(at, size, _)| (at, size)).collect();
    assert_eq!(listed, printed);
}
