//! Verdicts on series with known answers, and on 50 seeded variants of what services do with memory.

use super::*;
use crate::model::run::{Figure, Header, StackRecord};
use crate::model::snapshot::Class;

const MIB: f64 = 1048576.0;

fn points(bytes: impl IntoIterator<Item = u64>) -> Vec<Point> {
    bytes
        .into_iter()
        .enumerate()
        .map(|(at, bytes)| Point {
            at_ns: at as u64 * 5_000_000_000,
            bytes,
        })
        .collect()
}

fn verdict(bytes: impl IntoIterator<Item = u64>) -> Verdict {
    judge(&points(bytes)).verdict
}

#[test]
fn three_rising_snapshots_grow_and_two_are_too_short() {
    assert_eq!(verdict([1, 2, 3]), Verdict::Growing);
    assert_eq!(verdict([1, 2]), Verdict::TooShort);
    assert_eq!(verdict([]), Verdict::TooShort);
    assert_eq!(verdict([1, 1, 2]), Verdict::TooShort);
    assert_eq!(verdict([3, 3, 3]), Verdict::Plateau);
}

#[test]
fn continuous_needs_a_rise_in_every_snapshot() {
    assert!(judge(&points([1, 2, 3, 4, 5, 6])).continuous);
    assert!(!judge(&points([1, 2, 3, 3, 5, 6])).continuous);
    assert!(!judge(&points([1, 2])).continuous);
}

#[test]
fn the_rate_is_exact_on_a_straight_line() {
    let growth = judge(&points((0..10).map(|at| 1000 + at * 500)));
    let rate = growth.rate.unwrap();
    assert_eq!(
        (rate.low, rate.bytes_per_s, rate.high),
        (100.0, 100.0, 100.0)
    );
    assert_eq!(
        (growth.first_bytes, growth.last_bytes, growth.span_ns),
        (1000, 5500, 45_000_000_000)
    );
}

#[test]
fn a_bursty_leak_grows_and_a_single_step_does_not() {
    assert_eq!(
        verdict((0..60).map(|at| (at / 13 + 1) * 1_000_000)),
        Verdict::Growing
    );
    assert_eq!(
        verdict((0..60).map(|at| 1_000_000 + u64::from(at >= 54) * 1000)),
        Verdict::Plateau
    );
    assert_eq!(
        verdict((0..60).map(|at| 1_000_000 + u64::from(at >= 30) * 1000)),
        Verdict::Plateau
    );
}

#[test]
fn teeth_of_any_period_are_no_growth() {
    for period in 3..60 {
        let verdict = verdict((0..120).map(|at| 100 + (at % period) * 100));
        assert_eq!(verdict, Verdict::Sawtooth, "period {period}");
    }
}

#[test]
fn a_leak_below_a_saw_still_grows() {
    assert_eq!(
        verdict((0..120).map(|at| at * 100 + (at % 7) * 300)),
        Verdict::Growing
    );
}

#[test]
fn falling_bytes_shrink() {
    assert_eq!(
        verdict((0..20).map(|at| 1000 - at * 10)),
        Verdict::Shrinking
    );
}

#[test]
fn huge_figures_do_not_overflow() {
    assert_eq!(verdict([0, u64::MAX / 2, u64::MAX]), Verdict::Growing);
    assert_eq!(
        verdict([u64::MAX, 0, u64::MAX, 0, u64::MAX, 0]),
        Verdict::Sawtooth
    );
}

fn snapshot(at: u64, complete: bool, figures: &[(u32, u64)]) -> SnapshotRecord {
    let figure = |&(stack, bytes)| Figure {
        stack,
        bytes,
        count: 1,
        oldest_ns: None,
    };
    let figures = figures.iter().map(figure).collect();
    SnapshotRecord {
        elapsed_ns: at * 1_000_000_000,
        complete,
        figures,
        ..SnapshotRecord::default()
    }
}

fn recording(stacks: usize, snapshots: Vec<SnapshotRecord>) -> Recording {
    let stack = |tgid| StackRecord {
        allocator: None,
        tgid,
        class: Class::Heap,
        frames: None,
    };
    Recording {
        header: Header::default(),
        stacks: (0..stacks as u32).map(stack).collect(),
        snapshots,
        ..Recording::default()
    }
}

#[test]
fn a_stack_left_out_of_a_log_is_unknown_and_of_a_recording_is_empty() {
    let run = |complete| {
        let present = |at| snapshot(at, complete, &[(0, 10 * (at + 1))]);
        let snapshots = (0..12)
            .map(|at| {
                if at == 5 {
                    snapshot(at, complete, &[])
                } else {
                    present(at)
                }
            })
            .collect();
        analyze(&recording(1, snapshots)).remove(0).growth
    };
    assert!(run(false).continuous);
    assert_eq!(run(false).points, 11);
    assert!(!run(true).continuous);
    assert_eq!(run(true).points, 12);
}

#[test]
fn the_snapshot_after_the_exit_is_not_judged() {
    let mut snapshots: Vec<_> = (0..4)
        .map(|at| snapshot(at, true, &[(0, 10 * (at + 1))]))
        .collect();
    snapshots[3] = SnapshotRecord {
        reason: Reason::Final,
        ..snapshot(3, true, &[])
    };
    let growth = analyze(&recording(1, snapshots)).remove(0).growth;
    assert_eq!((growth.verdict, growth.points), (Verdict::Growing, 3));
}

