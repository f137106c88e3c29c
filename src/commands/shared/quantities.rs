//! Quantities that are typed with a unit.

use demist::{Error, Result};
use std::time::Duration;

/// A time limit given as a number of `unit` seconds.
pub fn time_limit(value: f64, unit: f64, name: &str) -> Result<Duration> {
    let impossible = || Error::Config(format!("a time limit of {value} {name} is impossible"));
    if value <= 0.0 {
        return Err(impossible());
    }
    Duration::try_from_secs_f64(value * unit).map_err(|_| impossible())
}

/// A number of bytes with a unit: "6GiB", "500MB", "123456".
pub fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no number of bytes"))?;
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        other => return Err(format!("unknown unit {other:?}; write GiB, MiB, GB or MB")),
    };
    let bytes = number * unit;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err("out of range".into()) }
}
