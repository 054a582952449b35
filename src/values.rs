//! What is typed for sizes and spans of time, with or without a unit, as values. Errors name an example of what is right.

use std::net::SocketAddr;
use std::time::Duration;

/// The time between reports, as it was typed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// In seconds; any number.
    pub seconds: f64,
    /// Whether it was a whole number without a unit, as a process id is.
    pub bare: bool,
}

/// Reads an interval: a number of seconds, or one with a unit such as `500ms`.
pub fn interval(text: &str) -> Result<Interval, String> {
    let bare = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = match text.parse::<f64>() {
        Ok(seconds) => seconds,
        Err(_) => span(text).map_err(|_| not_an_interval(text))?.as_secs_f64(),
    };
    Ok(Interval { seconds, bare })
}

/// A word there is likely meant as a target.
fn not_an_interval(text: &str) -> String {
    let number = text.starts_with(|first: char| first.is_ascii_digit() || first == '-');
    match number || text.is_empty() {
        true => "expected seconds, or a span of time such as 500ms or 2m".to_owned(),
        false => "expected seconds between reports; did you mean -p (a running process) or -c (a command) before it?".to_owned(),
    }
}

/// Reads a span of time: a number of seconds, or one with a unit such as `90s` or `7d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds)
            .map_err(|_| "expected a span of time such as 30, 90s or 2h".to_owned()),
        Err(_) => span(text),
    }
}

/// Reads a span of time in ms: a number of them, or one with a unit such as `2s`.
pub fn milliseconds(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(milliseconds) => Ok(milliseconds),
        Err(_) => span(text).map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// Reads a size in bytes, such as `4096`, `64K` or `1.5MiB`: K, M, G and T are powers of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    parse_size::Config::new()
        .with_binary()
        .parse_size(text)
        .map_err(|_| "expected a size such as 4096, 64K, 64M or 2G".to_owned())
}

/// The same where no more than 4 GiB can be meant.
pub fn small_size(text: &str) -> Result<u32, String> {
    let size = size(text)?;
    u32::try_from(size).map_err(|_| format!("{size} is too large"))
}

/// Reads where to listen: a port of this machine alone, or an address and a port.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    let port = text
        .parse()
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    port.or_else(|_| text.parse()).map_err(|_| {
        "expected a port, or an address and a port, such as 9464, 0.0.0.0:9464 or [::]:9464"
            .to_owned()
    })
}

fn span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "expected a span of time such as 500ms or 2s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_may_have_units() {
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("4K"), Ok(4096));
        assert_eq!(size("4k"), Ok(4096));
        assert_eq!(size("1kb"), Ok(1024));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        for wrong in ["", "-1", "1X", "K", "99999999999T"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(small_size("4G").is_err());
    }

    #[test]
    fn without_an_address_only_this_machine_is_listened_to() {
        assert_eq!(listen("9464").unwrap().to_string(), "127.0.0.1:9464");
        assert_eq!(listen("0.0.0.0:80").unwrap().to_string(), "0.0.0.0:80");
        assert_eq!(listen("[::1]:80").unwrap().to_string(), "[::1]:80");
        for wrong in ["", ":80", "localhost:80", "99999", "0.0.0.0", "-1"] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn spans_may_have_units() {
        assert_eq!(milliseconds("500"), Ok(500));
        assert_eq!(milliseconds("2s"), Ok(2000));
        assert_eq!(interval("0.25").unwrap().seconds, 0.25);
        assert_eq!(interval("500ms").unwrap().seconds, 0.5);
        assert!(interval("10").unwrap().bare && !interval("10s").unwrap().bare);
        assert!(milliseconds("soon").is_err());
        assert!(interval("nginx").unwrap_err().contains("did you mean -p"));
        assert!(interval("5x").unwrap_err().contains("500ms"));
    }
}