#[test]
fn a_process_that_ended_is_judged_for_as_long_as_it_lived() {
    let held = |at: u64| if at < 8 { 10 * (at + 1) } else { 80 };
    let snapshots = (0..30)
        .map(|at| snapshot(at, true, &[(0, held(at))]))
        .collect();
    let mut recording = recording(1, snapshots);
    assert_eq!(analyze(&recording)[0].growth.verdict, Verdict::Plateau);
    let end = recording.snapshots[8].elapsed_ns;
    recording.ended.insert(recording.stacks[0].tgid, end);
    let growth = analyze(&recording)[0].growth;
    assert_eq!((growth.verdict, growth.points), (Verdict::Growing, 8));
    assert_eq!(sums(&recording, &[vec![0]])[0].len(), 8);
}

#[test]
fn severity_puts_the_proven_rate_first() {
    let at = |at: u64| {
        snapshot(
            at,
            true,
            &[
                (0, at * 10 + 5000),
                (1, at * 1000 + 1),
                (2, 9_000_000),
                (3, at * 100),
            ],
        )
    };
    let order: Vec<usize> = analyze(&recording(5, (0..8).map(at).collect()))
        .iter()
        .map(|v| v.stack)
        .collect();
    assert_eq!(order, [1, 3, 0, 2]);
}

/// Figures that look random and are the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + self.roll() * (high - low)
    }

    /// About normal, with standard deviation 1.
    fn noise(&mut self) -> f64 {
        (0..12).map(|_| self.roll()).sum::<f64>() - 6.0
    }
}

/// What each stack of the service does, with the right answer to "does it grow?".
const STACKS: [(&str, bool); 6] = [
    ("slow leak", true),
    ("cache that fills", false),
    ("sawtooth", false),
    ("start-up", false),
    ("request pool", false),
    ("drained backlog", false),
];

/// One variant of the service: series of all stacks over the same snapshots.
fn service(seed: u64) -> Vec<Vec<u64>> {
    let mut dice = Dice(seed);
    let length = dice.between(30.0, 400.0);
    let run = |value: &mut dyn FnMut(f64) -> f64| -> Vec<u64> {
        (0..length as u64)
            .map(|at| value(at as f64 / length).max(0.0) as u64)
            .collect()
    };
    let leak = dice.between(0.05, 2.0) * MIB;
    let leak_noise = dice.between(0.0, 0.2) * leak;
    let slow_leak = run(&mut |at| 5000.0 + leak * at + leak_noise * dice.noise());
    let (full, filled, churn) = (
        dice.between(1.0, 64.0) * MIB,
        dice.between(0.1, 0.6),
        dice.between(0.0, 0.02),
    );
    let asymptotic = dice.roll() < 0.5;
    let cache = run(&mut |at| {
        let level = if asymptotic {
            1.0 - (-5.0 * at / filled).exp()
        } else {
            (at / filled).min(1.0)
        };
        full * level * (1.0 + churn * dice.noise())
    });
    let (teeth, height, jitter) = (
        dice.between(1.5, 20.0),
        dice.between(0.1, 8.0) * MIB,
        dice.between(0.0, 0.1),
    );
    let sawtooth = run(&mut |at| 1000.0 + height * ((at * teeth).fract() + jitter * dice.noise()));
    let level = dice.between(0.01, 30.0) * MIB;
    let start_up = run(&mut |_| level);
    let busy = dice.between(0.01, 2.0) * MIB;
    let pool = run(&mut |_| busy * (1.0 + 0.3 * dice.noise()));
    let backlog = run(&mut |at| busy * (1.0 - at) * (1.0 + 0.1 * dice.noise()));
    vec![slow_leak, cache, sawtooth, start_up, pool, backlog]
}

#[test]
fn exactly_the_slow_leak_is_flagged_in_at_least_98_of_100_variants() {
    const VARIANTS: u64 = 50;
    let mut counts = std::collections::BTreeMap::new();
    let mut right = 0;
    for seed in 0..VARIANTS {
        let verdicts: Vec<Verdict> = service(seed).into_iter().map(verdict).collect();
        let exact = verdicts
            .iter()
            .zip(STACKS)
            .all(|(&v, (_, grows))| (v == Verdict::Growing) == grows);
        right += u64::from(exact);
        for (at, verdict) in verdicts.iter().enumerate() {
            *counts.entry((at, *verdict)).or_insert(0) += 1;
        }
        if !exact {
            println!("variant {seed} is wrong: {verdicts:?}");
        }
    }
    let columns = [
        Verdict::Growing,
        Verdict::Plateau,
        Verdict::Sawtooth,
        Verdict::Shrinking,
        Verdict::TooShort,
    ];
    println!(
        "{:<18}{}",
        "stack",
        columns
            .map(|column| format!("{:>11}", column.name()))
            .concat()
    );
    for (at, (name, _)) in STACKS.iter().enumerate() {
        let cells =
            columns.map(|column| format!("{:>11}", counts.get(&(at, column)).unwrap_or(&0)));
        println!("{name:<18}{}", cells.concat());
    }
    println!("variants in which exactly the slow leak is flagged: {right} of {VARIANTS}");
    assert!(
        right * 100 >= VARIANTS * 98,
        "only {right} of {VARIANTS} variants are right"
    );
}
