//! Whole days in a moment: 300 processes of eight kinds, looked at every 5 seconds by a clock that is told.

use super::*;

const MIB: f64 = 1_048_576.0;
const EVERY_S: u64 = 5;
const SECOND: u64 = 1_000_000_000;
const DAY_S: u64 = 86_400;
const SENSITIVITY: Sensitivity = Sensitivity {
    least_bytes: 1 << 20,
    soon_s: 3600.0,
};

/// Noise of ±1, the same for the same process at the same time.
fn noise(pid: u32, at_s: u64) -> f64 {
    let mixed = (u64::from(pid) << 32 ^ at_s).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    f64::from((mixed >> 40) as u32) / f64::from(1 << 23) - 1.0
}

/// What a process of a machine does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Still,
    Cache,
    Teeth,
    Steps,
    Daily,
    /// Begins anew twice an hour, under the same number.
    Restarts,
    /// MiB an hour, from an hour of the run on.
    Leak(f64, u64),
}

fn kind(pid: u32) -> Kind {
    match pid {
        1..=6 => Kind::Leak(60.0, 30 + u64::from(pid)),
        7..=10 => Kind::Leak(12.0, 26),
        11..=12 => Kind::Leak(600.0, 40),
        _ => match pid % 6 {
            0 => Kind::Daily,
            1 => Kind::Cache,
            2 => Kind::Teeth,
            3 => Kind::Steps,
            4 => Kind::Restarts,
            _ => Kind::Still,
        },
    }
}

/// Its bytes at a second of the run, and when it began.
fn reading(pid: u32, at_s: u64) -> (Who, u64) {
    let at = at_s as f64;
    let own = 30.0 + f64::from(pid % 17) * 25.0;
    let (started, mib) = match kind(pid) {
        Kind::Still => (0, own + 0.5 * noise(pid, at_s)),
        Kind::Cache => {
            let pace = 300.0 + f64::from(pid) * 10.0;
            (
                0,
                own + 300.0 * (1.0 - (-at / pace).exp()) + 0.5 * noise(pid, at_s),
            )
        }
        Kind::Teeth => {
            let period = 20.0 + f64::from(pid * 7 % 90) * 10.0;
            (0, own + (at % period) / period * 80.0 + noise(pid, at_s))
        }
        Kind::Steps => {
            let step = at_s / (3600 * (1 + u64::from(pid % 5))) % 4;
            (0, own + step as f64 * 20.0 + noise(pid, at_s))
        }
        Kind::Daily => {
            let phase = at / DAY_S as f64 * std::f64::consts::TAU + f64::from(pid);
            (0, own + 100.0 * (1.0 - phase.cos()) + noise(pid, at_s))
        }
        Kind::Restarts => {
            let began = at_s / 1800 * 1800;
            let age = (at_s - began) as f64;
            (
                began,
                own + 60.0 * (1.0 - (-age / 20.0).exp()) + 0.5 * noise(pid, at_s),
            )
        }
        Kind::Leak(per_hour, from_h) => {
            let leaking = (at - (from_h * 3600) as f64).max(0.0);
            (0, own + leaking / 3600.0 * per_hour + noise(pid, at_s))
        }
    };
    (Who { pid, started }, (mib.max(1.0) * MIB) as u64)
}

/// When whom to trace was chosen, over some days.
fn windows(days: u64) -> Vec<(u64, u32)> {
    let window_s = 60;
    let mut watch = Watch::new(SENSITIVITY, window_s * SECOND);
    let mut windows: Vec<(u64, u32)> = Vec::new();
    let mut running: Option<(u64, Who)> = None;
    for at_s in (0..days * DAY_S).step_by(EVERY_S as usize) {
        let readings: Vec<(Who, u64)> = (1..=300).map(|pid| reading(pid, at_s)).collect();
        watch.look(at_s * SECOND, &readings, |_| Some(64 << 30));
        if let Some((end_s, who)) = running.filter(|(end_s, _)| *end_s <= at_s) {
            let outcome = match kind(who.pid) {
                Kind::Leak(..) => Outcome::Found,
                _ => Outcome::Nothing,
            };
            watch.traced(who, end_s * SECOND, outcome);
            running = None;
        }
        if running.is_none()
            && let Some(suspect) = watch.next(at_s * SECOND)
        {
            running = Some((at_s + window_s, suspect.who));
            windows.push((at_s, suspect.who.pid));
        }
    }
    windows
}

