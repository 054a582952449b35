//! Sizes, rates and spans of time for people: three significant digits and a fitting unit.
//! Machine-readable outputs write plain numbers instead.

/// A size such as `1.21 KiB`. Whole when below 1 KiB.
pub fn size(bytes: u64) -> String {
    scaled(bytes as f64)
}

/// A rate such as `1.21 KiB/s`.
pub fn rate(bytes_per_s: f64) -> String {
    format!("{}/s", scaled(bytes_per_s))
}

/// A span of time such as `45 s` or `3.4 h`.
pub fn duration(seconds: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")];
    if seconds >= 365_250.0 * 86_400.0 {
        return "over 1000 years".to_owned();
    }
    let (scale, unit) = UNITS
        .into_iter()
        .find(|(scale, _)| seconds >= 2.0 * scale)
        .unwrap_or((1.0, "s"));
    format!("{} {unit}", three_digits(seconds / scale))
}

fn scaled(bytes: f64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes;
    let mut unit = 0;
    // 1023.5 would round to 1024 of the smaller unit.
    while value.abs() >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

fn three_digits(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    if !text.contains('.') {
        return text;
    }
    let short = text.trim_end_matches('0').trim_end_matches('.');
    if short == "-0" {
        "0".to_owned()
    } else {
        short.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        let sizes = [0, 1, 1023, 1024, 1240, 10_240, 1_048_575, 1 << 30, u64::MAX].map(size);
        let expected = [
            "0 B", "1 B", "1023 B", "1 KiB", "1.21 KiB", "10 KiB", "1 MiB", "1 GiB", "16 EiB",
        ];
        assert_eq!(sizes, expected);
        assert_eq!(rate(0.456), "0.46 B/s");
        assert_eq!(rate(-0.001), "0 B/s");
    }

    #[test]
    fn durations_take_the_unit_that_reads_best() {
        let durations = [0.5, 45.0, 119.0, 120.0, 7200.0, 3.4 * 86_400.0, 1e12].map(duration);
        assert_eq!(
            durations,
            [
                "0.5 s",
                "45 s",
                "119 s",
                "2 min",
                "2 h",
                "3.4 d",
                "over 1000 years"
            ]
        );
    }
}
