//! Figures in words: bytes, counts, rates, durations and times of day, for the parts of the page that Rust writes.
//! `assets/format.js` says the same in the browser; no markup here.

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};

use crate::model::snapshot::WallTime;

const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// Bytes with three significant digits: `1.50 KiB`.
pub fn bytes(bytes: f64) -> String {
    let mut value = bytes.abs();
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    let sign = if bytes < 0.0 { "−" } else { "" };
    format!("{sign}{value:.digits$} {}", UNITS[unit])
}

/// An integer with thousands set apart: `1,234,567`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A count and its noun: `1 stack`, `2 stacks`.
pub fn plural(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// Bytes per second in the unit of time that gives the most readable figure: `1.20 MiB a minute`.
pub fn rate(bytes_per_s: f64) -> String {
    let (factor, unit) = unit_of_rate(bytes_per_s);
    format!("{} {unit}", bytes(bytes_per_s * factor))
}

/// Two rates and the unit that they share: `1.1 KiB to 1.3 KiB a second`.
pub fn rates(low: f64, high: f64) -> String {
    let (factor, unit) = unit_of_rate(high);
    format!("{} to {} {unit}", bytes(low * factor), bytes(high * factor))
}

/// What bytes a second are multiplied with, and the words for it.
fn unit_of_rate(bytes_per_s: f64) -> (f64, &'static str) {
    let size = bytes_per_s.abs();
    if size >= 1024.0 {
        (1.0, "a second")
    } else if size * 60.0 >= 1024.0 {
        (60.0, "a minute")
    } else {
        (3600.0, "an hour")
    }
}

/// A duration with its two largest units: `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "unknown".to_owned();
    }
    if seconds < 1.0 {
        return format!("{:.0} ms", seconds * 1000.0);
    }
    if seconds < 10.0 {
        return format!("{seconds:.1} s").replace(".0 s", " s");
    }
    let whole = seconds.round() as u64;
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let first = units
        .iter()
        .position(|(_, size)| whole >= *size)
        .unwrap_or(3);
    let (unit, size) = units[first];
    match units.get(first + 1) {
        Some((next, next_size)) if whole % size >= *next_size => {
            format!(
                "{} {unit} {} {next}",
                count(whole / size),
                whole % size / next_size
            )
        }
        _ => format!("{} {unit}", count(whole / size)),
    }
}

/// A duration that is a forecast, in its one fitting unit: `about 3 hours`.
pub fn forecast(seconds: f64) -> String {
    let units = [
        ("year", 31_557_600.0),
        ("month", 2_629_800.0),
        ("week", 604_800.0),
        ("day", 86_400.0),
        ("hour", 3_600.0),
        ("minute", 60.0),
    ];
    if seconds >= 100.0 * 31_557_600.0 {
        return "more than a century".to_owned();
    }
    match units.iter().find(|(_, size)| seconds >= *size) {
        Some((unit, size)) => {
            let number = (seconds / size).round() as u64;
            format!("about {}", plural(number, unit, &format!("{unit}s")))
        }
        None => "less than a minute".to_owned(),
    }
}

/// Date and time at the recorded offset from UTC: `2026-11-21 07:35:23 +01:00`.
pub fn date_time(time: WallTime) -> String {
    let stamp = Timestamp::from_nanosecond(i128::from(time.unix_ns));
    let offset = Offset::from_seconds(time.utc_offset_s);
    match (stamp, offset) {
        (Ok(stamp), Ok(offset)) => stamp
            .to_zoned(TimeZone::fixed(offset))
            .strftime("%Y-%m-%d %H:%M:%S %:z")
            .to_string(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_three_digits() {
        let cases = [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (1024.0, "1.00 KiB"),
            (1536.0, "1.50 KiB"),
            (15_360.0, "15.0 KiB"),
            (1_048_575.0, "1.00 MiB"),
            (157_286_400.0, "150 MiB"),
            (-2048.0, "−2.00 KiB"),
        ];
        for (value, text) in cases {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(plural(1, "stack", "stacks"), "1 stack");
    }

    #[test]
    fn rates_choose_a_readable_unit() {
        assert_eq!(rate(2048.0), "2.00 KiB a second");
        assert_eq!(rate(100.0), "5.86 KiB a minute");
        assert_eq!(rate(1.0), "3.52 KiB an hour");
        assert_eq!(rates(512.0, 2048.0), "512 B to 2.00 KiB a second");
    }

    #[test]
    fn durations_have_two_units_and_forecasts_one() {
        assert_eq!(duration(0.25), "250 ms");
        assert_eq!(duration(5.0), "5 s");
        assert_eq!(duration(45.0), "45 s");
        assert_eq!(duration(7_505.0), "2 h 5 min");
        assert_eq!(duration(3_600.0), "1 h");
        assert_eq!(duration(f64::NAN), "unknown");
        assert_eq!(forecast(30.0), "less than a minute");
        assert_eq!(forecast(11_000.0), "about 3 hours");
        assert_eq!(forecast(1e12), "more than a century");
    }

    #[test]
    fn times_are_told_at_the_recorded_offset() {
        let time = WallTime {
            unix_ns: 1_763_710_523_000_000_000,
            utc_offset_s: 3600,
        };
        assert_eq!(date_time(time), "2025-11-21 08:35:23 +01:00");
    }
}