#[test]
fn of_a_day_of_300_processes_those_that_leak_are_traced_and_no_other() {
    let windows = windows(2);
    // the first day is learned: whoever rises for hours then may be rising for good
    let (first, second): (Vec<_>, Vec<_>) = windows.iter().partition(|(at_s, _)| *at_s < DAY_S);
    let leaking: Vec<u32> = (1..=12).collect();
    let traced: std::collections::BTreeSet<u32> = second.iter().map(|(_, pid)| *pid).collect();
    let missed: Vec<u32> = leaking
        .iter()
        .copied()
        .filter(|pid| !traced.contains(pid))
        .collect();
    let wrong: Vec<(u64, u32)> = second
        .iter()
        .copied()
        .filter(|(_, pid)| *pid > 12)
        .collect();
    let (leaks, seconds) = (second.len() - wrong.len(), second.len());
    println!(
        "second day: {seconds} windows, {leaks} of leaks, {} of {} leaks traced",
        leaking.len() - missed.len(),
        leaking.len()
    );
    println!("first day: {} windows, none of leaks", first.len());
    for pid in &leaking {
        let first = second.iter().find(|(_, traced)| traced == pid);
        if let (Kind::Leak(rate, from_h), Some((at_s, _))) = (kind(*pid), first) {
            println!(
                "{rate} MiB an hour: traced after {} min",
                (at_s.saturating_sub(from_h * 3600)) / 60
            );
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(first.len() <= 300, "{first:?}");
    // one at a time, with pauses
    assert!(windows.windows(2).all(|pair| pair[1].0 >= pair[0].0 + 120));
}

fn leak_until(watch: &mut Watch, pid: u32, started: u64, from_s: u64, until_s: u64) {
    for at_s in (from_s..until_s).step_by(EVERY_S as usize) {
        let bytes = ((100.0 + (at_s - from_s) as f64 * 0.1) * MIB) as u64;
        watch.look(at_s * SECOND, &[(Who { pid, started }, bytes)], |_| None);
    }
}

#[test]
fn a_number_that_is_used_again_begins_anew() {
    let mut watch = Watch::new(SENSITIVITY, 60 * SECOND);
    leak_until(&mut watch, 7, 1, 0, 600);
    assert_eq!(watch.suspects().len(), 1);
    // the next of that number holds more from its start on, and stays
    for at_s in (600..1200).step_by(EVERY_S as usize) {
        watch.look(
            at_s * SECOND,
            &[(Who { pid: 7, started: 2 }, 900 << 20)],
            |_| None,
        );
        assert_eq!(watch.suspects(), []);
        assert_eq!(watch.processes(), 1);
    }
}

#[test]
fn who_was_traced_has_peace_and_more_of_it_each_time() {
    let mut watch = Watch::new(SENSITIVITY, 60 * SECOND);
    leak_until(&mut watch, 7, 1, 0, 600);
    let who = Who { pid: 7, started: 1 };
    assert_eq!(
        watch.next(600 * SECOND).map(|suspect| suspect.who),
        Some(who)
    );
    watch.traced(who, 600 * SECOND, Outcome::Found);
    let next = |watch: &Watch, from_s: u64| {
        (from_s..)
            .find(|at_s| watch.next(at_s * SECOND).is_some())
            .unwrap()
    };
    assert_eq!(next(&watch, 600), 600 + 240);
    watch.traced(who, 840 * SECOND, Outcome::Found);
    assert_eq!(next(&watch, 840), 840 + 480);
    watch.traced(who, 2000 * SECOND, Outcome::Failed);
    assert_eq!(next(&watch, 2000), 2000 + 60 * 120);
}

#[test]
fn who_meets_a_limit_first_is_first() {
    let mut watch = Watch::new(SENSITIVITY, 60 * SECOND);
    for at_s in (0..600).step_by(EVERY_S as usize) {
        let grown = |rate: f64| ((100.0 + at_s as f64 * rate) * MIB) as u64;
        let readings: Vec<(Who, u64)> = [(1, 0.5), (2, 0.1), (3, 0.01)]
            .map(|(pid, rate)| (Who { pid, started: 1 }, grown(rate)))
            .to_vec();
        watch.look(at_s * SECOND, &readings, |pid| {
            (pid == 3).then_some(10 << 20)
        });
    }
    let order: Vec<u32> = watch
        .suspects()
        .iter()
        .map(|suspect| suspect.who.pid)
        .collect();
    assert_eq!(order, [3, 1, 2]);
}
